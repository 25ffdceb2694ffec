//! Says who is to lead shards, and takes leaders from nodes that are being emptied. Keeps
//! no state. That a shard returns to its preferred leader is seen to by its own leader.
//!
//! Invariants: a leader that may stay is changed only while nothing moves and nothing is
//! wrong; one is handed over only once somebody else is preferred, or it would come back.

use std::collections::BTreeMap;

use super::problem::Wishes;
use super::{Planner, Step};
use crate::ids::{NodeId, ShardId};
use crate::map::{META_SHARD, MetaCommand, MoveStep, Replica, ShardDescriptor, Standing};

/// Leaders that one plan takes from a node: each is an election.
pub const LEADER_TRANSFERS_PER_NODE_MAX: usize = 4;
/// Preferred leaders that one plan sets.
pub const PREFERRED_LEADERS_MAX: usize = 512;

impl Planner<'_> {
    /// Prefers others where the preferred leader is on a node that may lead nothing.
    pub(super) fn plan_leaders(&mut self, wishes: &Wishes) {
        let state = self.state;
        let mut led: BTreeMap<NodeId, usize> = BTreeMap::new();
        for shard in &state.map.shards {
            *led.entry(shard.preferred_leader).or_default() += 1;
        }
        let mut leaders: Vec<(ShardId, NodeId)> = Vec::new();
        for shard in &state.map.shards {
            let now = shard.preferred_leader;
            if self.standing(now).is_some_and(Standing::may_lead) {
                continue;
            }
            let wanted = wishes.leaders.get(&shard.shard_id).copied();
            if let Some(next) = self.other_leader(shard, wanted, &led) {
                *led.entry(now).or_default() -= 1;
                *led.entry(next).or_default() += 1;
                leaders.push((shard.shard_id, next));
            }
        }
        self.prefer(leaders);
    }

    /// Evens out the preferred leaders, once nothing moves and nothing is wrong.
    pub(super) fn plan_even_leaders(&mut self) {
        let moves = self.epoch_changes || !self.state.moves.is_empty();
        if moves || self.starts_moves() || self.unrest().is_some() {
            return;
        }
        let even = self.even_leaders();
        let mut leaders = Vec::new();
        for shard in &self.state.map.shards {
            let placement = even.shards.get(&shard.shard_id);
            let wanted = placement.and_then(|placement| placement.preferred_leader);
            let changes = |node: &NodeId| {
                *node != shard.preferred_leader && shard.replica_on(*node).is_some()
            };
            leaders.extend(wanted.filter(changes).map(|node| (shard.shard_id, node)));
        }
        self.prefer(leaders);
    }

    fn starts_moves(&self) -> bool {
        let mut steps = self.plan.steps.iter();
        steps.any(|step| matches!(step, Step::Propose(MetaCommand::StartMove { .. })))
    }

    fn prefer(&mut self, mut leaders: Vec<(ShardId, NodeId)>) {
        leaders.truncate(PREFERRED_LEADERS_MAX);
        if !leaders.is_empty() {
            self.propose_change(MetaCommand::SetPreferredLeaders { leaders });
        }
    }

    /// Who may lead the shard instead of a node that may not; none when nobody may.
    fn other_leader(
        &mut self,
        shard: &ShardDescriptor,
        wanted: Option<NodeId>,
        led: &BTreeMap<NodeId, usize>,
    ) -> Option<NodeId> {
        let running = self.state.moves.get(&shard.shard_id);
        let leaving = running.and_then(|running| running.remove);
        let nodes = shard.replicas.iter().map(|replica| replica.node_id);
        let may = nodes.filter(|node| self.standing(*node).is_some_and(Standing::may_lead));
        let best = may.min_by_key(|node| {
            let leaves = leaving.is_some_and(|replica| replica.node_id == *node);
            let count = led.get(node).copied().unwrap_or(0);
            let up = self.seen.stays_up(*node);
            (!up, leaves, Some(*node) != wanted, count, *node)
        });
        if best.is_none() {
            let shard_id = shard.shard_id;
            self.wait_for_shard(
                shard_id,
                format!(
                    "shard {shard_id} has no replica on a node that may lead it; make one active"
                ),
            );
        }
        best
    }

    /// Takes leaders from nodes that are being emptied.
    pub(super) fn plan_transfers(&mut self) {
        let mut transfers: BTreeMap<NodeId, usize> = BTreeMap::new();
        for (shard_id, seen) in &self.seen.shards {
            let from = seen.leader;
            if !self.is_draining(from) || self.changing.contains(shard_id) || seen.changing {
                continue;
            }
            let Some(shard) = self.state.map.shard(*shard_id) else {
                continue;
            };
            let running = self.state.moves.get(shard_id);
            let switches =
                running.is_some_and(|one| matches!(one.step, MoveStep::Switching { .. }));
            if switches || shard.preferred_leader == from {
                continue;
            }
            let may =
                |voter: &&Replica| self.standing(voter.node_id).is_some_and(Standing::may_lead);
            let voters: Vec<Replica> = seen.voters.iter().filter(may).copied().collect();
            let count = transfers.entry(from).or_default();
            match self.best_leader(seen, &voters, shard.preferred_leader) {
                Some(to) if *count < LEADER_TRANSFERS_PER_NODE_MAX => {
                    *count += 1;
                    self.transfer(*shard_id, from, to);
                }
                Some(_) => {}
                None => self.wait(
                    Some(from),
                    Some(*shard_id),
                    format!(
                        "no other replica of shard {shard_id} can lead it; bring back its nodes"
                    ),
                ),
            }
        }
        self.plan_meta_transfer();
    }

    fn plan_meta_transfer(&mut self) {
        let meta = &self.seen.meta;
        if meta.changing {
            return;
        }
        if let Some(to) = self.next_meta_leader() {
            self.transfer(META_SHARD, meta.leader, to);
        }
    }

    /// Who is to lead the meta group when its leader should not; none when it may go on, or
    /// when nobody else can.
    pub(super) fn next_meta_leader(&self) -> Option<NodeId> {
        let meta = &self.seen.meta;
        let may_lead = |node: NodeId| self.standing(node).is_some_and(Standing::may_lead);
        if may_lead(meta.leader) {
            return None;
        }
        let may = |node: &NodeId| {
            may_lead(*node) && self.seen.stays_up(*node) && meta.is_caught_up(*node)
        };
        meta.voters.iter().copied().filter(may).min()
    }

    pub(super) fn is_draining(&self, node: NodeId) -> bool {
        matches!(self.standing(node), Some(Standing::Draining { .. }))
    }
}
