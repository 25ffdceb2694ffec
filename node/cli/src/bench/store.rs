//! The store path: sends to users who are not there, with a fixed number in flight, as
//! fast as the cluster answers. The only deliveries pushed are those to the senders' own
//! devices.
//!
//! A closed loop: each answer makes the next send, and latency counts from that send.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use serde::Serialize;

use super::duration::parse_duration;
use super::fleet::{Clock, Fleet, Listener, NotSent, SENDS_IN_FLIGHT_MAX};
use super::meter::{Meter, Nanos, Quantiles, STAMP_BYTES, Window};
use super::nodes::Usage;
use super::population::direct;
use super::report::{NodeUsage, latency_row, show_nodes, usage_between};
use super::{Targets, say};
use crate::failure::advised;
use crate::output;

/// Conversations of each sender, so that they spread over the shards.
const ROOMS_PER_SENDER: usize = 16;

#[derive(Debug, Args)]
pub struct StoreArguments {
    /// Senders, each with one stream.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    streams: u32,
    /// TCP connections that the streams are multiplexed over.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    channels: u32,
    /// Sends in flight, all senders together; at most 256 for each.
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    in_flight: u32,
    /// Bytes of each message's payload, at least 16.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(STAMP_BYTES as i64..=60_000))]
    payload: u32,
    /// Load before the measurement.
    #[arg(long, default_value = "3s", value_parser = parse_duration)]
    warmup: Duration,
    /// How long to measure.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    duration: Duration,
}

#[derive(Debug, Serialize)]
pub struct StoreReport {
    streams: usize,
    tcp_connections: usize,
    in_flight: u32,
    payload_bytes: u32,
    stored_per_s: f64,
    ack: Quantiles,
    failed: BTreeMap<String, u64>,
    nodes: Vec<NodeUsage>,
    generator_cores: Option<f64>,
}

/// Keeps the sends in flight.
struct Pump {
    clock: Clock,
    run: u64,
    payload: usize,
    stamp: Meter,
    rooms: Vec<Vec<Bytes>>,
    last: AtomicU64,
    window: Mutex<Window>,
    fleet: OnceLock<Weak<Fleet<Pump>>>,
}

/// Measures.
pub async fn run(arguments: &StoreArguments, targets: &Targets) -> anyhow::Result<StoreReport> {
    let streams = arguments.streams as usize;
    if arguments.in_flight.div_ceil(arguments.streams) > SENDS_IN_FLIGHT_MAX {
        return Err(advised(
            format!("a stream may have {SENDS_IN_FLIGHT_MAX} sends in flight"),
            "give more --streams or fewer --in-flight",
        ));
    }
    let users: Vec<String> = (0..streams).map(|n| format!("bench-s{n}")).collect();
    let rooms = |user: &String| {
        let peers = 0..ROOMS_PER_SENDER;
        peers
            .map(|peer| direct(user, &format!("bench-away-{peer}-{user}")))
            .collect()
    };
    let clock = Clock::start();
    let run: u64 = rand::random();
    let pump = Arc::new(Pump {
        clock,
        run,
        payload: arguments.payload as usize,
        stamp: Meter::new(run, 0),
        rooms: users.iter().map(rooms).collect(),
        last: AtomicU64::new(0),
        window: Mutex::new(Window::default()),
        fleet: OnceLock::new(),
    });
    let channels = arguments.channels as usize;
    let fleet = Fleet::connect(clock, &targets.endpoints, &users, channels, pump.clone())
        .await
        .context("could not connect the senders")?;
    let _ = pump.fleet.set(Arc::downgrade(&fleet));
    say(&format!(
        "storing for {:?}, {} in flight",
        arguments.duration, arguments.in_flight
    ));
    for n in 0..arguments.in_flight as usize {
        pump.next(n % streams);
    }
    tokio::time::sleep(arguments.warmup).await;
    let before: Vec<_> = targets.nodes.iter().map(|n| Usage::of(n.pid)).collect();
    let own_before = Usage::own();
    pump.window().from = clock.now_ns();
    pump.window().to = Nanos::MAX;
    tokio::time::sleep(arguments.duration).await;
    let window = std::mem::take(&mut *pump.window());
    let seconds = (clock.now_ns() - window.from) as f64 / 1e9;
    let after: Vec<_> = targets.nodes.iter().map(|n| Usage::of(n.pid)).collect();
    let own_after = Usage::own();
    Ok(StoreReport {
        streams,
        tcp_connections: fleet.connections(),
        in_flight: arguments.in_flight,
        payload_bytes: arguments.payload,
        stored_per_s: window.acks_within as f64 / seconds,
        ack: window.ack.quantiles(),
        failed: window.failed.into_map(),
        nodes: usage_between(&targets.nodes, &before, &after),
        generator_cores: own_before
            .zip(own_after)
            .map(|(before, after)| after.cores_since(&before)),
    })
}

impl Pump {
    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes one send of a user.
    fn next(&self, user: usize) {
        // The fleet is gone when the benchmark is over.
        let Some(fleet) = self.fleet.get().and_then(Weak::upgrade) else {
            return;
        };
        let now = self.clock.now_ns();
        let last = self.last.load(Ordering::Relaxed);
        let request_id = now.max(last + 1);
        self.last.store(request_id, Ordering::Relaxed);
        let room = self.rooms[user][request_id as usize % ROOMS_PER_SENDER].clone();
        let content = self.stamp.content(request_id, self.payload);
        let id = format!("{:x}-{request_id:x}", self.run);
        match fleet.send(user, request_id, room, id, content) {
            // A stream that is over is counted by `ended`.
            Ok(()) | Err(NotSent::Ended) => {}
            Err(NotSent::InFlight) => self.window().failed.add("not sent: 256 in flight", 1),
        }
    }
}

impl Listener for Pump {
    fn sent(&self, user: usize, request_id: u64, now: Nanos) {
        let mut window = self.window();
        if window.to > 0 {
            window.acks_within += 1;
            window.ack.record(request_id, now);
        }
        drop(window);
        self.next(user);
    }

    fn failed(&self, user: usize, _request_id: u64, reason: &str) {
        self.window().failed.add(reason, 1);
        self.next(user);
    }

    fn ended(&self, _user: usize, why: &str, unanswered: u32) {
        self.window().failed.add(why, u64::from(unanswered.max(1)));
    }
}

impl StoreReport {
    pub fn show(&self) -> io::Result<()> {
        output::line(&format!(
            "store path: direct messages of {} bytes to users who are offline, {} in flight, \
             {} streams over {} TCP connections",
            self.payload_bytes, self.in_flight, self.streams, self.tcp_connections
        ))?;
        let columns = [
            "stored/s", "", "p50 ms", "p90", "p99", "p99.9", "max", "cores",
        ];
        let mut table = output::table(&columns);
        let stored = [format!("{:.0}", self.stored_per_s)];
        let mut row = latency_row(stored, "send→ack", &self.ack);
        row.push(
            self.generator_cores
                .map_or("-".into(), |c| format!("{c:.2}")),
        );
        table.add_row(row);
        output::show(&table)?;
        for (reason, count) in &self.failed {
            output::line(&format!("{count} × {reason}"))?;
        }
        output::line("")?;
        show_nodes(&self.nodes)
    }
}
