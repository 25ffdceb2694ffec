//! Flushes of several threads at once.

use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::Duration;

use carillon_core::ids::ShardId;
use carillon_core::{View, keys};
use carillon_store::{Store, StoreOptions};

use crate::states::{Numbers, clock, key, options, slots};

const ROUNDS: u64 = 60;
const THREADS: u16 = 4;
/// A flush takes so long that others are asked for meanwhile, and none begins by itself.
const VALUE_BYTES: usize = 16 << 10;
const BYTES_PER_SECOND: u64 = 1_000_000;
const MEMTABLE_BYTES: usize = 32 << 20;
/// Far more than all of it takes; one that is never done takes for ever.
const PATIENCE: Duration = Duration::from_secs(60);

/// The engine forgets that a flush was asked for while it begins another one; who had asked, the
/// one that cleared a shard, waited until as many memtables were full.
#[test]
fn flushes_at_once_all_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&StoreOptions {
        background_write_bytes_per_second: BYTES_PER_SECOND,
        memtable_bytes: MEMTABLE_BYTES,
        ..options(dir.path())
    })
    .unwrap();
    let (ends, ended) = mpsc::channel();
    // The next flush of anybody would end one that was forgotten.
    let round_begins = Arc::new(Barrier::new(THREADS.into()));
    let threads: Vec<_> = (0..THREADS)
        .map(|n| {
            let (store, ends) = (store.clone(), ends.clone());
            let round_begins = Arc::clone(&round_begins);
            thread::spawn(move || {
                let mine = slots(10 * n, 10 * n + 9);
                let mut numbers = Numbers(n.into());
                let value: Vec<u8> = (0..VALUE_BYTES / 8)
                    .flat_map(|_| numbers.next().to_le_bytes())
                    .collect();
                let mut shard = store.shard(ShardId(u32::from(n) + 1), mine).unwrap();
                for round in 1..=ROUNDS {
                    let mut batch = shard.begin();
                    batch.put(&key(10 * n, keys::MESSAGE, round), &value);
                    batch.commit(&round.to_be_bytes(), clock(round)).unwrap();
                    round_begins.wait();
                    if n == 0 {
                        shard.clear().unwrap();
                    } else {
                        store.flush().unwrap();
                    }
                }
                ends.send(n).unwrap();
            })
        })
        .collect();
    for _ in &threads {
        ended.recv_timeout(PATIENCE).expect("a flush does not end");
    }
    for thread in threads {
        thread.join().unwrap();
    }
}
