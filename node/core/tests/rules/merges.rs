//! A shard that is frozen and taken over by its left neighbour: frozen it changes nothing, and
//! the neighbour goes on with its conversations and inboxes as it would have.

use carillon_core::map::Replica;
use carillon_core::memory::MemoryView;
use carillon_core::merging::{MergeId, MergeMark};
use carillon_core::read;
use carillon_core::records::ShardClock;
use carillon_core::*;

use crate::chat::{START, conversation, user, users};

const LEFT: ShardId = ShardId(1);
const RIGHT: ShardId = ShardId(2);

/// What a shard keeps beside its keys.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Shard {
    id: ShardId,
    slots: SlotRange,
    clock: ShardClock,
    merges: MergeMark,
}

/// Two neighbours on one node: their keys are in one store, as they are there.
struct Pair {
    view: MemoryView,
    now: TimestampMs,
    left: Shard,
    right: Shard,
}

fn halves() -> (SlotRange, SlotRange) {
    let at = SlotRange::ALL.middle().expect("many slots");
    SlotRange::ALL.split(at).expect("two parts")
}

impl Pair {
    fn new() -> Pair {
        let (before, after) = halves();
        let shard = |id, slots| Shard {
            id,
            slots,
            clock: ShardClock::default(),
            merges: MergeMark::default(),
        };
        Pair {
            view: MemoryView::new(),
            now: START,
            left: shard(LEFT, before),
            right: shard(RIGHT, after),
        }
    }

    fn on(&mut self, id: ShardId, command: Command) -> Effects {
        let shard = if id == LEFT {
            &mut self.left
        } else {
            &mut self.right
        };
        let mut cx = Context::new(shard.id, shard.slots, self.now, &mut shard.clock)
            .with_merges(shard.merges);
        let effects = apply(&mut self.view, &mut cx, command);
        shard.merges = cx.merges();
        effects
    }

    fn freeze(&mut self, id: u64) -> Option<MergeId> {
        let effects = self.on(RIGHT, freeze(id));
        assert_eq!((effects.reply, effects.event), (Reply::Done, None));
        self.right.merges.frozen_by
    }

    fn thaw(&mut self, id: u64) -> Option<MergeId> {
        let effects = self.on(RIGHT, thaw(id));
        assert_eq!((effects.reply, effects.event), (Reply::Done, None));
        self.right.merges.frozen_by
    }

    /// As the store does it with the event.
    fn absorb(&mut self, id: u64) -> bool {
        let event = self.on(LEFT, absorb(id)).event;
        let Some(Event::Absorb {
            merge_id,
            shard,
            slots,
        }) = event
        else {
            assert_eq!(event, None);
            return false;
        };
        assert_eq!((merge_id, shard), (MergeId(id), RIGHT));
        self.left.slots = self.left.slots.joined(slots).expect("neighbours");
        self.left.clock = self.left.clock.after(self.right.clock);
        true
    }

    fn sent(&mut self, shard: ShardId, to: &str, id: &str) -> (u64, MessageId, bool) {
        match self.on(shard, send(to, id)).reply {
            Reply::Sent {
                seq,
                message_id,
                duplicate,
                ..
            } => (seq.0, message_id, duplicate),
            other => panic!("not sent: {other:?}"),
        }
    }

    fn deliver(&mut self, shard: ShardId, of: &str, seq: u64, to: &str) -> Reply {
        let of = conversation(of);
        let message = read::message(&self.view, &of, Seq(seq)).expect("it is stored");
        let command = Command::Deliver {
            conversation: of,
            seq: Seq(seq),
            at: message.at,
            sender: message.sender,
            countable: message.countable,
            users: users(&[to]),
            leaving: Vec::new(),
        };
        self.on(shard, command).reply
    }
}

fn freeze(id: u64) -> Command {
    let merge_id = MergeId(id);
    Command::Freeze { merge_id }
}

fn thaw(id: u64) -> Command {
    let merge_id = MergeId(id);
    Command::Thaw { merge_id }
}

fn absorb(id: u64) -> Command {
    Command::Absorb {
        merge_id: MergeId(id),
        shard: RIGHT,
        slots: halves().1,
    }
}

fn send(to: &str, id: &str) -> Command {
    Command::Send {
        conversation: conversation(to),
        sender: user("al"),
        client_message_id: ClientMessageId::copied(id).expect("a valid id"),
        content: bytes::Bytes::from_static(b"hello"),
    }
}

