//! Why the meta group does not do what it is told: texts for people. Owns no state.

use thiserror::Error;

use super::MapError;
use super::merges::MergeRefusal;
use super::moves::{MoveId, MoveStep};
use super::policy::PolicyError;
use super::registry::Standing;
use super::splits::SplitRefusal;
use super::versions::ClusterVersion;
use crate::ids::{Epoch, NodeId, ReplicaId, ShardId};

/// Why a [`MetaCommand`](super::MetaCommand) changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MetaRefusal {
    /// Another cluster exists.
    #[error("the cluster {cluster_id} exists already; a live cluster cannot be created again")]
    ClusterExists {
        /// Its id.
        cluster_id: String,
    },
    /// There is no cluster yet.
    #[error("there is no cluster yet; create it first")]
    NoCluster,
    /// The new cluster has no id.
    #[error("the cluster id is empty; choose one")]
    EmptyClusterId,
    /// No node has this number.
    #[error("node {node_id} is not in the cluster; add it first")]
    UnknownNode {
        /// The number.
        node_id: NodeId,
    },
    /// The node has another disk than the one that is known.
    #[error(
        "node {node_id} has another identity than before; its disk was lost or replaced, so remove the node and add it anew"
    )]
    IdentityMismatch {
        /// The number.
        node_id: NodeId,
    },
    /// There is no map for these numbers.
    #[error("the cluster cannot be laid out: {0}")]
    Map(#[from] MapError),
    /// The node does not know the join token, or there is none.
    #[error("the join token is wrong; get the present one with `carillon admin join-token`")]
    WrongToken,
    /// The node has no identity.
    #[error("the node has no identity; a node makes one up when its disk is empty")]
    EmptyIdentity,
    /// Two nodes have the same identity.
    #[error("node {node_id} has the identity of another node; a disk was copied, so empty one")]
    IdentityTaken {
        /// The second one.
        node_id: NodeId,
    },
    /// A name, address, zone or token is too long.
    #[error("a text of {actual} bytes is too long; at most {max} are allowed")]
    TextTooLong {
        /// The limit.
        max: usize,
        /// How long it is.
        actual: usize,
    },
    /// A node without a share, or with one that is too large.
    #[error("a weight of {actual} is not possible; choose from 1 to {max}")]
    WeightOutOfRange {
        /// The limit.
        max: u32,
        /// What was given.
        actual: u32,
    },
    /// The policy is impossible.
    #[error("the policy is not possible: {0}")]
    Policy(#[from] PolicyError),
    /// Without the node there would be too few for the replicas.
    #[error(
        "without node {node_id} there would be {active} active nodes for {replication_factor} replicas; add nodes first, or force it"
    )]
    TooFewNodes {
        /// The node.
        node_id: NodeId,
        /// How many would be left.
        active: u32,
        /// How many replicas a shard has.
        replication_factor: u32,
    },
    /// As many nodes as allowed are given up already.
    #[error(
        "node {node_id} is not given up: {lost} lost nodes wait to be replaced, and the policy allows {max}"
    )]
    TooManyLost {
        /// The node.
        node_id: NodeId,
        /// How many are.
        lost: u32,
        /// The limit.
        max: u32,
    },
    /// Another node has taken the lost one's place.
    #[error(
        "node {node_id} stays lost: node {successor} has its address and another disk; forget it"
    )]
    Superseded {
        /// The node.
        node_id: NodeId,
        /// The other one.
        successor: NodeId,
    },
    /// The node is in use.
    #[error("node {node_id} is {standing}; drain it for removal first")]
    NodeInUse {
        /// The node.
        node_id: NodeId,
        /// What it is used for.
        standing: Standing,
    },
    /// The node has data still.
    #[error("node {node_id} has {replicas} replicas still; wait until it is drained")]
    NodeHoldsReplicas {
        /// The node.
        node_id: NodeId,
        /// How many.
        replicas: u32,
    },
    /// The node takes part in a move.
    #[error("node {node_id} takes part in a move of shard {shard_id}; wait until it has ended")]
    NodeIsMoving {
        /// The node.
        node_id: NodeId,
        /// The shard.
        shard_id: ShardId,
    },
    /// The node takes nothing new.
    #[error("node {node_id} is {standing} and takes no replicas; make it active first")]
    NodeNotActive {
        /// The node.
        node_id: NodeId,
        /// What it is used for.
        standing: Standing,
    },
    /// No shard has this number.
    #[error("there is no shard {shard_id}; look at the map")]
    UnknownShard {
        /// The number.
        shard_id: ShardId,
    },
    /// The shard has no replica there.
    #[error("shard {shard_id} has no replica on node {node_id}")]
    NoReplicaThere {
        /// The shard.
        shard_id: ShardId,
        /// The node.
        node_id: NodeId,
    },
    /// The shard has a replica there.
    #[error("shard {shard_id} has a replica on node {node_id} already")]
    ReplicaThere {
        /// The shard.
        shard_id: ShardId,
        /// The node.
        node_id: NodeId,
    },
    /// The shard would have too few or too many replicas, or the move does nothing.
    #[error(
        "shard {shard_id} has {replicas} of {replication_factor} replicas, so this move is not possible; give both a source and a target"
    )]
    WrongNumberOfReplicas {
        /// The shard.
        shard_id: ShardId,
        /// How many it has.
        replicas: u32,
        /// How many it should have.
        replication_factor: u32,
    },
    /// The plan was made on another map.
    #[error("the map has epoch {current}, not {asked}; look at it again")]
    OtherEpoch {
        /// The plan's.
        asked: Epoch,
        /// The map's.
        current: Epoch,
    },
    /// The shard has a move.
    #[error("shard {shard_id} is moving already; wait for move {move_id} or cancel it")]
    ShardIsMoving {
        /// The shard.
        shard_id: ShardId,
        /// Its move.
        move_id: MoveId,
    },
    /// Too much is moving.
    #[error("{max} moves are running, as many as the policy allows; wait for one")]
    TooManyMoves {
        /// The limit.
        max: u32,
    },
    /// Too much is moving from or to a node.
    #[error("node {node_id} takes part in {max} moves, as many as the policy allows; wait for one")]
    TooManyMovesOfNode {
        /// The node.
        node_id: NodeId,
        /// The limit.
        max: u32,
    },
    /// No move has had this number.
    #[error("there is no move {move_id}; list the moves")]
    UnknownMove {
        /// The number.
        move_id: MoveId,
    },
    /// The shard is not split, or not moved while it is.
    #[error(transparent)]
    Split(#[from] SplitRefusal),
    /// The shard is not merged, or nothing else happens to it while it is.
    #[error(transparent)]
    Merge(#[from] MergeRefusal),
    /// The shard can go on without being made anew.
    #[error(
        "shard {shard_id} keeps a majority on nodes that are not given up; bring those back, or give up the nodes that are gone for good"
    )]
    ShardHasMajority {
        /// The shard.
        shard_id: ShardId,
    },
    /// The replica is none that is left.
    #[error(
        "replica {replica_id} of shard {shard_id} is not one on a node that is left; look at the shard again"
    )]
    NotASurvivor {
        /// The shard.
        shard_id: ShardId,
        /// The replica.
        replica_id: ReplicaId,
    },
    /// The shard is being made anew.
    #[error("shard {shard_id} is being made anew on node {node_id}; wait for it")]
    ShardIsRecovering {
        /// The shard.
        shard_id: ShardId,
        /// Where.
        node_id: NodeId,
    },
    /// The cluster's version has no such thing yet.
    #[error(
        "the cluster is at version {version}, and this needs version {needs}; finalize the upgrade first: carillon admin finalize-upgrade"
    )]
    UpgradeNotFinalized {
        /// The version that has it.
        needs: ClusterVersion,
        /// The cluster's.
        version: ClusterVersion,
    },
    /// The cluster goes from version to version.
    #[error("the cluster is at version {from} and cannot go to version {to} in one step")]
    VersionSkipped {
        /// The cluster's version.
        from: ClusterVersion,
        /// What was asked for.
        to: ClusterVersion,
    },
    /// The move is at another step.
    #[error("move {move_id} is {step}, which does not allow it")]
    WrongStep {
        /// The move.
        move_id: MoveId,
        /// Where it is.
        step: MoveStep,
    },
}
