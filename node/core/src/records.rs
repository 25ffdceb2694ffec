//! Every value of the state, with its binary form: a version byte, then varints and
//! length-prefixed strings. The keys are in [`crate::keys`].
//!
//! The forms are on disk: a change of one takes a new version, and the old one stays
//! readable.

mod conversation;
mod inbox;

use bytes::{BufMut, Bytes, BytesMut};

pub use self::conversation::{
    ConversationHead, ConversationInfo, ConversationKind, DedupRecord, MemberRecord, MessageRecord,
    OutboxRecord, Role, Stay,
};
pub use self::inbox::{CursorRecord, InboxRecord, Row, SKIP_STRIDES, Skips};
use crate::codec::{Corrupt, Reader, put_signed, put_varint};
use crate::ids::{MESSAGE_ID_EPOCH_MS, MessageId, ShardId, TimestampMs};

/// The version that is written, and the only one so far.
const VERSION: u8 = 1;

/// A value of the state.
pub trait Record: Sized {
    /// What it is called in errors.
    const NAME: &'static str;

    /// Writes the fields.
    fn write(&self, out: &mut BytesMut);

    /// Reads the fields.
    ///
    /// # Errors
    /// [`Corrupt`] when they are not what `write` wrote.
    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt>;

    /// Appends the version and the fields to `out`.
    #[inline]
    fn encode(&self, out: &mut BytesMut) {
        out.put_u8(VERSION);
        self.write(out);
    }

    /// The version and the fields in a buffer of their own.
    fn encoded(&self) -> Bytes {
        let mut out = BytesMut::new();
        self.encode(&mut out);
        out.freeze()
    }

    /// Decodes all of `bytes`; strings share its memory.
    ///
    /// # Errors
    /// [`Corrupt`] when it is not such a record.
    #[inline]
    fn decode(bytes: &Bytes) -> Result<Self, Corrupt> {
        decode_with(Reader::shared(Self::NAME, bytes))
    }

    /// Decodes all of `bytes`; strings are copied.
    ///
    /// # Errors
    /// [`Corrupt`] when it is not such a record.
    fn decode_slice(bytes: &[u8]) -> Result<Self, Corrupt> {
        decode_with(Reader::borrowed(Self::NAME, bytes))
    }
}

#[inline]
fn decode_with<R: Record>(mut reader: Reader<'_>) -> Result<R, Corrupt> {
    check_version(&mut reader)?;
    let record = R::read(&mut reader)?;
    reader.finish()?;
    Ok(record)
}

#[inline]
fn check_version(reader: &mut Reader<'_>) -> Result<(), Corrupt> {
    if reader.u8()? == VERSION {
        Ok(())
    } else {
        Err(reader.corrupt("its version is unknown"))
    }
}

pub(crate) fn write_option<T>(
    out: &mut BytesMut,
    value: Option<&T>,
    write: impl FnOnce(&T, &mut BytesMut),
) {
    out.put_u8(u8::from(value.is_some()));
    if let Some(value) = value {
        write(value, out);
    }
}

pub(crate) fn read_option<T>(
    reader: &mut Reader<'_>,
    read: impl FnOnce(&mut Reader<'_>) -> Result<T, Corrupt>,
) -> Result<Option<T>, Corrupt> {
    Ok(if reader.flag()? {
        Some(read(reader)?)
    } else {
        None
    })
}

/// The generator of a shard's message ids. Replicated state: the shell keeps it beside
/// the shard's `last_applied` and hands it to `apply`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardClock {
    /// The time of the last message; no later one has an earlier time.
    pub last_ms: TimestampMs,
    /// Messages of that millisecond so far, less one.
    pub counter: u16,
}

impl ShardClock {
    /// The time and the id of the next message, for a leader's clock that shows `at`.
    ///
    /// Times never go back, and none is before 2025, where ids begin. A millisecond has 1,024 ids; the next one borrows from the
    /// millisecond after it.
    pub fn stamp(&mut self, shard: ShardId, at: TimestampMs) -> (TimestampMs, MessageId) {
        let at = at.max(TimestampMs(MESSAGE_ID_EPOCH_MS));
        if at > self.last_ms {
            self.last_ms = at;
            self.counter = 0;
        } else if self.counter < MessageId::COUNTER_MAX {
            self.counter += 1;
        } else {
            self.last_ms = TimestampMs(self.last_ms.0 + 1);
            self.counter = 0;
        }
        let id = MessageId::new(self.last_ms, shard, self.counter);
        (self.last_ms, id)
    }

    /// The clock of a shard with this one that takes over what another one has stamped: the
    /// next time is not before either's last, and the next id is after all of both.
    #[must_use]
    pub fn after(self, other: ShardClock) -> ShardClock {
        if self.last_ms > other.last_ms {
            return self;
        }
        // In the other's last millisecond an id of this shard may be before one of the other.
        ShardClock {
            last_ms: other.last_ms,
            counter: MessageId::COUNTER_MAX,
        }
    }
}

impl Record for ShardClock {
    const NAME: &'static str = "shard clock";

    fn write(&self, out: &mut BytesMut) {
        put_signed(out, self.last_ms.0);
        put_varint(out, u64::from(self.counter));
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        let last_ms = TimestampMs(reader.signed()?);
        let counter = reader.varint()?;
        match u16::try_from(counter) {
            Ok(counter) if counter <= MessageId::COUNTER_MAX => Ok(ShardClock { last_ms, counter }),
            _ => Err(reader.corrupt("the counter is too large")),
        }
    }
}
