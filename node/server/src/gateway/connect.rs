//! Reads the frames of one `Connect` stream, from its hello to its end.
//!
//! Owner of the state: the [`Reader`], which is the stream's only task. Everything that
//! others touch is in the [`Session`].

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use carillon_auth::caller::{Access, Caller};
use carillon_core::command::{encode_ack_cursor, encode_send};
use carillon_core::{ClientMessageId, ConversationId, DeviceId, InboxSeq, Reply, UserId};
use carillon_proto::internal::{self, answer, query};
use carillon_proto::v1;
use carillon_proto::v1::server_frame::Frame as ServerFrame;
use futures_util::Stream;
use tokio::time::{Instant, Sleep};
use tonic::codec::Streaming;
use tonic::{Code, Status};

use super::errors::Failure;
use super::frames::{self, ClientFrame, Frame, FrameDecoder, Hello};
use super::limits::{
    self, CURSOR_INTERVAL, FRAME_BYTES_MAX, HEARTBEATS_MISSED_MAX, PLATFORM_BYTES_MAX,
    SENDS_IN_FLIGHT_MAX,
};
use super::queue::Gate;
use super::registry::Listener;
use super::session::{Session, SessionBody};
use super::{Gateway, content, now_ms};
use crate::router::{Asked, CommandSink, OpError};
use crate::security::denied;

/// Answers a `Connect` request: the stream lives on in a task and in the body.
pub(super) fn connect(
    gateway: &Arc<Gateway>,
    caller: Caller,
    request: http::Request<tonic::body::Body>,
) -> http::Response<tonic::body::Body> {
    let (parts, body) = request.into_parts();
    if let Some(encoding) = parts.headers.get("grpc-encoding")
        && encoding != "identity"
    {
        let message = "compressed frames are not taken on this stream; send with identity encoding";
        let mut response = Status::unimplemented(message).into_http();
        let identity = http::HeaderValue::from_static("identity");
        response
            .headers_mut()
            .insert("grpc-accept-encoding", identity);
        return response;
    }
    let (number, session) = match gateway.open_session(caller) {
        Ok(opened) => opened,
        Err(failure) => return failure.into_status().into_http(),
    };
    let frames = Streaming::new_request(FrameDecoder, body, None, Some(FRAME_BYTES_MAX));
    let now = Instant::now();
    let reader = Reader {
        gateway: gateway.clone(),
        session: session.clone(),
        number,
        frames,
        timer: Box::pin(tokio::time::sleep_until(now + gateway.limits.hello_timeout)),
        heard_at: now,
        nothing: Arc::new(Forget),
    };
    tokio::spawn(reader.run());
    let mut response = http::Response::new(tonic::body::Body::new(SessionBody(session)));
    let grpc = http::HeaderValue::from_static("application/grpc");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, grpc);
    response
}

/// Takes answers that nobody waits for.
struct Forget;

impl CommandSink for Forget {
    fn complete(&self, _asked: Asked, _result: Result<Reply, OpError>) {}
}

/// Who said hello.
struct Identity {
    user: UserId,
    device: DeviceId,
    /// What the device calls itself, for the log.
    platform: Bytes,
    inbox_cursor: Option<u64>,
}

impl Identity {
    fn check(hello: Hello, caller: &Caller) -> Result<Self, Failure> {
        if hello.platform.len() > PLATFORM_BYTES_MAX {
            let actual = hello.platform.len() as u64;
            return Err(Failure::argument_limit(
                "platform_bytes_max",
                PLATFORM_BYTES_MAX as u64,
                actual,
            ));
        }
        let user = UserId::parse(hello.user_id)?;
        let device = DeviceId::parse(hello.device_id)?;
        caller
            .may_chat_as(user.as_str(), Some(device.as_str()), Access::Write)
            .map_err(|why| denied(&why))?;
        Ok(Self {
            user,
            device,
            platform: hello.platform,
            inbox_cursor: hello.inbox_cursor,
        })
    }
}

