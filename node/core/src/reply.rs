//! The answers to commands, with a binary form, because a caller may be on another node.

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;

use crate::codec::{Corrupt, Reader, put_bytes, put_signed, put_varint};
use crate::command::{read_users, write_users};
use crate::ids::{ConversationId, ConversationName, MessageId, Seq, TimestampMs, UserId};
use crate::map::MetaReply;
use crate::records::{
    ConversationHead, ConversationInfo, ConversationKind, read_option, write_option,
};

/// The version that is written, and the only one so far.
const VERSION: u8 = 1;

/// What a conversation is and how far it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConversationSummary {
    /// Its id.
    pub conversation: ConversationId,
    /// Direct or group.
    pub kind: ConversationKind,
    /// For people; empty when direct.
    pub name: ConversationName,
    /// Who created it; none when direct.
    pub creator: Option<UserId>,
    /// When.
    pub created_at: TimestampMs,
    /// The last entry.
    pub last_seq: Seq,
    /// Members now.
    pub member_count: u32,
}

impl ConversationSummary {
    pub(crate) fn new(
        conversation: &ConversationId,
        info: ConversationInfo,
        head: &ConversationHead,
    ) -> Self {
        ConversationSummary {
            conversation: conversation.clone(),
            kind: info.kind,
            name: info.name,
            creator: info.creator,
            created_at: info.created_at,
            last_seq: head.last_seq,
            member_count: head.member_count,
        }
    }

    fn write(&self, out: &mut BytesMut) {
        self.conversation.write(out);
        out.put_u8(self.kind as u8);
        self.name.write(out);
        write_option(out, self.creator.as_ref(), UserId::write);
        put_signed(out, self.created_at.0);
        put_varint(out, self.last_seq.0);
        put_varint(out, u64::from(self.member_count));
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(ConversationSummary {
            conversation: ConversationId::read(reader)?,
            kind: ConversationKind::read(reader)?,
            name: ConversationName::read(reader)?,
            creator: read_option(reader, UserId::read)?,
            created_at: TimestampMs(reader.signed()?),
            last_seq: Seq(reader.varint()?),
            member_count: reader.varint32()?,
        })
    }
}

/// The answer to one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The message is stored.
    Sent {
        /// Its place.
        seq: Seq,
        /// Its global id.
        message_id: MessageId,
        /// When it was accepted.
        at: TimestampMs,
        /// True when an earlier try had stored it.
        duplicate: bool,
    },
    /// The group exists.
    Created {
        /// The group.
        summary: ConversationSummary,
        /// True when an earlier try had created it.
        existed: bool,
    },
    /// The group's members are as asked for.
    Members {
        /// Who was really added or removed, in byte order.
        changed: Vec<UserId>,
        /// The group.
        summary: ConversationSummary,
    },
    /// The read position.
    Read {
        /// Where it is now.
        read_seq: Seq,
        /// Unread messages left.
        unread: u32,
    },
    /// Applied; there is nothing to tell.
    Done,
    /// The entry is in the inboxes (or was).
    Delivered,
    /// Nothing was changed.
    Refused(Refusal),
    /// What the meta group answers to its own commands.
    Meta(MetaReply),
    /// Another shard has what it is about since a split; nothing was changed. Whoever leads
    /// asks there, so no client gets this.
    Moved,
    /// The shard is frozen, because its neighbour is about to take it over; nothing was changed.
    /// It is asked again when it is thawed, or its neighbour is, so no client gets this.
    Frozen,
}

/// Why a command changed nothing. The texts are for people, [`Refusal::reason`] is for
/// programs.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// No such conversation, or none that the user has in their list.
    #[error("the conversation does not exist; check its id")]
    ConversationNotFound,
    /// The caller is not in it.
    #[error("the caller is not a member of the conversation; a member must add them first")]
    NotAMember,
    /// The id is taken.
    #[error("a conversation with this id exists already; choose another id")]
    ConversationExists,
    /// Only the owner removes others.
    #[error("only the owner removes other members; members can only remove themselves")]
    NotOwner,
    /// The group would be too large.
    #[error("the group would have {actual} members; at most {max} are allowed")]
    MembersLimit {
        /// The limit.
        max: u32,
        /// What it would have been.
        actual: u32,
    },
    /// A direct conversation has two members for ever.
    #[error("the members of a direct conversation cannot change; create a group instead")]
    DirectFixed,
    /// The position is beyond what was delivered.
    #[error("the position is beyond the end, {end}; give one that exists")]
    SeqBeyondEnd {
        /// The last entry that the user's shard knows of.
        end: Seq,
    },
    /// A user left and joined so often that deliveries must catch up first.
    #[error("a user left and was added too often while deliveries wait; try again in a moment")]
    NotDeliveredYet,
}

