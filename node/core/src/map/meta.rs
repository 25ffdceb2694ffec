//! The meta group's state machine: creating the cluster and keeping its nodes' addresses.
//!
//! Invariants: a cluster is created once; a node's identity never changes.

use thiserror::Error;

use super::{MapError, NodeInfo, ShardMap, initial_map};
use crate::ids::{Epoch, NodeId, ReplicaId};

/// What the meta group keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetaState {
    /// Names the cluster for ever; empty before there is one.
    pub cluster_id: String,
    /// For people.
    pub cluster_name: String,
    /// Replicas of a shard.
    pub replication_factor: u32,
    /// The next replica's id.
    pub next_replica_id: ReplicaId,
    /// Where everything is.
    pub map: ShardMap,
}

impl MetaState {
    /// True once the cluster was created.
    pub fn exists(&self) -> bool {
        !self.cluster_id.is_empty()
    }
}

/// A change of the meta group's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaCommand {
    /// Creates the cluster, once.
    CreateCluster {
        /// Names the cluster for ever; not empty.
        cluster_id: String,
        /// For people.
        cluster_name: String,
        /// How many shards.
        shards: u32,
        /// Replicas of a shard.
        replication_factor: u32,
        /// The first nodes.
        nodes: Vec<NodeInfo>,
    },
    /// Keeps a node's new addresses.
    UpdateNode {
        /// The node as it is now; its identity must be the one that is known.
        node: NodeInfo,
    },
}

/// The answer to a [`MetaCommand`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaReply {
    /// The cluster exists.
    Created {
        /// True when it existed already under the same id.
        existed: bool,
        /// The map's epoch now.
        epoch: Epoch,
    },
    /// The node's addresses are as given.
    Updated {
        /// False when they were so already.
        changed: bool,
        /// The map's epoch now.
        epoch: Epoch,
    },
    /// Nothing was changed.
    Refused(MetaRefusal),
}

/// Why a [`MetaCommand`] changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MetaRefusal {
    /// Another cluster exists.
    #[error("the cluster {cluster_id} exists already; a live cluster cannot be created again")]
    ClusterExists {
        /// Its id.
        cluster_id: String,
    },
    /// There is no cluster yet.
    #[error("there is no cluster yet; create it first")]
    NoCluster,
    /// The new cluster has no id.
    #[error("the cluster id is empty; choose one")]
    EmptyClusterId,
    /// No node has this number.
    #[error("node {node_id} is not in the cluster; add it first")]
    UnknownNode {
        /// The number.
        node_id: NodeId,
    },
    /// The node has another disk than the one that is known.
    #[error(
        "node {node_id} has another identity than before; its disk was lost or replaced, so remove the node and add it anew"
    )]
    IdentityMismatch {
        /// The number.
        node_id: NodeId,
    },
    /// There is no map for these numbers.
    #[error("the cluster cannot be laid out: {0}")]
    Map(#[from] MapError),
}

/// Applies one command. Deterministic; a refused one changes nothing.
pub fn apply_meta(state: &mut MetaState, command: MetaCommand) -> MetaReply {
    let applied = match command {
        MetaCommand::CreateCluster {
            cluster_id,
            cluster_name,
            shards,
            replication_factor,
            nodes,
        } => {
            if cluster_id.is_empty() {
                Err(MetaRefusal::EmptyClusterId)
            } else if state.exists() {
                existing(state, &cluster_id)
            } else {
                create(
                    state,
                    cluster_id,
                    cluster_name,
                    shards,
                    replication_factor,
                    &nodes,
                )
            }
        }
        MetaCommand::UpdateNode { node } => update_node(state, node),
    };
    applied.unwrap_or_else(MetaReply::Refused)
}

fn existing(state: &MetaState, cluster_id: &str) -> Result<MetaReply, MetaRefusal> {
    if state.cluster_id == cluster_id {
        return Ok(MetaReply::Created {
            existed: true,
            epoch: state.map.epoch,
        });
    }
    Err(MetaRefusal::ClusterExists {
        cluster_id: state.cluster_id.clone(),
    })
}

