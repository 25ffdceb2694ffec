//! Says who is to lead shards, and takes leaders from nodes that are being emptied. Keeps
//! no state. That a shard returns to its preferred leader is seen to by its own leader.
//!
//! Invariants: a leader that may stay is changed only while nothing moves and nothing is
//! wrong; one is handed over only once somebody else is preferred, or it would come back.

use std::collections::BTreeMap;

use super::Planner;
use super::problem::Wishes;
use crate::ids::{NodeId, ShardId};
use crate::map::{META_SHARD, MetaCommand, MoveStep, Replica, ShardDescriptor, Standing};

/// Leaders that one plan takes from a node: each is an election.
pub const LEADER_TRANSFERS_PER_NODE_MAX: usize = 4;
/// Preferred leaders that one plan sets.
pub const PREFERRED_LEADERS_MAX: usize = 512;

impl Planner<'_> {
    pub(super) fn plan_leaders(&mut self, wishes: &Wishes) {
        let state = self.state;
        let settled = wishes.moves.is_empty() && state.moves.is_empty() && self.unrest().is_none();
        let mut led: BTreeMap<NodeId, usize> = BTreeMap::new();
        for shard in &state.map.shards {
            *led.entry(shard.preferred_leader).or_default() += 1;
        }
        let mut leaders: Vec<(ShardId, NodeId)> = Vec::new();
        for shard in &state.map.shards {
            let now = shard.preferred_leader;
            let wanted = wishes.leaders.get(&shard.shard_id).copied();
            let stays = self.standing(now).is_some_and(Standing::may_lead);
            let next = if stays {
                wanted.filter(|node| settled && shard.replica_on(*node).is_some())
            } else {
                self.other_leader(shard, wanted, &led)
            };
            let Some(next) = next.filter(|next| *next != now) else {
                continue;
            };
            *led.entry(now).or_default() -= 1;
            *led.entry(next).or_default() += 1;
            leaders.push((shard.shard_id, next));
            if leaders.len() == PREFERRED_LEADERS_MAX {
                break;
            }
        }
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
