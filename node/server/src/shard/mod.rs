//! One replica of a shard on this node: takes commands while it leads, proposes them in
//! batches, answers whoever asked, tells the nodes of online users, and serves reads.
//!
//! Owner of the state: the queue and the subscribers under their mutexes; everything else
//! belongs to the Raft group and the store. The queue's mutex is never held while others
//! are called.

pub mod beat;
pub mod checksums;
pub mod lead;
pub mod load;
pub mod machine;
pub mod merging;
pub mod probe;
pub mod queue;
pub mod subscribers;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use carillon_core::apply::{Delivery, Effects, Event};
use carillon_core::command::{
    BATCH_HEADER_BYTES, Command, encode_batch_header, passes_frozen, push_command, pushed_bytes,
};
use carillon_core::ids::{ConversationId, NodeId, Seq, ShardId, TimestampMs, UserId};
use carillon_core::map::{META_SHARD, Split};
use carillon_core::merging::{MergeId, MergeMark};
use carillon_core::read::outbox_markers;
use carillon_core::records::MessageRecord;
use carillon_core::reply::Reply;
use carillon_proto::internal;
use carillon_raft::{Group, Leadership, Outcome};
use carillon_store::ShardReader;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{Notify, watch};

use self::beat::Beat;
use self::checksums::Checksums;
use self::lead::Lead;
use self::load::Load;
use self::machine::MachineEnded;
use self::queue::{NotTaken, Origin, Proposal, Queue};
use self::subscribers::Subscribers;
use crate::cluster::{Cluster, Route};
use crate::config::RaftConfig;
use crate::disk::{self, Room};
use crate::fanout::batch::{BATCH_ITEMS_MAX, Ended, read_batch};
use crate::fanout::{DeliverBatch, Fanout};
use crate::gateway::Gateway;
use crate::metrics::NodeMetrics;
use crate::peer::frames;
use crate::query::message_id;
use crate::router::{Payload, Response, Router, Undone};
use crate::trace::Tracer;

/// Conversations of the outbox that are read at a time.
const OUTBOX_PAGE: usize = 1_000;

/// Deliveries that may wait in a shard beyond what clients' commands may: what is stored must
/// get room, however much more clients want to store. A few whole batches.
const DELIVERIES_WAITING_EXTRA: usize = 3 * BATCH_ITEMS_MAX as usize;
/// What thaws a shard finds room beyond all that waits for it.
const STEPS_WAITING_EXTRA: usize = 64;

/// How long a query may wait for its ReadIndex; callers have deadlines of their own.
const READ_INDEX_TIMEOUT: Duration = Duration::from_secs(5);
/// A part of a replica that has not ended after this is worth a line in the log, each time.
const SLOW_END: Duration = Duration::from_secs(5);

/// What a replica works with.
#[derive(Clone)]
pub struct Services {
    /// The cluster as this node knows it.
    pub cluster: Arc<Cluster>,
    /// Operations of this node.
    pub router: Arc<Router>,
    /// Sessions of this node.
    pub gateway: Arc<Gateway>,
    /// Deliveries from shards led here.
    pub fanout: Arc<Fanout>,
    /// When to propose.
    pub beat: Arc<Beat>,
    /// Counters.
    pub metrics: Arc<NodeMetrics>,
    /// Whether the disk takes commands.
    pub room: Arc<Room>,
    /// Who is told of messages, if they are traced.
    pub tracer: Option<Arc<Tracer>>,
}

/// What a replica and its state machine share.
#[derive(Clone, Default)]
pub struct Shared {
    /// Set while the replica leads: then what is stored is fanned out from here.
    pub leading: Arc<AtomicBool>,
    /// Checksums that were computed here.
    pub checksums: Arc<Checksums>,
    /// What there is to do.
    pub load: Arc<Load>,
    /// Told when the replica has other slots: a new shard has some, or it has a neighbour's.
    pub slots_changed: Arc<Notify>,
    /// What merges have done to the shard, as far as it has applied.
    pub merges: Arc<watch::Sender<MergeMark>>,
    /// The merge for which it was frozen when all of that was on the disk; 0 for none.
    pub kept: Arc<AtomicU64>,
}

