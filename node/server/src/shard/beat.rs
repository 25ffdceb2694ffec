//! The node's beat: when waiting commands become log entries.
//!
//! The first command after a pause is proposed at once. Under load, all shards of the
//! node propose together: their entries share one log write, one fsync and one frame to
//! each peer, and an entry carries many commands. An entry costs a hundred times a
//! command, so the beat bounds how many the node makes: after a round it pauses for
//! `entry_interval` times the entries of the round, at most `batch_interval_max`.
//!
//! Owner of the state: this file. Invariant: a replica is listed at most once.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::RaftConfig;
use crate::shard::Replica;

/// Replicas that have something to propose, and the moment to do it.
pub struct Beat {
    armed: Mutex<Vec<Weak<Replica>>>,
    wake: Notify,
    entry_interval: Duration,
    interval_max: Duration,
}

impl Beat {
    /// A beat that paces entries as configured.
    pub fn new(config: &RaftConfig) -> Arc<Self> {
        Arc::new(Self {
            armed: Mutex::new(Vec::new()),
            wake: Notify::new(),
            entry_interval: config.entry_interval,
            interval_max: config.batch_interval_max,
        })
    }

    /// Lists a replica for the next round; the replica sees to it that it is listed once.
    pub fn arm(&self, replica: Weak<Replica>) {
        let first = {
            let mut armed = self.armed.lock();
            armed.push(replica);
            armed.len() == 1
        };
        if first {
            self.wake.notify_one();
        }
    }

    /// How long commands are gathered after a round of so many entries.
    fn pause(&self, entries: u32) -> Duration {
        self.entry_interval
            .saturating_mul(entries)
            .min(self.interval_max)
    }

    /// Rounds, until the node stops.
    pub async fn run(self: Arc<Self>) {
        let mut next = Instant::now();
        loop {
            self.wake.notified().await;
            tokio::time::sleep_until(next).await;
            let begun = Instant::now();
            let round = std::mem::take(&mut *self.armed.lock());
            let mut entries = 0;
            for replica in round {
                if let Some(replica) = replica.upgrade() {
                    entries += replica.propose().await;
                }
            }
            next = begun + self.pause(entries);
        }
    }
}
