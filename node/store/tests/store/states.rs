//! What the tests share: keys and batches made from numbers, and reading whole shards back.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use carillon_core::ids::{ShardId, Slot, SlotRange, TimestampMs};
use carillon_core::merging::{MergeId, MergeMark};
use carillon_core::records::ShardClock;
use carillon_core::{ReadView, View, keys};
use carillon_store::{Absorbed, ShardBatch, ShardStore, SplitOff, Store, StoreOptions};

pub type State = BTreeMap<Vec<u8>, Vec<u8>>;

/// Kinds that the store caches and kinds that it does not.
pub const KINDS: [u8; 5] = [
    keys::CONVERSATION_HEAD,
    keys::MESSAGE,
    keys::OUTBOX,
    keys::INBOX,
    keys::ROW,
];

pub fn slots(first: u16, last: u16) -> SlotRange {
    SlotRange {
        first: Slot(first),
        last: Slot(last),
    }
}

pub fn options(dir: &std::path::Path) -> StoreOptions {
    StoreOptions {
        memtable_bytes: 512 * 1024,
        block_cache_bytes: 1024 * 1024,
        shard_cache_bytes: 4 * 1024,
        // Some commits are held, others are written.
        held_bytes_max: 4 * 1024,
        ..StoreOptions::new(dir.join("state"))
    }
}

/// A small generator: the same seed gives the same numbers in every process.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

pub fn key(slot: u16, kind: u8, id: u64) -> Vec<u8> {
    let mut key = slot.to_be_bytes().to_vec();
    key.push(kind);
    key.extend_from_slice(format!("id{id:03}").as_bytes());
    key
}

/// The changes of a shard's batch number `n`: the same in every process.
pub fn changes(shard: ShardId, range: SlotRange, n: u64) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    let mut numbers = Numbers(u64::from(shard.0) << 32 | n);
    let count = 1 + numbers.below(20);
    let width = u64::from(range.last.0 - range.first.0) + 1;
    (0..count)
        .map(|_| {
            let slot = range.first.0 + numbers.below(width) as u16;
            let kind = KINDS[numbers.below(KINDS.len() as u64) as usize];
            let key = key(slot, kind, numbers.below(40));
            let value = (numbers.below(4) != 0).then(|| {
                let len = numbers.below(200) as usize;
                let mut value = n.to_be_bytes().to_vec();
                value.extend((0..len).map(|_| numbers.next() as u8));
                value
            });
            (key, value)
        })
        .collect()
}

pub fn clock(n: u64) -> ShardClock {
    ShardClock {
        last_ms: TimestampMs(n as i64 * 7),
        counter: (n % 1000) as u16,
    }
}

pub fn write(batch: &mut ShardBatch<'_>, changes: &[(Vec<u8>, Option<Vec<u8>>)]) {
    for (key, value) in changes {
        match value {
            Some(value) => batch.put(key, value),
            None => batch.delete(key),
        }
    }
}

/// Commits the shard's batch number `n`.
pub fn commit(shard: &mut ShardStore, n: u64) {
    let changes = changes(shard.id(), shard.slots(), n);
    let mut batch = shard.begin();
    write(&mut batch, &changes);
    batch.commit(&n.to_be_bytes(), clock(n)).unwrap();
}

/// Commits the shard's batch number `n`, and with it a split.
pub fn commit_split(shard: &mut ShardStore, n: u64, at: Slot, new: ShardId) {
    let changes = changes(shard.id(), shard.slots(), n);
    let mut batch = shard.begin();
    write(&mut batch, &changes);
    let new = SplitOff {
        id: new,
        at,
        applied: &0_u64.to_be_bytes(),
    };
    batch
        .commit_split(&n.to_be_bytes(), clock(n), &new)
        .unwrap();
}

/// Commits batch number `n`, which freezes the shard and changes nothing else.
pub fn freeze(shard: &mut ShardStore, n: u64, merge: MergeId) {
    let frozen = MergeMark {
        frozen_by: Some(merge),
        seen: merge,
        ..shard.merges()
    };
    let clock = shard.clock();
    let batch = shard.begin();
    batch
        .commit_marked(&n.to_be_bytes(), clock, frozen)
        .unwrap();
}

/// Commits batch number `n`, which takes over the right neighbour.
pub fn absorb(
    shard: &mut ShardStore,
    n: u64,
    merge: MergeId,
    right: ShardId,
    slots: SlotRange,
) -> ShardClock {
    let merges = MergeMark {
        absorbed: merge,
        ..shard.merges()
    };
    let right = Absorbed { id: right, slots };
    let batch = shard.begin();
    batch
        .commit_absorb(&n.to_be_bytes(), clock(n), merges, &right)
        .unwrap()
}

/// The state after the batches `1 ..= n`.
pub fn expected(shard: ShardId, range: SlotRange, n: u64) -> State {
    let mut state = State::new();
    for n in 1..=n {
        for (key, value) in changes(shard, range, n) {
            match value {
                Some(value) => state.insert(key, value),
                None => state.remove(&key),
            };
        }
    }
    state
}

/// Everything within the slots.
pub fn contents(view: &dyn ReadView, range: SlotRange) -> State {
    let mut state = State::new();
    view.scan(
        &range.key_start(),
        &range.key_end(),
        false,
        &mut |key, value| {
            state.insert(key.to_vec(), value.to_vec());
            ControlFlow::Continue(())
        },
    );
    state
}

/// Number of the last batch that the shard has applied.
pub fn applied(shard: &ShardStore) -> u64 {
    shard.applied().map_or(0, |applied| {
        u64::from_be_bytes(applied[..].try_into().unwrap())
    })
}

/// Asserts that the shard is exactly as after batch `n`, by iteration and key by key.
pub fn assert_is(shard: &mut ShardStore, n: u64, what: &str) {
    let range = shard.slots();
    let state = expected(shard.id(), range, n);
    assert_eq!(applied(shard), n, "{what}: applied");
    if n > 0 {
        assert_eq!(shard.clock(), clock(n), "{what}: clock");
    }
    let reader = shard.reader();
    assert!(
        contents(&reader, range) == state,
        "{what}: iteration at {n}"
    );
    let batch = shard.begin();
    for slot in range.first.0..=range.last.0 {
        for kind in KINDS {
            for id in 0..40 {
                let key = key(slot, kind, id);
                let value = state.get(&key).map(Vec::as_slice);
                assert_eq!(reader.get(&key).as_deref(), value, "{what}: reader {key:?}");
                assert_eq!(batch.get(&key).as_deref(), value, "{what}: batch {key:?}");
            }
        }
    }
}

pub fn open(dir: &std::path::Path) -> Store {
    Store::open(&options(dir)).unwrap()
}