impl Shared {
    /// All that it is frozen with for this merge is on the disk.
    pub fn keep(&self, merge_id: MergeId) {
        self.kept.store(merge_id.0, Ordering::Release);
    }
}

/// See the file's head.
pub struct Replica {
    shard: ShardId,
    group: Group,
    reader: ShardReader,
    services: Services,
    config: RaftConfig,
    queue: Mutex<Queue>,
    /// Listed with the beat.
    armed: AtomicBool,
    shared: Shared,
    subscribers: Mutex<Subscribers>,
    /// It is being deleted.
    retired: AtomicBool,
    machine_ended: Mutex<Option<MachineEnded>>,
    me: Weak<Replica>,
}

impl Replica {
    /// A replica over a started group. [`Replica::run`] must be running.
    pub fn new(
        group: Group,
        reader: ShardReader,
        services: Services,
        config: RaftConfig,
        shared: Shared,
        machine_ended: Option<MachineEnded>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            shard: group.shard(),
            group,
            reader,
            services,
            config,
            queue: Mutex::new(Queue::default()),
            armed: AtomicBool::new(false),
            shared,
            subscribers: Mutex::new(Subscribers::default()),
            retired: AtomicBool::new(false),
            machine_ended: Mutex::new(machine_ended),
            me: me.clone(),
        })
    }

    /// Which shard.
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// Its Raft group.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Its state, for reading.
    pub fn reader(&self) -> &ShardReader {
        &self.reader
    }

    /// Checksums that were computed here.
    pub fn checksums(&self) -> &Checksums {
        &self.shared.checksums
    }

    /// Commands that it applies per second, over about a minute.
    pub fn load_per_second(&self) -> u64 {
        self.shared.load.per_second()
    }

    /// The leader as this replica knows it.
    pub fn leader(&self) -> Option<Route> {
        let route = route(&self.group.leadership().borrow())?;
        if route.node != self.services.cluster.me() {
            return Some(route);
        }
        // Only it knows how often it began anew in its term; and it may have stopped.
        let own = self.queue.lock().leading();
        own.leads.then_some(Route {
            lead: own.lead,
            ..route
        })
    }

    /// True while this replica leads and has applied what was committed before.
    pub fn leads(&self) -> bool {
        self.queue.lock().is_ready()
    }

    /// The lead in which it does.
    pub fn leads_in(&self) -> Option<Lead> {
        let queue = self.queue.lock();
        queue.is_ready().then(|| queue.leading().lead)
    }

    /// Follows the group's leadership until it ends.
    pub async fn run(self: Arc<Self>) {
        let mut leadership = self.group.leadership();
        let mut merges = self.shared.merges.subscribe();
        let mut routed = None;
        let mut frozen = false;
        loop {
            let now: Leadership = *leadership.borrow_and_update();
            let was_frozen = std::mem::replace(&mut frozen, self.follow_merges(&mut merges));
            if was_frozen && !frozen {
                self.on_thawed();
            }
            self.on_leadership(&now);
            let route = route(&now);
            if route != routed && route.is_some() {
                routed = route;
                self.services.router.on_leader_changed(self.shard);
                self.services.gateway.on_leader_changed(self.shard);
            }
            // Both arms are cancel-safe: they only tell that there is something newer.
            let alive = tokio::select! {
                changed = leadership.changed() => changed.is_ok(),
                changed = merges.changed() => changed.is_ok(),
            };
            if !alive {
                return;
            }
        }
    }

    fn on_leadership(self: &Arc<Self>, now: &Leadership) {
        let here = now
            .leader
            .is_some_and(|member| member.node == self.services.cluster.me());
        let (before, stale, leading) = {
            let mut queue = self.queue.lock();
            let before = queue.leading();
            let stale = queue.lead(first_lead(now), here, here && now.me_leading);
            (before, stale, queue.leading())
        };
        self.services.beat.taken(stale.len(), false);
        let stale = stale.into_iter().map(|proposal| proposal.origin);
        self.reject(stale, self.leader());
        if before.ready && (!leading.ready || before.lead != leading.lead) {
            self.shared.leading.store(false, Ordering::Release);
            self.services.fanout.on_leading(self.shard, false);
            self.subscribers.lock().clear();
        }
        if leading.ready && (!before.ready || before.lead != leading.lead) {
            tracing::info!(shard = self.shard.0, term = now.term, "leads");
            // First the flag: what is applied from here on is told to the fan-out, what
            // was applied before is in the outbox that it reads now.
            self.shared.leading.store(true, Ordering::Release);
            self.services.fanout.on_leading(self.shard, true);
            self.services.cluster.announce(self.shard, leading.lead);
        }
        self.arm();
    }

    /// The disk takes commands, or they are the meta group's, which are small and few.
    fn has_room(&self) -> bool {
        self.services.room.takes_commands() || self.shard == META_SHARD
    }

    /// Takes an operation that is meant for `lead`. An error means that it was not taken. What
    /// has an order is not taken for any lead: it says where to go instead.
    pub fn take(&self, lead: Lead, payload: &Payload, origin: Origin) -> Result<(), Undone> {
        let not_taken = |problem| match problem {
            NotTaken::NotLeader => Undone::Retry(self.leader().filter(|route| route.lead >= lead)),
            NotTaken::Full => Undone::Overloaded {
                limit: "proposals_waiting_max",
                max: self.config.proposals_waiting_max as u64,
            },
        };
        let max = self.config.proposals_waiting_max;
        if self.reader.is_absorbed() {
            return Err(Undone::Moved);
        }
        if lead == Lead::ANY && !matches!(payload, Payload::Query(_)) {
            return Err(not_taken(NotTaken::NotLeader));
        }
        match payload {
            // Deliveries of what is stored are taken all the same: they are few, and hold up the
            // reads behind them.
            Payload::Command(_) if !self.has_room() => {
                return Err(Undone::Overloaded {
                    limit: disk::RESERVE_LIMIT,
                    max: self.services.room.reserve_bytes(),
                });
            }
            Payload::Command(command) => {
                let proposal = Proposal {
                    command: command.clone(),
                    origin,
                    lead,
                };
                self.offer(proposal)
                    .map_err(|(_, problem)| not_taken(problem))?;
            }
            Payload::Deliver(bytes) => {
                let Some(items) = read_batch(bytes.clone()) else {
                    return Err(Undone::Failed(
                        "a batch of deliveries is damaged".to_owned(),
                    ));
                };
                let mut queue = self.queue.lock();
                let max = max + DELIVERIES_WAITING_EXTRA;
                if let Err(problem) = queue.admits(lead, items.len(), max) {
                    // Who leads is looked up under the same lock.
                    drop(queue);
                    return Err(not_taken(problem));
                }
                let (count, batch) = (items.len(), self.answer_batch(items.len(), origin));
                for item in items {
                    let origin = Origin::Deliver {
                        batch: batch.clone(),
                        message: item.message,
                    };
                    if queue
                        .push(
                            Proposal {
                                command: item.command,
                                origin,
                                lead,
                            },
                            max,
                        )
                        .is_err()
                    {
                        unreachable!("room for the whole batch was made sure of under this lock");
                    }
                }
                let proposable = queue.proposable(self.config.entries_in_flight_max);
                drop(queue);
                self.list(proposable);
                self.services.beat.queued(count);
            }
            Payload::Query(query) => {
                let leading = self.queue.lock().leading();
                if !leading.leads || (lead != Lead::ANY && lead < leading.lead) {
                    return Err(not_taken(NotTaken::NotLeader));
                }
                let Some(me) = self.me.upgrade() else {
                    return Err(Undone::Retry(None));
                };
                tokio::spawn(me.answer_query(query.clone(), origin));
            }
        }
        Ok(())
    }

    /// Takes a command of this node's own work, answered to nobody; dropped when this
    /// replica does not lead.
    pub fn take_own(&self, command: Bytes) {
        // What it would change is found and done again by the next leader.
        let _ = self.offer(Proposal {
            command,
            origin: Origin::Nobody,
            lead: Lead::ANY,
        });
    }

    /// Takes a proposal, or gives it back.
    pub fn offer(&self, proposal: Proposal) -> Result<(), (Proposal, NotTaken)> {
        let waiting_max = match proposal.origin {
            _ if passes_frozen(&proposal.command) => {
                self.config.proposals_waiting_max + DELIVERIES_WAITING_EXTRA + STEPS_WAITING_EXTRA
            }
            Origin::Lane { .. } | Origin::Relay { .. } => self.config.proposals_waiting_max,
            // The node's own work is what empties the queues of others.
            Origin::Deliver { .. } | Origin::Probe { .. } | Origin::Nobody => {
                self.config.proposals_waiting_max + DELIVERIES_WAITING_EXTRA
            }
        };
        let proposable = {
            let mut queue = self.queue.lock();
            queue.push(proposal, waiting_max)?;
            queue.proposable(self.config.entries_in_flight_max)
        };
        self.list(proposable);
        self.services.beat.queued(1);
        Ok(())
    }

    /// Lists this replica with the beat if it has something to propose.
    fn arm(&self) {
        let proposable = self
            .queue
            .lock()
            .proposable(self.config.entries_in_flight_max);
        self.list(proposable);
    }

    fn list(&self, proposable: bool) {
        if proposable && !self.armed.swap(true, Ordering::AcqRel) {
            self.services.beat.arm(self.me.clone());
        }
    }

    /// Proposes what waits, as far as entries may be in flight, and returns how many
    /// entries it made. Called by the beat.
    pub async fn propose(self: &Arc<Self>) -> u32 {
        self.armed.store(false, Ordering::Release);
        let mut entries = 0;
        loop {
            let lead;
            let proposals = {
                let mut queue = self.queue.lock();
                if !queue.proposable(self.config.entries_in_flight_max) {
                    return entries;
                }
                queue.entries_in_flight += 1;
                lead = queue.leading().lead;
                queue.take(self.config.entry_bytes_max)
            };
            self.services.beat.taken(proposals.len(), true);
            let (payload, origins) = encode_entry(proposals);
            self.services.metrics.entry_proposed(origins.len());
            let (me, proposed) = (self.clone(), Instant::now());
            self.group
                .propose_in(lead.term(), payload, move |outcome| {
                    me.ended(lead, origins, proposed, outcome)
                })
                .await;
            // Before more is taken: one that is refused ends the lead.
            self.group.decided().await;
            entries += 1;
        }
    }

    /// An entry of a lead has ended: answers all of its commands.
    fn ended(
        self: Arc<Self>,
        lead: Lead,
        origins: Vec<Origin>,
        proposed: Instant,
        outcome: Outcome,
    ) {
        self.queue.lock().entries_in_flight -= 1;
        self.services.beat.ended();
        match outcome {
            Outcome::Applied(effects) => {
                self.services.beat.applied_after(proposed.elapsed());
                let frozen = effects.iter().any(|effect| effect.reply == Reply::Frozen);
                let (origins, effects) = if frozen {
                    self.take_back_frozen(lead, origins, effects)
                } else {
                    (origins, effects)
                };
                self.answer(origins, effects, proposed);
            }
            Outcome::NotLeader { .. }
            | Outcome::NotReady
            | Outcome::Unknown
            | Outcome::TooLarge { .. } => {
                let me = self.services.cluster.me();
                let stale = self.queue.lock().end_lead(lead);
                self.services.beat.taken(stale.len(), false);
                let stale = stale.into_iter().map(|proposal| proposal.origin);
                // Without a majority, or a leader, it is asked again after a moment.
                let hint = match outcome {
                    Outcome::NotLeader { .. } => self.leader().filter(|route| route.node != me),
                    _ => None,
                };
                self.reject(origins.into_iter().chain(stale), hint);
            }
        }
        self.arm();
    }

    fn answer(&self, origins: Vec<Origin>, effects: Vec<Effects>, proposed: Instant) {
        debug_assert_eq!(origins.len(), effects.len());
        let mut settled = Vec::new();
        let settle = |reply| match reply {
            Reply::Moved => Err(Undone::Moved),
            reply => Ok(Response::Reply(reply)),
        };
        for (origin, effect) in origins.into_iter().zip(effects) {
            if let Some(tracer) = &self.services.tracer {
                self.trace(tracer, &origin, &effect, proposed);
            }
            match origin {
                Origin::Lane { sequence } => settled.push((sequence, settle(effect.reply))),
                Origin::Relay { link, correlation } => {
                    frames::send_settled(&link, self.shard, correlation, &settle(effect.reply));
                }
                Origin::Deliver { batch, message } => {
                    if let Some(Event::Delivered { deliveries, .. }) = effect.event {
                        self.push(&message, &deliveries);
                    }
                    batch.item_ended(match effect.reply {
                        Reply::Moved => Ended::Moved,
                        _ => Ended::Applied,
                    });
                }
                Origin::Probe { probe, proposed } => probe.acknowledged(self, proposed),
                Origin::Nobody => {}
            }
        }
        if !settled.is_empty() {
            self.services
                .router
                .settle_all(self.shard, settled.into_iter());
        }
    }

    /// A command has come to its end here.
    fn trace(&self, tracer: &Tracer, origin: &Origin, effect: &Effects, proposed: Instant) {
        match (origin, &effect.reply, &effect.event) {
            (
                Origin::Lane { .. } | Origin::Relay { .. },
                Reply::Sent {
                    message_id,
                    duplicate: false,
                    ..
                },
                _,
            ) => tracer.replicated(self.shard, *message_id, proposed),
            (Origin::Deliver { message, .. }, _, Some(Event::Delivered { deliveries, .. })) => {
                if let Some(message) = message_id(message) {
                    tracer.delivered(self.shard, message, proposed, deliveries.len());
                }
            }
            _ => {}
        }
    }

    /// Gives back what was not done; `hint` is where to go instead, at once. What its neighbour
    /// has now is done there.
    fn reject(&self, origins: impl Iterator<Item = Origin>, hint: Option<Route>) {
        let absorbed = self.reader.is_absorbed();
        let undone = || match absorbed {
            true => Undone::Moved,
            false => Undone::Retry(hint),
        };
        for origin in origins {
            match origin {
                Origin::Lane { sequence } => {
                    self.services
                        .router
                        .settle(self.shard, sequence, Err(undone()));
                }
                Origin::Relay { link, correlation } => {
                    frames::send_settled(&link, self.shard, correlation, &Err(undone()));
                }
                Origin::Deliver { batch, .. } => batch.item_ended(match absorbed {
                    true => Ended::Moved,
                    false => Ended::Undone,
                }),
                Origin::Probe { probe, .. } => probe.undone(),
                Origin::Nobody => {}
            }
        }
    }

    fn answer_batch(&self, items: usize, origin: Origin) -> Arc<DeliverBatch> {
        let (shard, router) = (self.shard, self.services.router.clone());
        let answer = move |ended| {
            let settled = match ended {
                Ended::Applied => Ok(Response::Delivered),
                Ended::Undone => Err(Undone::Retry(None)),
                Ended::Moved => Err(Undone::Moved),
            };
            match &origin {
                Origin::Lane { sequence } => router.settle(shard, *sequence, settled),
                Origin::Relay { link, correlation } => {
                    frames::send_settled(link, shard, *correlation, &settled);
                }
                Origin::Deliver { .. } | Origin::Probe { .. } | Origin::Nobody => {}
            }
        };
        DeliverBatch::new(items, Box::new(answer))
    }

    /// Tells the nodes that have sessions of the users.
    fn push(&self, message: &Bytes, deliveries: &[Delivery]) {
        let subscribers = self.subscribers.lock();
        let me = self.services.cluster.me();
        let mut nodes: Vec<(NodeId, Vec<&Delivery>)> = Vec::new();
        for delivery in deliveries {
            for node in subscribers.nodes(delivery.user.as_bytes()) {
                match nodes.iter_mut().find(|(other, _)| other == node) {
                    Some((_, list)) => list.push(delivery),
                    None => nodes.push((*node, vec![delivery])),
                }
            }
        }
        drop(subscribers);
        for (node, list) in nodes {
            let targets = list.iter().map(|delivery| {
                (
                    delivery.user.as_bytes(),
                    delivery.inbox_seq.0,
                    delivery.unread,
                )
            });
            if node == me {
                self.services.gateway.on_push(message.clone(), targets);
            } else if let Some(link) = self.services.cluster.relay(node) {
                frames::send_push(&link, self.shard, message, targets);
            }
        }
    }

    async fn answer_query(self: Arc<Self>, query: Bytes, origin: Origin) {
        let settled = self
            .execute_query(query)
            .await
            .map(|answer| Response::Answer(answer.encode_to_vec().into()));
        match origin {
            Origin::Lane { sequence } => self.services.router.settle(self.shard, sequence, settled),
            Origin::Relay { link, correlation } => {
                frames::send_settled(&link, self.shard, correlation, &settled);
            }
            Origin::Deliver { .. } | Origin::Probe { .. } | Origin::Nobody => {}
        }
    }

    async fn execute_query(&self, query: Bytes) -> Result<internal::Answer, Undone> {
        let query = internal::Query::decode(query)
            .map_err(|error| Undone::Failed(format!("a query is damaged: {error}")))?;
        if let Some(internal::query::Kind::Subscribe(subscribe)) = &query.kind {
            // Before the read: what is delivered after it is pushed.
            let node = NodeId(subscribe.node_id);
            let mut subscribers = self.subscribers.lock();
            for user in &subscribe.gone_user_ids {
                subscribers.remove(user.as_bytes(), node);
            }
            for user in &subscribe.user_ids {
                subscribers.add(Bytes::copy_from_slice(user.as_bytes()), node);
            }
        }
        match tokio::time::timeout(READ_INDEX_TIMEOUT, self.group.read_index()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return Err(Undone::Retry(None)),
        }
        // What is kept may be taken over at any time, without a word to this group.
        if self.kept().is_some() {
            return Err(if self.reader.is_absorbed() {
                Undone::Moved
            } else {
                Undone::Retry(None)
            });
        }
        // A split that was done when it was asked is applied here by now.
        if !crate::query::is_within(&query, self.reader.slots()) {
            return Err(Undone::Moved);
        }
        let reader = self.reader.clone();
        let answer = tokio::task::spawn_blocking(move || crate::query::execute(&reader, &query))
            .await
            .map_err(|error| Undone::Failed(format!("a query failed: {error}")))?;
        // The state may have been deleted while it was read.
        if self.is_retired() {
            return Err(Undone::Retry(None));
        }
        Ok(answer)
    }

    /// A node went away: its sessions are gone, or it tells of them again.
    pub fn on_peer_lost(&self, node: NodeId) {
        self.subscribers.lock().forget_node(node);
    }

    /// A split has taken slots away: who listens for their users is told to the new shard.
    pub fn on_split(&self) {
        self.subscribers.lock().keep(self.reader.slots());
    }

    /// The outbox: conversations that are not wholly delivered, how far they are, and
    /// their last entry.
    pub fn undelivered(&self) -> Vec<(ConversationId, Seq, Seq)> {
        let mut undelivered = Vec::new();
        let mut after = None;
        loop {
            let slots = self.reader.slots();
            let page = outbox_markers(&self.reader, slots, after.as_ref(), OUTBOX_PAGE);
            let last = page.len() < OUTBOX_PAGE;
            after = page.last().map(|(conversation, _)| conversation.clone());
            undelivered.extend(page.into_iter().filter_map(|(conversation, delivered)| {
                let head = carillon_core::read::conversation(&self.reader, &conversation)?.last_seq;
                Some((conversation, delivered, head))
            }));
            if last {
                return undelivered;
            }
        }
    }

    /// An entry of a conversation.
    pub fn message(&self, conversation: &ConversationId, seq: Seq) -> Option<MessageRecord> {
        carillon_core::read::message(&self.reader, conversation, seq)
    }

    /// Who gets an entry, and whether it removes them.
    pub fn recipients(&self, conversation: &ConversationId, seq: Seq) -> Vec<(UserId, bool)> {
        let members = carillon_core::read::members_all(&self.reader, conversation);
        let leaving: Vec<&UserId> = carillon_core::apply::leaving(&members, seq).collect();
        carillon_core::apply::recipients(&members, seq)
            .map(|user| (user.clone(), leaving.contains(&user)))
            .collect()
    }

    /// Proposes a split; this replica must lead. It may be proposed any number of times.
    pub fn propose_split(&self, split: &Split) -> bool {
        let leads = self.leads();
        if leads {
            let command = Command::Split {
                new_shard: split.new_shard_id,
                at: split.slot,
                replicas: split.replicas.clone(),
            };
            self.take_own(command.encoded());
        }
        leads
    }

    /// Proposes a checksum of the state; this replica must lead.
    pub fn propose_checksum(&self, nonce: u64) -> bool {
        let leads = self.leads();
        if leads {
            self.take_own(Command::Checksum { nonce }.encoded());
        }
        leads
    }

    /// Stops the replica for good, and returns when nothing of it uses the store or the log any
    /// more, but readers that are on their way.
    pub async fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.stop();
        self.shared.leading.store(false, Ordering::Release);
        self.services.fanout.on_leading(self.shard, false);
        watched(self.shard, "its group", self.group.shutdown()).await;
        let ended = self.machine_ended.lock().take();
        if let Some(ended) = ended {
            // Its sender is dropped, never used.
            let _ = watched(self.shard, "its state machine", ended).await;
        }
        self.shared.checksums.passed_over();
    }

    /// It is being deleted.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Nothing is taken any more; what waits is given back.
    pub fn stop(&self) {
        let waiting = self.queue.lock().drain();
        self.services.beat.taken(waiting.len(), false);
        let waiting = waiting.into_iter().map(|proposal| proposal.origin);
        self.reject(waiting, self.leader());
    }
}

