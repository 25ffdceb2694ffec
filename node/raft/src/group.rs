//! A group: the replica of one shard on this node.
//!
//! [`Group`] is a cheap handle; the state is owned by openraft's tasks, the shard's log and the
//! machine. Files: this one starts it and proposes, `read` does linearizable reads, `leadership`
//! tells who leads, `control` changes leaders and members, `maintenance` flushes, purges and
//! installs snapshots, `status` reports.
//!
//! Invariants: purged ≤ flushed ≤ applied ≤ committed ≤ stored; a replica id is used for one
//! replica only, ever; reads never rely on a lease, since a restarted follower forgets it.

mod control;
mod leadership;
mod maintenance;
mod read;
mod status;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use carillon_core::apply::Effects;
use carillon_core::ids::{NodeId, ShardId};
use carillon_log::GroupLog;
use openraft::errors::{
    ClientWriteError, Fatal, ForwardReason, ForwardToLeader, InitializeError, RaftError,
};
use openraft::impls::leader_id_adv::LeaderId;
use openraft::raft::ClientWriteResult;
use tokio::sync::{Mutex, watch};
use tokio::task::AbortHandle;

pub use control::{MemberChange, MembershipError, TransferError};
pub use leadership::Leadership;
pub use maintenance::{InstallError, MaintenanceError, Retention};
pub use read::ReadRefused;
pub use status::{FollowerStatus, GroupStatus, Role};

use crate::codec::CodecError;
use crate::link::Links;
use crate::log::{LogRecord, ShardLog};
use crate::machine::{Machine, Progress, StateMachine};
use crate::network::{ForcedElection, Network, SnapshotSender};
use crate::options::{GroupOptions, InvalidOptions};
use crate::types::{Callback, Member, Payload, Raft, ReplicaNode, TypeConfig};

/// Largest payload of one entry, in bytes.
pub const ENTRY_BYTES_MAX: usize = 8 << 20;

/// Why a group could not be started, initialised or asked.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The options contradict each other.
    #[error(transparent)]
    Options(#[from] InvalidOptions),
    /// openraft does not take the options.
    #[error("raft does not accept its configuration: {0}")]
    Config(String),
    /// The machine's applied record is not one.
    #[error("the applied record of shard {shard} is corrupt: {source}; replace this replica", shard = shard.0)]
    Record {
        /// The shard.
        shard: ShardId,
        /// What is wrong with it.
        source: CodecError,
    },
    /// The log was purged beyond what the machine has: its state was lost or is an old copy.
    #[error(
        "the log of shard {shard} begins behind entry {purged}, but its state ends at {applied:?}; \
         the state was lost or replaced by an older one, replace this replica by a new one",
        shard = shard.0
    )]
    StateBehindLog {
        /// The shard.
        shard: ShardId,
        /// The last index of the state; None for an empty one.
        applied: Option<u64>,
        /// The last index that was purged from the log.
        purged: u64,
    },
    /// The group has stopped, since it was shut down or its storage failed.
    #[error("the raft group of shard {shard} has stopped: {reason}", shard = shard.0)]
    Stopped {
        /// The shard.
        shard: ShardId,
        /// openraft's reason.
        reason: String,
    },
    /// The members do not make a group that this replica can begin.
    #[error("shard {shard} cannot begin with these members: {reason}", shard = shard.0)]
    Members {
        /// The shard.
        shard: ShardId,
        /// What is wrong with them.
        reason: String,
    },
}

/// What became of a proposal.
#[derive(Debug)]
pub enum Outcome {
    /// Committed and applied here, with the effects of its commands.
    Applied(Vec<Effects>),
    /// Not proposed: another replica leads, on the node given if known.
    NotLeader {
        /// The node to try next.
        leader: Option<NodeId>,
    },
    /// Not proposed: this replica leads but no majority has answered it lately, as just after an
    /// election. Try the same node again.
    NotReady,
    /// Not proposed: the payload is over its limit.
    TooLarge {
        /// [`ENTRY_BYTES_MAX`].
        bytes_max: usize,
    },
    /// It may or may not be committed, now or later. Propose it again only if it is idempotent.
    Unknown,
}

/// A handle to a running group. Clones share it.
#[derive(Clone)]
pub struct Group {
    inner: Arc<Inner>,
}

