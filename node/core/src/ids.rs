//! Ids and numbers: a newtype for each, so that none is taken for another.
//!
//! Text ids own a slice of a shared buffer (`bytes::Bytes`): a clone counts references,
//! and an id that was decoded from a command shares the command's memory.
//!
//! Invariant: a text id is ASCII, not empty, not longer than its maximum. One that came
//! from outside (`parse`) holds only the characters that ids may hold; one that came from
//! the codec was parsed before it was written.

use std::fmt;

use bytes::{Bytes, BytesMut};
use thiserror::Error;

use crate::codec::{Corrupt, Reader, put_bytes};
pub use crate::slots::{SLOTS, Slot, SlotRange};

/// The longest id of a user, device, message or request, bytes.
pub const ID_BYTES_MAX: usize = 64;
/// The longest id of a conversation, bytes: `direct:`, two user ids and a `:`.
pub const CONVERSATION_ID_BYTES_MAX: usize = 136;
/// The longest name of a conversation, bytes.
pub const NAME_BYTES_MAX: usize = 256;
/// 2025-01-01 00:00:00 UTC, milliseconds since the Unix epoch: where message ids begin.
pub const MESSAGE_ID_EPOCH_MS: i64 = 1_735_689_600_000;

const DIRECT_PREFIX: &str = "direct:";

/// Why a text is not an id. Safe to show to whoever sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidId {
    /// Nothing was given.
    #[error("the {what} is empty; give 1 to {max} characters")]
    Empty { what: &'static str, max: usize },
    /// Too many bytes.
    #[error("the {what} has {actual} bytes; at most {max} are allowed")]
    TooLong {
        what: &'static str,
        max: usize,
        actual: usize,
    },
    /// A character that ids do not have.
    #[error(
        "the {what} has a character that is not allowed at byte {at}; use A-Z a-z 0-9 . _ - @ + ="
    )]
    Character { what: &'static str, at: usize },
    /// A ':' elsewhere than in `direct:a:b`.
    #[error(
        "the conversation id has a ':' but is not of the form direct:<user>:<user>; choose an id without ':'"
    )]
    NotDirect,
    /// `direct:b:a`.
    #[error(
        "the direct conversation id has its users in the wrong order; put the smaller id first"
    )]
    DirectOrder,
    /// `direct:a:a`.
    #[error("a direct conversation needs two different users; nobody can write to themselves")]
    DirectSelf,
    /// A conversation's name that is not text.
    #[error("the conversation name is not UTF-8; send it as UTF-8")]
    NameNotUtf8,
}

const fn allowed(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'@' | b'+' | b'=')
}

const ALLOWED: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = allowed(byte as u8);
        byte += 1;
    }
    table
};

fn check_characters(what: &'static str, bytes: &[u8], max: usize) -> Result<(), InvalidId> {
    if bytes.is_empty() {
        return Err(InvalidId::Empty { what, max });
    }
    if bytes.len() > max {
        return Err(InvalidId::TooLong {
            what,
            max,
            actual: bytes.len(),
        });
    }
    match bytes.iter().position(|byte| !ALLOWED[usize::from(*byte)]) {
        None => Ok(()),
        Some(at) => Err(InvalidId::Character { what, at }),
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:expr, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Bytes);

        impl $name {
            /// Checks and takes an id.
            ///
            /// # Errors
            /// [`InvalidId`] says what is wrong with it.
            pub fn parse(id: impl Into<Bytes>) -> Result<Self, InvalidId> {
                let id = id.into();
                let check: fn(&[u8]) -> Result<(), InvalidId> = $check;
                check(&id)?;
                Ok($name(id))
            }

            /// Checks and copies an id.
            ///
            /// # Errors
            /// [`InvalidId`] says what is wrong with it.
            pub fn copied(id: &str) -> Result<Self, InvalidId> {
                $name::parse(Bytes::copy_from_slice(id.as_bytes()))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                std::str::from_utf8(&self.0).expect("ids are ASCII since they were made")
            }

            /// The id as bytes.
            #[inline]
            pub fn as_bytes(&self) -> &[u8] {
                &self.0
            }

            /// The id as the bytes it shares.
            pub fn to_bytes(&self) -> Bytes {
                self.0.clone()
            }

            /// Takes an id that was parsed before it was stored: only what keeps this
            /// type's own promises (ASCII, length) is looked at again.
            pub(crate) fn from_stored(id: Bytes) -> Option<Self> {
                let fits = !id.is_empty() && id.len() <= $max && id.is_ascii();
                fits.then_some($name(id))
            }

            pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
                let id = reader.bytes()?;
                $name::from_stored(id)
                    .ok_or_else(|| reader.corrupt(concat!("the ", $what, " cannot be one")))
            }

            pub(crate) fn write(&self, out: &mut BytesMut) {
                put_bytes(out, &self.0);
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl AsRef<[u8]> for $name {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;
            fn from_str(id: &str) -> Result<Self, InvalidId> {
                $name::copied(id)
            }
        }
    };
}

