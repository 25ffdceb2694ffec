//! A replica comes only to a disk that it fits on, unless an operator asks for it.

use carillon_core::ShardId;
use carillon_core::map::MoveReason;

use crate::world::{Host, World};

pub fn may_arrive(world: &World, host: &Host, shard_id: ShardId) {
    let running = world.state.moves.get(&shard_id);
    if running.is_some_and(|running| running.reason == MoveReason::Asked) {
        return;
    }
    let (free, size) = (world.disk_free_bytes(host), world.size_bytes(shard_id));
    assert!(
        size <= free,
        "shard {shard_id} of {size} bytes comes to {:?}, whose disk has {free} free",
        host.node_id
    );
}
