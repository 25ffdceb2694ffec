//! Finds the leader of a shard and keeps at it until the caller's deadline.
//!
//! Every shard has a **lane**. Operations enter a lane in order and leave it towards the
//! shard's leader in that order, for the [`Lead`] that is known; it takes them only in that
//! lead. When one comes back undone (not the leader, connection lost, a new
//! leader elected), the lane stops, lets the others settle, puts the undone ones back in
//! front in their order, and goes on with the next leader. Every operation is idempotent,
//! so one whose outcome is unknown is simply sent again.
//!
//! When slots get another shard, by a split or a merge, their operations change lanes
//! (`handover`): the old lane stops and lets what is in flight settle, the new one waits for it.
//! So operations of one slot stay in order across it.
//!
//! Owner of the state: the lane's mutex. Callers' sinks are called outside of it. Whoever holds
//! two lanes' mutexes has taken that of the lane that hands over first.
//!
//! Invariant: an operation is in exactly one of waiting, in flight, undone, or completed.

mod handover;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use carillon_core::ids::{NodeId, ShardId, Slot};
use carillon_core::map::{META_SHARD, MetaCommand, MetaReply};
use carillon_core::reply::Reply;
use carillon_proto::internal;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::cluster::{Cluster, Route};
use crate::shard::lead::Lead;

/// Operations in one lane, waiting and in flight, at most.
pub const LANE_OPERATIONS_MAX: usize = 100_000;

/// How often deadlines are looked at.
const DEADLINE_CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// A lane that knows no leader asks the next replica after this long.
const PROBE_INTERVAL: Duration = Duration::from_millis(25);

/// Why an operation did not get an answer from the shard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpError {
    /// No leader answered in time. What was asked for may still happen, once.
    #[error("shard {shard} did not answer before the deadline")]
    DeadlineExceeded {
        /// The shard that was asked.
        shard: u32,
    },
    /// A named limit of this node or of the leader is reached.
    #[error("limit {limit} of {max} is reached")]
    Overloaded {
        /// Its name.
        limit: &'static str,
        /// Its value.
        max: u64,
    },
    /// This node is stopping.
    #[error("the node is stopping")]
    ShuttingDown,
    /// It is about several slots, which do not have one shard any more: it is to be made anew.
    #[error("the shard was split or merged meanwhile")]
    Moved,
    /// A bug or a damaged frame.
    #[error("internal error: {0}")]
    Internal(String),
}

/// What a sink is told with the answer to a command: what was asked.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// The sink's own number of it.
    pub request: u64,
    /// When this node was asked.
    pub at: Instant,
}

/// Takes the answers to commands that were submitted without a task of their own.
pub trait CommandSink: Send + Sync {
    /// Called exactly once for each submitted command, on a hot thread: cheap, never blocks.
    fn complete(&self, asked: Asked, result: Result<Reply, OpError>);
}

/// Takes the answer to one delivered batch.
pub trait DeliverSink: Send + Sync {
    /// The batch is applied by the destination shard, or the node is stopping.
    fn delivered(&self, result: Result<(), OpError>);
}

/// What an operation asks of the leader.
#[derive(Debug, Clone)]
pub enum Payload {
    /// An encoded core command.
    Command(Bytes),
    /// An encoded `internal::Query`.
    Query(Bytes),
    /// An encoded batch of deliveries (see `fanout`).
    Deliver(Bytes),
}

/// What the leader answered.
#[derive(Debug)]
pub enum Response {
    /// To a command.
    Reply(Reply),
    /// To a query: an encoded `internal::Answer`.
    Answer(Bytes),
    /// To a batch of deliveries.
    Delivered,
}

/// Why an operation came back without an answer.
#[derive(Debug)]
pub enum Undone {
    /// Not taken, or its outcome is unknown; the node may have said who leads.
    Retry(Option<Route>),
    /// Refused by a limit of the leader's.
    Overloaded {
        /// Its name.
        limit: &'static str,
        /// Its value.
        max: u64,
    },
    /// Not done: another shard has its slots since a split or a merge.
    Moved,
    /// The leader could not understand it.
    Failed(String),
}

