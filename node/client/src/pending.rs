//! The messages that are sent but not yet acknowledged.
//!
//! Owner of every unanswered send of one session. Pure but for the channels on which the
//! answers go back: it decides which frame goes out next, and is told what came in.
//!
//! Invariants: `unsent ⊆ entries`; `entries.len() - unsent.len()` frames are in flight on
//! the present stream; frames of one conversation go out in the order in which they were
//! added, also when some of them are sent again.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use carillon_proto::v1;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::error::{ClientError, is_transient};
use crate::ids::{ClientMessageId, ConversationId};

/// What the server says of a stored message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// Where it is.
    pub conversation: ConversationId,
    /// The id that it was sent under.
    pub client_message_id: ClientMessageId,
    /// Its place in the conversation.
    pub seq: u64,
    /// Its global id.
    pub message_id: u64,
    /// When the leader accepted it, milliseconds since the Unix epoch.
    pub sent_at_ms: i64,
    /// True when an earlier try had stored it already.
    pub duplicate: bool,
}

/// Where the answer of one send goes.
pub(crate) type Reply = oneshot::Sender<Result<Sent, ClientError>>;

/// A message on its way in.
pub(crate) struct Outgoing {
    pub(crate) conversation: ConversationId,
    pub(crate) client_message_id: ClientMessageId,
    pub(crate) content: v1::Content,
    pub(crate) deadline: Instant,
    pub(crate) reply: Reply,
    /// The sender's place in the bounded table; given back when the answer is there.
    pub(crate) permit: OwnedSemaphorePermit,
}

struct Entry {
    message: Outgoing,
    /// Set while it waits to be sent again after a transient refusal.
    not_before: Option<Instant>,
    backoff: Backoff,
}

/// See the module.
pub(crate) struct Pending {
    /// By request id, which is the order of adding.
    entries: BTreeMap<u64, Entry>,
    unsent: BTreeSet<u64>,
    next_request_id: u64,
    /// How long a send may take, for the error.
    send_timeout: Duration,
}

impl Pending {
    pub(crate) fn new(send_timeout: Duration) -> Self {
        Self {
            entries: BTreeMap::new(),
            unsent: BTreeSet::new(),
            next_request_id: 1,
            send_timeout,
        }
    }

    /// Takes a message; it goes out with the next [`Pending::next_frames`].
    pub(crate) fn add(&mut self, message: Outgoing) {
        let request_id = self.next_request_id;
        self.next_request_id += 1;
        self.unsent.insert(request_id);
        self.entries.insert(
            request_id,
            Entry {
                message,
                not_before: None,
                backoff: Backoff::default(),
            },
        );
    }

    /// How many frames were sent on the present stream and have no answer yet.
    pub(crate) fn in_flight(&self) -> usize {
        self.entries.len() - self.unsent.len()
    }

    /// The frames that may go out now, in order, with at most `in_flight_max` in flight.
    pub(crate) fn next_frames(&mut self, now: Instant, in_flight_max: usize) -> Vec<v1::Send> {
        if self.unsent.is_empty() {
            return Vec::new();
        }
        let room = in_flight_max.saturating_sub(self.in_flight());
        let mut waiting: HashSet<&str> = HashSet::new();
        let mut chosen = Vec::new();
        for request_id in &self.unsent {
            if chosen.len() >= room {
                break;
            }
            let entry = &self.entries[request_id];
            let conversation = entry.message.conversation.as_str();
            // One that waits holds back those behind it in its conversation.
            let held = entry.not_before.is_some_and(|at| at > now);
            if held || waiting.contains(conversation) {
                waiting.insert(conversation);
            } else {
                chosen.push(*request_id);
            }
        }
        chosen
            .into_iter()
            .map(|request_id| {
                self.unsent.remove(&request_id);
                frame(request_id, &self.entries[&request_id].message)
            })
            .collect()
    }

    /// The frame could not be handed to the stream: it goes out later.
    pub(crate) fn not_sent(&mut self, request_id: u64) {
        if self.entries.contains_key(&request_id) {
            self.unsent.insert(request_id);
        }
    }

    /// The stream is gone: all that is unanswered goes out again on the next one.
    pub(crate) fn connection_lost(&mut self) {
        self.unsent = self.entries.keys().copied().collect();
        for entry in self.entries.values_mut() {
            entry.not_before = None;
        }
    }

