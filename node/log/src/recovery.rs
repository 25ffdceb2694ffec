//! Rebuilding the state of all groups from the segment files.
//!
//! Batches are replayed from the oldest segment on. The first one that is not intact is where a
//! write was cut off by a crash, if nothing after it is: then the rest is dropped and zeroed, since
//! nobody was told that it is durable. If any later batch exists, the damaged place was durable
//! before that one was written, and the log is refused as corrupt.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;

use crate::format::{
    self, BatchHeader, DATA_START, Epoch, Location, Position, RECORD_HEADER_BYTES, Record,
    SECTOR_BYTES, SegmentNumber,
};
use crate::index::{LiveBytes, Written};
use crate::options::LogOptions;
use crate::segment::{self, SegmentFile};
use crate::{GroupId, LogError};

const LOCK_FILE: &str = "lock";

/// Everything that is durable.
pub(crate) struct Recovered {
    pub(crate) groups: HashMap<GroupId, Written>,
    pub(crate) files: RecoveredFiles,
}

/// The files, as the writer goes on with them.
pub(crate) struct RecoveredFiles {
    /// Keeps other processes out while it lives.
    pub(crate) lock: DirLock,
    /// Oldest first, with the end of each one's batches. Empty in a new log.
    pub(crate) segments: Vec<(Arc<SegmentFile>, u64)>,
    pub(crate) live: LiveBytes,
    pub(crate) next_sequence: u64,
}

/// Opens the log's directory and replays it.
pub(crate) fn recover(options: &LogOptions) -> Result<Recovered, LogError> {
    let dir = &options.dir;
    std::fs::create_dir_all(dir).map_err(LogError::io("create", dir))?;
    let lock = DirLock::acquire(dir)?;
    let files = open_segments(dir)?;
    let mut replay = Replay::default();
    let mut segments: Vec<(Arc<SegmentFile>, u64)> = Vec::new();
    for (at, file) in files.iter().enumerate() {
        let data = file.read_at(0, usize::try_from(file.bytes()?).unwrap_or(usize::MAX))?;
        let oldest = at == 0;
        let end = replay.segment(file, &data, oldest)?;
        if let Some(later) = later_batch(file.epoch(), &data, end + SECTOR_BYTES) {
            return Err(damaged(
                file,
                end,
                format!("the batch at {later} was written after this place was durable"),
            ));
        }
        if end == DATA_START && file.number() != SegmentNumber(1) {
            // Its first batch was cut off, so the log ends in the segment before it.
            if oldest {
                return Err(damaged(
                    file,
                    end,
                    "the checkpoint at the start of the oldest segment is missing".into(),
                ));
            }
            break;
        }
        let data_end = Position {
            segment: file.number(),
            offset: end,
        };
        if let Some(next) = files.get(at + 1) {
            check_continuation(next, data_end)?;
        }
        segments.push((Arc::clone(file), end));
    }
    for file in &files[segments.len()..] {
        remove_unused(
            file,
            file.number()
                == segments
                    .last()
                    .map_or(SegmentNumber(1), |(last, _)| last.number().next()),
        )?;
    }
    if let Some((file, end)) = segments.last() {
        replay.check_complete(file, *end)?;
        settle_tail(file, replay.last_batch, *end)?;
    }
    segment::sync_dir(dir)?;
    let next_sequence = replay.sequence + 1;
    let files = RecoveredFiles {
        lock,
        segments,
        live: replay.live,
        next_sequence,
    };
    Ok(Recovered {
        groups: replay.groups,
        files,
    })
}

fn damaged(file: &SegmentFile, offset: u64, detail: String) -> LogError {
    LogError::Corrupt {
        path: file.path().to_owned(),
        offset,
        detail,
    }
}

/// The right of this process to use the directory, until it is dropped.
pub(crate) struct DirLock {
    file: File,
}

