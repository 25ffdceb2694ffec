//! The store of a node: opening it, its shards, durability, the node's own records.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use carillon_core::ids::{ShardId, SlotRange};
use carillon_core::merging::MergeMark;
use parking_lot::Mutex;

use crate::cache::RecordCache;
use crate::engine::{Crowd, Engine};
use crate::error::StoreError;
use crate::install;
use crate::options::StoreOptions;
use crate::record::{self, APPLIED_END, AppliedRecord, RESERVED_PREFIX};
use crate::shard::{ShardStore, Shared};

/// A shard that is open.
pub(crate) struct Claim {
    pub(crate) shared: Arc<Shared>,
}

impl Claim {
    /// It has one of these slots; one that was taken over has none.
    pub(crate) fn overlaps(&self, slots: SlotRange) -> bool {
        !self.shared.is_absorbed() && self.shared.slots().overlaps(slots)
    }
}

/// The shards that are open.
pub(crate) type Claims = Arc<Mutex<BTreeMap<ShardId, Claim>>>;

/// What the engine reports about the state of all shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreStats {
    /// Bytes in memtables, not yet on disk.
    pub memtable_bytes: u64,
    /// Bytes of the table files in use.
    pub table_bytes: u64,
    /// Bytes that compactions still have to rewrite.
    pub pending_compaction_bytes: u64,
    /// Table files in level 0; writers are slowed down at 24 and stopped at 40.
    pub level0_files: u64,
    /// Bytes of the block cache in use.
    pub block_cache_bytes: u64,
    /// Writers are stopped until flush or compaction catch up.
    pub write_stopped: bool,
    /// Bytes per second to which writers are slowed down; 0 when they are not.
    pub delayed_write_bytes_per_second: u64,
    /// Failures of background work since open.
    pub background_errors: u64,
}

/// The state of all shards of a node. Cheap to clone; the database closes when the last clone,
/// shard, reader and snapshot is dropped, writing out what is still in memory.
#[derive(Clone)]
pub struct Store {
    engine: Arc<Engine>,
    claims: Claims,
    shard_cache_bytes: usize,
    held_bytes_max: usize,
    hash_seed: u64,
    interrupted_installs: Arc<[ShardId]>,
}

impl Store {
    /// Opens the store, creating it when there is none, and removes what interrupted installs
    /// left behind. One process may have it open.
    ///
    /// # Errors
    /// [`StoreError::Open`], and [`StoreError::File`] when leftovers cannot be removed.
    pub fn open(options: &StoreOptions) -> Result<Self, StoreError> {
        let engine = Arc::new(Engine::open(options)?);
        let interrupted_installs = install::remove_interrupted(&engine)?;
        for shard in &interrupted_installs {
            tracing::info!(shard = shard.0, "an install of a snapshot was interrupted");
        }
        Ok(Self {
            engine,
            claims: Claims::default(),
            shard_cache_bytes: options.shard_cache_bytes,
            held_bytes_max: options.held_bytes_max,
            hash_seed: RandomState::new().hash_one(0_u8),
            interrupted_installs: interrupted_installs.into(),
        })
    }

