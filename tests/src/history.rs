//! What clients of a cluster saw: the input of the checker.
//!
//! Every device writes its own [`DeviceHistory`] while the load runs; nobody else touches
//! it. When the load is over, [`FinalState`] is read from the healed cluster. All times
//! are microseconds since the start of one run, from one clock, so that "this answer was
//! there before that question was asked" can be decided between devices.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

use carillon_proto::v1;
use prost::Message as _;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl<T: Into<Arc<str>>> From<T> for $name {
            fn from(text: T) -> Self {
                Self(text.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id! {
    /// A conversation.
    ConversationId
}
id! {
    /// A user.
    UserId
}
id! {
    /// The sender's own id of a message.
    ClientMessageId
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after it.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A place in a conversation's timeline.
    Seq
}
number! {
    /// A place in a user's inbox.
    InboxSeq
}
number! {
    /// One Connect stream of a device, numbered by the device.
    StreamNumber
}
number! {
    /// Microseconds since the start of the run.
    At
}

/// The clock of one run, shared by everyone who records.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
}

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Self {
            started: Instant::now(),
        }
    }

    /// The time now.
    pub fn now(&self) -> At {
        At(u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

/// A hash of a message's content: enough to see that it came back as it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub u64);

impl Fingerprint {
    /// The fingerprint of a content.
    pub fn of(content: &v1::Content) -> Self {
        let mut hasher = DefaultHasher::new();
        content.encode_to_vec().hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// One entry of a timeline as somebody saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The conversation it is in.
    pub conversation: ConversationId,
    /// Its place there.
    pub seq: Seq,
    /// Its global id.
    pub message_id: u64,
    /// Who sent it.
    pub sender: UserId,
    /// The sender's id of it; none for a notice.
    pub client_message_id: Option<ClientMessageId>,
    /// When the leader accepted it, milliseconds since the Unix epoch.
    pub sent_at_ms: i64,
    /// Its content.
    pub content: Fingerprint,
}

impl Entry {
    /// Takes what matters out of a message.
    pub fn of(message: &v1::Message) -> Self {
        let client_message_id = Some(message.client_message_id.as_str())
            .filter(|id| !id.is_empty())
            .map(ClientMessageId::from);
        Self {
            conversation: message.conversation_id.as_str().into(),
            seq: Seq(message.seq),
            message_id: message.message_id,
            sender: message.sender_id.as_str().into(),
            client_message_id,
            sent_at_ms: message.sent_at_ms,
            content: message
                .content
                .as_ref()
                .map_or(Fingerprint(0), Fingerprint::of),
        }
    }

    /// Whether it counts as unread for others than its sender.
    pub fn is_countable(&self) -> bool {
        self.client_message_id.is_some()
    }
}

/// Something that happened at a device.
#[derive(Debug, Clone)]
pub enum Event {
    /// A try to send left for the server.
    SendStarted {
        conversation: ConversationId,
        client_message_id: ClientMessageId,
        stream: StreamNumber,
        content: Fingerprint,
    },
    /// The server answered that it is stored.
    SendAcked {
        conversation: ConversationId,
        client_message_id: ClientMessageId,
        stream: StreamNumber,
        seq: Seq,
        message_id: u64,
        duplicate: bool,
    },
    /// The server answered that it will never be stored.
    SendRefused {
        conversation: ConversationId,
        client_message_id: ClientMessageId,
        reason: String,
    },
    /// A page of a timeline, in seq order.
    Read {
        started: At,
        conversation: ConversationId,
        entries: Vec<Entry>,
        last_seq: Seq,
    },
    /// Welcome.
    StreamOpened {
        stream: StreamNumber,
        inbox_head: InboxSeq,
    },
    /// An entry was pushed.
    Pushed {
        stream: StreamNumber,
        inbox_seq: InboxSeq,
        entry: Entry,
        unread: u32,
    },
    /// The stream said that entries were left out.
    ResyncTold {
        stream: StreamNumber,
        after: InboxSeq,
        to: InboxSeq,
    },
    /// A page of the inbox.
    Synced {
        after: InboxSeq,
        entries: Vec<(InboxSeq, Entry)>,
    },
    /// A MarkRead left for the server.
    MarkReadStarted {
        conversation: ConversationId,
        asked: Seq,
    },
    /// It was answered.
    MarkedRead {
        started: At,
        conversation: ConversationId,
        asked: Seq,
        read_seq: Seq,
        unread: u32,
    },
    /// The device itself saw something that the protocol does not allow.
    Anomaly { what: String },
}

/// An event and when it was seen.
#[derive(Debug, Clone)]
pub struct Record {
    /// When.
    pub at: At,
    /// What.
    pub event: Event,
}

/// Everything one device saw, in its own order.
#[derive(Debug, Clone)]
pub struct DeviceHistory {
    /// Whose device.
    pub user: UserId,
    /// Which one.
    pub device: String,
    /// Ordered by `at`.
    pub records: Vec<Record>,
}

/// One full scan of a conversation after the run.
#[derive(Debug, Clone)]
pub struct Scan {
    /// Who was asked, for people.
    pub via: String,
    /// The conversation.
    pub conversation: ConversationId,
    /// From the first to the last.
    pub entries: Vec<Entry>,
    /// What the server said was the last.
    pub last_seq: Seq,
}

/// One full scan of an inbox after the run.
#[derive(Debug, Clone)]
pub struct InboxScan {
    /// Who was asked, for people.
    pub via: String,
    /// Whose inbox.
    pub user: UserId,
    /// From the first to the last.
    pub entries: Vec<(InboxSeq, Entry)>,
    /// What the server said was the last.
    pub head: InboxSeq,
}

/// A user's row of a conversation after the run.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Whose row.
    pub user: UserId,
    /// Of which conversation.
    pub conversation: ConversationId,
    /// What the server says is unread.
    pub unread: u32,
    /// The user's read position.
    pub read_seq: Seq,
}

/// What the healed cluster says when everything is over.
#[derive(Debug, Clone, Default)]
pub struct FinalState {
    /// At least one for each conversation.
    pub scans: Vec<Scan>,
    /// At least one for each user.
    pub inboxes: Vec<InboxScan>,
    /// One for each member of each conversation.
    pub summaries: Vec<Summary>,
    /// `unread_total` of each user.
    pub unread_totals: Vec<(UserId, u64)>,
}

/// The input of the checker.
#[derive(Debug, Clone)]
pub struct History {
    /// The members of each conversation. They do not change during a run.
    pub conversations: BTreeMap<ConversationId, BTreeSet<UserId>>,
    /// What the devices saw.
    pub devices: Vec<DeviceHistory>,
    /// What is there in the end.
    pub last: FinalState,
}
