//! Which inbox entry the application gets next, and what is missing before it.
//!
//! Owner of a session's position in the inbox; pure. Entries come from the stream
//! (`delivered`) and from Sync (`page`), doubled and with gaps; they leave by `next`,
//! dense and once.
//!
//! Invariants: `position` only grows, by one for each entry that leaves; all of `held` is
//! after `position`; `target ≥ position` unless the server's inbox is shorter than the
//! cursor, which the session checks.

use std::collections::BTreeMap;

use carillon_proto::v1::InboxEntry;

/// Entries kept while earlier ones are missing or the application is slow. What comes
/// beyond it is dropped here and read again with Sync.
pub(crate) const HELD_ENTRIES_MAX: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Inbox {
    position: u64,
    /// The highest inbox_seq that is known to exist.
    target: u64,
    held: BTreeMap<u64, InboxEntry>,
    /// The head when the session last connected, until that point has been passed.
    catch_up_to: Option<u64>,
}

impl Inbox {
    /// Begins after `cursor`.
    pub(crate) fn new(cursor: u64) -> Self {
        Self {
            position: cursor,
            target: cursor,
            held: BTreeMap::new(),
            catch_up_to: None,
        }
    }

    /// The last entry that left.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// A stream begins; the inbox ends at `head`.
    pub(crate) fn connected(&mut self, head: u64) {
        self.catch_up_to = Some(head);
        self.exists(head);
    }

    /// The server knows an entry `seq` (from a heartbeat or a resync hint).
    pub(crate) fn exists(&mut self, seq: u64) {
        self.target = self.target.max(seq);
    }

    /// An entry came on the stream.
    pub(crate) fn delivered(&mut self, entry: InboxEntry) {
        self.exists(entry.inbox_seq);
        if entry.inbox_seq > self.position && self.held.len() < HELD_ENTRIES_MAX {
            self.held.entry(entry.inbox_seq).or_insert(entry);
        }
    }

    /// A Sync from `from` was answered: the entries after it, up to `cursor`. Entries that
    /// the server does not have any more are passed over. False when it brought nothing.
    pub(crate) fn page(&mut self, from: u64, entries: Vec<InboxEntry>, cursor: u64) -> bool {
        let before = (self.position, self.held.len());
        let first = entries.first().map_or(cursor, |entry| entry.inbox_seq - 1);
        if from <= self.position && first > self.position {
            tracing::warn!(
                after = self.position,
                up_to = first,
                "inbox entries have expired; read the conversations themselves"
            );
            self.position = first;
            self.held = self.held.split_off(&(first + 1));
        }
        for entry in entries {
            // Not bounded by HELD_ENTRIES_MAX: a page is, and it fills the gap.
            if entry.inbox_seq > self.position {
                self.held.insert(entry.inbox_seq, entry);
            }
        }
        self.exists(self.position);
        before != (self.position, self.held.len())
    }

    /// True when an entry can leave now.
    pub(crate) fn has_next(&self) -> bool {
        self.held.contains_key(&(self.position + 1))
    }

    /// The next entry; it leaves.
    pub(crate) fn next(&mut self) -> Option<InboxEntry> {
        let entry = self.held.remove(&(self.position + 1))?;
        self.position += 1;
        Some(entry)
    }

    /// True when the next entry exists but is not here: a Sync from `position` brings it.
    pub(crate) fn needs_sync(&self) -> bool {
        self.position < self.target && !self.has_next()
    }

    /// True once after each connect: all that was there before it has left.
    pub(crate) fn caught_up(&mut self) -> bool {
        let reached = self.catch_up_to.is_some_and(|head| head <= self.position);
        if reached {
            self.catch_up_to = None;
        }
        reached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(seq: u64) -> InboxEntry {
        InboxEntry {
            inbox_seq: seq,
            ..Default::default()
        }
    }

    fn page(seqs: std::ops::RangeInclusive<u64>) -> Vec<InboxEntry> {
        seqs.map(entry).collect()
    }

    fn drain(inbox: &mut Inbox) -> Vec<u64> {
        std::iter::from_fn(|| inbox.next())
            .map(|e| e.inbox_seq)
            .collect()
    }

    #[test]
    fn live_entries_pass_once_in_order() {
        let mut inbox = Inbox::new(4);
        for seq in [5, 5, 4, 6] {
            inbox.delivered(entry(seq));
        }
        assert_eq!(drain(&mut inbox), [5, 6]);
        assert!(!inbox.needs_sync());
    }

    #[test]
    fn a_gap_waits_for_sync_and_then_goes_on_with_what_was_held() {
        let mut inbox = Inbox::new(0);
        inbox.connected(3);
        inbox.delivered(entry(4));
        inbox.delivered(entry(5));
        assert_eq!(drain(&mut inbox), []);
        assert!(inbox.needs_sync() && !inbox.caught_up());
        assert!(inbox.page(0, page(1..=4), 4));
        assert_eq!(drain(&mut inbox), [1, 2, 3, 4, 5]);
        assert!(!inbox.needs_sync() && inbox.caught_up() && !inbox.caught_up());
    }

    #[test]
    fn a_heartbeat_shows_what_was_lost() {
        let mut inbox = Inbox::new(2);
        inbox.exists(2);
        assert!(!inbox.needs_sync());
        inbox.exists(3);
        assert!(inbox.needs_sync());
    }

    #[test]
    fn what_is_held_is_bounded_and_the_rest_is_read_again() {
        let mut inbox = Inbox::new(0);
        let last = 2 * HELD_ENTRIES_MAX as u64;
        for seq in 2..=last {
            inbox.delivered(entry(seq));
        }
        assert_eq!(inbox.held.len(), HELD_ENTRIES_MAX);
        inbox.page(0, page(1..=1), 1);
        assert_eq!(drain(&mut inbox).len(), HELD_ENTRIES_MAX + 1);
        assert!(inbox.needs_sync());
    }

    #[test]
    fn a_page_that_is_late_or_empty_changes_nothing() {
        let mut inbox = Inbox::new(0);
        for seq in 1..=3 {
            inbox.delivered(entry(seq));
        }
        assert_eq!(drain(&mut inbox), [1, 2, 3]);
        assert!(!inbox.page(0, page(1..=3), 3));
        inbox.exists(9);
        assert!(!inbox.page(3, Vec::new(), 3));
        assert!(inbox.needs_sync());
        assert_eq!(drain(&mut inbox), []);
    }

    #[test]
    fn expired_entries_are_passed_over() {
        let mut inbox = Inbox::new(0);
        inbox.connected(20);
        assert!(inbox.page(0, page(11..=20), 20));
        assert_eq!(drain(&mut inbox), (11..=20).collect::<Vec<_>>());
        assert!(inbox.caught_up());
    }
}
