//! What connections cost that say nothing: each is a TCP connection of its own with one
//! `Connect` stream and its heartbeats.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::duration::parse_duration;
use super::fleet::{Clock, Fleet, Listener};
use super::nodes::{self, Usage};
use super::report::mib;
use super::{Targets, say};
use crate::failure::advised;
use crate::output;

/// Files that this process has open besides the sockets.
const FILES_SPARE: u64 = 256;

#[derive(Debug, Args)]
pub struct IdleArguments {
    /// Connections, spread over the nodes.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    connections: u32,
    /// How long they stay before memory is measured.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    settle: Duration,
}

#[derive(Debug, Serialize)]
pub struct IdleReport {
    connections: u32,
    connected_after_s: f64,
    /// Streams that ended while they were to be idle.
    ended: u64,
    nodes: Vec<IdleNode>,
}

#[derive(Debug, Serialize)]
struct IdleNode {
    endpoint: String,
    connections: u64,
    rss_before_bytes: u64,
    rss_after_bytes: u64,
    bytes_per_connection: u64,
    /// Cores kept busy while all were idle.
    cores: f64,
}

/// Counts the streams that end.
#[derive(Debug, Default)]
struct Ended(AtomicU64);

impl Listener for Ended {
    fn sent(&self, _user: usize, _request_id: u64, _now_ns: u64) {}

    fn failed(&self, _user: usize, _request_id: u64, _reason: &str) {}

    fn ended(&self, _user: usize, _why: &str, _unanswered: u32) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Connects, waits, and looks at the nodes' memory.
pub async fn run(arguments: &IdleArguments, targets: &Targets) -> anyhow::Result<IdleReport> {
    if targets.nodes.len() != targets.endpoints.len() {
        return Err(advised(
            "the nodes' memory can only be seen on this machine",
            "run it where the nodes are, or name them with --node-pid",
        ));
    }
    let connections = arguments.connections;
    let files = u64::from(connections) + FILES_SPARE;
    nodes::raise_open_files(files).map_err(|error| {
        advised(
            format!("{files} open files are needed and not allowed: {error}"),
            "raise the limit (ulimit -n), or give fewer --connections",
        )
    })?;
    let samples = || -> anyhow::Result<Vec<Usage>> {
        let nodes = targets.nodes.iter();
        nodes
            .map(|node| Usage::of(node.pid).with_context(|| format!("{} is gone", node.endpoint)))
            .collect()
    };
    let users: Vec<String> = (0..connections).map(|n| format!("bench-i{n}")).collect();
    let before = samples()?;
    say(&format!("opening {connections} connections"));
    let ended = Arc::new(Ended::default());
    let started = Instant::now();
    let endpoints = &targets.endpoints;
    let fleet = Fleet::connect(
        Clock::start(),
        endpoints,
        &users,
        users.len(),
        ended.clone(),
    )
    .await
    .context("could not open the connections")?;
    let connected_after = started.elapsed();
    say(&format!("idle for {:?}", arguments.settle));
    let idle_from = samples()?;
    tokio::time::sleep(arguments.settle).await;
    let after = samples()?;
    let counts = (0..endpoints.len()).map(|node| {
        let here = (0..fleet.connections()).skip(node).step_by(endpoints.len());
        here.count() as u64
    });
    let nodes = targets.nodes.iter().zip(counts).enumerate();
    Ok(IdleReport {
        connections,
        connected_after_s: connected_after.as_secs_f64(),
        ended: ended.0.load(Ordering::Relaxed),
        nodes: nodes
            .map(|(n, (node, connections))| IdleNode {
                endpoint: node.endpoint.clone(),
                connections,
                rss_before_bytes: before[n].rss_bytes,
                rss_after_bytes: after[n].rss_bytes,
                bytes_per_connection: after[n].rss_bytes.saturating_sub(before[n].rss_bytes)
                    / connections.max(1),
                cores: after[n].cores_since(&idle_from[n]),
            })
            .collect(),
    })
}

impl IdleReport {
    pub fn show(&self) -> io::Result<()> {
        output::line(&format!(
            "{} idle TCP connections, one Connect stream each, opened within {:.1} s",
            self.connections, self.connected_after_s
        ))?;
        let columns = [
            "node",
            "connections",
            "MiB before",
            "MiB with them",
            "KiB each",
            "cores",
        ];
        let mut table = output::table(&columns);
        for node in &self.nodes {
            table.add_row([
                node.endpoint.clone(),
                node.connections.to_string(),
                mib(node.rss_before_bytes),
                mib(node.rss_after_bytes),
                format!("{:.1}", node.bytes_per_connection as f64 / 1024.0),
                format!("{:.2}", node.cores),
            ]);
        }
        output::show(&table)?;
        if self.ended > 0 {
            output::line(&format!("{} streams ended meanwhile", self.ended))?;
        }
        Ok(())
    }
}
