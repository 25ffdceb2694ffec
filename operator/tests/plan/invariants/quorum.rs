//! Never are two replicas of one shard unavailable by the operator's doing: when it stops a
//! process, every other replica of its shards serves.

use carillon_operator::plan::MemberName;

use crate::world::World;

pub fn check(world: &mut World, member: &MemberName) {
    let pod = &world.pods[member];
    if !pod.running || world.desired.deletion.is_some() {
        return;
    }
    world.disruptions += 1;
    let Some(id) = world.claims.get(member).and_then(|claim| claim.data) else {
        return;
    };
    for (index, shard) in world.cluster.shards.iter().enumerate() {
        if !shard.contains(&id) {
            continue;
        }
        for other in shard.iter().filter(|other| **other != id) {
            assert!(
                world.serves(*other),
                "{member} is stopped while node {} of shard {index} does not serve\n{}",
                other.0,
                world.told()
            );
        }
    }
}
