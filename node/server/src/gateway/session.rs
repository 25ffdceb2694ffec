//! One `Connect` stream: what is shared between the task that reads its frames, the
//! response body that sends what is queued, and those who push and answer.
//!
//! Owner of the state: the mutex around the queue. It is held for the time of encoding
//! one frame; wakers are called outside of it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use carillon_auth::caller::Caller;
use carillon_core::Reply;
use carillon_core::ids::MessageId;
use carillon_proto::v1::server_frame::Frame;
use carillon_proto::v1::{Kick, Sent, kick};
use futures_util::task::AtomicWaker;
use http_body::Frame as BodyFrame;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::errors::Failure;
use super::metrics::{GatewayMetrics, KickReason, ResyncReason};
use super::queue::{End, Gate, Pushed, SessionQueue, Taken};
use crate::router::{Asked, CommandSink, OpError};
use crate::trace::Tracer;

/// Counts what holds a place among `sessions_max`, and tells when all have gone.
#[derive(Debug, Default)]
pub(super) struct Places {
    taken: AtomicUsize,
    emptied: Notify,
}

/// A place that is given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<Places>);

impl Places {
    /// Takes a place.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when `max` are taken.
    pub fn take(self: &Arc<Self>, max: usize) -> Result<Place, Failure> {
        let taken = self.taken.fetch_add(1, Ordering::AcqRel);
        // From here on dropping gives it back.
        let place = Place(self.clone());
        if taken >= max {
            return Err(Failure::limit("sessions_max", max as u64, taken as u64 + 1));
        }
        Ok(place)
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }

    /// Waits until none is taken.
    pub async fn empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.taken() == 0 {
                return;
            }
            emptied.await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.0.taken.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.emptied.notify_waiters();
        }
    }
}

struct Inner {
    queue: SessionQueue,
    /// Of the body; there only while the queue is empty.
    body: Option<Waker>,
    /// The reader waits for a shorter queue.
    reader_waits: bool,
}

/// See the module.
pub(super) struct Session {
    inner: Mutex<Inner>,
    /// The task that reads frames: waits for space, or for the end.
    reader: AtomicWaker,
    metrics: Arc<GatewayMetrics>,
    tracer: Option<Arc<Tracer>>,
    caller: Caller,
    _place: Place,
}

impl Session {
    pub fn new(
        queue_bytes_max: usize,
        metrics: Arc<GatewayMetrics>,
        tracer: Option<Arc<Tracer>>,
        caller: Caller,
        place: Place,
    ) -> Arc<Self> {
        metrics.sessions.inc();
        Arc::new(Self {
            inner: Mutex::new(Inner {
                queue: SessionQueue::new(queue_bytes_max),
                body: None,
                reader_waits: false,
            }),
            reader: AtomicWaker::new(),
            metrics,
            tracer,
            caller,
            _place: place,
        })
    }

    /// Whose stream it is.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Changes the queue and wakes the body if it waits for something to send.
    fn change<R>(&self, change: impl FnOnce(&mut SessionQueue) -> R) -> R {
        let (result, body) = {
            let mut inner = self.inner.lock();
            (change(&mut inner.queue), inner.body.take())
        };
        if let Some(body) = body {
            body.wake();
        }
        result
    }

    /// An inbox entry was committed. The waker is to be woken for it to leave.
    #[must_use]
    pub fn push(&self, inbox_seq: u64, unread: u32, message: &[u8]) -> Option<Waker> {
        let (pushed, body) = {
            let mut inner = self.inner.lock();
            let pushed = inner.queue.push(inbox_seq, unread, message);
            (pushed, inner.body.take())
        };
        match pushed {
            Pushed::Delivered => {
                self.metrics.deliveries.inc();
            }
            Pushed::DeliveredAfterGap => {
                self.metrics.deliveries.inc();
                self.metrics.resync(ResyncReason::Gap);
            }
            Pushed::Overflowed => self.metrics.resync(ResyncReason::TooSlow),
            Pushed::Dropped => {}
        }
        body
    }

    /// A new leader told where the inbox ends.
    pub fn head_known(&self, head: u64) {
        if self.change(|queue| queue.head_known(head)) {
            self.metrics.resync(ResyncReason::Gap);
        }
    }

    /// The inbox ends at `head`: queues what `welcome` makes of the end that counts, and
    /// lets deliveries through. False when the stream ends already.
    pub fn go_live(&self, head: u64, welcome: impl FnOnce(u64) -> Frame) -> bool {
        self.change(|queue| match queue.go_live(head) {
            Some(head) => {
                queue.answer(welcome(head));
                true
            }
            None => false,
        })
    }

    /// A send begins; false when too many are unanswered.
    pub fn begin_send(&self) -> bool {
        self.inner.lock().queue.begin_send()
    }

