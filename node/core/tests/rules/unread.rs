//! Unread counts in an inbox that is so long that counting one by one would not do.

use std::cell::Cell;

use bytes::Bytes;
use carillon_core::memory::MemoryView;
use carillon_core::view::Visitor;
use carillon_core::*;

use crate::chat::{Chat, START, conversation, user};

/// Counts reads of single keys.
struct Counting<'a> {
    view: &'a mut MemoryView,
    gets: Cell<usize>,
}

impl ReadView for Counting<'_> {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.gets.set(self.gets.get() + 1);
        self.view.get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], reverse: bool, f: Visitor<'_>) {
        self.view.scan(from, to, reverse, f);
    }
}

impl View for Counting<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.view.put(key, value);
    }

    fn delete(&mut self, key: &[u8]) {
        self.view.delete(key);
    }

    fn remember(&mut self, key: &[u8], value: u64) {
        self.view.remember(key, value);
    }

    fn recall(&self, key: &[u8]) -> Option<u64> {
        self.view.recall(key)
    }
}

#[test]
fn unread_is_exact_and_quickly_found_in_a_long_inbox() {
    const ENTRIES: u64 = 20_000;
    /// The row, 4 links of 4,096 entries and the one too far, 64 of 64, 64 single ones.
    const READS_MAX: usize = 140;
    let mut chat = Chat::new();
    let (al, to) = (user("al"), conversation("team"));
    // Every fifth entry is al's own, every seventh a notice; another conversation between.
    let sender = |seq: u64| {
        if seq.is_multiple_of(5) {
            user("al")
        } else {
            user("bo")
        }
    };
    let countable = |seq: u64| !seq.is_multiple_of(7);
    for seq in 1..=ENTRIES {
        for (conversation, seq) in [(to.clone(), seq), (conversation("noise"), seq)] {
            chat.apply(Command::Deliver {
                conversation,
                seq: Seq(seq),
                at: chat.now,
                sender: sender(seq),
                countable: countable(seq),
                users: vec![al.clone()],
                leaving: Vec::new(),
            });
        }
    }
    let literal = |read: u64| {
        let after = (read + 1..=ENTRIES).filter(|seq| countable(*seq) && sender(*seq) != al);
        after.count() as u32
    };
    let row = read::row(&chat.view, &al, &to).expect("a row");
    assert_eq!(row.unread, literal(0));
    let last = ENTRIES - 1;
    for read in [
        1, 2, 63, 64, 65, 4095, 4096, 4097, 9_999, 16_384, 19_900, last, ENTRIES,
    ] {
        let mut view = Counting {
            view: &mut chat.view,
            gets: Cell::new(0),
        };
        let mut cx = Context::new(ShardId(1), SlotRange::ALL, START, &mut chat.clock);
        let command = Command::MarkRead {
            user: al.clone(),
            conversation: to.clone(),
            seq: Seq(read),
            verified_end: None,
        };
        let effects = apply(&mut view, &mut cx, command);
        let unread = literal(read);
        assert_eq!(
            effects.reply,
            Reply::Read {
                read_seq: Seq(read),
                unread
            }
        );
        assert!(
            view.gets.get() <= READS_MAX,
            "{} reads for {read}",
            view.gets.get()
        );
    }
    let back = chat.read("team", "al", 5, None);
    assert_eq!(
        back,
        Reply::Read {
            read_seq: Seq(ENTRIES),
            unread: 0
        }
    );
}
