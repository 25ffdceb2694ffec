//! The cluster's map, and the state machine of the meta group that keeps it.
//!
//! The map says which slots a shard has and which nodes hold its replicas. The meta group
//! owns it; everyone else has a copy with an [`Epoch`]. Invariants: the shards' ranges
//! cover every slot once, in order; a shard's replicas are on different nodes; replica ids
//! are never used again; the epoch grows with every change.

mod codec;
mod meta;

use std::collections::BTreeMap;

use thiserror::Error;

pub use self::meta::{MetaCommand, MetaRefusal, MetaReply, MetaState, apply_meta};
use crate::ids::{Epoch, MessageId, NodeId, ReplicaId, SLOTS, ShardId, Slot, SlotRange};
use crate::placement::{
    Assignment, Constraints, Node, NodeState, PROBLEM_SHARDS_MAX, Placement, Problem,
    REPLICATION_FACTOR_MAX, Shard, Zone, solve,
};

/// The largest number of shards: message ids have 12 bits for the shard, and 0 is the
/// meta group.
pub const SHARDS_MAX: u32 = MessageId::SHARD_MAX;
/// The largest number of nodes.
pub const NODES_MAX: usize = 1024;

const _: () = assert!(SHARDS_MAX as usize <= PROBLEM_SHARDS_MAX);

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its number.
    pub node_id: NodeId,
    /// What it made up when its disk was empty: another disk has another identity.
    pub identity: String,
    /// Where clients reach it, `host:port`.
    pub client_address: String,
    /// Where other nodes reach it, `host:port`.
    pub peer_address: String,
}

/// A shard's copy on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Never used again once it is gone.
    pub replica_id: ReplicaId,
    /// Where it is.
    pub node_id: NodeId,
}

/// A shard: its slots and where its replicas are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardDescriptor {
    /// Its number.
    pub shard_id: ShardId,
    /// Its slots.
    pub slots: SlotRange,
    /// Its replicas, each on another node; the preferred leader's first.
    pub replicas: Vec<Replica>,
    /// The node that is to lead it while it is healthy.
    pub preferred_leader: NodeId,
}

impl ShardDescriptor {
    /// The replica on `node`.
    pub fn replica_on(&self, node: NodeId) -> Option<Replica> {
        let mut replicas = self.replicas.iter();
        replicas.find(|replica| replica.node_id == node).copied()
    }
}

/// Which shard has a slot, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardMap {
    /// Grows with every change; 0 before there is a cluster.
    pub epoch: Epoch,
    /// By slots, covering all of them; empty before there is a cluster.
    pub shards: Vec<ShardDescriptor>,
    /// By number.
    pub nodes: Vec<NodeInfo>,
}

impl ShardMap {
    /// The shard that has `slot`; none before there is a cluster.
    #[inline]
    pub fn shard_of(&self, slot: Slot) -> Option<&ShardDescriptor> {
        let at = self.shards.partition_point(|shard| shard.slots.last < slot);
        let shard = self.shards.get(at)?;
        shard.slots.contains(slot).then_some(shard)
    }

    /// The shard of this number.
    pub fn shard(&self, shard_id: ShardId) -> Option<&ShardDescriptor> {
        self.shards.iter().find(|shard| shard.shard_id == shard_id)
    }

    /// The node of this number.
    pub fn node(&self, node_id: NodeId) -> Option<&NodeInfo> {
        let at = self
            .nodes
            .binary_search_by_key(&node_id, |node| node.node_id);
        at.ok().map(|at| &self.nodes[at])
    }
}

/// Why there is no map for what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MapError {
    /// No node was given.
    #[error("the cluster has no nodes; list at least one")]
    NoNodes,
    /// Too many nodes.
    #[error("the cluster would have {actual} nodes; at most {max} are allowed")]
    TooManyNodes {
        /// The limit.
        max: usize,
        /// How many were given.
        actual: usize,
    },
    /// One number for two nodes.
    #[error("node {node_id} is listed twice; give every node a number of its own")]
    DuplicateNode {
        /// The number.
        node_id: NodeId,
    },
    /// No shard, or too many.
    #[error("{actual} shards are not possible; choose from 1 to {max}")]
    ShardsOutOfRange {
        /// The limit.
        max: u32,
        /// How many were asked for.
        actual: u32,
    },
    /// No replica, more than there are nodes for, or too many.
    #[error(
        "{actual} replicas of a shard are not possible; choose from 1 to {nodes}: as many as there are nodes, and at most {max}",
        max = REPLICATION_FACTOR_MAX
    )]
    ReplicationOutOfRange {
        /// How many are possible: the number of nodes, or the limit.
        nodes: usize,
        /// How many were asked for.
        actual: u32,
    },
}

