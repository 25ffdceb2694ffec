//! A shard as it was at one moment: its checksum, and the files that carry it to another node.
//!
//! A snapshot pins one sequence number of the engine; since every batch is one atomic write,
//! its state and its applied record belong together. The files hold the state keys in order,
//! each file a sorted table of a part of the slot range, nothing else: the applied record and
//! the clock travel beside them.

use std::fs::{self, File};
use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use carillon_core::ids::{ShardId, SlotRange};
use carillon_core::merging::MergeMark;
use carillon_core::records::{Record, ShardClock};
use rocksdb::{DB, SnapshotWithThreadMode, SstFileWriter};
use xxhash_rust::xxh3::Xxh3;

use crate::engine::Engine;
use crate::error::StoreError;
use crate::options::StoreOptions;
use crate::record::AppliedRecord;
use crate::shard::ShardReader;

/// Buffer for reading a file back to checksum it.
const READ_BYTES: usize = 256 * 1024;

type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<(), StoreError> + 'a;

/// A snapshot of the engine that owns what it needs to live.
pub(crate) struct PinnedSnapshot {
    // Declared, and so dropped, before the engine that it borrows from.
    snapshot: SnapshotWithThreadMode<'static, DB>,
    _engine: Arc<Engine>,
}

impl PinnedSnapshot {
    pub(crate) fn new(engine: &Arc<Engine>) -> Self {
        let engine = Arc::clone(engine);
        let db: *const DB = engine.db();
        #[expect(
            unsafe_code,
            reason = "the snapshot borrows from the engine beside it, which no safe type can say"
        )]
        // SAFETY: the database lies inside the `Arc`, so it does not move, and this struct
        // keeps the `Arc` until after the snapshot is dropped (fields drop in order). The
        // 'static reference never leaves the struct: `get` shortens it.
        let db: &'static DB = unsafe { &*db };
        Self {
            snapshot: db.snapshot(),
            _engine: engine,
        }
    }

    pub(crate) fn get(&self) -> &SnapshotWithThreadMode<'_, DB> {
        &self.snapshot
    }
}

/// Proof that two replicas hold the same state: over every state key and value in key order
/// and the shard's clock, but not the log position, which differs between replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checksum {
    /// xxh3 (128 bits) of the keys, the values, their lengths and the clock.
    pub xxh3_128: u128,
    /// Number of keys.
    pub keys: u64,
    /// Bytes of all keys and values.
    pub bytes: u64,
}

/// One file of a shard's snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Where the file is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// CRC-32 (IEEE) of its content.
    pub crc32: u32,
    /// Its first key, inclusive.
    pub first_key: Bytes,
    /// Its last key, inclusive.
    pub last_key: Bytes,
}

/// How far [`ShardSnapshot::write_files`] has come; given after each file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SnapshotProgress {
    /// Files written.
    pub files: usize,
    /// Keys written.
    pub keys: u64,
    /// Bytes of all keys and values written, uncompressed.
    pub bytes: u64,
}

/// See the module's description. While it lives, the engine keeps old versions of keys.
#[derive(Clone)]
pub struct ShardSnapshot {
    reader: ShardReader,
    record: Option<AppliedRecord>,
    slots: SlotRange,
}

impl ShardSnapshot {
    pub(crate) fn new(reader: ShardReader, record: Option<AppliedRecord>) -> Self {
        let slots = record.as_ref().and_then(|record| record.slots);
        Self {
            slots: slots.unwrap_or_else(|| reader.shared.slots()),
            reader,
            record,
        }
    }

    /// The shard's id.
    #[must_use]
    pub fn id(&self) -> ShardId {
        self.reader.shared.id
    }

    /// The slots that the snapshot covers.
    #[must_use]
    pub fn slots(&self) -> SlotRange {
        self.slots
    }

    /// The `applied` bytes of the last commit in the snapshot; none if there was none.
    #[must_use]
    pub fn applied(&self) -> Option<&Bytes> {
        self.record.as_ref().map(|record| &record.applied)
    }

    /// The shard's clock in the snapshot.
    #[must_use]
    pub fn clock(&self) -> ShardClock {
        self.record
            .as_ref()
            .map(|record| record.clock)
            .unwrap_or_default()
    }

    /// What merges have done to the shard in the snapshot.
    #[must_use]
    pub fn merges(&self) -> MergeMark {
        self.record
            .as_ref()
            .map(|record| record.merges)
            .unwrap_or_default()
    }

    /// A reader of the snapshot's state.
    #[must_use]
    pub fn reader(&self) -> &ShardReader {
        &self.reader
    }

    /// Reads the whole shard and sums it up.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`]: the process must stop.
    pub fn checksum(&self) -> Result<Checksum, StoreError> {
        let mut hash = Xxh3::new();
        let mut keys = 0;
        let mut bytes = 0;
        self.each(&mut |key, value| {
            hash.update(&(key.len() as u64).to_le_bytes());
            hash.update(key);
            hash.update(&(value.len() as u64).to_le_bytes());
            hash.update(value);
            keys += 1;
            bytes += (key.len() + value.len()) as u64;
            Ok(())
        })?;
        let mut clock = bytes::BytesMut::new();
        self.clock().encode(&mut clock);
        hash.update(&clock);
        Ok(Checksum {
            xxh3_128: hash.digest128(),
            keys,
            bytes,
        })
    }

