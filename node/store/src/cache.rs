//! The hot small records of one shard, in memory.
//!
//! Holds committed values only: a batch reads through it and its commit writes through it, so
//! for every key it holds, cache = engine. Also remembers that a key is absent, which is what a
//! send asks for most (is there an outbox marker, is there a member). Bounded in bytes; the one
//! to leave is found by a clock hand, so that what was read lately stays. Owned by one
//! `ShardStore`, used by one thread at a time.

use carillon_core::keys;
use hashbrown::HashTable;

/// Bytes that one record costs apart from its key and value: its slot, its place in the table
/// and the two allocations.
const RECORD_OVERHEAD_BYTES: usize = size_of::<Record>() + 8 + 32;

/// Whether records of this key's kind are worth keeping: those that are read again and again
/// and stay small. Messages, inbox entries and deduplication records are written once.
pub(crate) fn is_cached(key: &[u8]) -> bool {
    matches!(
        key.get(2).copied(),
        Some(
            keys::CONVERSATION_INFO
                | keys::CONVERSATION_HEAD
                | keys::MEMBER
                | keys::OUTBOX
                | keys::ROW
                | keys::CURSOR
        )
    )
}

/// How a shard's record cache is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheStats {
    /// Records held, the ones known to be absent included.
    pub records: usize,
    /// Memory that they take.
    pub bytes: usize,
    /// Reads answered from the cache since the shard was opened.
    pub hits: u64,
    /// Reads that went to the engine since the shard was opened.
    pub misses: u64,
}

struct Record {
    hash: u64,
    key: Box<[u8]>,
    value: Vec<u8>,
    /// False: the engine has no such key.
    present: bool,
    /// Read or written since the hand last passed.
    referenced: bool,
    /// False: the slot is free.
    live: bool,
}

/// See the module's description.
pub(crate) struct RecordCache {
    table: HashTable<u32>,
    records: Vec<Record>,
    free: Vec<u32>,
    hand: usize,
    bytes: usize,
    bytes_max: usize,
    hits: u64,
    misses: u64,
}

impl RecordCache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            table: HashTable::new(),
            records: Vec::new(),
            free: Vec::new(),
            hand: 0,
            bytes: 0,
            bytes_max,
            hits: 0,
            misses: 0,
        }
    }

    /// The value of a key, or that it is absent, if the cache knows.
    pub(crate) fn get(&mut self, hash: u64, key: &[u8]) -> Option<Option<&[u8]>> {
        let Some(at) = self.position(hash, key) else {
            self.misses += 1;
            return None;
        };
        self.hits += 1;
        let record = &mut self.records[at];
        record.referenced = true;
        Some(record.present.then_some(&record.value[..]))
    }

    /// Remembers the committed value of a key, or that it is absent.
    pub(crate) fn put(&mut self, hash: u64, key: &[u8], value: Option<&[u8]>) {
        if let Some(at) = self.position(hash, key) {
            let record = &mut self.records[at];
            let before = record.value.capacity();
            record.value.clear();
            record.value.extend_from_slice(value.unwrap_or_default());
            record.present = value.is_some();
            record.referenced = true;
            self.bytes = self.bytes - before + record.value.capacity();
            // Only a value that has grown can have taken the cache over its bound.
            if record.value.capacity() > before {
                self.evict();
            }
            return;
        }
        let record = Record {
            hash,
            key: key.into(),
            value: value.unwrap_or_default().to_vec(),
            present: value.is_some(),
            // A newcomer leaves first unless it is used again.
            referenced: false,
            live: true,
        };
        self.bytes += cost(&record);
        let at = match self.free.pop() {
            Some(at) => {
                self.records[at as usize] = record;
                at
            }
            None => {
                self.records.push(record);
                u32::try_from(self.records.len() - 1).expect("the byte bound is below 2^32 records")
            }
        };
        let records = &self.records;
        self.table
            .insert_unique(hash, at, |&at| records[at as usize].hash);
        self.evict();
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.table.clear();
        self.records.clear();
        self.free.clear();
        self.hand = 0;
        self.bytes = 0;
    }

    pub(crate) fn stats(&self) -> CacheStats {
        CacheStats {
            records: self.table.len(),
            bytes: self.bytes,
            hits: self.hits,
            misses: self.misses,
        }
    }

    fn position(&self, hash: u64, key: &[u8]) -> Option<usize> {
        self.table
            .find(hash, |&at| {
                let record = &self.records[at as usize];
                record.hash == hash && *record.key == *key
            })
            .map(|&at| at as usize)
    }

    /// Moves the hand until the cache is within its bound. Ends: each round that frees nothing
    /// leaves every record unreferenced, and the next frees the first that it meets.
    fn evict(&mut self) {
        while self.bytes > self.bytes_max && !self.table.is_empty() {
            self.hand = if self.hand + 1 < self.records.len() {
                self.hand + 1
            } else {
                0
            };
            let at = self.hand;
            let record = &mut self.records[at];
            if !record.live {
                continue;
            }
            if record.referenced {
                record.referenced = false;
                continue;
            }
            self.bytes -= cost(record);
            let hash = record.hash;
            record.live = false;
            record.key = Box::default();
            record.value = Vec::new();
            let entry = self
                .table
                .find_entry(hash, |&other| other as usize == at)
                .unwrap_or_else(|_| unreachable!("a live record is in the table"));
            let (at, _) = entry.remove();
            self.free.push(at);
        }
    }
}

