//! Counters of the log: written by the writer thread and the groups, read by the metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A reading of the log's counters. Totals count from the opening of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogStats {
    /// `fdatasync` calls on segments.
    pub syncs: u64,
    /// Time spent in them, in microseconds.
    pub sync_micros: u64,
    /// The longest of them, in microseconds.
    pub sync_micros_max: u64,
    /// Requests of groups that were made durable.
    pub requests: u64,
    /// Entries appended and made durable.
    pub entries: u64,
    /// Bytes written, with framing, padding, checkpoints and what was moved forward.
    pub bytes: u64,
    /// Bytes of live entries that were moved forward out of old segments.
    pub rewritten_bytes: u64,
    /// Segments begun.
    pub rotations: u64,
    /// Segments begun that had to wait for their file.
    pub rotation_stalls: u64,
    /// Bytes that wait for the writer now.
    pub queue_bytes: u64,
    /// Requests that wait for the writer now.
    pub queue_requests: u64,
    /// Segment files in use now.
    pub segments: u64,
    /// Bytes of entries on disk that are not purged, now.
    pub live_bytes: u64,
    /// Bytes of entries in the memory tails of all groups, now.
    pub memory_tail_bytes: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) syncs: AtomicU64,
    pub(crate) sync_micros: AtomicU64,
    pub(crate) sync_micros_max: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) entries: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) rewritten_bytes: AtomicU64,
    pub(crate) rotations: AtomicU64,
    pub(crate) rotation_stalls: AtomicU64,
    pub(crate) segments: AtomicU64,
    pub(crate) live_bytes: AtomicU64,
    pub(crate) memory_tail_bytes: AtomicU64,
}

impl Counters {
    pub(crate) fn synced(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.syncs.fetch_add(1, Relaxed);
        self.sync_micros.fetch_add(micros, Relaxed);
        self.sync_micros_max.fetch_max(micros, Relaxed);
    }

    pub(crate) fn read(&self, queue_bytes: u64, queue_requests: u64) -> LogStats {
        LogStats {
            syncs: self.syncs.load(Relaxed),
            sync_micros: self.sync_micros.load(Relaxed),
            sync_micros_max: self.sync_micros_max.load(Relaxed),
            requests: self.requests.load(Relaxed),
            entries: self.entries.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            rewritten_bytes: self.rewritten_bytes.load(Relaxed),
            rotations: self.rotations.load(Relaxed),
            rotation_stalls: self.rotation_stalls.load(Relaxed),
            queue_bytes,
            queue_requests,
            segments: self.segments.load(Relaxed),
            live_bytes: self.live_bytes.load(Relaxed),
            memory_tail_bytes: self.memory_tail_bytes.load(Relaxed),
        }
    }
}
