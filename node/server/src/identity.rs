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
use carillon_core::map::{ClusterVersion, MetaState, NodeInfo, ShardMap, Supported};
use carillon_core::placement::Zone;
use carillon_proto::internal::peer_client::PeerClient;
use carillon_proto::internal::{IdentifyRequest, IdentifyResponse};
use carillon_store::Store;
use parking_lot::RwLock;
use tonic::Status;
use tonic::metadata::{MetadataMap, MetadataValue};

use crate::config::Config;
use crate::peer::dial::Dialer;

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
/// The newest version that all founders support, as a number.
const FOUNDING_VERSION_RECORD: &[u8] = b"founding_version";
/// The nodes that the cluster had when this one joined it or made it: where they are reached until
/// there is a map, whatever the configuration says by then.
const CONTACTS_RECORD: &[u8] = b"contacts";

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
    /// This node; what its configuration says of it.
    own: NodeInfo,
    supported: Supported,
    cluster_name: String,
    peers: BTreeMap<NodeId, String>,
    dialer: Dialer,
    store: Store,
    cluster_id: RwLock<Option<String>>,
    founders: RwLock<Vec<NodeInfo>>,
    founding_version: RwLock<ClusterVersion>,
}

impl Identity {
    /// Reads the identity of the data directory, or makes it.
    pub fn open(store: Store, config: &Config, dialer: Dialer) -> Result<Self, IdentityError> {
        let identity = data_identity(&store)?;
        match text(&store, NODE_RECORD, "node")? {
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
        let founders = nodes(&store, FOUNDERS_RECORD, "founders")?;
        let founding_version = match text(&store, FOUNDING_VERSION_RECORD, "founding_version")? {
            None => ClusterVersion::default(),
            Some(number) => number
                .parse()
                .map(ClusterVersion)
                .map_err(|_| IdentityError::Damaged("founding_version"))?,
        };
        let cluster_id = text(&store, CLUSTER_RECORD, "cluster")?;
        let configured = config.initial_peers.iter();
        let configured = configured.map(|peer| (NodeId(peer.node_id), peer.peer_address.clone()));
        let contacts = nodes(&store, CONTACTS_RECORD, "contacts")?;
        let contacts = contacts.into_iter();
        let contacts = contacts.map(|node| (node.node_id, node.peer_address));
        Ok(Self {
            own: config.node_info(&identity),
            supported: config.supported(),
            cluster_name: config.cluster_name.clone(),
            // What is configured now is newer.
            peers: contacts.chain(configured).collect(),
            dialer,
            store,
            cluster_id: RwLock::new(cluster_id),
            founders: RwLock::new(founders),
            founding_version: RwLock::new(founding_version),
        })
    }

    /// How this node reaches others.
    pub fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// The cluster this node belongs to, once it does.
    pub fn cluster_id(&self) -> Option<String> {
        self.cluster_id.read().clone()
    }

    /// The nodes that this node founded the cluster with; empty on all others.
    pub fn founders(&self) -> Vec<NodeInfo> {
        self.founders.read().clone()
    }

    /// The newest version that all of these supported then.
    pub fn founding_version(&self) -> ClusterVersion {
        *self.founding_version.read()
    }

    /// The nodes that are known before there is a map, and where they are reached.
    pub fn peers(&self) -> &BTreeMap<NodeId, String> {
        &self.peers
    }

    /// Where a peer is reached: what it registered, before there is a map what is configured.
    /// None when it is not of the cluster, or another node has taken its place.
    pub fn peer_address(&self, peer: NodeId, meta: &MetaState) -> Option<String> {
        match meta.map.nodes.as_slice() {
            [] => self.peers.get(&peer).cloned(),
            _ if meta.is_superseded(peer) => None,
            _ => Some(meta.map.node(peer)?.peer_address.clone()),
        }
    }

    /// Answers another node.
    pub fn identify(&self, request: &IdentifyRequest, meta: &MetaState) -> IdentifyResponse {
        let founders = self.founders.read();
        let known = known(NodeId(request.node_id), meta, &founders);
        IdentifyResponse {
            node_id: self.own.node_id.0,
            identity: self.own.identity.clone(),
            cluster_id: self.cluster_id().unwrap_or_default(),
            cluster_name: self.cluster_name.clone(),
            known_identity: known.map(|node| node.identity.clone()).unwrap_or_default(),
            zone: self.own.zone.0.clone(),
            weight: self.own.weight,
            capacity_bytes: self.own.capacity_bytes,
            cluster_version_min: self.supported.min.0,
            cluster_version_max: self.supported.max.0,
        }
    }

    /// Says in the metadata of a call to another node who calls.
    pub fn introduce(&self, metadata: &mut MetadataMap) -> Result<(), Status> {
        let cluster = self.cluster_id().unwrap_or_default();
        for (key, value) in [
            (NODE_KEY, &self.own.node_id.0.to_string()),
            (IDENTITY_KEY, &self.own.identity),
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
    /// directory. Before the first map the founder knows with whom it founded; the others, and
    /// those that join, know nobody for sure yet, and go by the cluster.
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
            let mut fresh = vec![self.own.clone()];
            let mut version = self.supported.max;
            let mut missing = Vec::new();
            for peer in config
                .initial_peers
                .iter()
                .filter(|peer| peer.node_id != self.own.node_id.0)
            {
                let Some(answer) = self.ask(&peer.peer_address).await else {
                    missing.push(peer.node_id);
                    continue;
                };
                self.check(peer.node_id, &peer.peer_address, &answer)?;
                if answer.cluster_id.is_empty() {
                    let (min, max) = (answer.cluster_version_min, answer.cluster_version_max);
                    version = version.min(Supported::said(min, max).max);
                    fresh.push(NodeInfo {
                        node_id: NodeId(peer.node_id),
                        identity: answer.identity,
                        client_address: peer.client_address.clone(),
                        peer_address: peer.peer_address.clone(),
                        zone: Zone(answer.zone),
                        weight: answer.weight,
                        capacity_bytes: answer.capacity_bytes,
                    });
                } else if answer.known_identity == self.own.identity {
                    tracing::info!(
                        cluster = answer.cluster_id,
                        "joins the cluster that its peers made"
                    );
                    self.keep_contacts(config)?;
                    return self.adopt(answer.cluster_id, &[], version);
                } else if !answer.known_identity.is_empty() {
                    return Err(IdentityError::LostDisk {
                        node: self.own.node_id.0,
                        cluster: answer.cluster_id,
                    });
                }
            }
            let founder = self.peers.keys().next() == Some(&self.own.node_id);
            if founder && fresh.len() == config.initial_peers.len() {
                let cluster = random_id();
                tracing::info!(cluster, nodes = fresh.len(), "makes a new cluster");
                fresh.sort_by_key(|node| node.node_id);
                self.keep_contacts(config)?;
                return self.adopt(cluster, &fresh, version);
            }
            if reported.elapsed() >= REPORT_INTERVAL {
                reported = tokio::time::Instant::now();
                tracing::info!(?missing, "waits for the initial peers to make the cluster");
            }
            tokio::time::sleep(ASK_INTERVAL).await;
        }
    }

    /// This node as it should be registered, when the registry says otherwise.
    pub fn outdated(&self, meta: &MetaState) -> Option<NodeInfo> {
        let known = meta.map.node(self.own.node_id)?;
        (*known != self.own).then(|| self.own.clone())
    }

    /// This node as it should be registered, once it is in the registry.
    pub fn registered(&self, meta: &MetaState) -> Option<NodeInfo> {
        let known = meta.map.node(self.own.node_id);
        known.map(|_| self.own.clone())
    }

    /// Keeps where the initial peers are.
    fn keep_contacts(&self, config: &Config) -> Result<(), IdentityError> {
        let contacts = config.initial_peers.iter().map(|peer| {
            let (client, from_peers) = (&peer.client_address, &peer.peer_address);
            contact(NodeId(peer.node_id), client.clone(), from_peers.clone())
        });
        let record = encode_nodes(contacts.collect());
        Ok(self.store.meta_put(CONTACTS_RECORD, &record)?)
    }

    fn adopt(
        &self,
        cluster: String,
        founders: &[NodeInfo],
        version: ClusterVersion,
    ) -> Result<(), IdentityError> {
        if !founders.is_empty() {
            let number = version.to_string();
            self.store
                .meta_put(FOUNDING_VERSION_RECORD, number.as_bytes())?;
            *self.founding_version.write() = version;
            let record = encode_nodes(founders.to_vec());
            self.store.meta_put(FOUNDERS_RECORD, &record)?;
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
            node_id: self.own.node_id.0,
            identity: self.own.identity.clone(),
            cluster_id: self.cluster_id().unwrap_or_default(),
            cluster_name: self.cluster_name.clone(),
        };
        let asked = async {
            let channel = self.dialer.connect(address).await.ok()?;
            PeerClient::new(channel).identify(request).await.ok()
        };
        tokio::time::timeout(ASK_TIMEOUT, asked)
            .await
            .ok()
            .flatten()
            .map(tonic::Response::into_inner)
    }
}

/// The identity of a data directory, made when it has none.
pub fn data_identity(store: &Store) -> Result<String, IdentityError> {
    if let Some(identity) = text(store, IDENTITY_RECORD, "identity")? {
        return Ok(identity);
    }
    let identity = random_id();
    store.meta_put(IDENTITY_RECORD, identity.as_bytes())?;
    Ok(identity)
}

/// The id that a data directory's node has in its cluster, once it was given one or made one.
pub fn data_node(store: &Store) -> Result<Option<NodeId>, IdentityError> {
    if text(store, CLUSTER_RECORD, "cluster")?.is_none() {
        return Ok(None);
    }
    let Some(id) = text(store, NODE_RECORD, "node")? else {
        return Ok(None);
    };
    let id = id.parse().map_err(|_| IdentityError::Damaged("node"))?;
    Ok(Some(NodeId(id)))
}

/// A node of which no more is known than where it is reached. What it is is in the map, which
/// comes with the meta group's state.
pub fn contact(node_id: NodeId, client_address: String, peer_address: String) -> NodeInfo {
    NodeInfo {
        node_id,
        identity: String::new(),
        client_address,
        peer_address,
        zone: Zone::default(),
        weight: 1,
        capacity_bytes: u64::MAX,
    }
}

/// Keeps what a node that joins was given. Durable when this returns; the cluster's record
/// comes last, and only with it [`data_node`] finds the others.
pub fn keep_joined(
    store: &Store,
    node: NodeId,
    cluster_id: &str,
    contacts: Vec<NodeInfo>,
) -> Result<(), IdentityError> {
    store.meta_put(CONTACTS_RECORD, &encode_nodes(contacts))?;
    store.meta_put(NODE_RECORD, node.0.to_string().as_bytes())?;
    store.meta_put(CLUSTER_RECORD, cluster_id.as_bytes())?;
    Ok(())
}

fn text(
    store: &Store,
    key: &'static [u8],
    name: &'static str,
) -> Result<Option<String>, IdentityError> {
    let Some(bytes) = store.meta_get(key)? else {
        return Ok(None);
    };
    let text = String::from_utf8(bytes.to_vec());
    text.map(Some).map_err(|_| IdentityError::Damaged(name))
}

fn nodes(
    store: &Store,
    key: &'static [u8],
    name: &'static str,
) -> Result<Vec<NodeInfo>, IdentityError> {
    let Some(bytes) = store.meta_get(key)? else {
        return Ok(Vec::new());
    };
    let map = ShardMap::decode(&bytes).map_err(|_| IdentityError::Damaged(name))?;
    Ok(map.nodes)
}

fn encode_nodes(nodes: Vec<NodeInfo>) -> bytes::Bytes {
    let map = ShardMap {
        nodes,
        ..ShardMap::default()
    };
    map.encode()
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
pub fn random_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
