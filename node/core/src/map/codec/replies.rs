//! The binary forms of the meta group's answers: a tag, then the fields in order.

use bytes::{BufMut, BytesMut};

use super::{put_text, read_node_id, read_size};
use crate::codec::{Corrupt, Reader, put_varint};
use crate::ids::{Epoch, ReplicaId, ShardId};
use crate::map::{
    ClusterVersion, MapError, MergeRefusal, MetaRefusal, MetaReply, MoveId, MoveStep, PolicyError,
    PolicyLimit, SplitRefusal, Standing,
};

impl MetaReply {
    pub(super) fn write(&self, out: &mut BytesMut) {
        match self {
            MetaReply::Created { existed, epoch } => {
                out.put_u8(1);
                out.put_u8(u8::from(*existed));
                put_varint(out, epoch.0);
            }
            MetaReply::Updated { changed, epoch } => {
                out.put_u8(2);
                out.put_u8(u8::from(*changed));
                put_varint(out, epoch.0);
            }
            MetaReply::Refused(inner) => {
                out.put_u8(3);
                inner.write(out);
            }
            MetaReply::Joined {
                node_id,
                existed,
                epoch,
            } => {
                out.put_u8(4);
                put_varint(out, node_id.0);
                out.put_u8(u8::from(*existed));
                put_varint(out, epoch.0);
            }
            MetaReply::MoveStarted {
                move_id,
                existed,
                epoch,
            } => {
                out.put_u8(5);
                put_varint(out, move_id.0);
                out.put_u8(u8::from(*existed));
                put_varint(out, epoch.0);
            }
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(match reader.u8()? {
            1 => MetaReply::Created {
                existed: reader.flag()?,
                epoch: Epoch(reader.varint()?),
            },
            2 => MetaReply::Updated {
                changed: reader.flag()?,
                epoch: Epoch(reader.varint()?),
            },
            3 => MetaReply::Refused(MetaRefusal::read(reader)?),
            4 => MetaReply::Joined {
                node_id: read_node_id(reader)?,
                existed: reader.flag()?,
                epoch: Epoch(reader.varint()?),
            },
            5 => MetaReply::MoveStarted {
                move_id: MoveId(reader.varint()?),
                existed: reader.flag()?,
                epoch: Epoch(reader.varint()?),
            },
            _ => return Err(reader.corrupt("the reply is unknown")),
        })
    }
}

impl MetaRefusal {
    pub(super) fn write(&self, out: &mut BytesMut) {
        match self {
            MetaRefusal::ClusterExists { cluster_id } => {
                out.put_u8(1);
                put_text(out, cluster_id);
            }
            MetaRefusal::NoCluster => out.put_u8(2),
            MetaRefusal::EmptyClusterId => out.put_u8(3),
            MetaRefusal::UnknownNode { node_id } => {
                out.put_u8(4);
                put_varint(out, node_id.0);
            }
            MetaRefusal::IdentityMismatch { node_id } => {
                out.put_u8(5);
                put_varint(out, node_id.0);
            }
            MetaRefusal::Map(inner) => {
                out.put_u8(6);
                inner.write(out);
            }
            MetaRefusal::WrongToken => out.put_u8(7),
            MetaRefusal::Split(inner) => {
                out.put_u8(33);
                inner.write(out);
            }
            MetaRefusal::Merge(inner) => {
                out.put_u8(40);
                inner.write(out);
            }
            MetaRefusal::UpgradeNotFinalized { needs, version } => {
                out.put_u8(45);
                put_varint(out, u64::from(needs.0));
                put_varint(out, u64::from(version.0));
            }
            MetaRefusal::VersionSkipped { from, to } => {
                out.put_u8(46);
                put_varint(out, u64::from(from.0));
                put_varint(out, u64::from(to.0));
            }
            MetaRefusal::EmptyIdentity => out.put_u8(8),
            MetaRefusal::IdentityTaken { node_id } => {
                out.put_u8(9);
                put_varint(out, node_id.0);
            }
            MetaRefusal::TextTooLong { max, actual } => {
                out.put_u8(10);
                put_varint(out, *max as u64);
                put_varint(out, *actual as u64);
            }
            MetaRefusal::WeightOutOfRange { max, actual } => {
                out.put_u8(11);
                put_varint(out, u64::from(*max));
                put_varint(out, u64::from(*actual));
            }
            MetaRefusal::Policy(inner) => {
                out.put_u8(12);
                inner.write(out);
            }
            MetaRefusal::TooFewNodes {
                node_id,
                active,
                replication_factor,
            } => {
                out.put_u8(13);
                put_varint(out, node_id.0);
                put_varint(out, u64::from(*active));
                put_varint(out, u64::from(*replication_factor));
            }
            MetaRefusal::TooManyLost { node_id, lost, max } => {
                out.put_u8(14);
                put_varint(out, node_id.0);
                put_varint(out, u64::from(*lost));
                put_varint(out, u64::from(*max));
            }
            MetaRefusal::Superseded { node_id, successor } => {
                out.put_u8(15);
                put_varint(out, node_id.0);
                put_varint(out, successor.0);
            }
            MetaRefusal::NodeInUse { node_id, standing } => {
                out.put_u8(16);
                put_varint(out, node_id.0);
                standing.write(out);
            }
            MetaRefusal::NodeHoldsReplicas { node_id, replicas } => {
                out.put_u8(17);
                put_varint(out, node_id.0);
                put_varint(out, u64::from(*replicas));
            }
            MetaRefusal::NodeIsMoving { node_id, shard_id } => {
                out.put_u8(18);
                put_varint(out, node_id.0);
                put_varint(out, u64::from(shard_id.0));
            }
            MetaRefusal::NodeNotActive { node_id, standing } => {
                out.put_u8(19);
                put_varint(out, node_id.0);
                standing.write(out);
            }
            MetaRefusal::UnknownShard { shard_id } => {
                out.put_u8(20);
                put_varint(out, u64::from(shard_id.0));
            }
            MetaRefusal::NoReplicaThere { shard_id, node_id } => {
                out.put_u8(21);
                put_varint(out, u64::from(shard_id.0));
                put_varint(out, node_id.0);
            }
            MetaRefusal::ReplicaThere { shard_id, node_id } => {
                out.put_u8(22);
                put_varint(out, u64::from(shard_id.0));
                put_varint(out, node_id.0);
            }
            MetaRefusal::WrongNumberOfReplicas {
                shard_id,
                replicas,
                replication_factor,
            } => {
                out.put_u8(23);
                put_varint(out, u64::from(shard_id.0));
                put_varint(out, u64::from(*replicas));
                put_varint(out, u64::from(*replication_factor));
            }
            MetaRefusal::OtherEpoch { asked, current } => {
                out.put_u8(24);
                put_varint(out, asked.0);
                put_varint(out, current.0);
            }
            MetaRefusal::ShardIsMoving { shard_id, move_id } => {
                out.put_u8(25);
                put_varint(out, u64::from(shard_id.0));
                put_varint(out, move_id.0);
            }
            MetaRefusal::TooManyMoves { max } => {
                out.put_u8(26);
                put_varint(out, u64::from(*max));
            }
            MetaRefusal::TooManyMovesOfNode { node_id, max } => {
                out.put_u8(27);
                put_varint(out, node_id.0);
                put_varint(out, u64::from(*max));
            }
            MetaRefusal::UnknownMove { move_id } => {
                out.put_u8(28);
                put_varint(out, move_id.0);
            }
            MetaRefusal::WrongStep { move_id, step } => {
                out.put_u8(29);
                put_varint(out, move_id.0);
                step.write(out);
            }
            MetaRefusal::ShardHasMajority { shard_id } => {
                out.put_u8(30);
                put_varint(out, u64::from(shard_id.0));
            }
            MetaRefusal::NotASurvivor {
                shard_id,
                replica_id,
            } => {
                out.put_u8(31);
                put_varint(out, u64::from(shard_id.0));
                put_varint(out, replica_id.0);
            }
            MetaRefusal::ShardIsRecovering { shard_id, node_id } => {
                out.put_u8(32);
                put_varint(out, u64::from(shard_id.0));
                put_varint(out, node_id.0);
            }
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(match reader.u8()? {
            1 => MetaRefusal::ClusterExists {
                cluster_id: reader.text()?,
            },
            2 => MetaRefusal::NoCluster,
            3 => MetaRefusal::EmptyClusterId,
            4 => MetaRefusal::UnknownNode {
                node_id: read_node_id(reader)?,
            },
            5 => MetaRefusal::IdentityMismatch {
                node_id: read_node_id(reader)?,
            },
            6 => MetaRefusal::Map(MapError::read(reader)?),
            7 => MetaRefusal::WrongToken,
            33 => MetaRefusal::Split(SplitRefusal::read(reader)?),
            40 => MetaRefusal::Merge(MergeRefusal::read(reader)?),
            45 => MetaRefusal::UpgradeNotFinalized {
                needs: ClusterVersion(reader.varint32()?),
                version: ClusterVersion(reader.varint32()?),
            },
            46 => MetaRefusal::VersionSkipped {
                from: ClusterVersion(reader.varint32()?),
                to: ClusterVersion(reader.varint32()?),
            },
            8 => MetaRefusal::EmptyIdentity,
            9 => MetaRefusal::IdentityTaken {
                node_id: read_node_id(reader)?,
            },
            10 => MetaRefusal::TextTooLong {
                max: read_size(reader)?,
                actual: read_size(reader)?,
            },
            11 => MetaRefusal::WeightOutOfRange {
                max: reader.varint32()?,
                actual: reader.varint32()?,
            },
            12 => MetaRefusal::Policy(PolicyError::read(reader)?),
            13 => MetaRefusal::TooFewNodes {
                node_id: read_node_id(reader)?,
                active: reader.varint32()?,
                replication_factor: reader.varint32()?,
            },
            14 => MetaRefusal::TooManyLost {
                node_id: read_node_id(reader)?,
                lost: reader.varint32()?,
                max: reader.varint32()?,
            },
            15 => MetaRefusal::Superseded {
                node_id: read_node_id(reader)?,
                successor: read_node_id(reader)?,
            },
            16 => MetaRefusal::NodeInUse {
                node_id: read_node_id(reader)?,
                standing: Standing::read(reader)?,
            },
            17 => MetaRefusal::NodeHoldsReplicas {
                node_id: read_node_id(reader)?,
                replicas: reader.varint32()?,
            },
            18 => MetaRefusal::NodeIsMoving {
                node_id: read_node_id(reader)?,
                shard_id: ShardId(reader.varint32()?),
            },
            19 => MetaRefusal::NodeNotActive {
                node_id: read_node_id(reader)?,
                standing: Standing::read(reader)?,
            },
            20 => MetaRefusal::UnknownShard {
                shard_id: ShardId(reader.varint32()?),
            },
            21 => MetaRefusal::NoReplicaThere {
                shard_id: ShardId(reader.varint32()?),
                node_id: read_node_id(reader)?,
            },
            22 => MetaRefusal::ReplicaThere {
                shard_id: ShardId(reader.varint32()?),
                node_id: read_node_id(reader)?,
            },
            23 => MetaRefusal::WrongNumberOfReplicas {
                shard_id: ShardId(reader.varint32()?),
                replicas: reader.varint32()?,
                replication_factor: reader.varint32()?,
            },
            24 => MetaRefusal::OtherEpoch {
                asked: Epoch(reader.varint()?),
                current: Epoch(reader.varint()?),
            },
            25 => MetaRefusal::ShardIsMoving {
                shard_id: ShardId(reader.varint32()?),
                move_id: MoveId(reader.varint()?),
            },
            26 => MetaRefusal::TooManyMoves {
                max: reader.varint32()?,
            },
            27 => MetaRefusal::TooManyMovesOfNode {
                node_id: read_node_id(reader)?,
                max: reader.varint32()?,
            },
            28 => MetaRefusal::UnknownMove {
                move_id: MoveId(reader.varint()?),
            },
            29 => MetaRefusal::WrongStep {
                move_id: MoveId(reader.varint()?),
                step: MoveStep::read(reader)?,
            },
            30 => MetaRefusal::ShardHasMajority {
                shard_id: ShardId(reader.varint32()?),
            },
            31 => MetaRefusal::NotASurvivor {
                shard_id: ShardId(reader.varint32()?),
                replica_id: ReplicaId(reader.varint()?),
            },
            32 => MetaRefusal::ShardIsRecovering {
                shard_id: ShardId(reader.varint32()?),
                node_id: read_node_id(reader)?,
            },
            _ => return Err(reader.corrupt("the refusal is unknown")),
        })
    }
}

impl MapError {
    pub(super) fn write(&self, out: &mut BytesMut) {
        match self {
            MapError::NoNodes => out.put_u8(1),
            MapError::TooManyNodes { max, actual } => {
                out.put_u8(2);
                put_varint(out, *max as u64);
                put_varint(out, *actual as u64);
            }
            MapError::DuplicateNode { node_id } => {
                out.put_u8(3);
                put_varint(out, node_id.0);
            }
            MapError::ShardsOutOfRange { max, actual } => {
                out.put_u8(4);
                put_varint(out, u64::from(*max));
                put_varint(out, u64::from(*actual));
            }
            MapError::ReplicationOutOfRange { nodes, actual } => {
                out.put_u8(5);
                put_varint(out, *nodes as u64);
                put_varint(out, u64::from(*actual));
            }
            MapError::ShardOutOfOrder { expected, actual } => {
                out.put_u8(6);
                put_varint(out, u64::from(expected.0));
                put_varint(out, u64::from(actual.0));
            }
            MapError::SlotsNotCovered { shard_id } => {
                out.put_u8(7);
                put_varint(out, u64::from(shard_id.0));
            }
            MapError::WrongReplicas {
                shard_id,
                wanted,
                actual,
            } => {
                out.put_u8(8);
                put_varint(out, u64::from(shard_id.0));
                put_varint(out, u64::from(*wanted));
                put_varint(out, *actual as u64);
            }
            MapError::BadReplicaNode { shard_id, node_id } => {
                out.put_u8(9);
                put_varint(out, u64::from(shard_id.0));
                put_varint(out, node_id.0);
            }
            MapError::BadReplicaId {
                shard_id,
                replica_id,
            } => {
                out.put_u8(10);
                put_varint(out, u64::from(shard_id.0));
                put_varint(out, replica_id.0);
            }
            MapError::LeaderWithoutReplica { shard_id, node_id } => {
                out.put_u8(11);
                put_varint(out, u64::from(shard_id.0));
                put_varint(out, node_id.0);
            }
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(match reader.u8()? {
            1 => MapError::NoNodes,
            2 => MapError::TooManyNodes {
                max: read_size(reader)?,
                actual: read_size(reader)?,
            },
            3 => MapError::DuplicateNode {
                node_id: read_node_id(reader)?,
            },
            4 => MapError::ShardsOutOfRange {
                max: reader.varint32()?,
                actual: reader.varint32()?,
            },
            5 => MapError::ReplicationOutOfRange {
                nodes: read_size(reader)?,
                actual: reader.varint32()?,
            },
            6 => MapError::ShardOutOfOrder {
                expected: ShardId(reader.varint32()?),
                actual: ShardId(reader.varint32()?),
            },
            7 => MapError::SlotsNotCovered {
                shard_id: ShardId(reader.varint32()?),
            },
            8 => MapError::WrongReplicas {
                shard_id: ShardId(reader.varint32()?),
                wanted: reader.varint32()?,
                actual: read_size(reader)?,
            },
            9 => MapError::BadReplicaNode {
                shard_id: ShardId(reader.varint32()?),
                node_id: read_node_id(reader)?,
            },
            10 => MapError::BadReplicaId {
                shard_id: ShardId(reader.varint32()?),
                replica_id: ReplicaId(reader.varint()?),
            },
            11 => MapError::LeaderWithoutReplica {
                shard_id: ShardId(reader.varint32()?),
                node_id: read_node_id(reader)?,
            },
            _ => return Err(reader.corrupt("the map error is unknown")),
        })
    }
}

impl PolicyError {
    fn write(&self, out: &mut BytesMut) {
        out.put_u8(self.limit as u8);
        for number in [self.min, self.max, self.actual] {
            put_varint(out, u64::from(number));
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        let limit = match reader.u8()? {
            1 => PolicyLimit::DownAfter,
            2 => PolicyLimit::FailureReplacementAfter,
            3 => PolicyLimit::Moves,
            4 => PolicyLimit::MovesPerNode,
            5 => PolicyLimit::LostNodes,
            6 => PolicyLimit::SnapshotRate,
            7 => PolicyLimit::ShardSize,
            8 => PolicyLimit::ShardLoad,
            9 => PolicyLimit::Shards,
            10 => PolicyLimit::FinalizeUpgradeAfter,
            _ => return Err(reader.corrupt("a limit of the policy is unknown")),
        };
        Ok(PolicyError {
            limit,
            min: reader.varint32()?,
            max: reader.varint32()?,
            actual: reader.varint32()?,
        })
    }
}
