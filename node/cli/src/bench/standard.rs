//! The standard workload: users online, messages into their groups (or to one another) at
//! a given rate, whatever the cluster makes of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use carillon_client::AdminClient;
use clap::Args;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::timeout;

use super::duration::parse_duration;
use super::fleet::{Clock, Fleet};
use super::meter::{Meter, Nanos, STAMP_BYTES, Window};
use super::nodes::{NodeProcess, Usage};
use super::pacer::{Arrival, Schedule, Ticker};
use super::population::Population;
use super::report::{Bytes, Shape, StandardReport, Step, usage_between};
use super::{Targets, say};
use crate::failure::advised;

/// Sends made before the streams are looked at again.
const SENDS_AT_ONCE_MAX: usize = 256;
/// How long after a window its answers and deliveries are waited for.
const DRAIN_LIMIT: Duration = Duration::from_secs(15);
/// Below this share of what was offered, higher rates are not tried.
const SATURATED_BELOW: f64 = 0.7;
/// How long the terms of the shards may take to be asked for.
const TERMS_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub struct StandardArguments {
    /// Users online, each with one stream.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    users: u32,
    /// TCP connections that the streams are multiplexed over, spread over the nodes; a
    /// node takes 200 streams on one.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    channels: u32,
    /// Groups that are written to.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    groups: u32,
    /// Members of each group.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=500))]
    members: u32,
    /// Direct messages only, no groups.
    #[arg(long)]
    direct: bool,
    /// Sends a second, all users together; several are measured one after the other.
    #[arg(long, visible_alias = "rates", value_delimiter = ',', default_value = "1000",
          value_name = "SENDS_PER_S", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Vec<u32>,
    /// How sends are spread over time.
    #[arg(long, value_enum, default_value = "poisson")]
    arrival: Arrival,
    /// Bytes of each message's payload, at least 16.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(STAMP_BYTES as i64..=60_000))]
    payload: u32,
    /// Load before each measurement.
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    warmup: Duration,
    /// How long each rate is measured.
    #[arg(long, default_value = "20s", value_parser = parse_duration)]
    duration: Duration,
    /// Let each device acknowledge its cursor this often, when it has news; as the SDK
    /// does every second. Default: never.
    #[arg(long, value_parser = parse_duration)]
    cursor_acks: Option<Duration>,
    /// Seed of the random choices, to repeat a run.
    #[arg(long)]
    seed: Option<u64>,
}

/// The load.
struct Run<'a> {
    arguments: &'a StandardArguments,
    population: Population,
    fleet: Arc<Fleet<Meter>>,
    meter: Arc<Meter>,
    clock: Clock,
    ticker: Ticker,
    rng: StdRng,
    run: u64,
    nodes: &'a [NodeProcess],
    admin: AdminClient,
}

/// Measures the standard workload at each rate.
pub async fn run(
    arguments: &StandardArguments,
    targets: &Targets,
) -> anyhow::Result<StandardReport> {
    let users = arguments.users as usize;
    if arguments.members > arguments.users {
        return Err(advised(
            "a group cannot have more members than there are users",
            "give more --users or fewer --members",
        ));
    }
    let seed = arguments.seed.unwrap_or_else(rand::random);
    let population = if arguments.direct {
        Population::direct(users)
    } else {
        let groups = arguments.groups as usize;
        Population::groups(users, groups, arguments.members as usize)
    };
    if !arguments.direct {
        say(&format!("creating {} groups", arguments.groups));
        population.create_groups(&targets.endpoints).await?;
    }
    let channels = (arguments.channels as usize).min(users);
    say(&format!(
        "connecting {users} users: one stream each, over {channels} TCP connections"
    ));
    let run: u64 = rand::random();
    let meter = Arc::new(Meter::new(run, population.deliveries_per_send));
    let clock = Clock::start();
    let fleet = Fleet::connect(
        clock,
        &targets.endpoints,
        &population.users,
        channels,
        meter.clone(),
    )
    .await
    .context("could not connect the users")?;
    if let Some(period) = arguments.cursor_acks {
        tokio::spawn(fleet.clone().acknowledge_every(period));
    }
    let mut run = Run {
        arguments,
        population,
        fleet,
        meter,
        clock,
        ticker: Ticker::start().context("could not start the ticker")?,
        rng: StdRng::seed_from_u64(seed),
        run,
        nodes: &targets.nodes,
        admin: AdminClient::new(&targets.endpoints)?,
    };
    let steps = run.steps().await;
    Ok(StandardReport {
        shape: run.shape(seed),
        steps,
    })
}

