//! What operators may set about the steering of the cluster. Replicated with the meta
//! group's state, which owns it.

use std::fmt;

use thiserror::Error;

use super::{NODES_MAX, SHARDS_MAX};
use crate::placement::Zone;

/// When nodes count as down or lost, how much moves at once, and who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// A node that is silent for longer, seconds, gets nothing new. Default 30; from 1 to
    /// 3,600.
    pub down_after_s: u32,
    /// A node that is silent for longer, seconds, is given up and replaced. Default 600; at
    /// least `down_after_s`, at most a week.
    pub failure_replacement_after_s: u32,
    /// Moves that run at once in the cluster. Default 4; from 1 to 64.
    pub moves_max: u32,
    /// Moves that a node takes part in at once, as source or as target. Default 2; from 1
    /// to `moves_max`. A lost source does no work and is not counted.
    pub moves_per_node_max: u32,
    /// Nodes that are given up and not yet replaced, at once; 0 gives up none without being
    /// told to. Default 1.
    pub lost_nodes_max: u32,
    /// KiB per second of snapshots that a node sends to others, all together. What follows
    /// from the log comes on top. Default 65,536 (64 MiB/s); from 64 to 16,777,216.
    pub snapshot_kib_per_s_max: u32,
    /// Moves replicas from full nodes to empty ones. Default true.
    pub balance: bool,
    /// A shard that takes up more than so many GiB on a node is split. Default 32; from 1 to
    /// 1,048,576, or 0 for never.
    pub shard_gib_max: u32,
    /// A shard that has more commands per second to apply, over about a minute, is split.
    /// Default 50,000; from 100 to 1,000,000, or 0 for never.
    pub shard_commands_per_s_max: u32,
    /// Shards that stay however small they are; above it, small neighbours are merged. At first
    /// as many as the cluster began with; a split that somebody asks for adds one, a merge lowers
    /// it to what is left. From 1 to [`SHARDS_MAX`](super::SHARDS_MAX), which is never to merge.
    pub shards_min: u32,
    /// The zone that shards are led from while it has healthy nodes with replicas of them,
    /// evenly among those. Default empty: from anywhere. At most
    /// [`NODE_TEXT_BYTES_MAX`](super::NODE_TEXT_BYTES_MAX) bytes.
    pub leader_zone: Zone,
    /// When all nodes have supported the cluster's next version for longer, seconds, it goes
    /// there by itself. Default 86,400; at most four weeks, or 0 for only when told to.
    pub finalize_upgrade_after_s: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            down_after_s: 30,
            failure_replacement_after_s: 600,
            moves_max: 4,
            moves_per_node_max: 2,
            lost_nodes_max: 1,
            snapshot_kib_per_s_max: 64 << 10,
            balance: true,
            shard_gib_max: 32,
            shard_commands_per_s_max: 50_000,
            shards_min: SHARDS_MAX,
            leader_zone: Zone::default(),
            finalize_upgrade_after_s: 24 * 3_600,
        }
    }
}

/// What is changed of a policy; what is none stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyChange {
    /// As in [`Policy`].
    pub down_after_s: Option<u32>,
    /// As in [`Policy`].
    pub failure_replacement_after_s: Option<u32>,
    /// As in [`Policy`].
    pub moves_max: Option<u32>,
    /// As in [`Policy`].
    pub moves_per_node_max: Option<u32>,
    /// As in [`Policy`].
    pub lost_nodes_max: Option<u32>,
    /// As in [`Policy`].
    pub snapshot_kib_per_s_max: Option<u32>,
    /// As in [`Policy`].
    pub balance: Option<bool>,
    /// As in [`Policy`].
    pub shard_gib_max: Option<u32>,
    /// As in [`Policy`].
    pub shard_commands_per_s_max: Option<u32>,
    /// As in [`Policy`].
    pub shards_min: Option<u32>,
    /// As in [`Policy`].
    pub leader_zone: Option<Zone>,
    /// As in [`Policy`].
    pub finalize_upgrade_after_s: Option<u32>,
}

