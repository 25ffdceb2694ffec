//! The admin API over gRPC with mutual TLS.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use carillon_proto::admin::admin_client::AdminClient;
use carillon_proto::{ACTOR_METADATA_KEY, admin as proto};
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};
use tonic::{Code, Request, Status};

use super::seen::{self, Answers};
use super::{Admin, AdminError, Connect, Credentials, Endpoint, Seen, Whose};
use crate::build::{ADMIN_PORT, FIELD_MANAGER};
use crate::plan::{MemberName, NodeId, Standing};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one is waited for before the next one is tried too.
const TURN: Duration = Duration::from_millis(300);
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// Of a handshake and one call that each member answers by itself.
const PROOF_TIMEOUT: Duration = Duration::from_secs(3);

pub struct Grpc;

pub struct GrpcAdmin {
    client: AdminClient<Channel>,
}

impl Connect for Grpc {
    type Admin = GrpcAdmin;

    /// The first member that knows of its cluster is the one that is asked. The next one is tried
    /// when one does not answer at once: a cluster may have many that are away.
    async fn connect(
        &self,
        endpoints: &[Endpoint],
        credentials: &Credentials,
    ) -> Result<GrpcAdmin, AdminError> {
        if endpoints.is_empty() {
            return Err(AdminError::Unreachable("there is no member yet".to_owned()));
        }
        let turns = (0u32..).zip(endpoints).map(|(turn, endpoint)| {
            Box::pin(async move {
                tokio::time::sleep(TURN * turn).await;
                let reached = reach(endpoint, credentials).await;
                reached.map_err(|reason| format!("{}: {reason}", endpoint.host))
            })
        });
        let first = futures_util::future::select_ok(turns).await;
        let (admin, _) = first.map_err(AdminError::Unreachable)?;
        Ok(admin)
    }

    /// A call that is answered has gone through a whole handshake: with TLS 1.3 a client does not
    /// know before that its certificate was taken.
    async fn prove(&self, endpoint: &Endpoint, credentials: &Credentials) -> Result<(), String> {
        let asked = async {
            let mut client = AdminClient::new(channel(endpoint, credentials).await?);
            let asked = client
                .get_cluster(request(proto::GetClusterRequest {}))
                .await;
            asked.map_err(|status| describe(&status))
        };
        match tokio::time::timeout(PROOF_TIMEOUT, asked).await {
            Ok(answer) => answer.map(drop),
            Err(_) => Err("it does not answer".to_owned()),
        }
    }
}

async fn reach(endpoint: &Endpoint, credentials: &Credentials) -> Result<GrpcAdmin, String> {
    let mut client = AdminClient::new(channel(endpoint, credentials).await?);
    let asked = client
        .get_cluster(request(proto::GetClusterRequest {}))
        .await;
    let cluster = asked.map_err(|status| status.message().to_owned())?;
    // Of a cluster that is being made, or one that just joined: what it says would be read as a
    // cluster without nodes.
    if cluster.into_inner().nodes == 0 {
        return Err("it has no map of the cluster yet".to_owned());
    }
    Ok(GrpcAdmin { client })
}

async fn channel(endpoint: &Endpoint, credentials: &Credentials) -> Result<Channel, String> {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&credentials.authority))
        .identity(Identity::from_pem(
            &credentials.certificate,
            &credentials.key,
        ))
        .domain_name(&endpoint.host);
    let address = std::net::SocketAddr::new(endpoint.address, ADMIN_PORT);
    Channel::from_shared(format!("https://{address}"))
        .map_err(|error| error.to_string())?
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(CALL_TIMEOUT)
        .tls_config(tls)
        .map_err(|error| describe(&error))?
        .connect()
        .await
        .map_err(|error| describe(&error))
}

/// An error with what caused it.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert(
        ACTOR_METADATA_KEY,
        MetadataValue::from_static(FIELD_MANAGER),
    );
    request
}

