//! For any input: hard constraints, idempotence, independence of order, no panic.

use carillon_core::placement::{
    Assignment, Constraints, Node, NodeState, Placement, Problem, Shard, Zone, solve,
};
use carillon_core::{NodeId, ShardId};
use proptest::prelude::*;
use proptest::sample::subsequence;

use crate::cluster::solved;
use crate::hard::check_hard;

const NODES: usize = 9;
const SHARDS: usize = 12;

/// Any assignment of shards 1.. to nodes 1.., of which some may not exist: too few, too
/// many and doubled replicas, leaders elsewhere.
pub fn any_assignment(nodes: u64, shards: u32) -> impl Strategy<Value = Assignment> {
    let placement = (
        prop::collection::vec(1..=nodes, 0..=6),
        prop::option::of(1..=nodes),
    );
    let rows = prop::collection::btree_map(1..=shards, placement, 0..=shards as usize);
    rows.prop_map(|rows| Assignment {
        shards: rows
            .into_iter()
            .map(|(shard_id, (replicas, leader))| {
                let placement = Placement {
                    replicas: replicas.into_iter().map(NodeId).collect(),
                    preferred_leader: leader.map(NodeId),
                };
                (ShardId(shard_id), placement)
            })
            .collect(),
    })
}

fn any_state() -> impl Strategy<Value = NodeState> {
    prop_oneof![
        6 => Just(NodeState::Active),
        1 => Just(NodeState::Cordoned),
        1 => Just(NodeState::Draining),
        1 => Just(NodeState::Down),
    ]
}

pub fn any_node() -> impl Strategy<Value = Node> {
    let capacity = prop_oneof![2 => Just(u64::MAX), 1 => 0_u64..60];
    let weight = prop_oneof![3 => Just(1_u32), 1 => 1_u32..5];
    (0_u8..4, capacity, weight, any_state()).prop_map(|(zone, capacity_bytes, weight, state)| {
        Node {
            node_id: NodeId(0),
            zone: Zone(format!("zone-{zone}")),
            capacity_bytes,
            weight,
            state,
        }
    })
}

prop_compose! {
    fn any_problem()(
        ids in subsequence((1..=NODES as u64).collect::<Vec<_>>(), 0..=NODES),
        nodes in prop::collection::vec(any_node(), NODES),
        all_active in any::<bool>(),
        shard_ids in subsequence((1..=SHARDS as u32).collect::<Vec<_>>(), 0..=SHARDS),
        sizes in prop::collection::vec((0_u64..20, 0_u64..20), SHARDS),
        equal_sizes in any::<bool>(),
        replication_factor in 1_u32..=5,
        replicas_per_node_max in prop_oneof![3 => Just(1_000_u32), 1 => 0_u32..8],
        gain_percent_min in 0_u32..20,
    ) -> Problem {
        let nodes = ids.into_iter().zip(nodes);
        let nodes = nodes.map(|(id, mut node)| {
            node.node_id = NodeId(id);
            if all_active {
                node.state = NodeState::Active;
            }
            node
        });
        let shards = shard_ids.into_iter().zip(sizes);
        let shards = shards.map(|(id, (size_bytes, load_per_second))| Shard {
            shard_id: ShardId(id),
            size_bytes: if equal_sizes { 7 } else { size_bytes },
            load_per_second: if equal_sizes { 7 } else { load_per_second },
        });
        Problem {
            nodes: nodes.collect(),
            shards: shards.collect(),
            replication_factor,
            constraints: Constraints { replicas_per_node_max, gain_percent_min, ..Constraints::default() },
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6_000, ..ProptestConfig::default() })]

    #[test]
    fn hard_constraints_hold(
        problem in any_problem(),
        previous in any_assignment(NODES as u64 + 1, SHARDS as u32 + 1),
    ) {
        let solution = solved(&problem, &previous);
        check_hard(&problem, &previous, &solution);
    }

    #[test]
    fn solving_what_is_solved_changes_nothing(
        problem in any_problem(),
        previous in any_assignment(NODES as u64 + 1, SHARDS as u32 + 1),
    ) {
        let once = solved(&problem, &previous);
        let twice = solved(&problem, &once.assignment);
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn the_order_of_the_input_is_nothing(
        (problem, nodes, shards) in any_problem().prop_flat_map(|problem| {
            let nodes = Just(problem.nodes.clone()).prop_shuffle();
            let shards = Just(problem.shards.clone()).prop_shuffle();
            (Just(problem), nodes, shards)
        }),
        previous in any_assignment(NODES as u64 + 1, SHARDS as u32 + 1),
    ) {
        let mut shuffled = Problem { nodes, shards, ..problem.clone() };
        prop_assert_eq!(solved(&problem, &previous), solved(&shuffled, &previous));
        // Nor is the order in which a shard's replicas are listed.
        shuffled.nodes.reverse();
        let mut reversed = previous.clone();
        for placement in reversed.shards.values_mut() {
            placement.replicas.reverse();
        }
        prop_assert_eq!(solved(&problem, &previous), solved(&shuffled, &reversed));
    }

    #[test]
    fn no_numbers_make_it_panic(
        nodes in prop::collection::vec(
            (any::<u64>(), any::<u64>(), prop_oneof![any::<u32>(), 0_u32..3], any_state()), 0..6),
        shards in prop::collection::vec((any::<u32>(), any::<u64>(), any::<u64>()), 0..6),
        replication_factor in 0_u32..20,
        gain_percent_min in 0_u32..200,
        replicas_per_node_max in any::<u32>(),
    ) {
        let node = |(id, capacity_bytes, weight, state)| Node {
            node_id: NodeId(id), zone: Zone::default(), capacity_bytes, weight, state,
        };
        let shard = |(id, size_bytes, load_per_second)| Shard {
            shard_id: ShardId(id), size_bytes, load_per_second,
        };
        let problem = Problem {
            nodes: nodes.into_iter().map(node).collect(),
            shards: shards.into_iter().map(shard).collect(),
            replication_factor,
            constraints: Constraints { replicas_per_node_max, gain_percent_min, ..Constraints::default() },
        };
        if let Ok(solution) = solve(&problem, &Assignment::default()) {
            check_hard(&problem, &Assignment::default(), &solution);
        }
    }
}

