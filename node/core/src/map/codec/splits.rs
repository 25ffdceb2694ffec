//! The binary forms of splits and of why there is none.

use bytes::{BufMut, BytesMut};

use super::{read_list, read_size, read_slot, write_list};
use crate::codec::{Corrupt, Reader, put_signed, put_varint};
use crate::ids::{ShardId, SlotRange, TimestampMs};
use crate::map::Replica;
use crate::map::splits::{Split, SplitReason, SplitRefusal};

impl SplitReason {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(match reader.u8()? {
            1 => SplitReason::Asked,
            2 => SplitReason::Size,
            3 => SplitReason::Load,
            _ => return Err(reader.corrupt("a split's reason is unknown")),
        })
    }
}

impl Split {
    pub(super) fn write(&self, out: &mut BytesMut) {
        put_varint(out, u64::from(self.shard_id.0));
        put_varint(out, u64::from(self.new_shard_id.0));
        put_varint(out, u64::from(self.slot.0));
        write_list(out, &self.replicas, |replica, out| replica.write(out));
        out.put_u8(self.reason as u8);
        put_signed(out, self.started_at.0);
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(Split {
            shard_id: ShardId(reader.varint32()?),
            new_shard_id: ShardId(reader.varint32()?),
            slot: read_slot(reader)?,
            replicas: read_list(reader, Replica::read)?,
            reason: SplitReason::read(reader)?,
            started_at: TimestampMs(reader.signed()?),
        })
    }
}

impl SplitRefusal {
    pub(super) fn write(&self, out: &mut BytesMut) {
        match self {
            SplitRefusal::Running {
                shard_id,
                new_shard_id,
            } => {
                out.put_u8(1);
                put_varint(out, u64::from(shard_id.0));
                put_varint(out, u64::from(new_shard_id.0));
            }
            SplitRefusal::Slot {
                shard_id,
                slot,
                slots,
            } => {
                out.put_u8(2);
                put_varint(out, u64::from(shard_id.0));
                for slot in [slot, &slots.first, &slots.last] {
                    put_varint(out, u64::from(slot.0));
                }
            }
            SplitRefusal::TooManyShards { max } => {
                out.put_u8(3);
                put_varint(out, u64::from(*max));
            }
            SplitRefusal::TooMany { max } => {
                out.put_u8(4);
                put_varint(out, *max as u64);
            }
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(match reader.u8()? {
            1 => SplitRefusal::Running {
                shard_id: ShardId(reader.varint32()?),
                new_shard_id: ShardId(reader.varint32()?),
            },
            2 => SplitRefusal::Slot {
                shard_id: ShardId(reader.varint32()?),
                slot: read_slot(reader)?,
                slots: SlotRange {
                    first: read_slot(reader)?,
                    last: read_slot(reader)?,
                },
            },
            3 => SplitRefusal::TooManyShards {
                max: reader.varint32()?,
            },
            4 => SplitRefusal::TooMany {
                max: read_size(reader)?,
            },
            _ => return Err(reader.corrupt("a refusal of a split is unknown")),
        })
    }
}
