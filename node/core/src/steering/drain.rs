//! How far the emptying of a node is, and what it would break. For people and for whoever
//! stops nodes; keeps no state.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use thiserror::Error;

use super::{Planner, Seen, plan};
use crate::ids::{NodeId, ShardId, TimestampMs};
use crate::map::{DrainPurpose, MetaState, Replica, Standing};
use crate::placement::ShortfallReason;

/// How far the emptying of a node is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DrainStatus {
    /// Replicas that the map has on it, or that are on their way to it or from it.
    pub replicas_left: u32,
    /// Groups that it leads, the meta group among them.
    pub leaders_left: u32,
    /// What its replicas take up.
    pub bytes_left: u64,
    /// Streams of clients on it.
    pub sessions_left: u32,
    /// How much of it is done, of 100: of the replicas that it had when it began, for ever; for
    /// a restart 100 once it is done.
    pub percent: u32,
    /// Where it is.
    pub step: DrainStep,
    /// When it began.
    pub started_at: Option<TimestampMs>,
    /// It may stop: for a restart once it leads nothing and its clients have left, for ever once
    /// it also holds nothing. False for a node that is not being emptied.
    pub done: bool,
    /// What the rest waits for.
    pub waits: Vec<String>,
}

/// Where the emptying of a node is. Clients, leaders and replicas leave at the same time; it
/// names the first that is not done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DrainStep {
    /// It is not emptied.
    #[default]
    NotDraining,
    /// What it leads is handed over.
    HandingOver,
    /// Clients are told to connect elsewhere.
    ClientsLeave,
    /// Replicas move to other nodes.
    MovingReplicas,
    /// It may stop.
    Done,
}

impl fmt::Display for DrainStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DrainStep::NotDraining => "not draining",
            DrainStep::HandingOver => "handing leaders over",
            DrainStep::ClientsLeave => "clients leave",
            DrainStep::MovingReplicas => "moving replicas",
            DrainStep::Done => "done",
        })
    }
}

/// How far the emptying of `node` is.
pub fn drain_status(state: &MetaState, seen: &Seen, node: NodeId) -> DrainStatus {
    let mut status = DrainStatus::default();
    let mut shards = BTreeSet::new();
    for shard in &state.map.shards {
        let shard_id = shard.shard_id;
        let group = seen.shards.get(&shard_id);
        let members = group
            .into_iter()
            .flat_map(|group| group.voters.iter().chain(&group.learners));
        let is_member = members.clone().any(|member| member.node_id == node);
        if shard.replica_on(node).is_some()
            || is_member
            || state.replica_for(shard_id, node).is_some()
        {
            status.replicas_left += 1;
            status.bytes_left += group.map_or(0, |group| group.size_bytes);
            shards.insert(shard_id);
        }
        if group.is_some_and(|group| group.leader == node) {
            status.leaders_left += 1;
        }
    }
    if seen.meta.leader == node {
        status.leaders_left += 1;
    }
    // Clients of a silent node have lost it already, and what it led has a new leader, or waits
    // for one anyway.
    let known = seen.nodes.get(&node);
    let is_up = known.is_some_and(|known| known.up);
    if is_up {
        status.sessions_left = known.map_or(0, |known| known.sessions);
    }
    let has_left = status.sessions_left == 0;
    status.done = match state.standing(node) {
        Some(Standing::DRAINING_FOR_REMOVAL) => {
            has_left
                && status.replicas_left == 0
                && (status.leaders_left == 0 || !is_up)
                && !seen.meta.voters.contains(&node)
        }
        Some(Standing::Lost) => status.replicas_left == 0,
        Some(Standing::DRAINING_FOR_RESTART) => has_left && status.leaders_left == 0,
        None => true,
        Some(_) => false,
    };
    let start = state.drains.get(&node);
    status.started_at = start.map(|start| start.at);
    status.step = match (start, state.standing(node)) {
        _ if status.done => DrainStep::Done,
        (None, standing) if standing != Some(Standing::Lost) => DrainStep::NotDraining,
        (Some(_), _) if is_up && status.leaders_left > 0 => DrainStep::HandingOver,
        (Some(_), _) if !has_left => DrainStep::ClientsLeave,
        _ => DrainStep::MovingReplicas,
    };
    status.percent = match (state.standing(node), start) {
        _ if status.done => 100,
        (Some(Standing::DRAINING_FOR_REMOVAL), Some(start)) => {
            let gone = start.replicas.saturating_sub(status.replicas_left);
            gone * 100 / start.replicas.max(1)
        }
        _ => 0,
    };
    if !status.done {
        let about = |wait: &super::Wait| {
            wait.node_id == Some(node)
                || wait.shard_id.is_some_and(|shard| shards.contains(&shard))
                || (wait.node_id.is_none() && wait.shard_id.is_none())
        };
        let waits = plan(state, seen).waits.into_iter().filter(about);
        status.waits = waits.map(|wait| wait.text).collect();
    }
    status
}

