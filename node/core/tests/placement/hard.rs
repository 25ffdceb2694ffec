//! The hard constraints, checked plainly: no index, no cost, nothing from the solver but
//! its answer.

use std::collections::{BTreeMap, BTreeSet};

use carillon_core::placement::{
    Assignment, Node, NodeState, Placement, Problem, Shard, Shortfall, ShortfallReason, Solution,
    Zone,
};
use carillon_core::{NodeId, ShardId};

struct Check<'a> {
    problem: &'a Problem,
    previous: &'a Assignment,
    solution: &'a Solution,
    nodes: BTreeMap<NodeId, &'a Node>,
}

/// Panics when the answer breaks a hard constraint.
pub fn check_hard(problem: &Problem, previous: &Assignment, solution: &Solution) {
    let nodes = problem.nodes.iter();
    let check = Check {
        problem,
        previous,
        solution,
        nodes: nodes.map(|node| (node.node_id, node)).collect(),
    };
    let wanted: BTreeSet<ShardId> = problem.shards.iter().map(|shard| shard.shard_id).collect();
    let placed: BTreeSet<ShardId> = solution.assignment.shards.keys().copied().collect();
    assert_eq!(placed, wanted, "every shard is in the answer, and no other");
    for shard in &problem.shards {
        let placement = &solution.assignment.shards[&shard.shard_id];
        check.replicas(shard, placement);
        check.could_not_be_better(shard, placement);
        check.leader(shard, placement);
        check.shortfall(shard, placement);
    }
    check.limits_of_nodes();
}

