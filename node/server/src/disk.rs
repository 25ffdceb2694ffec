//! The disk of a node: how much it has, and whether it takes more.
//!
//! A disk without room ends a node: its log and its state cannot be written any more. So there is a
//! reserve that no command gets. Below it the node leads nothing that another one can lead and takes
//! no commands for the rest; below half of it, it takes no entries with commands from other leaders
//! either. What has been taken before, flushes, the meta group and elections use the reserve, and
//! reads go on. All of it ends by itself when there is room again.
//!
//! Owner of the state: [`Room`], written by the one task that looks at the disk. Invariant: a level
//! is left only with a quarter more than what began it, so that it does not go to and fro.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::statvfs;
use tokio::sync::watch;

/// The limit that a client is told of whose command is refused.
pub const RESERVE_LIMIT: &str = "disk_reserve_bytes";
/// How often the disk is looked at: what a fast one takes in this fits into a part of the reserve.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// A reserve that nobody has configured is this part of the disk,
const RESERVE_PARTS: u64 = 50;
/// at most this,
const RESERVE_BYTES_MAX: u64 = 4 << 30;
/// at least a file of the log and the memtables of this many flushes,
const RESERVE_FLUSHES: u64 = 4;
/// but of a small disk no more than this part.
const RESERVE_PARTS_MIN: u64 = 8;
/// A level is left with so many parts more than what began it.
const MARGIN_PARTS: u64 = 4;

/// The file system of a directory.
#[derive(Debug, Clone, Copy)]
pub struct Disk {
    /// Its size.
    pub bytes: u64,
    /// What this process may still write to it.
    pub free_bytes: u64,
}

impl Disk {
    /// Asks the operating system.
    ///
    /// # Errors
    /// What it says.
    pub fn of(directory: &Path) -> io::Result<Self> {
        let told = statvfs(directory)?;
        Ok(Disk {
            bytes: told.f_blocks.saturating_mul(told.f_frsize),
            free_bytes: told.f_bavail.saturating_mul(told.f_frsize),
        })
    }
}

/// What a disk takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Everything.
    Roomy,
    /// No commands of clients.
    Short,
    /// No entries with commands from other leaders either.
    Out,
}

impl Level {
    /// The next level of a disk.
    fn next(self, free_bytes: u64, reserve_bytes: u64) -> Self {
        let begins = |level| match level {
            Self::Roomy => u64::MAX,
            Self::Short => reserve_bytes,
            Self::Out => reserve_bytes / 2,
        };
        let is_at = |level: Self| {
            let begins = begins(level);
            let margin = if self >= level {
                begins / MARGIN_PARTS
            } else {
                0
            };
            free_bytes < begins + margin
        };
        let levels = [Self::Out, Self::Short];
        let mut levels = levels.into_iter().filter(|level| is_at(*level));
        levels.next().unwrap_or(Self::Roomy)
    }
}

/// How the reserve of a node comes about.
#[derive(Debug, Clone, Copy)]
pub struct Reserve {
    /// As configured; 0: by the size of the disk.
    pub configured_bytes: u64,
    /// A file of the log.
    pub segment_bytes: u64,
    /// What is gathered in memory before it is flushed.
    pub memtable_bytes: u64,
}

impl Reserve {
    /// The reserve on a disk of this size.
    fn bytes(&self, disk_bytes: u64) -> u64 {
        if self.configured_bytes > 0 {
            return self.configured_bytes;
        }
        let least = self.segment_bytes + RESERVE_FLUSHES * self.memtable_bytes;
        let part = (disk_bytes / RESERVE_PARTS).min(RESERVE_BYTES_MAX);
        part.max(least).min(disk_bytes / RESERVE_PARTS_MIN)
    }
}

/// Whether the disk of this node takes more.
pub struct Room {
    directory: PathBuf,
    reserve: Reserve,
    level: watch::Sender<Level>,
    /// The level, for the path of a message.
    known_level: AtomicU64,
    disk_bytes: AtomicU64,
    free_bytes: AtomicU64,
    reserve_bytes: AtomicU64,
}

impl Room {
    /// Of the disk that has this directory, as it is now.
    ///
    /// # Errors
    /// The operating system cannot say how full it is.
    pub fn new(directory: &Path, reserve: Reserve) -> io::Result<Arc<Self>> {
        let room = Self {
            directory: directory.to_owned(),
            reserve,
            level: watch::Sender::new(Level::Roomy),
            known_level: AtomicU64::default(),
            disk_bytes: AtomicU64::default(),
            free_bytes: AtomicU64::default(),
            reserve_bytes: AtomicU64::default(),
        };
        room.note(Disk::of(directory)?);
        Ok(Arc::new(room))
    }

