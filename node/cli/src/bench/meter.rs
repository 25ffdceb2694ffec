//! What a run measured: latencies from the intended time, counts, failures by reason.
//!
//! Owner of the state: the [`Meter`]; the streams write to it, the run reads it. Latencies
//! belong to the window by when the message was to be sent, throughput by when its answer
//! or delivery came, so that a backlog drained afterwards does not flatter it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};
use hdrhistogram::Histogram;
use rand::Rng as _;
use serde::Serialize;
use tokio::sync::Notify;

use super::fleet::{Listener, NotSent, Reasons};
use super::frames::{Content, Custom};

/// The longest latency that is told apart, microseconds.
const LATENCY_US_MAX: u64 = 120_000_000;
/// Seconds of a window that are told apart; what is due later counts in the whole only.
const SECONDS_MAX: usize = 600;
const NANOS_PER_SECOND: Nanos = 1_000_000_000;
/// Bytes of a payload that are the benchmark's own: the run and the intended time.
pub const STAMP_BYTES: usize = 16;
/// The kind of the benchmark's messages.
const CONTENT_KIND: &[u8] = b"carillon.bench";

/// Nanoseconds since the clock's start.
pub type Nanos = u64;

/// Latencies in microseconds.
#[derive(Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Self::with_digits(3)
    }
}

impl Latencies {
    fn with_digits(significant: u8) -> Self {
        let histogram = Histogram::new_with_bounds(1, LATENCY_US_MAX, significant);
        Self(histogram.expect("the bounds are valid"))
    }

    /// One that took from `from` to `to`.
    pub fn record(&mut self, from: Nanos, to: Nanos) {
        self.0.saturating_record(to.saturating_sub(from) / 1_000);
    }

    pub fn quantiles(&self) -> Quantiles {
        let at = |quantile| self.0.value_at_quantile(quantile) as f64 / 1_000.0;
        Quantiles {
            count: self.0.len(),
            mean_ms: self.0.mean() / 1_000.0,
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: self.0.max() as f64 / 1_000.0,
        }
    }
}

/// How latencies are spread, milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Quantiles {
    pub count: u64,
    pub mean_ms: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
}

/// What was due in one second of a window.
#[derive(Debug)]
struct Second {
    ack: Latencies,
    delivery: Latencies,
}

impl Default for Second {
    fn default() -> Self {
        // Two digits: there are many of these.
        Self {
            ack: Latencies::with_digits(2),
            delivery: Latencies::with_digits(2),
        }
    }
}

/// How slow one second of a window was, milliseconds: a short stall is one bad second, a
/// load that is too much are many.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct SecondQuantiles {
    /// Counted from the window's start.
    pub second: usize,
    pub ack_p50_ms: f64,
    pub ack_p99_ms: f64,
    pub delivery_p50_ms: f64,
    pub delivery_p99_ms: f64,
}

/// One window of one rate.
#[derive(Debug, Default)]
pub struct Window {
    pub from: Nanos,
    pub to: Nanos,
    pub ack: Latencies,
    pub delivery: Latencies,
    /// Sends that were to be made in the window, made or not.
    pub offered: u64,
    /// Of those: acknowledged, and their deliveries expected and come, whenever.
    pub acked: u64,
    pub deliveries_expected: u64,
    pub delivered: u64,
    pub failed: Reasons,
    /// Acknowledgements and deliveries that came in the window.
    pub acks_within: u64,
    pub deliveries_within: u64,
    /// Inbox entries that were left out with, and without, being told.
    pub resynced: u64,
    pub gaps: u64,
    seconds: Vec<Second>,
}

impl Window {
    fn has(&self, at: Nanos) -> bool {
        self.from <= at && at < self.to
    }

    /// The second in which `due`, which is within the window, lies.
    fn second(&mut self, due: Nanos) -> Option<&mut Second> {
        let at = usize::try_from((due - self.from) / NANOS_PER_SECOND).ok()?;
        if at >= SECONDS_MAX {
            return None;
        }
        if at >= self.seconds.len() {
            self.seconds.resize_with(at + 1, Second::default);
        }
        self.seconds.get_mut(at)
    }

