//! The database handle that everything in this crate shares, and the one place that decides
//! what a failure of the engine means.
//!
//! Invariant: after the first failed write or read nothing more is written, and the hook given
//! at open has been called.
//!
//! State is in the default column family, written without a write-ahead log; `meta` is written
//! through one and synced. Because no other family is written without a log, a flush of one
//! family is all that durability of state needs, and the engine's `atomic_flush` stays off: a
//! flush of several families at once returned, in RocksDB 11.8.1, before the last memtable was
//! durable when another flush was under way (its waiting pairs the families with memtable ids
//! in the order of a hash map). The crash tests of this crate found that and watch over it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DB, DBRawIterator, FlushOptions,
    IngestExternalFileOptions, ReadOptions, WriteBatch, WriteOptions,
};

use crate::error::StoreError;
use crate::options::{CROWDED_LEVEL0_FILES, CROWDED_MEMTABLES, Failpoint, FatalHook, StoreOptions};
use crate::snapshot::PinnedSnapshot;

/// A flush that takes longer may have been forgotten.
const FLUSH_ASKED_AGAIN_AFTER: Duration = Duration::from_millis(500);

const META: &str = "meta";
/// Directory for files on their way into the database, beside the database's own files.
const STAGING: &str = "staging";

thread_local! {
    /// Read options are costly to make and every point read wants the same.
    static POINT_READ: ReadOptions = ReadOptions::default();
}

/// What there is too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crowd {
    /// Nothing.
    None,
    /// Memtables that wait for a flush.
    Memtables,
    /// Files in level 0 that wait for a compaction.
    Files,
}

pub(crate) struct Engine {
    db: DB,
    path: PathBuf,
    poisoned: AtomicBool,
    /// As of the last write.
    crowded: AtomicBool,
    /// Applied records say which slots a shard has, which not all nodes may understand yet.
    pub(crate) keeps_slots: AtomicBool,
    failpoint: Failpoint,
    on_fatal: FatalHook,
}

impl Engine {
    pub(crate) fn open(options: &StoreOptions) -> Result<Self, StoreError> {
        let failed = |error: rocksdb::Error| StoreError::Open {
            path: options.path.clone(),
            reason: error.into_string(),
        };
        let families = [
            ColumnFamilyDescriptor::new(rocksdb::DEFAULT_COLUMN_FAMILY_NAME, options.state()),
            ColumnFamilyDescriptor::new(META, StoreOptions::meta()),
        ];
        let database = options.database();
        let db = DB::open_cf_descriptors(&database, &options.path, families).map_err(failed)?;
        Ok(Self {
            db,
            path: options.path.clone(),
            poisoned: AtomicBool::new(false),
            crowded: AtomicBool::new(false),
            keeps_slots: AtomicBool::new(options.keep_slots),
            failpoint: options.failpoint,
            on_fatal: options.on_fatal.clone(),
        })
    }

