//! A shard never has fewer voters than its replication factor, and they are on different
//! nodes.

use std::collections::BTreeSet;

use crate::world::World;

pub fn check(world: &World) {
    let wanted = world.state.replication_factor as usize;
    for (shard, group) in &world.groups {
        for voters in std::iter::once(&group.committed.voters).chain(&group.committed.next) {
            let nodes: BTreeSet<_> = voters.iter().map(|voter| voter.node_id).collect();
            assert!(
                voters.len() >= wanted && nodes.len() == voters.len(),
                "shard {shard} has the voters {voters:?}"
            );
        }
    }
}
