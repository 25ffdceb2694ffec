//! What a plan consists of. Owns nothing.

use crate::ids::{NodeId, ShardId};
use crate::map::{ConfigVersion, MetaCommand, Replica};
use crate::merging::MergeId;

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
    /// Let the shard's group do its split. It does it once, whenever it is told.
    Split {
        /// The shard.
        shard_id: ShardId,
        /// Where its leader is.
        leader: NodeId,
        /// The shard that it makes.
        new_shard_id: ShardId,
    },
    /// Let the shard's group freeze it for a merge. Answered when it is.
    FreezeShard {
        /// The shard.
        shard_id: ShardId,
        /// Where its leader is.
        leader: NodeId,
        /// The merge.
        merge_id: MergeId,
    },
    /// Let the nodes of a frozen shard keep what it has, all of them at once. Answered when it is
    /// on disk.
    KeepFrozen {
        /// The shard.
        shard_id: ShardId,
        /// Where its replicas are.
        nodes: Vec<NodeId>,
        /// The merge.
        merge_id: MergeId,
    },
    /// Let the shard's group thaw it, because the merge was given up.
    ThawShard {
        /// The shard.
        shard_id: ShardId,
        /// Where its leader is.
        leader: NodeId,
        /// The merge.
        merge_id: MergeId,
    },
    /// Let the shard's group take over its right neighbour, which all its nodes keep frozen.
    AbsorbShard {
        /// The shard that stays.
        shard_id: ShardId,
        /// Where its leader is.
        leader: NodeId,
        /// The merge.
        merge_id: MergeId,
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

impl Step {
    /// It is about a merge, for which clients may be waiting.
    pub fn is_of_a_merge(&self) -> bool {
        matches!(
            self,
            Step::FreezeShard { .. }
                | Step::KeepFrozen { .. }
                | Step::ThawShard { .. }
                | Step::AbsorbShard { .. }
        )
    }
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
