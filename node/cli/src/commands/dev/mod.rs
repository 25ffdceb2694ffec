//! `carillon dev`: a cluster on this machine, for as long as the command runs.
//!
//! Owner of the node processes that it starts: they are stopped with it, also when it is
//! killed itself. What the cluster stored stays in the data directory for the next run.

mod demo;
mod join;
mod layout;
mod processes;
mod progress;
mod readiness;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use carillon_client::AdminClient;
use clap::Args;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::arguments::Output;
use crate::failure::advised;
use crate::output::{self, Paint};
use layout::{Layout, NodePlan};
use processes::{Ended, Processes};
use progress::Progress;

/// The most nodes of one development cluster: their ports are numbered by one digit.
const NODES_MAX: i64 = 9;
/// The most shards, one for each slot range that makes sense on one machine.
const SHARDS_MAX: i64 = 1024;
/// The ports that all commands know by themselves begin here.
const PORT_BASE: u16 = 7400;
/// How long the nodes have to stop by themselves before they are killed; their own limit
/// is 30 s.
const STOP_LIMIT: Duration = Duration::from_secs(40);

#[derive(Debug, Args)]
pub struct DevArguments {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=NODES_MAX))]
    nodes: u16,
    /// Where the cluster keeps its data. Default: carillon/dev under the user's data
    /// directory.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Begin with an empty cluster: removes what the last one stored.
    #[arg(long)]
    fresh: bool,
    /// How many shards.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=SHARDS_MAX))]
    shards: u16,
    /// Add a node to the cluster that runs in the data directory, in a terminal of its own, for
    /// as long as this command runs; with --fresh it begins with an empty disk.
    #[arg(long, conflicts_with_all = ["nodes", "shards", "demo", "port_base"])]
    join: bool,
    /// Create two users and a group, send some messages, and show what to type next.
    #[arg(long)]
    demo: bool,
    /// Ports: node N takes this + N for clients, + 100 + N for peers, + 200 + N for HTTP.
    #[arg(long, default_value_t = PORT_BASE, value_parser = clap::value_parser!(u16).range(1024..=65000))]
    port_base: u16,
}

/// Runs the cluster until Ctrl-C.
pub async fn run(arguments: DevArguments, output: Output) -> anyhow::Result<ExitCode> {
    if arguments.join {
        let dir = join::directory(arguments.data)?;
        return join::run(&dir, arguments.fresh, output).await;
    }
    let mut stop = Stop::listen()?;
    let binary = processes::find_node_binary()?;
    let dir = match &arguments.data {
        Some(dir) => dir.clone(),
        None => layout::default_data_dir()?,
    };
    let layout = Layout {
        nodes: arguments.nodes,
        shards: arguments.shards,
        port_base: arguments.port_base,
    };
    let _lock = layout::lock(&dir)?;
    if arguments.fresh {
        layout::remove_nodes(&dir)?;
    }
    let plans = layout::prepare(&layout, &dir)?;
    layout::check_ports(&plans)?;
    let mut processes = Processes::start(&binary, &plans)?;
    let progress = Progress::new();
    let outcome = tokio::select! {
        up = bring_up(&arguments, &plans, &mut processes, &progress, output) => up,
        () = stop.asked() => Ok(()),
    };
    drop(progress);
    let lived = match outcome {
        Ok(()) if !stop.was_asked() => {
            supervise(&mut processes, &binary, &plans, &mut stop, output).await
        }
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error),
    };
    shut_down(&mut processes, &mut stop, output).await?;
    lived
}

/// Waits until the cluster works and says so.
async fn bring_up(
    arguments: &DevArguments,
    plans: &[NodePlan],
    processes: &mut Processes,
    progress: &Progress,
    output: Output,
) -> anyhow::Result<()> {
    let endpoints: Vec<String> = plans.iter().map(NodePlan::client_address).collect();
    let admin = AdminClient::new(&endpoints)?;
    tokio::select! {
        ready = readiness::wait(plans, &admin, progress) => ready?,
        ended = processes.first_ended() => {
            return Err(advised(
                format!("node {} {} while the cluster was starting", ended.node_id, ended.how),
                format!("see why in its log: tail -n 50 {}", log_of(plans, &ended)),
            ));
        }
    }
    progress.finish();
    show(&admin, plans, processes, output).await?;
    if arguments.demo {
        demo::run(&endpoints, output).await?;
    }
    if output == Output::Table {
        output::line(&hints(arguments, &endpoints))?;
    }
    Ok(())
}

fn hints(arguments: &DevArguments, endpoints: &[String]) -> String {
    let paint = Paint::for_stdout();
    let mut rows = Vec::new();
    // The commands know the usual ports by themselves.
    if arguments.port_base != PORT_BASE || arguments.nodes < 3 {
        let export = format!("export CARILLON_ENDPOINTS={}", endpoints.join(","));
        rows.push((export, "in every other terminal, first"));
    }
    rows.push((
        "carillon chat --as alice --with bob".to_owned(),
        "chat, in a second terminal",
    ));
    rows.push((
        "carillon chat --as bob --with alice".to_owned(),
        "and in a third one",
    ));
    if arguments.demo {
        rows.push((
            format!("carillon chat --as bob -c {}", demo::GROUP),
            "or in the group",
        ));
    }
    rows.push(("carillon admin status".to_owned(), "how the cluster is"));
    let width = rows.iter().map(|(c, _)| c.len()).max().unwrap_or(0);
    let mut text = String::from("\nnext:\n");
    for (command, what) in rows {
        let pad = " ".repeat(width - command.len());
        text.push_str(&format!("  {}{pad}   {what}\n", paint.bold(&command)));
    }
    text.push_str("\nCtrl-C stops the cluster; what it stored stays for the next time.");
    text
}