impl PolicyChange {
    /// The policy with the change.
    pub fn applied_to(&self, policy: &Policy) -> Policy {
        Policy {
            down_after_s: self.down_after_s.unwrap_or(policy.down_after_s),
            failure_replacement_after_s: self
                .failure_replacement_after_s
                .unwrap_or(policy.failure_replacement_after_s),
            moves_max: self.moves_max.unwrap_or(policy.moves_max),
            moves_per_node_max: self.moves_per_node_max.unwrap_or(policy.moves_per_node_max),
            lost_nodes_max: self.lost_nodes_max.unwrap_or(policy.lost_nodes_max),
            snapshot_kib_per_s_max: self
                .snapshot_kib_per_s_max
                .unwrap_or(policy.snapshot_kib_per_s_max),
            balance: self.balance.unwrap_or(policy.balance),
            shard_gib_max: self.shard_gib_max.unwrap_or(policy.shard_gib_max),
            shard_commands_per_s_max: self
                .shard_commands_per_s_max
                .unwrap_or(policy.shard_commands_per_s_max),
            shards_min: self.shards_min.unwrap_or(policy.shards_min),
            leader_zone: self
                .leader_zone
                .clone()
                .unwrap_or_else(|| policy.leader_zone.clone()),
            finalize_upgrade_after_s: self
                .finalize_upgrade_after_s
                .unwrap_or(policy.finalize_upgrade_after_s),
        }
    }
}

impl From<Policy> for PolicyChange {
    fn from(policy: Policy) -> Self {
        PolicyChange {
            down_after_s: Some(policy.down_after_s),
            failure_replacement_after_s: Some(policy.failure_replacement_after_s),
            moves_max: Some(policy.moves_max),
            moves_per_node_max: Some(policy.moves_per_node_max),
            lost_nodes_max: Some(policy.lost_nodes_max),
            snapshot_kib_per_s_max: Some(policy.snapshot_kib_per_s_max),
            balance: Some(policy.balance),
            shard_gib_max: Some(policy.shard_gib_max),
            shard_commands_per_s_max: Some(policy.shard_commands_per_s_max),
            shards_min: Some(policy.shards_min),
            leader_zone: Some(policy.leader_zone),
            finalize_upgrade_after_s: Some(policy.finalize_upgrade_after_s),
        }
    }
}

/// One of the policy's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyLimit {
    /// [`Policy::down_after_s`].
    DownAfter = 1,
    /// [`Policy::failure_replacement_after_s`].
    FailureReplacementAfter = 2,
    /// [`Policy::moves_max`].
    Moves = 3,
    /// [`Policy::moves_per_node_max`].
    MovesPerNode = 4,
    /// [`Policy::lost_nodes_max`].
    LostNodes = 5,
    /// [`Policy::snapshot_kib_per_s_max`].
    SnapshotRate = 6,
    /// [`Policy::shard_gib_max`].
    ShardSize = 7,
    /// [`Policy::shard_commands_per_s_max`].
    ShardLoad = 8,
    /// [`Policy::shards_min`].
    Shards = 9,
    /// [`Policy::finalize_upgrade_after_s`].
    FinalizeUpgradeAfter = 10,
}

impl fmt::Display for PolicyLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PolicyLimit::DownAfter => "down_after_s",
            PolicyLimit::FailureReplacementAfter => "failure_replacement_after_s",
            PolicyLimit::Moves => "moves_max",
            PolicyLimit::MovesPerNode => "moves_per_node_max",
            PolicyLimit::LostNodes => "lost_nodes_max",
            PolicyLimit::SnapshotRate => "snapshot_kib_per_s_max",
            PolicyLimit::ShardSize => "shard_gib_max",
            PolicyLimit::ShardLoad => "shard_commands_per_s_max",
            PolicyLimit::Shards => "shards_min",
            PolicyLimit::FinalizeUpgradeAfter => "finalize_upgrade_after_s",
        })
    }
}

