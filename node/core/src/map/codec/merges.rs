//! The binary forms of merges and of why there is none.

use bytes::{BufMut, BytesMut};

use crate::codec::{Corrupt, Reader, put_signed, put_varint};
use crate::ids::{ShardId, TimestampMs};
use crate::map::merges::{Merge, MergeReason, MergeStep};
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
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(Merge {
            merge_id: MergeId(reader.varint()?),
            shard_id: ShardId(reader.varint32()?),
            absorbed_shard_id: ShardId(reader.varint32()?),
            step: MergeStep::read(reader)?,
            reason: MergeReason::read(reader)?,
            started_at: TimestampMs(reader.signed()?),
        })
    }
}
