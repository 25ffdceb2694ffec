//! One shard of the store: its only writer, and its readers.
//!
//! `ShardStore` is the exclusive owner of its slots for writing; it may move between threads
//! and is used by one at a time. `ShardReader` may be anywhere and sees what is committed.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use carillon_core::ReadView;
use carillon_core::ids::{ShardId, SlotRange};
use carillon_core::records::ShardClock;
use rocksdb::{ReadOptions, WriteBatch, WriteOptions};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::batch::ShardBatch;
use crate::cache::{CacheStats, RecordCache};
use crate::engine::{self, Engine};
use crate::error::StoreError;
use crate::overlay::Overlay;
use crate::record::{self, AppliedKey, AppliedRecord};
use crate::scan::{self, ScanRange};
use crate::snapshot::{PinnedSnapshot, ShardSnapshot};
use crate::store::Claims;

/// The writer of one shard. Made by [`crate::Store::shard`]; while it exists, no other writer
/// of its slots does.
pub struct ShardStore {
    pub(crate) engine: Arc<Engine>,
    pub(crate) claims: Claims,
    pub(crate) id: ShardId,
    pub(crate) slots: SlotRange,
    pub(crate) applied_key: AppliedKey,
    pub(crate) record: Option<AppliedRecord>,
    pub(crate) overlay: Overlay,
    pub(crate) cache: RefCell<RecordCache>,
    pub(crate) record_buffer: BytesMut,
    pub(crate) write_options: WriteOptions,
    /// Of the hash of keys: differs between processes, so that no client can choose ids that
    /// collide.
    pub(crate) hash_seed: u64,
}

impl ShardStore {
    /// A writer whose slots are entered in `claims`; it removes them when it is dropped.
    pub(crate) fn claimed(
        engine: Arc<Engine>,
        claims: Claims,
        id: ShardId,
        slots: SlotRange,
        cache: RecordCache,
        hash_seed: u64,
    ) -> Self {
        Self {
            engine,
            claims,
            id,
            slots,
            applied_key: record::applied_key(id),
            record: None,
            overlay: Overlay::default(),
            cache: RefCell::new(cache),
            record_buffer: BytesMut::new(),
            write_options: engine::state_write_options(),
            hash_seed,
        }
    }

    /// Reads the applied record as of the last commit.
    pub(crate) fn load_record(&mut self) -> Result<(), StoreError> {
        self.record = self
            .engine
            .get(&self.applied_key)
            .map(|value| record::decode(&value))
            .transpose()
            .map_err(|error| self.engine.poison_with(error))?;
        Ok(())
    }

    /// The shard's id.
    #[must_use]
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// The slots that the shard holds.
    #[must_use]
    pub fn slots(&self) -> SlotRange {
        self.slots
    }

    /// The `applied` bytes of the last commit or installed snapshot; after [`crate::Store::open`]
    /// what was durable. None for a shard that has never applied anything.
    #[must_use]
    pub fn applied(&self) -> Option<&Bytes> {
        self.record.as_ref().map(|record| &record.applied)
    }

    /// The shard's clock as of [`ShardStore::applied`].
    #[must_use]
    pub fn clock(&self) -> ShardClock {
        self.record
            .as_ref()
            .map(|record| record.clock)
            .unwrap_or_default()
    }

    /// Opens a batch. Dropped without a commit, it changes nothing.
    pub fn begin(&mut self) -> ShardBatch<'_> {
        ShardBatch::new(self)
    }

    /// A reader of what is committed, always the latest, for any thread.
    #[must_use]
    pub fn reader(&self) -> ShardReader {
        ShardReader {
            engine: Arc::clone(&self.engine),
            id: self.id,
            slots: self.slots,
            snapshot: None,
        }
    }

    /// Everything committed so far, unchanged by what is committed later.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] or [`StoreError::Poisoned`]: the process must stop.
    pub fn snapshot(&self) -> Result<ShardSnapshot, StoreError> {
        self.reader().snapshot()
    }

    /// Removes the shard's state and applied record, in one atomic step, durably.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`]: the process must stop.
    pub fn clear(&mut self) -> Result<(), StoreError> {
        self.engine.check()?;
        let mut writes = WriteBatch::default();
        writes.delete_range(self.slots.key_start(), self.slots.key_end());
        writes.delete(self.applied_key);
        self.engine.write(writes, &self.write_options)?;
        self.cache.get_mut().clear();
        self.record = None;
        self.engine.flush()
    }

    /// Approximate size on disk, in bytes; what no flush has written yet is not counted.
    #[must_use]
    pub fn approximate_bytes(&self) -> u64 {
        self.engine
            .approximate_bytes(&self.slots.key_start(), &self.slots.key_end())
    }

    /// How the record cache is doing.
    #[must_use]
    pub fn cache_stats(&self) -> CacheStats {
        self.cache.borrow().stats()
    }

    pub(crate) fn hash(&self, key: &[u8]) -> u64 {
        xxh3_64_with_seed(key, self.hash_seed)
    }

    pub(crate) fn owns(&self, key: &[u8]) -> bool {
        &self.slots.key_start()[..] <= key && key < &self.slots.key_end()[..]
    }
}

impl Drop for ShardStore {
    fn drop(&mut self) {
        self.claims.lock().remove(&self.id);
    }
}

/// Reads committed state of one shard, from any thread; cheap to clone.
///
/// Without a snapshot every read sees the latest commit, so two reads may see different ones.
/// An engine error ends the process (see [`crate::StoreOptions::on_fatal`]).
#[derive(Clone)]
pub struct ShardReader {
    pub(crate) engine: Arc<Engine>,
    pub(crate) id: ShardId,
    pub(crate) slots: SlotRange,
    pub(crate) snapshot: Option<Arc<PinnedSnapshot>>,
}

impl ShardReader {
    /// The shard's id.
    #[must_use]
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// The slots that the shard holds.
    #[must_use]
    pub fn slots(&self) -> SlotRange {
        self.slots
    }

    /// Everything committed so far (for a reader of a snapshot: in that snapshot), state and
    /// applied record belonging together. While it lives, the engine keeps old versions: do
    /// not hold it for longer than its use takes.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] or [`StoreError::Poisoned`]: the process must stop.
    pub fn snapshot(&self) -> Result<ShardSnapshot, StoreError> {
        self.engine.check()?;
        let pinned = match &self.snapshot {
            Some(pinned) => Arc::clone(pinned),
            None => Arc::new(PinnedSnapshot::new(&self.engine)),
        };
        let reader = Self {
            snapshot: Some(pinned),
            ..self.clone()
        };
        let record = reader
            .get(&record::applied_key(self.id))
            .map(|value| record::decode(&value))
            .transpose()
            .map_err(|error| self.engine.poison_with(error))?;
        Ok(ShardSnapshot::new(reader, record))
    }
}

impl ReadView for ShardReader {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        match &self.snapshot {
            None => self.engine.get(key),
            Some(snapshot) => {
                let mut options = ReadOptions::default();
                options.set_snapshot(snapshot.get());
                self.engine.get_with(key, &options)
            }
        }
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        reverse: bool,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) {
        let range = ScanRange { from, to, reverse };
        // Whether the visitor stopped makes no difference here.
        let _ = scan::committed(&self.engine, self.snapshot.as_deref(), range, visit);
    }
}
