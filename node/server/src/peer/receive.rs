//! Snapshots of shards on their way to this node: judged by what their head announces, then
//! written to files, a chunk at a time. The other end is in `snapshot`.
//!
//! Owner of the state: [`SnapshotInbox`] knows how many bytes were announced and have not come,
//! so that the same free space is not promised to two snapshots.
//!
//! Invariants: nothing is written before the whole head is found good; promised ≤ free −
//! `DISK_RESERVE_BYTES` when a promise is made; what is received has exactly the announced
//! bytes. Nothing of the shard changes before every file has arrived and its CRC is right, which
//! the store checks.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use carillon_core::ids::{NodeId, SLOTS, ShardId, Slot, SlotRange};
use carillon_core::steering::DISK_RESERVE_BYTES;
use carillon_proto::internal::snapshot_chunk::Part;
use carillon_proto::internal::{SnapshotChunk, SnapshotFile as FileHead, SnapshotHead};
use carillon_store::SnapshotFile;
use futures_util::{Stream, StreamExt};
use tokio::io::AsyncWriteExt;
use tonic::Status;

use super::snapshot::{FILE_BYTES_TARGET, ReceivedSnapshot, merges_from_proto, new_directory};
use crate::disk::Disk;
use crate::gateway::errors::Failure;

/// Files of one snapshot.
const FILES_MAX: u64 = 100_000;
/// Bytes of one file: it is ended by its sender some time after it has reached its target.
const FILE_BYTES_MAX: u64 = 2 * FILE_BYTES_TARGET;
/// Bytes of all files of one snapshot.
const SNAPSHOT_BYTES_MAX: u64 = 1 << 40;
/// Bytes of the head's record.
const RECORD_BYTES_MAX: u64 = 16 << 20;
/// A sender that says nothing for this long is given up.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);

/// Chunks as they come from the network.
pub trait Chunks: Stream<Item = Result<SnapshotChunk, Status>> + Unpin {}

impl<S: Stream<Item = Result<SnapshotChunk, Status>> + Unpin> Chunks for S {}

/// Reads a snapshot's head and checks what it announces. Its sender is `from`.
pub async fn head(chunks: &mut impl Chunks, from: NodeId) -> Result<SnapshotHead, Status> {
    let Some(SnapshotChunk {
        part: Some(Part::Head(head)),
    }) = next(chunks).await?
    else {
        return Err(Status::invalid_argument("a snapshot begins with its head"));
    };
    if head.from_node != from.0 {
        return Err(Status::invalid_argument(format!(
            "node {} sends a snapshot of node {}",
            from.0, head.from_node
        )));
    }
    within("snapshot_files_max", FILES_MAX, head.files.len() as u64)?;
    within(
        "snapshot_record_bytes_max",
        RECORD_BYTES_MAX,
        head.clock.len() as u64,
    )?;
    for file in &head.files {
        if file.size_bytes == 0 {
            return Err(Status::invalid_argument("a file of a snapshot is empty"));
        }
        within("snapshot_file_bytes_max", FILE_BYTES_MAX, file.size_bytes)?;
    }
    within("snapshot_bytes_max", SNAPSHOT_BYTES_MAX, bytes_of(&head))?;
    Ok(head)
}

fn within(limit: &'static str, max: u64, actual: u64) -> Result<(), Status> {
    if actual > max {
        return Err(Failure::limit(limit, max, actual).into_status());
    }
    Ok(())
}

fn slots(head: &SnapshotHead) -> Result<Option<SlotRange>, Status> {
    let (Some(first), Some(last)) = (head.first_slot, head.last_slot) else {
        return Ok(None);
    };
    if first > last || last >= u32::from(SLOTS) {
        return Err(Status::invalid_argument("a snapshot of impossible slots"));
    }
    Ok(Some(SlotRange {
        first: Slot(first as u16),
        last: Slot(last as u16),
    }))
}

/// The limits on files and their sizes keep the sum far from overflowing.
fn bytes_of(head: &SnapshotHead) -> u64 {
    head.files.iter().map(|file| file.size_bytes).sum()
}

