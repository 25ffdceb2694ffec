//! A node's graceful stop: leaderships, clients, operations, then the disk.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use carillon_core::ids::NodeId;

use super::Node;

/// How long one hand-over of a leadership may take while stopping.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(2);
/// Clients are told to reconnect within this, each at a moment of its own.
const RECONNECT_SPREAD: Duration = Duration::from_millis(500);

impl Node {
    /// A graceful stop: leaderships are handed over, clients connect elsewhere, what was
    /// taken is finished, everything is durable. At most the configured time.
    pub(super) async fn leave(self: &Arc<Self>) {
        tracing::info!("stops: hands over what it leads");
        self.stopping.store(true, Ordering::Release);
        self.ready.send_replace(false);
        let limit = self.config.shutdown_timeout;
        if tokio::time::timeout(limit, self.leave_in_order())
            .await
            .is_err()
        {
            tracing::warn!(
                ?limit,
                "did not finish in time; what is acknowledged is in the log"
            );
        }
    }

    async fn leave_in_order(self: &Arc<Self>) {
        let drained = self
            .services
            .gateway
            .drain(RECONNECT_SPREAD, self.config.shutdown_timeout / 2);
        tokio::join!(self.hand_over(), drained);
        let outstanding = async {
            while self.services.router.outstanding() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(self.config.shutdown_timeout / 4, outstanding)
            .await
            .is_err()
        {
            tracing::warn!(
                operations = self.services.router.outstanding(),
                "some operations did not end"
            );
        }
        let replicas = self.cluster().replicas();
        for replica in &replicas {
            replica.stop();
        }
        self.services.router.close();
        for replica in &replicas {
            replica.group().shutdown().await;
        }
        let (flusher, log) = (self.flusher.clone(), self.log.clone());
        let flushed = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
            flusher.flush_now()?;
            log.shutdown()?;
            Ok(())
        });
        match flushed.await {
            Ok(Ok(())) => tracing::info!("stopped; everything is durable"),
            Ok(Err(error)) => {
                tracing::error!(%error, "the last flush failed; the log has what is missing")
            }
            Err(error) => tracing::error!(%error, "the last flush panicked"),
        }
    }

    async fn hand_over(&self) {
        for replica in self.cluster().replicas() {
            if !replica.leads() {
                continue;
            }
            let status = replica.group().status();
            let mut targets: Vec<NodeId> = status
                .voters
                .iter()
                .map(|member| member.node)
                .filter(|node| *node != self.config.node() && self.cluster().is_up(*node))
                .collect();
            let targets_count = targets.len().max(1);
            targets.rotate_left(replica.shard().0 as usize % targets_count);
            for target in targets {
                match replica
                    .group()
                    .transfer_leader(target, HANDOVER_TIMEOUT)
                    .await
                {
                    Ok(()) => break,
                    Err(error) => {
                        tracing::info!(shard = replica.shard().0, %error, "not handed over")
                    }
                }
            }
        }
    }
}
