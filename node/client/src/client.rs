//! The handle that an application holds, and how it is made.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use carillon_proto::{USER_METADATA_KEY, v1};
use futures_util::future::FutureExt;
use parking_lot::Mutex;
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};

use crate::api::Api;
use crate::backoff::Backoff;
use crate::caller::Caller;
use crate::connection::{Connection, Identity, SENDS_IN_FLIGHT_MAX, open};
use crate::credentials::Credentials;
use crate::cursor::{Cursor, CursorStore, MemoryCursor};
use crate::endpoints::Endpoints;
use crate::error::ClientError;
use crate::events::Events;
use crate::ids::{ClientMessageId, ConversationId, random_hex};
use crate::pending::{Outgoing, Sent};
use crate::session::{Command, Parts, Session, ends_session};

/// The largest event queue that can be asked for.
pub const EVENT_QUEUE_MAX: usize = 65_536;

/// How to connect; made by [`Client::builder`]. Only endpoints and user are needed.
pub struct ClientBuilder {
    endpoints: Vec<String>,
    credentials: Credentials,
    user: String,
    device: Option<String>,
    platform: String,
    cursor: Box<dyn CursorStore>,
    prefer_first: bool,
    connect_timeout: Duration,
    open_timeout: Duration,
    call_timeout: Duration,
    attempt_timeout: Duration,
    send_timeout: Duration,
    in_flight_max: usize,
    event_queue: usize,
}

