//! One shard of the store: its only writer, and its readers.
//!
//! `ShardStore` is the exclusive owner of its slots for writing; it may move between threads
//! and is used by one at a time. `ShardReader` may be anywhere and sees what is committed.
//!
//! Commits are held back: what several batches have changed is gathered in memory and written
//! to the engine as one, so that a record which changes with every message (a row, a head, a
//! marker) is written once for many of them. It costs nothing: state is durable after a flush
//! only, and the Raft log has what a crash takes away. Whoever wants to read the engine, flush
//! it or take a snapshot first lets what is held be written, so that none of them can tell.
//!
//! Invariants: engine ≤ committed, and each is a whole number of batches; for every key that
//! the record cache holds, cache = engine, except where what is held is newer.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use bytes::{Bytes, BytesMut};
use carillon_core::ReadView;
use carillon_core::ids::{ShardId, Slot, SlotRange};
use carillon_core::merging::MergeMark;
use carillon_core::records::ShardClock;
use parking_lot::{Mutex, MutexGuard};
use rocksdb::{ReadOptions, WriteBatch, WriteOptions};

use crate::batch::ShardBatch;
use crate::cache::{self, CacheStats, RecordCache};
use crate::engine::{self, Engine};
use crate::error::StoreError;
use crate::overlay::Overlay;
use crate::record::{self, AppliedKey, AppliedRecord};
use crate::remembered::Remembered;
use crate::scan::{self, ScanRange};
use crate::snapshot::{PinnedSnapshot, ShardSnapshot};
use crate::store::Claims;

/// What the engine adds to one key and value within a write batch.
const ENGINE_BYTES_PER_CHANGE: usize = 8;

/// What the writer of a shard shares with its readers.
pub(crate) struct Shared {
    pub(crate) engine: Arc<Engine>,
    pub(crate) id: ShardId,
    /// The first and the last slot, 16 bits each: a split takes the last ones away, a merge
    /// adds others.
    slots: AtomicU32,
    /// Its record says which slots it has, and goes on to.
    pub(crate) keeps_slots: AtomicBool,
    /// Its left neighbour has taken it over: nothing is written for it any more. Set under
    /// `held`.
    absorbed: AtomicBool,
    pub(crate) applied_key: AppliedKey,
    /// Commits are held that the engine does not have.
    behind: AtomicBool,
    /// Locked for the length of a batch, and while what is held is written.
    held: Mutex<Held>,
    held_bytes_max: usize,
    /// Of the hash of keys: differs between processes, so that no client can choose ids that
    /// collide.
    pub(crate) hash_seed: u64,
}

/// What is committed and not written, and the record cache.
pub(crate) struct Held {
    pub(crate) overlay: Overlay,
    pub(crate) cache: RefCell<RecordCache>,
    /// Of the committed state, what is held included.
    pub(crate) remembered: Remembered,
    /// The encoded applied record of the last commit.
    pub(crate) record: BytesMut,
    write_options: WriteOptions,
}

/// What is written together with a shard.
pub(crate) enum Also<'a> {
    /// Nothing.
    Nothing,
    /// The applied record of another shard.
    Record(ShardId, &'a [u8]),
    /// That another shard has none any more.
    Removal(ShardId),
}

impl Held {
    /// The state is another one now.
    pub(crate) fn forget(&mut self) {
        self.cache.get_mut().clear();
        self.remembered.clear();
    }
}

impl Shared {
    pub(crate) fn new(
        engine: Arc<Engine>,
        id: ShardId,
        slots: SlotRange,
        cache: RecordCache,
        held_bytes_max: usize,
        hash_seed: u64,
    ) -> Self {
        Self {
            engine,
            id,
            slots: AtomicU32::new(packed(slots)),
            keeps_slots: AtomicBool::new(false),
            absorbed: AtomicBool::new(false),
            applied_key: record::applied_key(id),
            behind: AtomicBool::new(false),
            held: Mutex::new(Held {
                overlay: Overlay::default(),
                cache: RefCell::new(cache),
                remembered: Remembered::default(),
                record: BytesMut::new(),
                write_options: engine::state_write_options(),
            }),
            held_bytes_max,
            hash_seed,
        }
    }

    pub(crate) fn slots(&self) -> SlotRange {
        let packed = self.slots.load(Ordering::Acquire);
        SlotRange {
            first: Slot((packed >> 16) as u16),
            last: Slot(packed as u16),
        }
    }

    pub(crate) fn set_slots(&self, slots: SlotRange) {
        self.slots.store(packed(slots), Ordering::Release);
    }

