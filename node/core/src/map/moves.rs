//! Replicas on their way from one node to another: a move is replicated before anything of
//! it is done, so that whoever leads the meta group next goes on with it.
//!
//! Owner of the state: [`MetaState`]. A move goes `CatchingUp → Switching → finished`, or
//! `CatchingUp → Cancelling → ended`. `Switching` names the one configuration of the shard's
//! group from which the voters may be changed; once the group has another configuration and
//! the old voters, no change can be under way, and the move may go back to `CatchingUp`.
//!
//! Invariants: a shard has at most one move; `numbers of running moves < next_move_id`, and
//! none is given again; a shard's replicas are on different nodes, after the move too; a
//! move that only removes leaves the replication factor.

use std::collections::BTreeMap;
use std::fmt;

use super::events::EventKind;
use super::merges::MergeStep;
use super::meta::{MetaReply, MetaState};
use super::refusal::MetaRefusal;
use super::registry::Standing;
use super::splits::SplitRefusal;
use super::{Replica, ShardDescriptor};
use crate::ids::{Epoch, NodeId, ReplicaId, ShardId, TimestampMs};

/// A move's number; never given again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MoveId(pub u64);

impl fmt::Display for MoveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Which configuration a Raft group has: where in its log the entry is that made it. Two
/// configurations never have the same, also when they list the same members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConfigVersion {
    /// The entry's term.
    pub term: u64,
    /// The replica that led in that term: a term may have had more than one leader.
    pub leader: ReplicaId,
    /// The entry's index.
    pub index: u64,
}

/// A change of a shard's replicas that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Its number.
    pub move_id: MoveId,
    /// The shard.
    pub shard_id: ShardId,
    /// The replica that it gets.
    pub add: Option<Replica>,
    /// The replica that it loses.
    pub remove: Option<Replica>,
    /// The shard's preferred leader once it is finished.
    pub preferred_leader: NodeId,
    /// How far it is.
    pub step: MoveStep,
    /// Why it is made.
    pub reason: MoveReason,
    /// When it was started.
    pub started_at: TimestampMs,
}

/// How far a move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveStep {
    /// The new replica is a learner and gets the state.
    CatchingUp,
    /// The voters are being changed. The group may be anywhere between old and new, so it
    /// can no longer be cancelled.
    Switching {
        /// The only configuration from which the change may begin.
        config: ConfigVersion,
    },
    /// The learner is being removed.
    Cancelling,
}

impl fmt::Display for MoveStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MoveStep::CatchingUp => "catching up",
            MoveStep::Switching { .. } => "switching",
            MoveStep::Cancelling => "being cancelled",
        })
    }
}

/// Why a move is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MoveReason {
    /// The replica's node is lost.
    Repair = 1,
    /// The replica's node is being emptied.
    Drain = 2,
    /// Another node has more room.
    Balance = 3,
    /// An operator asked for it.
    Asked = 4,
    /// The shard is to be merged with one that is there.
    Merge = 5,
}

impl fmt::Display for MoveReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MoveReason::Repair => "repair",
            MoveReason::Drain => "drain",
            MoveReason::Balance => "balance",
            MoveReason::Asked => "asked for",
            MoveReason::Merge => "merge",
        })
    }
}

impl Move {
    /// The node takes part in it.
    pub fn names(&self, node_id: NodeId) -> bool {
        let mut replicas = self.add.iter().chain(&self.remove);
        replicas.any(|replica| replica.node_id == node_id) || self.preferred_leader == node_id
    }

    /// The shard's replicas when it is finished.
    pub fn replicas_after(&self, shard: &ShardDescriptor) -> Vec<Replica> {
        let replicas = shard.replicas.iter().copied();
        let kept = replicas.filter(|replica| Some(*replica) != self.remove);
        kept.chain(self.add).collect()
    }

    /// It ends with what it was started for.
    pub fn goes_on(&self) -> bool {
        self.step != MoveStep::Cancelling
    }
}

