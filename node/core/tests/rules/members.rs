//! Refusals, the members limit, owners, leaving and rejoining.

use carillon_core::apply::{EARLIER_STAYS_MAX, MEMBERS_MAX};
use carillon_core::read::{self, Membership, members_all, membership};
use carillon_core::*;

use crate::chat::{Changing, Chat, conversation, refused, user, users};

#[test]
fn refusals() {
    let mut chat = Chat::new();
    assert!(matches!(
        chat.create("team", "al", &["bo", "cy"]),
        Reply::Created { .. }
    ));
    assert_eq!(chat.sent("direct:al:bo", "al", "m"), (1, false));
    let unknown = || refused(Refusal::ConversationNotFound);
    let not_a_member = || refused(Refusal::NotAMember);
    assert_eq!(chat.send("nowhere", "al", "m"), unknown());
    assert_eq!(chat.send("team", "zed", "m"), not_a_member());
    assert_eq!(chat.send("direct:al:bo", "zed", "m"), not_a_member());
    assert_eq!(chat.send("direct:al:cy", "zed", "m"), not_a_member());
    assert_eq!(
        chat.create("direct:al:bo", "al", &[]),
        refused(Refusal::DirectFixed)
    );
    assert_eq!(
        chat.create("team", "bo", &[]),
        refused(Refusal::ConversationExists)
    );
    assert_eq!(chat.add("nowhere", "al", users(&["zed"])), unknown());
    assert_eq!(chat.add("team", "zed", users(&["zed"])), not_a_member());
    let fixed = || refused(Refusal::DirectFixed);
    assert_eq!(chat.add("direct:al:bo", "al", users(&["zed"])), fixed());
    assert_eq!(chat.remove("direct:al:bo", "al", &["al"]), fixed());
    assert_eq!(
        chat.add("direct:al:bo", "zed", users(&["zed"])),
        not_a_member()
    );
    assert_eq!(
        chat.remove("team", "bo", &["cy"]),
        refused(Refusal::NotOwner)
    );
    assert_eq!(
        chat.remove("team", "bo", &["bo", "cy"]),
        refused(Refusal::NotOwner)
    );
    assert_eq!(chat.remove("team", "zed", &["zed"]), not_a_member());
    assert_eq!(
        chat.read("team", "al", 1, None),
        unknown(),
        "not delivered yet"
    );
    chat.deliver_all("team");
    assert_eq!(
        chat.read("team", "al", 2, None),
        refused(Refusal::SeqBeyondEnd { end: Seq(1) })
    );
    assert_eq!(
        chat.read("team", "al", 9, Some(8)),
        refused(Refusal::SeqBeyondEnd { end: Seq(1) })
    );
    assert_eq!(chat.read("team", "zed", 1, Some(1)), unknown());
}

#[test]
fn every_refusal_has_a_reason_and_a_text() {
    let refusals = [
        (Refusal::ConversationNotFound, "CONVERSATION_NOT_FOUND"),
        (Refusal::NotAMember, "NOT_A_MEMBER"),
        (Refusal::ConversationExists, "CONVERSATION_EXISTS"),
        (Refusal::NotOwner, "NOT_OWNER"),
        (
            Refusal::MembersLimit { max: 1, actual: 2 },
            "LIMIT_EXCEEDED",
        ),
        (Refusal::DirectFixed, "DIRECT_FIXED"),
        (Refusal::SeqBeyondEnd { end: Seq(1) }, "SEQ_BEYOND_END"),
        (Refusal::NotDeliveredYet, "NOT_DELIVERED_YET"),
    ];
    for (refusal, reason) in refusals {
        assert_eq!(refusal.reason(), reason);
        let text = refusal.to_string();
        assert!(text.contains(';') && !text.ends_with('.'), "{text}");
    }
}

#[test]
fn a_creation_is_recognised_when_retried() {
    let mut chat = Chat::new();
    let first = chat.create("team", "al", &["bo", "bo", "al"]);
    let Reply::Created {
        summary,
        existed: false,
    } = first
    else {
        panic!("not created: {first:?}");
    };
    assert_eq!((summary.member_count, summary.last_seq), (2, Seq(1)));
    let before = chat.view.clone();
    let existed = true;
    assert_eq!(
        chat.create("team", "al", &["bo", "cy"]),
        Reply::Created { summary, existed }
    );
    assert_eq!(chat.view, before);
}

#[test]
fn the_members_limit() {
    let mut chat = Chat::new();
    let many = |count: u32| -> Vec<UserId> {
        (0..count).map(|index| user(&format!("u{index}"))).collect()
    };
    let command = |members| Command::CreateGroup {
        conversation: conversation("big"),
        name: ConversationName::default(),
        creator: user("al"),
        members,
        request_id: RequestId::copied("request").expect("a valid id"),
    };
    let limit = |actual| {
        refused(Refusal::MembersLimit {
            max: MEMBERS_MAX,
            actual,
        })
    };
    let too_many = chat.apply(command(many(MEMBERS_MAX)));
    assert_eq!(too_many.reply, limit(MEMBERS_MAX + 1));
    assert!(chat.view.is_empty());
    let full = chat.apply(command(many(MEMBERS_MAX - 2)));
    assert!(matches!(full.reply, Reply::Created { .. }));
    let before = chat.view.clone();
    assert_eq!(
        chat.add("big", "al", users(&["x", "y"])),
        limit(MEMBERS_MAX + 1)
    );
    assert_eq!(chat.view, before);
    assert!(matches!(
        chat.add("big", "al", users(&["x", "u1"])),
        Reply::Members { .. }
    ));
    assert_eq!(chat.add("big", "al", users(&["y"])), limit(MEMBERS_MAX + 1));
    chat.deliver_all("big");
    assert_eq!(chat.delivered("big", "u0"), [1, 2]);
    assert_eq!(chat.delivered("big", "x"), [2]);
}

