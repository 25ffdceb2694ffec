//! Answers queries: `execute(reader, query) -> Answer`, without I/O of its own. Whether the
//! state is fresh enough is the caller's business. Commands may be applied between two reads
//! of a query; its answer is right for the state before, or one after some of them.
//!
//! A refusal is answered as `Answer.refused`: an encoded core [`Reply::Refused`]. A query
//! that no gateway makes (an id that is none, a kind of a newer version) is answered with
//! nothing, which the asking node reports as an internal error.

mod wire;

use std::collections::HashSet;

use bytes::Bytes;
use carillon_core::read::{self, Membership, RowCursor};
use carillon_core::records::MemberRecord;
use carillon_core::view::ReadView;
use carillon_core::{
    ConversationId, DeviceId, InboxSeq, Refusal, Reply, Seq, Slot, SlotRange, TimestampMs, UserId,
};
use carillon_proto::internal::{self, Answer, Query, answer, query};
use carillon_proto::v1;

pub use self::wire::{conversation, encode_message, message_id};

/// Why a query has no answer of its kind.
enum Unanswered {
    /// For the caller.
    Refused(Refusal),
    /// Not a query that a gateway makes.
    Malformed,
}

impl From<Refusal> for Unanswered {
    fn from(refusal: Refusal) -> Self {
        Unanswered::Refused(refusal)
    }
}

impl From<carillon_core::InvalidId> for Unanswered {
    fn from(_: carillon_core::InvalidId) -> Self {
        Unanswered::Malformed
    }
}

/// Answers a query. Of a subscription only the inbox heads are answered: whoever leads
/// the shard remembers the node, before this is called.
///
/// # Panics
/// When a record of the state is damaged.
pub fn execute(reader: &impl ReadView, query: &Query) -> Answer {
    let kind = match answer_to(reader, query) {
        Ok(kind) => Some(kind),
        Err(Unanswered::Refused(refusal)) => {
            Some(answer::Kind::Refused(Reply::Refused(refusal).encoded()))
        }
        Err(Unanswered::Malformed) => None,
    };
    Answer { kind }
}

fn answer_to(reader: &impl ReadView, query: &Query) -> Result<answer::Kind, Unanswered> {
    Ok(match query.kind.as_ref().ok_or(Unanswered::Malformed)? {
        query::Kind::Messages(query) => answer::Kind::Messages(messages(reader, query)?),
        query::Kind::MessagesByRef(query) => {
            answer::Kind::MessagesByRef(messages_by_ref(reader, query)?)
        }
        query::Kind::Inbox(query) => answer::Kind::Inbox(inbox(reader, query)?),
        query::Kind::ConversationList(query) => {
            answer::Kind::ConversationList(conversation_list(reader, query)?)
        }
        query::Kind::Conversation(query) => {
            answer::Kind::Conversation(one_conversation(reader, query)?)
        }
        query::Kind::Members(query) => answer::Kind::Members(members(reader, query)?),
        query::Kind::Cursor(query) => answer::Kind::Cursor(cursor(reader, query)?),
        query::Kind::Subscribe(query) => answer::Kind::Subscribe(inbox_heads(reader, query)?),
    })
}

/// Whether a query is about users or conversations of several slots.
pub fn is_about_several(query: &Query) -> bool {
    matches!(
        query.kind,
        Some(query::Kind::Subscribe(_) | query::Kind::MessagesByRef(_))
    )
}

/// Whether a shard with these slots has all that a query is about.
pub fn is_within(query: &Query, slots: SlotRange) -> bool {
    let has = |id: &str| slots.contains(Slot::of(id.as_bytes()));
    match &query.kind {
        Some(query::Kind::Messages(query)) => {
            let request = query.request.as_ref();
            request.is_none_or(|request| has(&request.conversation_id))
        }
        Some(query::Kind::MessagesByRef(query)) => {
            let mut refs = query.refs.iter();
            refs.all(|reference| has(&reference.conversation_id))
        }
        Some(query::Kind::Inbox(query)) => has(&query.user_id),
        Some(query::Kind::ConversationList(query)) => has(&query.user_id),
        Some(query::Kind::Conversation(query)) => has(&query.conversation_id),
        Some(query::Kind::Members(query)) => has(&query.conversation_id),
        Some(query::Kind::Cursor(query)) => has(&query.user_id),
        Some(query::Kind::Subscribe(query)) => {
            let mut users = query.user_ids.iter();
            users.all(|user| has(user))
        }
        None => true,
    }
}

/// The caller's membership, or why they may not see the conversation.
fn member(
    reader: &impl ReadView,
    conversation: &ConversationId,
    user: &str,
) -> Result<MemberRecord, Unanswered> {
    match read::membership(reader, conversation, &UserId::copied(user)?) {
        Membership::Member(member) => Ok(member),
        Membership::NotAMember => Err(Refusal::NotAMember.into()),
        Membership::NoConversation => Err(Refusal::ConversationNotFound.into()),
    }
}

