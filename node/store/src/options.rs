//! How a store is opened, and the engine settings that follow from it.
//!
//! The Raft log is the write-ahead log of the state, so state is written without one and the
//! settings aim at one thing: a batch costs its memtable inserts and nothing waits for the disk.
//! What is not in [`StoreOptions`] is a constant here because nobody would change it.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, CompactionPri, DBCompressionType, LogLevel,
    Options,
};

use crate::error::StoreError;

/// Background threads of the engine: one flushes, one compacts.
const BACKGROUND_JOBS: i32 = 2;
/// Memtables that one flush writes together. An insert costs what its memtable misses in the
/// processor's caches, so they are small; what reaches the disk is merged from all of them, so
/// that a record that changes all the time is written once.
const MEMTABLES_PER_FLUSH: i32 = 8;
/// Memtables, the active one included, before writers are held back until some are flushed.
const MEMTABLES_MAX: i32 = 3 * MEMTABLES_PER_FLUSH;
/// Size of a memtable's bloom filter over whole keys, as a part of the memtable. Without it a
/// read of a key that is in none of them (every send looks for its duplicate) searches them all.
const MEMTABLE_BLOOM_RATIO: f64 = 0.05;
/// Least size of the first level behind level 0.
const LEVEL_BASE_BYTES_MIN: u64 = 256 * 1024 * 1024;
/// Bits of the whole-key bloom filter per key: about 1 % false positives.
const BLOOM_BITS_PER_KEY: f64 = 10.0;
/// Uncompressed bytes in one block.
const BLOCK_BYTES: usize = 8 * 1024;
/// Size of one table file.
const TABLE_BYTES: u64 = 64 * 1024 * 1024;
/// Table files in level 0 that start a compaction, slow writers down, stop writers.
const LEVEL0_FILES: (i32, i32, i32) = (8, 24, 40);
/// So many memtables or files in level 0 before its writers would have to wait the store says so
/// ([`crate::Store::is_crowded`]): what is written until everybody has heard of it still fits.
const CROWDED_BEFORE: u64 = 4;
pub(crate) const CROWDED_MEMTABLES: u64 = MEMTABLES_MAX as u64 - CROWDED_BEFORE;
pub(crate) const CROWDED_LEVEL0_FILES: u64 = LEVEL0_FILES.2 as u64 - CROWDED_BEFORE;
/// Bytes between two background syncs while a table file is written, so that its last sync
/// does not hold the disk while the Raft log wants it.
const BYTES_PER_SYNC: u64 = 1024 * 1024;
/// Log files of the engine itself to keep, and the size of one.
const ENGINE_LOG_FILES_MAX: usize = 4;
const ENGINE_LOG_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Largest write-ahead log (it only holds `meta`, so this is never reached by much).
const META_LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Period over which the rate limit is spread. The rate is looked at every hundred of them: a
/// twentieth of the limit while nothing waits for it, 5 % more each time while much does.
/// Much shorter, and a busy processor makes it miss periods, which it takes for little to write.
const RATE_LIMIT_REFILL_US: i64 = 10_000;
/// One in this many rate-limited requests of low priority goes before one of high priority.
const RATE_LIMIT_FAIRNESS: i32 = 10;

