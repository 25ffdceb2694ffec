//! One batch of a shard: core's `View`, and its commit.
//!
//! Reads see the batch's own writes, then what is held, then the record cache, then the
//! engine. Nothing leaves the batch before `commit`.

use std::ops::ControlFlow;

use bytes::{Bytes, BytesMut};
use carillon_core::ids::{ShardId, Slot, SlotRange};
use carillon_core::records::ShardClock;
use carillon_core::{ReadView, View};
use parking_lot::MutexGuard;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::cache;
use crate::error::StoreError;
use crate::record::{self, AppliedRecord};
use crate::scan::{self, ScanRange};
use crate::shard::{Held, Shared};

/// The shard that [`ShardBatch::commit_split`] makes.
#[derive(Debug, Clone, Copy)]
pub struct SplitOff<'a> {
    /// Its id.
    pub id: ShardId,
    /// Its first slot.
    pub at: Slot,
    /// What the raft layer wants to find with its state.
    pub applied: &'a [u8],
}

/// The open batch of a shard. Made by [`crate::ShardStore::begin`]. Readers of the shard wait
/// while it is open. It changes what is held by the shard, so it must be committed once it has
/// changed anything: dropped without that, it makes the store unusable.
pub struct ShardBatch<'a> {
    shared: &'a Shared,
    held: MutexGuard<'a, Held>,
    record: &'a mut Option<AppliedRecord>,
    /// Something was changed that is not committed.
    open: bool,
}

impl<'a> ShardBatch<'a> {
    pub(crate) fn new(shared: &'a Shared, record: &'a mut Option<AppliedRecord>) -> Self {
        Self {
            held: shared.lock(),
            shared,
            record,
            open: false,
        }
    }

    /// Adds the batch to the state together with the shard's applied record, in one atomic
    /// step, visible to readers when this returns and durable after the next flush.
    ///
    /// `applied` is what the raft layer wants to find with the state after a restart (last log
    /// id, membership), opaque here.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`]: the process must stop.
    pub fn commit(mut self, applied: &[u8], clock: ShardClock) -> Result<(), StoreError> {
        let slots = self.shared.slots();
        self.end(applied, clock, slots)?;
        self.shared.committed(&mut self.held)
    }

    /// The same, and in the same atomic step the shard keeps the slots before `new.at` only; a
    /// new shard has the others, with all that is in them and with this clock.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`]: the process must stop.
    ///
    /// # Panics
    /// When one of the two would have no slot.
    pub fn commit_split(
        mut self,
        applied: &[u8],
        clock: ShardClock,
        new: &SplitOff<'_>,
    ) -> Result<(), StoreError> {
        let shared = self.shared;
        let parts = shared.slots().split(new.at);
        let (before, after) = parts.expect("both parts of a split have slots");
        self.end(applied, clock, before)?;
        let mut record = BytesMut::new();
        record::encode(new.applied, &clock, after, &mut record);
        // What is held of the other slots must be where the new shard looks for it.
        shared.write(&mut self.held, Some((new.id, &record)))?;
        shared.set_slots(before);
        self.held.forget();
        Ok(())
    }

    fn end(
        &mut self,
        applied: &[u8],
        clock: ShardClock,
        slots: SlotRange,
    ) -> Result<(), StoreError> {
        self.shared.engine.check()?;
        self.shared.engine.hit("store.before_commit");
        record::encode(applied, &clock, slots, &mut self.held.record);
        *self.record = Some(AppliedRecord {
            applied: Bytes::copy_from_slice(applied),
            clock,
            slots: Some(slots),
        });
        self.open = false;
        Ok(())
    }

    fn change(&mut self, key: &[u8], value: Option<&[u8]>) {
        debug_assert!(
            self.shared.owns(key),
            "a key outside the slots of {:?}",
            self.shared.id
        );
        let hash = self.hash(key);
        self.open = true;
        self.held.overlay.put(hash, key, value);
    }

    fn hash(&self, key: &[u8]) -> u64 {
        xxh3_64_with_seed(key, self.shared.hash_seed)
    }
}

impl Drop for ShardBatch<'_> {
    fn drop(&mut self) {
        if self.open {
            self.shared
                .engine
                .poison("a batch", "it was dropped without being committed");
        }
    }
}

impl ReadView for ShardBatch<'_> {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        let mut found = None;
        self.peek(key, &mut |value| {
            found = Some(Bytes::copy_from_slice(value))
        });
        found
    }

    fn peek(&self, key: &[u8], visit: &mut dyn FnMut(&[u8])) {
        let hash = self.hash(key);
        if let Some(changed) = self.held.overlay.get(hash, key) {
            return changed.into_iter().for_each(visit);
        }
        if !cache::is_cached(key) {
            return self
                .shared
                .engine
                .get(key)
                .iter()
                .for_each(|value| visit(value));
        }
        let mut cache = self.held.cache.borrow_mut();
        if let Some(known) = cache.get(hash, key) {
            return known.into_iter().for_each(visit);
        }
        let value = self.shared.engine.get(key);
        cache.put(hash, key, value.as_deref());
        value.iter().for_each(|value| visit(value));
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        reverse: bool,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) {
        let changed = self
            .held
            .overlay
            .changes()
            .filter(|change| from <= change.key && change.key < to)
            .map(|change| (change.key, change.value))
            .collect();
        scan::overlaid(
            &self.shared.engine,
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

    fn remember(&mut self, key: &[u8], value: u64) {
        let hash = self.hash(key);
        // Not taken back when the batch is not committed: the store is unusable then.
        self.open = true;
        self.held.remembered.put(hash, key, value);
    }

    fn recall(&self, key: &[u8]) -> Option<u64> {
        self.held.remembered.get(self.hash(key), key)
    }
}
