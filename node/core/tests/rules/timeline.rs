//! Sends that are recognised, times and ids, the outbox marker.

use carillon_core::apply::{DEDUP_PRUNE_ENTRIES_MAX, DEDUP_WINDOW_MS};
use carillon_core::*;

use crate::chat::{Chat, START, conversation, refused};

#[test]
fn sends_are_recognised_for_a_day_even_after_leaving() {
    let mut chat = Chat::new();
    chat.create("team", "al", &["bo"]);
    assert_eq!(chat.sent("team", "bo", "m"), (2, false));
    chat.remove("team", "bo", &["bo"]);
    chat.now.0 += DEDUP_WINDOW_MS;
    assert_eq!(chat.sent("team", "bo", "m"), (2, true));
    assert_eq!(
        chat.send("team", "bo", "other"),
        refused(Refusal::NotAMember)
    );
}

#[test]
fn old_dedup_records_go_and_young_ones_stay() {
    let mut chat = Chat::new();
    let to = "direct:al:bo";
    let dedup_records = |chat: &Chat| {
        let kinds = chat.view.iter().map(|(key, _)| keys::kind_of(key));
        kinds.filter(|kind| *kind == Some(keys::DEDUP)).count() as u64
    };
    let old = 2_000;
    for index in 0..old {
        chat.sent(to, "al", &format!("old{index}"));
    }
    assert_eq!(dedup_records(&chat), old, "all are younger than the window");
    chat.now.0 += DEDUP_WINDOW_MS + 10_000;
    let prunes = old.div_ceil(DEDUP_PRUNE_ENTRIES_MAX as u64);
    let young = (prunes + 1) * 64;
    for index in 0..young {
        chat.sent(to, "bo", &format!("young{index}"));
    }
    assert_eq!(dedup_records(&chat), young);
    assert_eq!(chat.sent(to, "bo", "young0"), (old + 1, true));
    let (seq, duplicate) = chat.sent(to, "al", "old0");
    assert_eq!((seq, duplicate), (old + young + 1, false), "a new message");
}

#[test]
fn times_and_ids_never_go_back() {
    let mut chat = Chat::new();
    let mut last = (TimestampMs(0), MessageId(0));
    for index in 0..5_000 {
        if index == 3_000 {
            chat.now.0 -= 500;
        }
        let Reply::Sent { at, message_id, .. } =
            chat.send("direct:al:bo", "al", &format!("m{index}"))
        else {
            panic!("not sent");
        };
        assert!(at >= last.0 && message_id > last.1);
        assert_eq!(message_id.at(), at, "the id's time is the message's");
        last = (at, message_id);
    }
    assert_eq!(last.0.0, START.0 + 4, "1,024 ids a millisecond");
}

#[test]
fn a_late_outbox_advance_brings_no_marker_back() {
    let mut chat = Chat::new();
    let to = conversation("direct:al:bo");
    for index in 0..3 {
        chat.sent("direct:al:bo", "al", &format!("m{index}"));
    }
    let advance = |chat: &mut Chat, upto| {
        let items = vec![(conversation("direct:al:bo"), Seq(upto))];
        chat.apply(Command::AdvanceOutbox { items });
        read::outbox_marker(&chat.view, &to)
    };
    assert_eq!(advance(&mut chat, 2), Some(Seq(2)));
    assert_eq!(advance(&mut chat, 1), Some(Seq(2)));
    assert_eq!(advance(&mut chat, 3), None);
    assert_eq!(advance(&mut chat, 2), None);
    chat.sent("direct:al:bo", "al", "m3");
    assert_eq!(read::outbox_marker(&chat.view, &to), Some(Seq(3)));
}

#[test]
fn a_checksum_changes_nothing() {
    let mut chat = Chat::new();
    let effects = chat.apply(Command::Checksum { nonce: 7 });
    assert_eq!(effects.event, Some(Event::ChecksumRequested { nonce: 7 }));
    assert!(chat.view.is_empty());
}
