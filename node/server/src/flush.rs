//! Makes the state durable and the log short: flush, then snapshot position, then purge.
//!
//! One flush of the store advances every shard of the node. Invariant: a shard's log is
//! purged only up to what a finished flush contains.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use carillon_core::ids::ShardId;
use carillon_raft::FlushJob;
use carillon_store::Store;
use parking_lot::Mutex;

use crate::cluster::Cluster;
use crate::config::LogConfig;
use crate::node::NodeLog;

/// How often it is looked whether a flush is due.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// A flush that is younger than this serves the other shards of the same round too.
const ROUND: Duration = Duration::from_secs(2);

struct LastFlush {
    at: Instant,
    applied: BTreeMap<ShardId, Bytes>,
}

/// Flushes the node's store for all of its shards.
pub struct Flusher {
    store: Store,
    last: Mutex<Option<LastFlush>>,
}

impl Flusher {
    /// A flusher of a store.
    pub fn new(store: Store) -> Arc<Self> {
        Arc::new(Self {
            store,
            last: Mutex::new(None),
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

    fn flush(&self, shard: ShardId) -> io::Result<Bytes> {
        // Held while flushing: the others of the round wait for the one that does it.
        let mut last = self.last.lock();
        if let Some(flush) = &*last
            && flush.at.elapsed() < ROUND
            && let Some(applied) = flush.applied.get(&shard)
        {
            return Ok(applied.clone());
        }
        let applied = self.store.flush().map_err(io::Error::other)?;
        let record = applied.get(&shard).cloned();
        *last = Some(LastFlush {
            at: Instant::now(),
            applied,
        });
        record.ok_or_else(|| io::Error::other(format!("shard {} has nothing applied", shard.0)))
    }

    /// Flushes everything, whatever was flushed before.
    pub fn flush_now(&self) -> io::Result<()> {
        let applied = self.store.flush().map_err(io::Error::other)?;
        *self.last.lock() = Some(LastFlush {
            at: Instant::now(),
            applied,
        });
        Ok(())
    }

    /// Forgets the last flush, so that the next job flushes.
    pub fn expire(&self) {
        *self.last.lock() = None;
    }
}

/// Flushes and purges when enough was written, until the node stops.
pub async fn run(cluster: Arc<Cluster>, log: NodeLog, config: LogConfig) {
    let mut check = tokio::time::interval(CHECK_INTERVAL);
    let (mut bytes_before, mut flushed_at) = (log.stats().bytes, Instant::now());
    loop {
        check.tick().await;
        let bytes = log.stats().bytes;
        let written = bytes.saturating_sub(bytes_before);
        let due = written >= config.flush_after_bytes
            || (written > 0 && flushed_at.elapsed() >= config.flush_after);
        if !due {
            continue;
        }
        (bytes_before, flushed_at) = (bytes, Instant::now());
        for replica in cluster.replicas() {
            match replica.group().flush_and_purge(config.entries_kept).await {
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
