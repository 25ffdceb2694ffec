//! Shards that are being split: a shard gives its last slots to a new one, on the same nodes,
//! in one entry of its log. Nothing is copied and nothing moves.
//!
//! A split has two steps here: it is started, which gives the new shard and its replicas their
//! numbers, and it is finished, which puts the new shard into the map. In between the shard's
//! group is told; it does the split once, however often it is told, and cannot refuse it. So a
//! split that has started is never taken back.
//!
//! Owner of the state: the meta group's state. Invariants: a shard that is being split does not
//! move, so its replicas are the map's; shard numbers are never used again.

use std::fmt;

use thiserror::Error;

use super::meta::{MetaReply, MetaState};
use super::refusal::MetaRefusal;
use super::{EventKind, Replica, SHARDS_MAX, ShardDescriptor};
use crate::ids::{Epoch, NodeId, ReplicaId, ShardId, Slot, SlotRange, TimestampMs};

/// How many shards are being split at once, at most.
pub const SPLITS_MAX: usize = 4;

/// A shard that is being split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// The shard; it keeps the slots before `slot`.
    pub shard_id: ShardId,
    /// The new one.
    pub new_shard_id: ShardId,
    /// The new one's first slot.
    pub slot: Slot,
    /// The new one's replicas, on the nodes of the shard's.
    pub replicas: Vec<Replica>,
    /// Why.
    pub reason: SplitReason,
    /// When, by the clock of who proposed it.
    pub started_at: TimestampMs,
}

/// Why a shard is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitReason {
    /// An operator asked for it.
    Asked = 1,
    /// It has become too large.
    Size = 2,
    /// It has too much to do.
    Load = 3,
}

impl fmt::Display for SplitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SplitReason::Asked => "asked for",
            SplitReason::Size => "size",
            SplitReason::Load => "load",
        })
    }
}

/// Why a shard is not split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SplitRefusal {
    /// It is being split already.
    #[error(
        "shard {shard_id} is being split, into shard {new_shard_id} too; wait until it is done"
    )]
    Running {
        /// The shard.
        shard_id: ShardId,
        /// The new one.
        new_shard_id: ShardId,
    },
    /// One of the two would have no slot.
    #[error("shard {shard_id} has slots {slots} and cannot be split at slot {slot}")]
    Slot {
        /// The shard.
        shard_id: ShardId,
        /// Where it was to be split.
        slot: Slot,
        /// What it has.
        slots: SlotRange,
    },
    /// There are no more numbers.
    #[error("no more than {max} shards can be made in the life of a cluster")]
    TooManyShards {
        /// The limit.
        max: u32,
    },
    /// Too many are being split.
    #[error("{max} shards are being split; wait for one")]
    TooMany {
        /// The limit.
        max: usize,
    },
}

impl Split {
    /// The new shard as it comes into the map, when `shard` is the old one.
    pub fn new_shard(&self, shard: &ShardDescriptor) -> Option<ShardDescriptor> {
        let (_, slots) = shard.slots.split(self.slot)?;
        Some(ShardDescriptor {
            shard_id: self.new_shard_id,
            slots,
            replicas: self.replicas.clone(),
            preferred_leader: shard.preferred_leader,
        })
    }

    /// The new shard's replica on `node`.
    pub fn replica_on(&self, node: NodeId) -> Option<Replica> {
        let mut replicas = self.replicas.iter();
        replicas.find(|replica| replica.node_id == node).copied()
    }
}

impl MetaState {
    /// The running split that makes this shard.
    pub fn split_into(&self, new_shard_id: ShardId) -> Option<&Split> {
        let mut splits = self.splits.values();
        splits.find(|split| split.new_shard_id == new_shard_id)
    }
}

/// What [`MetaCommand::StartSplit`](super::MetaCommand::StartSplit) asks for.
pub(super) struct Asked {
    pub(super) shard_id: ShardId,
    pub(super) slot: Slot,
    pub(super) reason: SplitReason,
    pub(super) epoch: Option<Epoch>,
}

