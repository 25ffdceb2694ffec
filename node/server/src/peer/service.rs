//! The internal service: links that peers dial, snapshots, and what the admin service of
//! any node asks of this one.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use carillon_core::command::BatchReader;
use carillon_core::ids::{NodeId, ShardId};
use carillon_core::map::{
    JoinToken, Merge, MergeStep, MetaCommand, MetaRefusal, MetaReply, NodeInfo, Supported,
};
use carillon_core::placement::Zone;
use carillon_proto::admin::{GetDrainRequest, GetDrainResponse, ReplicaChecksum};
use carillon_proto::internal::change_members_request::Change;
use carillon_proto::internal::peer_server::Peer;
use carillon_proto::internal::{
    ChangeMembersRequest, ChangeMembersResponse, ChecksumRequest, ChecksumResponse, FlushRequest,
    FlushResponse, IdentifyRequest, IdentifyResponse, InstallSnapshotResponse, JoinRequest,
    JoinResponse, KnownNode, LogEndRequest, LogEndResponse, MergeRequest, MergeResponse, Packet,
    RestartRequest, RestartResponse, SnapshotChunk, SplitShardRequest, SplitShardResponse,
    StartChecksumResponse, StatusRequest, StatusResponse, TransferRequest, TransferResponse,
};
use carillon_raft::MemberChange;
use futures_util::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::group::{config_from_proto, log_position_to_proto, member_from_proto};
use super::receive::{self, SnapshotInbox};
use super::{LinkKind, Peers};
use crate::node::Node;
use crate::shard::Replica;
use crate::shard::merging::NotMerged;

/// A leader that does not hand over within this keeps leading.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the meta group may take to give a new node its number.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);
/// A checksum of a large shard reads all of it.
const CHECKSUM_TIMEOUT: Duration = Duration::from_secs(120);

/// The answer to a step of a merge.
fn merged(done: Result<(), NotMerged>) -> Result<Response<MergeResponse>, Status> {
    match done {
        Ok(()) => Ok(Response::new(MergeResponse {})),
        Err(error @ NotMerged::Late) => Err(Status::failed_precondition(error.to_string())),
        Err(error) => Err(Status::unavailable(error.to_string())),
    }
}

type PacketStream = Pin<Box<dyn Stream<Item = Result<Packet, Status>> + Send>>;

/// See the file's head.
pub struct PeerService {
    /// The node, for status and flushes.
    pub node: Arc<Node>,
    /// Its links.
    pub peers: Arc<Peers>,
    /// Where snapshots are received.
    pub inbox: SnapshotInbox,
}

impl PeerService {
    /// Who calls, and what for. Whatever changes something here goes through this; only
    /// `Identify` and `Status` are answered to anybody.
    fn admitted<T>(&self, request: Request<T>) -> Result<(NodeId, T), Status> {
        let meta = self.peers.cluster.meta();
        let caller = self.peers.identity.caller(request.metadata(), &meta)?;
        Ok((caller, request.into_inner()))
    }

    fn accept(
        &self,
        kind: LinkKind,
        request: Request<Streaming<Packet>>,
    ) -> Result<Response<PacketStream>, Status> {
        let (node, packets) = self.admitted(request)?;
        let cluster = &self.peers.cluster;
        let link = match kind {
            LinkKind::Raft => Some(self.peers.links.link(node)),
            LinkKind::Relay => cluster.relay(node),
        };
        let link =
            link.ok_or_else(|| Status::not_found(format!("node {} is not known here", node.0)))?;
        let out = match kind {
            LinkKind::Raft => link.open(),
            LinkKind::Relay => self.peers.accept_relay(&link),
        };
        let inbound = packets.map(|packet| packet.map(|packet| packet.frames));
        tokio::spawn(self.peers.clone().serve(kind, link, out.epoch(), inbound));
        Ok(Response::new(Box::pin(
            out.map(|frames| Ok(Packet { frames })),
        )))
    }

