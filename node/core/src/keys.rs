//! Every key of the state: `slot (u16, big-endian) ‖ kind (u8) ‖ id ‖ 0x00 ‖ …`.
//!
//! Ids hold no zero byte, so the zero ends them and keys of one id are one contiguous
//! range. Numbers are big-endian, so that key order is number order. Keys are built on the
//! stack; the kinds are on disk and never change their numbers.

use std::fmt;
use std::ops::Deref;

use bytes::Bytes;

use crate::codec::Corrupt;
use crate::ids::{
    CONVERSATION_ID_BYTES_MAX, ClientMessageId, ConversationId, DeviceId, ID_BYTES_MAX, InboxSeq,
    Seq, Slot, UserId,
};

/// What a conversation is: [`crate::records::ConversationInfo`].
pub const CONVERSATION_INFO: u8 = 1;
/// Where a conversation's timeline ends: [`crate::records::ConversationHead`].
pub const CONVERSATION_HEAD: u8 = 2;
/// `conversation ‖ 0 ‖ user`: [`crate::records::MemberRecord`].
pub const MEMBER: u8 = 3;
/// `conversation ‖ 0 ‖ seq`: [`crate::records::MessageRecord`].
pub const MESSAGE: u8 = 4;
/// `conversation ‖ 0 ‖ sender ‖ 0 ‖ client_message_id`: [`crate::records::DedupRecord`].
pub const DEDUP: u8 = 5;
/// Present while entries wait for delivery: [`crate::records::OutboxRecord`].
pub const OUTBOX: u8 = 6;
/// Where a user's inbox ends: only remembered ([`crate::View::remember`]), never stored.
pub const INBOX_HEAD: u8 = 16;
/// `user ‖ 0 ‖ inbox_seq`: [`crate::records::InboxRecord`].
pub const INBOX: u8 = 17;
/// `user ‖ 0 ‖ conversation`: [`crate::records::Row`].
pub const ROW: u8 = 18;
/// `user ‖ 0 ‖ device`: [`crate::records::CursorRecord`].
pub const CURSOR: u8 = 19;

/// The longest key, bytes: that of a dedup record.
pub const KEY_BYTES_MAX: usize = 2 + 1 + CONVERSATION_ID_BYTES_MAX + 1 + 2 * ID_BYTES_MAX + 1;

/// The bytes of a key before its id.
const ID_AT: usize = 3;

/// A key on the stack.
#[derive(Clone)]
pub struct Key {
    length: u16,
    bytes: [u8; KEY_BYTES_MAX + 1],
}

impl Key {
    #[inline]
    fn new(slot: Slot, kind: u8, id: &[u8]) -> Key {
        let mut key = Key::bare(slot, kind);
        key.push(id);
        key.push(&[0]);
        key
    }

    #[inline]
    fn bare(slot: Slot, kind: u8) -> Key {
        let mut bytes = [0; KEY_BYTES_MAX + 1];
        bytes[..2].copy_from_slice(&slot.0.to_be_bytes());
        bytes[2] = kind;
        Key {
            length: ID_AT as u16,
            bytes,
        }
    }

    #[inline]
    fn push(&mut self, part: &[u8]) {
        let start = usize::from(self.length);
        let end = start + part.len();
        self.bytes[start..end].copy_from_slice(part);
        self.length = end as u16;
    }

    #[inline]
    fn with(mut self, part: &[u8]) -> Key {
        self.push(part);
        self
    }

    /// The smallest key after all that begin with this one.
    fn after_prefix(mut self) -> Key {
        let last = usize::from(self.length) - 1;
        self.bytes[last] += 1;
        self
    }

    /// The smallest key after this one.
    fn successor(self) -> Key {
        self.with(&[0])
    }
}

impl Deref for Key {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.escape_ascii())
    }
}

/// The keys `[from, to)`.
pub struct KeyRange {
    /// The first key, inclusive.
    pub from: Key,
    /// The end, exclusive.
    pub to: Key,
}

/// The keys of one conversation; hashes its id once.
pub struct ConversationKeys<'a> {
    slot: Slot,
    id: &'a [u8],
}

