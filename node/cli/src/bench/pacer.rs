//! When sends are due: open-loop arrival, and a tick fine enough to keep to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::sync::Notify;

use super::meter::Nanos;

/// How often due sends are looked for; a send is late by at most this and what the
/// machine adds. The runtime's own timers are not finer than 1 ms.
const TICK: Duration = Duration::from_micros(500);

/// How arrivals are spread over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Arrival {
    /// Independent of each other, as users are
    Poisson,
    /// Evenly
    Fixed,
}

/// The times at which sends are due: strictly increasing, so that they are also request
/// ids.
pub struct Schedule {
    arrival: Arrival,
    interval_ns: f64,
    next: f64,
    last: Nanos,
}

impl Schedule {
    /// From `start` on, `rate` a second, above 0.
    pub fn new(arrival: Arrival, rate: f64, start: Nanos) -> Self {
        let interval_ns = 1e9 / rate;
        Self {
            arrival,
            interval_ns,
            next: start as f64 + interval_ns,
            last: start,
        }
    }

    /// The next due time before `now`.
    pub fn due(&mut self, now: Nanos, rng: &mut StdRng) -> Option<Nanos> {
        let due = (self.next as Nanos).max(self.last + 1);
        if due > now {
            return None;
        }
        self.last = due;
        self.next += match self.arrival {
            Arrival::Fixed => self.interval_ns,
            // 1 - [0, 1) is never 0, whose logarithm is infinite.
            Arrival::Poisson => -(1.0 - rng.random::<f64>()).ln() * self.interval_ns,
        };
        Some(due)
    }
}

/// A thread that ticks; ends when dropped.
pub struct Ticker {
    tick: Arc<Notify>,
    stop: Arc<AtomicBool>,
}

impl Ticker {
    pub fn start() -> std::io::Result<Self> {
        let tick = Arc::new(Notify::new());
        let stop = Arc::new(AtomicBool::new(false));
        let (ticks, stopped) = (tick.clone(), stop.clone());
        let run = move || {
            let mut next = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                next = (next + TICK).max(Instant::now());
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
                ticks.notify_one();
            }
        };
        std::thread::Builder::new()
            .name("bench-ticker".to_owned())
            .spawn(run)?;
        Ok(Self { tick, stop })
    }

    /// Waits for the next tick. Cancel-safe.
    pub async fn tick(&self) {
        self.tick.notified().await;
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn both_arrivals_keep_the_rate_and_the_order() {
        for arrival in [Arrival::Fixed, Arrival::Poisson] {
            let mut rng = StdRng::seed_from_u64(1);
            let mut schedule = Schedule::new(arrival, 10_000.0, 5);
            let mut last = 5;
            let mut count = 0;
            while let Some(due) = schedule.due(1_000_000_005, &mut rng) {
                assert!(due > last);
                last = due;
                count += 1;
            }
            assert!((9_600..=10_400).contains(&count), "{arrival:?}: {count}");
            assert_eq!(schedule.due(1_000_000_005, &mut rng), None);
        }
    }
}