/// How far the device has told that it is.
struct Acknowledged {
    /// To be stored; 0 when everything is.
    pending: u64,
    stored_at: Option<Instant>,
}

/// What the reader wakes up for.
enum Wake {
    Frame(Option<Result<ClientFrame, Status>>),
    Timer,
    Ended,
}

/// See the module.
struct Reader {
    gateway: Arc<Gateway>,
    session: Arc<Session>,
    number: u64,
    frames: Streaming<ClientFrame>,
    /// The hello timeout; later the next time that silence or a cursor is looked at. It
    /// is moved when it fires, not with every frame.
    timer: Pin<Box<Sleep>>,
    heard_at: Instant,
    nothing: Arc<Forget>,
}

impl Reader {
    async fn run(mut self) {
        if let Some(identity) = self.hello().await {
            let listener = Listener::Session {
                device: identity.device.clone(),
                session: self.session.clone(),
            };
            if let Some(replaced) = self.gateway.registry.add(&identity.user, listener.clone()) {
                replaced.replace();
            }
            if self.welcome(&identity).await {
                self.live(&identity).await;
            }
            // Answers to what was taken still go out; deliveries have stopped.
            self.gateway.unlisten(&identity.user, &listener);
            self.session.closed().await;
            let session_id = self.gateway.session_id(self.number);
            tracing::debug!(session = session_id, "a stream has ended");
        }
        self.gateway.close_session(self.number);
    }

    /// Waits for the hello; none when the stream is over.
    async fn hello(&mut self) -> Option<Identity> {
        let refused = match std::future::poll_fn(|cx| self.poll_wake(cx)).await {
            Wake::Frame(Some(Ok(ClientFrame {
                frame: Some(Frame::Hello(hello)),
            }))) => match Identity::check(hello, self.session.caller()) {
                Ok(identity) => return Some(identity),
                Err(failure) => failure,
            },
            Wake::Frame(Some(Ok(_))) => {
                let message = "the first frame must be hello";
                self.session.protocol_error(Failure::new(
                    Code::FailedPrecondition,
                    "HELLO_EXPECTED",
                    message,
                ));
                return None;
            }
            Wake::Frame(Some(Err(status))) => {
                self.session.protocol_error(unreadable(&status));
                return None;
            }
            Wake::Frame(None) => {
                self.session.finish();
                return None;
            }
            Wake::Timer => {
                let seconds = self.gateway.limits.hello_timeout.as_secs_f64();
                let message = format!("no hello came within {seconds} s");
                Failure::new(Code::DeadlineExceeded, "HELLO_TIMEOUT", message)
            }
            Wake::Ended => return None,
        };
        self.session.refuse(refused);
        None
    }

    /// Subscribes and answers the hello. False when the stream is over.
    async fn welcome(&mut self, identity: &Identity) -> bool {
        let deadline = Instant::now() + self.gateway.limits.op_timeout;
        let prepared = {
            let session = self.session.clone();
            // Both arms are cancel-safe: neither keeps anything that would be lost.
            tokio::select! {
                prepared = prepare(&self.gateway, identity, deadline) => prepared,
                () = session.ending() => return false,
            }
        };
        let (cursor, head) = match prepared {
            Ok(prepared) => prepared,
            Err(failure) => {
                self.session.refuse(failure);
                return false;
            }
        };
        let interval = self.gateway.limits.heartbeat_interval;
        let session_id = self.gateway.session_id(self.number);
        tracing::debug!(
            session = session_id,
            user = identity.user.as_str(),
            device = identity.device.as_str(),
            platform = ?identity.platform,
            "a stream begins"
        );
        self.heard_at = Instant::now();
        self.timer
            .as_mut()
            .reset(self.heard_at + interval * HEARTBEATS_MISSED_MAX);
        self.session.go_live(head, |inbox_head| {
            ServerFrame::Welcome(v1::Welcome {
                session_id,
                server_time_ms: now_ms(),
                heartbeat_interval_ms: u32::try_from(interval.as_millis()).unwrap_or(u32::MAX),
                limits: Some(limits::announced()),
                inbox_cursor: cursor,
                inbox_head,
            })
        })
    }