    /// The answer to a send that began.
    pub fn finish_send(&self, request_id: u64, result: Result<Sent, Failure>) {
        let counter = match &result {
            Ok(sent) if sent.duplicate => &self.metrics.sends_duplicate,
            Ok(_) => &self.metrics.sends_stored,
            Err(_) => &self.metrics.sends_failed,
        };
        counter.inc();
        let frame = match result {
            Ok(sent) => Frame::Sent(sent),
            Err(failure) => Frame::Error(failure.into_request_error(request_id)),
        };
        let closed = self.change(|queue| {
            queue.finish_send(frame);
            queue.is_closed()
        });
        if closed {
            self.reader.wake();
        }
    }

    /// Queues a frame that answers something else.
    pub fn answer(&self, frame: Frame) {
        self.change(|queue| queue.answer(frame));
    }

    /// The last inbox entry that the stream was given or told to resync.
    pub fn told(&self) -> u64 {
        self.inner.lock().queue.told()
    }

    /// The client has nothing more to say: ends once every send is answered.
    pub fn finish(&self) {
        self.change(|queue| queue.finish(End::orderly()));
        self.reader.wake();
    }

    /// The node is going away: ends once every send is answered.
    pub fn drain(&self, reconnect_after_ms: u32) {
        let end = End {
            kick: Some(kick_frame(KickReason::Draining, "", reconnect_after_ms)),
            ..End::orderly()
        };
        if self.change(|queue| queue.finish(end)) {
            self.metrics.kick(KickReason::Draining);
        }
        self.reader.wake();
    }

    /// Another stream of the same device is here.
    pub fn replace(&self) {
        let message = "the same device connected again";
        let end = End {
            kick: Some(kick_frame(KickReason::Replaced, message, 0)),
            ..End::orderly()
        };
        self.kick(KickReason::Replaced, end, false);
    }

    /// The client is silent, so it may not be there to read either.
    pub fn time_out(&self) {
        let message = "nothing was heard for three heartbeat intervals";
        let end = End {
            kick: Some(kick_frame(KickReason::HeartbeatTimeout, message, 0)),
            ..End::orderly()
        };
        self.kick(KickReason::HeartbeatTimeout, end, true);
    }

    /// The client's credential is worth nothing any more.
    pub fn see_out(&self, failure: Failure) {
        let kick = kick_frame(KickReason::CredentialEnded, &failure.message, 0);
        let end = End {
            kick: Some(kick),
            status: failure.into_status(),
        };
        self.kick(KickReason::CredentialEnded, end, true);
    }

    /// The client sent what the protocol does not allow.
    pub fn protocol_error(&self, failure: Failure) {
        let kick = kick_frame(KickReason::ProtocolError, &failure.message, 0);
        let end = End {
            kick: Some(kick),
            status: failure.into_status(),
        };
        self.kick(KickReason::ProtocolError, end, false);
    }

    /// The stream cannot begin.
    pub fn refuse(&self, failure: Failure) {
        self.change(|queue| {
            queue.close(
                End {
                    kick: None,
                    status: failure.into_status(),
                },
                false,
            )
        });
        self.reader.wake();
    }

    fn kick(&self, reason: KickReason, end: End, discard: bool) {
        if self.change(|queue| queue.close(end, discard)) {
            self.metrics.kick(reason);
        }
        self.reader.wake();
    }

    /// For the task that reads frames; it is woken when the answer may have changed.
    pub fn poll_gate(&self, cx: &mut Context<'_>) -> Gate {
        self.reader.register(cx.waker());
        let mut inner = self.inner.lock();
        let gate = inner.queue.gate();
        inner.reader_waits = gate == Gate::Full;
        gate
    }

    /// Waits until the stream ends.
    pub async fn ending(&self) {
        std::future::poll_fn(|cx| match self.poll_gate(cx) {
            Gate::Closed => Poll::Ready(()),
            Gate::Open | Gate::Full => Poll::Pending,
        })
        .await;
    }

