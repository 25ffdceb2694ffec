//! Applications written with the SDK that send at a steady rate while something is done to the
//! cluster, and what they see before it and meanwhile. Latency counts from the time at which a
//! send was intended.
//!
//! Owner of the state: what is seen, under its mutex.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use carillon_client::{Client, ConversationId, Event, text};
use clap::Args;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

use super::Targets;
use super::duration::parse_duration;
use super::fleet::Clock;
use super::meter::{Latencies, Nanos, Quantiles};
use super::pacer::{Arrival, Schedule, Ticker};
use crate::output;

/// The arrivals of every run are the same.
const SEED: u64 = 1;
/// How long sends that are under way at the end may take.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// How much is sent.
#[derive(Debug, Args)]
pub struct SteadyArguments {
    /// Sends per second, all clients together.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    rate: u32,
    /// Clients, each a device of a user of its own; each writes to the next one.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..=1_024))]
    clients: u32,
    /// How long it is sent before anything is done.
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    calm: Duration,
}

/// What the clients saw.
#[derive(Debug, Serialize)]
pub struct SteadyReport {
    rate: u32,
    clients: u32,
    /// Before something was done, and from its begin on.
    calm: Quantiles,
    meanwhile: Quantiles,
    /// The longest time without any acknowledgement meanwhile.
    longest_pause_ms: f64,
    sent: u64,
    reconnects: u64,
    failed: BTreeMap<String, u64>,
}

struct Seen {
    began: Option<Nanos>,
    calm: Latencies,
    meanwhile: Latencies,
    last_at: Nanos,
    longest_pause: Nanos,
    sent: u64,
    reconnects: u64,
    failed: BTreeMap<String, u64>,
}

type Shared = Arc<Mutex<Seen>>;

fn seen(shared: &Shared) -> MutexGuard<'_, Seen> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Seen {
    fn sent(&mut self, due: Nanos, now: Nanos) {
        self.sent += 1;
        if self.began.is_some_and(|began| due >= began) {
            self.meanwhile.record(due, now);
            self.longest_pause = self.longest_pause.max(now.saturating_sub(self.last_at));
        } else {
            self.calm.record(due, now);
        }
        self.last_at = now;
    }
}

/// A load that runs.
pub struct Steady {
    rate: u32,
    clients: u32,
    clock: Clock,
    shared: Shared,
    stop: Arc<Notify>,
    load: JoinHandle<anyhow::Result<()>>,
}

impl Steady {
    /// Connects, sends, and returns when the calm is over.
    pub async fn start(arguments: &SteadyArguments, targets: &Targets) -> anyhow::Result<Self> {
        let clock = Clock::start();
        let shared: Shared = Arc::new(Mutex::new(Seen {
            began: None,
            calm: Latencies::default(),
            meanwhile: Latencies::default(),
            last_at: 0,
            longest_pause: 0,
            sent: 0,
            reconnects: 0,
            failed: BTreeMap::new(),
        }));
        let clients = connect(arguments.clients, targets, &shared).await?;
        let stop = Arc::new(Notify::new());
        let load = load(clients, arguments.rate, clock, shared.clone(), stop.clone());
        let load = tokio::spawn(load);
        tokio::time::sleep(arguments.calm).await;
        seen(&shared).began = Some(clock.now_ns());
        Ok(Self {
            rate: arguments.rate,
            clients: arguments.clients,
            clock,
            shared,
            stop,
            load,
        })
    }

    /// Since an arbitrary moment.
    pub fn now_ns(&self) -> Nanos {
        self.clock.now_ns()
    }

    /// Ends the load; what is under way is part of what is seen.
    pub async fn end(self) -> anyhow::Result<SteadyReport> {
        self.stop.notify_one();
        self.load.await.context("the load ended")??;
        let seen = seen(&self.shared);
        Ok(SteadyReport {
            rate: self.rate,
            clients: self.clients,
            calm: seen.calm.quantiles(),
            meanwhile: seen.meanwhile.quantiles(),
            longest_pause_ms: seen.longest_pause as f64 / 1e6,
            sent: seen.sent,
            reconnects: seen.reconnects,
            failed: seen.failed.clone(),
        })
    }
}

