//! The thread that prepares the next segment file and disposes of freed ones, so that neither
//! delays a write.
//!
//! Owner of the spare files. Invariants: segments are disposed of in the order of their numbers,
//! each durably before the next, so that the files in use are always contiguous; the rename of a
//! recycled file is durable before its header is overwritten.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::format::SegmentNumber;
use crate::options::LogOptions;
use crate::queue::Poison;
use crate::segment::{self, SegmentFile};
use crate::{LogError, failpoint};

/// Commands that may wait; the writer blocks above it.
const COMMANDS_MAX: usize = 64;
/// Pause after each MiB of a new file while nobody waits for it: filling it at once takes a
/// processor and the disk from the writes of all nodes that need their next file at that time.
const FILL_PAUSE: Duration = Duration::from_millis(40);

type Prepared = Result<SegmentFile, LogError>;

enum Command {
    Prepare(SegmentNumber, SyncSender<Prepared>),
    Dispose(Arc<SegmentFile>),
}

/// Whether the file that is being made is wanted soon.
#[derive(Default)]
struct Haste {
    wanted: Mutex<bool>,
    changed: Condvar,
}

impl Haste {
    fn set(&self, wanted: bool) {
        *self.wanted.lock() = wanted;
        self.changed.notify_all();
    }

    /// Waits for a while, unless there is haste.
    fn pause(&self) {
        let mut wanted = self.wanted.lock();
        if !*wanted {
            self.changed.wait_for(&mut wanted, FILL_PAUSE);
        }
    }
}

/// The writer's side of the allocator.
pub(crate) struct Allocator {
    haste: Arc<Haste>,
    commands: Option<SyncSender<Command>>,
    thread: Option<JoinHandle<()>>,
    next: Option<(SegmentNumber, Receiver<Prepared>)>,
    dir: PathBuf,
}

/// A segment file, and whether the writer had to wait for it.
pub(crate) struct Allocated {
    pub(crate) file: SegmentFile,
    pub(crate) stalled: bool,
}

impl Allocator {
    pub(crate) fn start(options: &LogOptions, poison: Arc<Poison>) -> Result<Self, LogError> {
        let (commands, receiver) = sync_channel(COMMANDS_MAX);
        let haste = Arc::new(Haste::default());
        let files = Files {
            haste: Arc::clone(&haste),
            dir: options.dir.clone(),
            segment_bytes: options.segment_bytes,
            spares_max: options.recycled_segments_max,
            spares: Vec::new(),
        };
        let thread = std::thread::Builder::new()
            .name("carillon-log-files".to_owned())
            .spawn(move || files.run(&receiver, &poison))
            .map_err(LogError::io("start the file thread for", &options.dir))?;
        Ok(Allocator {
            haste,
            commands: Some(commands),
            thread: Some(thread),
            next: None,
            dir: options.dir.clone(),
        })
    }

    fn send(&self, command: Command) -> Result<(), LogError> {
        let commands = self.commands.as_ref().ok_or(LogError::Closed)?;
        let sent = match commands.try_send(command) {
            Err(TrySendError::Full(command)) => commands.send(command).is_ok(),
            sent => sent.is_ok(),
        };
        if sent { Ok(()) } else { Err(self.gone()) }
    }

    fn gone(&self) -> LogError {
        let source = std::io::Error::other("its thread ended");
        LogError::Io {
            action: "allocate segments in",
            path: self.dir.clone(),
            source,
        }
    }

    /// Begins to prepare segment `number`.
    pub(crate) fn prepare(&mut self, number: SegmentNumber) -> Result<(), LogError> {
        let (sender, receiver) = sync_channel(1);
        self.haste.set(false);
        self.send(Command::Prepare(number, sender))?;
        self.next = Some((number, receiver));
        Ok(())
    }

    /// The file that is being prepared will be wanted soon.
    pub(crate) fn hurry(&self) {
        self.haste.set(true);
    }