fn messages(
    reader: &impl ReadView,
    query: &internal::MessagesQuery,
) -> Result<v1::GetMessagesResponse, Unanswered> {
    let request = query.request.as_ref().ok_or(Unanswered::Malformed)?;
    let conversation = ConversationId::copied(&request.conversation_id)?;
    let member = member(reader, &conversation, &query.user_id)?;
    let direction = match request.direction() {
        v1::Direction::Backward => read::Direction::Backward,
        v1::Direction::Forward | v1::Direction::Unspecified => read::Direction::Forward,
    };
    let range = read::MessagesQuery {
        from: Seq(request.from_seq),
        to: Seq(request.to_seq),
        direction,
        limit: request.limit as usize,
        bytes_max: request.bytes_max as usize,
        visible_from: member.joined_seq,
    };
    let page = read::messages_page(reader, &conversation, &range);
    let messages = page.messages.into_iter();
    Ok(v1::GetMessagesResponse {
        messages: messages
            .map(|(seq, record)| wire::message(&conversation, seq, record))
            .collect(),
        last_seq: page.last_seq.0,
        next_seq: page.next_seq.0,
    })
}

fn messages_by_ref(
    reader: &impl ReadView,
    query: &internal::MessagesByRefQuery,
) -> Result<internal::MessagesByRefAnswer, Unanswered> {
    let mut answer = internal::MessagesByRefAnswer::default();
    let mut seen = HashSet::new();
    for reference in &query.refs {
        let id = ConversationId::copied(&reference.conversation_id)?;
        let seq = Seq(reference.seq);
        let record = if seq == Seq(0) {
            None
        } else {
            read::message(reader, &id, seq)
        };
        answer.messages.push(
            record
                .map(|record| wire::message(&id, seq, record))
                .unwrap_or_default(),
        );
        if seen.insert(reference.conversation_id.as_str())
            && let Some(summary) = read::conversation(reader, &id)
        {
            answer.conversations.push(conversation(&summary));
        }
    }
    Ok(answer)
}

fn inbox(
    reader: &impl ReadView,
    query: &internal::InboxQuery,
) -> Result<internal::InboxAnswer, Unanswered> {
    let user = UserId::copied(&query.user_id)?;
    let page = read::inbox_page(
        reader,
        &user,
        InboxSeq(query.after_inbox_seq),
        query.limit as usize,
    );
    let entries = page
        .entries
        .into_iter()
        .map(|(inbox_seq, record)| internal::InboxRef {
            inbox_seq: inbox_seq.0,
            message: Some(internal::MessageRef {
                conversation_id: record.conversation.as_str().to_owned(),
                seq: record.seq.0,
            }),
        });
    Ok(internal::InboxAnswer {
        entries: entries.collect(),
        inbox_head: page.head.0,
    })
}

fn conversation_list(
    reader: &impl ReadView,
    query: &internal::ConversationListQuery,
) -> Result<internal::ConversationListAnswer, Unanswered> {
    let user = UserId::copied(&query.user_id)?;
    let after = match query.after_last_at_ms {
        Some(last_at_ms) => Some(RowCursor {
            last_at: TimestampMs(last_at_ms),
            conversation: ConversationId::copied(&query.after_conversation_id)?,
        }),
        None => None,
    };
    let page = read::rows_page(reader, &user, after.as_ref(), query.page_size as usize);
    let rows = page
        .rows
        .into_iter()
        .map(|(conversation, row)| internal::ConversationRow {
            conversation_id: conversation.as_str().to_owned(),
            last_delivered_seq: row.last_delivered.0,
            unread: row.unread,
            read_seq: row.read_seq.0,
            last_at_ms: row.last_at.0,
        });
    Ok(internal::ConversationListAnswer {
        rows: rows.collect(),
        more: page.next.is_some(),
        unread_total: page.unread_total,
    })
}

fn one_conversation(
    reader: &impl ReadView,
    query: &internal::ConversationQuery,
) -> Result<v1::Conversation, Unanswered> {
    let id = ConversationId::copied(&query.conversation_id)?;
    if !query.user_id.is_empty() {
        member(reader, &id, &query.user_id)?;
    }
    let summary = read::conversation(reader, &id).ok_or(Refusal::ConversationNotFound)?;
    Ok(conversation(&summary))
}

/// The next page's token is the last user's id; the gateway wraps it for the client.
fn members(
    reader: &impl ReadView,
    query: &internal::MembersQuery,
) -> Result<v1::ListMembersResponse, Unanswered> {
    let conversation = ConversationId::copied(&query.conversation_id)?;
    member(reader, &conversation, &query.user_id)?;
    let after = match query.after_user_id.as_str() {
        "" => None,
        id => Some(UserId::copied(id)?),
    };
    let page = read::members_page(
        reader,
        &conversation,
        after.as_ref(),
        query.page_size as usize,
    );
    Ok(v1::ListMembersResponse {
        members: page
            .members
            .iter()
            .map(|(user, record)| wire::member(user, record))
            .collect(),
        next_page_token: page
            .next
            .map(|user| user.as_str().to_owned())
            .unwrap_or_default(),
    })
}

fn cursor(
    reader: &impl ReadView,
    query: &internal::CursorQuery,
) -> Result<internal::CursorAnswer, Unanswered> {
    let user = UserId::copied(&query.user_id)?;
    let device = DeviceId::copied(&query.device_id)?;
    Ok(internal::CursorAnswer {
        inbox_seq: read::cursor(reader, &user, &device).0,
    })
}

fn inbox_heads(
    reader: &impl ReadView,
    query: &internal::SubscribeQuery,
) -> Result<internal::SubscribeAnswer, Unanswered> {
    let heads = query.user_ids.iter().map(|id| {
        let user = UserId::parse(Bytes::copy_from_slice(id.as_bytes()))?;
        Ok(read::inbox_head(reader, &user).0)
    });
    Ok(internal::SubscribeAnswer {
        inbox_heads: heads.collect::<Result<_, Unanswered>>()?,
    })
}

#[cfg(test)]
mod tests;
