//! Starts moves: repair before drain before balance, within the policy's limits. Keeps no
//! state.
//!
//! Invariants: a move starts only onto an active node that answers and has room, and only of
//! a shard that has a leader, a majority and the voters of the map; nothing is balanced while
//! anything is wrong; a move for balance leaves the solver with fewer moves to ask for, so
//! that they end.

use std::collections::BTreeMap;

use super::moves::same;
use super::problem::{Wish, Wishes};
use super::{Planner, Wait};
use crate::ids::{Epoch, NodeId, ShardId};
use crate::map::{Merge, MetaCommand, MoveReason, ShardDescriptor, Standing};
use crate::placement::{Assignment, solve};

impl Planner<'_> {
    pub(super) fn plan_starts(&mut self, wishes: &Wishes) {
        for shortfall in &wishes.shortfalls {
            let shard_id = shortfall.shard_id;
            let text = format!(
                "shard {shard_id}: {}{}",
                shortfall.reason,
                self.full_disks()
            );
            self.wait_for_shard(shard_id, text);
        }
        if self.epoch_changes {
            // Refused by the time it would be applied: the next plan starts moves.
            return;
        }
        let unrest = self.unrest();
        let mut wanted: Vec<&Wish> = wishes.moves.iter().collect();
        wanted.sort_by_key(|wish| (wish.reason, wish.shard_id));
        let mut starts = Starts::default();
        let mut balance = Balance {
            outlook: self.previous(&BTreeMap::new()),
            asked: wishes.moves.len(),
            solves_left: BALANCE_SOLVES_MAX,
        };
        for wish in wanted {
            if wish.reason == MoveReason::Balance
                && let Some(why) = &unrest
            {
                self.wait_for_shard(wish.shard_id, format!("nothing is balanced: {why}"));
                break;
            }
            match self.hindrance(wish, &starts) {
                None if wish.reason == MoveReason::Balance
                    && !self.leads_on(wish, &mut balance) => {}
                None => self.start(wish, wishes, &mut starts),
                Some(wait) if self.plan.waits.len() < super::WAITS_MAX => {
                    self.plan.waits.push(wait);
                }
                Some(_) => {}
            }
        }
    }

    /// Whether the solver asks for fewer moves once this one is done. Half of an exchange may
    /// be worse than nothing: it would be taken back.
    fn leads_on(&self, wish: &Wish, balance: &mut Balance) -> bool {
        if balance.solves_left == 0 {
            return false;
        }
        balance.solves_left -= 1;
        let mut outlook = balance.outlook.clone();
        if let Some(placement) = outlook.shards.get_mut(&wish.shard_id) {
            placement.replicas.retain(|node| Some(*node) != wish.from);
            placement.replicas.extend(wish.to);
        }
        let Ok(solution) = solve(&self.problem(&BTreeMap::new()), &outlook) else {
            return false;
        };
        let asked = solution.assignment.replicas_added_since(&outlook);
        let leads_on = asked < balance.asked;
        if leads_on {
            balance.asked = asked;
            balance.outlook = outlook;
        }
        leads_on
    }

    /// Why nothing is balanced now. A node that is given up or emptied is no reason once it
    /// holds nothing.
    pub(super) fn unrest(&self) -> Option<String> {
        let state = self.state;
        if !state.policy.balance {
            return Some("the policy says so".to_owned());
        }
        for (node, standing) in &state.standings {
            let node = *node;
            match standing {
                leaving if leaving.is_leaving() && state.replicas_on(node) == 0 => {}
                Standing::Active | Standing::Cordoned => {
                    if !self.seen.stays_up(node) {
                        return Some(format!("node {node} is silent or stopping"));
                    }
                }
                other => return Some(format!("node {node} is {other}")),
            }
        }
        if let Some(shard_id) = state.recoveries.keys().next() {
            return Some(format!("shard {shard_id} is made anew"));
        }
        if let Some(merge) = state.merges.values().next() {
            let Merge {
                shard_id,
                absorbed_shard_id,
                ..
            } = merge;
            return Some(format!(
                "shard {shard_id} takes over shard {absorbed_shard_id}"
            ));
        }
        let mut shards = state.map.shards.iter();
        let unseen = shards.find(|shard| !self.seen.shards.contains_key(&shard.shard_id));
        unseen.map(|shard| format!("shard {} has no leader", shard.shard_id))
    }

    /// Why the move cannot start now.
    fn hindrance(&self, wish: &Wish, starts: &Starts) -> Option<Wait> {
        let shard_id = wish.shard_id;
        let wait = |node_id, text: String| {
            Some(Wait {
                node_id,
                shard_id: Some(shard_id),
                text: format!("the {} of shard {shard_id} waits: {text}", wish.reason),
            })
        };
        let policy = &self.state.policy;
        let running = self.state.moves.len() + starts.count;
        if running >= policy.moves_max as usize {
            return wait(None, format!("{running} moves run"));
        }
        if starts.shards.contains_key(&shard_id) {
            return wait(None, "its shard moves already".to_owned());
        }
        for node in wish.to.into_iter().chain(wish.from) {
            let moves = self.state.moves_of(node) + starts.of(node);
            let works = self.standing(node) != Some(Standing::Lost);
            if works && moves >= policy.moves_per_node_max {
                return wait(
                    Some(node),
                    format!("node {node} takes part in {moves} moves"),
                );
            }
        }
        if let Some(to) = wish.to {
            if self.standing(to) != Some(Standing::Active) || !self.seen.stays_up(to) {
                return wait(Some(to), format!("node {to} is silent or stopping"));
            }
            if let Some(why) = self.no_room(to, shard_id, starts) {
                return wait(Some(to), why);
            }
        }
        let shard = self.state.map.shard(shard_id)?;
        self.group_hindrance(shard)
            .and_then(|why| wait(None, why.to_owned()))
    }

    /// Why the shard's group is in no state to move.
    pub(super) fn group_hindrance(&self, shard: &ShardDescriptor) -> Option<&'static str> {
        if self.state.recoveries.contains_key(&shard.shard_id) {
            return Some("the shard is made anew from one replica");
        }
        let Some(seen) = self.seen.shards.get(&shard.shard_id) else {
            return Some("it has no leader");
        };
        if self.state.splits.contains_key(&shard.shard_id) {
            return Some("it is being split");
        }
        if seen.changing || self.changing.contains(&shard.shard_id) {
            return Some("its group's members are changing");
        }
        if !same(&seen.voters, &shard.replicas) {
            return Some("its group has other voters than the map");
        }
        (!seen.has_majority(&seen.voters)).then_some("most of its replicas are silent")
    }

    fn start(&mut self, wish: &Wish, wishes: &Wishes, starts: &mut Starts) {
        let Some(shard) = self.state.map.shard(wish.shard_id) else {
            return;
        };
        let Some(preferred_leader) = self.leader_after(shard, wish, wishes) else {
            return;
        };
        // Each start that is applied changes the epoch.
        let epoch = Epoch(self.state.map.epoch.0 + starts.count as u64);
        self.propose(MetaCommand::StartMove {
            shard_id: wish.shard_id,
            to: wish.to,
            from: wish.from,
            preferred_leader,
            reason: wish.reason,
            epoch,
            at: self.seen.now,
        });
        starts.count += 1;
        starts.shards.insert(wish.shard_id, wish.to);
        for node in wish.to.into_iter().chain(wish.from) {
            *starts.nodes.entry(node).or_default() += 1;
        }
    }

    /// The node that is to lead the shard after the move.
    fn leader_after(
        &self,
        shard: &ShardDescriptor,
        wish: &Wish,
        wishes: &Wishes,
    ) -> Option<NodeId> {
        let now = shard.replicas.iter().map(|replica| replica.node_id);
        let after = now.filter(|node| Some(*node) != wish.from).chain(wish.to);
        let wanted = wishes.leaders.get(&shard.shard_id).copied();
        after.min_by_key(|node| {
            let may_lead = self.standing(*node).is_some_and(Standing::may_lead);
            let kept = *node == shard.preferred_leader;
            (!may_lead, Some(*node) != wanted, !kept, *node)
        })
    }
}

/// How often a plan asks the solver about single moves for balance.
const BALANCE_SOLVES_MAX: usize = 8;

/// Where everything would be after the moves for balance that a plan starts.
struct Balance {
    outlook: Assignment,
    /// Moves that the solver asks for from there.
    asked: usize,
    solves_left: usize,
}

/// What a plan starts.
#[derive(Default)]
pub(super) struct Starts {
    count: usize,
    /// Where each shard goes.
    shards: BTreeMap<ShardId, Option<NodeId>>,
    nodes: BTreeMap<NodeId, u32>,
}

impl Starts {
    /// The shard goes to the node.
    pub(super) fn goes_to(&self, shard_id: ShardId, node: NodeId) -> bool {
        self.shards.get(&shard_id) == Some(&Some(node))
    }

    fn of(&self, node: NodeId) -> u32 {
        self.nodes.get(&node).copied().unwrap_or(0)
    }
}