    /// What no command gets, bytes.
    pub fn reserve_bytes(&self) -> u64 {
        self.reserve_bytes.load(Ordering::Relaxed)
    }

    /// The disk at the last look.
    pub fn disk(&self) -> Disk {
        Disk {
            bytes: self.disk_bytes.load(Ordering::Relaxed),
            free_bytes: self.free_bytes.load(Ordering::Relaxed),
        }
    }

    /// Commands of clients are taken.
    pub fn takes_commands(&self) -> bool {
        self.known_level.load(Ordering::Relaxed) == Level::Roomy as u64
    }

    /// Entries with commands are taken from other leaders.
    pub fn takes_entries(&self) -> bool {
        self.known_level.load(Ordering::Relaxed) != Level::Out as u64
    }

    /// The level, as it changes.
    pub fn watch(&self) -> watch::Receiver<Level> {
        self.level.subscribe()
    }

    /// Looks at the disk until the node ends.
    pub async fn follow(self: Arc<Self>) {
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            // A disk that hangs holds a thread that nobody else waits for.
            let directory = self.directory.clone();
            let disk = tokio::task::spawn_blocking(move || Disk::of(&directory)).await;
            match disk {
                Ok(Ok(disk)) => self.note(disk),
                Ok(Err(error)) => tracing::warn!(%error, "cannot tell how full the disk is"),
                Err(_) => return,
            }
        }
    }

    fn note(&self, disk: Disk) {
        let reserve_bytes = self.reserve.bytes(disk.bytes);
        self.reserve_bytes.store(reserve_bytes, Ordering::Relaxed);
        self.disk_bytes.store(disk.bytes, Ordering::Relaxed);
        self.free_bytes.store(disk.free_bytes, Ordering::Relaxed);
        let before = *self.level.borrow();
        let now = before.next(disk.free_bytes, reserve_bytes);
        if now == before {
            return;
        }
        let free_bytes = disk.free_bytes;
        match now {
            Level::Roomy => tracing::info!(free_bytes, "the disk has room again"),
            Level::Short => tracing::warn!(
                free_bytes,
                reserve_bytes,
                "the disk is nearly full: this node takes no commands and leads nothing that \
                 another node can lead, until there is room"
            ),
            Level::Out => tracing::error!(
                free_bytes,
                reserve_bytes,
                "the disk is all but full: this node does not follow leaders either, until there \
                 is room"
            ),
        }
        self.known_level.store(now as u64, Ordering::Relaxed);
        self.level.send_replace(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn a_level_begins_with_its_bytes_and_is_left_with_a_margin() {
        use Level::{Out, Roomy, Short};
        // (before, free, after), the reserve being 1,000
        for (before, free_bytes, after) in [
            (Roomy, 1_000, Roomy),
            (Roomy, 999, Short),
            (Roomy, 0, Out),
            (Short, 1_249, Short),
            (Short, 1_250, Roomy),
            (Short, 500, Short),
            (Short, 499, Out),
            (Out, 624, Out),
            (Out, 625, Short),
            (Out, 1_250, Roomy),
            // As when the reserve begins at the size of the disk.
            (Out, u64::MAX, Roomy),
        ] {
            assert_eq!(
                before.next(free_bytes, 1_000),
                after,
                "{before:?} {free_bytes}"
            );
        }
    }

    #[test]
    fn without_a_reserve_all_is_taken() {
        assert_eq!(Level::Roomy.next(0, 0), Level::Roomy);
    }

    #[test]
    fn the_reserve_is_by_the_disk_unless_it_is_configured() {
        let mut reserve = Reserve {
            configured_bytes: 0,
            segment_bytes: 64 * MIB,
            memtable_bytes: 32 * MIB,
        };
        for (disk_bytes, expected) in [
            (256 * MIB, 32 * MIB),
            (GIB, 128 * MIB),
            (4 * GIB, 192 * MIB),
            (100 * GIB, 2 * GIB),
            (1_000 * GIB, 4 * GIB),
        ] {
            assert_eq!(reserve.bytes(disk_bytes), expected, "{disk_bytes}");
        }
        reserve.configured_bytes = 7;
        assert_eq!(reserve.bytes(GIB), 7);
    }
}
