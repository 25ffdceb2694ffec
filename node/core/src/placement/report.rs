//! Turns a finished layout into the answer, and says what it does not satisfy.
//!
//! Reasons are derived from the finished layout alone, never from what was tried, so that
//! equal layouts have equal reports.

use thiserror::Error;

use super::layout::{Layout, ShardAt};
use super::{Assignment, NodeState, Placement, Solution};
use crate::ids::{NodeId, ShardId};

/// A shard that has fewer good replicas than asked for, or some on nodes which they should
/// leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// The shard.
    pub shard_id: ShardId,
    /// How many replicas it should have.
    pub wanted: u32,
    /// How many it has on active or cordoned nodes.
    pub healthy: u32,
    /// How many it has on draining nodes.
    pub draining: u32,
    /// How many it has on nodes that are down.
    pub down: u32,
    /// Why there are no more.
    pub reason: ShortfallReason,
}

/// Why a replica could not be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ShortfallReason {
    /// Every active node has a replica already.
    #[error("there are only {active} active nodes; add nodes or activate some")]
    TooFewNodes {
        /// How many are active.
        active: u32,
    },
    /// No other active node has room.
    #[error(
        "a replica of {size_bytes} bytes fits on no other active node, the emptiest has {free_bytes_max} free; add nodes or capacity"
    )]
    NoCapacity {
        /// What the shard takes up.
        size_bytes: u64,
        /// The most room of an active node that does not have the shard.
        free_bytes_max: u64,
    },
    /// Nodes with room have too many replicas.
    #[error("every other active node with room has {max} replicas; add nodes or raise the limit")]
    TooManyReplicas {
        /// The limit, [`replicas_per_node_max`](super::Constraints::replicas_per_node_max).
        max: u32,
    },
}

pub(super) fn solution(layout: &Layout) -> Solution {
    let shards = 0..layout.shards.len();
    let placements = shards.clone().map(|shard| {
        let shard_id = layout.shards[shard].shard_id;
        (shard_id, placement(layout, shard))
    });
    Solution {
        assignment: Assignment {
            shards: placements.collect(),
        },
        shortfalls: shards.filter_map(|at| shortfall(layout, at)).collect(),
    }
}

fn placement(layout: &Layout, shard: ShardAt) -> Placement {
    let node_id = |node: usize| layout.nodes[node].node_id;
    let leader = layout.shards[shard].leader.map(node_id);
    let replicas = layout.shards[shard].replicas.iter();
    let mut replicas: Vec<NodeId> = replicas.map(|node| node_id(*node)).collect();
    replicas.sort_by_key(|node| (Some(*node) != leader, *node));
    Placement {
        replicas,
        preferred_leader: leader,
    }
}

fn shortfall(layout: &Layout, shard: ShardAt) -> Option<Shortfall> {
    let count = |wanted: fn(NodeState) -> bool| {
        let replicas = layout.shards[shard].replicas.iter();
        replicas.filter(|at| wanted(layout.state(**at))).count() as u32
    };
    let wanted = layout.replication_factor as u32;
    let healthy = count(NodeState::is_healthy);
    (healthy < wanted).then(|| Shortfall {
        shard_id: layout.shards[shard].shard_id,
        wanted,
        healthy,
        draining: count(|state| state == NodeState::Draining),
        down: count(|state| state == NodeState::Down),
        reason: reason(layout, shard),
    })
}

fn reason(layout: &Layout, shard: ShardAt) -> ShortfallReason {
    let size_bytes = layout.shards[shard].size_bytes;
    let nodes = 0..layout.nodes.len();
    let active = nodes.filter(|node| layout.state(*node) == NodeState::Active);
    let others = active.clone().filter(|node| !layout.holds(shard, *node));
    let free_bytes = others.map(|node| {
        let node = &layout.nodes[node];
        u128::from(node.capacity_bytes).saturating_sub(node.used_bytes)
    });
    match free_bytes.max() {
        None => ShortfallReason::TooFewNodes {
            active: active.count() as u32,
        },
        Some(free) if free < u128::from(size_bytes) => ShortfallReason::NoCapacity {
            size_bytes,
            free_bytes_max: u64::try_from(free).unwrap_or(u64::MAX),
        },
        Some(_) => ShortfallReason::TooManyReplicas {
            max: layout.constraints.replicas_per_node_max,
        },
    }
}
