//! What can go wrong in the state store.
//!
//! Two families: errors after which the process must not go on ([`StoreError::Poisoned`],
//! [`StoreError::Corrupt`]: the engine has refused a write or returned bytes that do not
//! decode; [`StoreError::NotFrozen`]: going on would leave a gap), and errors that leave the store as it was (everything else).

use std::path::{Path, PathBuf};

use carillon_core::ids::{ShardId, SlotRange};
use carillon_core::merging::MergeId;

/// An error of the state store.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The database did not open.
    #[error(
        "state store {} did not open: {reason}; check that the disk is healthy, has space and \
         is used by no other process",
        path.display()
    )]
    Open {
        /// Directory of the database.
        path: PathBuf,
        /// What the engine said.
        reason: String,
    },
    /// The engine failed a read or a write. Nothing later may be trusted to this process:
    /// it must stop and recover from what is durable.
    #[error(
        "state store failed at {operation}: {reason}; the process must stop and recover from \
         what is durable"
    )]
    Poisoned {
        /// What was being done.
        operation: &'static str,
        /// What the engine said.
        reason: String,
    },
    /// A record of the store's own does not decode.
    #[error("{what} is corrupt: {reason}; restore this node from its peers")]
    Corrupt {
        /// Which record.
        what: String,
        /// Why it does not decode.
        reason: String,
    },
    /// The shard, or a shard that shares slots with it, is open already.
    #[error("shard {wanted} shares slots with shard {open}, which is open: close that one first")]
    InUse {
        /// The shard that was to be opened.
        wanted: ShardId,
        /// The shard that is open.
        open: ShardId,
    },
    /// Another shard has some of the slots, open or not.
    #[error("shard {wanted} shares slots with shard {by}, which has them on this disk")]
    Taken {
        /// The shard that was to be opened.
        wanted: ShardId,
        /// The shard that has them.
        by: ShardId,
    },
    /// The shard that was to be taken over is not here as the merge has frozen it.
    #[error(
        "shard {shard} is not frozen for merge {merge_id} in this store, and cannot be taken \
         over; restore this node from its peers"
    )]
    NotFrozen {
        /// The shard.
        shard: ShardId,
        /// The merge.
        merge_id: MergeId,
    },
    /// The shard is its neighbour's. Nothing was changed.
    #[error("shard {0} was taken over by its neighbour")]
    Absorbed(ShardId),
    /// A snapshot file is not what its description says. Nothing was changed.
    #[error("snapshot file {} is refused: {reason}; fetch it again", path.display())]
    SnapshotFile {
        /// The file.
        path: PathBuf,
        /// What does not match.
        reason: String,
    },
    /// A snapshot is of slots that the shard does not have. Nothing was changed.
    #[error("shard {shard} has slots {has} and cannot take a snapshot of slots {came}")]
    SnapshotSlots {
        /// The shard.
        shard: ShardId,
        /// What it has.
        has: SlotRange,
        /// What the snapshot has.
        came: SlotRange,
    },
    /// A file outside the database could not be read or written. Nothing was changed.
    #[error("cannot {operation} {}: {reason}", path.display())]
    File {
        /// What was being done, such as `create`.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The progress callback asked to stop. The files written so far are removed.
    #[error("writing the snapshot of shard {0} was cancelled")]
    Cancelled(ShardId),
}

impl StoreError {
    /// Whether the process must stop: what is in memory can no longer be trusted to be what
    /// will be found on disk.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::Poisoned { .. } | Self::Corrupt { .. } | Self::NotFrozen { .. }
        )
    }

    pub(crate) fn file(operation: &'static str, path: &Path, reason: impl ToString) -> Self {
        Self::File {
            operation,
            path: path.to_path_buf(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn snapshot_file(path: &Path, reason: impl ToString) -> Self {
        Self::SnapshotFile {
            path: path.to_path_buf(),
            reason: reason.to_string(),
        }
    }
}
