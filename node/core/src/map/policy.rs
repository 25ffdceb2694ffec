//! What operators may set about the steering of the cluster. Replicated with the meta
//! group's state, which owns it.

use std::fmt;

use thiserror::Error;

use super::NODES_MAX;

/// When nodes count as down or lost, and how much moves at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Moves replicas from full nodes to empty ones. Default true.
    pub balance: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            down_after_s: 30,
            failure_replacement_after_s: 600,
            moves_max: 4,
            moves_per_node_max: 2,
            lost_nodes_max: 1,
            balance: true,
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
}

impl fmt::Display for PolicyLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PolicyLimit::DownAfter => "down_after_s",
            PolicyLimit::FailureReplacementAfter => "failure_replacement_after_s",
            PolicyLimit::Moves => "moves_max",
            PolicyLimit::MovesPerNode => "moves_per_node_max",
            PolicyLimit::LostNodes => "lost_nodes_max",
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
const MOVES_MAX: u32 = 64;

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
        )
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
