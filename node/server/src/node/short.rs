//! Gives leads away while the disk is short: another node may have room, and then people go on
//! writing to the shard. Who is to lead it stays as it is, so the lead comes back with the room
//! (`preferred`).
//!
//! Owner of no state. Invariant: a lead goes to a node that says it has room, or stays.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use carillon_core::ids::NodeId;

use super::Node;
use crate::disk::Level;

/// Between two looks for a node that has room.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long one hand-over may take.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(2);

impl Node {
    /// Whenever the disk is short, gives away what this node leads; until it stops.
    pub(super) async fn lead_nothing_while_short(self: Arc<Self>) {
        let mut level = self.room.watch();
        loop {
            if level
                .wait_for(|level| *level != Level::Roomy)
                .await
                .is_err()
                || self.stopping.load(Ordering::Acquire)
            {
                return;
            }
            self.give_leads_away().await;
            // A node that had no room may have some, and elections bring leads here.
            let _ = tokio::time::timeout(LOOK_INTERVAL, level.changed()).await;
        }
    }

    async fn give_leads_away(&self) {
        let (cluster, me) = (self.cluster(), self.config.node());
        let meta = cluster.meta();
        // What those lead that have room, with what they get here.
        let mut leads: BTreeMap<NodeId, Option<u32>> = BTreeMap::new();
        for shard in &meta.map.shards {
            let replica = cluster.replica(shard.shard_id);
            let Some(replica) = replica.filter(|replica| replica.leads()) else {
                continue;
            };
            let others = shard.replicas.iter().map(|replica| replica.node_id);
            let others = others.filter(|node| *node != me && cluster.is_up(*node));
            let mut takes = Vec::new();
            for node in others {
                let known = match leads.entry(node) {
                    Entry::Occupied(known) => *known.get(),
                    Entry::Vacant(new) => {
                        *new.insert(self.leads_of_one_that_takes_more(node).await)
                    }
                };
                takes.extend(known.map(|count| (count, node)));
            }
            takes.sort_unstable();
            for (count, node) in takes {
                let group = replica.group();
                match group.transfer_leader(node, HANDOVER_TIMEOUT).await {
                    Ok(()) => {
                        let (shard, to) = (shard.shard_id.0, node.0);
                        tracing::info!(shard, to, "gave the lead away: the disk is short");
                        leads.insert(node, Some(count + 1));
                        break;
                    }
                    Err(error) => {
                        tracing::info!(shard = shard.shard_id.0, %error, "the lead stays for now");
                    }
                }
            }
        }
    }

    /// How many shards a node leads; none when it has no room for more, stops, or does not answer.
    pub(super) async fn leads_of_one_that_takes_more(&self, node: NodeId) -> Option<u32> {
        let status = self.calls.status_of(node).await?.node?;
        (!status.draining && !status.disk_short).then_some(status.leaders)
    }
}
