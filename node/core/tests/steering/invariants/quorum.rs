//! Every group keeps a quorum of disks that were not lost and have the group's data: it
//! serves again once their hosts are back.

use carillon_core::map::META_SHARD;

use crate::world::World;

pub fn check(world: &World) {
    for (shard, group) in &world.groups {
        for config in [&group.committed, group.effective()] {
            assert!(
                config.quorum(|replica| world.survives(*shard, replica)),
                "shard {shard} has lost its quorum: {group:?}"
            );
        }
    }
    let survives = |replica: &_| world.survives(META_SHARD, replica);
    assert!(
        world.meta.committed.quorum(survives),
        "the meta group has lost its quorum: {:?}",
        world.meta
    );
}
