//! The task behind a client: keeps one stream to the cluster, through nodes that come
//! and go, and moves sends out and inbox entries in.
//!
//! Owner of all state of a session; the application reaches it through the command queue
//! and the event queue, both bounded. It ends when the last handle is dropped, when it is
//! told to, or when the server says that coming back is of no use.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use carillon_proto::v1;
use carillon_proto::v1::client_frame::Frame as ClientFrame;
use carillon_proto::v1::server_frame::Frame as ServerFrame;
use futures_util::future::BoxFuture;
use rand::Rng;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::api::Api;
use crate::backoff::Backoff;
use crate::connection::{Connection, Identity, open};
use crate::cursor::Cursor;
use crate::endpoints::Endpoints;
use crate::error::ClientError;
use crate::events::Event;
use crate::inbox::Inbox;
use crate::pending::{Outgoing, Pending};

/// How long cursor moves are collected before the server is told.
const CURSOR_ACK_INTERVAL: Duration = Duration::from_secs(1);
/// A stream that lived this long was good: its loss is no reason to back off.
const STABLE_AFTER: Duration = Duration::from_secs(5);
/// After a good stream broke, the next one is opened within this time, at random.
const RECONNECT_SPREAD: Duration = Duration::from_millis(50);
/// The longest wait that a server may ask for before a reconnect.
const RECONNECT_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long a closing session waits for the server to end the stream.
const CLOSE_WAIT: Duration = Duration::from_secs(1);
/// Connection events that wait for room in the event queue; beyond it the oldest go.
const NOTICES_MAX: usize = 8;

/// What the application asks of the session.
pub(crate) enum Command {
    Send(Outgoing),
    Close(oneshot::Sender<()>),
}

/// What a session is made of.
pub(crate) struct Parts {
    pub(crate) identity: Arc<Identity>,
    pub(crate) endpoints: Arc<Endpoints>,
    pub(crate) api: Api,
    pub(crate) cursor: Arc<Cursor>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) events: mpsc::Sender<Event>,
    /// Set when the session is over, for those who come later.
    pub(crate) ended: Arc<OnceLock<ClientError>>,
    pub(crate) open_timeout: Duration,
    pub(crate) send_timeout: Duration,
}

enum Link {
    Waiting(Instant),
    Opening(BoxFuture<'static, Result<Connection, ClientError>>),
    Up(Box<Connection>),
}

enum Incoming {
    Opened(Result<Box<Connection>, ClientError>),
    Frame(ServerFrame),
    Lost(ClientError),
}

impl Link {
    /// What comes next on it. Cancel-safe: the future of an opening stays in place, and
    /// so do the bytes of a frame read in part.
    async fn next(&mut self) -> Incoming {
        match self {
            // The session's timer ends it.
            Self::Waiting(_) => std::future::pending().await,
            Self::Opening(opening) => Incoming::Opened(opening.await.map(Box::new)),
            Self::Up(connection) => match connection.next_frame().await {
                Ok(frame) => Incoming::Frame(frame),
                Err(error) => Incoming::Lost(error),
            },
        }
    }
}

/// See the module.
pub(crate) struct Session {
    parts: Parts,
    link: Link,
    /// The endpoint to try next.
    next_index: usize,
    /// Endpoints that failed in a row since the last pause.
    failed_in_round: usize,
    backoff: Backoff,
    pending: Pending,
    inbox: Inbox,
    notices: VecDeque<Event>,
    sync: Option<BoxFuture<'static, (u64, Result<v1::SyncResponse, ClientError>)>>,
    /// A Sync is wanted to check the cursor, also when nothing is known to be missing.
    sync_wanted: bool,
    sync_not_before: Option<Instant>,
    sync_backoff: Backoff,
    /// The cursor that the server was told.
    acked: u64,
    ack_due: Option<Instant>,
}

/// Why the main loop ended.
enum End {
    Closed(Option<oneshot::Sender<()>>),
    Failed(ClientError),
}

impl Session {
    /// Begins with an open stream, after `position` in the inbox.
    pub(crate) fn new(parts: Parts, connection: Connection, position: u64) -> Self {
        let mut session = Self {
            link: Link::Waiting(Instant::now()),
            next_index: connection.index,
            failed_in_round: 0,
            backoff: Backoff::default(),
            pending: Pending::new(parts.send_timeout),
            inbox: Inbox::new(position),
            notices: VecDeque::new(),
            sync: None,
            sync_wanted: false,
            sync_not_before: None,
            sync_backoff: Backoff::default(),
            acked: 0,
            ack_due: None,
            parts,
        };
        session.opened(Box::new(connection));
        session
    }

