//! The model: what a chat is, without any regard for cost. Everything is counted and
//! searched from the whole history each time.

use std::collections::{BTreeMap, BTreeSet};

use carillon_core::{ClientMessageId, ConversationId, RequestId, Seq, TimestampMs, UserId};

/// One entry of a timeline; its seq is its place in the list, from 1.
#[derive(Clone, Debug)]
pub struct Entry {
    pub sender: UserId,
    /// None of a notice.
    pub client_message_id: Option<ClientMessageId>,
    pub at: TimestampMs,
    pub message_id: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Conversation {
    pub direct: bool,
    pub request: Option<(UserId, RequestId)>,
    pub entries: Vec<Entry>,
    /// Every stay of every user: from its first entry to its last one, if it ended.
    pub stays: BTreeMap<UserId, Vec<(Seq, Option<Seq>)>>,
    pub owner: Option<UserId>,
}

impl Conversation {
    pub fn end(&self) -> Seq {
        Seq(self.entries.len() as u64)
    }

    pub fn is_member(&self, user: &UserId) -> bool {
        let stays = self.stays.get(user);
        stays.is_some_and(|stays| stays.iter().any(|(_, left)| left.is_none()))
    }

    pub fn members(&self) -> Vec<UserId> {
        let users = self.stays.keys().filter(|user| self.is_member(user));
        users.cloned().collect()
    }

    pub fn joined_seq(&self, user: &UserId) -> Option<Seq> {
        let mut stays = self.stays.get(user)?.iter();
        stays
            .find(|(_, left)| left.is_none())
            .map(|(joined, _)| *joined)
    }

    /// What the user is to get: every entry of every stay.
    pub fn entries_for(&self, user: &UserId) -> Vec<Seq> {
        let seqs = (1..=self.end().0).map(Seq);
        let stays = self.stays.get(user).cloned().unwrap_or_default();
        seqs.filter(|seq| {
            stays
                .iter()
                .any(|(joined, left)| joined <= seq && left.is_none_or(|left| *seq <= left))
        })
        .collect()
    }

    pub fn removed_at(&self, user: &UserId, seq: Seq) -> bool {
        let stays = self.stays.get(user);
        stays.is_some_and(|stays| stays.iter().any(|(_, left)| *left == Some(seq)))
    }

    pub fn entry(&self, seq: Seq) -> &Entry {
        &self.entries[seq.0 as usize - 1]
    }
}

/// What one user has been given.
#[derive(Clone, Debug, Default)]
pub struct Inbox {
    /// In order of arrival; the inbox seq is the place in the list, from 1.
    pub entries: Vec<(ConversationId, Seq)>,
    pub read: BTreeMap<ConversationId, Seq>,
    /// Conversations whose last delivered entry removed the user.
    pub left: BTreeSet<ConversationId>,
}

#[derive(Debug, Default)]
pub struct Chat {
    pub conversations: BTreeMap<ConversationId, Conversation>,
    pub inboxes: BTreeMap<UserId, Inbox>,
    /// First answers: seq and time.
    pub sent: BTreeMap<(ConversationId, UserId, ClientMessageId), (Seq, TimestampMs)>,
}

impl Chat {
    pub fn inbox(&self, user: &UserId) -> Inbox {
        self.inboxes.get(user).cloned().unwrap_or_default()
    }

    pub fn delivered(&self, user: &UserId, conversation: &ConversationId) -> Vec<Seq> {
        let inbox = self.inbox(user);
        let entries = inbox.entries.iter().filter(|(id, _)| id == conversation);
        entries.map(|(_, seq)| *seq).collect()
    }

    pub fn read_seq(&self, user: &UserId, conversation: &ConversationId) -> Seq {
        let inbox = self.inbox(user);
        inbox.read.get(conversation).copied().unwrap_or_default()
    }

    /// The literal count.
    pub fn unread(&self, user: &UserId, conversation: &ConversationId) -> u32 {
        let Some(timeline) = self.conversations.get(conversation) else {
            return 0;
        };
        let read = self.read_seq(user, conversation);
        let delivered = self.delivered(user, conversation);
        let unread = delivered.into_iter().filter(|seq| {
            let entry = timeline.entry(*seq);
            *seq > read && entry.client_message_id.is_some() && entry.sender != *user
        });
        unread.count() as u32
    }

    /// Gives the entry to the user unless they have it; says whether it was new.
    pub fn deliver(&mut self, user: &UserId, conversation: &ConversationId, seq: Seq) -> bool {
        let leaves = self.conversations[conversation].removed_at(user, seq);
        let inbox = self.inboxes.entry(user.clone()).or_default();
        let entry = (conversation.clone(), seq);
        if inbox.entries.contains(&entry) {
            return false;
        }
        inbox.entries.push(entry);
        if leaves {
            inbox.left.insert(conversation.clone());
            let read = inbox.read.entry(conversation.clone()).or_default();
            *read = seq.max(*read);
        } else {
            inbox.left.remove(conversation);
        }
        true
    }

    /// The user's list: what they were given and have not left, the latest first.
    pub fn list(&self, user: &UserId) -> Vec<(ConversationId, Seq, u32, Seq)> {
        let inbox = self.inbox(user);
        let mut list = Vec::new();
        for conversation in self.conversations.keys() {
            let delivered = self.delivered(user, conversation);
            if let Some(last) = delivered.last()
                && !inbox.left.contains(conversation)
            {
                let at = self.conversations[conversation].entry(*last).at;
                list.push((std::cmp::Reverse(at), conversation.clone(), *last));
            }
        }
        list.sort();
        let rows = list.into_iter().map(|(_, conversation, last)| {
            let unread = self.unread(user, &conversation);
            let read = self.read_seq(user, &conversation);
            (conversation, last, unread, read)
        });
        rows.collect()
    }
}
