//! The frames of a relay link: operations of one node's router to the leaders on
//! another, their answers, pushes for online users, and who leads.
//!
//! Bodies, little-endian: an operation is the [`Lead`] that it is meant for and the payload;
//! an answer is u8 status and what belongs to it; a push is u32 length and encoded
//! `v1.Message`, then per user u8 length and id, u64 inbox_seq, u32 unread; a node that leads
//! the frame's shard says in which lead.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use carillon_core::ids::{NodeId, ShardId};
use carillon_core::reply::Reply;
use carillon_raft::{FRAME_BYTES_MAX, FrameKind, Link};

use crate::cluster::Route;
use crate::disk::RESERVE_LIMIT;
use crate::router::{Response, Settled, Undone};
use crate::shard::lead::Lead;

/// An encoded core command.
pub const COMMAND: FrameKind = FrameKind(FrameKind::USER_FIRST);
/// An encoded `internal.Query`.
pub const QUERY: FrameKind = FrameKind(FrameKind::USER_FIRST + 1);
/// A batch of deliveries.
pub const DELIVER: FrameKind = FrameKind(FrameKind::USER_FIRST + 2);
/// The end of one of the above.
pub const ANSWER: FrameKind = FrameKind(FrameKind::USER_FIRST + 3);
/// For users with sessions on the receiving node.
pub const PUSH: FrameKind = FrameKind(FrameKind::USER_FIRST + 4);
/// The sending node leads the shard.
pub const LEADS: FrameKind = FrameKind(FrameKind::USER_FIRST + 5);

/// An encoded core reply follows.
const STATUS_REPLY: u8 = 0;
const STATUS_ANSWER: u8 = 1;
const STATUS_DELIVERED: u8 = 2;
const STATUS_RETRY: u8 = 3;
const STATUS_OVERLOADED: u8 = 4;
const STATUS_FAILED: u8 = 5;
const STATUS_MOVED: u8 = 6;

/// The limits that a leader can name to another node.
const LIMITS: [&str; 2] = ["proposals_waiting_max", RESERVE_LIMIT];

/// Bytes of an answer: what a frame takes. Pages and batches have limits far below.
pub const ANSWER_BYTES_MAX: usize = FRAME_BYTES_MAX - FRAME_OVERHEAD_BYTES;
/// More than the head of a frame.
const FRAME_OVERHEAD_BYTES: usize = 64;

/// Answers an operation of the other node. When the link is gone, the other node sends the
/// operation again by itself; when the link is full it is closed, so that the other node does.
/// An answer that no frame takes becomes a failure, at once.
pub fn send_settled(link: &Link, shard: ShardId, correlation: u64, settled: &Settled) {
    let sent = link.send(ANSWER, shard, correlation, |buffer| {
        let start = buffer.len();
        write_settled(buffer, settled);
        let bytes = buffer.len() - start;
        if bytes > ANSWER_BYTES_MAX {
            buffer.truncate(start);
            write_settled(buffer, &Err(too_large(bytes)));
        }
    });
    if !sent {
        close_full(link, "an answer");
    }
}

fn too_large(bytes: usize) -> Undone {
    Undone::Failed(format!(
        "the answer has {bytes} bytes, over answer_bytes_max of {ANSWER_BYTES_MAX}"
    ))
}

/// A link that is up and did not take a frame is full.
fn close_full(link: &Link, what: &str) {
    let state = *link.watch().borrow();
    if state.up {
        tracing::warn!(
            peer = link.peer().0,
            "the link cannot take {what}; closing it"
        );
        link.close(state.epoch);
    }
}

fn write_settled(buffer: &mut BytesMut, settled: &Settled) {
    match settled {
        Ok(Response::Reply(reply)) => {
            buffer.put_u8(STATUS_REPLY);
            reply.encode(buffer);
        }
        Ok(Response::Answer(answer)) => {
            buffer.put_u8(STATUS_ANSWER);
            buffer.put_slice(answer);
        }
        Ok(Response::Delivered) => buffer.put_u8(STATUS_DELIVERED),
        Err(Undone::Retry(hint)) => {
            buffer.put_u8(STATUS_RETRY);
            buffer.put_u64_le(hint.map_or(0, |route| route.node.0));
            hint.map_or(Lead::ANY, |route| route.lead).write(buffer);
        }
        Err(Undone::Overloaded { limit, max }) => {
            buffer.put_u8(STATUS_OVERLOADED);
            let index = LIMITS.iter().position(|name| name == limit).unwrap_or(0);
            buffer.put_u8(index as u8);
            buffer.put_u64_le(*max);
        }
        Err(Undone::Moved) => buffer.put_u8(STATUS_MOVED),
        Err(Undone::Failed(problem)) => {
            buffer.put_u8(STATUS_FAILED);
            buffer.put_slice(problem.as_bytes());
        }
    }
}

/// Reads the body of an answer; none when it is damaged.
pub fn read_settled(mut body: Bytes) -> Option<Settled> {
    if body.is_empty() {
        return None;
    }
    Some(match body.get_u8() {
        STATUS_REPLY => Ok(Response::Reply(Reply::decode(&body).ok()?)),
        STATUS_ANSWER => Ok(Response::Answer(body)),
        STATUS_DELIVERED => Ok(Response::Delivered),
        STATUS_RETRY if body.len() == 8 + Lead::BYTES => {
            let (node, lead) = (body.get_u64_le(), Lead::read(&mut body)?);
            Err(Undone::Retry((node != 0).then_some(Route {
                node: NodeId(node),
                lead,
            })))
        }
        STATUS_OVERLOADED if body.len() == 9 => {
            let limit = LIMITS.get(usize::from(body.get_u8())).copied()?;
            Err(Undone::Overloaded {
                limit,
                max: body.get_u64_le(),
            })
        }
        STATUS_MOVED => Err(Undone::Moved),
        STATUS_FAILED => Err(Undone::Failed(String::from_utf8_lossy(&body).into_owned())),
        _ => return None,
    })
}