    /// Reads frames until the stream ends.
    async fn live(&mut self, identity: &Identity) {
        let mut acknowledged = Acknowledged {
            pending: 0,
            stored_at: None,
        };
        loop {
            match std::future::poll_fn(|cx| self.poll_wake(cx)).await {
                Wake::Frame(Some(Ok(frame))) => {
                    self.heard_at = Instant::now();
                    if let Err(failure) = self.take(identity, &mut acknowledged, frame) {
                        self.session.protocol_error(failure);
                    }
                }
                Wake::Frame(Some(Err(status))) => self.session.protocol_error(unreadable(&status)),
                Wake::Frame(None) => self.session.finish(),
                Wake::Timer => self.on_timer(identity, &mut acknowledged),
                Wake::Ended => break,
            }
            // A client that never stops sending leaves room for the others.
            tokio::task::coop::consume_budget().await;
        }
        self.store_cursor(identity, &mut acknowledged, Instant::now());
    }

    fn poll_wake(&mut self, cx: &mut Context<'_>) -> Poll<Wake> {
        let gate = self.session.poll_gate(cx);
        if gate == Gate::Closed {
            return Poll::Ready(Wake::Ended);
        }
        if self.timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Wake::Timer);
        }
        if gate == Gate::Full {
            return Poll::Pending;
        }
        let frame = ready!(Pin::new(&mut self.frames).poll_next(cx));
        Poll::Ready(Wake::Frame(frame))
    }

    /// One frame; an error is a breach of the protocol.
    fn take(
        &mut self,
        identity: &Identity,
        acknowledged: &mut Acknowledged,
        frame: ClientFrame,
    ) -> Result<(), Failure> {
        match frame.frame {
            Some(Frame::Send(send)) => self.send(identity, send),
            Some(Frame::CursorAck(ack)) => {
                // Beyond what the stream was given it can only be a mistake; the shard
                // would cut it to the inbox's end.
                acknowledged.pending = acknowledged.pending.max(ack.inbox_seq);
                let due = acknowledged
                    .stored_at
                    .map_or(self.heard_at, |at| at + CURSOR_INTERVAL);
                if due <= self.heard_at {
                    self.store_cursor(identity, acknowledged, self.heard_at);
                } else if due < self.timer.deadline() {
                    self.timer.as_mut().reset(due);
                }
            }
            Some(Frame::Heartbeat(heartbeat)) => {
                let ack = v1::HeartbeatAck {
                    nonce: heartbeat.nonce,
                    server_time_ms: now_ms(),
                    inbox_head: self.session.told(),
                };
                self.session.answer(ServerFrame::HeartbeatAck(ack));
            }
            Some(Frame::Hello(_)) => {
                let message = "hello may be said only once";
                return Err(Failure::new(
                    Code::FailedPrecondition,
                    "HELLO_REPEATED",
                    message,
                ));
            }
            None => {
                let message = "a frame is empty or of a kind that this server does not know";
                return Err(Failure::invalid_argument("UNKNOWN_FRAME", message));
            }
        }
        Ok(())
    }

    fn send(&mut self, identity: &Identity, send: frames::Send) {
        let request_id = send.request_id;
        if !self.session.begin_send() {
            let max = u64::from(SENDS_IN_FLIGHT_MAX);
            let failure = Failure::limit("sends_in_flight_max", max, max + 1);
            self.gateway.metrics.sends_failed.inc();
            self.session
                .answer(ServerFrame::Error(failure.into_request_error(request_id)));
            return;
        }
        match prepare_send(identity, send) {
            Ok((conversation, command)) => {
                let deadline = self.heard_at + self.gateway.limits.op_timeout;
                let sink = self.session.clone();
                let asked = Asked {
                    request: request_id,
                    at: self.heard_at,
                };
                let slot = conversation.slot();
                self.gateway
                    .router
                    .submit(slot, command, deadline, sink, asked);
            }
            Err(failure) => self.session.finish_send(request_id, Err(failure)),
        }
    }

    fn on_timer(&mut self, identity: &Identity, acknowledged: &mut Acknowledged) {
        let now = Instant::now();
        let silent_at =
            self.heard_at + self.gateway.limits.heartbeat_interval * HEARTBEATS_MISSED_MAX;
        if silent_at <= now {
            self.session.time_out();
            return;
        }
        if acknowledged
            .stored_at
            .is_none_or(|at| at + CURSOR_INTERVAL <= now)
        {
            self.store_cursor(identity, acknowledged, now);
        }
        let next = match acknowledged.stored_at {
            Some(at) if acknowledged.pending > 0 => silent_at.min(at + CURSOR_INTERVAL),
            _ => silent_at,
        };
        self.timer.as_mut().reset(next);
    }

    fn store_cursor(&self, identity: &Identity, acknowledged: &mut Acknowledged, now: Instant) {
        let pending = std::mem::take(&mut acknowledged.pending);
        if pending == 0 {
            return;
        }
        acknowledged.stored_at = Some(now);
        let mut command = BytesMut::new();
        encode_ack_cursor(
            &mut command,
            &identity.user,
            &identity.device,
            InboxSeq(pending),
        );
        let deadline = now + self.gateway.limits.op_timeout;
        // A cursor that is lost costs a longer catch-up, nothing more.
        let sink = self.nothing.clone();
        let asked = Asked {
            request: 0,
            at: now,
        };
        let (slot, command) = (identity.user.slot(), command.freeze());
        self.gateway
            .router
            .submit(slot, command, deadline, sink, asked);
    }
}

