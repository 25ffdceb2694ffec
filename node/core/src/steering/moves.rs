//! Takes the moves that run a step further, and clears groups of learners that nobody
//! knows. Keeps no state: where a move is stands in the meta group and in its shard's group.
//!
//! Invariants: voters are changed only from the configuration that the switch names; a move
//! is finished only when the group has its voters, committed; a move that may have changed
//! the voters is never cancelled.

use super::{Planner, ShardSeen, Step};
use crate::ids::{NodeId, ShardId};
use crate::map::{
    ConfigVersion, MetaCommand, Move, MoveReason, MoveStep, Replica, ShardDescriptor, Standing,
};

/// The same replicas, in any order.
pub(super) fn same(one: &[Replica], other: &[Replica]) -> bool {
    one.len() == other.len() && one.iter().all(|replica| other.contains(replica))
}

impl Planner<'_> {
    pub(super) fn plan_running_moves(&mut self) {
        let state = self.state;
        for (shard_id, running) in &state.moves {
            let Some(shard) = state.map.shard(*shard_id) else {
                continue;
            };
            self.plan_move(shard, running);
        }
    }

    fn plan_move(&mut self, shard: &ShardDescriptor, running: &Move) {
        let move_id = running.move_id;
        let catching_up = running.step == MoveStep::CatchingUp;
        if catching_up && let Some(why) = self.no_longer_wanted(running) {
            self.wait_for_shard(shard.shard_id, why);
            self.propose(MetaCommand::CancelMove { move_id });
            return;
        }
        let Some(seen) = self.seen.shards.get(&shard.shard_id) else {
            self.wait_for_move(running, "the shard has no leader; bring back its nodes");
            return;
        };
        if seen.changing {
            self.wait_for_move(running, "its group's members are changing");
            return;
        }
        match running.step {
            MoveStep::CatchingUp => self.plan_catching_up(shard, running, seen),
            MoveStep::Switching { config } => self.plan_switching(shard, running, seen, config),
            MoveStep::Cancelling => self.plan_cancelling(running, seen),
        }
    }

    fn wait_for_move(&mut self, running: &Move, why: &str) {
        let Move {
            move_id, shard_id, ..
        } = running;
        self.wait_for_shard(*shard_id, format!("move {move_id} waits: {why}"));
    }

    /// Why a move that may still be cancelled should be.
    fn no_longer_wanted(&self, running: &Move) -> Option<String> {
        let move_id = running.move_id;
        if let Some(node) = running.add.map(|replica| replica.node_id) {
            let standing = self.standing(node);
            if standing != Some(Standing::Active) {
                let standing = standing.map_or("gone".to_owned(), |now| now.to_string());
                return Some(format!(
                    "move {move_id} is cancelled: its target, node {node}, is {standing}"
                ));
            }
            if self.is_down(node) {
                return Some(format!(
                    "move {move_id} is cancelled: its target, node {node}, is silent"
                ));
            }
        }
        let shard_id = running.shard_id;
        if running.reason == MoveReason::Merge && self.state.merge_of(shard_id).is_none() {
            return Some(format!(
                "move {move_id} is cancelled: the merge of shard {shard_id} was given up"
            ));
        }
        let node = running.remove?.node_id;
        let stays = !self.standing(node).is_some_and(Standing::is_leaving);
        let evacuates = matches!(running.reason, MoveReason::Repair | MoveReason::Drain);
        (evacuates && stays).then(|| {
            format!("move {move_id} is cancelled: node {node} keeps its replicas after all")
        })
    }

    fn plan_catching_up(&mut self, shard: &ShardDescriptor, running: &Move, seen: &ShardSeen) {
        if !same(&seen.voters, &shard.replicas) {
            self.wait_for_move(running, "its group has other voters than the map");
            return;
        }
        if !seen.has_majority(&seen.voters) {
            self.wait_for_move(running, "most of the shard's replicas are silent");
            return;
        }
        if let Some(replica) = running.add {
            if !seen.learners.contains(&replica) {
                self.add_learner(shard.shard_id, seen, replica);
                return;
            }
            if !seen.is_caught_up(replica) {
                let node = replica.node_id;
                self.wait_for_move(running, &format!("node {node} gets the shard's state"));
                return;
            }
        }
        self.propose(MetaCommand::SwitchMove {
            move_id: running.move_id,
            config: seen.config,
        });
    }

    fn plan_switching(
        &mut self,
        shard: &ShardDescriptor,
        running: &Move,
        seen: &ShardSeen,
        config: ConfigVersion,
    ) {
        let move_id = running.move_id;
        let voters = running.replicas_after(shard);
        if same(&seen.voters, &voters) {
            let at = self.seen.now;
            self.propose_change(MetaCommand::FinishMove { move_id, at });
            return;
        }
        if !same(&seen.voters, &shard.replicas) {
            self.wait_for_move(
                running,
                "its group has voters of neither before nor after it",
            );
            return;
        }
        if seen.config != config {
            // An answer from before the switch must not undo it.
            if seen.config > config {
                self.propose(MetaCommand::RewindMove { move_id, config });
            }
            return;
        }
        if !seen.has_majority(&seen.voters) {
            self.wait_for_move(running, "most of the shard's replicas are silent");
            return;
        }
        if let Some(replica) = running.add {
            let node = replica.node_id;
            if self.standing(node) == Some(Standing::Lost) || self.is_down(node) {
                self.remove_learner(shard.shard_id, seen, replica);
                return;
            }
            if !seen.is_caught_up(replica) {
                self.wait_for_move(running, &format!("node {node} does not answer"));
                return;
            }
        }
        if !seen.has_majority(&voters) {
            self.wait_for_move(running, "most of the shard's new replicas are silent");
            return;
        }
        let stays = |voter: &&Replica| voters.contains(voter);
        let led_from_where_it_leaves = !voters.iter().any(|one| one.node_id == seen.leader);
        if led_from_where_it_leaves && seen.voters.iter().any(|voter| stays(&voter)) {
            let staying: Vec<Replica> = seen.voters.iter().filter(stays).copied().collect();
            match self.best_leader(seen, &staying, running.preferred_leader) {
                Some(to) => self.transfer(shard.shard_id, seen.leader, to),
                None => self.wait_for_move(running, "no other replica can lead the shard"),
            }
            return;
        }
        self.changing.insert(shard.shard_id);
        self.plan.steps.push(Step::ChangeVoters {
            shard_id: shard.shard_id,
            leader: seen.leader,
            voters,
            config,
        });
    }

    fn plan_cancelling(&mut self, running: &Move, seen: &ShardSeen) {
        match running.add {
            Some(replica) if seen.learners.contains(&replica) => {
                self.remove_learner(running.shard_id, seen, replica);
            }
            Some(replica) if seen.voters.contains(&replica) => {
                self.wait_for_move(running, "its new replica votes");
            }
            _ => self.propose_change(MetaCommand::EndCancelledMove {
                move_id: running.move_id,
                at: self.seen.now,
            }),
        }
    }

    /// Learners that neither the map nor a move names: left behind by steps that were late.
    pub(super) fn plan_strays(&mut self) {
        for (shard_id, seen) in &self.seen.shards {
            if seen.changing || self.changing.contains(shard_id) {
                continue;
            }
            // A number that was not given yet is of a move that this state does not know.
            let stray = seen.learners.iter().find(|replica| {
                replica.replica_id < self.state.next_replica_id
                    && !self.state.names_replica(*shard_id, replica.replica_id)
            });
            if let Some(stray) = stray {
                self.remove_learner(*shard_id, seen, *stray);
            }
        }
    }

    fn add_learner(&mut self, shard_id: ShardId, seen: &ShardSeen, replica: Replica) {
        self.changing.insert(shard_id);
        self.plan.steps.push(Step::AddLearner {
            shard_id,
            leader: seen.leader,
            replica,
            config: seen.config,
        });
    }

    fn remove_learner(&mut self, shard_id: ShardId, seen: &ShardSeen, replica: Replica) {
        self.changing.insert(shard_id);
        self.plan.steps.push(Step::RemoveLearner {
            shard_id,
            leader: seen.leader,
            replica,
            config: seen.config,
        });
    }

    pub(super) fn transfer(&mut self, shard_id: ShardId, from: NodeId, to: NodeId) {
        self.plan
            .steps
            .push(Step::TransferLeader { shard_id, from, to });
    }

    /// The replica that had better lead: one that is caught up, on a node that may, the
    /// preferred one first.
    pub(super) fn best_leader(
        &self,
        seen: &ShardSeen,
        among: &[Replica],
        preferred: NodeId,
    ) -> Option<NodeId> {
        let others = among
            .iter()
            .filter(|replica| replica.node_id != seen.leader);
        let ready = others.filter(|replica| seen.is_caught_up(**replica));
        let nodes = ready.map(|replica| replica.node_id);
        nodes.min_by_key(|node| {
            let may_lead = self.standing(*node).is_some_and(Standing::may_lead);
            let good = may_lead && self.seen.stays_up(*node);
            (!good, *node != preferred, *node)
        })
    }
}
