//! How much a node has room for: its capacity, or what its disk takes if that is less. Keeps no
//! state.
//!
//! Invariant: a disk that is shared with others, or on which something else grows, only keeps
//! new replicas away; nothing leaves a node because of it, so that nothing goes to and fro.

use std::collections::BTreeMap;

use super::Planner;
use super::problem::{SIZE_STEP_BYTES, size_bytes};
use super::starts::Starts;
use crate::ids::{NodeId, ShardId};
use crate::map::{NodeInfo, ShardDescriptor};

/// Bytes of a disk that no replica gets which comes from elsewhere: the log and the state have to
/// go on. A node refuses snapshots that would take them.
pub const DISK_RESERVE_BYTES: u64 = 256 << 20;

impl Planner<'_> {
    /// What the disk has left for new replicas; none when it is not known.
    fn disk_left_bytes(&self, node: NodeId) -> Option<u64> {
        let seen = self.seen.nodes.get(&node)?;
        let free = seen.disk_free_bytes?;
        Some(free.saturating_sub(DISK_RESERVE_BYTES))
    }

    /// The disk takes no replica at all. One takes up to a step more than it counts as.
    pub(super) fn disk_is_full(&self, node: NodeId) -> bool {
        let left = self.disk_left_bytes(node);
        left.is_some_and(|left| left < SIZE_STEP_BYTES)
    }

    /// What the replicas on each node take up, as far as they are in the map.
    pub(super) fn held_bytes(&self) -> BTreeMap<NodeId, u64> {
        let mut held: BTreeMap<NodeId, u64> = BTreeMap::new();
        for shard in &self.state.map.shards {
            let size = size_bytes(self.seen.shards.get(&shard.shard_id));
            for replica in &shard.replicas {
                let held = held.entry(replica.node_id).or_default();
                *held = held.saturating_add(size);
            }
        }
        held
    }

    /// What the replicas of a node may take up that holds so much. What is on its way to it counts
    /// twice while it comes, so that there is less room than it seems, not more.
    pub(super) fn capacity_bytes(&self, node: &NodeInfo, held: u64) -> u64 {
        let Some(left) = self.disk_left_bytes(node.node_id) else {
            return node.capacity_bytes;
        };
        let left = (left - left % SIZE_STEP_BYTES).saturating_sub(SIZE_STEP_BYTES);
        node.capacity_bytes.min(held.saturating_add(left))
    }

    /// Why the node has no room for the shard beside all that it has or is to get.
    pub(super) fn no_room(
        &self,
        node: NodeId,
        shard_id: ShardId,
        starts: &Starts,
    ) -> Option<String> {
        let state = self.state;
        let info = state.map.node(node)?;
        let size = |id| size_bytes(self.seen.shards.get(&id));
        let holds = |shard: &&ShardDescriptor| {
            let id = shard.shard_id;
            id == shard_id || state.replica_for(id, node).is_some() || starts.goes_to(id, node)
        };
        let shards = state.map.shards.iter().filter(holds);
        let all: u128 = shards.map(|shard| u128::from(size(shard.shard_id))).sum();
        if all > u128::from(info.capacity_bytes) {
            return Some(format!(
                "node {node} has no room before others have left it"
            ));
        }
        let held = self.held_bytes().get(&node).copied().unwrap_or_default();
        let fits = !self.disk_is_full(node) && all <= u128::from(self.capacity_bytes(info, held));
        (!fits).then(|| {
            let mib = |bytes: u64| bytes >> 20;
            let left = self.disk_left_bytes(node).unwrap_or_default();
            format!(
                "the disk of node {node} has {} MiB left for replicas, the shard takes about {} MiB and others may be on their way; make room on it",
                mib(left),
                mib(size(shard_id)),
            )
        })
    }

    /// Which disks take nothing, behind what cannot be done; empty when none.
    pub(super) fn full_disks(&self) -> String {
        let nodes = self.state.map.nodes.iter().map(|node| node.node_id);
        let full: Vec<String> = nodes
            .filter(|node| self.disk_is_full(*node))
            .map(|node| node.to_string())
            .collect();
        if full.is_empty() {
            return String::new();
        }
        format!("; no room is on the disks of nodes {}", full.join(", "))
    }
}
