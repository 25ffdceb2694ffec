//! The meta group's state machine: what it keeps, what changes it, and what it answers.
//!
//! Invariants: a cluster is created once; `epoch` grows with every change of the map, of a
//! standing, of what operators set, and with every start and end of a move; a refused command
//! changes nothing.
//! Those of the parts are with them, in `registry`, `moves` and `recovery`.

use std::collections::{BTreeMap, VecDeque};

use super::events::{self, ACTOR_BYTES_MAX, Actor, Event, EventKind};
use super::first::checked_map;
use super::merges::{self, Merge, MergeReason, MergeStep};
use super::moves::{self, Asked, ConfigVersion, Move, MoveId, MoveReason};
use super::policy::{Policy, PolicyChange};
use super::recovery::{self, LogPosition, Recovery};
use super::refusal::MetaRefusal;
use super::registry::{
    self, DrainStart, JOIN_TOKEN_BYTES_MAX, JoinToken, Standing, check_node, check_text,
};
use super::splits::{self, Split, SplitReason};
use super::versions::{self, ClusterVersion};
use super::{NODE_TEXT_BYTES_MAX, NodeInfo, ShardDescriptor, ShardMap};
use crate::ids::{Epoch, NodeId, ReplicaId, ShardId, Slot, TimestampMs};
use crate::merging::MergeId;

/// What the meta group keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetaState {
    /// What all nodes understand.
    pub cluster_version: ClusterVersion,
    /// Names the cluster for ever; empty before there is one.
    pub cluster_id: String,
    /// For people.
    pub cluster_name: String,
    /// What a node must know to join.
    pub join_token: JoinToken,
    /// Replicas of a shard.
    pub replication_factor: u32,
    /// The next replica's id.
    pub next_replica_id: ReplicaId,
    /// The largest id of the replicas that the shards began with. Only these begin a group;
    /// every later one is added to a group that exists.
    pub last_founding_replica_id: ReplicaId,
    /// The next node's number.
    pub next_node_id: NodeId,
    /// The next move's number.
    pub next_move_id: MoveId,
    /// The next shard's number.
    pub next_shard_id: ShardId,
    /// What operators set.
    pub policy: Policy,
    /// Where everything is.
    pub map: ShardMap,
    /// What each node of the map may be used for.
    pub standings: BTreeMap<NodeId, Standing>,
    /// Where the drains that last began.
    pub drains: BTreeMap<NodeId, DrainStart>,
    /// What is on its way, by shard.
    pub moves: BTreeMap<ShardId, Move>,
    /// Shards that are being split.
    pub splits: BTreeMap<ShardId, Split>,
    /// The next merge's number; merges count from 1.
    pub next_merge_id: MergeId,
    /// Shards that are being merged, by the one that stays.
    pub merges: BTreeMap<ShardId, Merge>,
    /// When the last split ended; 0 when there was none.
    pub last_split_at: TimestampMs,
    /// What is made anew from one replica, by shard.
    pub recoveries: BTreeMap<ShardId, Recovery>,
    /// What happened, oldest first; at most [`EVENTS_MAX`](super::EVENTS_MAX).
    pub events: VecDeque<Event>,
}

impl MetaState {
    /// True once the cluster was created.
    pub fn exists(&self) -> bool {
        !self.cluster_id.is_empty()
    }

    pub(super) fn next_epoch(&mut self) -> Epoch {
        self.map.epoch = Epoch(self.map.epoch.0 + 1);
        self.map.epoch
    }

    pub(super) fn record(&mut self, at: TimestampMs, what: EventKind) {
        // The first version does not keep who it was, so nobody is told.
        let nobody = self.cluster_version < ClusterVersion::V2;
        let by = nobody.then(Actor::unknown);
        events::push(&mut self.events, Event { at, by, what });
    }

    pub(super) fn updated(&self, changed: bool) -> MetaReply {
        MetaReply::Updated {
            changed,
            epoch: self.map.epoch,
        }
    }
}

