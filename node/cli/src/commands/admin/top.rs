//! `carillon admin top`: what the nodes do now, again and again until Ctrl-C.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use carillon_client::AdminClient;
use carillon_client::admin_proto as proto;
use clap::Args;
use serde_json::json;
use tokio::time::Instant;

use crate::arguments::Output;
use crate::bench::duration::parse_duration;
use crate::output;
use crate::present;

/// Clears the terminal and goes to its upper left corner.
const CLEAR: &str = "\x1b[2J\x1b[H";
/// Looking more often would be work that shows in what is looked at.
const INTERVAL_MIN: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub struct TopArguments {
    /// Between two looks, at least 200ms.
    #[arg(long, default_value = "2s", value_parser = parse_duration)]
    interval: Duration,
    /// Stop after so many looks. Default: at Ctrl-C.
    #[arg(long, value_name = "COUNT")]
    looks: Option<u64>,
}

/// What a node had counted at a moment; of another process nothing can be compared.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Counted {
    at: Instant,
    run: u64,
    sends: u64,
    deliveries: u64,
    entries: u64,
}

/// What it did per second since.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Rates {
    sends: f64,
    deliveries: f64,
    entries: f64,
}

impl Counted {
    fn of(node: &proto::NodeStatus, at: Instant) -> Self {
        Self {
            at,
            run: node.run,
            sends: node.sends_stored,
            deliveries: node.deliveries,
            entries: node.entries_proposed,
        }
    }

    fn since(&self, before: &Counted) -> Option<Rates> {
        let seconds = self.at.duration_since(before.at).as_secs_f64();
        if self.run != before.run || seconds <= 0.0 {
            return None;
        }
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        Some(Rates {
            sends: rate(self.sends, before.sends),
            deliveries: rate(self.deliveries, before.deliveries),
            entries: rate(self.entries, before.entries),
        })
    }
}

/// Looks until it is told to stop.
pub async fn run(
    admin: &AdminClient,
    arguments: &TopArguments,
    output: Output,
) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(arguments.interval.max(INTERVAL_MIN));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut before: BTreeMap<u64, Counted> = BTreeMap::new();
    let mut looks = 0;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
        let nodes = admin
            .list_nodes()
            .await
            .context("could not list the nodes")?;
        let moves = admin
            .list_moves()
            .await
            .context("could not list the moves")?;
        let now = Instant::now();
        let rates: BTreeMap<u64, Rates> = nodes
            .iter()
            .filter(|node| node.up)
            .filter_map(|node| {
                let counted = Counted::of(node, now);
                let rates = counted.since(before.get(&node.node_id)?)?;
                Some((node.node_id, rates))
            })
            .collect();
        let counted = nodes.iter().filter(|node| node.up);
        before = counted
            .map(|node| (node.node_id, Counted::of(node, now)))
            .collect();
        show(&nodes, &rates, &moves, output)?;
        looks += 1;
        if arguments.looks.is_some_and(|max| looks >= max) {
            return Ok(());
        }
    }
}

fn show(
    nodes: &[proto::NodeStatus],
    rates: &BTreeMap<u64, Rates>,
    moves: &proto::ListMovesResponse,
    output: Output,
) -> std::io::Result<()> {
    if output == Output::Json {
        let list = nodes.iter().map(|node| {
            let rates = rates.get(&node.node_id);
            json!({
                "node_id": node.node_id,
                "up": node.up,
                "sends_per_s": rates.map(|rates| rates.sends),
                "deliveries_per_s": rates.map(|rates| rates.deliveries),
                "entries_per_s": rates.map(|rates| rates.entries),
                "sessions": node.sessions,
                "leaders": node.leaders,
                "replicas": node.replicas,
                "state_bytes": node.state_bytes,
                "log_bytes": node.log_bytes,
            })
        });
        let list: Vec<_> = list.collect();
        return output::json_line(&json!({ "nodes": list, "moves": moves.moves.len() }));
    }
    use std::io::IsTerminal as _;
    if std::io::stdout().is_terminal() {
        output::line(CLEAR)?;
    }
    let mut table = output::table(&[
        "node",
        "sends/s",
        "pushed/s",
        "entries/s",
        "streams",
        "leads",
        "replicas",
        "state",
        "log",
    ]);
    for node in nodes {
        let rate = |of: fn(&Rates) -> f64| match (node.up, rates.get(&node.node_id)) {
            (false, _) => "down".to_owned(),
            (true, None) => "-".to_owned(),
            (true, Some(rates)) => format!("{:.0}", of(rates)),
        };
        table.add_row([
            node.node_id.to_string(),
            rate(|rates| rates.sends),
            rate(|rates| rates.deliveries),
            rate(|rates| rates.entries),
            node.sessions.to_string(),
            node.leaders.to_string(),
            node.replicas.to_string(),
            present::bytes(node.state_bytes),
            present::bytes(node.log_bytes),
        ]);
    }
    output::show(&table)?;
    let running = moves.moves.len();
    if running > 0 {
        output::line(&format!(
            "{running} replicas on their way: carillon admin moves"
        ))?;
    }
    for wait in &moves.waits {
        output::line(&format!("waits: {wait}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_one_process() {
        let at = Instant::now();
        let before = Counted {
            at,
            run: 7,
            sends: 100,
            deliveries: 1_000,
            entries: 10,
        };
        let now = Counted {
            at: at + Duration::from_secs(2),
            sends: 300,
            deliveries: 1_000,
            entries: 11,
            ..before
        };
        let rates = now.since(&before).expect("the same process");
        assert_eq!(
            (rates.sends, rates.deliveries, rates.entries),
            (100.0, 0.0, 0.5)
        );
        let restarted = Counted { run: 8, ..now };
        assert_eq!(restarted.since(&before), None);
        assert_eq!(now.since(&now), None, "no time has passed");
    }
}