    /// The merge that is asked for, as this node knows it, if it is at one of these steps;
    /// `asked` says which of its shards is asked then.
    fn merge(
        &self,
        request: Request<MergeRequest>,
        steps: &[MergeStep],
        asked: impl Fn(&Merge) -> ShardId,
    ) -> Result<Merge, Status> {
        let (_, request) = self.admitted(request)?;
        let meta = self.peers.cluster.meta();
        let mut running = meta.merges.values();
        let merge = running.find(|merge| {
            merge.merge_id.0 == request.merge_id
                && steps.contains(&merge.step)
                && asked(merge).0 == request.shard_id
        });
        merge.cloned().ok_or_else(|| {
            let text = "this node does not know of the merge, or it is at another step";
            Status::failed_precondition(text)
        })
    }

    fn replica(&self, shard: u32) -> Result<Arc<Replica>, Status> {
        self.peers
            .cluster
            .replica(ShardId(shard))
            .ok_or_else(|| Status::not_found(format!("shard {shard} has no replica on this node")))
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    type RaftStream = PacketStream;
    type RelayStream = PacketStream;

    async fn raft(
        &self,
        request: Request<Streaming<Packet>>,
    ) -> Result<Response<PacketStream>, Status> {
        self.accept(LinkKind::Raft, request)
    }

    async fn relay(
        &self,
        request: Request<Streaming<Packet>>,
    ) -> Result<Response<PacketStream>, Status> {
        self.accept(LinkKind::Relay, request)
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<InstallSnapshotResponse>, Status> {
        let (from, mut chunks) = self.admitted(request)?;
        let head = receive::head(&mut chunks, from).await?;
        let replica = self.replica(head.shard_id)?;
        let received = self.inbox.receive(&head, chunks).await?;
        tracing::info!(shard = head.shard_id, from = from.0, "installs a snapshot");
        let vote = replica
            .group()
            .install_snapshot(head.vote, head.meta, Arc::new(received))
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(InstallSnapshotResponse { vote }))
    }

    async fn identify(
        &self,
        request: Request<IdentifyRequest>,
    ) -> Result<Response<IdentifyResponse>, Status> {
        let meta = self.peers.cluster.meta();
        Ok(Response::new(
            self.peers.identity.identify(request.get_ref(), &meta),
        ))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(self.node.status()))
    }

    async fn checksum(
        &self,
        request: Request<ChecksumRequest>,
    ) -> Result<Response<ChecksumResponse>, Status> {
        let (_, ChecksumRequest { shard_id, nonce }) = self.admitted(request)?;
        let replica = self.replica(shard_id)?;
        let result = tokio::time::timeout(CHECKSUM_TIMEOUT, replica.checksums().wait(nonce))
            .await
            .map_err(|_| Status::deadline_exceeded("the checksum was not computed in time"))?
            .map_err(|error| Status::aborted(error.to_string()))?;
        let checksum = result.checksum.map_err(Status::internal)?;
        Ok(Response::new(ChecksumResponse {
            log_index: result.index,
            checksum: Some(ReplicaChecksum {
                node_id: self.peers.cluster.me().0,
                checksum: format!("{:032x}", checksum.xxh3_128),
                keys: checksum.keys,
                bytes: checksum.bytes,
            }),
        }))
    }

    // Nodes of this release order a checksum through their router; the release before asks here.
    async fn start_checksum(
        &self,
        request: Request<ChecksumRequest>,
    ) -> Result<Response<StartChecksumResponse>, Status> {
        let (_, ChecksumRequest { shard_id, nonce }) = self.admitted(request)?;
        if self.replica(shard_id)?.propose_checksum(nonce) {
            Ok(Response::new(StartChecksumResponse {}))
        } else {
            Err(Status::unavailable(format!(
                "this node does not lead shard {shard_id}"
            )))
        }
    }

