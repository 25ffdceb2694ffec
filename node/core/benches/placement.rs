//! How long the placement solver takes on a large cluster, and what it makes of it.
//!
//! `cargo bench -p carillon-core --bench placement`. Prints a table: the best and the worst
//! of several runs, how many replicas and leaders move, and how uneven bytes, replicas and
//! leaders are, as the largest node's share of the mean in percent.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use carillon_core::placement::{
    Assignment, Constraints, Node, NodeState, Problem, Shard, Zone, solve,
};
use carillon_core::{NodeId, ShardId};

const NODES: u64 = 1_000;
const SHARDS: u32 = 10_000;
const ZONES: u64 = 3;
const RUNS: usize = 5;
const GIB: u64 = 1 << 30;

fn main() {
    println!("{NODES} nodes, {SHARDS} shards, 3 replicas, {ZONES} zones; best of {RUNS} runs\n");
    println!(
        "{:<26} {:>8} {:>8} {:>7} {:>8} {:>8} {:>8} {:>8}",
        "", "best ms", "worst ms", "moved", "leaders", "bytes %", "count %", "led %"
    );
    for (sizes, varied) in [("equal", false), ("varied", true)] {
        let whole = problem(NODES, varied);
        let empty = Assignment::default();
        let placed = measure(&format!("{sizes}: from empty"), &whole, &empty);
        measure(&format!("{sizes}: nothing changed"), &whole, &placed);
        let mut lost = whole.clone();
        lost.nodes[NODES as usize / 2].state = NodeState::Down;
        measure(&format!("{sizes}: one node lost"), &lost, &placed);
        let mut draining = whole.clone();
        draining.nodes[NODES as usize / 2].state = NodeState::Draining;
        measure(&format!("{sizes}: one node drained"), &draining, &placed);
        let added = problem(NODES + 10, varied);
        measure(&format!("{sizes}: ten nodes added"), &added, &placed);
        let mut one_zone = whole.clone();
        for node in &mut one_zone.nodes {
            node.zone = Zone::default();
        }
        measure(&format!("{sizes}: empty, one zone"), &one_zone, &empty);
        measure(
            &format!("{sizes}: from three nodes"),
            &whole,
            &on_three_nodes(&whole),
        );
    }
}

fn problem(nodes: u64, varied: bool) -> Problem {
    let node = |id| Node {
        node_id: NodeId(id),
        zone: Zone(format!("zone-{}", id % ZONES)),
        capacity_bytes: 1_000 * GIB,
        weight: 100,
        state: NodeState::Active,
    };
    // A fixed sequence of numbers that looks like sizes: 1 to 16 GiB, and loads that do not
    // follow the sizes.
    let mut number = 1_u64;
    let mut next = |below: u64| {
        number = number
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (number >> 33) % below
    };
    let shard = |id| Shard {
        shard_id: ShardId(id),
        size_bytes: if varied {
            GIB + next(15 * GIB)
        } else {
            4 * GIB
        },
        load_per_second: if varied { next(2_000) } else { 500 },
    };
    Problem {
        nodes: (1..=nodes).map(node).collect(),
        shards: (1..=SHARDS).map(shard).collect(),
        replication_factor: 3,
        constraints: Constraints::default(),
    }
}

fn on_three_nodes(problem: &Problem) -> Assignment {
    let mut three = problem.clone();
    three.nodes.truncate(3);
    for node in &mut three.nodes {
        node.capacity_bytes = u64::MAX;
    }
    let placed = solve(&three, &Assignment::default());
    placed.expect("the problem is one").assignment
}

fn measure(name: &str, problem: &Problem, previous: &Assignment) -> Assignment {
    let mut times = Vec::new();
    let mut assignment = Assignment::default();
    for _ in 0..RUNS {
        let started = Instant::now();
        let solution = solve(problem, previous).expect("the problem is one");
        times.push(started.elapsed());
        assert!(solution.shortfalls.is_empty(), "{name}");
        assignment = solution.assignment;
    }
    let milliseconds = |time: Option<&Duration>| time.map_or(0.0, Duration::as_secs_f64) * 1e3;
    println!(
        "{name:<26} {:>8.0} {:>8.0} {:>7} {:>8} {:>8.1} {:>8.1} {:>8.1}",
        milliseconds(times.iter().min()),
        milliseconds(times.iter().max()),
        assignment.replicas_added_since(previous),
        leaders_changed(&assignment, previous),
        largest_percent(problem, &assignment, |shard, _| shard.size_bytes),
        largest_percent(problem, &assignment, |_, _| 1),
        largest_percent(problem, &assignment, |_, leads| u64::from(leads)),
    );
    assignment
}

fn leaders_changed(assignment: &Assignment, previous: &Assignment) -> usize {
    let shards = assignment.shards.iter();
    let changed = shards.filter(|(shard_id, placement)| {
        let before = previous.shards.get(shard_id);
        before.and_then(|before| before.preferred_leader) != placement.preferred_leader
    });
    changed.count()
}

/// What the node with most has, in percent of the mean of active nodes.
fn largest_percent(
    problem: &Problem,
    assignment: &Assignment,
    amount: impl Fn(&Shard, bool) -> u64,
) -> f64 {
    let mut amounts = BTreeMap::<NodeId, u64>::new();
    for shard in &problem.shards {
        let placement = &assignment.shards[&shard.shard_id];
        for node in &placement.replicas {
            let leads = placement.preferred_leader == Some(*node);
            *amounts.entry(*node).or_default() += amount(shard, leads);
        }
    }
    let nodes = problem.nodes.iter();
    let active = nodes.filter(|node| node.state == NodeState::Active).count();
    let mean = amounts.values().sum::<u64>() as f64 / active as f64;
    amounts
        .values()
        .max()
        .map_or(0.0, |most| *most as f64 / mean * 100.0)
}
