//! `carillon dev --join`: one more node for the cluster that runs in the data directory, for
//! as long as the command runs. Started again it goes on with the same node.
//!
//! Owner of that node's process and directory; the cluster is another command's.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use carillon_client::AdminClient;

use super::layout::{self, Layout, NodePlan};
use super::processes::Processes;
use super::progress::Progress;
use super::{NODES_MAX, Stop, readiness, show, shut_down, supervise};
use crate::arguments::Output;
use crate::failure::advised;
use crate::output;

/// A node that is to join, and the lock that keeps it from running twice.
struct Joining {
    plan: NodePlan,
    _lock: File,
}

/// Runs the node until Ctrl-C.
pub async fn run(dir: &Path, fresh: bool, output: Output) -> anyhow::Result<ExitCode> {
    let mut stop = Stop::listen()?;
    let binary = super::processes::find_node_binary()?;
    let layout = layout::made(dir)?;
    let plans = layout::plan(&layout, dir);
    let endpoints: Vec<String> = plans.iter().map(NodePlan::client_address).collect();
    let admin = AdminClient::new(&endpoints)?;
    let token = admin.join_token().await.with_context(|| {
        format!(
            "could not ask the cluster in {} for its join token",
            dir.display()
        )
    })?;
    let peers: Vec<String> = plans.iter().map(NodePlan::peer_address).collect();
    let joining = next(&layout, dir, fresh)?;
    let plans = [joining.plan];
    layout::write_joining(&plans[0], &peers, &token)?;
    layout::check_ports(&plans)?;
    let mut processes = Processes::start(&binary, &plans)?;
    let progress = Progress::new();
    let outcome = tokio::select! {
        ready = readiness::nodes(&plans, &progress) => ready,
        ended = processes.first_ended() => Err(advised(
            format!("the node {} while it joined", ended.how),
            format!("see why in its log: tail -n 50 {}", plans[0].log_path().display()),
        )),
        () = stop.asked() => Ok(()),
    };
    progress.finish();
    drop(progress);
    let lived = match outcome {
        Ok(()) if !stop.was_asked() => {
            show(&admin, &plans, &processes, output).await?;
            if output == Output::Table {
                output::line(&hints())?;
            }
            supervise(&mut processes, &binary, &plans, &mut stop, output).await
        }
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error),
    };
    shut_down(&mut processes, &mut stop, output).await?;
    lived
}

fn hints() -> String {
    "\nnext:\n  carillon admin moves    replicas on their way to it\n  \
     carillon admin nodes    its id, and what it has\n\n\
     Ctrl-C stops the node; the cluster waits for it. To take it out for good, first:\n  \
     carillon admin drain ID --for removal --wait"
        .to_owned()
}

/// The first place after the cluster's own nodes where none runs.
fn next(layout: &Layout, dir: &Path, fresh: bool) -> anyhow::Result<Joining> {
    for number in u64::from(layout.nodes) + 1..=NODES_MAX.unsigned_abs() {
        let plan = layout::node(layout, dir, number);
        let Some(lock) = layout::try_lock(&plan.dir)? else {
            continue;
        };
        if fresh {
            layout::remove_node(&plan)?;
        }
        return Ok(Joining { plan, _lock: lock });
    }
    Err(advised(
        format!(
            "{NODES_MAX} nodes run in {}, as many as there are ports for",
            dir.display()
        ),
        "stop one of them, or join nodes by hand as docs/operations.md says",
    ))
}

/// Where the cluster is that a node may join.
pub fn directory(named: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let dir = match named {
        Some(dir) => dir,
        None => layout::default_data_dir()?,
    };
    std::fs::canonicalize(&dir).map_err(|error| {
        advised(
            format!("no cluster is in {}: {error}", dir.display()),
            "start one with carillon dev, or name its directory with --data",
        )
    })
}
