//! From the core's records to the protocol's messages.

use bytes::Bytes;
use carillon_core::ids::MessageId;
use carillon_core::records::{ConversationKind, MemberRecord, MessageRecord, Role};
use carillon_core::reply::ConversationSummary;
use carillon_core::{ConversationId, Seq, UserId};
use carillon_proto::v1;
use prost::Message;
use prost::encoding::{DecodeContext, decode_key, decode_varint, skip_field};

/// Mirror of `v1::Message` that shares the record's memory, for encoding only.
#[derive(Clone, PartialEq, Message)]
struct SharedMessage {
    #[prost(bytes = "bytes", tag = "1")]
    conversation_id: Bytes,
    #[prost(uint64, tag = "2")]
    seq: u64,
    #[prost(uint64, tag = "3")]
    message_id: u64,
    #[prost(bytes = "bytes", tag = "4")]
    sender_id: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    client_message_id: Bytes,
    #[prost(int64, tag = "6")]
    sent_at_ms: i64,
    #[prost(bytes = "bytes", tag = "7")]
    content: Bytes,
}

/// An encoded `v1::Message`, for pushes.
pub fn encode_message(conversation: &ConversationId, seq: Seq, record: &MessageRecord) -> Bytes {
    let message = SharedMessage {
        conversation_id: conversation.to_bytes(),
        seq: seq.0,
        message_id: record.message_id.0,
        sender_id: record.sender.to_bytes(),
        client_message_id: record
            .client_message_id
            .as_ref()
            .map(|id| id.to_bytes())
            .unwrap_or_default(),
        sent_at_ms: record.at.0,
        content: record.content.clone(),
    };
    message.encode_to_vec().into()
}

/// The id of an encoded `v1::Message`; none when it is damaged.
pub fn message_id(mut message: &[u8]) -> Option<MessageId> {
    const TAG: u32 = 3;
    while !message.is_empty() {
        let (tag, wire_type) = decode_key(&mut message).ok()?;
        if tag == TAG {
            return decode_varint(&mut message).ok().map(MessageId);
        }
        skip_field(wire_type, tag, &mut message, DecodeContext::default()).ok()?;
    }
    None
}

/// A message in a page.
pub(super) fn message(
    conversation: &ConversationId,
    seq: Seq,
    record: MessageRecord,
) -> v1::Message {
    let content = v1::Content::decode(record.content).inspect_err(
        |error| tracing::error!(%conversation, %seq, %error, "a stored content does not decode"),
    );
    v1::Message {
        conversation_id: conversation.as_str().to_owned(),
        seq: seq.0,
        message_id: record.message_id.0,
        sender_id: record.sender.as_str().to_owned(),
        client_message_id: record
            .client_message_id
            .map(|id| id.as_str().to_owned())
            .unwrap_or_default(),
        sent_at_ms: record.at.0,
        content: content.ok(),
    }
}

/// A conversation as clients see it.
pub fn conversation(summary: &ConversationSummary) -> v1::Conversation {
    let kind = match summary.kind {
        ConversationKind::Direct => v1::ConversationKind::Direct,
        ConversationKind::Group => v1::ConversationKind::Group,
    };
    v1::Conversation {
        conversation_id: summary.conversation.as_str().to_owned(),
        kind: kind.into(),
        name: summary.name.as_str().to_owned(),
        creator_id: summary
            .creator
            .as_ref()
            .map(|user| user.as_str().to_owned())
            .unwrap_or_default(),
        created_at_ms: summary.created_at.0,
        last_seq: summary.last_seq.0,
        member_count: summary.member_count,
    }
}

pub(super) fn member(user: &UserId, record: &MemberRecord) -> v1::Member {
    let role = match record.role {
        Role::Member => v1::MemberRole::Member,
        Role::Owner => v1::MemberRole::Owner,
    };
    v1::Member {
        user_id: user.as_str().to_owned(),
        role: role.into(),
        joined_seq: record.joined_seq.0,
    }
}
