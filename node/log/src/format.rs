//! The layout of a segment file. Integers are little-endian.
//!
//! ```text
//! sector 0   segment header: magic, version, crc, number, salt
//! sector 1…  batches, each starting at a sector
//! batch      header: magic, crc, body length, records, sequence, durable segment, durable offset
//!            body: records, then zeros up to the next sector
//! record     payload length, crc, payload (first byte: its kind)
//! ```
//!
//! Every checksum also covers the segment's epoch (its number and a random salt), so that what is
//! left over in a recycled file, or what a client put into a payload, never passes for a batch of
//! this segment. A batch never shares a sector with an older one, so that a torn write can not
//! damage what was durable. A batch's header says up to where the log was durable before it was
//! written: a damaged place below that is corruption, above it a write that never completed.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use crc32fast::Hasher;

use crate::GroupId;

/// Batches start at multiples of this.
pub(crate) const SECTOR_BYTES: u64 = 512;
/// Where the first batch of a segment starts.
pub(crate) const DATA_START: u64 = SECTOR_BYTES;
pub(crate) const FORMAT_VERSION: u32 = 1;
pub(crate) const BATCH_HEADER_BYTES: usize = 40;
pub(crate) const RECORD_HEADER_BYTES: usize = 8;
/// Kind, group and index before the encoded entry.
pub(crate) const ENTRY_PREFIX_BYTES: usize = 13;

const SEGMENT_MAGIC: [u8; 8] = *b"CARILLOG";
const BATCH_MAGIC: u32 = 0x4241_5443;
const SEGMENT_HEADER_BYTES: usize = 32;
/// Memory that the batch buffer keeps after a large batch.
const BUFFER_BYTES_KEPT: usize = 16 << 20;

/// A segment's number: 1, 2, 3 … in the order of writing. 0 is no segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SegmentNumber(pub(crate) u64);

impl SegmentNumber {
    pub(crate) fn next(self) -> Self {
        SegmentNumber(self.0 + 1)
    }
}

/// A byte position in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) segment: SegmentNumber,
    pub(crate) offset: u64,
}

/// Where the record of an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) segment: SegmentNumber,
    /// Offset of the record's header in the file.
    pub(crate) offset: u32,
    /// Length of the payload.
    pub(crate) len: u32,
}

impl Location {
    /// During recovery: the entry was in a deleted segment, and must be found moved or purged.
    pub(crate) const MISSING: Location = Location {
        segment: SegmentNumber(0),
        offset: 0,
        len: 0,
    };

    /// Bytes of the whole record.
    pub(crate) fn record_bytes(self) -> u64 {
        RECORD_HEADER_BYTES as u64 + u64::from(self.len)
    }

    pub(crate) fn end(self) -> u64 {
        u64::from(self.offset) + self.record_bytes()
    }
}

/// What makes the checksums of one use of one segment file unlike all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Epoch {
    pub(crate) number: SegmentNumber,
    pub(crate) salt: u64,
}

impl Epoch {
    fn crc(self, data: &[u8]) -> u32 {
        let mut hasher = Hasher::new();
        hasher.update(data);
        hasher.update(&(data.len() as u64).to_le_bytes());
        hasher.update(&self.number.0.to_le_bytes());
        hasher.update(&self.salt.to_le_bytes());
        hasher.finalize()
    }

    /// The header sector of a segment of this epoch.
    pub(crate) fn encode_segment_header(self) -> [u8; SECTOR_BYTES as usize] {
        let mut sector = [0; SECTOR_BYTES as usize];
        sector[..8].copy_from_slice(&SEGMENT_MAGIC);
        sector[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        sector[16..24].copy_from_slice(&self.number.0.to_le_bytes());
        sector[24..32].copy_from_slice(&self.salt.to_le_bytes());
        let crc = crc32fast::hash(&sector[..SEGMENT_HEADER_BYTES]);
        sector[12..16].copy_from_slice(&crc.to_le_bytes());
        sector
    }
}

/// Why a segment header can not be used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HeaderError {
    Damaged,
    Version(u32),
}