/// A change of the meta group's state. Each may be proposed any number of times: once it
/// has been applied, it does nothing more, or is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaCommand {
    /// Creates the cluster, once.
    CreateCluster {
        /// Names the cluster for ever; not empty.
        cluster_id: String,
        /// For people.
        cluster_name: String,
        /// What further nodes must know to join; empty when none may.
        join_token: JoinToken,
        /// Replicas of a shard.
        replication_factor: u32,
        /// The first nodes.
        nodes: Vec<NodeInfo>,
        /// The first shards, as [`initial_map`](super::initial_map) lays them out. Carried
        /// here so that all versions of the solver agree.
        shards: Vec<ShardDescriptor>,
        /// What all of them understand.
        version: ClusterVersion,
        /// The proposer's clock.
        at: TimestampMs,
    },
    /// Keeps what a node says of itself: addresses, zone, weight, capacity. Never changes
    /// its standing.
    UpdateNode {
        /// The node as it is now; its identity must be the one that is known.
        node: NodeInfo,
    },
    /// Gives a new node a number; the same identity always gets the same. A node at the
    /// address of another one has replaced it, which is lost then.
    JoinNode {
        /// The node; its number is ignored.
        node: NodeInfo,
        /// What it knows.
        token: JoinToken,
        /// The proposer's clock.
        at: TimestampMs,
    },
    /// Makes the old join token worthless.
    RotateJoinToken {
        /// The new one; empty when none may join.
        token: JoinToken,
        /// The proposer's clock.
        at: TimestampMs,
    },
    /// Sets what the steering may do.
    SetPolicy {
        /// What is changed of it.
        change: PolicyChange,
        /// The proposer's clock.
        at: TimestampMs,
    },
    /// Says what a node may be used for.
    SetStanding {
        /// The node.
        node_id: NodeId,
        /// What it may be used for.
        standing: Standing,
        /// Even when too few nodes are left, or too many are lost.
        forced: bool,
        /// The proposer's clock.
        at: TimestampMs,
    },
    /// Takes a node that is drained or lost, and holds nothing, out of the registry.
    ForgetNode {
        /// The node.
        node_id: NodeId,
        /// The proposer's clock.
        at: TimestampMs,
    },
    /// Says which nodes are to lead shards, all or none of them.
    SetPreferredLeaders {
        /// Shards, and nodes that have a replica of them.
        leaders: Vec<(ShardId, NodeId)>,
    },
    /// Starts to move a replica.
    StartMove {
        /// The shard.
        shard_id: ShardId,
        /// The node that gets a replica.
        to: Option<NodeId>,
        /// The node that loses its replica.
        from: Option<NodeId>,
        /// The shard's preferred leader when it is finished.
        preferred_leader: NodeId,
        /// Why.
        reason: MoveReason,
        /// Of the map that the decision was made on; refused when it is another by now.
        epoch: Epoch,
        /// The proposer's clock.
        at: TimestampMs,
    },
    /// The new replica has caught up: the voters may be changed.
    SwitchMove {
        /// The move.
        move_id: MoveId,
        /// The group's configuration, from which alone they may be changed.
        config: ConfigVersion,
    },
    /// The voters can no longer be changed from the configuration that the switch named: the
    /// group has another one, with the old voters.
    RewindMove {
        /// The move.
        move_id: MoveId,
        /// What the switch named.
        config: ConfigVersion,
    },
    /// Gives up a move that is catching up.
    CancelMove {
        /// The move.
        move_id: MoveId,
    },
    /// The group has the new voters: the map gets them.
    FinishMove {
        /// The move.
        move_id: MoveId,
        /// The proposer's clock.
        at: TimestampMs,
    },
    /// The group is rid of the learner of a move that is being cancelled.
    EndCancelledMove {
        /// The move.
        move_id: MoveId,
        /// The proposer's clock.
        at: TimestampMs,
    },
    /// Starts to split a shard.
    StartSplit {
        /// The shard.
        shard_id: ShardId,
        /// The first slot of the new one.
        slot: Slot,
        /// Why.
        reason: SplitReason,
        /// Of the map that the decision was made on; refused when it is another by now. None of
        /// an operator, who means it whatever else changes.
        epoch: Option<Epoch>,
        /// The proposer's clock.
        at: TimestampMs,
    },
    /// The shard's group has done it, and the new shard's has a leader: the map gets it.
    FinishSplit {
        /// The new shard.
        new_shard_id: ShardId,
        /// The proposer's clock.
        at: TimestampMs,
    },
    /// Starts to merge a shard with its right neighbour, which it takes over.
    StartMerge {
        /// The shard that stays.
        shard_id: ShardId,
        /// The neighbour that is meant: when it has been taken over already, nothing more is done,
        /// and another one is not taken for it.
        absorbed_shard_id: ShardId,
        /// Why.
        reason: MergeReason,
        /// Of the map that the decision was made on; refused when it is another by now. None of
        /// an operator, who means it whatever else changes.
        epoch: Option<Epoch>,
        /// The proposer's clock.
        at: TimestampMs,
    },
    /// Both are on the same nodes: the one that goes may be frozen.
    FreezeMerge {
        /// The merge.
        merge_id: MergeId,
        /// The proposer's clock.
        at: TimestampMs,
    },
    /// All replicas of the one that goes keep what it is frozen with: it may be taken over. There
    /// is no way back.
    AbsorbMerge {
        /// The merge.
        merge_id: MergeId,
        /// The proposer's clock.
        at: TimestampMs,
    },
    /// Gives up a merge that may still be.
    CancelMerge {
        /// The merge.
        merge_id: MergeId,
        /// The proposer's clock.
        at: TimestampMs,
    },
    /// The shard of a merge that was given up is thawed.
    EndCancelledMerge {
        /// The merge.
        merge_id: MergeId,
        /// The proposer's clock.
        at: TimestampMs,
    },
    /// The shard has taken over its neighbour: the map says so.
    FinishMerge {
        /// The merge.
        merge_id: MergeId,
        /// The proposer's clock.
        at: TimestampMs,
    },
    /// Makes a shard anew from one replica, because most of its replicas are on nodes that are
    /// given up. What only those had is lost.
    RecoverShard {
        /// The shard.
        shard_id: ShardId,
        /// The replica that survived.
        survivor: ReplicaId,
        /// Where its log ends, for the record.
        last: LogPosition,
        /// The proposer's clock.
        at: TimestampMs,
    },
    /// The shard's new group is led.
    FinishRecovery {
        /// The shard.
        shard_id: ShardId,
        /// The replica that it was made of, by its new number.
        replica_id: ReplicaId,
        /// The proposer's clock.
        at: TimestampMs,
    },
    /// Takes the cluster to its next version. Whoever proposes it knows that all nodes that are
    /// not lost support that.
    FinalizeUpgrade {
        /// The version.
        to: ClusterVersion,
        /// The proposer's clock.
        at: TimestampMs,
    },
    /// A command that somebody wants: what happens by it is recorded with who that is.
    By {
        /// Who.
        by: Actor,
        /// What; not another one of these.
        command: Box<MetaCommand>,
    },
}

