//! `plan` against a simulated world: Kubernetes with its delays, hosts that die, volumes that are
//! lost, people who edit, stale reads, and an operator that stops between any two steps.
//!
//! A failure names its seed. `CARILLON_SEED=7 cargo test -p carillon-operator --test plan` runs
//! that one alone.

mod cases;
mod cluster;
mod faults;
mod invariants;
mod kubernetes;
mod operator;
#[path = "../../../node/core/tests/steering/rng.rs"]
mod rng;
mod world;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use world::{Lies, World};

/// Worlds of one run.
const SEEDS: u64 = 3_000;
/// Ticks in which things go wrong.
const TROUBLED_TICKS: u64 = 400;

fn run(seed: u64, lies: Lies) -> u64 {
    let mut world = World::new(seed, lies);
    while world.now_s < TROUBLED_TICKS {
        faults::happen(&mut world);
        world.tick();
    }
    faults::end(&mut world);
    invariants::convergence::check(&mut world);
    if world.rng.chance(25) {
        invariants::deletion::check(&mut world);
    }
    world.disruptions
}

fn seeds() -> Vec<u64> {
    match std::env::var("CARILLON_SEED") {
        Ok(seed) => vec![seed.parse().expect("CARILLON_SEED is a number")],
        Err(_) => (0..SEEDS).collect(),
    }
}

#[test]
fn the_world_becomes_as_wanted_and_nothing_breaks_on_the_way() {
    let mut disruptions = 0;
    for seed in seeds() {
        match catch_unwind(AssertUnwindSafe(|| run(seed, Lies::None))) {
            Ok(some) => disruptions += some,
            Err(_) => panic!("seed {seed} failed; the reason is above"),
        }
    }
    println!("{disruptions} disruptions");
    let all = std::env::var("CARILLON_SEED").is_err();
    assert!(
        !all || disruptions > SEEDS,
        "hardly anything was disrupted: the runs show nothing"
    );
}

thread_local! {
    /// Panics of this thread are expected, and are not told.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// The invariants are worth something only if a wrong plan breaks them.
fn is_found(lies: Lies) {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !QUIET.get() {
            hook(panic);
        }
    }));
    QUIET.set(true);
    let found = (0..300).any(|seed| catch_unwind(|| run(seed, lies)).is_err());
    QUIET.set(false);
    assert!(found, "{lies:?}: no run noticed");
}

#[test]
fn a_plan_that_does_not_wait_for_catching_up_is_found() {
    is_found(Lies::AllHaveCaughtUp);
}

#[test]
fn a_plan_that_does_not_wait_for_drains_is_found() {
    is_found(Lies::AllIsMovedAway);
}

#[test]
fn a_plan_made_of_old_reads_is_found() {
    is_found(Lies::NothingIsReadAgain);
}
