//! Snapshots of shards on their way to other nodes: the SST files of a consistent view,
//! streamed in chunks with their checksums, as fast as the cluster's policy lets them. The
//! other end is in `receive`.
//!
//! Owner of the state: the directory `snapshots/` of the data directory, emptied at start.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use carillon_core::ids::{ShardId, SlotRange};
use carillon_core::map::MetaState;
use carillon_core::merging::{MergeId, MergeMark};
use carillon_core::records::{Record as _, ShardClock};
use carillon_proto::internal::snapshot_chunk::Part;
use carillon_proto::internal::{
    ShardMerges, SnapshotChunk, SnapshotFile as FileHead, SnapshotHead,
};
use carillon_raft::{AppliedRecord, Member, OutgoingSnapshot, SnapshotSender};
use carillon_store::{ShardSnapshot, SnapshotFile};
use futures_util::future::BoxFuture;
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::cluster::Cluster;
use crate::identity::Identity;
use crate::peer::outgoing::{Outgoing, Sending, chunk_bytes};
use crate::peer::peer_client;

/// A file of a snapshot is ended when it has this many bytes.
pub(super) const FILE_BYTES_TARGET: u64 = 64 << 20;
/// Chunks read ahead of the network.
const CHUNKS_AHEAD: usize = 4;

/// What the meta group's state is when it travels instead of files.
#[derive(Clone)]
pub enum Content {
    /// A shard's view of its state.
    Shard(Arc<ShardSnapshot>),
    /// The meta group's whole state.
    Meta(Arc<MetaState>),
}

/// A snapshot that has arrived.
pub struct ReceivedSnapshot {
    pub(super) files: Vec<SnapshotFile>,
    pub(super) clock: Bytes,
    pub(super) slots: Option<SlotRange>,
    pub(super) merges: MergeMark,
    /// Removed with it; installing moves the files out first.
    pub(super) directory: PathBuf,
}

impl ReceivedSnapshot {
    /// The files, in key order.
    pub fn files(&self) -> &[SnapshotFile] {
        &self.files
    }

    /// The slots that they are of; none from a node that does not say so.
    pub fn slots(&self) -> Option<SlotRange> {
        self.slots
    }

    /// What merges have done to the shard as of them.
    pub fn merges(&self) -> MergeMark {
        self.merges
    }

    /// One of a record only.
    #[cfg(test)]
    pub fn of_record(clock: Bytes, directory: PathBuf) -> Self {
        Self {
            files: Vec::new(),
            clock,
            slots: None,
            merges: MergeMark::default(),
            directory,
        }
    }

    /// The record that came with them.
    pub fn record(&self) -> &Bytes {
        &self.clock
    }
}

impl Drop for ReceivedSnapshot {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            tracing::warn!(directory = %self.directory.display(), %error, "received files could not be removed");
        }
    }
}

/// The directory for snapshots on their way, emptied.
pub fn prepare_directory(data_dir: &Path) -> std::io::Result<PathBuf> {
    let directory = data_dir.join("snapshots");
    if directory.exists() {
        std::fs::remove_dir_all(&directory)?;
    }
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}

static DIRECTORIES: AtomicU64 = AtomicU64::new(0);

pub(super) fn new_directory(parent: &Path, shard: ShardId) -> std::io::Result<PathBuf> {
    let number = DIRECTORIES.fetch_add(1, Ordering::Relaxed);
    let directory = parent.join(format!("{}-{number}", shard.0));
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// How long it takes until a snapshot that a node could not take may be sent again: what is wrong
/// with it, a full disk for instance, takes longer to pass than to find out.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Sends snapshots to other nodes.
pub struct Sender {
    /// The cluster as this node knows it.
    pub cluster: Arc<Cluster>,
    /// Who this node is, and where peers are.
    pub identity: Arc<Identity>,
    /// Where files are written before they are sent.
    pub directory: PathBuf,
    /// All that this node sends.
    pub outgoing: Arc<Outgoing>,
}

impl SnapshotSender for Sender {
    fn send(&self, snapshot: OutgoingSnapshot) -> BoxFuture<'static, Result<Bytes, String>> {
        let address = self
            .identity
            .peer_address(snapshot.to.node, &self.cluster.meta());
        let sender = Sender {
            cluster: self.cluster.clone(),
            identity: self.identity.clone(),
            directory: self.directory.clone(),
            outgoing: self.outgoing.clone(),
        };
        Box::pin(async move {
            let address =
                address.ok_or_else(|| format!("node {} has no address", snapshot.to.node.0))?;
            let (shard, to) = (snapshot.shard, snapshot.to.node);
            let sent = send(&sender, address, snapshot).await;
            if let Err(error) = &sent {
                tracing::warn!(shard = shard.0, to = to.0, %error, "a snapshot was not installed");
                tokio::time::sleep(AFTER_FAILURE).await;
            }
            sent.map_err(|error| format!("{error:#}"))
        })
    }
}

