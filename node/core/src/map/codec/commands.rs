//! The binary forms of the meta group's commands: a tag, then the fields in order.

use bytes::{BufMut, BytesMut};

use super::{put_text, read_list, read_node_id, read_slot, write_list, write_node};
use crate::codec::{Corrupt, Reader, put_signed, put_varint};
use crate::ids::{Epoch, NodeId, ReplicaId, ShardId, TimestampMs};
use crate::map::{
    Actor, ClusterVersion, ConfigVersion, JoinToken, LogPosition, MergeReason, MetaCommand, MoveId,
    MoveReason, NodeInfo, PolicyChange, ShardDescriptor, SplitReason, Standing,
};
use crate::merging::MergeId;
use crate::records::{read_option, write_option};

/// The tag of a command that somebody wants.
const BY: u8 = 17;
/// The tag of a cluster that does not begin at the first version.
const CREATE_AT_VERSION: u8 = 41;
/// The tag of a change of the policy that names something which the first version had not.
const POLICY_WITH_LATER: u8 = 18;

fn write_merge(out: &mut BytesMut, tag: u8, merge_id: MergeId, at: TimestampMs) {
    out.put_u8(tag);
    put_varint(out, merge_id.0);
    put_signed(out, at.0);
}

fn write_leaders(out: &mut BytesMut, leaders: &[(ShardId, NodeId)]) {
    put_varint(out, leaders.len() as u64);
    for (shard_id, node_id) in leaders {
        put_varint(out, u64::from(shard_id.0));
        put_varint(out, node_id.0);
    }
}

fn read_leader(reader: &mut Reader<'_>) -> Result<(ShardId, NodeId), Corrupt> {
    Ok((ShardId(reader.varint32()?), read_node_id(reader)?))
}

