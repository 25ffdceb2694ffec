//! Tables for the session's queue.

use bytes::Buf;
use carillon_proto::v1::{HeartbeatAck, Message, Sent, ServerFrame, kick};
use prost::Message as _;

use super::*;

fn message(seq: u64) -> Vec<u8> {
    Message {
        conversation_id: "g".into(),
        seq,
        ..Default::default()
    }
    .encode_to_vec()
}

fn live(head: u64, bytes_max: usize) -> SessionQueue {
    let mut queue = SessionQueue::new(bytes_max);
    assert_eq!(queue.go_live(head), Some(head));
    queue
}

fn frames(bytes: &mut Bytes) -> Vec<Frame> {
    let mut frames = Vec::new();
    while bytes.has_remaining() {
        assert_eq!(bytes.get_u8(), 0, "not compressed");
        let length = bytes.get_u32() as usize;
        let frame = ServerFrame::decode(bytes.split_to(length)).expect("decodes");
        frames.push(frame.frame.expect("has a frame"));
    }
    frames
}

/// Takes everything, in short: `d5` a delivery, `gap2-3` and `slow2-3` a Resync, `sent`,
/// `ack`, `kick`, `end`.
fn drain(queue: &mut SessionQueue) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        match queue.take() {
            Taken::Frames(mut bytes) => {
                seen.extend(frames(&mut bytes).into_iter().map(|frame| match frame {
                    Frame::Delivery(entry) => {
                        assert_eq!(entry.message.expect("a message").seq, entry.inbox_seq);
                        format!("d{}", entry.inbox_seq)
                    }
                    Frame::Resync(resync) => {
                        let reason = if resync.reason == resync::Reason::Gap as i32 {
                            "gap"
                        } else {
                            "slow"
                        };
                        format!("{reason}{}-{}", resync.after_inbox_seq, resync.to_inbox_seq)
                    }
                    Frame::Sent(_) => "sent".into(),
                    Frame::HeartbeatAck(_) => "ack".into(),
                    Frame::Kick(_) => "kick".into(),
                    other => panic!("{other:?}"),
                }))
            }
            Taken::End(_) => seen.push("end".into()),
            Taken::Nothing | Taken::Gone => return seen,
        }
    }
}

fn kicked() -> End {
    let kick = Kick {
        reason: kick::Reason::Draining.into(),
        ..Default::default()
    };
    End {
        kick: Some(kick),
        status: Status::new(Code::Ok, ""),
    }
}

#[test]
fn deliveries_are_in_order_and_once() {
    let cases: [(&str, u64, &[u64], &[&str]); 6] = [
        ("dense", 4, &[5, 6, 7], &["d5", "d6", "d7"]),
        ("before the head", 4, &[3, 4, 5], &["d5"]),
        ("twice", 0, &[1, 1, 2, 1], &["d1", "d2"]),
        ("gap", 4, &[5, 8, 9], &["d5", "gap5-7", "d8", "d9"]),
        ("gap at once", 4, &[6], &["gap4-5", "d6"]),
        ("late after gap", 0, &[3, 2, 1, 4], &["gap0-2", "d3", "d4"]),
    ];
    for (name, head, pushes, expected) in cases {
        let mut queue = live(head, 1 << 20);
        for seq in pushes {
            queue.push(*seq, 0, &message(*seq));
        }
        assert_eq!(drain(&mut queue), expected, "{name}");
    }
}

#[test]
fn what_is_pushed_while_registering_is_left_to_sync() {
    for (pushes, head, welcomed, expected) in [
        (&[][..], 7, 7, "d8"),
        (&[5, 6, 7], 7, 7, "d8"),
        (&[8, 9], 7, 9, "d10"),
        (&[9, 8], 7, 9, "d10"),
    ] {
        let mut queue = SessionQueue::new(1 << 20);
        for seq in pushes {
            assert_eq!(queue.push(*seq, 0, &message(*seq)), Pushed::Dropped);
        }
        assert_eq!(queue.go_live(head), Some(welcomed));
        queue.push(welcomed, 0, &message(welcomed));
        queue.push(welcomed + 1, 0, &message(welcomed + 1));
        assert_eq!(drain(&mut queue), [expected]);
    }
}

