//! A shard that is split: both parts go on as the whole would have, and neither takes what is
//! the other's.

use carillon_core::map::Replica;
use carillon_core::records::{Record, ShardClock};
use carillon_core::*;

use crate::chat::{Chat, START, conversation, user, users};

/// A group and a user in the part before, and those after, of a split in the middle.
struct Named {
    group: [String; 2],
    user: [String; 2],
}

fn named(at: Slot) -> Named {
    let find = |prefix: &str, after: bool| {
        let mut ids = (0..10_000).map(|number| format!("{prefix}{number}"));
        ids.find(|id| (Slot::of(id.as_bytes()) >= at) == after)
            .expect("one of so many")
    };
    Named {
        group: [find("g", false), find("g", true)],
        user: [find("u", false), find("u", true)],
    }
}

fn split(at: Slot) -> Command {
    Command::Split {
        new_shard: ShardId(2),
        at,
        replicas: vec![Replica {
            replica_id: ReplicaId(9),
            node_id: NodeId(1),
        }],
    }
}

fn apply_within(chat: &mut Chat, shard: u32, slots: SlotRange, command: Command) -> Effects {
    let mut cx = Context::new(ShardId(shard), slots, chat.now, &mut chat.clock);
    apply(&mut chat.view, &mut cx, command)
}

fn send(to: &str, sender: &str, id: &str) -> Command {
    Command::Send {
        conversation: conversation(to),
        sender: user(sender),
        client_message_id: ClientMessageId::copied(id).expect("a valid id"),
        content: bytes::Bytes::from_static(b"hello"),
    }
}

#[test]
fn each_part_takes_only_what_it_has() {
    let at = SlotRange::ALL.middle().expect("many slots");
    let (before, after) = SlotRange::ALL.split(at).expect("two parts");
    let names = named(at);
    let mut chat = Chat::new();
    for group in &names.group {
        chat.create(group, "al", &["bo"]);
        assert_eq!(chat.sent(group, "al", "m1").0, 2);
    }
    let effects = apply_within(&mut chat, 1, SlotRange::ALL, split(at));
    assert_eq!(effects.reply, Reply::Done);
    assert!(
        matches!(&effects.event, Some(Event::Split { new_shard, at: slot, replicas })
            if *new_shard == ShardId(2) && *slot == at && replicas.len() == 1)
    );
    // Again, by a leader who does not know: nothing.
    assert_eq!(apply_within(&mut chat, 1, before, split(at)).event, None);

    let state = chat.view.clone();
    for (shard, slots, other) in [(1, before, 1), (2, after, 0)] {
        let deliver = |users: Vec<UserId>| Command::Deliver {
            conversation: conversation("elsewhere"),
            seq: Seq(1),
            at: START,
            sender: user("al"),
            countable: true,
            users,
            leaving: Vec::new(),
        };
        for command in [
            send(&names.group[other], "al", "m2"),
            Command::AddMembers {
                conversation: conversation(&names.group[other]),
                actor: user("al"),
                members: users(&["cy"]),
            },
            Command::MarkRead {
                user: user(&names.user[other]),
                conversation: conversation(&names.group[other]),
                seq: Seq(1),
                verified_end: None,
            },
            deliver(vec![user(&names.user[other])]),
            // One that it has makes no difference: all or nothing.
            deliver(vec![user(&names.user[1 - other]), user(&names.user[other])]),
        ] {
            let effects = apply_within(&mut chat, shard, slots, command);
            assert_eq!((effects.reply, effects.event), (Reply::Moved, None));
        }
        // The old one's word about the outbox of what it has no longer.
        let late = Command::AdvanceOutbox {
            items: vec![(conversation(&names.group[other]), Seq(2))],
        };
        assert_eq!(
            apply_within(&mut chat, shard, slots, late).reply,
            Reply::Done
        );
        assert!(chat.view == state, "shard {shard} changed what it has not");
    }
}

#[test]
fn both_parts_go_on_where_the_whole_was() {
    let at = SlotRange::ALL.middle().expect("many slots");
    let (before, after) = SlotRange::ALL.split(at).expect("two parts");
    let names = named(at);
    let mut chat = Chat::new();
    for group in &names.group {
        chat.create(group, "al", &["bo"]);
        chat.sent(group, "al", "m1");
    }
    let clock = ShardClock::decode(&chat.clock.encoded()).expect("it was just written");
    let mut ids = Vec::new();
    for (shard, slots, group) in [(1, before, &names.group[0]), (2, after, &names.group[1])] {
        // Each has a copy of the clock.
        chat.clock = clock;
        let again = apply_within(&mut chat, shard, slots, send(group, "al", "m1")).reply;
        assert!(matches!(
            again,
            Reply::Sent {
                seq: Seq(2),
                duplicate: true,
                ..
            }
        ));
        match apply_within(&mut chat, shard, slots, send(group, "al", "m2")).reply {
            Reply::Sent {
                seq: Seq(3),
                message_id,
                duplicate: false,
                ..
            } => ids.push(message_id),
            other => panic!("not sent: {other:?}"),
        }
    }
    assert_ne!(ids[0], ids[1], "a global name is given twice");
}