text_id!(
    /// A user, named by the product.
    UserId, "user id", ID_BYTES_MAX,
    |id| check_characters("user id", id, ID_BYTES_MAX)
);
text_id!(
    /// One of a user's devices.
    DeviceId, "device id", ID_BYTES_MAX,
    |id| check_characters("device id", id, ID_BYTES_MAX)
);
text_id!(
    /// The sender's own id of a message, the same on every retry.
    ClientMessageId, "client message id", ID_BYTES_MAX,
    |id| check_characters("client message id", id, ID_BYTES_MAX)
);
text_id!(
    /// The caller's id of a request that creates something, the same on every retry.
    RequestId, "request id", ID_BYTES_MAX,
    |id| check_characters("request id", id, ID_BYTES_MAX)
);
text_id!(
    /// A conversation: a name without ':', at most 64 bytes, or `direct:a:b` with `a < b`.
    ConversationId, "conversation id", CONVERSATION_ID_BYTES_MAX,
    check_conversation
);

fn check_conversation(id: &[u8]) -> Result<(), InvalidId> {
    const WHAT: &str = "conversation id";
    if !id.contains(&b':') {
        return check_characters(WHAT, id, ID_BYTES_MAX);
    }
    if id.len() > CONVERSATION_ID_BYTES_MAX {
        return Err(InvalidId::TooLong {
            what: WHAT,
            max: CONVERSATION_ID_BYTES_MAX,
            actual: id.len(),
        });
    }
    let (first, second) = split_direct(id).ok_or(InvalidId::NotDirect)?;
    check_characters("user id", first, ID_BYTES_MAX)?;
    check_characters("user id", second, ID_BYTES_MAX)?;
    match first.cmp(second) {
        std::cmp::Ordering::Less => Ok(()),
        std::cmp::Ordering::Equal => Err(InvalidId::DirectSelf),
        std::cmp::Ordering::Greater => Err(InvalidId::DirectOrder),
    }
}

fn split_direct(id: &[u8]) -> Option<(&[u8], &[u8])> {
    let pair = id.strip_prefix(DIRECT_PREFIX.as_bytes())?;
    let middle = pair.iter().position(|byte| *byte == b':')?;
    Some((&pair[..middle], &pair[middle + 1..]))
}

impl UserId {
    /// The slot of the user's inbox, rows and cursors.
    #[inline]
    pub fn slot(&self) -> Slot {
        Slot::of(&self.0)
    }
}

impl ConversationId {
    /// The slot of the conversation's timeline and members.
    #[inline]
    pub fn slot(&self) -> Slot {
        Slot::of(&self.0)
    }

