//! What the loads of shards count as. Placement follows loads, and must not follow their noise.
//!
//! Owner of the state: [`Loads`], of whoever steers. Invariant: a load counts as what it was until
//! it has changed by much.

use std::collections::BTreeMap;

use super::problem::LOAD_STEP_PER_SECOND;
use crate::ids::ShardId;

/// A load counts as changed when it changes by this part of it, and by a step.
const LOAD_CHANGE_PART: u64 = 4;

/// The load of each shard, in commands per second, as it was when it last changed by much.
#[derive(Debug, Default)]
pub struct Loads {
    held: BTreeMap<ShardId, u64>,
}

impl Loads {
    /// What a shard's load counts as that is seen as `now`.
    pub fn counts_as(&mut self, shard: ShardId, now: u64) -> u64 {
        let held = self.held.entry(shard).or_insert(now);
        let much = LOAD_STEP_PER_SECOND.max(*held / LOAD_CHANGE_PART);
        if held.abs_diff(now) >= much {
            *held = now;
        }
        *held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_counts_as_it_was_until_it_changes_by_much() {
        let mut loads = Loads::default();
        let shard = ShardId(1);
        assert_eq!(loads.counts_as(shard, 990), 990);
        for noise in [1_010, 980, 1_900] {
            assert_eq!(loads.counts_as(shard, noise), 990);
        }
        assert_eq!(loads.counts_as(shard, 20_000), 20_000);
        assert_eq!(loads.counts_as(shard, 15_001), 20_000);
        assert_eq!(loads.counts_as(shard, 15_000), 15_000);
        assert_eq!(loads.counts_as(shard, 0), 0);
    }
}
