//! Flushing the machine, purging the log below it, and taking in snapshots.
//!
//! openraft purges nothing by itself here. A flush is what it calls building a snapshot: it makes
//! it know how far the state is durable. Invariant: purged ≤ flushed.

use std::time::Duration;

use bytes::Bytes;
use carillon_core::ids::ShardId;
use openraft::type_config::alias::SnapshotOf;

use super::{Group, GroupError, stopped};
use crate::applied::AppliedRecord;
use crate::codec::{self, CodecError};
use crate::machine::{SnapshotContent, SnapshotData};
use crate::types::{LogId, Position, TypeConfig};

/// How long a flush may take before the caller is told; it goes on.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a flush may take to begin before it is asked for again.
const TRIGGER_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// What of a log stays when it is purged: the last entries of its durable part, as many as both
/// limits allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Entries at most.
    pub entries: u64,
    /// Bytes on disk at most.
    pub bytes: u64,
}

impl Retention {
    /// Nothing stays.
    pub const NONE: Self = Self::entries(0);

    /// So many entries, whatever their size.
    pub const fn entries(entries: u64) -> Self {
        let bytes = u64::MAX;
        Self { entries, bytes }
    }
}

/// Why a flush or purge was not done.
#[derive(Debug, thiserror::Error)]
pub enum MaintenanceError {
    /// The group has stopped, perhaps because the flush failed.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The flush takes very long.
    #[error("flushing shard {shard} takes longer than {FLUSH_TIMEOUT:?}", shard = shard.0)]
    Timeout {
        /// The shard.
        shard: ShardId,
    },
}

/// Why a snapshot was not installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The vote or the record is not one.
    #[error("malformed snapshot for shard {shard}: {source}", shard = shard.0)]
    Malformed {
        /// The shard.
        shard: ShardId,
        /// What is wrong.
        source: CodecError,
    },
    /// The snapshot cannot be from the leader that sent it.
    #[error("the snapshot for shard {shard} is newer than the vote of its sender", shard = shard.0)]
    Contradiction {
        /// The shard.
        shard: ShardId,
    },
    /// The group has stopped, perhaps because installing failed.
    #[error(transparent)]
    Group(#[from] GroupError),
}

impl Group {
    /// Makes the machine's state durable and purges the log in front of it but for what `retention`
    /// keeps. Returns the position that is durable, or None before the first entry. Concurrent calls
    /// run one after the other. A follower that still needs purged entries gets a snapshot.
    ///
    /// # Errors
    /// When the group stops or the flush takes too long.
    pub async fn flush_and_purge(
        &self,
        retention: Retention,
    ) -> Result<Option<Position>, MaintenanceError> {
        let inner = &self.inner;
        let one_at_a_time = inner.flushing.lock().await;
        if inner.progress.applied.borrow().is_none() {
            return Ok(None);
        }
        let flush = tokio::time::timeout(FLUSH_TIMEOUT, self.flush());
        let last = tokio::select! {
            flushed = flush => flushed.map_err(|_| MaintenanceError::Timeout { shard: inner.shard })??,
            reason = self.stopped() => return Err(self.gone(&reason).into()),
        };
        let Some(last) = last else { return Ok(None) };
        // The core learns of the flush a moment after it; purging before would do nothing.
        let mut known = inner.raft.watch_snapshot_progress();
        match tokio::time::timeout(FLUSH_TIMEOUT, known.wait_until_ge(&Some(last))).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Err(self.gone("the group's core is gone").into()),
            Err(_) => return Err(MaintenanceError::Timeout { shard: inner.shard }),
        }
        let first_in_bytes = inner.log.first_of_last(retention.bytes);
        let by_entries = last.index.checked_sub(retention.entries);
        let by_bytes = first_in_bytes.checked_sub(1);
        if let Some(upto) = by_entries.max(by_bytes.map(|upto| upto.min(last.index))) {
            inner
                .raft
                .trigger()
                .purge_log(upto)
                .await
                .map_err(|fatal| stopped(inner.shard, &fatal))?;
        }
        drop(one_at_a_time);
        Ok(Some(Position::of(&last)))
    }

    /// Runs one flush that begins after the call, and returns what is durable after it.
    async fn flush(&self) -> Result<Option<LogId>, GroupError> {
        let inner = &self.inner;
        let mut flushed = inner.progress.flushed.subscribe();
        let before = *flushed.borrow_and_update();
        loop {
            inner
                .raft
                .trigger()
                .snapshot()
                .await
                .map_err(|fatal| stopped(inner.shard, &fatal))?;
            // The core drops the trigger when it has not yet heard of the end of the flush before.
            let begun = flushed.wait_for(|flushed| flushed.begun > before.begun);
            match tokio::time::timeout(TRIGGER_AGAIN_AFTER, begun).await {
                Ok(Ok(_)) => break,
                Ok(Err(_)) => return Err(self.gone("the state machine is gone")),
                Err(_) => {}
            }
        }
        match flushed
            .wait_for(|flushed| flushed.ended > before.ended)
            .await
        {
            Ok(flushed) => Ok(flushed.last),
            Err(_) => Err(self.gone("the state machine is gone")),
        }
    }

    /// Takes in a snapshot that [`crate::SnapshotSender`] brought from a leader: `vote` and
    /// `applied` as it gave them, and what the server made of the content for
    /// [`crate::Machine::install`]. Returns the answer for the sender. A snapshot that is older
    /// than this replica's state is ignored.
    ///
    /// # Errors
    /// When it is malformed or the group has stopped.
    pub async fn install_snapshot(
        &self,
        vote: Bytes,
        applied: Bytes,
        content: SnapshotContent,
    ) -> Result<Bytes, InstallError> {
        let shard = self.inner.shard;
        let malformed = |source| InstallError::Malformed { shard, source };
        let vote = codec::whole_vote(vote).map_err(malformed)?;
        let record = AppliedRecord::decode(applied).map_err(malformed)?;
        // openraft asserts this; here it comes from the network.
        let possible = vote.committed
            && record
                .last
                .is_some_and(|last| last.leader_id <= vote.leader_id);
        if !possible {
            return Err(InstallError::Contradiction { shard });
        }
        let snapshot: SnapshotOf<TypeConfig, SnapshotData> = SnapshotOf::<TypeConfig, SnapshotData> {
            meta: record.meta(),
            snapshot: SnapshotData::Content(content),
        };
        let response = self.inner.raft.install_full_snapshot(vote, snapshot).await;
        let response = response.map_err(|fatal| stopped(shard, &fatal))?;
        Ok(codec::encoded(|buffer| {
            codec::put_vote(buffer, &response.vote)
        }))
    }

    fn gone(&self, reason: &str) -> GroupError {
        GroupError::Stopped {
            shard: self.inner.shard,
            reason: reason.to_owned(),
        }
    }
}
