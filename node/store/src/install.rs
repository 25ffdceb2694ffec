//! Replacing a shard by a snapshot, in one atomic and durable step of the engine.
//!
//! A snapshot of a shard that has taken over its right neighbour takes the neighbour's place as
//! well, if that is still here as the merge has frozen it.
//!
//! The files are first verified and moved into a staging directory, together with two that are
//! made here: a range tombstone over all slots of the shard, unless it has nothing yet, and the new
//! applied record. One ingestion then takes in, in this order, tombstone, state, applied record:
//! the tombstone hides everything older, the files behind it win over it, and one edit of the
//! engine's manifest makes all of it the state, or none. So a crash leaves the shard as it was or
//! as it will be, and concurrent readers never see it in between.
//!
//! The staging directory is the marker of an install under way. Found at open, it is removed:
//! whatever it still holds was never part of the state, and what is part of it no longer needs it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use carillon_core::ids::{ShardId, SlotRange};
use carillon_core::merging::MergeMark;
use carillon_core::records::ShardClock;
use rocksdb::SstFileWriter;

use crate::engine::Engine;
use crate::error::StoreError;
use crate::options::StoreOptions;
use crate::record::{self, AppliedRecord};
use crate::shard::{Held, ShardStore, Shared};
use crate::snapshot::{SnapshotFile, file_crc};
use crate::store::records;

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
    /// Replaces the shard's state by the files of a snapshot, and its applied record by `applied`,
    /// `clock`, `slots` and `merges`. Atomic and durable: after a crash the shard is either as
    /// before or as the snapshot.
    ///
    /// The slots must be some of those that it has, or that its right neighbour here has, when
    /// the snapshot is of after the merge that has frozen the neighbour. Then the neighbour is no
    /// more, as after [`crate::ShardBatch::commit_absorb`]; its id is returned.
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
        merges: MergeMark,
    ) -> Result<Option<ShardId>, StoreError> {
        let shared = Arc::clone(&self.shared);
        let engine = &shared.engine;
        engine.check()?;
        if shared.is_absorbed() {
            return Err(StoreError::Absorbed(shared.id));
        }
        let right = self.right_taken(slots, merges)?;
        verify(files, slots)?;
        // Readers keep seeing what was committed until the snapshot takes its place.
        shared.write_held()?;
        let staging = Staging::create(engine, shared.id)?;
        engine.hit(point::MARKER);

        let right_slots = right.map(|(_, slots)| slots);
        let mut staged = Vec::new();
        let is_new = self.has_nothing(right_slots)?;
        if !is_new {
            staged.push(self.stage_tombstone(&staging, right_slots)?);
        }
        engine.hit(point::CLEARED);
        for (index, file) in files.iter().enumerate() {
            let path = staging.dir.join(format!("{index:06}.sst"));
            take_over(&file.path, &path)?;
            staged.push(path);
        }
        let mut record = BytesMut::new();
        let written = shared.written_slots(slots, merges);
        record::encode(applied, &clock, written, merges, &mut record);
        let right = right.map(|(id, _)| id);
        staged.push(self.stage_record(&staging, &record, right)?);

        if !is_new {
            // The ingestion holds all writers back while it flushes what overlaps: with this flush
            // before it, that is little.
            engine.flush()?;
        }
        self.ingest(staged, right)?;
        shared.set_slots(slots);
        shared.lock().forget();
        self.record = Some(AppliedRecord {
            applied: Bytes::copy_from_slice(applied),
            clock,
            slots: Some(slots),
            merges,
        });
        engine.hit(point::INGESTED);
        engine.hit(point::BEFORE_CLEAR_MARKER);
        drop(staging);
        Ok(right)
    }

    /// The right neighbour that a snapshot of these slots takes the place of.
    fn right_taken(
        &self,
        slots: SlotRange,
        merges: MergeMark,
    ) -> Result<Option<(ShardId, SlotRange)>, StoreError> {
        let (shared, had) = (&self.shared, self.shared.slots());
        let before = self.merges().absorbed;
        let others = records(&shared.engine, &self.claims)?;
        let others = others.into_iter().filter(|(id, _)| *id != shared.id);
        let others: Vec<_> = others
            .filter_map(|(id, record)| Some((id, record.slots?, record.merges.frozen_by)))
            .collect();
        let right = others.iter().find(|(_, slots, frozen_by)| {
            had.joined(*slots).is_some()
                && frozen_by.is_some_and(|by| before < by && by <= merges.absorbed)
        });
        let right = right.map(|(id, slots, _)| (*id, *slots));
        let has = right.and_then(|(_, slots)| had.joined(slots));
        let has = has.unwrap_or(had);
        let is_within = has.first <= slots.first && slots.last <= has.last;
        let is_others = |id: &ShardId, of: &SlotRange| {
            right.is_none_or(|(right, _)| right != *id) && of.overlaps(slots)
        };
        // What nobody has here may come with a merge: the neighbour was never here, or is gone.
        let is_free = before < merges.absorbed
            && !others.iter().any(|(id, of, _)| is_others(id, of))
            && !self
                .claims
                .lock()
                .iter()
                .any(|(id, claim)| *id != shared.id && is_others(id, &claim.shared.slots()));
        if is_within || is_free {
            return Ok(right);
        }
        Err(StoreError::SnapshotSlots {
            shard: shared.id,
            has,
            came: slots,
        })
    }

    /// Takes the files in; a neighbour whose place they take writes nothing any more.
    fn ingest(&self, staged: Vec<PathBuf>, right: Option<ShardId>) -> Result<(), StoreError> {
        let engine = &self.shared.engine;
        let Some(right) = right else {
            return engine.ingest(staged);
        };
        // Nobody opens it meanwhile, and who has it open writes before this or never.
        let claims = self.claims.lock();
        let open: Option<Arc<Shared>> = claims.get(&right).map(|claim| Arc::clone(&claim.shared));
        let mut held = open.as_ref().map(|open| open.lock());
        engine.ingest(staged)?;
        if let (Some(open), Some(held)) = (&open, &mut held) {
            let held: &mut Held = held;
            open.set_absorbed(held);
        }
        Ok(())
    }

    /// All slots that it had: what a split has taken from it meanwhile is nobody's here.
    fn slots_had(&self, right: Option<SlotRange>) -> SlotRange {
        let had = self.shared.slots();
        right.and_then(|right| had.joined(right)).unwrap_or(had)
    }

    /// Nothing of the shard is in the engine, as of a replica that is being made. What comes
    /// overlaps with nothing then, so that the engine keeps it where it need not be compacted.
    fn has_nothing(&self, right: Option<SlotRange>) -> Result<bool, StoreError> {
        if self.record.is_some() || right.is_some() {
            return Ok(false);
        }
        let (engine, slots) = (&self.shared.engine, self.slots_had(None));
        let mut keys = engine.iterate(&slots.key_start(), &slots.key_end(), None, false);
        keys.seek_to_first();
        let status = keys.status();
        status.map_err(|error| engine.poison("a look for what a shard has", error))?;
        Ok(keys.item().is_none())
    }

    fn stage_tombstone(
        &self,
        staging: &Staging,
        right: Option<SlotRange>,
    ) -> Result<PathBuf, StoreError> {
        staging.table("clear.sst", |writer| {
            let slots = self.slots_had(right);
            writer.delete_range(slots.key_start(), slots.key_end())
        })
    }

    fn stage_record(
        &self,
        staging: &Staging,
        record: &[u8],
        right: Option<ShardId>,
    ) -> Result<PathBuf, StoreError> {
        let (key, right) = (self.shared.applied_key, right.map(record::applied_key));
        staging.table("applied.sst", |writer| {
            // Keys are in order in a table.
            let (first, then) = match right {
                Some(right) if right < key => (Some(right), None),
                right => (None, right),
            };
            if let Some(right) = first {
                writer.delete(right)?;
            }
            writer.put(key, record)?;
            then.map_or(Ok(()), |right| writer.delete(right))
        })
    }
}

/// Checks the files against their descriptions: content, slots, order.
fn verify(files: &[SnapshotFile], slots: SlotRange) -> Result<(), StoreError> {
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