/// What emptying a node, or stopping it, would break.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DrainDanger {
    /// The shard would have no majority without the node.
    #[error(
        "shard {shard_id} has {answering} of {voters} replicas without node {node_id}; bring back the others first"
    )]
    NoMajority {
        /// The shard; [`META_SHARD`](crate::map::META_SHARD) for the meta group.
        shard_id: ShardId,
        /// The node.
        node_id: NodeId,
        /// Voters that answer besides it.
        answering: u32,
        /// All voters.
        voters: u32,
    },
    /// Nobody knows who leads the shard, of which the node has a replica.
    #[error("shard {shard_id} has no leader and a replica on node {node_id}; wait for a leader")]
    NoLeader {
        /// The shard.
        shard_id: ShardId,
        /// The node.
        node_id: NodeId,
    },
    /// Too few nodes would be left for the replicas.
    #[error(
        "without node {node_id} there would be {active} active nodes for {replication_factor} replicas; add nodes first"
    )]
    TooFewNodes {
        /// The node.
        node_id: NodeId,
        /// How many would be left.
        active: u32,
        /// How many replicas a shard has.
        replication_factor: u32,
    },
    /// The shard's replica could go nowhere.
    #[error("the replica of shard {shard_id} could not leave: {reason}")]
    NowhereToGo {
        /// The shard.
        shard_id: ShardId,
        /// Why.
        reason: ShortfallReason,
    },
}

/// What would break if `node` were emptied for this purpose: for a restart, groups that would
/// stop while it is away; for removal, replicas that could not be kept. Empty: go ahead.
pub fn drain_danger(
    state: &MetaState,
    seen: &Seen,
    node: NodeId,
    purpose: DrainPurpose,
) -> Vec<DrainDanger> {
    match purpose {
        DrainPurpose::Restart => danger_of_stopping(state, seen, node),
        DrainPurpose::Removal => danger_of_removal(state, seen, node),
    }
}

fn danger_of_stopping(state: &MetaState, seen: &Seen, node_id: NodeId) -> Vec<DrainDanger> {
    let mut dangers = Vec::new();
    let meta = &seen.meta;
    if meta.voters.contains(&node_id) {
        let others = meta.voters.iter().filter(|voter| **voter != node_id);
        let answering = others.filter(|voter| meta.answers(**voter)).count();
        push_majority(
            &mut dangers,
            crate::map::META_SHARD,
            node_id,
            answering,
            meta.voters.len(),
        );
    }
    for shard in &state.map.shards {
        let shard_id = shard.shard_id;
        let Some(group) = seen.shards.get(&shard_id) else {
            if shard.replica_on(node_id).is_some() {
                dangers.push(DrainDanger::NoLeader { shard_id, node_id });
            }
            continue;
        };
        if !group.voters.iter().any(|voter| voter.node_id == node_id) {
            continue;
        }
        let others = group.voters.iter().filter(|voter| voter.node_id != node_id);
        let answers = |voter: &&Replica| group.answers(**voter) && seen.stays_up(voter.node_id);
        let answering = others.filter(answers).count();
        push_majority(
            &mut dangers,
            shard_id,
            node_id,
            answering,
            group.voters.len(),
        );
    }
    dangers
}

fn push_majority(
    dangers: &mut Vec<DrainDanger>,
    shard_id: ShardId,
    node_id: NodeId,
    answering: usize,
    voters: usize,
) {
    if 2 * answering <= voters {
        dangers.push(DrainDanger::NoMajority {
            shard_id,
            node_id,
            answering: answering as u32,
            voters: voters as u32,
        });
    }
}

fn danger_of_removal(state: &MetaState, seen: &Seen, node_id: NodeId) -> Vec<DrainDanger> {
    let mut dangers = Vec::new();
    let others = state.standings.iter();
    let others = others.filter(|(id, standing)| **id != node_id && **standing == Standing::Active);
    let active = others.count() as u32;
    if active < state.replication_factor {
        dangers.push(DrainDanger::TooFewNodes {
            node_id,
            active,
            replication_factor: state.replication_factor,
        });
    }
    let planner = Planner::new(state, seen);
    let draining = BTreeMap::from([(node_id, Standing::DRAINING_FOR_REMOVAL)]);
    let solution = planner.solution(&draining).unwrap_or_default();
    for shortfall in solution.shortfalls {
        let shard_id = shortfall.shard_id;
        let placement = &solution.assignment.shards[&shard_id];
        if placement.replicas.contains(&node_id) {
            dangers.push(DrainDanger::NowhereToGo {
                shard_id,
                reason: shortfall.reason,
            });
        }
    }
    dangers
}
