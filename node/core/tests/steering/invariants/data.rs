//! No replica is deleted while its group counts on it. A learner that was added late, when
//! its move had been given up, is not counted on: it never votes, and is removed as a stray.

use carillon_core::ShardId;

use crate::group::ReplicaKey;
use crate::world::World;

pub fn may_delete(world: &World, shard: ShardId, replica: &ReplicaKey) {
    let Some(group) = world.groups.get(&shard) else {
        return;
    };
    for config in [&group.committed, group.effective()] {
        assert!(
            !config.votes(replica),
            "a voter of shard {shard} is deleted, {replica:?}: {group:?}"
        );
        assert!(
            !config.learners.contains(replica) || world.late_learners.contains(&replica.replica_id),
            "a learner of shard {shard} is deleted, {replica:?}: {group:?}"
        );
    }
}

/// A replica that was deleted never votes again.
pub fn check(world: &World) {
    for (shard, group) in &world.groups {
        for config in [&group.committed, group.effective()] {
            for voter in config.voters.iter().chain(config.next.iter().flatten()) {
                assert!(
                    !world.ids.is_deleted(voter.replica_id),
                    "a deleted replica votes in shard {shard}: {group:?}"
                );
            }
        }
    }
}
