//! No shard is taken over before every node keeps what it is frozen with; none is frozen without
//! a merge that will thaw it or take it over.

use carillon_core::ShardId;
use carillon_core::merging::MergeId;

use crate::group::ReplicaKey;
use crate::world::World;

/// A replica of the group that takes over `goes` has all of it beside it.
pub fn may_take_over(world: &World, member: &ReplicaKey, goes: ShardId, merge_id: MergeId) {
    let host = world.host(member.node_id).expect("a member has a host");
    if host.gone {
        return;
    }
    let mut replicas = host.replicas.iter().filter(|(shard, _)| *shard == goes);
    let kept = replicas.any(|(_, replica)| host.kept_frozen.get(replica) == Some(&merge_id));
    assert!(
        kept,
        "{member:?} takes over shard {goes}, which its node does not keep"
    );
}

pub fn check(world: &World) {
    for (shard, group) in &world.groups {
        if let Some(merge_id) = group.mark.frozen_by {
            let merge = world.state.merge(merge_id);
            assert!(
                merge.is_some_and(|merge| merge.absorbed_shard_id == *shard),
                "shard {shard} is frozen by merge {merge_id}, which does not run"
            );
        }
    }
}
