//! Shards that are being merged: a shard takes over its right neighbour, on the same nodes.
//! Nothing is copied and nothing moves.
//!
//! The right one is frozen and its replicas keep what it has then (`Freezing`); from then on
//! the left one takes it over, which cannot be taken back (`Absorbing`). A merge that cannot
//! freeze soon is given up (`Thawing`): nobody should have to wait for it.
//!
//! Owner of the state: the meta group's state. Invariants: shards that are being merged do not
//! move, are not split and not made anew, so their replicas are the map's, on the same nodes;
//! merge numbers are never used again.

use std::fmt;

use crate::ids::{ShardId, TimestampMs};
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
}

/// How far a merge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeStep {
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