    /// Runs until the end; see the module for when that is.
    pub(crate) async fn run(mut self) {
        let timer = sleep_until(Instant::now());
        tokio::pin!(timer);
        let end = loop {
            if let Err(error) = self.advance() {
                break End::Failed(error);
            }
            self.arm(timer.as_mut());
            let room_wanted = self.room_wanted();
            let more = tokio::select! {
                // All arms are cancel-safe: queues, timers, and futures kept in `self`.
                incoming = self.link.next() => self.incoming(incoming),
                command = self.parts.commands.recv() => match command {
                    Some(Command::Send(message)) => {
                        self.pending.add(message);
                        Ok(())
                    }
                    Some(Command::Close(done)) => break End::Closed(Some(done)),
                    None => break End::Closed(None),
                },
                (from, page) = wait_for(&mut self.sync) => self.synced(from, page),
                () = room(&self.parts.events), if room_wanted => Ok(()),
                () = &mut timer => self.due(Instant::now()),
            };
            if let Err(error) = more {
                break End::Failed(error);
            }
        };
        self.end(end).await;
    }

    /// Does all that can be done without waiting: frames out, events to the application,
    /// a Sync when something is missing.
    fn advance(&mut self) -> Result<(), ClientError> {
        let now = Instant::now();
        if let Link::Up(connection) = &mut self.link {
            for frame in self
                .pending
                .next_frames(now, connection.sends_in_flight_max())
            {
                let request_id = frame.request_id;
                if !connection.say(ClientFrame::Send(frame)) {
                    self.pending.not_sent(request_id);
                    let error = connection.lost_error("the stream takes no more frames");
                    return self.lost(error, None);
                }
            }
        }
        self.hand_over(now);
        self.start_sync(now);
        Ok(())
    }

    /// Moves notices and entries into the event queue while it has room.
    fn hand_over(&mut self, now: Instant) {
        loop {
            if self.inbox.caught_up() {
                self.notice(Event::CaughtUp);
            }
            if self.notices.is_empty() && !self.inbox.has_next() {
                return;
            }
            let permit = match self.parts.events.try_reserve() {
                Ok(permit) => permit,
                Err(TrySendError::Full(())) => return,
                Err(TrySendError::Closed(())) => {
                    // The application wants no events; it only sends.
                    self.notices.clear();
                    return;
                }
            };
            if let Some(notice) = self.notices.pop_front() {
                permit.send(notice);
            } else if let Some(entry) = self.inbox.next() {
                permit.send(Event::Message(entry));
                self.ack_due.get_or_insert(now + CURSOR_ACK_INTERVAL);
            }
        }
    }

    fn start_sync(&mut self, now: Instant) {
        let Link::Up(connection) = &self.link else {
            return;
        };
        let wanted = self.inbox.needs_sync() || self.sync_wanted;
        let put_off = self.sync_not_before.is_some_and(|at| at > now);
        let room = u32::try_from(self.parts.events.capacity()).unwrap_or(u32::MAX);
        if !wanted || put_off || room == 0 || self.sync.is_some() || self.parts.events.is_closed() {
            return;
        }
        self.sync_wanted = false;
        self.sync_not_before = None;
        let limit = room.min(connection.page_entries_max());
        let (api, from) = (self.parts.api.clone(), self.inbox.position());
        self.sync = Some(Box::pin(async move {
            (from, api.sync(from, limit, Duration::ZERO).await)
        }));
    }

    /// True when something waits for room in the event queue.
    fn room_wanted(&self) -> bool {
        let waiting = !self.notices.is_empty() || self.inbox.has_next() || self.inbox.needs_sync();
        waiting && self.parts.events.capacity() == 0 && !self.parts.events.is_closed()
    }

    fn synced(
        &mut self,
        from: u64,
        page: Result<v1::SyncResponse, ClientError>,
    ) -> Result<(), ClientError> {
        self.sync = None;
        let progress = match page {
            Ok(page) => {
                self.inbox.exists(page.inbox_head);
                self.inbox.page(from, page.entries, page.inbox_cursor)
            }
            Err(error) if ends_session(&error) => return Err(error),
            Err(error) => {
                tracing::debug!(%error, from, "sync failed, trying again");
                false
            }
        };
        if progress || !self.inbox.needs_sync() {
            self.sync_backoff.reset();
        } else {
            self.sync_not_before = Some(Instant::now() + self.sync_backoff.next_wait());
        }
        Ok(())
    }

