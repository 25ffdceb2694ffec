//! A volume is deleted only when the cluster has nothing on it, and enough others are left.

use carillon_crds::imcluster::DeletionPolicy;
use carillon_operator::plan::{MemberName, Uid};

use crate::world::World;

pub fn check(world: &World, member: &MemberName, uid: &Uid) {
    let Some(claim) = world.claims.get(member).filter(|claim| &claim.uid == uid) else {
        return;
    };
    match world.desired.deletion {
        Some(DeletionPolicy::Retain) => panic!("a volume is deleted in spite of Retain"),
        Some(DeletionPolicy::Delete) => return,
        None => {}
    }
    if let Some(id) = claim.data {
        assert_eq!(
            world.cluster.replicas(id),
            0,
            "the volume of {member} is deleted with replicas on it\n{}",
            world.told()
        );
    }
}
