//! The clients' side of a node: `carillon.v1.Chat`.
//!
//! A `Connect` stream is one task that reads frames and one response body that sends
//! what is queued; sends go to the router with the session as their sink, and pushes are
//! encoded straight into the session's queue. Everything else is a unary call.
//!
//! Code map:
//! - [`service`]: the tower service; `Connect` to [`connect`], the rest to [`unary`].
//! - [`connect`]: reads a stream's frames. [`session`]: what its parts share.
//!   [`queue`]: its state machine, pure. [`frames`]: its wire form.
//! - [`registry`]: who listens to which inbox. [`subscriptions`]: tells the leaders.
//! - [`content`], [`errors`], [`limits`], [`metrics`].
//!
//! Owner of the state: [`Gateway`] for the set of sessions, each session for itself.

mod connect;
mod content;
pub mod errors;
mod frames;
pub mod limits;
pub mod metrics;
mod pushes;
mod queue;
mod registry;
mod service;
mod session;
mod subscriptions;
mod unary;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use carillon_auth::caller::Caller;
use carillon_core::{NodeId, ShardId, UserId};
use parking_lot::Mutex;
use rand::Rng;
use rand::seq::SliceRandom as _;
use tokio::sync::watch;
use tokio::time::Instant;

use self::errors::Failure;
pub use self::limits::Limits;
pub use self::metrics::GatewayMetrics;
use self::pushes::Pushes;
use self::registry::{Listener, Registry};
pub use self::service::{ChatService, Explained, Known, code};
use self::session::{Place, Places, Session};
use self::subscriptions::Subscriptions;
use crate::query::message_id;
use crate::router::Router;
use crate::security::Security;
use crate::trace::Tracer;

/// How often it is looked for streams whose token has ended.
const CREDENTIALS_LOOK: Duration = Duration::from_secs(5);

/// What a gateway is made of.
pub struct GatewayOptions {
    /// This node: where pushes are sent to.
    pub node_id: NodeId,
    /// What clients may ask for.
    pub limits: Limits,
    /// The way to the shards.
    pub router: Arc<Router>,
    /// What is counted.
    pub metrics: Arc<GatewayMetrics>,
    /// Who may call.
    pub security: Arc<Security>,
    /// Who is told of messages, if they are traced.
    pub tracer: Option<Arc<Tracer>>,
}

/// See the module.
pub struct Gateway {
    node: NodeId,
    limits: Limits,
    router: Arc<Router>,
    metrics: Arc<GatewayMetrics>,
    security: Arc<Security>,
    tracer: Option<Arc<Tracer>>,
    registry: Arc<Registry>,
    subscriptions: Arc<Subscriptions>,
    pushes: Arc<Pushes>,
    places: Arc<Places>,
    sessions: Mutex<HashMap<u64, Weak<Session>>>,
    session_counter: AtomicU64,
    /// Makes session ids differ between two runs of a node.
    run: u32,
    doors: watch::Sender<Doors>,
}

/// Whether streams are taken, and those that are there may stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doors {
    Open,
    /// Clients go elsewhere, over this time: the node is being drained.
    SendsAway {
        spread: Duration,
    },
    /// The node stops.
    Closed,
}

impl Gateway {
    /// A gateway without streams.
    pub fn new(options: GatewayOptions) -> Arc<Self> {
        let GatewayOptions {
            node_id,
            limits,
            router,
            metrics,
            security,
            tracer,
        } = options;
        let registry = Arc::new(Registry::new());
        let subscriptions = Subscriptions::new(node_id, router.clone(), registry.clone());
        Arc::new(Self {
            node: node_id,
            limits,
            router,
            metrics,
            security,
            tracer,
            registry,
            subscriptions,
            pushes: Arc::default(),
            places: Arc::default(),
            sessions: Mutex::default(),
            session_counter: AtomicU64::new(0),
            run: rand::rng().random(),
            doors: watch::Sender::new(Doors::Open),
        })
    }

    /// What is counted here.
    pub fn metrics(&self) -> &GatewayMetrics {
        &self.metrics
    }

    /// The service for tonic's routes.
    pub fn service(self: &Arc<Self>) -> ChatService {
        ChatService::new(self.clone())
    }