prop_compose! {
    /// More nodes and zones than the solver looks at for each replica.
    fn any_large_problem()(
        zones in 1_u8..40,
        nodes in prop::collection::vec(any_node(), 40..120),
        sizes in prop::collection::vec((0_u64..20, 0_u64..20), 50..300),
        replication_factor in 1_u32..=5,
    ) -> Problem {
        let nodes = nodes.into_iter().zip(1..);
        let nodes = nodes.map(|(node, id)| Node {
            node_id: NodeId(id),
            zone: Zone(format!("zone-{}", id % u64::from(zones))),
            ..node
        });
        let shards = sizes.into_iter().zip(1..);
        let shards = shards.map(|((size_bytes, load_per_second), id)| Shard {
            shard_id: ShardId(id), size_bytes, load_per_second,
        });
        Problem {
            nodes: nodes.collect(),
            shards: shards.collect(),
            replication_factor,
            constraints: Constraints::default(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn large_problems_are_no_exception(
        problem in any_large_problem(),
        previous in any_assignment(120, 300),
    ) {
        let once = solved(&problem, &previous);
        check_hard(&problem, &previous, &once);
        prop_assert_eq!(&solved(&problem, &once.assignment), &once);
        // All nodes are back: repair, spreading and balance meet.
        let mut whole = problem;
        for node in &mut whole.nodes {
            node.state = NodeState::Active;
        }
        let after = solved(&whole, &once.assignment);
        check_hard(&whole, &once.assignment, &after);
        prop_assert_eq!(&solved(&whole, &after.assignment), &after);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// With a zone that is to lead, a second run changes nothing, and leaders are there where
    /// they can be.
    #[test]
    fn a_zone_that_leads_leads_all_that_it_can(
        mut problem in any_problem(),
        previous in any_assignment(12, 20),
        number in 0_u64..4,
    ) {
        let count = problem.nodes.len().max(1) as u64;
        let zone = problem.nodes.get((number % count) as usize);
        problem.constraints.leader_zone = zone.map(|node| node.zone.clone()).unwrap_or_default();
        let once = solved(&problem, &previous);
        check_hard(&problem, &previous, &once);
        prop_assert_eq!(&solved(&problem, &once.assignment), &once);
        if problem.constraints.leader_zone == Zone::default() {
            return Ok(());
        }
        let of = |id: &NodeId| problem.nodes.iter().find(|node| node.node_id == *id);
        let leads = |id: &NodeId| {
            of(id).is_some_and(|node| node.zone == problem.constraints.leader_zone)
        };
        for (shard_id, placement) in &once.assignment.shards {
            let active = |id: &&NodeId| of(id).is_some_and(|node| node.state == NodeState::Active);
            let mut may = placement.replicas.iter().filter(active);
            if may.any(leads) {
                let leader = placement.preferred_leader.as_ref();
                prop_assert!(leader.is_some_and(leads), "{} is led from elsewhere", shard_id);
            }
        }
    }
}
