//! Replacing a shard by a snapshot, in one atomic and durable step of the engine.
//!
//! The files are first verified and moved into a staging directory, together with two that are
//! made here: a range tombstone over all slots of the shard, and the new applied record. One
//! ingestion then takes in, in this order, tombstone, state, applied record: the tombstone hides
//! everything older, the files behind it win over it, and one edit of the engine's manifest
//! makes all of it the state, or none. So a crash leaves the shard as it was or as it will be,
//! and concurrent readers never see it in between.
//!
//! The staging directory is the marker of an install under way. Found at open, it is removed:
//! whatever it still holds was never part of the state, and what is part of it no longer needs it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use carillon_core::ids::{ShardId, SlotRange};
use carillon_core::records::ShardClock;
use rocksdb::SstFileWriter;

use crate::engine::Engine;
use crate::error::StoreError;
use crate::options::StoreOptions;
use crate::record::{self, AppliedRecord};
use crate::shard::ShardStore;
use crate::snapshot::{SnapshotFile, file_crc};

const STAGED_PREFIX: &str = "install-";

/// Failpoints of an install, in order: the staging directory exists; it has the tombstone; the
/// files are the state; the staging directory is about to go.
mod point {
    pub(super) const MARKER: &str = "store.install.marker";
    pub(super) const CLEARED: &str = "store.install.cleared";
    pub(super) const INGESTED: &str = "store.install.ingested";
    pub(super) const BEFORE_CLEAR_MARKER: &str = "store.install.before_clear_marker";
}

impl ShardStore {
    /// Replaces the shard's state by the files of a snapshot, and its applied record by
    /// `applied`, `clock` and `slots`, which must be some of those that it has. Atomic and durable: after a crash the shard is either as before
    /// or as the snapshot.
    ///
    /// The files are consumed, also when this fails after their verification. They come from a
    /// peer that is trusted to have written only keys of the shard's slots.
    ///
    /// # Errors
    /// [`StoreError::SnapshotFile`], [`StoreError::File`]: the shard is unchanged.
    /// [`StoreError::Poisoned`]: the process must stop.
    pub fn install(
        &mut self,
        files: &[SnapshotFile],
        applied: &[u8],
        clock: ShardClock,
        slots: SlotRange,
    ) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        let engine = &shared.engine;
        engine.check()?;
        self.verify(files, slots)?;
        // Readers keep seeing what was committed until the snapshot takes its place.
        shared.write_held()?;
        let staging = Staging::create(engine, shared.id)?;
        engine.hit(point::MARKER);

        let mut staged = vec![self.stage_tombstone(&staging)?];
        engine.hit(point::CLEARED);
        for (index, file) in files.iter().enumerate() {
            let path = staging.dir.join(format!("{index:06}.sst"));
            take_over(&file.path, &path)?;
            staged.push(path);
        }
        staged.push(self.stage_record(&staging, applied, &clock, slots)?);