impl ClientBuilder {
    fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            credentials: Credentials::default(),
            user: String::new(),
            device: None,
            platform: "rust".to_owned(),
            cursor: Box::new(MemoryCursor::default()),
            prefer_first: false,
            connect_timeout: Duration::from_secs(10),
            open_timeout: Duration::from_secs(3),
            call_timeout: Duration::from_secs(10),
            attempt_timeout: Duration::from_secs(3),
            send_timeout: Duration::from_secs(30),
            in_flight_max: SENDS_IN_FLIGHT_MAX,
            event_queue: 1024,
        }
    }

    /// Who connects.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = user.into();
        self
    }

    /// How to be sure of the cluster, and how to say who connects. Default: nothing of it, for
    /// a cluster in development mode.
    #[must_use]
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = credentials;
        self
    }

    /// Which of the user's devices: an id that the device keeps across restarts. Default:
    /// a random one, and so a new device every time.
    #[must_use]
    pub fn device(mut self, device: impl Into<String>) -> Self {
        self.device = Some(device.into());
        self
    }

    /// What it runs on, for people who look at sessions. Default: `rust`.
    #[must_use]
    pub fn platform(mut self, platform: impl Into<String>) -> Self {
        self.platform = platform.into();
        self
    }

    /// Where the inbox cursor is kept. Default: [`MemoryCursor`].
    #[must_use]
    pub fn cursor_store(mut self, store: impl CursorStore) -> Self {
        self.cursor = Box::new(store);
        self
    }

    /// Begins with the first endpoint. Default: users and devices are spread over the
    /// endpoints by a hash, so that they share the load.
    #[must_use]
    pub fn prefer_first(mut self) -> Self {
        self.prefer_first = true;
        self
    }

    /// How long `connect` tries before it fails. Default: 10 s.
    #[must_use]
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// How long one unary call may take with all its retries. Default: 10 s.
    #[must_use]
    pub fn call_timeout(mut self, limit: Duration) -> Self {
        self.call_timeout = limit;
        self
    }

    /// How long one endpoint has to answer a try before the next one is asked. Default: 3 s.
    #[must_use]
    pub fn attempt_timeout(mut self, limit: Duration) -> Self {
        self.attempt_timeout = limit;
        self.open_timeout = limit;
        self
    }

    /// How long a send may stay unacknowledged, reconnects included. Default: 30 s.
    #[must_use]
    pub fn send_timeout(mut self, limit: Duration) -> Self {
        self.send_timeout = limit;
        self
    }

    /// Unacknowledged sends at a time, 1 to 256; more wait. Default: 256.
    #[must_use]
    pub fn in_flight_max(mut self, sends: usize) -> Self {
        self.in_flight_max = sends;
        self
    }

    /// Events that wait for the application, 1 to 65,536. Default: 1,024.
    #[must_use]
    pub fn event_queue(mut self, events: usize) -> Self {
        self.event_queue = events;
        self
    }

    /// Only the unary calls, without a session. Must be called within a tokio runtime.
    pub fn api(&self) -> Result<Api, ClientError> {
        let device = self.device.clone().unwrap_or_else(random_hex);
        Ok(Api::new(self.caller(&device)?))
    }

    /// Connects a device: succeeds with the first endpoint that says welcome.
    ///
    /// # Errors
    /// [`ClientError::Unavailable`] or [`ClientError::Timeout`] when none did in time, and
    /// the server's refusals.
    pub async fn connect(self) -> Result<Client, ClientError> {
        check("in_flight_max", self.in_flight_max, SENDS_IN_FLIGHT_MAX)?;
        check("event_queue", self.event_queue, EVENT_QUEUE_MAX)?;
        let device = self.device.clone().unwrap_or_else(random_hex);
        let caller = self.caller(&device)?;
        let endpoints = caller.endpoints().clone();
        let api = Api::new(caller);
        let identity = Arc::new(Identity {
            user: self.user.clone(),
            device,
            platform: self.platform.clone(),
        });
        let (cursor, stored) =
            Cursor::load(self.cursor).map_err(|error| ClientError::CursorStore {
                what: "load",
                message: error.to_string(),
            })?;
        let first = FirstConnect {
            endpoints: &endpoints,
            identity: &identity,
            stored,
            open_timeout: self.open_timeout,
            limit: self.connect_timeout,
        };
        let connection = first.run().await?;
        let position = stored.unwrap_or(connection.welcome.inbox_cursor);
        cursor.begin_at(position);
        let cursor = Arc::new(cursor);
        let (commands, command_queue) = mpsc::channel(SENDS_IN_FLIGHT_MAX);
        let (events, event_queue) = mpsc::channel(self.event_queue);
        let ended = Arc::new(OnceLock::new());
        let parts = Parts {
            identity: identity.clone(),
            endpoints,
            api: api.clone(),
            cursor: cursor.clone(),
            commands: command_queue,
            events,
            ended: ended.clone(),
            open_timeout: self.open_timeout,
            send_timeout: self.send_timeout,
        };
        tokio::spawn(Session::new(parts, connection, position).run());
        Ok(Client(Arc::new(Shared {
            api,
            identity,
            commands,
            permits: Arc::new(Semaphore::new(self.in_flight_max)),
            send_timeout: self.send_timeout,
            ended,
            events: Mutex::new(Some(Events::new(event_queue, cursor))),
        })))
    }

    fn caller(&self, device: &str) -> Result<Caller, ClientError> {
        if self.user.is_empty() {
            return Err(ClientError::Config("no user given".to_owned()));
        }
        let first = if self.prefer_first {
            0
        } else {
            let mut hasher = DefaultHasher::new();
            (&self.user, device).hash(&mut hasher);
            // Only the low bits matter, modulo the number of endpoints.
            hasher.finish() as u32 as usize
        };
        let endpoints = Arc::new(Endpoints::new(
            &self.endpoints,
            first,
            self.credentials.clone(),
        )?);
        Caller::new(
            endpoints,
            Some((USER_METADATA_KEY, &self.user)),
            self.call_timeout,
            self.attempt_timeout,
        )
    }
}

fn check(what: &str, value: usize, max: usize) -> Result<(), ClientError> {
    if (1..=max).contains(&value) {
        Ok(())
    } else {
        Err(ClientError::Config(format!(
            "{what} is {value}, must be 1 to {max}"
        )))
    }
}

/// The first stream of a client, whose failure is the caller's to hear.
struct FirstConnect<'a> {
    endpoints: &'a Arc<Endpoints>,
    identity: &'a Arc<Identity>,
    stored: Option<u64>,
    open_timeout: Duration,
    limit: Duration,
}

impl FirstConnect<'_> {
    async fn run(&self) -> Result<Connection, ClientError> {
        let deadline = Instant::now() + self.limit;
        let mut backoff = Backoff::default();
        let mut index = self.endpoints.preferred();
        let mut failed_in_round = 0;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let opened = open(
                self.endpoints.clone(),
                index,
                self.identity.clone(),
                self.stored,
                self.open_timeout.min(left),
            )
            .await;
            let error = match opened {
                Ok(connection) => return Ok(connection),
                Err(error) if ends_session(&error) => return Err(error),
                Err(error) => error,
            };
            failed_in_round += 1;
            let pause = if failed_in_round < self.endpoints.len() {
                Duration::ZERO
            } else {
                failed_in_round = 0;
                backoff.next_wait()
            };
            if Instant::now() + pause >= deadline {
                return Err(error);
            }
            sleep(pause).await;
            index += 1;
        }
    }
}