impl MetaState {
    /// The running move of this number.
    pub fn running(&self, move_id: MoveId) -> Option<&Move> {
        self.moves
            .values()
            .find(|running| running.move_id == move_id)
    }

    /// The replica is in the map, in a move or a split, or kept by a recovery: its node is to
    /// keep it.
    pub fn names_replica(&self, shard_id: ShardId, replica_id: ReplicaId) -> bool {
        let shard = self.map.shard(shard_id);
        let placed = shard.into_iter().flat_map(|shard| &shard.replicas);
        let moving = self.moves.get(&shard_id);
        let moving = moving
            .into_iter()
            .flat_map(|one| one.add.iter().chain(&one.remove));
        let split_off = self.split_into(shard_id);
        let split_off = split_off.into_iter().flat_map(|split| &split.replicas);
        placed
            .chain(moving)
            .chain(split_off)
            .any(|replica| replica.replica_id == replica_id)
            || self.keeps_for_recovery(shard_id, replica_id)
    }

    /// The replica that `node` is to have of the shard: placed there, or on its way.
    pub fn replica_for(&self, shard_id: ShardId, node: NodeId) -> Option<Replica> {
        let placed = self.map.shard(shard_id)?.replica_on(node);
        let added = self.moves.get(&shard_id).and_then(|running| running.add);
        placed.or(added.filter(|replica| replica.node_id == node))
    }

    /// How many moves the node takes part in, as source or target.
    pub fn moves_of(&self, node_id: NodeId) -> u32 {
        let of = |running: &&Move| {
            let mut replicas = running.add.iter().chain(&running.remove);
            replicas.any(|replica| replica.node_id == node_id)
        };
        self.moves.values().filter(of).count() as u32
    }
}

/// What [`MetaCommand::StartMove`](super::MetaCommand::StartMove) asks for.
pub(super) struct Asked {
    pub(super) shard_id: ShardId,
    pub(super) to: Option<NodeId>,
    pub(super) from: Option<NodeId>,
    pub(super) preferred_leader: NodeId,
    pub(super) reason: MoveReason,
    pub(super) epoch: Epoch,
}

pub(super) fn start(
    state: &mut MetaState,
    asked: &Asked,
    at: TimestampMs,
) -> Result<MetaReply, MetaRefusal> {
    let shard_id = asked.shard_id;
    if let Some(running) = state.moves.get(&shard_id) {
        let node = |replica: Option<Replica>| replica.map(|replica| replica.node_id);
        if running.goes_on() && (node(running.add), node(running.remove)) == (asked.to, asked.from)
        {
            return Ok(MetaReply::MoveStarted {
                move_id: running.move_id,
                existed: true,
                epoch: state.map.epoch,
            });
        }
        return Err(MetaRefusal::ShardIsMoving {
            shard_id,
            move_id: running.move_id,
        });
    }
    if let Some(running) = state.splits.get(&shard_id) {
        let new_shard_id = running.new_shard_id;
        return Err(SplitRefusal::Running {
            shard_id,
            new_shard_id,
        }
        .into());
    }
    if let Some(merge) = state.merge_of(shard_id) {
        let gathers = asked.reason == MoveReason::Merge
            && merge.step == MergeStep::Gathering
            && merge.absorbed_shard_id == shard_id;
        if !gathers {
            state.check_not_merging(shard_id)?;
        }
    }
    if let Some(running) = state.recoveries.get(&shard_id) {
        return Err(MetaRefusal::ShardIsRecovering {
            shard_id,
            node_id: running.to.node_id,
        });
    }
    if asked.epoch != state.map.epoch {
        return Err(MetaRefusal::OtherEpoch {
            asked: asked.epoch,
            current: state.map.epoch,
        });
    }
    let Some(shard) = state.map.shard(shard_id) else {
        return Err(MetaRefusal::UnknownShard { shard_id });
    };
    let remove = check_nodes(state, shard, asked)?;
    check_limits(state, asked)?;
    let add = asked.to.map(|node_id| Replica {
        replica_id: state.next_replica_id,
        node_id,
    });
    let started = Move {
        move_id: state.next_move_id,
        shard_id,
        add,
        remove,
        preferred_leader: asked.preferred_leader,
        step: MoveStep::CatchingUp,
        reason: asked.reason,
        started_at: at,
    };
    let mut after = started.replicas_after(shard).into_iter();
    if !after.any(|replica| replica.node_id == asked.preferred_leader) {
        return Err(MetaRefusal::NoReplicaThere {
            shard_id,
            node_id: asked.preferred_leader,
        });
    }
    if add.is_some() {
        state.next_replica_id = ReplicaId(state.next_replica_id.0 + 1);
    }
    state.next_move_id = MoveId(state.next_move_id.0 + 1);
    state.moves.insert(shard_id, started);
    state.record(at, EventKind::started(&started));
    Ok(MetaReply::MoveStarted {
        move_id: started.move_id,
        existed: false,
        epoch: state.next_epoch(),
    })
}

