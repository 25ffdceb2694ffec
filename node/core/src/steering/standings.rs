//! Gives up nodes that are silent for too long, and takes back those that return. Keeps no
//! state.
//!
//! Invariants: a node is given up only while most of the others answer, and while fewer
//! than the policy allows wait to be replaced; at most one in a plan.

use super::Planner;
use crate::ids::NodeId;
use crate::map::{MetaCommand, Standing};

impl Planner<'_> {
    pub(super) fn plan_standings(&mut self) {
        self.plan_returns();
        self.plan_losses();
    }

    fn plan_returns(&mut self) {
        for node in &self.state.map.nodes {
            let node_id = node.node_id;
            if self.standing(node_id) != Some(Standing::Lost) || !self.seen.is_up(node_id) {
                continue;
            }
            match self.state.successor_of(node) {
                Some(successor) => self.wait_for_node(
                    node_id,
                    format!(
                        "node {node_id} answers, but node {successor} has taken its place; stop it and forget it"
                    ),
                ),
                None => self.set_standing(node_id, Standing::Active),
            }
        }
    }

    fn plan_losses(&mut self) {
        let state = self.state;
        let expected = state.standings.iter();
        let expected = expected.filter(|(_, standing)| **standing != Standing::Lost);
        let expected: Vec<NodeId> = expected.map(|(node, _)| *node).collect();
        let after_ms = state.policy.failure_replacement_after_ms();
        let due = |node: &NodeId| self.seen.silent_ms(*node) > after_ms;
        let mut due: Vec<NodeId> = expected.iter().copied().filter(due).collect();
        due.sort_by_key(|node| (u64::MAX - self.seen.silent_ms(*node), *node));
        let silent = expected.iter().filter(|node| !self.seen.is_up(**node));
        let silent = silent.count();
        if 2 * silent >= expected.len() {
            for node in due {
                let of = expected.len();
                self.wait_for_node(
                    node,
                    format!(
                        "node {node} is not given up: {silent} of {of} nodes are silent, so the fault may be here; bring nodes back, or say that it is lost"
                    ),
                );
            }
            return;
        }
        let lost = state.lost_nodes_with_replicas();
        let max = state.policy.lost_nodes_max as usize;
        let mut given_up = false;
        for node in due {
            let holds_nothing = state.replicas_on(node) == 0;
            if given_up {
                self.wait_for_node(node, format!("node {node} is given up after another one"));
            } else if holds_nothing || lost < max {
                self.set_standing(node, Standing::Lost);
                given_up = true;
            } else {
                self.wait_for_node(
                    node,
                    format!(
                        "node {node} is not given up: {lost} lost nodes wait to be replaced, and the policy allows {max}; bring nodes back, or say that it is lost"
                    ),
                );
            }
        }
    }

    fn set_standing(&mut self, node_id: NodeId, standing: Standing) {
        self.propose_change(MetaCommand::SetStanding {
            node_id,
            standing,
            forced: false,
            at: self.seen.now,
        });
    }
}