impl DirLock {
    fn acquire(dir: &Path) -> Result<Self, LogError> {
        let path = dir.join(LOCK_FILE);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let file = file.map_err(LogError::io("create", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(DirLock { file }),
            Err(TryLockError::WouldBlock) => Err(LogError::Locked {
                dir: dir.to_owned(),
            }),
            Err(TryLockError::Error(error)) => Err(LogError::io("lock", &path)(error)),
        }
    }
}

impl Drop for DirLock {
    /// Closing the file is not enough: a child process that is just being started may still have
    /// it open.
    fn drop(&mut self) {
        if let Err(error) = self.file.unlock() {
            tracing::warn!(%error, "cannot unlock the log directory");
        }
    }
}

/// Opens all segments in order, and deletes files that were being prepared or waited for reuse.
fn open_segments(dir: &Path) -> Result<Vec<Arc<SegmentFile>>, LogError> {
    let mut paths = BTreeMap::new();
    for entry in std::fs::read_dir(dir).map_err(LogError::io("list", dir))? {
        let path = entry.map_err(LogError::io("list", dir))?.path();
        let number = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .and_then(|stem| u64::from_str_radix(stem, 16).ok());
        let suffix = path.extension().and_then(|suffix| suffix.to_str());
        match (number, suffix) {
            (Some(number), Some(segment::SEGMENT_SUFFIX)) => {
                _ = paths.insert(SegmentNumber(number), path)
            }
            (Some(_), Some(segment::PREPARING_SUFFIX | segment::SPARE_SUFFIX)) => {
                std::fs::remove_file(&path).map_err(LogError::io("delete", &path))?;
            }
            _ => {}
        }
    }
    let mut files: Vec<Arc<SegmentFile>> = Vec::with_capacity(paths.len());
    for (number, path) in paths {
        if let Some(missing) = files.last().map(|last| last.number().next())
            && missing != number
        {
            let path = segment::path(dir, missing, segment::SEGMENT_SUFFIX);
            return Err(LogError::Corrupt {
                path,
                offset: 0,
                detail: "the segment is missing".to_owned(),
            });
        }
        files.push(Arc::new(SegmentFile::open(path, number)?));
    }
    Ok(files)
}

/// The offset of the first batch header at or after `from`.
fn later_batch(epoch: Epoch, data: &[u8], from: u64) -> Option<u64> {
    let end = data.len() as u64;
    (from..end)
        .step_by(SECTOR_BYTES as usize)
        .find(|at| BatchHeader::decode(epoch, &data[*at as usize..]).is_some())
}

/// If `next` was begun, it must say that the log was durable exactly up to `end`.
fn check_continuation(next: &SegmentFile, end: Position) -> Result<(), LogError> {
    let start = next.read_at(DATA_START, format::BATCH_HEADER_BYTES)?;
    match BatchHeader::decode(next.epoch(), &start) {
        Some(header) if header.durable != end => {
            let path = next.path().with_file_name(format!(
                "{:016x}.{}",
                end.segment.0,
                segment::SEGMENT_SUFFIX
            ));
            let detail = format!(
                "it was durable up to byte {}, but is intact only up to here",
                header.durable.offset
            );
            Err(LogError::Corrupt {
                path,
                offset: end.offset,
                detail,
            })
        }
        _ => Ok(()),
    }
}

/// Deletes a segment after the end of the log. Only the first of them may have been begun.
fn remove_unused(file: &SegmentFile, may_be_begun: bool) -> Result<(), LogError> {
    let data = file.read_at(0, usize::try_from(file.bytes()?).unwrap_or(usize::MAX))?;
    let from = if may_be_begun {
        DATA_START + SECTOR_BYTES
    } else {
        DATA_START
    };
    match later_batch(file.epoch(), &data, from) {
        Some(offset) => Err(damaged(
            file,
            offset,
            "there is a batch after the end of the log".to_owned(),
        )),
        None => std::fs::remove_file(file.path()).map_err(LogError::io("delete", file.path())),
    }
}

/// Makes the end of the log durable and clean. The last batch may have been written and never
/// synced, or its sync may have failed and left it only in the page cache: it is written again, so
/// that this sync covers it.
fn settle_tail(file: &SegmentFile, last_batch: u64, end: u64) -> Result<(), LogError> {
    if last_batch < end {
        let data = file.read_at(
            last_batch,
            usize::try_from(end - last_batch).unwrap_or(usize::MAX),
        )?;
        file.write_at(&data, last_batch)?;
    }
    file.zero_from(end)
}

/// The state while batches are replayed.
#[derive(Default)]
struct Replay {
    groups: HashMap<GroupId, Written>,
    live: LiveBytes,
    /// Of the last batch.
    sequence: u64,
    /// Offset of the last batch in its segment.
    last_batch: u64,
}

impl Replay {
    /// Replays the intact batches of a segment and returns where they end.
    fn segment(&mut self, file: &SegmentFile, data: &[u8], oldest: bool) -> Result<u64, LogError> {
        let epoch = file.epoch();
        let mut offset = DATA_START;
        while let Some(batch) = data.get(offset as usize..) {
            let Some(header) = BatchHeader::decode(epoch, batch) else {
                break;
            };
            let Some(records) = format::decode_batch(epoch, &header, batch) else {
                break;
            };
            let first = offset == DATA_START;
            let unknown = oldest && first && file.number() != SegmentNumber(1);
            if !unknown && header.sequence != self.sequence + 1 {
                let detail = format!("batch {} follows batch {}", header.sequence, self.sequence);
                return Err(damaged(file, offset, detail));
            }
            for (at, len) in records {
                let payload = &batch[at + RECORD_HEADER_BYTES..at + RECORD_HEADER_BYTES + len];
                let at = offset + at as u64;
                let location = u32::try_from(at).ok().map(|offset| Location {
                    segment: file.number(),
                    offset,
                    len: len as u32,
                });
                let applied = location
                    .is_some_and(|location| self.record(payload, location, oldest && first));
                if !applied {
                    return Err(damaged(
                        file,
                        at,
                        "the record does not fit to those before it".to_owned(),
                    ));
                }
            }
            self.sequence = header.sequence;
            self.last_batch = offset;
            offset += header.batch_bytes();
        }
        Ok(offset)
    }