/// Whether the shard can get and lose what is asked for; what it loses.
fn check_nodes(
    state: &MetaState,
    shard: &ShardDescriptor,
    asked: &Asked,
) -> Result<Option<Replica>, MetaRefusal> {
    let shard_id = shard.shard_id;
    if let Some(node_id) = asked.to {
        match state.standing(node_id) {
            None => return Err(MetaRefusal::UnknownNode { node_id }),
            Some(Standing::Active) => {}
            Some(standing) => return Err(MetaRefusal::NodeNotActive { node_id, standing }),
        }
        if shard.replica_on(node_id).is_some() {
            return Err(MetaRefusal::ReplicaThere { shard_id, node_id });
        }
    }
    let remove = match asked.from {
        None => None,
        Some(node_id) => match shard.replica_on(node_id) {
            None => return Err(MetaRefusal::NoReplicaThere { shard_id, node_id }),
            found => found,
        },
    };
    let replicas = shard.replicas.len() as u32;
    let wanted = state.replication_factor;
    let possible = match (asked.to, asked.from) {
        (Some(_), Some(_)) => true,
        (Some(_), None) => replicas < wanted,
        (None, Some(_)) => replicas > wanted,
        (None, None) => false,
    };
    if !possible {
        return Err(MetaRefusal::WrongNumberOfReplicas {
            shard_id,
            replicas,
            replication_factor: wanted,
        });
    }
    Ok(remove)
}

fn check_limits(state: &MetaState, asked: &Asked) -> Result<(), MetaRefusal> {
    let max = state.policy.moves_max;
    if state.moves.len() as u32 >= max {
        return Err(MetaRefusal::TooManyMoves { max });
    }
    let max = state.policy.moves_per_node_max;
    for node_id in asked.to.into_iter().chain(asked.from) {
        let works = state.standing(node_id) != Some(Standing::Lost);
        if works && state.moves_of(node_id) >= max {
            return Err(MetaRefusal::TooManyMovesOfNode { node_id, max });
        }
    }
    Ok(())
}

/// The move, when it runs; none when it has ended before.
fn find(state: &MetaState, move_id: MoveId) -> Result<Option<Move>, MetaRefusal> {
    match state.running(move_id) {
        Some(running) => Ok(Some(*running)),
        None if move_id < state.next_move_id && move_id.0 > 0 => Ok(None),
        None => Err(MetaRefusal::UnknownMove { move_id }),
    }
}

fn wrong_step(running: &Move) -> MetaRefusal {
    MetaRefusal::WrongStep {
        move_id: running.move_id,
        step: running.step,
    }
}

fn put_step(state: &mut MetaState, running: &Move, step: MoveStep) -> MetaReply {
    state
        .moves
        .insert(running.shard_id, Move { step, ..*running });
    state.updated(true)
}

pub(super) fn switch(
    state: &mut MetaState,
    move_id: MoveId,
    config: ConfigVersion,
) -> Result<MetaReply, MetaRefusal> {
    let Some(running) = find(state, move_id)? else {
        return Ok(state.updated(false));
    };
    let step = MoveStep::Switching { config };
    match running.step {
        MoveStep::CatchingUp => Ok(put_step(state, &running, step)),
        now if now == step => Ok(state.updated(false)),
        _ => Err(wrong_step(&running)),
    }
}

