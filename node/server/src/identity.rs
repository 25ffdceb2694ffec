//! Who this node is, and how a cluster comes to be.
//!
//! A data directory has an identity, made at random with it; a cluster has an id, made at
//! its first start. Both are durable before anything depends on them. The initial peer
//! with the smallest id makes the cluster, once it has seen all the others fresh; the
//! others adopt it when it knows their identity. So a node that comes back with an empty
//! disk under an old name is refused: its vote and its log are gone, and nothing it says
//! could be trusted.
//!
//! Owner of the state: the node's meta records in the state store.

use std::collections::BTreeMap;
use std::time::Duration;

use carillon_core::ids::NodeId;
use carillon_core::map::{MetaState, NodeInfo, ShardMap};
use carillon_proto::internal::peer_client::PeerClient;
use carillon_proto::internal::{IdentifyRequest, IdentifyResponse};
use carillon_store::Store;
use parking_lot::RwLock;
use tonic::Status;
use tonic::metadata::{MetadataMap, MetadataValue};

use crate::config::Config;
use crate::peer::endpoint;

/// The metadata key of a calling node: its id.
const NODE_KEY: &str = "carillon-node";
/// The metadata key of a calling node: its data directory's identity.
const IDENTITY_KEY: &str = "carillon-identity";
/// The metadata key of a calling node: its cluster.
const CLUSTER_KEY: &str = "carillon-cluster";

const IDENTITY_RECORD: &[u8] = b"identity";
const CLUSTER_RECORD: &[u8] = b"cluster";
const NODE_RECORD: &[u8] = b"node";
const FOUNDERS_RECORD: &[u8] = b"founders";

