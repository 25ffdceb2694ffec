//! Makes true what must be: the number of replicas, that they are on healthy nodes, and
//! that they are spread over the zones.
//!
//! It has no state of its own. Each step improves something that neither a later step nor
//! balancing makes worse, so repeating them ends: missing replicas, replicas on nodes that
//! are down, on nodes that are draining, and the unevenness over zones only fall.

use std::cmp::Reverse;

use super::NodeState;
use super::displace;
use super::layout::{Layout, NodeAt, Search, ShardAt, Target};

/// Takes away replicas beyond the replication factor: on nodes that are down first, then on
/// draining ones, then where the zone has most of them, the node is used most, and the
/// shard is not led from.
pub(super) fn remove_surplus(layout: &mut Layout) {
    for shard in 0..layout.shards.len() {
        while layout.shards[shard].replicas.len() > layout.replication_factor {
            let replicas = layout.shards[shard].replicas.iter().copied();
            let surplus = replicas.max_by_key(|node| {
                let unwanted = match layout.state(*node) {
                    NodeState::Down => 2,
                    NodeState::Draining => 1,
                    NodeState::Active | NodeState::Cordoned => 0,
                };
                let zone = layout.nodes[*node].zone;
                let crowd = layout.in_zone(shard, zone, None);
                let follows = layout.shards[shard].leader != Some(*node);
                let gain = layout.gain_of_removing(shard, *node);
                (unwanted, crowd, follows, gain, *node)
            });
            let Some(node) = surplus else { break };
            layout.remove_replica(shard, node);
        }
    }
}

/// Adds what is missing, replaces what is on bad nodes, spreads over zones. True when it
/// changed something.
pub(super) fn repair(layout: &mut Layout) -> bool {
    let order = order(layout);
    let mut changed = false;
    // Everything that is missing comes before anything that is only to be moved, so that
    // the room goes where it is needed most.
    for shard in &order {
        changed |= fill(layout, *shard);
    }
    for state in [NodeState::Down, NodeState::Draining] {
        for shard in &order {
            changed |= replace(layout, *shard, state);
        }
    }
    for shard in &order {
        changed |= spread(layout, *shard);
    }
    changed
}

/// The shards with fewest good replicas first; then the large ones, which find a place
/// only while there is room.
fn order(layout: &Layout) -> Vec<ShardAt> {
    let mut order: Vec<ShardAt> = (0..layout.shards.len()).collect();
    order.sort_by_cached_key(|shard| {
        let shard_use = &layout.shards[*shard];
        let replicas = shard_use.replicas.iter();
        let healthy = replicas.filter(|node| layout.state(**node).is_healthy());
        let size = Reverse((shard_use.size_bytes, shard_use.load_per_second));
        (healthy.count(), size, *shard)
    });
    order
}

fn fill(layout: &mut Layout, shard: ShardAt) -> bool {
    let mut changed = false;
    while layout.shards[shard].replicas.len() < layout.replication_factor {
        let Some(node) = place_for(layout, shard, None) else {
            break;
        };
        layout.add_replica(shard, node);
        changed = true;
    }
    changed
}

/// Replaces the replicas on nodes of this state, as far as there are targets.
fn replace(layout: &mut Layout, shard: ShardAt, state: NodeState) -> bool {
    let mut changed = false;
    let mut bad = layout.shards[shard].replicas.clone();
    bad.retain(|node| layout.state(*node) == state);
    for node in bad {
        let Some(place) = place_for(layout, shard, Some(node)) else {
            break;
        };
        layout.remove_replica(shard, node);
        layout.add_replica(shard, place);
        changed = true;
    }
    changed
}

/// A node for a replica that must go somewhere. When none has room another shard's replica makes
/// place for it.
fn place_for(layout: &mut Layout, shard: ShardAt, leaving: Option<NodeAt>) -> Option<NodeAt> {
    if let Some(target) = evenest_target(layout, shard, leaving) {
        return Some(target.node);
    }
    layout.displacements_left = layout.displacements_left.checked_sub(1)?;
    let displacement = displace::find(layout, shard, leaving)?;
    displacement.make(layout);
    Some(displacement.node)
}

/// The best target in the zones that have fewest of the shard's replicas and room for one;
/// `leaving` does not count as one.
fn evenest_target(layout: &Layout, shard: ShardAt, leaving: Option<NodeAt>) -> Option<Target> {
    let crowd = |zone| layout.in_zone(shard, zone, leaving);
    (0..=layout.shards[shard].replicas.len())
        .find_map(|fewest| layout.best_target(shard, Search::Wide, |zone| crowd(zone) == fewest))
}

/// Moves replicas from zones with many of them to zones with at least two fewer. What is
/// left then is as even as nodes with room allow.
fn spread(layout: &mut Layout, shard: ShardAt) -> bool {
    let mut changed = false;
    for _ in 0..layout.shards[shard].replicas.len() {
        let Some((node, target)) = spreading_move(layout, shard) else {
            break;
        };
        layout.remove_replica(shard, node);
        layout.add_replica(shard, target.node);
        changed = true;
    }
    changed
}

fn spreading_move(layout: &Layout, shard: ShardAt) -> Option<(NodeAt, Target)> {
    let crowd = |zone| layout.in_zone(shard, zone, None);
    let crowd_of = |node: &NodeAt| crowd(layout.nodes[*node].zone);
    let replicas = layout.shards[shard].replicas.iter().copied();
    let node = replicas.max_by_key(|node| {
        let free_to_go = layout.state(*node) != NodeState::Cordoned;
        let follows = layout.shards[shard].leader != Some(*node);
        let gain = layout.gain_of_removing(shard, *node);
        (crowd_of(node), free_to_go, follows, gain, *node)
    })?;
    let fewest = 0..crowd_of(&node).saturating_sub(1);
    let mut targets = fewest
        .filter_map(|fewest| layout.best_target(shard, Search::Wide, |zone| crowd(zone) == fewest));
    targets.next().map(|target| (node, target))
}
