//! Segment files: creation, reading of records, and the set of them that readers use.
//!
//! Invariant: a reader takes its `Arc` to a file under the lock of the group whose entry it wants;
//! the writer removes a segment from the set only after no group's index names it. So a reader
//! never meets a missing segment, and a file that a reader still holds is deleted, not recycled.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;

use crate::LogError;
use crate::format::{self, DATA_START, Epoch, HeaderError, Location, SegmentNumber};

/// Suffix of a segment, of one in preparation, and of one that waits for reuse.
pub(crate) const SEGMENT_SUFFIX: &str = "segment";
pub(crate) const PREPARING_SUFFIX: &str = "preparing";
pub(crate) const SPARE_SUFFIX: &str = "spare";

/// Zeros are written and synced in chunks of this size: a sync of the log that comes in between
/// waits for one chunk at most.
const ZERO_CHUNK_BYTES: u64 = 1 << 20;

/// The path of a segment (or of its other forms) in `dir`.
pub(crate) fn path(dir: &Path, number: SegmentNumber, suffix: &str) -> PathBuf {
    dir.join(format!("{:016x}.{suffix}", number.0))
}

/// Makes renames, creations and deletions in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), LogError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(LogError::io("sync the log directory", dir))
}

/// A segment file with a valid header.
#[derive(Debug)]
pub(crate) struct SegmentFile {
    file: File,
    path: PathBuf,
    epoch: Epoch,
}

impl SegmentFile {
    /// Makes the file for segment `number`, from `spare` if given, durably in place under its
    /// name, with the header written and `bytes` long. `pause` is called after each MiB that
    /// a new file is filled with.
    pub(crate) fn create(
        dir: &Path,
        number: SegmentNumber,
        bytes: u64,
        spare: Option<(File, PathBuf)>,
        pause: impl FnMut(),
    ) -> Result<Self, LogError> {
        let preparing = path(dir, number, PREPARING_SUFFIX);
        let file = match spare {
            Some((file, spare_path)) => {
                std::fs::rename(&spare_path, &preparing)
                    .map_err(LogError::io("rename", &spare_path))?;
                file
            }
            None => create_zeroed(&preparing, bytes, pause)?,
        };
        let epoch = Epoch {
            number,
            salt: RandomState::new().build_hasher().finish(),
        };
        file.write_all_at(&epoch.encode_segment_header(), 0)
            .and_then(|()| file.sync_all())
            .map_err(LogError::io("write the header of", &preparing))?;
        let path = path(dir, number, SEGMENT_SUFFIX);
        std::fs::rename(&preparing, &path).map_err(LogError::io("rename", &preparing))?;
        sync_dir(dir)?;
        Ok(SegmentFile { file, path, epoch })
    }

