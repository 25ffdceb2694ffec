//! The nodes of the cluster: who joins, what each may be used for, who is forgotten.
//!
//! Owner of the state: [`MetaState`]. A node says what it is ([`NodeInfo`], by joining and
//! updating itself); operators and the steering say what it may be used for ([`Standing`]);
//! neither changes the other's. Invariants: every registered node has one standing, and a
//! [`DrainStart`] while that is a drain; a number and an identity belong together for ever;
//! numbers grow and are never given again.

use std::fmt;

use super::events::EventKind;
use super::meta::{MetaReply, MetaState};
use super::refusal::MetaRefusal;
use super::{MapError, NODES_MAX, NodeInfo};
use crate::ids::{NodeId, TimestampMs};
use crate::placement::WEIGHT_MAX;

/// The longest identity, address or zone of a node, bytes.
pub const NODE_TEXT_BYTES_MAX: usize = 255;
/// The longest join token, bytes.
pub const JOIN_TOKEN_BYTES_MAX: usize = 255;

/// What a node must know to join. Empty: none may. Not shown in logs.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct JoinToken(pub String);

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(hidden)")
    }
}

/// What a node may be used for, as operators and the steering decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// Everything.
    #[default]
    Active,
    /// It keeps what it has and gets nothing new.
    Cordoned,
    /// It is being emptied.
    Draining {
        /// How far.
        purpose: DrainPurpose,
    },
    /// It was given up: its replicas are being replaced.
    Lost,
}

/// How far a node is emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DrainPurpose {
    /// It keeps its replicas and leads nothing: it may stop for a moment.
    Restart,
    /// It loses everything: it may stop for ever.
    Removal,
}

/// Where a drain began; kept while it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainStart {
    /// When, by the clock of who proposed it.
    pub at: TimestampMs,
    /// Replicas that the node had then.
    pub replicas: u32,
}

impl Standing {
    /// Emptied for ever.
    pub const DRAINING_FOR_REMOVAL: Standing = Standing::Draining {
        purpose: DrainPurpose::Removal,
    };
    /// Emptied of leaders.
    pub const DRAINING_FOR_RESTART: Standing = Standing::Draining {
        purpose: DrainPurpose::Restart,
    };

    /// It may be the preferred leader of shards.
    pub const fn may_lead(self) -> bool {
        matches!(self, Standing::Active | Standing::Cordoned)
    }

    /// Its replicas are to go elsewhere.
    pub const fn is_leaving(self) -> bool {
        matches!(
            self,
            Standing::Lost
                | Standing::Draining {
                    purpose: DrainPurpose::Removal
                }
        )
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Standing::Active => "active",
            Standing::Cordoned => "cordoned",
            Standing::Draining {
                purpose: DrainPurpose::Restart,
            } => "draining for a restart",
            Standing::Draining {
                purpose: DrainPurpose::Removal,
            } => "draining for removal",
            Standing::Lost => "lost",
        })
    }
}

impl MetaState {
    /// What the node may be used for; none when it is not registered.
    pub fn standing(&self, node_id: NodeId) -> Option<Standing> {
        self.standings.get(&node_id).copied()
    }

    /// How many replicas the map has on the node.
    pub fn replicas_on(&self, node_id: NodeId) -> usize {
        let shards = self.map.shards.iter();
        shards
            .filter(|shard| shard.replica_on(node_id).is_some())
            .count()
    }

    /// The node that was registered later at the address of this one, whose disk is gone.
    pub fn successor_of(&self, node: &NodeInfo) -> Option<NodeId> {
        let mut others = self.map.nodes.iter();
        let successor = others.find(|other| {
            other.node_id > node.node_id
                && other.peer_address == node.peer_address
                && self.standing(other.node_id) != Some(Standing::Lost)
        });
        successor.map(|other| other.node_id)
    }

    /// The node is lost, and another one is at its address: whoever calls there meets that one.
    pub fn is_superseded(&self, node_id: NodeId) -> bool {
        self.standing(node_id) == Some(Standing::Lost)
            && self
                .map
                .node(node_id)
                .is_some_and(|node| self.successor_of(node).is_some())
    }

    /// Lost nodes that the map still has replicas on.
    pub fn lost_nodes_with_replicas(&self) -> usize {
        let lost = self.standings.iter();
        let lost = lost.filter(|(_, standing)| **standing == Standing::Lost);
        lost.filter(|(node, _)| self.replicas_on(**node) > 0)
            .count()
    }

    fn put_standing(&mut self, node_id: NodeId, to: Standing, forced: bool, at: TimestampMs) {
        let from = self.standings.insert(node_id, to).unwrap_or_default();
        match to {
            Standing::Draining { .. } => {
                let replicas = self.replicas_on(node_id) as u32;
                self.drains.insert(node_id, DrainStart { at, replicas });
            }
            _ => {
                self.drains.remove(&node_id);
            }
        }
        self.record(
            at,
            EventKind::StandingChanged {
                node_id,
                from,
                to,
                forced,
            },
        );
        self.next_epoch();
    }
}

/// Whether a node says something possible about itself.
pub(super) fn check_node(node: &NodeInfo) -> Result<(), MetaRefusal> {
    if node.identity.is_empty() {
        return Err(MetaRefusal::EmptyIdentity);
    }
    for text in [
        &node.identity,
        &node.client_address,
        &node.peer_address,
        &node.zone.0,
    ] {
        check_text(text, NODE_TEXT_BYTES_MAX)?;
    }
    if !(1..=WEIGHT_MAX).contains(&node.weight) {
        return Err(MetaRefusal::WeightOutOfRange {
            max: WEIGHT_MAX,
            actual: node.weight,
        });
    }
    Ok(())
}