/// Shows the nodes as they are now.
async fn show(
    admin: &AdminClient,
    plans: &[NodePlan],
    processes: &Processes,
    output: Output,
) -> anyhow::Result<()> {
    let nodes = admin
        .list_nodes()
        .await
        .context("could not list the nodes")?;
    // One that has joined was given another number, perhaps, than its directory has.
    let known = |plan: &NodePlan| {
        let address = plan.client_address();
        let node = nodes.iter().find(|node| node.client_address == address);
        node.map_or((plan.node_id, 0), |node| (node.node_id, node.leaders))
    };
    if output == Output::Json {
        let list: Vec<_> = plans
            .iter()
            .map(|plan| {
                json!({
                    "node_id": known(plan).0,
                    "pid": processes.pid(plan.node_id),
                    "client_address": plan.client_address(),
                    "peer_address": plan.peer_address(),
                    "http_address": plan.http_address(),
                    "leaders": known(plan).1,
                    "log": plan.log_path(),
                })
            })
            .collect();
        return Ok(output::json_line(
            &json!({ "state": "ready", "nodes": list }),
        )?);
    }
    let mut table = output::table(&["node", "pid", "clients", "peers", "http", "leads", "log"]);
    for plan in plans {
        table.add_row([
            known(plan).0.to_string(),
            processes
                .pid(plan.node_id)
                .map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            plan.client_address(),
            plan.peer_address(),
            plan.http_address(),
            format!("{} shards", known(plan).1),
            plan.log_path().display().to_string(),
        ]);
    }
    output::show(&table)?;
    Ok(())
}

/// Reports nodes that end and starts those again that want it, until told to stop or none is
/// left.
async fn supervise(
    processes: &mut Processes,
    binary: &Path,
    plans: &[NodePlan],
    stop: &mut Stop,
    output: Output,
) -> anyhow::Result<ExitCode> {
    while processes.running() > 0 {
        let ended = tokio::select! {
            ended = processes.first_ended() => ended,
            () = stop.asked() => return Ok(ExitCode::SUCCESS),
        };
        let plan = plans.iter().find(|plan| plan.node_id == ended.node_id);
        if let Some(plan) = plan.filter(|_| ended.restarts) {
            processes.start_again(binary, plan)?;
            if output == Output::Table {
                output::line(&format!("node {} restarts", ended.node_id))?;
            }
            continue;
        }
        report(&ended, processes.running(), plans, output)?;
    }
    Err(advised(
        "all nodes have ended",
        "their logs say why; `carillon dev` starts them again on the same data",
    ))
}

fn report(
    ended: &Ended,
    left: usize,
    plans: &[NodePlan],
    output: Output,
) -> Result<(), std::io::Error> {
    let log = log_of(plans, ended);
    if output == Output::Json {
        return output::json_line(&json!({
            "state": "node_ended",
            "node_id": ended.node_id,
            "pid": ended.pid,
            "how": ended.how,
            "running": left,
            "log": log,
        }));
    }
    let paint = Paint::for_stdout();
    output::line(&format!(
        "{} node {} (pid {}) {}; {left} still running\n  its log: tail -n 50 {log}\n  \
         start it again: stop the cluster with Ctrl-C and run this command again",
        paint.bad("✗"),
        ended.node_id,
        ended.pid,
        ended.how,
    ))
}

fn log_of(plans: &[NodePlan], ended: &Ended) -> String {
    let plan = plans.iter().find(|plan| plan.node_id == ended.node_id);
    plan.map_or_else(String::new, |plan| plan.log_path().display().to_string())
}

/// Stops all nodes: by asking, and by force when that takes too long or is asked for again.
async fn shut_down(
    processes: &mut Processes,
    stop: &mut Stop,
    output: Output,
) -> anyhow::Result<()> {
    if processes.running() == 0 {
        return Ok(());
    }
    let progress = Progress::new();
    let text = format!(
        "stopping {} nodes (Ctrl-C again kills them)",
        processes.running()
    );
    let row = progress.row("cluster", &text);
    processes.terminate();
    let killed = tokio::select! {
        () = processes.all_ended() => false,
        () = tokio::time::sleep(STOP_LIMIT) => true,
        () = stop.asked() => true,
    };
    if killed {
        processes.kill();
        processes.all_ended().await;
    }
    row.done(if killed { "killed" } else { "stopped" });
    progress.finish();
    if output == Output::Json {
        output::json_line(&json!({ "state": "stopped", "killed": killed }))?;
    }
    Ok(())
}

/// Ctrl-C and SIGTERM, as a wish to stop.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
    asked: bool,
}

impl Stop {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("could not listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            asked: false,
        })
    }

    /// Waits for the next wish. Cancel-safe.
    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        self.asked = true;
    }

    fn was_asked(&self) -> bool {
        self.asked
    }
}
