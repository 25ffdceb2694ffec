//! What this node sends as snapshots: how fast all of them together may be, and how far each
//! of them is.
//!
//! Owner of the state: one mutex, held for a moment per chunk. Invariant: over any time, the
//! bytes that were let through are at most the rate times it, and one chunk.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use carillon_core::ids::{NodeId, ShardId};
use carillon_proto::internal::SnapshotProgress;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

/// Chunks are at most this long, so that a slow rate does not let a receiver believe that
/// nothing comes any more.
const CHUNKS_PER_SECOND_MIN: u64 = 4;
const CHUNK_BYTES_MIN: u64 = 4 << 10;
const CHUNK_BYTES_MAX: u64 = 1 << 20;

/// See the file's head.
#[derive(Default)]
pub struct Outgoing {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When the next chunk may leave.
    free_at: Option<Instant>,
    sending: HashMap<(ShardId, NodeId), Progress>,
}

struct Progress {
    sent: u64,
    total: u64,
    since: Instant,
}

/// One snapshot on its way; it is no longer shown when this is dropped.
pub struct Sending {
    outgoing: Arc<Outgoing>,
    key: (ShardId, NodeId),
}

impl Outgoing {
    /// A snapshot of so many bytes begins.
    pub fn begin(self: &Arc<Self>, shard: ShardId, to: NodeId, total: u64) -> Sending {
        let progress = Progress {
            sent: 0,
            total,
            since: Instant::now(),
        };
        self.state.lock().sending.insert((shard, to), progress);
        Sending {
            outgoing: self.clone(),
            key: (shard, to),
        }
    }

    /// What is on its way, for operators.
    pub fn progress(&self) -> Vec<SnapshotProgress> {
        let now = Instant::now();
        let state = self.state.lock();
        let progress = state.sending.iter().map(|((shard, to), progress)| {
            let ms = now.duration_since(progress.since).as_millis().max(1) as u64;
            SnapshotProgress {
                shard_id: shard.0,
                to_node: to.0,
                sent_bytes: progress.sent,
                total_bytes: progress.total,
                bytes_per_s: progress.sent.saturating_mul(1_000) / ms,
            }
        });
        progress.collect()
    }

    /// When so many bytes may leave, after those that were asked for before.
    fn reserve(&self, bytes: u64, bytes_per_s: u64, now: Instant) -> Instant {
        let mut state = self.state.lock();
        let at = state.free_at.map_or(now, |free_at| free_at.max(now));
        let takes = Duration::from_secs_f64(bytes as f64 / bytes_per_s.max(1) as f64);
        state.free_at = Some(at + takes);
        at
    }
}

/// How long a chunk may be at a rate.
pub fn chunk_bytes(bytes_per_s: u64) -> usize {
    (bytes_per_s / CHUNKS_PER_SECOND_MIN).clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX) as usize
}

impl Sending {
    /// Waits until a chunk may leave. Cancel-safe, but what was waited for is lost.
    pub async fn may_leave(&self, bytes: u64, bytes_per_s: u64) {
        let at = self.outgoing.reserve(bytes, bytes_per_s, Instant::now());
        sleep_until(at).await;
    }

    /// A chunk has left.
    pub fn left(&self, bytes: u64) {
        if let Some(progress) = self.outgoing.state.lock().sending.get_mut(&self.key) {
            progress.sent += bytes;
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.outgoing.state.lock().sending.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_that_is_sent_together_keeps_to_the_rate() {
        let outgoing = Arc::new(Outgoing::default());
        let began = Instant::now();
        let one = outgoing.begin(ShardId(1), NodeId(2), 5_000);
        let two = outgoing.begin(ShardId(2), NodeId(3), 5_000);
        let send = async |sending: &Sending| {
            for _ in 0..5 {
                sending.may_leave(1_000, 2_000).await;
                sending.left(1_000);
            }
        };
        tokio::join!(send(&one), send(&two));
        // Ten chunks of half a second each; the last may leave when nine are paid for.
        assert_eq!(began.elapsed().as_millis() / 100, 45);
        let mut progress = outgoing.progress();
        progress.sort_by_key(|progress| progress.shard_id);
        assert_eq!(
            (progress[0].sent_bytes, progress[0].total_bytes),
            (5_000, 5_000)
        );
        assert_eq!(progress[1].to_node, 3);
        drop((one, two));
        assert!(outgoing.progress().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_used_is_not_saved_up() {
        let outgoing = Arc::new(Outgoing::default());
        let sending = outgoing.begin(ShardId(1), NodeId(2), 0);
        sending.may_leave(1_000, 1_000).await;
        tokio::time::advance(Duration::from_secs(60)).await;
        let began = Instant::now();
        sending.may_leave(1_000, 1_000).await;
        sending.may_leave(1_000, 1_000).await;
        assert_eq!(began.elapsed().as_secs(), 1);
    }

    #[test]
    fn chunks_of_a_slow_rate_are_short() {
        assert_eq!(chunk_bytes(64 << 10), 16 << 10);
        assert_eq!(chunk_bytes(1), 4 << 10);
        assert_eq!(chunk_bytes(u64::MAX), 1 << 20);
    }
}