async fn next(chunks: &mut impl Chunks) -> Result<Option<SnapshotChunk>, Status> {
    tokio::time::timeout(CHUNK_TIMEOUT, chunks.next())
        .await
        .map_err(|_| Status::deadline_exceeded("the snapshot's sender says nothing any more"))?
        .transpose()
}

fn disk(error: io::Error) -> Status {
    Status::internal(format!("snapshot could not be written: {error}"))
}

/// Where snapshots are received.
pub struct SnapshotInbox {
    directory: PathBuf,
    promised_bytes: Arc<AtomicU64>,
}

/// Room on the disk for bytes that have been announced; given back as they come.
struct Promise {
    bytes: u64,
    all: Arc<AtomicU64>,
}

impl Promise {
    fn came(&mut self, bytes: u64) {
        self.bytes -= bytes;
        self.all.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl SnapshotInbox {
    /// Receives into a directory that exists.
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            promised_bytes: Arc::default(),
        }
    }

    fn promise(&self, bytes: u64) -> Result<Promise, Status> {
        // First promised, then looked: of two at the same time, each sees the other.
        let promised = self.promised_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let promise = Promise {
            bytes,
            all: Arc::clone(&self.promised_bytes),
        };
        if bytes > 0 {
            let free = Disk::of(&self.directory).map_err(disk)?.free_bytes;
            let room = free.saturating_sub(DISK_RESERVE_BYTES);
            within("snapshot_disk_bytes_max", room, promised)?;
        }
        Ok(promise)
    }

    /// Receives the files that [`head`] announced.
    pub async fn receive(
        &self,
        head: &SnapshotHead,
        mut chunks: impl Chunks,
    ) -> Result<ReceivedSnapshot, Status> {
        let mut promise = self.promise(bytes_of(head))?;
        let shard = ShardId(head.shard_id);
        let mut received = ReceivedSnapshot {
            files: Vec::with_capacity(head.files.len()),
            clock: head.clock.clone(),
            slots: slots(head)?,
            merges: merges_from_proto(head.merges),
            directory: new_directory(&self.directory, shard).map_err(disk)?,
        };
        let mut rest = Bytes::new();
        for (index, announced) in head.files.iter().enumerate() {
            let path = received.directory.join(format!("{index:06}.sst"));
            let file = file(&path, announced, &mut chunks, &mut rest, &mut promise).await?;
            received.files.push(file);
        }
        if !rest.is_empty() || next(&mut chunks).await?.is_some() {
            return Err(Status::data_loss("the snapshot is longer than announced"));
        }
        Ok(received)
    }
}

/// Writes one file; `rest` is what has come and was not written yet.
async fn file(
    path: &Path,
    announced: &FileHead,
    chunks: &mut impl Chunks,
    rest: &mut Bytes,
    promise: &mut Promise,
) -> Result<SnapshotFile, Status> {
    let mut file = tokio::fs::File::create(path).await.map_err(disk)?;
    let mut left = announced.size_bytes;
    while left > 0 {
        if rest.is_empty() {
            *rest = match next(chunks).await?.and_then(|chunk| chunk.part) {
                Some(Part::Data(data)) if !data.is_empty() => data,
                Some(_) => {
                    return Err(Status::invalid_argument(
                        "a part of a snapshot that is not data",
                    ));
                }
                None => return Err(Status::data_loss("the snapshot ended inside a file")),
            };
        }
        let take = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        file.write_all(&rest.split_to(take)).await.map_err(disk)?;
        promise.came(take as u64);
        left -= take as u64;
    }
    file.sync_all().await.map_err(disk)?;
    Ok(SnapshotFile {
        path: path.to_owned(),
        size_bytes: announced.size_bytes,
        crc32: announced.crc32,
        first_key: announced.first_key.clone(),
        last_key: announced.last_key.clone(),
    })
}

#[cfg(test)]
#[path = "receive_tests.rs"]
mod tests;