#[test]
fn the_member_who_joined_first_inherits() {
    let mut chat = Chat::new();
    chat.create("team", "zed", &["cy", "bo"]);
    chat.add("team", "bo", users(&["al"]));
    chat.remove("team", "zed", &["zed"]);
    let owner = |chat: &Chat| -> Vec<String> {
        let members = read::members_page(&chat.view, &conversation("team"), None, 10).members;
        let owners = members
            .into_iter()
            .filter(|(_, member)| member.role == records::Role::Owner);
        owners.map(|(user, _)| user.to_string()).collect()
    };
    assert_eq!(
        owner(&chat),
        ["bo"],
        "joined as cy did, and has the smaller id"
    );
    chat.remove("team", "bo", &["bo", "cy"]);
    assert_eq!(owner(&chat), ["al"], "the only one left");
    chat.remove("team", "al", &["al"]);
    assert_eq!(owner(&chat), [""; 0]);
    chat.deliver_all("team");
    assert_eq!(chat.delivered("team", "zed"), [1, 2, 3]);
    assert_eq!(chat.delivered("team", "al"), [2, 3, 4, 5]);
}

#[test]
fn who_rejoins_before_the_delivery_misses_nothing_and_sees_nothing_between() {
    let mut chat = Chat::new();
    chat.create("team", "al", &["bo"]);
    chat.sent("team", "al", "two");
    chat.remove("team", "al", &["bo"]); // 3
    chat.sent("team", "al", "four");
    chat.add("team", "al", users(&["bo"])); // 5
    chat.sent("team", "al", "six");
    chat.deliver_all("team");
    assert_eq!(chat.delivered("team", "bo"), [1, 2, 3, 5, 6]);
    let row = read::row(&chat.view, &user("bo"), &conversation("team")).expect("a row");
    assert_eq!(
        (row.unread, row.left),
        (1, false),
        "only what came after the return"
    );
}

#[test]
fn a_departed_member_is_forgotten_after_the_delivery() {
    let mut chat = Chat::new();
    chat.create("team", "al", &["bo", "cy"]);
    chat.remove("team", "al", &["bo"]);
    let known = |chat: &Chat| members_all(&chat.view, &conversation("team")).len();
    assert_eq!(known(&chat), 3);
    chat.add("team", "al", users(&["dan"]));
    assert_eq!(known(&chat), 4, "bo has still to be told");
    chat.deliver_all("team");
    chat.add("team", "al", users(&["eve"]));
    assert_eq!(known(&chat), 4, "al, cy, dan, eve");
    assert_eq!(chat.send("team", "bo", "m"), refused(Refusal::NotAMember));
}

#[test]
fn rejoining_without_end_waits_for_the_deliveries() {
    let mut chat = Chat::new();
    chat.create("team", "al", &["bo"]);
    for _ in 0..EARLIER_STAYS_MAX {
        chat.remove("team", "bo", &["bo"]);
        assert!(matches!(
            chat.add("team", "al", users(&["bo"])),
            Reply::Members { .. }
        ));
    }
    chat.remove("team", "bo", &["bo"]);
    assert_eq!(
        chat.add("team", "al", users(&["bo"])),
        refused(Refusal::NotDeliveredYet)
    );
    chat.deliver_all("team");
    assert!(matches!(
        chat.add("team", "al", users(&["bo"])),
        Reply::Members { .. }
    ));
    chat.deliver_all("team");
    let end = 2 * EARLIER_STAYS_MAX as u64 + 3;
    assert_eq!(chat.delivered("team", "bo"), (1..=end).collect::<Vec<_>>());
}

/// Queries read while commands are applied, one read after the other: whoever a conversation
/// begins with is never told that they are not in it.
#[test]
fn a_conversation_that_begins_during_a_query_refuses_no_member() {
    let before = Chat::new();
    let mut begun = Chat::new();
    begun.sent("direct:alice:bob", "alice", "m1");
    begun.create("group", "alice", &["bob"]);
    for id in ["direct:alice:bob", "group"] {
        for reads in 0..5 {
            let view = Changing {
                before: &before.view,
                after: &begun.view,
                reads_left: reads.into(),
            };
            let seen = membership(&view, &conversation(id), &user("bob"));
            assert_ne!(seen, Membership::NotAMember, "{id}, after {reads} reads");
        }
        let seen = membership(&begun.view, &conversation(id), &user("carol"));
        assert_eq!(seen, Membership::NotAMember, "{id}");
    }
}
