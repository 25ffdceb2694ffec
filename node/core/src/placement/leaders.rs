//! Chooses the preferred leaders, once the replicas are placed.
//!
//! A leader that was there before stays unless its node may lead no longer or evenness
//! needs it. Evenness is `Σ leaders² / weight`, lowered along chains: a node hands a shard
//! to one of its followers, which hands another one on, until a node with too few has one
//! more. Only the ends of a chain change their numbers. Leaders that are new may change along
//! chains of any length, and when none improves, no other choice of them is more even.
//!
//! When a zone is to lead, a shard with an active replica there is led by one of those, and
//! evenness is looked for among them.
//!
//! Invariants: `leaders` are the sums over the shards' `leader`; every accepted chain
//! lowers the sum of squares.

use std::collections::VecDeque;
use std::ops::Range;

use super::NodeState;
use super::layout::{Layout, NodeAt, Scope, ShardAt};
use super::objective::SCALE_ONE;

/// What a leader counts, so that percentages of the mean are integers.
const LEADER: u128 = 1 << 20;
/// How long chains of new leaders may be, one length after the other: a leader that one
/// hand-over can bring should not come by three.
const NEW_CHAIN_LENGTHS: [usize; 3] = [1, 2, usize::MAX];
/// The same where leaders that were there before change: each hand-over is an election, and
/// one leader more or less is not worth many.
const CHAIN_LENGTHS: [usize; 2] = [1, 2];

struct Leaders<'a> {
    layout: &'a mut Layout,
    /// What each node leads.
    led: Vec<Vec<ShardAt>>,
    /// By shard: the leader was chosen in this run.
    new: Vec<bool>,
    /// How often a node leads another one, a row for each leader.
    follows: Vec<u32>,
}

/// Chooses a leader for each shard that has a node which may lead it.
pub(super) fn choose(layout: &mut Layout) {
    let nodes = layout.nodes.len();
    let shards = layout.shards.len();
    let mut leaders = Leaders {
        led: vec![Vec::new(); nodes],
        new: vec![false; shards],
        follows: vec![0; nodes * nodes],
        layout,
    };
    leaders.keep();
    leaders.fill();
    for scope in leaders.layout.scopes() {
        leaders.even_out(*scope);
    }
}