impl Refusal {
    /// The stable name of the reason, as in the protocol.
    pub fn reason(&self) -> &'static str {
        match self {
            Refusal::ConversationNotFound => "CONVERSATION_NOT_FOUND",
            Refusal::NotAMember => "NOT_A_MEMBER",
            Refusal::ConversationExists => "CONVERSATION_EXISTS",
            Refusal::NotOwner => "NOT_OWNER",
            Refusal::MembersLimit { .. } => "LIMIT_EXCEEDED",
            Refusal::DirectFixed => "DIRECT_FIXED",
            Refusal::SeqBeyondEnd { .. } => "SEQ_BEYOND_END",
            Refusal::NotDeliveredYet => "NOT_DELIVERED_YET",
        }
    }

    fn write(&self, out: &mut BytesMut) {
        match self {
            Refusal::ConversationNotFound => out.put_u8(1),
            Refusal::NotAMember => out.put_u8(2),
            Refusal::ConversationExists => out.put_u8(3),
            Refusal::NotOwner => out.put_u8(4),
            Refusal::MembersLimit { max, actual } => {
                out.put_u8(5);
                put_varint(out, u64::from(*max));
                put_varint(out, u64::from(*actual));
            }
            Refusal::DirectFixed => out.put_u8(6),
            Refusal::SeqBeyondEnd { end } => {
                out.put_u8(7);
                put_varint(out, end.0);
            }
            Refusal::NotDeliveredYet => out.put_u8(8),
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(match reader.u8()? {
            1 => Refusal::ConversationNotFound,
            2 => Refusal::NotAMember,
            3 => Refusal::ConversationExists,
            4 => Refusal::NotOwner,
            5 => Refusal::MembersLimit {
                max: reader.varint32()?,
                actual: reader.varint32()?,
            },
            6 => Refusal::DirectFixed,
            7 => Refusal::SeqBeyondEnd {
                end: Seq(reader.varint()?),
            },
            8 => Refusal::NotDeliveredYet,
            _ => return Err(reader.corrupt("the refusal is unknown")),
        })
    }
}

impl Reply {
    /// Appends the reply to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u8(VERSION);
        match self {
            Reply::Sent {
                seq,
                message_id,
                at,
                duplicate,
            } => {
                out.put_u8(1);
                put_varint(out, seq.0);
                put_varint(out, message_id.0);
                put_signed(out, at.0);
                out.put_u8(u8::from(*duplicate));
            }
            Reply::Created { summary, existed } => {
                out.put_u8(2);
                summary.write(out);
                out.put_u8(u8::from(*existed));
            }
            Reply::Members { changed, summary } => {
                out.put_u8(3);
                write_users(out, changed.iter());
                summary.write(out);
            }
            Reply::Read { read_seq, unread } => {
                out.put_u8(4);
                put_varint(out, read_seq.0);
                put_varint(out, u64::from(*unread));
            }
            Reply::Done => out.put_u8(5),
            Reply::Delivered => out.put_u8(6),
            Reply::Refused(refusal) => {
                out.put_u8(7);
                refusal.write(out);
            }
            Reply::Meta(reply) => {
                out.put_u8(8);
                put_bytes(out, &reply.encode());
            }
            Reply::Moved => out.put_u8(9),
            Reply::Frozen => out.put_u8(10),
        }
    }

    /// The reply in a buffer of its own.
    pub fn encoded(&self) -> Bytes {
        let mut out = BytesMut::new();
        self.encode(&mut out);
        out.freeze()
    }

    /// Decodes all of `bytes`; strings share its memory.
    ///
    /// # Errors
    /// [`Corrupt`] when it is no reply.
    pub fn decode(bytes: &Bytes) -> Result<Reply, Corrupt> {
        let mut reader = Reader::shared("reply", bytes);
        let reader = &mut reader;
        if reader.u8()? != VERSION {
            return Err(reader.corrupt("its version is unknown"));
        }
        let reply = match reader.u8()? {
            1 => Reply::Sent {
                seq: Seq(reader.varint()?),
                message_id: MessageId(reader.varint()?),
                at: TimestampMs(reader.signed()?),
                duplicate: reader.flag()?,
            },
            2 => Reply::Created {
                summary: ConversationSummary::read(reader)?,
                existed: reader.flag()?,
            },
            3 => Reply::Members {
                changed: read_users(reader)?,
                summary: ConversationSummary::read(reader)?,
            },
            4 => Reply::Read {
                read_seq: Seq(reader.varint()?),
                unread: reader.varint32()?,
            },
            5 => Reply::Done,
            6 => Reply::Delivered,
            7 => Reply::Refused(Refusal::read(reader)?),
            8 => Reply::Meta(MetaReply::decode(&reader.bytes()?)?),
            9 => Reply::Moved,
            10 => Reply::Frozen,
            _ => return Err(reader.corrupt("the reply is unknown")),
        };
        reader.finish()?;
        Ok(reply)
    }
}
