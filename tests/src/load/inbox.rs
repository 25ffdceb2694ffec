//! A device's side of its inbox: brings pushed and synced entries into one order.
//!
//! Invariant: cursor ≤ wanted; everything in `ahead` is beyond cursor + 1.

use std::collections::BTreeMap;

use crate::history::{Entry, InboxSeq};

/// What a device has of its inbox.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    cursor: InboxSeq,
    wanted: InboxSeq,
    ahead: BTreeMap<InboxSeq, Entry>,
}

impl Inbox {
    /// Everything up to here has been taken in order.
    pub fn cursor(&self) -> InboxSeq {
        self.cursor
    }

    /// The newest entry that the device knows of.
    pub fn wanted(&self) -> InboxSeq {
        self.wanted
    }

    /// True when entries are known to exist that have not come yet.
    pub fn has_gap(&self) -> bool {
        self.cursor < self.wanted
    }

    /// Notes that the inbox goes at least up to here.
    pub fn want(&mut self, head: InboxSeq) {
        self.wanted = self.wanted.max(head);
    }

    /// Takes an entry; returns those that are now in order.
    pub fn accept(&mut self, inbox_seq: InboxSeq, entry: Entry) -> Vec<Entry> {
        self.want(inbox_seq);
        if inbox_seq > self.cursor {
            self.ahead.insert(inbox_seq, entry);
        }
        let mut in_order = Vec::new();
        while let Some(entry) = self.ahead.remove(&self.cursor.next()) {
            self.cursor = self.cursor.next();
            in_order.push(entry);
        }
        in_order
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Fingerprint, Seq};

    fn entry(seq: u64) -> Entry {
        Entry {
            conversation: "c".into(),
            seq: Seq(seq),
            message_id: seq,
            sender: "u".into(),
            client_message_id: None,
            sent_at_ms: 0,
            content: Fingerprint(0),
        }
    }

    #[test]
    fn takes_each_entry_once_and_in_order() {
        let mut inbox = Inbox::default();
        let mut taken = Vec::new();
        for seq in [1, 4, 3, 1, 2, 3, 5] {
            let in_order = inbox.accept(InboxSeq(seq), entry(seq));
            taken.extend(in_order.into_iter().map(|entry| entry.seq.0));
        }
        assert_eq!(taken, [1, 2, 3, 4, 5]);
        assert!(!inbox.has_gap());
        inbox.want(InboxSeq(7));
        assert!(inbox.has_gap());
        assert_eq!(inbox.cursor(), InboxSeq(5));
    }
}
