//! Shards of this node that are merged: what is frozen is made durable, and what its neighbour
//! has taken over ends.
//!
//! Owner of no state. Invariants: what is frozen is told to be kept only when it is durable, and
//! when no replica of the one that takes it over can be built from the beginning of its log; the
//! log of what was taken over is removed only when that is durable.

use anyhow::Context as _;
use carillon_core::ids::ShardId;
use carillon_core::map::Merge;
use carillon_core::merging::MergeId;
use carillon_log::failpoint;

use super::Node;
use super::local::Presence;
use crate::flush;
use crate::shard::Replica;
use crate::shard::merging::NotMerged;

impl Node {
    /// Makes durable what the right shard of a merge is frozen with here, and sees to it that
    /// the left one can take it over.
    ///
    /// # Errors
    /// [`NotMerged`]; it may be asked for again.
    pub async fn keep_frozen(&self, merge: &Merge) -> Result<(), NotMerged> {
        let left = self.cluster().replica(merge.shard_id);
        let left = left.ok_or(NotMerged::NotHere)?;
        if left.merges().absorbed >= merge.merge_id {
            return Ok(());
        }
        let right = self.cluster().replica(merge.absorbed_shard_id);
        let right = right.ok_or(NotMerged::NotHere)?;
        right.frozen(merge.merge_id).await?;
        if !flush::begin_logs_later(&self.flusher, std::slice::from_ref(&left)).await {
            return Err(NotMerged::NotReady);
        }
        if !is_ready_for(&left, &right) {
            return Err(NotMerged::NotReady);
        }
        let flusher = self.flusher.clone();
        let flushed = tokio::task::spawn_blocking(move || flusher.flush_now()).await;
        match flushed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "what is frozen cannot be made durable");
                return Err(NotMerged::Disk);
            }
            Err(_) => return Err(NotMerged::Disk),
        }
        right.keep(merge.merge_id);
        failpoint::hit("node.merge.kept");
        Ok(())
    }

    /// The merge for which a replica is frozen, when it is durable with all that it is frozen
    /// with and the one that takes it over is ready.
    pub(super) fn kept_frozen_by(&self, right: &Replica) -> Option<MergeId> {
        let merge_id = right.kept()?;
        let meta = self.cluster().meta();
        let mut merges = meta.merges.values();
        let merge = merges
            .find(|merge| merge.merge_id == merge_id && merge.absorbed_shard_id == right.shard())?;
        let left = self.cluster().replica(merge.shard_id)?;
        is_ready_for(&left, right).then_some(merge_id)
    }

    /// Lets the left shard of a merge, which must be led here, take over the right one.
    ///
    /// # Errors
    /// [`NotMerged`]; it may be asked for again.
    pub async fn absorb(&self, merge: &Merge) -> Result<(), NotMerged> {
        let meta = self.cluster().meta();
        let left = self.cluster().replica(merge.shard_id);
        let left = left.ok_or(NotMerged::NotHere)?;
        if left.merges().absorbed >= merge.merge_id {
            return Ok(());
        }
        let right = meta.map.shard(merge.absorbed_shard_id);
        let slots = right.ok_or(NotMerged::Late)?.slots;
        // A replica that is no voter need not have what is taken over.
        if !left.group().status().learners.is_empty() {
            return Err(NotMerged::NotReady);
        }
        left.absorb(merge.merge_id, merge.absorbed_shard_id, slots)
            .await
    }

    /// Ends the replicas that their neighbours have taken over.
    pub(super) async fn end_absorbed(&self) -> anyhow::Result<()> {
        for replica in self.cluster().replicas() {
            if !replica.reader().is_absorbed() {
                continue;
            }
            let shard = replica.shard();
            let local = self.local.all().get(&shard).copied();
            let local = local.with_context(|| format!("shard {} is not on record", shard.0))?;
            anyhow::ensure!(local.presence == Presence::Live, "it is going already");
            self.delete_shard(shard, local).await?;
        }
        Ok(())
    }

    /// Stops a replica whose state is here for its neighbour to take over.
    pub(super) async fn hold_shard(&self, shard: ShardId) {
        if let Some(replica) = self.cluster().remove_replica(shard) {
            replica.retire().await;
            tracing::info!(shard = shard.0, "waits for its neighbour to take it over");
        }
    }

    /// Stops a replica whose state is its neighbour's, and returns when that is durable.
    pub(super) async fn leave_to_neighbour(&self, shard: ShardId) -> anyhow::Result<()> {
        if let Some(replica) = self.cluster().remove_replica(shard) {
            replica.retire().await;
        }
        let flusher = self.flusher.clone();
        tokio::task::spawn_blocking(move || flusher.flush_now()).await??;
        failpoint::hit("node.merge.durable");
        Ok(())
    }
}

/// Whether the left replica can take over the right one where it is: it ends where the other one
/// begins, and no replica of it can be built from the beginning of its log, in which case it
/// would have to take over what it has not.
fn is_ready_for(left: &Replica, right: &Replica) -> bool {
    let slots = left.reader().slots().joined(right.reader().slots());
    slots.is_some() && left.group().status().purged.is_some()
}