/// How an operation in flight ended.
pub type Settled = Result<Response, Undone>;

enum Sink {
    Command {
        sink: Arc<dyn CommandSink>,
        asked: Asked,
    },
    Call(oneshot::Sender<Result<Response, OpError>>),
    Deliver(Arc<dyn DeliverSink>),
}

struct Operation {
    payload: Payload,
    deadline: Option<Instant>,
    sink: Sink,
    about: About,
}

/// What an operation is about.
#[derive(Clone, Copy)]
enum About {
    /// One slot: it goes where the slot goes.
    Slot(Slot),
    /// Several, that had one shard in some version of the routing, at the latest in this one.
    Slots { version: u64 },
    /// The meta group, which has none.
    Meta,
}

#[derive(Default)]
struct LaneState {
    /// Where operations go now; none while the lane recovers.
    route: Option<Route>,
    /// Where the operations in flight were sent.
    sent_to: Option<Route>,
    /// The best guess for the next route.
    hint: Option<Route>,
    /// The last route whose node said that it does not lead.
    refused: Option<Route>,
    /// Sequence number of `in_flight[0]`.
    first: u64,
    in_flight: VecDeque<Option<Operation>>,
    /// Operations in flight that are not settled.
    unsettled: usize,
    /// Undone, by sequence number, in order.
    undone: Vec<(u64, Operation)>,
    waiting: VecDeque<Operation>,
    /// Replicas asked in vain since the last route, to take turns.
    probes: usize,
    probe_after: Option<Instant>,
    /// Lanes that get operations from this one, once nothing is in flight any more.
    leaving: Vec<ShardId>,
    /// Lanes that this one gets operations from, before it may send any.
    awaited: usize,
}

impl LaneState {
    /// Sequence numbers begin anywhere: a leader may still answer an operation of the process
    /// that this node had before it restarted, and must not hit one of this process.
    fn new() -> Self {
        Self {
            first: rand::random::<u64>() >> 1,
            ..Self::default()
        }
    }

    /// Operations that have not ended.
    fn len(&self) -> usize {
        self.unsettled + self.undone.len() + self.waiting.len()
    }

    /// What the lane keeps in memory: as above, and those that ended before an earlier one.
    fn kept(&self) -> usize {
        self.in_flight.len() + self.undone.len() + self.waiting.len()
    }

    /// With nothing in flight, puts what is undone in front of what waits, in order.
    fn line_up(&mut self) {
        self.first += self.in_flight.len() as u64;
        self.in_flight.clear();
        self.undone.sort_by_key(|(sequence, _)| *sequence);
        while let Some((_, operation)) = self.undone.pop() {
            self.waiting.push_front(operation);
        }
    }

    /// Forgets those in flight that have ended, up to the first that has not.
    fn advance(&mut self) {
        while self.in_flight.front().is_some_and(Option::is_none) {
            self.in_flight.pop_front();
            self.first += 1;
        }
    }
}

struct Lane {
    shard: ShardId,
    state: Mutex<LaneState>,
}

type Completed = Vec<(Sink, Result<Response, OpError>)>;

/// Routes operations of this node to the leaders of the shards.
pub struct Router {
    cluster: Arc<Cluster>,
    lanes: parking_lot::RwLock<Vec<Arc<Lane>>>,
    wake: Notify,
    closed: std::sync::atomic::AtomicBool,
    /// One change of the routing at a time.
    rerouting: Mutex<()>,
}

impl Router {
    /// A router over the cluster's map; [`Router::run`] must be running for it to recover.
    pub fn new(cluster: Arc<Cluster>) -> Arc<Self> {
        Arc::new(Self {
            cluster,
            lanes: parking_lot::RwLock::new(Vec::new()),
            wake: Notify::new(),
            closed: std::sync::atomic::AtomicBool::new(false),
            rerouting: Mutex::new(()),
        })
    }

    /// The shard that owns a slot.
    pub fn shard_of(&self, slot: Slot) -> ShardId {
        self.cluster.shard_of(slot)
    }

