//! Lowers the objective by moving one replica at a time, from the node under the highest
//! pressure that can give one with a gain, or by swapping two when no move has one.
//!
//! It has no state but the run's. Invariants: every move lowers the objective, so moves
//! end; one leaves a shard's counts over zones as even as they were; when it is done, no
//! move or swap that it looks at has a gain. A second run starts there with the same moves
//! to look at, each at least as dear as before, and so moves nothing.

use std::collections::BTreeSet;

use super::NodeState;
use super::layout::{Layout, NodeAt, Scope, Search, ShardAt, Target};
use super::swap::best_swap;

/// How many of a node's shards are compared once one with a gain is found.
const SHARDS_EXAMINED_MAX: usize = 64;
/// How often every replica may move in one run: an emergency stop, far above what is seen.
const MOVES_PER_REPLICA_MAX: usize = 16;

impl Scope {
    /// The shards whose replica on the node may move.
    pub(super) fn movable(self, layout: &Layout, node: NodeAt) -> impl Iterator<Item = ShardAt> {
        let held = layout.nodes[node].held.iter().copied();
        held.filter(move |shard| self == Scope::All || !layout.was_on(*shard, node))
    }
}

/// A replica that would be better elsewhere.
struct Move {
    shard: ShardAt,
    target: Target,
    /// What the objective falls by.
    gain: u128,
    /// The shard is not led from where it leaves.
    follows: bool,
}

impl Move {
    fn is_better_than(&self, other: &Move) -> bool {
        let rank = |one: &Move| (one.gain, one.follows, u64::MAX - one.target.together);
        rank(self) > rank(other)
    }
}

/// Moves replicas until no move has a gain. True when it moved some.
pub(super) fn balance(layout: &mut Layout) -> bool {
    let replicas = layout.shards.len() * layout.replication_factor;
    let mut moves_left = replicas * MOVES_PER_REPLICA_MAX;
    let mut moved = false;
    for scope in layout.scopes() {
        // A node that could give nothing may be able to once others have changed; so until
        // nobody can.
        while pass(layout, *scope, &mut moves_left) {
            moved = true;
        }
    }
    moved
}

/// The heaviest node gives one replica, then whoever is the heaviest; one that cannot give
/// any is left out of the rest of the pass.
fn pass(layout: &mut Layout, scope: Scope, moves_left: &mut usize) -> bool {
    let key = |layout: &Layout, node: NodeAt| (layout.nodes[node].pressure(), node);
    let nodes = 0..layout.nodes.len();
    let active = nodes.filter(|node| layout.state(*node) == NodeState::Active);
    let mut open: BTreeSet<_> = active.map(|node| key(layout, node)).collect();
    let mut moved = false;
    while let Some((_, from)) = open.pop_last() {
        if *moves_left == 0 {
            return false;
        }
        let Some(Step { away, to, back }) = best_step(layout, scope, from) else {
            continue;
        };
        let to_is_open = open.remove(&key(layout, to));
        relocate(layout, away, from, to);
        if let Some(back) = back {
            relocate(layout, back, to, from);
        }
        *moves_left -= 1;
        moved = true;
        open.insert(key(layout, from));
        if to_is_open {
            open.insert(key(layout, to));
        }
    }
    moved
}

/// A move, or a swap when something comes back.
struct Step {
    away: ShardAt,
    to: NodeAt,
    back: Option<ShardAt>,
}

fn best_step(layout: &Layout, scope: Scope, from: NodeAt) -> Option<Step> {
    if let Some(found) = best_move(layout, scope, from) {
        return Some(Step {
            away: found.shard,
            to: found.target.node,
            back: None,
        });
    }
    best_swap(layout, scope, from).map(|swap| Step {
        away: swap.away,
        to: swap.with,
        back: Some(swap.back),
    })
}

fn relocate(layout: &mut Layout, shard: ShardAt, from: NodeAt, to: NodeAt) {
    layout.remove_replica(shard, from);
    layout.add_replica(shard, to);
}

fn best_move(layout: &Layout, scope: Scope, node: NodeAt) -> Option<Move> {
    let mut best: Option<Move> = None;
    for (examined, shard) in scope.movable(layout, node).enumerate() {
        if examined >= SHARDS_EXAMINED_MAX && best.is_some() {
            break;
        }
        let Some(found) = move_of(layout, shard, node) else {
            continue;
        };
        if best.as_ref().is_none_or(|best| found.is_better_than(best)) {
            best = Some(found);
        }
    }
    best
}

fn move_of(layout: &Layout, shard: ShardAt, node: NodeAt) -> Option<Move> {
    let allowed = |zone| layout.keeps_spread(shard, node, zone);
    let target = layout.best_target(shard, Search::Narrow, allowed)?;
    let gain = layout.gain_of_removing(shard, node);
    let gain = gain.checked_sub(target.cost).filter(|gain| *gain > 0)?;
    Some(Move {
        shard,
        target,
        gain,
        follows: layout.shards[shard].leader != Some(node),
    })
}
