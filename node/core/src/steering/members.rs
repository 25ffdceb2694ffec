//! Who votes in the meta group. All registered nodes are in it, as learners at least. Keeps
//! no state.
//!
//! Invariants: one change in a plan, and only when most of the voters answer; a node becomes
//! a voter only when it has caught up; healthy voters stay.

use std::collections::BTreeMap;

use super::{Planner, Step};
use crate::ids::NodeId;
use crate::map::Standing;
use crate::placement::Zone;

/// Voters of the meta group, for a number of nodes: an odd number, and no more than what
/// survives the loss of two.
const fn voters_for(nodes: usize) -> usize {
    match nodes {
        0..=2 => 1,
        3..=4 => 3,
        _ => 5,
    }
}

/// How good a voter a node is, the best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fitness {
    /// It votes and answers.
    Votes,
    /// It votes, and is silent for now.
    Silent,
    /// It answers and has almost all.
    Ready,
    /// It votes and is given up.
    Lost,
}

impl Planner<'_> {
    pub(super) fn plan_members(&mut self) {
        let meta = &self.seen.meta;
        if meta.voters.is_empty() {
            return;
        }
        if meta.changing {
            self.wait(
                None,
                None,
                "the meta group's members are changing".to_owned(),
            );
            return;
        }
        let answering = meta.voters.iter().filter(|node| meta.answers(**node));
        if 2 * answering.count() <= meta.voters.len() {
            let text = "most voters of the meta group are silent; bring back nodes".to_owned();
            self.wait(None, None, text);
            return;
        }
        let config = meta.config;
        let member = |node: &NodeId| meta.voters.contains(node) || meta.learners.contains(node);
        let registered = self.state.standings.iter();
        let mut missing = registered.filter(|(node, standing)| {
            **standing != Standing::Lost && self.seen.is_up(**node) && !member(node)
        });
        if let Some((node_id, _)) = missing.next() {
            let node_id = *node_id;
            let step = Step::MetaAddLearner { node_id, config };
            self.plan.steps.push(step);
            return;
        }
        let voters = self.wanted_voters();
        if !voters.is_empty() && !same(&voters, &meta.voters) {
            let answering = voters.iter().filter(|node| meta.answers(**node));
            if 2 * answering.count() <= voters.len() {
                let text = "most of the meta group's next voters are silent".to_owned();
                self.wait(None, None, text);
                return;
            }
            if !voters.contains(&meta.leader) && self.next_meta_leader().is_some() {
                let text = "the meta group's leader hands over before it leaves".to_owned();
                self.wait(None, None, text);
                return;
            }
            self.plan
                .steps
                .push(Step::MetaChangeVoters { voters, config });
            return;
        }
        let mut learners = meta.learners.iter();
        if let Some(node_id) = learners.find(|node| self.standing(**node).is_none()) {
            let node_id = *node_id;
            self.plan
                .steps
                .push(Step::MetaRemoveLearner { node_id, config });
        }
    }

    fn wanted_voters(&self) -> Vec<NodeId> {
        let stays = |standing: &Standing| *standing != Standing::DRAINING_FOR_REMOVAL;
        let staying = self
            .state
            .standings
            .values()
            .filter(|standing| stays(standing));
        let wanted = voters_for(staying.count());
        let mut candidates: Vec<(Fitness, &Zone, NodeId)> = Vec::new();
        for node in &self.state.map.nodes {
            if let Some(fitness) = self.fitness(node.node_id) {
                candidates.push((fitness, &node.zone, node.node_id));
            }
        }
        let mut zones: BTreeMap<&Zone, usize> = BTreeMap::new();
        let mut voters = Vec::new();
        while voters.len() < wanted && !candidates.is_empty() {
            let order = |(fitness, zone, node): &(Fitness, &Zone, NodeId)| {
                let crowd = zones.get(zone).copied().unwrap_or(0);
                let leads = *node == self.seen.meta.leader;
                (*fitness, !leads, crowd, *node)
            };
            let best = (0..candidates.len()).min_by_key(|at| order(&candidates[*at]));
            let (_, zone, node) = candidates.swap_remove(best.expect("there are some"));
            *zones.entry(zone).or_default() += 1;
            voters.push(node);
        }
        // A lost voter is better than none only as long as the others are a majority.
        let meta = &self.seen.meta;
        let answering = voters.iter().filter(|node| meta.answers(**node)).count();
        let is_lost = |node: &NodeId| self.standing(*node) == Some(Standing::Lost);
        while 2 * answering <= voters.len() && voters.last().is_some_and(is_lost) {
            voters.pop();
        }
        // One vote more than an odd number survives no further loss.
        let votes_already = |node: &NodeId| meta.voters.contains(node);
        if voters.len().is_multiple_of(2) && !voters.last().is_none_or(votes_already) {
            voters.pop();
        }
        voters.sort();
        voters
    }

    fn fitness(&self, node: NodeId) -> Option<Fitness> {
        let meta = &self.seen.meta;
        let votes = meta.voters.contains(&node);
        match self.standing(node)? {
            Standing::DRAINING_FOR_REMOVAL => None,
            Standing::Lost => votes.then_some(Fitness::Lost),
            _ if votes && meta.answers(node) => Some(Fitness::Votes),
            _ if votes => Some(Fitness::Silent),
            standing => {
                let ready = standing == Standing::Active
                    && self.seen.stays_up(node)
                    && meta.learners.contains(&node)
                    && meta.is_caught_up(node);
                ready.then_some(Fitness::Ready)
            }
        }
    }
}

fn same(one: &[NodeId], other: &[NodeId]) -> bool {
    one.len() == other.len() && one.iter().all(|node| other.contains(node))
}
