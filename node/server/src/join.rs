//! A new node asks a cluster for its number, before anything else of it exists.
//!
//! The cluster's answer, which is the same each time for this data directory, is durable
//! before the node takes part. Owner of no state: the records are `identity`'s.

use std::time::Duration;

use carillon_core::ids::NodeId;
use carillon_proto::internal::peer_client::PeerClient;
use carillon_proto::internal::{JoinRequest, JoinResponse};
use carillon_store::Store;
use tonic::{Code, Status};

use crate::config::{Config, Join};
use crate::identity::{IdentityError, contact, data_identity, data_node, keep_joined};
use crate::peer::dial::Dialer;

/// Between two rounds of asking the nodes that are configured.
const ASK_INTERVAL: Duration = Duration::from_millis(500);
/// One answer may take this long: the meta group commits the new node meanwhile.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a node did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The cluster does not want it.
    #[error("the cluster at {peer} refused this node: {reason}")]
    Refused {
        /// Who said so.
        peer: String,
        /// Why.
        reason: String,
    },
    /// The data directory could not keep it.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// The number of this node: the one it was given before, or a new one. Asks until a node of
/// the cluster decides.
///
/// # Errors
/// [`JoinError`].
pub async fn join(
    store: &Store,
    config: &Config,
    join: &Join,
    dialer: &Dialer,
) -> Result<NodeId, JoinError> {
    if let Some(node) = data_node(store)? {
        return Ok(node);
    }
    let own = config.node_info(&data_identity(store)?);
    let supported = config.supported();
    let request = JoinRequest {
        cluster_version_min: supported.min.0,
        cluster_version_max: supported.max.0,
        cluster_name: config.cluster_name.clone(),
        join_token: join.token.clone(),
        identity: own.identity,
        client_address: own.client_address,
        peer_address: own.peer_address,
        zone: own.zone.0,
        weight: own.weight,
        capacity_bytes: own.capacity_bytes,
    };
    loop {
        for peer in &join.peers {
            match ask(dialer, peer, &request).await {
                Ok(answer) => {
                    let node = NodeId(answer.node_id);
                    let contacts = answer.nodes.into_iter().map(|node| {
                        contact(NodeId(node.node_id), node.client_address, node.peer_address)
                    });
                    let contacts = contacts.collect();
                    keep_joined(store, node, &answer.cluster_id, contacts)?;
                    tracing::info!(node = node.0, cluster = answer.cluster_id, "joined");
                    return Ok(node);
                }
                Err(status) if is_final(status.code()) => {
                    return Err(JoinError::Refused {
                        peer: peer.clone(),
                        reason: status.message().to_owned(),
                    });
                }
                Err(status) => {
                    tracing::info!(peer, error = status.message(), "asks on to join");
                }
            }
        }
        tokio::time::sleep(ASK_INTERVAL).await;
    }
}

/// Asking again would not help.
fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::PermissionDenied | Code::FailedPrecondition | Code::InvalidArgument
    )
}

async fn ask(dialer: &Dialer, peer: &str, request: &JoinRequest) -> Result<JoinResponse, Status> {
    let unreachable = |error: tonic::transport::Error| {
        Status::unavailable(format!("{peer} cannot be reached: {error}"))
    };
    let asked = async {
        let channel = dialer.connect(peer).await.map_err(unreachable)?;
        let answer = PeerClient::new(channel).join(request.clone()).await?;
        Ok(answer.into_inner())
    };
    let answered = tokio::time::timeout(ASK_TIMEOUT, asked).await;
    answered.unwrap_or_else(|_| {
        Err(Status::unavailable(format!(
            "{peer} did not answer in time"
        )))
    })
}