/// Called with the name of a point in the write path; a test kills the process there.
pub type Failpoint = fn(&'static str);

/// Called once with the error that makes the store unusable, before it is returned or, where
/// a read cannot return one, before the process is aborted.
pub type FatalHook = Arc<dyn Fn(&StoreError) + Send + Sync>;

/// How to open a [`crate::Store`].
#[derive(Clone)]
pub struct StoreOptions {
    /// Directory of the database. Created when absent; its parent must exist.
    pub path: PathBuf,
    /// Bytes of state gathered in memory before they are flushed, less up to a quarter that is
    /// chosen at random, so that the replicas of a shard, which write the same, do not all flush
    /// at the same moment. The store is crowded at two and a half times as many. More writes less to
    /// disk, but takes a processor for longer, and leaves more to replay from the log after a
    /// crash. At least 512 KiB. Default 32 MiB.
    pub memtable_bytes: usize,
    /// Size in bytes of the cache of uncompressed blocks, shared by all shards. Default 256 MiB.
    pub block_cache_bytes: usize,
    /// Size in bytes of the cache of hot records (heads, rows, members, markers) of each open
    /// shard. Default 16 MiB.
    pub shard_cache_bytes: usize,
    /// Bytes of keys and values that each open shard holds back before it writes them to the
    /// engine, so that records which change all the time are written once for many changes; the
    /// more it is, the longer the one write takes. 0: every commit is written at once. Default
    /// 128 KiB.
    pub held_bytes_max: usize,
    /// Bytes per second that flushes and compactions may write together at most. While little
    /// is to be written they get a twentieth of it, while much is 5 % more each second: done
    /// at once, a compaction would take a processor from the messages for a second.
    /// Default 320 MB/s.
    pub background_write_bytes_per_second: u64,
    /// Records say from the start which slots their shards have; else only after
    /// [`crate::Store::keep_slots`]. Default: true.
    pub keep_slots: bool,
    /// Called at named points of the write path. Default: does nothing.
    pub failpoint: Failpoint,
    /// Called with the error that makes the store unusable. Default: does nothing, since the
    /// error is returned or the process aborted anyway.
    pub on_fatal: FatalHook,
}

impl StoreOptions {
    /// The defaults, for a store in `path`.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            memtable_bytes: 32 * 1024 * 1024,
            block_cache_bytes: 256 * 1024 * 1024,
            shard_cache_bytes: 16 * 1024 * 1024,
            held_bytes_max: 128 * 1024,
            background_write_bytes_per_second: 320_000_000,
            keep_slots: true,
            failpoint: |_| {},
            on_fatal: Arc::new(|_| {}),
        }
    }

    /// Options of the database as a whole.
    pub(crate) fn database(&self) -> Options {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_paranoid_checks(true);
        options.set_max_open_files(-1);
        options.set_max_background_jobs(BACKGROUND_JOBS);
        // Writers that wait for one another sleep: spinning takes a core from the one waited for.
        options.set_enable_write_thread_adaptive_yield(false);
        options.set_bytes_per_sync(BYTES_PER_SYNC);
        options.set_max_total_wal_size(META_LOG_BYTES_MAX);
        // At normal priority: what is put off under load is only more to do later. It is spread
        // over time instead, by a rate that follows what there is to write.
        options.set_auto_tuned_ratelimiter(
            i64::try_from(self.background_write_bytes_per_second).unwrap_or(i64::MAX),
            RATE_LIMIT_REFILL_US,
            RATE_LIMIT_FAIRNESS,
        );
        options.set_keep_log_file_num(ENGINE_LOG_FILES_MAX);
        options.set_max_log_file_size(ENGINE_LOG_BYTES_MAX);
        options.set_log_level(LogLevel::Warn);
        options.set_stats_dump_period_sec(0);
        options
    }

    /// Options of the column family that holds the state of the shards.
    pub(crate) fn state(&self) -> Options {
        let mut options = table_options(Some(&Cache::new_lru_cache(self.block_cache_bytes)));
        let less_at_most = self.memtable_bytes as u64 / 4;
        let less = RandomState::new().hash_one(0_u8) % less_at_most.max(1);
        let flushed_bytes = self.memtable_bytes - less as usize;
        options.set_write_buffer_size(flushed_bytes / MEMTABLES_PER_FLUSH as usize);
        options.set_min_write_buffer_number_to_merge(MEMTABLES_PER_FLUSH);
        options.set_max_write_buffer_number(MEMTABLES_MAX);
        options.set_memtable_prefix_bloom_ratio(MEMTABLE_BLOOM_RATIO);
        options.set_memtable_whole_key_filtering(true);
        options
            .set_max_bytes_for_level_base(LEVEL_BASE_BYTES_MIN.max(4 * self.memtable_bytes as u64));
        let (compact, slow, stop) = LEVEL0_FILES;
        options.set_level_zero_file_num_compaction_trigger(compact);
        options.set_level_zero_slowdown_writes_trigger(slow);
        options.set_level_zero_stop_writes_trigger(stop);
        options.set_compaction_pri(CompactionPri::MinOverlappingRatio);
        options.set_level_compaction_dynamic_level_bytes(true);
        options
    }

    /// Options of the column family that holds the node's own few records.
    pub(crate) fn meta() -> Options {
        table_options(None)
    }

    /// Options of the table files that carry a snapshot.
    pub(crate) fn snapshot_file() -> Options {
        table_options(None)
    }
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreOptions")
            .field("path", &self.path)
            .field("memtable_bytes", &self.memtable_bytes)
            .field("block_cache_bytes", &self.block_cache_bytes)
            .field("shard_cache_bytes", &self.shard_cache_bytes)
            .field("held_bytes_max", &self.held_bytes_max)
            .field(
                "background_write_bytes_per_second",
                &self.background_write_bytes_per_second,
            )
            .finish_non_exhaustive()
    }
}

/// The format of the table files, the same wherever they are written, since a snapshot's
/// files become files of the database.
fn table_options(cache: Option<&Cache>) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_size(BLOCK_BYTES);
    table.set_bloom_filter(BLOOM_BITS_PER_KEY, false);
    table.set_whole_key_filtering(true);
    // In partitions. As one block, a filter of a table of small records is some MiB: too large
    // for a shard of the block cache, so that every read of a key would read it from disk.
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_metadata_block_size(BLOCK_BYTES);
    table.set_pin_top_level_index_and_filter(true);
    table.set_format_version(5);
    if let Some(cache) = cache {
        table.set_block_cache(cache);
        table.set_cache_index_and_filter_blocks(true);
        table.set_cache_index_and_filter_blocks_with_high_priority(true);
        table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    }
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_bottommost_compression_type(DBCompressionType::Zstd);
    options.set_target_file_size_base(TABLE_BYTES);
    options
}
