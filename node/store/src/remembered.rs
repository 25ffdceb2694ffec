//! What was derived from the state of one shard and is asked for again and again: where each
//! inbox ends.
//!
//! A number beside its key, both in one slot of one table, so that it costs one miss of the
//! processor's caches. It may forget: what is asked for is then found again in the state. Owned
//! by what a shard holds. Invariant: entries ≤ `ENTRIES_MAX`.

use hashbrown::HashTable;

/// Entries at most; above it everything is forgotten.
const ENTRIES_MAX: usize = 65_536;
/// The longest key that is remembered: that of a user's, whatever the id.
const KEY_BYTES_MAX: usize = 71;

struct Entry {
    hash: u64,
    value: u64,
    key_len: u8,
    key: [u8; KEY_BYTES_MAX],
}

impl Entry {
    fn is(&self, hash: u64, key: &[u8]) -> bool {
        self.hash == hash && self.key[..usize::from(self.key_len)] == *key
    }
}

/// See the module's description.
#[derive(Default)]
pub(crate) struct Remembered {
    table: HashTable<Entry>,
}

impl Remembered {
    pub(crate) fn get(&self, hash: u64, key: &[u8]) -> Option<u64> {
        let entry = self.table.find(hash, |entry| entry.is(hash, key))?;
        Some(entry.value)
    }

    pub(crate) fn put(&mut self, hash: u64, key: &[u8], value: u64) {
        if let Some(entry) = self.table.find_mut(hash, |entry| entry.is(hash, key)) {
            entry.value = value;
            return;
        }
        if key.len() > KEY_BYTES_MAX {
            return;
        }
        if self.table.len() >= ENTRIES_MAX {
            self.table.clear();
        }
        let mut entry = Entry {
            hash,
            value,
            key_len: key.len() as u8,
            key: [0; KEY_BYTES_MAX],
        };
        entry.key[..key.len()].copy_from_slice(key);
        self.table.insert_unique(hash, entry, |entry| entry.hash);
    }

    pub(crate) fn clear(&mut self) {
        self.table.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last_value_of_each_key_within_its_bound() {
        let mut remembered = Remembered::default();
        assert_eq!(remembered.get(1, b"a"), None);
        remembered.put(1, b"a", 7);
        remembered.put(1, b"b", 8);
        remembered.put(1, b"a", 9);
        assert_eq!(remembered.get(1, b"a"), Some(9));
        assert_eq!(remembered.get(1, b"b"), Some(8));
        remembered.put(1, &[b'l'; KEY_BYTES_MAX + 1], 1);
        assert_eq!(remembered.get(1, &[b'l'; KEY_BYTES_MAX + 1]), None);
        for n in 0..2 * ENTRIES_MAX as u64 {
            remembered.put(n, &n.to_be_bytes(), n);
            assert!(remembered.table.len() <= ENTRIES_MAX);
        }
        let last = 2 * ENTRIES_MAX as u64 - 1;
        assert_eq!(remembered.get(last, &last.to_be_bytes()), Some(last));
        remembered.clear();
        assert_eq!(remembered.get(last, &last.to_be_bytes()), None);
    }
}
