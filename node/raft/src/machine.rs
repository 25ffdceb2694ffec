//! The state machine of a group: the trait that its owner implements, and openraft's view of it.
//!
//! openraft's worker task owns the machine and calls it from one task at a time. Entries are
//! handed over in batches bounded in number and bytes. Invariants: the record given to
//! [`Machine::apply`] names the last entry of its batch; applied ≤ committed; what
//! [`Machine::flush`] returns ≤ applied.

use std::any::Any;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use carillon_core::apply::Effects;
use futures_util::future::BoxFuture;
use futures_util::{Stream, TryStreamExt};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::type_config::alias::SnapshotOf;
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use parking_lot::Mutex;
use tokio::runtime::RuntimeFlavor;
use tokio::sync::watch;

use crate::applied::AppliedRecord;
use crate::codec::CodecError;
use crate::types::{Entry, LogId, Reply, SnapshotMeta, StoredMembership, TypeConfig};

/// Entries that one call of [`Machine::apply`] gets at most.
pub const APPLY_ENTRIES_MAX: usize = 256;
/// Payload bytes after which a call of [`Machine::apply`] takes no further entry.
pub const APPLY_BYTES_MAX: usize = 256 << 10;

/// The content of a snapshot: a type that only the server knows.
pub type SnapshotContent = Arc<dyn Any + Send + Sync>;

/// Makes a state durable; runs where blocking is allowed, beside further applying. Returns an
/// applied record that is durable. An error stops the group. Only made when something was applied.
pub type FlushJob = Box<dyn FnOnce() -> io::Result<Bytes> + Send>;

/// An entry that a majority has stored.
#[derive(Debug, Clone)]
pub struct CommittedEntry {
    /// Its index in the log.
    pub index: u64,
    /// The term of the leader that wrote it.
    pub term: u64,
    /// What was proposed. None for entries of Raft's own: blank ones and memberships.
    pub payload: Option<Bytes>,
    /// Whether this replica proposed it and somebody here waits for its effects.
    pub proposed_here: bool,
}

/// What a shard does with committed entries.
///
/// Calls never overlap, except for the job that [`Machine::flush`] returns. An implementation
/// that can not store what it must ends the process: a failed write is never retried.
pub trait Machine: Send + Sync + 'static {
    /// The record that was stored last, as found at start; None for a new replica.
    fn applied(&self) -> Option<Bytes>;

    /// Applies the entries in order, in one atomic write together with `applied`, which describes
    /// the state after the last of them. Returns for each entry the effects of its commands; they
    /// are used only where `proposed_here`. Entries are consecutive and never repeated within a
    /// process; after a restart they begin behind [`Machine::applied`].
    fn apply(&mut self, entries: &[CommittedEntry], applied: Bytes) -> Vec<Vec<Effects>>;

    /// Whether a call of [`Machine::apply`] that contains the entry with this payload must end with
    /// it, so that the machine sees its state right after it.
    fn ends_batch(&self, _payload: &Bytes) -> bool {
        false
    }

    /// What to wait for before the next call of [`Machine::apply`], when that would block because
    /// the disk does not keep up. None: it takes a batch at once.
    fn room(&self) -> Option<BoxFuture<'static, ()>> {
        None
    }

    /// A job that makes the present state durable. It may run after later entries were applied,
    /// and may then return a later record, or share one flush with other shards.
    fn flush(&self) -> FlushJob;

    /// The present state as a view that later entries do not change, with its applied record.
    /// Held until the snapshot is sent.
    ///
    /// # Errors
    /// Any error stops the group.
    fn snapshot(&self) -> io::Result<(Bytes, SnapshotContent)>;

    /// Replaces the whole state by a snapshot. It and `applied` must be durable, atomically, when
    /// this returns: the log in front of it is purged next.
    ///
    /// # Errors
    /// Any error stops the group.
    fn install(&mut self, applied: Bytes, content: SnapshotContent) -> io::Result<()>;
}

/// What openraft carries as the data of a snapshot.
#[derive(Clone)]
pub(crate) enum SnapshotData {
    /// A view to send, or what was received.
    Content(SnapshotContent),
    /// Only the fact that the state is durable up to here; openraft never sends what it builds,
    /// it asks for the current snapshot.
    Flushed,
}

impl std::fmt::Debug for SnapshotData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            SnapshotData::Content(_) => "content",
            SnapshotData::Flushed => "flushed",
        })
    }
}

type Snapshot = SnapshotOf<TypeConfig, SnapshotData>;

/// The flushes of a machine since it started, with the last entry that is durable in its state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Flushed {
    pub(crate) begun: u64,
    pub(crate) ended: u64,
    pub(crate) last: Option<LogId>,
}

/// What others follow of a state machine.
#[derive(Clone)]
pub(crate) struct Progress {
    pub(crate) applied: watch::Sender<Option<LogId>>,
    pub(crate) flushed: watch::Sender<Flushed>,
}

pub(crate) struct StateMachine {
    machine: Box<dyn Machine>,
    record: AppliedRecord,
    progress: Progress,
}

