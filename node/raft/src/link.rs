//! A link: one multiplexed, corked, bidirectional stream to a peer.
//!
//! A link owns the bytes that wait to be sent and the requests that wait for a response. It lives
//! as long as the peer is known; connections come and go beneath it, each with its own epoch. It
//! takes and gives `Bytes` and knows no transport. Senders encode straight into the one buffer;
//! whoever drives the connection takes all of it at once whenever the transport has room, so that
//! frames sent in between cost no write of their own.
//!
//! Invariants: buffered ≤ `link_buffer_bytes_max`; a frame is written wholly or not at all; what
//! was sent in one epoch is neither sent nor answered in another one; every waiting request is
//! answered or told of the loss.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use carillon_core::ids::{NodeId, ShardId};
use futures_util::Stream;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use crate::frame::{FrameKind, packet_length, put_frame};

/// Default of `link_buffer_bytes_max`.
pub const LINK_BUFFER_BYTES_DEFAULT: usize = 64 << 20;
/// Capacity that an idle link keeps, in bytes.
const BUFFER_CAPACITY_BYTES: usize = 64 << 10;

/// Which connection of a link. Grows with each one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkEpoch(u64);

/// The state of a link, for those who wait for changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkState {
    /// Whether a connection is open.
    pub up: bool,
    /// The newest connection, open or not.
    pub epoch: LinkEpoch,
}

/// What a link has sent since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Frames accepted for sending.
    pub frames: u64,
    /// Packets handed to the transport.
    pub packets: u64,
    /// Bytes handed to the transport.
    pub bytes: u64,
    /// Frames refused because the buffer or the frame was over its limit.
    pub refused: u64,
    /// Streams of append requests that were begun, heartbeats and retries among them; also
    /// while the link is down. Their pace is that of the heartbeats and of the back-off.
    pub append_streams: u64,
}

/// The link went down (or was never up) before the response came; whether the peer handled the
/// request is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the link to node {} is down or full", peer.0)]
pub struct LinkLost {
    /// The peer.
    pub peer: NodeId,
}

struct Outgoing {
    buffer: BytesMut,
    waker: Option<Waker>,
    epoch: u64,
    up: bool,
}

/// See the module's description.
pub struct Link {
    peer: NodeId,
    buffer_bytes_max: usize,
    outgoing: Mutex<Outgoing>,
    waiting: Mutex<HashMap<u64, Arc<Responses>>>,
    correlation: AtomicU64,
    state: watch::Sender<LinkState>,
    frames: AtomicU64,
    packets: AtomicU64,
    bytes: AtomicU64,
    refused: AtomicU64,
    append_streams: AtomicU64,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("peer", &self.peer)
            .field("state", &*self.state.borrow())
            .finish_non_exhaustive()
    }
}

impl Link {
    /// A link that is down. `buffer_bytes_max`: bytes that may wait to be sent; above it sends
    /// fail.
    pub fn new(peer: NodeId, buffer_bytes_max: usize) -> Arc<Link> {
        let state = LinkState {
            up: false,
            epoch: LinkEpoch(0),
        };
        Arc::new(Link {
            peer,
            buffer_bytes_max,
            outgoing: Mutex::new(Outgoing {
                buffer: BytesMut::new(),
                waker: None,
                epoch: 0,
                up: false,
            }),
            waiting: Mutex::default(),
            correlation: AtomicU64::new(1),
            state: watch::Sender::new(state),
            frames: AtomicU64::new(0),
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            append_streams: AtomicU64::new(0),
        })
    }

    /// The node at the other end.
    pub fn peer(&self) -> NodeId {
        self.peer
    }

    /// Whether a connection is open.
    pub fn is_up(&self) -> bool {
        self.state.borrow().up
    }

    /// Follows connections opening and closing.
    pub fn watch(&self) -> watch::Receiver<LinkState> {
        self.state.subscribe()
    }

    /// What was sent so far.
    pub fn stats(&self) -> LinkStats {
        LinkStats {
            frames: self.frames.load(Ordering::Relaxed),
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            append_streams: self.append_streams.load(Ordering::Relaxed),
        }
    }

    /// Counts a stream of append requests.
    pub(crate) fn append_stream_begun(&self) {
        self.append_streams.fetch_add(1, Ordering::Relaxed);
    }