/// The first map of a cluster: slots in equal ranges, replicas and preferred leaders on
/// all nodes as evenly as the numbers allow. Depends on nothing but its arguments, and not
/// on the order of `nodes`. Shards count from 1, replica ids too.
///
/// # Errors
/// [`MapError`] when the numbers do not fit together.
pub fn initial_map(
    nodes: &[NodeInfo],
    shards: u32,
    replication_factor: u32,
) -> Result<ShardMap, MapError> {
    let mut nodes = nodes.to_vec();
    nodes.sort_by_key(|node| node.node_id);
    check(&nodes, shards, replication_factor)?;
    let mut next_replica_id = 1;
    let mut descriptors = Vec::with_capacity(shards as usize);
    for (shard_id, placement) in first_placement(&nodes, shards, replication_factor) {
        let replica = |node_id: &NodeId| {
            let replica_id = ReplicaId(next_replica_id);
            next_replica_id += 1;
            Replica {
                replica_id,
                node_id: *node_id,
            }
        };
        let replicas: Vec<Replica> = placement.replicas.iter().map(replica).collect();
        descriptors.push(ShardDescriptor {
            shard_id,
            slots: equal_range(shard_id.0 - 1, shards),
            preferred_leader: placement.preferred_leader.expect("active nodes may lead"),
            replicas,
        });
    }
    Ok(ShardMap {
        epoch: Epoch(1),
        shards: descriptors,
        nodes,
    })
}

fn check(nodes: &[NodeInfo], shards: u32, replication_factor: u32) -> Result<(), MapError> {
    if nodes.is_empty() {
        return Err(MapError::NoNodes);
    }
    if nodes.len() > NODES_MAX {
        return Err(MapError::TooManyNodes {
            max: NODES_MAX,
            actual: nodes.len(),
        });
    }
    let mut pairs = nodes.windows(2);
    if let Some(pair) = pairs.find(|pair| pair[0].node_id == pair[1].node_id) {
        return Err(MapError::DuplicateNode {
            node_id: pair[0].node_id,
        });
    }
    if !(1..=SHARDS_MAX).contains(&shards) {
        return Err(MapError::ShardsOutOfRange {
            max: SHARDS_MAX,
            actual: shards,
        });
    }
    let replicas_max = nodes.len().min(REPLICATION_FACTOR_MAX as usize);
    if !(1..=replicas_max).contains(&(replication_factor as usize)) {
        return Err(MapError::ReplicationOutOfRange {
            nodes: replicas_max,
            actual: replication_factor,
        });
    }
    Ok(())
}

/// Where equal shards go on equal nodes: all in one zone, as long as nodes name none.
fn first_placement(
    nodes: &[NodeInfo],
    shards: u32,
    replication_factor: u32,
) -> BTreeMap<ShardId, Placement> {
    let node = |node: &NodeInfo| Node {
        node_id: node.node_id,
        zone: Zone::default(),
        capacity_bytes: u64::MAX,
        weight: 1,
        state: NodeState::Active,
    };
    let shard = |index: u32| Shard {
        shard_id: ShardId(index + 1),
        size_bytes: 0,
        load_per_second: 0,
    };
    let problem = Problem {
        nodes: nodes.iter().map(node).collect(),
        shards: (0..shards).map(shard).collect(),
        replication_factor,
        constraints: Constraints::default(),
    };
    let solution = solve(&problem, &Assignment::default());
    let solution = solution.expect("the numbers were checked, and the solver's limits are wider");
    solution.assignment.shards
}

