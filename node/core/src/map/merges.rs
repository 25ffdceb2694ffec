//! Shards that are being merged: a shard takes over its right neighbour, on the same nodes.
//! Nothing is copied and nothing moves.
//!
//! First the right one's replicas move to the left one's nodes (`Gathering`). Then it is frozen
//! and its replicas keep what it has (`Freezing`); from then on the left one takes it over, which
//! cannot be taken back (`Absorbing`). A merge that cannot freeze soon is given up (`Thawing`):
//! nobody should have to wait for it.
//!
//! Owner of the state: the meta group's state. Invariants: shards that are being merged are not
//! split and move only to be gathered, and from `Freezing` to `Absorbing` both have the replicas
//! of the map, on the same nodes; merge numbers are never used again.

use std::fmt;

use thiserror::Error;

use super::meta::{MetaReply, MetaState};
use super::refusal::MetaRefusal;
use super::splits::SplitRefusal;
use super::{EventKind, SHARDS_MAX, ShardDescriptor};
use crate::ids::{Epoch, NodeId, ShardId, SlotRange, TimestampMs};
use crate::merging::MergeId;

/// How many merges run at once, at most: clients wait for what is frozen.
pub const MERGES_MAX: usize = 1;

/// A shard that takes over its right neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merge {
    /// Its number.
    pub merge_id: MergeId,
    /// The shard that takes over, and stays.
    pub shard_id: ShardId,
    /// Its right neighbour, which is frozen, and goes.
    pub absorbed_shard_id: ShardId,
    /// How far it is.
    pub step: MergeStep,
    /// Why.
    pub reason: MergeReason,
    /// When, by the clock of who proposed it.
    pub started_at: TimestampMs,
    /// Since when it is at this step.
    pub step_since: TimestampMs,
}

/// How far a merge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeStep {
    /// The right shard's replicas move to the left one's nodes.
    Gathering = 4,
    /// The right shard is being frozen on all its nodes.
    Freezing = 1,
    /// It is frozen everywhere; the left one takes it over. Never taken back.
    Absorbing = 2,
    /// It was given up; the right one is being thawed.
    Thawing = 3,
}

/// Why shards are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeReason {
    /// An operator asked for it.
    Asked = 1,
    /// Both are small.
    Small = 2,
}

impl fmt::Display for MergeStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MergeStep::Gathering => "gathering",
            MergeStep::Freezing => "freezing",
            MergeStep::Absorbing => "absorbing",
            MergeStep::Thawing => "thawing",
        })
    }
}

impl fmt::Display for MergeReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MergeReason::Asked => "asked for",
            MergeReason::Small => "small",
        })
    }
}

/// Why shards are not merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MergeRefusal {
    /// They are being merged already.
    #[error("shard {shard_id} takes over shard {absorbed_shard_id}; wait until it is done")]
    Running {
        /// The shard that stays.
        shard_id: ShardId,
        /// The shard that goes.
        absorbed_shard_id: ShardId,
    },
    /// It has the last slots.
    #[error(
        "shard {shard_id} has the last slots and no neighbour to its right; name the shard to its left, which takes it over"
    )]
    NoNeighbour {
        /// The shard.
        shard_id: ShardId,
    },
    /// Other slots are between those of the two.
    #[error("the slots of shard {absorbed_shard_id} do not follow those of shard {shard_id}")]
    NoNeighbours {
        /// The shard that was to stay.
        shard_id: ShardId,
        /// The shard that was to go.
        absorbed_shard_id: ShardId,
    },
    /// Too many are being merged.
    #[error("{max} merges run; wait for one")]
    TooMany {
        /// The limit.
        max: usize,
    },
    /// The two are on different nodes.
    #[error("the shards of merge {merge_id} are not on the same nodes yet")]
    Apart {
        /// The merge.
        merge_id: MergeId,
    },
    /// It can no longer be taken back.
    #[error("merge {merge_id} can no longer be cancelled; it is done in a moment")]
    TooLate {
        /// The merge.
        merge_id: MergeId,
    },
    /// It is at another step.
    #[error("merge {merge_id} is {step}, which does not allow it")]
    WrongStep {
        /// The merge.
        merge_id: MergeId,
        /// Where it is.
        step: MergeStep,
    },
}

impl ShardDescriptor {
    /// Its nodes, sorted.
    pub fn nodes(&self) -> Vec<NodeId> {
        let nodes = self.replicas.iter().map(|replica| replica.node_id);
        let mut nodes: Vec<NodeId> = nodes.collect();
        nodes.sort();
        nodes
    }
}

