//! Named cases: what is refused, what cannot be satisfied, what repair prefers, and inputs
//! that once gave a wrong answer.

use std::collections::BTreeMap;

use carillon_core::map::NODES_MAX;
use carillon_core::placement::{
    Assignment, Constraints, GAIN_PERCENT_MAX, Node, NodeState, PROBLEM_SHARDS_MAX, PlacementError,
    Problem, REPLICATION_FACTOR_MAX, Shortfall, ShortfallReason, WEIGHT_MAX, Zone, solve,
};
use carillon_core::{NodeId, ShardId};

use crate::cluster::{assignment, equal, first_placement, held, node, shard, solved, with_state};
use crate::hard::check_hard;

#[test]
fn what_is_no_problem_is_refused() {
    let good = equal(3, 1, 2, 3);
    let with = |change: fn(&mut Problem)| {
        let mut problem = good.clone();
        change(&mut problem);
        problem
    };
    let node_id = NodeId(2);
    let shard_id = ShardId(1);
    let max = REPLICATION_FACTOR_MAX;
    let cases = [
        (
            with(|problem| problem.nodes.push(node(2, 5))),
            PlacementError::DuplicateNode { node_id },
            "node 2 is listed twice; list every node once",
        ),
        (
            with(|problem| problem.shards.push(shard(1, 0, 0))),
            PlacementError::DuplicateShard { shard_id },
            "shard 1 is listed twice; list every shard once",
        ),
        (
            with(|problem| problem.replication_factor = 0),
            PlacementError::ReplicationOutOfRange { max, actual: 0 },
            "0 replicas of a shard are not possible; choose from 1 to 7",
        ),
        (
            with(|problem| problem.replication_factor = 8),
            PlacementError::ReplicationOutOfRange { max, actual: 8 },
            "8 replicas of a shard are not possible; choose from 1 to 7",
        ),
        (
            with(|problem| problem.nodes[1].weight = 0),
            PlacementError::WeightOutOfRange {
                node_id,
                max: WEIGHT_MAX,
                actual: 0,
            },
            "node 2 has weight 0; choose from 1 to 10000, or drain the node",
        ),
        (
            with(|problem| problem.constraints.gain_percent_min = 101),
            PlacementError::GainOutOfRange {
                max: GAIN_PERCENT_MAX,
                actual: 101,
            },
            "a gain of 101 percent is not possible; choose from 0 to 100",
        ),
        (
            equal(NODES_MAX as u64 + 1, 1, 1, 3),
            PlacementError::TooManyNodes {
                max: NODES_MAX,
                actual: NODES_MAX + 1,
            },
            "there are 1025 nodes to place on; at most 1024 are allowed",
        ),
        (
            equal(3, 1, PROBLEM_SHARDS_MAX as u32 + 1, 3),
            PlacementError::TooManyShards {
                max: PROBLEM_SHARDS_MAX,
                actual: PROBLEM_SHARDS_MAX + 1,
            },
            "there are 65537 shards to place; at most 65536 are allowed",
        ),
    ];
    for (problem, error, message) in cases {
        assert_eq!(solve(&problem, &Assignment::default()), Err(error.clone()));
        assert_eq!(error.to_string(), message);
    }
}

