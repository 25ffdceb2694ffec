//! `carillon bench`: measures a cluster through its real protocol.
//!
//! The load generator shares the machine with what it measures, so it is kept lean: one
//! thread, one task for each stream, HTTP/2 without layers in between. Latency counts
//! from the time at which a send was intended, not from when the generator got to it.

mod duration;
mod fleet;
mod frames;
mod meter;
mod nodes;
mod pacer;
mod plot;
mod population;
mod report;
mod standard;
mod wire;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::arguments::{Cluster, Output};
use nodes::NodeProcess;
use standard::StandardArguments;

/// Files that many streams need besides their sockets.
const FILES_SPARE: u64 = 1_000;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArguments {
    #[command(flatten)]
    standard: StandardArguments,
    #[command(subcommand)]
    command: Option<BenchCommand>,
    /// Process ids of the nodes, in the order of the endpoints. Default: whatever listens
    /// at the endpoints on this machine.
    #[arg(
        long = "node-pid",
        value_name = "PID",
        value_delimiter = ',',
        global = true
    )]
    node_pids: Vec<u32>,
}

/// What else can be measured.
#[derive(Debug, Subcommand)]
enum BenchCommand {}

/// Where the load goes, and the processes behind it that can be observed.
struct Targets {
    endpoints: Vec<String>,
    nodes: Vec<NodeProcess>,
}

/// Runs a benchmark on a thread of its own, with a runtime of one thread.
pub async fn run(
    arguments: BenchArguments,
    cluster: &Cluster,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let nodes = if arguments.node_pids.is_empty() {
        nodes::find(&cluster.endpoints)
    } else {
        let pairs = cluster.endpoints.iter().zip(&arguments.node_pids);
        pairs
            .map(|(endpoint, pid)| NodeProcess {
                endpoint: endpoint.clone(),
                pid: *pid,
            })
            .collect()
    };
    let targets = Targets {
        endpoints: cluster.endpoints.clone(),
        nodes,
    };
    let bench = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("could not start the benchmark's runtime")?;
        runtime.block_on(measure(arguments, &targets, output))
    };
    tokio::task::spawn_blocking(bench)
        .await
        .context("the benchmark stopped")?
}

async fn measure(
    arguments: BenchArguments,
    targets: &Targets,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let report = standard::run(&arguments.standard, targets).await?;
    if let Some(dir) = &arguments.standard.out {
        write_json(&report, dir, "bench.json")?;
        plot::draw(&report, &dir.join("bench.svg"))?;
    }
    match output {
        Output::Table => report.show()?,
        Output::Json => crate::output::json(&serde_json::to_value(&report)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a report beside the others.
fn write_json(report: &impl Serialize, dir: &Path, name: &str) -> anyhow::Result<()> {
    let path = dir.join(name);
    let write = || {
        std::fs::create_dir_all(dir)?;
        let text = serde_json::to_string_pretty(report)?;
        std::fs::write(&path, text + "\n")
    };
    write().with_context(|| format!("could not write {}", path.display()))
}

/// Says what is going on, on stderr, so that stdout stays for the results.
fn say(what: &str) {
    // Progress is not worth failing for.
    let _ = writeln!(std::io::stderr(), "bench: {what}");
}
