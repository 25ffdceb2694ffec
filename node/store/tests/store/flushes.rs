//! Flushes of several threads at once.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use carillon_core::ids::ShardId;
use carillon_core::{View, keys};
use carillon_store::Store;

use crate::states::{clock, key, options, slots};

const ROUNDS: u64 = 300;
/// Far more than all of it takes; one that is never done takes for ever.
const PATIENCE: Duration = Duration::from_secs(120);

/// The engine forgets that a flush was asked for while it begins another one; who had asked, the
/// one that cleared a shard, waited until as many memtables were full.
#[test]
fn flushes_at_once_all_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&options(dir.path())).unwrap();
    let (ends, ended) = mpsc::channel();
    let threads: Vec<_> = (0..4_u16)
        .map(|n| {
            let (store, ends) = (store.clone(), ends.clone());
            thread::spawn(move || {
                let mine = slots(10 * n, 10 * n + 9);
                let mut shard = store.shard(ShardId(u32::from(n) + 1), mine).unwrap();
                for round in 1..=ROUNDS {
                    let mut batch = shard.begin();
                    batch.put(&key(10 * n, keys::MESSAGE, round), b"value");
                    batch.commit(&round.to_be_bytes(), clock(round)).unwrap();
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
