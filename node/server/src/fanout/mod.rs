//! Delivers what is stored in the conversations led here into the members' inboxes, on
//! whatever nodes those are led.
//!
//! The outbox in the shard's state is the truth; this is the worker that empties it. It
//! hears of new entries from the apply of the shards led here, and reads the outbox once
//! when it takes a shard over. Decisions are in [`state`], the wire form in [`batch`].

pub mod batch;
pub mod state;

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use carillon_core::command::encode_advance_outbox;
use carillon_core::ids::{ConversationId, Seq, ShardId, UserId};
use carillon_core::records::MessageRecord;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

pub use batch::DeliverBatch;
use state::{FanoutState, Recipients, Source};

use crate::cluster::{Cluster, Routing};
use crate::router::{DeliverSink, OpError, Router};

/// Between two rounds of batches under load; the first after a pause leaves at once.
const ROUND_INTERVAL: Duration = Duration::from_millis(4);

/// The outbox is advanced at most this often: a crash in between only repeats deliveries.
const ADVANCE_INTERVAL: Duration = Duration::from_millis(250);

/// Conversations whose recipients are kept in memory, about.
const CONVERSATIONS_KEPT: usize = 50_000;

/// The fan-out worker of a node.
pub struct Fanout {
    cluster: Arc<Cluster>,
    router: Arc<Router>,
    state: Mutex<FanoutState>,
    /// What entries are grouped by. Changes only together with the state, and later than the
    /// cluster's: what was grouped by an older one must not be overtaken.
    routing: Mutex<Routing>,
    wake: Notify,
    me: Weak<Fanout>,
}

impl Fanout {
    /// A worker that leads nothing yet; [`Fanout::run`] must be running.
    pub fn new(cluster: Arc<Cluster>, router: Arc<Router>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            cluster,
            router,
            state: Mutex::new(FanoutState::default()),
            routing: Mutex::new(Arc::from([])),
            wake: Notify::new(),
            me: me.clone(),
        })
    }

    /// Entries were stored in a shard led here, in this order, and can be read. Not told of what
    /// a split has taken away since.
    pub fn stored(&self, shard: ShardId, entries: &[(ConversationId, Seq, MessageRecord)]) {
        {
            let mut state = self.state.lock();
            for (conversation, seq, record) in entries {
                state.stored(shard, conversation, *seq, record, self);
            }
        }
        self.wake.notify_one();
    }

    /// A shard is led here now, or not any more; called when everything that was committed
    /// before is applied. The outbox, which may be long, is read on a thread of its own.
    pub fn on_leading(&self, shard: ShardId, leads: bool) {
        let generation = {
            let mut state = self.state.lock();
            if !leads || state.has_ended(shard) {
                return state.follow(shard);
            }
            state.take_over(shard)
        };
        self.read_outbox(shard, generation);
    }

    /// A shard has taken its neighbour over: where the neighbour was led here, nothing comes of
    /// it any more, and where the shard is, it goes on with both outboxes. Called before
    /// anything that is stored in it later is told.
    pub fn on_absorbed(&self, shard: ShardId, absorbed: ShardId, leads: bool) {
        let generation = {
            let mut state = self.state.lock();
            state.end(absorbed);
            leads.then(|| state.take_over(shard))
        };
        if let Some(generation) = generation {
            self.read_outbox(shard, generation);
        }
    }

    fn read_outbox(&self, shard: ShardId, generation: u64) {
        let (Some(replica), Some(me)) = (self.cluster.replica(shard), self.me.upgrade()) else {
            return self.state.lock().follow(shard);
        };
        tokio::task::spawn_blocking(move || {
            let undelivered = replica.undelivered();
            {
                let mut state = me.state.lock();
                // What it has now, it had all the time while it was read.
                let slots = replica.reader().slots();
                state.lead(shard, generation, undelivered, slots);
            }
            me.wake.notify_one();
        });
    }

    /// Users have other shards than before: everything that is not delivered is dispatched anew.
    pub fn reroute(&self) {
        let taken = {
            let mut state = self.state.lock();
            *self.routing.lock() = self.cluster.routing();
            state.reroute()
        };
        for (shard, generation) in taken {
            self.read_outbox(shard, generation);
        }
    }

    /// Entries stored here and not in all their inboxes.
    pub fn undelivered(&self) -> u64 {
        self.state.lock().undelivered()
    }

    /// Rounds, until the node stops.
    pub async fn run(self: Arc<Self>) {
        let mut round = Instant::now() - ROUND_INTERVAL;
        let mut advanced = Instant::now();
        let mut advance_timer = tokio::time::interval(ADVANCE_INTERVAL);
        loop {
            // Both arms are cancel-safe: neither takes anything out.
            tokio::select! {
                () = self.wake.notified() => {
                    if round.elapsed() < ROUND_INTERVAL {
                        tokio::time::sleep_until(round + ROUND_INTERVAL).await;
                    }
                    round = Instant::now();
                    self.send_batches();
                }
                _ = advance_timer.tick() => {}
            }
            if advanced.elapsed() >= ADVANCE_INTERVAL {
                advanced = Instant::now();
                self.advance_outboxes();
            }
        }
    }

    /// Called under the state's lock.
    fn routing(&self) -> Routing {
        let mut routing = self.routing.lock();
        if routing.is_empty() {
            // Nothing was grouped before.
            *routing = self.cluster.routing();
        }
        routing.clone()
    }

    fn send_batches(&self) {
        let (batches, reroutes) = {
            let mut state = self.state.lock();
            state.fill(self);
            (state.batches(), state.reroutes())
        };
        for (to, batch) in batches {
            let sink = Sink {
                fanout: self.me.clone(),
                to,
                batch: batch.clone(),
                reroutes,
            };
            self.router.deliver(to, batch, Arc::new(sink));
        }
    }

    fn advance_outboxes(&self) {
        let advanced = {
            let mut state = self.state.lock();
            let advanced = state.take_advanced();
            state.shrink(CONVERSATIONS_KEPT);
            advanced
        };
        for (shard, conversations) in advanced {
            let Some(replica) = self.cluster.replica(shard) else {
                continue;
            };
            let mut command = BytesMut::new();
            encode_advance_outbox(
                &mut command,
                conversations.iter().map(|(id, upto)| (id, *upto)),
            );
            replica.take_own(command.freeze());
        }
    }
}