    /// Opens a shard for writing; its applied record is what was durable. One that has none
    /// holds these slots, any other those that it had.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when another open shard has one of the slots;
    /// [`StoreError::Taken`] when the shard has no record and another one, open or not, has one
    /// of the slots on record; [`StoreError::Corrupt`] when an applied record does not decode.
    pub fn shard(&self, id: ShardId, slots_if_new: SlotRange) -> Result<ShardStore, StoreError> {
        self.engine.check()?;
        let mut claims = self.claims.lock();
        let record = self.record(id)?;
        let slots = record.as_ref().and_then(|record| record.slots);
        let slots = slots.unwrap_or(slots_if_new);
        let taken = claims
            .iter()
            .find(|(open, claim)| **open == id || claim.overlaps(slots));
        if let Some((&open, _)) = taken {
            return Err(StoreError::InUse { wanted: id, open });
        }
        if record.is_none() {
            // Of open ones the slots may be newer than what is written here.
            let written = read_records(&self.engine)?;
            let mut closed = written.iter().filter(|(by, _)| !claims.contains_key(by));
            let has = closed
                .find(|(_, record)| record.slots.is_some_and(|written| written.overlaps(slots)));
            if let Some((&by, _)) = has {
                return Err(StoreError::Taken { wanted: id, by });
            }
        }
        let shared = Arc::new(Shared::new(
            Arc::clone(&self.engine),
            id,
            slots,
            RecordCache::new(self.shard_cache_bytes),
            self.held_bytes_max,
            self.hash_seed,
        ));
        if record.as_ref().is_some_and(|record| record.slots.is_some()) {
            shared.keeps_slots.store(true, Ordering::Release);
        }
        let claim = Claim {
            shared: Arc::clone(&shared),
        };
        claims.insert(id, claim);
        drop(claims);
        Ok(ShardStore::claimed(
            shared,
            Arc::clone(&self.claims),
            record,
        ))
    }

    /// From here on every record that is written says which slots its shard has. Before it, only
    /// those do that cannot be without: of shards that were split, taken over, or frozen.
    pub fn keep_slots(&self) {
        self.engine.keeps_slots.store(true, Ordering::Release);
    }

    fn record(&self, id: ShardId) -> Result<Option<AppliedRecord>, StoreError> {
        let value = self.engine.get(&record::applied_key(id));
        let record = value.map(|value| record::decode(&value)).transpose();
        record.map_err(|error| self.engine.poison_with(error))
    }

    /// The open shard that has one of these slots.
    #[must_use]
    pub fn holder(&self, slots: SlotRange) -> Option<ShardId> {
        let claims = self.claims.lock();
        let mut open = claims.iter();
        open.find(|(_, claim)| claim.overlaps(slots))
            .map(|(id, _)| *id)
    }

    /// Makes every commit that returned before this call durable, for all shards together, and
    /// returns the `applied` bytes that each shard will at least be found with after a crash:
    /// logs may be purged up to there. Blocks for as long as the disk takes; commits go on.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`]: the process must stop.
    pub fn flush(&self) -> Result<BTreeMap<ShardId, Bytes>, StoreError> {
        let applied = self.applied()?;
        self.engine.hit("store.before_flush");
        self.engine.flush()?;
        self.engine.hit("store.after_flush");
        Ok(applied)
    }

