//! A replica's number is of one replica, and is never used again once it is gone.

use std::collections::BTreeSet;

use carillon_core::ReplicaId;

use crate::world::World;

#[derive(Default)]
pub struct Ids {
    deleted: BTreeSet<ReplicaId>,
}

impl Ids {
    pub fn created(&mut self, replica: ReplicaId) {
        assert!(
            !self.deleted.contains(&replica),
            "replica {replica} is made again"
        );
    }

    pub fn is_deleted(&self, replica: ReplicaId) -> bool {
        self.deleted.contains(&replica)
    }

    pub fn deleted(&mut self, replica: ReplicaId) {
        self.deleted.insert(replica);
    }
}

pub fn check(world: &World) {
    let mut seen = BTreeSet::new();
    for host in &world.hosts {
        for (_, replica) in &host.replicas {
            assert!(seen.insert(*replica), "replica {replica} is on two hosts");
            assert!(*replica < world.state.next_replica_id);
        }
    }
}