    /// Submits a command; the answer goes to `sink` with what was `asked`. Commands of one caller
    /// to one shard are proposed in the order in which they were submitted. Never blocks.
    pub fn submit(
        &self,
        slot: Slot,
        command: Bytes,
        deadline: Instant,
        sink: Arc<dyn CommandSink>,
        asked: Asked,
    ) {
        let operation = Operation {
            payload: Payload::Command(command),
            deadline: Some(deadline),
            sink: Sink::Command { sink, asked },
            about: About::Slot(slot),
        };
        self.enter(self.shard_of(slot), operation);
    }

    /// Submits a batch of deliveries to a shard; it is tried until the node stops, or the shard
    /// has no longer all of its users.
    pub fn deliver(&self, to: ShardId, batch: Bytes, sink: Arc<dyn DeliverSink>) {
        let operation = Operation {
            payload: Payload::Deliver(batch),
            deadline: None,
            sink: Sink::Deliver(sink),
            about: self.about_several(),
        };
        self.enter(to, operation);
    }

    fn about_several(&self) -> About {
        let version = self.routing_version();
        About::Slots { version }
    }

    /// Grows with every change of which shard has a slot.
    pub fn routing_version(&self) -> u64 {
        *self.cluster.watch_routing().borrow()
    }

    /// After [`OpError::Moved`] of something that was made at this version of the routing:
    /// returns when there is a newer one, or soon, since this node may not know of it yet.
    pub async fn rerouted(&self, version: u64) {
        let mut routing = self.cluster.watch_routing();
        let newer = routing.wait_for(|now| *now > version);
        // Whether it came makes no difference: it is tried again.
        let _ = tokio::time::timeout(PROBE_INTERVAL, newer).await;
    }

    /// Executes one command.
    pub async fn command(
        &self,
        slot: Slot,
        command: Bytes,
        deadline: Instant,
    ) -> Result<Reply, OpError> {
        let shard = self.shard_of(slot);
        self.command_to(shard, About::Slot(slot), command, deadline)
            .await
    }

    async fn command_to(
        &self,
        shard: ShardId,
        about: About,
        command: Bytes,
        deadline: Instant,
    ) -> Result<Reply, OpError> {
        match self
            .call(shard, about, Payload::Command(command), deadline)
            .await?
        {
            Response::Reply(reply) => Ok(reply),
            other => Err(OpError::Internal(format!(
                "a command was answered with {other:?}"
            ))),
        }
    }

    /// Executes one command in the meta group. One that the cluster's version has not is refused
    /// here: nodes that do not know it must never see it.
    pub async fn meta(
        &self,
        command: MetaCommand,
        deadline: Instant,
    ) -> Result<MetaReply, OpError> {
        let version = self.cluster.meta().cluster_version;
        let command = match command.at_version(version) {
            Ok(command) => command,
            Err(refusal) => return Ok(MetaReply::Refused(refusal)),
        };
        match self
            .command_to(META_SHARD, About::Meta, command.encode(), deadline)
            .await?
        {
            Reply::Meta(reply) => Ok(reply),
            other => Err(OpError::Internal(format!(
                "the meta group answered with {other:?}"
            ))),
        }
    }

    /// Reads from the leader of the shard that owns `slot`. A query about several users or
    /// conversations ends with [`OpError::Moved`] when they have not one shard any more.
    pub async fn query(
        &self,
        slot: Slot,
        query: internal::Query,
        deadline: Instant,
    ) -> Result<internal::Answer, OpError> {
        let shard = self.shard_of(slot);
        let payload = Payload::Query(query.encode_to_vec().into());
        let about = if crate::query::is_about_several(&query) {
            self.about_several()
        } else {
            About::Slot(slot)
        };
        match self.call(shard, about, payload, deadline).await? {
            Response::Answer(bytes) => internal::Answer::decode(bytes).map_err(|error| {
                OpError::Internal(format!("shard {shard} answered a damaged message: {error}"))
            }),
            other => Err(OpError::Internal(format!(
                "a query was answered with {other:?}"
            ))),
        }
    }