pub(crate) fn decode_segment_header(sector: &[u8]) -> Result<Epoch, HeaderError> {
    if sector.len() < SEGMENT_HEADER_BYTES || sector[..8] != SEGMENT_MAGIC {
        return Err(HeaderError::Damaged);
    }
    let mut header = [0; SEGMENT_HEADER_BYTES];
    header.copy_from_slice(&sector[..SEGMENT_HEADER_BYTES]);
    header[12..16].fill(0);
    let mut fields = &sector[8..];
    let (version, crc) = (fields.get_u32_le(), fields.get_u32_le());
    if crc32fast::hash(&header) != crc {
        return Err(HeaderError::Damaged);
    }
    if version != FORMAT_VERSION {
        return Err(HeaderError::Version(version));
    }
    Ok(Epoch {
        number: SegmentNumber(fields.get_u64_le()),
        salt: fields.get_u64_le(),
    })
}

/// The header of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    pub(crate) body_len: u32,
    pub(crate) records: u32,
    /// 1, 2, 3 … over all segments.
    pub(crate) sequence: u64,
    /// Everything before this was durable when the batch was written.
    pub(crate) durable: Position,
}

impl BatchHeader {
    /// Reads the header at the start of `data`; `None` when there is none of this epoch.
    pub(crate) fn decode(epoch: Epoch, data: &[u8]) -> Option<BatchHeader> {
        let mut fields = data.get(..BATCH_HEADER_BYTES)?;
        let covered = &fields[8..];
        if fields.get_u32_le() != BATCH_MAGIC || fields.get_u32_le() != epoch.crc(covered) {
            return None;
        }
        Some(BatchHeader {
            body_len: fields.get_u32_le(),
            records: fields.get_u32_le(),
            sequence: fields.get_u64_le(),
            durable: Position {
                segment: SegmentNumber(fields.get_u64_le()),
                offset: fields.get_u64_le(),
            },
        })
    }

    /// Length in the file, with padding.
    pub(crate) fn batch_bytes(&self) -> u64 {
        (BATCH_HEADER_BYTES as u64 + u64::from(self.body_len)).next_multiple_of(SECTOR_BYTES)
    }
}

/// The state of a group at the start of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) first: u64,
    pub(crate) next: u64,
    pub(crate) vote: Option<Bytes>,
    pub(crate) committed: Option<Bytes>,
    pub(crate) purged: Option<(u64, Bytes)>,
}

/// What a record says about its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    /// An entry, appended (`moved: false`) or moved forward from an older segment.
    Entry {
        index: u64,
        moved: bool,
    },
    Vote(Bytes),
    Committed(Bytes),
    TruncateAfter(Option<u64>),
    Purge {
        upto: u64,
        log_id: Bytes,
    },
    Remove,
    Checkpoint(Checkpoint),
}

const KIND_ENTRY: u8 = 1;
const KIND_MOVED_ENTRY: u8 = 2;
const KIND_VOTE: u8 = 3;
const KIND_COMMITTED: u8 = 4;
const KIND_TRUNCATE: u8 = 5;
const KIND_PURGE: u8 = 6;
const KIND_REMOVE: u8 = 7;
const KIND_CHECKPOINT: u8 = 8;

/// Writes the start of an entry record; the encoded entry follows.
pub(crate) fn put_entry_prefix(buffer: &mut BytesMut, group: GroupId, index: u64, moved: bool) {
    buffer.put_u8(if moved { KIND_MOVED_ENTRY } else { KIND_ENTRY });
    buffer.put_u32_le(group.0);
    buffer.put_u64_le(index);
}

/// Splits the payload of an entry record into group, index and encoded entry.
pub(crate) fn split_entry(payload: &[u8]) -> Option<(GroupId, u64, &[u8])> {
    let mut prefix = payload.get(..ENTRY_PREFIX_BYTES)?;
    let kind = prefix.get_u8();
    let (group, index) = (GroupId(prefix.get_u32_le()), prefix.get_u64_le());
    matches!(kind, KIND_ENTRY | KIND_MOVED_ENTRY).then_some((
        group,
        index,
        &payload[ENTRY_PREFIX_BYTES..],
    ))
}