    fn incoming(&mut self, incoming: Incoming) -> Result<(), ClientError> {
        match incoming {
            Incoming::Opened(Ok(connection)) => {
                self.opened(connection);
                Ok(())
            }
            Incoming::Opened(Err(error)) => self.open_failed(error),
            Incoming::Lost(error) => self.lost(error, None),
            Incoming::Frame(frame) => self.frame(frame),
        }
    }

    fn frame(&mut self, frame: ServerFrame) -> Result<(), ClientError> {
        match frame {
            ServerFrame::Sent(sent) => self.pending.acknowledged(&sent),
            ServerFrame::Error(error) => self.pending.refused(error, Instant::now()),
            ServerFrame::Delivery(entry) => self.inbox.delivered(entry),
            ServerFrame::HeartbeatAck(ack) => self.inbox.exists(ack.inbox_head),
            ServerFrame::Resync(resync) => self.inbox.exists(resync.to_inbox_seq),
            ServerFrame::Welcome(_) => tracing::warn!("a second welcome on one stream"),
            ServerFrame::Kick(kick) => return self.kicked(kick),
        }
        if let Link::Up(connection) = &mut self.link {
            connection.heard(self.pending.in_flight() > 0);
        }
        Ok(())
    }

    fn kicked(&mut self, kick: v1::Kick) -> Result<(), ClientError> {
        use v1::kick::Reason;
        let wait = Duration::from_millis(kick.reconnect_after_ms.into()).min(RECONNECT_WAIT_MAX);
        match kick.reason() {
            Reason::Replaced => Err(ClientError::Replaced),
            Reason::ProtocolError => Err(ClientError::Protocol(kick.message)),
            reason @ (Reason::Draining
            | Reason::HeartbeatTimeout
            // With a new one it is let in again, without any it is told so then.
            | Reason::CredentialEnded
            | Reason::Unspecified) => {
                let text = format!("{}: {}", reason.as_str_name(), kick.message);
                let error = match &self.link {
                    Link::Up(connection) => connection.lost_error(&text),
                    _ => return Ok(()),
                };
                self.lost(error, Some(wait))
            }
        }
    }

    fn opened(&mut self, connection: Box<Connection>) {
        let welcome = &connection.welcome;
        tracing::debug!(
            endpoint = connection.endpoint,
            session = welcome.session_id,
            head = welcome.inbox_head,
            "connected"
        );
        self.parts.endpoints.prefer(connection.index);
        self.next_index = connection.index;
        self.failed_in_round = 0;
        self.notice(Event::Connected {
            endpoint: connection.endpoint.clone(),
            session_id: connection.welcome.session_id.clone(),
        });
        self.inbox.connected(connection.welcome.inbox_head);
        // A head before the position is either late news or another cluster's inbox;
        // Sync knows.
        self.sync_wanted = connection.welcome.inbox_head < self.inbox.position();
        if self.parts.cursor.taken() > self.acked {
            self.ack_due
                .get_or_insert(Instant::now() + CURSOR_ACK_INTERVAL);
        }
        self.link = Link::Up(connection);
    }

    fn open_failed(&mut self, error: ClientError) -> Result<(), ClientError> {
        if ends_session(&error) {
            return Err(error);
        }
        tracing::debug!(%error, "connect failed");
        self.next_index += 1;
        self.failed_in_round += 1;
        let wait = if self.failed_in_round < self.parts.endpoints.len() {
            Duration::ZERO
        } else {
            self.failed_in_round = 0;
            self.backoff.next_wait()
        };
        self.link = Link::Waiting(Instant::now() + wait);
        Ok(())
    }

    /// The stream is gone; another one follows after `wait`, or soon.
    fn lost(&mut self, error: ClientError, wait: Option<Duration>) -> Result<(), ClientError> {
        if ends_session(&error) {
            return Err(error);
        }
        let now = Instant::now();
        if let Link::Up(connection) = &self.link {
            self.next_index = connection.index + 1;
            let pause = if now >= connection.opened_at + STABLE_AFTER {
                self.backoff.reset();
                RECONNECT_SPREAD.mul_f64(rand::rng().random())
            } else {
                // Perhaps it takes streams only to lose them.
                self.backoff.next_wait()
            };
            self.link = Link::Waiting(now + pause.max(wait.unwrap_or_default()));
        }
        tracing::debug!(%error, "connection lost");
        self.pending.connection_lost();
        self.notice(Event::Disconnected {
            error,
            reconnecting: true,
        });
        Ok(())
    }