/// The cursor to use and the inbox's end; subscribed from then on.
async fn prepare(
    gateway: &Gateway,
    identity: &Identity,
    deadline: Instant,
) -> Result<(u64, u64), Failure> {
    let cursor = async {
        match identity.inbox_cursor {
            Some(cursor) => Ok(cursor),
            None => stored_cursor(gateway, identity, deadline).await,
        }
    };
    let head = gateway.subscriptions.head(&identity.user, deadline);
    let (cursor, head) = futures_util::try_join!(cursor, head)?;
    if cursor > head {
        return Err(Failure::cursor_beyond_head(cursor, head));
    }
    Ok((cursor, head))
}

async fn stored_cursor(
    gateway: &Gateway,
    identity: &Identity,
    deadline: Instant,
) -> Result<u64, Failure> {
    let kind = query::Kind::Cursor(internal::CursorQuery {
        user_id: identity.user.as_str().to_owned(),
        device_id: identity.device.as_str().to_owned(),
    });
    match gateway.query(identity.user.slot(), kind, deadline).await? {
        answer::Kind::Cursor(answer) => Ok(answer.inbox_seq),
        other => Err(Failure::unexpected("a cursor query", other)),
    }
}

fn prepare_send(
    identity: &Identity,
    send: frames::Send,
) -> Result<(ConversationId, Bytes), Failure> {
    content::check(&send.content)?;
    let conversation = ConversationId::parse(send.conversation_id)?;
    let client_message_id = ClientMessageId::parse(send.client_message_id)?;
    let mut command = BytesMut::new();
    encode_send(
        &mut command,
        &conversation,
        &identity.user,
        &client_message_id,
        &send.content,
    );
    Ok((conversation, command.freeze()))
}

/// The stream's bytes are not frames.
fn unreadable(status: &Status) -> Failure {
    if status.code() == Code::OutOfRange {
        let max = FRAME_BYTES_MAX;
        let message = format!("a frame is larger than frame_bytes_max, {max} bytes");
        return Failure::new(Code::ResourceExhausted, "LIMIT_EXCEEDED", message)
            .with("limit", "frame_bytes_max")
            .with("max", max);
    }
    Failure::invalid_argument("INVALID_FRAME", status.message())
}