impl MetaState {
    /// The running merge that the shard takes part in, on either side.
    pub fn merge_of(&self, shard_id: ShardId) -> Option<&Merge> {
        let mut merges = self.merges.values();
        merges.find(|merge| merge.shard_id == shard_id || merge.absorbed_shard_id == shard_id)
    }

    /// The running merge of this number.
    pub fn merge(&self, merge_id: MergeId) -> Option<&Merge> {
        let mut merges = self.merges.values();
        merges.find(|merge| merge.merge_id == merge_id)
    }

    fn merge_mut(&mut self, merge_id: MergeId) -> Option<&mut Merge> {
        let mut merges = self.merges.values_mut();
        merges.find(|merge| merge.merge_id == merge_id)
    }

    /// Refuses what must not happen to a shard that is being merged.
    pub(super) fn check_not_merging(&self, shard_id: ShardId) -> Result<(), MetaRefusal> {
        match self.merge_of(shard_id) {
            Some(merge) => Err(merge.running().into()),
            None => Ok(()),
        }
    }

    /// What a merge is about: the shard that stays and the one that goes, as the map has them.
    pub fn merging(&self, merge: &Merge) -> Option<(&ShardDescriptor, &ShardDescriptor)> {
        let stays = self.map.shard(merge.shard_id)?;
        Some((stays, self.map.shard(merge.absorbed_shard_id)?))
    }
}

impl Merge {
    fn running(&self) -> MergeRefusal {
        MergeRefusal::Running {
            shard_id: self.shard_id,
            absorbed_shard_id: self.absorbed_shard_id,
        }
    }
}

/// What [`MetaCommand::StartMerge`](super::MetaCommand::StartMerge) asks for.
pub(super) struct Asked {
    pub(super) shard_id: ShardId,
    pub(super) absorbed_shard_id: ShardId,
    pub(super) reason: MergeReason,
    pub(super) epoch: Option<Epoch>,
}

pub(super) fn start(
    state: &mut MetaState,
    asked: &Asked,
    at: TimestampMs,
) -> Result<MetaReply, MetaRefusal> {
    let (shard_id, absorbed_shard_id) = (asked.shard_id, asked.absorbed_shard_id);
    if let Some(running) = state.merges.get(&shard_id)
        && running.absorbed_shard_id == absorbed_shard_id
        && running.step != MergeStep::Thawing
    {
        return Ok(state.updated(false));
    }
    if let Some(epoch) = asked.epoch
        && epoch != state.map.epoch
    {
        return Err(MetaRefusal::OtherEpoch {
            asked: epoch,
            current: state.map.epoch,
        });
    }
    if state.map.shard(shard_id).is_none() {
        return Err(MetaRefusal::UnknownShard { shard_id });
    }
    if state.map.shard(absorbed_shard_id).is_none() && absorbed_shard_id < state.next_shard_id {
        // Asked for again, when it was done.
        return Ok(state.updated(false));
    }
    let right = state.map.right_of(shard_id).map(|shard| shard.shard_id);
    if right.ok_or(MergeRefusal::NoNeighbour { shard_id })? != absorbed_shard_id {
        return Err(MergeRefusal::NoNeighbours {
            shard_id,
            absorbed_shard_id,
        }
        .into());
    }
    for shard_id in [shard_id, absorbed_shard_id] {
        check_is_at_rest(state, shard_id)?;
    }
    if state.merges.len() >= MERGES_MAX {
        return Err(MergeRefusal::TooMany { max: MERGES_MAX }.into());
    }
    let merge_id = state.next_merge_id;
    state.next_merge_id = MergeId(merge_id.0 + 1);
    let merge = Merge {
        merge_id,
        shard_id,
        absorbed_shard_id,
        step: MergeStep::Gathering,
        reason: asked.reason,
        started_at: at,
        step_since: at,
    };
    state.merges.insert(shard_id, merge);
    state.record(
        at,
        EventKind::MergeStarted {
            shard_id,
            absorbed_shard_id,
            reason: asked.reason,
        },
    );
    state.next_epoch();
    Ok(state.updated(true))
}

/// Nothing else happens to the shard.
fn check_is_at_rest(state: &MetaState, shard_id: ShardId) -> Result<(), MetaRefusal> {
    state.check_not_merging(shard_id)?;
    if let Some(running) = state.moves.get(&shard_id) {
        return Err(MetaRefusal::ShardIsMoving {
            shard_id,
            move_id: running.move_id,
        });
    }
    if let Some(running) = state.splits.get(&shard_id) {
        return Err(SplitRefusal::Running {
            shard_id,
            new_shard_id: running.new_shard_id,
        }
        .into());
    }
    if let Some(running) = state.recoveries.get(&shard_id) {
        return Err(MetaRefusal::ShardIsRecovering {
            shard_id,
            node_id: running.to.node_id,
        });
    }
    Ok(())
}