impl<'a> ConversationKeys<'a> {
    /// The keys of `conversation`.
    #[inline]
    pub fn new(conversation: &'a ConversationId) -> Self {
        ConversationKeys {
            slot: conversation.slot(),
            id: conversation.as_bytes(),
        }
    }

    /// What it is.
    pub fn info(&self) -> Key {
        Key::new(self.slot, CONVERSATION_INFO, self.id)
    }

    /// Where its timeline ends.
    #[inline]
    pub fn head(&self) -> Key {
        Key::new(self.slot, CONVERSATION_HEAD, self.id)
    }

    /// One of its members.
    #[inline]
    pub fn member(&self, user: &UserId) -> Key {
        Key::new(self.slot, MEMBER, self.id).with(user.as_bytes())
    }

    /// Its members from `after` on, not including that one; all without it.
    pub fn members(&self, after: Option<&UserId>) -> KeyRange {
        let prefix = Key::new(self.slot, MEMBER, self.id);
        KeyRange {
            from: match after {
                Some(user) => prefix.clone().with(user.as_bytes()).successor(),
                None => prefix.clone(),
            },
            to: prefix.after_prefix(),
        }
    }

    /// One entry of its timeline.
    #[inline]
    pub fn message(&self, seq: Seq) -> Key {
        Key::new(self.slot, MESSAGE, self.id).with(&seq.0.to_be_bytes())
    }

    /// Its entries from `first` to `last`, both included.
    pub fn messages(&self, first: Seq, last: Seq) -> KeyRange {
        let prefix = Key::new(self.slot, MESSAGE, self.id);
        KeyRange {
            from: self.message(first),
            to: match last.0.checked_add(1) {
                Some(end) => prefix.with(&end.to_be_bytes()),
                None => prefix.after_prefix(),
            },
        }
    }

    /// What a sender's own id of a message was answered with.
    #[inline]
    pub fn dedup(&self, sender: &UserId, client_message_id: &ClientMessageId) -> Key {
        Key::new(self.slot, DEDUP, self.id)
            .with(sender.as_bytes())
            .with(&[0])
            .with(client_message_id.as_bytes())
    }

    /// Its outbox marker.
    #[inline]
    pub fn outbox(&self) -> Key {
        Key::new(self.slot, OUTBOX, self.id)
    }
}

/// The keys of one user; hashes the id once.
pub struct UserKeys<'a> {
    slot: Slot,
    id: &'a [u8],
}

impl<'a> UserKeys<'a> {
    /// The keys of `user`.
    #[inline]
    pub fn new(user: &'a UserId) -> Self {
        UserKeys {
            slot: user.slot(),
            id: user.as_bytes(),
        }
    }

    /// Where the inbox ends, as it is remembered.
    #[inline]
    pub fn inbox_head(&self) -> Key {
        Key::new(self.slot, INBOX_HEAD, self.id)
    }

    /// One inbox entry.
    #[inline]
    pub fn inbox(&self, seq: InboxSeq) -> Key {
        Key::new(self.slot, INBOX, self.id).with(&seq.0.to_be_bytes())
    }

    /// The inbox entries after `after`.
    pub fn inbox_after(&self, after: InboxSeq) -> KeyRange {
        KeyRange {
            from: self.inbox(after).successor(),
            to: Key::new(self.slot, INBOX, self.id).after_prefix(),
        }
    }

    /// All inbox entries.
    pub fn inbox_all(&self) -> KeyRange {
        let prefix = Key::new(self.slot, INBOX, self.id);
        KeyRange {
            from: prefix.clone(),
            to: prefix.after_prefix(),
        }
    }

    /// The user's row of a conversation.
    #[inline]
    pub fn row(&self, conversation: &ConversationId) -> Key {
        Key::new(self.slot, ROW, self.id).with(conversation.as_bytes())
    }

    /// All rows of the user.
    pub fn rows(&self) -> KeyRange {
        let prefix = Key::new(self.slot, ROW, self.id);
        KeyRange {
            from: prefix.clone(),
            to: prefix.after_prefix(),
        }
    }

