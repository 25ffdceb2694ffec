//! The cluster as a problem of placement, and what its solution asks for. Keeps no state.
//!
//! Moves that run count as done, so that nothing is wanted twice. Sizes and loads are
//! rounded down, so that a message more or less moves nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::starts::Starts;
use super::{Planner, ShardSeen};
use crate::ids::{NodeId, ShardId};
use crate::map::{MoveReason, NodeInfo, ShardDescriptor, Standing};
use crate::placement::{
    Assignment, Constraints, Node, NodeState, Placement, Problem, Shard, Shortfall, Solution, solve,
};

/// Sizes of shards count in multiples of it.
pub const SIZE_STEP_BYTES: u64 = 64 << 20;
/// Loads of shards count in multiples of it: they change from minute to minute.
pub const LOAD_STEP_PER_SECOND: u64 = 1_000;

/// A change of a shard's replicas that the solver asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    pub(super) shard_id: ShardId,
    pub(super) to: Option<NodeId>,
    pub(super) from: Option<NodeId>,
    pub(super) reason: MoveReason,
}

/// What the solver asks for.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    /// Changes of shards that do not move yet; more than one for a shard when it needs more.
    pub(super) moves: Vec<Wish>,
    /// The node that is to lead each shard.
    pub(super) leaders: BTreeMap<ShardId, NodeId>,
    /// What cannot be done.
    pub(super) shortfalls: Vec<Shortfall>,
}

