//! The bare replicated append: every node measures the shards that it leads, all at the
//! same time, with commands that change nothing.

use std::io;
use std::time::Duration;

use anyhow::Context;
use carillon_proto::admin::MeasureAppendRequest;
use carillon_proto::admin::admin_client::AdminClient;
use clap::Args;
use futures_util::future::try_join_all;
use serde::Serialize;

use super::duration::parse_duration;
use super::nodes::Usage;
use super::population::channel;
use super::report::{NodeUsage, show_nodes, usage_between};
use super::{Targets, say};
use crate::output;

/// What an answer may take beyond the measurement.
const ANSWER_EXTRA: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub struct AppendArguments {
    /// How long to measure, at most 60s.
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    duration: Duration,
    /// Commands in flight on each node.
    #[arg(long, default_value_t = 320, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    in_flight: u32,
    /// Bytes of one command.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    command_bytes: u32,
}

/// What the shards that one node leads did.
#[derive(Debug, Serialize)]
struct Led {
    endpoint: String,
    shards: u32,
    appends_per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

#[derive(Debug, Serialize)]
pub struct AppendReport {
    command_bytes: u32,
    in_flight_per_node: u32,
    appends_per_s: f64,
    led: Vec<Led>,
    nodes: Vec<NodeUsage>,
}

/// Measures on all nodes at once.
pub async fn run(arguments: &AppendArguments, targets: &Targets) -> anyhow::Result<AppendReport> {
    say(&format!(
        "appending for {:?}, {} in flight on each node",
        arguments.duration, arguments.in_flight
    ));
    let before: Vec<_> = targets.nodes.iter().map(|n| Usage::of(n.pid)).collect();
    let endpoints = targets.endpoints.iter();
    let led = try_join_all(endpoints.map(|endpoint| measure(endpoint, arguments))).await?;
    let after: Vec<_> = targets.nodes.iter().map(|n| Usage::of(n.pid)).collect();
    Ok(AppendReport {
        command_bytes: arguments.command_bytes,
        in_flight_per_node: arguments.in_flight,
        appends_per_s: led.iter().map(|led| led.appends_per_s).sum(),
        led,
        nodes: usage_between(&targets.nodes, &before, &after),
    })
}

async fn measure(endpoint: &str, arguments: &AppendArguments) -> anyhow::Result<Led> {
    let mut request = tonic::Request::new(MeasureAppendRequest {
        duration_ms: u32::try_from(arguments.duration.as_millis()).unwrap_or(u32::MAX),
        command_bytes: arguments.command_bytes,
        in_flight: arguments.in_flight,
    });
    request.set_timeout(arguments.duration + ANSWER_EXTRA);
    let measured = AdminClient::new(channel(endpoint)?)
        .measure_append(request)
        .await
        .with_context(|| format!("{endpoint} could not measure the append"))?
        .into_inner();
    let ms = |us: u64| us as f64 / 1_000.0;
    let seconds = measured.elapsed_us.max(1) as f64 / 1e6;
    Ok(Led {
        endpoint: endpoint.to_owned(),
        shards: measured.shards,
        appends_per_s: measured.acknowledged as f64 / seconds,
        p50_ms: ms(measured.p50_us),
        p99_ms: ms(measured.p99_us),
        max_ms: ms(measured.max_us),
    })
}

impl AppendReport {
    pub fn show(&self) -> io::Result<()> {
        output::line(&format!(
            "bare replicated append: {:.0} commands/s of {} bytes, {} in flight on each node",
            self.appends_per_s, self.command_bytes, self.in_flight_per_node
        ))?;
        let mut table = output::table(&["node", "leads", "appends/s", "p50 ms", "p99", "max"]);
        for led in &self.led {
            table.add_row([
                led.endpoint.clone(),
                format!("{} shards", led.shards),
                format!("{:.0}", led.appends_per_s),
                format!("{:.2}", led.p50_ms),
                format!("{:.2}", led.p99_ms),
                format!("{:.2}", led.max_ms),
            ]);
        }
        output::show(&table)?;
        output::line("")?;
        show_nodes(&self.nodes)
    }
}
