//! Measures the bare replicated append: commands that change nothing, as many in flight as
//! asked for, in the shards that this node leads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use carillon_core::command::Command;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Replica;
use super::lead::Lead;
use super::queue::{NotTaken, Origin, Proposal};

/// Samples of latencies that are kept; later ones replace earlier ones.
const SAMPLES_MAX: usize = 1 << 18;

/// What was measured.
#[derive(Debug, Clone, Copy, Default)]
pub struct Measured {
    /// Commands acknowledged.
    pub acknowledged: u64,
    /// Over how long.
    pub elapsed: Duration,
    /// Half of them took less.
    pub p50: Duration,
    /// 99 of 100 took less.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

/// One measurement in one shard. Each acknowledged command is followed by another one until
/// the time is over.
pub struct Probe {
    command: Bytes,
    until: Instant,
    in_flight: AtomicU64,
    acknowledged: AtomicU64,
    samples: Mutex<Vec<u32>>,
    ended: Notify,
    stopped: AtomicBool,
}

impl Probe {
    /// Measures in a shard; returns the commands acknowledged and samples of latencies in
    /// microseconds. Ends early when the shard is not led here any more.
    pub async fn run(
        replica: Arc<Replica>,
        duration: Duration,
        command_bytes: usize,
        in_flight: u64,
    ) -> (u64, Vec<u32>) {
        let probe = Arc::new(Self {
            command: Command::Probe {
                filler: Bytes::from(vec![0; command_bytes]),
            }
            .encoded(),
            until: Instant::now() + duration,
            in_flight: AtomicU64::new(in_flight),
            acknowledged: AtomicU64::new(0),
            samples: Mutex::new(Vec::new()),
            ended: Notify::new(),
            stopped: AtomicBool::new(false),
        });
        for _ in 0..in_flight {
            probe.propose(&replica);
        }
        while probe.in_flight.load(Ordering::Acquire) > 0 {
            probe.ended.notified().await;
        }
        let samples = std::mem::take(&mut *probe.samples.lock());
        (probe.acknowledged.load(Ordering::Acquire), samples)
    }

    fn propose(self: &Arc<Self>, replica: &Replica) {
        let origin = Origin::Probe {
            probe: self.clone(),
            proposed: Instant::now(),
        };
        let command = self.command.clone();
        let proposal = Proposal {
            command,
            origin,
            lead: Lead::ANY,
        };
        if let Err((_, NotTaken::NotLeader | NotTaken::Full)) = replica.offer(proposal) {
            self.undone();
        }
    }

    /// A command was acknowledged.
    pub fn acknowledged(self: &Arc<Self>, replica: &Replica, proposed: Instant) {
        let count = self.acknowledged.fetch_add(1, Ordering::AcqRel) as usize;
        let took = u32::try_from(proposed.elapsed().as_micros()).unwrap_or(u32::MAX);
        {
            let mut samples = self.samples.lock();
            if samples.len() < SAMPLES_MAX {
                samples.push(took);
            } else {
                samples[count % SAMPLES_MAX] = took;
            }
        }
        if Instant::now() >= self.until || self.stopped.load(Ordering::Acquire) {
            self.end_one();
        } else {
            self.propose(replica);
        }
    }

    /// A command came back undone: the shard is not led here any more.
    pub fn undone(&self) {
        self.stopped.store(true, Ordering::Release);
        self.end_one();
    }

    fn end_one(&self) {
        if self.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.ended.notify_one();
        }
    }
}

/// Puts the shards' measurements together.
pub fn summarize(elapsed: Duration, shards: Vec<(u64, Vec<u32>)>) -> Measured {
    let acknowledged = shards.iter().map(|(count, _)| count).sum();
    let mut samples: Vec<u32> = shards
        .into_iter()
        .flat_map(|(_, samples)| samples)
        .collect();
    samples.sort_unstable();
    let at = |per_cent: usize| {
        let index = (samples.len() * per_cent / 100).min(samples.len().saturating_sub(1));
        Duration::from_micros(samples.get(index).copied().unwrap_or(0).into())
    };
    Measured {
        acknowledged,
        elapsed,
        p50: at(50),
        p99: at(99),
        max: at(100),
    }
}
