//! Concurrent clients that use a cluster like chat applications do, and record.
//!
//! Each device has a Connect stream of its own, spread over the nodes; it sends paced
//! messages with several unanswered at a time, connects elsewhere when its stream breaks
//! and sends what is unanswered again under the same ids. Besides it reads timelines from
//! any node, marks conversations as read, and repairs gaps of its inbox.

mod calls;
mod device;
mod inbox;
mod plan;
mod stream;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use carillon_proto::v1;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::access::Target;
use crate::history::{At, Clock, ConversationId, DeviceHistory, InboxSeq, UserId};
use crate::rpc::{self, Chat};

use device::{Device, DeviceParts};
use plan::Plan;

pub(crate) use calls::{inbox_entry, is_transient};
pub use plan::{LoadOptions, seed};

/// How long the groups of a load may take to be created.
const CREATE_LIMIT: Duration = Duration::from_secs(15);
/// Between two tries to create a group.
const CREATE_RETRY_AFTER: Duration = Duration::from_millis(100);

/// What the devices are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Send, read, mark and listen.
    Sending,
    /// Get what is unanswered answered, and listen.
    Draining,
    /// Leave.
    Done,
}

/// Where a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Position {
    /// It has its inbox up to here.
    cursor: InboxSeq,
    /// Messages without an answer.
    outstanding: usize,
}

/// How the load goes, over all devices.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Messages that were acknowledged.
    pub acknowledged: u64,
    /// The longest time without an acknowledgement.
    pub longest_pause: Duration,
    last: Instant,
}

impl Pace {
    fn start() -> Self {
        Self {
            acknowledged: 0,
            longest_pause: Duration::ZERO,
            last: Instant::now(),
        }
    }

    fn acknowledged(&mut self) {
        let now = Instant::now();
        self.acknowledged += 1;
        self.longest_pause = self.longest_pause.max(now - self.last);
        self.last = now;
    }

    fn reset_longest_pause(&mut self) {
        self.longest_pause = Duration::ZERO;
        self.last = Instant::now();
    }
}

/// Counts acknowledgements.
#[derive(Debug)]
struct Progress {
    all: watch::Sender<Pace>,
    of_each: Mutex<BTreeMap<ConversationId, Pace>>,
}

impl Progress {
    fn new<'a>(conversations: impl Iterator<Item = &'a ConversationId>) -> Self {
        let of_each = conversations.map(|id| (id.clone(), Pace::start()));
        Self {
            all: watch::Sender::new(Pace::start()),
            of_each: Mutex::new(of_each.collect()),
        }
    }

    fn of_each(&self) -> MutexGuard<'_, BTreeMap<ConversationId, Pace>> {
        self.of_each.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn acknowledged(&self, conversation: &ConversationId) {
        self.all.send_modify(Pace::acknowledged);
        if let Some(pace) = self.of_each().get_mut(conversation) {
            pace.acknowledged();
        }
    }
}

/// A running load.
#[derive(Debug)]
pub struct Load {
    plan: Plan,
    phase: watch::Sender<Phase>,
    progress: Arc<Progress>,
    devices: Vec<JoinHandle<DeviceHistory>>,
    positions: Vec<(UserId, watch::Receiver<Position>)>,
    clock: Clock,
    /// Microseconds of the clock.
    looked_at: AtomicU64,
}

impl Load {
    /// Creates the groups and starts all devices on the nodes with these client addresses.
    pub async fn start(addresses: &[String], options: LoadOptions) -> Result<Self> {
        let plan = Plan::make(&options);
        let targets = addresses
            .iter()
            .map(|address| options.access.target(address))
            .collect::<Result<Vec<_>>>()?;
        let nodes: Vec<Chat> = targets.iter().map(Target::chat).collect();
        create_groups(&plan, &nodes).await?;

        let nodes: Arc<[Chat]> = nodes.into();
        let options = Arc::new(options);
        let clock = Clock::start();
        let (phase, phase_receiver) = watch::channel(Phase::Sending);
        let progress = Arc::new(Progress::new(plan.conversations.keys()));
        let mut devices = Vec::with_capacity(plan.devices.len());
        let mut positions = Vec::with_capacity(plan.devices.len());
        for (number, (user, name)) in (1..).zip(&plan.devices) {
            let (position, position_receiver) = watch::channel(Position::default());
            let device = Device::new(DeviceParts {
                user: user.clone(),
                name: name.clone(),
                conversations: plan.conversations_of(user),
                targets: targets.clone(),
                nodes: Arc::clone(&nodes),
                options: Arc::clone(&options),
                rng: StdRng::seed_from_u64(options.seed.wrapping_add(number)),
                clock,
                progress: Arc::clone(&progress),
                phase: phase_receiver.clone(),
                position,
            });
            devices.push(tokio::spawn(device.run()));
            positions.push((user.clone(), position_receiver));
        }
        Ok(Self {
            plan,
            phase,
            progress,
            devices,
            positions,
            clock,
            looked_at: AtomicU64::new(0),
        })
    }

