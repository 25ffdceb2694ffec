//! A state in memory: a sorted map behind [`View`]. For tests and the simulator.
//!
//! It owns its map; there are no transactions, a write is there at once. What is remembered
//! beside it is no part of the state: two views with the same entries are equal.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use crate::view::{ReadView, View, Visitor};

/// A sorted map of keys and values. Two are equal when every byte is.
#[derive(Clone, Debug, Default)]
pub struct MemoryView {
    entries: BTreeMap<Vec<u8>, Bytes>,
    remembered: BTreeMap<Vec<u8>, u64>,
}

impl PartialEq for MemoryView {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl Eq for MemoryView {}

impl MemoryView {
    /// An empty state.
    pub fn new() -> MemoryView {
        MemoryView::default()
    }

    /// Everything in it, in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Bytes)> {
        self.entries.iter().map(|(key, value)| (&key[..], value))
    }

    /// How many keys it has.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Forgets what is remembered, as a store may do at any time.
    pub fn forget(&mut self) {
        self.remembered.clear();
    }

    /// True without any key.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl ReadView for MemoryView {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.entries.get(key).cloned()
    }

    fn scan(&self, from: &[u8], to: &[u8], reverse: bool, f: Visitor<'_>) {
        if from >= to {
            return;
        }
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        let mut range = self.entries.range::<[u8], _>(bounds);
        while let Some((key, value)) = if reverse {
            range.next_back()
        } else {
            range.next()
        } {
            if f(key, value).is_break() {
                return;
            }
        }
    }
}

impl View for MemoryView {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.entries
            .insert(key.to_vec(), Bytes::copy_from_slice(value));
    }

    fn delete(&mut self, key: &[u8]) {
        self.entries.remove(key);
    }

    fn remember(&mut self, key: &[u8], value: u64) {
        self.remembered.insert(key.to_vec(), value);
    }

    fn recall(&self, key: &[u8]) -> Option<u64> {
        self.remembered.get(key).copied()
    }
}
