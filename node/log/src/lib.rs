//! One Raft log for all groups (shards) of a node.
//!
//! A single writer thread drains the requests of every group, writes them as one batch and makes
//! them durable with one `fdatasync`, then runs the completions in order. Entries are readable
//! from memory as soon as [`GroupLog::append`] returns; the newest ones stay in a tail bounded in
//! bytes over all groups, older ones are read back from the segment files.
//!
//! Code map: `queue` (requests, back-pressure) → `writer` (batches, durability, completions) →
//! `segment` and `allocator` (files) with the layout of `format`; `rewrite` moves the live entries
//! of the oldest segment forward; `recovery` rebuilds everything from the files; `group` is what a
//! Raft group sees, `index` what of it is on disk.
//!
//! Invariants: per group `purged < first ≤ tail_first ≤ next`; nothing is evicted from memory
//! before it is durable; a write begins only after the one before it is durable; a segment is
//! deleted only when nothing live is in it and the checkpoint of the next one is durable.

mod allocator;
mod engine;
mod error;
pub mod failpoint;
mod format;
mod group;
mod index;
mod options;
mod queue;
mod read;
mod recovery;
mod rewrite;
mod segment;
mod stats;
mod writer;

use bytes::{Bytes, BytesMut};

pub use engine::LogEngine;
pub use error::{EntryDecodeError, LogError};
pub use group::GroupLog;
pub use options::{FatalHook, LogOptions};
pub use stats::LogStats;

/// The id of a Raft group, unique on its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

impl std::fmt::Display for GroupId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What the log stores: an entry that knows its index and its encoding.
///
/// Clones must be cheap (the in-memory tail and the write queue each hold one).
pub trait LogEntry: Clone + Send + Sync + 'static {
    /// The entry's index in its group. Indexes of one group are contiguous.
    fn index(&self) -> u64;

    /// Appends the encoding of the entry to `buffer`, and changes nothing before it.
    fn encode(&self, buffer: &mut BytesMut);

    /// Decodes what [`LogEntry::encode`] wrote; `buffer` holds exactly one entry.
    fn decode(buffer: &mut Bytes) -> Result<Self, EntryDecodeError>;

    /// The memory that the entry holds, in bytes. Must not change during the entry's life, and
    /// should be near the encoded length: queues, batches and the tail are bounded by it.
    fn weight_bytes(&self) -> usize;
}