fn put_optional(buffer: &mut BytesMut, value: Option<&Bytes>) {
    match value {
        Some(bytes) => {
            buffer.put_u32_le(bytes.len() as u32 + 1);
            buffer.put_slice(bytes);
        }
        None => buffer.put_u32_le(0),
    }
}

fn get_optional(data: &mut &[u8]) -> Option<Option<Bytes>> {
    let Some(len) = data.try_get_u32_le().ok()?.checked_sub(1) else {
        return Some(None);
    };
    let (value, rest) = data.split_at_checked(len as usize)?;
    *data = rest;
    Some(Some(Bytes::copy_from_slice(value)))
}

impl Record {
    /// Writes a record other than an entry.
    pub(crate) fn put(&self, buffer: &mut BytesMut, group: GroupId) {
        let kind = match self {
            Record::Entry { index, moved } => {
                return put_entry_prefix(buffer, group, *index, *moved);
            }
            Record::Vote(_) => KIND_VOTE,
            Record::Committed(_) => KIND_COMMITTED,
            Record::TruncateAfter(_) => KIND_TRUNCATE,
            Record::Purge { .. } => KIND_PURGE,
            Record::Remove => KIND_REMOVE,
            Record::Checkpoint(_) => KIND_CHECKPOINT,
        };
        buffer.put_u8(kind);
        buffer.put_u32_le(group.0);
        match self {
            Record::Entry { .. } | Record::Remove => {}
            Record::Vote(value) | Record::Committed(value) => buffer.put_slice(value),
            Record::TruncateAfter(None) => buffer.put_u8(0),
            Record::TruncateAfter(Some(index)) => {
                buffer.put_u8(1);
                buffer.put_u64_le(*index);
            }
            Record::Purge { upto, log_id } => {
                buffer.put_u64_le(*upto);
                buffer.put_slice(log_id);
            }
            Record::Checkpoint(state) => {
                buffer.put_u64_le(state.first);
                buffer.put_u64_le(state.next);
                put_optional(buffer, state.vote.as_ref());
                put_optional(buffer, state.committed.as_ref());
                put_optional(buffer, state.purged.as_ref().map(|(_, log_id)| log_id));
                buffer.put_u64_le(state.purged.as_ref().map_or(0, |(index, _)| *index));
            }
        }
    }

    /// Reads a record's payload (of an entry only the prefix); `None` when it makes no sense.
    pub(crate) fn decode(payload: &[u8]) -> Option<(GroupId, Record)> {
        let mut data = payload;
        let kind = data.try_get_u8().ok()?;
        let group = GroupId(data.try_get_u32_le().ok()?);
        let record = match kind {
            KIND_ENTRY | KIND_MOVED_ENTRY => Record::Entry {
                index: data.try_get_u64_le().ok()?,
                moved: kind == KIND_MOVED_ENTRY,
            },
            KIND_VOTE => Record::Vote(Bytes::copy_from_slice(data)),
            KIND_COMMITTED => Record::Committed(Bytes::copy_from_slice(data)),
            KIND_TRUNCATE => Record::TruncateAfter(match data.try_get_u8().ok()? {
                0 => None,
                _ => Some(data.try_get_u64_le().ok()?),
            }),
            KIND_PURGE => Record::Purge {
                upto: data.try_get_u64_le().ok()?,
                log_id: Bytes::copy_from_slice(data),
            },
            KIND_REMOVE => Record::Remove,
            KIND_CHECKPOINT => {
                let (first, next) = (data.try_get_u64_le().ok()?, data.try_get_u64_le().ok()?);
                let vote = get_optional(&mut data)?;
                let committed = get_optional(&mut data)?;
                let purged_id = get_optional(&mut data)?;
                let purged_index = data.try_get_u64_le().ok()?;
                let purged = purged_id.map(|log_id| (purged_index, log_id));
                Record::Checkpoint(Checkpoint {
                    first,
                    next,
                    vote,
                    committed,
                    purged,
                })
            }
            _ => return None,
        };
        Some((group, record))
    }
}

