//! Queries over a small state that real commands made.

use carillon_core::command::Command;
use carillon_core::memory::MemoryView;
use carillon_core::records::ShardClock;
use carillon_core::{
    ClientMessageId, Context, ConversationName, RequestId, ShardId, SlotRange, apply,
};
use prost::Message;

use super::*;

fn user(id: &str) -> UserId {
    UserId::copied(id).expect("an id")
}

fn conversation_id(id: &str) -> ConversationId {
    ConversationId::copied(id).expect("an id")
}

fn text(body: &str) -> v1::Content {
    v1::Content {
        kind: Some(v1::content::Kind::Text(v1::Text { body: body.into() })),
    }
}

/// The group `g1` of alice, bob and carol: a notice and two messages, all delivered to bob.
fn state() -> MemoryView {
    let mut view = MemoryView::new();
    let mut clock = ShardClock::default();
    let mut run = |command: Command| {
        let mut context = Context::new(
            ShardId(1),
            SlotRange::ALL,
            TimestampMs(1_800_000_000_000),
            &mut clock,
        );
        let reply = apply(&mut view, &mut context, command).reply;
        assert!(!matches!(reply, Reply::Refused(_)), "{reply:?}");
    };
    run(Command::CreateGroup {
        conversation: conversation_id("g1"),
        name: ConversationName::parse("Team").expect("a name"),
        creator: user("alice"),
        members: vec![user("bob"), user("carol")],
        request_id: RequestId::copied("r1").expect("an id"),
    });
    for (id, body) in [("m1", "one"), ("m2", "two")] {
        run(Command::Send {
            conversation: conversation_id("g1"),
            sender: user("alice"),
            client_message_id: ClientMessageId::copied(id).expect("an id"),
            content: text(body).encode_to_vec().into(),
        });
    }
    for seq in 1..=3 {
        run(Command::Deliver {
            conversation: conversation_id("g1"),
            seq: Seq(seq),
            at: TimestampMs(1_800_000_000_000),
            sender: user("alice"),
            countable: seq > 1,
            users: vec![user("bob")],
            leaving: vec![],
        });
    }
    view
}

fn ask(kind: query::Kind) -> Option<answer::Kind> {
    execute(&state(), &Query { kind: Some(kind) }).kind
}

