//! The cluster's map, and the state machine of the meta group that keeps it.
//!
//! The map says which slots a shard has and which nodes hold its replicas. The meta group
//! owns it; everyone else has a copy with an [`Epoch`]. Invariants: the shards' ranges
//! cover every slot once, in order; a shard's replicas are on different nodes; replica ids
//! are never used again; the epoch grows with every change.
//!
//! Code map: `meta` is the state machine's state, commands and answers; `registry` has the
//! nodes, `moves` the replicas that are on their way, `recovery` the shards that lost their
//! majority, `splits` the shards that become two, `merges` those that become one, `policy` the operators' limits, `events` what
//! happened and who wanted it, `versions` what all nodes understand, `refusal` why something did not; `first` makes a new cluster's map
//! and checks it; `codec` has all their binary forms.

mod codec;
mod events;
mod first;
mod merges;
mod meta;
mod moves;
mod policy;
mod recovery;
mod refusal;
mod registry;
mod splits;
mod versions;

pub use self::events::{ACTOR_BYTES_MAX, Actor, EVENTS_MAX, Event, EventKind};
pub use self::first::{MapError, initial_map};
pub use self::merges::{MERGES_MAX, Merge, MergeReason, MergeRefusal, MergeStep};
pub use self::meta::{MetaCommand, MetaReply, MetaState, apply_meta};
pub use self::moves::{ConfigVersion, Move, MoveId, MoveReason, MoveStep};
pub use self::policy::{Policy, PolicyChange, PolicyError, PolicyLimit};
pub use self::recovery::{LogPosition, Recovery};
pub use self::refusal::MetaRefusal;
pub use self::registry::{
    DrainPurpose, DrainStart, JOIN_TOKEN_BYTES_MAX, JoinToken, NODE_TEXT_BYTES_MAX, Standing,
};
pub use self::splits::{SPLITS_MAX, Split, SplitReason, SplitRefusal};
pub use self::versions::{ClusterVersion, Supported, upgrade_hindrances};
use crate::ids::{Epoch, MessageId, NodeId, ReplicaId, ShardId, Slot, SlotRange};
use crate::placement::{PROBLEM_SHARDS_MAX, Zone};

/// The meta group's number: a group like a shard's, without slots.
pub const META_SHARD: ShardId = ShardId(0);

/// The largest number of shards: message ids have 12 bits for the shard, and 0 is the
/// meta group.
pub const SHARDS_MAX: u32 = MessageId::SHARD_MAX;
/// The largest number of nodes.
pub const NODES_MAX: usize = 1024;

const _: () = assert!(SHARDS_MAX as usize <= PROBLEM_SHARDS_MAX);

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its number.
    pub node_id: NodeId,
    /// What it made up when its disk was empty: another disk has another identity.
    pub identity: String,
    /// Where clients reach it, `host:port`.
    pub client_address: String,
    /// Where other nodes reach it, `host:port`.
    pub peer_address: String,
    /// What it fails together with; empty when none is configured.
    pub zone: Zone,
    /// Its share relative to the others', 1 to
    /// [`WEIGHT_MAX`](crate::placement::WEIGHT_MAX).
    pub weight: u32,
    /// What its replicas may take up; [`u64::MAX`] for no limit.
    pub capacity_bytes: u64,
}

/// A shard's copy on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Never used again once it is gone.
    pub replica_id: ReplicaId,
    /// Where it is.
    pub node_id: NodeId,
}

/// A shard: its slots and where its replicas are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardDescriptor {
    /// Its number.
    pub shard_id: ShardId,
    /// Its slots.
    pub slots: SlotRange,
    /// Its replicas, each on another node; the preferred leader's first.
    pub replicas: Vec<Replica>,
    /// The node that is to lead it while it is healthy.
    pub preferred_leader: NodeId,
}

impl ShardDescriptor {
    /// The replica on `node`.
    pub fn replica_on(&self, node: NodeId) -> Option<Replica> {
        let mut replicas = self.replicas.iter();
        replicas.find(|replica| replica.node_id == node).copied()
    }
}

/// Which shard has a slot, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardMap {
    /// Grows with every change; 0 before there is a cluster.
    pub epoch: Epoch,
    /// By slots, covering all of them; empty before there is a cluster.
    pub shards: Vec<ShardDescriptor>,
    /// By number.
    pub nodes: Vec<NodeInfo>,
}

impl ShardMap {
    /// The shard that has `slot`; none before there is a cluster.
    #[inline]
    pub fn shard_of(&self, slot: Slot) -> Option<&ShardDescriptor> {
        let at = self.shards.partition_point(|shard| shard.slots.last < slot);
        let shard = self.shards.get(at)?;
        shard.slots.contains(slot).then_some(shard)
    }

    /// The shard of this number.
    pub fn shard(&self, shard_id: ShardId) -> Option<&ShardDescriptor> {
        self.shards.iter().find(|shard| shard.shard_id == shard_id)
    }

    /// The shard with the slots after those of this one; none when it has the last, or is none.
    pub fn right_of(&self, shard_id: ShardId) -> Option<&ShardDescriptor> {
        let mut shards = self.shards.iter();
        shards.find(|shard| shard.shard_id == shard_id)?;
        shards.next()
    }

    /// The node of this number.
    pub fn node(&self, node_id: NodeId) -> Option<&NodeInfo> {
        let at = self
            .nodes
            .binary_search_by_key(&node_id, |node| node.node_id);
        at.ok().map(|at| &self.nodes[at])
    }
}