/// For reports.
pub fn seconds(nanos: Nanos) -> f64 {
    nanos as f64 / 1e9
}

/// Devices that know all nodes, as applications do.
async fn connect(
    count: u32,
    targets: &Targets,
    shared: &Shared,
) -> anyhow::Result<Vec<(Arc<Client>, ConversationId)>> {
    let run: u32 = rand::random();
    let user = |number: u32| format!("bench-r{run:x}-{}", number % count);
    let mut clients = Vec::new();
    for number in 0..count {
        let client = Client::builder(targets.endpoints.iter().cloned())
            .user(user(number))
            .device("bench")
            .connect()
            .await
            .with_context(|| format!("could not connect client {number}"))?;
        let mut events = client.events().context("the events are taken once")?;
        let shared = shared.clone();
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                if matches!(event, Event::Disconnected { .. }) {
                    seen(&shared).reconnects += 1;
                }
            }
        });
        let to = ConversationId::direct(&user(number), &user(number + 1));
        clients.push((Arc::new(client), to));
    }
    Ok(clients)
}

/// Sends at the rate until it is to stop; those under way are part of what is seen.
async fn load(
    clients: Vec<(Arc<Client>, ConversationId)>,
    rate: u32,
    clock: Clock,
    shared: Shared,
    stop: Arc<Notify>,
) -> anyhow::Result<()> {
    let ticker = Ticker::start()?;
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut schedule = Schedule::new(Arrival::Poisson, f64::from(rate), clock.now_ns());
    let mut sends = JoinSet::new();
    let mut turn = clients.iter().cycle();
    loop {
        // Both arms are cancel-safe.
        tokio::select! {
            () = ticker.tick() => {}
            () = stop.notified() => break,
        }
        while let Some(due) = schedule.due(clock.now_ns(), &mut rng) {
            let Some((client, to)) = turn.next() else {
                return Ok(());
            };
            let (client, to, shared) = (client.clone(), to.clone(), shared.clone());
            sends.spawn(async move {
                let sent = client
                    .send(to, text("a message of a usual length, or so"))
                    .await;
                let mut seen = seen(&shared);
                match sent {
                    Ok(_) => seen.sent(due, clock.now_ns()),
                    Err(error) => *seen.failed.entry(error.to_string()).or_default() += 1,
                }
            });
        }
        while sends.try_join_next().is_some() {}
    }
    let drained = async { while sends.join_next().await.is_some() {} };
    tokio::time::timeout(DRAIN_LIMIT, drained)
        .await
        .context("sends under way did not end")
}

impl SteadyReport {
    /// The head of a report: what the load was.
    pub fn load(&self) -> String {
        format!(
            "{} sends/s by {} clients, {} reconnects",
            self.rate, self.clients, self.reconnects
        )
    }

    pub fn show(&self) -> io::Result<()> {
        let mut table = output::table(&["send → ack, ms", "p50", "p99", "p99.9", "max"]);
        for (name, seen) in [("before", &self.calm), ("meanwhile", &self.meanwhile)] {
            let ms = |ms: f64| format!("{ms:.1}");
            table.add_row([
                name.to_owned(),
                ms(seen.p50_ms),
                ms(seen.p99_ms),
                ms(seen.p999_ms),
                ms(seen.max_ms),
            ]);
        }
        output::show(&table)?;
        output::line(&format!(
            "longest time without an acknowledgement {:.0} ms; {} sent, {} failed",
            self.longest_pause_ms,
            self.sent,
            self.failed.values().sum::<u64>(),
        ))?;
        for (reason, count) in &self.failed {
            output::line(&format!("{count} × {reason}"))?;
        }
        Ok(())
    }
}
