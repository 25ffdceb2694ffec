//! Problems to test with, and what is counted in answers.

use std::collections::BTreeMap;

use carillon_core::placement::{
    Assignment, Constraints, Node, NodeState, Placement, Problem, Shard, Solution, Zone, solve,
};
use carillon_core::{NodeId, ShardId};

/// A node of weight 1 with room for everything.
pub fn node(id: u64, zone: u64) -> Node {
    Node {
        node_id: NodeId(id),
        zone: Zone(format!("zone-{zone}")),
        capacity_bytes: u64::MAX,
        weight: 1,
        state: NodeState::Active,
    }
}

pub fn shard(id: u32, size_bytes: u64, load_per_second: u64) -> Shard {
    Shard {
        shard_id: ShardId(id),
        size_bytes,
        load_per_second,
    }
}

/// Equal nodes, round the zones, and equal shards.
pub fn equal(nodes: u64, zones: u64, shards: u32, replication_factor: u32) -> Problem {
    Problem {
        nodes: (1..=nodes).map(|id| node(id, id % zones)).collect(),
        shards: (1..=shards).map(|id| shard(id, 100, 10)).collect(),
        replication_factor,
        constraints: Constraints::default(),
    }
}

pub fn with_state(mut problem: Problem, id: u64, state: NodeState) -> Problem {
    for node in &mut problem.nodes {
        if node.node_id == NodeId(id) {
            node.state = state;
        }
    }
    problem
}

/// An assignment as a table: shard, nodes, leader (0 is none).
pub fn assignment(rows: &[(u32, &[u64], u64)]) -> Assignment {
    let placement = |(shard_id, nodes, leader): &(u32, &[u64], u64)| {
        let placement = Placement {
            replicas: nodes.iter().copied().map(NodeId).collect(),
            preferred_leader: (*leader != 0).then_some(NodeId(*leader)),
        };
        (ShardId(*shard_id), placement)
    };
    Assignment {
        shards: rows.iter().map(placement).collect(),
    }
}

pub fn solved(problem: &Problem, previous: &Assignment) -> Solution {
    solve(problem, previous).expect("the problem is one")
}

pub fn first_placement(problem: &Problem) -> Assignment {
    solved(problem, &Assignment::default()).assignment
}

/// The replicas of each node of the problem.
pub fn held(problem: &Problem, assignment: &Assignment) -> BTreeMap<NodeId, u64> {
    let mut held: BTreeMap<_, _> = problem.nodes.iter().map(|node| (node.node_id, 0)).collect();
    for placement in assignment.shards.values() {
        for node in &placement.replicas {
            *held.entry(*node).or_default() += 1;
        }
    }
    held
}

/// What each node of the problem leads.
pub fn led(problem: &Problem, assignment: &Assignment) -> BTreeMap<NodeId, u64> {
    let mut led: BTreeMap<_, _> = problem.nodes.iter().map(|node| (node.node_id, 0)).collect();
    for placement in assignment.shards.values() {
        if let Some(node) = placement.preferred_leader {
            *led.entry(node).or_default() += 1;
        }
    }
    led
}

pub fn difference(counts: &BTreeMap<NodeId, u64>) -> u64 {
    let most = counts.values().max().copied().unwrap_or(0);
    most - counts.values().min().copied().unwrap_or(0)
}

/// Shards whose set of nodes is another one than before.
pub fn moved_shards(before: &Assignment, after: &Assignment) -> Vec<ShardId> {
    let sorted = |placement: Option<&Placement>| {
        let mut replicas = placement.map_or(Vec::new(), |placement| placement.replicas.clone());
        replicas.sort();
        replicas
    };
    let shards = after.shards.iter();
    let moved = shards.filter(|(shard_id, placement)| {
        sorted(Some(placement)) != sorted(before.shards.get(shard_id))
    });
    moved.map(|(shard_id, _)| *shard_id).collect()
}

/// Shards whose preferred leader is another one than before.
pub fn moved_leaders(before: &Assignment, after: &Assignment) -> Vec<ShardId> {
    let shards = after.shards.iter();
    let moved = shards.filter(|(shard_id, placement)| {
        let before = before.shards.get(shard_id);
        before.and_then(|before| before.preferred_leader) != placement.preferred_leader
    });
    moved.map(|(shard_id, _)| *shard_id).collect()
}