impl Run<'_> {
    fn shape(&self, seed: u64) -> Shape {
        let arguments = self.arguments;
        Shape {
            users: self.fleet.streams(),
            tcp_connections: self.fleet.connections(),
            groups: if arguments.direct {
                0
            } else {
                arguments.groups
            },
            members: if arguments.direct {
                2
            } else {
                arguments.members
            },
            payload_bytes: arguments.payload,
            arrival: arguments.arrival,
            warmup_s: arguments.warmup.as_secs_f64(),
            duration_s: arguments.duration.as_secs_f64(),
            cursor_acks_s: arguments.cursor_acks.map(|period| period.as_secs_f64()),
            seed,
        }
    }

    async fn steps(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        for rate in &self.arguments.rate {
            say(&format!("{rate} sends/s for {:?}", self.arguments.duration));
            let step = self.step(*rate).await;
            let saturated = step.acked_per_s < SATURATED_BELOW * f64::from(*rate);
            steps.push(step);
            if saturated && steps.len() < self.arguments.rate.len() {
                say(&format!(
                    "saturated at {rate} sends/s; higher rates are left out"
                ));
                break;
            }
        }
        steps
    }

    /// Warms up, measures one window, and waits for what is still on its way.
    async fn step(&mut self, rate: u32) -> Step {
        let start = self.clock.now_ns();
        let from = start + nanos(self.arguments.warmup);
        let to = from + nanos(self.arguments.duration);
        self.meter.begin(from, to);
        let mut schedule = Schedule::new(self.arguments.arrival, f64::from(rate), start);
        let terms_before = self.terms().await;
        self.drive(&mut schedule, from).await;
        let before = Sample::take(self);
        self.drive(&mut schedule, to).await;
        let after = Sample::take(self);
        let drained = timeout(DRAIN_LIMIT, self.meter.settled()).await.is_ok();
        let elections = match (terms_before, self.terms().await) {
            (Some(before), Some(after)) => Some(new_terms(&before, &after)),
            _ => None,
        };
        let window = self.meter.finish();
        self.evaluate(rate, window, &before, &after, drained, elections)
    }

    /// Makes the sends that are due until then.
    async fn drive(&mut self, schedule: &mut Schedule, until: Nanos) {
        loop {
            let now = self.clock.now_ns();
            let mut sends = 0;
            while sends < SENDS_AT_ONCE_MAX {
                let Some(due) = schedule.due(now.min(until), &mut self.rng) else {
                    break;
                };
                self.send(due);
                sends += 1;
            }
            if sends == SENDS_AT_ONCE_MAX {
                tokio::task::yield_now().await;
            } else if now >= until {
                return;
            } else {
                self.ticker.tick().await;
            }
        }
    }

    fn send(&mut self, due: Nanos) {
        let (sender, conversation) = self.population.pick(&mut self.rng);
        let content = self.meter.content(due, self.arguments.payload as usize);
        let id = format!("{:x}-{due:x}", self.run);
        let outcome = self.fleet.send(sender, due, conversation, id, content);
        self.meter.offered(due, outcome);
    }

    /// The term of each shard; none when the cluster does not say.
    async fn terms(&self) -> Option<BTreeMap<u32, u64>> {
        let shards = timeout(TERMS_LIMIT, self.admin.list_shards(None)).await;
        let shards = shards.ok()?.ok()?;
        let term = |shard: &carillon_client::admin_proto::ShardStatus| {
            shard.replicas.iter().map(|replica| replica.term).max()
        };
        Some(
            shards
                .iter()
                .map(|shard| (shard.shard_id, term(shard).unwrap_or(0)))
                .collect(),
        )
    }

    fn evaluate(
        &self,
        rate: u32,
        window: Window,
        before: &Sample,
        after: &Sample,
        drained: bool,
        elections: Option<u64>,
    ) -> Step {
        let seconds = self.arguments.duration.as_secs_f64();
        let per_s = |bytes: u64| bytes as f64 / seconds;
        let sent = after.bytes.0 - before.bytes.0;
        let received = after.bytes.1 - before.bytes.1;
        Step {
            rate,
            offered: window.offered,
            acked: window.acked,
            acked_per_s: window.acks_within as f64 / seconds,
            delivered_per_s: window.deliveries_within as f64 / seconds,
            ack: window.ack.quantiles(),
            delivery: window.delivery.quantiles(),
            by_second: window.by_second(),
            deliveries_expected: window.deliveries_expected,
            deliveries_missing: window.deliveries_expected.saturating_sub(window.delivered),
            unanswered: window.unanswered(),
            drained,
            resynced: window.resynced,
            gaps: window.gaps,
            elections,
            nodes: usage_between(self.nodes, &before.nodes, &after.nodes),
            generator_cores: before
                .own
                .zip(after.own)
                .map(|(before, after)| after.cores_since(&before)),
            bytes: Bytes {
                sent_per_s: per_s(sent),
                received_per_s: per_s(received),
                sent_per_connection: sent / self.fleet.connections().max(1) as u64,
                received_per_connection: received / self.fleet.connections().max(1) as u64,
                sent_per_send: sent as f64 / (window.acks_within.max(1)) as f64,
                received_per_delivery: received as f64 / (window.deliveries_within.max(1)) as f64,
            },
            failed: window.failed.into_map(),
        }
    }
}

/// What everything has used up to a moment.
struct Sample {
    nodes: Vec<Option<Usage>>,
    own: Option<Usage>,
    bytes: (u64, u64),
}

impl Sample {
    fn take(run: &Run<'_>) -> Self {
        Self {
            nodes: run.nodes.iter().map(|node| Usage::of(node.pid)).collect(),
            own: Usage::own(),
            bytes: run.fleet.bytes(),
        }
    }
}

/// Terms that began between the two.
fn new_terms(before: &BTreeMap<u32, u64>, after: &BTreeMap<u32, u64>) -> u64 {
    after
        .iter()
        .map(|(shard, term)| {
            let earlier = before.get(shard).copied().unwrap_or(*term);
            term.saturating_sub(earlier)
        })
        .sum()
}

fn nanos(duration: Duration) -> Nanos {
    Nanos::try_from(duration.as_nanos()).unwrap_or(Nanos::MAX)
}
