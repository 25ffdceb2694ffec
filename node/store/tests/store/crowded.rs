//! What happens when more is committed than the disk takes.

use std::time::{Duration, Instant};

use carillon_core::ids::ShardId;
use carillon_core::{View, keys};
use carillon_store::{Store, StoreOptions};

use crate::states::{self, Numbers, clock, key, slots};

const SHARD: ShardId = ShardId(1);
const VALUE_BYTES: usize = 4 * 1024;
/// Far more than the memtables of the test's options hold.
const COMMITS_MAX: u64 = 100_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// A commit that waits in the engine holds a lock, and a thread, for as long as the disk takes:
/// a node whose messages were larger than its disk was fast answered nobody for ten seconds.
#[test]
fn a_store_says_that_it_is_crowded_before_a_commit_waits() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        // Slower than any disk, so that there is something to wait for.
        background_write_bytes_per_second: 4_000_000,
        ..states::options(dir.path())
    };
    let store = Store::open(&options).unwrap();
    let mut shard = store.shard(SHARD, slots(0, 9)).unwrap();
    let mut numbers = Numbers(1);
    let mut crowds = 0;
    for n in 0..COMMITS_MAX {
        if store.is_crowded() {
            assert!(!store.stats().write_stopped, "it said so too late");
            let began = Instant::now();
            while store.relieve().unwrap() {
                assert!(began.elapsed() < PATIENCE, "it stays crowded");
            }
            assert!(!store.is_crowded());
            crowds += 1;
            if crowds == 3 {
                break;
            }
        }
        let value: Vec<u8> = (0..VALUE_BYTES / 8)
            .flat_map(|_| numbers.next().to_le_bytes())
            .collect();
        let mut batch = shard.begin();
        batch.put(&key(0, keys::MESSAGE, n), &value);
        batch.commit(&n.to_be_bytes(), clock(n)).unwrap();
    }
    assert_eq!(crowds, 3, "it never was");
}
