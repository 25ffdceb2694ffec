//! A cluster in memory that speaks `carillon.v1` over real gRPC on loopback, and can be
//! told to misbehave. Owner of all its state, behind one lock; nodes share it.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use carillon_client::proto as v1;
use carillon_proto::{ERROR_DOMAIN, USER_METADATA_KEY};
use futures_util::Stream;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};
use v1::chat_server::{Chat, ChatServer};
use v1::client_frame::Frame as FromClient;
use v1::server_frame::Frame as ToClient;

/// The heartbeat interval that the nodes ask for, milliseconds.
pub const HEARTBEAT_MS: u32 = 150;

type Frames = mpsc::UnboundedSender<Result<v1::ServerFrame, Status>>;

/// Things that go wrong, each for so many times.
#[derive(Debug, Default)]
pub struct Faults {
    /// Deliveries that are not pushed.
    pub deliveries_left_out: usize,
    /// Sends that are stored and not acknowledged.
    pub acks_lost: usize,
    /// Sends that are refused with UNAVAILABLE.
    pub sends_put_off: usize,
    /// Unary calls that are answered with UNAVAILABLE.
    pub calls_unavailable: usize,
    /// Nothing is answered on streams any more, not even heartbeats, on these nodes.
    pub silent_nodes: HashSet<usize>,
}

/// What the nodes saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// The client message ids of Send frames, in order of arrival.
    pub sends: Vec<String>,
    /// Each Hello's node and cursor.
    pub hellos: Vec<(usize, Option<u64>)>,
    /// Cursor acknowledgements.
    pub cursors: Vec<u64>,
    /// Sync calls.
    pub syncs: usize,
}

#[derive(Default)]
struct State {
    timelines: HashMap<String, Vec<v1::Message>>,
    answers: HashMap<(String, String, String), v1::SendResponse>,
    inboxes: HashMap<String, Vec<v1::InboxEntry>>,
    /// Besides direct conversations.
    groups: HashMap<String, Vec<String>>,
    sessions: Vec<Connected>,
    faults: Faults,
    seen: Seen,
}

struct Connected {
    node: usize,
    user: String,
    frames: Frames,
}

/// The cluster; dropping it leaves its nodes to the runtime.
pub struct FakeCluster {
    state: Arc<Mutex<State>>,
    nodes: Vec<(SocketAddr, Arc<AtomicBool>)>,
}

impl FakeCluster {
    pub async fn start(nodes: usize) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let mut started = Vec::new();
        for node in 0..nodes {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("bound");
            let down = Arc::new(AtomicBool::new(false));
            let service = ChatServer::new(FakeNode {
                node,
                state: state.clone(),
                down: down.clone(),
            });
            tokio::spawn(
                tonic::transport::Server::builder()
                    .add_service(service)
                    .serve_with_incoming(TcpListenerStream::new(listener)),
            );
            started.push((address, down));
        }
        Self {
            state,
            nodes: started,
        }
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(|(a, _)| a.to_string()).collect()
    }

    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.state.lock().faults);
    }

    pub fn seen<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.state.lock().seen)
    }

    pub fn group(&self, id: &str, members: &[&str]) {
        let members = members.iter().map(|m| (*m).to_owned()).collect();
        self.state.lock().groups.insert(id.to_owned(), members);
    }

    /// The client message ids of a conversation, in order.
    pub fn timeline(&self, conversation: &str) -> Vec<String> {
        let state = self.state.lock();
        let messages = state.timelines.get(conversation);
        messages
            .into_iter()
            .flatten()
            .map(|m| m.client_message_id.clone())
            .collect()
    }

    /// Stores a message as if `sender` had sent it.
    pub fn post(&self, sender: &str, conversation: &str, id: &str) {
        let mut state = self.state.lock();
        let content = carillon_client::text(id);
        state
            .store(sender, conversation, id, Some(content))
            .expect("posted");
    }

    /// Ends all streams of a node; while it is down it refuses everything.
    pub fn set_down(&self, node: usize, down: bool) {
        self.nodes[node].1.store(down, Ordering::SeqCst);
        if down {
            self.break_streams(Some(node));
        }
    }

    /// Ends streams without a word: of one node, or all.
    pub fn break_streams(&self, node: Option<usize>) {
        self.state.lock().sessions.retain(|session| {
            let hit = node.is_none_or(|n| n == session.node);
            if hit {
                let _ = session
                    .frames
                    .send(Err(Status::unavailable("node stopped")));
            }
            !hit
        });
    }

    /// Sends a frame to all streams of a user.
    pub fn push(&self, user: &str, frame: ToClient) {
        for session in &self.state.lock().sessions {
            if session.user == user {
                let _ = session.frames.send(Ok(server_frame(frame.clone())));
            }
        }
    }

    /// Kicks all streams of a user and ends them.
    pub fn kick(&self, user: &str, reason: v1::kick::Reason, reconnect_after_ms: u32) {
        self.push(
            user,
            ToClient::Kick(v1::Kick {
                reason: reason.into(),
                message: "told to".to_owned(),
                reconnect_after_ms,
            }),
        );
        self.state.lock().sessions.retain(|s| s.user != user);
    }

    /// The nodes that a user has streams on.
    pub fn connected_to(&self, user: &str) -> Vec<usize> {
        let state = self.state.lock();
        let sessions = state.sessions.iter().filter(|s| s.user == user);
        sessions.map(|s| s.node).collect()
    }
}

