//! What must hold in every tick, one property a file.

pub mod convergence;
pub mod data;
pub mod disks;
pub mod ids;
pub mod merges;
pub mod quorum;
pub mod replication;
pub mod state;

use crate::world::World;

pub fn check(world: &World) {
    state::check_invariants(&world.state);
    quorum::check(world);
    replication::check(world);
    data::check(world);
    ids::check(world);
    merges::check(world);
}