impl Check<'_> {
    /// The known nodes that had the shard.
    fn before(&self, shard_id: ShardId) -> BTreeSet<NodeId> {
        let placement = self.previous.shards.get(&shard_id);
        let replicas = placement.map_or(&[][..], |placement| &placement.replicas);
        let known = replicas.iter().filter(|id| self.nodes.contains_key(id));
        known.copied().collect()
    }

    fn state(&self, node_id: &NodeId) -> NodeState {
        self.nodes[node_id].state
    }

    fn healthy(&self, nodes: impl IntoIterator<Item = NodeId>) -> usize {
        let healthy = |id: &NodeId| self.state(id).is_healthy();
        nodes.into_iter().filter(healthy).count()
    }

    fn used_bytes(&self, node_id: NodeId) -> u128 {
        let shards = self.problem.shards.iter();
        let here = shards.filter(|shard| {
            let placement = &self.solution.assignment.shards[&shard.shard_id];
            placement.replicas.contains(&node_id)
        });
        here.map(|shard| u128::from(shard.size_bytes)).sum()
    }

    fn count(&self, node_id: NodeId) -> usize {
        let placements = self.solution.assignment.shards.values();
        let here = placements.filter(|placement| placement.replicas.contains(&node_id));
        here.count()
    }

    fn replicas(&self, shard: &Shard, placement: &Placement) {
        let id = shard.shard_id;
        let wanted = self.problem.replication_factor as usize;
        let after: BTreeSet<NodeId> = placement.replicas.iter().copied().collect();
        let before = self.before(id);
        assert_eq!(
            after.len(),
            placement.replicas.len(),
            "{id}: twice on a node"
        );
        assert!(after.len() <= wanted, "{id}: too many replicas");
        assert!(
            after.len() >= before.len().min(wanted),
            "{id}: lost replicas without a replacement"
        );
        assert!(
            self.healthy(after.clone()) >= self.healthy(before.clone()).min(wanted),
            "{id}: lost healthy replicas without a replacement"
        );
        for node in after.difference(&before) {
            assert_eq!(self.state(node), NodeState::Active, "{id}: new on {node}");
        }
    }

    /// Nodes that could have taken a replica of the shard.
    fn free_for<'a>(
        &'a self,
        shard: &'a Shard,
        placement: &'a Placement,
    ) -> impl Iterator<Item = &'a Node> {
        self.problem.nodes.iter().filter(move |node| {
            let used = self.used_bytes(node.node_id) + u128::from(shard.size_bytes);
            let count = self.count(node.node_id);
            node.state == NodeState::Active
                && !placement.replicas.contains(&node.node_id)
                && used <= u128::from(node.capacity_bytes)
                && count < self.problem.constraints.replicas_per_node_max as usize
        })
    }

    fn could_not_be_better(&self, shard: &Shard, placement: &Placement) {
        let id = shard.shard_id;
        let wanted = self.problem.replication_factor as usize;
        if self.healthy(placement.replicas.iter().copied()) < wanted {
            let free: Vec<_> = self.free_for(shard, placement).collect();
            assert!(free.is_empty(), "{id}: {free:?} could have taken a replica");
        }
        let crowd = |zone: &Zone| {
            let replicas = placement.replicas.iter();
            let there = replicas.filter(|node| self.nodes[node].zone == *zone);
            there.count()
        };
        let most = placement.replicas.iter();
        let most = most.map(|node| crowd(&self.nodes[node].zone)).max();
        for node in self.free_for(shard, placement) {
            assert!(
                crowd(&node.zone) + 2 > most.unwrap_or(0),
                "{id}: {} would spread it better over zones",
                node.node_id
            );
        }
    }

    fn leader(&self, shard: &Shard, placement: &Placement) {
        let id = shard.shard_id;
        let healthy = self.healthy(placement.replicas.iter().copied());
        let Some(leader) = placement.preferred_leader else {
            assert_eq!(healthy, 0, "{id}: has nobody to lead it");
            return;
        };
        assert_eq!(placement.replicas.first(), Some(&leader), "{id}: first");
        assert!(self.state(&leader).is_healthy(), "{id}: led by {leader}");
        let before = self.previous.shards.get(&id);
        let stays = before.and_then(|before| before.preferred_leader) == Some(leader);
        let mut replicas = placement.replicas.iter();
        let choice = replicas.any(|node| self.state(node) == NodeState::Active);
        if choice && !stays {
            assert_eq!(self.state(&leader), NodeState::Active, "{id}: new leader");
        }
    }

    fn shortfall(&self, shard: &Shard, placement: &Placement) {
        let replicas = placement.replicas.iter();
        let count = |state| {
            replicas
                .clone()
                .filter(|node| self.state(node) == state)
                .count()
        };
        let healthy = self.healthy(replicas.clone().copied());
        let mut shortfalls = self.solution.shortfalls.iter();
        let found = shortfalls.find(|shortfall| shortfall.shard_id == shard.shard_id);
        if healthy == self.problem.replication_factor as usize {
            assert_eq!(found, None);
            return;
        }
        let reason = self.reason(shard, placement);
        let expected = Shortfall {
            shard_id: shard.shard_id,
            wanted: self.problem.replication_factor,
            healthy: healthy as u32,
            draining: count(NodeState::Draining) as u32,
            down: count(NodeState::Down) as u32,
            reason,
        };
        assert_eq!(found, Some(&expected));
    }

    fn reason(&self, shard: &Shard, placement: &Placement) -> ShortfallReason {
        let nodes = self.problem.nodes.iter();
        let active = nodes.filter(|node| node.state == NodeState::Active);
        let others = active.clone();
        let others = others.filter(|node| !placement.replicas.contains(&node.node_id));
        let free = others.map(|node| {
            let used = self.used_bytes(node.node_id);
            u128::from(node.capacity_bytes).saturating_sub(used) as u64
        });
        match free.max() {
            None => ShortfallReason::TooFewNodes {
                active: active.count() as u32,
            },
            Some(free_bytes_max) if free_bytes_max < shard.size_bytes => {
                ShortfallReason::NoCapacity {
                    size_bytes: shard.size_bytes,
                    free_bytes_max,
                }
            }
            Some(_) => ShortfallReason::TooManyReplicas {
                max: self.problem.constraints.replicas_per_node_max,
            },
        }
    }

    fn limits_of_nodes(&self) {
        for node in &self.problem.nodes {
            let shards = self.solution.assignment.shards.iter();
            let mut new = shards.filter(|(shard_id, placement)| {
                let here = placement.replicas.contains(&node.node_id);
                here && !self.before(**shard_id).contains(&node.node_id)
            });
            if new.next().is_none() {
                continue;
            }
            let used = self.used_bytes(node.node_id);
            let max = self.problem.constraints.replicas_per_node_max as usize;
            assert!(used <= u128::from(node.capacity_bytes), "{}", node.node_id);
            assert!(self.count(node.node_id) <= max, "{}", node.node_id);
        }
    }
}
