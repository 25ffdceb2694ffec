//! One batch of a shard: core's `View`, and its atomic commit.
//!
//! Reads see the batch's own writes, then the record cache, then the engine. Nothing leaves the
//! batch before `commit`; a batch that is dropped has never been.

use std::ops::ControlFlow;

use bytes::Bytes;
use carillon_core::records::ShardClock;
use carillon_core::{ReadView, View};
use rocksdb::WriteBatch;

use crate::cache;
use crate::error::StoreError;
use crate::record::{self, AppliedRecord};
use crate::scan::{self, ScanRange};
use crate::shard::ShardStore;

/// What the engine adds to one key and value within a write batch.
const ENGINE_BYTES_PER_CHANGE: usize = 8;

/// The open batch of a shard. Made by [`ShardStore::begin`].
pub struct ShardBatch<'a> {
    shard: &'a mut ShardStore,
}

impl<'a> ShardBatch<'a> {
    pub(crate) fn new(shard: &'a mut ShardStore) -> Self {
        debug_assert_eq!(shard.overlay.len(), 0, "a batch clears what it wrote");
        Self { shard }
    }

    /// Writes the batch together with the shard's applied record, in one atomic step, visible
    /// to readers when this returns and durable after the next flush.
    ///
    /// `applied` is what the raft layer wants to find with the state after a restart (last log
    /// id, membership), opaque here.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`]: the process must stop.
    pub fn commit(self, applied: &[u8], clock: ShardClock) -> Result<(), StoreError> {
        let shard = &mut *self.shard;
        shard.engine.check()?;
        shard.engine.hit("store.before_commit");
        record::encode(applied, &clock, &mut shard.record_buffer);

        let overlay = &mut shard.overlay;
        let bytes = overlay.bytes_len()
            + shard.record_buffer.len()
            + (overlay.len() + 2) * ENGINE_BYTES_PER_CHANGE;
        let mut writes = WriteBatch::with_capacity_bytes(bytes);
        for change in overlay.changes_near_key_order() {
            match change.value {
                Some(value) => writes.put(change.key, value),
                None => writes.delete(change.key),
            }
        }
        writes.put(shard.applied_key, &shard.record_buffer);
        shard.engine.write(writes, &shard.write_options)?;

        let cache = shard.cache.get_mut();
        for change in shard.overlay.changes() {
            if cache::is_cached(change.key) {
                cache.put(change.hash, change.key, change.value);
            }
        }
        shard.record = Some(AppliedRecord {
            applied: Bytes::copy_from_slice(applied),
            clock,
        });
        Ok(())
    }

    /// Keys changed so far.
    #[must_use]
    pub fn changes(&self) -> usize {
        self.shard.overlay.len()
    }

    fn change(&mut self, key: &[u8], value: Option<&[u8]>) {
        debug_assert!(
            self.shard.owns(key),
            "a key outside the slots of {:?}",
            self.shard.id()
        );
        let hash = self.shard.hash(key);
        self.shard.overlay.put(hash, key, value);
    }
}

impl Drop for ShardBatch<'_> {
    fn drop(&mut self) {
        self.shard.overlay.clear();
    }
}

impl ReadView for ShardBatch<'_> {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        let hash = self.shard.hash(key);
        if let Some(written) = self.shard.overlay.get(hash, key) {
            return written;
        }
        if !cache::is_cached(key) {
            return self.shard.engine.get(key);
        }
        let mut cache = self.shard.cache.borrow_mut();
        if let Some(known) = cache.get(hash, key) {
            return known;
        }
        let value = self.shard.engine.get(key);
        cache.put(hash, key, value.as_deref());
        value
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        reverse: bool,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) {
        let changed = self
            .shard
            .overlay
            .changes()
            .filter(|change| from <= change.key && change.key < to)
            .map(|change| (change.key, change.value))
            .collect();
        scan::overlaid(
            &self.shard.engine,
            changed,
            ScanRange { from, to, reverse },
            visit,
        );
    }
}

impl View for ShardBatch<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.change(key, Some(value));
    }

    fn delete(&mut self, key: &[u8]) {
        self.change(key, None);
    }
}
