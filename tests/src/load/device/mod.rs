//! One device of the load: sends, listens, reads, marks, and writes down what it sees.
//!
//! Owns its history, its unanswered messages and its place in the inbox. Invariants: at
//! most `in_flight_max` messages are unanswered; a message keeps its client message id
//! over all tries; the messages in `outstanding` are in the order of their first try.

mod receiving;
mod sending;
mod unary;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use carillon_proto::v1;
use rand::Rng as _;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::calls::{self, Done};
use super::inbox::Inbox;
use super::plan::LoadOptions;
use super::stream::{Open, OpenError};
use super::{Phase, Position, Progress};
use crate::access::Target;
use crate::history::{
    ClientMessageId, Clock, ConversationId, DeviceHistory, Event, InboxSeq, Record, Seq,
    StreamNumber, UserId,
};
use crate::rpc::Chat;

/// A sign of life this often; retries are looked at then too.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(250);
/// A stream that says nothing for so long is given up.
const SILENCE_LIMIT: Duration = Duration::from_secs(2);
/// A send that is not answered for so long is tried on another stream.
const ANSWER_LIMIT: Duration = Duration::from_secs(12);
/// Before a message is tried again on the same stream, and before the next node is tried.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// Between two looks at whether to read or to mark.
const CALL_INTERVAL: Duration = Duration::from_millis(150);
/// Unary calls of one device at a time, besides one Sync.
const CALLS_MAX: usize = 2;

/// Of the failures to connect in a row, how many are printed.
const FAILURES_PRINTED_EVERY: u32 = 100;

/// What a device is made of.
pub(super) struct DeviceParts {
    pub user: UserId,
    pub name: String,
    pub conversations: Vec<ConversationId>,
    pub targets: Vec<Target>,
    pub nodes: Arc<[Chat]>,
    pub options: Arc<LoadOptions>,
    pub rng: StdRng,
    pub clock: Clock,
    pub progress: Arc<Progress>,
    pub phase: watch::Receiver<Phase>,
    pub position: watch::Sender<Position>,
}

/// A message that has no answer yet.
struct Outgoing {
    conversation: ConversationId,
    client_message_id: ClientMessageId,
    content: v1::Content,
    /// Its try on the current stream.
    request: Option<(u64, Instant)>,
    retry_at: Instant,
}

pub(super) struct Device {
    parts: DeviceParts,
    records: Vec<Record>,
    outstanding: VecDeque<Outgoing>,
    sent: u64,
    requests: u64,
    stream: StreamNumber,
    /// The last inbox entry that the stream gave or told to resync.
    streamed: InboxSeq,
    inbox: Inbox,
    sync_after: Instant,
    syncing: bool,
    read_upto: HashMap<ConversationId, Seq>,
    delivered_upto: HashMap<ConversationId, Seq>,
    calls: JoinSet<Done>,
    target: usize,
    heard: Instant,
    /// Tries to connect that failed since the last one that did not.
    failures: u32,
    acked_cursor: InboxSeq,
}

/// Whether to go on with a stream.
#[derive(PartialEq, Eq)]
enum Go {
    On,
    /// Connect again, elsewhere.
    Away,
}

impl Device {
    pub fn new(parts: DeviceParts) -> Self {
        let mut parts = parts;
        let target = parts.rng.random_range(0..parts.targets.len());
        Self {
            parts,
            records: Vec::new(),
            outstanding: VecDeque::new(),
            sent: 0,
            requests: 0,
            stream: StreamNumber(0),
            streamed: InboxSeq(0),
            inbox: Inbox::default(),
            sync_after: Instant::now(),
            syncing: false,
            read_upto: HashMap::new(),
            delivered_upto: HashMap::new(),
            calls: JoinSet::new(),
            target,
            heard: Instant::now(),
            failures: 0,
            acked_cursor: InboxSeq(0),
        }
    }