        // The ingestion holds all writers back while it flushes what overlaps: with this flush
        // before it, that is little.
        engine.flush()?;
        engine.ingest(staged)?;
        shared.set_slots(slots);
        shared.lock().forget();
        self.record = Some(AppliedRecord {
            applied: Bytes::copy_from_slice(applied),
            clock,
            slots: Some(slots),
        });
        engine.hit(point::INGESTED);
        engine.hit(point::BEFORE_CLEAR_MARKER);
        drop(staging);
        Ok(())
    }

    /// Checks the files against their descriptions: content, slots, order.
    fn verify(&self, files: &[SnapshotFile], slots: SlotRange) -> Result<(), StoreError> {
        let had = self.shared.slots();
        if slots.first < had.first || had.last < slots.last {
            return Err(StoreError::SnapshotSlots {
                shard: self.shared.id,
                has: had,
                came: slots,
            });
        }
        let within = |key: &[u8]| &slots.key_start()[..] <= key && key < &slots.key_end()[..];
        let mut previous: Option<&Bytes> = None;
        for file in files {
            let refused = |reason: &str| Err(StoreError::snapshot_file(&file.path, reason));
            if file.first_key > file.last_key {
                return refused("its first key is after its last");
            }
            if !within(&file.first_key) || !within(&file.last_key) {
                return refused("it has keys outside the slots of the shard");
            }
            if previous.is_some_and(|previous| *previous >= file.first_key) {
                return refused("it overlaps with the file before it");
            }
            previous = Some(&file.last_key);
            let (size_bytes, crc32) = file_crc(&file.path)?;
            if size_bytes != file.size_bytes {
                return Err(StoreError::snapshot_file(
                    &file.path,
                    format_args!("it has {size_bytes} bytes, not {}", file.size_bytes),
                ));
            }
            if crc32 != file.crc32 {
                return refused("its content does not have the announced CRC-32");
            }
        }
        Ok(())
    }

    fn stage_tombstone(&self, staging: &Staging) -> Result<PathBuf, StoreError> {
        staging.table("clear.sst", |writer| {
            // All slots that it had: what a split has taken from it meanwhile is nobody's here.
            let slots = self.shared.slots();
            writer.delete_range(slots.key_start(), slots.key_end())
        })
    }

    fn stage_record(
        &self,
        staging: &Staging,
        applied: &[u8],
        clock: &ShardClock,
        slots: SlotRange,
    ) -> Result<PathBuf, StoreError> {
        let mut value = BytesMut::new();
        record::encode(applied, clock, slots, &mut value);
        staging.table("applied.sst", |writer| {
            writer.put(self.shared.applied_key, &value)
        })
    }
}

/// The directory of an install under way; removed when it is over.
struct Staging {
    dir: PathBuf,
}

impl Staging {
    fn create(engine: &Engine, shard: ShardId) -> Result<Self, StoreError> {
        let dir = engine.staging().join(format!("{STAGED_PREFIX}{}", shard.0));
        remove_dir(&dir)?;
        fs::create_dir_all(&dir).map_err(|error| StoreError::file("create", &dir, error))?;
        Ok(Self { dir })
    }

    fn table(
        &self,
        name: &str,
        write: impl FnOnce(&mut SstFileWriter<'_>) -> Result<(), rocksdb::Error>,
    ) -> Result<PathBuf, StoreError> {
        let path = self.dir.join(name);
        let options = StoreOptions::snapshot_file();
        let mut writer = SstFileWriter::create(&options);
        writer
            .open(&path)
            .and_then(|()| write(&mut writer))
            .and_then(|()| writer.finish())
            .map_err(|error| StoreError::file("write", &path, error))?;
        Ok(path)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = remove_dir(&self.dir) {
            tracing::warn!(%error, "the staging directory stays until the next start");
        }
    }
}

/// Removes what installs that a crash has interrupted left behind, and says which shards they
/// were for.
pub(crate) fn remove_interrupted(engine: &Engine) -> Result<Vec<ShardId>, StoreError> {
    let staging = engine.staging();
    let entries = match fs::read_dir(&staging) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StoreError::file("list", &staging, error)),
    };
    let mut shards = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| StoreError::file("list", &staging, error))?;
        let name = entry.file_name();
        let shard = name
            .to_str()
            .and_then(|name| name.strip_prefix(STAGED_PREFIX))
            .and_then(|id| id.parse().ok());
        if let Some(shard) = shard {
            shards.push(ShardId(shard));
        }
    }
    remove_dir(&staging)?;
    shards.sort_unstable();
    Ok(shards)
}

/// Moves a file; copies it when it is on another file system. The name it had must be gone
/// before the file becomes part of the database, or a later write to that name would write
/// into the database.
fn take_over(from: &Path, to: &Path) -> Result<(), StoreError> {
    match fs::rename(from, to) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            fs::copy(from, to).map_err(|error| StoreError::file("copy", from, error))?;
            fs::remove_file(from).map_err(|error| StoreError::file("remove", from, error))
        }
        Err(error) => Err(StoreError::file("move", from, error)),
    }
}

fn remove_dir(dir: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::file("remove", dir, error))
        }
        _ => Ok(()),
    }
}
