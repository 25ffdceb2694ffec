//! Checksums of replicas' states, computed in the background when a `Checksum` command is
//! applied, and kept for whoever asked.

use std::collections::VecDeque;
use std::sync::Arc;

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

/// Results of one replica.
pub struct Checksums {
    results: Mutex<VecDeque<ChecksumResult>>,
    changed: watch::Sender<u64>,
}

impl Default for Checksums {
    fn default() -> Self {
        Self {
            results: Mutex::new(VecDeque::new()),
            changed: watch::Sender::new(0),
        }
    }
}

impl Checksums {
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

    /// The result of a request, when it is there.
    pub async fn wait(&self, nonce: u64) -> ChecksumResult {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            if let Some(result) = self
                .results
                .lock()
                .iter()
                .find(|result| result.nonce == nonce)
            {
                return result.clone();
            }
            if changed.changed().await.is_err() {
                // The sender is in self, so this cannot be; waiting for ever is bounded by
                // the caller's timeout.
                std::future::pending::<()>().await;
            }
        }
    }
}
