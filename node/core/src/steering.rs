//! What the leader of the meta group does next: the pure brain of the cluster.
//!
//! [`plan`] takes the replicated state and what was seen of the nodes and groups, and says
//! which steps to take. It owns no state and reads no clock; whoever calls it observes
//! first, then plans, then executes, again and again. Every step may be executed any number
//! of times, be dropped, or be late, also by a node that only believes to lead:
//! - a proposal is judged when it is applied, by the move's number or the map's epoch;
//! - a change of a group's members names the configuration that it was decided on, and is
//!   refused by a group that has another one.

use std::collections::BTreeMap;

use crate::ids::{NodeId, ReplicaId, ShardId, TimestampMs};
use crate::map::{ConfigVersion, MetaCommand, MetaState, Replica};

/// What was seen, by the node that leads the meta group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its clock.
    pub now: TimestampMs,
    /// The nodes that it heard of. One that is missing was never heard of, and is not up.
    pub nodes: BTreeMap<NodeId, NodeSeen>,
    /// By shard, as its leader says. One without a known leader is missing.
    pub shards: BTreeMap<ShardId, ShardSeen>,
    /// The meta group.
    pub meta: MetaSeen,
}

/// What was seen of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeSeen {
    /// It answers.
    pub up: bool,
    /// How long it has not been heard; 0 when it is up.
    pub silent_ms: u64,
    /// It said that it is about to stop.
    pub is_stopping: bool,
}

/// What the leader of a shard says of its group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardSeen {
    /// Where the leader is.
    pub leader: NodeId,
    /// The configuration that the leader acts by: the last one in its log.
    pub config: ConfigVersion,
    /// The configuration's voters.
    pub voters: Vec<Replica>,
    /// The configuration's learners.
    pub learners: Vec<Replica>,
    /// The configuration is joint, or is not committed yet.
    pub changing: bool,
    /// The other replicas, voters and learners.
    pub followers: BTreeMap<ReplicaId, FollowerSeen>,
    /// What a replica takes up.
    pub size_bytes: u64,
    /// How much it does, in commands per second.
    pub load_per_second: u64,
}

/// What a leader says of a follower.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FollowerSeen {
    /// Entries that it does not have.
    pub lag_entries: u64,
    /// It answered lately.
    pub answers: bool,
}

/// What the leader of the meta group knows of the group. Its members are nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetaSeen {
    /// Where the leader is.
    pub leader: NodeId,
    /// The configuration that the leader acts by.
    pub config: ConfigVersion,
    /// Its voters.
    pub voters: Vec<NodeId>,
    /// Its learners.
    pub learners: Vec<NodeId>,
    /// The configuration is joint, or is not committed yet.
    pub changing: bool,
    /// The other members.
    pub followers: BTreeMap<NodeId, FollowerSeen>,
}

/// Something to do.
///
/// A step that names a `config` is executed by the group's leader, and only when the last
/// configuration in its log is this one, committed and not joint; the check and the change
/// are one, as far as other such steps are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Propose a command to the meta group.
    Propose(MetaCommand),
    /// Let the shard's group send its state and log to a new replica.
    AddLearner {
        /// The shard.
        shard_id: ShardId,
        /// Where its leader is.
        leader: NodeId,
        /// The replica.
        replica: Replica,
        /// What it was decided on.
        config: ConfigVersion,
    },
    /// Give the shard's group other voters. Those that are no longer are removed altogether;
    /// new ones are learners now.
    ChangeVoters {
        /// The shard.
        shard_id: ShardId,
        /// Where its leader is.
        leader: NodeId,
        /// All voters from now on.
        voters: Vec<Replica>,
        /// What it was decided on.
        config: ConfigVersion,
    },
    /// Let the shard's group forget a learner. A voter is never removed by it.
    RemoveLearner {
        /// The shard.
        shard_id: ShardId,
        /// Where its leader is.
        leader: NodeId,
        /// The replica.
        replica: Replica,
        /// What it was decided on.
        config: ConfigVersion,
    },
    /// Let another voter lead. Of the meta group when the shard is
    /// [`META_SHARD`](crate::map::META_SHARD).
    TransferLeader {
        /// The shard.
        shard_id: ShardId,
        /// Where the leader is.
        from: NodeId,
        /// Where it is to be.
        to: NodeId,
    },
    /// Let the meta group send its state and log to a node.
    MetaAddLearner {
        /// The node.
        node_id: NodeId,
        /// What it was decided on.
        config: ConfigVersion,
    },
    /// Give the meta group other voters. Those that are no longer stay as learners.
    MetaChangeVoters {
        /// All voters from now on.
        voters: Vec<NodeId>,
        /// What it was decided on.
        config: ConfigVersion,
    },
    /// Let the meta group forget a learner.
    MetaRemoveLearner {
        /// The node.
        node_id: NodeId,
        /// What it was decided on.
        config: ConfigVersion,
    },
}

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be executed in this order; each of them may fail.
    pub steps: Vec<Step>,
    /// Why nothing more happens now, for people.
    pub waits: Vec<Wait>,
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The node that it is about.
    pub node_id: Option<NodeId>,
    /// The shard that it is about.
    pub shard_id: Option<ShardId>,
    /// What is waited for, and what people can do about it.
    pub text: String,
}

/// What to do next. Empty steps: all is as it should be, or what is missing is waited for.
pub fn plan(state: &MetaState, seen: &Seen) -> Plan {
    let _ = (state, seen);
    Plan::default()
}