impl Leaders<'_> {
    fn keep(&mut self) {
        for shard in 0..self.layout.shards.len() {
            let leader = self.layout.shards[shard].leader.take();
            let healthy = |node: &NodeAt| self.layout.state(*node).is_healthy();
            let kept = leader.filter(healthy);
            let kept = kept.filter(|node| self.is_in_place(shard, *node));
            if let Some(node) = kept {
                self.set(shard, node);
            }
        }
    }

    fn fill(&mut self) {
        for shard in 0..self.layout.shards.len() {
            if self.layout.shards[shard].leader.is_some() {
                continue;
            }
            let electable = self.electable(shard).into_iter();
            let best = electable.min_by_key(|node| {
                let others = self.layout.shards[shard].replicas.iter();
                let row = node * self.layout.nodes.len();
                let known = others.map(|other| u64::from(self.follows[row + other]));
                (self.price(*node), known.sum::<u64>(), *node)
            });
            if let Some(node) = best {
                self.new[shard] = true;
                self.set(shard, node);
            }
        }
    }

    /// The node is in the zone that is to lead, or nobody there may lead the shard.
    fn is_in_place(&self, shard: ShardAt, node: NodeAt) -> bool {
        self.layout.nodes[node].leads_first || !self.is_led_by_zone(shard)
    }

    /// The shard has an active replica in the zone that is to lead.
    fn is_led_by_zone(&self, shard: ShardAt) -> bool {
        let mut replicas = self.layout.shards[shard].replicas.iter();
        replicas.any(|node| {
            self.layout.nodes[*node].leads_first && self.layout.state(*node) == NodeState::Active
        })
    }

    /// The nodes to choose a new leader from: active ones that have its data already, else
    /// active ones that are to get it, else cordoned ones. Of those in place only.
    fn electable(&self, shard: ShardAt) -> Vec<NodeAt> {
        let replicas = &self.layout.shards[shard].replicas;
        let of = |state| {
            let all = replicas.iter().copied();
            all.filter(move |node| {
                self.layout.state(*node) == state && self.is_in_place(shard, *node)
            })
        };
        let had = |node: &NodeAt| self.layout.was_on(shard, *node);
        let choices = [
            of(NodeState::Active).filter(had).collect::<Vec<_>>(),
            of(NodeState::Active).collect(),
            of(NodeState::Cordoned).collect(),
        ];
        let first = choices.into_iter().find(|choice| !choice.is_empty());
        first.unwrap_or_default()
    }

    /// What the sum grows by when the node leads one shard more.
    fn price(&self, node: NodeAt) -> u128 {
        (2 * self.led[node].len() as u128 + 1) * self.layout.nodes[node].scale * LEADER
    }

    /// What the sum falls by when it leads one less; it leads one.
    fn relief(&self, node: NodeAt) -> u128 {
        (2 * self.led[node].len() as u128 - 1) * self.layout.nodes[node].scale * LEADER
    }

    fn set(&mut self, shard: ShardAt, node: NodeAt) {
        self.layout.shards[shard].leader = Some(node);
        self.led[node].push(shard);
        self.count(shard, node, 1);
    }

    fn unset(&mut self, shard: ShardAt, node: NodeAt) {
        self.layout.shards[shard].leader = None;
        self.led[node].retain(|led| *led != shard);
        self.count(shard, node, -1);
    }

    fn count(&mut self, shard: ShardAt, node: NodeAt, by: i32) {
        let row = node * self.layout.nodes.len();
        for other in &self.layout.shards[shard].replicas {
            let count = &mut self.follows[row + other];
            *count = count.saturating_add_signed(by);
        }
    }

    /// Applies chains, short ones first, until none improves.
    fn even_out(&mut self, scope: Scope) {
        let mean = LEADER * self.layout.shards.len() as u128 / self.layout.active;
        let percent = u128::from(self.layout.constraints.gain_percent_min);
        let (threshold, lengths) = match scope {
            Scope::New => (0, &NEW_CHAIN_LENGTHS[..]),
            Scope::All => (2 * percent * mean * SCALE_ONE / 100, &CHAIN_LENGTHS[..]),
        };
        for length in lengths {
            while self.round(scope, threshold, *length) {}
        }
    }

    /// Every node may give one leader away, those with most first.
    fn round(&mut self, scope: Scope, threshold: u128, length: usize) -> bool {
        let mut nodes: Vec<NodeAt> = (0..self.led.len()).collect();
        nodes.retain(|node| self.layout.state(*node) == NodeState::Active);
        nodes.sort_by_key(|node| {
            let leads = self.led[*node].len() as u128;
            (leads * self.layout.nodes[*node].scale, *node)
        });
        let mut improved = false;
        for node in nodes.into_iter().rev() {
            improved |= self.give(node, scope, threshold, length);
        }
        improved
    }

    /// Lets the node give one leader away along the best chain. False when none has a gain.
    fn give(&mut self, from: NodeAt, scope: Scope, threshold: u128, length: usize) -> bool {
        if self.led[from].is_empty() {
            return false;
        }
        let relief = self.relief(from);
        let limit = relief.saturating_sub(threshold);
        let nodes = 0..self.led.len();
        let active = nodes.filter(|node| self.layout.state(*node) == NodeState::Active);
        let Some(cheapest) = active.map(|node| self.price(node)).min() else {
            return false;
        };
        if cheapest >= limit {
            return false;
        }
        let Some(chain) = self.chain(from, scope, cheapest..limit, length) else {
            return false;
        };
        for (shard, giver, taker) in chain {
            self.unset(shard, giver);
            self.set(shard, taker);
        }
        true
    }

    /// The chain of at most so many hand-overs from a node to the one with the lowest price
    /// that it reaches, the shortest of those; none when no price is in the range.
    fn chain(
        &self,
        from: NodeAt,
        scope: Scope,
        prices: Range<u128>,
        length: usize,
    ) -> Option<Vec<(ShardAt, NodeAt, NodeAt)>> {
        let mut way: Vec<Option<(ShardAt, NodeAt)>> = vec![None; self.led.len()];
        let mut queue = VecDeque::from([(from, 0)]);
        let mut best: Option<(u128, NodeAt)> = None;
        'search: while let Some((giver, distance)) = queue.pop_front() {
            if distance == length {
                break;
            }
            for shard in &self.led[giver] {
                for taker in self.takers(*shard, scope) {
                    if taker == from || way[taker].is_some() {
                        continue;
                    }
                    way[taker] = Some((*shard, giver));
                    queue.push_back((taker, distance + 1));
                    let price = self.price(taker);
                    if best.is_none_or(|(best, _)| price < best) {
                        best = Some((price, taker));
                    }
                    if price == prices.start {
                        break 'search;
                    }
                }
            }
        }
        let (_, to) = best.filter(|(price, _)| *price < prices.end)?;
        let mut chain = Vec::new();
        let mut taker = to;
        while let Some((shard, giver)) = way[taker] {
            chain.push((shard, giver, taker));
            taker = giver;
        }
        Some(chain)
    }

    fn takers(&self, shard: ShardAt, scope: Scope) -> Vec<NodeAt> {
        match scope {
            Scope::New if !self.new[shard] => Vec::new(),
            Scope::New => {
                let mut electable = self.electable(shard);
                electable.retain(|node| self.layout.state(*node) == NodeState::Active);
                electable
            }
            Scope::All => {
                let mut replicas = self.layout.shards[shard].replicas.clone();
                replicas.retain(|node| {
                    self.layout.state(*node) == NodeState::Active && self.is_in_place(shard, *node)
                });
                replicas
            }
        }
    }
}