    /// Queues a frame whose body `write` appends to the buffer it is given. False, and nothing
    /// queued, when the link is down, its buffer is full or the frame is over
    /// [`crate::FRAME_BYTES_MAX`]. `write` runs under the link's lock: encode only.
    #[must_use]
    pub fn send(
        &self,
        kind: FrameKind,
        shard: ShardId,
        correlation: u64,
        write: impl FnOnce(&mut BytesMut),
    ) -> bool {
        self.send_when(None, kind, shard, correlation, write)
    }

    /// Like [`Link::send`], but only into the connection `epoch`. Responses must be sent with it:
    /// the peer on a newer connection may be a new process that reuses correlations.
    #[must_use]
    pub fn respond(
        &self,
        epoch: LinkEpoch,
        shard: ShardId,
        correlation: u64,
        write: impl FnOnce(&mut BytesMut),
    ) -> bool {
        self.send_when(
            Some(epoch.0),
            FrameKind::RESPONSE,
            shard,
            correlation,
            write,
        )
    }

    fn send_when(
        &self,
        epoch: Option<u64>,
        kind: FrameKind,
        shard: ShardId,
        correlation: u64,
        write: impl FnOnce(&mut BytesMut),
    ) -> bool {
        let waker = {
            let mut outgoing = self.outgoing.lock();
            if !outgoing.up || epoch.is_some_and(|epoch| epoch != outgoing.epoch) {
                return false;
            }
            let before = outgoing.buffer.len();
            let full = before >= self.buffer_bytes_max;
            if full || put_frame(&mut outgoing.buffer, kind, shard, correlation, write).is_none() {
                self.refused.fetch_add(1, Ordering::Relaxed);
                return false;
            }
            if outgoing.buffer.len() > self.buffer_bytes_max {
                outgoing.buffer.truncate(before);
                self.refused.fetch_add(1, Ordering::Relaxed);
                return false;
            }
            outgoing.waker.take()
        };
        self.frames.fetch_add(1, Ordering::Relaxed);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// Begins a new connection and returns what is to be written to it. An older one ends: its
    /// stream stops, what waited to be sent is dropped, what waited for a response is told.
    pub fn open(self: &Arc<Self>) -> OutStream {
        let (epoch, waker) = {
            let mut outgoing = self.outgoing.lock();
            outgoing.epoch += 1;
            outgoing.up = true;
            outgoing.buffer = BytesMut::with_capacity(BUFFER_CAPACITY_BYTES);
            (outgoing.epoch, outgoing.waker.take())
        };
        self.after_change(
            LinkState {
                up: true,
                epoch: LinkEpoch(epoch),
            },
            waker,
        );
        OutStream {
            link: Arc::clone(self),
            epoch,
        }
    }

    /// Ends the connection `epoch`; nothing when it is no longer the newest.
    pub fn close(&self, epoch: LinkEpoch) {
        let waker = {
            let mut outgoing = self.outgoing.lock();
            if outgoing.epoch != epoch.0 || !outgoing.up {
                return;
            }
            outgoing.up = false;
            outgoing.buffer = BytesMut::new();
            outgoing.waker.take()
        };
        self.after_change(LinkState { up: false, epoch }, waker);
    }

    fn after_change(&self, state: LinkState, waker: Option<Waker>) {
        if let Some(waker) = waker {
            waker.wake();
        }
        // A request that registers after this and sends in the new epoch is unaffected; one that
        // registers just before is told of a loss that did not concern it, and retries.
        let lost: Vec<_> = self.waiting.lock().drain().collect();
        for (_, responses) in lost {
            responses.push(Err(LinkLost { peer: self.peer }));
        }
        self.state.send_if_modified(|current| {
            let newer = state.epoch > current.epoch || (state.epoch == current.epoch && !state.up);
            let changed = newer && *current != state;
            if changed {
                *current = state;
            }
            changed
        });
    }

    /// Hands the body of a response frame to the request that waits for it; a response that
    /// nobody waits for any more is dropped.
    pub fn on_response(&self, correlation: u64, body: Bytes) {
        let responses = self.waiting.lock().get(&correlation).cloned();
        if let Some(responses) = responses {
            responses.push(Ok(body));
        }
    }

    /// Sends a frame and waits for its response. There is no timeout besides the loss of the
    /// link; dropping the future forgets the request.
    pub async fn call(
        self: &Arc<Self>,
        kind: FrameKind,
        shard: ShardId,
        write: impl FnOnce(&mut BytesMut),
    ) -> Result<Bytes, LinkLost> {
        let exchange = self.exchange();
        if !self.send(kind, shard, exchange.correlation(), write) {
            return Err(LinkLost { peer: self.peer });
        }
        std::future::poll_fn(|cx| exchange.poll_response(cx)).await
    }

    /// Registers for the responses to one correlation.
    pub(crate) fn exchange(self: &Arc<Self>) -> Exchange {
        let correlation = self.correlation.fetch_add(1, Ordering::Relaxed);
        let responses = Arc::new(Responses::default());
        self.waiting
            .lock()
            .insert(correlation, Arc::clone(&responses));
        Exchange {
            link: Arc::clone(self),
            correlation,
            responses,
        }
    }
}

/// A correlation in use, with the responses that came for it. Dropping it forgets them.
pub(crate) struct Exchange {
    link: Arc<Link>,
    correlation: u64,
    responses: Arc<Responses>,
}

impl Exchange {
    pub(crate) fn correlation(&self) -> u64 {
        self.correlation
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    pub(crate) fn poll_response(&self, cx: &mut Context<'_>) -> Poll<Result<Bytes, LinkLost>> {
        let mut queue = self.responses.0.lock();
        match queue.arrived.pop_front() {
            Some(response) => Poll::Ready(response),
            None => {
                if !queue
                    .waker
                    .as_ref()
                    .is_some_and(|waker| waker.will_wake(cx.waker()))
                {
                    queue.waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.link.waiting.lock().remove(&self.correlation);
    }
}

/// Responses in order of arrival. As many as requests are in flight on the correlation, which the
/// requester bounds.
#[derive(Default)]
struct Responses(Mutex<ResponseQueue>);

#[derive(Default)]
struct ResponseQueue {
    arrived: VecDeque<Result<Bytes, LinkLost>>,
    waker: Option<Waker>,
}

impl Responses {
    fn push(&self, response: Result<Bytes, LinkLost>) {
        let waker = {
            let mut queue = self.0.lock();
            queue.arrived.push_back(response);
            queue.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// What is to be written to one connection, as packets of whole frames. Ends when the connection
/// is closed or replaced. Dropping it closes the connection.
pub struct OutStream {
    link: Arc<Link>,
    epoch: u64,
}

impl OutStream {
    /// The connection it belongs to.
    pub fn epoch(&self) -> LinkEpoch {
        LinkEpoch(self.epoch)
    }
}

impl Stream for OutStream {
    type Item = Bytes;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut outgoing = self.link.outgoing.lock();
        if outgoing.epoch != self.epoch || !outgoing.up {
            return Poll::Ready(None);
        }
        if outgoing.buffer.is_empty() {
            if !outgoing
                .waker
                .as_ref()
                .is_some_and(|waker| waker.will_wake(cx.waker()))
            {
                outgoing.waker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        let length = packet_length(&outgoing.buffer);
        let packet = outgoing.buffer.split_to(length).freeze();
        drop(outgoing);
        self.link.packets.fetch_add(1, Ordering::Relaxed);
        self.link
            .bytes
            .fetch_add(packet.len() as u64, Ordering::Relaxed);
        Poll::Ready(Some(packet))
    }
}

impl Drop for OutStream {
    fn drop(&mut self) {
        self.link.close(LinkEpoch(self.epoch));
    }
}

/// The links of a node for Raft traffic, one for each peer. Links are made when a peer is first
/// named and are down until somebody connects them.
#[derive(Debug)]
pub struct Links {
    buffer_bytes_max: usize,
    links: RwLock<HashMap<NodeId, Arc<Link>>>,
}

impl Links {
    /// No links yet. `buffer_bytes_max` is that of each link.
    pub fn new(buffer_bytes_max: usize) -> Arc<Links> {
        Arc::new(Links {
            buffer_bytes_max,
            links: RwLock::default(),
        })
    }

    /// The link to `peer`, made when there is none.
    pub fn link(&self, peer: NodeId) -> Arc<Link> {
        if let Some(link) = self.links.read().get(&peer) {
            return Arc::clone(link);
        }
        let mut links = self.links.write();
        Arc::clone(
            links
                .entry(peer)
                .or_insert_with(|| Link::new(peer, self.buffer_bytes_max)),
        )
    }

    /// All links, in no particular order.
    pub fn all(&self) -> Vec<Arc<Link>> {
        self.links.read().values().cloned().collect()
    }
}
