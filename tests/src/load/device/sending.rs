//! A device's messages: made, sent, sent again, answered.

use carillon_proto::v1::{self, client_frame};
use rand::Rng as _;
use tokio::time::Instant;
use tonic::Code;

use super::{ANSWER_LIMIT, Device, Go, Outgoing, RETRY_AFTER, SILENCE_LIMIT};
use crate::history::{Event, Fingerprint, Seq};
use crate::load::calls;
use crate::load::stream::Open;
use crate::rpc;

impl Device {
    pub(super) fn send_new(&mut self, open: &Open) -> Go {
        if self.outstanding.len() >= self.parts.options.in_flight_max {
            return Go::On;
        }
        self.sent += 1;
        let which = self
            .parts
            .rng
            .random_range(0..self.parts.conversations.len());
        let id = format!("{}-{}", self.parts.name, self.sent);
        let mut body = format!("{} says {} ", self.parts.user, self.sent);
        while body.len() < self.parts.options.text_bytes {
            body.push(char::from(self.parts.rng.random_range(b'a'..=b'z')));
        }
        self.outstanding.push_back(Outgoing {
            conversation: self.parts.conversations[which].clone(),
            client_message_id: id.into(),
            content: rpc::text(body),
            request: None,
            retry_at: Instant::now(),
        });
        self.send(self.outstanding.len() - 1, open)
    }

    pub(super) fn send(&mut self, index: usize, open: &Open) -> Go {
        self.requests += 1;
        let request_id = self.requests;
        let outgoing = &mut self.outstanding[index];
        outgoing.request = Some((request_id, Instant::now()));
        let send = v1::Send {
            request_id,
            conversation_id: outgoing.conversation.to_string(),
            client_message_id: outgoing.client_message_id.to_string(),
            content: Some(outgoing.content.clone()),
        };
        let event = Event::SendStarted {
            conversation: outgoing.conversation.clone(),
            client_message_id: outgoing.client_message_id.clone(),
            stream: self.stream,
            content: Fingerprint::of(&outgoing.content),
        };
        self.record(event);
        Self::push(open, client_frame::Frame::Send(send))
    }

    pub(super) fn push(open: &Open, frame: client_frame::Frame) -> Go {
        // Full means that the server does not read; closed that it is gone.
        if open.push(frame) { Go::On } else { Go::Away }
    }

    pub(super) fn resend_due(&mut self, open: &Open) -> Go {
        let now = Instant::now();
        for index in 0..self.outstanding.len() {
            let outgoing = &self.outstanding[index];
            if outgoing.request.is_none()
                && outgoing.retry_at <= now
                && self.send(index, open) == Go::Away
            {
                return Go::Away;
            }
        }
        Go::On
    }

    pub(super) fn on_beat(&mut self, open: &Open) -> Go {
        let late = |outgoing: &Outgoing| {
            let tried = outgoing.request.map(|(_, at)| at.elapsed());
            tried.is_some_and(|elapsed| elapsed > ANSWER_LIMIT)
        };
        if self.heard.elapsed() > SILENCE_LIMIT || self.outstanding.iter().any(late) {
            return Go::Away;
        }
        let nonce = self.requests;
        if Self::push(
            open,
            client_frame::Frame::Heartbeat(v1::Heartbeat { nonce }),
        ) == Go::Away
        {
            return Go::Away;
        }
        let cursor = self.inbox.cursor();
        if cursor > self.acked_cursor {
            self.acked_cursor = cursor;
            let ack = v1::CursorAck {
                inbox_seq: cursor.0,
            };
            if Self::push(open, client_frame::Frame::CursorAck(ack)) == Go::Away {
                return Go::Away;
            }
        }
        self.resend_due(open)
    }

    pub(super) fn answered(&mut self, request_id: u64) -> Option<usize> {
        let is_it = |outgoing: &Outgoing| outgoing.request.is_some_and(|(id, _)| id == request_id);
        let index = self.outstanding.iter().position(is_it);
        if index.is_none() {
            self.anomaly(format!(
                "an answer to request {request_id}, which is not waiting"
            ));
        }
        index
    }

    pub(super) fn on_sent(&mut self, sent: &v1::Sent) {
        let Some(index) = self.answered(sent.request_id) else {
            return;
        };
        if let Some(outgoing) = self.outstanding.remove(index) {
            self.parts.progress.acknowledged(&outgoing.conversation);
            self.record(Event::SendAcked {
                conversation: outgoing.conversation,
                client_message_id: outgoing.client_message_id,
                stream: self.stream,
                seq: Seq(sent.seq),
                message_id: sent.message_id,
                duplicate: sent.duplicate,
            });
        }
    }

    pub(super) fn on_error(&mut self, error: v1::RequestError) {
        let Some(index) = self.answered(error.request_id) else {
            return;
        };
        if calls::is_transient(Code::from_i32(error.code)) {
            let outgoing = &mut self.outstanding[index];
            outgoing.request = None;
            outgoing.retry_at = Instant::now() + RETRY_AFTER;
        } else if let Some(outgoing) = self.outstanding.remove(index) {
            self.record(Event::SendRefused {
                conversation: outgoing.conversation,
                client_message_id: outgoing.client_message_id,
                reason: format!("{} {}: {}", error.code, error.reason, error.message),
            });
        }
    }
}