fn create(
    state: &mut MetaState,
    cluster_id: String,
    cluster_name: String,
    shards: u32,
    replication_factor: u32,
    nodes: &[NodeInfo],
) -> Result<MetaReply, MetaRefusal> {
    let map = initial_map(nodes, shards, replication_factor)?;
    let epoch = map.epoch;
    let replicas = map.shards.iter().flat_map(|shard| &shard.replicas);
    let last_replica_id = replicas.map(|replica| replica.replica_id.0).max();
    *state = MetaState {
        cluster_id,
        cluster_name,
        replication_factor,
        next_replica_id: ReplicaId(last_replica_id.unwrap_or(0) + 1),
        map,
    };
    Ok(MetaReply::Created {
        existed: false,
        epoch,
    })
}

fn update_node(state: &mut MetaState, node: NodeInfo) -> Result<MetaReply, MetaRefusal> {
    if !state.exists() {
        return Err(MetaRefusal::NoCluster);
    }
    let node_id = node.node_id;
    let nodes = &mut state.map.nodes;
    let Some(known) = nodes.iter_mut().find(|known| known.node_id == node_id) else {
        return Err(MetaRefusal::UnknownNode { node_id });
    };
    if known.identity != node.identity {
        return Err(MetaRefusal::IdentityMismatch { node_id });
    }
    let changed = *known != node;
    if changed {
        *known = node;
        state.map.epoch = Epoch(state.map.epoch.0 + 1);
    }
    Ok(MetaReply::Updated {
        changed,
        epoch: state.map.epoch,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u64) -> NodeInfo {
        NodeInfo {
            node_id: NodeId(id),
            identity: format!("identity-{id}"),
            client_address: "127.0.0.1:7000".to_owned(),
            peer_address: "127.0.0.1:8000".to_owned(),
        }
    }

    fn create_command(cluster_id: &str) -> MetaCommand {
        MetaCommand::CreateCluster {
            cluster_id: cluster_id.to_owned(),
            cluster_name: "demo".to_owned(),
            shards: 4,
            replication_factor: 3,
            nodes: vec![node(1), node(2), node(3)],
        }
    }

    #[test]
    fn a_cluster_is_created_once() {
        let mut state = MetaState::default();
        let mut apply = |command| apply_meta(&mut state, command);
        assert_eq!(
            apply(create_command("")),
            MetaReply::Refused(MetaRefusal::EmptyClusterId)
        );
        assert_eq!(
            apply(MetaCommand::UpdateNode { node: node(1) }),
            MetaReply::Refused(MetaRefusal::NoCluster)
        );
        for existed in [false, true] {
            let reply = apply(create_command("one"));
            let epoch = Epoch(1);
            assert_eq!(reply, MetaReply::Created { existed, epoch });
        }
        let cluster_id = "one".to_owned();
        assert_eq!(
            apply(create_command("two")),
            MetaReply::Refused(MetaRefusal::ClusterExists { cluster_id })
        );
        assert_eq!(state.next_replica_id, ReplicaId(13));
    }

    #[test]
    fn a_cluster_that_cannot_be_is_not_created() {
        let mut state = MetaState::default();
        let command = MetaCommand::CreateCluster {
            cluster_id: "one".to_owned(),
            cluster_name: String::new(),
            shards: 4,
            replication_factor: 4,
            nodes: vec![node(1)],
        };
        let refused = MetaRefusal::Map(MapError::ReplicationOutOfRange {
            nodes: 1,
            actual: 4,
        });
        assert_eq!(apply_meta(&mut state, command), MetaReply::Refused(refused));
        assert_eq!(state, MetaState::default());
    }

    #[test]
    fn a_node_changes_its_addresses_but_not_its_identity() {
        let mut state = MetaState::default();
        apply_meta(&mut state, create_command("one"));
        let mut moved = node(2);
        moved.client_address = "10.0.0.2:7000".to_owned();
        for (changed, epoch) in [(true, Epoch(2)), (false, Epoch(2))] {
            let node = moved.clone();
            assert_eq!(
                apply_meta(&mut state, MetaCommand::UpdateNode { node }),
                MetaReply::Updated { changed, epoch }
            );
        }
        assert_eq!(state.map.node(NodeId(2)), Some(&moved));
        moved.identity = "another".to_owned();
        let node_id = NodeId(2);
        assert_eq!(
            apply_meta(&mut state, MetaCommand::UpdateNode { node: moved }),
            MetaReply::Refused(MetaRefusal::IdentityMismatch { node_id })
        );
        let node_id = NodeId(9);
        assert_eq!(
            apply_meta(&mut state, MetaCommand::UpdateNode { node: node(9) }),
            MetaReply::Refused(MetaRefusal::UnknownNode { node_id })
        );
    }
}