    async fn split_shard(
        &self,
        request: Request<SplitShardRequest>,
    ) -> Result<Response<SplitShardResponse>, Status> {
        let (_, request) = self.admitted(request)?;
        let meta = self.peers.cluster.meta();
        let running = meta.splits.get(&ShardId(request.shard_id));
        let split = running.filter(|split| split.new_shard_id.0 == request.new_shard_id);
        let split = split.ok_or_else(|| {
            let text = "this node does not know of the split, or it is done";
            Status::failed_precondition(text)
        })?;
        if self.replica(request.shard_id)?.propose_split(split) {
            Ok(Response::new(SplitShardResponse {}))
        } else {
            Err(Status::unavailable(format!(
                "this node does not lead shard {}",
                request.shard_id
            )))
        }
    }

    async fn freeze_shard(
        &self,
        request: Request<MergeRequest>,
    ) -> Result<Response<MergeResponse>, Status> {
        let steps = [MergeStep::Freezing];
        let merge = self.merge(request, &steps, |merge| merge.absorbed_shard_id)?;
        let replica = self.replica(merge.absorbed_shard_id.0)?;
        merged(replica.freeze(merge.merge_id).await)
    }

    async fn keep_frozen(
        &self,
        request: Request<MergeRequest>,
    ) -> Result<Response<MergeResponse>, Status> {
        let steps = [MergeStep::Freezing, MergeStep::Absorbing];
        let merge = self.merge(request, &steps, |merge| merge.absorbed_shard_id)?;
        merged(self.node.keep_frozen(&merge).await)
    }

    async fn thaw_shard(
        &self,
        request: Request<MergeRequest>,
    ) -> Result<Response<MergeResponse>, Status> {
        let steps = [MergeStep::Thawing];
        let merge = self.merge(request, &steps, |merge| merge.absorbed_shard_id)?;
        let replica = self.replica(merge.absorbed_shard_id.0)?;
        merged(replica.thaw(merge.merge_id).await)
    }

    async fn absorb_shard(
        &self,
        request: Request<MergeRequest>,
    ) -> Result<Response<MergeResponse>, Status> {
        let steps = [MergeStep::Absorbing];
        let merge = self.merge(request, &steps, |merge| merge.shard_id)?;
        merged(self.node.absorb(&merge).await)
    }

    async fn transfer(
        &self,
        request: Request<TransferRequest>,
    ) -> Result<Response<TransferResponse>, Status> {
        let (_, TransferRequest { shard_id, to_node }) = self.admitted(request)?;
        self.replica(shard_id)?
            .group()
            .transfer_leader(NodeId(to_node), TRANSFER_TIMEOUT)
            .await
            .map_err(|error| Status::failed_precondition(error.to_string()))?;
        Ok(Response::new(TransferResponse {}))
    }

    async fn log_end(
        &self,
        request: Request<LogEndRequest>,
    ) -> Result<Response<LogEndResponse>, Status> {
        let (_, LogEndRequest { shard_id }) = self.admitted(request)?;
        let found = self.node.log_end(ShardId(shard_id)).await;
        let found = found.map_err(|error| Status::internal(format!("{error:#}")))?;
        let (replica, end) = found.ok_or_else(|| {
            Status::not_found(format!("shard {shard_id} has no replica on this node"))
        })?;
        let payload = end
            .payload
            .and_then(|payload| BatchReader::new(payload).ok());
        Ok(Response::new(LogEndResponse {
            replica_id: replica.0,
            last: end.last.map(log_position_to_proto),
            committed: end.committed.map(log_position_to_proto),
            last_at_ms: payload.map_or(0, |batch| batch.at().0),
        }))
    }