/// The answer to a [`MetaCommand`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaReply {
    /// The cluster exists.
    Created {
        /// True when it existed already under the same id.
        existed: bool,
        /// The map's epoch now.
        epoch: Epoch,
    },
    /// It is as asked for.
    Updated {
        /// False when it was so already.
        changed: bool,
        /// The map's epoch now.
        epoch: Epoch,
    },
    /// The node has a number.
    Joined {
        /// The number.
        node_id: NodeId,
        /// True when it had it already.
        existed: bool,
        /// The map's epoch now.
        epoch: Epoch,
    },
    /// The move runs.
    MoveStarted {
        /// Its number.
        move_id: MoveId,
        /// True when it ran already.
        existed: bool,
        /// The map's epoch now.
        epoch: Epoch,
    },
    /// Nothing was changed.
    Refused(MetaRefusal),
}

/// Applies one command. Deterministic; a refused one changes nothing.
pub fn apply_meta(state: &mut MetaState, command: MetaCommand) -> MetaReply {
    let create = matches!(command, MetaCommand::CreateCluster { .. });
    if !create && !state.exists() {
        return MetaReply::Refused(MetaRefusal::NoCluster);
    }
    apply(state, command).unwrap_or_else(MetaReply::Refused)
}

fn apply(state: &mut MetaState, command: MetaCommand) -> Result<MetaReply, MetaRefusal> {
    versions::check(&command, state.cluster_version)?;
    match command {
        MetaCommand::CreateCluster {
            cluster_id,
            cluster_name,
            join_token,
            replication_factor,
            nodes,
            shards,
            version,
            at,
        } => {
            if cluster_id.is_empty() {
                return Err(MetaRefusal::EmptyClusterId);
            }
            if state.exists() {
                return existing(state, &cluster_id);
            }
            let made = create(
                cluster_id,
                cluster_name,
                join_token,
                nodes,
                shards,
                replication_factor,
            );
            *state = made?;
            state.cluster_version = version;
            state.record(at, EventKind::ClusterCreated);
            Ok(MetaReply::Created {
                existed: false,
                epoch: state.map.epoch,
            })
        }
        MetaCommand::UpdateNode { node } => registry::update(state, node),
        MetaCommand::JoinNode { node, token, at } => registry::join(state, node, &token, at),
        MetaCommand::RotateJoinToken { token, at } => rotate(state, token, at),
        MetaCommand::SetPolicy { change, at } => set_policy(state, &change, at),
        MetaCommand::SetStanding {
            node_id,
            standing,
            forced,
            at,
        } => registry::set_standing(state, node_id, standing, forced, at),
        MetaCommand::ForgetNode { node_id, at } => registry::forget(state, node_id, at),
        MetaCommand::SetPreferredLeaders { leaders } => {
            moves::set_preferred_leaders(state, &leaders)
        }
        MetaCommand::StartMove {
            shard_id,
            to,
            from,
            preferred_leader,
            reason,
            epoch,
            at,
        } => {
            let asked = Asked {
                shard_id,
                to,
                from,
                preferred_leader,
                reason,
                epoch,
            };
            moves::start(state, &asked, at)
        }
        MetaCommand::SwitchMove { move_id, config } => moves::switch(state, move_id, config),
        MetaCommand::RewindMove { move_id, config } => moves::rewind(state, move_id, config),
        MetaCommand::CancelMove { move_id } => moves::cancel(state, move_id),
        MetaCommand::FinishMove { move_id, at } => moves::finish(state, move_id, at),
        MetaCommand::EndCancelledMove { move_id, at } => moves::end_cancelled(state, move_id, at),
        MetaCommand::StartSplit {
            shard_id,
            slot,
            reason,
            epoch,
            at,
        } => {
            let asked = splits::Asked {
                shard_id,
                slot,
                reason,
                epoch,
            };
            splits::start(state, &asked, at)
        }
        MetaCommand::FinishSplit { new_shard_id, at } => splits::finish(state, new_shard_id, at),
        MetaCommand::StartMerge {
            shard_id,
            absorbed_shard_id,
            reason,
            epoch,
            at,
        } => {
            let asked = merges::Asked {
                shard_id,
                absorbed_shard_id,
                reason,
                epoch,
            };
            merges::start(state, &asked, at)
        }
        MetaCommand::FreezeMerge { merge_id, at } => {
            merges::advance(state, merge_id, MergeStep::Freezing, at)
        }
        MetaCommand::AbsorbMerge { merge_id, at } => {
            merges::advance(state, merge_id, MergeStep::Absorbing, at)
        }
        MetaCommand::CancelMerge { merge_id, at } => merges::cancel(state, merge_id, at),
        MetaCommand::EndCancelledMerge { merge_id, at } => {
            merges::end_cancelled(state, merge_id, at)
        }
        MetaCommand::FinishMerge { merge_id, at } => merges::finish(state, merge_id, at),
        MetaCommand::RecoverShard {
            shard_id,
            survivor,
            last,
            at,
        } => recovery::recover(state, shard_id, survivor, last, at),
        MetaCommand::FinishRecovery {
            shard_id,
            replica_id,
            at,
        } => recovery::finish(state, shard_id, replica_id, at),
        MetaCommand::FinalizeUpgrade { to, at } => versions::finalize(state, to, at),
        MetaCommand::By { by, command } => apply_by(state, &by, *command),
    }
}

