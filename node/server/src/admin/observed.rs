//! The cluster as reads of `carillon.admin.v1` show it: on any node at least as new as all nodes
//! that answer have it. Without that, one that was away says what was true before it went, and
//! who has just changed something does not find it.
//!
//! Owner of no state.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use carillon_core::ids::NodeId;
use carillon_core::map::{META_SHARD, MetaState};
use carillon_proto::internal::StatusResponse;

use super::AdminService;

/// How long it is waited for what others know. After it the answer is what is known here: a
/// cluster whose nodes cannot talk to each other is to be looked at too.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(1);

/// How the nodes of the map are; none for those that do not answer.
pub(super) type Statuses = BTreeMap<NodeId, Option<StatusResponse>>;

impl AdminService {
    /// What the meta group has decided, and how all nodes are.
    pub(super) async fn observed(&self) -> (Arc<MetaState>, Statuses) {
        let cluster = self.node.cluster();
        let mut statuses = self.all_statuses().await;
        if self.catch_up(&statuses).await {
            let meta = cluster.meta();
            let is_new = |node: &NodeId| !statuses.contains_key(node);
            let nodes = meta.map.nodes.iter().map(|node| node.node_id);
            if nodes.clone().any(|node| is_new(&node)) {
                statuses = self.all_statuses().await;
            }
        }
        (cluster.meta(), statuses)
    }

    /// The first of the two, as the leader of the meta group knows it: others may be silent.
    pub(super) async fn current(&self) -> Arc<MetaState> {
        let cluster = self.node.cluster();
        match (cluster.leader(META_SHARD), cluster.replica(META_SHARD)) {
            (Some(leader), Some(replica)) if leader.node == cluster.me() => {
                let confirmed = replica.group().read_index();
                // Without a majority nobody knows more.
                let _ = tokio::time::timeout(CATCH_UP_TIMEOUT, confirmed).await;
            }
            (Some(leader), _) => {
                let status = self.node.calls().status_of(leader.node).await;
                self.catch_up(&Statuses::from([(leader.node, status)]))
                    .await;
            }
            (None, _) => {
                self.catch_up(&self.all_statuses().await).await;
            }
        }
        cluster.meta()
    }

    /// Waits until this node knows what those that answered know; whether that was news.
    async fn catch_up(&self, statuses: &Statuses) -> bool {
        let replicas = statuses.values().flatten().flat_map(|one| &one.replicas);
        let meta = replicas.filter(|replica| replica.shard_id == META_SHARD.0);
        let newest = meta.filter_map(|replica| replica.status.as_ref()?.applied_index.into());
        let (Some(newest), Some(replica)) = (newest.max(), self.node.cluster().replica(META_SHARD))
        else {
            return false;
        };
        let known = replica.group().status().applied;
        if known.is_some_and(|known| known.index >= newest) {
            return false;
        }
        let applied = replica.group().applied(newest);
        // It is as new as can be had, whether or not it came.
        let _ = tokio::time::timeout(CATCH_UP_TIMEOUT, applied).await;
        true
    }
}