    /// Does what the timer was set for.
    fn due(&mut self, now: Instant) -> Result<(), ClientError> {
        self.pending.expire(now);
        match &mut self.link {
            Link::Waiting(until) if *until <= now => self.reopen(),
            Link::Up(connection) => {
                if let Err(error) = connection.keep_alive(now) {
                    self.lost(error, None)?;
                }
            }
            _ => {}
        }
        if self.ack_due.is_some_and(|at| at <= now) {
            self.ack_cursor(now);
        }
        Ok(())
    }

    fn reopen(&mut self) {
        self.link = Link::Opening(Box::pin(open(
            self.parts.endpoints.clone(),
            self.next_index,
            self.parts.identity.clone(),
            Some(self.parts.cursor.taken()),
            self.parts.open_timeout,
        )));
    }

    /// Tells the server how far the application is, when it does not know yet.
    fn ack_cursor(&mut self, now: Instant) {
        self.ack_due = None;
        let Link::Up(connection) = &mut self.link else {
            return; // `opened` takes it up again
        };
        let taken = self.parts.cursor.taken();
        if taken > self.acked
            && connection.say(ClientFrame::CursorAck(v1::CursorAck { inbox_seq: taken }))
        {
            self.acked = taken;
        }
        if self.acked < self.inbox.position() {
            self.ack_due = Some(now + CURSOR_ACK_INTERVAL);
        }
    }

    fn notice(&mut self, event: Event) {
        if self.notices.len() >= NOTICES_MAX {
            self.notices.pop_front();
        }
        self.notices.push_back(event);
    }

    /// Sets the timer to the next thing due. It may fire too early, which does no harm;
    /// it is moved back only after that, which keeps it cheap.
    fn arm(&self, mut timer: std::pin::Pin<&mut Sleep>) {
        let link = match &self.link {
            Link::Waiting(until) => Some(*until),
            Link::Opening(_) => None,
            Link::Up(connection) => Some(connection.next_wake()),
        };
        let next = [
            link,
            self.pending.next_wake(),
            self.ack_due,
            self.sync_not_before,
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or_else(|| Instant::now() + CURSOR_ACK_INTERVAL);
        if timer.is_elapsed() || next < timer.deadline() {
            timer.as_mut().reset(next);
        }
    }

    async fn end(mut self, end: End) {
        let (error, done) = match end {
            End::Closed(done) => (ClientError::Closed, done),
            End::Failed(error) => (error, None),
        };
        tracing::debug!(%error, "session over");
        let closing = matches!(error, ClientError::Closed);
        // First the reason, then the refusals: whoever is refused finds it.
        let _ = self.parts.ended.set(error.clone());
        self.pending.fail_all(&error);
        if closing {
            self.ack_cursor(Instant::now());
        }
        if let Link::Up(connection) = self.link {
            connection.finish(CLOSE_WAIT).await;
        }
        self.parts.commands.close();
        while let Some(command) = self.parts.commands.recv().await {
            match command {
                Command::Send(message) => {
                    drop(message.permit);
                    let _ = message.reply.send(Err(error.clone()));
                }
                Command::Close(done) => drop(done),
            }
        }
        if let Some(done) = done {
            let _ = done.send(());
        }
        if !closing {
            // Waits for room: this is the last event, and why there are no more.
            let _ = self
                .parts
                .events
                .send(Event::Disconnected {
                    error,
                    reconnecting: false,
                })
                .await;
        }
    }
}

/// Waits until the event queue has room, or nobody reads it any more.
async fn room(events: &mpsc::Sender<Event>) {
    let _ = events.reserve().await;
}

/// The future in `slot`, which stays there until it is done; for ever when there is none.
async fn wait_for<T>(slot: &mut Option<BoxFuture<'static, T>>) -> T {
    match slot {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// True for errors that connecting again cannot mend.
pub(crate) fn ends_session(error: &ClientError) -> bool {
    matches!(
        error,
        ClientError::InvalidArgument(_)
            | ClientError::Unauthenticated(_)
            | ClientError::PermissionDenied(_)
            | ClientError::CursorBeyondHead(_)
            | ClientError::Config(_)
            | ClientError::Replaced
            | ClientError::Protocol(_)
    )
}