impl State {
    fn members(&self, conversation: &str) -> Vec<String> {
        match conversation.strip_prefix("direct:") {
            Some(pair) => pair.split(':').map(str::to_owned).collect(),
            None => self.groups.get(conversation).cloned().unwrap_or_default(),
        }
    }

    fn store(
        &mut self,
        sender: &str,
        conversation: &str,
        id: &str,
        content: Option<v1::Content>,
    ) -> Result<v1::SendResponse, Status> {
        let members = self.members(conversation);
        if members.is_empty() {
            return Err(refuse(Code::NotFound, "CONVERSATION_NOT_FOUND"));
        }
        if !members.iter().any(|m| m == sender) {
            return Err(refuse(Code::PermissionDenied, "NOT_A_MEMBER"));
        }
        let key = (sender.to_owned(), conversation.to_owned(), id.to_owned());
        if let Some(first) = self.answers.get(&key) {
            return Ok(v1::SendResponse {
                duplicate: true,
                ..*first
            });
        }
        let timeline = self.timelines.entry(conversation.to_owned()).or_default();
        let seq = timeline.len() as u64 + 1;
        let message = v1::Message {
            conversation_id: conversation.to_owned(),
            seq,
            message_id: 1000 + seq,
            sender_id: sender.to_owned(),
            client_message_id: id.to_owned(),
            sent_at_ms: 1,
            content,
        };
        timeline.push(message.clone());
        let answer = v1::SendResponse {
            seq,
            message_id: message.message_id,
            sent_at_ms: 1,
            duplicate: false,
        };
        self.answers.insert(key, answer);
        for member in members {
            let inbox = self.inboxes.entry(member.clone()).or_default();
            let entry = v1::InboxEntry {
                inbox_seq: inbox.len() as u64 + 1,
                message: Some(message.clone()),
                unread: 1,
            };
            inbox.push(entry.clone());
            for session in self.sessions.iter().filter(|s| s.user == member) {
                if self.faults.silent_nodes.contains(&session.node) {
                    continue;
                }
                if take(&mut self.faults.deliveries_left_out) {
                    continue;
                }
                let frame = server_frame(ToClient::Delivery(entry.clone()));
                let _ = session.frames.send(Ok(frame));
            }
        }
        Ok(answer)
    }

    fn head(&self, user: &str) -> u64 {
        self.inboxes.get(user).map_or(0, |inbox| inbox.len() as u64)
    }

    /// What a Send frame is answered with; nothing when the answer gets lost.
    fn send(&mut self, user: &str, send: v1::Send) -> Option<ToClient> {
        self.seen.sends.push(send.client_message_id.clone());
        let request_id = send.request_id;
        let stored = if take(&mut self.faults.sends_put_off) {
            Err(Status::unavailable("no leader"))
        } else {
            self.store(
                user,
                &send.conversation_id,
                &send.client_message_id,
                send.content,
            )
        };
        match stored {
            Ok(_) if take(&mut self.faults.acks_lost) => None,
            Ok(answer) => Some(ToClient::Sent(v1::Sent {
                request_id,
                seq: answer.seq,
                message_id: answer.message_id,
                sent_at_ms: answer.sent_at_ms,
                duplicate: answer.duplicate,
            })),
            Err(status) => Some(ToClient::Error(v1::RequestError {
                request_id,
                code: status.code().into(),
                reason: status
                    .get_details_error_info()
                    .map(|info| info.reason)
                    .unwrap_or_default(),
                message: status.message().to_owned(),
                metadata: HashMap::new(),
            })),
        }
    }
}

