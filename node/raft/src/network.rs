//! openraft's network over the links of a node.
//!
//! Owner of no state besides handles. Each request names the replica that it is for: the node may
//! by now hold another replica of the same shard, whose answers must not count.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use carillon_core::ids::{NodeId, ShardId};
use futures_util::Stream;
use futures_util::future::BoxFuture;
use openraft::base::{BoxFuture as RaftFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
};
use openraft::raft::{SnapshotResponse, StreamAppendResult, TransferLeaderResponse};
use openraft::type_config::alias::SnapshotOf;
use openraft::{OptionalSend, RaftNetworkFactory};

use crate::append::{AppendStream, answered, unreachable};
use crate::applied::AppliedRecord;
use crate::codec;
use crate::frame::FrameKind;
use crate::link::{Link, Links};
use crate::machine::{SnapshotContent, SnapshotData};
use crate::types::{
    AppendRequest, Member, ReplicaNode, TransferRequest, TypeConfig, Vote, VoteRequest,
    VoteResponse,
};

/// A snapshot that a leader wants to be brought to another replica.
pub struct OutgoingSnapshot {
    /// The shard.
    pub shard: ShardId,
    /// The replica that needs it, and its node.
    pub to: Member,
    /// The leader's vote, for [`crate::Group::install_snapshot`].
    pub vote: Bytes,
    /// The applied record of the content.
    pub applied: Bytes,
    /// The content, as [`crate::Machine::snapshot`] gave it.
    pub content: SnapshotContent,
}

/// How a snapshot gets to another node: implemented by the server with an RPC of its own, since
/// snapshots are too large for links.
pub trait SnapshotSender: Send + Sync + 'static {
    /// Sends the snapshot, lets the other node call [`crate::Group::install_snapshot`], and
    /// returns what that returned. Dropping the future cancels it: the leader has stepped down or
    /// the group was stopped. An error is retried after a while.
    fn send(&self, snapshot: OutgoingSnapshot) -> BoxFuture<'static, Result<Bytes, String>>;
}

/// The term of the one election in which voters are asked to ignore the lease of the old leader,
/// since its process is known to be dead; 0 for none.
#[derive(Debug, Default)]
pub(crate) struct ForcedElection(AtomicU64);

impl ForcedElection {
    pub(crate) fn allow(&self, term: u64) {
        self.0.store(term, Ordering::Relaxed);
    }

    fn is(&self, term: u64) -> bool {
        term != 0 && self.0.load(Ordering::Relaxed) == term
    }
}

/// Makes the clients of one group.
pub(crate) struct Network {
    pub(crate) shard: ShardId,
    pub(crate) links: Arc<Links>,
    pub(crate) snapshots: Arc<dyn SnapshotSender>,
    pub(crate) forced: Arc<ForcedElection>,
}

/// Talks to one replica.
pub(crate) struct Client {
    shard: ShardId,
    to: Member,
    link: Arc<Link>,
    snapshots: Arc<dyn SnapshotSender>,
    forced: Arc<ForcedElection>,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &ReplicaNode) -> Client {
        Client {
            shard: self.shard,
            to: crate::types::member(target, node),
            link: self.links.link(NodeId(node.node)),
            snapshots: Arc::clone(&self.snapshots),
            forced: Arc::clone(&self.forced),
        }
    }
}

type Error = RPCError<TypeConfig>;

impl Client {
    /// Sends a request and returns the body of its answer.
    async fn call(
        &self,
        kind: FrameKind,
        write: impl FnOnce(&mut BytesMut),
    ) -> Result<Bytes, Error> {
        let to = self.to.replica.0;
        let request = self.link.call(kind, self.shard, |buffer| {
            codec::put_u64(buffer, to);
            write(buffer);
        });
        let body = request
            .await
            .map_err(|lost| unreachable(&self.link, &lost.to_string()))?;
        answered(&self.link, body)
    }

    async fn ask_for_vote(
        &self,
        kind: FrameKind,
        request: VoteRequest,
    ) -> Result<VoteResponse, Error> {
        let mut body = self
            .call(kind, |buffer| codec::put_vote_request(buffer, &request))
            .await?;
        codec::get_vote_response(&mut body)
            .map_err(|error| unreachable(&self.link, &error.to_string()))
    }
}

impl NetStreamAppend<TypeConfig> for Client {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> RaftFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, Error>>, Error>>
    where
        S: Stream<Item = AppendRequest> + OptionalSend + Unpin + 'static,
    {
        self.link.append_stream_begun();
        // Also while the link is down: openraft waits out its back-off inside `input`, so an
        // error before that is polled would be tried again at once, for ever.
        let stream: BoxStream<'s, _> = Box::pin(AppendStream::new(
            &self.link,
            self.shard,
            self.to.replica.0,
            input,
        ));
        Box::pin(std::future::ready(Ok(stream)))
    }
}

impl NetVote<TypeConfig> for Client {
    async fn vote(
        &mut self,
        mut rpc: VoteRequest,
        _option: RPCOption,
    ) -> Result<VoteResponse, Error> {
        rpc.leadership_transfer |= self.forced.is(rpc.vote.leader_id.term);
        self.ask_for_vote(FrameKind::VOTE, rpc).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest,
        _option: RPCOption,
    ) -> Result<VoteResponse, Error> {
        self.ask_for_vote(FrameKind::PRE_VOTE, rpc).await
    }
}

impl NetTransferLeader<TypeConfig> for Client {
    /// The verdict of the other side is only for the log; [`crate::Group::transfer_leader`]
    /// watches whether the transfer happens.
    async fn transfer_leader(
        &mut self,
        request: TransferRequest,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, Error> {
        let mut body = self
            .call(FrameKind::TRANSFER, |buffer| {
                codec::put_transfer_request(buffer, &request)
            })
            .await?;
        match codec::get_u8(&mut body) {
            Ok(0) => {}
            _ => {
                tracing::warn!(shard = self.shard.0, to = %self.to, "the replica refused to take the lead")
            }
        }
        Ok(Ok(()))
    }
}

impl NetSnapshot<TypeConfig> for Client {
    type SnapshotData = SnapshotData;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let unreachable =
            |reason: String| StreamingError::Unreachable(Unreachable::from_string(reason));
        let SnapshotData::Content(content) = snapshot.snapshot else {
            return Err(unreachable(
                "a flush is not a snapshot that can be sent".to_owned(),
            ));
        };
        let outgoing = OutgoingSnapshot {
            shard: self.shard,
            to: self.to,
            vote: codec::encoded(|buffer| codec::put_vote(buffer, &vote)),
            applied: AppliedRecord::of_meta(&snapshot.meta).encode(),
            content,
        };
        let sending = tokio::time::timeout(option.hard_ttl(), self.snapshots.send(outgoing));
        // Either arm may be dropped: a snapshot not answered for is sent again.
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = sending => match sent {
                Ok(Ok(vote)) => match codec::whole_vote(vote) {
                    Ok(vote) => Ok(SnapshotResponse::new(vote)),
                    Err(error) => Err(unreachable(format!("snapshot to {}: {error}", self.to))),
                },
                Ok(Err(reason)) => Err(unreachable(format!("snapshot to {}: {reason}", self.to))),
                Err(_) => Err(StreamingError::Network(NetworkError::from_string(format!("snapshot to {} takes too long", self.to)))),
            },
        }
    }
}

impl NetBackoff<TypeConfig> for Client {
    fn backoff(&self) -> Option<Backoff> {
        None // that of the configuration
    }
}