    async fn call(
        &self,
        shard: ShardId,
        about: About,
        payload: Payload,
        deadline: Instant,
    ) -> Result<Response, OpError> {
        let (sender, receiver) = oneshot::channel();
        self.enter(
            shard,
            Operation {
                payload,
                deadline: Some(deadline),
                sink: Sink::Call(sender),
                about,
            },
        );
        receiver.await.unwrap_or(Err(OpError::ShuttingDown))
    }

    fn lane(&self, shard: ShardId) -> Arc<Lane> {
        let index = shard.0 as usize;
        if let Some(lane) = self.lanes.read().get(index) {
            return lane.clone();
        }
        let mut lanes = self.lanes.write();
        while lanes.len() <= index {
            let shard = ShardId(lanes.len() as u32);
            lanes.push(Arc::new(Lane {
                shard,
                state: Mutex::new(LaneState::new()),
            }));
        }
        lanes[index].clone()
    }

    fn enter(&self, mut shard: ShardId, operation: Operation) {
        let mut completed = Completed::new();
        loop {
            let lane = self.lane(shard);
            let mut state = lane.state.lock();
            // Looked up under the lock: a lane that hands over gets nothing more of it.
            if let About::Slot(slot) = operation.about {
                let owner = self.shard_of(slot);
                if owner != shard {
                    shard = owner;
                    continue;
                }
            }
            if self.closed.load(std::sync::atomic::Ordering::Acquire) {
                completed.push((operation.sink, Err(OpError::ShuttingDown)));
            } else if state.kept() >= LANE_OPERATIONS_MAX && operation.deadline.is_some() {
                let error = OpError::Overloaded {
                    limit: "lane_operations_max",
                    max: LANE_OPERATIONS_MAX as u64,
                };
                completed.push((operation.sink, Err(error)));
            } else if self.has_ended(shard, operation.about) {
                completed.push((operation.sink, Err(OpError::Moved)));
            } else {
                state.waiting.push_back(operation);
                self.flow(&lane, &mut state, &mut completed);
            }
            break;
        }
        finish(completed);
    }

    /// Sends what waits to the route, in order, for as long as it takes them.
    fn flow(&self, lane: &Lane, state: &mut LaneState, completed: &mut Completed) {
        if state.route.is_none() {
            self.hand_over(lane, state, completed);
            self.recover(lane, state);
        }
        while let Some(route) = state.route {
            let Some(operation) = state.waiting.pop_front() else {
                return;
            };
            let sequence = state.first + state.in_flight.len() as u64;
            match self
                .cluster
                .offer(lane.shard, route, sequence, &operation.payload)
            {
                Ok(()) => {
                    state.in_flight.push_back(Some(operation));
                    state.unsettled += 1;
                    state.sent_to = Some(route);
                }
                Err(Undone::Overloaded { limit, max }) if operation.deadline.is_some() => {
                    completed.push((operation.sink, Err(OpError::Overloaded { limit, max })));
                }
                Err(undone) => {
                    state.waiting.push_front(operation);
                    state.route = None;
                    if let Undone::Retry(hint) = undone {
                        state.hint = hint;
                    }
                    state.probe_after = Some(Instant::now() + PROBE_INTERVAL);
                    self.recover(lane, state);
                    return;
                }
            }
        }
    }

    /// Chooses a route once nothing is in flight any more.
    fn recover(&self, lane: &Lane, state: &mut LaneState) {
        if state.route.is_some() || state.unsettled > 0 {
            return;
        }
        state.line_up();
        if state.awaited > 0 {
            return;
        }
        let now = Instant::now();
        if state.waiting.is_empty() || state.probe_after.is_some_and(|after| after > now) {
            if !state.waiting.is_empty() {
                self.wake.notify_one();
            }
            return;
        }
        let refused = state.refused;
        let known = [self.cluster.leader(lane.shard), state.hint.take()];
        let known = known.into_iter().flatten().filter(|route| {
            // What another node said of itself may be over, what the replica here says is
            // corrected by it.
            self.cluster.replica(lane.shard).is_some() || Some(*route) != refused
        });
        let known = known.max_by_key(|route| route.lead);
        state.route = known.or_else(|| {
            state.probes += 1;
            self.cluster.probe_route(lane.shard, state.probes)
        });
        if state.route.is_none() {
            state.probe_after = Some(now + PROBE_INTERVAL);
            self.wake.notify_one();
        }
    }