    /// Runs until the phase is `Done`.
    pub async fn run(mut self) -> DeviceHistory {
        while self.phase() != Phase::Done {
            self.stream = self.stream.next();
            let target = &self.parts.targets[self.target];
            let hello = v1::Hello {
                user_id: self.parts.user.to_string(),
                device_id: self.parts.name.clone(),
                platform: "test".to_owned(),
                inbox_cursor: Some(self.inbox.cursor().0),
            };
            match Open::connect(target, hello).await {
                Ok((open, welcome)) => {
                    self.welcomed(&welcome);
                    self.serve(open).await;
                }
                Err(OpenError::Transient(why)) => self.not_opened(&why),
                Err(OpenError::Protocol(what)) => self.anomaly(what),
            }
            self.target = (self.target + 1) % self.parts.targets.len();
            // The phase may change while this waits; it is looked at right after.
            let _ = tokio::time::timeout(RETRY_AFTER, self.parts.phase.changed()).await;
        }
        DeviceHistory {
            user: self.parts.user,
            device: self.parts.name,
            records: self.records,
        }
    }

    fn not_opened(&mut self, why: &str) {
        self.failures += 1;
        if self.failures.is_multiple_of(FAILURES_PRINTED_EVERY) {
            println!(
                "{}/{}: {} tries to connect failed, the last: {why}",
                self.parts.user, self.parts.name, self.failures
            );
        }
    }

    fn phase(&self) -> Phase {
        *self.parts.phase.borrow()
    }

    fn record(&mut self, event: Event) {
        let at = self.parts.clock.now();
        self.records.push(Record { at, event });
    }

    fn anomaly(&mut self, what: String) {
        self.record(Event::Anomaly { what });
    }

    fn publish(&self) {
        let position = Position {
            cursor: self.inbox.cursor(),
            outstanding: self.outstanding.len(),
        };
        self.parts.position.send_if_modified(|old| {
            let changed = *old != position;
            *old = position;
            changed
        });
    }

    fn welcomed(&mut self, welcome: &v1::Welcome) {
        let inbox_head = InboxSeq(welcome.inbox_head);
        let cursor = self.inbox.cursor();
        if welcome.inbox_cursor != cursor.0 {
            self.anomaly(format!(
                "said cursor {cursor}, was welcomed with {}",
                welcome.inbox_cursor
            ));
        }
        if inbox_head < self.inbox.wanted() {
            self.anomaly(format!(
                "welcomed with an inbox that ends at {inbox_head}, but {} was there before",
                self.inbox.wanted()
            ));
        }
        let stream = self.stream;
        self.record(Event::StreamOpened { stream, inbox_head });
        self.streamed = inbox_head;
        self.inbox.want(inbox_head);
        self.heard = Instant::now();
        self.failures = 0;
    }

    async fn serve(&mut self, mut open: Open) {
        for outgoing in &mut self.outstanding {
            outgoing.request = None;
            outgoing.retry_at = Instant::now();
        }
        if self.resend_due(&open) == Go::Away {
            return;
        }
        let jitter = self.parts.rng.random_range(0.5..1.5);
        let mut pace = interval(self.parts.options.send_interval.mul_f64(jitter));
        let mut beat = interval(HEARTBEAT_INTERVAL);
        let mut call = interval(CALL_INTERVAL);
        for ticker in [&mut pace, &mut beat, &mut call] {
            ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        // All arms are cancel-safe: a frame, a tick or a finished call that is not taken
        // now is taken the next time.
        loop {
            let go = tokio::select! {
                frame = open.inbound.message() => match frame {
                    Ok(Some(frame)) => self.on_frame(frame),
                    Ok(None) => Go::Away,
                    Err(status) => self.on_status(&status),
                },
                _ = pace.tick(), if self.phase() == Phase::Sending => self.send_new(&open),
                _ = beat.tick() => self.on_beat(&open),
                _ = call.tick() => self.start_calls(),
                Some(done) = self.calls.join_next(), if !self.calls.is_empty() => match done {
                    Ok(done) => self.on_done(done),
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
                changed = self.parts.phase.changed() => {
                    if changed.is_err() { Go::Away } else { Go::On }
                }
            };
            self.start_sync();
            self.publish();
            if go == Go::Away || self.phase() == Phase::Done {
                return;
            }
        }
    }

    fn on_status(&mut self, status: &tonic::Status) -> Go {
        if !calls::is_transient(status.code()) {
            self.anomaly(format!("the stream ended with {status}"));
        }
        Go::Away
    }
}