fn take(times: &mut usize) -> bool {
    let left = *times > 0;
    *times = times.saturating_sub(1);
    left
}

fn server_frame(frame: ToClient) -> v1::ServerFrame {
    v1::ServerFrame { frame: Some(frame) }
}

fn refuse(code: Code, reason: &str) -> Status {
    refuse_with(code, reason, &[])
}

fn refuse_with(code: Code, reason: &str, metadata: &[(&str, &str)]) -> Status {
    let metadata: HashMap<String, String> = metadata
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    let details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, metadata);
    Status::with_error_details(code, format!("refused: {reason}"), details)
}

struct FakeNode {
    node: usize,
    state: Arc<Mutex<State>>,
    down: Arc<AtomicBool>,
}

impl FakeNode {
    fn check_up(&self) -> Result<(), Status> {
        if self.down.load(Ordering::SeqCst) {
            return Err(Status::unavailable("node is down"));
        }
        Ok(())
    }

    /// The calling user, unless the call is to fail.
    fn user<T>(&self, request: &Request<T>) -> Result<String, Status> {
        self.check_up()?;
        if take(&mut self.state.lock().faults.calls_unavailable) {
            return Err(Status::unavailable("told to"));
        }
        let user = request.metadata().get(USER_METADATA_KEY);
        user.and_then(|user| user.to_str().ok())
            .map(str::to_owned)
            .ok_or_else(|| refuse(Code::Unauthenticated, "NO_USER"))
    }
}