/// Reads the record at the start of `data` and returns its payload; `None` when it is not intact.
pub(crate) fn decode_record(epoch: Epoch, data: &[u8]) -> Option<&[u8]> {
    let mut header = data.get(..RECORD_HEADER_BYTES)?;
    let (len, crc) = (header.get_u32_le() as usize, header.get_u32_le());
    let payload = data.get(RECORD_HEADER_BYTES..RECORD_HEADER_BYTES.checked_add(len)?)?;
    (epoch.crc(payload) == crc).then_some(payload)
}

/// The records of an intact batch that starts at `data[0]`, as (offset in `data`, payload);
/// `None` when any of them is damaged.
pub(crate) fn decode_batch(
    epoch: Epoch,
    header: &BatchHeader,
    data: &[u8],
) -> Option<Vec<(usize, usize)>> {
    let end = BATCH_HEADER_BYTES.checked_add(header.body_len as usize)?;
    let body = data.get(..end)?;
    let mut records = Vec::new();
    let mut offset = BATCH_HEADER_BYTES;
    while offset < end {
        let payload = decode_record(epoch, &body[offset..])?;
        records.push((offset, payload.len()));
        offset += RECORD_HEADER_BYTES + payload.len();
    }
    (records.len() == header.records as usize).then_some(records)
}

/// A batch being built for one place in one segment. Reused from batch to batch.
pub(crate) struct BatchBuffer {
    buffer: BytesMut,
    epoch: Epoch,
    base: u64,
    records: u32,
}

impl BatchBuffer {
    pub(crate) fn new() -> Self {
        let epoch = Epoch {
            number: SegmentNumber(0),
            salt: 0,
        };
        BatchBuffer {
            buffer: BytesMut::new(),
            epoch,
            base: 0,
            records: 0,
        }
    }

    /// Begins an empty batch that will be written at `base`.
    pub(crate) fn start(&mut self, epoch: Epoch, base: u64) {
        if self.buffer.capacity() > BUFFER_BYTES_KEPT {
            self.buffer = BytesMut::new();
        }
        self.buffer.clear();
        self.buffer.put_bytes(0, BATCH_HEADER_BYTES);
        self.epoch = epoch;
        self.base = base;
        self.records = 0;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Adds a record whose payload `put` appends, and says where it will be.
    pub(crate) fn record(&mut self, put: impl FnOnce(&mut BytesMut)) -> Location {
        let at = self.buffer.len();
        self.buffer.put_bytes(0, RECORD_HEADER_BYTES);
        put(&mut self.buffer);
        let payload = at + RECORD_HEADER_BYTES;
        let len =
            u32::try_from(self.buffer.len() - payload).expect("calls are bounded far below 4 GiB");
        let crc = self.epoch.crc(&self.buffer[payload..]);
        self.buffer[at..at + 4].copy_from_slice(&len.to_le_bytes());
        self.buffer[at + 4..payload].copy_from_slice(&crc.to_le_bytes());
        self.records += 1;
        let offset = u32::try_from(self.base + at as u64)
            .expect("segments and batches are bounded below 4 GiB");
        Location {
            segment: self.epoch.number,
            offset,
            len,
        }
    }

    /// Completes the batch and returns all of its bytes.
    pub(crate) fn finish(&mut self, sequence: u64, durable: Position) -> &[u8] {
        let body_len = self.buffer.len() - BATCH_HEADER_BYTES;
        let mut header = [0; BATCH_HEADER_BYTES];
        let mut fields = &mut header[8..];
        fields.put_u32_le(u32::try_from(body_len).expect("batches are bounded below 4 GiB"));
        fields.put_u32_le(self.records);
        fields.put_u64_le(sequence);
        fields.put_u64_le(durable.segment.0);
        fields.put_u64_le(durable.offset);
        let crc = self.epoch.crc(&header[8..]);
        header[..4].copy_from_slice(&BATCH_MAGIC.to_le_bytes());
        header[4..8].copy_from_slice(&crc.to_le_bytes());
        self.buffer[..BATCH_HEADER_BYTES].copy_from_slice(&header);
        let padded = self.buffer.len().next_multiple_of(SECTOR_BYTES as usize);
        self.buffer.resize(padded, 0);
        &self.buffer
    }
}
