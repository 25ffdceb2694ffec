//! The applied record of a shard: written with every batch, so that state and position never
//! part. Key `FF FF ‖ shard id`, value
//! `version ‖ first slot ‖ last slot ‖ clock length ‖ clock ‖ mark length ‖ mark ‖ applied`,
//! the slots big-endian; the mark is what merges have done to the shard. Version 2 is of a shard
//! that no merge has touched and has no mark, version 1 has no slots either.

use bytes::{BufMut, Bytes, BytesMut};
use carillon_core::codec::Reader;
use carillon_core::ids::{ShardId, Slot, SlotRange};
use carillon_core::merging::MergeMark;
use carillon_core::records::{Record, ShardClock};

use crate::error::StoreError;

/// Above every slot: the prefix of what is no shard's state.
pub(crate) const RESERVED_PREFIX: [u8; 2] = [0xFF, 0xFF];
/// End of the applied records: one more than the largest shard id.
pub(crate) const APPLIED_END: [u8; 7] = [0xFF; 7];
const VERSION: u8 = 3;
const VERSION_WITHOUT_MARK: u8 = 2;
const VERSION_WITHOUT_SLOTS: u8 = 1;
const SLOTS_BYTES: usize = 4;
const WHAT: &str = "applied record";

/// How far a shard has applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AppliedRecord {
    /// What the raft layer keeps with the state: last log id and membership. Opaque here.
    pub(crate) applied: Bytes,
    /// The message id generator's position.
    pub(crate) clock: ShardClock,
    /// What the shard holds; none in a record of version 1.
    pub(crate) slots: Option<SlotRange>,
    /// What merges have done to the shard.
    pub(crate) merges: MergeMark,
}

pub(crate) type AppliedKey = [u8; 6];

pub(crate) fn applied_key(shard: ShardId) -> AppliedKey {
    let [a, b, c, d] = shard.0.to_be_bytes();
    [RESERVED_PREFIX[0], RESERVED_PREFIX[1], a, b, c, d]
}

pub(crate) fn shard_of_applied_key(key: &[u8]) -> Result<ShardId, StoreError> {
    match key.strip_prefix(&RESERVED_PREFIX) {
        Some(&[a, b, c, d]) => Ok(ShardId(u32::from_be_bytes([a, b, c, d]))),
        _ => Err(corrupt("applied key", "it is not a prefix and a shard id")),
    }
}

/// Writes the record into `out`, which is cleared first. Without slots it has no mark either.
pub(crate) fn encode(
    applied: &[u8],
    clock: &ShardClock,
    slots: Option<SlotRange>,
    merges: MergeMark,
    out: &mut BytesMut,
) {
    let marked = merges != MergeMark::default();
    out.clear();
    match slots {
        None => out.put_u8(VERSION_WITHOUT_SLOTS),
        Some(slots) => {
            out.put_u8(if marked {
                VERSION
            } else {
                VERSION_WITHOUT_MARK
            });
            out.put_u16(slots.first.0);
            out.put_u16(slots.last.0);
        }
    }
    put_part(out, |out| clock.encode(out));
    if marked && slots.is_some() {
        put_part(out, |out| merges.write(out));
    }
    out.extend_from_slice(applied);
}

/// Appends a part after its length, one byte.
fn put_part(out: &mut BytesMut, write: impl FnOnce(&mut BytesMut)) {
    out.put_u8(0);
    let start = out.len();
    write(out);
    out[start - 1] = u8::try_from(out.len() - start).expect("parts are short");
}

/// The part at `at`, and where it ends.
fn part(value: &[u8], at: usize) -> Result<(&[u8], usize), StoreError> {
    let start = at + 1;
    let part = value.get(at).and_then(|length| {
        let end = start + usize::from(*length);
        Some((value.get(start..end)?, end))
    });
    part.ok_or_else(|| corrupt(WHAT, "it is cut off"))
}

