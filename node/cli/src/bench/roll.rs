//! What clients see while all nodes are restarted one after the other.

use std::io;
use std::time::Duration;

use carillon_client::AdminClient;
use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;

use super::duration::parse_duration;
use super::steady::{Steady, SteadyArguments, SteadyReport, seconds};
use super::{Targets, say};
use crate::commands::admin::roll::{self, Roll};
use crate::output;

#[derive(Debug, Args)]
pub struct RollArguments {
    #[command(flatten)]
    load: SteadyArguments,
    /// How long each step of a node may take.
    #[arg(long, default_value = "2m", value_parser = parse_duration)]
    timeout: Duration,
}

#[derive(Debug, Serialize)]
pub struct RollReport {
    /// From the first drain until the last node had caught up.
    took_s: f64,
    nodes: Vec<NodeRoll>,
    #[serde(flatten)]
    seen: SteadyReport,
}

#[derive(Debug, Serialize)]
struct NodeRoll {
    node_id: u64,
    took_s: f64,
}

/// Restarts all nodes and measures.
pub async fn run(arguments: &RollArguments, targets: &Targets) -> anyhow::Result<RollReport> {
    let admin = AdminClient::new(&targets.endpoints)?;
    let nodes = roll::all(&admin).await?;
    let load = Steady::start(&arguments.load, targets).await?;
    say(&format!("restarts {} nodes", nodes.len()));
    let began = load.now_ns();
    let hidden = ProgressBar::hidden();
    let mut rolled = Vec::new();
    for node_id in nodes {
        let began = load.now_ns();
        let roll = Roll {
            admin: &admin,
            bar: &hidden,
            node: node_id,
            limit: arguments.timeout,
        };
        roll.restart().await?;
        let took_s = seconds(load.now_ns() - began);
        rolled.push(NodeRoll { node_id, took_s });
    }
    let took_s = seconds(load.now_ns() - began);
    Ok(RollReport {
        took_s,
        nodes: rolled,
        seen: load.end().await?,
    })
}

impl RollReport {
    pub fn show(&self) -> io::Result<()> {
        let nodes = self.nodes.iter();
        let nodes = nodes.map(|node| format!("node {} {:.1} s", node.node_id, node.took_s));
        let nodes: Vec<String> = nodes.collect();
        output::line(&format!(
            "{} nodes restarted in {:.1} s ({}), {}",
            self.nodes.len(),
            self.took_s,
            nodes.join(", "),
            self.seen.load(),
        ))?;
        self.seen.show()
    }
}
