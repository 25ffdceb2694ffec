//! Exchanges two replicas of two nodes, where no single move helps: large shards among few,
//! or nodes without room for one more.
//!
//! It has no state. A swap is judged and accepted like a move: it must lower the objective,
//! and leave both shards spread over the zones as they were.

use super::layout::{Layout, NodeAt, Scope, ShardAt};

/// How many nodes of a zone are looked at, the lightest first, and in how many zones besides
/// the own one.
const PARTNERS_MAX: usize = 4;
/// Nodes with more shards do not swap: among many shards there is one whose move is as good
/// as a swap of others, and is one copy instead of two.
const HELD_MAX: usize = 8;

/// Two replicas that would be better in each other's place.
pub(super) struct Swap {
    /// From the heavy node to the light one.
    pub(super) away: ShardAt,
    /// The light node.
    pub(super) with: NodeAt,
    /// From the light node to the heavy one.
    pub(super) back: ShardAt,
}

/// The best swap of an active node with a lighter one; none when none has a gain.
pub(super) fn best_swap(layout: &Layout, scope: Scope, node: NodeAt) -> Option<Swap> {
    let mut best: Option<(u128, Swap)> = None;
    let pressure = layout.nodes[node].pressure();
    let few = |node: NodeAt| layout.nodes[node].held.len() <= HELD_MAX;
    let lighter = |with: &NodeAt| layout.nodes[*with].pressure() < pressure;
    let partners = layout.lightest(layout.nodes[node].zone, PARTNERS_MAX);
    for with in partners.filter(|with| few(node) && few(*with) && lighter(with)) {
        for away in may_go(layout, scope, node, with) {
            for back in may_go(layout, scope, with, node) {
                let Some(gain) = layout.gain_of_swapping((away, node), (back, with)) else {
                    continue;
                };
                if best.as_ref().is_none_or(|(best, _)| gain > *best) {
                    best = Some((gain, Swap { away, with, back }));
                }
            }
        }
    }
    best.map(|(_, swap)| swap)
}

/// The shards that may go from one node to the other, room aside.
fn may_go(
    layout: &Layout,
    scope: Scope,
    from: NodeAt,
    to: NodeAt,
) -> impl Iterator<Item = ShardAt> {
    let zone = layout.nodes[to].zone;
    let movable = scope.movable(layout, from);
    movable
        .filter(move |shard| !layout.holds(*shard, to) && layout.keeps_spread(*shard, from, zone))
}
