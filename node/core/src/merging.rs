//! Merges of shards as the shards themselves keep them: a shard is frozen, and its left
//! neighbour, on the same nodes, takes it over with all that is in it.
//!
//! Owner of no state: a [`MergeMark`] is in the applied record of each shard, written with the
//! state. Invariants: merge numbers only grow, so what is late of an old merge changes nothing;
//! a frozen shard changes nothing but by being thawed or taken over.

use std::fmt;

use bytes::BytesMut;

use crate::codec::{Corrupt, Reader, put_varint};
use crate::records::{read_option, write_option};

/// A merge's number; given by the meta group, never given again. 0 is of none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MergeId(pub u64);

impl fmt::Display for MergeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What merges have done to a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MergeMark {
    /// The merge for which the shard is frozen: it changes nothing until it is thawed, or taken
    /// over by its left neighbour.
    pub frozen_by: Option<MergeId>,
    /// The last merge that has frozen or thawed it; 0 when there was none.
    pub seen: MergeId,
    /// The last merge in which it took over its right neighbour; 0 when there was none.
    pub absorbed: MergeId,
}

impl MergeMark {
    /// Appends the mark to `out`.
    pub fn write(&self, out: &mut BytesMut) {
        write_option(out, self.frozen_by.as_ref(), |id, out| {
            put_varint(out, id.0);
        });
        put_varint(out, self.seen.0);
        put_varint(out, self.absorbed.0);
    }

    /// Reads what [`MergeMark::write`] wrote.
    ///
    /// # Errors
    /// [`Corrupt`] when it is none.
    pub fn read(reader: &mut Reader<'_>) -> Result<MergeMark, Corrupt> {
        Ok(MergeMark {
            frozen_by: read_option(reader, |reader| reader.varint().map(MergeId))?,
            seen: MergeId(reader.varint()?),
            absorbed: MergeId(reader.varint()?),
        })
    }
}
