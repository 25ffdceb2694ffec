//! Nobody is asked to leave who is needed: there stay as many as a shard has replicas.

use carillon_operator::plan::{NodeId, Standing};

use crate::operator::is_removal;
use crate::world::World;

pub fn check(world: &World, node: NodeId, standing: Standing) {
    if !is_removal(standing) {
        return;
    }
    let others = world.cluster.nodes.iter().filter(|(id, other)| {
        **id != node
            && !matches!(
                other.standing,
                Standing::Lost | Standing::DrainingForRemoval
            )
    });
    assert!(
        others.count() >= world.desired.replication_factor as usize,
        "node {} is asked to leave and is needed\n{}",
        node.0,
        world.told()
    );
}