type Answered<T> = Result<Response<T>, Status>;
type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Chat for FakeNode {
    type ConnectStream = BoxStream<v1::ServerFrame>;
    type SyncStreamStream = BoxStream<v1::SyncResponse>;

    async fn connect(
        &self,
        request: Request<Streaming<v1::ClientFrame>>,
    ) -> Answered<Self::ConnectStream> {
        self.check_up()?;
        let mut inbound = request.into_inner();
        let (frames, outbound) = mpsc::unbounded_channel();
        let (state, node) = (self.state.clone(), self.node);
        let hello = match inbound.message().await?.and_then(|f| f.frame) {
            Some(FromClient::Hello(hello)) => hello,
            _ => return Err(refuse(Code::FailedPrecondition, "HELLO_MISSING")),
        };
        let user = hello.user_id.clone();
        if user == "mallory" {
            return Err(refuse(Code::Unauthenticated, "UNKNOWN_USER"));
        }
        {
            let mut state = state.lock();
            state.seen.hellos.push((node, hello.inbox_cursor));
            let welcome = v1::Welcome {
                session_id: format!("{node}/{user}"),
                server_time_ms: 0,
                heartbeat_interval_ms: HEARTBEAT_MS,
                limits: None,
                inbox_cursor: hello.inbox_cursor.unwrap_or(0),
                inbox_head: state.head(&user),
            };
            let _ = frames.send(Ok(server_frame(ToClient::Welcome(welcome))));
            state.sessions.push(Connected {
                node,
                user: user.clone(),
                frames: frames.clone(),
            });
        }
        let frames = frames.downgrade();
        tokio::spawn(async move {
            while let Ok(Some(frame)) = inbound.message().await {
                let mut state = state.lock();
                // A broken stream hears nothing more.
                let Some(frames) = frames.upgrade() else {
                    return;
                };
                if state.faults.silent_nodes.contains(&node) {
                    continue;
                }
                let answer = match frame.frame {
                    Some(FromClient::Send(send)) => state.send(&user, send),
                    Some(FromClient::Heartbeat(beat)) => {
                        Some(ToClient::HeartbeatAck(v1::HeartbeatAck {
                            nonce: beat.nonce,
                            server_time_ms: 0,
                            inbox_head: state.head(&user),
                        }))
                    }
                    Some(FromClient::CursorAck(ack)) => {
                        state.seen.cursors.push(ack.inbox_seq);
                        None
                    }
                    Some(FromClient::Hello(_)) | None => None,
                };
                if let Some(answer) = answer {
                    let _ = frames.send(Ok(server_frame(answer)));
                }
            }
            // The client is gone, and its stream ends with it.
            if let Some(frames) = frames.upgrade() {
                let mut state = state.lock();
                state.sessions.retain(|s| !s.frames.same_channel(&frames));
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(
            outbound,
        ))))
    }

    async fn send(&self, request: Request<v1::SendRequest>) -> Answered<v1::SendResponse> {
        let user = self.user(&request)?;
        let send = request.into_inner();
        let answer = self.state.lock().store(
            &user,
            &send.conversation_id,
            &send.client_message_id,
            send.content,
        )?;
        Ok(Response::new(answer))
    }

    async fn get_messages(
        &self,
        request: Request<v1::GetMessagesRequest>,
    ) -> Answered<v1::GetMessagesResponse> {
        self.user(&request)?;
        let request = request.into_inner();
        let state = self.state.lock();
        let mut messages = state
            .timelines
            .get(&request.conversation_id)
            .cloned()
            .unwrap_or_default();
        let last_seq = messages.len() as u64;
        if request.direction() == v1::Direction::Backward {
            messages.reverse();
        }
        messages.truncate(request.limit.max(1) as usize);
        Ok(Response::new(v1::GetMessagesResponse {
            messages,
            last_seq,
            next_seq: 0,
        }))
    }

    async fn sync(&self, request: Request<v1::SyncRequest>) -> Answered<v1::SyncResponse> {
        let user = self.user(&request)?;
        let request = request.into_inner();
        let mut state = self.state.lock();
        state.seen.syncs += 1;
        let head = state.head(&user);
        if request.inbox_cursor > head {
            return Err(refuse(Code::OutOfRange, "CURSOR_BEYOND_HEAD"));
        }
        let limit = if request.limit == 0 {
            100
        } else {
            request.limit
        };
        let inbox = state.inboxes.get(&user).into_iter().flatten();
        let entries: Vec<_> = inbox
            .skip(request.inbox_cursor as usize)
            .take(limit as usize)
            .cloned()
            .collect();
        Ok(Response::new(v1::SyncResponse {
            inbox_cursor: request.inbox_cursor + entries.len() as u64,
            entries,
            inbox_head: head,
        }))
    }

    async fn sync_stream(&self, _: Request<v1::SyncRequest>) -> Answered<Self::SyncStreamStream> {
        Err(Status::unimplemented("the client does not use it"))
    }

    async fn list_conversations(
        &self,
        request: Request<v1::ListConversationsRequest>,
    ) -> Answered<v1::ListConversationsResponse> {
        self.user(&request)?;
        Err(refuse(Code::InvalidArgument, "INVALID_PAGE_TOKEN"))
    }

    async fn mark_read(
        &self,
        request: Request<v1::MarkReadRequest>,
    ) -> Answered<v1::MarkReadResponse> {
        self.user(&request)?;
        Err(refuse(Code::OutOfRange, "SEQ_BEYOND_END"))
    }

    async fn create_conversation(
        &self,
        request: Request<v1::CreateConversationRequest>,
    ) -> Answered<v1::CreateConversationResponse> {
        let user = self.user(&request)?;
        let request = request.into_inner();
        let mut state = self.state.lock();
        if state.groups.contains_key(&request.conversation_id) {
            return Err(refuse(Code::AlreadyExists, "CONVERSATION_EXISTS"));
        }
        let mut members = request.member_ids;
        members.push(user);
        let member_count = members.len() as u32;
        state
            .groups
            .insert(request.conversation_id.clone(), members);
        Ok(Response::new(v1::CreateConversationResponse {
            conversation: Some(v1::Conversation {
                conversation_id: request.conversation_id,
                name: request.name,
                member_count,
                ..Default::default()
            }),
        }))
    }

    async fn get_conversation(
        &self,
        request: Request<v1::GetConversationRequest>,
    ) -> Answered<v1::GetConversationResponse> {
        self.user(&request)?;
        Err(refuse(Code::NotFound, "CONVERSATION_NOT_FOUND"))
    }

    async fn add_members(
        &self,
        request: Request<v1::AddMembersRequest>,
    ) -> Answered<v1::AddMembersResponse> {
        self.user(&request)?;
        Err(refuse_with(
            Code::ResourceExhausted,
            "LIMIT_EXCEEDED",
            &[("limit", "members_max"), ("max", "500")],
        ))
    }

    async fn remove_members(
        &self,
        request: Request<v1::RemoveMembersRequest>,
    ) -> Answered<v1::RemoveMembersResponse> {
        self.user(&request)?;
        Err(refuse(Code::PermissionDenied, "NOT_THE_OWNER"))
    }

    async fn list_members(
        &self,
        request: Request<v1::ListMembersRequest>,
    ) -> Answered<v1::ListMembersResponse> {
        // Never answered: a node that hangs.
        self.user(&request)?;
        std::future::pending().await
    }
}