    /// Waits until no answer can come any more.
    pub async fn closed(&self) {
        std::future::poll_fn(|cx| {
            self.reader.register(cx.waker());
            if self.inner.lock().queue.is_closed() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// For the body, which is woken when there is something to take.
    fn poll_taken(&self, cx: &mut Context<'_>) -> Taken {
        let (taken, reader_waits) = {
            let mut inner = self.inner.lock();
            let taken = inner.queue.take();
            inner.body = match taken {
                Taken::Nothing => Some(cx.waker().clone()),
                Taken::Frames(_) | Taken::End(_) | Taken::Gone => None,
            };
            (taken, std::mem::take(&mut inner.reader_waits))
        };
        if reader_waits {
            self.reader.wake();
        }
        taken
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.metrics.sessions.dec();
    }
}

impl CommandSink for Session {
    fn complete(&self, asked: Asked, result: Result<Reply, OpError>) {
        let result = sent(asked.request, result);
        if let Some(tracer) = &self.tracer {
            trace_send(tracer, asked.at, &result);
        }
        self.finish_send(asked.request, result);
    }
}

/// A send that was given to a shard has been answered.
pub(super) fn trace_send(tracer: &Tracer, asked_at: Instant, result: &Result<Sent, Failure>) {
    let began = asked_at.into_std();
    match result {
        Ok(sent) => tracer.sent(MessageId(sent.message_id), began, sent.duplicate),
        Err(failure) => tracer.refused(began, failure.reason),
    }
}

/// The answer to a send.
pub(super) fn sent(request_id: u64, result: Result<Reply, OpError>) -> Result<Sent, Failure> {
    match result? {
        Reply::Sent {
            seq,
            message_id,
            at,
            duplicate,
        } => Ok(Sent {
            request_id,
            seq: seq.0,
            message_id: message_id.0,
            sent_at_ms: at.0,
            duplicate,
        }),
        Reply::Refused(refusal) => Err(refusal.into()),
        other => Err(Failure::unexpected("a send", other)),
    }
}

fn kick_frame(reason: KickReason, message: &str, reconnect_after_ms: u32) -> Kick {
    let reason = match reason {
        KickReason::Replaced => kick::Reason::Replaced,
        KickReason::Draining => kick::Reason::Draining,
        KickReason::HeartbeatTimeout => kick::Reason::HeartbeatTimeout,
        KickReason::ProtocolError => kick::Reason::ProtocolError,
        KickReason::CredentialEnded => kick::Reason::CredentialEnded,
    };
    let message = if reason == kick::Reason::Draining {
        "this node is stopping; connect to another one"
    } else {
        message
    };
    Kick {
        reason: reason.into(),
        message: message.to_owned(),
        reconnect_after_ms,
    }
}

/// The response body of a stream: sends all that is queued whenever the connection takes
/// more, then the trailers.
pub(super) struct SessionBody(pub(super) Arc<Session>);

impl http_body::Body for SessionBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame<Bytes>, Status>>> {
        match self.0.poll_taken(cx) {
            Taken::Frames(bytes) => {
                self.0.metrics.bytes_out.inc_by(bytes.len() as u64);
                Poll::Ready(Some(Ok(BodyFrame::data(bytes))))
            }
            Taken::End(status) => {
                let mut trailers = http::HeaderMap::with_capacity(3);
                let added = status.add_header(&mut trailers);
                let frame = added.map(|()| BodyFrame::trailers(trailers));
                Poll::Ready(Some(frame.map_err(|_| {
                    Status::new(Code::Internal, "the status has no header form")
                })))
            }
            Taken::Nothing => Poll::Pending,
            Taken::Gone => Poll::Ready(None),
        }
    }
}

impl Drop for SessionBody {
    fn drop(&mut self) {
        // Sent to its end, or the client is gone: the reader stops in both cases.
        self.0.inner.lock().queue.abandon();
        self.0.reader.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::task::{ArcWake, waker};

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl ArcWake for Count {
        fn wake_by_ref(me: &Arc<Self>) {
            me.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A live stream whose queue takes no delivery beyond a few bytes.
    fn session() -> Arc<Session> {
        let place = Arc::<Places>::default().take(1).expect("a place");
        let session = Session::new(100, Arc::default(), None, Caller::Anyone, place);
        assert!(session.go_live(
            0,
            |_| Frame::Welcome(carillon_proto::v1::Welcome::default())
        ));
        session
    }

    #[test]
    fn taking_frames_wakes_a_reader_only_if_it_waits_for_the_queue() {
        let (session, woken) = (session(), Arc::new(Count::default()));
        let waker = waker(woken.clone());
        let mut cx = Context::from_waker(&waker);
        assert_eq!(session.poll_gate(&mut cx), Gate::Open);
        assert!(matches!(session.poll_taken(&mut cx), Taken::Frames(_)));
        assert_eq!(woken.0.load(Ordering::Relaxed), 0, "it waits for frames");
        while session.poll_gate(&mut cx) == Gate::Open {
            session.answer(Frame::HeartbeatAck(carillon_proto::v1::HeartbeatAck {
                nonce: 1,
                server_time_ms: 1,
                inbox_head: 1,
            }));
        }
        assert!(matches!(session.poll_taken(&mut cx), Taken::Frames(_)));
        assert_eq!(woken.0.load(Ordering::Relaxed), 1, "the queue is shorter");
        assert_eq!(session.poll_gate(&mut cx), Gate::Open);
    }
}
