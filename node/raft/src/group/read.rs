//! Linearizable reads by ReadIndex.
//!
//! A task owns the rounds; callers wait in a list. A round asks a majority whether this replica
//! still leads, then waits until everything committed before is applied. Callers that come while
//! a round is under way wait for the next one, which begins after them; all that wait share it.
//! Invariant: whoever is answered Ok had called before the round began that answers it.

use std::sync::Arc;
use std::time::Duration;

use carillon_core::ids::NodeId;
use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::AbortHandle;

use super::{Group, redirect};
use crate::types::{LogId, Member, Raft};

/// Reads that wait for the next round.
const WAITING_READS_MAX: usize = 65_536;

/// Why a read may not be answered from this replica now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadRefused {
    /// Another replica leads.
    #[error("this replica does not lead")]
    NotLeader {
        /// The leader's node, if known.
        leader: Option<NodeId>,
    },
    /// This replica leads but cannot serve yet; try again.
    #[error("this leader is not ready")]
    NotReady,
    /// No majority answered in time, or applying took too long.
    #[error("no majority confirmed this leader in time")]
    Timeout,
    /// Too many reads wait.
    #[error("more than {WAITING_READS_MAX} reads wait")]
    TooMany,
    /// The group has stopped.
    #[error("the raft group has stopped")]
    Stopped,
}

type Answer = Result<(), ReadRefused>;

#[derive(Default)]
pub(super) struct Reads {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Default)]
struct Waiting {
    readers: Vec<oneshot::Sender<Answer>>,
    /// No round will come any more.
    closed: bool,
}

impl Reads {
    fn answer(readers: Vec<oneshot::Sender<Answer>>, answer: Answer) {
        for reader in readers {
            // A reader that no longer waits is of no interest.
            reader.send(answer).ok();
        }
    }

    pub(super) fn refuse_all(&self) {
        let readers = {
            let mut waiting = self.waiting.lock();
            waiting.closed = true;
            std::mem::take(&mut waiting.readers)
        };
        Self::answer(readers, Err(ReadRefused::Stopped));
    }
}

impl Group {
    /// Returns when this replica's state includes the entry, whoever leads; or when the group has
    /// stopped.
    pub async fn applied(&self, index: u64) {
        let mut applied = self.inner.progress.applied.subscribe();
        let includes = applied.wait_for(|last| last.is_some_and(|last| last.index >= index));
        // Of one that has stopped nothing more is to be waited for.
        let _ = includes.await;
    }

    /// Returns when this replica's state includes everything that was acknowledged to anybody
    /// before the call.
    ///
    /// # Errors
    /// [`ReadRefused`], after at most about twice [`crate::GroupOptions::read_timeout`].
    pub async fn read_index(&self) -> Result<(), ReadRefused> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiting = self.inner.reads.waiting.lock();
            if waiting.closed {
                return Err(ReadRefused::Stopped);
            }
            if waiting.readers.len() >= WAITING_READS_MAX {
                return Err(ReadRefused::TooMany);
            }
            waiting.readers.push(sender);
        }
        self.inner.reads.wake.notify_one();
        let limit = self.inner.options.read_timeout * 2;
        match tokio::time::timeout(limit, receiver).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(ReadRefused::Stopped),
            Err(_) => Err(ReadRefused::Timeout),
        }
    }
}

pub(super) fn run(
    me: Member,
    raft: Raft,
    reads: Arc<Reads>,
    mut applied: watch::Receiver<Option<LogId>>,
    timeout: Duration,
) -> AbortHandle {
    let task = tokio::spawn(async move {
        loop {
            reads.wake.notified().await;
            let readers = std::mem::take(&mut reads.waiting.lock().readers);
            if readers.is_empty() {
                continue;
            }
            let answer = tokio::time::timeout(timeout, round(me, &raft, &mut applied)).await;
            Reads::answer(readers, answer.unwrap_or(Err(ReadRefused::Timeout)));
        }
    });
    task.abort_handle()
}

async fn round(me: Member, raft: &Raft, applied: &mut watch::Receiver<Option<LogId>>) -> Answer {
    let read = match raft.get_read_log_id(ReadPolicy::ReadIndex).await {
        Ok((read, _)) => read.index(),
        Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
            return Err(match redirect(me, &forward) {
                Some(leader) => ReadRefused::NotLeader { leader },
                None => ReadRefused::NotReady,
            });
        }
        Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
            return Err(ReadRefused::Timeout);
        }
        Err(RaftError::Fatal(_)) => return Err(ReadRefused::Stopped),
    };
    match applied
        .wait_for(|applied| applied.is_some_and(|applied| applied.index >= read))
        .await
    {
        Ok(_) => Ok(()),
        Err(_) => Err(ReadRefused::Stopped),
    }
}