/// Between two rounds of asking the initial peers.
const ASK_INTERVAL: Duration = Duration::from_millis(100);
/// One answer may take this long.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// What is missing is logged this often.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// Why a node may not take part.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The data directory belongs to another node.
    #[error(
        "the data directory {directory} belongs to node {found}, not {configured}; give node_id = {found} or another data_dir"
    )]
    OtherNode {
        /// Where.
        directory: String,
        /// Whose it is.
        found: String,
        /// Who was configured.
        configured: u64,
    },
    /// The disk is new but the name is not.
    #[error(
        "node {node} is known to cluster {cluster} with another data directory; a node that lost its disk must come back under a new node_id, because its old votes are gone"
    )]
    LostDisk {
        /// Its id.
        node: u64,
        /// The cluster.
        cluster: String,
    },
    /// A peer is of another cluster.
    #[error(
        "peer {peer} at {address} belongs to cluster {found:?}, not {expected:?}; check initial_peers and cluster_name"
    )]
    OtherCluster {
        /// The peer.
        peer: u64,
        /// Where it was reached.
        address: String,
        /// What it said.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// The peer at an address has another id.
    #[error("the peer at {address} is node {found}, not {expected}; check initial_peers")]
    OtherPeer {
        /// Where it was reached.
        address: String,
        /// What it said.
        found: u64,
        /// What was expected.
        expected: u64,
    },
    /// The store could not keep it.
    #[error(transparent)]
    Store(#[from] carillon_store::StoreError),
    /// A record in the data directory is damaged.
    #[error("the data directory's record {0} is damaged; replace this node by a new one")]
    Damaged(&'static str),
}

/// See the file's head.
pub struct Identity {
    node: NodeId,
    identity: String,
    cluster_name: String,
    peers: BTreeMap<NodeId, String>,
    store: Store,
    cluster_id: RwLock<Option<String>>,
    founders: RwLock<Vec<NodeInfo>>,
}

impl Identity {
    /// Reads the identity of the data directory, or makes it.
    pub fn open(store: Store, config: &Config) -> Result<Self, IdentityError> {
        let text = |key: &'static [u8], name| -> Result<Option<String>, IdentityError> {
            let Some(bytes) = store.meta_get(key)? else {
                return Ok(None);
            };
            String::from_utf8(bytes.to_vec())
                .map(Some)
                .map_err(|_| IdentityError::Damaged(name))
        };
        let identity = match text(IDENTITY_RECORD, "identity")? {
            Some(identity) => identity,
            None => {
                let identity = random_id();
                store.meta_put(IDENTITY_RECORD, identity.as_bytes())?;
                identity
            }
        };
        match text(NODE_RECORD, "node")? {
            Some(found) if found != config.node_id.to_string() => {
                return Err(IdentityError::OtherNode {
                    directory: config.data_dir.display().to_string(),
                    found,
                    configured: config.node_id,
                });
            }
            Some(_) => {}
            None => store.meta_put(NODE_RECORD, config.node_id.to_string().as_bytes())?,
        }
        let founders = match store.meta_get(FOUNDERS_RECORD)? {
            Some(bytes) => {
                ShardMap::decode(&bytes)
                    .map_err(|_| IdentityError::Damaged("founders"))?
                    .nodes
            }
            None => Vec::new(),
        };
        let cluster_id = text(CLUSTER_RECORD, "cluster")?;
        Ok(Self {
            node: config.node(),
            identity,
            cluster_name: config.cluster_name.clone(),
            peers: config
                .initial_peers
                .iter()
                .map(|peer| (NodeId(peer.node_id), peer.peer_address.clone()))
                .collect(),
            store,
            cluster_id: RwLock::new(cluster_id),
            founders: RwLock::new(founders),
        })
    }

    /// The cluster this node belongs to, once it does.
    pub fn cluster_id(&self) -> Option<String> {
        self.cluster_id.read().clone()
    }

    /// The nodes that this node founded the cluster with; empty on all others.
    pub fn founders(&self) -> Vec<NodeInfo> {
        self.founders.read().clone()
    }

    /// Where a peer is reached: what it registered, else what is configured.
    pub fn peer_address(&self, peer: NodeId, meta: &MetaState) -> Option<String> {
        meta.map
            .nodes
            .iter()
            .find(|node| node.node_id == peer)
            .map(|node| node.peer_address.clone())
            .or_else(|| self.peers.get(&peer).cloned())
    }

    /// Answers another node.
    pub fn identify(&self, request: &IdentifyRequest, meta: &MetaState) -> IdentifyResponse {
        let founders = self.founders.read();
        let known = known(NodeId(request.node_id), meta, &founders);
        IdentifyResponse {
            node_id: self.node.0,
            identity: self.identity.clone(),
            cluster_id: self.cluster_id().unwrap_or_default(),
            cluster_name: self.cluster_name.clone(),
            known_identity: known.map(|node| node.identity.clone()).unwrap_or_default(),
        }
    }

    /// Says in the metadata of a call to another node who calls.
    pub fn introduce(&self, metadata: &mut MetadataMap) -> Result<(), Status> {
        let cluster = self.cluster_id().unwrap_or_default();
        for (key, value) in [
            (NODE_KEY, &self.node.0.to_string()),
            (IDENTITY_KEY, &self.identity),
            (CLUSTER_KEY, &cluster),
        ] {
            let value = MetadataValue::try_from(value)
                .map_err(|_| Status::internal(format!("{key} cannot stand in metadata")))?;
            metadata.insert(key, value);
        }
        Ok(())
    }

    /// The node that a call comes from, when it may take part.
    pub fn caller(&self, metadata: &MetadataMap, meta: &MetaState) -> Result<NodeId, Status> {
        let text = |key| {
            metadata
                .get(key)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
        };
        let node: u64 = text(NODE_KEY).parse().map_err(|_| {
            Status::invalid_argument(format!("metadata {NODE_KEY} is not a node id"))
        })?;
        self.admit(NodeId(node), text(IDENTITY_KEY), text(CLUSTER_KEY), meta)
            .map_err(Status::failed_precondition)?;
        Ok(NodeId(node))
    }

    /// Whether a node may take part: it is of this cluster, and known with this data
    /// directory. Before the first map the founder knows with whom it founded; the others know
    /// nobody yet, and go by the cluster.
    fn admit(
        &self,
        node: NodeId,
        identity: &str,
        cluster: &str,
        meta: &MetaState,
    ) -> Result<(), String> {
        let mine = self
            .cluster_id()
            .ok_or("this node belongs to no cluster yet")?;
        if cluster != mine {
            return Err(format!(
                "this node belongs to cluster {mine}, not {cluster}"
            ));
        }
        let founders = self.founders.read();
        match known(node, meta, &founders) {
            Some(known) if known.identity != identity => Err(format!(
                "node {} is known with another data directory; a node that lost its disk needs a new id",
                node.0
            )),
            Some(_) => Ok(()),
            None if registry(meta, &founders).is_empty() => Ok(()),
            None => Err(format!("the cluster has no node {}", node.0)),
        }
    }

    /// Returns once this node belongs to a cluster: the one it did before, or the one that
    /// the initial peers make together.
    pub async fn settle(&self, config: &Config) -> Result<(), IdentityError> {
        let mut reported = tokio::time::Instant::now();
        loop {
            if self.cluster_id().is_some() {
                return Ok(());
            }
            let mut fresh = vec![self.own_info(config)];
            let mut missing = Vec::new();
            for peer in config
                .initial_peers
                .iter()
                .filter(|peer| peer.node_id != self.node.0)
            {
                let Some(answer) = self.ask(&peer.peer_address).await else {
                    missing.push(peer.node_id);
                    continue;
                };
                self.check(peer.node_id, &peer.peer_address, &answer)?;
                if answer.cluster_id.is_empty() {
                    fresh.push(NodeInfo {
                        node_id: NodeId(peer.node_id),
                        identity: answer.identity,
                        client_address: peer.client_address.clone(),
                        peer_address: peer.peer_address.clone(),
                    });
                } else if answer.known_identity == self.identity {
                    tracing::info!(
                        cluster = answer.cluster_id,
                        "joins the cluster that its peers made"
                    );
                    return self.adopt(answer.cluster_id, &[]);
                } else if !answer.known_identity.is_empty() {
                    return Err(IdentityError::LostDisk {
                        node: self.node.0,
                        cluster: answer.cluster_id,
                    });
                }
            }
            let founder = self.peers.keys().next() == Some(&self.node);
            if founder && fresh.len() == config.initial_peers.len() {
                let cluster = random_id();
                tracing::info!(cluster, nodes = fresh.len(), "makes a new cluster");
                fresh.sort_by_key(|node| node.node_id);
                return self.adopt(cluster, &fresh);
            }
            if reported.elapsed() >= REPORT_INTERVAL {
                reported = tokio::time::Instant::now();
                tracing::info!(?missing, "waits for the initial peers to make the cluster");
            }
            tokio::time::sleep(ASK_INTERVAL).await;
        }
    }

    fn own_info(&self, config: &Config) -> NodeInfo {
        NodeInfo {
            node_id: self.node,
            identity: self.identity.clone(),
            client_address: config.client_address(),
            peer_address: config.peer_address(),
        }
    }

    /// This node as it should be registered, when the registry says otherwise.
    pub fn outdated(&self, config: &Config, meta: &MetaState) -> Option<NodeInfo> {
        let own = self.own_info(config);
        let known = meta
            .map
            .nodes
            .iter()
            .find(|node| node.node_id == self.node)?;
        (*known != own).then_some(own)
    }

    fn adopt(&self, cluster: String, founders: &[NodeInfo]) -> Result<(), IdentityError> {
        if !founders.is_empty() {
            self.store.meta_put(
                FOUNDERS_RECORD,
                &ShardMap {
                    nodes: founders.to_vec(),
                    ..ShardMap::default()
                }
                .encode(),
            )?;
            *self.founders.write() = founders.to_vec();
        }
        self.store.meta_put(CLUSTER_RECORD, cluster.as_bytes())?;
        *self.cluster_id.write() = Some(cluster);
        Ok(())
    }

    fn check(
        &self,
        peer: u64,
        address: &str,
        answer: &IdentifyResponse,
    ) -> Result<(), IdentityError> {
        if answer.cluster_name != self.cluster_name {
            return Err(IdentityError::OtherCluster {
                peer,
                address: address.to_owned(),
                found: answer.cluster_name.clone(),
                expected: self.cluster_name.clone(),
            });
        }
        if answer.node_id != peer {
            return Err(IdentityError::OtherPeer {
                address: address.to_owned(),
                found: answer.node_id,
                expected: peer,
            });
        }
        Ok(())
    }

    async fn ask(&self, address: &str) -> Option<IdentifyResponse> {
        let request = IdentifyRequest {
            node_id: self.node.0,
            identity: self.identity.clone(),
            cluster_id: self.cluster_id().unwrap_or_default(),
            cluster_name: self.cluster_name.clone(),
        };
        let asked = async {
            let channel = endpoint(address).ok()?.connect().await.ok()?;
            PeerClient::new(channel).identify(request).await.ok()
        };
        tokio::time::timeout(ASK_TIMEOUT, asked)
            .await
            .ok()
            .flatten()
            .map(tonic::Response::into_inner)
    }
}

/// The nodes of the cluster: those of the map, before there is one its founders.
fn registry<'a>(meta: &'a MetaState, founders: &'a [NodeInfo]) -> &'a [NodeInfo] {
    match meta.map.nodes.as_slice() {
        [] => founders,
        nodes => nodes,
    }
}

fn known<'a>(node: NodeId, meta: &'a MetaState, founders: &'a [NodeInfo]) -> Option<&'a NodeInfo> {
    registry(meta, founders)
        .iter()
        .find(|known| known.node_id == node)
}

/// 128 random bits, hexadecimal.
fn random_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