async fn send(
    sender: &Sender,
    address: String,
    snapshot: OutgoingSnapshot,
) -> anyhow::Result<Bytes> {
    let (shard, to) = (snapshot.shard, snapshot.to.node);
    let content = snapshot
        .content
        .downcast::<Content>()
        .map_err(|_| anyhow::anyhow!("a snapshot of an unknown kind"))?;
    tracing::info!(shard = shard.0, to = to.0, "sends a snapshot");
    let directory = Cleanup(new_directory(&sender.directory, shard)?);
    let path = directory.0.clone();
    let (slots, merges) = match &*content {
        Content::Shard(snapshot) => (Some(snapshot.slots()), merges_to_proto(snapshot.merges())),
        Content::Meta(_) => (None, None),
    };
    if slots.is_some() {
        check_whole(&sender.cluster, shard, snapshot.to, &snapshot.applied)?;
    }
    let (files, clock) =
        tokio::task::spawn_blocking(move || write_files(&content, &path)).await??;
    let head = SnapshotHead {
        shard_id: shard.0,
        from_node: sender.cluster.me().0,
        vote: snapshot.vote,
        meta: snapshot.applied,
        files: files
            .iter()
            .map(|file| FileHead {
                size_bytes: file.size_bytes,
                crc32: file.crc32,
                first_key: file.first_key.clone(),
                last_key: file.last_key.clone(),
            })
            .collect(),
        clock,
        first_slot: slots.map(|slots| u32::from(slots.first.0)),
        last_slot: slots.map(|slots| u32::from(slots.last.0)),
        merges,
    };
    let (chunks, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let total = files.iter().map(|file| file.size_bytes).sum();
    let paths: Vec<PathBuf> = files.into_iter().map(|file| file.path).collect();
    let sending = sender.outgoing.begin(shard, to, total);
    let channel = sender.identity.dialer().connect(&address).await?;
    let mut client = peer_client(channel, &sender.identity);
    let reading = read_chunks(head, &paths, &sender.cluster, &sending, chunks);
    let installing = client.install_snapshot(ReceiverStream::new(receiver));
    let mut installing = std::pin::pin!(installing);
    let response = tokio::select! {
        // It may end before it has read everything, and then nothing more is read.
        response = &mut installing => response?,
        read = reading => {
            read?;
            installing.await?
        }
    };
    tracing::info!(shard = shard.0, to = to.0, "the snapshot is installed");
    Ok(response.into_inner().vote)
}

/// A replica that is being made has nothing of a shard that this one took over, so what it gets
/// must be from after that. An entry that takes a shard over and is committed may not be applied
/// here yet; it is once an entry of this lead is. A voter has what was taken over, and may be
/// needed for this lead to commit anything.
fn check_whole(
    cluster: &Cluster,
    shard: ShardId,
    to: Member,
    applied: &Bytes,
) -> anyhow::Result<()> {
    let replica = cluster.replica(shard);
    let replica = replica.context("the replica is not here any more")?;
    let group = replica.group();
    let term = group.leadership().borrow().term;
    let of = AppliedRecord::decode(applied.clone())?.position();
    anyhow::ensure!(
        group.status().voters.contains(&to) || of.is_some_and(|of| of.term == term),
        "the leader has not applied yet what was committed before it led"
    );
    Ok(())
}

/// What merges have done to a shard; none when nothing.
pub fn merges_to_proto(merges: MergeMark) -> Option<ShardMerges> {
    (merges != MergeMark::default()).then(|| ShardMerges {
        frozen_by: merges.frozen_by.unwrap_or_default().0,
        seen: merges.seen.0,
        absorbed: merges.absorbed.0,
    })
}

/// The same, read.
pub fn merges_from_proto(merges: Option<ShardMerges>) -> MergeMark {
    merges.map_or_else(MergeMark::default, |merges| MergeMark {
        frozen_by: (merges.frozen_by != 0).then_some(MergeId(merges.frozen_by)),
        seen: MergeId(merges.seen),
        absorbed: MergeId(merges.absorbed),
    })
}

fn write_files(content: &Content, directory: &Path) -> anyhow::Result<(Vec<SnapshotFile>, Bytes)> {
    match content {
        Content::Shard(snapshot) => {
            let files = snapshot.write_files(directory, FILE_BYTES_TARGET, &mut |_| {
                std::ops::ControlFlow::Continue(())
            })?;
            Ok((files, snapshot.clock().encoded()))
        }
        Content::Meta(state) => Ok((Vec::new(), state.encode())),
    }
}

/// Ends without an error when the receiver goes away: then the call has the reason.
async fn read_chunks(
    head: SnapshotHead,
    paths: &[PathBuf],
    cluster: &Cluster,
    sending: &Sending,
    chunks: mpsc::Sender<SnapshotChunk>,
) -> std::io::Result<()> {
    let chunk = |part| SnapshotChunk { part: Some(part) };
    if chunks.send(chunk(Part::Head(head))).await.is_err() {
        return Ok(());
    }
    for path in paths {
        let mut file = tokio::fs::File::open(path).await?;
        loop {
            // Looked up for each chunk: a new policy holds at once.
            let rate = cluster.meta().policy.snapshot_bytes_per_s_max();
            let mut data = BytesMut::with_capacity(chunk_bytes(rate));
            let count = file.read_buf(&mut data).await? as u64;
            if count == 0 {
                break;
            }
            tokio::select! {
                () = sending.may_leave(count, rate) => {}
                () = chunks.closed() => return Ok(()),
            }
            if chunks.send(chunk(Part::Data(data.freeze()))).await.is_err() {
                return Ok(());
            }
            sending.left(count);
        }
    }
    Ok(())
}

struct Cleanup(PathBuf);

impl Drop for Cleanup {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(directory = %self.0.display(), %error, "sent files could not be removed");
        }
    }
}

/// The clock of a shard's snapshot.
pub fn clock_of(received: &ReceivedSnapshot) -> std::io::Result<ShardClock> {
    ShardClock::decode(received.record())
        .map_err(|error| std::io::Error::other(format!("the snapshot's clock is damaged: {error}")))
}
