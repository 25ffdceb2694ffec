//! The faults that the checker knows, one variant for each promise.

use crate::history::{At, ClientMessageId, ConversationId, InboxSeq, Seq, StreamNumber, UserId};

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    // ---- timelines
    #[error("{conversation}: nobody scanned it in the end")]
    NotScanned { conversation: ConversationId },
    #[error("{conversation} via {via}: seq {found} where {expected} had to come")]
    SeqNotDense {
        conversation: ConversationId,
        via: String,
        expected: Seq,
        found: Seq,
    },
    #[error("{conversation} via {via}: says that {said} is the last, but {found} is")]
    LastSeqWrong {
        conversation: ConversationId,
        via: String,
        said: Seq,
        found: Seq,
    },
    #[error(
        "{conversation}: {client_message_id} of {sender} is there twice, at {first} and {second}"
    )]
    Duplicate {
        conversation: ConversationId,
        sender: UserId,
        client_message_id: ClientMessageId,
        first: Seq,
        second: Seq,
    },
    #[error("{conversation}: the message id or the time goes back at {seq}")]
    GoesBack {
        conversation: ConversationId,
        seq: Seq,
    },
    #[error("{conversation} at {seq}: {who} saw something else than the others")]
    OrderDiffers {
        conversation: ConversationId,
        seq: Seq,
        who: String,
    },

    // ---- sends
    #[error(
        "{conversation}: {client_message_id} of {sender} was acknowledged at {seq} and is lost"
    )]
    AcknowledgedLost {
        conversation: ConversationId,
        sender: UserId,
        client_message_id: ClientMessageId,
        seq: Seq,
    },
    #[error(
        "{conversation}: {client_message_id} of {sender} was answered with {first} and with {second}"
    )]
    AnswerChanged {
        conversation: ConversationId,
        sender: UserId,
        client_message_id: ClientMessageId,
        first: Seq,
        second: Seq,
    },
    #[error("{conversation}: {client_message_id} of {sender} was answered before it was sent")]
    AnsweredNothing {
        conversation: ConversationId,
        sender: UserId,
        client_message_id: ClientMessageId,
    },
    #[error("{conversation} at {seq}: nobody sent this")]
    Invented {
        conversation: ConversationId,
        seq: Seq,
    },
    #[error("{conversation} at {seq}: the content is not what was sent")]
    Altered {
        conversation: ConversationId,
        seq: Seq,
    },
    #[error(
        "{conversation}: {client_message_id} of {sender} was refused ({reason}), though it was valid"
    )]
    Refused {
        conversation: ConversationId,
        sender: UserId,
        client_message_id: ClientMessageId,
        reason: String,
    },
    #[error(
        "{conversation}: {sender} sent {earlier} before {later} on stream {stream}, but they are \
         the other way round"
    )]
    SenderOrder {
        conversation: ConversationId,
        sender: UserId,
        stream: StreamNumber,
        earlier: ClientMessageId,
        later: ClientMessageId,
    },

    // ---- reads
    #[error("{conversation}: a page that {user} read at {at} jumps from {before} to {found}")]
    PageNotDense {
        conversation: ConversationId,
        user: UserId,
        at: At,
        before: Seq,
        found: Seq,
    },
    #[error(
        "{conversation}: {user} had read up to {known} and then, at {at}, only {last_seq} was there"
    )]
    ReadWentBack {
        conversation: ConversationId,
        user: UserId,
        at: At,
        known: Seq,
        last_seq: Seq,
    },
    #[error(
        "{conversation}: {user} had an acknowledgement of {known} and then, at {at}, only {last_seq} was there"
    )]
    OwnWriteMissing {
        conversation: ConversationId,
        user: UserId,
        at: At,
        known: Seq,
        last_seq: Seq,
    },
    #[error(
        "{conversation}: somebody knew {known} before {user} asked, who at {at} saw only {last_seq}"
    )]
    StaleRead {
        conversation: ConversationId,
        user: UserId,
        at: At,
        known: Seq,
        last_seq: Seq,
    },

    // ---- inboxes
    #[error("inbox of {user}: nobody scanned it in the end")]
    InboxNotScanned { user: UserId },
    #[error("inbox of {user} via {via}: {found} where {expected} had to come")]
    InboxNotDense {
        user: UserId,
        via: String,
        expected: InboxSeq,
        found: InboxSeq,
    },
    #[error("inbox of {user} at {inbox_seq}: {who} saw something else than the others")]
    InboxDiffers {
        user: UserId,
        inbox_seq: InboxSeq,
        who: String,
    },
    #[error(
        "inbox of {user} at {inbox_seq}: an entry of {conversation}, which {user} is no member of"
    )]
    InboxForeign {
        user: UserId,
        inbox_seq: InboxSeq,
        conversation: ConversationId,
    },
    #[error("inbox of {user} at {inbox_seq}: {conversation} {found} where {expected} had to come")]
    InboxOrder {
        user: UserId,
        inbox_seq: InboxSeq,
        conversation: ConversationId,
        expected: Seq,
        found: Seq,
    },
    #[error("inbox of {user}: {conversation} ends at {found}, but its last entry is {expected}")]
    InboxMissing {
        user: UserId,
        conversation: ConversationId,
        expected: Seq,
        found: Seq,
    },
    #[error("stream {stream} of {user}/{device}: pushed {found} where {expected} had to come")]
    PushNotDense {
        user: UserId,
        device: String,
        stream: StreamNumber,
        expected: InboxSeq,
        found: InboxSeq,
    },
    #[error("device {user}/{device} never got inbox entry {inbox_seq}")]
    NotDelivered {
        user: UserId,
        device: String,
        inbox_seq: InboxSeq,
    },

    // ---- read positions and unread
    #[error("{conversation}: {user} has no row of it in the end")]
    SummaryMissing {
        conversation: ConversationId,
        user: UserId,
    },
    #[error("{conversation}: {user} has {actual} unread, but {expected} it must be")]
    UnreadWrong {
        conversation: ConversationId,
        user: UserId,
        expected: u64,
        actual: u64,
    },
    #[error("{user} has {actual} unread in total, but {expected} it must be")]
    UnreadTotalWrong {
        user: UserId,
        expected: u64,
        actual: u64,
    },
    #[error(
        "{conversation}: {user} was pushed {seq} with {actual} unread, but {least} to {most} is possible"
    )]
    PushedUnreadWrong {
        conversation: ConversationId,
        user: UserId,
        seq: Seq,
        least: u64,
        most: u64,
        actual: u64,
    },
    #[error(
        "{conversation}: the read position of {user} is {found}, but {least} to {most} is possible"
    )]
    ReadPositionWrong {
        conversation: ConversationId,
        user: UserId,
        least: Seq,
        most: Seq,
        found: Seq,
    },

    #[error("{user}/{device}: {what}")]
    Anomaly {
        user: UserId,
        device: String,
        what: String,
    },
}
