//! Ends changes of voters whose leader died between the two steps of it: the group is in a joint
//! configuration then, which nobody else would end, and its move would wait for good.
//!
//! Owner of no state but what was seen the last time. Every leader looks after its own groups.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Node;

/// How often it is looked. Who changes voters takes the second step by itself at once; what is
/// joint twice in a row is left by somebody else.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

impl Node {
    /// Looks at the groups that are led here, until the node stops.
    pub(super) async fn end_changes(self: Arc<Self>) {
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        let mut seen = HashMap::new();
        while !self.stopping.load(Ordering::Acquire) {
            looks.tick().await;
            let mut now = HashMap::new();
            for replica in self.cluster().replicas() {
                let (shard, group) = (replica.shard(), replica.group());
                let Some(joint) = group.joint().filter(|_| replica.leads()) else {
                    continue;
                };
                if seen.get(&shard) == Some(&joint) {
                    match group.end_change(joint).await {
                        Ok(()) => tracing::info!(shard = shard.0, "ended a change of voters"),
                        Err(error) => {
                            tracing::info!(shard = shard.0, %error, "a change of voters goes on");
                        }
                    }
                }
                now.insert(shard, joint);
            }
            seen = now;
        }
    }
}