#[test]
fn a_slow_reader_is_told_what_it_missed() {
    let one = delivery_len(1, &message(1), 0);
    let mut queue = live(0, one * 2);
    assert_eq!(queue.push(1, 0, &message(1)), Pushed::Delivered);
    assert_eq!(queue.push(2, 0, &message(2)), Pushed::Delivered);
    assert_eq!(queue.gate(), Gate::Full);
    assert_eq!(queue.push(3, 0, &message(3)), Pushed::Overflowed);
    assert_eq!(queue.push(4, 0, &message(4)), Pushed::Dropped);
    assert_eq!(
        queue.push(9, 0, &message(9)),
        Pushed::Dropped,
        "a gap inside is covered too"
    );
    assert_eq!(queue.told(), 2, "the rest is not told yet");
    let Taken::Frames(mut bytes) = queue.take() else {
        panic!("nothing to take")
    };
    assert_eq!(frames(&mut bytes).len(), 2);
    assert_eq!(queue.told(), 9);
    queue.push(10, 0, &message(10));
    assert_eq!(drain(&mut queue), ["slow2-9", "d10"]);
}

#[test]
fn answers_are_queued_though_the_queue_is_full() {
    let mut queue = live(0, 1);
    assert_eq!(queue.push(1, 0, &message(1)), Pushed::Overflowed);
    queue.answer(Frame::HeartbeatAck(HeartbeatAck::default()));
    assert!(queue.begin_send());
    queue.finish_send(Frame::Sent(Sent::default()));
    assert_eq!(drain(&mut queue), ["ack", "sent", "slow0-1"]);
}

#[test]
fn an_overflow_is_told_even_when_the_queue_is_empty() {
    // A single entry larger than the whole queue: nothing is queued that would be taken.
    let mut queue = live(0, 1);
    queue.push(1, 0, &message(1));
    assert_eq!(drain(&mut queue), ["slow0-1"]);
}

#[test]
fn heads_of_new_leaders() {
    for (head, changed, expected) in [
        (4, false, &["d6"][..]),
        (5, false, &["d6"]),
        (8, true, &["gap5-8", "d9"]),
    ] {
        let mut queue = live(5, 1 << 20);
        assert_eq!(queue.head_known(head), changed);
        let next = head.max(5) + 1;
        queue.push(next, 0, &message(next));
        assert_eq!(drain(&mut queue), expected);
    }
    let mut queue = live(0, 1);
    queue.push(1, 0, &message(1));
    assert!(queue.head_known(5));
    assert_eq!(drain(&mut queue), ["slow0-5"], "one Resync for both");
}

#[test]
fn sends_are_counted() {
    let mut queue = live(0, 1 << 20);
    for _ in 0..SENDS_IN_FLIGHT_MAX {
        assert!(queue.begin_send());
    }
    assert!(!queue.begin_send());
    queue.finish_send(Frame::Sent(Sent::default()));
    assert!(queue.begin_send());
}

#[test]
fn ends() {
    // Finishing waits for the answers, then kicks, then ends; deliveries stop at once.
    let mut queue = live(0, 1 << 20);
    assert!(queue.begin_send());
    assert!(queue.finish(kicked()));
    assert!(!queue.finish(End::orderly()), "only once");
    assert_eq!(queue.gate(), Gate::Closed);
    assert_eq!(queue.push(1, 0, &message(1)), Pushed::Dropped);
    assert!(drain(&mut queue).is_empty());
    queue.finish_send(Frame::Sent(Sent::default()));
    assert_eq!(drain(&mut queue), ["sent", "kick", "end"]);

    // Closing does not wait; a late answer is dropped.
    let mut queue = live(0, 1 << 20);
    queue.begin_send();
    queue.push(1, 0, &message(1));
    assert!(queue.close(kicked(), false));
    assert!(!queue.close(kicked(), false), "only once");
    queue.finish_send(Frame::Sent(Sent::default()));
    assert_eq!(drain(&mut queue), ["d1", "kick", "end"]);

    // Discarding leaves the kick.
    let mut queue = live(0, 1 << 20);
    queue.push(1, 0, &message(1));
    queue.close(kicked(), true);
    assert_eq!(drain(&mut queue), ["kick", "end"]);

    // A finishing stream can still be closed, and a client can go away at any time.
    let mut queue = live(0, 1 << 20);
    queue.begin_send();
    queue.finish(End::orderly());
    assert!(queue.close(kicked(), false));
    queue.abandon();
    assert!(drain(&mut queue).is_empty());
    assert!(queue.is_closed());

    // A stream that ends before its welcome never goes live.
    let mut queue = SessionQueue::new(1 << 20);
    queue.finish(End::orderly());
    assert_eq!(queue.go_live(3), None);
    assert_eq!(drain(&mut queue), ["end"]);
}
