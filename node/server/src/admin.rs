//! `carillon.admin.v1`: any node answers for the whole cluster, by asking the others.

mod asker;
mod convert;
mod guard;
mod observed;
mod recovery;

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use carillon_core::Command;
use carillon_core::ids::{NodeId, ShardId, Slot};
use carillon_core::map::{
    ClusterVersion, JoinToken, META_SHARD, MergeReason, MergeRefusal, MetaCommand, MetaRefusal,
    MetaReply, MetaState, ShardDescriptor, SplitReason, Standing, upgrade_hindrances,
};
use carillon_proto::admin::admin_server::Admin;
use carillon_proto::admin::replica_status::Role;
use carillon_proto::admin::{
    CancelMergeRequest, CancelMergeResponse, ChecksumShardRequest, ChecksumShardResponse, Event,
    FinalizeUpgradeRequest, FinalizeUpgradeResponse, ForgetNodeRequest, ForgetNodeResponse,
    GetClusterRequest, GetClusterResponse, GetDrainRequest, GetDrainResponse, GetJoinTokenRequest,
    GetJoinTokenResponse, GetPolicyRequest, GetPolicyResponse, GetRecoveryRequest,
    GetRecoveryResponse, ListEventsRequest, ListEventsResponse, ListMovesRequest,
    ListMovesResponse, ListNodesRequest, ListNodesResponse, ListShardsRequest, ListShardsResponse,
    MeasureAppendRequest, MeasureAppendResponse, MergeShardsRequest, MergeShardsResponse, Move,
    NodeStatus, RecoverShardRequest, RecoverShardResponse, ReplicaStatus, RestartNodeRequest,
    RestartNodeResponse, RotateJoinTokenRequest, RotateJoinTokenResponse, SetPolicyRequest,
    SetPolicyResponse, SetStandingRequest, SetStandingResponse, ShardStatus, SplitShardRequest,
    SplitShardResponse, TransferLeaderRequest, TransferLeaderResponse, TriggerSnapshotRequest,
    TriggerSnapshotResponse,
};
use carillon_proto::internal::{
    ChecksumRequest, FlushRequest, RestartRequest, SnapshotProgress, StatusResponse,
    TransferRequest,
};
use futures_util::future::join_all;
use tonic::{Code, Request, Response, Status};

use self::asker::Asker;
use self::convert::{
    merge_to_proto, policy_change, policy_to_proto, split_to_proto, standing_from_proto,
    standing_to_proto,
};
pub use self::guard::{GuardedAdmin, Way};
use crate::gateway::errors::Failure;
use crate::identity::random_id;
use crate::node::{Node, supported_by};
use crate::peer::Client;
use crate::peer::calls::CallError;
use crate::router::OpError;
use crate::shard::probe::{Probe, summarize};

/// Replicas that do not tell their checksum within this are left out.
const CHECKSUM_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a shard may take to put the question for its checksum in its order.
const ORDERED_TIMEOUT: Duration = Duration::from_secs(5);
/// What a refused drain would break, named one by one at most.
const DANGERS_NAMED_MAX: usize = 8;
/// How long the meta group may take to decide.
const META_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it is waited until the new leader leads, after it was asked to.
const LEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bounds of one measurement of the bare append.
const MEASURE_MS_MAX: u32 = 60_000;
const MEASURE_BYTES_MAX: u32 = 65_536;
const MEASURE_IN_FLIGHT_MAX: u32 = 65_536;
/// Who wanted what the cluster did by itself.
const BY_ITSELF: &str = "cluster";
const LEADER_POLL: Duration = Duration::from_millis(20);

