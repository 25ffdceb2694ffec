//! Shards that are made anew from one replica: waits until the new group is led. Its node does
//! the work. Keeps no state.
//!
//! Invariant: a recovery is finished only when the new replica leads a group of itself alone,
//! committed; other replicas of the shard are added only after that.

use super::Planner;
use crate::map::MetaCommand;

impl Planner<'_> {
    pub(super) fn plan_recoveries(&mut self) {
        let state = self.state;
        for (shard_id, recovery) in &state.recoveries {
            let (shard_id, to) = (*shard_id, recovery.to);
            let seen = self.seen.shards.get(&shard_id);
            if seen.is_some_and(|seen| !seen.changing && seen.voters == [to]) {
                self.propose_change(MetaCommand::FinishRecovery {
                    shard_id,
                    replica_id: to.replica_id,
                    at: self.seen.now,
                });
                continue;
            }
            let node = to.node_id;
            let text = if self.seen.is_up(node) {
                format!("node {node} makes shard {shard_id} anew from its replica")
            } else {
                format!(
                    "shard {shard_id} is made anew on node {node}, which is silent; bring it back, or give it up and recover the shard from another replica"
                )
            };
            self.wait_for_shard(shard_id, text);
        }
    }
}