pub(crate) fn decode(value: &Bytes) -> Result<AppliedRecord, StoreError> {
    let what = WHAT;
    let (slots, clock_at) = match value[..] {
        [VERSION_WITHOUT_SLOTS, ..] => (None, 1),
        [VERSION | VERSION_WITHOUT_MARK, a, b, c, d, ..] => {
            let first = Slot(u16::from_be_bytes([a, b]));
            let last = Slot(u16::from_be_bytes([c, d]));
            if last < first {
                return Err(corrupt(what, "its slots are reversed"));
            }
            (Some(SlotRange { first, last }), 1 + SLOTS_BYTES)
        }
        [] | [VERSION | VERSION_WITHOUT_MARK, ..] => {
            return Err(corrupt(what, "it is shorter than its header"));
        }
        [version, ..] => return Err(corrupt(what, format_args!("version {version} is unknown"))),
    };
    let (clock, mut end) = part(value, clock_at)?;
    let clock = ShardClock::decode_slice(clock).map_err(|error| corrupt(what, error))?;
    let mut merges = MergeMark::default();
    if value[0] == VERSION {
        let mark;
        (mark, end) = part(value, end)?;
        let mut reader = Reader::borrowed("mark of merges", mark);
        merges = MergeMark::read(&mut reader).map_err(|error| corrupt(what, error))?;
        reader.finish().map_err(|error| corrupt(what, error))?;
    }
    Ok(AppliedRecord {
        applied: value.slice(end..),
        clock,
        slots,
        merges,
    })
}

fn corrupt(what: &str, reason: impl ToString) -> StoreError {
    StoreError::Corrupt {
        what: what.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use carillon_core::merging::MergeId;

    use super::*;

    #[test]
    fn round_trip() {
        let clock = ShardClock::default();
        let slots = SlotRange {
            first: Slot(256),
            last: Slot(511),
        };
        let mut out = BytesMut::new();
        encode(
            b"position",
            &clock,
            Some(slots),
            MergeMark::default(),
            &mut out,
        );
        let bytes = out.split().freeze();
        assert_eq!(bytes[0], VERSION_WITHOUT_MARK, "as it was before merges");
        let record = decode(&bytes).unwrap();
        assert_eq!(record.merges, MergeMark::default());
        assert_eq!(record.applied, &b"position"[..]);
        assert_eq!(record.clock, clock);
        assert_eq!(record.slots, Some(slots));
        // As it was before shards could be split.
        let old = [&[VERSION_WITHOUT_SLOTS], &bytes[1 + SLOTS_BYTES..]].concat();
        let old = decode(&Bytes::from(old)).unwrap();
        assert_eq!((&old.applied, old.clock), (&record.applied, record.clock));
        assert_eq!(old.slots, None);
        let merges = MergeMark {
            frozen_by: Some(MergeId(u64::MAX)),
            seen: MergeId(u64::MAX),
            absorbed: MergeId(300),
        };
        encode(b"position", &clock, Some(slots), merges, &mut out);
        let marked = decode(&out.freeze()).unwrap();
        assert_eq!(marked, AppliedRecord { merges, ..record });
        assert_eq!(
            shard_of_applied_key(&applied_key(ShardId(7))).unwrap(),
            ShardId(7)
        );
    }

    #[test]
    fn garbage_is_an_error() {
        for bytes in [
            &b""[..],
            b"\x01",
            b"\x03\x00",
            b"\x04\x00\x00\x00\x01\x02\x00\x00",
            b"\x03\x00\x00\x00\x01\x02\x00\x00",
            b"\x03\x00\x00\x00\x01\x02\x00\x00\x03\x00\x00",
            b"\x03\x00\x00\x00\x01\x02\x00\x00\x04\x00\x00\x00\x00",
            b"\x02\x00\x00\x00\x01",
            b"\x02\x00\x02\x00\x01\x00",
            b"\x02\x00\x00\x00\x01\xff\x00",
            b"\x01\xff\x00",
            b"\x01\x03\xff\xff\xff",
        ] {
            assert!(decode(&Bytes::copy_from_slice(bytes)).is_err(), "{bytes:?}");
        }
        assert!(shard_of_applied_key(b"\xff\xff\x00").is_err());
    }
}