    /// The one direct conversation of two users, whichever is named first.
    ///
    /// # Errors
    /// [`InvalidId::DirectSelf`] when they are the same user.
    pub fn direct(one: &UserId, other: &UserId) -> Result<Self, InvalidId> {
        let (first, second) = match one.cmp(other) {
            std::cmp::Ordering::Less => (one, other),
            std::cmp::Ordering::Greater => (other, one),
            std::cmp::Ordering::Equal => return Err(InvalidId::DirectSelf),
        };
        let length = DIRECT_PREFIX.len() + first.0.len() + 1 + second.0.len();
        let mut id = BytesMut::with_capacity(length);
        id.extend_from_slice(DIRECT_PREFIX.as_bytes());
        id.extend_from_slice(&first.0);
        id.extend_from_slice(b":");
        id.extend_from_slice(&second.0);
        Ok(ConversationId(id.freeze()))
    }

    /// True for `direct:a:b`.
    pub fn is_direct(&self) -> bool {
        self.0.starts_with(DIRECT_PREFIX.as_bytes())
    }

    /// The two users of a direct conversation, the smaller id first; none of a group.
    pub fn direct_pair(&self) -> Option<(UserId, UserId)> {
        let (first, second) = split_direct(&self.0)?;
        Some((
            UserId::from_stored(self.0.slice_ref(first))?,
            UserId::from_stored(self.0.slice_ref(second))?,
        ))
    }
}

/// A conversation's name, for people: UTF-8, at most 256 bytes, may be empty.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct ConversationName(Bytes);

impl ConversationName {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`InvalidId::TooLong`] or [`InvalidId::NameNotUtf8`].
    pub fn parse(name: impl Into<Bytes>) -> Result<Self, InvalidId> {
        let name = name.into();
        if name.len() > NAME_BYTES_MAX {
            return Err(InvalidId::TooLong {
                what: "conversation name",
                max: NAME_BYTES_MAX,
                actual: name.len(),
            });
        }
        if std::str::from_utf8(&name).is_err() {
            return Err(InvalidId::NameNotUtf8);
        }
        Ok(ConversationName(name))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("names are UTF-8 since they were made")
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        let name = reader.bytes()?;
        ConversationName::parse(name).map_err(|_| reader.corrupt("the name cannot be one"))
    }

    pub(crate) fn write(&self, out: &mut BytesMut) {
        put_bytes(out, &self.0);
    }
}

impl fmt::Debug for ConversationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for ConversationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl $name {
            /// The number itself.
            #[inline]
            pub const fn get(self) -> $inner {
                self.0
            }
        }
    };
}

number!(
    /// A place in a conversation's timeline: 1, 2, 3 … with no gaps; 0 is before the first.
    Seq, u64
);
number!(
    /// A place in a user's inbox: 1, 2, 3 … with no gaps; 0 is before the first.
    InboxSeq, u64
);
number!(
    /// A message's global id: 42 bits of milliseconds since 2025-01-01 UTC, 12 bits of
    /// shard, 10 bits of counter. Ids of one shard grow with time.
    MessageId, u64
);
number!(
    /// A shard: a contiguous range of slots, one Raft group.
    ShardId, u32
);
number!(
    /// A node of the cluster.
    NodeId, u64
);
number!(
    /// A replica of a shard; never used again once it is gone.
    ReplicaId, u64
);
number!(
    /// The version of the shard map; grows with every change.
    Epoch, u64
);
number!(
    /// Milliseconds since the Unix epoch.
    TimestampMs, i64
);

impl Seq {
    /// The place after this one.
    #[inline]
    #[must_use]
    pub const fn next(self) -> Seq {
        Seq(self.0 + 1)
    }

    /// The place before this one; 0 stays 0.
    #[inline]
    #[must_use]
    pub const fn previous(self) -> Seq {
        Seq(self.0.saturating_sub(1))
    }
}

impl InboxSeq {
    /// The place after this one.
    #[inline]
    #[must_use]
    pub const fn next(self) -> InboxSeq {
        InboxSeq(self.0 + 1)
    }
}

impl ShardId {
    /// The group that keeps the shard map itself; it has no slots.
    pub const META: ShardId = ShardId(0);
}

impl MessageId {
    /// The largest counter of one millisecond and shard.
    pub const COUNTER_MAX: u16 = (1 << Self::COUNTER_BITS) - 1;
    /// The largest shard number that an id holds; larger ones share its bits.
    pub const SHARD_MAX: u32 = (1 << Self::SHARD_BITS) - 1;
    const COUNTER_BITS: u32 = 10;
    const SHARD_BITS: u32 = 12;
    const TIME_BITS: u32 = 42;

