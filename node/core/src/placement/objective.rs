//! The objective: what an assignment costs, and what it costs more or less after a change.
//!
//! It owns no state.
//!
//! A shard's demand is its share of the cluster's total, in [`SHARE_ALL`]ths, for bytes, load
//! and number of replicas alike; a node's usage is the sum of its replicas' demands, so
//! `usage ≤ SHARE_ALL`. The imbalance is
//! `Σ over nodes: scale × Σ over dimensions: IMPORTANCE × usage²`
//! with `scale = mean weight / weight`. The largest term, `2^30 × 2^8 × 2^72`, leaves room in
//! a `u128`.
//!
//! Invariant: the gain of a change is exactly what the objective falls by, so that what has
//! a gain once has none when it is done.

use super::check::Checked;
use super::layout::{Layout, NodeAt, NodeUse, ShardAt};
use super::{Node, NodeState, Shard};

/// Bytes, load and number of replicas.
pub(super) type Amounts = [u128; 3];

/// All of the cluster's bytes, load or replicas.
const SHARE_ALL: u128 = 1 << 36;
/// How much an imbalance of bytes, load and number of replicas counts. It counts squared:
/// bytes that are uneven by 1 % weigh as load that is uneven by 4 % or counts by 16 %.
const IMPORTANCE: Amounts = [256, 16, 1];
/// The scale of a node of mean weight.
pub(super) const SCALE_ONE: u128 = 1 << 16;

/// How a shard counts in the objective.
pub(super) struct Price {
    /// Of bytes, load and number of replicas.
    pub(super) demand: Amounts,
    /// `IMPORTANCE × demand`.
    pub(super) weighted: Amounts,
    /// What a replica costs that is not where it was.
    pub(super) move_cost: u128,
}

/// Says how nodes are scaled: the mean weight of active nodes by the node's.
pub(super) fn scale(checked: &Checked<'_>) -> impl Fn(&Node) -> u128 {
    let active = checked.nodes.iter();
    let active = active.filter(|node| node.state == NodeState::Active);
    let weights: Vec<u128> = active.map(|node| u128::from(node.weight)).collect();
    let (sum, count) = match weights.len() {
        0 => (1, 1),
        count => (weights.iter().sum(), count as u128),
    };
    move |node| (SCALE_ONE * sum / (count * u128::from(node.weight))).max(1)
}

/// Says how shards count, on so many active nodes.
pub(super) fn price(checked: &Checked<'_>, active: u128) -> impl Fn(&Shard) -> Price {
    let amounts = |shard: &Shard| {
        [
            u128::from(shard.size_bytes),
            u128::from(shard.load_per_second),
            1,
        ]
    };
    let mut totals = [0; 3];
    for shard in &checked.shards {
        for (total, amount) in totals.iter_mut().zip(amounts(shard)) {
            *total += amount * checked.replication_factor as u128;
        }
    }
    // Moving a demand between nodes whose usage differs by a gap lowers the imbalance by
    // twice their product, so this asks for a gap of so many percent of the mean.
    let mean = SCALE_ONE * SHARE_ALL / active;
    let gain = 2 * u128::from(checked.constraints.gain_percent_min) * mean / 100;
    move |shard| {
        let amounts = amounts(shard);
        let demand = [0, 1, 2].map(|at| SHARE_ALL * amounts[at] / totals[at].max(1));
        let weighted = [0, 1, 2].map(|at| IMPORTANCE[at] * demand[at]);
        let move_cost = gain * weighted.iter().sum::<u128>();
        Price {
            demand,
            weighted,
            move_cost,
        }
    }
}

impl NodeUse {
    /// How heavily used it is, by which nodes are ordered.
    pub(super) fn pressure(&self) -> u128 {
        let weighted = self.usage.iter().zip(IMPORTANCE);
        self.scale * weighted.map(|(usage, by)| usage * by).sum::<u128>()
    }
}

impl Layout {
    /// What the objective grows by when the node gets a replica of the shard.
    pub(super) fn cost_of_adding(&self, shard: ShardAt, node: NodeAt) -> u128 {
        let Price {
            demand, weighted, ..
        } = &self.shards[shard].price;
        let NodeUse { usage, scale, .. } = &self.nodes[node];
        let growth = |at: usize| weighted[at] * (2 * usage[at] + demand[at]);
        scale * (growth(0) + growth(1) + growth(2)) + self.cost_of_moving(shard, node)
    }

    /// What the objective falls by when the node loses its replica of the shard.
    pub(super) fn gain_of_removing(&self, shard: ShardAt, node: NodeAt) -> u128 {
        let Price {
            demand, weighted, ..
        } = &self.shards[shard].price;
        let NodeUse { usage, scale, .. } = &self.nodes[node];
        let fall = |at: usize| weighted[at] * (2 * usage[at] - demand[at]);
        scale * (fall(0) + fall(1) + fall(2)) + self.cost_of_moving(shard, node)
    }

    /// What the objective falls by when two replicas change places; none when it does not
    /// or there is no room.
    pub(super) fn gain_of_swapping(
        &self,
        (away, heavy): (ShardAt, NodeAt),
        (back, light): (ShardAt, NodeAt),
    ) -> Option<u128> {
        if !self.has_room_after(back, heavy, away) || !self.has_room_after(away, light, back) {
            return None;
        }
        let signed = |amount: u128| i128::try_from(amount).unwrap_or(i128::MAX);
        let growth = |node: NodeAt, comes: ShardAt, goes: ShardAt| -> i128 {
            let terms = (0..IMPORTANCE.len()).map(|at| {
                let comes = signed(self.shards[comes].price.demand[at]);
                let change = comes - signed(self.shards[goes].price.demand[at]);
                let usage = signed(self.nodes[node].usage[at]);
                signed(IMPORTANCE[at]) * change * (2 * usage + change)
            });
            let moved = signed(self.cost_of_moving(comes, node));
            let undone = signed(self.cost_of_moving(goes, node));
            signed(self.nodes[node].scale) * terms.sum::<i128>() + moved - undone
        };
        let growth = growth(heavy, back, away) + growth(light, away, back);
        u128::try_from(-growth).ok().filter(|gain| *gain > 0)
    }

    fn cost_of_moving(&self, shard: ShardAt, node: NodeAt) -> u128 {
        if self.was_on(shard, node) {
            0
        } else {
            self.shards[shard].price.move_cost
        }
    }
}