    /// Applies a record; false when it contradicts the state.
    fn record(&mut self, payload: &[u8], location: Location, oldest: bool) -> bool {
        let Some((id, record)) = Record::decode(payload) else {
            return false;
        };
        let live = &mut self.live;
        let group = self.groups.entry(id).or_default();
        match record {
            Record::Entry {
                index,
                moved: false,
            } => return group.append(index, location, live),
            Record::Entry { index, moved: true } => return group.relocate(index, location, live),
            Record::Vote(vote) => group.vote = Some(vote),
            Record::Committed(committed) => group.committed = Some(committed),
            Record::TruncateAfter(after) => group.truncate_after(after, live),
            Record::Purge { upto, log_id } => group.purge(upto, log_id, live),
            Record::Remove => {
                group.clear(live);
                self.groups.remove(&id);
            }
            Record::Checkpoint(checkpoint) if oldest => {
                match Written::from_checkpoint(checkpoint) {
                    Some(written) => *group = written,
                    None => return false,
                }
            }
            Record::Checkpoint(checkpoint) => return group.checkpoint() == checkpoint,
        }
        true
    }

    /// Every live entry must have been found.
    fn check_complete(&self, file: &SegmentFile, end: u64) -> Result<(), LogError> {
        for (id, group) in &self.groups {
            if let Some(index) = group.first_missing() {
                return Err(damaged(
                    file,
                    end,
                    format!("entry {index} of group {id} is in no segment"),
                ));
            }
        }
        Ok(())
    }
}
