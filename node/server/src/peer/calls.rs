//! Calls to other nodes that are answered once: who asks for a peer's service gets a client
//! for it, made when it is first needed and again when the peer's address changes.
//!
//! Owner of the state: the clients' map under its mutex.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use carillon_core::ids::NodeId;
use carillon_proto::internal::{StatusRequest, StatusResponse};
use futures_util::future::join_all;
use parking_lot::Mutex;

use super::{Client, peer_client};
use crate::cluster::Cluster;
use crate::identity::Identity;

/// A node that does not tell its status within this counts as down.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

/// Why there is no client for a node.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The map does not have it.
    #[error("node {} does not exist", .0.0)]
    NoSuchNode(NodeId),
    /// Another node has its address.
    #[error("node {} is lost, and another one has taken its place", .0.0)]
    Superseded(NodeId),
    /// Its address in the map is none.
    #[error("node {} has a bad address", node.0)]
    Address {
        /// The node.
        node: NodeId,
        /// What is wrong with it.
        source: tonic::transport::Error,
    },
}

/// See the file's head.
pub struct PeerCalls {
    cluster: Arc<Cluster>,
    identity: Arc<Identity>,
    clients: Mutex<HashMap<NodeId, (String, Client)>>,
}

impl PeerCalls {
    /// Calls of a node.
    pub fn new(cluster: Arc<Cluster>, identity: Arc<Identity>) -> Self {
        Self {
            cluster,
            identity,
            clients: Mutex::default(),
        }
    }

    /// A client for a node's service; it connects when it is used.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn client(&self, node: NodeId) -> Result<Client, CallError> {
        let meta = self.cluster.meta();
        let known = meta.map.node(node).ok_or(CallError::NoSuchNode(node))?;
        if meta.is_superseded(node) {
            return Err(CallError::Superseded(node));
        }
        let mut clients = self.clients.lock();
        if let Some((address, client)) = clients.get(&node)
            && *address == known.peer_address
        {
            return Ok(client.clone());
        }
        let channel = self.identity.dialer().connect_lazy(&known.peer_address);
        let channel = channel.map_err(|source| CallError::Address { node, source })?;
        let client = peer_client(channel, &self.identity);
        clients.insert(node, (known.peer_address.clone(), client.clone()));
        Ok(client)
    }

    /// How another node is; none when it does not say in time.
    pub async fn status_of(&self, node: NodeId) -> Option<StatusResponse> {
        let mut client = self.client(node).ok()?;
        let asked = tokio::time::timeout(STATUS_TIMEOUT, client.status(StatusRequest {}));
        Some(asked.await.ok()?.ok()?.into_inner())
    }

    /// The same for all other nodes of the map, asked at once.
    pub async fn statuses(&self) -> BTreeMap<NodeId, Option<StatusResponse>> {
        let meta = self.cluster.meta();
        let nodes = meta.map.nodes.iter().map(|node| node.node_id);
        let others: Vec<NodeId> = nodes.filter(|node| *node != self.cluster.me()).collect();
        let statuses = join_all(others.iter().map(|node| self.status_of(*node))).await;
        others.into_iter().zip(statuses).collect()
    }
}
