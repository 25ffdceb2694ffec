//! Splits shards that have become too large or have too much to do, and takes splits that run
//! to their end. Keeps no state.
//!
//! Invariants: a split is finished only when the new shard has a leader, so its group has done
//! it; by itself one shard is split at a time, and the next one not before what was seen of
//! loads is of after it; nothing is split while anything is wrong.

use super::{Planner, Step};
use crate::ids::ShardId;
use crate::map::{MetaCommand, ShardDescriptor, SplitReason};

/// Between two splits that nobody asked for: loads are seen as averages over about a minute.
pub const SPLIT_PAUSE_MS: i64 = 180_000;

impl Planner<'_> {
    pub(super) fn plan_running_splits(&mut self) {
        let state = self.state;
        for (shard_id, split) in &state.splits {
            let new_shard_id = split.new_shard_id;
            if self.seen.shards.contains_key(&new_shard_id) {
                let at = self.seen.now;
                self.propose_change(MetaCommand::FinishSplit { new_shard_id, at });
            } else if let Some(seen) = self.seen.shards.get(shard_id) {
                let leader = seen.leader;
                self.plan.steps.push(Step::Split {
                    shard_id: *shard_id,
                    leader,
                    new_shard_id,
                });
            } else {
                let text = format!(
                    "the split of shard {shard_id} waits: it has no leader; bring back its nodes"
                );
                self.wait_for_shard(*shard_id, text);
            }
        }
    }

    pub(super) fn plan_new_split(&mut self) {
        let state = self.state;
        if !state.splits.is_empty() || self.epoch_changes {
            return;
        }
        let overfull = state.map.shards.iter().filter_map(|shard| {
            let (reason, excess) = self.overfull(shard)?;
            Some((shard, reason, excess))
        });
        let Some((shard, reason, _)) =
            overfull.max_by_key(|(shard, _, excess)| (*excess, shard.shard_id))
        else {
            return;
        };
        let shard_id = shard.shard_id;
        if let Some(why) = self.split_hindrance(shard) {
            let text = format!("shard {shard_id} is to be split for its {reason}: {why}");
            self.wait_for_shard(shard_id, text);
            return;
        }
        if let Some(slot) = shard.slots.middle() {
            self.propose_change(MetaCommand::StartSplit {
                shard_id,
                slot,
                reason,
                epoch: Some(state.map.epoch),
                at: self.seen.now,
            });
        }
    }

    /// Why the shard has too much, and by how much, in thousandths of what it may have.
    fn overfull(&self, shard: &ShardDescriptor) -> Option<(SplitReason, u64)> {
        shard.slots.middle()?;
        let seen = self.seen.shards.get(&shard.shard_id)?;
        let policy = &self.state.policy;
        let excess =
            |is: u64, max: u64| (max > 0 && is > max).then(|| is.saturating_mul(1_000) / max);
        let size_max = u64::from(policy.shard_gib_max) << 30;
        let load_max = u64::from(policy.shard_commands_per_s_max);
        let size = excess(seen.size_bytes, size_max).map(|excess| (SplitReason::Size, excess));
        let load = excess(seen.load_per_second, load_max).map(|excess| (SplitReason::Load, excess));
        size.into_iter()
            .chain(load)
            .max_by_key(|(_, excess)| *excess)
    }

    fn split_hindrance(&self, shard: &ShardDescriptor) -> Option<String> {
        let shard_id: ShardId = shard.shard_id;
        if self.state.moves.contains_key(&shard_id) {
            return Some("it moves".to_owned());
        }
        if self.state.merge_of(shard_id).is_some() {
            return Some("it is being merged".to_owned());
        }
        let last = self.state.last_split_at.0;
        let next = last.saturating_add(SPLIT_PAUSE_MS);
        if last > 0 && self.seen.now.0 < next {
            let seconds = (next - self.seen.now.0) / 1_000;
            return Some(format!(
                "the last split was a moment ago, {seconds} s are left"
            ));
        }
        self.group_hindrance(shard).map(str::to_owned)
    }
}