/// Applies a command and records who wanted what happened by it.
fn apply_by(
    state: &mut MetaState,
    by: &Actor,
    command: MetaCommand,
) -> Result<MetaReply, MetaRefusal> {
    check_text(&by.0, ACTOR_BYTES_MAX)?;
    let before = std::mem::take(&mut state.events);
    let applied = apply(state, command);
    let happened = std::mem::replace(&mut state.events, before);
    for event in happened {
        let by = Some(by.clone());
        events::push(&mut state.events, Event { by, ..event });
    }
    applied
}

fn existing(state: &MetaState, cluster_id: &str) -> Result<MetaReply, MetaRefusal> {
    if state.cluster_id == cluster_id {
        return Ok(MetaReply::Created {
            existed: true,
            epoch: state.map.epoch,
        });
    }
    Err(MetaRefusal::ClusterExists {
        cluster_id: state.cluster_id.clone(),
    })
}

fn create(
    cluster_id: String,
    cluster_name: String,
    join_token: JoinToken,
    nodes: Vec<NodeInfo>,
    shards: Vec<ShardDescriptor>,
    replication_factor: u32,
) -> Result<MetaState, MetaRefusal> {
    check_text(&cluster_id, NODE_TEXT_BYTES_MAX)?;
    check_text(&cluster_name, NODE_TEXT_BYTES_MAX)?;
    check_text(&join_token.0, JOIN_TOKEN_BYTES_MAX)?;
    let map = checked_map(nodes, shards, replication_factor)?;
    let mut identities = std::collections::BTreeSet::new();
    for node in &map.nodes {
        check_node(node)?;
        let node_id = node.node_id;
        if !identities.insert(&node.identity) || node_id.0 == u64::MAX {
            return Err(MetaRefusal::IdentityTaken { node_id });
        }
    }
    let last_node = map.nodes.last().map_or(0, |node| node.node_id.0);
    let replicas = map.shards.iter().flat_map(|shard| &shard.replicas);
    let last_replica = replicas.map(|replica| replica.replica_id.0).max();
    let active = map
        .nodes
        .iter()
        .map(|node| (node.node_id, Standing::Active));
    Ok(MetaState {
        cluster_version: ClusterVersion::default(),
        cluster_id,
        cluster_name,
        join_token,
        replication_factor,
        next_replica_id: ReplicaId(last_replica.unwrap_or(0) + 1),
        last_founding_replica_id: ReplicaId(last_replica.unwrap_or(0)),
        next_node_id: NodeId(last_node + 1),
        next_move_id: MoveId(1),
        next_shard_id: ShardId(map.shards.len() as u32 + 1),
        policy: Policy {
            shards_min: (map.shards.len() as u32).max(1),
            ..Policy::default()
        },
        standings: active.collect(),
        drains: BTreeMap::new(),
        map,
        moves: BTreeMap::new(),
        splits: BTreeMap::new(),
        next_merge_id: MergeId(1),
        merges: BTreeMap::new(),
        last_split_at: TimestampMs(0),
        recoveries: BTreeMap::new(),
        events: VecDeque::new(),
    })
}

