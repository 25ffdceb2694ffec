//! Users on `Connect` streams, many streams on each TCP connection.
//!
//! Owner of the streams: each has one task that reads it, and is written to by whoever
//! makes the load. What is read goes to one [`Listener`], at once and on the same thread.
//!
//! Invariant: unanswered sends of a stream ≤ [`SENDS_IN_FLIGHT_MAX`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{StreamExt, TryStreamExt};
use h2::{RecvStream, SendStream};
use prost::Message;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::frames::{
    self, Content, CursorAck, Heartbeat, Hello, Say, Send, ServerFrame, Told, Unframer, Welcome,
};
use super::wire::{Connection, Traffic, WireError};

/// The protocol's limit of unanswered sends on one stream.
pub const SENDS_IN_FLIGHT_MAX: u32 = 256;
/// Connections and streams that are being opened at the same time.
const OPENING_MAX: usize = 64;
/// How long the answer to a hello may take.
const WELCOME_LIMIT: Duration = Duration::from_secs(15);
/// How often some streams say a sign of life, so that they do not all do it at once.
const BEAT_SLICE: Duration = Duration::from_millis(50);

/// Times as nanoseconds since the beginning of the benchmark.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Now; wraps after 584 years.
    pub fn now_ns(self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// Takes what the streams say. `now_ns` is when it was read; `user` is the place in the
/// list that the fleet was made with.
pub trait Listener: std::marker::Send + Sync + 'static {
    /// A send was acknowledged.
    fn sent(&self, user: usize, request_id: u64, now_ns: u64);
    /// A send was refused, with the server's reason.
    fn failed(&self, user: usize, request_id: u64, reason: &str);
    /// An inbox entry with a custom content came.
    fn delivered(&self, _user: usize, _data: &Bytes, _now_ns: u64) {}
    /// Inbox entries were left out on the stream: by a resync, or without a word.
    fn missed(&self, _user: usize, _entries: u64, _told: bool) {}
    /// The stream is over; this many sends will get no answer.
    fn ended(&self, user: usize, why: &str, unanswered: u32);
}

/// Why a send was not even tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotSent {
    /// The stream has as many unanswered sends as it may have.
    InFlight,
    /// The stream is over.
    Ended,
}

/// The streams.
pub struct Fleet<L> {
    clock: Clock,
    seats: Vec<Seat>,
    traffic: Vec<Arc<Traffic>>,
    listener: Arc<L>,
}

struct Seat {
    /// None once the stream is over.
    out: Mutex<Option<SendStream<Bytes>>>,
    in_flight: AtomicU32,
    inbox_seq: AtomicU64,
    acked_seq: AtomicU64,
}

impl Seat {
    fn say(&self, say: Say) -> Result<(), NotSent> {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = out.as_mut().ok_or(NotSent::Ended)?;
        stream
            .send_data(frames::encode(say), false)
            .map_err(|_| NotSent::Ended)
    }
}

/// A stream that said hello and was welcomed.
struct Opened {
    user: usize,
    out: SendStream<Bytes>,
    read: RecvStream,
    unframer: Unframer,
    welcome: Welcome,
}

impl<L: Listener> Fleet<L> {
    /// Connects each user once, over `channels` TCP connections spread over the
    /// addresses. Signs of life go out by themselves from then on.
    pub async fn connect(
        clock: Clock,
        addresses: &[String],
        users: &[String],
        channels: usize,
        listener: Arc<L>,
    ) -> Result<Arc<Self>, WireError> {
        let channels = channels.clamp(1, users.len().max(1));
        let connections: Vec<Connection> = futures_util::stream::iter(0..channels)
            .map(|channel| Connection::dial(&addresses[channel % addresses.len()]))
            .buffered(OPENING_MAX)
            .try_collect()
            .await?;
        let mut opened: Vec<Opened> = futures_util::stream::iter(users.iter().enumerate())
            .map(|(user, id)| open(user, id, &connections[user % channels]))
            .buffered(OPENING_MAX)
            .try_collect()
            .await?;
        let interval_ms = opened.iter().map(|o| o.welcome.heartbeat_interval_ms).min();
        let mut readers = Vec::with_capacity(opened.len());
        let mut seats = Vec::with_capacity(opened.len());
        for stream in opened.drain(..) {
            seats.push(Seat {
                out: Mutex::new(Some(stream.out)),
                in_flight: AtomicU32::new(0),
                inbox_seq: AtomicU64::new(stream.welcome.inbox_head),
                acked_seq: AtomicU64::new(stream.welcome.inbox_head),
            });
            readers.push((stream.user, stream.read, stream.unframer));
        }
        let fleet = Arc::new(Self {
            clock,
            seats,
            traffic: connections.iter().map(|c| c.traffic.clone()).collect(),
            listener,
        });
        for (user, read, unframer) in readers {
            tokio::spawn(fleet.clone().read(user, read, unframer));
        }
        let heartbeat = Duration::from_millis(interval_ms.unwrap_or(15_000).max(100).into());
        tokio::spawn(fleet.clone().beat(heartbeat));
        Ok(fleet)
    }