/// Both are on the same nodes, and stay there.
fn check_together(state: &MetaState, merge: &Merge) -> Result<(), MetaRefusal> {
    let moves =
        |shard_id| state.moves.contains_key(shard_id) || state.recoveries.contains_key(shard_id);
    let together = state
        .merging(merge)
        .is_some_and(|(stays, goes)| stays.nodes() == goes.nodes());
    if !together || moves(&merge.shard_id) || moves(&merge.absorbed_shard_id) {
        let merge_id = merge.merge_id;
        return Err(MergeRefusal::Apart { merge_id }.into());
    }
    Ok(())
}

/// Takes a merge from one step to the next. One that is not there any more, or is further, is
/// left as it is.
pub(super) fn advance(
    state: &mut MetaState,
    merge_id: MergeId,
    to: MergeStep,
    at: TimestampMs,
) -> Result<MetaReply, MetaRefusal> {
    let Some(merge) = state.merge(merge_id).cloned() else {
        return Ok(state.updated(false));
    };
    match (merge.step, to) {
        (MergeStep::Gathering, MergeStep::Freezing)
        | (MergeStep::Freezing, MergeStep::Absorbing) => check_together(state, &merge)?,
        (MergeStep::Freezing, MergeStep::Thawing) => {}
        (step, to) if step == to => return Ok(state.updated(false)),
        (step, _) => return Err(MergeRefusal::WrongStep { merge_id, step }.into()),
    }
    let merge = state.merge_mut(merge_id).expect("it was found before");
    merge.step = to;
    merge.step_since = at;
    state.next_epoch();
    Ok(state.updated(true))
}

pub(super) fn cancel(
    state: &mut MetaState,
    merge_id: MergeId,
    at: TimestampMs,
) -> Result<MetaReply, MetaRefusal> {
    match state.merge(merge_id).map(|merge| merge.step) {
        Some(MergeStep::Gathering) => end_cancelled(state, merge_id, at),
        Some(MergeStep::Freezing) => advance(state, merge_id, MergeStep::Thawing, at),
        Some(MergeStep::Absorbing) => Err(MergeRefusal::TooLate { merge_id }.into()),
        Some(MergeStep::Thawing) | None => Ok(state.updated(false)),
    }
}

/// The right shard is thawed, or was never frozen.
pub(super) fn end_cancelled(
    state: &mut MetaState,
    merge_id: MergeId,
    at: TimestampMs,
) -> Result<MetaReply, MetaRefusal> {
    let Some(merge) = state.merge(merge_id).cloned() else {
        return Ok(state.updated(false));
    };
    match merge.step {
        MergeStep::Gathering | MergeStep::Thawing => {}
        step => return Err(MergeRefusal::WrongStep { merge_id, step }.into()),
    }
    state.merges.remove(&merge.shard_id);
    state.record(
        at,
        EventKind::MergeCancelled {
            shard_id: merge.shard_id,
            absorbed_shard_id: merge.absorbed_shard_id,
        },
    );
    state.next_epoch();
    Ok(state.updated(true))
}

/// The left shard's group has taken over the right one: the map says so.
pub(super) fn finish(
    state: &mut MetaState,
    merge_id: MergeId,
    at: TimestampMs,
) -> Result<MetaReply, MetaRefusal> {
    let Some(merge) = state.merge(merge_id).cloned() else {
        return Ok(state.updated(false));
    };
    if merge.step != MergeStep::Absorbing {
        let step = merge.step;
        return Err(MergeRefusal::WrongStep { merge_id, step }.into());
    }
    let shards = &mut state.map.shards;
    let place = shards
        .iter()
        .position(|shard| shard.shard_id == merge.absorbed_shard_id);
    let gone = shards.remove(place.expect("a merge has two shards"));
    let stays = shards
        .iter_mut()
        .find(|shard| shard.shard_id == merge.shard_id);
    let stays = stays.expect("a merge has two shards");
    stays.slots = SlotRange {
        first: stays.slots.first,
        last: gone.slots.last,
    };
    let shards_now = shards.len() as u32;
    if merge.reason == MergeReason::Asked {
        let min = &mut state.policy.shards_min;
        *min = (*min).min(shards_now.clamp(1, SHARDS_MAX));
    }
    state.merges.remove(&merge.shard_id);
    state.last_split_at = at;
    state.record(
        at,
        EventKind::MergeFinished {
            shard_id: merge.shard_id,
            absorbed_shard_id: merge.absorbed_shard_id,
        },
    );
    state.next_epoch();
    Ok(state.updated(true))
}