impl Planner<'_> {
    /// Asks the solver. Empty when the state is none that it could solve.
    pub(super) fn wishes(&self) -> Wishes {
        let problem = self.problem(&BTreeMap::new());
        let Ok(solution) = solve(&problem, &self.previous(&BTreeMap::new())) else {
            return Wishes::default();
        };
        let mut wishes = Wishes {
            shortfalls: solution.shortfalls,
            moves: Vec::new(),
            leaders: BTreeMap::new(),
        };
        let placed = &solution.assignment.shards;
        for shard in &self.state.map.shards {
            let Some(placement) = placed.get(&shard.shard_id) else {
                continue;
            };
            if let Some(leader) = placement.preferred_leader {
                wishes.leaders.insert(shard.shard_id, leader);
            }
            let shard_id = shard.shard_id;
            let moves = self.state.moves.contains_key(&shard_id);
            if !moves && self.state.merge_of(shard_id).is_none() {
                self.wish(shard, placement, &mut wishes.moves);
            }
        }
        self.displace(&mut wishes.moves);
        wishes
    }

    /// A move that makes room for another one is part of it, not balance.
    fn displace(&self, moves: &mut [Wish]) {
        let balance = moves
            .iter()
            .filter(|wish| wish.reason == MoveReason::Balance);
        let left: BTreeSet<NodeId> = balance.filter_map(|wish| wish.from).collect();
        let waits = |wish: &Wish| {
            let to = wish.to.filter(|to| left.contains(to))?;
            let waits = wish.reason < MoveReason::Balance
                && self
                    .no_room(to, wish.shard_id, &Starts::default())
                    .is_some();
            waits.then_some((to, wish.reason))
        };
        let waiting: Vec<(NodeId, MoveReason)> = moves.iter().filter_map(waits).collect();
        for wish in moves {
            let from = wish.from.filter(|_| wish.reason == MoveReason::Balance);
            let served = waiting.iter().filter(|(node, _)| Some(*node) == from);
            if let Some(reason) = served.map(|(_, reason)| *reason).min() {
                wish.reason = reason;
            }
        }
    }

    fn wish(&self, shard: &ShardDescriptor, placement: &Placement, moves: &mut Vec<Wish>) {
        let shard_id = shard.shard_id;
        let now = shard.replicas.iter().map(|replica| replica.node_id);
        let gone = now
            .clone()
            .filter(|node| !placement.replicas.contains(node));
        let mut gone: Vec<(MoveReason, NodeId)> = gone
            .map(|node| (self.reason_to_leave(node), node))
            .collect();
        gone.sort();
        let now: Vec<NodeId> = now.collect();
        let new = placement.replicas.iter().copied();
        let mut new = new.filter(|node| !now.contains(node));
        for (reason, from) in gone {
            moves.push(Wish {
                shard_id,
                to: new.next(),
                from: Some(from),
                reason,
            });
        }
        moves.extend(new.map(|to| Wish {
            shard_id,
            to: Some(to),
            from: None,
            reason: MoveReason::Repair,
        }));
    }

    fn reason_to_leave(&self, node: NodeId) -> MoveReason {
        match self.standing(node) {
            Some(Standing::Lost) | None => MoveReason::Repair,
            Some(standing) if standing.is_leaving() => MoveReason::Drain,
            Some(_) => MoveReason::Balance,
        }
    }

    /// Where everything should be, as if nodes had these other standings.
    pub(super) fn solution(&self, standings: &BTreeMap<NodeId, Standing>) -> Option<Solution> {
        solve(&self.problem(standings), &self.previous(standings)).ok()
    }

    /// The problem of placement, as if nodes had these other standings.
    pub(super) fn problem(&self, standings: &BTreeMap<NodeId, Standing>) -> Problem {
        let state = self.state;
        let standing = |node: &NodeInfo| {
            let other = standings.get(&node.node_id).copied();
            other.or(state.standing(node.node_id)).unwrap_or_default()
        };
        let counts = |node: &&NodeInfo| {
            standing(node) != Standing::Lost
                || state.replicas_on(node.node_id) > 0
                || state.moves_of(node.node_id) > 0
        };
        let held = self.held_bytes();
        let held = |node: &NodeInfo| held.get(&node.node_id).copied().unwrap_or_default();
        let nodes = state.map.nodes.iter().filter(counts).map(|node| Node {
            node_id: node.node_id,
            zone: node.zone.clone(),
            capacity_bytes: self.capacity_bytes(node, held(node)),
            weight: node.weight,
            state: self.node_state(node.node_id, standing(node)),
        });
        let shards = state.map.shards.iter().map(|shard| {
            let seen = self.seen.shards.get(&shard.shard_id);
            Shard {
                shard_id: shard.shard_id,
                size_bytes: size_bytes(seen),
                load_per_second: load_per_second(seen),
            }
        });
        Problem {
            nodes: nodes.collect(),
            shards: shards.collect(),
            replication_factor: state.replication_factor,
            constraints: Constraints {
                leader_zone: state.policy.leader_zone.clone(),
                ..Constraints::default()
            },
        }
    }

    /// Where everything will be when the moves that run are done.
    pub(super) fn previous(&self, standings: &BTreeMap<NodeId, Standing>) -> Assignment {
        let may_lead = |node: &NodeId| match standings.get(node) {
            Some(standing) => standing.may_lead(),
            None => self.standing(*node).is_some_and(Standing::may_lead),
        };
        let placement = |shard: &ShardDescriptor| {
            let running = self.state.moves.get(&shard.shard_id);
            let running = running.filter(|running| running.goes_on());
            let (replicas, leader) = match running {
                Some(running) => (running.replicas_after(shard), running.preferred_leader),
                None => (shard.replicas.clone(), shard.preferred_leader),
            };
            let replicas = replicas.iter().map(|replica| replica.node_id);
            let placement = Placement {
                replicas: replicas.collect(),
                preferred_leader: Some(leader).filter(&may_lead),
            };
            (shard.shard_id, placement)
        };
        Assignment {
            shards: self.state.map.shards.iter().map(placement).collect(),
        }
    }

    /// How evenly leaders could be spread over the replicas as they are.
    pub(super) fn even_leaders(&self) -> Assignment {
        let mut problem = self.problem(&BTreeMap::new());
        // No node takes a replica: only leaders may change.
        problem.constraints.replicas_per_node_max = 0;
        let solution = solve(&problem, &self.previous(&BTreeMap::new()));
        solution.map_or_else(|_| Assignment::default(), |solution| solution.assignment)
    }

    fn node_state(&self, node: NodeId, standing: Standing) -> NodeState {
        match standing {
            Standing::Lost => NodeState::Down,
            Standing::DRAINING_FOR_REMOVAL => NodeState::Draining,
            Standing::Cordoned | Standing::DRAINING_FOR_RESTART => NodeState::Cordoned,
            Standing::Active => {
                let known = self.seen.nodes.get(&node);
                let takes_more = known.is_some_and(|node| !node.is_stopping);
                if takes_more && !self.is_down(node) && !self.disk_is_full(node) {
                    NodeState::Active
                } else {
                    NodeState::Cordoned
                }
            }
        }
    }
}

pub(super) fn size_bytes(seen: Option<&ShardSeen>) -> u64 {
    let size = seen.map_or(0, |seen| seen.size_bytes);
    size - size % SIZE_STEP_BYTES
}

fn load_per_second(seen: Option<&ShardSeen>) -> u64 {
    let load = seen.map_or(0, |seen| seen.load_per_second);
    load - load % LOAD_STEP_PER_SECOND
}