/// An id with this prefix that is in the right shard.
fn in_right(prefix: &str) -> String {
    let mut ids = (0..10_000).map(|number| format!("{prefix}{number}"));
    ids.find(|id| halves().1.contains(Slot::of(id.as_bytes())))
        .expect("one of so many")
}

fn create(id: &str, member: &str) -> Command {
    Command::CreateGroup {
        conversation: conversation(id),
        name: ConversationName::parse("a group").expect("a valid name"),
        creator: user("al"),
        members: users(&[member]),
        request_id: RequestId::copied("request").expect("a valid id"),
    }
}

/// The right shard has a group with a message, and a user who has got it; the outbox says that
/// nothing was delivered.
fn pair(group: &str, member: &str) -> Pair {
    let mut pair = Pair::new();
    pair.on(RIGHT, create(group, member));
    assert_eq!(pair.sent(RIGHT, group, "m1").0, 2);
    for seq in 1..=2 {
        assert_eq!(pair.deliver(RIGHT, group, seq, member), Reply::Delivered);
    }
    pair
}

fn every_command(group: &str, member: &str) -> Vec<Command> {
    let conversation = conversation(group);
    let actor = user("al");
    vec![
        send(group, "m1"),
        send(group, "m2"),
        create(group, member),
        create(&in_right("new"), member),
        Command::AddMembers {
            conversation: conversation.clone(),
            actor: actor.clone(),
            members: users(&["cy"]),
        },
        Command::RemoveMembers {
            conversation: conversation.clone(),
            actor: actor.clone(),
            members: users(&[member]),
        },
        Command::AdvanceOutbox {
            items: vec![(conversation.clone(), Seq(2))],
        },
        Command::Deliver {
            conversation: conversation.clone(),
            seq: Seq(3),
            at: START,
            sender: actor,
            countable: true,
            users: users(&[member]),
            leaving: Vec::new(),
        },
        Command::MarkRead {
            user: user(member),
            conversation,
            seq: Seq(2),
            verified_end: None,
        },
        Command::AckCursor {
            user: user(member),
            device: DeviceId::copied("phone").expect("a valid id"),
            inbox_seq: InboxSeq(1),
        },
        Command::Probe {
            filler: bytes::Bytes::new(),
        },
        Command::Split {
            new_shard: ShardId(3),
            at: halves().1.middle().expect("many slots"),
            replicas: vec![Replica {
                replica_id: ReplicaId(9),
                node_id: NodeId(1),
            }],
        },
        absorb(9),
    ]
}

#[test]
fn a_frozen_shard_refuses_every_command_and_changes_nothing() {
    let (group, member) = (in_right("g"), in_right("u"));
    let mut pair = pair(&group, &member);
    assert_eq!(pair.freeze(5), Some(MergeId(5)));
    let (state, right) = (pair.view.clone(), pair.right);
    for command in every_command(&group, &member) {
        let effects = pair.on(RIGHT, command.clone());
        assert_eq!(
            (effects.reply, effects.event),
            (Reply::Frozen, None),
            "{command:?}"
        );
        assert!(pair.view == state && pair.right == right, "{command:?}");
    }
    // What it has not is not frozen: it is elsewhere.
    let elsewhere = (0..)
        .map(|number| format!("g{number}"))
        .find(|id| halves().0.contains(Slot::of(id.as_bytes())));
    let elsewhere = elsewhere.expect("one of so many");
    assert_eq!(pair.on(RIGHT, send(&elsewhere, "m1")).reply, Reply::Moved);
    // Its state can still be looked at.
    let effects = pair.on(RIGHT, Command::Checksum { nonce: 7 });
    assert_eq!(effects.event, Some(Event::ChecksumRequested { nonce: 7 }));
    assert!(pair.view == state && pair.right == right);
}

#[test]
fn a_thawed_shard_goes_on_and_is_not_frozen_by_what_is_late() {
    let (group, member) = (in_right("g"), in_right("u"));
    let mut pair = pair(&group, &member);
    assert_eq!(pair.freeze(5), Some(MergeId(5)));
    assert_eq!(pair.freeze(5), Some(MergeId(5)), "again");
    assert_eq!(pair.freeze(4), Some(MergeId(5)), "an older one");
    assert_eq!(pair.thaw(4), Some(MergeId(5)), "of an older one");
    assert_eq!(pair.thaw(5), None);
    assert_eq!(pair.thaw(5), None, "again");
    assert_eq!(pair.freeze(5), None, "late");
    assert_eq!(pair.sent(RIGHT, &group, "m1"), {
        let (_, id, _) = pair.sent(RIGHT, &group, "m1");
        (2, id, true)
    });
    assert_eq!(pair.sent(RIGHT, &group, "m2").0, 3);
    // Thawed before it was frozen.
    assert_eq!(pair.thaw(7), None);
    assert_eq!(pair.freeze(7), None);
    assert_eq!(pair.freeze(6), None);
    assert_eq!(pair.freeze(8), Some(MergeId(8)));
    let seen = pair.right.merges.seen;
    assert_eq!(seen, MergeId(8));
}

