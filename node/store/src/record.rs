//! The applied record of a shard: written with every batch, so that state and position never
//! part. Key `FF FF ‖ shard id`, value
//! `version ‖ first slot ‖ last slot ‖ clock length ‖ clock ‖ applied`, the slots big-endian.
//! Version 1 has no slots.

use bytes::{BufMut, Bytes, BytesMut};
use carillon_core::ids::{ShardId, Slot, SlotRange};
use carillon_core::records::{Record, ShardClock};

use crate::error::StoreError;

/// Above every slot: the prefix of what is no shard's state.
pub(crate) const RESERVED_PREFIX: [u8; 2] = [0xFF, 0xFF];
/// End of the applied records: one more than the largest shard id.
pub(crate) const APPLIED_END: [u8; 7] = [0xFF; 7];
const VERSION: u8 = 2;
const VERSION_WITHOUT_SLOTS: u8 = 1;
const SLOTS_BYTES: usize = 4;

/// How far a shard has applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AppliedRecord {
    /// What the raft layer keeps with the state: last log id and membership. Opaque here.
    pub(crate) applied: Bytes,
    /// The message id generator's position.
    pub(crate) clock: ShardClock,
    /// What the shard holds; none in a record of version 1.
    pub(crate) slots: Option<SlotRange>,
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

/// Writes the record into `out`, which is cleared first.
pub(crate) fn encode(applied: &[u8], clock: &ShardClock, slots: SlotRange, out: &mut BytesMut) {
    out.clear();
    out.put_u8(VERSION);
    out.put_u16(slots.first.0);
    out.put_u16(slots.last.0);
    out.put_u8(0);
    let start = out.len();
    clock.encode(out);
    out[start - 1] = u8::try_from(out.len() - start).expect("an encoded clock is short");
    out.extend_from_slice(applied);
}

pub(crate) fn decode(value: &Bytes) -> Result<AppliedRecord, StoreError> {
    let what = "applied record";
    let (slots, clock_at) = match value[..] {
        [VERSION_WITHOUT_SLOTS, ..] => (None, 1),
        [VERSION, a, b, c, d, ..] => {
            let first = Slot(u16::from_be_bytes([a, b]));
            let last = Slot(u16::from_be_bytes([c, d]));
            if last < first {
                return Err(corrupt(what, "its slots are reversed"));
            }
            (Some(SlotRange { first, last }), 1 + SLOTS_BYTES)
        }
        [] | [VERSION, ..] => return Err(corrupt(what, "it is shorter than its header")),
        [version, ..] => return Err(corrupt(what, format_args!("version {version} is unknown"))),
    };
    let Some(clock_len) = value.get(clock_at) else {
        return Err(corrupt(what, "it is shorter than its header"));
    };
    let clock_start = clock_at + 1;
    let clock_end = clock_start + usize::from(*clock_len);
    if value.len() < clock_end {
        return Err(corrupt(what, "its clock is cut off"));
    }
    let clock = ShardClock::decode_slice(&value[clock_start..clock_end])
        .map_err(|error| corrupt(what, error))?;
    Ok(AppliedRecord {
        applied: value.slice(clock_end..),
        clock,
        slots,
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
    use super::*;

    #[test]
    fn round_trip() {
        let clock = ShardClock::default();
        let slots = SlotRange {
            first: Slot(256),
            last: Slot(511),
        };
        let mut out = BytesMut::new();
        encode(b"position", &clock, slots, &mut out);
        let bytes = out.freeze();
        let record = decode(&bytes).unwrap();
        assert_eq!(record.applied, &b"position"[..]);
        assert_eq!(record.clock, clock);
        assert_eq!(record.slots, Some(slots));
        // As it was before shards could be split.
        let old = [&[VERSION_WITHOUT_SLOTS], &bytes[1 + SLOTS_BYTES..]].concat();
        let old = decode(&Bytes::from(old)).unwrap();
        assert_eq!((old.applied, old.clock), (record.applied, record.clock));
        assert_eq!(old.slots, None);
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