    async fn restart(
        &self,
        request: Request<RestartRequest>,
    ) -> Result<Response<RestartResponse>, Status> {
        let (from, RestartRequest { run }) = self.admitted(request)?;
        let meant = self.node.ask_to_restart(run);
        tracing::info!(from = from.0, meant, "is asked to restart");
        Ok(Response::new(RestartResponse {}))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let request = request.into_inner();
        let meta = self.peers.cluster.meta();
        if !meta.exists() {
            let text = "this node has no cluster yet, or does not know it yet";
            return Err(Status::unavailable(text));
        }
        if request.cluster_name != meta.cluster_name {
            return Err(Status::failed_precondition(format!(
                "this cluster is called {:?}, not {:?}; check cluster_name and join.peers",
                meta.cluster_name, request.cluster_name
            )));
        }
        let (min, max) = (request.cluster_version_min, request.cluster_version_max);
        if let Some(why) = Supported::said(min, max).lacks(meta.cluster_version) {
            return Err(Status::failed_precondition(why));
        }
        let command = MetaCommand::JoinNode {
            node: NodeInfo {
                node_id: NodeId(0),
                identity: request.identity,
                client_address: request.client_address,
                peer_address: request.peer_address,
                zone: Zone(request.zone),
                weight: request.weight,
                capacity_bytes: request.capacity_bytes,
            },
            token: JoinToken(request.join_token),
            at: crate::shard::now(),
        };
        let deadline = tokio::time::Instant::now() + JOIN_TIMEOUT;
        let reply = self.peers.router.meta(command, deadline).await;
        let reply = reply.map_err(|error| Status::unavailable(error.to_string()))?;
        let node_id = match reply {
            MetaReply::Joined { node_id, .. } => node_id,
            MetaReply::Refused(refusal @ MetaRefusal::WrongToken) => {
                return Err(Status::permission_denied(refusal.to_string()));
            }
            MetaReply::Refused(refusal) => {
                return Err(Status::failed_precondition(refusal.to_string()));
            }
            other => {
                let text = format!("the meta group answered with {other:?}");
                return Err(Status::internal(text));
            }
        };
        let nodes = meta.map.nodes.iter().map(|node| KnownNode {
            node_id: node.node_id.0,
            identity: node.identity.clone(),
            client_address: node.client_address.clone(),
            peer_address: node.peer_address.clone(),
        });
        Ok(Response::new(JoinResponse {
            cluster_id: meta.cluster_id.clone(),
            node_id: node_id.0,
            nodes: nodes.collect(),
        }))
    }

    async fn drain(
        &self,
        request: Request<GetDrainRequest>,
    ) -> Result<Response<GetDrainResponse>, Status> {
        let (_, request) = self.admitted(request)?;
        let drain = self.node.drain(request).await;
        drain
            .map(Response::new)
            .ok_or_else(|| Status::unavailable("this node does not lead the meta group"))
    }

    async fn change_members(
        &self,
        request: Request<ChangeMembersRequest>,
    ) -> Result<Response<ChangeMembersResponse>, Status> {
        let (_, request) = self.admitted(request)?;
        let change = match request.change {
            Some(Change::AddLearner(learner)) => {
                MemberChange::AddLearner(member_from_proto(learner))
            }
            Some(Change::RemoveLearner(learner)) => {
                MemberChange::RemoveLearner(member_from_proto(learner))
            }
            Some(Change::Voters(voters)) => MemberChange::Voters {
                voters: voters.voters.into_iter().map(member_from_proto).collect(),
                retain: false,
            },
            None => return Err(Status::invalid_argument("change is missing")),
        };
        let from = request
            .from
            .ok_or_else(|| Status::invalid_argument("from is missing"))?;
        let replica = self.replica(request.shard_id)?;
        let changed = replica
            .group()
            .change_members(change, config_from_proto(from))
            .await;
        changed.map_err(|error| Status::failed_precondition(error.to_string()))?;
        Ok(Response::new(ChangeMembersResponse {}))
    }

    async fn flush(
        &self,
        request: Request<FlushRequest>,
    ) -> Result<Response<FlushResponse>, Status> {
        let (_, FlushRequest { shard_id }) = self.admitted(request)?;
        let replica = self.replica(shard_id)?;
        let flushed_index = self
            .node
            .flush_and_purge(&replica)
            .await
            .map_err(|error| Status::internal(format!("{error:#}")))?;
        Ok(Response::new(FlushResponse { flushed_index }))
    }
}