struct Inner {
    shard: ShardId,
    me: Member,
    options: GroupOptions,
    raft: Raft,
    links: Arc<Links>,
    forced: Arc<ForcedElection>,
    progress: Progress,
    log: GroupLog<LogRecord>,
    reads: Arc<read::Reads>,
    leadership: watch::Receiver<Leadership>,
    /// It takes no log from its very beginning.
    requires_snapshot: AtomicBool,
    /// One flush at a time.
    flushing: Mutex<()>,
    /// One transfer at a time.
    transferring: Mutex<()>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group")
            .field("shard", &self.inner.shard)
            .field("me", &self.inner.me)
            .finish_non_exhaustive()
    }
}

impl Group {
    /// Starts the replica `me` of `shard` from its log and its machine. It takes part in
    /// elections at once if it is a voter; a new replica waits for [`Group::initialize`] or to be
    /// added by a leader. Must run on a tokio runtime. It runs until [`Group::shutdown`], also
    /// when all handles are dropped.
    ///
    /// # Errors
    /// When the options are invalid, or the stored state cannot be read.
    pub async fn start(
        shard: ShardId,
        me: Member,
        options: GroupOptions,
        log: GroupLog<LogRecord>,
        machine: Box<dyn Machine>,
        links: Arc<Links>,
        snapshots: Arc<dyn SnapshotSender>,
    ) -> Result<Group, GroupError> {
        options.validate()?;
        let config = Arc::new(
            options
                .config()
                .map_err(|error| GroupError::Config(error.to_string()))?,
        );
        let (machine, progress) =
            StateMachine::new(machine).map_err(|source| GroupError::Record { shard, source })?;
        let applied = progress.applied.borrow().map(|applied| applied.index);
        if let Some((purged, _)) = log.purged()
            && applied < Some(purged)
        {
            return Err(GroupError::StateBehindLog {
                shard,
                applied,
                purged,
            });
        }
        let forced = Arc::new(ForcedElection::default());
        let network = Network {
            shard,
            links: Arc::clone(&links),
            snapshots,
            forced: Arc::clone(&forced),
        };
        let raft = Raft::new(
            me.replica.0,
            config,
            network,
            ShardLog::new(log.clone()),
            machine,
        )
        .await
        .map_err(|fatal| stopped(shard, &fatal))?;
        let (leadership, watching) = leadership::follow(me, &raft, progress.applied.subscribe());
        let reads = Arc::new(read::Reads::default());
        let reading = read::run(
            me,
            raft.clone(),
            Arc::clone(&reads),
            progress.applied.subscribe(),
            options.read_timeout,
        );
        let inner = Inner {
            shard,
            me,
            options,
            raft,
            links,
            forced,
            progress,
            log,
            reads,
            leadership,
            requires_snapshot: AtomicBool::new(false),
            flushing: Mutex::new(()),
            transferring: Mutex::new(()),
            tasks: vec![watching, reading],
        };
        Ok(Group {
            inner: Arc::new(inner),
        })
    }

    /// The shard.
    pub fn shard(&self) -> ShardId {
        self.inner.shard
    }

    /// This replica.
    pub fn me(&self) -> Member {
        self.inner.me
    }

    /// From now on this replica, as long as it has nothing, takes no log from its very beginning:
    /// the leader has to send a snapshot, once it has purged its first entry. For a replica that
    /// is added to a group which has begun long ago: its machine is as of today, and the first
    /// entries may be about another one. To be called before peers find the group.
    pub fn require_snapshot(&self) {
        self.inner.requires_snapshot.store(true, Ordering::Release);
    }

    pub(crate) fn wants_snapshot(&self) -> bool {
        let inner = &self.inner;
        inner.requires_snapshot.load(Ordering::Acquire) && inner.progress.applied.borrow().is_none()
    }

    pub(crate) fn raft(&self) -> &Raft {
        &self.inner.raft
    }