    /// Puts an id together. Times before 2025 count as its beginning.
    pub fn new(at: TimestampMs, shard: ShardId, counter: u16) -> MessageId {
        assert!(counter <= Self::COUNTER_MAX, "message counter {counter}");
        let since = at.0.saturating_sub(MESSAGE_ID_EPOCH_MS).max(0) as u64;
        let time = since & ((1 << Self::TIME_BITS) - 1);
        let shard = u64::from(shard.0 & Self::SHARD_MAX);
        MessageId(
            time << (Self::SHARD_BITS + Self::COUNTER_BITS)
                | shard << Self::COUNTER_BITS
                | u64::from(counter),
        )
    }

    /// When the message was accepted.
    pub fn at(self) -> TimestampMs {
        let since = self.0 >> (Self::SHARD_BITS + Self::COUNTER_BITS);
        TimestampMs(MESSAGE_ID_EPOCH_MS + since as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters() {
        let long = "a".repeat(64);
        let too_long = "a".repeat(65);
        let cases: [(&str, bool); 10] = [
            ("alice", true),
            ("A.b_c-d@e+f=0", true),
            (&long, true),
            (&too_long, false),
            ("", false),
            ("a b", false),
            ("a:b", false),
            ("a/b", false),
            ("ü", false),
            ("a\0", false),
        ];
        for (id, valid) in cases {
            assert_eq!(UserId::copied(id).is_ok(), valid, "user {id:?}");
            assert_eq!(ConversationId::copied(id).is_ok(), valid, "group {id:?}");
        }
        assert!(UserId::parse(&b"\xff\xfe"[..]).is_err());
    }

    #[test]
    fn direct_conversations() {
        let cases = [
            ("direct:alice:bob", None),
            ("direct:bob:alice", Some(InvalidId::DirectOrder)),
            ("direct:alice:alice", Some(InvalidId::DirectSelf)),
            ("direct:alice", Some(InvalidId::NotDirect)),
            ("group:alice:bob", Some(InvalidId::NotDirect)),
            (
                "direct:a:b:c",
                Some(InvalidId::Character {
                    what: "user id",
                    at: 1,
                }),
            ),
            (
                "direct::b",
                Some(InvalidId::Empty {
                    what: "user id",
                    max: ID_BYTES_MAX,
                }),
            ),
        ];
        for (id, error) in cases {
            assert_eq!(ConversationId::copied(id).err(), error, "{id}");
        }
        let (alice, bob) = (
            UserId::copied("alice").expect("valid"),
            UserId::copied("bob").expect("valid"),
        );
        let id = ConversationId::direct(&bob, &alice).expect("two users");
        assert_eq!(id.as_str(), "direct:alice:bob");
        assert_eq!(id.direct_pair(), Some((alice.clone(), bob)));
        assert_eq!(
            ConversationId::direct(&alice, &alice),
            Err(InvalidId::DirectSelf)
        );
        let longest = UserId::copied(&"a".repeat(64)).expect("valid");
        let other = UserId::copied(&"b".repeat(64)).expect("valid");
        let id = ConversationId::direct(&longest, &other).expect("two users");
        assert_eq!(id.as_bytes().len(), CONVERSATION_ID_BYTES_MAX);
        assert!(ConversationId::parse(id.to_bytes()).is_ok());
    }

    #[test]
    fn message_ids_sort_by_time_then_counter() {
        let at = TimestampMs(MESSAGE_ID_EPOCH_MS + 5);
        let first = MessageId::new(at, ShardId(3), 1);
        let second = MessageId::new(at, ShardId(3), 2);
        let later = MessageId::new(TimestampMs(at.0 + 1), ShardId(3), 0);
        assert!(first < second && second < later);
        assert_eq!(first.at(), at);
        assert_eq!(first.0, 5 << 22 | 3 << 10 | 1);
    }
}