    /// How many TCP connections there are.
    pub fn connections(&self) -> usize {
        self.traffic.len()
    }

    /// How many streams there are.
    pub fn streams(&self) -> usize {
        self.seats.len()
    }

    /// Bytes sent and received over all connections so far.
    pub fn bytes(&self) -> (u64, u64) {
        self.traffic.iter().fold((0, 0), |sum, traffic| {
            let (sent, received) = traffic.bytes();
            (sum.0 + sent, sum.1 + received)
        })
    }

    /// Sends one message as a user; the answer goes to the listener.
    pub fn send(
        &self,
        user: usize,
        request_id: u64,
        conversation: Bytes,
        client_message_id: String,
        content: Content,
    ) -> Result<(), NotSent> {
        let seat = &self.seats[user];
        if seat.in_flight.load(Ordering::Relaxed) >= SENDS_IN_FLIGHT_MAX {
            return Err(NotSent::InFlight);
        }
        seat.say(Say::Send(Send {
            request_id,
            conversation_id: conversation,
            client_message_id,
            content: Some(content),
        }))?;
        seat.in_flight.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Tells the server, on every stream that has news, how far its device has read.
    pub async fn acknowledge_every(self: Arc<Self>, period: Duration) {
        self.for_each_spread(period, |seat| {
            let inbox_seq = seat.inbox_seq.load(Ordering::Relaxed);
            if seat.acked_seq.swap(inbox_seq, Ordering::Relaxed) != inbox_seq {
                // A stream that is over is reported by its reader.
                let _ = seat.say(Say::CursorAck(CursorAck { inbox_seq }));
            }
        })
        .await;
    }

    /// Signs of life, twice as often as the server asks for.
    async fn beat(self: Arc<Self>, period: Duration) {
        self.for_each_spread(period / 2, |seat| {
            // A stream that is over is reported by its reader.
            let _ = seat.say(Say::Heartbeat(Heartbeat { nonce: 0 }));
        })
        .await;
    }

    /// Calls on every seat once a period, a few at a time; never ends.
    async fn for_each_spread(&self, period: Duration, act: impl Fn(&Seat)) {
        let slices = (period.as_millis() / BEAT_SLICE.as_millis()).max(1) as usize;
        let step = self.seats.len().div_ceil(slices).max(1);
        let mut ticks = interval(BEAT_SLICE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            for slice in self.seats.chunks(step) {
                ticks.tick().await;
                slice.iter().for_each(&act);
            }
            // With fewer seats than slices the period is still kept.
            for _ in self.seats.len().div_ceil(step)..slices {
                ticks.tick().await;
            }
        }
    }

    /// Reads one stream to its end.
    async fn read(self: Arc<Self>, user: usize, mut read: RecvStream, mut unframer: Unframer) {
        let why = self.follow(user, &mut read, &mut unframer).await;
        let seat = &self.seats[user];
        let mut out = seat.out.lock().unwrap_or_else(PoisonError::into_inner);
        *out = None;
        drop(out);
        let unanswered = seat.in_flight.swap(0, Ordering::Relaxed);
        self.listener.ended(user, &why, unanswered);
    }

    /// Takes frames until the stream ends; answers why it did.
    async fn follow(&self, user: usize, read: &mut RecvStream, unframer: &mut Unframer) -> String {
        loop {
            let now_ns = self.clock.now_ns();
            loop {
                match unframer.next() {
                    Ok(None) => break,
                    Ok(Some(message)) => match ServerFrame::decode(message) {
                        Ok(frame) => {
                            if let Some(why) = self.take(user, frame, now_ns) {
                                return why;
                            }
                        }
                        Err(error) => return format!("unreadable frame: {error}"),
                    },
                    Err(error) => return error.to_string(),
                }
            }
            match read.data().await {
                Some(Ok(chunk)) => {
                    // Fails only on a stream that is over, which the next read tells.
                    let _ = read.flow_control().release_capacity(chunk.len());
                    unframer.push(chunk);
                }
                Some(Err(error)) => return format!("stream broke: {error}"),
                None => return "stream was closed".to_owned(),
            }
        }
    }

    /// One frame; answers why the stream ends when it does.
    fn take(&self, user: usize, frame: ServerFrame, now_ns: u64) -> Option<String> {
        let seat = &self.seats[user];
        match frame.told {
            Some(Told::Delivery(delivery)) => {
                let before = seat.inbox_seq.swap(delivery.inbox_seq, Ordering::Relaxed);
                if delivery.inbox_seq != before + 1 {
                    let entries = delivery.inbox_seq.abs_diff(before + 1);
                    self.listener.missed(user, entries, false);
                }
                let content = delivery.message.and_then(|message| message.content);
                if let Some(custom) = content.and_then(|content| content.custom) {
                    self.listener.delivered(user, &custom.data, now_ns);
                }
            }
            Some(Told::Sent(sent)) => {
                seat.in_flight.fetch_sub(1, Ordering::Relaxed);
                self.listener.sent(user, sent.request_id, now_ns);
            }
            Some(Told::Error(error)) => {
                seat.in_flight.fetch_sub(1, Ordering::Relaxed);
                self.listener.failed(user, error.request_id, &error.reason);
            }
            Some(Told::Resync(resync)) => {
                seat.inbox_seq.store(resync.to_inbox_seq, Ordering::Relaxed);
                let entries = resync.to_inbox_seq.saturating_sub(resync.after_inbox_seq);
                self.listener.missed(user, entries, true);
            }
            Some(Told::Kick(kick)) => {
                return Some(format!("kicked ({}): {}", kick.reason, kick.message));
            }
            Some(Told::Welcome(_) | Told::HeartbeatAck(_)) | None => {}
        }
        None
    }
}

async fn open(user: usize, id: &str, connection: &Connection) -> Result<Opened, WireError> {
    let (mut out, mut read) = connection.open().await?;
    let hello = Say::Hello(Hello {
        user_id: id.to_owned(),
        device_id: "bench".to_owned(),
        platform: "bench".to_owned(),
    });
    out.send_data(frames::encode(hello), false)
        .map_err(|source| connection.broken(source))?;
    let mut unframer = Unframer::default();
    let welcomed = timeout(WELCOME_LIMIT, async {
        loop {
            let Some(chunk) = read.data().await else {
                let status = read.trailers().await.ok().flatten();
                return Err(connection.refused(status.as_ref()));
            };
            let chunk = chunk.map_err(|source| connection.broken(source))?;
            // Fails only on a stream that is over, which the next read tells.
            let _ = read.flow_control().release_capacity(chunk.len());
            unframer.push(chunk);
            let message = unframer
                .next()
                .map_err(|error| connection.unexpected(&error.to_string()))?;
            let Some(message) = message else { continue };
            return match ServerFrame::decode(message) {
                Ok(ServerFrame {
                    told: Some(Told::Welcome(welcome)),
                }) => Ok(welcome),
                other => Err(connection.unexpected(&format!("{other:?}"))),
            };
        }
    });
    let welcome = welcomed.await.map_err(|_| connection.timed_out())??;
    Ok(Opened {
        user,
        out,
        read,
        unframer,
        welcome,
    })
}

/// Failures by reason, each counted.
#[derive(Debug, Default, Clone)]
pub struct Reasons(BTreeMap<String, u64>);

/// Reasons that are told apart; the others are counted together.
const REASONS_MAX: usize = 32;

impl Reasons {
    /// Counts some of one reason.
    pub fn add(&mut self, reason: &str, count: u64) {
        if let Some(known) = self.0.get_mut(reason) {
            *known += count;
        } else if count > 0 {
            let reason = if self.0.len() < REASONS_MAX {
                reason
            } else {
                "other"
            };
            *self.0.entry(reason.to_owned()).or_default() += count;
        }
    }

    /// All of them together.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    pub fn into_map(self) -> BTreeMap<String, u64> {
        self.0
    }
}
