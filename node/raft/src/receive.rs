//! The receiving side of a link: takes packets off a connection and answers Raft's requests.
//!
//! A receiver owns the requests that it has given to groups and that are not answered yet. Each
//! request is polled once at once, in the order of the frames, which puts it into its group's
//! queue in that order; then it waits among the others, and answers leave as they come. Every
//! request is answered, if only with an error code. Invariant: open appends ≤ `OPEN_APPENDS_MAX`;
//! above it the connection is not read, which the peer's links feel as back-pressure.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::{BufMut, Bytes, BytesMut};
use carillon_core::ids::ShardId;
use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
use openraft::EntryPayload;

use crate::append::{ANSWERED, GROUP_STOPPED, MALFORMED, NO_ROOM, UNKNOWN_REPLICA, WANTS_SNAPSHOT};
use crate::codec::{self, CodecError};
use crate::frame::{Frame, FrameError, FrameKind, next_frame};
use crate::group::Group;
use crate::link::{Link, LinkEpoch};
use crate::types::{Entry, Raft};

/// Requests of a connection that wait for their groups before no more are read. Groups answer
/// appends on their own (they wait for the local disk only), so this drains without the peer.
const OPEN_APPENDS_MAX: usize = 8192;

/// Finds the groups of a node.
pub trait GroupRegistry: Send + Sync + 'static {
    /// The group of a shard that has a replica here.
    fn group(&self, shard: ShardId) -> Option<Group>;

    /// Whether it takes more entries with commands from its leader now. Those of elections and of
    /// changes of members, which are few and small, it always takes, and those that it has.
    fn takes_commands(&self, shard: ShardId) -> bool;
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkEnd {
    /// The peer closed it.
    #[error("closed by the peer")]
    Closed,
    /// The transport failed.
    #[error("transport failed: {0}")]
    Transport(String),
    /// The peer sent what is not a packet.
    #[error("malformed packet: {0}")]
    Malformed(#[from] FrameError),
    /// A frame of a kind that is not Raft's.
    #[error("unexpected frame of kind {0}")]
    Kind(u8),
}

/// Runs the receiving side of one connection of `link` until it ends, then closes `epoch`.
///
/// `inbound` yields the packets that the peer's [`crate::OutStream`] gave.
pub async fn run_link<S, E>(
    link: Arc<Link>,
    epoch: LinkEpoch,
    inbound: S,
    groups: Arc<dyn GroupRegistry>,
) -> LinkEnd
where
    S: Stream<Item = Result<Bytes, E>> + Send,
    E: std::fmt::Display,
{
    let close = CloseOnDrop {
        link: Arc::clone(&link),
        epoch,
    };
    let mut receiver = RaftReceiver {
        link,
        epoch,
        groups,
        open: FuturesUnordered::new(),
    };
    let mut inbound = std::pin::pin!(inbound);
    let end = loop {
        // Both arms are cancel-safe: a packet or an answer is taken only when ready.
        tokio::select! {
            packet = inbound.next(), if receiver.open.len() < OPEN_APPENDS_MAX => match packet {
                // Unconstrained: running out of tokio's budget between frames would reorder them.
                Some(Ok(packet)) => {
                    if let Err(end) = tokio::task::unconstrained(receiver.on_packet(packet)).await {
                        break end;
                    }
                }
                Some(Err(error)) => break LinkEnd::Transport(error.to_string()),
                None => break LinkEnd::Closed,
            },
            Some(()) = receiver.open.next(), if !receiver.open.is_empty() => {}
        }
    };
    drop(close);
    end
}

struct CloseOnDrop {
    link: Arc<Link>,
    epoch: LinkEpoch,
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.link.close(self.epoch);
    }
}

type Handling = Pin<Box<dyn Future<Output = ()> + Send>>;

struct RaftReceiver {
    link: Arc<Link>,
    epoch: LinkEpoch,
    groups: Arc<dyn GroupRegistry>,
    open: FuturesUnordered<Handling>,
}

impl RaftReceiver {
    async fn on_packet(&mut self, mut packet: Bytes) -> Result<(), LinkEnd> {
        // Frames of one shard often follow each other.
        let mut known: Option<(ShardId, Option<Group>)> = None;
        while let Some(frame) = next_frame(&mut packet)? {
            if frame.kind == FrameKind::RESPONSE {
                self.link.on_response(frame.correlation, frame.body);
                continue;
            }
            let group = match &known {
                Some((shard, group)) if *shard == frame.shard => group.clone(),
                _ => {
                    let group = self.groups.group(frame.shard);
                    known = Some((frame.shard, group.clone()));
                    group
                }
            };
            self.on_request(frame, group).await?;
        }
        Ok(())
    }

