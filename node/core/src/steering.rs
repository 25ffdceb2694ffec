//! What the leader of the meta group does next: the pure brain of the cluster.
//!
//! [`plan`] takes the replicated state and what was seen of the nodes and groups, and says
//! which steps to take. It owns no state and reads no clock; whoever calls it observes
//! first, then plans, then executes, again and again. Every step may be executed any number
//! of times, be dropped, or be late, also by a node that only believes to lead:
//! - a proposal is judged when it is applied, by the move's number or the map's epoch;
//! - a change of a group's members names the configuration that it was decided on, and is
//!   refused by a group that has another one.
//!
//! The order of a plan: `versions` (the cluster's next one), `members` (the meta group's own),
//! `standings` (who is given up or back), `recoveries` (shards that lost their majority), `moves`
//! (those that run), `splits`, `merges`, `leaders`, `starts` (new moves, where there is `room`).
//! `problem` asks the placement solver, once for each plan; `drain` tells operators how far a drain
//! is and what it would break.
//!
//! Invariants: a plan has at most one change of members for each group; starts at most as many
//! moves as the policy leaves, and one split; gives up at most one node; is empty, waits aside,
//! when all is as it should be.

mod drain;
mod leaders;
mod loads;
mod members;
mod merges;
mod moves;
mod problem;
mod recoveries;
mod room;
mod seen;
mod splits;
mod standings;
mod starts;
mod step;
mod versions;

use std::collections::BTreeSet;

pub use self::drain::{DrainDanger, DrainStatus, DrainStep, drain_danger, drain_status};
pub use self::leaders::{LEADER_TRANSFERS_PER_NODE_MAX, PREFERRED_LEADERS_MAX};
pub use self::loads::Loads;
pub use self::merges::{FREEZE_MS_MAX, MERGE_PAUSE_MS, SMALL_PART};
pub use self::problem::{LOAD_STEP_PER_SECOND, SIZE_STEP_BYTES};
pub use self::room::DISK_RESERVE_BYTES;
pub use self::seen::{FollowerSeen, LAG_ENTRIES_MAX, MetaSeen, NodeSeen, Seen, ShardSeen};
pub use self::splits::SPLIT_PAUSE_MS;
pub use self::step::{Plan, Step, Wait};
use crate::ids::{NodeId, ShardId};
use crate::map::{ClusterVersion, MetaCommand, MetaState, Standing};

/// The most waits that a plan lists.
pub const WAITS_MAX: usize = 64;

/// What to do next. Without steps all is as it should be, or what is missing is waited for.
///
/// `state` is read before `seen` is collected: a learner that is not there although its move
/// is being cancelled must have been missing after that was known.
pub fn plan(state: &MetaState, seen: &Seen) -> Plan {
    if !state.exists() {
        return Plan::default();
    }
    let mut planner = Planner::new(state, seen);
    planner.plan_version();
    planner.plan_members();
    planner.plan_standings();
    planner.plan_recoveries();
    planner.plan_running_moves();
    planner.plan_strays();
    planner.plan_running_splits();
    planner.plan_running_merges();
    if state.cluster_version >= ClusterVersion::V2 {
        planner.plan_new_split();
        planner.plan_new_merge();
    }
    let wishes = planner.wishes();
    planner.plan_leaders(&wishes);
    planner.plan_transfers();
    planner.plan_starts(&wishes);
    planner.plan_even_leaders();
    planner.plan
}

/// A plan that is being made.
struct Planner<'a> {
    state: &'a MetaState,
    seen: &'a Seen,
    plan: Plan,
    /// Shards whose members are changed by this plan.
    changing: BTreeSet<ShardId>,
    /// A step of this plan changes the map's epoch, so that no move may start in it.
    epoch_changes: bool,
}

impl<'a> Planner<'a> {
    fn new(state: &'a MetaState, seen: &'a Seen) -> Self {
        Planner {
            state,
            seen,
            plan: Plan::default(),
            changing: BTreeSet::new(),
            epoch_changes: false,
        }
    }

    fn standing(&self, node: NodeId) -> Option<Standing> {
        self.state.standing(node)
    }

    /// The node is silent for so long that nothing is to be expected of it soon.
    fn is_down(&self, node: NodeId) -> bool {
        self.seen.silent_ms(node) > self.state.policy.down_after_ms()
    }

    fn propose(&mut self, command: MetaCommand) {
        self.plan.steps.push(Step::Propose(command));
    }

    /// Proposes what changes the map's epoch.
    fn propose_change(&mut self, command: MetaCommand) {
        self.epoch_changes = true;
        self.propose(command);
    }

    fn wait(&mut self, node_id: Option<NodeId>, shard_id: Option<ShardId>, text: String) {
        if self.plan.waits.len() < WAITS_MAX {
            self.plan.waits.push(Wait {
                node_id,
                shard_id,
                text,
            });
        }
    }

    fn wait_for_node(&mut self, node: NodeId, text: String) {
        self.wait(Some(node), None, text);
    }

    fn wait_for_shard(&mut self, shard: ShardId, text: String) {
        self.wait(None, Some(shard), text);
    }
}
