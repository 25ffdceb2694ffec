//! Once the faults end, all becomes as wanted, and then nothing is done any more.

use carillon_operator::plan::{Standing, plan};

use crate::world::World;

/// Ticks that it may take.
const TICKS_MAX: u64 = 2_500;
/// Ticks without a step until it counts as done.
const QUIET_TICKS: u64 = 12;

pub fn check(world: &mut World) {
    let end = world.now_s + TICKS_MAX;
    let mut quiet = 0;
    while quiet < QUIET_TICKS {
        let planned = plan(&world.desired, &world.observe());
        assert!(
            world.now_s < end,
            "it does not come to rest; the last plan: {planned:#?}\n{}\n{:#?}",
            world.told(),
            world.observe()
        );
        quiet = if planned.is_empty() { quiet + 1 } else { 0 };
        world.tick();
    }
    as_wanted(world);
}

fn as_wanted(world: &World) {
    let desired = &world.desired;
    let nodes = desired.nodes as usize;
    assert_eq!(world.pods.len(), nodes, "Pods: {:?}", world.pods.keys());
    assert_eq!(
        world.claims.len(),
        nodes,
        "claims: {:?}",
        world.claims.keys()
    );
    assert_eq!(world.cluster.nodes.len(), nodes, "nodes of the cluster");
    for (name, pod) in &world.pods {
        assert_eq!(pod.revision, desired.revision, "{name}");
        assert!(pod.ready_since_s.is_some(), "{name} is not ready");
    }
    for (name, claim) in &world.claims {
        assert!(claim.capacity_bytes >= Some(desired.volume_bytes), "{name}");
        assert!(!claim.released && !claim.terminating, "{name}");
    }
    for (id, node) in &world.cluster.nodes {
        assert_eq!(node.standing, Standing::Active, "node {}", id.0);
    }
    for shard in &world.cluster.shards {
        let serving = shard.iter().filter(|id| world.serves(**id)).count();
        assert_eq!(serving, desired.replication_factor as usize);
    }
}