    /// The window's seconds, of the first ten minutes.
    pub fn by_second(&self) -> Vec<SecondQuantiles> {
        let seconds = self.seconds.iter().enumerate();
        let quantiles = seconds.map(|(second, latencies)| {
            let (ack, delivery) = (latencies.ack.quantiles(), latencies.delivery.quantiles());
            SecondQuantiles {
                second,
                ack_p50_ms: ack.p50_ms,
                ack_p99_ms: ack.p99_ms,
                delivery_p50_ms: delivery.p50_ms,
                delivery_p99_ms: delivery.p99_ms,
            }
        });
        quantiles.collect()
    }

    /// Sends that have got no answer.
    pub fn unanswered(&self) -> u64 {
        self.offered
            .saturating_sub(self.acked + self.failed.total())
    }

    /// Everything that is expected has come.
    pub fn is_settled(&self) -> bool {
        self.unanswered() == 0 && self.delivered >= self.deliveries_expected
    }
}

/// Measures; see the module.
pub struct Meter {
    /// Tells this run's messages from those of others.
    run: u64,
    /// Deliveries that each acknowledged send should cause.
    deliveries_per_send: u64,
    window: Mutex<Window>,
    settled: Notify,
}

impl Meter {
    pub fn new(run: u64, deliveries_per_send: u64) -> Self {
        Self {
            run,
            deliveries_per_send,
            window: Mutex::new(Window::default()),
            settled: Notify::new(),
        }
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a new window.
    pub fn begin(&self, from: Nanos, to: Nanos) {
        *self.window() = Window {
            from,
            to,
            ..Window::default()
        };
    }

    /// The window so far; leaves an empty one that nothing falls into.
    pub fn finish(&self) -> Window {
        std::mem::take(&mut *self.window())
    }

    /// A send was due at this time, and this became of it.
    pub fn offered(&self, due: Nanos, outcome: Result<(), NotSent>) {
        let mut window = self.window();
        if !window.has(due) {
            return;
        }
        window.offered += 1;
        match outcome {
            Ok(()) => {}
            Err(NotSent::InFlight) => window.failed.add("not sent: 256 in flight", 1),
            Err(NotSent::Ended) => window.failed.add("not sent: stream is over", 1),
        }
    }

    /// Waits until everything expected of the window has come; for ever when something
    /// is lost. Cancel-safe.
    pub async fn settled(&self) {
        loop {
            let notified = self.settled.notified();
            if self.window().is_settled() {
                return;
            }
            notified.await;
        }
    }

    /// The content of a message that was to be sent at `due`, with a payload of `size`
    /// bytes, at least [`STAMP_BYTES`].
    pub fn content(&self, due: Nanos, size: usize) -> Content {
        let mut data = BytesMut::zeroed(size.max(STAMP_BYTES));
        let (mut stamp, text) = data.split_at_mut(STAMP_BYTES);
        stamp.put_u64(self.run);
        stamp.put_u64(due);
        // Of 32 letters, so that it compresses, but no better than what people write.
        rand::rng().fill(text);
        for letter in text {
            *letter = b'`' | (*letter & 31);
        }
        Content {
            custom: Some(Custom {
                kind: Bytes::from_static(CONTENT_KIND),
                data: data.freeze(),
            }),
        }
    }

    /// When the message was to be sent, when it is one of this run.
    fn due(&self, data: &[u8]) -> Option<Nanos> {
        let (run, rest) = data.split_first_chunk::<8>()?;
        let (due, _) = rest.split_first_chunk::<8>()?;
        (u64::from_be_bytes(*run) == self.run).then(|| u64::from_be_bytes(*due))
    }

    /// Wakes who waits for the end, once it may be here: the window's time is over.
    fn after(&self, window: &Window, now: Nanos) {
        if now >= window.to && window.is_settled() {
            self.settled.notify_one();
        }
    }
}

impl Listener for Meter {
    fn sent(&self, _user: usize, due: Nanos, now: Nanos) {
        let mut window = self.window();
        if window.has(now) {
            window.acks_within += 1;
        }
        if window.has(due) {
            window.acked += 1;
            window.deliveries_expected += self.deliveries_per_send;
            window.ack.record(due, now);
            if let Some(second) = window.second(due) {
                second.ack.record(due, now);
            }
            self.after(&window, now);
        }
    }