    /// An operation in flight has ended. Called by the local replica and for frames of peers.
    pub fn settle(&self, shard: ShardId, sequence: u64, settled: Settled) {
        self.settle_all(shard, std::iter::once((sequence, settled)));
    }

    /// The same for several of one shard, under one lock.
    pub fn settle_all(&self, shard: ShardId, all: impl Iterator<Item = (u64, Settled)>) {
        let lane = self.lane(shard);
        let mut completed = Completed::new();
        let mut moved = false;
        {
            let mut state = lane.state.lock();
            for (sequence, settled) in all {
                moved |= matches!(settled, Err(Undone::Moved));
                settle_one(&mut state, sequence, settled, &mut completed);
            }
            if state.route.is_none() || !state.waiting.is_empty() {
                self.flow(&lane, &mut state, &mut completed);
            }
        }
        if moved {
            self.cluster.split_is_done(shard);
        }
        finish(completed);
    }

    /// A new leader is known: what is in flight to another one is sent again.
    pub fn on_leader_changed(&self, shard: ShardId) {
        let Some(leader) = self.cluster.leader(shard) else {
            return;
        };
        let lane = self.lane(shard);
        let mut completed = Completed::new();
        {
            let mut state = lane.state.lock();
            // An older lead is no reason to ask again what a newer one was asked.
            if state
                .sent_to
                .is_none_or(|sent_to| sent_to.lead < leader.lead)
            {
                retract(&mut state);
            }
            state.probe_after = None;
            self.flow(&lane, &mut state, &mut completed);
        }
        finish(completed);
    }

    /// The connection to `node` is lost: what is in flight to it is sent again.
    pub fn on_peer_lost(&self, node: NodeId) {
        let lanes = self.lanes.read().clone();
        for lane in lanes {
            let mut completed = Completed::new();
            {
                let mut state = lane.state.lock();
                let to = state.route.or(state.sent_to);
                if to.is_some_and(|route| route.node == node) {
                    retract(&mut state);
                    state.probe_after = Some(Instant::now() + PROBE_INTERVAL);
                    self.flow(&lane, &mut state, &mut completed);
                }
            }
            finish(completed);
        }
    }

    /// Retries and deadlines, until the node stops.
    pub async fn run(self: Arc<Self>) {
        let mut deadlines = tokio::time::interval(DEADLINE_CHECK_INTERVAL);
        loop {
            // Both arms are cancel-safe: neither takes anything out.
            let expire = tokio::select! {
                _ = deadlines.tick() => true,
                () = self.wake.notified() => {
                    tokio::time::sleep(PROBE_INTERVAL).await;
                    false
                }
            };
            let lanes = self.lanes.read().clone();
            for lane in lanes {
                let mut completed = Completed::new();
                {
                    let mut state = lane.state.lock();
                    if state.len() == 0 {
                        continue;
                    }
                    if expire {
                        expire_all(lane.shard, &mut state, &mut completed);
                    }
                    if state.route.is_none() {
                        self.flow(&lane, &mut state, &mut completed);
                    }
                }
                finish(completed);
            }
        }
    }

    /// Operations that have not ended.
    pub fn outstanding(&self) -> usize {
        let lanes = self.lanes.read().clone();
        lanes.iter().map(|lane| lane.state.lock().len()).sum()
    }

    /// Ends everything: the node stops.
    pub fn close(&self) {
        self.closed
            .store(true, std::sync::atomic::Ordering::Release);
        let lanes = self.lanes.read().clone();
        for lane in lanes {
            let mut completed = Completed::new();
            {
                let mut state = lane.state.lock();
                retract(&mut state);
                let undone = std::mem::take(&mut state.undone)
                    .into_iter()
                    .map(|(_, operation)| operation);
                let waiting = std::mem::take(&mut state.waiting);
                completed.extend(
                    undone
                        .chain(waiting)
                        .map(|operation| (operation.sink, Err(OpError::ShuttingDown))),
                );
            }
            finish(completed);
        }
    }
}