    /// The server has stored it. An answer to nothing (its deadline passed) is ignored.
    pub(crate) fn acknowledged(&mut self, sent: &v1::Sent) {
        if let Some(entry) = self.remove(sent.request_id) {
            let message = entry.message;
            answer(
                message.reply,
                message.permit,
                Ok(Sent {
                    conversation: message.conversation,
                    client_message_id: message.client_message_id,
                    seq: sent.seq,
                    message_id: sent.message_id,
                    sent_at_ms: sent.sent_at_ms,
                    duplicate: sent.duplicate,
                }),
            );
        }
    }

    /// The server refused it: for good, or for now and it is sent again.
    pub(crate) fn refused(&mut self, error: v1::RequestError, now: Instant) {
        let request_id = error.request_id;
        let limit = error.metadata.get("limit").map(String::as_str);
        if is_transient(tonic::Code::from_i32(error.code), limit) {
            if let Some(entry) = self.entries.get_mut(&request_id) {
                tracing::debug!(
                    request_id,
                    reason = error.reason,
                    "send put off by the server"
                );
                entry.not_before = Some(now + entry.backoff.next_wait());
                self.unsent.insert(request_id);
            }
        } else if let Some(entry) = self.remove(request_id) {
            answer(
                entry.message.reply,
                entry.message.permit,
                Err(ClientError::from_request_error(error)),
            );
        }
    }

    /// Answers those whose deadline has passed.
    pub(crate) fn expire(&mut self, now: Instant) {
        // All have the same timeout, so they expire in the order of adding.
        while let Some(first) = self.entries.first_entry() {
            if first.get().message.deadline > now {
                break;
            }
            let (request_id, entry) = first.remove_entry();
            self.unsent.remove(&request_id);
            answer(
                entry.message.reply,
                entry.message.permit,
                Err(ClientError::Timeout {
                    what: "send",
                    after: self.send_timeout,
                }),
            );
        }
    }

    /// Answers all of them: the session is over.
    pub(crate) fn fail_all(&mut self, error: &ClientError) {
        self.unsent.clear();
        for (_, entry) in std::mem::take(&mut self.entries) {
            answer(
                entry.message.reply,
                entry.message.permit,
                Err(error.clone()),
            );
        }
    }

    /// When something is to be done next without a frame coming in.
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        let expiry = self.entries.values().next().map(|e| e.message.deadline);
        let retry = self
            .unsent
            .iter()
            .filter_map(|request_id| self.entries[request_id].not_before)
            .min();
        expiry.into_iter().chain(retry).min()
    }

    fn remove(&mut self, request_id: u64) -> Option<Entry> {
        self.unsent.remove(&request_id);
        self.entries.remove(&request_id)
    }
}

fn frame(request_id: u64, message: &Outgoing) -> v1::Send {
    v1::Send {
        request_id,
        conversation_id: message.conversation.as_str().to_owned(),
        client_message_id: message.client_message_id.as_str().to_owned(),
        content: Some(message.content.clone()),
    }
}

