//! The working state of a run: who has what, what that costs, and where there is room.
//!
//! Owned by one call of `solve`. Nodes and shards are indexes into lists that are sorted by
//! number. Every change goes through [`Layout::add_replica`] and
//! [`Layout::remove_replica`], which keep the sums and indexes.
//!
//! Invariants: `usage`, `used_bytes`, `held` and `together` of nodes are the sums over the
//! shards' `replicas`; a node is in `light` iff it is active, under its present pressure.

use std::collections::{BTreeMap, BTreeSet};

use super::check::Checked;
use super::objective::{Amounts, Price, price, scale};
use super::{Assignment, Constraints, NodeState, Shard};
use crate::ids::{NodeId, ShardId};

/// How many nodes with room are looked at in a zone, the lightest first.
const NODES_EXAMINED_MAX: usize = 32;
/// How many zones with room are looked at, the one with the lightest node first.
const ZONES_EXAMINED_MAX: usize = 8;

/// How often a run looks for a replica that makes room for another one: in a cluster that is full
/// each look is in vain, and what is not found now is looked for again after some moves.
const DISPLACEMENTS_MAX: u32 = 256;

/// A node's index.
pub(super) type NodeAt = usize;
/// A shard's index.
pub(super) type ShardAt = usize;
/// A zone's index.
pub(super) type ZoneAt = usize;

/// A node and what is on it.
pub(super) struct NodeUse {
    pub(super) node_id: NodeId,
    pub(super) zone: ZoneAt,
    /// It is in the zone that is to lead.
    pub(super) leads_first: bool,
    pub(super) state: NodeState,
    pub(super) capacity_bytes: u64,
    /// The mean weight by this node's.
    pub(super) scale: u128,
    pub(super) used_bytes: u128,
    /// Of bytes, load and number of replicas.
    pub(super) usage: Amounts,
    /// The shards that have a replica here, in order, so that looking through them does not
    /// depend on what came first.
    pub(super) held: BTreeSet<ShardAt>,
}

/// A shard and where it is.
pub(super) struct ShardUse {
    pub(super) shard_id: ShardId,
    pub(super) size_bytes: u64,
    pub(super) load_per_second: u64,
    pub(super) price: Price,
    /// Where its replicas are, in order.
    pub(super) replicas: Vec<NodeAt>,
    /// Where they were before this run.
    pub(super) before: Vec<NodeAt>,
    pub(super) leader: Option<NodeAt>,
}

/// A node for a replica, and what makes it better than another: the smaller the better.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    /// What the objective grows by.
    pub(super) cost: u128,
    /// How many replicas the node has in common with the shard's other nodes. Few means
    /// that the loss of a node is spread over many.
    pub(super) together: u64,
    /// Each shard begins with another node, so that it is not always the same ones that
    /// choose first and the same ones that are left together.
    turn: usize,
    pub(super) node: NodeAt,
}

/// How thoroughly to look for a target.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Search {
    /// All that are equally light: for what must be placed.
    Wide,
    /// The lightest only: for what may be moved.
    Narrow,
}

/// Which replicas or leaders may change.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Those that this run has chosen: they cost nothing to change, so they come first.
    New,
    /// All, those that were there before for a gain above the threshold.
    All,
}

/// Who has what.
pub(super) struct Layout {
    pub(super) nodes: Vec<NodeUse>,
    pub(super) shards: Vec<ShardUse>,
    pub(super) replication_factor: usize,
    pub(super) constraints: Constraints,
    /// A node is down: only repair.
    frozen: bool,
    /// How often it may still be looked for what could make room.
    pub(super) displacements_left: u32,
    /// Active nodes, at least 1 to divide by.
    pub(super) active: u128,
    /// The active nodes of each zone, the lightest first.
    light: Vec<BTreeSet<(u128, NodeAt)>>,
    /// Zones by their lightest active node.
    light_zones: BTreeSet<(u128, ZoneAt)>,
    /// How many shards two nodes have in common, a row for each node.
    together: Vec<u32>,
}

impl Layout {
    pub(super) fn new(checked: &Checked<'_>, previous: &Assignment) -> Layout {
        let nodes = node_uses(checked);
        let zones = nodes.iter().map(|node| node.zone + 1).max().unwrap_or(0);
        let active = nodes.iter().filter(|node| node.state == NodeState::Active);
        let active = (active.count() as u128).max(1);
        let frozen = nodes.iter().any(|node| node.state == NodeState::Down);
        let mut layout = Layout {
            shards: shard_uses(checked, active),
            replication_factor: checked.replication_factor,
            constraints: checked.constraints.clone(),
            frozen,
            displacements_left: DISPLACEMENTS_MAX,
            active,
            light: vec![BTreeSet::new(); zones],
            light_zones: BTreeSet::new(),
            together: vec![0; nodes.len() * nodes.len()],
            nodes,
        };
        for node in 0..layout.nodes.len() {
            layout.list(node);
        }
        layout.take_over(previous);
        layout
    }

