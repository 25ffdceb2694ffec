//! Checksums of replicas' states, computed in the background when a `Checksum` command is
//! applied, and kept for whoever asked.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use carillon_store::{Checksum, ShardSnapshot};
use parking_lot::Mutex;
use tokio::sync::watch;

/// Results kept per replica.
const KEPT: usize = 16;

/// A checksum and the log index at which it holds.
#[derive(Debug, Clone)]
pub struct ChecksumResult {
    /// Names the request.
    pub nonce: u64,
    /// The entry after which the state had it.
    pub index: u64,
    /// The checksum, or why there is none.
    pub checksum: Result<Checksum, String>,
}

/// The replica got a snapshot, perhaps in place of the entry that asked, or is being deleted.
#[derive(Debug, thiserror::Error)]
#[error(
    "the entry that asks may not come here: a snapshot has taken its place, or the replica is deleted; ask again"
)]
pub struct PassedOver;

/// Results of one replica.
pub struct Checksums {
    results: Mutex<VecDeque<ChecksumResult>>,
    /// The last nonces that were asked for.
    asked: Mutex<VecDeque<u64>>,
    passed_over: AtomicU64,
    changed: watch::Sender<u64>,
}

impl Default for Checksums {
    fn default() -> Self {
        Self {
            results: Mutex::new(VecDeque::new()),
            asked: Mutex::new(VecDeque::new()),
            passed_over: AtomicU64::new(0),
            changed: watch::Sender::new(0),
        }
    }
}

impl Checksums {
    /// Whether this is the first entry that asks with this nonce: one whose outcome was not known
    /// is proposed again, and all replicas answer the first.
    pub fn is_first(&self, nonce: u64) -> bool {
        let mut asked = self.asked.lock();
        if asked.contains(&nonce) {
            return false;
        }
        asked.push_back(nonce);
        if asked.len() > KEPT {
            asked.pop_front();
        }
        true
    }

    /// Computes in a thread of the blocking pool.
    pub fn compute(self: &Arc<Self>, nonce: u64, index: u64, snapshot: ShardSnapshot) {
        let me = self.clone();
        tokio::task::spawn_blocking(move || {
            let checksum = snapshot.checksum().map_err(|error| error.to_string());
            let mut results = me.results.lock();
            results.push_back(ChecksumResult {
                nonce,
                index,
                checksum,
            });
            if results.len() > KEPT {
                results.pop_front();
            }
            drop(results);
            me.changed.send_modify(|count| *count += 1);
        });
    }

    /// A snapshot was installed, or the replica ends: who waits now may wait for an entry that
    /// does not come.
    pub fn passed_over(&self) {
        self.passed_over.fetch_add(1, Ordering::AcqRel);
        self.changed.send_modify(|count| *count += 1);
    }

    /// The result of a request, when it is there.
    ///
    /// # Errors
    /// [`PassedOver`].
    pub async fn wait(&self, nonce: u64) -> Result<ChecksumResult, PassedOver> {
        let mut changed = self.changed.subscribe();
        let passed_over = self.passed_over.load(Ordering::Acquire);
        loop {
            changed.borrow_and_update();
            if let Some(result) = self
                .results
                .lock()
                .iter()
                .find(|result| result.nonce == nonce)
            {
                return Ok(result.clone());
            }
            if self.passed_over.load(Ordering::Acquire) != passed_over {
                return Err(PassedOver);
            }
            if changed.changed().await.is_err() {
                // The sender is in self, so this cannot be; waiting for ever is bounded by
                // the caller's timeout.
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_twice_is_answered_once() {
        let checksums = Checksums::default();
        assert!(checksums.is_first(7));
        assert!(!checksums.is_first(7));
        for other in 100..100 + KEPT as u64 {
            assert!(checksums.is_first(other));
        }
        assert!(checksums.is_first(7), "it is long ago");
    }

    #[tokio::test]
    async fn a_snapshot_ends_who_waits_for_an_entry_that_it_replaces() {
        let checksums = Arc::new(Checksums::default());
        let waits = tokio::spawn({
            let checksums = checksums.clone();
            async move { checksums.wait(7).await }
        });
        while checksums.changed.receiver_count() == 0 {
            tokio::task::yield_now().await;
        }
        checksums.passed_over();
        assert!(waits.await.unwrap().is_err());
    }
}