fn status_with_reason<const N: usize>(
    code: Code,
    reason: &'static str,
    message: String,
    metadata: [(&'static str, String); N],
) -> Status {
    let failure = Failure::new(code, reason, message);
    metadata
        .into_iter()
        .fold(failure, |failure, (key, value)| failure.with(key, value))
        .into_status()
}

fn refused(refusal: &MetaRefusal) -> Status {
    let (code, reason) = match refusal {
        MetaRefusal::UnknownNode { .. } => (Code::NotFound, "NODE_NOT_FOUND"),
        MetaRefusal::TooFewNodes { .. } | MetaRefusal::TooManyLost { .. } => {
            (Code::FailedPrecondition, "NODE_NEEDED")
        }
        MetaRefusal::NodeInUse { .. }
        | MetaRefusal::NodeHoldsReplicas { .. }
        | MetaRefusal::NodeIsMoving { .. } => (Code::FailedPrecondition, "NODE_IN_USE"),
        MetaRefusal::ShardHasMajority { .. }
        | MetaRefusal::NotASurvivor { .. }
        | MetaRefusal::ShardIsRecovering { .. } => (Code::FailedPrecondition, "RECOVERY_REFUSED"),
        MetaRefusal::Policy(_) | MetaRefusal::TextTooLong { .. } => {
            (Code::InvalidArgument, "POLICY_OUT_OF_RANGE")
        }
        MetaRefusal::UnknownShard { .. } => (Code::NotFound, "SHARD_NOT_FOUND"),
        MetaRefusal::Split(_) | MetaRefusal::ShardIsMoving { .. } => {
            (Code::FailedPrecondition, "SHARD_NOT_SPLIT")
        }
        MetaRefusal::UpgradeNotFinalized { .. } => {
            (Code::FailedPrecondition, "UPGRADE_NOT_FINALIZED")
        }
        MetaRefusal::Merge(_) => (Code::FailedPrecondition, "SHARD_NOT_MERGED"),
        _ => (Code::FailedPrecondition, "REFUSED"),
    };
    status_with_reason(code, reason, refusal.to_string(), [])
}

/// What keeps the cluster from its next version.
fn hindrances(
    meta: &MetaState,
    statuses: &BTreeMap<NodeId, Option<StatusResponse>>,
) -> Vec<String> {
    upgrade_hindrances(meta, |node| statuses.get(&node)?.as_ref().map(supported_by))
}

fn no_such_node(error: &CallError, node: NodeId) -> Status {
    let metadata = [("node_id", node.0.to_string())];
    status_with_reason(
        Code::NotFound,
        "NODE_NOT_FOUND",
        error.to_string(),
        metadata,
    )
}

/// What another node answered, as an error that says which node.
fn said_by(node: NodeId) -> impl Fn(Status) -> Status {
    move |status| {
        let reason = match status.code() {
            Code::NotFound => "REPLICA_NOT_FOUND",
            Code::FailedPrecondition => "NODE_REFUSED",
            Code::Internal => "NODE_FAILED",
            // Of the node itself: it does not lead what it was asked about.
            Code::Unavailable if status.source().is_none() => "NO_LEADER",
            _ => "NODE_UNREACHABLE",
        };
        let text = format!("node {node}: {}", status.message());
        let metadata = [("node_id", node.0.to_string())];
        status_with_reason(status.code(), reason, text, metadata)
    }
}

/// Refuses a drain that would break something, and names it.
fn harmless(drain: &GetDrainResponse) -> Result<(), Status> {
    let dangers = &drain.dangers;
    if dangers.is_empty() {
        return Ok(());
    }
    let named = dangers.len().min(DANGERS_NAMED_MAX);
    let more = match dangers.len() - named {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    let text = format!("{}{more}; or force it", dangers[..named].join("; "));
    Err(status_with_reason(
        Code::FailedPrecondition,
        "NODE_NEEDED",
        text,
        [],
    ))
}

/// See the file's head.
pub struct AdminService {
    node: Arc<Node>,
    measuring: tokio::sync::Semaphore,
}

impl AdminService {
    /// The admin service of a node.
    pub fn new(node: Arc<Node>) -> Self {
        Self {
            node,
            measuring: tokio::sync::Semaphore::new(1),
        }
    }

    fn client(&self, node: NodeId) -> Result<Client, Status> {
        let client = self.node.calls().client(node);
        client.map_err(|error| match error {
            CallError::NoSuchNode(node) => no_such_node(&error, node),
            CallError::Superseded(node) | CallError::Address { node, .. } => status_with_reason(
                Code::FailedPrecondition,
                "NODE_UNREACHABLE",
                error.to_string(),
                [("node_id", node.0.to_string())],
            ),
        })
    }

    async fn all_statuses(&self) -> BTreeMap<NodeId, Option<StatusResponse>> {
        let mut statuses = self.node.calls().statuses().await;
        let (me, meta) = (self.node.cluster().me(), self.node.cluster().meta());
        if meta.map.node(me).is_some() {
            statuses.insert(me, Some(self.node.status()));
        }
        statuses
    }

    async fn descriptor(&self, shard: ShardId) -> Result<ShardDescriptor, Status> {
        let meta = match self.node.cluster().meta() {
            known if known.map.shard(shard).is_some() => known,
            // It may have been made a moment ago.
            _ => self.current().await,
        };
        meta.map.shard(shard).cloned().ok_or_else(|| {
            let metadata = [("shard_id", shard.0.to_string())];
            let text = format!(
                "shard {} does not exist; there are {}",
                shard.0,
                meta.map.shards.len()
            );
            status_with_reason(Code::NotFound, "SHARD_NOT_FOUND", text, metadata)
        })
    }

    /// The same for a command that somebody wants.
    async fn meta_by(&self, Asker(by): Asker, command: MetaCommand) -> Result<bool, Status> {
        let command = Box::new(command);
        self.meta(MetaCommand::By { by, command }).await
    }

    /// Executes a command in the meta group, and waits until this node knows of it; whether it
    /// changed anything.
    async fn meta(&self, command: MetaCommand) -> Result<bool, Status> {
        let deadline = tokio::time::Instant::now() + META_TIMEOUT;
        let reply = self.node.router().meta(command, deadline).await;
        let no_leader = |error: OpError| {
            status_with_reason(Code::Unavailable, "NO_LEADER", error.to_string(), [])
        };
        match reply.map_err(no_leader)? {
            MetaReply::Updated { changed, epoch } => {
                let mut known = self.node.cluster().watch_meta();
                let knows = known.wait_for(|meta| meta.map.epoch >= epoch);
                // It is done all the same when this node learns of it later.
                let _ = tokio::time::timeout_at(deadline, knows).await;
                Ok(changed)
            }
            MetaReply::Refused(refusal) => Err(refused(&refusal)),
            other => {
                let text = format!("the meta group answered with {other:?}");
                Err(Failure::internal(text).into_status())
            }
        }
    }

    /// Asks the meta group's leader about the drain of a node.
    async fn drain(&self, request: GetDrainRequest) -> Result<GetDrainResponse, Status> {
        let node = NodeId(request.node_id);
        if self.node.cluster().meta().standing(node).is_none() {
            return Err(no_such_node(&CallError::NoSuchNode(node), node));
        }
        let leader = self.leader(META_SHARD).await?;
        let answer = self.client(leader)?.drain(request).await;
        Ok(answer.map_err(said_by(leader))?.into_inner())
    }

    async fn leader(&self, shard: ShardId) -> Result<NodeId, Status> {
        if let Some(route) = self.node.cluster().leader(shard) {
            return Ok(route.node);
        }
        let led = |status: &StatusResponse| {
            status.replicas.iter().any(|replica| {
                replica.shard_id == shard.0
                    && replica
                        .status
                        .as_ref()
                        .is_some_and(|status| status.role() == Role::Leader)
            })
        };
        let statuses = self.all_statuses().await;
        let leader = statuses
            .iter()
            .find(|(_, status)| status.as_ref().is_some_and(led))
            .map(|(node, _)| *node);
        leader.ok_or_else(|| {
            let metadata = [("shard_id", shard.0.to_string())];
            let text = format!("shard {} has no leader now; try again in a moment", shard.0);
            status_with_reason(Code::Unavailable, "NO_LEADER", text, metadata)
        })
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn get_cluster(
        &self,
        _: Request<GetClusterRequest>,
    ) -> Result<Response<GetClusterResponse>, Status> {
        let cluster = self.node.cluster();
        let (meta, statuses) = self.observed().await;
        let mut led: Vec<u32> = statuses
            .values()
            .flatten()
            .flat_map(|status| &status.replicas)
            .filter(|replica| {
                replica
                    .status
                    .as_ref()
                    .is_some_and(|status| status.role() == Role::Leader)
            })
            .map(|replica| replica.shard_id)
            .collect();
        led.sort_unstable();
        led.dedup();
        Ok(Response::new(GetClusterResponse {
            cluster_id: meta.cluster_id.clone(),
            cluster_name: meta.cluster_name.clone(),
            map_epoch: meta.map.epoch.0,
            nodes: meta.map.nodes.len() as u32,
            nodes_up: statuses.values().flatten().count() as u32,
            shards: meta.map.shards.len() as u32,
            shards_led: led.iter().filter(|shard| **shard != META_SHARD.0).count() as u32,
            replication_factor: meta.replication_factor,
            meta_leader_node: cluster.leader(META_SHARD).map_or(0, |route| route.node.0),
            answering_node: cluster.me().0,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster_version: meta.cluster_version.0,
            cluster_version_known: ClusterVersion::MAX.0,
            upgrade_hindrances: match meta.cluster_version < ClusterVersion::MAX {
                true => hindrances(&meta, &statuses),
                false => Vec::new(),
            },
        }))
    }

    async fn list_nodes(
        &self,
        _: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        let (meta, mut statuses) = self.observed().await;
        let heard = statuses
            .values()
            .flatten()
            .flat_map(|status| &status.silent);
        let silent: BTreeMap<u64, u64> = heard.map(|one| (one.node_id, one.silent_ms)).collect();
        let nodes = meta.map.nodes.iter().map(|node| {
            let answered = statuses
                .remove(&node.node_id)
                .flatten()
                .and_then(|status| status.node);
            NodeStatus {
                node_id: node.node_id.0,
                client_address: node.client_address.clone(),
                peer_address: node.peer_address.clone(),
                standing: standing_to_proto(meta.standing(node.node_id)).into(),
                replicas_placed: meta.replicas_on(node.node_id) as u32,
                zone: node.zone.0.clone(),
                capacity_bytes: match node.capacity_bytes {
                    u64::MAX => 0,
                    bytes => bytes,
                },
                silent_ms: silent.get(&node.node_id.0).copied().unwrap_or(0),
                ..answered.unwrap_or_default()
            }
        });
        Ok(Response::new(ListNodesResponse {
            nodes: nodes.collect(),
        }))
    }

    async fn list_shards(
        &self,
        request: Request<ListShardsRequest>,
    ) -> Result<Response<ListShardsResponse>, Status> {
        let wanted = request.into_inner().shard_id;
        let (meta, statuses) = self.observed().await;
        if let Some(shard) = wanted
            && shard != META_SHARD.0
        {
            self.descriptor(ShardId(shard)).await?;
        }
        let mut replicas: BTreeMap<u32, Vec<ReplicaStatus>> = BTreeMap::new();
        replicas.insert(META_SHARD.0, Vec::new());
        for descriptor in &meta.map.shards {
            replicas.insert(
                descriptor.shard_id.0,
                descriptor
                    .replicas
                    .iter()
                    .map(|replica| ReplicaStatus {
                        node_id: replica.node_id.0,
                        replica_id: replica.replica_id.0,
                        role: Role::Unknown.into(),
                        ..ReplicaStatus::default()
                    })
                    .collect(),
            );
        }
        let reported = statuses.into_values().flatten();
        for replica in reported.flat_map(|status| status.replicas) {
            let Some(status) = replica.status else {
                continue;
            };
            // One that was merged or is being made has replicas, but is not a shard of the map.
            let Some(list) = replicas.get_mut(&replica.shard_id) else {
                continue;
            };
            match list
                .iter_mut()
                .find(|known| known.node_id == status.node_id)
            {
                Some(known) => *known = status,
                None => list.push(status),
            }
        }
        let shards = replicas
            .into_iter()
            .filter(|(shard, _)| wanted.is_none_or(|wanted| wanted == *shard))
            .map(|(shard_id, mut replicas)| {
                replicas.sort_by_key(|replica| replica.node_id);
                let descriptor = meta.map.shard(ShardId(shard_id));
                let slots = descriptor.map(|shard| shard.slots);
                // A node that was away may still believe that it leads.
                let leader = replicas
                    .iter()
                    .filter(|replica| replica.role() == Role::Leader)
                    .max_by_key(|replica| replica.term)
                    .map_or(0, |replica| replica.node_id);
                ShardStatus {
                    shard_id,
                    slot_first: slots.map_or(0, |slots| u32::from(slots.first.0)),
                    slot_last: slots.map_or(0, |slots| u32::from(slots.last.0)),
                    leader_node: leader,
                    preferred_leader_node: descriptor.map_or(0, |shard| shard.preferred_leader.0),
                    replicas,
                }
            });
        Ok(Response::new(ListShardsResponse {
            shards: shards.collect(),
        }))
    }

    async fn checksum_shard(
        &self,
        request: Request<ChecksumShardRequest>,
    ) -> Result<Response<ChecksumShardResponse>, Status> {
        let descriptor = self
            .descriptor(ShardId(request.into_inner().shard_id))
            .await?;
        let shard_id = descriptor.shard_id.0;
        let request = ChecksumRequest {
            shard_id,
            nonce: rand::random(),
        };
        // The lead may change meanwhile; it is asked again then.
        let command = Command::Checksum {
            nonce: request.nonce,
        };
        let deadline = tokio::time::Instant::now() + ORDERED_TIMEOUT;
        let slot = descriptor.slots.first;
        let ordered = self
            .node
            .router()
            .command(slot, command.encoded(), deadline);
        ordered.await.map_err(|error| {
            let metadata = [("shard_id", shard_id.to_string())];
            status_with_reason(Code::Unavailable, "NO_LEADER", error.to_string(), metadata)
        })?;
        let asked = descriptor.replicas.iter().map(|replica| async {
            let mut client = self.client(replica.node_id).ok()?;
            let answer = tokio::time::timeout(CHECKSUM_TIMEOUT, client.checksum(request))
                .await
                .ok()?;
            answer.ok().map(Response::into_inner)
        });
        let answers: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
        let log_index = answers.first().map_or(0, |answer| answer.log_index);
        let same_index = answers.iter().all(|answer| answer.log_index == log_index);
        let mut replicas: Vec<_> = answers
            .into_iter()
            .filter_map(|answer| answer.checksum)
            .collect();
        replicas.sort_by_key(|replica| replica.node_id);
        let equal = replicas
            .windows(2)
            .all(|pair| pair[0].checksum == pair[1].checksum);
        let consistent = same_index && equal && replicas.len() == descriptor.replicas.len();
        Ok(Response::new(ChecksumShardResponse {
            log_index,
            replicas,
            consistent,
        }))
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        let TransferLeaderRequest { shard_id, to_node } = request.into_inner();
        let shard = ShardId(shard_id);
        if shard != META_SHARD {
            let descriptor = self.descriptor(shard).await?;
            if !descriptor
                .replicas
                .iter()
                .any(|replica| replica.node_id.0 == to_node)
            {
                let text = format!("node {to_node} has no replica of shard {shard_id}");
                let metadata = [
                    ("shard_id", shard_id.to_string()),
                    ("node_id", to_node.to_string()),
                ];
                return Err(status_with_reason(
                    Code::FailedPrecondition,
                    "TARGET_NOT_READY",
                    text,
                    metadata,
                ));
            }
        }
        let leader = self.leader(shard).await?;
        if leader.0 != to_node {
            let transferred = self
                .client(leader)?
                .transfer(TransferRequest { shard_id, to_node })
                .await;
            transferred.map_err(|status| {
                let metadata = [
                    ("shard_id", shard_id.to_string()),
                    ("node_id", to_node.to_string()),
                ];
                match status.code() {
                    Code::FailedPrecondition => status_with_reason(
                        status.code(),
                        "TARGET_NOT_READY",
                        status.message().to_owned(),
                        metadata,
                    ),
                    _ => said_by(leader)(status),
                }
            })?;
        }
        if shard != META_SHARD {
            // Or it would soon be given back.
            let leaders = vec![(shard, NodeId(to_node))];
            self.meta(MetaCommand::SetPreferredLeaders { leaders })
                .await?;
        }
        let wait = async {
            while self
                .node
                .cluster()
                .leader(shard)
                .is_some_and(|route| route.node.0 != to_node)
            {
                tokio::time::sleep(LEADER_POLL).await;
            }
        };
        // The leader has confirmed; this only lets the answering node hear of it too.
        let _ = tokio::time::timeout(LEADER_TIMEOUT, wait).await;
        Ok(Response::new(TransferLeaderResponse {
            leader_node: to_node,
        }))
    }

    async fn get_join_token(
        &self,
        _: Request<GetJoinTokenRequest>,
    ) -> Result<Response<GetJoinTokenResponse>, Status> {
        Ok(Response::new(GetJoinTokenResponse {
            join_token: self.current().await.join_token.0.clone(),
        }))
    }

    async fn rotate_join_token(
        &self,
        request: Request<RotateJoinTokenRequest>,
    ) -> Result<Response<RotateJoinTokenResponse>, Status> {
        let asker = Asker::of(&request)?;
        let token = JoinToken(random_id());
        let join_token = token.0.clone();
        let at = crate::shard::now();
        self.meta_by(asker, MetaCommand::RotateJoinToken { token, at })
            .await?;
        Ok(Response::new(RotateJoinTokenResponse { join_token }))
    }

    async fn get_policy(
        &self,
        _: Request<GetPolicyRequest>,
    ) -> Result<Response<GetPolicyResponse>, Status> {
        let policy = policy_to_proto(&self.current().await.policy);
        Ok(Response::new(GetPolicyResponse {
            policy: Some(policy),
        }))
    }

    async fn set_policy(
        &self,
        request: Request<SetPolicyRequest>,
    ) -> Result<Response<SetPolicyResponse>, Status> {
        let asker = Asker::of(&request)?;
        let change = policy_change(&request.into_inner());
        let after = change.applied_to(&self.current().await.policy);
        let at = crate::shard::now();
        let command = MetaCommand::SetPolicy { change, at };
        let changed = self.meta_by(asker, command).await?;
        Ok(Response::new(SetPolicyResponse {
            changed,
            policy: Some(policy_to_proto(&after)),
        }))
    }

    async fn set_standing(
        &self,
        request: Request<SetStandingRequest>,
    ) -> Result<Response<SetStandingResponse>, Status> {
        let asker = Asker::of(&request)?;
        let request = request.into_inner();
        let standing = standing_from_proto(request.standing()).ok_or_else(|| {
            Failure::invalid_argument("INVALID_STANDING", "standing is missing or unknown")
                .into_status()
        })?;
        if matches!(standing, Standing::Draining { .. }) && !request.forced {
            let asked = GetDrainRequest {
                node_id: request.node_id,
                purpose: request.standing,
            };
            harmless(&self.drain(asked).await?)?;
        }
        let changed = self
            .meta_by(
                asker,
                MetaCommand::SetStanding {
                    node_id: NodeId(request.node_id),
                    standing,
                    forced: request.forced,
                    at: crate::shard::now(),
                },
            )
            .await?;
        Ok(Response::new(SetStandingResponse { changed }))
    }

    async fn get_drain(
        &self,
        request: Request<GetDrainRequest>,
    ) -> Result<Response<GetDrainResponse>, Status> {
        self.drain(request.into_inner()).await.map(Response::new)
    }

    async fn restart_node(
        &self,
        request: Request<RestartNodeRequest>,
    ) -> Result<Response<RestartNodeResponse>, Status> {
        let RestartNodeRequest { node_id, run } = request.into_inner();
        let node = NodeId(node_id);
        let asked = self.client(node)?.restart(RestartRequest { run }).await;
        asked.map_err(said_by(node))?;
        Ok(Response::new(RestartNodeResponse {}))
    }

    async fn forget_node(
        &self,
        request: Request<ForgetNodeRequest>,
    ) -> Result<Response<ForgetNodeResponse>, Status> {
        let asker = Asker::of(&request)?;
        let node_id = NodeId(request.into_inner().node_id);
        let command = MetaCommand::ForgetNode {
            node_id,
            at: crate::shard::now(),
        };
        let changed = self.meta_by(asker, command).await?;
        Ok(Response::new(ForgetNodeResponse { changed }))
    }

    async fn finalize_upgrade(
        &self,
        request: Request<FinalizeUpgradeRequest>,
    ) -> Result<Response<FinalizeUpgradeResponse>, Status> {
        let by = Asker::of(&request)?;
        let (meta, statuses) = self.observed().await;
        let to = meta.cluster_version.next();
        if to > ClusterVersion::MAX {
            return Ok(Response::new(FinalizeUpgradeResponse {
                changed: false,
                cluster_version: meta.cluster_version.0,
            }));
        }
        let hindrances = hindrances(&meta, &statuses);
        if !hindrances.is_empty() {
            let text = format!(
                "the cluster cannot go to version {to}: {}",
                hindrances.join("; ")
            );
            let metadata = [("cluster_version", to.to_string())];
            let code = Code::FailedPrecondition;
            return Err(status_with_reason(code, "UPGRADE_HINDERED", text, metadata));
        }
        let at = crate::shard::now();
        let command = MetaCommand::FinalizeUpgrade { to, at };
        let changed = self.meta_by(by, command).await?;
        Ok(Response::new(FinalizeUpgradeResponse {
            changed,
            cluster_version: self.node.cluster().meta().cluster_version.0,
        }))
    }

    async fn split_shard(
        &self,
        request: Request<SplitShardRequest>,
    ) -> Result<Response<SplitShardResponse>, Status> {
        let by = Asker::of(&request)?;
        let SplitShardRequest { shard_id, slot } = request.into_inner();
        let shard = self.descriptor(ShardId(shard_id)).await?;
        let middle = shard.slots.middle().unwrap_or(shard.slots.first);
        let wanted = slot.unwrap_or_else(|| u32::from(middle.0));
        let slot = u16::try_from(wanted).map(Slot).ok();
        let slot = slot.filter(|slot| shard.slots.split(*slot).is_some());
        let slot = slot.ok_or_else(|| {
            let text = format!(
                "shard {shard_id} has slots {} and cannot be split at slot {wanted}",
                shard.slots
            );
            let metadata = [("shard_id", shard_id.to_string())];
            status_with_reason(Code::FailedPrecondition, "SHARD_NOT_SPLIT", text, metadata)
        })?;
        let command = MetaCommand::StartSplit {
            shard_id: shard.shard_id,
            slot,
            reason: SplitReason::Asked,
            epoch: None,
            at: crate::shard::now(),
        };
        self.meta_by(by, command).await?;
        let meta = self.node.cluster().meta();
        let running = meta.splits.get(&shard.shard_id);
        let new_shard_id = running
            .map(|split| split.new_shard_id)
            .or_else(|| meta.map.shard_of(slot).map(|shard| shard.shard_id));
        Ok(Response::new(SplitShardResponse {
            new_shard_id: new_shard_id.map_or(0, |shard| shard.0),
            slot: u32::from(slot.0),
        }))
    }

    async fn merge_shards(
        &self,
        request: Request<MergeShardsRequest>,
    ) -> Result<Response<MergeShardsResponse>, Status> {
        let by = Asker::of(&request)?;
        let shard_id = ShardId(request.into_inner().shard_id);
        let shard_id = self.descriptor(shard_id).await?.shard_id;
        let meta = self.node.cluster().meta();
        let Some(right) = meta.map.right_of(shard_id) else {
            let refusal = MergeRefusal::NoNeighbour { shard_id };
            return Err(refused(&refusal.into()));
        };
        let absorbed_shard_id = right.shard_id;
        let command = MetaCommand::StartMerge {
            shard_id,
            absorbed_shard_id,
            reason: MergeReason::Asked,
            epoch: None,
            at: crate::shard::now(),
        };
        self.meta_by(by, command).await?;
        Ok(Response::new(MergeShardsResponse {
            absorbed_shard_id: absorbed_shard_id.0,
        }))
    }

    async fn cancel_merge(
        &self,
        request: Request<CancelMergeRequest>,
    ) -> Result<Response<CancelMergeResponse>, Status> {
        let by = Asker::of(&request)?;
        let shard_id = ShardId(request.into_inner().shard_id);
        let meta = self.current().await;
        let changed = match meta.merge_of(shard_id) {
            Some(merge) => {
                let (merge_id, at) = (merge.merge_id, crate::shard::now());
                let command = MetaCommand::CancelMerge { merge_id, at };
                self.meta_by(by, command).await?
            }
            None => false,
        };
        Ok(Response::new(CancelMergeResponse { changed }))
    }

    async fn list_moves(
        &self,
        _: Request<ListMovesRequest>,
    ) -> Result<Response<ListMovesResponse>, Status> {
        let node = |replica: Option<carillon_core::map::Replica>| {
            replica.map_or(0, |replica| replica.node_id.0)
        };
        let (meta, statuses) = self.observed().await;
        let sending: Vec<_> = statuses
            .values()
            .flatten()
            .flat_map(|status| &status.sending)
            .collect();
        let sent = |shard: ShardId, to: u64| {
            let of = |one: &&&SnapshotProgress| one.shard_id == shard.0 && one.to_node == to;
            sending
                .iter()
                .find(of)
                .map_or_else(SnapshotProgress::default, |one| **one)
        };
        let moves = meta.moves.values().map(|running| {
            let snapshot = sent(running.shard_id, node(running.add));
            Move {
                move_id: running.move_id.0,
                shard_id: running.shard_id.0,
                to_node: node(running.add),
                from_node: node(running.remove),
                step: running.step.to_string(),
                reason: running.reason.to_string(),
                started_at_ms: running.started_at.0,
                snapshot_bytes_sent: snapshot.sent_bytes,
                snapshot_bytes_total: snapshot.total_bytes,
                snapshot_bytes_per_s: snapshot.bytes_per_s,
            }
        });
        let waits = match self.node.cluster().leader(META_SHARD) {
            Some(route) => {
                let status = statuses.get(&route.node).and_then(Option::as_ref);
                status
                    .map(|status| status.waits.clone())
                    .unwrap_or_default()
            }
            None => vec!["the meta group has no leader; bring back its nodes".to_owned()],
        };
        Ok(Response::new(ListMovesResponse {
            moves: moves.collect(),
            waits,
            splits: meta.splits.values().map(split_to_proto).collect(),
            merges: meta.merges.values().map(merge_to_proto).collect(),
        }))
    }

    async fn list_events(
        &self,
        _: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        let meta = self.current().await;
        let events = meta.events.iter().map(|event| Event {
            at_ms: event.at.0,
            text: event.what.to_string(),
            by: match &event.by {
                Some(by) => by.to_string(),
                None => BY_ITSELF.to_owned(),
            },
        });
        Ok(Response::new(ListEventsResponse {
            events: events.collect(),
        }))
    }

    async fn get_recovery(
        &self,
        request: Request<GetRecoveryRequest>,
    ) -> Result<Response<GetRecoveryResponse>, Status> {
        let shard_id = request.into_inner().shard_id;
        self.recovery(shard_id).await.map(Response::new)
    }

    async fn recover_shard(
        &self,
        request: Request<RecoverShardRequest>,
    ) -> Result<Response<RecoverShardResponse>, Status> {
        let asker = Asker::of(&request)?;
        let recovered = self.recover(request.into_inner(), asker).await;
        recovered.map(Response::new)
    }

    async fn trigger_snapshot(
        &self,
        request: Request<TriggerSnapshotRequest>,
    ) -> Result<Response<TriggerSnapshotResponse>, Status> {
        let TriggerSnapshotRequest { shard_id, node_id } = request.into_inner();
        let shard = ShardId(shard_id);
        if shard != META_SHARD {
            self.descriptor(shard).await?;
        }
        let node = if node_id == 0 {
            self.leader(shard).await?
        } else {
            NodeId(node_id)
        };
        let flushed = self.client(node)?.flush(FlushRequest { shard_id }).await;
        let answer = flushed.map_err(said_by(node))?;
        Ok(Response::new(TriggerSnapshotResponse {
            flushed_index: answer.into_inner().flushed_index,
        }))
    }

    async fn measure_append(
        &self,
        request: Request<MeasureAppendRequest>,
    ) -> Result<Response<MeasureAppendResponse>, Status> {
        let MeasureAppendRequest {
            duration_ms,
            command_bytes,
            in_flight,
        } = request.into_inner();
        for (limit, max, actual) in [
            ("duration_ms_max", MEASURE_MS_MAX, duration_ms),
            ("command_bytes_max", MEASURE_BYTES_MAX, command_bytes),
            ("in_flight_max", MEASURE_IN_FLIGHT_MAX, in_flight),
        ] {
            if actual > max {
                let failure = Failure::argument_limit(limit, max.into(), actual.into());
                return Err(failure.into_status());
            }
        }
        let _one = self
            .measuring
            .try_acquire()
            .map_err(|_| Failure::limit("measurements_max", 1, 2).into_status())?;
        let or = |value, default| if value == 0 { default } else { value };
        let duration = Duration::from_millis(or(duration_ms, 5_000).into());
        let led: Vec<_> = self
            .node
            .cluster()
            .replicas()
            .into_iter()
            .filter(|replica| replica.shard() != META_SHARD && replica.leads())
            .collect();
        let each = (u64::from(or(in_flight, 320)) / led.len().max(1) as u64).max(1);
        let bytes = or(command_bytes, 200) as usize;
        let shards = led.len() as u32;
        let started = std::time::Instant::now();
        let runs = led
            .into_iter()
            .map(|replica| Probe::run(replica, duration, bytes, each));
        let results = join_all(runs).await;
        let measured = summarize(started.elapsed(), results);
        Ok(Response::new(MeasureAppendResponse {
            acknowledged: measured.acknowledged,
            elapsed_us: measured.elapsed.as_micros() as u64,
            p50_us: measured.p50.as_micros() as u64,
            p99_us: measured.p99.as_micros() as u64,
            max_us: measured.max.as_micros() as u64,
            shards,
        }))
    }
}
