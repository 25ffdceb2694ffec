//! The node's beat: when waiting commands become log entries.
//!
//! The first command after a pause is proposed at once. Under load, all shards of the
//! node propose together: their entries share one log write, one fsync and one frame to
//! each peer, and an entry carries many commands. An entry costs a hundred times a
//! command, so the beat bounds how many the node makes: after a round it pauses for
//! `entry_interval` times the entries of the round, and for as long as an entry takes to be
//! applied, which grows when processors or disks are short; at most `batch_interval_max`.
//! When all that was proposed is applied and so much waits that entries are worth their cost
//! already, it goes on at once.
//!
//! Owner of the state: this file. Invariant: a replica is listed at most once.

use std::sync::atomic::{AtomicIsize, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::RaftConfig;
use crate::shard::Replica;

/// An entry of so many commands costs little more than its commands.
const COMMANDS_WORTH_AN_ENTRY: isize = 48;
/// The newest round trip counts for one part in so many of the mean.
const ROUND_TRIP_WEIGHT: u64 = 16;

/// Replicas that have something to propose, and the moment to do it.
pub struct Beat {
    armed: Mutex<Vec<Weak<Replica>>>,
    wake: Notify,
    entry_interval: Duration,
    interval_max: Duration,
    /// The moving mean of what an entry takes from being proposed to being applied.
    round_trip_us: AtomicU64,
    /// Commands that wait in the replicas of this node. For a moment below zero when one is
    /// taken before it is counted.
    waiting: AtomicIsize,
    /// Entries proposed here and not ended.
    in_flight: AtomicIsize,
    /// Ends the pause.
    early: Notify,
}

impl Beat {
    /// A beat that paces entries as configured.
    pub fn new(config: &RaftConfig) -> Arc<Self> {
        Arc::new(Self {
            armed: Mutex::new(Vec::new()),
            wake: Notify::new(),
            entry_interval: config.entry_interval,
            interval_max: config.batch_interval_max,
            round_trip_us: AtomicU64::new(0),
            waiting: AtomicIsize::new(0),
            in_flight: AtomicIsize::new(0),
            early: Notify::new(),
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

    /// So many commands more wait in a replica.
    pub fn queued(&self, commands: usize) {
        self.waiting.fetch_add(commands as isize, Ordering::Relaxed);
        self.go_on_early();
    }

    /// So many commands wait no more; `proposed` as an entry, or given back.
    pub fn taken(&self, commands: usize, proposed: bool) {
        self.waiting.fetch_sub(commands as isize, Ordering::Relaxed);
        self.in_flight
            .fetch_add(isize::from(proposed), Ordering::Relaxed);
    }

    /// An entry that was proposed here has ended.
    pub fn ended(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.go_on_early();
    }

    fn go_on_early(&self) {
        if self.in_flight.load(Ordering::Relaxed) == 0
            && self.waiting.load(Ordering::Relaxed) >= COMMANDS_WORTH_AN_ENTRY
        {
            let armed = self.armed.lock().len() as isize;
            if self.waiting.load(Ordering::Relaxed) >= COMMANDS_WORTH_AN_ENTRY * armed.max(1) {
                self.early.notify_one();
            }
        }
    }

    /// An entry that was proposed here is applied, after so long.
    pub fn applied_after(&self, round_trip: Duration) {
        let newest = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX);
        // Two at a time may overwrite each other's: it is only a mean.
        let mean = self.round_trip_us.load(Ordering::Relaxed);
        let mean = mean - mean / ROUND_TRIP_WEIGHT + newest / ROUND_TRIP_WEIGHT;
        self.round_trip_us.store(mean, Ordering::Relaxed);
    }

    /// How long commands are gathered after a round of so many entries.
    fn pause(&self, entries: u32) -> Duration {
        let round_trip = Duration::from_micros(self.round_trip_us.load(Ordering::Relaxed));
        self.entry_interval
            .saturating_mul(entries)
            .max(round_trip)
            .min(self.interval_max)
    }

    /// Rounds, until the node stops.
    pub async fn run(self: Arc<Self>) {
        let mut next = Instant::now();
        loop {
            self.wake.notified().await;
            // Both arms are cancel-safe: a notice left over ends a later pause, no more.
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.early.notified() => {}
            }
            let begun = Instant::now();
            let round = std::mem::take(&mut *self.armed.lock());
            // All at once: each waits for its group to decide.
            let replicas: Vec<_> = round.iter().filter_map(Weak::upgrade).collect();
            let proposed = join_all(replicas.iter().map(|replica| replica.propose())).await;
            let entries = proposed.into_iter().sum();
            next = begun + self.pause(entries);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[test]
    fn pauses_for_entries_and_for_what_they_take() {
        let ms = Duration::from_millis;
        let beat = Beat::new(&RaftConfig {
            entry_interval: ms(2),
            batch_interval_max: ms(20),
            ..RaftConfig::default()
        });
        assert_eq!(beat.pause(0), ms(0));
        assert_eq!(beat.pause(5), ms(10));
        assert_eq!(beat.pause(50), ms(20));
        for _ in 0..100 {
            beat.applied_after(ms(15));
        }
        assert!(beat.pause(1) > ms(14) && beat.pause(1) <= ms(15));
        for _ in 0..100 {
            beat.applied_after(ms(100));
        }
        assert_eq!(beat.pause(1), ms(20));
        for _ in 0..200 {
            beat.applied_after(ms(1));
        }
        assert_eq!(beat.pause(2), ms(4));
    }

    #[test]
    fn goes_on_early_when_nothing_is_in_flight_and_much_waits() {
        let beat = Beat::new(&RaftConfig::default());
        let early = || beat.early.notified().now_or_never().is_some();
        beat.queued(47);
        assert!(!early());
        beat.queued(1);
        assert!(early());
        beat.taken(48, true);
        beat.queued(100);
        assert!(!early(), "an entry is in flight");
        beat.ended();
        assert!(early());
        beat.taken(100, false);
        beat.queued(1);
        assert!(!early());
    }
}
