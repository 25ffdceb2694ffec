//! Merges small neighbours, and takes merges that run to their end. Keeps no state.
//!
//! A merge gathers the right shard's replicas on the left one's nodes, freezes it, lets all of
//! its replicas keep what it has, and lets the left one take it over. Clients of the right one
//! wait from the freeze until the map says who has its slots, so it is frozen only when nothing
//! is in the way, and thawed when it takes long.
//!
//! Invariants: nothing is taken over before each replica keeps what it has; a merge ends in the
//! map only when the group that takes over has done it; by itself two shards are merged only
//! when nothing is wrong, and not before what was seen of loads is of after the last time.

use super::starts::Starts;
use super::{Planner, Step};
use crate::ids::NodeId;
use crate::map::{
    Merge, MergeReason, MergeStep, MetaCommand, MoveReason, Replica, ShardDescriptor, Standing,
};

/// How long a shard may be frozen before it can be taken over; then it is thawed.
pub const FREEZE_MS_MAX: i64 = 3_000;
/// Between a split or merge and a merge that nobody asked for: ten times as long as loads are
/// averaged.
pub const MERGE_PAUSE_MS: i64 = 600_000;
/// Two shards are small when both together have less than this part of what one may have: what
/// was merged is far from being split again.
pub const SMALL_PART: u64 = 4;