impl MetaCommand {
    pub(super) fn write(&self, out: &mut BytesMut) {
        match self {
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
                let first = *version == ClusterVersion::V1;
                out.put_u8(if first { 1 } else { CREATE_AT_VERSION });
                put_text(out, cluster_id);
                put_text(out, cluster_name);
                put_text(out, &join_token.0);
                put_varint(out, u64::from(*replication_factor));
                write_list(out, nodes, NodeInfo::write);
                write_list(out, shards, ShardDescriptor::write);
                put_signed(out, at.0);
                if !first {
                    put_varint(out, u64::from(version.0));
                }
            }
            MetaCommand::UpdateNode { node } => {
                out.put_u8(2);
                node.write(out);
            }
            MetaCommand::JoinNode { node, token, at } => {
                out.put_u8(3);
                node.write(out);
                put_text(out, &token.0);
                put_signed(out, at.0);
            }
            MetaCommand::RotateJoinToken { token, at } => {
                out.put_u8(4);
                put_text(out, &token.0);
                put_signed(out, at.0);
            }
            MetaCommand::SetPolicy { change, at } => {
                let later = change.has_later();
                out.put_u8(if later { POLICY_WITH_LATER } else { 5 });
                change.write(out);
                put_signed(out, at.0);
                if later {
                    change.write_later(out);
                }
            }
            MetaCommand::SetStanding {
                node_id,
                standing,
                forced,
                at,
            } => {
                out.put_u8(6);
                put_varint(out, node_id.0);
                standing.write(out);
                out.put_u8(u8::from(*forced));
                put_signed(out, at.0);
            }
            MetaCommand::ForgetNode { node_id, at } => {
                out.put_u8(7);
                put_varint(out, node_id.0);
                put_signed(out, at.0);
            }
            MetaCommand::SetPreferredLeaders { leaders } => {
                out.put_u8(8);
                write_leaders(out, leaders);
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
                out.put_u8(9);
                put_varint(out, u64::from(shard_id.0));
                write_node(out, *to);
                write_node(out, *from);
                put_varint(out, preferred_leader.0);
                out.put_u8(*reason as u8);
                put_varint(out, epoch.0);
                put_signed(out, at.0);
            }
            MetaCommand::SwitchMove { move_id, config } => {
                out.put_u8(10);
                put_varint(out, move_id.0);
                config.write(out);
            }
            MetaCommand::RewindMove { move_id, config } => {
                out.put_u8(11);
                put_varint(out, move_id.0);
                config.write(out);
            }
            MetaCommand::CancelMove { move_id } => {
                out.put_u8(12);
                put_varint(out, move_id.0);
            }
            MetaCommand::FinishMove { move_id, at } => {
                out.put_u8(13);
                put_varint(out, move_id.0);
                put_signed(out, at.0);
            }
            MetaCommand::EndCancelledMove { move_id, at } => {
                out.put_u8(14);
                put_varint(out, move_id.0);
                put_signed(out, at.0);
            }
            MetaCommand::RecoverShard {
                shard_id,
                survivor,
                last,
                at,
            } => {
                out.put_u8(15);
                put_varint(out, u64::from(shard_id.0));
                put_varint(out, survivor.0);
                last.write(out);
                put_signed(out, at.0);
            }
            MetaCommand::FinishRecovery {
                shard_id,
                replica_id,
                at,
            } => {
                out.put_u8(16);
                put_varint(out, u64::from(shard_id.0));
                put_varint(out, replica_id.0);
                put_signed(out, at.0);
            }
            MetaCommand::StartSplit {
                shard_id,
                slot,
                reason,
                epoch,
                at,
            } => {
                out.put_u8(19);
                put_varint(out, u64::from(shard_id.0));
                put_varint(out, u64::from(slot.0));
                out.put_u8(*reason as u8);
                write_option(out, epoch.as_ref(), |epoch, out| put_varint(out, epoch.0));
                put_signed(out, at.0);
            }
            MetaCommand::FinishSplit { new_shard_id, at } => {
                out.put_u8(20);
                put_varint(out, u64::from(new_shard_id.0));
                put_signed(out, at.0);
            }
            MetaCommand::StartMerge {
                shard_id,
                absorbed_shard_id,
                reason,
                epoch,
                at,
            } => {
                out.put_u8(31);
                put_varint(out, u64::from(shard_id.0));
                put_varint(out, u64::from(absorbed_shard_id.0));
                out.put_u8(*reason as u8);
                write_option(out, epoch.as_ref(), |epoch, out| put_varint(out, epoch.0));
                put_signed(out, at.0);
            }
            MetaCommand::FreezeMerge { merge_id, at } => write_merge(out, 32, *merge_id, *at),
            MetaCommand::AbsorbMerge { merge_id, at } => write_merge(out, 33, *merge_id, *at),
            MetaCommand::CancelMerge { merge_id, at } => write_merge(out, 34, *merge_id, *at),
            MetaCommand::EndCancelledMerge { merge_id, at } => {
                write_merge(out, 35, *merge_id, *at);
            }
            MetaCommand::FinishMerge { merge_id, at } => write_merge(out, 36, *merge_id, *at),
            MetaCommand::FinalizeUpgrade { to, at } => {
                out.put_u8(42);
                put_varint(out, u64::from(to.0));
                put_signed(out, at.0);
            }
            MetaCommand::By { by, command } => {
                out.put_u8(BY);
                put_text(out, &by.0);
                command.write(out);
            }
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        match reader.u8()? {
            BY => {
                let by = Actor(reader.text()?);
                // Never nested: bytes that say so end here, not on the stack.
                let tag = reader.u8()?;
                let command = Box::new(Self::read_tagged(tag, reader)?);
                Ok(MetaCommand::By { by, command })
            }
            tag => Self::read_tagged(tag, reader),
        }
    }