    /// The file of segment `number`. A disk that was full when it was prepared early gets a second
    /// chance, now that it is needed.
    pub(crate) fn allocate(&mut self, number: SegmentNumber) -> Result<Allocated, LogError> {
        if self.next.as_ref().is_none_or(|(next, _)| *next != number) {
            self.prepare(number)?;
        }
        let (_, prepared) = self.next.take().ok_or_else(|| self.gone())?;
        if let Ok(Ok(file)) = prepared.try_recv() {
            return Ok(Allocated {
                file,
                stalled: false,
            });
        }
        self.hurry();
        let file = match prepared.recv().map_err(|_| self.gone())? {
            Err(error) if error.is_storage_full() => {
                self.prepare(number)?;
                self.hurry();
                let (_, prepared) = self.next.take().ok_or_else(|| self.gone())?;
                prepared.recv().map_err(|_| self.gone())?
            }
            prepared => prepared,
        };
        Ok(Allocated {
            file: file?,
            stalled: true,
        })
    }

    /// Recycles or deletes a segment that is no longer in use.
    pub(crate) fn dispose(&self, file: Arc<SegmentFile>) -> Result<(), LogError> {
        self.send(Command::Dispose(file))
    }

    /// Ends the thread after what was asked of it.
    pub(crate) fn stop(&mut self) {
        self.commands = None;
        self.next = None;
        self.hurry();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the raft log's file thread panicked");
        }
    }
}

impl Drop for Allocator {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The thread's side.
struct Files {
    haste: Arc<Haste>,
    dir: PathBuf,
    segment_bytes: u64,
    spares_max: usize,
    spares: Vec<(File, PathBuf)>,
}

impl Files {
    fn run(mut self, commands: &Receiver<Command>, poison: &Poison) {
        while let Ok(command) = commands.recv() {
            let done = match command {
                Command::Prepare(number, reply) => {
                    let prepared = self.prepare(number);
                    if let Err(error) = &prepared {
                        tracing::warn!(%error, number = number.0, "cannot prepare the next log segment");
                    }
                    // The writer is gone only when the log is being closed.
                    _ = reply.send(prepared);
                    Ok(())
                }
                Command::Dispose(file) => self.dispose(file),
            };
            if let Err(error) = done {
                poison.set(&error);
                return;
            }
        }
    }

    fn prepare(&mut self, number: SegmentNumber) -> Prepared {
        let created = SegmentFile::create(
            &self.dir,
            number,
            self.segment_bytes,
            self.spares.pop(),
            || self.haste.pause(),
        );
        if created.is_err() {
            // Gives the space of a half-made file back; the error that matters is the first one.
            _ = std::fs::remove_file(segment::path(&self.dir, number, segment::PREPARING_SUFFIX));
        }
        created
    }

    fn dispose(&mut self, file: Arc<SegmentFile>) -> Result<(), LogError> {
        let path = file.path().to_owned();
        failpoint::hit_io("log.delete_segment").map_err(LogError::io("dispose of", &path))?;
        let number = file.number();
        match Arc::try_unwrap(file) {
            Ok(file) if self.spares.len() < self.spares_max => {
                let (file, _) = file.into_parts();
                let spare = segment::path(&self.dir, number, segment::SPARE_SUFFIX);
                std::fs::rename(&path, &spare).map_err(LogError::io("rename", &path))?;
                file.set_len(self.segment_bytes)
                    .map_err(LogError::io("resize", &spare))?;
                self.spares.push((file, spare));
            }
            // A reader still holds it, or there are enough spares.
            _ => std::fs::remove_file(&path).map_err(LogError::io("delete", &path))?,
        }
        segment::sync_dir(&self.dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_file_that_is_wanted_is_filled_without_pauses() {
        const PAUSES: u32 = 100;
        let haste = Haste::default();
        haste.set(true);
        let begun = Instant::now();
        (0..PAUSES).for_each(|_| haste.pause());
        assert!(begun.elapsed() < FILL_PAUSE * PAUSES / 2);
    }

    #[test]
    fn haste_ends_the_pauses_of_a_file_that_is_being_filled() {
        const PAUSES: u32 = 250;
        let haste = Arc::new(Haste::default());
        let begun = Instant::now();
        let filling = {
            let haste = Arc::clone(&haste);
            std::thread::spawn(move || (0..PAUSES).for_each(|_| haste.pause()))
        };
        haste.set(true);
        assert!(filling.join().is_ok());
        assert!(begun.elapsed() < FILL_PAUSE * PAUSES / 2);
    }
}
