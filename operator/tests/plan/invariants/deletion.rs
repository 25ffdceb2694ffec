//! An ImCluster that is deleted always goes, whatever is broken; with Retain all volumes stay, and
//! one of the same name goes on with them.

use carillon_crds::imcluster::DeletionPolicy;

use super::convergence;
use crate::world::World;

const TICKS_MAX: u64 = 120;

pub fn check(world: &mut World) {
    let policy = match world.rng.chance(50) {
        true => DeletionPolicy::Retain,
        false => DeletionPolicy::Delete,
    };
    let claims: Vec<_> = world
        .claims
        .values()
        .map(|claim| claim.uid.clone())
        .collect();
    for host in world.hosts.values_mut() {
        host.up = world.rng.chance(50);
        host.down_since_s = world.now_s;
    }
    world.note(format!("deleted with {policy:?}"));
    world.desired.deletion = Some(policy);
    let end = world.now_s + TICKS_MAX;
    while !world.finalized {
        assert!(world.now_s < end, "it does not end\n{}", world.told());
        world.tick();
    }
    if policy == DeletionPolicy::Delete {
        assert!(world.claims.values().all(|claim| claim.terminating));
        return;
    }
    let kept: Vec<_> = world
        .claims
        .values()
        .map(|claim| claim.uid.clone())
        .collect();
    assert_eq!(kept, claims, "Retain keeps all volumes");
    // It is made again, with another number of nodes, and its status is empty.
    let now_s = world.now_s;
    for host in world.hosts.values_mut() {
        host.up = true;
        host.down_since_s = now_s;
    }
    world.finalized = false;
    world.desired.deletion = None;
    world.status_id = None;
    world.desired.nodes = world.desired.replication_factor + world.rng.below(3) as u32;
    let last_id = world.cluster.last_id;
    convergence::check(world);
    let again: Vec<_> = world
        .claims
        .values()
        .map(|claim| claim.uid.clone())
        .collect();
    let old = again.iter().filter(|uid| claims.contains(uid)).count();
    assert!(
        old >= claims.len().min(world.desired.nodes as usize),
        "it goes on with the old volumes, not new ones; last id {last_id}\n{}",
        world.told()
    );
}
