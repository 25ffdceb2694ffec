//! What happened to the cluster and who wanted it, for people: a bounded list in the meta
//! group's state, which owns it. Appended to by the commands that do something, oldest dropped first.

use std::collections::VecDeque;
use std::fmt;

use super::Replica;
use super::merges::MergeReason;
use super::moves::{Move, MoveId, MoveReason};
use super::recovery::LogPosition;
use super::registry::Standing;
use super::splits::SplitReason;
use super::versions::ClusterVersion;
use crate::ids::{NodeId, ReplicaId, ShardId, Slot, TimestampMs};

/// How many events are kept.
pub const EVENTS_MAX: usize = 512;

/// The longest name of who wants something, bytes.
pub const ACTOR_BYTES_MAX: usize = 128;

/// Who wants something, as they call themselves. Recorded, never asked for permission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor(pub String);

impl Actor {
    /// Somebody who did not say.
    pub fn unknown() -> Self {
        Actor("unknown".to_owned())
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, by the clock of who proposed it.
    pub at: TimestampMs,
    /// Who wanted it; none: the cluster did it by itself.
    pub by: Option<Actor>,
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
    /// A shard takes over its right neighbour.
    MergeStarted {
        /// The shard.
        shard_id: ShardId,
        /// The neighbour.
        absorbed_shard_id: ShardId,
        /// Why.
        reason: MergeReason,
    },
    /// Two shards have become one.
    MergeFinished {
        /// The shard that is left.
        shard_id: ShardId,
        /// The one that it took over.
        absorbed_shard_id: ShardId,
    },
    /// A merge was given up; both shards are as before.
    MergeCancelled {
        /// The shard.
        shard_id: ShardId,
        /// The one that it would have taken over.
        absorbed_shard_id: ShardId,
    },
    /// All nodes understand more than before, and use it.
    UpgradeFinalized {
        /// The cluster's version now.
        to: ClusterVersion,
    },
    /// The policy is another one.
    PolicyChanged,
    /// The old join token is worth nothing any more.
    JoinTokenRotated,
    /// A shard that lost its majority is made anew from one replica.
    RecoveryStarted {
        /// The shard.
        shard_id: ShardId,
        /// The replica that survived.
        from: Replica,
        /// Its new number.
        to: ReplicaId,
        /// Where its log ended.
        last: LogPosition,
        /// The nodes of the replicas that were given up.
        lost: Vec<NodeId>,
    },
    /// The shard is led again.
    RecoveryFinished {
        /// The shard.
        shard_id: ShardId,
        /// The replica that it was made of, by its new number.
        replica_id: ReplicaId,
    },
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
            EventKind::MergeStarted {
                shard_id,
                absorbed_shard_id,
                reason,
            } => write!(
                f,
                "shard {shard_id} begins to take over shard {absorbed_shard_id} ({reason})"
            ),
            EventKind::MergeFinished {
                shard_id,
                absorbed_shard_id,
            } => write!(
                f,
                "shard {shard_id} has taken over shard {absorbed_shard_id}"
            ),
            EventKind::MergeCancelled {
                shard_id,
                absorbed_shard_id,
            } => write!(
                f,
                "shard {shard_id} does not take over shard {absorbed_shard_id} after all"
            ),
            EventKind::UpgradeFinalized { to } => {
                write!(f, "the cluster is at version {to}")
            }
            EventKind::PolicyChanged => f.write_str("the policy was changed"),
            EventKind::JoinTokenRotated => f.write_str("the join token was changed"),
            EventKind::RecoveryStarted {
                shard_id,
                from,
                to,
                last,
                lost,
            } => {
                write!(
                    f,
                    "shard {shard_id} is made anew from replica {} on node {}, which is replica {to} now; its log ended at entry {} of term {}; given up with nodes",
                    from.replica_id, from.node_id, last.index, last.term
                )?;
                lost.iter().try_for_each(|node| write!(f, " {node}"))
            }
            EventKind::RecoveryFinished {
                shard_id,
                replica_id,
            } => write!(f, "shard {shard_id} is led again, by replica {replica_id}"),
        }
    }
}

pub(super) fn push(events: &mut VecDeque<Event>, event: Event) {
    if events.len() >= EVENTS_MAX {
        events.pop_front();
    }
    events.push_back(event);
}