    fn read_tagged(tag: u8, reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(match tag {
            1 | CREATE_AT_VERSION => MetaCommand::CreateCluster {
                cluster_id: reader.text()?,
                cluster_name: reader.text()?,
                join_token: JoinToken(reader.text()?),
                replication_factor: reader.varint32()?,
                nodes: read_list(reader, NodeInfo::read)?,
                shards: read_list(reader, ShardDescriptor::read)?,
                at: TimestampMs(reader.signed()?),
                version: match tag {
                    CREATE_AT_VERSION => ClusterVersion(reader.varint32()?),
                    _ => ClusterVersion::V1,
                },
            },
            42 => MetaCommand::FinalizeUpgrade {
                to: ClusterVersion(reader.varint32()?),
                at: TimestampMs(reader.signed()?),
            },
            2 => MetaCommand::UpdateNode {
                node: NodeInfo::read(reader)?,
            },
            3 => MetaCommand::JoinNode {
                node: NodeInfo::read(reader)?,
                token: JoinToken(reader.text()?),
                at: TimestampMs(reader.signed()?),
            },
            4 => MetaCommand::RotateJoinToken {
                token: JoinToken(reader.text()?),
                at: TimestampMs(reader.signed()?),
            },
            5 => MetaCommand::SetPolicy {
                change: PolicyChange::read(reader)?,
                at: TimestampMs(reader.signed()?),
            },
            6 => MetaCommand::SetStanding {
                node_id: read_node_id(reader)?,
                standing: Standing::read(reader)?,
                forced: reader.flag()?,
                at: TimestampMs(reader.signed()?),
            },
            7 => MetaCommand::ForgetNode {
                node_id: read_node_id(reader)?,
                at: TimestampMs(reader.signed()?),
            },
            8 => MetaCommand::SetPreferredLeaders {
                leaders: read_list(reader, read_leader)?,
            },
            9 => MetaCommand::StartMove {
                shard_id: ShardId(reader.varint32()?),
                to: read_option(reader, read_node_id)?,
                from: read_option(reader, read_node_id)?,
                preferred_leader: read_node_id(reader)?,
                reason: MoveReason::read(reader)?,
                epoch: Epoch(reader.varint()?),
                at: TimestampMs(reader.signed()?),
            },
            10 => MetaCommand::SwitchMove {
                move_id: MoveId(reader.varint()?),
                config: ConfigVersion::read(reader)?,
            },
            11 => MetaCommand::RewindMove {
                move_id: MoveId(reader.varint()?),
                config: ConfigVersion::read(reader)?,
            },
            12 => MetaCommand::CancelMove {
                move_id: MoveId(reader.varint()?),
            },
            13 => MetaCommand::FinishMove {
                move_id: MoveId(reader.varint()?),
                at: TimestampMs(reader.signed()?),
            },
            14 => MetaCommand::EndCancelledMove {
                move_id: MoveId(reader.varint()?),
                at: TimestampMs(reader.signed()?),
            },
            POLICY_WITH_LATER => {
                let mut change = PolicyChange::read(reader)?;
                let at = TimestampMs(reader.signed()?);
                change.read_later(reader)?;
                MetaCommand::SetPolicy { change, at }
            }
            19 => MetaCommand::StartSplit {
                shard_id: ShardId(reader.varint32()?),
                slot: read_slot(reader)?,
                reason: SplitReason::read(reader)?,
                epoch: read_option(reader, |reader| reader.varint().map(Epoch))?,
                at: TimestampMs(reader.signed()?),
            },
            20 => MetaCommand::FinishSplit {
                new_shard_id: ShardId(reader.varint32()?),
                at: TimestampMs(reader.signed()?),
            },
            31 => MetaCommand::StartMerge {
                shard_id: ShardId(reader.varint32()?),
                absorbed_shard_id: ShardId(reader.varint32()?),
                reason: MergeReason::read(reader)?,
                epoch: read_option(reader, |reader| reader.varint().map(Epoch))?,
                at: TimestampMs(reader.signed()?),
            },
            tag @ 32..=36 => {
                let merge_id = MergeId(reader.varint()?);
                let at = TimestampMs(reader.signed()?);
                match tag {
                    32 => MetaCommand::FreezeMerge { merge_id, at },
                    33 => MetaCommand::AbsorbMerge { merge_id, at },
                    34 => MetaCommand::CancelMerge { merge_id, at },
                    35 => MetaCommand::EndCancelledMerge { merge_id, at },
                    _ => MetaCommand::FinishMerge { merge_id, at },
                }
            }
            15 => MetaCommand::RecoverShard {
                shard_id: ShardId(reader.varint32()?),
                survivor: ReplicaId(reader.varint()?),
                last: LogPosition::read(reader)?,
                at: TimestampMs(reader.signed()?),
            },
            16 => MetaCommand::FinishRecovery {
                shard_id: ShardId(reader.varint32()?),
                replica_id: ReplicaId(reader.varint()?),
                at: TimestampMs(reader.signed()?),
            },
            _ => return Err(reader.corrupt("the command is unknown")),
        })
    }
}
