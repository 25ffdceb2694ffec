//! The first placement of a new cluster.

use std::collections::BTreeMap;

use carillon_core::NodeId;
use carillon_core::placement::{Assignment, NodeState, Problem};
use proptest::prelude::*;

use crate::cluster::{difference, equal, first_placement, held, led, shard, solved, with_state};

/// How often each node follows each leader, zeros included; only nodes that may follow it.
fn followers(problem: &Problem, placed: &Assignment) -> BTreeMap<NodeId, BTreeMap<NodeId, u64>> {
    let mut all = BTreeMap::new();
    for leader in &problem.nodes {
        let others = problem.nodes.iter();
        let others = others.filter(|node| node.node_id != leader.node_id);
        let mut counts: BTreeMap<NodeId, u64> = others.map(|node| (node.node_id, 0)).collect();
        for placement in placed.shards.values() {
            if placement.preferred_leader == Some(leader.node_id) {
                for node in &placement.replicas {
                    if let Some(count) = counts.get_mut(node) {
                        *count += 1;
                    }
                }
            }
        }
        all.insert(leader.node_id, counts);
    }
    all
}

/// `(nodes, zones, replicas)`: as many nodes in each zone.
const SHAPES: [(u64, u64, u32); 14] = [
    (1, 1, 1),
    (2, 1, 2),
    (3, 1, 3),
    (4, 1, 3),
    (5, 1, 3),
    (6, 1, 2),
    (7, 1, 3),
    (9, 1, 5),
    (12, 1, 3),
    (3, 3, 3),
    (6, 2, 3),
    (9, 3, 3),
    (10, 5, 3),
    (12, 4, 5),
];

#[test]
fn replicas_and_leaders_are_even_within_one() {
    for (nodes, zones, replicas) in SHAPES {
        for shards in [1, 2, 3, 5, 16, 41, 100] {
            let problem = equal(nodes, zones, shards, replicas);
            let placed = first_placement(&problem);
            let (held, led) = (held(&problem, &placed), led(&problem, &placed));
            let case = format!("{nodes} nodes, {zones} zones, {shards} shards, x{replicas}");
            assert!(difference(&held) <= 1, "{case}: {held:?}");
            assert!(difference(&led) <= 1, "{case}: {led:?}");
        }
    }
}

#[test]
fn what_a_node_leads_is_followed_by_all_others() {
    for replicas in [2_u32, 3, 5] {
        for nodes in u64::from(replicas.max(3))..=12 {
            for led_by_each in [10_u64, 40] {
                let shards = (nodes * led_by_each) as u32;
                let problem = equal(nodes, 1, shards, replicas);
                let placed = first_placement(&problem);
                let mean = led_by_each * u64::from(replicas - 1) / (nodes - 1);
                for (leader, counts) in followers(&problem, &placed) {
                    let case = format!("{nodes} nodes, {shards} shards, x{replicas}, {leader}");
                    let most = counts.values().max().copied().unwrap_or(0);
                    let least = counts.values().min().copied().unwrap_or(0);
                    assert!(most <= mean * 3 / 2 + 3, "{case}: {counts:?}");
                    assert!(least + 3 >= mean / 2, "{case}: {counts:?}");
                    assert!(led_by_each == 10 || least > 0, "{case}: {counts:?}");
                }
            }
        }
    }
}

#[test]
fn the_loss_of_any_node_is_spread_over_the_others() {
    let problem = equal(6, 1, 60, 3);
    let placed = first_placement(&problem);
    for lost in 1..=6 {
        let problem = with_state(problem.clone(), lost, NodeState::Down);
        let after = solved(&problem, &placed).assignment;
        let mut led = led(&problem, &after);
        led.remove(&NodeId(lost));
        // Ten of its shards are led by five others: two more each, if all goes well.
        assert!(led.values().all(|led| (11..=13).contains(led)), "{led:?}");
    }
}

#[test]
fn a_node_of_double_weight_gets_twice_as_much() {
    let mut problem = equal(4, 1, 50, 2);
    problem.nodes[0].weight = 2;
    let placed = first_placement(&problem);
    let (held, led) = (held(&problem, &placed), led(&problem, &placed));
    assert_eq!(held.values().copied().collect::<Vec<_>>(), [40, 20, 20, 20]);
    assert_eq!(led.values().copied().collect::<Vec<_>>(), [20, 10, 10, 10]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Greedy placement of the largest first leaves at most one shard between two nodes.
    #[test]
    fn bytes_of_unequal_shards_are_even_within_the_largest(
        nodes in 3_u64..8,
        sizes in prop::collection::vec(1_u64..1_000, 1..60),
    ) {
        let mut problem = equal(nodes, 1, 0, 3);
        let shards = sizes.iter().enumerate();
        problem.shards = shards.map(|(at, size)| shard(at as u32 + 1, *size, 0)).collect();
        let placed = first_placement(&problem);
        let bytes = problem.nodes.iter().map(|node| -> u64 {
            let shards = problem.shards.iter();
            let held = shards.filter(|shard| {
                placed.shards[&shard.shard_id].replicas.contains(&node.node_id)
            });
            held.map(|shard| shard.size_bytes).sum()
        });
        let bytes: Vec<u64> = bytes.collect();
        let largest = sizes.iter().max().copied().unwrap_or(0);
        let difference = bytes.iter().max().zip(bytes.iter().min()).map(|(most, least)| most - least);
        prop_assert!(difference <= Some(largest), "{bytes:?}");
    }
}
