//! Gives leads back: a shard that this node leads, and the map wants on another node, is
//! handed over once that node has been reachable for long enough and has caught up. Otherwise
//! the nodes that were up last would lead everything, and losing one of them would hurt most.
//!
//! Every leader looks after its own shards, so nothing is needed but the map, which may be
//! old: then the lead goes where it was wanted before, and goes on from there.
//!
//! Owner of the state: [`Returns`], since when nodes are reachable and shards are led here.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use carillon_core::ids::{NodeId, ShardId};
use carillon_raft::TransferError;

use super::Node;

/// How often it is looked, and so the pause between two hand-overs: each one costs its shard
/// about a round trip without progress.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How long one hand-over may take.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(2);

/// A shard that this node leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Led {
    shard: ShardId,
    term: u64,
    preferred: NodeId,
}

/// Since when things are as they are.
#[derive(Debug, Default)]
struct Returns {
    up_since: HashMap<NodeId, Instant>,
    led_since: HashMap<ShardId, (u64, Instant)>,
}

impl Returns {
    /// The shards that are due to go to another node, by number: both it has been up and this
    /// node has led for at least `after`.
    fn due(&mut self, now: Instant, after: Duration, up: &[NodeId], led: &[Led]) -> Vec<Led> {
        self.up_since.retain(|node, _| up.contains(node));
        for node in up {
            self.up_since.entry(*node).or_insert(now);
        }
        let still = |shard: &ShardId, term: u64| {
            let mut led = led.iter();
            led.any(|led| led.shard == *shard && led.term == term)
        };
        self.led_since
            .retain(|shard, (term, _)| still(shard, *term));
        for led in led {
            self.led_since.entry(led.shard).or_insert((led.term, now));
        }
        let long = |since: Instant| now.duration_since(since) >= after;
        let mut due: Vec<Led> = led
            .iter()
            .filter(|led| self.up_since.get(&led.preferred).copied().is_some_and(long))
            .filter(|led| {
                self.led_since
                    .get(&led.shard)
                    .is_some_and(|led| long(led.1))
            })
            .copied()
            .collect();
        due.sort_unstable_by_key(|led| led.shard);
        due
    }
}

impl Node {
    /// Gives leads back until the node stops.
    pub(super) async fn give_leads_back(self: Arc<Self>) {
        let mut returns = Returns::default();
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let after = self.config.raft.leader_return_after;
        loop {
            looks.tick().await;
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
            let (up, led) = self.led_elsewhere();
            let due = returns.due(Instant::now(), after, &up, &led);
            let mut takes = HashMap::new();
            for led in due {
                let takes = match takes.entry(led.preferred) {
                    Entry::Occupied(known) => *known.get(),
                    Entry::Vacant(new) => *new.insert(self.takes_leads(led.preferred).await),
                };
                if takes && self.give_back(led).await {
                    break;
                }
            }
        }
    }

    /// The other nodes that are linked, and the shards led here that are wanted elsewhere.
    fn led_elsewhere(&self) -> (Vec<NodeId>, Vec<Led>) {
        let (cluster, me) = (self.cluster(), self.config.node());
        let meta = cluster.meta();
        let nodes = meta.map.nodes.iter().map(|node| node.node_id);
        let up = nodes.filter(|node| *node != me && cluster.is_up(*node));
        let shards = meta.map.shards.iter();
        let led = shards.filter_map(|descriptor| {
            let preferred = descriptor.preferred_leader;
            let replica = cluster.replica(descriptor.shard_id)?;
            (preferred != me).then_some(Led {
                shard: descriptor.shard_id,
                term: replica.leads_in()?.term(),
                preferred,
            })
        });
        (up.collect(), led.collect())
    }

    /// The node answers, and is neither about to stop nor short of disk: then it would only hand on
    /// what it gets.
    async fn takes_leads(&self, node: NodeId) -> bool {
        self.leads_of_one_that_takes_more(node).await.is_some()
    }

    /// Hands one shard over; false when that has to wait, and nothing was changed.
    async fn give_back(&self, led: Led) -> bool {
        let Some(replica) = self.cluster().replica(led.shard) else {
            return false;
        };
        let group = replica.group();
        match group.transfer_leader(led.preferred, HANDOVER_TIMEOUT).await {
            Ok(()) => {
                tracing::info!(
                    shard = led.shard.0,
                    to = led.preferred.0,
                    "gave the lead back"
                );
                true
            }
            Err(error) => {
                tracing::info!(shard = led.shard.0, %error, "the lead stays here for now");
                matches!(error, TransferError::Timeout { .. })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(10);

    fn led(shard: u32, term: u64, preferred: u64) -> Led {
        Led {
            shard: ShardId(shard),
            term,
            preferred: NodeId(preferred),
        }
    }

    #[test]
    fn only_what_has_lasted_is_due() {
        let mut returns = Returns::default();
        let began = Instant::now();
        let mut look = |seconds: u64, up: &[u64], all: &[Led]| {
            let up: Vec<NodeId> = up.iter().map(|id| NodeId(*id)).collect();
            returns.due(began + Duration::from_secs(seconds), AFTER, &up, all)
        };
        let (first, second) = (led(7, 3, 2), led(4, 1, 3));
        assert_eq!(look(0, &[2], &[first, second]), []);
        assert_eq!(look(9, &[2, 3], &[first, second]), []);
        assert_eq!(look(10, &[2, 3], &[first, second]), [first]);
        assert_eq!(look(19, &[2, 3], &[first, second]), [second, first]);
        // The node was away for a moment, the other shard was led elsewhere in between.
        assert_eq!(look(20, &[3], &[first, second]), [second]);
        let again = led(4, 2, 3);
        assert_eq!(look(21, &[2, 3], &[first, again]), []);
        assert_eq!(look(30, &[2, 3], &[first, again]), []);
        assert_eq!(look(31, &[2, 3], &[first, again]), [again, first]);
        assert_eq!(look(32, &[2, 3], &[]), []);
        assert_eq!(look(60, &[2, 3], &[again]), []);
    }
}
