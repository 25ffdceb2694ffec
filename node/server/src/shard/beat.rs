//! The node's beat: when waiting commands become log entries.
//!
//! The first command after a pause is proposed at once. Under load, all shards of the
//! node propose together once an interval: their entries share one log write, one fsync
//! and one frame to each peer, and an entry carries many commands. An entry costs a
//! hundred times a command, so this is what decides throughput.
//!
//! Owner of the state: this file. Invariant: a replica is listed at most once.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::shard::Replica;

/// Replicas that have something to propose, and the moment to do it.
pub struct Beat {
    armed: Mutex<Vec<Weak<Replica>>>,
    wake: Notify,
    interval: Duration,
}

impl Beat {
    /// A beat of at least `interval` between rounds.
    pub fn new(interval: Duration) -> Arc<Self> {
        Arc::new(Self {
            armed: Mutex::new(Vec::new()),
            wake: Notify::new(),
            interval,
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

    /// Rounds, until the node stops.
    pub async fn run(self: Arc<Self>) {
        let mut last = Instant::now() - self.interval;
        loop {
            self.wake.notified().await;
            if last.elapsed() < self.interval {
                tokio::time::sleep_until(last + self.interval).await;
            }
            last = Instant::now();
            let round = std::mem::take(&mut *self.armed.lock());
            for replica in round {
                if let Some(replica) = replica.upgrade() {
                    replica.propose().await;
                }
            }
        }
    }
}