/// A policy with a number out of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{limit} cannot be {actual}; choose from {min} to {max}")]
pub struct PolicyError {
    /// Which number.
    pub limit: PolicyLimit,
    /// The smallest possible one.
    pub min: u32,
    /// The largest possible one.
    pub max: u32,
    /// What was given.
    pub actual: u32,
}

const DOWN_AFTER_S_MAX: u32 = 3_600;
const FAILURE_REPLACEMENT_AFTER_S_MAX: u32 = 7 * 24 * 3_600;
const FINALIZE_UPGRADE_AFTER_S_MAX: u32 = 28 * 24 * 3_600;
const MOVES_MAX: u32 = 64;
const SNAPSHOT_KIB_PER_S_MIN: u32 = 64;
const SNAPSHOT_KIB_PER_S_MAX: u32 = 16 << 20;
const SHARD_GIB_MAX: u32 = 1 << 20;
const SHARD_COMMANDS_PER_S_MIN: u32 = 100;
const SHARD_COMMANDS_PER_S_MAX: u32 = 1_000_000;

impl Policy {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`PolicyError`] names the first that is out of range.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let check = |limit, actual: u32, min: u32, max: u32| {
            if (min..=max).contains(&actual) {
                Ok(())
            } else {
                Err(PolicyError {
                    limit,
                    min,
                    max,
                    actual,
                })
            }
        };
        check(
            PolicyLimit::DownAfter,
            self.down_after_s,
            1,
            DOWN_AFTER_S_MAX,
        )?;
        check(
            PolicyLimit::FailureReplacementAfter,
            self.failure_replacement_after_s,
            self.down_after_s,
            FAILURE_REPLACEMENT_AFTER_S_MAX,
        )?;
        check(PolicyLimit::Moves, self.moves_max, 1, MOVES_MAX)?;
        check(
            PolicyLimit::MovesPerNode,
            self.moves_per_node_max,
            1,
            self.moves_max,
        )?;
        check(
            PolicyLimit::LostNodes,
            self.lost_nodes_max,
            0,
            NODES_MAX as u32,
        )?;
        check(
            PolicyLimit::SnapshotRate,
            self.snapshot_kib_per_s_max,
            SNAPSHOT_KIB_PER_S_MIN,
            SNAPSHOT_KIB_PER_S_MAX,
        )?;
        if self.shard_gib_max > 0 {
            let actual = self.shard_gib_max;
            check(PolicyLimit::ShardSize, actual, 1, SHARD_GIB_MAX)?;
        }
        if self.shard_commands_per_s_max > 0 {
            check(
                PolicyLimit::ShardLoad,
                self.shard_commands_per_s_max,
                SHARD_COMMANDS_PER_S_MIN,
                SHARD_COMMANDS_PER_S_MAX,
            )?;
        }
        check(PolicyLimit::Shards, self.shards_min, 1, SHARDS_MAX)?;
        check(
            PolicyLimit::FinalizeUpgradeAfter,
            self.finalize_upgrade_after_s,
            0,
            FINALIZE_UPGRADE_AFTER_S_MAX,
        )?;
        Ok(())
    }

    /// [`snapshot_kib_per_s_max`](Self::snapshot_kib_per_s_max) in bytes.
    pub fn snapshot_bytes_per_s_max(&self) -> u64 {
        u64::from(self.snapshot_kib_per_s_max) << 10
    }

    /// [`down_after_s`](Self::down_after_s) in milliseconds.
    pub fn down_after_ms(&self) -> u64 {
        u64::from(self.down_after_s) * 1_000
    }

    /// [`failure_replacement_after_s`](Self::failure_replacement_after_s) in milliseconds.
    pub fn failure_replacement_after_ms(&self) -> u64 {
        u64::from(self.failure_replacement_after_s) * 1_000
    }
}
