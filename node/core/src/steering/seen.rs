//! What the leader of the meta group has seen of nodes and groups: the input of a plan.
//! Collected anew for each plan; owns nothing.

use std::collections::BTreeMap;

use crate::ids::{NodeId, ReplicaId, ShardId, TimestampMs};
use crate::map::{ConfigVersion, Replica, Supported};
use crate::merging::{MergeId, MergeMark};

/// What was seen, by the node that leads the meta group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its clock.
    pub now: TimestampMs,
    /// The nodes that it heard of. One that is missing was never heard of, and is not up.
    pub nodes: BTreeMap<NodeId, NodeSeen>,
    /// By shard, as its leader says. One without a known leader is missing.
    pub shards: BTreeMap<ShardId, ShardSeen>,
    /// The merge for which a replica is frozen, with all that it is frozen with on disk; of those
    /// that are.
    pub kept_frozen: BTreeMap<ReplicaId, MergeId>,
    /// How long all nodes that are not lost have supported the cluster's next version, as far as
    /// this leader knows, milliseconds; 0 when one does not.
    pub next_version_ms: u64,
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
    /// What its disk has free; none when it does not say, or does not answer.
    pub disk_free_bytes: Option<u64>,
    /// Streams of clients on it; 0 when it is not up.
    pub sessions: u32,
    /// The versions of the cluster that it supports, as it said when it was last heard; none when
    /// it never was.
    pub supported: Option<Supported>,
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
    /// What merges have done to it.
    pub mark: MergeMark,
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

impl Seen {
    /// The node answers.
    pub(super) fn is_up(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.up)
    }

    /// The node answers, and will for a while.
    pub(super) fn stays_up(&self, node: NodeId) -> bool {
        let seen = self.nodes.get(&node);
        seen.is_some_and(|node| node.up && !node.is_stopping)
    }

    /// What a node supports that answers.
    pub(super) fn supported(&self, node: NodeId) -> Option<Supported> {
        let seen = self.nodes.get(&node).filter(|node| node.up)?;
        seen.supported
    }

    /// How long nothing was heard of a node that does not answer.
    pub(super) fn silent_ms(&self, node: NodeId) -> u64 {
        let seen = self.nodes.get(&node).filter(|node| !node.up);
        seen.map_or(0, |node| node.silent_ms)
    }
}

impl ShardSeen {
    /// The replica takes part.
    pub(super) fn answers(&self, replica: Replica) -> bool {
        let follower = self.followers.get(&replica.replica_id);
        replica.node_id == self.leader || follower.is_some_and(|follower| follower.answers)
    }

    /// The replica takes part and has almost all.
    pub(super) fn is_caught_up(&self, replica: Replica) -> bool {
        let follower = self.followers.get(&replica.replica_id);
        replica.node_id == self.leader || follower.is_some_and(FollowerSeen::is_caught_up)
    }

    /// More than half of `voters` take part.
    pub(super) fn has_majority(&self, voters: &[Replica]) -> bool {
        let answering = voters.iter().filter(|voter| self.answers(**voter));
        2 * answering.count() > voters.len()
    }
}

impl FollowerSeen {
    pub(super) fn is_caught_up(&self) -> bool {
        self.answers && self.lag_entries <= LAG_ENTRIES_MAX
    }
}

impl MetaSeen {
    pub(super) fn answers(&self, node: NodeId) -> bool {
        let follower = self.followers.get(&node);
        node == self.leader || follower.is_some_and(|follower| follower.answers)
    }

    pub(super) fn is_caught_up(&self, node: NodeId) -> bool {
        let follower = self.followers.get(&node);
        node == self.leader || follower.is_some_and(FollowerSeen::is_caught_up)
    }
}

/// A follower that lacks no more entries is caught up: a leader has some on their way at any
/// time, each with a batch of commands.
pub const LAG_ENTRIES_MAX: u64 = 1_000;
