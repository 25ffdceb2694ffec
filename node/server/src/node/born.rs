//! Replicas that a split has made on this disk: the split leaves a state for the new shard, in
//! the same write in which the old one loses its slots. Here it becomes a replica of this node,
//! and the operations of its slots find their way to it. So do those of slots that a merge has
//! given to a replica; what is left of the other one is for `merged`.
//!
//! Owner of no state: what a split leaves is in the store, which replicas there are is kept by
//! [`LocalReplicas`](super::local::LocalReplicas).
//!
//! Invariants: the new replica is on record, and the old one with the slots that are left to it,
//! before either is used for the first time since; the replica of a shard that nobody knows any
//! more is deleted like any other.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use carillon_core::ids::{Epoch, ShardId, SlotRange};
use carillon_core::map::{META_SHARD, MetaState};
use carillon_raft::{AppliedRecord, Group};

use super::Node;
use super::local::{LocalReplica, Presence};

/// Elections that the node which led the old shard calls for the new one: the other replicas
/// may come to the split a moment later than this one.
const CAMPAIGNS_MAX: u32 = 20;
/// How long each of them may take. Within it a majority answers, or is not there yet.
const CAMPAIGN_TIMEOUT: Duration = Duration::from_millis(50);

impl Node {
    /// Keeps what splits have made here since the last time, as far as the meta group's state
    /// here says what it is.
    pub(super) async fn adopt(self: &Arc<Self>, meta: &MetaState) -> anyhow::Result<()> {
        let store = self.store.clone();
        let shards = tokio::task::spawn_blocking(move || store.shards()).await??;
        let known = self.local.all();
        let mut kept = Vec::new();
        for (shard, (slots, applied)) in shards {
            if shard == META_SHARD {
                continue;
            }
            if let Some(local) = known.get(&shard) {
                let here = matches!(local.presence, Presence::Live | Presence::Rebuilding);
                if here && local.slots != slots {
                    kept.push((shard, LocalReplica { slots, ..*local }));
                    if let Some(replica) = self.cluster().replica(shard) {
                        replica.on_split();
                        let merged = replica.merges().absorbed;
                        self.cluster().merge_is_done(shard, merged);
                    }
                    if slots.last < local.slots.last {
                        self.cluster().split_is_done(shard);
                    }
                }
                continue;
            }
            let record = AppliedRecord::decode(applied)
                .with_context(|| format!("the applied record of shard {}", shard.0))?;
            let me = self.config.node();
            let mut voters = record.voters().into_iter();
            let Some(replica_id) = voters
                .find(|voter| voter.node == me)
                .map(|voter| voter.replica)
            else {
                // The old one was here as a learner that nobody wants any more.
                self.clear(shard, slots).await?;
                continue;
            };
            let named = meta.names_replica(shard, replica_id);
            if !named && replica_id >= meta.next_replica_id {
                // Of a split that the state here is too old to know.
                continue;
            }
            let since = if named { meta.map.epoch } else { Epoch(0) };
            let replica = LocalReplica {
                replica_id,
                slots,
                since,
                presence: Presence::Live,
            };
            kept.push((shard, replica));
        }
        if kept.is_empty() {
            return Ok(());
        }
        self.record(kept).await?;
        carillon_log::failpoint::hit("node.split.adopted");
        Ok(())
    }

    /// Removes what is of no replica.
    async fn clear(&self, shard: ShardId, slots: SlotRange) -> anyhow::Result<()> {
        tracing::info!(shard = shard.0, "a state of no replica is removed");
        let store = self.store.clone();
        let clear = move || store.shard(shard, slots)?.clear();
        Ok(tokio::task::spawn_blocking(clear).await??)
    }

    /// Lets the new shard be led where the old one is, as soon as a majority has it.
    pub(super) fn lead_after_split(&self, group: Group, old: ShardId) {
        let leads = self
            .cluster()
            .replica(old)
            .is_some_and(|replica| replica.leads());
        if !leads {
            return;
        }
        tokio::spawn(async move {
            let mut leadership = group.leadership();
            for _ in 0..CAMPAIGNS_MAX {
                if let Err(error) = group.campaign().await {
                    tracing::info!(shard = group.shard().0, %error, "no election was called");
                    return;
                }
                let led = leadership.wait_for(|leadership| leadership.leader.is_some());
                if tokio::time::timeout(CAMPAIGN_TIMEOUT, led).await.is_ok() {
                    return;
                }
            }
        });
    }

    /// Lets operations, deliveries and subscriptions go where the slots are, whenever that has
    /// changed.
    pub(super) async fn follow_routing(self: Arc<Self>) {
        loop {
            self.cluster().reroute_due().await;
            let gained = self.services.router.reroute();
            if gained.is_empty() {
                continue;
            }
            self.services.fanout.reroute();
            for shard in gained {
                self.services.router.on_leader_changed(shard);
                self.services.gateway.on_leader_changed(shard);
            }
        }
    }
}
