//! The steering of a cluster: random commands on the meta group's state, and a simulation of
//! whole clusters under faults. `plan`, `apply_meta` and `solve` are real, the Raft groups,
//! nodes and operators are models.
//!
//! Each seed is a cluster. `CARILLON_TEST_SEED=n` runs one and prints what happens.

mod cases;
mod commands;
mod faults;
mod group;
mod invariants;
mod merge_cases;
mod merging;
mod recovery;
mod rng;
mod room_cases;
mod version_cases;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use world::World;

const SEEDS: u64 = 6_000;
/// Ticks with faults.
const TICKS: u64 = 160;

/// What was done in the end.
#[derive(Clone, Copy, Default)]
struct Finished {
    moves: u64,
    merges: u64,
}

impl Finished {
    fn and(self, other: Finished) -> Finished {
        Finished {
            moves: self.moves + other.moves,
            merges: self.merges + other.merges,
        }
    }
}

fn simulate(seed: u64, tracing: bool) -> Finished {
    let mut world = World::new(seed, tracing);
    for _ in 0..TICKS {
        world.disturb();
        world.tick();
    }
    world.calm_down();
    invariants::convergence::check(&mut world);
    Finished {
        moves: world.finished_moves,
        merges: world.finished_merges,
    }
}

fn range(seeds: impl Iterator<Item = u64>) -> Finished {
    let run = |seed| {
        catch_unwind(AssertUnwindSafe(|| simulate(seed, false))).unwrap_or_else(|_| {
            panic!("the cluster of seed {seed} failed; run it with CARILLON_TEST_SEED={seed}")
        })
    };
    seeds.map(run).fold(Finished::default(), Finished::and)
}

#[test]
fn clusters_survive_faults_and_come_to_rest() {
    if let Ok(seed) = std::env::var("CARILLON_TEST_SEED") {
        simulate(seed.parse().expect("a seed is a number"), true);
        return;
    }
    let done = std::thread::scope(|scope| {
        let halves = [0, 1].map(|half| scope.spawn(move || range((half..SEEDS).step_by(2))));
        halves
            .into_iter()
            .map(|half| half.join().expect("a seed failed"))
            .fold(Finished::default(), Finished::and)
    });
    let Finished { moves, merges } = done;
    // The faults are worth nothing when nothing moves.
    assert!(moves > SEEDS, "only {moves} moves were finished");
    assert!(merges > SEEDS / 4, "only {merges} merges were finished");
}