fn cost(record: &Record) -> usize {
    RECORD_OVERHEAD_BYTES + record.key.len() + record.value.capacity()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(key: &[u8]) -> u64 {
        // Few buckets, so that collisions are common.
        u64::from(key[0] % 4)
    }

    #[test]
    fn remembers_values_and_absence() {
        let mut cache = RecordCache::new(1 << 20);
        assert_eq!(cache.get(hash(b"a"), b"a"), None);
        cache.put(hash(b"a"), b"a", Some(b"1"));
        cache.put(hash(b"e"), b"e", None);
        assert_eq!(cache.get(hash(b"a"), b"a"), Some(Some(&b"1"[..])));
        assert_eq!(cache.get(hash(b"e"), b"e"), Some(None));
        cache.put(hash(b"a"), b"a", None);
        assert_eq!(cache.get(hash(b"a"), b"a"), Some(None));
        cache.clear();
        assert_eq!(cache.get(hash(b"a"), b"a"), None);
        assert_eq!(cache.stats().records, 0);
        assert_eq!(cache.stats().bytes, 0);
    }

    #[test]
    fn stays_within_its_bound_and_keeps_what_is_used() {
        let bound = 64 * (RECORD_OVERHEAD_BYTES + 8);
        let mut cache = RecordCache::new(bound);
        let hot = 0_u32.to_be_bytes();
        cache.put(hash(&hot), &hot, Some(b"hot!"));
        for i in 1..10_000_u32 {
            let key = i.to_be_bytes();
            cache.put(u64::from(i), &key, Some(b"cold"));
            assert!(cache.stats().bytes <= bound);
            assert!(
                cache.get(hash(&hot), &hot).is_some(),
                "the hot record left at {i}"
            );
        }
        assert!(cache.stats().records > 32);
        let expected: usize = cache.records.iter().filter(|r| r.live).map(cost).sum();
        assert_eq!(cache.stats().bytes, expected);
    }

    #[test]
    fn a_value_that_grows_is_counted() {
        let bound = 4 * RECORD_OVERHEAD_BYTES;
        let mut cache = RecordCache::new(bound);
        cache.put(1, b"a", Some(b"x"));
        cache.put(2, b"b", Some(b"x"));
        cache.put(1, b"a", Some(&vec![0; bound]));
        assert!(cache.stats().bytes <= bound);
    }
}
