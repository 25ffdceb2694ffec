//! What happened to the cluster, for people: a bounded list in the meta group's state, which
//! owns it. Appended to by the commands that do something, oldest dropped first.

use std::collections::VecDeque;
use std::fmt;

use super::moves::{Move, MoveId, MoveReason};
use super::registry::Standing;
use super::splits::SplitReason;
use crate::ids::{NodeId, ShardId, Slot, TimestampMs};

/// How many events are kept.
pub const EVENTS_MAX: usize = 512;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, by the clock of who proposed it.
    pub at: TimestampMs,
    /// What.
    pub what: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The cluster was made.
    ClusterCreated,
    /// A node joined.
    NodeJoined {
        /// Its new number.
        node_id: NodeId,
    },
    /// A node may be used for something else than before: it was drained, given up, or came
    /// back.
    StandingChanged {
        /// The node.
        node_id: NodeId,
        /// Before.
        from: Standing,
        /// Now.
        to: Standing,
        /// Somebody insisted on it.
        forced: bool,
    },
    /// A node left for ever.
    NodeForgotten {
        /// The number it had.
        node_id: NodeId,
    },
    /// A replica is on its way.
    MoveStarted {
        /// The move.
        move_id: MoveId,
        /// The shard.
        shard_id: ShardId,
        /// Where it gets a replica.
        to: Option<NodeId>,
        /// Where it loses one.
        from: Option<NodeId>,
        /// Why.
        reason: MoveReason,
    },
    /// A replica has arrived.
    MoveFinished {
        /// The move.
        move_id: MoveId,
        /// The shard.
        shard_id: ShardId,
        /// Why it was.
        reason: MoveReason,
    },
    /// A move was given up; nothing has changed.
    MoveCancelled {
        /// The move.
        move_id: MoveId,
        /// The shard.
        shard_id: ShardId,
        /// Why it was.
        reason: MoveReason,
    },
    /// A shard is being split.
    SplitStarted {
        /// The shard.
        shard_id: ShardId,
        /// The new one.
        new_shard_id: ShardId,
        /// Its first slot.
        slot: Slot,
        /// Why.
        reason: SplitReason,
    },
    /// A shard has become two.
    SplitFinished {
        /// The shard.
        shard_id: ShardId,
        /// The new one.
        new_shard_id: ShardId,
    },
    /// The policy is another one.
    PolicyChanged,
    /// The old join token is worth nothing any more.
    JoinTokenRotated,
}

impl EventKind {
    pub(super) fn started(started: &Move) -> Self {
        EventKind::MoveStarted {
            move_id: started.move_id,
            shard_id: started.shard_id,
            to: started.add.map(|replica| replica.node_id),
            from: started.remove.map(|replica| replica.node_id),
            reason: started.reason,
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EventKind::ClusterCreated => f.write_str("the cluster was created"),
            EventKind::NodeJoined { node_id } => write!(f, "node {node_id} joined"),
            EventKind::StandingChanged {
                node_id,
                from,
                to,
                forced,
            } => {
                let forced = if *forced { ", forced" } else { "" };
                write!(f, "node {node_id} is {to}, was {from}{forced}")
            }
            EventKind::NodeForgotten { node_id } => write!(f, "node {node_id} was forgotten"),
            EventKind::MoveStarted {
                move_id,
                shard_id,
                to,
                from,
                reason,
            } => {
                write!(f, "move {move_id} of shard {shard_id} started")?;
                if let Some(node) = from {
                    write!(f, ", from node {node}")?;
                }
                if let Some(node) = to {
                    write!(f, ", to node {node}")?;
                }
                write!(f, " ({reason})")
            }
            EventKind::MoveFinished {
                move_id,
                shard_id,
                reason,
            } => write!(f, "move {move_id} of shard {shard_id} is done ({reason})"),
            EventKind::MoveCancelled {
                move_id,
                shard_id,
                reason,
            } => write!(
                f,
                "move {move_id} of shard {shard_id} was cancelled ({reason})"
            ),
            EventKind::SplitStarted {
                shard_id,
                new_shard_id,
                slot,
                reason,
            } => write!(
                f,
                "shard {shard_id} is being split at slot {slot}, into shard {new_shard_id} too ({reason})"
            ),
            EventKind::SplitFinished {
                shard_id,
                new_shard_id,
            } => write!(
                f,
                "shard {shard_id} was split into itself and shard {new_shard_id}"
            ),
            EventKind::PolicyChanged => f.write_str("the policy was changed"),
            EventKind::JoinTokenRotated => f.write_str("the join token was changed"),
        }
    }
}

pub(super) fn record(events: &mut VecDeque<Event>, at: TimestampMs, what: EventKind) {
    if events.len() >= EVENTS_MAX {
        events.pop_front();
    }
    events.push_back(Event { at, what });
}
