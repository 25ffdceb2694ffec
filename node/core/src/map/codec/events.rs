//! The binary forms of events: when, then a tag and the fields of what happened.

use bytes::{BufMut, BytesMut};

use super::{read_node_id, read_slot, write_node};
use crate::codec::{Corrupt, Reader, put_signed, put_varint};
use crate::ids::{ShardId, TimestampMs};
use crate::map::{Event, EventKind, MoveId, MoveReason, SplitReason, Standing};
use crate::records::read_option;

impl Event {
    pub(super) fn write(&self, out: &mut BytesMut) {
        put_signed(out, self.at.0);
        self.what.write(out);
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(Event {
            at: TimestampMs(reader.signed()?),
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
            EventKind::SplitStarted {
                shard_id,
                new_shard_id,
                slot,
                reason,
            } => {
                out.put_u8(10);
                put_varint(out, u64::from(shard_id.0));
                put_varint(out, u64::from(new_shard_id.0));
                put_varint(out, u64::from(slot.0));
                out.put_u8(*reason as u8);
            }
            EventKind::SplitFinished {
                shard_id,
                new_shard_id,
            } => {
                out.put_u8(11);
                put_varint(out, u64::from(shard_id.0));
                put_varint(out, u64::from(new_shard_id.0));
            }
            EventKind::JoinTokenRotated => out.put_u8(9),
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
            10 => EventKind::SplitStarted {
                shard_id: ShardId(reader.varint32()?),
                new_shard_id: ShardId(reader.varint32()?),
                slot: read_slot(reader)?,
                reason: SplitReason::read(reader)?,
            },
            11 => EventKind::SplitFinished {
                shard_id: ShardId(reader.varint32()?),
                new_shard_id: ShardId(reader.varint32()?),
            },
            9 => EventKind::JoinTokenRotated,
            _ => return Err(reader.corrupt("the event is unknown")),
        })
    }
}