    async fn on_request(&mut self, frame: Frame, group: Option<Group>) -> Result<(), LinkEnd> {
        let answer = Answer {
            link: Arc::clone(&self.link),
            epoch: self.epoch,
            shard: frame.shard,
            correlation: frame.correlation,
        };
        let mut body = frame.body;
        let Ok(to) = codec::get_u64(&mut body) else {
            answer.code(MALFORMED);
            return Ok(());
        };
        let Some(group) = group.filter(|group| group.me().replica.0 == to) else {
            answer.code(UNKNOWN_REPLICA);
            return Ok(());
        };
        let raft = group.raft().clone();
        let mut handling: Handling = match frame.kind {
            FrameKind::APPEND => {
                let takes_commands = self.groups.takes_commands(frame.shard);
                Box::pin(append(group, answer, body, takes_commands))
            }
            FrameKind::VOTE => Box::pin(vote(raft, answer, body, false)),
            FrameKind::PRE_VOTE => Box::pin(vote(raft, answer, body, true)),
            FrameKind::TRANSFER => Box::pin(transfer(raft, answer, body)),
            FrameKind(kind) => return Err(LinkEnd::Kind(kind)),
        };
        // The first poll puts the request into the group's queue, in the order of the frames.
        if futures_util::poll!(handling.as_mut()) == Poll::Pending {
            self.open.push(handling);
        }
        Ok(())
    }
}

/// Where the answer to one request goes.
struct Answer {
    link: Arc<Link>,
    epoch: LinkEpoch,
    shard: ShardId,
    correlation: u64,
}

impl Answer {
    /// An answer that can not be sent is lost with its connection, which tells the requester.
    fn send(&self, write: impl FnOnce(&mut BytesMut)) {
        if !self
            .link
            .respond(self.epoch, self.shard, self.correlation, write)
        {
            tracing::debug!(
                shard = self.shard.0,
                peer = self.link.peer().0,
                "answer dropped, the link is down or full"
            );
            self.link.close(self.epoch);
        }
    }

    fn code(&self, code: u8) {
        self.send(|buffer| buffer.put_u8(code));
    }

    fn malformed(&self, error: CodecError) {
        tracing::error!(shard = self.shard.0, peer = self.link.peer().0, %error, "malformed raft request");
        self.code(MALFORMED);
    }
}

async fn append(group: Group, answer: Answer, mut body: Bytes, takes_commands: bool) {
    let (sequence, request) = match codec::get_append_request(&mut body) {
        Ok(decoded) => decoded,
        Err(error) => return answer.malformed(error),
    };
    drop(body);
    let is_beginning = request.prev_log_id.is_none() && !request.entries.is_empty();
    if is_beginning && group.wants_snapshot() {
        return answer.code(WANTS_SNAPSHOT);
    }
    if !takes_commands {
        // A new leader does not know what this log has, and sends some of it again before the
        // first entry of its term, which may need this replica.
        let held = group.last_log();
        let is_new_command = |entry: &Entry| {
            matches!(entry.payload, EntryPayload::Normal(_)) && Some(entry.log_id.index) > held
        };
        if request.entries.iter().any(is_new_command) {
            return answer.code(NO_ROOM);
        }
    }
    match group.raft().append_entries(request).await {
        Ok(response) => answer.send(|buffer| {
            buffer.put_u8(ANSWERED);
            codec::put_u64(buffer, sequence);
            codec::put_append_response(buffer, &response);
        }),
        Err(_) => answer.code(GROUP_STOPPED),
    }
}

async fn vote(raft: Raft, answer: Answer, mut body: Bytes, pre_vote: bool) {
    let request = match codec::get_vote_request(&mut body) {
        Ok(request) => request,
        Err(error) => return answer.malformed(error),
    };
    let response = if pre_vote {
        raft.pre_vote(request).await
    } else {
        raft.vote(request).await
    };
    match response {
        Ok(response) => answer.send(|buffer| {
            buffer.put_u8(ANSWERED);
            codec::put_vote_response(buffer, &response);
        }),
        Err(_) => answer.code(GROUP_STOPPED),
    }
}

async fn transfer(raft: Raft, answer: Answer, mut body: Bytes) {
    let request = match codec::get_transfer_request(&mut body) {
        Ok(request) => request,
        Err(error) => return answer.malformed(error),
    };
    match raft.handle_transfer_leader(request).await {
        Ok(verdict) => answer.send(|buffer| {
            buffer.put_u8(ANSWERED);
            buffer.put_u8(u8::from(verdict.is_err()));
        }),
        Err(_) => answer.code(GROUP_STOPPED),
    }
}
