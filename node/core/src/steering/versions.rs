//! Takes the cluster to its next version when all nodes have supported it for long enough. Keeps
//! no state.
//!
//! Invariant: it is proposed only while every node that is not lost answers and supports it.

use super::Planner;
use crate::map::{ClusterVersion, MetaCommand, upgrade_hindrances};

impl Planner<'_> {
    pub(super) fn plan_version(&mut self) {
        let to = self.state.cluster_version.next();
        let after_ms = u64::from(self.state.policy.finalize_upgrade_after_s) * 1_000;
        // One that does not know the next version itself cannot lead there.
        if to > ClusterVersion::MAX || after_ms == 0 || self.seen.next_version_ms < after_ms {
            return;
        }
        let hindrances = upgrade_hindrances(self.state, |node| self.seen.supported(node));
        match hindrances.into_iter().next() {
            None => {
                let at = self.seen.now;
                self.propose_change(MetaCommand::FinalizeUpgrade { to, at });
            }
            Some(why) => self.wait(
                None,
                None,
                format!("the cluster is about to go to version {to}: {why}"),
            ),
        }
    }
}
