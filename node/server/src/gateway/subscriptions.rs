//! Tells the leaders of the inbox shards which users this node listens for.
//!
//! Level-triggered: a user whose state may have changed is **marked**. Each shard with
//! marked users has one task, which takes a batch of them, looks in the registry who is
//! there and who is not, and tells the leader both in one query; then the next batch.
//! One query of a shard is under way at a time, so a user who leaves and comes back is
//! marked again and told again after it, in that order.
//!
//! Owner of the state: the mutex around the marks. A task ends when no mark is left.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use carillon_core::{NodeId, ShardId, UserId};
use carillon_proto::internal::{self, answer, query};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::errors::Failure;
use super::limits::SUBSCRIBE_USERS_MAX;
use super::registry::Registry;
use crate::router::{OpError, Router};

/// How long one query may take before it is made anew.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// The first wait after a failed query; doubled with each further one. A new leader ends
/// the wait.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// The longest wait after a failed query.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// What is to be told of one user.
#[derive(Default)]
struct Mark {
    /// The leader changed: what was pushed before may be missing, so the inbox's end is
    /// told to all who listen.
    announce: bool,
    /// Those who asked for the inbox's end.
    waiters: Vec<oneshot::Sender<u64>>,
}

impl Mark {
    fn absorb(&mut self, other: Mark) {
        self.announce |= other.announce;
        self.waiters.extend(other.waiters);
    }
}

#[derive(Default)]
struct ShardMarks {
    users: BTreeMap<UserId, Mark>,
    leader_changed: Arc<Notify>,
}

/// See the module.
pub(super) struct Subscriptions {
    node: NodeId,
    router: Arc<Router>,
    registry: Arc<Registry>,
    /// Shards whose task runs.
    shards: Mutex<HashMap<ShardId, ShardMarks>>,
    myself: Weak<Subscriptions>,
}

/// The users of one query.
struct Batch {
    here: Vec<(UserId, Mark)>,
    gone: Vec<UserId>,
    leader_changed: Arc<Notify>,
}

impl Subscriptions {
    pub fn new(node: NodeId, router: Arc<Router>, registry: Arc<Registry>) -> Arc<Self> {
        Arc::new_cyclic(|myself| Self {
            node,
            router,
            registry,
            shards: Mutex::default(),
            myself: myself.clone(),
        })
    }

    /// Subscribes for a user who is in the registry already, and waits for their inbox's
    /// end: every entry after it is pushed here.
    ///
    /// # Errors
    /// DEADLINE_EXCEEDED, or UNAVAILABLE when the node stops.
    pub async fn head(&self, user: &UserId, deadline: Instant) -> Result<u64, Failure> {
        let (sender, receiver) = oneshot::channel();
        self.mark(
            user.clone(),
            Mark {
                announce: false,
                waiters: vec![sender],
            },
        );
        match tokio::time::timeout_at(deadline, receiver).await {
            Ok(Ok(head)) => Ok(head),
            Ok(Err(_)) => Err(Failure::draining()),
            Err(_) => Err(OpError::DeadlineExceeded {
                shard: self.router.shard_of(user.slot()).0,
            }
            .into()),
        }
    }

    /// A user has come or gone.
    pub fn changed(&self, user: UserId) {
        self.mark(user, Mark::default());
    }

    /// A shard has a new leader, which knows nothing of this node.
    pub fn leader_changed(&self, shard: ShardId) {
        if let Some(marks) = self.shards.lock().get(&shard) {
            marks.leader_changed.notify_one();
        }
        let users = self
            .registry
            .users_of(|slot| self.router.shard_of(slot) == shard);
        for user in users {
            self.mark(
                user,
                Mark {
                    announce: true,
                    waiters: Vec::new(),
                },
            );
        }
    }

    fn mark(&self, user: UserId, mark: Mark) {
        let shard = self.router.shard_of(user.slot());
        let mut shards = self.shards.lock();
        let mut idle = false;
        let marks = shards.entry(shard).or_insert_with(|| {
            idle = true;
            ShardMarks::default()
        });
        marks.users.entry(user).or_default().absorb(mark);
        drop(shards);
        if idle && let Some(myself) = self.myself.upgrade() {
            tokio::spawn(myself.run(shard));
        }
    }