    /// The cursor of one device.
    pub fn cursor(&self, device: &DeviceId) -> Key {
        Key::new(self.slot, CURSOR, self.id).with(device.as_bytes())
    }
}

/// The outbox markers of one slot, after `after` when it is given.
pub fn outbox_of_slot(slot: Slot, after: Option<&ConversationId>) -> KeyRange {
    KeyRange {
        from: match after {
            Some(conversation) => Key::new(slot, OUTBOX, conversation.as_bytes()).successor(),
            None => Key::bare(slot, OUTBOX),
        },
        to: Key::bare(slot, OUTBOX).after_prefix(),
    }
}

/// The kind of a key; none of one that is too short to be a key.
#[inline]
pub fn kind_of(key: &[u8]) -> Option<u8> {
    key.get(2).copied()
}

/// The slot of a key; none of one that is too short to be a key.
#[inline]
pub fn slot_of(key: &[u8]) -> Option<Slot> {
    let bytes = key.get(..2)?;
    Some(Slot(u16::from_be_bytes([bytes[0], bytes[1]])))
}

fn corrupt(why: &'static str) -> Corrupt {
    Corrupt {
        what: "key",
        why,
        at: 0,
    }
}

/// What follows the id and its zero.
fn tail(key: &[u8], kind: u8) -> Result<&[u8], Corrupt> {
    if kind_of(key) != Some(kind) {
        return Err(corrupt("it is of another kind"));
    }
    let rest = &key[ID_AT..];
    match rest.iter().position(|byte| *byte == 0) {
        Some(zero) => Ok(&rest[zero + 1..]),
        None => Err(corrupt("its id has no end")),
    }
}

fn tail_number(key: &[u8], kind: u8) -> Result<u64, Corrupt> {
    let bytes = tail(key, kind)?;
    match bytes.try_into() {
        Ok(bytes) => Ok(u64::from_be_bytes(bytes)),
        Err(_) => Err(corrupt("its number is not of 8 bytes")),
    }
}

/// The seq in a [`MESSAGE`] key.
///
/// # Errors
/// [`Corrupt`] when it is no such key.
pub fn parse_message(key: &[u8]) -> Result<Seq, Corrupt> {
    tail_number(key, MESSAGE).map(Seq)
}

/// The inbox seq in an [`INBOX`] key.
///
/// # Errors
/// [`Corrupt`] when it is no such key.
pub fn parse_inbox(key: &[u8]) -> Result<InboxSeq, Corrupt> {
    tail_number(key, INBOX).map(InboxSeq)
}

/// The user in a [`MEMBER`] key.
///
/// # Errors
/// [`Corrupt`] when it is no such key.
pub fn parse_member(key: &[u8]) -> Result<UserId, Corrupt> {
    let user = Bytes::copy_from_slice(tail(key, MEMBER)?);
    UserId::from_stored(user).ok_or_else(|| corrupt("its user id cannot be one"))
}

/// The bytes of the conversation's id in a [`ROW`] key.
///
/// # Errors
/// [`Corrupt`] when it is no such key.
pub fn parse_row(key: &[u8]) -> Result<&[u8], Corrupt> {
    tail(key, ROW)
}

/// The conversation in an [`OUTBOX`] key.
///
/// # Errors
/// [`Corrupt`] when it is no such key.
pub fn parse_outbox(key: &[u8]) -> Result<ConversationId, Corrupt> {
    let after = tail(key, OUTBOX)?;
    if !after.is_empty() {
        return Err(corrupt("bytes are left over"));
    }
    conversation(&key[ID_AT..key.len() - 1])
}

