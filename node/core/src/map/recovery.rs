//! Shards that lost the majority of their replicas, and are made anew from one that is left.
//!
//! Owner of the state: [`MetaState`]. An operator names the survivor; the command gives it a
//! new number, which alone is the shard's group from then on, and keeps a [`Recovery`] until
//! that group has a leader. The survivor's node does the work, as the map says.
//!
//! Invariants: a shard has at most one recovery, and no move beside it; the lost replicas and
//! the survivor under its old number are never named again, so what they say is of no group;
//! the other survivors are named, and so kept, until the new group leads.

use std::collections::BTreeSet;

use super::events::EventKind;
use super::merges::MergeStep;
use super::meta::{MetaReply, MetaState};
use super::moves::{Move, MoveStep};
use super::refusal::MetaRefusal;
use super::registry::Standing;
use super::splits::SplitRefusal;
use super::{Replica, ShardDescriptor};
use crate::ids::{NodeId, ReplicaId, ShardId, TimestampMs};

/// A place in a shard's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPosition {
    /// The entry's term.
    pub term: u64,
    /// The replica that led in that term.
    pub leader: ReplicaId,
    /// The entry's index.
    pub index: u64,
}

/// A shard that is being made anew from one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The shard.
    pub shard_id: ShardId,
    /// The replica that survived, with its old number.
    pub from: Replica,
    /// The same replica with the number that it has from now on.
    pub to: Replica,
    /// Other replicas that survived. Their nodes keep them until the new one leads.
    pub others: Vec<Replica>,
    /// When it was asked for.
    pub started_at: TimestampMs,
}

impl MetaState {
    /// The replica is one from which a recovery may have to begin again.
    pub(super) fn keeps_for_recovery(&self, shard_id: ShardId, replica_id: ReplicaId) -> bool {
        let recovery = self.recoveries.get(&shard_id);
        let mut others = recovery.into_iter().flat_map(|recovery| &recovery.others);
        others.any(|replica| replica.replica_id == replica_id)
    }

    /// All replicas of a shard that may have something of it: those of the map, of a move, and
    /// those that a recovery keeps.
    pub fn replicas_of(&self, shard: &ShardDescriptor) -> Vec<Replica> {
        let moving = self.moves.get(&shard.shard_id);
        let moving = moving
            .into_iter()
            .flat_map(|one| one.add.iter().chain(&one.remove));
        let recovery = self.recoveries.get(&shard.shard_id);
        let kept = recovery.into_iter().flat_map(|recovery| &recovery.others);
        let placed = shard.replicas.iter();
        let all: BTreeSet<(ReplicaId, NodeId)> = placed
            .chain(moving)
            .chain(kept)
            .map(|replica| (replica.replica_id, replica.node_id))
            .collect();
        let replica = |(replica_id, node_id)| Replica {
            replica_id,
            node_id,
        };
        all.into_iter().map(replica).collect()
    }

    fn is_lost(&self, node: NodeId) -> bool {
        self.standing(node).is_none_or(|now| now == Standing::Lost)
    }

    /// Most of these are on nodes that are not given up.
    fn has_majority(&self, voters: &[Replica]) -> bool {
        let lives = |replica: &&Replica| !self.is_lost(replica.node_id);
        2 * voters.iter().filter(lives).count() > voters.len()
    }

    /// The shard's group may still decide: most of its voters are on nodes that are not given
    /// up, whichever configuration it is in.
    pub fn may_have_majority(&self, shard: &ShardDescriptor) -> bool {
        let running = self.moves.get(&shard.shard_id);
        let switching = |one: &&Move| matches!(one.step, MoveStep::Switching { .. });
        let after = running.filter(switching);
        let after = after.map(|one| one.replicas_after(shard));
        self.has_majority(&shard.replicas) && after.is_none_or(|voters| self.has_majority(&voters))
    }
}

pub(super) fn recover(
    state: &mut MetaState,
    shard_id: ShardId,
    survivor: ReplicaId,
    last: LogPosition,
    at: TimestampMs,
) -> Result<MetaReply, MetaRefusal> {
    if let Some(running) = state.recoveries.get(&shard_id) {
        if running.from.replica_id == survivor {
            return Ok(state.updated(false));
        }
        if !state.is_lost(running.to.node_id) {
            return Err(MetaRefusal::ShardIsRecovering {
                shard_id,
                node_id: running.to.node_id,
            });
        }
    }
    let Some(shard) = state.map.shard(shard_id) else {
        return Err(MetaRefusal::UnknownShard { shard_id });
    };
    if let Some(running) = state.splits.get(&shard_id) {
        // Whether the survivor has done it is not known here, and the new shard has no majority
        // either.
        let new_shard_id = running.new_shard_id;
        return Err(SplitRefusal::Running {
            shard_id,
            new_shard_id,
        }
        .into());
    }
    if let Some(merge) = state.merge_of(shard_id) {
        // Frozen, it is thawed or taken over first; what takes it over may be made anew.
        let waits = match merge.step {
            MergeStep::Freezing => true,
            MergeStep::Absorbing => merge.absorbed_shard_id == shard_id,
            MergeStep::Gathering | MergeStep::Thawing => false,
        };
        if waits {
            state.check_not_merging(shard_id)?;
        }
    }
    if state.may_have_majority(shard) {
        return Err(MetaRefusal::ShardHasMajority { shard_id });
    }
    let (lost, living): (Vec<Replica>, Vec<Replica>) = state
        .replicas_of(shard)
        .into_iter()
        .partition(|replica| state.is_lost(replica.node_id));
    let mut found = living.iter();
    let Some(from) = found.find(|replica| replica.replica_id == survivor) else {
        return Err(MetaRefusal::NotASurvivor {
            shard_id,
            replica_id: survivor,
        });
    };
    let (from, others) = (
        *from,
        living.iter().filter(|one| one.replica_id != survivor),
    );
    let recovery = Recovery {
        shard_id,
        from,
        to: Replica {
            replica_id: state.next_replica_id,
            node_id: from.node_id,
        },
        others: others.copied().collect(),
        started_at: at,
    };
    let to = recovery.to;
    state.next_replica_id = ReplicaId(state.next_replica_id.0 + 1);
    let mut shards = state.map.shards.iter_mut();
    let shard = shards.find(|shard| shard.shard_id == shard_id);
    let shard = shard.expect("it was found before");
    shard.replicas = vec![to];
    shard.preferred_leader = to.node_id;
    state.moves.remove(&shard_id);
    state.recoveries.insert(shard_id, recovery);
    state.record(
        at,
        EventKind::RecoveryStarted {
            shard_id,
            from,
            to: to.replica_id,
            last,
            lost: lost.iter().map(|replica| replica.node_id).collect(),
        },
    );
    state.next_epoch();
    Ok(state.updated(true))
}

pub(super) fn finish(
    state: &mut MetaState,
    shard_id: ShardId,
    replica_id: ReplicaId,
    at: TimestampMs,
) -> Result<MetaReply, MetaRefusal> {
    let running = state.recoveries.get(&shard_id);
    if running.is_none_or(|running| running.to.replica_id != replica_id) {
        return Ok(state.updated(false));
    }
    state.recoveries.remove(&shard_id);
    state.record(
        at,
        EventKind::RecoveryFinished {
            shard_id,
            replica_id,
        },
    );
    state.next_epoch();
    Ok(state.updated(true))
}
