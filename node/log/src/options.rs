//! Options of the log, their defaults and their limits.

use std::path::PathBuf;
use std::sync::Arc;

use crate::LogError;

const MIB: u64 = 1024 * 1024;

/// Smallest and largest `segment_bytes`. Offsets in a segment are kept in 32 bits.
const SEGMENT_BYTES_MIN: u64 = 64 * 1024;
const SEGMENT_BYTES_MAX: u64 = 1024 * MIB;
/// Largest `batch_bytes_max` and `queue_bytes_max`.
const BATCH_BYTES_MAX: u64 = 256 * MIB;
const QUEUE_BYTES_MAX: u64 = 1024 * MIB;

/// Called once, when the log can not go on, from the thread that found it. A node ends its
/// process here, with the error's text.
pub type FatalHook = Arc<dyn Fn(&LogError) + Send + Sync>;

/// How a log is opened. `LogOptions::new(dir)` gives the defaults.
#[derive(Clone)]
pub struct LogOptions {
    /// The directory of the segment files; created when missing. Nothing else may be in it.
    pub dir: PathBuf,
    /// Size of a segment file in bytes, default 64 MiB, from 64 KiB to 1 GiB. A segment may
    /// become larger by one batch.
    pub segment_bytes: u64,
    /// Memory for the newest entries of all groups together, in bytes, default 256 MiB. Entries
    /// that are not yet durable are kept beyond it.
    pub memory_tail_bytes_max: u64,
    /// Bytes that may wait to be written, default 64 MiB, at most 1 GiB; callers block above it
    /// until the writer has taken what waits.
    pub queue_bytes_max: u64,
    /// Bytes after which a write takes no further request, default 8 MiB, at most 256 MiB.
    pub batch_bytes_max: u64,
    /// Live bytes of old segments that one write moves forward at most, default 256 KiB.
    pub rewrite_batch_bytes_max: u64,
    /// Dead bytes in full segments above which the oldest segment is rewritten forward (if there
    /// are also more dead bytes than live ones), default 256 MiB.
    pub garbage_bytes_max: u64,
    /// Freed segment files that are kept for reuse, default 2.
    pub recycled_segments_max: usize,
    /// Called when a write or sync failed. Default: only logs the error.
    pub on_fatal: FatalHook,
}

impl LogOptions {
    /// The defaults for a log in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        LogOptions {
            dir: dir.into(),
            segment_bytes: 64 * MIB,
            memory_tail_bytes_max: 256 * MIB,
            queue_bytes_max: 64 * MIB,
            batch_bytes_max: 8 * MIB,
            rewrite_batch_bytes_max: MIB / 4,
            garbage_bytes_max: 256 * MIB,
            recycled_segments_max: 2,
            on_fatal: Arc::new(|error| tracing::error!(%error, "raft log failed")),
        }
    }

    /// Checks every option against its limits.
    pub fn validate(&self) -> Result<(), LogError> {
        let check = |name, value: u64, range: std::ops::RangeInclusive<u64>, allowed| {
            if range.contains(&value) {
                Ok(())
            } else {
                Err(LogError::InvalidOptions {
                    name,
                    value,
                    allowed,
                })
            }
        };
        check(
            "segment_bytes",
            self.segment_bytes,
            SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX,
            "64 KiB to 1 GiB",
        )?;
        check(
            "queue_bytes_max",
            self.queue_bytes_max,
            1..=QUEUE_BYTES_MAX,
            "1 to 1 GiB",
        )?;
        check(
            "batch_bytes_max",
            self.batch_bytes_max,
            1..=BATCH_BYTES_MAX,
            "1 to 256 MiB",
        )?;
        check(
            "rewrite_batch_bytes_max",
            self.rewrite_batch_bytes_max,
            1..=BATCH_BYTES_MAX,
            "1 to 256 MiB",
        )
    }
}

impl std::fmt::Debug for LogOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogOptions")
            .field("dir", &self.dir)
            .field("segment_bytes", &self.segment_bytes)
            .field("memory_tail_bytes_max", &self.memory_tail_bytes_max)
            .field("queue_bytes_max", &self.queue_bytes_max)
            .field("batch_bytes_max", &self.batch_bytes_max)
            .field("rewrite_batch_bytes_max", &self.rewrite_batch_bytes_max)
            .field("garbage_bytes_max", &self.garbage_bytes_max)
            .field("recycled_segments_max", &self.recycled_segments_max)
            .finish_non_exhaustive()
    }
}