fn refused(status: Status) -> AdminError {
    let message = status.message().to_owned();
    match status.code() {
        Code::FailedPrecondition
        | Code::InvalidArgument
        | Code::NotFound
        | Code::PermissionDenied
        | Code::Unauthenticated => AdminError::Refused(message),
        _ => AdminError::Unreachable(message),
    }
}

impl Admin for GrpcAdmin {
    async fn look(
        &self,
        whose: &Whose<'_>,
        restarts: &BTreeSet<MemberName>,
    ) -> Result<Seen, AdminError> {
        let mut client = self.client.clone();
        let cluster = client
            .get_cluster(request(proto::GetClusterRequest {}))
            .await;
        let nodes = client.list_nodes(request(proto::ListNodesRequest {})).await;
        let shards = client
            .list_shards(request(proto::ListShardsRequest { shard_id: None }))
            .await;
        let policy = client.get_policy(request(proto::GetPolicyRequest {})).await;
        let moves = client.list_moves(request(proto::ListMovesRequest {})).await;
        let nodes = nodes.map_err(refused)?.into_inner().nodes;
        let mut drains = BTreeMap::new();
        for node in &nodes {
            let due = seen::member(whose, node).is_some_and(|name| restarts.contains(&name));
            let purpose = match node.standing() {
                proto::Standing::DrainingForRestart | proto::Standing::DrainingForRemoval => {
                    node.standing()
                }
                _ if due => proto::Standing::DrainingForRestart,
                _ => continue,
            };
            let asked = proto::GetDrainRequest {
                node_id: node.node_id,
                purpose: purpose.into(),
            };
            let drain = client.get_drain(request(asked)).await.map_err(refused)?;
            drains.insert(node.node_id, drain.into_inner());
        }
        let answers = Answers {
            cluster: cluster.map_err(refused)?.into_inner(),
            nodes,
            shards: shards.map_err(refused)?.into_inner().shards,
            policy: policy
                .map_err(refused)?
                .into_inner()
                .policy
                .unwrap_or_default(),
            moves: moves.map_err(refused)?.into_inner().moves.len(),
            drains,
        };
        Ok(seen::understand(whose, &answers))
    }

    async fn set_standing(
        &self,
        node: NodeId,
        standing: Standing,
        forced: bool,
    ) -> Result<(), AdminError> {
        let asked = proto::SetStandingRequest {
            node_id: node.0,
            standing: match standing {
                Standing::Active => proto::Standing::Active,
                Standing::Cordoned => proto::Standing::Cordoned,
                Standing::DrainingForRestart => proto::Standing::DrainingForRestart,
                Standing::DrainingForRemoval => proto::Standing::DrainingForRemoval,
                Standing::Lost => proto::Standing::Lost,
            }
            .into(),
            forced,
        };
        let mut client = self.client.clone();
        client.set_standing(request(asked)).await.map_err(refused)?;
        Ok(())
    }

    async fn forget(&self, node: NodeId) -> Result<(), AdminError> {
        let mut client = self.client.clone();
        let asked = proto::ForgetNodeRequest { node_id: node.0 };
        client.forget_node(request(asked)).await.map_err(refused)?;
        Ok(())
    }

    async fn set_policy(
        &self,
        failure_replacement_after_s: u32,
        lost_nodes_max: u32,
    ) -> Result<(), AdminError> {
        let mut client = self.client.clone();
        let asked = proto::SetPolicyRequest {
            failure_replacement_after_s: Some(failure_replacement_after_s),
            lost_nodes_max: Some(lost_nodes_max),
            ..Default::default()
        };
        client.set_policy(request(asked)).await.map_err(refused)?;
        Ok(())
    }

    async fn join_token(&self) -> Result<String, AdminError> {
        let mut client = self.client.clone();
        let answer = client
            .get_join_token(request(proto::GetJoinTokenRequest {}))
            .await;
        Ok(answer.map_err(refused)?.into_inner().join_token)
    }
}
