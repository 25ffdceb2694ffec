//! Room where none is: a replica of another shard makes place for one that must go somewhere.
//!
//! It has no state of its own. Only repair asks for it, and only when no node has room as it is:
//! each time, one replica is brought to a healthy node for one other that is moved, so it ends.

use std::cmp::Reverse;

use super::NodeState;
use super::layout::{Layout, NodeAt, Search, ShardAt};

/// How many nodes are looked at, those with most room first.
const NODES_EXAMINED_MAX: usize = 32;
/// How many replicas of a node may make place, the smallest that suffice first.
const REPLICAS_EXAMINED_MAX: usize = 32;

/// A node for a replica, after another shard's replica has gone elsewhere.
pub(super) struct Displacement {
    pub(super) node: NodeAt,
    other: ShardAt,
    to: NodeAt,
}

/// The displacement that moves least on the node with most room; the zones with fewest of the
/// shard's replicas first; `leaving` does not count as one.
pub(super) fn find(
    layout: &Layout,
    shard: ShardAt,
    leaving: Option<NodeAt>,
) -> Option<Displacement> {
    let active = |node: &NodeAt| layout.state(*node) == NodeState::Active;
    let nodes = 0..layout.nodes.len();
    let mut nodes: Vec<NodeAt> = nodes
        .filter(|node| active(node) && !layout.holds(shard, *node))
        .collect();
    nodes.sort_by_cached_key(|node| {
        let uses = &layout.nodes[*node];
        let free = u128::from(uses.capacity_bytes).saturating_sub(uses.used_bytes);
        let crowd = layout.in_zone(shard, uses.zone, leaving);
        (crowd, Reverse(free), *node)
    });
    let mut nodes = nodes.into_iter().take(NODES_EXAMINED_MAX);
    nodes.find_map(|node| on(layout, shard, node))
}

/// What makes place for the shard on this node.
fn on(layout: &Layout, shard: ShardAt, node: NodeAt) -> Option<Displacement> {
    let held = layout.nodes[node].held.iter().copied();
    let mut others: Vec<ShardAt> = held
        .filter(|other| layout.has_room_after(shard, node, *other))
        .collect();
    others.sort_by_key(|other| (layout.shards[*other].size_bytes, *other));
    let mut others = others.into_iter().take(REPLICAS_EXAMINED_MAX);
    others.find_map(|other| {
        let keeps_spread = |zone| layout.keeps_spread(other, node, zone);
        let target = layout.best_target(other, Search::Narrow, keeps_spread)?;
        let to = target.node;
        Some(Displacement { node, other, to })
    })
}

impl Displacement {
    /// Moves the other one away.
    pub(super) fn make(&self, layout: &mut Layout) {
        layout.remove_replica(self.other, self.node);
        layout.add_replica(self.other, self.to);
    }
}