impl Source for Fanout {
    fn message(
        &self,
        shard: ShardId,
        conversation: &ConversationId,
        seq: Seq,
    ) -> Option<MessageRecord> {
        self.cluster.replica(shard)?.message(conversation, seq)
    }

    fn recipients(
        &self,
        shard: ShardId,
        conversation: &ConversationId,
        seq: Seq,
    ) -> Option<Recipients> {
        let replica = self.cluster.replica(shard)?;
        let routing = self.routing();
        let mut shards: Vec<(ShardId, Vec<UserId>, Vec<UserId>)> = Vec::new();
        for (user, leaving) in replica.recipients(conversation, seq) {
            let to = routing[usize::from(user.slot().0)];
            let index = match shards.iter().position(|(shard, _, _)| *shard == to) {
                Some(index) => index,
                None => {
                    shards.push((to, Vec::new(), Vec::new()));
                    shards.len() - 1
                }
            };
            if leaving {
                shards[index].2.push(user.clone());
            }
            shards[index].1.push(user);
        }
        Some(Recipients { shards })
    }

    fn encode(&self, conversation: &ConversationId, seq: Seq, record: &MessageRecord) -> Bytes {
        crate::query::encode_message(conversation, seq, record)
    }
}

struct Sink {
    fanout: Weak<Fanout>,
    to: ShardId,
    batch: Bytes,
    reroutes: u64,
}

impl DeliverSink for Sink {
    fn delivered(&self, result: Result<(), OpError>) {
        let Some(fanout) = self.fanout.upgrade() else {
            return;
        };
        match result {
            Ok(()) => {
                let more = {
                    let mut state = fanout.state.lock();
                    state.delivered(self.to);
                    state.has_work()
                };
                if more {
                    fanout.wake.notify_one();
                }
            }
            Err(OpError::ShuttingDown) => {}
            Err(OpError::Moved) => {
                fanout.state.lock().moved(self.to, self.reroutes);
                fanout.wake.notify_one();
            }
            Err(error) => {
                tracing::error!(shard = self.to.0, %error, "a batch of deliveries failed; it is sent again");
                let again = Sink {
                    fanout: self.fanout.clone(),
                    to: self.to,
                    batch: self.batch.clone(),
                    reroutes: self.reroutes,
                };
                fanout
                    .router
                    .deliver(self.to, self.batch.clone(), Arc::new(again));
            }
        }
    }
}