struct Shared {
    api: Api,
    identity: Arc<Identity>,
    commands: mpsc::Sender<Command>,
    permits: Arc<Semaphore>,
    send_timeout: Duration,
    ended: Arc<OnceLock<ClientError>>,
    events: Mutex<Option<Events>>,
}

/// A connected device of a user; cheap to clone. The session lives until the last clone is
/// dropped or [`Client::close`] is called, and reconnects by itself.
#[derive(Clone)]
pub struct Client(Arc<Shared>);

/// A message that is on its way; resolves when it is acknowledged. Dropping it does not
/// take the message back.
#[derive(Debug)]
pub struct Sending {
    answer: oneshot::Receiver<Result<Sent, ClientError>>,
    ended: Arc<OnceLock<ClientError>>,
}

impl Future for Sending {
    type Output = Result<Sent, ClientError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = std::task::ready!(self.answer.poll_unpin(cx));
        Poll::Ready(answer.unwrap_or_else(|_| Err(end_of(&self.ended))))
    }
}

impl Client {
    /// Begins with the client ports of some nodes, as `host:port`; they are tried in turn.
    pub fn builder(endpoints: impl IntoIterator<Item = impl Into<String>>) -> ClientBuilder {
        ClientBuilder::new(endpoints)
    }

    /// The user.
    pub fn user(&self) -> &str {
        &self.0.identity.user
    }

    /// The device.
    pub fn device(&self) -> &str {
        &self.0.identity.device
    }

    /// The events of this session. They can be taken once; later calls get `None`.
    pub fn events(&self) -> Option<Events> {
        self.0.events.lock().take()
    }

    /// Sends one message under a fresh id and waits until a majority has it on disk; keeps
    /// trying, across reconnects, until the send timeout.
    ///
    /// # Errors
    /// [`ClientError::Timeout`] leaves open whether it was stored; [`Client::send_with_id`]
    /// under the same id finds out. Refusals say why.
    pub async fn send(
        &self,
        conversation: impl Into<ConversationId>,
        content: v1::Content,
    ) -> Result<Sent, ClientError> {
        self.send_with_id(conversation, ClientMessageId::random(), content)
            .await
    }

    /// Like [`Client::send`], under the given id: the same id in the same conversation is
    /// stored once, however often it is sent.
    pub async fn send_with_id(
        &self,
        conversation: impl Into<ConversationId>,
        id: impl Into<ClientMessageId>,
        content: v1::Content,
    ) -> Result<Sent, ClientError> {
        self.start_send(conversation, id, content).await?.await
    }

    /// Puts a message on its way and returns before it is acknowledged: messages go out in
    /// the order of these calls. Waits only while the most allowed are in flight.
    pub async fn start_send(
        &self,
        conversation: impl Into<ConversationId>,
        id: impl Into<ClientMessageId>,
        content: v1::Content,
    ) -> Result<Sending, ClientError> {
        let deadline = Instant::now() + self.0.send_timeout;
        let permit = timeout_at(deadline, self.0.permits.clone().acquire_owned())
            .await
            .map_err(|_| ClientError::Timeout {
                what: "send",
                after: self.0.send_timeout,
            })?
            .expect("the semaphore is never closed");
        let (reply, answer) = oneshot::channel();
        let message = Outgoing {
            conversation: conversation.into(),
            client_message_id: id.into(),
            content,
            deadline,
            reply,
            permit,
        };
        self.0
            .commands
            .send(Command::Send(message))
            .await
            .map_err(|_| end_of(&self.0.ended))?;
        Ok(Sending {
            answer,
            ended: self.0.ended.clone(),
        })
    }

    /// Ends the session: tells the server the cursor and closes the stream. Sends that are
    /// not acknowledged end with [`ClientError::Closed`]; wait for them first.
    pub async fn close(self) {
        let (done, closed) = oneshot::channel();
        if self.0.commands.send(Command::Close(done)).await.is_ok() {
            // An error says that the session had ended already.
            let _ = closed.await;
        }
    }

    /// The unary calls, as the same user and over the same connections.
    pub fn api(&self) -> &Api {
        &self.0.api
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("identity", &self.0.identity)
            .field("ended", &self.0.ended.get())
            .finish_non_exhaustive()
    }
}

fn end_of(ended: &OnceLock<ClientError>) -> ClientError {
    ended.get().cloned().unwrap_or(ClientError::Closed)
}
