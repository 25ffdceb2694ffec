//! The state of all shards of one node, in one RocksDB.
//!
//! The Raft log is the write-ahead log of the state: batches are written without one, and
//! what a crash takes away is replayed from the log. Each batch writes, atomically, the changes
//! of a shard together with its *applied record* (what the raft layer says it has applied, and
//! the shard's clock), so what is found after a crash is always a prefix of what was applied:
//! per shard, state and applied record belong together, however old they are.
//!
//! ```text
//! Store ──shard()──▶ ShardStore ──begin()──▶ ShardBatch (core `View`) ──commit()──▶ held ──▶ engine
//!   │                   │  └─ reader() ──▶ ShardReader (core `ReadView`, any thread)
//!   │                   └─ snapshot() ──▶ ShardSnapshot ──write_files()──▶ files
//!   ├─ flush(): everything committed becomes durable, returns what that is
//!   └─ meta_get / meta_put: the node's own few records, durable when the call returns
//! ```
//!
//! Invariants
//! - flushed ≤ engine ≤ committed, for every shard, and each is a whole number of batches.
//! - A shard has one writer ([`ShardStore`], exclusive for its slots); readers see only
//!   committed batches.
//! - The record cache of a shard equals the engine's content for the keys that it holds and
//!   that no commit held back has changed.
//! - A split is one write: after a crash both shards are there, or the one that there was.
//! - A merge is one write too: the left shard has all, or the right one is there, frozen. What
//!   of the right one is open writes nothing after it.
//! - An installed snapshot replaces a shard's slot range and applied record in one atomic step
//!   of the engine: before or after a crash, never between.
//!
//! Keys: state keys begin with their slot (big-endian u16, below 4096). Applied records live in
//! the same column family under the prefix `FF FF`, which no slot reaches, because that is what
//! lets one ingestion replace both. RocksDB types never leave this crate.

mod batch;
mod cache;
mod engine;
mod error;
mod install;
mod options;
mod overlay;
mod record;
mod remembered;
mod scan;
mod shard;
mod snapshot;
mod store;

pub use batch::{Absorbed, ShardBatch, SplitOff};
pub use cache::CacheStats;
pub use error::StoreError;
pub use options::{Failpoint, FatalHook, StoreOptions};
pub use shard::{ShardReader, ShardStore};
pub use snapshot::{Checksum, ShardSnapshot, SnapshotFile, SnapshotProgress};
pub use store::{Store, StoreStats};
