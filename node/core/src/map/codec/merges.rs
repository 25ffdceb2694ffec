//! The binary forms of merges and of why there is none.

use bytes::{BufMut, BytesMut};

use super::read_size;
use crate::codec::{Corrupt, Reader, put_signed, put_varint};
use crate::ids::{ShardId, TimestampMs};
use crate::map::merges::{Merge, MergeReason, MergeRefusal, MergeStep};
use crate::merging::MergeId;

impl MergeReason {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(match reader.u8()? {
            1 => MergeReason::Asked,
            2 => MergeReason::Small,
            _ => return Err(reader.corrupt("a merge's reason is unknown")),
        })
    }
}

impl MergeStep {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(match reader.u8()? {
            1 => MergeStep::Freezing,
            2 => MergeStep::Absorbing,
            3 => MergeStep::Thawing,
            4 => MergeStep::Gathering,
            _ => return Err(reader.corrupt("a merge's step is unknown")),
        })
    }
}

impl Merge {
    pub(super) fn write(&self, out: &mut BytesMut) {
        put_varint(out, self.merge_id.0);
        put_varint(out, u64::from(self.shard_id.0));
        put_varint(out, u64::from(self.absorbed_shard_id.0));
        out.put_u8(self.step as u8);
        out.put_u8(self.reason as u8);
        put_signed(out, self.started_at.0);
        put_signed(out, self.step_since.0);
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(Merge {
            merge_id: MergeId(reader.varint()?),
            shard_id: ShardId(reader.varint32()?),
            absorbed_shard_id: ShardId(reader.varint32()?),
            step: MergeStep::read(reader)?,
            reason: MergeReason::read(reader)?,
            started_at: TimestampMs(reader.signed()?),
            step_since: TimestampMs(reader.signed()?),
        })
    }
}

impl MergeRefusal {
    pub(super) fn write(&self, out: &mut BytesMut) {
        match self {
            MergeRefusal::Running {
                shard_id,
                absorbed_shard_id,
            } => {
                out.put_u8(1);
                put_varint(out, u64::from(shard_id.0));
                put_varint(out, u64::from(absorbed_shard_id.0));
            }
            MergeRefusal::NoNeighbour { shard_id } => {
                out.put_u8(2);
                put_varint(out, u64::from(shard_id.0));
            }
            MergeRefusal::NoNeighbours {
                shard_id,
                absorbed_shard_id,
            } => {
                out.put_u8(7);
                put_varint(out, u64::from(shard_id.0));
                put_varint(out, u64::from(absorbed_shard_id.0));
            }
            MergeRefusal::TooMany { max } => {
                out.put_u8(3);
                put_varint(out, *max as u64);
            }
            MergeRefusal::Apart { merge_id } => {
                out.put_u8(4);
                put_varint(out, merge_id.0);
            }
            MergeRefusal::TooLate { merge_id } => {
                out.put_u8(5);
                put_varint(out, merge_id.0);
            }
            MergeRefusal::WrongStep { merge_id, step } => {
                out.put_u8(6);
                put_varint(out, merge_id.0);
                out.put_u8(*step as u8);
            }
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(match reader.u8()? {
            1 => MergeRefusal::Running {
                shard_id: ShardId(reader.varint32()?),
                absorbed_shard_id: ShardId(reader.varint32()?),
            },
            2 => MergeRefusal::NoNeighbour {
                shard_id: ShardId(reader.varint32()?),
            },
            3 => MergeRefusal::TooMany {
                max: read_size(reader)?,
            },
            4 => MergeRefusal::Apart {
                merge_id: MergeId(reader.varint()?),
            },
            5 => MergeRefusal::TooLate {
                merge_id: MergeId(reader.varint()?),
            },
            6 => MergeRefusal::WrongStep {
                merge_id: MergeId(reader.varint()?),
                step: MergeStep::read(reader)?,
            },
            7 => MergeRefusal::NoNeighbours {
                shard_id: ShardId(reader.varint32()?),
                absorbed_shard_id: ShardId(reader.varint32()?),
            },
            _ => return Err(reader.corrupt("a refusal of a merge is unknown")),
        })
    }
}