    /// Where a file waits before it is ingested: on the database's own file system.
    pub(crate) fn staging(&self) -> PathBuf {
        self.path.join(STAGING)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn hit(&self, failpoint: &'static str) {
        (self.failpoint)(failpoint);
    }

    /// Fails when an earlier operation has made the store unusable.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(StoreError::Poisoned {
                operation: "an earlier operation",
                reason: "see the first error in the log".to_owned(),
            });
        }
        Ok(())
    }

    /// Marks the store unusable, tells the hook, and gives the error back to return it.
    pub(crate) fn poison(&self, operation: &'static str, reason: impl ToString) -> StoreError {
        self.poison_with(StoreError::Poisoned {
            operation,
            reason: reason.to_string(),
        })
    }

    pub(crate) fn poison_with(&self, error: StoreError) -> StoreError {
        if !self.poisoned.swap(true, Ordering::AcqRel) {
            (self.on_fatal)(&error);
        }
        error
    }

    /// For reads that cannot return an error: tells the hook, then ends the process, because
    /// an answer that is not what was committed would make this replica differ from the others.
    pub(crate) fn die(&self, operation: &'static str, reason: impl ToString) -> ! {
        let error = self.poison(operation, reason);
        tracing::error!(%error, "aborting");
        std::process::abort()
    }

    /// The latest committed value of a state key.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Bytes> {
        POINT_READ.with(|options| self.get_with(key, options))
    }

    pub(crate) fn get_with(&self, key: &[u8], options: &ReadOptions) -> Option<Bytes> {
        match self.db.get_pinned_opt(key, options) {
            Ok(value) => value.map(|value| Bytes::copy_from_slice(&value)),
            Err(error) => self.die("a read", error),
        }
    }

    /// An iterator over the state keys in `[from, to)`, not positioned yet.
    pub(crate) fn iterate(
        &self,
        from: &[u8],
        to: &[u8],
        snapshot: Option<&PinnedSnapshot>,
        fill_cache: bool,
    ) -> DBRawIterator<'_> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(from);
        options.set_iterate_upper_bound(to);
        options.fill_cache(fill_cache);
        if let Some(snapshot) = snapshot {
            options.set_snapshot(snapshot.get());
        }
        self.db.raw_iterator_opt(options)
    }

    /// Writes state. Not durable until the next flush.
    pub(crate) fn write(
        &self,
        batch: WriteBatch,
        options: &WriteOptions,
    ) -> Result<(), StoreError> {
        self.db
            .write_opt(batch, options)
            .map_err(|error| self.poison("a write", error))?;
        self.look();
        Ok(())
    }

    /// Soon writers have to wait until something is flushed or compacted.
    pub(crate) fn is_crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed)
    }

    /// Looks whether that is still so, and whether a flush changes it.
    pub(crate) fn look(&self) -> Crowd {
        let crowd = if self.property("rocksdb.num-immutable-mem-table") >= CROWDED_MEMTABLES {
            Crowd::Memtables
        } else if self.property("rocksdb.num-files-at-level0") >= CROWDED_LEVEL0_FILES {
            Crowd::Files
        } else {
            Crowd::None
        };
        self.crowded.store(crowd != Crowd::None, Ordering::Relaxed);
        crowd
    }

    /// Makes all state written so far durable. Memtables become durable in the order in which
    /// they were filled, so what is durable is a prefix at any moment.
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        self.check()?;
        let mut options = FlushOptions::default();
        options.set_wait(true);
        let (ends, ended) = mpsc::sync_channel::<()>(0);
        let flushed = thread::scope(|scope| {
            // Without that thread it is as good as it was; a node does not end for it.
            let again = thread::Builder::new().name("flush-again".to_owned());
            let _ = again.spawn_scoped(scope, move || self.ask_again_until(&ended));
            let flushed = self.db.flush_opt(&options);
            drop(ends);
            flushed
        });
        flushed.map_err(|error| self.poison("a flush", error))
    }

    /// Where several memtables are merged by one flush, a flush that has begun forgets that
    /// another one was asked for meanwhile, and who waits for that waits until as many memtables
    /// are full. Asked for again, it is done.
    fn ask_again_until(&self, ended: &mpsc::Receiver<()>) {
        let mut options = FlushOptions::default();
        options.set_wait(false);
        while ended.recv_timeout(FLUSH_ASKED_AGAIN_AFTER) == Err(RecvTimeoutError::Timeout) {
            // Who waits gets the error too.
            let _ = self.db.flush_opt(&options);
        }
    }

    /// Makes the files part of the state in one durable, atomic step; a later file wins over an
    /// earlier one. The files are consumed.
    pub(crate) fn ingest(&self, files: Vec<PathBuf>) -> Result<(), StoreError> {
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        options.set_snapshot_consistency(true);
        options.set_allow_global_seqno(true);
        options.set_allow_blocking_flush(true);
        self.db
            .ingest_external_file_opts(&options, files)
            .map_err(|error| self.poison("the ingestion of a snapshot", error))
    }

    pub(crate) fn meta_get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.check()?;
        match self.db.get_pinned_cf(self.meta_family(), key) {
            Ok(value) => Ok(value.map(|value| Bytes::copy_from_slice(&value))),
            Err(error) => Err(self.poison("a read of node metadata", error)),
        }
    }

    pub(crate) fn meta_put(&self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.check()?;
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.db
            .put_cf_opt(self.meta_family(), key, value, &options)
            .map_err(|error| self.poison("a write of node metadata", error))
    }

    /// A number that the engine reports about the state, 0 when it does not know it.
    pub(crate) fn property(&self, name: &str) -> u64 {
        match self.db.property_value(name) {
            Ok(value) => value.and_then(|value| value.parse().ok()).unwrap_or(0),
            Err(error) => {
                tracing::warn!(name, %error, "the engine does not report a property");
                0
            }
        }
    }

    /// Bytes on disk of the state keys in `[from, to)`; what is still in memory is not counted.
    pub(crate) fn approximate_bytes(&self, from: &[u8], to: &[u8]) -> u64 {
        let sizes = self
            .db
            .get_approximate_sizes(&[rocksdb::Range::new(from, to)]);
        sizes.first().copied().unwrap_or(0)
    }

    /// Rewrites everything into the lowest level, so that what is deleted leaves the disk.
    pub(crate) fn compact(&self) {
        self.db.compact_range(None::<&[u8]>, None::<&[u8]>);
    }

    pub(crate) fn db(&self) -> &DB {
        &self.db
    }

    fn meta_family(&self) -> &ColumnFamily {
        self.db.cf_handle(META).expect("opened with the database")
    }
}

/// Write options of state: the Raft log is its write-ahead log.
pub(crate) fn state_write_options() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    options
}