pub(super) fn check_text(text: &str, max: usize) -> Result<(), MetaRefusal> {
    let actual = text.len();
    if actual > max {
        return Err(MetaRefusal::TextTooLong { max, actual });
    }
    Ok(())
}

pub(super) fn update(state: &mut MetaState, node: NodeInfo) -> Result<MetaReply, MetaRefusal> {
    check_node(&node)?;
    let node_id = node.node_id;
    let nodes = &mut state.map.nodes;
    let Some(known) = nodes.iter_mut().find(|known| known.node_id == node_id) else {
        return Err(MetaRefusal::UnknownNode { node_id });
    };
    if known.identity != node.identity {
        return Err(MetaRefusal::IdentityMismatch { node_id });
    }
    let changed = *known != node;
    if changed {
        *known = node;
        state.next_epoch();
    }
    Ok(state.updated(changed))
}

pub(super) fn join(
    state: &mut MetaState,
    mut node: NodeInfo,
    token: &JoinToken,
    at: TimestampMs,
) -> Result<MetaReply, MetaRefusal> {
    if token.0.is_empty() || *token != state.join_token {
        return Err(MetaRefusal::WrongToken);
    }
    check_node(&node)?;
    let mut nodes = state.map.nodes.iter();
    if let Some(known) = nodes.find(|known| known.identity == node.identity) {
        return Ok(MetaReply::Joined {
            node_id: known.node_id,
            existed: true,
            epoch: state.map.epoch,
        });
    }
    if state.map.nodes.len() >= NODES_MAX {
        return Err(MetaRefusal::Map(MapError::TooManyNodes {
            max: NODES_MAX,
            actual: state.map.nodes.len() + 1,
        }));
    }
    // Who was at this address before had another disk, which is gone.
    let replaced = state.map.nodes.iter();
    let replaced = replaced.filter(|old| old.peer_address == node.peer_address);
    let replaced: Vec<NodeId> = replaced.map(|old| old.node_id).collect();
    for old in replaced {
        if state.standing(old) != Some(Standing::Lost) {
            state.put_standing(old, Standing::Lost, true, at);
        }
    }
    let node_id = state.next_node_id;
    state.next_node_id = NodeId(node_id.0 + 1);
    node.node_id = node_id;
    // The largest number so far: the list stays in order.
    state.map.nodes.push(node);
    state.standings.insert(node_id, Standing::Active);
    state.record(at, EventKind::NodeJoined { node_id });
    Ok(MetaReply::Joined {
        node_id,
        existed: false,
        epoch: state.next_epoch(),
    })
}

pub(super) fn set_standing(
    state: &mut MetaState,
    node_id: NodeId,
    standing: Standing,
    forced: bool,
    at: TimestampMs,
) -> Result<MetaReply, MetaRefusal> {
    let Some(now) = state.standing(node_id) else {
        return Err(MetaRefusal::UnknownNode { node_id });
    };
    if now == standing {
        return Ok(state.updated(false));
    }
    let node = state.map.node(node_id).expect("a standing has a node");
    if now == Standing::Lost
        && let Some(successor) = state.successor_of(node)
    {
        return Err(MetaRefusal::Superseded { node_id, successor });
    }
    if !forced && standing == Standing::DRAINING_FOR_REMOVAL {
        let standings = state.standings.iter();
        let others = standings.filter(|(id, other)| **id != node_id && **other == Standing::Active);
        let active = others.count() as u32;
        if active < state.replication_factor {
            return Err(MetaRefusal::TooFewNodes {
                node_id,
                active,
                replication_factor: state.replication_factor,
            });
        }
    }
    if !forced && standing == Standing::Lost && state.replicas_on(node_id) > 0 {
        let lost = state.lost_nodes_with_replicas() as u32;
        let max = state.policy.lost_nodes_max;
        if lost >= max {
            return Err(MetaRefusal::TooManyLost { node_id, lost, max });
        }
    }
    state.put_standing(node_id, standing, forced, at);
    Ok(state.updated(true))
}

pub(super) fn forget(
    state: &mut MetaState,
    node_id: NodeId,
    at: TimestampMs,
) -> Result<MetaReply, MetaRefusal> {
    let Some(standing) = state.standing(node_id) else {
        if node_id != NodeId(0) && node_id < state.next_node_id {
            return Ok(state.updated(false));
        }
        return Err(MetaRefusal::UnknownNode { node_id });
    };
    if !standing.is_leaving() {
        return Err(MetaRefusal::NodeInUse { node_id, standing });
    }
    let replicas = state.replicas_on(node_id) as u32;
    if replicas > 0 {
        return Err(MetaRefusal::NodeHoldsReplicas { node_id, replicas });
    }
    let mut moves = state.moves.values();
    if let Some(running) = moves.find(|running| running.names(node_id)) {
        return Err(MetaRefusal::NodeIsMoving {
            node_id,
            shard_id: running.shard_id,
        });
    }
    state.map.nodes.retain(|node| node.node_id != node_id);
    state.standings.remove(&node_id);
    state.drains.remove(&node_id);
    state.record(at, EventKind::NodeForgotten { node_id });
    state.next_epoch();
    Ok(state.updated(true))
}