    /// What a record with these slots and this mark has of them: nothing as long as a record of
    /// the first version suffices and nobody has said that all nodes read others
    /// ([`crate::Store::keep_slots`]). Once a shard's record has them, it keeps them.
    pub(crate) fn written_slots(&self, slots: SlotRange, merges: MergeMark) -> Option<SlotRange> {
        let kept = self.keeps_slots.load(Ordering::Acquire);
        let due = self.engine.keeps_slots.load(Ordering::Acquire)
            || slots != self.slots()
            || merges != MergeMark::default();
        if due && !kept {
            self.keeps_slots.store(true, Ordering::Release);
        }
        (kept || due).then_some(slots)
    }

    pub(crate) fn is_absorbed(&self) -> bool {
        self.absorbed.load(Ordering::Acquire)
    }

    /// Its left neighbour has it now, in the engine already.
    pub(crate) fn set_absorbed(&self, held: &mut Held) {
        self.absorbed.store(true, Ordering::Release);
        held.overlay.clear();
        held.forget();
        self.behind.store(false, Ordering::Release);
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock()
    }

    /// A batch was committed into what is held: writes it when it has become much.
    pub(crate) fn committed(&self, held: &mut Held) -> Result<(), StoreError> {
        self.behind.store(true, Ordering::Release);
        if held.overlay.bytes_len() < self.held_bytes_max {
            return Ok(());
        }
        self.write(held, Also::Nothing)
    }

    /// Lets the engine have everything committed so far.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`]: the process must stop.
    pub(crate) fn write_held(&self) -> Result<(), StoreError> {
        if !self.behind.load(Ordering::Acquire) {
            return Ok(());
        }
        self.write_behind(&mut self.held.lock())
    }

    /// The same for who has the lock.
    pub(crate) fn write_behind(&self, held: &mut Held) -> Result<(), StoreError> {
        if !self.behind.load(Ordering::Acquire) {
            return Ok(());
        }
        self.write(held, Also::Nothing)
    }

    /// For reads, which cannot return an error.
    fn write_held_or_die(&self) {
        if let Err(error) = self.write_held() {
            self.engine.die("a write before a read", error);
        }
    }

    /// Writes what is held, and something of another shard with it.
    pub(crate) fn write(&self, held: &mut Held, also: Also<'_>) -> Result<(), StoreError> {
        self.engine.check()?;
        if self.is_absorbed() {
            // Its group goes on for a moment; what it applies changes nothing.
            held.overlay.clear();
            self.behind.store(false, Ordering::Release);
            return Ok(());
        }
        self.engine.hit("store.before_write");
        let overlay = &mut held.overlay;
        let bytes =
            overlay.bytes_len() + held.record.len() + (overlay.len() + 2) * ENGINE_BYTES_PER_CHANGE;
        let mut writes = WriteBatch::with_capacity_bytes(bytes);
        for change in overlay.changes_near_key_order() {
            match change.value {
                Some(value) => writes.put(change.key, value),
                None => writes.delete(change.key),
            }
        }
        writes.put(self.applied_key, &held.record);
        match also {
            Also::Nothing => {}
            Also::Record(shard, record) => writes.put(record::applied_key(shard), record),
            Also::Removal(shard) => writes.delete(record::applied_key(shard)),
        }
        self.engine.write(writes, &held.write_options)?;

        let cache = held.cache.get_mut();
        for change in held.overlay.changes() {
            if cache::is_cached(change.key) {
                cache.put(change.hash, change.key, change.value);
            }
        }
        held.overlay.clear();
        self.behind.store(false, Ordering::Release);
        Ok(())
    }

    pub(crate) fn owns(&self, key: &[u8]) -> bool {
        let slots = self.slots();
        &slots.key_start()[..] <= key && key < &slots.key_end()[..]
    }
}

fn packed(slots: SlotRange) -> u32 {
    u32::from(slots.first.0) << 16 | u32::from(slots.last.0)
}

/// The writer of one shard. Made by [`crate::Store::shard`]; while it exists, no other writer
/// of its slots does.
pub struct ShardStore {
    pub(crate) shared: Arc<Shared>,
    pub(crate) claims: Claims,
    pub(crate) record: Option<AppliedRecord>,
}

impl ShardStore {
    /// A writer whose slots are entered in `claims`; it removes them when it is dropped.
    pub(crate) fn claimed(
        shared: Arc<Shared>,
        claims: Claims,
        record: Option<AppliedRecord>,
    ) -> Self {
        Self {
            shared,
            claims,
            record,
        }
    }

    /// The shard's id.
    #[must_use]
    pub fn id(&self) -> ShardId {
        self.shared.id
    }