fn refusal(kind: query::Kind) -> Refusal {
    match ask(kind) {
        Some(answer::Kind::Refused(encoded)) => match Reply::decode(&encoded).expect("decodes") {
            Reply::Refused(refusal) => refusal,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn messages_query(user: &str, conversation: &str) -> query::Kind {
    query::Kind::Messages(internal::MessagesQuery {
        user_id: user.into(),
        request: Some(v1::GetMessagesRequest {
            conversation_id: conversation.into(),
            direction: v1::Direction::Backward.into(),
            limit: 2,
            bytes_max: 1 << 20,
            ..Default::default()
        }),
    })
}

#[test]
fn a_range_of_messages() {
    let Some(answer::Kind::Messages(page)) = ask(messages_query("bob", "g1")) else {
        panic!("no page")
    };
    assert_eq!((page.last_seq, page.next_seq), (3, 1));
    assert_eq!(
        page.messages
            .iter()
            .map(|message| message.seq)
            .collect::<Vec<_>>(),
        [3, 2]
    );
    assert_eq!(page.messages[0].content, Some(text("two")));
    assert_eq!(page.messages[0].client_message_id, "m2");
}

#[test]
fn who_may_not_read() {
    assert_eq!(refusal(messages_query("dave", "g1")), Refusal::NotAMember);
    assert_eq!(
        refusal(messages_query("bob", "g2")),
        Refusal::ConversationNotFound
    );
    let members = internal::MembersQuery {
        user_id: "dave".into(),
        conversation_id: "g1".into(),
        page_size: 10,
        ..Default::default()
    };
    assert_eq!(refusal(query::Kind::Members(members)), Refusal::NotAMember);
    let one = |user: &str, id: &str| {
        query::Kind::Conversation(internal::ConversationQuery {
            user_id: user.into(),
            conversation_id: id.into(),
        })
    };
    assert_eq!(refusal(one("dave", "g1")), Refusal::NotAMember);
    assert_eq!(refusal(one("", "g2")), Refusal::ConversationNotFound);
    assert!(
        matches!(ask(one("", "g1")), Some(answer::Kind::Conversation(_))),
        "the cluster itself may"
    );
}

#[test]
fn references() {
    let reference = |id: &str, seq| internal::MessageRef {
        conversation_id: id.into(),
        seq,
    };
    let refs = vec![
        reference("g1", 3),
        reference("g1", 99),
        reference("g1", 0),
        reference("g2", 1),
    ];
    let Some(answer::Kind::MessagesByRef(answer)) =
        ask(query::Kind::MessagesByRef(internal::MessagesByRefQuery {
            refs,
        }))
    else {
        panic!("no answer")
    };
    assert_eq!(
        answer
            .messages
            .iter()
            .map(|message| message.seq)
            .collect::<Vec<_>>(),
        [3, 0, 0, 0]
    );
    assert_eq!(answer.conversations.len(), 1);
    assert_eq!(answer.conversations[0].name, "Team");
    assert_eq!(answer.conversations[0].kind(), v1::ConversationKind::Group);
}

#[test]
fn an_inbox_and_its_list() {
    let inbox = internal::InboxQuery {
        user_id: "bob".into(),
        after_inbox_seq: 1,
        limit: 1,
    };
    let Some(answer::Kind::Inbox(page)) = ask(query::Kind::Inbox(inbox)) else {
        panic!("no page")
    };
    assert_eq!(
        (
            page.inbox_head,
            page.entries.len(),
            page.entries[0].inbox_seq
        ),
        (3, 1, 2)
    );
    let list = internal::ConversationListQuery {
        user_id: "bob".into(),
        page_size: 10,
        ..Default::default()
    };
    let Some(answer::Kind::ConversationList(list)) = ask(query::Kind::ConversationList(list))
    else {
        panic!("no list")
    };
    assert_eq!(
        (list.more, list.unread_total, list.rows.len()),
        (false, 2, 1)
    );
    assert_eq!(
        (list.rows[0].last_delivered_seq, list.rows[0].unread),
        (3, 2)
    );
}

#[test]
fn members_by_page() {
    let query = |after: &str| {
        query::Kind::Members(internal::MembersQuery {
            user_id: "alice".into(),
            conversation_id: "g1".into(),
            page_size: 2,
            after_user_id: after.into(),
        })
    };
    let Some(answer::Kind::Members(page)) = ask(query("")) else {
        panic!("no page")
    };
    assert_eq!(
        page.members
            .iter()
            .map(|member| member.user_id.as_str())
            .collect::<Vec<_>>(),
        ["alice", "bob"]
    );
    assert_eq!(page.members[0].role(), v1::MemberRole::Owner);
    assert_eq!(page.next_page_token, "bob");
    let Some(answer::Kind::Members(page)) = ask(query("bob")) else {
        panic!("no page")
    };
    assert_eq!((page.members.len(), page.next_page_token.as_str()), (1, ""));
}

#[test]
fn heads_and_cursors() {
    let subscribe = internal::SubscribeQuery {
        node_id: 1,
        user_ids: vec!["bob".into(), "dave".into()],
        gone_user_ids: vec!["alice".into()],
    };
    let Some(answer::Kind::Subscribe(answer)) = ask(query::Kind::Subscribe(subscribe)) else {
        panic!("no answer")
    };
    assert_eq!(answer.inbox_heads, [3, 0]);
    let cursor = internal::CursorQuery {
        user_id: "bob".into(),
        device_id: "phone".into(),
    };
    let Some(answer::Kind::Cursor(answer)) = ask(query::Kind::Cursor(cursor)) else {
        panic!("no answer")
    };
    assert_eq!(answer.inbox_seq, 0);
}

#[test]
fn what_no_gateway_asks_has_no_answer() {
    assert_eq!(execute(&state(), &Query { kind: None }).kind, None);
    assert_eq!(ask(messages_query("a b", "g1")), None);
    assert_eq!(ask(messages_query("bob", "")), None);
}

#[test]
fn pushed_messages_are_what_pages_hold() {
    let view = state();
    for seq in [Seq(1), Seq(2)] {
        let id = conversation_id("g1");
        let record = read::message(&view, &id, seq).expect("stored");
        let encoded = encode_message(&id, seq, &record);
        assert_eq!(message_id(&encoded), Some(record.message_id));
        assert_eq!(message_id(&encoded[..1]), None);
        let pushed = v1::Message::decode(encoded).expect("decodes");
        assert_eq!(pushed, wire::message(&id, seq, record));
        assert!(pushed.content.is_some());
    }
}