    fn failed(&self, _user: usize, due: Nanos, reason: &str) {
        let mut window = self.window();
        if window.has(due) {
            window.failed.add(reason, 1);
            if window.is_settled() {
                self.settled.notify_one();
            }
        }
    }

    fn delivered(&self, _user: usize, data: &Bytes, now: Nanos) {
        let Some(due) = self.due(data) else { return };
        let mut window = self.window();
        if window.has(now) {
            window.deliveries_within += 1;
        }
        if window.has(due) {
            window.delivered += 1;
            window.delivery.record(due, now);
            if let Some(second) = window.second(due) {
                second.delivery.record(due, now);
            }
            self.after(&window, now);
        }
    }

    fn missed(&self, _user: usize, entries: u64, told: bool) {
        let mut window = self.window();
        if told {
            window.resynced += entries;
        } else {
            window.gaps += entries;
        }
    }

    fn ended(&self, _user: usize, why: &str, unanswered: u32) {
        // Which window they were of is not known; it is the one that is open.
        self.window().failed.add(why, u64::from(unanswered.max(1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(meter: &Meter, due: Nanos) -> Bytes {
        let content = meter.content(due, 128);
        content.custom.expect("is custom").data
    }

    #[test]
    fn latency_is_by_the_intended_time_and_throughput_by_arrival() {
        let meter = Meter::new(7, 2);
        meter.begin(1_000_000, 2_000_000);
        for due in [900_000, 1_000_000, 1_999_999, 2_000_000] {
            meter.offered(due, Ok(()));
        }
        // Before the window, arriving within.
        meter.sent(0, 900_000, 1_500_000);
        // Within, and within but answered afterwards.
        meter.sent(0, 1_000_000, 1_500_000);
        meter.sent(0, 1_999_999, 5_999_999);
        meter.delivered(1, &data(&meter, 1_000_000), 1_700_000);
        meter.delivered(1, &data(&Meter::new(8, 2), 1_000_000), 1_700_000);
        let window = meter.finish();
        assert_eq!((window.offered, window.acked), (2, 2));
        assert_eq!((window.acks_within, window.deliveries_within), (2, 1));
        assert_eq!((window.delivered, window.deliveries_expected), (1, 4));
        // Three significant digits are kept.
        assert!((window.ack.quantiles().max_ms - 4.0).abs() < 0.01);
        assert!(!window.is_settled());
    }

    #[test]
    fn a_slow_second_is_told_apart() {
        let meter = Meter::new(7, 1);
        let (start, ms) = (5 * NANOS_PER_SECOND, 1_000_000);
        meter.begin(start, start + 3 * NANOS_PER_SECOND);
        for (due, took_ms) in [(0, 2), (1_999, 400), (2_000, 3), (3_000, 999)] {
            let due = start + due * ms;
            meter.sent(0, due, due + took_ms * ms);
        }
        let slowest: Vec<f64> = meter
            .finish()
            .by_second()
            .iter()
            .map(|second| second.ack_p99_ms.round())
            .collect();
        assert_eq!(slowest.len(), 3);
        assert!((slowest[1] - 400.0).abs() <= 4.0, "{slowest:?}");
        assert!(slowest[0] <= 3.0 && slowest[2] <= 4.0, "{slowest:?}");
    }

    #[tokio::test]
    async fn a_window_settles_when_everything_has_come() {
        let meter = Meter::new(7, 1);
        meter.begin(0, 100);
        meter.offered(1, Ok(()));
        meter.offered(2, Err(NotSent::InFlight));
        meter.offered(3, Ok(()));
        meter.sent(0, 1, 150);
        meter.failed(0, 3, "TIMEOUT");
        let settled = meter.settled();
        tokio::pin!(settled);
        assert!(futures_util::poll!(&mut settled).is_pending());
        meter.delivered(0, &data(&meter, 1), 200);
        settled.await;
        assert_eq!(meter.finish().failed.total(), 2);
    }

    #[test]
    fn payloads_have_the_size_asked_for() {
        let meter = Meter::new(u64::MAX, 1);
        assert_eq!(data(&meter, 5).len(), 128);
        assert_eq!(meter.due(&data(&meter, 5)), Some(5));
        let small = meter.content(5, 1).custom.expect("is custom").data;
        assert_eq!(small.len(), STAMP_BYTES);
        assert_eq!(meter.due(b"short"), None);
    }
}
