//! A group's members and configuration as they cross nodes, and as the meta group's state has
//! them: three forms of the same. Keeps no state.

use carillon_core::ids::{NodeId, ReplicaId};
use carillon_core::map::{ConfigVersion, Replica};
use carillon_proto::admin::LogPosition;
use carillon_proto::internal::{GroupConfig, GroupMember};
use carillon_raft::{Member, Position};

/// For another node.
pub fn member_to_proto(member: Member) -> GroupMember {
    GroupMember {
        replica_id: member.replica.0,
        node_id: member.node.0,
    }
}

/// From another node.
pub fn member_from_proto(member: GroupMember) -> Member {
    Member {
        replica: ReplicaId(member.replica_id),
        node: NodeId(member.node_id),
    }
}

/// For the meta group.
pub fn replica_of(member: Member) -> Replica {
    Replica {
        replica_id: member.replica,
        node_id: member.node,
    }
}

/// From the meta group.
pub fn member_of(replica: &Replica) -> Member {
    Member {
        replica: replica.replica_id,
        node: replica.node_id,
    }
}

/// Where a log ends, for another node and for people.
pub fn log_position_to_proto(position: Position) -> LogPosition {
    LogPosition {
        term: position.term,
        leader_replica_id: position.leader.0,
        index: position.index,
    }
}

/// For another node.
pub fn config_to_proto(config: Position) -> GroupConfig {
    GroupConfig {
        term: config.term,
        leader_replica_id: config.leader.0,
        index: config.index,
    }
}

/// From another node.
pub fn config_from_proto(config: GroupConfig) -> Position {
    Position {
        term: config.term,
        leader: ReplicaId(config.leader_replica_id),
        index: config.index,
    }
}

/// For the meta group.
pub fn version_of(config: Position) -> ConfigVersion {
    ConfigVersion {
        term: config.term,
        leader: config.leader,
        index: config.index,
    }
}

/// From the meta group.
pub fn config_of(version: ConfigVersion) -> Position {
    Position {
        term: version.term,
        leader: version.leader,
        index: version.index,
    }
}