fn answer(reply: Reply, permit: OwnedSemaphorePermit, answer: Result<Sent, ClientError>) {
    // The permit first: who hears the answer may send the next message at once. A caller
    // that is gone does not want the answer.
    drop(permit);
    let _ = reply.send(answer);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::text;
    use std::sync::Arc;
    use tokio::sync::Semaphore;
    use tonic::Code;

    const TIMEOUT: Duration = Duration::from_secs(30);

    struct Rig {
        pending: Pending,
        permits: Arc<Semaphore>,
        now: Instant,
    }

    type Answer = oneshot::Receiver<Result<Sent, ClientError>>;

    impl Rig {
        fn new() -> Self {
            Self {
                pending: Pending::new(TIMEOUT),
                permits: Arc::new(Semaphore::new(100)),
                now: Instant::now(),
            }
        }

        fn add(&mut self, conversation: &str) -> Answer {
            let (reply, answer) = oneshot::channel();
            self.pending.add(Outgoing {
                conversation: conversation.into(),
                client_message_id: ClientMessageId::random(),
                content: text("hi"),
                deadline: self.now + TIMEOUT,
                reply,
                permit: self.permits.clone().try_acquire_owned().expect("free"),
            });
            answer
        }

        fn frames(&mut self, max: usize) -> Vec<u64> {
            let frames = self.pending.next_frames(self.now, max);
            frames.iter().map(|frame| frame.request_id).collect()
        }

        fn put_off(&mut self, request_id: u64) {
            self.pending.refused(
                v1::RequestError {
                    request_id,
                    code: Code::Unavailable as i32,
                    ..Default::default()
                },
                self.now,
            );
        }

        fn acknowledge(&mut self, request_id: u64) {
            self.pending.acknowledged(&v1::Sent {
                request_id,
                seq: 7,
                ..Default::default()
            });
        }
    }

    #[test]
    fn frames_go_out_once_in_order_and_within_the_limit() {
        let mut rig = Rig::new();
        let mut first = rig.add("a");
        let _rest: Vec<_> = (0..3).map(|_| rig.add("a")).collect();
        assert_eq!(rig.frames(2), [1, 2]);
        assert_eq!(rig.frames(2), []);
        rig.acknowledge(1);
        assert_eq!(first.try_recv().expect("answered").expect("stored").seq, 7);
        assert_eq!(rig.frames(2), [3]);
        rig.acknowledge(1); // a second answer changes nothing
        assert_eq!(rig.pending.in_flight(), 2);
        assert_eq!(rig.permits.available_permits(), 97);
    }

    #[test]
    fn a_lost_connection_sends_all_unanswered_again_in_order() {
        let mut rig = Rig::new();
        let _answers: Vec<_> = ["a", "b", "a", "b"].map(|c| rig.add(c)).into();
        assert_eq!(rig.frames(3), [1, 2, 3]);
        rig.acknowledge(2);
        rig.pending.connection_lost();
        assert_eq!(rig.frames(256), [1, 3, 4]);
    }

    #[test]
    fn a_put_off_message_holds_back_its_conversation_only() {
        let mut rig = Rig::new();
        let _answers: Vec<_> = ["a", "b", "a"].map(|c| rig.add(c)).into();
        assert_eq!(rig.frames(1), [1]);
        rig.put_off(1);
        assert_eq!(rig.frames(256), [2]);
        rig.now = rig.pending.next_wake().expect("a retry is due");
        assert_eq!(rig.frames(256), [1, 3]);
    }

    #[test]
    fn a_refusal_is_answered_with_its_reason() {
        let mut rig = Rig::new();
        let mut answer = rig.add("a");
        rig.frames(256);
        rig.pending.refused(
            v1::RequestError {
                request_id: 1,
                code: Code::PermissionDenied as i32,
                reason: "NOT_A_MEMBER".to_owned(),
                ..Default::default()
            },
            rig.now,
        );
        let error = answer.try_recv().expect("answered").expect_err("refused");
        assert!(matches!(error, ClientError::NotAMember(_)));
        assert!(rig.pending.entries.is_empty());
    }

    /// An earlier try of it may have been stored: giving up would tell the application no.
    #[test]
    fn a_limit_that_may_pass_is_no_refusal() {
        let mut rig = Rig::new();
        let mut answer = rig.add("a");
        let limited = |limit: &str| v1::RequestError {
            request_id: 1,
            code: Code::ResourceExhausted as i32,
            reason: "LIMIT_EXCEEDED".to_owned(),
            metadata: [("limit".to_owned(), limit.to_owned())].into(),
            ..Default::default()
        };
        rig.frames(256);
        rig.pending
            .refused(limited("proposals_waiting_max"), rig.now);
        assert!(answer.try_recv().is_err(), "it is sent again");
        rig.now = rig.pending.next_wake().expect("a retry is due");
        assert_eq!(rig.frames(256), [1]);
        rig.pending.refused(limited("content_bytes_max"), rig.now);
        let error = answer.try_recv().expect("answered").expect_err("refused");
        assert!(matches!(error, ClientError::LimitExceeded { .. }));
    }

    #[test]
    fn deadlines_and_the_end_answer_everyone() {
        let mut rig = Rig::new();
        let mut first = rig.add("a");
        rig.now += Duration::from_secs(1);
        let mut second = rig.add("a");
        assert_eq!(rig.frames(1), [1]);
        rig.pending
            .expire(rig.now + TIMEOUT - Duration::from_secs(1));
        let error = first.try_recv().expect("answered").expect_err("late");
        assert!(matches!(error, ClientError::Timeout { .. }));
        assert!(second.try_recv().is_err(), "the second still waits");
        rig.pending.fail_all(&ClientError::Closed);
        let error = second.try_recv().expect("answered").expect_err("closed");
        assert!(matches!(error, ClientError::Closed));
        assert_eq!(rig.permits.available_permits(), 100);
    }
}