fn encode_entry(proposals: Vec<Proposal>) -> (Bytes, Vec<Origin>) {
    let size: usize = proposals
        .iter()
        .map(|proposal| pushed_bytes(proposal.command.len()))
        .sum();
    let mut payload = BytesMut::with_capacity(BATCH_HEADER_BYTES + size);
    encode_batch_header(&mut payload, now(), proposals.len() as u32);
    let mut origins = Vec::with_capacity(proposals.len());
    for proposal in proposals {
        push_command(&mut payload, &proposal.command);
        origins.push(proposal.origin);
    }
    (payload.freeze(), origins)
}

/// Who leads, as far as Raft says.
fn route(leadership: &Leadership) -> Option<Route> {
    let leader = leadership.leader?;
    Some(Route {
        node: leader.node,
        lead: first_lead(leadership),
    })
}

fn first_lead(leadership: &Leadership) -> Lead {
    let leader = leadership.leader.map(|member| member.replica);
    Lead::first(leadership.term, leader)
}

/// The leader's clock; the state machine keeps times from going back.
pub fn now() -> TimestampMs {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    TimestampMs(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Waits for a part of a replica that ends, and says which one while that takes long: other
/// replicas of the node wait for it.
pub async fn watched<T>(shard: ShardId, part: &'static str, ends: impl Future<Output = T>) -> T {
    let mut ends = std::pin::pin!(ends);
    loop {
        match tokio::time::timeout(SLOW_END, &mut ends).await {
            Ok(ended) => return ended,
            Err(_) => tracing::warn!(shard = shard.0, part, "a replica does not end"),
        }
    }
}
