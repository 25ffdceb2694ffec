//! What one stream still has to send: the session's state machine, without I/O.
//!
//! registering → live → finishing → closed. Frames are queued already encoded; the
//! stream's body takes all of them at once.
//!
//! Owner of the state: the session, behind its mutex.
//!
//! Invariants:
//! - along a stream, every inbox entry after Welcome's `inbox_head` is either delivered
//!   or inside a Resync, in order and once;
//! - deliveries make the queue at most `bytes_max` long; answers may go beyond, and are
//!   bounded because frames are read only while the queue is below it;
//! - `in_flight ≤ SENDS_IN_FLIGHT_MAX`.

use bytes::{Bytes, BytesMut};
use carillon_proto::v1::server_frame::Frame;
use carillon_proto::v1::{Kick, Resync, resync};
use tonic::{Code, Status};

use super::frames::{delivery_len, put_delivery, put_frame};
use super::limits::SENDS_IN_FLIGHT_MAX;

/// The smallest allocation of a queue that has something in it, bytes. An idle stream
/// has none.
const ALLOCATION_MIN: usize = 256;

/// How a stream ends.
#[derive(Debug)]
pub(super) struct End {
    /// The last frame, if the server ends it.
    pub kick: Option<Kick>,
    /// The status after it.
    pub status: Status,
}

impl End {
    /// The client is done.
    pub fn orderly() -> Self {
        Self {
            kick: None,
            status: Status::new(Code::Ok, ""),
        }
    }
}

#[derive(Debug)]
enum Phase {
    /// Waits for its inbox's end; remembers the largest entry pushed meanwhile.
    Registering { dropped_max: u64 },
    /// Deliveries are queued.
    Live,
    /// Takes nothing new; ends when the last send is answered.
    Finishing(End),
    /// Ends with this once the queue is sent; none when that was done.
    Closed(Option<Status>),
}

/// What became of a pushed entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// Queued.
    Delivered,
    /// Queued behind a Resync for what is missing before it.
    DeliveredAfterGap,
    /// Left out because the queue is full; the first one since it was not.
    Overflowed,
    /// Left out: known already, or the stream cannot take it now.
    Dropped,
}

/// What the body sends next.
#[derive(Debug)]
pub(super) enum Taken {
    /// Whole frames.
    Frames(Bytes),
    /// The end.
    End(Status),
    /// Nothing now.
    Nothing,
    /// Nothing any more.
    Gone,
}

/// What the reader of a stream's frames may do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// Read on.
    Open,
    /// Wait until the queue is shorter.
    Full,
    /// Stop: the stream ends.
    Closed,
}

/// See the module.
#[derive(Debug)]
pub(super) struct SessionQueue {
    buffer: BytesMut,
    bytes_max: usize,
    phase: Phase,
    /// The last inbox entry that was queued, told to resync, or left out.
    last: u64,
    /// Entries after this one up to `last` were left out and are still to be told.
    too_slow_after: Option<u64>,
    in_flight: u32,
}