fn equal_range(index: u32, shards: u32) -> SlotRange {
    let start = |index: u32| (index * u32::from(SLOTS) / shards) as u16;
    SlotRange {
        first: Slot(start(index)),
        last: Slot(start(index + 1) - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(count: u64) -> Vec<NodeInfo> {
        let node = |id| NodeInfo {
            node_id: NodeId(id),
            identity: format!("identity-{id}"),
            client_address: format!("127.0.0.1:{}", 7000 + id),
            peer_address: format!("127.0.0.1:{}", 8000 + id),
        };
        (1..=count).map(node).collect()
    }

    #[test]
    fn maps_cover_every_slot_and_are_even() {
        for (node_count, shards, replication_factor) in [
            (1, 1, 1),
            (3, 16, 3),
            (4, 16, 3),
            (5, 40, 3),
            (7, 4095, 5),
            (3, 7, 2),
        ] {
            let case = format!("{node_count} nodes, {shards} shards, x{replication_factor}");
            let map = initial_map(&nodes(node_count), shards, replication_factor).expect(&case);
            let mut next = 0;
            let mut replica_ids = Vec::new();
            let mut leaders = BTreeMap::<NodeId, u32>::new();
            let mut held = BTreeMap::<NodeId, u32>::new();
            for shard in &map.shards {
                assert_eq!(shard.slots.first.0, next, "{case}");
                next = shard.slots.last.0 + 1;
                *leaders.entry(shard.preferred_leader).or_default() += 1;
                let mut on = Vec::new();
                for replica in &shard.replicas {
                    *held.entry(replica.node_id).or_default() += 1;
                    on.push(replica.node_id);
                    replica_ids.push(replica.replica_id);
                }
                on.sort();
                on.dedup();
                assert_eq!(on.len(), replication_factor as usize, "{case}");
                assert!(shard.replica_on(shard.preferred_leader).is_some(), "{case}");
            }
            assert_eq!(next, SLOTS, "{case}");
            let count = replica_ids.len();
            replica_ids.dedup();
            assert_eq!(replica_ids.len(), count, "{case}");
            let spread = |counts: &BTreeMap<NodeId, u32>| {
                let most = counts.values().max().copied().unwrap_or(0);
                most - counts.values().min().copied().unwrap_or(0)
            };
            assert!(spread(&leaders) <= 1, "{case}: {leaders:?}");
            assert!(spread(&held) <= 1, "{case}: {held:?}");
            for slot in SlotRange::ALL.slots() {
                let shard = map.shard_of(slot).expect("every slot has a shard");
                assert!(shard.slots.contains(slot));
            }
        }
    }

    #[test]
    fn maps_do_not_depend_on_the_order_of_nodes() {
        let mut reversed = nodes(5);
        reversed.reverse();
        assert_eq!(initial_map(&nodes(5), 16, 3), initial_map(&reversed, 16, 3));
    }

    #[test]
    fn impossible_maps_are_refused() {
        let duplicate = [nodes(2), nodes(1)].concat();
        let cases = [
            (vec![], 1, 1, MapError::NoNodes),
            (
                duplicate,
                1,
                1,
                MapError::DuplicateNode { node_id: NodeId(1) },
            ),
            (
                nodes(3),
                0,
                3,
                MapError::ShardsOutOfRange {
                    max: 4095,
                    actual: 0,
                },
            ),
            (
                nodes(3),
                4096,
                3,
                MapError::ShardsOutOfRange {
                    max: 4095,
                    actual: 4096,
                },
            ),
            (
                nodes(2),
                1,
                3,
                MapError::ReplicationOutOfRange {
                    nodes: 2,
                    actual: 3,
                },
            ),
            (
                nodes(2),
                1,
                0,
                MapError::ReplicationOutOfRange {
                    nodes: 2,
                    actual: 0,
                },
            ),
            (
                nodes(20),
                1,
                8,
                MapError::ReplicationOutOfRange {
                    nodes: 7,
                    actual: 8,
                },
            ),
        ];
        for (nodes, shards, replication_factor, error) in cases {
            assert_eq!(initial_map(&nodes, shards, replication_factor), Err(error));
        }
    }

    #[test]
    fn an_empty_map_has_no_shard() {
        assert_eq!(ShardMap::default().shard_of(Slot(7)), None);
    }
}
