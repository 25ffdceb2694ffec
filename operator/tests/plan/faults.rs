//! What goes wrong, and what people do meanwhile. Data is lost only where the cluster can bear it:
//! one volume at a time, while everything else is whole.

use carillon_operator::plan::{HostName, MemberName, Revision, Standing};

use crate::kubernetes::Host;
use crate::world::World;

/// Hosts that there are at least.
const HOSTS_MIN: usize = 5;

pub fn happen(world: &mut World) {
    // While a volume is being taken away by hand, the cluster bears no second loss.
    let fragile = world.claims.values().any(|claim| claim.terminating);
    match world.rng.below(400) {
        8..=14 | 25..=32 if fragile => {}
        0..=7 => edit(world),
        8..=11 => delete_pod(world),
        12..=14 => host_dies(world),
        15..=24 => host_comes_back(world),
        25 => volume_is_deleted(world),
        26 => host_is_removed(world),
        27..=28 => pod_ends(world),
        29..=31 => container_is_started_again(world),
        32 => drained_by_hand(world),
        _ => {}
    }
}

/// The faults end: everything works, and the spec is one that can be reached.
pub fn end(world: &mut World) {
    let now_s = world.now_s;
    for host in world.hosts.values_mut() {
        host.up = true;
        host.down_since_s = now_s;
    }
    let number = world.rng.below(1_000);
    world.desired.revision = Revision(format!("good-end-{number}"));
    world.desired.paused = false;
    world.desired.roll.paused = false;
    world.desired.replacement.at_once = 1;
    world.note("the faults end".to_owned());
}

fn edit(world: &mut World) {
    let number = world.rng.below(1_000);
    let factor = world.desired.replication_factor;
    match world.rng.below(9) {
        0 | 1 => world.desired.nodes = factor + world.rng.below(4) as u32,
        2 | 3 => world.desired.revision = Revision(format!("good-{number}")),
        4 => world.desired.revision = Revision(format!("bad-{number}")),
        5 => {
            let some = MemberName::new("chat", world.rng.below(6) as u32);
            world.desired.candidates = [some].into();
        }
        6 => world.desired.roll.paused = world.rng.chance(40),
        7 => world.desired.volume_bytes += 1 << 30,
        _ => {
            world.desired.paused = world.rng.chance(20);
            world.desired.replacement.at_once = world.rng.below(3) as u32;
        }
    }
    let spec = format!(
        "edit: {} nodes, {}, candidates {:?}, roll paused {}, paused {}",
        world.desired.nodes,
        world.desired.revision.0,
        world.desired.candidates,
        world.desired.roll.paused,
        world.desired.paused
    );
    world.note(spec);
}

fn some_pod(world: &mut World) -> Option<MemberName> {
    let names: Vec<MemberName> = world.pods.keys().cloned().collect();
    let index = world.rng.below(names.len() as u64) as usize;
    names.get(index).cloned()
}

fn delete_pod(world: &mut World) {
    let Some(name) = some_pod(world) else { return };
    world.note(format!("somebody deletes the Pod {name}"));
    let gone_at_s = world.now_s + 1;
    if let Some(pod) = world.pods.get_mut(&name) {
        pod.gone_at_s.get_or_insert(gone_at_s);
        pod.running = false;
        pod.ready_since_s = None;
    }
}

fn some_host(world: &mut World, up: bool) -> Option<HostName> {
    let hosts = world.hosts.iter().filter(|(_, host)| host.up == up);
    let names: Vec<HostName> = hosts.map(|(name, _)| name.clone()).collect();
    let index = world.rng.below(names.len() as u64) as usize;
    names.get(index).cloned()
}

fn host_dies(world: &mut World) {
    let Some(name) = some_host(world, true) else {
        return;
    };
    world.note(format!("{} dies", name.0));
    let now_s = world.now_s;
    if let Some(host) = world.hosts.get_mut(&name) {
        host.up = false;
        host.down_since_s = now_s;
    }
}

fn host_comes_back(world: &mut World) {
    let Some(name) = some_host(world, false) else {
        return;
    };
    world.note(format!("{} comes back", name.0));
    if let Some(host) = world.hosts.get_mut(&name) {
        host.up = true;
    }
}

/// Every shard has all its replicas, and they serve; nobody is on its way out.
fn whole(world: &World) -> bool {
    let factor = world.desired.replication_factor as usize;
    factor > 1
        && world.cluster.made
        && world
            .cluster
            .nodes
            .values()
            .all(|node| matches!(node.standing, Standing::Active | Standing::Cordoned))
        && world
            .cluster
            .shards
            .iter()
            .all(|shard| shard.iter().filter(|id| world.serves(**id)).count() == factor)
        && world.hosts.values().all(|host| host.up)
        && world.claims.values().all(|claim| !claim.terminating)
}

fn volume_is_deleted(world: &mut World) {
    if !whole(world) {
        return;
    }
    let Some(name) = some_pod(world) else { return };
    world.note(format!("somebody deletes the volume of {name}"));
    let with_pod = world.rng.chance(50);
    if let Some(claim) = world.claims.get_mut(&name) {
        claim.terminating = true;
    }
    let gone_at_s = world.now_s + 1;
    if let Some(pod) = world.pods.get_mut(&name).filter(|_| with_pod) {
        pod.gone_at_s.get_or_insert(gone_at_s);
        pod.running = false;
    }
}

/// With all volumes that are in it; another one takes its place.
fn host_is_removed(world: &mut World) {
    if !whole(world) || world.hosts.len() <= HOSTS_MIN {
        return;
    }
    let Some(name) = some_host(world, true) else {
        return;
    };
    let volumes = world.claims.values();
    let hit = volumes
        .filter(|claim| claim.pinned.as_ref() == Some(&name))
        .count();
    if hit > 1 {
        return;
    }
    world.note(format!("{} is removed", name.0));
    world.hosts.remove(&name);
    let new = HostName(format!("new-{}", world.now_s));
    let host = Host {
        up: true,
        down_since_s: 0,
    };
    world.hosts.insert(new, host);
}

fn pod_ends(world: &mut World) {
    let Some(name) = some_pod(world) else { return };
    world.note(format!("{name} is evicted by its kubelet"));
    if let Some(pod) = world.pods.get_mut(&name) {
        pod.ended = true;
    }
}

fn container_is_started_again(world: &mut World) {
    let Some(name) = some_pod(world) else { return };
    world.note(format!("the container of {name} ends"));
    let starts_at_s = world.now_s + 2;
    if let Some(pod) = world.pods.get_mut(&name) {
        pod.running = false;
        pod.restarts += 1;
        pod.starts_at_s = starts_at_s;
        pod.ready_since_s = None;
    }
}

fn drained_by_hand(world: &mut World) {
    let ids: Vec<_> = world.cluster.nodes.keys().copied().collect();
    let removal = world.rng.chance(50);
    let standing = match removal {
        true => Standing::DrainingForRemoval,
        false => Standing::DrainingForRestart,
    };
    if let Some(id) = world.rng.pick(&ids) {
        world.note(format!("somebody drains node {}: {standing:?}", id.0));
        world.set_standing(id, standing, false);
    }
}