    /// The slots that the shard holds.
    #[must_use]
    pub fn slots(&self) -> SlotRange {
        self.shared.slots()
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

    /// What merges have done to the shard, as of [`ShardStore::applied`].
    #[must_use]
    pub fn merges(&self) -> MergeMark {
        self.record
            .as_ref()
            .map(|record| record.merges)
            .unwrap_or_default()
    }

    /// Opens a batch, which readers wait for; see [`ShardBatch`].
    pub fn begin(&mut self) -> ShardBatch<'_> {
        ShardBatch::new(&self.shared, &self.claims, &mut self.record)
    }

    /// A reader of what is committed, always the latest, for any thread.
    #[must_use]
    pub fn reader(&self) -> ShardReader {
        ShardReader {
            shared: Arc::clone(&self.shared),
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
    /// [`StoreError::Absorbed`] when its neighbour has it. [`StoreError::Poisoned`]: the process
    /// must stop.
    pub fn clear(&mut self) -> Result<(), StoreError> {
        let shared = &self.shared;
        shared.engine.check()?;
        // Nobody takes it over meanwhile.
        let claims = self.claims.lock();
        if shared.is_absorbed() {
            return Err(StoreError::Absorbed(shared.id));
        }
        shared.write_held()?;
        let mut writes = WriteBatch::default();
        let slots = shared.slots();
        writes.delete_range(slots.key_start(), slots.key_end());
        writes.delete(shared.applied_key);
        shared
            .engine
            .write(writes, &engine::state_write_options())?;
        drop(claims);
        shared.lock().forget();
        self.record = None;
        shared.engine.flush()
    }

    /// Approximate size on disk, in bytes; what no flush has written yet is not counted.
    #[must_use]
    pub fn approximate_bytes(&self) -> u64 {
        let slots = self.shared.slots();
        let engine = &self.shared.engine;
        engine.approximate_bytes(&slots.key_start(), &slots.key_end())
    }

    /// How the record cache is doing.
    #[must_use]
    pub fn cache_stats(&self) -> CacheStats {
        self.shared.lock().cache.borrow().stats()
    }
}

impl Drop for ShardStore {
    fn drop(&mut self) {
        if let Err(error) = self.shared.write_held() {
            tracing::error!(shard = self.shared.id.0, %error, "the last commits are left to the log");
        }
        self.claims.lock().remove(&self.shared.id);
    }
}

/// Reads committed state of one shard, from any thread; cheap to clone.
///
/// Without a snapshot every read sees the latest commit, so two reads may see different ones.
/// An engine error ends the process (see [`crate::StoreOptions::on_fatal`]).
#[derive(Clone)]
pub struct ShardReader {
    pub(crate) shared: Arc<Shared>,
    pub(crate) snapshot: Option<Arc<PinnedSnapshot>>,
}

impl ShardReader {
    /// The shard's id.
    #[must_use]
    pub fn id(&self) -> ShardId {
        self.shared.id
    }

    /// Whether its left neighbour has taken it over: what is read here is the neighbour's.
    #[must_use]
    pub fn is_absorbed(&self) -> bool {
        self.shared.is_absorbed()
    }

    /// The slots that the shard holds now.
    #[must_use]
    pub fn slots(&self) -> SlotRange {
        self.shared.slots()
    }

    /// Everything committed so far (for a reader of a snapshot: in that snapshot), state and
    /// applied record belonging together. While it lives, the engine keeps old versions: do
    /// not hold it for longer than its use takes.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] or [`StoreError::Poisoned`]: the process must stop.
    pub fn snapshot(&self) -> Result<ShardSnapshot, StoreError> {
        let engine = &self.shared.engine;
        engine.check()?;
        let pinned = match &self.snapshot {
            Some(pinned) => Arc::clone(pinned),
            None => {
                self.shared.write_held()?;
                Arc::new(PinnedSnapshot::new(engine))
            }
        };
        let reader = Self {
            snapshot: Some(pinned),
            ..self.clone()
        };
        let record = reader
            .get(&self.shared.applied_key)
            .map(|value| record::decode(&value))
            .transpose()
            .map_err(|error| engine.poison_with(error))?;
        Ok(ShardSnapshot::new(reader, record))
    }
}

impl ReadView for ShardReader {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        let engine = &self.shared.engine;
        match &self.snapshot {
            None => {
                self.shared.write_held_or_die();
                engine.get(key)
            }
            Some(snapshot) => {
                let mut options = ReadOptions::default();
                options.set_snapshot(snapshot.get());
                engine.get_with(key, &options)
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
        if self.snapshot.is_none() {
            self.shared.write_held_or_die();
        }
        let range = ScanRange { from, to, reverse };
        // Whether the visitor stopped makes no difference here.
        let _ = scan::committed(&self.shared.engine, self.snapshot.as_deref(), range, visit);
    }
}
