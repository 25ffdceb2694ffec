//! The records of a conversation: what it is, where it ends, its members, its entries,
//! what its sends were answered with, its outbox marker.

use bytes::{BufMut, Bytes, BytesMut};

use super::{Record, check_version, read_option, write_option};
use crate::codec::{Corrupt, Reader, put_bytes, put_signed, put_varint};
use crate::ids::{
    ClientMessageId, ConversationName, MessageId, RequestId, Seq, TimestampMs, UserId,
};

/// What kind of conversation it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConversationKind {
    /// Two users; exists as soon as one writes to the other.
    Direct = 1,
    /// Up to [`crate::apply::MEMBERS_MAX`] members.
    Group = 2,
}

impl ConversationKind {
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        match reader.u8()? {
            1 => Ok(ConversationKind::Direct),
            2 => Ok(ConversationKind::Group),
            _ => Err(reader.corrupt("the kind of conversation is unknown")),
        }
    }
}

/// What a conversation is; written once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConversationInfo {
    /// Direct or group.
    pub kind: ConversationKind,
    /// For people; empty when direct.
    pub name: ConversationName,
    /// Who created it; none when direct.
    pub creator: Option<UserId>,
    /// When.
    pub created_at: TimestampMs,
    /// The request that created it, to recognise a retry; none when direct.
    pub request_id: Option<RequestId>,
}

impl Record for ConversationInfo {
    const NAME: &'static str = "conversation info";

    fn write(&self, out: &mut BytesMut) {
        out.put_u8(self.kind as u8);
        self.name.write(out);
        write_option(out, self.creator.as_ref(), UserId::write);
        put_signed(out, self.created_at.0);
        write_option(out, self.request_id.as_ref(), RequestId::write);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(ConversationInfo {
            kind: ConversationKind::read(reader)?,
            name: ConversationName::read(reader)?,
            creator: read_option(reader, UserId::read)?,
            created_at: TimestampMs(reader.signed()?),
            request_id: read_option(reader, RequestId::read)?,
        })
    }
}

/// Where a conversation's timeline ends. `dedup_pruned_seq < last_seq`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConversationHead {
    /// The last entry.
    pub last_seq: Seq,
    /// When it was accepted.
    pub last_at: TimestampMs,
    /// Its global id.
    pub last_message_id: MessageId,
    /// Members now.
    pub member_count: u32,
    /// Dedup records of the entries up to here are gone.
    pub dedup_pruned_seq: Seq,
}

impl Record for ConversationHead {
    const NAME: &'static str = "conversation head";

    fn write(&self, out: &mut BytesMut) {
        put_varint(out, self.last_seq.0);
        put_signed(out, self.last_at.0);
        put_varint(out, self.last_message_id.0);
        put_varint(out, u64::from(self.member_count));
        put_varint(out, self.dedup_pruned_seq.0);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(ConversationHead {
            last_seq: Seq(reader.varint()?),
            last_at: TimestampMs(reader.signed()?),
            last_message_id: MessageId(reader.varint()?),
            member_count: reader.varint32()?,
            dedup_pruned_seq: Seq(reader.varint()?),
        })
    }
}

/// What a member may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Reads, writes, adds members, leaves.
    Member = 1,
    /// Also removes members.
    Owner = 2,
}

/// An earlier membership of a user: entries `joined ..= left` are theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stay {
    /// The notice that added them.
    pub joined: Seq,
    /// The notice that removed them.
    pub left: Seq,
}

/// A user's membership of a conversation, now or until a while ago.
///
/// A user who leaves and is added again before the notice of the leaving was delivered
/// still has to get the entries of the earlier stay: it moves to `earlier` until the
/// outbox has passed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRecord {
    /// What they may do.
    pub role: Role,
    /// The notice that added them (1 in a direct conversation): they see from here on.
    pub joined_seq: Seq,
    /// The notice that removed them, the last entry that is theirs.
    pub left_seq: Option<Seq>,
    /// Stays before this one that may not be delivered yet, the oldest first.
    pub earlier: Vec<Stay>,
}

impl MemberRecord {
    /// A new member from `joined_seq` on.
    pub fn joined(role: Role, joined_seq: Seq) -> MemberRecord {
        MemberRecord {
            role,
            joined_seq,
            left_seq: None,
            earlier: Vec::new(),
        }
    }

    /// True while they are a member.
    #[inline]
    pub fn is_current(&self) -> bool {
        self.left_seq.is_none()
    }

    /// True when the entry `seq` is to be delivered to them.
    pub fn receives(&self, seq: Seq) -> bool {
        let now = self.joined_seq <= seq && self.left_seq.is_none_or(|left| seq <= left);
        let before = |stay: &Stay| stay.joined <= seq && seq <= stay.left;
        now || self.earlier.iter().any(before)
    }