impl Planner<'_> {
    pub(super) fn plan_running_merges(&mut self) {
        let state = self.state;
        for merge in state.merges.values() {
            let Some((stays, goes)) = state.merging(merge) else {
                continue;
            };
            match merge.step {
                MergeStep::Gathering => self.plan_gathering(merge, stays, goes),
                MergeStep::Freezing => self.plan_freezing(merge, stays, goes),
                MergeStep::Absorbing => self.plan_absorbing(merge),
                MergeStep::Thawing => self.plan_thawing(merge),
            }
        }
    }

    fn plan_gathering(&mut self, merge: &Merge, stays: &ShardDescriptor, goes: &ShardDescriptor) {
        if let Some(why) = self.gives_up(stays, goes) {
            self.cancel_merge(merge, &why);
            return;
        }
        if let Some(running) = self.state.moves.get(&goes.shard_id) {
            let text = format!(
                "shard {} takes over shard {}: move {} brings a replica to it",
                merge.shard_id, merge.absorbed_shard_id, running.move_id
            );
            self.wait_for_shard(goes.shard_id, text);
            return;
        }
        let hindrance = [stays, goes].into_iter().find_map(|shard| {
            let why = self.group_hindrance(shard)?;
            Some((shard.shard_id, why))
        });
        if let Some((shard_id, why)) = hindrance {
            let text = format!(
                "shard {} is to take over shard {}: of shard {shard_id}, {why}",
                merge.shard_id, merge.absorbed_shard_id
            );
            self.wait_for_shard(shard_id, text);
            return;
        }
        let (here, there) = (stays.nodes(), goes.nodes());
        if here == there {
            self.propose_change(MetaCommand::FreezeMerge {
                merge_id: merge.merge_id,
                at: self.seen.now,
            });
            return;
        }
        let to = here.iter().find(|node| !there.contains(node)).copied();
        let from = there.iter().find(|node| !here.contains(node)).copied();
        self.gather(merge, goes, to, from);
    }

    /// Brings one replica of the shard that goes to a node of the other.
    fn gather(
        &mut self,
        merge: &Merge,
        goes: &ShardDescriptor,
        to: Option<NodeId>,
        from: Option<NodeId>,
    ) {
        if self.epoch_changes {
            return;
        }
        let shard_id = goes.shard_id;
        if let Some(to) = to
            && self.standing(to) != Some(Standing::Active)
        {
            self.cancel_merge(merge, &format!("node {to} takes no replicas"));
            return;
        }
        let no_room = to.and_then(|to| self.no_room(to, shard_id, &Starts::default()));
        if let Some(why) = no_room {
            let text = format!(
                "shard {} is to take over shard {shard_id}: {why}; or cancel the merge",
                merge.shard_id
            );
            self.wait_for_shard(shard_id, text);
            return;
        }
        let leads = goes.preferred_leader;
        let preferred_leader = to.filter(|_| from == Some(leads)).unwrap_or(leads);
        self.propose_change(MetaCommand::StartMove {
            shard_id,
            to,
            from,
            preferred_leader,
            reason: MoveReason::Merge,
            epoch: self.state.map.epoch,
            at: self.seen.now,
        });
    }

    fn plan_freezing(&mut self, merge: &Merge, stays: &ShardDescriptor, goes: &ShardDescriptor) {
        let merge_id = merge.merge_id;
        let frozen_ms = self.seen.now.0.saturating_sub(merge.step_since.0);
        if frozen_ms > FREEZE_MS_MAX {
            self.cancel_merge(merge, "it takes too long");
            return;
        }
        if let Some(why) = self.gives_up(stays, goes) {
            self.cancel_merge(merge, &why);
            return;
        }
        let Some(seen) = self.seen.shards.get(&goes.shard_id) else {
            self.wait_for_merge(merge, goes);
            return;
        };
        let kept = |one: &Replica| self.seen.kept_frozen.get(&one.replica_id) == Some(&merge_id);
        if goes.replicas.iter().all(kept) {
            let at = self.seen.now;
            self.propose_change(MetaCommand::AbsorbMerge { merge_id, at });
            return;
        }
        if seen.mark.frozen_by != Some(merge_id) {
            self.plan.steps.push(Step::FreezeShard {
                shard_id: goes.shard_id,
                leader: seen.leader,
                merge_id,
            });
        }
        self.plan.steps.push(Step::KeepFrozen {
            shard_id: goes.shard_id,
            nodes: goes.nodes(),
            merge_id,
        });
    }

    fn plan_absorbing(&mut self, merge: &Merge) {
        let merge_id = merge.merge_id;
        let Some(seen) = self.seen.shards.get(&merge.shard_id) else {
            let shard_id = merge.shard_id;
            let text = format!(
                "shard {shard_id} takes over shard {}: it has no leader; bring back its nodes",
                merge.absorbed_shard_id
            );
            self.wait_for_shard(shard_id, text);
            return;
        };
        if seen.mark.absorbed >= merge_id {
            let at = self.seen.now;
            self.propose_change(MetaCommand::FinishMerge { merge_id, at });
            return;
        }
        self.plan.steps.push(Step::AbsorbShard {
            shard_id: merge.shard_id,
            leader: seen.leader,
            merge_id,
        });
    }

    fn plan_thawing(&mut self, merge: &Merge) {
        let merge_id = merge.merge_id;
        let shard_id = merge.absorbed_shard_id;
        let Some(seen) = self.seen.shards.get(&shard_id) else {
            let text =
                format!("shard {shard_id} is to be thawed: it has no leader; bring back its nodes");
            self.wait_for_shard(shard_id, text);
            return;
        };
        if seen.mark.seen >= merge_id && seen.mark.frozen_by.is_none() {
            let at = self.seen.now;
            self.propose_change(MetaCommand::EndCancelledMerge { merge_id, at });
            return;
        }
        self.plan.steps.push(Step::ThawShard {
            shard_id,
            leader: seen.leader,
            merge_id,
        });
    }

    fn wait_for_merge(&mut self, merge: &Merge, shard: &ShardDescriptor) {
        let text = format!(
            "shard {} takes over shard {}: shard {} has no leader",
            merge.shard_id, merge.absorbed_shard_id, shard.shard_id
        );
        self.wait_for_shard(shard.shard_id, text);
    }

    fn cancel_merge(&mut self, merge: &Merge, why: &str) {
        let text = format!(
            "shard {} does not take over shard {}: {why}",
            merge.shard_id, merge.absorbed_shard_id
        );
        self.wait_for_shard(merge.shard_id, text);
        self.propose_change(MetaCommand::CancelMerge {
            merge_id: merge.merge_id,
            at: self.seen.now,
        });
    }

    /// Why a merge that may still be given up should be.
    fn gives_up(&self, stays: &ShardDescriptor, goes: &ShardDescriptor) -> Option<String> {
        let nodes = stays.nodes().into_iter().chain(goes.nodes());
        for node in nodes {
            match self.standing(node) {
                Some(Standing::Active | Standing::Cordoned) => {}
                Some(standing) => return Some(format!("node {node} is {standing}")),
                None => return Some(format!("node {node} is gone")),
            }
            if !self.seen.stays_up(node) {
                return Some(format!("node {node} is silent or stopping"));
            }
        }
        None
    }

    pub(super) fn plan_new_merge(&mut self) {
        let state = self.state;
        let busy = !state.merges.is_empty() || !state.splits.is_empty() || !state.moves.is_empty();
        if busy || self.epoch_changes {
            return;
        }
        if state.map.shards.len() <= state.policy.shards_min as usize {
            return;
        }
        let last = state.last_split_at.0;
        if last > 0 && self.seen.now.0 < last.saturating_add(MERGE_PAUSE_MS) {
            return;
        }
        if self.unrest().is_some() {
            return;
        }
        let pairs = state.map.shards.windows(2).filter_map(|pair| {
            let [stays, goes] = pair else { return None };
            let bytes = self.small(stays, goes)?;
            let apart = stays
                .nodes()
                .iter()
                .filter(|node| !goes.nodes().contains(node))
                .count();
            Some((apart, bytes, stays, goes))
        });
        let Some((_, _, stays, goes)) =
            pairs.min_by_key(|(apart, bytes, stays, _)| (*apart, *bytes, stays.shard_id))
        else {
            return;
        };
        self.propose_change(MetaCommand::StartMerge {
            shard_id: stays.shard_id,
            absorbed_shard_id: goes.shard_id,
            reason: MergeReason::Small,
            epoch: Some(state.map.epoch),
            at: self.seen.now,
        });
    }

    /// What both have together, bytes, when that is little, and both could be merged now.
    fn small(&self, stays: &ShardDescriptor, goes: &ShardDescriptor) -> Option<u64> {
        let policy = &self.state.policy;
        let size_max = u64::from(policy.shard_gib_max) << 30;
        let load_max = u64::from(policy.shard_commands_per_s_max);
        if size_max == 0 && load_max == 0 {
            return None;
        }
        let mut sum = (0_u64, 0_u64);
        for shard in [stays, goes] {
            let seen = self.seen.shards.get(&shard.shard_id)?;
            sum.0 = sum.0.saturating_add(seen.size_bytes);
            sum.1 = sum.1.saturating_add(seen.load_per_second);
            if self.group_hindrance(shard).is_some() {
                return None;
            }
        }
        let is_small = |is: u64, max: u64| max == 0 || is.saturating_mul(SMALL_PART) < max;
        (is_small(sum.0, size_max) && is_small(sum.1, load_max)).then_some(sum.0)
    }
}