    /// How it goes.
    pub fn pace(&self) -> Pace {
        *self.progress.all.borrow()
    }

    /// The longest time without an acknowledgement in any one group, up to now. Groups are in
    /// different shards, and each has clients on several nodes, most likely; a direct
    /// conversation of two clients of one node waits for that node.
    pub fn longest_pause_of_a_group(&self) -> Duration {
        let paces = self.progress.of_each();
        let groups = self.plan.groups.iter();
        let groups = groups.filter_map(|group| paces.get(&group.id));
        let pauses = groups.map(|pace| pace.longest_pause.max(pace.last.elapsed()));
        pauses.max().unwrap_or_default()
    }

    /// Forgets the longest pauses so far, and how sending went.
    pub fn reset_longest_pause(&self) {
        self.looked_at.store(self.clock.now().0, Ordering::Relaxed);
        self.progress.all.send_modify(Pace::reset_longest_pause);
        for pace in self.progress.of_each().values_mut() {
            pace.reset_longest_pause();
        }
    }

    /// Waits until so many more messages have been acknowledged.
    pub async fn wait_acknowledged(&self, more: u64, limit: Duration) -> Result<()> {
        let mut paces = self.progress.all.subscribe();
        let target = paces.borrow().acknowledged + more;
        let waited = paces.wait_for(|pace| pace.acknowledged >= target);
        if tokio::time::timeout(limit, waited).await.is_err() {
            let missing = target - self.pace().acknowledged;
            bail!("{missing} of {more} messages were not acknowledged within {limit:?}");
        }
        Ok(())
    }

    /// When it was reset last.
    pub fn looked_at(&self) -> At {
        At(self.looked_at.load(Ordering::Relaxed))
    }

    /// The members of each conversation.
    pub fn conversations(&self) -> &BTreeMap<ConversationId, BTreeSet<UserId>> {
        &self.plan.conversations
    }

    /// Stops sending and waits until everything is answered.
    pub async fn drain(&mut self, limit: Duration) -> Result<()> {
        self.phase.send_replace(Phase::Draining);
        let deadline = Instant::now() + limit;
        for (user, position) in &mut self.positions {
            let answered = position.wait_for(|position| position.outstanding == 0);
            let answered = tokio::time::timeout_at(deadline, answered).await.is_ok();
            let waiting = position.borrow().outstanding;
            if !answered || waiting > 0 {
                bail!("{waiting} messages of {user} have no answer after {limit:?}");
            }
        }
        Ok(())
    }

    /// Waits until every device has its inbox up to its user's head.
    pub async fn wait_delivered(
        &mut self,
        heads: &BTreeMap<UserId, InboxSeq>,
        limit: Duration,
    ) -> Result<()> {
        let deadline = Instant::now() + limit;
        for (user, position) in &mut self.positions {
            let head = heads.get(user).copied().unwrap_or_default();
            let delivered = position.wait_for(|position| position.cursor >= head);
            if tokio::time::timeout_at(deadline, delivered).await.is_err() {
                let cursor = position.borrow().cursor;
                bail!("a device of {user} is at {cursor} of {head} after {limit:?}");
            }
        }
        Ok(())
    }

    /// Ends all devices and collects what they saw.
    pub async fn finish(self) -> Result<Vec<DeviceHistory>> {
        self.phase.send_replace(Phase::Done);
        let mut histories = Vec::with_capacity(self.devices.len());
        for device in self.devices {
            histories.push(device.await.context("a device of the load panicked")?);
        }
        Ok(histories)
    }
}

async fn create_groups(plan: &Plan, nodes: &[Chat]) -> Result<()> {
    let deadline = Instant::now() + CREATE_LIMIT;
    for (number, group) in plan.groups.iter().enumerate() {
        let request = v1::CreateConversationRequest {
            conversation_id: group.id.to_string(),
            name: format!("Group {number}"),
            member_ids: group.others.iter().map(UserId::to_string).collect(),
            request_id: "create".to_owned(),
        };
        for tried in number.. {
            let mut chat = nodes[tried % nodes.len()].clone();
            let request = rpc::as_user(group.creator.as_str(), request.clone());
            match chat.create_conversation(request).await {
                Ok(_) => break,
                Err(status) if is_transient(status.code()) && Instant::now() < deadline => {
                    sleep(CREATE_RETRY_AFTER).await;
                }
                Err(status) => {
                    return Err(status).with_context(|| format!("could not create {}", group.id));
                }
            }
        }
    }
    Ok(())
}