/// A conversation id out of a stored key.
pub(crate) fn conversation(id: &[u8]) -> Result<ConversationId, Corrupt> {
    ConversationId::from_stored(Bytes::copy_from_slice(id))
        .ok_or_else(|| corrupt("its conversation id cannot be one"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(id: &str) -> UserId {
        UserId::copied(id).expect("a valid user id")
    }

    fn group(id: &str) -> ConversationId {
        ConversationId::copied(id).expect("a valid conversation id")
    }

    fn within(range: &KeyRange, key: &Key) -> bool {
        range.from[..] <= key[..] && key[..] < range.to[..]
    }

    #[test]
    fn layout() {
        let conversation = group("team");
        let slot = conversation.slot().0.to_be_bytes();
        let keys = ConversationKeys::new(&conversation);
        let expected = [&slot[..], &[MESSAGE], b"team\0", &7u64.to_be_bytes()].concat();
        assert_eq!(keys.message(Seq(7))[..], expected);
        let message = ClientMessageId::copied("m1").expect("valid");
        let expected = [&slot[..], &[DEDUP], b"team\0al\0m1"].concat();
        assert_eq!(keys.dedup(&user("al"), &message)[..], expected);
        assert_eq!(slot_of(&expected), Some(conversation.slot()));
        assert_eq!(kind_of(&expected), Some(DEDUP));
    }

    #[test]
    fn longest_keys_fit() {
        let (a, b) = (user(&"a".repeat(64)), user(&"b".repeat(64)));
        let direct = ConversationId::direct(&a, &b).expect("two users");
        let message = ClientMessageId::copied(&"m".repeat(64)).expect("valid");
        let keys = ConversationKeys::new(&direct);
        assert_eq!(keys.dedup(&a, &message).len(), KEY_BYTES_MAX);
        assert!(UserKeys::new(&a).row(&direct).len() <= KEY_BYTES_MAX);
        assert!(keys.members(Some(&b)).from.len() <= KEY_BYTES_MAX);
    }

    #[test]
    fn ranges_hold_their_own_and_nothing_else() {
        let (team, team2) = (group("team"), group("team2"));
        let keys = ConversationKeys::new(&team);
        let (al, bo) = (user("al"), user("bo"));
        let all = keys.members(None);
        assert!(within(&all, &keys.member(&al)) && within(&all, &keys.member(&bo)));
        assert!(!within(&all, &ConversationKeys::new(&team2).member(&al)));
        let after = keys.members(Some(&al));
        assert!(!within(&after, &keys.member(&al)) && within(&after, &keys.member(&bo)));
        assert!(within(&after, &keys.member(&user("al-"))));

        let range = keys.messages(Seq(2), Seq(3));
        let inside = [1, 2, 3, 4].map(|seq| within(&range, &keys.message(Seq(seq))));
        assert_eq!(inside, [false, true, true, false]);
        let open = keys.messages(Seq(2), Seq(u64::MAX));
        assert!(within(&open, &keys.message(Seq(u64::MAX))));

        let user_keys = UserKeys::new(&al);
        let range = user_keys.inbox_after(InboxSeq(2));
        let inside = [1, 2, 3].map(|seq| within(&range, &user_keys.inbox(InboxSeq(seq))));
        assert_eq!(inside, [false, false, true]);

        let range = outbox_of_slot(team.slot(), None);
        assert!(within(&range, &keys.outbox()));
        let range = outbox_of_slot(team.slot(), Some(&team));
        assert!(!within(&range, &keys.outbox()));
    }

    #[test]
    fn parsers_return_what_was_built() {
        let (team, al) = (group("direct:al:bo"), user("al"));
        let keys = ConversationKeys::new(&team);
        assert_eq!(parse_message(&keys.message(Seq(9))), Ok(Seq(9)));
        assert_eq!(parse_member(&keys.member(&al)), Ok(al.clone()));
        assert_eq!(parse_outbox(&keys.outbox()), Ok(team.clone()));
        let user_keys = UserKeys::new(&al);
        let entry = user_keys.inbox(InboxSeq(5));
        assert_eq!(parse_inbox(&entry), Ok(InboxSeq(5)));
        let row = user_keys.row(&team);
        assert_eq!(parse_row(&row), Ok(team.as_bytes()));
        assert!(parse_inbox(&row).is_err());
        assert!(parse_message(&[]).is_err());
        assert!(parse_member(&[0, 0, MEMBER, b'a']).is_err());
    }
}