    /// Soon a commit would wait in the engine until memtables are flushed or files compacted. It
    /// holds a lock meanwhile for which the readers of its shard wait too: who commits looks
    /// here before, and then lets [`Store::relieve`] make room.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.engine.is_crowded()
    }

    /// Flushes when too much waits for that. True when there is still too much: compactions have
    /// to catch up, which go on by themselves. Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`]: the process must stop.
    pub fn relieve(&self) -> Result<bool, StoreError> {
        if self.engine.look() == Crowd::Memtables {
            self.engine.flush()?;
        }
        Ok(self.engine.look() != Crowd::None)
    }

    /// The `applied` bytes of the latest commit of every shard that has one, open or not. Right
    /// after [`Store::open`]: what is durable.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`], [`StoreError::Corrupt`]: the process must stop.
    pub fn applied(&self) -> Result<BTreeMap<ShardId, Bytes>, StoreError> {
        let records = self.records()?.into_iter();
        Ok(records
            .map(|(shard, record)| (shard, record.applied))
            .collect())
    }

    /// The slots and the `applied` bytes of every shard whose slots were kept with its latest
    /// commit, open or not.
    ///
    /// # Errors
    /// As of [`Store::applied`].
    pub fn shards(&self) -> Result<BTreeMap<ShardId, (SlotRange, Bytes)>, StoreError> {
        let records = self.records()?.into_iter();
        Ok(records
            .filter_map(|(shard, record)| Some((shard, (record.slots?, record.applied))))
            .collect())
    }

    /// The slots of every shard whose slots were kept with its latest commit, open or not, and
    /// what merges have done to it.
    ///
    /// # Errors
    /// As of [`Store::applied`].
    pub fn merges(&self) -> Result<BTreeMap<ShardId, (SlotRange, MergeMark)>, StoreError> {
        let records = self.records()?.into_iter();
        Ok(records
            .filter_map(|(shard, record)| Some((shard, (record.slots?, record.merges))))
            .collect())
    }

    fn records(&self) -> Result<BTreeMap<ShardId, AppliedRecord>, StoreError> {
        records(&self.engine, &self.claims)
    }

    /// The shards whose install of a snapshot was under way when the process last ended. Each
    /// of them is whole, as it was before or as the snapshot: its applied record says which.
    #[must_use]
    pub fn interrupted_installs(&self) -> &[ShardId] {
        &self.interrupted_installs
    }

    /// A record of the node's own (identity, cluster id, the meta group's state).
    ///
    /// # Errors
    /// [`StoreError::Poisoned`]: the process must stop.
    pub fn meta_get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.engine.meta_get(key)
    }

    /// Writes a record of the node's own. Durable when this returns, by a small write-ahead log
    /// that only these records use; costs one fsync, so it is for what changes rarely.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`]: the process must stop.
    pub fn meta_put(&self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.engine.meta_put(key, value)
    }

    /// Approximate size on disk of a slot range, in bytes; what no flush has written yet is not
    /// counted.
    #[must_use]
    pub fn approximate_bytes(&self, slots: SlotRange) -> u64 {
        self.engine
            .approximate_bytes(&slots.key_start(), &slots.key_end())
    }

    /// Rewrites all table files, so that deleted state leaves the disk. Takes long; for
    /// operators and tests.
    pub fn compact(&self) {
        self.engine.compact();
    }

    /// Figures for metrics.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        let property = |name| self.engine.property(name);
        StoreStats {
            memtable_bytes: property("rocksdb.cur-size-all-mem-tables"),
            table_bytes: property("rocksdb.live-sst-files-size"),
            pending_compaction_bytes: property("rocksdb.estimate-pending-compaction-bytes"),
            level0_files: property("rocksdb.num-files-at-level0"),
            block_cache_bytes: property("rocksdb.block-cache-usage"),
            write_stopped: property("rocksdb.is-write-stopped") != 0,
            delayed_write_bytes_per_second: property("rocksdb.actual-delayed-write-rate"),
            background_errors: property("rocksdb.background-errors"),
        }
    }

    /// The directory of the database.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        self.engine.path()
    }
}

/// The applied records of all shards, open or not, as of their latest commits.
pub(crate) fn records(
    engine: &Engine,
    claims: &Claims,
) -> Result<BTreeMap<ShardId, AppliedRecord>, StoreError> {
    engine.check()?;
    let open: Vec<_> = claims
        .lock()
        .values()
        .map(|claim| Arc::clone(&claim.shared))
        .collect();
    for shard in open {
        shard.write_held()?;
    }
    read_records(engine)
}

/// Those that the engine has.
fn read_records(engine: &Engine) -> Result<BTreeMap<ShardId, AppliedRecord>, StoreError> {
    let mut records = BTreeMap::new();
    let mut iterator = engine.iterate(&RESERVED_PREFIX, &APPLIED_END, None, true);
    iterator.seek_to_first();
    while let Some((key, value)) = iterator.item() {
        let entry = record::shard_of_applied_key(key)
            .and_then(|shard| Ok((shard, record::decode(&Bytes::copy_from_slice(value))?)));
        let (shard, record) = entry.map_err(|error| engine.poison_with(error))?;
        records.insert(shard, record);
        iterator.next();
    }
    iterator
        .status()
        .map_err(|error| engine.poison("a scan of applied records", error))?;
    Ok(records)
}