    /// An inbox entry of users of this node was committed: `message` is the encoded
    /// `v1.Message`, and for each user there is its place in the inbox and the unread
    /// count after it. Along one inbox, calls must come in order; a gap becomes a Resync.
    pub fn on_push<'a>(&self, message: Bytes, targets: impl Iterator<Item = (&'a [u8], u64, u32)>) {
        let began = self.tracer.as_ref().map(|tracer| (tracer, Instant::now()));
        let mut users = 0;
        let mut wakers = Vec::with_capacity(targets.size_hint().0);
        for (user, inbox_seq, unread) in targets {
            let listened = self
                .registry
                .push(user, inbox_seq, unread, &message, &mut wakers);
            if listened {
                users += 1;
                continue;
            }
            // The leader does not know yet that they have gone, or never will unless told.
            if let Ok(user) = UserId::parse(Bytes::copy_from_slice(user)) {
                self.subscriptions.changed(user);
            }
        }
        self.pushes.add(wakers);
        if let Some((tracer, began)) = began
            && let Some(message) = message_id(&message)
        {
            tracer.pushed(message, began.into_std(), users);
        }
    }

    /// Lets pushed messages leave, until the node stops.
    pub async fn run(self: Arc<Self>) {
        self.pushes.clone().run().await;
    }

    /// A shard has a new leader: it is told of the users of this node, and whoever missed
    /// entries meanwhile learns it.
    pub fn on_leader_changed(&self, shard: ShardId) {
        self.subscriptions.leader_changed(shard);
    }

    /// `Connect` and `SyncStream` streams and waiting `Sync` calls.
    pub fn sessions(&self) -> usize {
        self.places.taken()
    }

    /// Ends the streams of those who would not be let in any more, until the node stops: their
    /// token has ended, or its key or the server's was taken back.
    pub async fn see_out(self: Arc<Self>) {
        if self.security.tls().is_none() {
            return;
        }
        let mut changes = self.security.watch_changes();
        let mut look = tokio::time::interval(CREDENTIALS_LOOK);
        loop {
            tokio::select! {
                _ = look.tick() => {}
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
            let sessions: Vec<_> = self.sessions.lock().values().cloned().collect();
            for session in sessions.iter().filter_map(Weak::upgrade) {
                if let Err(failure) = self.security.still_knows(session.caller()) {
                    session.see_out(failure);
                }
                // There may be many, and others wait for this thread.
                tokio::task::coop::consume_budget().await;
            }
        }
    }

    /// Waits until a caller would not be let in any more; for ever in development mode.
    async fn until_unknown(&self, caller: &Caller) -> Failure {
        if *caller == Caller::Anyone {
            return std::future::pending().await;
        }
        let mut changes = self.security.watch_changes();
        loop {
            if let Err(failure) = self.security.still_knows(caller) {
                return failure;
            }
            // Nobody looks after the files any more when the node ends.
            let _ = tokio::time::timeout(CREDENTIALS_LOOK, changes.changed()).await;
        }
    }

    /// Refuses new streams, asks the clients of the others to connect elsewhere, each
    /// after a random time up to `spread`, and waits until all are closed, at most
    /// `max_wait`. Sends that were taken are answered first.
    pub async fn drain(&self, spread: Duration, max_wait: Duration) {
        self.doors.send_replace(Doors::Closed);
        let sessions: Vec<Arc<Session>> = self
            .sessions
            .lock()
            .values()
            .filter_map(Weak::upgrade)
            .collect();
        let spread_ms = u32::try_from(spread.as_millis()).unwrap_or(u32::MAX);
        for session in sessions {
            session.drain(rand::rng().random_range(0..=spread_ms));
        }
        if tokio::time::timeout(max_wait, self.places.empty())
            .await
            .is_err()
        {
            tracing::warn!(sessions = self.sessions(), "clients did not leave in time");
        }
    }

    /// Takes streams again, unless the node stops.
    pub fn open(&self) {
        self.set_doors(Doors::Open);
    }

    /// Takes no streams any more, unless the node stops anyway, and asks the clients of those
    /// that are there to connect elsewhere, one after the other over `spread`. Ends when all
    /// were asked. Cancel-safe.
    pub async fn send_away(&self, spread: Duration) {
        self.set_doors(Doors::SendsAway { spread });
        let mut sessions: Vec<Weak<Session>> = self.sessions.lock().values().cloned().collect();
        sessions.shuffle(&mut rand::rng());
        let pause = spread / u32::try_from(sessions.len().max(1)).unwrap_or(u32::MAX);
        let began = Instant::now();
        for (number, session) in (0..).zip(sessions) {
            tokio::time::sleep_until(began + pause * number).await;
            if let Some(session) = session.upgrade() {
                session.drain(0);
            }
        }
    }

    fn set_doors(&self, doors: Doors) {
        self.doors.send_if_modified(|now| {
            let changes = *now != Doors::Closed && *now != doors;
            if changes {
                *now = doors;
            }
            changes
        });
    }

    fn is_draining(&self) -> bool {
        *self.doors.borrow() != Doors::Open
    }

    /// Waits until it is the turn of one who listens to go: at once when the node stops, at a
    /// moment of its own when it is drained.
    async fn turn_to_go(&self) {
        let mut doors = self.doors.subscribe();
        loop {
            let now = doors
                .wait_for(|doors| *doors != Doors::Open)
                .await
                .map(|now| *now);
            let Ok(Doors::SendsAway { spread }) = now else {
                return;
            };
            let moment = rand::rng().random_range(Duration::ZERO..=spread);
            tokio::select! {
                () = tokio::time::sleep(moment) => return,
                _ = doors.changed() => {}
            }
        }
    }

    /// Takes a place for a stream or a waiting call.
    fn admit(&self) -> Result<Place, Failure> {
        if self.is_draining() {
            return Err(Failure::draining());
        }
        self.places.take(self.limits.sessions_max)
    }

    /// A new stream, and the number it has here.
    fn open_session(&self, caller: Caller) -> Result<(u64, Arc<Session>), Failure> {
        let place = self.admit()?;
        let session = Session::new(
            self.limits.session_queue_bytes_max,
            self.metrics.clone(),
            self.tracer.clone(),
            caller,
            place,
        );
        let number = self.session_counter.fetch_add(1, Ordering::Relaxed);
        self.sessions
            .lock()
            .insert(number, Arc::downgrade(&session));
        if self.is_draining() {
            // It came in between; `drain` may not have seen it.
            session.drain(0);
        }
        Ok((number, session))
    }

    fn close_session(&self, number: u64) {
        self.sessions.lock().remove(&number);
    }

    /// A name for a session that is unique in the cluster.
    fn session_id(&self, number: u64) -> String {
        format!("{}-{:08x}-{number}", self.node, self.run)
    }

    /// Takes a listener out; the leader is told when it was the user's last.
    fn unlisten(&self, user: &UserId, listener: &Listener) {
        if self.registry.remove(user, listener) {
            self.subscriptions.changed(user.clone());
        }
    }
}

/// This node's clock, milliseconds since the Unix epoch.
fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