    /// Tells a shard's leader everything that is marked.
    async fn run(self: Arc<Self>, shard: ShardId) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let version = self.router.routing_version();
            let Some(batch) = self.next_batch(shard) else {
                return;
            };
            match self.tell(&batch).await {
                Ok(heads) => {
                    backoff = BACKOFF_MIN;
                    self.told(batch, heads);
                }
                Err(OpError::ShuttingDown) => {
                    // Dropping the marks ends those who wait.
                    self.shards.lock().remove(&shard);
                    return;
                }
                // Each of them goes to the shard that it has now.
                Err(OpError::Moved) => {
                    self.router.rerouted(version).await;
                    self.put_back(batch);
                }
                Err(error) => {
                    tracing::warn!(%shard, users = batch.here.len(), %error, "subscription failed, trying again");
                    let leader_changed = batch.leader_changed.clone();
                    self.put_back(batch);
                    let changed = tokio::time::timeout(backoff, leader_changed.notified()).await;
                    backoff = if changed.is_ok() {
                        BACKOFF_MIN
                    } else {
                        (backoff * 2).min(BACKOFF_MAX)
                    };
                }
            }
        }
    }

    /// Takes users to tell of; none, and the task is over, when none are marked.
    fn next_batch(&self, shard: ShardId) -> Option<Batch> {
        let (marked, leader_changed) = {
            let mut shards = self.shards.lock();
            let marks = shards.get_mut(&shard)?;
            let mut marked = Vec::with_capacity(marks.users.len().min(SUBSCRIBE_USERS_MAX));
            while marked.len() < SUBSCRIBE_USERS_MAX
                && let Some(next) = marks.users.pop_first()
            {
                marked.push(next);
            }
            if marked.is_empty() {
                shards.remove(&shard);
                return None;
            }
            (marked, marks.leader_changed.clone())
        };
        let mut batch = Batch {
            here: Vec::with_capacity(marked.len()),
            gone: Vec::new(),
            leader_changed,
        };
        for (user, mark) in marked {
            if self.registry.contains(&user) {
                batch.here.push((user, mark));
            } else {
                batch.gone.push(user);
            }
        }
        Some(batch)
    }

    async fn tell(&self, batch: &Batch) -> Result<Vec<u64>, OpError> {
        let first = batch
            .here
            .first()
            .map(|(user, _)| user)
            .or(batch.gone.first());
        let slot = first.expect("a batch has a user").slot();
        let subscribe = internal::SubscribeQuery {
            node_id: self.node.0,
            user_ids: batch
                .here
                .iter()
                .map(|(user, _)| user.as_str().to_owned())
                .collect(),
            gone_user_ids: batch
                .gone
                .iter()
                .map(|user| user.as_str().to_owned())
                .collect(),
        };
        let query = internal::Query {
            kind: Some(query::Kind::Subscribe(subscribe)),
        };
        let answer = self
            .router
            .query(slot, query, Instant::now() + QUERY_TIMEOUT)
            .await?;
        match answer.kind {
            Some(answer::Kind::Subscribe(answer))
                if answer.inbox_heads.len() == batch.here.len() =>
            {
                Ok(answer.inbox_heads)
            }
            other => Err(OpError::Internal(format!(
                "a subscription was answered with {other:?}"
            ))),
        }
    }

    fn told(&self, batch: Batch, heads: Vec<u64>) {
        for ((user, mark), head) in batch.here.into_iter().zip(heads) {
            if mark.announce {
                self.registry.head_known(&user, head);
            }
            for waiter in mark.waiters {
                // Whoever asked may have gone; then nobody wants to know.
                let _ = waiter.send(head);
            }
        }
    }

    /// After a failure, whoever is here is told again. Who has gone is not, so that marks
    /// are at most the users that are here and those that left since the last query: a
    /// leader that still pushes for one makes `on_push` mark them.
    fn put_back(&self, batch: Batch) {
        for (user, mut mark) in batch.here {
            mark.waiters.retain(|waiter| !waiter.is_closed());
            self.mark(user, mark);
        }
    }
}