    /// Begins a new group with these voters, of which this replica must be one, and calls an
    /// election. To be called on one replica, or on several with the same members. When the group
    /// has begun already, nothing happens.
    ///
    /// # Errors
    /// When the members do not fit, or the group has stopped.
    pub async fn initialize(&self, members: &[Member]) -> Result<(), GroupError> {
        let shard = self.inner.shard;
        let nodes: BTreeMap<u64, ReplicaNode> = members
            .iter()
            .map(|member| {
                (
                    member.replica.0,
                    ReplicaNode {
                        node: member.node.0,
                    },
                )
            })
            .collect();
        if nodes.len() != members.len() {
            return Err(GroupError::Members {
                shard,
                reason: "a replica id is given twice".to_owned(),
            });
        }
        match self.inner.raft.initialize(nodes).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::APIError(error)) => Err(GroupError::Members {
                shard,
                reason: error.to_string(),
            }),
            Err(RaftError::Fatal(fatal)) => Err(stopped(shard, &fatal)),
        }
    }

    /// Proposes one entry. Returns when it is in the group's queue, waiting while that is full;
    /// `done` is called exactly once with what became of it, on a task of the group: it must not
    /// block. Proposals of one caller are handled in order, but one that is refused does not keep
    /// the next from being taken: a leader that hears no majority refuses, and goes on when it
    /// does. See [`Group::decided`].
    pub async fn propose(&self, payload: Bytes, done: impl FnOnce(Outcome) + Send + 'static) {
        self.write(None, payload, done).await;
    }

    /// The same, refused unless this replica leads in that term.
    pub async fn propose_in(
        &self,
        term: u64,
        payload: Bytes,
        done: impl FnOnce(Outcome) + Send + 'static,
    ) {
        self.write(Some(term), payload, done).await;
    }

    async fn write(
        &self,
        term: Option<u64>,
        payload: Bytes,
        done: impl FnOnce(Outcome) + Send + 'static,
    ) {
        if payload.len() > ENTRY_BYTES_MAX {
            return done(Outcome::TooLarge {
                bytes_max: ENTRY_BYTES_MAX,
            });
        }
        let me = self.inner.me;
        let callback = Callback::new(move |result| done(outcome(me, result)));
        // When the group has stopped it drops the callback, which answers `Unknown`.
        let mut request = self.inner.raft.write(Payload(payload)).responder(callback);
        if let Some(term) = term {
            request = request.with_leader(LeaderId {
                term,
                node_id: me.replica.0,
            });
        }
        if let Err(fatal) = request.await {
            tracing::debug!(shard = self.inner.shard.0, error = %fatal, "proposal to a stopped group");
        }
    }

    /// Returns when everything proposed before is either in the log, or was refused and its `done`
    /// has been called. Whoever proposes in an order that matters calls it before the next one.
    pub async fn decided(&self) {
        // Handled after all that was sent before it.
        if let Err(fatal) = self.inner.raft.with_raft_state(|_| ()).await {
            tracing::debug!(shard = self.inner.shard.0, error = %fatal, "the group has stopped");
        }
    }

    /// Waits until the group stops, and returns why. It stops when it is shut down or when its
    /// storage fails; the latter must end the process.
    pub async fn stopped(&self) -> String {
        use openraft::async_runtime::WatchReceiver;
        let mut metrics = self.inner.raft.metrics();
        loop {
            if let Err(fatal) = &metrics.borrow_watched().running_state {
                return fatal.to_string();
            }
            if metrics.changed().await.is_err() {
                return "the group's core is gone".to_owned();
            }
        }
    }

    /// Stops the replica and waits until it has stopped. Its log and machine are no longer used
    /// when this returns.
    pub async fn shutdown(&self) {
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::warn!(shard = self.inner.shard.0, %error, "raft group did not stop cleanly");
        }
        self.inner.tasks.iter().for_each(AbortHandle::abort);
        self.inner.reads.refuse_all();
    }
}

fn stopped(shard: ShardId, fatal: &Fatal<TypeConfig>) -> GroupError {
    GroupError::Stopped {
        shard,
        reason: fatal.to_string(),
    }
}

/// Where a request is to go instead: None for "here, but later".
fn redirect(me: Member, forward: &ForwardToLeader<TypeConfig>) -> Option<Option<NodeId>> {
    match forward.reason {
        ForwardReason::LeaseExpired => None,
        ForwardReason::NotLeader | ForwardReason::LeadershipTransfer => {
            // A vote of this replica's own that is not settled names itself.
            let leader = forward
                .leader_node
                .filter(|_| forward.leader_id != Some(me.replica.0));
            Some(leader.map(|node| NodeId(node.node)))
        }
    }
}

fn outcome(me: Member, result: Option<ClientWriteResult<TypeConfig>>) -> Outcome {
    match result {
        Some(Ok(response)) => Outcome::Applied(response.data.0),
        Some(Err(ClientWriteError::ForwardToLeader(forward))) => match redirect(me, &forward) {
            Some(leader) => Outcome::NotLeader { leader },
            None => Outcome::NotReady,
        },
        // The others are not answers to a proposal of commands.
        Some(Err(
            ClientWriteError::LogEntryDiscarded(_)
            | ClientWriteError::ChangeMembershipError(_)
            | ClientWriteError::PreconditionFailed(_),
        ))
        | None => Outcome::Unknown,
    }
}