pub(super) fn start(
    state: &mut MetaState,
    asked: &Asked,
    at: TimestampMs,
) -> Result<MetaReply, MetaRefusal> {
    let shard_id = asked.shard_id;
    if let Some(running) = state.splits.get(&shard_id) {
        if running.slot == asked.slot {
            return Ok(state.updated(false));
        }
        return Err(SplitRefusal::Running {
            shard_id,
            new_shard_id: running.new_shard_id,
        }
        .into());
    }
    state.check_not_merging(shard_id)?;
    if let Some(running) = state.moves.get(&shard_id) {
        return Err(MetaRefusal::ShardIsMoving {
            shard_id,
            move_id: running.move_id,
        });
    }
    if let Some(running) = state.recoveries.get(&shard_id) {
        return Err(MetaRefusal::ShardIsRecovering {
            shard_id,
            node_id: running.to.node_id,
        });
    }
    if let Some(epoch) = asked.epoch
        && epoch != state.map.epoch
    {
        return Err(MetaRefusal::OtherEpoch {
            asked: epoch,
            current: state.map.epoch,
        });
    }
    let Some(shard) = state.map.shard(shard_id) else {
        return Err(MetaRefusal::UnknownShard { shard_id });
    };
    if shard.slots.split(asked.slot).is_none() {
        return Err(SplitRefusal::Slot {
            shard_id,
            slot: asked.slot,
            slots: shard.slots,
        }
        .into());
    }
    if state.splits.len() >= SPLITS_MAX {
        return Err(SplitRefusal::TooMany { max: SPLITS_MAX }.into());
    }
    let new_shard_id = state.next_shard_id;
    if new_shard_id.0 > SHARDS_MAX {
        return Err(SplitRefusal::TooManyShards { max: SHARDS_MAX }.into());
    }
    let mut next_replica_id = state.next_replica_id;
    let replicas = shard.replicas.iter().map(|replica| {
        let replica_id = next_replica_id;
        next_replica_id = ReplicaId(replica_id.0 + 1);
        Replica {
            replica_id,
            node_id: replica.node_id,
        }
    });
    let split = Split {
        shard_id,
        new_shard_id,
        slot: asked.slot,
        replicas: replicas.collect(),
        reason: asked.reason,
        started_at: at,
    };
    state.next_replica_id = next_replica_id;
    state.next_shard_id = ShardId(new_shard_id.0 + 1);
    state.splits.insert(shard_id, split);
    state.record(
        at,
        EventKind::SplitStarted {
            shard_id,
            new_shard_id,
            slot: asked.slot,
            reason: asked.reason,
        },
    );
    state.next_epoch();
    Ok(state.updated(true))
}

pub(super) fn finish(
    state: &mut MetaState,
    new_shard_id: ShardId,
    at: TimestampMs,
) -> Result<MetaReply, MetaRefusal> {
    let Some(split) = state.split_into(new_shard_id).cloned() else {
        return match state.map.shard(new_shard_id) {
            Some(_) => Ok(state.updated(false)),
            None => Err(MetaRefusal::UnknownShard {
                shard_id: new_shard_id,
            }),
        };
    };
    let shard_id = split.shard_id;
    let shards = &mut state.map.shards;
    let place = shards.iter().position(|shard| shard.shard_id == shard_id);
    let place = place.expect("a split has a shard");
    let new = split.new_shard(&shards[place]);
    let (before, _) = shards[place]
        .slots
        .split(split.slot)
        .expect("a split was checked when it was started");
    shards[place].slots = before;
    shards.insert(place + 1, new.expect("as above"));
    let shards_now = shards.len() as u32;
    if split.reason == SplitReason::Asked {
        // What somebody asked for is not merged again because it is small.
        let min = &mut state.policy.shards_min;
        *min = min.saturating_add(1).clamp(1, shards_now);
    }
    state.splits.remove(&shard_id);
    state.last_split_at = at;
    state.record(
        at,
        EventKind::SplitFinished {
            shard_id,
            new_shard_id,
        },
    );
    state.next_epoch();
    Ok(state.updated(true))
}