impl SessionQueue {
    /// A stream that has not said hello.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            bytes_max,
            phase: Phase::Registering { dropped_max: 0 },
            last: 0,
            too_slow_after: None,
            in_flight: 0,
        }
    }

    /// The inbox ends at `head`: deliveries begin after the end that is returned. The
    /// caller queues Welcome before it lets go of the queue. None when the stream ends.
    pub fn go_live(&mut self, head: u64) -> Option<u64> {
        let Phase::Registering { dropped_max } = self.phase else {
            return None;
        };
        self.last = head.max(dropped_max);
        self.phase = Phase::Live;
        Some(self.last)
    }

    /// An inbox entry was committed.
    pub fn push(&mut self, inbox_seq: u64, unread: u32, message: &[u8]) -> Pushed {
        match &mut self.phase {
            Phase::Live => {}
            Phase::Registering { dropped_max } => {
                *dropped_max = (*dropped_max).max(inbox_seq);
                return Pushed::Dropped;
            }
            Phase::Finishing(_) | Phase::Closed(_) => return Pushed::Dropped,
        }
        if inbox_seq <= self.last {
            return Pushed::Dropped;
        }
        let after = self.last;
        self.last = inbox_seq;
        if self.too_slow_after.is_some() {
            return Pushed::Dropped;
        }
        if self.buffer.len() + delivery_len(inbox_seq, message, unread) > self.bytes_max {
            self.too_slow_after = Some(after);
            return Pushed::Overflowed;
        }
        let gap = inbox_seq > after + 1;
        if gap {
            self.queue_resync(after, inbox_seq - 1, resync::Reason::Gap);
        }
        self.allocate();
        put_delivery(&mut self.buffer, inbox_seq, message, unread);
        if gap {
            Pushed::DeliveredAfterGap
        } else {
            Pushed::Delivered
        }
    }

    /// A new leader told where the inbox ends: entries up to there that did not come are
    /// told to resync. True when there are some.
    pub fn head_known(&mut self, head: u64) -> bool {
        if !matches!(self.phase, Phase::Live) || head <= self.last {
            return false;
        }
        let after = std::mem::replace(&mut self.last, head);
        // What was left out before is told in one Resync with this.
        if self.too_slow_after.is_none() {
            self.queue_resync(after, head, resync::Reason::Gap);
        }
        true
    }

    /// A send begins; false when too many are unanswered.
    pub fn begin_send(&mut self) -> bool {
        let fits = self.in_flight < SENDS_IN_FLIGHT_MAX;
        self.in_flight += u32::from(fits);
        fits
    }

    /// The answer to a send that began.
    pub fn finish_send(&mut self, answer: Frame) {
        self.in_flight = self
            .in_flight
            .checked_sub(1)
            .expect("only sends that began are answered");
        self.answer(answer);
        self.end_if_finished();
    }

    /// Queues a frame that is not a delivery.
    pub fn answer(&mut self, frame: Frame) {
        if !matches!(self.phase, Phase::Closed(_)) {
            self.allocate();
            put_frame(&mut self.buffer, frame);
        }
    }

    /// The last entry that the stream was given or told to resync.
    pub fn told(&self) -> u64 {
        self.too_slow_after.unwrap_or(self.last)
    }

    /// Ends the stream once every send is answered. False when it ends already.
    pub fn finish(&mut self, end: End) -> bool {
        if self.is_ending() {
            return false;
        }
        self.phase = Phase::Finishing(end);
        self.end_if_finished();
        true
    }

    /// Ends the stream now. What is queued is still sent, unless `discard`. False when
    /// it is closed already.
    pub fn close(&mut self, end: End, discard: bool) -> bool {
        if matches!(self.phase, Phase::Closed(_)) {
            return false;
        }
        if discard {
            // The queue holds whole frames only, so cutting it off keeps the stream intact.
            self.buffer = BytesMut::new();
        }
        if let Some(kick) = end.kick {
            self.answer(Frame::Kick(kick));
        }
        self.phase = Phase::Closed(Some(end.status));
        true
    }

    /// The client is gone: nothing can be sent any more.
    pub fn abandon(&mut self) {
        self.buffer = BytesMut::new();
        self.phase = Phase::Closed(None);
    }

    /// Takes what is to be sent next.
    pub fn take(&mut self) -> Taken {
        if self.buffer.is_empty() {
            self.tell_too_slow();
        }
        if !self.buffer.is_empty() {
            let bytes = std::mem::take(&mut self.buffer).freeze();
            self.tell_too_slow();
            return Taken::Frames(bytes);
        }
        match &mut self.phase {
            Phase::Closed(status) => status.take().map_or(Taken::Gone, Taken::End),
            _ => Taken::Nothing,
        }
    }

    /// Whether more frames may be read from the client.
    pub fn gate(&self) -> Gate {
        if self.is_ending() {
            Gate::Closed
        } else if self.buffer.len() >= self.bytes_max {
            Gate::Full
        } else {
            Gate::Open
        }
    }

    /// True when nothing more is read from the client.
    pub fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Finishing(_) | Phase::Closed(_))
    }

    /// True when only what is queued is still sent.
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed(_))
    }

    /// The queue is empty: what was left out is told.
    fn tell_too_slow(&mut self) {
        if matches!(self.phase, Phase::Live)
            && let Some(after) = self.too_slow_after.take()
        {
            self.queue_resync(after, self.last, resync::Reason::TooSlow);
        }
    }

    fn queue_resync(&mut self, after: u64, to: u64, reason: resync::Reason) {
        let resync = Resync {
            after_inbox_seq: after,
            to_inbox_seq: to,
            reason: reason.into(),
        };
        self.allocate();
        put_frame(&mut self.buffer, Frame::Resync(resync));
    }

    fn end_if_finished(&mut self) {
        if self.in_flight > 0 || !matches!(self.phase, Phase::Finishing(_)) {
            return;
        }
        let Phase::Finishing(end) = std::mem::replace(&mut self.phase, Phase::Closed(None)) else {
            return;
        };
        if let Some(kick) = end.kick {
            self.allocate();
            put_frame(&mut self.buffer, Frame::Kick(kick));
        }
        self.phase = Phase::Closed(Some(end.status));
    }

    fn allocate(&mut self) {
        if self.buffer.capacity() == 0 {
            self.buffer.reserve(ALLOCATION_MIN);
        }
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
