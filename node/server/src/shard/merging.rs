//! A replica of a shard that is being merged: the steps that change it, what it holds while it
//! is frozen, and how far it is.
//!
//! Owner of no state: the mark is the machine's, the queue the replica's. Invariants: a leader
//! that knows that its shard is frozen proposes only what a frozen shard does; what came back
//! since it was frozen is offered again for a new lead, so nothing later overtakes it; what is
//! kept is never read, since its neighbour may have it already.

use std::sync::atomic::Ordering;
use std::time::Duration;

use carillon_core::apply::Effects;
use carillon_core::command::Command;
use carillon_core::ids::{ShardId, SlotRange};
use carillon_core::merging::{MergeId, MergeMark};
use carillon_core::reply::Reply;
use carillon_log::failpoint;
use tokio::sync::watch;

use super::Replica;
use super::lead::Lead;
use super::queue::{Origin, Proposal};

/// How long a step may take from being proposed to being applied here.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a step of a merge was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotMerged {
    /// Another replica leads, or it cannot take it now.
    #[error("this node does not lead the shard")]
    NotLeader,
    /// It was not applied in time. It may still be.
    #[error("the step was not applied in time")]
    TooSlow,
    /// The shard was thawed, or is frozen for a later merge.
    #[error("the merge is over for the shard")]
    Late,
    /// The node has no replica of one of the two shards.
    #[error("one of the shards has no replica on this node")]
    NotHere,
    /// The one that takes over has yet to come to where the other one begins.
    #[error("the shard that takes over is not ready on this node")]
    NotReady,
    /// The disk failed.
    #[error("what is frozen could not be made durable")]
    Disk,
}

impl Replica {
    /// What merges have done to the shard, as far as this replica has applied.
    pub fn merges(&self) -> MergeMark {
        *self.shared.merges.borrow()
    }

    /// The merge for which it is frozen, with all that it is frozen with on the disk.
    pub fn kept(&self) -> Option<MergeId> {
        let kept = MergeId(self.shared.kept.load(Ordering::Acquire));
        self.merges()
            .frozen_by
            .filter(|frozen_by| *frozen_by == kept)
    }

    /// All that it is frozen with for this merge is on the disk: from here on it is not read.
    pub fn keep(&self, merge_id: MergeId) {
        self.shared.keep(merge_id);
    }

    /// Freezes the shard; returns when that is applied here.
    ///
    /// # Errors
    /// [`NotMerged`].
    pub async fn freeze(&self, merge_id: MergeId) -> Result<(), NotMerged> {
        let command = Command::Freeze { merge_id };
        let seen = |mark: &MergeMark| mark.seen >= merge_id;
        let mark = self.step(command, "shard.freeze", seen).await?;
        frozen_by(mark, merge_id)
    }

    /// Returns when the freeze is applied here.
    ///
    /// # Errors
    /// [`NotMerged`].
    pub async fn frozen(&self, merge_id: MergeId) -> Result<(), NotMerged> {
        let seen = |mark: &MergeMark| mark.seen >= merge_id;
        frozen_by(self.mark(seen).await?, merge_id)
    }

    /// Thaws the shard; returns when that is applied here.
    ///
    /// # Errors
    /// [`NotMerged`].
    pub async fn thaw(&self, merge_id: MergeId) -> Result<(), NotMerged> {
        let command = Command::Thaw { merge_id };
        let thawed = |mark: &MergeMark| mark.seen >= merge_id && mark.frozen_by != Some(merge_id);
        self.step(command, "shard.thaw", thawed).await.map(drop)
    }

    /// Takes the right neighbour over; returns when that is applied here.
    ///
    /// # Errors
    /// [`NotMerged`].
    pub async fn absorb(
        &self,
        merge_id: MergeId,
        shard: ShardId,
        slots: SlotRange,
    ) -> Result<(), NotMerged> {
        let command = Command::Absorb {
            merge_id,
            shard,
            slots,
        };
        let absorbed = |mark: &MergeMark| mark.absorbed >= merge_id;
        self.step(command, "shard.absorb", absorbed).await.map(drop)
    }

    /// Proposes a step unless it is done.
    async fn step(
        &self,
        command: Command,
        point: &'static str,
        done: impl Fn(&MergeMark) -> bool,
    ) -> Result<MergeMark, NotMerged> {
        let mark = self.merges();
        if done(&mark) {
            return Ok(mark);
        }
        if !self.leads() {
            return Err(NotMerged::NotLeader);
        }
        failpoint::hit(point);
        let proposal = Proposal {
            command: command.encoded(),
            origin: Origin::Nobody,
            lead: Lead::ANY,
        };
        if self.offer(proposal).is_err() {
            return Err(NotMerged::NotLeader);
        }
        self.mark(done).await
    }

    async fn mark(&self, done: impl Fn(&MergeMark) -> bool) -> Result<MergeMark, NotMerged> {
        let mut merges = self.shared.merges.subscribe();
        let mark = merges.wait_for(done);
        match tokio::time::timeout(STEP_TIMEOUT, mark).await {
            Ok(Ok(mark)) => Ok(*mark),
            Ok(Err(_)) | Err(_) => Err(NotMerged::TooSlow),
        }
    }

    /// Holds what comes as long as the shard is frozen; says whether it is.
    pub(super) fn follow_merges(&self, merges: &mut watch::Receiver<MergeMark>) -> bool {
        // Looked up under the lock: what is noted last is the newest.
        let mut queue = self.queue.lock();
        let frozen = merges.borrow_and_update().frozen_by.is_some();
        queue.hold(frozen);
        frozen
    }

    /// What the outbox was to be told while the shard was frozen was dropped: it is read anew.
    pub(super) fn on_thawed(&self) {
        if self.leads() {
            self.services.fanout.on_leading(self.shard, true);
        }
    }

    /// Of an entry that has ended, gives back what found the shard frozen, and what waits: it
    /// comes again for a new lead, in its order, and is held. Returns the rest.
    pub(super) fn take_back_frozen(
        &self,
        lead: Lead,
        origins: Vec<Origin>,
        effects: Vec<Effects>,
    ) -> (Vec<Origin>, Vec<Effects>) {
        let stale = {
            let mut queue = self.queue.lock();
            queue.hold(self.merges().frozen_by.is_some());
            queue.end_lead(lead)
        };
        self.services.beat.taken(stale.len(), false);
        let all = origins.into_iter().zip(effects);
        let (frozen, done): (Vec<_>, Vec<_>) =
            all.partition(|(_, effect)| effect.reply == Reply::Frozen);
        let frozen = frozen.into_iter().map(|(origin, _)| origin);
        let stale = stale.into_iter().map(|proposal| proposal.origin);
        self.reject(frozen.chain(stale), self.leader());
        done.into_iter().unzip()
    }
}

fn frozen_by(mark: MergeMark, merge_id: MergeId) -> Result<(), NotMerged> {
    match mark.frozen_by {
        Some(frozen_by) if frozen_by == merge_id => Ok(()),
        _ => Err(NotMerged::Late),
    }
}