fn rotate(
    state: &mut MetaState,
    token: JoinToken,
    at: TimestampMs,
) -> Result<MetaReply, MetaRefusal> {
    check_text(&token.0, JOIN_TOKEN_BYTES_MAX)?;
    let changed = state.join_token != token;
    if changed {
        state.join_token = token;
        state.record(at, EventKind::JoinTokenRotated);
        state.next_epoch();
    }
    Ok(state.updated(changed))
}

fn set_policy(
    state: &mut MetaState,
    change: &PolicyChange,
    at: TimestampMs,
) -> Result<MetaReply, MetaRefusal> {
    let policy = change.applied_to(&state.policy);
    policy.validate()?;
    check_text(&policy.leader_zone.0, NODE_TEXT_BYTES_MAX)?;
    let changed = state.policy != policy;
    if changed {
        state.policy = policy;
        state.record(at, EventKind::PolicyChanged);
        state.next_epoch();
    }
    Ok(state.updated(changed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::{MapError, initial_map};
    use crate::placement::Zone;

    fn node(id: u64) -> NodeInfo {
        NodeInfo {
            node_id: NodeId(id),
            identity: format!("identity-{id}"),
            client_address: "127.0.0.1:7000".to_owned(),
            peer_address: format!("127.0.0.1:{}", 8000 + id),
            zone: Zone::default(),
            weight: 1,
            capacity_bytes: u64::MAX,
        }
    }

    fn create_command(cluster_id: &str) -> MetaCommand {
        let nodes = vec![node(1), node(2), node(3)];
        MetaCommand::CreateCluster {
            cluster_id: cluster_id.to_owned(),
            cluster_name: "demo".to_owned(),
            join_token: JoinToken("secret".to_owned()),
            replication_factor: 3,
            shards: initial_map(&nodes, 4, 3).expect("a map").shards,
            nodes,
            version: ClusterVersion::MAX,
            at: TimestampMs(1),
        }
    }

    #[test]
    fn a_cluster_is_created_once() {
        let mut state = MetaState::default();
        let mut apply = |command| apply_meta(&mut state, command);
        assert_eq!(
            apply(create_command("")),
            MetaReply::Refused(MetaRefusal::EmptyClusterId)
        );
        assert_eq!(
            apply(MetaCommand::UpdateNode { node: node(1) }),
            MetaReply::Refused(MetaRefusal::NoCluster)
        );
        for existed in [false, true] {
            let reply = apply(create_command("one"));
            let epoch = Epoch(1);
            assert_eq!(reply, MetaReply::Created { existed, epoch });
        }
        let cluster_id = "one".to_owned();
        assert_eq!(
            apply(create_command("two")),
            MetaReply::Refused(MetaRefusal::ClusterExists { cluster_id })
        );
        assert_eq!(state.next_replica_id, ReplicaId(13));
    }

    #[test]
    fn a_cluster_that_cannot_be_is_not_created() {
        let mut state = MetaState::default();
        let command = MetaCommand::CreateCluster {
            cluster_id: "one".to_owned(),
            cluster_name: String::new(),
            join_token: JoinToken::default(),
            shards: initial_map(&[node(1)], 4, 1).expect("a map").shards,
            replication_factor: 4,
            nodes: vec![node(1)],
            version: ClusterVersion::MAX,
            at: TimestampMs(1),
        };
        let refused = MetaRefusal::Map(MapError::ReplicationOutOfRange {
            nodes: 1,
            actual: 4,
        });
        assert_eq!(apply_meta(&mut state, command), MetaReply::Refused(refused));
        assert_eq!(state, MetaState::default());
    }

    #[test]
    fn a_node_changes_its_addresses_but_not_its_identity() {
        let mut state = MetaState::default();
        apply_meta(&mut state, create_command("one"));
        let mut moved = node(2);
        moved.client_address = "10.0.0.2:7000".to_owned();
        for (changed, epoch) in [(true, Epoch(2)), (false, Epoch(2))] {
            let node = moved.clone();
            assert_eq!(
                apply_meta(&mut state, MetaCommand::UpdateNode { node }),
                MetaReply::Updated { changed, epoch }
            );
        }
        assert_eq!(state.map.node(NodeId(2)), Some(&moved));
        moved.identity = "another".to_owned();
        let node_id = NodeId(2);
        assert_eq!(
            apply_meta(&mut state, MetaCommand::UpdateNode { node: moved }),
            MetaReply::Refused(MetaRefusal::IdentityMismatch { node_id })
        );
        let node_id = NodeId(9);
        assert_eq!(
            apply_meta(&mut state, MetaCommand::UpdateNode { node: node(9) }),
            MetaReply::Refused(MetaRefusal::UnknownNode { node_id })
        );
    }
}
