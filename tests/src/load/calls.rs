//! The unary calls of a device: reads, syncs and marks, each in a task of its own while
//! the stream goes on.

use carillon_proto::v1;
use tonic::{Code, Status};

use crate::history::{At, ConversationId, Entry, InboxSeq, Seq};
use crate::rpc::{self, Chat};

/// Entries of a page going forward.
const FORWARD_LIMIT: u32 = 100;
/// Entries of a page going backward.
const BACKWARD_LIMIT: u32 = 20;
/// Entries of a page of the inbox.
const SYNC_LIMIT: u32 = 200;

/// A call that came to an end.
#[derive(Debug)]
pub(super) enum Done {
    Read {
        started: At,
        conversation: ConversationId,
        /// Something of it was delivered to the device before it asked.
        exists: bool,
        /// The page in seq order, and the end of the conversation.
        outcome: Result<(Vec<Entry>, Seq), Status>,
    },
    Synced {
        after: InboxSeq,
        /// What the device knew of its inbox before it asked.
        known: InboxSeq,
        /// The page and the head.
        outcome: Result<(Vec<(InboxSeq, Entry)>, InboxSeq), Status>,
    },
    Marked {
        started: At,
        conversation: ConversationId,
        asked: Seq,
        /// Read position and unread.
        outcome: Result<(Seq, u32), Status>,
    },
}

/// Reads a page: forward from a seq, or the newest ones backward.
pub(super) async fn read(
    mut chat: Chat,
    user: String,
    started: At,
    conversation: ConversationId,
    exists: bool,
    from: Option<Seq>,
) -> Done {
    let (direction, limit) = match from {
        Some(_) => (v1::Direction::Forward, FORWARD_LIMIT),
        None => (v1::Direction::Backward, BACKWARD_LIMIT),
    };
    let request = v1::GetMessagesRequest {
        conversation_id: conversation.to_string(),
        from_seq: from.unwrap_or_default().0,
        to_seq: 0,
        direction: direction.into(),
        limit,
        bytes_max: 0,
    };
    let answer = chat.get_messages(rpc::as_user(&user, request)).await;
    let outcome = answer.map(|answer| {
        let answer = answer.into_inner();
        let mut entries: Vec<Entry> = answer.messages.iter().map(Entry::of).collect();
        if from.is_none() {
            entries.reverse();
        }
        (entries, Seq(answer.last_seq))
    });
    Done::Read {
        started,
        conversation,
        exists,
        outcome,
    }
}

/// Reads a page of the inbox.
pub(super) async fn sync(mut chat: Chat, user: String, after: InboxSeq, known: InboxSeq) -> Done {
    let request = v1::SyncRequest {
        inbox_cursor: after.0,
        limit: SYNC_LIMIT,
        wait_ms: 0,
    };
    let answer = chat.sync(rpc::as_user(&user, request)).await;
    let outcome = answer.map(|answer| {
        let answer = answer.into_inner();
        let entries = answer.entries.iter().filter_map(inbox_entry).collect();
        (entries, InboxSeq(answer.inbox_head))
    });
    Done::Synced {
        after,
        known,
        outcome,
    }
}

/// Moves the read position.
pub(super) async fn mark_read(
    mut chat: Chat,
    user: String,
    started: At,
    conversation: ConversationId,
    asked: Seq,
) -> Done {
    let request = v1::MarkReadRequest {
        conversation_id: conversation.to_string(),
        read_seq: asked.0,
    };
    let answer = chat.mark_read(rpc::as_user(&user, request)).await;
    let outcome = answer.map(|answer| (Seq(answer.get_ref().read_seq), answer.get_ref().unread));
    Done::Marked {
        started,
        conversation,
        asked,
        outcome,
    }
}

/// An inbox entry's place and message; none when it has no message.
pub(crate) fn inbox_entry(entry: &v1::InboxEntry) -> Option<(InboxSeq, Entry)> {
    let message = entry.message.as_ref()?;
    Some((InboxSeq(entry.inbox_seq), Entry::of(message)))
}

/// True for failures that a fault of a node explains, after which a client tries again.
pub(crate) fn is_transient(code: Code) -> bool {
    // A connection that breaks in the middle is Unknown, Internal or Cancelled in tonic.
    matches!(
        code,
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::ResourceExhausted
            | Code::Cancelled
            | Code::Unknown
            | Code::Internal
    )
}
