//! The binary forms of events: when, who, then a tag and the fields of what happened. Before
//! version 2 of the meta group's state nobody knew who.

use bytes::{BufMut, BytesMut};

use super::{put_text, read_list, read_node_id, read_slot, write_list, write_node};
use crate::codec::{Corrupt, Reader, put_signed, put_varint};
use crate::ids::{ReplicaId, ShardId, TimestampMs};
use crate::map::{
    Actor, ClusterVersion, Event, EventKind, LogPosition, MergeReason, MoveId, MoveReason, Replica,
    SplitReason, Standing,
};
use crate::records::{read_option, write_option};

impl Event {
    pub(super) fn write(&self, out: &mut BytesMut) {
        put_signed(out, self.at.0);
        write_option(out, self.by.as_ref(), |by, out| put_text(out, &by.0));
        self.what.write(out);
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(Event {
            at: TimestampMs(reader.signed()?),
            by: read_option(reader, |reader| Ok(Actor(reader.text()?)))?,
            what: EventKind::read(reader)?,
        })
    }

    /// As version 1 of the meta group's state has it.
    pub(super) fn write_v1(&self, out: &mut BytesMut) {
        put_signed(out, self.at.0);
        self.what.write(out);
    }

    /// As version 1 of the meta group's state has it.
    pub(super) fn read_v1(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(Event {
            at: TimestampMs(reader.signed()?),
            by: Some(Actor::unknown()),
            what: EventKind::read(reader)?,
        })
    }
}