fn settle_one(state: &mut LaneState, sequence: u64, settled: Settled, completed: &mut Completed) {
    // An answer to a try that was given up already is of no interest.
    let Some(index) = sequence.checked_sub(state.first) else {
        return;
    };
    let Some(slot) = state.in_flight.get_mut(index as usize) else {
        return;
    };
    let Some(operation) = slot.take() else { return };
    state.unsettled -= 1;
    match settled {
        Ok(response) => completed.push((operation.sink, Ok(response))),
        Err(Undone::Overloaded { limit, max }) if operation.deadline.is_some() => {
            completed.push((operation.sink, Err(OpError::Overloaded { limit, max })));
        }
        Err(Undone::Failed(problem)) => {
            completed.push((operation.sink, Err(OpError::Internal(problem))))
        }
        Err(Undone::Moved) if matches!(operation.about, About::Slots { .. }) => {
            completed.push((operation.sink, Err(OpError::Moved)));
        }
        // Until this node knows where to, it is asked again after a moment.
        Err(Undone::Moved | Undone::Overloaded { .. }) => {
            state.undone.push((sequence, operation));
            state.route = None;
            state.probe_after = Some(Instant::now() + PROBE_INTERVAL);
        }
        Err(Undone::Retry(hint)) => {
            state.undone.push((sequence, operation));
            // The same again is no news.
            let hint = hint.filter(|hint| Some(*hint) != state.sent_to);
            match state.sent_to {
                // One that was only asked whether it leads has refused nothing, and may say so.
                Some(asked) if asked.lead == Lead::ANY => {
                    state.refused = state.refused.filter(|refused| Some(*refused) != hint);
                }
                asked => state.refused = asked,
            }
            if state.route.take().is_some() {
                state.probe_after = hint.is_none().then(|| Instant::now() + PROBE_INTERVAL);
            }
            if hint.is_some() {
                state.hint = hint;
            }
        }
    }
    state.advance();
}

/// Takes everything in flight back as undone.
fn retract(state: &mut LaneState) {
    let first = state.first;
    state.first += state.in_flight.len() as u64;
    for (index, slot) in state.in_flight.drain(..).enumerate() {
        if let Some(operation) = slot {
            state.undone.push((first + index as u64, operation));
        }
    }
    state.unsettled = 0;
    state.route = None;
}

fn expire_all(shard: ShardId, state: &mut LaneState, completed: &mut Completed) {
    let now = Instant::now();
    let late = |operation: &Operation| operation.deadline.is_some_and(|deadline| deadline <= now);
    let error = || Err(OpError::DeadlineExceeded { shard: shard.0 });
    for slot in &mut state.in_flight {
        if slot.as_ref().is_some_and(late)
            && let Some(operation) = slot.take()
        {
            state.unsettled -= 1;
            completed.push((operation.sink, error()));
        }
    }
    state.advance();
    for (_, operation) in state
        .undone
        .extract_if(.., |(_, operation)| late(operation))
    {
        completed.push((operation.sink, error()));
    }
    let mut kept = VecDeque::with_capacity(state.waiting.len());
    for operation in state.waiting.drain(..) {
        if late(&operation) {
            completed.push((operation.sink, error()));
        } else {
            kept.push_back(operation);
        }
    }
    state.waiting = kept;
}

fn finish(completed: Completed) {
    for (sink, result) in completed {
        match sink {
            Sink::Call(sender) => {
                // The caller may have gone away; then nobody wants the answer.
                let _ = sender.send(result);
            }
            Sink::Command { sink, asked } => {
                let result = result.and_then(|response| match response {
                    Response::Reply(reply) => Ok(reply),
                    other => Err(OpError::Internal(format!(
                        "a command was answered with {other:?}"
                    ))),
                });
                sink.complete(asked, result);
            }
            Sink::Deliver(sink) => sink.delivered(result.map(drop)),
        }
    }
}

#[cfg(test)]
#[path = "router_tests.rs"]
mod tests;
