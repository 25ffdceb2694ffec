//! Against the best of all assignments, found by trying them all on small cases.
//!
//! The objective is computed here anew, plainly and in floating point, from what
//! `placement.rs` says it is.

use std::collections::BTreeMap;

use carillon_core::NodeId;
use carillon_core::placement::{Assignment, Node, Problem, Shard};
use proptest::prelude::*;

use crate::cluster::{node, shard, solved};
use crate::random::any_assignment;

/// How much bytes, load and number count.
const IMPORTANCE: [f64; 3] = [256.0, 16.0, 1.0];

type Sets = Vec<Vec<NodeId>>;

struct Objective<'a> {
    problem: &'a Problem,
    before: Sets,
    demands: Vec<[f64; 3]>,
}

impl<'a> Objective<'a> {
    fn new(problem: &'a Problem, previous: &Assignment) -> Self {
        let amounts = |shard: &Shard| [shard.size_bytes as f64, shard.load_per_second as f64, 1.0];
        let shards = problem.shards.iter();
        let demand = |shard: &Shard| {
            [0, 1, 2].map(|at| {
                let all = problem.shards.iter().map(|shard| amounts(shard)[at]);
                let all = all.sum::<f64>() * f64::from(problem.replication_factor);
                if all == 0.0 {
                    0.0
                } else {
                    amounts(shard)[at] / all
                }
            })
        };
        Objective {
            problem,
            before: sets(problem, previous),
            demands: shards.map(demand).collect(),
        }
    }

    fn of(&self, sets: &Sets) -> f64 {
        let nodes = &self.problem.nodes;
        let mut usage: BTreeMap<NodeId, [f64; 3]> = BTreeMap::new();
        let mut moves = 0.0;
        let percent = f64::from(self.problem.constraints.gain_percent_min);
        for ((set, before), demand) in sets.iter().zip(&self.before).zip(&self.demands) {
            for node in set {
                let usage = usage.entry(*node).or_default();
                for at in 0..3 {
                    usage[at] += demand[at];
                    if !before.contains(node) {
                        let price = 2.0 * percent / 100.0 / nodes.len() as f64;
                        moves += price * IMPORTANCE[at] * demand[at];
                    }
                }
            }
        }
        let mean = nodes.iter().map(|node| f64::from(node.weight)).sum::<f64>();
        let mean = mean / nodes.len() as f64;
        let of_node = |node: &Node| {
            let usage = usage.get(&node.node_id).copied().unwrap_or_default();
            let squares = usage.iter().zip(IMPORTANCE);
            let squares = squares.map(|(usage, by)| by * usage * usage);
            squares.sum::<f64>() * mean / f64::from(node.weight)
        };
        nodes.iter().map(of_node).sum::<f64>() + moves
    }

    /// The best of all assignments with full numbers and the most even zones.
    fn best(&self) -> f64 {
        let choices = best_spread_sets(self.problem);
        if choices.is_empty() {
            return 0.0;
        }
        let shards = self.problem.shards.len();
        let mut picks = vec![0; shards];
        let mut best = f64::INFINITY;
        loop {
            let sets: Sets = picks.iter().map(|pick| choices[*pick].clone()).collect();
            best = best.min(self.of(&sets));
            let Some(next) = picks.iter().position(|pick| *pick + 1 < choices.len()) else {
                return best;
            };
            picks[next] += 1;
            picks[..next].fill(0);
        }
    }
}

fn sets(problem: &Problem, assignment: &Assignment) -> Sets {
    let shards = problem.shards.iter();
    let set = |shard: &Shard| {
        let placement = assignment.shards.get(&shard.shard_id);
        placement.map_or(Vec::new(), |placement| placement.replicas.clone())
    };
    shards.map(set).collect()
}

/// All sets of as many nodes as there are replicas, of those the ones most evenly spread.
fn best_spread_sets(problem: &Problem) -> Vec<Vec<NodeId>> {
    let wanted = (problem.replication_factor as usize).min(problem.nodes.len());
    let mut all = Vec::new();
    for mask in 0_u32..1 << problem.nodes.len() {
        if mask.count_ones() as usize != wanted {
            continue;
        }
        let nodes = problem.nodes.iter().enumerate();
        let chosen: Vec<&Node> = nodes
            .filter(|(at, _)| mask >> at & 1 == 1)
            .map(|(_, node)| node)
            .collect();
        let crowd = |node: &&Node| {
            chosen
                .iter()
                .filter(|other| other.zone == node.zone)
                .count()
        };
        // Each node counts its zone's crowd: the sum of the squares of the zones' counts.
        let unevenness: usize = chosen.iter().map(crowd).sum();
        let set: Vec<NodeId> = chosen.iter().map(|node| node.node_id).collect();
        all.push((unevenness, set));
    }
    let best = all.iter().map(|(unevenness, _)| *unevenness).min();
    all.retain(|(unevenness, _)| Some(*unevenness) == best);
    all.into_iter().map(|(_, set)| set).collect()
}

prop_compose! {
    fn any_small_problem()(
        nodes in prop::collection::vec((0_u64..3, prop_oneof![3 => Just(1_u32), 1 => 1_u32..4]), 1..=4),
        shards in prop::collection::vec((0_u64..20, 0_u64..20), 0..=4),
        replication_factor in 1_u32..=3,
    ) -> Problem {
        let nodes = nodes.into_iter().enumerate();
        let nodes = nodes.map(|(at, (zone, weight))| Node { weight, ..node(at as u64 + 1, zone) });
        let shards = shards.into_iter().enumerate();
        let shards = shards.map(|(at, (size, load))| shard(at as u32 + 1, size, load));
        Problem {
            nodes: nodes.collect(),
            shards: shards.collect(),
            replication_factor,
            ..Problem::default()
        }
    }
}

fn ratio(problem: &Problem, previous: &Assignment) -> f64 {
    let solution = solved(problem, previous);
    let objective = Objective::new(problem, previous);
    let found = objective.of(&sets(problem, &solution.assignment));
    let best = objective.best();
    if best == 0.0 { 1.0 } else { found / best }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    /// Single moves and swaps end where three replicas would have to change places at once.
    /// In 400,000 cases 99.8 % were the optimum and the worst was 1.17 times it.
    #[test]
    fn a_first_placement_is_within_a_quarter_of_the_optimum(problem in any_small_problem()) {
        let ratio = ratio(&problem, &Assignment::default());
        prop_assert!(ratio <= 1.25, "{ratio}");
    }

    /// In 400,000 cases 99.5 % were the optimum and the worst was 1.23 times it.
    #[test]
    fn a_change_is_within_a_third_of_the_optimum(
        problem in any_small_problem(),
        previous in any_assignment(5, 5),
    ) {
        let ratio = ratio(&problem, &previous);
        prop_assert!(ratio <= 1.0 + 1.0 / 3.0, "{ratio}");
    }
}