impl EventKind {
    pub(super) fn write(&self, out: &mut BytesMut) {
        match self {
            EventKind::ClusterCreated => out.put_u8(1),
            EventKind::NodeJoined { node_id } => {
                out.put_u8(2);
                put_varint(out, node_id.0);
            }
            EventKind::StandingChanged {
                node_id,
                from,
                to,
                forced,
            } => {
                out.put_u8(3);
                put_varint(out, node_id.0);
                from.write(out);
                to.write(out);
                out.put_u8(u8::from(*forced));
            }
            EventKind::NodeForgotten { node_id } => {
                out.put_u8(4);
                put_varint(out, node_id.0);
            }
            EventKind::MoveStarted {
                move_id,
                shard_id,
                to,
                from,
                reason,
            } => {
                out.put_u8(5);
                put_varint(out, move_id.0);
                put_varint(out, u64::from(shard_id.0));
                write_node(out, *to);
                write_node(out, *from);
                out.put_u8(*reason as u8);
            }
            EventKind::MoveFinished {
                move_id,
                shard_id,
                reason,
            } => {
                out.put_u8(6);
                put_varint(out, move_id.0);
                put_varint(out, u64::from(shard_id.0));
                out.put_u8(*reason as u8);
            }
            EventKind::MoveCancelled {
                move_id,
                shard_id,
                reason,
            } => {
                out.put_u8(7);
                put_varint(out, move_id.0);
                put_varint(out, u64::from(shard_id.0));
                out.put_u8(*reason as u8);
            }
            EventKind::PolicyChanged => out.put_u8(8),
            EventKind::UpgradeFinalized { to } => {
                out.put_u8(30);
                put_varint(out, u64::from(to.0));
            }
            EventKind::SplitStarted {
                shard_id,
                new_shard_id,
                slot,
                reason,
            } => {
                out.put_u8(12);
                put_varint(out, u64::from(shard_id.0));
                put_varint(out, u64::from(new_shard_id.0));
                put_varint(out, u64::from(slot.0));
                out.put_u8(*reason as u8);
            }
            EventKind::SplitFinished {
                shard_id,
                new_shard_id,
            } => {
                out.put_u8(13);
                put_varint(out, u64::from(shard_id.0));
                put_varint(out, u64::from(new_shard_id.0));
            }
            EventKind::MergeStarted {
                shard_id,
                absorbed_shard_id,
                reason,
            } => {
                out.put_u8(20);
                put_varint(out, u64::from(shard_id.0));
                put_varint(out, u64::from(absorbed_shard_id.0));
                out.put_u8(*reason as u8);
            }
            EventKind::MergeFinished {
                shard_id,
                absorbed_shard_id,
            } => {
                out.put_u8(21);
                put_varint(out, u64::from(shard_id.0));
                put_varint(out, u64::from(absorbed_shard_id.0));
            }
            EventKind::MergeCancelled {
                shard_id,
                absorbed_shard_id,
            } => {
                out.put_u8(22);
                put_varint(out, u64::from(shard_id.0));
                put_varint(out, u64::from(absorbed_shard_id.0));
            }
            EventKind::JoinTokenRotated => out.put_u8(9),
            EventKind::RecoveryStarted {
                shard_id,
                from,
                to,
                last,
                lost,
            } => {
                out.put_u8(10);
                put_varint(out, u64::from(shard_id.0));
                from.write(out);
                put_varint(out, to.0);
                last.write(out);
                write_list(out, lost, |node, out| put_varint(out, node.0));
            }
            EventKind::RecoveryFinished {
                shard_id,
                replica_id,
            } => {
                out.put_u8(11);
                put_varint(out, u64::from(shard_id.0));
                put_varint(out, replica_id.0);
            }
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(match reader.u8()? {
            1 => EventKind::ClusterCreated,
            2 => EventKind::NodeJoined {
                node_id: read_node_id(reader)?,
            },
            3 => EventKind::StandingChanged {
                node_id: read_node_id(reader)?,
                from: Standing::read(reader)?,
                to: Standing::read(reader)?,
                forced: reader.flag()?,
            },
            4 => EventKind::NodeForgotten {
                node_id: read_node_id(reader)?,
            },
            5 => EventKind::MoveStarted {
                move_id: MoveId(reader.varint()?),
                shard_id: ShardId(reader.varint32()?),
                to: read_option(reader, read_node_id)?,
                from: read_option(reader, read_node_id)?,
                reason: MoveReason::read(reader)?,
            },
            6 => EventKind::MoveFinished {
                move_id: MoveId(reader.varint()?),
                shard_id: ShardId(reader.varint32()?),
                reason: MoveReason::read(reader)?,
            },
            7 => EventKind::MoveCancelled {
                move_id: MoveId(reader.varint()?),
                shard_id: ShardId(reader.varint32()?),
                reason: MoveReason::read(reader)?,
            },
            8 => EventKind::PolicyChanged,
            30 => EventKind::UpgradeFinalized {
                to: ClusterVersion(reader.varint32()?),
            },
            12 => EventKind::SplitStarted {
                shard_id: ShardId(reader.varint32()?),
                new_shard_id: ShardId(reader.varint32()?),
                slot: read_slot(reader)?,
                reason: SplitReason::read(reader)?,
            },
            13 => EventKind::SplitFinished {
                shard_id: ShardId(reader.varint32()?),
                new_shard_id: ShardId(reader.varint32()?),
            },
            20 => EventKind::MergeStarted {
                shard_id: ShardId(reader.varint32()?),
                absorbed_shard_id: ShardId(reader.varint32()?),
                reason: MergeReason::read(reader)?,
            },
            21 => EventKind::MergeFinished {
                shard_id: ShardId(reader.varint32()?),
                absorbed_shard_id: ShardId(reader.varint32()?),
            },
            22 => EventKind::MergeCancelled {
                shard_id: ShardId(reader.varint32()?),
                absorbed_shard_id: ShardId(reader.varint32()?),
            },
            9 => EventKind::JoinTokenRotated,
            10 => EventKind::RecoveryStarted {
                shard_id: ShardId(reader.varint32()?),
                from: Replica::read(reader)?,
                to: ReplicaId(reader.varint()?),
                last: LogPosition::read(reader)?,
                lost: read_list(reader, read_node_id)?,
            },
            11 => EventKind::RecoveryFinished {
                shard_id: ShardId(reader.varint32()?),
                replica_id: ReplicaId(reader.varint()?),
            },
            _ => return Err(reader.corrupt("the event is unknown")),
        })
    }
}
