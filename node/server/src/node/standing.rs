//! What the node's standing asks of its clients: while it is drained, for whatever purpose, they
//! connect elsewhere. Leaders and replicas are the steering's to move.
//!
//! Owner of no state: the standing is the meta group's, whether streams are taken the gateway's.

use std::sync::Arc;

use carillon_core::map::{MetaState, Standing};

use super::Node;

impl Node {
    /// Sends clients away whenever this node is drained, and takes them again, until the node
    /// stops.
    pub(super) async fn follow_standing(self: Arc<Self>) {
        let me = self.config.node();
        let is_drained =
            |meta: &MetaState| matches!(meta.standing(me), Some(Standing::Draining { .. }));
        let gateway = &self.services.gateway;
        let mut changes = self.cluster().watch_meta();
        loop {
            let drained = is_drained(&changes.borrow_and_update());
            let changed = changes.wait_for(|meta| is_drained(meta) != drained);
            if !drained {
                gateway.open();
                if changed.await.is_err() {
                    return;
                }
                continue;
            }
            let spread = self.config.clients.drain_spread;
            tracing::info!(?spread, "is drained: clients are told to connect elsewhere");
            // Told to all or not, it stays so until the standing changes.
            let told = async {
                gateway.send_away(spread).await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = told => {}
                changed = changed => if changed.is_err() { return },
            }
        }
    }
}
