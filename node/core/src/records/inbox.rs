//! The records of a user: the inbox, the rows of the conversation list, the
//! cursors of the devices.

use bytes::{BufMut, BytesMut};

use super::Record;
use crate::codec::{Corrupt, Reader, put_signed, put_varint};
use crate::ids::{ConversationId, InboxSeq, Seq, TimestampMs};

/// One entry of a user's inbox: a reference to a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboxRecord {
    /// Which conversation.
    pub conversation: ConversationId,
    /// Which entry of it.
    pub seq: Seq,
    /// True when the user sent it themselves.
    pub sender_is_self: bool,
    /// True when it counts as unread (for others than its sender).
    pub countable: bool,
    /// The entry before this one of the same conversation in this inbox; 0: none.
    pub previous: InboxSeq,
    /// Entries of the same conversation in this inbox, up to and with this one, that are
    /// countable and that others sent.
    pub counted: u64,
    /// Per level of [`SKIP_STRIDES`]: the earlier entry of the same conversation that is
    /// on that level, when this one is; else 0.
    pub skips: Skips,
}

/// Every so many entries of one conversation in one inbox are linked with each other, so
/// that a position among many unread ones is found in a few steps.
pub const SKIP_STRIDES: [u64; 2] = [64, 4096];

/// The link on each level of [`SKIP_STRIDES`]; 0: none.
pub type Skips = [InboxSeq; SKIP_STRIDES.len()];

const SENDER_IS_SELF: u8 = 1;
const COUNTABLE: u8 = 2;
const HAS_SKIPS: u8 = 4;

fn write_skips(out: &mut BytesMut, skips: &Skips) {
    for skip in skips {
        put_varint(out, skip.0);
    }
}

fn read_skips(reader: &mut Reader<'_>) -> Result<Skips, Corrupt> {
    let mut skips = Skips::default();
    for skip in &mut skips {
        *skip = InboxSeq(reader.varint()?);
    }
    Ok(skips)
}

impl Record for InboxRecord {
    const NAME: &'static str = "inbox entry";

    fn write(&self, out: &mut BytesMut) {
        let sender_is_self = if self.sender_is_self {
            SENDER_IS_SELF
        } else {
            0
        };
        let countable = if self.countable { COUNTABLE } else { 0 };
        let has_skips = if self.skips == Skips::default() {
            0
        } else {
            HAS_SKIPS
        };
        out.put_u8(sender_is_self | countable | has_skips);
        put_varint(out, self.seq.0);
        put_varint(out, self.previous.0);
        put_varint(out, self.counted);
        if has_skips != 0 {
            write_skips(out, &self.skips);
        }
        self.conversation.write(out);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        let flags = reader.u8()?;
        if flags & !(SENDER_IS_SELF | COUNTABLE | HAS_SKIPS) != 0 {
            return Err(reader.corrupt("a flag is unknown"));
        }
        Ok(InboxRecord {
            seq: Seq(reader.varint()?),
            previous: InboxSeq(reader.varint()?),
            counted: reader.varint()?,
            skips: if flags & HAS_SKIPS != 0 {
                read_skips(reader)?
            } else {
                Skips::default()
            },
            conversation: ConversationId::read(reader)?,
            sender_is_self: flags & SENDER_IS_SELF != 0,
            countable: flags & COUNTABLE != 0,
        })
    }
}

/// A user's row of a conversation: what its list shows.
///
/// `unread` = the entries in this inbox of this conversation with `seq > read_seq` that
/// are countable and that others sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// The last entry of the conversation that was delivered to this user.
    pub last_delivered: Seq,
    /// Where it is in the inbox.
    pub last_inbox_seq: InboxSeq,
    /// How many messages of others are unread, exactly.
    pub unread: u32,
    /// Everything up to here is read.
    pub read_seq: Seq,
    /// When the last delivered entry was accepted.
    pub last_at: TimestampMs,
    /// True since the user was given the notice of their leaving.
    pub left: bool,
    /// Entries of this conversation in this inbox.
    pub delivered: u64,
    /// Those of them that are countable and that others sent.
    pub counted: u64,
    /// Per level of [`SKIP_STRIDES`]: the last entry that is on it; 0: none yet.
    pub skips: Skips,
}

impl Record for Row {
    const NAME: &'static str = "conversation row";

    fn write(&self, out: &mut BytesMut) {
        out.put_u8(u8::from(self.left));
        put_varint(out, self.last_delivered.0);
        put_varint(out, self.last_inbox_seq.0);
        put_varint(out, u64::from(self.unread));
        put_varint(out, self.read_seq.0);
        put_signed(out, self.last_at.0);
        put_varint(out, self.delivered);
        put_varint(out, self.counted);
        write_skips(out, &self.skips);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(Row {
            left: reader.flag()?,
            last_delivered: Seq(reader.varint()?),
            last_inbox_seq: InboxSeq(reader.varint()?),
            unread: reader.varint32()?,
            read_seq: Seq(reader.varint()?),
            last_at: TimestampMs(reader.signed()?),
            delivered: reader.varint()?,
            counted: reader.varint()?,
            skips: read_skips(reader)?,
        })
    }
}

/// How far a device has its user's inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CursorRecord {
    /// The last entry that it has.
    pub inbox_seq: InboxSeq,
}

impl Record for CursorRecord {
    const NAME: &'static str = "cursor";

    fn write(&self, out: &mut BytesMut) {
        put_varint(out, self.inbox_seq.0);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(CursorRecord {
            inbox_seq: InboxSeq(reader.varint()?),
        })
    }
}