/// Does what waits for the disk for long. Other tasks of the runtime go on meanwhile.
fn may_block<T>(work: impl FnOnce() -> T) -> T {
    let flavor = tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor());
    match flavor {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

fn corrupt(error: CodecError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl StateMachine {
    pub(crate) fn new(machine: Box<dyn Machine>) -> Result<(StateMachine, Progress), CodecError> {
        let record = machine
            .applied()
            .map(AppliedRecord::decode)
            .transpose()?
            .unwrap_or_default();
        let progress = Progress {
            applied: watch::Sender::new(record.last),
            flushed: watch::Sender::new(Flushed {
                last: record.last,
                ..Flushed::default()
            }),
        };
        Ok((
            StateMachine {
                machine,
                record,
                progress: progress.clone(),
            },
            progress,
        ))
    }

    fn flusher(&self) -> Flusher {
        self.progress
            .flushed
            .send_modify(|flushed| flushed.begun += 1);
        Flusher {
            job: Mutex::new(Some(self.machine.flush())),
            progress: self.progress.clone(),
        }
    }

    async fn apply_batch(&mut self, batch: &mut Batch) -> io::Result<()> {
        let Some(last) = batch.last else {
            return Ok(());
        };
        if let Some(room) = self.machine.room() {
            room.await;
        }
        self.record.last = Some(last);
        if let Some(membership) = batch.membership.take() {
            self.record.membership = membership;
        }
        let effects = self.machine.apply(&batch.entries, self.record.encode());
        if effects.len() != batch.entries.len() {
            let (got, expected) = (effects.len(), batch.entries.len());
            return Err(io::Error::other(format!(
                "machine returned effects of {got} entries instead of {expected}"
            )));
        }
        // Visible before the proposers are answered, so that what they read next includes it.
        self.progress.applied.send_replace(Some(last));
        for (responder, effects) in batch.responders.drain(..).zip(effects) {
            if let Some(responder) = responder {
                responder.send(Reply(effects));
            }
        }
        batch.clear();
        Ok(())
    }
}

#[derive(Default)]
struct Batch {
    entries: Vec<CommittedEntry>,
    responders: Vec<Option<ApplyResponder<TypeConfig>>>,
    membership: Option<StoredMembership>,
    last: Option<LogId>,
    bytes: usize,
}

impl Batch {
    fn push(&mut self, entry: Entry, responder: Option<ApplyResponder<TypeConfig>>) {
        let payload = match entry.payload {
            EntryPayload::Blank => None,
            EntryPayload::Normal(payload) => Some(payload.0),
            EntryPayload::Membership(membership) => {
                self.membership = Some(StoredMembership::new(Some(entry.log_id), membership));
                None
            }
        };
        self.bytes += payload.as_ref().map_or(0, Bytes::len);
        self.entries.push(CommittedEntry {
            index: entry.log_id.index,
            term: entry.log_id.leader_id.term,
            payload,
            proposed_here: responder.is_some(),
        });
        self.responders.push(responder);
        self.last = Some(entry.log_id);
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= APPLY_ENTRIES_MAX || self.bytes >= APPLY_BYTES_MAX
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.responders.clear();
        self.membership = None;
        self.last = None;
        self.bytes = 0;
    }
}

/// Flushes, and reports how far the state is durable. openraft takes that for a snapshot: it
/// purges the log only below it.
pub(crate) struct Flusher {
    /// Behind a lock only because openraft wants builders to be `Sync`.
    job: Mutex<Option<FlushJob>>,
    progress: Progress,
}

impl RaftSnapshotBuilder<TypeConfig> for Flusher {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let job = self
            .job
            .get_mut()
            .take()
            .ok_or_else(|| io::Error::other("a flush job runs once"))?;
        let flushed = tokio::task::spawn_blocking(job)
            .await
            .map_err(io::Error::other)??;
        let record = AppliedRecord::decode(flushed).map_err(corrupt)?;
        let meta = record.meta();
        self.progress.flushed.send_modify(|flushed| {
            flushed.ended += 1;
            flushed.last = flushed.last.max(record.last);
        });
        Ok(Snapshot {
            meta,
            snapshot: SnapshotData::Flushed,
        })
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Flusher;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.record.last, self.record.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut batch = Batch::default();
        while let Some((entry, responder)) = entries.try_next().await? {
            batch.push(entry, responder);
            let last = batch
                .entries
                .last()
                .and_then(|entry| entry.payload.as_ref());
            if batch.is_full() || last.is_some_and(|payload| self.machine.ends_batch(payload)) {
                self.apply_batch(&mut batch).await?;
                // However much there is to apply, heartbeats and votes have their turn.
                tokio::task::yield_now().await;
            }
        }
        self.apply_batch(&mut batch).await
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Flusher> {
        Some(self.flusher())
    }

    async fn get_snapshot_builder(&mut self) -> Flusher {
        self.flusher()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let SnapshotData::Content(content) = snapshot else {
            return Err(io::Error::other(
                "a flush is not a snapshot that can be installed",
            ));
        };
        let record = AppliedRecord::of_meta(meta);
        may_block(|| self.machine.install(record.encode(), content))?;
        self.progress.applied.send_replace(record.last);
        self.progress
            .flushed
            .send_modify(|flushed| flushed.last = flushed.last.max(record.last));
        self.record = record;
        Ok(())
    }

    /// Always the present state: a follower behind the purged log gets what is applied now.
    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let (applied, content) = match self.record.last {
            Some(_) => self.machine.snapshot()?,
            None => return Ok(None),
        };
        let record = AppliedRecord::decode(applied).map_err(corrupt)?;
        if record.last != self.record.last {
            return Err(io::Error::other(
                "the snapshot of the machine is not of its applied state",
            ));
        }
        Ok(Some(Snapshot {
            meta: record.meta(),
            snapshot: SnapshotData::Content(content),
        }))
    }
}
