//! Whether a problem is one: limits, doubles, zeros. Also puts its lists in order, so that
//! nothing after it depends on the order that the caller happened to have.

use thiserror::Error;

use super::{Constraints, Node, Problem, Shard};
use super::{GAIN_PERCENT_MAX, PROBLEM_SHARDS_MAX, REPLICATION_FACTOR_MAX, WEIGHT_MAX};
use crate::ids::{NodeId, ShardId};
use crate::map::NODES_MAX;

/// Why a problem is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlacementError {
    /// Too many nodes.
    #[error("there are {actual} nodes to place on; at most {max} are allowed")]
    TooManyNodes {
        /// The limit.
        max: usize,
        /// How many were given.
        actual: usize,
    },
    /// Too many shards.
    #[error("there are {actual} shards to place; at most {max} are allowed")]
    TooManyShards {
        /// The limit.
        max: usize,
        /// How many were given.
        actual: usize,
    },
    /// One number for two nodes.
    #[error("node {node_id} is listed twice; list every node once")]
    DuplicateNode {
        /// The number.
        node_id: NodeId,
    },
    /// One number for two shards.
    #[error("shard {shard_id} is listed twice; list every shard once")]
    DuplicateShard {
        /// The number.
        shard_id: ShardId,
    },
    /// No replica, or too many.
    #[error("{actual} replicas of a shard are not possible; choose from 1 to {max}")]
    ReplicationOutOfRange {
        /// The limit.
        max: u32,
        /// How many were asked for.
        actual: u32,
    },
    /// A node without a share, or with one that is too large.
    #[error("node {node_id} has weight {actual}; choose from 1 to {max}, or drain the node")]
    WeightOutOfRange {
        /// The node.
        node_id: NodeId,
        /// The limit.
        max: u32,
        /// Its weight.
        actual: u32,
    },
    /// A hysteresis that would never move anything.
    #[error("a gain of {actual} percent is not possible; choose from 0 to {max}")]
    GainOutOfRange {
        /// The limit.
        max: u32,
        /// What was asked for.
        actual: u32,
    },
}

/// A problem that is one, with its lists in order.
pub(super) struct Checked<'a> {
    /// By number.
    pub(super) nodes: Vec<&'a Node>,
    /// By number.
    pub(super) shards: Vec<Shard>,
    pub(super) replication_factor: usize,
    pub(super) constraints: Constraints,
}

pub(super) fn check(problem: &Problem) -> Result<Checked<'_>, PlacementError> {
    check_limits(problem)?;
    let mut nodes: Vec<&Node> = problem.nodes.iter().collect();
    nodes.sort_by_key(|node| node.node_id);
    let mut pairs = nodes.windows(2);
    if let Some(pair) = pairs.find(|pair| pair[0].node_id == pair[1].node_id) {
        let node_id = pair[0].node_id;
        return Err(PlacementError::DuplicateNode { node_id });
    }
    let in_range = |node: &&Node| (1..=WEIGHT_MAX).contains(&node.weight);
    if let Some(node) = nodes.iter().copied().find(|node| !in_range(node)) {
        return Err(PlacementError::WeightOutOfRange {
            node_id: node.node_id,
            max: WEIGHT_MAX,
            actual: node.weight,
        });
    }
    let mut shards = problem.shards.clone();
    shards.sort_by_key(|shard| shard.shard_id);
    let mut pairs = shards.windows(2);
    if let Some(pair) = pairs.find(|pair| pair[0].shard_id == pair[1].shard_id) {
        let shard_id = pair[0].shard_id;
        return Err(PlacementError::DuplicateShard { shard_id });
    }
    Ok(Checked {
        nodes,
        shards,
        replication_factor: problem.replication_factor as usize,
        constraints: problem.constraints.clone(),
    })
}

fn check_limits(problem: &Problem) -> Result<(), PlacementError> {
    if problem.nodes.len() > NODES_MAX {
        return Err(PlacementError::TooManyNodes {
            max: NODES_MAX,
            actual: problem.nodes.len(),
        });
    }
    if problem.shards.len() > PROBLEM_SHARDS_MAX {
        return Err(PlacementError::TooManyShards {
            max: PROBLEM_SHARDS_MAX,
            actual: problem.shards.len(),
        });
    }
    if !(1..=REPLICATION_FACTOR_MAX).contains(&problem.replication_factor) {
        return Err(PlacementError::ReplicationOutOfRange {
            max: REPLICATION_FACTOR_MAX,
            actual: problem.replication_factor,
        });
    }
    if problem.constraints.gain_percent_min > GAIN_PERCENT_MAX {
        return Err(PlacementError::GainOutOfRange {
            max: GAIN_PERCENT_MAX,
            actual: problem.constraints.gain_percent_min,
        });
    }
    Ok(())
}