    /// Writes the state as files of about `file_bytes_max` bytes into `dir`, which is created
    /// when absent. After each file `progress` is called; when it says `Break` the work stops.
    /// On any error the files written so far are removed. A shard without keys has no files.
    ///
    /// # Errors
    /// [`StoreError::Cancelled`], [`StoreError::File`]: nothing is left behind.
    /// [`StoreError::Poisoned`]: the process must stop.
    pub fn write_files(
        &self,
        dir: &Path,
        file_bytes_max: u64,
        progress: &mut dyn FnMut(SnapshotProgress) -> ControlFlow<()>,
    ) -> Result<Vec<SnapshotFile>, StoreError> {
        fs::create_dir_all(dir).map_err(|error| StoreError::file("create", dir, error))?;
        let mut files = FileSet {
            dir,
            written: Vec::new(),
            kept: false,
        };
        self.fill(&mut files, file_bytes_max, progress)?;
        files.kept = true;
        Ok(std::mem::take(&mut files.written))
    }

    fn fill(
        &self,
        files: &mut FileSet<'_>,
        file_bytes_max: u64,
        progress: &mut dyn FnMut(SnapshotProgress) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let mut done = SnapshotProgress::default();
        let options = StoreOptions::snapshot_file();
        let mut open: Option<OpenFile<'_>> = None;
        let mut close = |file: OpenFile<'_>, done: &mut SnapshotProgress| {
            files.written.push(file.finish()?);
            self.reader.shared.engine.hit("store.snapshot.file");
            done.files += 1;
            match progress(*done) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(StoreError::Cancelled(self.id())),
            }
        };
        let dir = files.dir;
        self.each(&mut |key, value| {
            if let Some(full) = open.take_if(|file| file.writer.file_size() >= file_bytes_max) {
                close(full, &mut done)?;
            }
            let file = match &mut open {
                Some(file) => file,
                None => {
                    let path = dir.join(format!("{:06}.sst", done.files));
                    open.insert(OpenFile::create(path, &options, key)?)
                }
            };
            file.put(key, value)?;
            done.keys += 1;
            done.bytes += (key.len() + value.len()) as u64;
            Ok(())
        })?;
        if let Some(last) = open.take() {
            close(last, &mut done)?;
        }
        Ok(())
    }

    /// Visits every state key in order, without filling the block cache with them.
    fn each(&self, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let engine = &self.reader.shared.engine;
        let slots = self.slots;
        let mut iterator = engine.iterate(
            &slots.key_start(),
            &slots.key_end(),
            self.reader.snapshot.as_deref(),
            false,
        );
        iterator.seek_to_first();
        while let Some((key, value)) = iterator.item() {
            visit(key, value)?;
            iterator.next();
        }
        iterator
            .status()
            .map_err(|error| engine.poison("a scan of a snapshot", error))
    }
}

/// The files written so far; removed unless kept.
struct FileSet<'a> {
    dir: &'a Path,
    written: Vec<SnapshotFile>,
    kept: bool,
}

impl Drop for FileSet<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for file in &self.written {
            remove_quietly(&file.path);
        }
    }
}

struct OpenFile<'a> {
    path: PathBuf,
    writer: SstFileWriter<'a>,
    first_key: Bytes,
    last_key: Vec<u8>,
    finished: bool,
}

impl<'a> OpenFile<'a> {
    fn create(
        path: PathBuf,
        options: &'a rocksdb::Options,
        first_key: &[u8],
    ) -> Result<Self, StoreError> {
        let writer = SstFileWriter::create(options);
        writer
            .open(&path)
            .map_err(|error| StoreError::file("create", &path, error))?;
        Ok(Self {
            path,
            writer,
            first_key: Bytes::copy_from_slice(first_key),
            last_key: Vec::new(),
            finished: false,
        })
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        self.writer
            .put(key, value)
            .map_err(|error| StoreError::file("write", &self.path, error))
    }

    fn finish(mut self) -> Result<SnapshotFile, StoreError> {
        self.writer
            .finish()
            .map_err(|error| StoreError::file("finish", &self.path, error))?;
        let (size_bytes, crc32) = file_crc(&self.path)?;
        self.finished = true;
        Ok(SnapshotFile {
            path: self.path.clone(),
            size_bytes,
            crc32,
            first_key: self.first_key.clone(),
            last_key: Bytes::copy_from_slice(&self.last_key),
        })
    }
}

impl Drop for OpenFile<'_> {
    fn drop(&mut self) {
        if !self.finished {
            remove_quietly(&self.path);
        }
    }
}

/// Size and CRC-32 of a file's content.
pub(crate) fn file_crc(path: &Path) -> Result<(u64, u32), StoreError> {
    let failed = |error: std::io::Error| StoreError::file("read", path, error);
    let mut file = File::open(path).map_err(failed)?;
    let mut crc = crc32fast::Hasher::new();
    let mut size = 0;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = file.read(&mut buffer).map_err(failed)?;
        if read == 0 {
            return Ok((size, crc.finalize()));
        }
        crc.update(&buffer[..read]);
        size += read as u64;
    }
}

fn remove_quietly(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove an unfinished snapshot file");
    }
}