    /// Opens an existing segment and checks its header.
    pub(crate) fn open(path: PathBuf, number: SegmentNumber) -> Result<Self, LogError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(LogError::io("open", &path))?;
        let mut sector = [0; DATA_START as usize];
        let damaged = |detail: &str| LogError::Corrupt {
            path: path.clone(),
            offset: 0,
            detail: detail.to_owned(),
        };
        if file
            .metadata()
            .map_err(LogError::io("read the size of", &path))?
            .len()
            < DATA_START
        {
            return Err(damaged("the file is shorter than its header"));
        }
        file.read_exact_at(&mut sector, 0)
            .map_err(LogError::io("read", &path))?;
        match format::decode_segment_header(&sector) {
            Ok(epoch) if epoch.number == number => Ok(SegmentFile { file, path, epoch }),
            Ok(_) => Err(damaged("the header belongs to a segment of another number")),
            Err(HeaderError::Damaged) => Err(damaged("the segment header is damaged")),
            Err(HeaderError::Version(found)) => Err(LogError::UnsupportedVersion {
                path,
                found,
                supported: format::FORMAT_VERSION,
            }),
        }
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(crate) fn number(&self) -> SegmentNumber {
        self.epoch.number
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn into_parts(self) -> (File, PathBuf) {
        (self.file, self.path)
    }

    pub(crate) fn bytes(&self) -> Result<u64, LogError> {
        Ok(self
            .file
            .metadata()
            .map_err(LogError::io("read the size of", &self.path))?
            .len())
    }

    pub(crate) fn write_at(&self, data: &[u8], offset: u64) -> Result<(), LogError> {
        self.file
            .write_all_at(data, offset)
            .map_err(LogError::io("write to", &self.path))
    }

    pub(crate) fn sync(&self) -> Result<(), LogError> {
        self.file
            .sync_data()
            .map_err(LogError::io("sync", &self.path))
    }

    /// Reads `len` bytes at `offset`, at most up to the end of the file.
    pub(crate) fn read_at(&self, offset: u64, len: usize) -> Result<Vec<u8>, LogError> {
        let mut data = vec![0; len];
        let mut filled = 0;
        while filled < len {
            match self
                .file
                .read_at(&mut data[filled..], offset + filled as u64)
            {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(LogError::io("read", &self.path)(error)),
            }
        }
        data.truncate(filled);
        Ok(data)
    }

    /// The payload of the record at `location`, out of `data`, which was read from `data_offset`.
    pub(crate) fn payload_in<'a>(
        &self,
        data: &'a [u8],
        data_offset: u64,
        location: Location,
    ) -> Result<&'a [u8], LogError> {
        let at = u64::from(location.offset) - data_offset;
        let record = usize::try_from(at).ok().and_then(|at| data.get(at..));
        let payload = record.and_then(|record| format::decode_record(self.epoch, record));
        payload
            .filter(|payload| payload.len() == location.len as usize)
            .ok_or_else(|| LogError::Corrupt {
                path: self.path.clone(),
                offset: u64::from(location.offset),
                detail: "the record of a durable entry is damaged".to_owned(),
            })
    }

    /// The payload of the record at `location`.
    pub(crate) fn read_payload(&self, location: Location) -> Result<Vec<u8>, LogError> {
        let record_bytes =
            usize::try_from(location.record_bytes()).expect("records fit into memory");
        let mut record = self.read_at(u64::from(location.offset), record_bytes)?;
        self.payload_in(&record, u64::from(location.offset), location)?;
        record.drain(..format::RECORD_HEADER_BYTES);
        Ok(record)
    }

    /// Overwrites everything from `offset` on that is not zero, and syncs.
    pub(crate) fn zero_from(&self, mut offset: u64) -> Result<(), LogError> {
        let zeros = vec![0; ZERO_CHUNK_BYTES as usize];
        loop {
            let chunk = self.read_at(offset, zeros.len())?;
            if chunk.is_empty() {
                return self.sync();
            }
            if chunk.iter().any(|byte| *byte != 0) {
                self.write_at(&zeros[..chunk.len()], offset)?;
            }
            offset += chunk.len() as u64;
        }
    }
}

fn create_zeroed(path: &Path, bytes: u64, mut pause: impl FnMut()) -> Result<File, LogError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .map_err(LogError::io("create", path))?;
    let zeros = vec![0; ZERO_CHUNK_BYTES as usize];
    let mut offset = 0;
    while offset < bytes {
        let chunk = ZERO_CHUNK_BYTES.min(bytes - offset);
        file.write_all_at(&zeros[..chunk as usize], offset)
            .map_err(LogError::io("write zeros to", path))?;
        offset += chunk;
        file.sync_data().map_err(LogError::io("sync", path))?;
        pause();
    }
    Ok(file)
}

/// The segments in use, for readers.
#[derive(Debug, Default)]
pub(crate) struct SegmentSet {
    files: RwLock<BTreeMap<SegmentNumber, Arc<SegmentFile>>>,
}

impl SegmentSet {
    pub(crate) fn insert(&self, file: Arc<SegmentFile>) {
        self.files.write().insert(file.number(), file);
    }

    pub(crate) fn remove(&self, number: SegmentNumber) {
        self.files.write().remove(&number);
    }

    pub(crate) fn get(&self, number: SegmentNumber) -> Arc<SegmentFile> {
        let files = self.files.read();
        Arc::clone(
            files
                .get(&number)
                .expect("a segment outlives the index entries that name it"),
        )
    }

    pub(crate) fn len(&self) -> usize {
        self.files.read().len()
    }
}
