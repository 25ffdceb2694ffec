//! Pages of timelines, inboxes, members, lists and markers.

use carillon_core::read::{self, Direction, MessagesQuery, inbox_page, messages_page, rows_page};
use carillon_core::*;

use crate::chat::{Chat, conversation, user};

#[test]
fn pages_of_messages() {
    let mut chat = Chat::new();
    let to = conversation("direct:al:bo");
    for index in 0..10 {
        chat.sent("direct:al:bo", "al", &format!("m{index}"));
    }
    use Direction::{Backward, Forward};
    // from, to, direction, limit, visible from: the seqs and where to go on.
    type Case = (u64, u64, Direction, usize, u64, &'static [u64], u64);
    let cases: [Case; 15] = [
        (0, 0, Forward, 3, 1, &[1, 2, 3], 4),
        (4, 0, Forward, 3, 1, &[4, 5, 6], 7),
        (8, 0, Forward, 3, 1, &[8, 9, 10], 0),
        (9, 0, Forward, 3, 1, &[9, 10], 0),
        (11, 0, Forward, 3, 1, &[], 0),
        (2, 4, Forward, 9, 1, &[2, 3, 4], 0),
        (2, 99, Forward, 2, 1, &[2, 3], 4),
        (0, 0, Forward, 2, 7, &[7, 8], 9),
        (0, 0, Backward, 3, 1, &[10, 9, 8], 7),
        (2, 0, Backward, 3, 1, &[2, 1], 0),
        (99, 0, Backward, 2, 1, &[10, 9], 8),
        (5, 4, Backward, 9, 1, &[5, 4], 0),
        (0, 0, Backward, 9, 8, &[10, 9, 8], 0),
        (3, 0, Backward, 9, 4, &[], 0),
        (3, 2, Forward, 9, 1, &[], 0),
    ];
    for case in cases {
        let (from, to_seq, direction, limit, visible_from, seqs, next) = case;
        let query = MessagesQuery {
            from: Seq(from),
            to: Seq(to_seq),
            direction,
            limit,
            bytes_max: usize::MAX,
            visible_from: Seq(visible_from),
        };
        let page = messages_page(&chat.view, &to, &query);
        let found: Vec<u64> = page.messages.iter().map(|(seq, _)| seq.0).collect();
        assert_eq!((&found[..], page.next_seq.0), (seqs, next), "{case:?}");
        assert_eq!(page.last_seq, Seq(10));
        let small = MessagesQuery {
            bytes_max: 1,
            ..query
        };
        let page = messages_page(&chat.view, &to, &small);
        assert_eq!(
            page.messages.len(),
            seqs.len().min(1),
            "always one: {case:?}"
        );
    }
    let unknown = messages_page(
        &chat.view,
        &conversation("nowhere"),
        &MessagesQuery {
            from: Seq(0),
            to: Seq(0),
            direction: Forward,
            limit: 5,
            bytes_max: 5,
            visible_from: Seq(1),
        },
    );
    assert_eq!(unknown, read::MessagesPage::default());
    let wanted = [(&to, Seq(3)), (&to, Seq(11))];
    let found = read::messages(&chat.view, wanted);
    assert!(found[0].is_some() && found[1].is_none());
}

#[test]
fn pages_of_inboxes_members_rows_and_markers() {
    let mut chat = Chat::new();
    let ids: Vec<String> = (0..7).map(|index| format!("group{index}")).collect();
    for id in &ids {
        chat.now.0 += 1;
        chat.create(id, "al", &["bo", "cy", "dan"]);
    }
    let mut markers = Vec::new();
    while let Some(marker) = {
        let after = markers.last().map(|(id, _): &(ConversationId, Seq)| id);
        read::outbox_markers(&chat.view, SlotRange::ALL, after, 1).pop()
    } {
        markers.push(marker);
    }
    let all = read::outbox_markers(&chat.view, SlotRange::ALL, None, 99);
    assert_eq!(markers, all);
    assert_eq!(markers.len(), ids.len());
    assert!(markers.is_sorted_by_key(|(id, _)| (id.slot(), id.clone())));
    for id in &ids {
        chat.deliver_all(id);
    }
    assert!(read::outbox_markers(&chat.view, SlotRange::ALL, None, 99).is_empty());

    let page = inbox_page(&chat.view, &user("bo"), InboxSeq(2), 3);
    let seqs: Vec<u64> = page.entries.iter().map(|(seq, _)| seq.0).collect();
    assert_eq!((seqs, page.head), (vec![3, 4, 5], InboxSeq(7)));
    assert!(
        inbox_page(&chat.view, &user("bo"), InboxSeq(7), 3)
            .entries
            .is_empty()
    );
    assert!(
        inbox_page(&chat.view, &user("bo"), InboxSeq(9), 3)
            .entries
            .is_empty()
    );

    let page = rows_page(&chat.view, &user("bo"), None, 3);
    let latest: Vec<_> = page.rows.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(latest, ["group6", "group5", "group4"]);
    let page = rows_page(&chat.view, &user("bo"), page.next.as_ref(), 4);
    assert_eq!(
        (page.rows.len(), page.next),
        (4, None),
        "the last page says so"
    );

    let to = conversation("group0");
    chat.remove("group0", "al", &["bo"]);
    let page = read::members_page(&chat.view, &to, None, 2);
    let names: Vec<_> = page.members.iter().map(|(user, _)| user.as_str()).collect();
    assert_eq!(
        (names, page.next.clone()),
        (vec!["al", "cy"], Some(user("cy")))
    );
    let page = read::members_page(&chat.view, &to, page.next.as_ref(), 2);
    assert_eq!((page.members.len(), page.next), (1, None));
}