    /// Puts replicas and leaders where they were, as far as nodes and shards are known.
    fn take_over(&mut self, previous: &Assignment) {
        for shard in 0..self.shards.len() {
            let Some(before) = previous.shards.get(&self.shards[shard].shard_id) else {
                continue;
            };
            for node_id in &before.replicas {
                let known = self.node_at(*node_id);
                if let Some(node) = known.filter(|node| !self.holds(shard, *node)) {
                    self.add_replica(shard, node);
                }
            }
            self.shards[shard].before = self.shards[shard].replicas.clone();
            let leader = before.preferred_leader.and_then(|id| self.node_at(id));
            self.shards[shard].leader = leader.filter(|node| self.holds(shard, *node));
        }
    }

    fn node_at(&self, node_id: NodeId) -> Option<NodeAt> {
        let found = self
            .nodes
            .binary_search_by_key(&node_id, |node| node.node_id);
        found.ok()
    }

    /// What may change for evenness, one after the other.
    pub(super) fn scopes(&self) -> &'static [Scope] {
        match self.frozen {
            true => &[Scope::New],
            false => &[Scope::New, Scope::All],
        }
    }

    pub(super) fn state(&self, node: NodeAt) -> NodeState {
        self.nodes[node].state
    }

    pub(super) fn holds(&self, shard: ShardAt, node: NodeAt) -> bool {
        self.shards[shard].replicas.contains(&node)
    }

    /// True when the shard has a replica there that it had before.
    pub(super) fn was_on(&self, shard: ShardAt, node: NodeAt) -> bool {
        self.shards[shard].before.contains(&node)
    }

    /// True when a new replica of the shard may be put there, whatever else is against it.
    pub(super) fn has_room(&self, shard: ShardAt, node: NodeAt) -> bool {
        let size = u128::from(self.shards[shard].size_bytes);
        let to = &self.nodes[node];
        to.used_bytes + size <= u128::from(to.capacity_bytes) && self.has_room_for_one(node)
    }

    /// True when the node may have one replica more.
    pub(super) fn has_room_for_one(&self, node: NodeAt) -> bool {
        self.nodes[node].held.len() < self.replicas_per_node_max()
    }

    /// How many of the shard's replicas are in the zone, one node left out.
    pub(super) fn in_zone(&self, shard: ShardAt, zone: ZoneAt, without: Option<NodeAt>) -> usize {
        let replicas = self.shards[shard].replicas.iter();
        let there = replicas.filter(|node| self.nodes[**node].zone == zone);
        there.filter(|node| Some(**node) != without).count()
    }

    pub(super) fn add_replica(&mut self, shard: ShardAt, node: NodeAt) {
        self.unlist(node);
        let to = &mut self.nodes[node];
        to.used_bytes += u128::from(self.shards[shard].size_bytes);
        for (usage, demand) in to.usage.iter_mut().zip(self.shards[shard].price.demand) {
            *usage += demand;
        }
        to.held.insert(shard);
        for other in &self.shards[shard].replicas {
            self.together[node * self.nodes.len() + other] += 1;
            self.together[other * self.nodes.len() + node] += 1;
        }
        let replicas = &mut self.shards[shard].replicas;
        let at = replicas.partition_point(|other| *other < node);
        replicas.insert(at, node);
        self.list(node);
    }

    pub(super) fn remove_replica(&mut self, shard: ShardAt, node: NodeAt) {
        self.unlist(node);
        let from = &mut self.nodes[node];
        from.used_bytes -= u128::from(self.shards[shard].size_bytes);
        for (usage, demand) in from.usage.iter_mut().zip(self.shards[shard].price.demand) {
            *usage -= demand;
        }
        from.held.remove(&shard);
        self.shards[shard].replicas.retain(|other| *other != node);
        for other in &self.shards[shard].replicas {
            self.together[node * self.nodes.len() + other] -= 1;
            self.together[other * self.nodes.len() + node] -= 1;
        }
        if self.shards[shard].leader == Some(node) {
            self.shards[shard].leader = None;
        }
        self.list(node);
    }

    /// True when a replica that comes has room where another one goes.
    pub(super) fn has_room_after(&self, comes: ShardAt, node: NodeAt, goes: ShardAt) -> bool {
        let NodeUse {
            used_bytes,
            capacity_bytes,
            ..
        } = &self.nodes[node];
        let used = used_bytes - u128::from(self.shards[goes].size_bytes);
        let within = self.nodes[node].held.len() <= self.replicas_per_node_max();
        used + u128::from(self.shards[comes].size_bytes) <= u128::from(*capacity_bytes) && within
    }

    fn replicas_per_node_max(&self) -> usize {
        self.constraints.replicas_per_node_max as usize
    }

    /// The lightest active nodes of a zone and of as many other zones.
    pub(super) fn lightest(&self, zone: ZoneAt, max: usize) -> impl Iterator<Item = NodeAt> {
        let others = self.light_zones.iter().map(|(_, zone)| *zone);
        let others = others.filter(move |other| *other != zone).take(max);
        let zones = std::iter::once(zone).chain(others);
        let nodes = zones.flat_map(move |zone| self.light[zone].iter().take(max));
        nodes.map(|(_, node)| *node)
    }

    /// True when a replica that goes from the node to the zone leaves the shard spread as
    /// evenly as it is: the two zones' counts change places at worst.
    pub(super) fn keeps_spread(&self, shard: ShardAt, from: NodeAt, to: ZoneAt) -> bool {
        let zone = self.nodes[from].zone;
        zone == to || self.in_zone(shard, to, None) < self.in_zone(shard, zone, None)
    }

    /// How many replicas the node has in common with the shard's other nodes.
    fn together(&self, shard: ShardAt, node: NodeAt) -> u64 {
        let row = &self.together[node * self.nodes.len()..][..self.nodes.len()];
        let replicas = self.shards[shard].replicas.iter();
        replicas.map(|other| u64::from(row[*other])).sum()
    }

    /// The best node for another replica of the shard in the zones that `allowed` names;
    /// none when none of them has room.
    pub(super) fn best_target(
        &self,
        shard: ShardAt,
        search: Search,
        allowed: impl Fn(ZoneAt) -> bool,
    ) -> Option<Target> {
        let mut best = None;
        let mut lightest = None;
        let mut zones = 0;
        for (pressure, zone) in &self.light_zones {
            if !allowed(*zone) {
                continue;
            }
            let tie = search == Search::Wide && lightest == Some(*pressure);
            if zones >= ZONES_EXAMINED_MAX && best.is_some() && !tie {
                break;
            }
            lightest = lightest.or(Some(*pressure));
            zones += 1;
            self.look_into(*zone, shard, search, &mut best);
        }
        best
    }

    fn look_into(&self, zone: ZoneAt, shard: ShardAt, search: Search, best: &mut Option<Target>) {
        let mut lightest = None;
        let mut examined = 0;
        for (pressure, node) in &self.light[zone] {
            if self.holds(shard, *node) || !self.has_room(shard, *node) {
                continue;
            }
            let tie = search == Search::Wide && lightest == Some(*pressure);
            if examined >= NODES_EXAMINED_MAX && !tie {
                break;
            }
            lightest = lightest.or(Some(*pressure));
            examined += 1;
            let target = Target {
                cost: self.cost_of_adding(shard, *node),
                together: self.together(shard, *node),
                turn: (node + self.nodes.len() - shard % self.nodes.len()) % self.nodes.len(),
                node: *node,
            };
            if best.is_none_or(|best| target < best) {
                *best = Some(target);
            }
        }
    }

    fn list(&mut self, node: NodeAt) {
        if self.state(node) == NodeState::Active {
            let zone = self.nodes[node].zone;
            let key = (self.nodes[node].pressure(), node);
            self.change_zone(zone, |light| light.insert(key));
        }
    }

    fn unlist(&mut self, node: NodeAt) {
        if self.state(node) == NodeState::Active {
            let zone = self.nodes[node].zone;
            let key = (self.nodes[node].pressure(), node);
            self.change_zone(zone, |light| light.remove(&key));
        }
    }

    fn change_zone(
        &mut self,
        zone: ZoneAt,
        change: impl FnOnce(&mut BTreeSet<(u128, NodeAt)>) -> bool,
    ) {
        let light = &mut self.light[zone];
        let before = light.first().map(|(pressure, _)| *pressure);
        change(light);
        let after = light.first().map(|(pressure, _)| *pressure);
        if before != after {
            if let Some(pressure) = before {
                self.light_zones.remove(&(pressure, zone));
            }
            if let Some(pressure) = after {
                self.light_zones.insert((pressure, zone));
            }
        }
    }
}