    /// True when the entry `seq` is the notice that removed them.
    pub fn leaves_at(&self, seq: Seq) -> bool {
        self.left_seq == Some(seq) || self.earlier.iter().any(|stay| stay.left == seq)
    }
}

impl Record for MemberRecord {
    const NAME: &'static str = "member";

    fn write(&self, out: &mut BytesMut) {
        out.put_u8(self.role as u8);
        put_varint(out, self.joined_seq.0);
        write_option(out, self.left_seq.as_ref(), |seq, out| {
            put_varint(out, seq.0);
        });
        put_varint(out, self.earlier.len() as u64);
        for stay in &self.earlier {
            put_varint(out, stay.joined.0);
            put_varint(out, stay.left.0);
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        let role = match reader.u8()? {
            1 => Role::Member,
            2 => Role::Owner,
            _ => return Err(reader.corrupt("the role is unknown")),
        };
        let joined_seq = Seq(reader.varint()?);
        let left_seq = read_option(reader, |reader| reader.varint().map(Seq))?;
        let count = reader.count()?;
        let mut earlier = Vec::with_capacity(count);
        for _ in 0..count {
            earlier.push(Stay {
                joined: Seq(reader.varint()?),
                left: Seq(reader.varint()?),
            });
        }
        Ok(MemberRecord {
            role,
            joined_seq,
            left_seq,
            earlier,
        })
    }
}

/// One entry of a conversation's timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageRecord {
    /// The global id.
    pub message_id: MessageId,
    /// Who sent it; of a notice: who made the change.
    pub sender: UserId,
    /// The sender's own id of it; none of a notice.
    pub client_message_id: Option<ClientMessageId>,
    /// When the leader accepted it.
    pub at: TimestampMs,
    /// True when it counts as unread; false of a notice.
    pub countable: bool,
    /// The encoded protobuf `Content`; opaque here.
    pub content: Bytes,
}

impl Record for MessageRecord {
    const NAME: &'static str = "message";

    fn write(&self, out: &mut BytesMut) {
        out.put_u8(u8::from(self.countable));
        put_varint(out, self.message_id.0);
        self.sender.write(out);
        match &self.client_message_id {
            Some(id) => id.write(out),
            None => put_bytes(out, b""),
        }
        put_signed(out, self.at.0);
        put_bytes(out, &self.content);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        let mut record = MessageRecord::read_origin(reader)?;
        record.content = reader.bytes()?;
        Ok(record)
    }
}

impl MessageRecord {
    /// Decodes everything but the content, which is left empty.
    ///
    /// # Errors
    /// [`Corrupt`] when it is no message.
    pub(crate) fn decode_origin(bytes: &[u8]) -> Result<Self, Corrupt> {
        let mut reader = Reader::borrowed(Self::NAME, bytes);
        check_version(&mut reader)?;
        MessageRecord::read_origin(&mut reader)
    }

    fn read_origin(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        let countable = reader.flag()?;
        let message_id = MessageId(reader.varint()?);
        let sender = UserId::read(reader)?;
        let client_message_id = reader.bytes()?;
        let client_message_id = if client_message_id.is_empty() {
            None
        } else {
            let id = ClientMessageId::from_stored(client_message_id);
            Some(id.ok_or_else(|| reader.corrupt("the client message id cannot be one"))?)
        };
        Ok(MessageRecord {
            message_id,
            sender,
            client_message_id,
            at: TimestampMs(reader.signed()?),
            countable,
            content: Bytes::new(),
        })
    }
}

/// What a send was answered with, for its retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DedupRecord {
    /// The message's place.
    pub seq: Seq,
    /// Its global id.
    pub message_id: MessageId,
    /// When it was accepted.
    pub at: TimestampMs,
}

impl Record for DedupRecord {
    const NAME: &'static str = "dedup record";

    fn write(&self, out: &mut BytesMut) {
        put_varint(out, self.seq.0);
        put_varint(out, self.message_id.0);
        put_signed(out, self.at.0);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(DedupRecord {
            seq: Seq(reader.varint()?),
            message_id: MessageId(reader.varint()?),
            at: TimestampMs(reader.signed()?),
        })
    }
}

/// Says that entries after `delivered_upto` wait for delivery. There is one exactly while
/// `delivered_upto < last_seq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxRecord {
    /// Everything up to here is in the inboxes.
    pub delivered_upto: Seq,
}

impl Record for OutboxRecord {
    const NAME: &'static str = "outbox marker";

    fn write(&self, out: &mut BytesMut) {
        put_varint(out, self.delivered_upto.0);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(OutboxRecord {
            delivered_upto: Seq(reader.varint()?),
        })
    }
}