/// A name, a problem, what was before, what is expected.
type Case = (&'static str, Problem, Assignment, Assignment);

#[test]
fn repairs() {
    let in_zones = |zones: &[u64]| {
        let mut problem = equal(0, 1, 1, 3);
        let nodes = zones.iter().zip(1..);
        problem.nodes = nodes.map(|(zone, id)| node(id, *zone)).collect();
        problem
    };
    let one_zone = in_zones(&[0, 0, 0, 0]);
    let cordoned = |problem: Problem, id| with_state(problem, id, NodeState::Cordoned);
    let down = |problem: Problem, id| with_state(problem, id, NodeState::Down);
    let draining = |problem: Problem, id| with_state(problem, id, NodeState::Draining);
    let cases: [Case; 11] = [
        (
            "two replicas in a zone: a follower goes to the zone that has none",
            in_zones(&[1, 1, 2, 3]),
            assignment(&[(1, &[1, 2, 3], 1)]),
            assignment(&[(1, &[1, 3, 4], 1)]),
        ),
        (
            "of two in a zone, the one on the cordoned node stays",
            cordoned(in_zones(&[1, 1, 2, 3]), 2),
            assignment(&[(1, &[1, 2, 3], 3)]),
            assignment(&[(1, &[3, 2, 4], 3)]),
        ),
        (
            "unknown and doubled nodes are dropped, the rest stays",
            one_zone.clone(),
            assignment(&[(1, &[9, 4, 4, 3], 9)]),
            assignment(&[(1, &[3, 1, 4], 3)]),
        ),
        (
            "surplus leaves the node that is down",
            down(one_zone.clone(), 1),
            assignment(&[(1, &[1, 2, 3, 4], 1)]),
            assignment(&[(1, &[2, 3, 4], 2)]),
        ),
        (
            "surplus leaves the crowded zone, the leader stays",
            in_zones(&[1, 1, 2, 3]),
            assignment(&[(1, &[1, 2, 3, 4], 2)]),
            assignment(&[(1, &[2, 3, 4], 2)]),
        ),
        (
            "a replica that is down is replaced in its zone",
            down(in_zones(&[1, 1, 2, 3, 2]), 1),
            assignment(&[(1, &[1, 3, 4], 1)]),
            assignment(&[(1, &[3, 2, 4], 3)]),
        ),
        (
            "a replica that is to get its data does not lead while others have it",
            down(one_zone.clone(), 2),
            assignment(&[(1, &[2, 3, 4], 2)]),
            assignment(&[(1, &[3, 1, 4], 3)]),
        ),
        (
            "a draining node loses its replica and its leader",
            draining(one_zone.clone(), 2),
            assignment(&[(1, &[2, 3, 4], 2)]),
            assignment(&[(1, &[3, 1, 4], 3)]),
        ),
        (
            "a cordoned node keeps replica and leader",
            cordoned(one_zone.clone(), 2),
            assignment(&[(1, &[2, 3, 4], 2)]),
            assignment(&[(1, &[2, 3, 4], 2)]),
        ),
        (
            "a cordoned node takes nothing, but the last copy is led",
            cordoned(cordoned(in_zones(&[0, 0]), 1), 2),
            assignment(&[(1, &[2], 0)]),
            assignment(&[(1, &[2], 2)]),
        ),
        (
            "shards that are no more are forgotten",
            one_zone,
            assignment(&[(1, &[1, 2, 3], 1), (7, &[1, 2, 3], 1)]),
            assignment(&[(1, &[1, 2, 3], 1)]),
        ),
    ];
    for (name, problem, previous, expected) in cases {
        let solution = solved(&problem, &previous);
        check_hard(&problem, &previous, &solution);
        assert_eq!(solution.assignment, expected, "{name}");
    }
}

#[test]
fn what_cannot_be_satisfied_is_said() {
    let shortfall = |healthy, draining, down, reason| Shortfall {
        shard_id: ShardId(1),
        wanted: 3,
        healthy,
        draining,
        down,
        reason,
    };
    let whole = equal(3, 1, 1, 3);
    let placed = assignment(&[(1, &[1, 2, 3], 1)]);
    let mut full = equal(4, 1, 1, 3);
    full.nodes[3].capacity_bytes = 99;
    let mut limited = equal(4, 1, 1, 3);
    limited.constraints.replicas_per_node_max = 0;
    let mut all_draining = whole.clone();
    for node in &mut all_draining.nodes {
        node.state = NodeState::Draining;
    }
    let too_few = |active| ShortfallReason::TooFewNodes { active };
    let cases = [
        (
            "no nodes",
            equal(0, 1, 1, 3),
            assignment(&[(1, &[], 0)]),
            shortfall(0, 0, 0, too_few(0)),
        ),
        (
            "a replica on a node that is down stays when there is no other node",
            with_state(whole.clone(), 1, NodeState::Down),
            assignment(&[(1, &[2, 1, 3], 2)]),
            shortfall(2, 0, 1, too_few(2)),
        ),
        (
            "a draining node keeps what no other node can take, but does not lead",
            with_state(whole, 1, NodeState::Draining),
            assignment(&[(1, &[2, 1, 3], 2)]),
            shortfall(2, 1, 0, too_few(2)),
        ),
        (
            "all draining: nobody leads",
            all_draining,
            assignment(&[(1, &[1, 2, 3], 0)]),
            shortfall(0, 3, 0, too_few(0)),
        ),
        (
            "the other node has no room",
            with_state(full, 1, NodeState::Down),
            assignment(&[(1, &[2, 1, 3], 2)]),
            shortfall(
                2,
                0,
                1,
                ShortfallReason::NoCapacity {
                    size_bytes: 100,
                    free_bytes_max: 99,
                },
            ),
        ),
        (
            "the other node has as many replicas as it may",
            with_state(limited, 1, NodeState::Down),
            assignment(&[(1, &[2, 1, 3], 2)]),
            shortfall(2, 0, 1, ShortfallReason::TooManyReplicas { max: 0 }),
        ),
    ];
    for (name, problem, expected, shortfall) in cases {
        let previous = if problem.nodes.is_empty() {
            Assignment::default()
        } else {
            placed.clone()
        };
        let solution = solved(&problem, &previous);
        check_hard(&problem, &previous, &solution);
        assert_eq!(solution.assignment, expected, "{name}");
        assert_eq!(solution.shortfalls, [shortfall], "{name}");
    }
}

#[test]
fn bytes_come_before_load_and_load_before_numbers() {
    // One large shard against many small ones, one replica each, on two nodes.
    let mut problem = equal(2, 1, 0, 1);
    problem.shards = (2..=5).map(|id| shard(id, 25, 0)).collect();
    problem.shards.push(shard(1, 100, 0));
    let placed = first_placement(&problem);
    let counts: Vec<_> = held(&problem, &placed).into_values().collect();
    assert!(counts == [1, 4] || counts == [4, 1], "{counts:?}");
    for shard in &mut problem.shards {
        shard.load_per_second = shard.size_bytes;
        shard.size_bytes = 0;
    }
    let placed = first_placement(&problem);
    let counts: Vec<_> = held(&problem, &placed).into_values().collect();
    assert!(counts == [1, 4] || counts == [4, 1], "{counts:?}");
}

#[test]
fn nothing_is_balanced_while_a_node_is_down() {
    let crowded = assignment(&[(1, &[1, 2], 1), (2, &[1, 2], 1), (3, &[1, 2], 1)]);
    let problem = equal(4, 1, 3, 2);
    let down = with_state(problem.clone(), 4, NodeState::Down);
    assert_eq!(solved(&down, &crowded).assignment, crowded);
    let balanced = solved(&problem, &crowded).assignment;
    assert!(balanced.replicas_added_since(&crowded) >= 2);
}

#[test]
fn room_that_balance_makes_is_used_by_repair() {
    // Node 2 has room for the draining node's large shard only once a small one has left.
    let mut problem = with_state(equal(3, 1, 0, 1), 1, NodeState::Draining);
    problem.shards = vec![shard(1, 100, 0), shard(2, 30, 0), shard(3, 30, 0)];
    problem.nodes[1].capacity_bytes = 130;
    problem.nodes[2].capacity_bytes = 60;
    let previous = assignment(&[(1, &[1], 1), (2, &[2], 2), (3, &[2], 2)]);
    let solution = solved(&problem, &previous);
    assert_eq!(solution.shortfalls, []);
    assert_eq!(
        solution.assignment.shards[&ShardId(1)].replicas,
        [NodeId(2)]
    );
}

#[test]
fn nodes_with_little_room_swap() {
    // No single replica can move: neither node has room for one more.
    let mut problem = equal(2, 1, 0, 1);
    problem.shards = vec![
        shard(1, 60, 0),
        shard(2, 40, 0),
        shard(3, 30, 0),
        shard(4, 10, 0),
    ];
    for node in &mut problem.nodes {
        node.capacity_bytes = 100;
    }
    let previous = assignment(&[(1, &[1], 1), (2, &[1], 1), (3, &[2], 2), (4, &[2], 2)]);
    let after = solved(&problem, &previous).assignment;
    let bytes = |id: u64| -> u64 {
        let shards = problem.shards.iter();
        let here = shards.filter(|shard| after.shards[&shard.shard_id].replicas == [NodeId(id)]);
        here.map(|shard| shard.size_bytes).sum()
    };
    assert_eq!((bytes(1), bytes(2)), (70, 70));
}

/// Found by proptest: chains of leaders were looked for in the order in which the caller
/// had listed the replicas.
#[test]
fn leaders_do_not_depend_on_the_order_of_replicas() {
    let mut problem = equal(0, 1, 0, 5);
    let nodes = [
        (3, 1, 11),
        (4, 3, 58),
        (6, 2, 37),
        (7, 3, 50),
        (8, 3, 99),
        (9, 0, 99),
    ];
    problem.nodes = nodes
        .into_iter()
        .map(|(id, zone, capacity_bytes)| Node {
            capacity_bytes,
            ..node(id, zone)
        })
        .collect();
    problem.shards = [1, 4, 9, 12].map(|id| shard(id, 7, 7)).to_vec();
    problem.constraints = Constraints {
        replicas_per_node_max: 7,
        gain_percent_min: 19,
        ..Constraints::default()
    };
    let one = assignment(&[(4, &[6, 7, 8], 2), (9, &[6, 5], 0)]);
    let other = assignment(&[(4, &[8, 7, 6], 2), (9, &[5, 6], 0)]);
    assert_eq!(solved(&problem, &one), solved(&problem, &other));
}

/// The largest numbers there are, together: overflow checks are on in every profile.
#[test]
fn the_largest_numbers_do_not_overflow() {
    let mut problem = equal(NODES_MAX as u64, 7, 200, REPLICATION_FACTOR_MAX);
    for (at, node) in problem.nodes.iter_mut().enumerate() {
        node.weight = if at % 100 == 0 { WEIGHT_MAX } else { 1 };
    }
    for shard in &mut problem.shards {
        shard.size_bytes = u64::MAX;
        shard.load_per_second = u64::MAX;
    }
    problem.constraints.gain_percent_min = GAIN_PERCENT_MAX;
    let solution = solved(&problem, &Assignment::default());
    let counts: BTreeMap<_, _> = held(&problem, &solution.assignment);
    assert!(counts.values().all(|count| *count <= 1));
    for (problem, nodes) in [
        (equal(1, 1, 1, 1), 1),
        (equal(2, 2, 1, REPLICATION_FACTOR_MAX), 2),
    ] {
        let mut problem = problem;
        problem.shards[0].size_bytes = u64::MAX;
        problem.nodes[0].weight = WEIGHT_MAX;
        let placed = first_placement(&problem);
        assert_eq!(placed.shards[&ShardId(1)].replicas.len(), nodes);
    }
}

#[test]
fn leaders_are_in_their_zone_while_somebody_there_may_lead() {
    let mut problem = equal(6, 3, 12, 3);
    let anywhere = solved(&problem, &Assignment::default()).assignment;
    let zone = Zone("zone-1".to_owned());
    problem.constraints.leader_zone = zone.clone();
    let there: Vec<NodeId> = problem
        .nodes
        .iter()
        .filter(|node| node.zone == zone)
        .map(|node| node.node_id)
        .collect();
    let moved = solved(&problem, &anywhere).assignment;
    let leaders = |placed: &Assignment| -> Vec<NodeId> {
        let shards = placed.shards.values();
        shards.filter_map(|shard| shard.preferred_leader).collect()
    };
    let led = leaders(&moved);
    for node in &there {
        assert_eq!(led.iter().filter(|leader| *leader == node).count(), 6);
    }
    assert_eq!(
        moved.replicas_added_since(&anywhere),
        0,
        "only leaders change"
    );
    assert_eq!(solved(&problem, &moved).assignment, moved);
    // One of the two is down, then both are: first the other leads, then anybody.
    let one = with_state(problem, there[0].0, NodeState::Down);
    let other = solved(&one, &moved).assignment;
    assert!(leaders(&other).iter().all(|leader| *leader == there[1]));
    let none = with_state(one, there[1].0, NodeState::Down);
    let others = solved(&none, &other).assignment;
    assert_eq!(leaders(&others).len(), 12);
    assert!(
        leaders(&others)
            .iter()
            .all(|leader| !there.contains(leader))
    );
    assert_eq!(solved(&none, &others).assignment, others);
}

/// No node has room for what a drained one has; together they have.
#[test]
fn others_make_room_for_what_must_go_somewhere() {
    let mut problem = equal(3, 1, 0, 1);
    problem.shards = vec![
        shard(1, 6, 0),
        shard(2, 3, 0),
        shard(3, 3, 0),
        shard(4, 6, 0),
    ];
    for node in &mut problem.nodes {
        node.capacity_bytes = 10;
    }
    let before = assignment(&[(1, &[1], 1), (2, &[2], 2), (3, &[2], 2), (4, &[3], 3)]);
    for (id, state) in [(1, NodeState::Draining), (1, NodeState::Down)] {
        let problem = with_state(problem.clone(), id, state);
        let solution = solve(&problem, &before).expect("a problem");
        assert_eq!(solution.shortfalls, [], "{state:?}");
        check_hard(&problem, &before, &solution);
        let on = |shard: u32| solution.assignment.shards[&ShardId(shard)].replicas.clone();
        assert_eq!(on(1), [NodeId(2)]);
        assert_eq!(on(4), [NodeId(3)]);
        // One of the two small ones is enough.
        let mut small = [on(2), on(3)];
        small.sort();
        assert_eq!(small, [[NodeId(2)], [NodeId(3)]]);
        let again = solve(&problem, &solution.assignment).expect("a problem");
        assert_eq!(again.assignment, solution.assignment);
    }
    // Nothing goes anywhere for what does not fit then either.
    problem.nodes[1].capacity_bytes = 8;
    let problem = with_state(problem, 1, NodeState::Draining);
    let solution = solve(&problem, &before).expect("a problem");
    assert_eq!(solution.shortfalls.len(), 1);
    assert_eq!(solution.assignment.replicas_added_since(&before), 0);
}