fn node_uses(checked: &Checked<'_>) -> Vec<NodeUse> {
    let mut zones = BTreeMap::new();
    for node in &checked.nodes {
        zones.insert(&node.zone, 0);
    }
    for (at, zone) in zones.values_mut().enumerate() {
        *zone = at;
    }
    let scale = scale(checked);
    let node_use = |node: &&super::Node| NodeUse {
        node_id: node.node_id,
        zone: zones[&node.zone],
        leads_first: !node.zone.0.is_empty() && node.zone == checked.constraints.leader_zone,
        state: node.state,
        capacity_bytes: node.capacity_bytes,
        scale: scale(node),
        used_bytes: 0,
        usage: [0; 3],
        held: BTreeSet::new(),
    };
    checked.nodes.iter().map(node_use).collect()
}

fn shard_uses(checked: &Checked<'_>, active: u128) -> Vec<ShardUse> {
    let price = price(checked, active);
    let shard_use = |shard: &Shard| ShardUse {
        shard_id: shard.shard_id,
        size_bytes: shard.size_bytes,
        load_per_second: shard.load_per_second,
        price: price(shard),
        replicas: Vec::with_capacity(checked.replication_factor),
        before: Vec::new(),
        leader: None,
    };
    checked.shards.iter().map(shard_use).collect()
}
