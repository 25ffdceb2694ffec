//! Makes the state durable and the log short: flush, then snapshot position, then purge.
//!
//! One flush of the store advances every shard of the node. Invariant: a shard's log is
//! purged only up to what a finished flush contains.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use carillon_core::ids::ShardId;
use carillon_core::map::META_SHARD;
use carillon_raft::{FlushJob, Retention};
use carillon_store::Store;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use crate::cluster::Cluster;
use crate::config::LogConfig;
use crate::disk::Room;
use crate::node::NodeLog;
use crate::shard::Replica;

/// How often it is looked whether a flush is due.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// A flush that is younger than this serves the other shards of the same round too.
const ROUND: Duration = Duration::from_secs(2);

/// A replica that has to catch up gets the log when it is at most this part of the state, else a
/// snapshot: an entry that is applied again takes several times what its bytes in a file take.
const LOG_PART_OF_STATE: u64 = 4;

/// Between two looks at whether compactions, which tell nobody, have caught up.
const COMPACTION_LOOK_INTERVAL: Duration = Duration::from_millis(20);

struct LastFlush {
    at: Instant,
    /// [`Flusher::expired`] when it began.
    began: u64,
    applied: BTreeMap<ShardId, Bytes>,
}

/// Flushes the node's store for all of its shards.
pub struct Flusher {
    store: Store,
    last: Mutex<Option<LastFlush>>,
    /// How often it was said that what was flushed before does not suffice.
    expired: AtomicU64,
    /// One makes room for all.
    relieving: tokio::sync::Mutex<()>,
    held_back: AtomicU64,
}

impl Flusher {
    /// A flusher of a store.
    pub fn new(store: Store) -> Arc<Self> {
        Arc::new(Self {
            store,
            last: Mutex::new(None),
            expired: AtomicU64::new(0),
            relieving: tokio::sync::Mutex::new(()),
            held_back: AtomicU64::new(0),
        })
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// A job that makes a shard's state durable and returns its record that is.
    pub fn job(self: &Arc<Self>, shard: ShardId) -> FlushJob {
        let me = self.clone();
        Box::new(move || me.flush(shard))
    }

    /// What to wait for before more is committed; none when the store takes it at once.
    pub fn room(self: &Arc<Self>) -> Option<BoxFuture<'static, ()>> {
        if !self.store.is_crowded() {
            return None;
        }
        self.held_back.fetch_add(1, Ordering::Relaxed);
        Some(Box::pin(self.clone().relieve()))
    }

    /// How often a batch of entries waited for room before it was applied.
    pub fn held_back(&self) -> u64 {
        self.held_back.load(Ordering::Relaxed)
    }

    async fn relieve(self: Arc<Self>) {
        let one = self.relieving.lock().await;
        while self.store.is_crowded() {
            let store = self.store.clone();
            match tokio::task::spawn_blocking(move || store.relieve()).await {
                Ok(Ok(true)) => tokio::time::sleep(COMPACTION_LOOK_INTERVAL).await,
                Ok(Ok(false)) => {}
                // The store is unusable, as the next commit finds out, or the node stops.
                Ok(Err(_)) | Err(_) => break,
            }
        }
        drop(one);
    }

    fn flush(&self, shard: ShardId) -> io::Result<Bytes> {
        // Held while flushing: the others of the round wait for the one that does it.
        let mut last = self.last.lock();
        if let Some(flush) = &*last
            && flush.at.elapsed() < ROUND
            && flush.began == self.expired.load(Ordering::Acquire)
            && let Some(applied) = flush.applied.get(&shard)
        {
            return Ok(applied.clone());
        }
        let flush = self.flush_all()?;
        let record = flush.applied.get(&shard).cloned();
        *last = Some(flush);
        record.ok_or_else(|| io::Error::other(format!("shard {} has nothing applied", shard.0)))
    }

    /// Flushes everything, whatever was flushed before.
    pub fn flush_now(&self) -> io::Result<()> {
        let flush = self.flush_all()?;
        *self.last.lock() = Some(flush);
        Ok(())
    }

    fn flush_all(&self) -> io::Result<LastFlush> {
        let began = self.expired.load(Ordering::Acquire);
        let applied = self.store.flush().map_err(io::Error::other)?;
        Ok(LastFlush {
            at: Instant::now(),
            began,
            applied,
        })
    }

    /// The next job flushes, whatever was flushed before or is being flushed. Never blocks.
    pub fn expire(&self) {
        self.expired.fetch_add(1, Ordering::AcqRel);
    }
}

/// Flushes and purges when enough was written, until the node stops.
pub async fn run(
    cluster: Arc<Cluster>,
    flusher: Arc<Flusher>,
    room: Arc<Room>,
    log: NodeLog,
    config: LogConfig,
) {
    let mut check = tokio::time::interval(CHECK_INTERVAL);
    let (mut bytes_before, mut flushed_at) = (log.stats().bytes, Instant::now());
    loop {
        check.tick().await;
        begin_logs_later(&flusher, &cluster.replicas()).await;
        let bytes = log.stats().bytes;
        let written = bytes.saturating_sub(bytes_before);
        let due = written >= config.flush_after_bytes
            || (written > 0 && flushed_at.elapsed() >= config.flush_after)
            // What is flushed frees more of the log than it takes.
            || (written > 0 && !room.takes_commands());
        // A flush that does not fit would end the node; nothing else is written by now.
        let fits = room.takes_commands()
            || room.disk().free_bytes > flusher.store().stats().memtable_bytes;
        if !due || !fits {
            continue;
        }
        (bytes_before, flushed_at) = (bytes, Instant::now());
        for replica in cluster.replicas() {
            let state_bytes = state_bytes(flusher.store(), &replica);
            let retention = Retention {
                entries: config.entries_kept,
                bytes: config.bytes_kept.max(state_bytes / LOG_PART_OF_STATE),
            };
            match replica.group().flush_and_purge(retention).await {
                Ok(position) => tracing::debug!(
                    shard = replica.shard().0,
                    ?position,
                    "state is durable, log is purged"
                ),
                Err(error) => {
                    tracing::warn!(shard = replica.shard().0, %error, "flush and purge failed")
                }
            }
        }
    }
}

/// Bytes on disk of what a replica is of; none of the meta group's, which is small.
pub fn state_bytes(store: &Store, replica: &Replica) -> u64 {
    match replica.shard() {
        META_SHARD => 0,
        _ => store.approximate_bytes(replica.reader().slots()),
    }
}

/// Purges the first entries of the logs of these replicas that still have all, and not much more:
/// others may need the rest. Who is added to a group takes no log from its beginning. False when
/// one of them failed, which is logged.
pub async fn begin_logs_later(flusher: &Flusher, replicas: &[Arc<Replica>]) -> bool {
    let whole = |replica: &Arc<Replica>| {
        let status = replica.group().status();
        let applied = status.applied.filter(|_| status.purged.is_none())?;
        Some((replica.clone(), applied))
    };
    let whole: Vec<_> = replicas.iter().filter_map(whole).collect();
    if !whole.is_empty() {
        // The next one has all that was applied by now.
        flusher.expire();
    }
    let mut all = true;
    for (replica, applied) in whole {
        let retention = Retention::entries(applied.index);
        if let Err(error) = replica.group().flush_and_purge(retention).await {
            tracing::warn!(shard = replica.shard().0, %error, "flush and purge failed");
            all = false;
        }
    }
    all
}
