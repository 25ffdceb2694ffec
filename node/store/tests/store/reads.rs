//! What a read may cost: a key that is not there is looked for with every send.

use carillon_core::ids::ShardId;
use carillon_core::{ReadView, View, keys};
use carillon_store::{Store, StoreOptions};

use crate::states::{self, Numbers, clock, slots};

const SHARD: ShardId = ShardId(1);
/// Enough that one filter over all of them is larger than a part of the cache.
const KEYS: u64 = 600_000;
const READS: u64 = 1_000;
const BYTES_PER_READ_MAX: u64 = 32 * 1024;

fn key(id: u64) -> Vec<u8> {
    let mut key = 10_u16.to_be_bytes().to_vec();
    key.push(keys::DEDUP);
    key.extend_from_slice(&id.to_be_bytes());
    key
}

/// Bytes that this thread has read from files so far.
fn bytes_read() -> u64 {
    let io = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    let read = io.lines().find_map(|line| line.strip_prefix("rchar: "));
    read.unwrap().parse().unwrap()
}

/// Filters of large tables were larger than the cache takes, and each read of an absent key
/// read one from disk: at 12,000 sends a second the nodes did nothing else.
#[test]
fn absent_keys_cost_no_large_reads() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        memtable_bytes: 64 * 1024 * 1024,
        block_cache_bytes: 8 * 1024 * 1024,
        background_write_bytes_per_second: 1_000_000_000,
        ..states::options(dir.path())
    };
    let store = Store::open(&options).unwrap();
    let mut shard = store.shard(SHARD, slots(10, 10)).unwrap();
    // Even numbers are there, odd ones are not. In two tables that overlap, so that what is
    // read is a table that was compacted.
    for half in 0..2 {
        for n in 0..KEYS / 1_000 {
            let mut batch = shard.begin();
            for id in (n * 1_000..(n + 1) * 1_000).filter(|id| id % 2 == half) {
                batch.put(&key(2 * id), b"value");
            }
            batch.commit(&n.to_be_bytes(), clock(n)).unwrap();
        }
        store.flush().unwrap();
    }
    store.compact();

    let batch = shard.begin();
    let mut numbers = Numbers(7);
    let before = bytes_read();
    for _ in 0..READS {
        assert!(batch.get(&key(2 * numbers.below(KEYS) + 1)).is_none());
    }
    let per_read = (bytes_read() - before) / READS;
    assert!(per_read <= BYTES_PER_READ_MAX, "{per_read} bytes a read");
}
