//! What can go wrong in the log, and what the operator can do about it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::GroupId;

/// Errors of the log. Anything but the caller's own mistakes (`NotContiguous`, `TooLarge`,
/// `GroupRemoved`, `InvalidOptions`) means that this node must stop using the log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// An operation on a file failed.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was attempted, as a verb phrase.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// Durable data does not read back as it was written. The log is not opened, since going on
    /// could lose acknowledged entries or a vote.
    #[error(
        "{path} is corrupt at byte {offset}: {detail}; check the disk, keep the file for analysis, \
         and replace this replica by a new one with an empty data directory",
        path = path.display()
    )]
    Corrupt {
        /// The segment file.
        path: PathBuf,
        /// The first byte that is wrong, from the start of the file.
        offset: u64,
        /// What was expected there.
        detail: String,
    },
    /// A segment was written by another version of the format.
    #[error(
        "{path} has log format {found}, this build reads {supported}; run the version that wrote it",
        path = path.display()
    )]
    UnsupportedVersion {
        /// The segment file.
        path: PathBuf,
        /// The version in the file.
        found: u32,
        /// The version this build reads and writes.
        supported: u32,
    },
    /// Another process has the directory open.
    #[error("log directory {dir} is in use by another process; stop that one first", dir = dir.display())]
    Locked {
        /// The log's directory.
        dir: PathBuf,
    },
    /// An option is outside its range.
    #[error("log option {name} is {value}, allowed is {allowed}")]
    InvalidOptions {
        /// The name of the field in `LogOptions`.
        name: &'static str,
        /// Its value.
        value: u64,
        /// The allowed range, in words.
        allowed: &'static str,
    },
    /// The entries do not continue the group's log.
    #[error("append to group {group} starts or continues at index {found}, expected {expected}")]
    NotContiguous {
        /// The group.
        group: GroupId,
        /// The index that would have continued the log.
        expected: u64,
        /// The index of the offending entry.
        found: u64,
    },
    /// One call carries more than a write may hold.
    #[error(
        "a call to group {group} carries {bytes} bytes, at most {bytes_max} are allowed; send less at once"
    )]
    TooLarge {
        /// The group.
        group: GroupId,
        /// The size of the call's data.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// An intact entry could not be decoded by its own type.
    #[error("cannot decode entry {index} of group {group}: {source}")]
    Decode {
        /// The group.
        group: GroupId,
        /// The entry's index.
        index: u64,
        /// The decoder's error.
        source: EntryDecodeError,
    },
    /// The group was removed; its handles are of no use any more.
    #[error("group {group} was removed from the log")]
    GroupRemoved {
        /// The group.
        group: GroupId,
    },
    /// The engine was shut down.
    #[error("the log is shut down")]
    Closed,
    /// A write failed earlier; what of it is on disk is unknown, so the process must restart and
    /// recover from what is durable.
    #[error("the log failed earlier and accepts nothing more until the process restarts: {reason}")]
    Poisoned {
        /// The first failure.
        reason: Arc<str>,
    },
}

impl LogError {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> LogError {
        let path = path.into();
        move |source| LogError::Io {
            action,
            path,
            source,
        }
    }

    pub(crate) fn is_storage_full(&self) -> bool {
        matches!(self, LogError::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// Why an entry's bytes are not an entry.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{detail}")]
pub struct EntryDecodeError {
    detail: String,
}

impl EntryDecodeError {
    /// An error with a description of what is wrong.
    pub fn new(detail: impl Into<String>) -> Self {
        EntryDecodeError {
            detail: detail.into(),
        }
    }
}