pub(super) fn rewind(
    state: &mut MetaState,
    move_id: MoveId,
    config: ConfigVersion,
) -> Result<MetaReply, MetaRefusal> {
    let Some(running) = find(state, move_id)? else {
        return Ok(state.updated(false));
    };
    match running.step {
        MoveStep::Switching { config: now } if now == config => {
            Ok(put_step(state, &running, MoveStep::CatchingUp))
        }
        MoveStep::CatchingUp => Ok(state.updated(false)),
        _ => Err(wrong_step(&running)),
    }
}

pub(super) fn cancel(state: &mut MetaState, move_id: MoveId) -> Result<MetaReply, MetaRefusal> {
    let Some(running) = find(state, move_id)? else {
        return Ok(state.updated(false));
    };
    match running.step {
        MoveStep::CatchingUp => Ok(put_step(state, &running, MoveStep::Cancelling)),
        MoveStep::Cancelling => Ok(state.updated(false)),
        MoveStep::Switching { .. } => Err(wrong_step(&running)),
    }
}

pub(super) fn finish(
    state: &mut MetaState,
    move_id: MoveId,
    at: TimestampMs,
) -> Result<MetaReply, MetaRefusal> {
    let Some(running) = find(state, move_id)? else {
        return Ok(state.updated(false));
    };
    if !matches!(running.step, MoveStep::Switching { .. }) {
        return Err(wrong_step(&running));
    }
    let shard_id = running.shard_id;
    let mut shards = state.map.shards.iter_mut();
    let shard = shards.find(|shard| shard.shard_id == shard_id);
    let shard = shard.expect("a move has a shard");
    shard.replicas = running.replicas_after(shard);
    prefer(shard, running.preferred_leader);
    state.moves.remove(&shard_id);
    state.record(
        at,
        EventKind::MoveFinished {
            move_id,
            shard_id,
            reason: running.reason,
        },
    );
    state.next_epoch();
    Ok(state.updated(true))
}

pub(super) fn end_cancelled(
    state: &mut MetaState,
    move_id: MoveId,
    at: TimestampMs,
) -> Result<MetaReply, MetaRefusal> {
    let Some(running) = find(state, move_id)? else {
        return Ok(state.updated(false));
    };
    if running.step != MoveStep::Cancelling {
        return Err(wrong_step(&running));
    }
    let shard_id = running.shard_id;
    state.moves.remove(&shard_id);
    state.record(
        at,
        EventKind::MoveCancelled {
            move_id,
            shard_id,
            reason: running.reason,
        },
    );
    state.next_epoch();
    Ok(state.updated(true))
}

pub(super) fn set_preferred_leaders(
    state: &mut MetaState,
    leaders: &[(ShardId, NodeId)],
) -> Result<MetaReply, MetaRefusal> {
    for (shard_id, node_id) in leaders.iter().copied() {
        let Some(shard) = state.map.shard(shard_id) else {
            return Err(MetaRefusal::UnknownShard { shard_id });
        };
        if shard.replica_on(node_id).is_none() {
            return Err(MetaRefusal::NoReplicaThere { shard_id, node_id });
        }
    }
    // The last one counts for a shard that is listed twice.
    let leaders: BTreeMap<ShardId, NodeId> = leaders.iter().copied().collect();
    let mut changed = false;
    for shard in &mut state.map.shards {
        let wanted = leaders.get(&shard.shard_id).copied();
        if let Some(node_id) = wanted.filter(|node| *node != shard.preferred_leader) {
            prefer(shard, node_id);
            changed = true;
        }
    }
    if changed {
        state.next_epoch();
    }
    Ok(state.updated(changed))
}

/// The preferred leader's replica is the first of the list.
fn prefer(shard: &mut ShardDescriptor, node_id: NodeId) {
    shard.preferred_leader = node_id;
    shard
        .replicas
        .sort_by_key(|replica| (replica.node_id != node_id, replica.node_id));
}