#[test]
fn the_left_shard_goes_on_where_the_right_one_was() {
    let (group, member) = (in_right("g"), in_right("u"));
    let mut pair = pair(&group, &member);
    pair.freeze(5);
    let before = pair.view.clone();
    // What is the right one's is refused by the left one until it has taken it over.
    assert_eq!(pair.on(LEFT, send(&group, "m2")).reply, Reply::Moved);
    assert!(pair.absorb(5));
    assert_eq!(pair.left.slots, SlotRange::ALL);
    assert_eq!(pair.left.merges.absorbed, MergeId(5));
    assert_eq!(pair.left.merges.frozen_by, None);
    assert!(pair.view == before, "nothing is rewritten");
    let left = pair.left;
    for id in [5, 4] {
        assert!(!pair.absorb(id), "again, or an older one");
    }
    assert_eq!(pair.left, left);

    // A retry of what the right one has stored is recognised.
    let (seq, first, duplicate) = pair.sent(LEFT, &group, "m1");
    assert_eq!((seq, duplicate), (2, true));
    let (seq, next, duplicate) = pair.sent(LEFT, &group, "m2");
    assert_eq!((seq, duplicate), (3, false));
    assert!(next > first);

    // Its deliveries begin again where the outbox is, and nobody gets anything twice.
    let of = conversation(&group);
    let delivered = read::outbox_marker(&pair.view, &of).expect("it is not delivered");
    assert_eq!(delivered, Seq(0));
    for seq in delivered.0 + 1..=3 {
        assert_eq!(pair.deliver(LEFT, &group, seq, &member), Reply::Delivered);
    }
    let page = read::inbox_page(&pair.view, &user(&member), InboxSeq(0), usize::MAX);
    let inbox: Vec<(u64, u64)> = page
        .entries
        .iter()
        .map(|(inbox_seq, record)| (inbox_seq.0, record.seq.0))
        .collect();
    assert_eq!(inbox, [(1, 1), (2, 2), (3, 3)]);
    let read = |seq| Command::MarkRead {
        user: user(&member),
        conversation: conversation(&group),
        seq: Seq(seq),
        verified_end: None,
    };
    let (read_seq, unread) = (Seq(2), 1);
    assert_eq!(
        pair.on(LEFT, read(2)).reply,
        Reply::Read { read_seq, unread }
    );
}

#[test]
fn a_shard_that_is_no_neighbour_is_not_taken_over() {
    let mut pair = Pair::new();
    let state = pair.left;
    for slots in [
        SlotRange {
            first: Slot(halves().1.first.0 + 1),
            ..halves().1
        },
        halves().0,
        SlotRange::ALL,
    ] {
        let command = Command::Absorb {
            merge_id: MergeId(5),
            shard: RIGHT,
            slots,
        };
        let effects = pair.on(LEFT, command);
        assert_eq!((effects.reply, effects.event), (Reply::Done, None));
        assert_eq!(pair.left, state);
    }
}

#[test]
fn ids_after_a_merge_are_after_all_of_both() {
    let clock = |last_ms, counter| ShardClock {
        last_ms: TimestampMs(MESSAGE_ID_EPOCH_MS + last_ms),
        counter,
    };
    let clocks = [
        clock(0, 0),
        clock(5, 0),
        clock(5, 700),
        clock(5, MessageId::COUNTER_MAX),
        clock(6, 1),
    ];
    for mine in clocks {
        for other in clocks {
            // The other's id may be the smaller one or the larger one.
            for (me, them) in [(LEFT, RIGHT), (RIGHT, LEFT)] {
                let last =
                    |clock: ShardClock, shard| MessageId::new(clock.last_ms, shard, clock.counter);
                let mut after = mine.after(other);
                let (at, id) = after.stamp(me, TimestampMs(0));
                assert!(id > last(mine, me) && id > last(other, them));
                assert!(at >= mine.last_ms && at >= other.last_ms);
            }
        }
    }
}
