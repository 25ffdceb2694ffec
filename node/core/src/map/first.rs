//! The first map of a cluster: made by whoever proposes the cluster, and checked by every
//! replica that applies the command. Owns no state.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use super::{NODES_MAX, NodeInfo, Replica, SHARDS_MAX, ShardDescriptor, ShardMap};
use crate::ids::{Epoch, NodeId, ReplicaId, SLOTS, ShardId, Slot, SlotRange};
use crate::placement::{
    Assignment, Constraints, Node, NodeState, Placement, Problem, REPLICATION_FACTOR_MAX, Shard,
    WEIGHT_MAX, solve,
};

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
    /// Shards are not numbered from 1, in order.
    #[error("shard {actual} is where shard {expected} should be; number the shards from 1")]
    ShardOutOfOrder {
        /// The number that follows.
        expected: ShardId,
        /// The number that is there.
        actual: ShardId,
    },
    /// A slot belongs to two shards or to none.
    #[error(
        "shard {shard_id} does not begin where the shard before it ends, or leaves slots over; cover every slot once, in order"
    )]
    SlotsNotCovered {
        /// The shard at which it was found.
        shard_id: ShardId,
    },
    /// A shard has another number of replicas than asked for.
    #[error("shard {shard_id} has {actual} replicas instead of {wanted}")]
    WrongReplicas {
        /// The shard.
        shard_id: ShardId,
        /// The replication factor.
        wanted: u32,
        /// How many are listed.
        actual: usize,
    },
    /// A replica is on a node that is not listed, or on one that has another replica of the
    /// shard.
    #[error(
        "shard {shard_id} cannot have a replica on node {node_id}; use listed nodes, each once"
    )]
    BadReplicaNode {
        /// The shard.
        shard_id: ShardId,
        /// The node.
        node_id: NodeId,
    },
    /// A replica's number is 0 or belongs to another one as well.
    #[error("shard {shard_id} has a replica numbered {replica_id}; use every number from 1 once")]
    BadReplicaId {
        /// The shard.
        shard_id: ShardId,
        /// The number.
        replica_id: ReplicaId,
    },
    /// The preferred leader has no replica.
    #[error("shard {shard_id} is to be led by node {node_id}, which has no replica of it")]
    LeaderWithoutReplica {
        /// The shard.
        shard_id: ShardId,
        /// The node.
        node_id: NodeId,
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

/// The map of a first placement that somebody else made, when it is one.
pub(super) fn checked_map(
    mut nodes: Vec<NodeInfo>,
    shards: Vec<ShardDescriptor>,
    replication_factor: u32,
) -> Result<ShardMap, MapError> {
    nodes.sort_by_key(|node| node.node_id);
    let count = u32::try_from(shards.len()).unwrap_or(u32::MAX);
    check(&nodes, count, replication_factor)?;
    let map = ShardMap {
        epoch: Epoch(1),
        shards,
        nodes,
    };
    let mut expected = ShardId(1);
    let mut next_slot = 0;
    let mut replica_ids = BTreeSet::new();
    for shard in &map.shards {
        let shard_id = shard.shard_id;
        if shard_id != expected {
            return Err(MapError::ShardOutOfOrder {
                expected,
                actual: shard_id,
            });
        }
        let SlotRange { first, last } = shard.slots;
        if first.0 != next_slot || last < first || last.0 >= SLOTS {
            return Err(MapError::SlotsNotCovered { shard_id });
        }
        check_replicas(&map, shard, replication_factor, &mut replica_ids)?;
        next_slot = last.0 + 1;
        expected = ShardId(shard_id.0 + 1);
    }
    if next_slot != SLOTS {
        let shard_id = ShardId(expected.0 - 1);
        return Err(MapError::SlotsNotCovered { shard_id });
    }
    Ok(map)
}

fn check_replicas(
    map: &ShardMap,
    shard: &ShardDescriptor,
    replication_factor: u32,
    replica_ids: &mut BTreeSet<ReplicaId>,
) -> Result<(), MapError> {
    let shard_id = shard.shard_id;
    if shard.replicas.len() != replication_factor as usize {
        return Err(MapError::WrongReplicas {
            shard_id,
            wanted: replication_factor,
            actual: shard.replicas.len(),
        });
    }
    let mut used = BTreeSet::new();
    for Replica {
        replica_id,
        node_id,
    } in shard.replicas.iter().copied()
    {
        if map.node(node_id).is_none() || !used.insert(node_id) {
            return Err(MapError::BadReplicaNode { shard_id, node_id });
        }
        let numbers = 1..u64::MAX;
        if !numbers.contains(&replica_id.0) || !replica_ids.insert(replica_id) {
            return Err(MapError::BadReplicaId {
                shard_id,
                replica_id,
            });
        }
    }
    let node_id = shard.preferred_leader;
    if !used.contains(&node_id) {
        return Err(MapError::LeaderWithoutReplica { shard_id, node_id });
    }
    Ok(())
}

/// Where equal shards without data go.
fn first_placement(
    nodes: &[NodeInfo],
    shards: u32,
    replication_factor: u32,
) -> BTreeMap<ShardId, Placement> {
    let node = |node: &NodeInfo| Node {
        node_id: node.node_id,
        zone: node.zone.clone(),
        capacity_bytes: node.capacity_bytes,
        weight: node.weight.clamp(1, WEIGHT_MAX),
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
    use crate::placement::Zone;

    fn nodes(count: u64) -> Vec<NodeInfo> {
        let node = |id| NodeInfo {
            node_id: NodeId(id),
            identity: format!("identity-{id}"),
            client_address: format!("127.0.0.1:{}", 7000 + id),
            peer_address: format!("127.0.0.1:{}", 8000 + id),
            zone: Zone::default(),
            weight: 1,
            capacity_bytes: u64::MAX,
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
