//! `carillon bench`: measures a cluster through its real protocol.
//!
//! The load generator shares the machine with what it measures, so it is kept lean: one
//! thread, one task for each stream, HTTP/2 without layers in between. Latency counts
//! from the time at which a send was intended, not from when the generator got to it.

mod append;
pub(crate) mod duration;
mod failover;
mod fleet;
mod frames;
mod history;
mod idle;
mod merge;
mod meter;
mod moves;
mod nodes;
mod pacer;
mod plot;
mod population;
mod report;
mod roll;
mod split;
mod standard;
mod steady;
mod store;
mod wire;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::arguments::{Cluster, Output};
use nodes::NodeProcess;
use report::StandardReport;
use standard::StandardArguments;

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
    /// Write the result into this directory, as JSON and where it makes sense as SVG.
    #[arg(long, value_name = "DIR", global = true)]
    out: Option<PathBuf>,
}

/// What else can be measured.
#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// The bare replicated append, without messages.
    Append(append::AppendArguments),
    /// Storing messages for users who are offline, as fast as it goes.
    Store(store::StoreArguments),
    /// Reading the newest page of a conversation, at light load.
    History(history::HistoryArguments),
    /// Memory of connections that say nothing.
    Idle(idle::IdleArguments),
    /// Losing a node: how long until every shard acknowledges again.
    Failover(failover::FailoverArguments),
    /// Restarting all nodes one after the other under a load of clients of the SDK.
    Roll(roll::RollArguments),
    /// Merging shards one pair after the other under the same load.
    Merge(merge::MergeArguments),
    /// Emptying a node of a filled cluster and giving it its share again, under the same load.
    Moves(moves::MovesArguments),
    /// Splitting shards one after the other under the same load.
    Split(split::SplitArguments),
}

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
    let sink = Sink {
        dir: arguments.out.as_deref(),
        output,
    };
    match &arguments.command {
        None => {
            let report = standard::run(&arguments.standard, targets).await?;
            sink.put("bench", &report, StandardReport::show)?;
            if let Some(dir) = sink.dir {
                plot::draw(&report, &dir.join("bench.svg"))?;
            }
        }
        Some(BenchCommand::Append(arguments)) => {
            let report = append::run(arguments, targets).await?;
            sink.put("append", &report, append::AppendReport::show)?;
        }
        Some(BenchCommand::Store(arguments)) => {
            let report = store::run(arguments, targets).await?;
            sink.put("store", &report, store::StoreReport::show)?;
        }
        Some(BenchCommand::History(arguments)) => {
            let report = history::run(arguments, targets).await?;
            sink.put("history", &report, history::HistoryReport::show)?;
        }
        Some(BenchCommand::Idle(arguments)) => {
            let report = idle::run(arguments, targets).await?;
            sink.put("idle", &report, idle::IdleReport::show)?;
        }
        Some(BenchCommand::Failover(arguments)) => {
            let report = failover::run(arguments, targets).await?;
            sink.put(report.name(), &report, failover::FailoverReport::show)?;
        }
        Some(BenchCommand::Roll(arguments)) => {
            let report = roll::run(arguments, targets).await?;
            sink.put("roll", &report, roll::RollReport::show)?;
        }
        Some(BenchCommand::Merge(arguments)) => {
            let report = merge::run(arguments, targets).await?;
            sink.put("merge", &report, merge::MergeReport::show)?;
        }
        Some(BenchCommand::Moves(arguments)) => {
            let report = moves::run(arguments, targets).await?;
            sink.put("moves", &report, moves::MovesReport::show)?;
        }
        Some(BenchCommand::Split(arguments)) => {
            let report = split::run(arguments, targets).await?;
            sink.put("split", &report, split::SplitReport::show)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Where results go.
struct Sink<'a> {
    dir: Option<&'a Path>,
    output: Output,
}

impl Sink<'_> {
    /// Shows a result, and writes it into the directory if there is one.
    fn put<R: Serialize>(
        &self,
        name: &str,
        report: &R,
        show: impl Fn(&R) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        if let Some(dir) = self.dir {
            write_json(report, dir, &format!("{name}.json"))?;
        }
        match self.output {
            Output::Table => show(report)?,
            Output::Json => crate::output::json(&serde_json::to_value(report)?)?,
        }
        Ok(())
    }
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
