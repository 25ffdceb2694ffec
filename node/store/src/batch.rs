//! One batch of a shard: core's `View`, and its commit.
//!
//! Reads see the batch's own writes, then what is held, then the record cache, then the
//! engine. Nothing leaves the batch before `commit`.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use carillon_core::ids::{ShardId, Slot, SlotRange};
use carillon_core::merging::MergeMark;
use carillon_core::records::ShardClock;
use carillon_core::{ReadView, View};
use parking_lot::MutexGuard;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::cache;
use crate::error::StoreError;
use crate::record::{self, AppliedRecord};
use crate::scan::{self, ScanRange};
use crate::shard::{Also, Held, Shared};
use crate::store::Claims;

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

/// The shard that [`ShardBatch::commit_absorb`] takes over.
#[derive(Debug, Clone, Copy)]
pub struct Absorbed {
    /// Its id.
    pub id: ShardId,
    /// What it has: the slots after those of the shard that takes it over.
    pub slots: SlotRange,
}

/// The open batch of a shard. Made by [`crate::ShardStore::begin`]. Readers of the shard wait
/// while it is open. It changes what is held by the shard, so it must be committed once it has
/// changed anything: dropped without that, it makes the store unusable.
pub struct ShardBatch<'a> {
    shared: &'a Shared,
    claims: &'a Claims,
    held: MutexGuard<'a, Held>,
    record: &'a mut Option<AppliedRecord>,
    /// Something was changed that is not committed.
    open: bool,
}

impl<'a> ShardBatch<'a> {
    pub(crate) fn new(
        shared: &'a Shared,
        claims: &'a Claims,
        record: &'a mut Option<AppliedRecord>,
    ) -> Self {
        Self {
            held: shared.lock(),
            shared,
            claims,
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
    pub fn commit(self, applied: &[u8], clock: ShardClock) -> Result<(), StoreError> {
        let merges = self.merges();
        self.commit_marked(applied, clock, merges)
    }

    /// The same, and from here on this is what merges have done to the shard.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`]: the process must stop.
    pub fn commit_marked(
        mut self,
        applied: &[u8],
        clock: ShardClock,
        merges: MergeMark,
    ) -> Result<(), StoreError> {
        let slots = self.shared.slots();
        self.end(applied, clock, slots, merges)?;
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
        let merges = self.merges();
        self.end(applied, clock, before, merges)?;
        let mut record = BytesMut::new();
        record::encode(
            new.applied,
            &clock,
            Some(after),
            MergeMark::default(),
            &mut record,
        );
        // What is held of the other slots must be where the new shard looks for it.
        shared.write(&mut self.held, Also::Record(new.id, &record))?;
        shared.set_slots(before);
        self.held.forget();
        Ok(())
    }

    /// The same as [`ShardBatch::commit_marked`], and in the same atomic step the shard has what
    /// its right neighbour had, which is no more: its applied record goes, nothing of its state
    /// is touched, and an open writer of it writes nothing any more. Returns the clock that the
    /// shard goes on with.
    ///
    /// # Errors
    /// [`StoreError::NotFrozen`] when the neighbour is not here as the merge `merges.absorbed`
    /// has frozen it, [`StoreError::Poisoned`]: the process must stop.
    ///
    /// # Panics
    /// When it is no right neighbour.
    pub fn commit_absorb(
        mut self,
        applied: &[u8],
        clock: ShardClock,
        merges: MergeMark,
        right: &Absorbed,
    ) -> Result<ShardClock, StoreError> {
        let (shared, claims) = (self.shared, self.claims);
        let engine = &shared.engine;
        engine.check()?;
        let joined = shared.slots().joined(right.slots);
        let joined = joined.expect("only a right neighbour is taken over");
        // Nobody opens it meanwhile, and who has it open writes before this or never.
        let claims = claims.lock();
        let open = claims.get(&right.id).map(|claim| Arc::clone(&claim.shared));
        let mut right_held = open.as_ref().map(|open| open.lock());
        if let (Some(open), Some(held)) = (&open, &mut right_held) {
            open.write_behind(held)?;
        }
        let record = engine.get(&record::applied_key(right.id));
        let record = record.map(|value| record::decode(&value)).transpose();
        let record = record.map_err(|error| engine.poison_with(error))?;
        let frozen = record.filter(|record| {
            record.merges.frozen_by == Some(merges.absorbed) && record.slots == Some(right.slots)
        });
        let Some(frozen) = frozen else {
            return Err(engine.poison_with(StoreError::NotFrozen {
                shard: right.id,
                merge_id: merges.absorbed,
            }));
        };
        let clock = clock.after(frozen.clock);
        self.end(applied, clock, joined, merges)?;
        shared.write(&mut self.held, Also::Removal(right.id))?;
        shared.set_slots(joined);
        if let (Some(open), Some(held)) = (&open, &mut right_held) {
            open.set_absorbed(held);
        }
        // It may remember keys of the other's from when it had them itself.
        self.held.forget();
        Ok(clock)
    }

    /// What merges have done to the shard so far.
    fn merges(&self) -> MergeMark {
        self.record
            .as_ref()
            .map(|record| record.merges)
            .unwrap_or_default()
    }

    fn end(
        &mut self,
        applied: &[u8],
        clock: ShardClock,
        slots: SlotRange,
        merges: MergeMark,
    ) -> Result<(), StoreError> {
        self.shared.engine.check()?;
        self.shared.engine.hit("store.before_commit");
        let written = self.shared.written_slots(slots, merges);
        record::encode(applied, &clock, written, merges, &mut self.held.record);
        *self.record = Some(AppliedRecord {
            applied: Bytes::copy_from_slice(applied),
            clock,
            slots: Some(slots),
            merges,
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