/// Sends a push. When the buffer is full the link is closed: the other node then asks all
/// of its users' inboxes again, so that nobody misses it.
pub fn send_push<'a>(
    link: &Link,
    shard: ShardId,
    message: &[u8],
    targets: impl Iterator<Item = (&'a [u8], u64, u32)>,
) {
    let sent = link.send(PUSH, shard, 0, |buffer| {
        buffer.put_u32_le(message.len() as u32);
        buffer.put_slice(message);
        for (user, inbox_seq, unread) in targets {
            buffer.put_u8(user.len() as u8);
            buffer.put_slice(user);
            buffer.put_u64_le(inbox_seq);
            buffer.put_u32_le(unread);
        }
    });
    if !sent {
        close_full(link, "a push");
    }
}

/// Says that this node leads a shard. A link that is full is closed: when it is up again,
/// everything is said anew.
pub fn send_leads(link: &Link, shard: ShardId, lead: Lead) {
    if !link.send(LEADS, shard, 0, |buffer| lead.write(buffer)) {
        close_full(link, "who leads");
    }
}

/// The message of a push, and its targets for [`PushTargets`].
pub fn read_push(mut body: Bytes) -> Option<(Bytes, Bytes)> {
    if body.len() < 4 {
        return None;
    }
    let length = body.get_u32_le() as usize;
    (length <= body.len()).then(|| (body.split_to(length), body))
}

/// The targets of a push, read one by one; ends at damage.
pub struct PushTargets<'a>(pub &'a [u8]);

impl<'a> Iterator for PushTargets<'a> {
    type Item = (&'a [u8], u64, u32);

    fn next(&mut self) -> Option<Self::Item> {
        let (length, rest) = self.0.split_first()?;
        let (user, rest) = rest.split_at_checked(usize::from(*length))?;
        let (mut numbers, rest) = rest.split_at_checked(12)?;
        self.0 = rest;
        Some((user, numbers.get_u64_le(), numbers.get_u32_le()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use carillon_core::ids::ReplicaId;
    use carillon_raft::{LINK_BUFFER_BYTES_DEFAULT, next_frame};
    use futures_util::StreamExt as _;

    use super::*;

    #[test]
    fn answers_round_trip() {
        for settled in [
            Ok(Response::Reply(Reply::Done)),
            Ok(Response::Answer(Bytes::from_static(b"answer"))),
            Ok(Response::Delivered),
            Err(Undone::Retry(None)),
            Err(Undone::Retry(Some(Route {
                node: NodeId(2),
                lead: Lead::first(7, Some(ReplicaId(8))),
            }))),
            Err(Undone::Overloaded {
                limit: LIMITS[0],
                max: 5,
            }),
            Err(Undone::Moved),
            Err(Undone::Failed("why".to_owned())),
        ] {
            let mut buffer = BytesMut::new();
            write_settled(&mut buffer, &settled);
            let read = read_settled(buffer.freeze()).expect("intact");
            assert_eq!(format!("{read:?}"), format!("{settled:?}"));
        }
        assert!(read_settled(Bytes::new()).is_none());
        assert!(read_settled(Bytes::from_static(&[STATUS_RETRY, 1])).is_none());
    }

    /// What comes out of a link with this room when an answer of this size is sent.
    async fn answered(room: usize, answer_bytes: usize) -> Option<Settled> {
        let link = Link::new(NodeId(2), room);
        let mut out = link.open();
        let answer = Ok(Response::Answer(vec![7; answer_bytes].into()));
        send_settled(&link, ShardId(3), 9, &answer);
        let sent = tokio::time::timeout(Duration::from_secs(10), out.next());
        let mut packet = sent.await.expect("neither an answer nor an end")?;
        let frame = next_frame(&mut packet).ok()??;
        assert_eq!((frame.kind, frame.correlation), (ANSWER, 9));
        read_settled(frame.body)
    }

    #[tokio::test]
    async fn an_answer_that_no_frame_takes_fails_at_once() {
        // One byte is the status.
        let whole = answered(LINK_BUFFER_BYTES_DEFAULT, ANSWER_BYTES_MAX - 1).await;
        assert!(
            matches!(&whole, Some(Ok(Response::Answer(bytes))) if bytes.len() == ANSWER_BYTES_MAX - 1)
        );
        for bytes in [ANSWER_BYTES_MAX, FRAME_BYTES_MAX] {
            let failed = answered(LINK_BUFFER_BYTES_DEFAULT, bytes).await;
            let Some(Err(Undone::Failed(problem))) = failed else {
                panic!("the caller is not told");
            };
            assert!(problem.contains("answer_bytes_max"), "{problem}");
        }
    }

    #[tokio::test]
    async fn a_link_too_full_for_an_answer_is_closed() {
        assert!(answered(1_000, 900).await.is_some());
        assert!(answered(1_000, 1_100).await.is_none(), "the link is open");
    }

    #[test]
    fn push_targets_end_at_damage() {
        let mut rest = vec![3];
        rest.extend_from_slice(b"bob");
        rest.extend_from_slice(&9u64.to_le_bytes());
        rest.extend_from_slice(&2u32.to_le_bytes());
        rest.push(200);
        let targets: Vec<_> = PushTargets(&rest).collect();
        assert_eq!(targets, [(&b"bob"[..], 9, 2)]);
    }
}
