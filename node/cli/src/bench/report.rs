//! What is reported: as JSON, and as tables for people.

use std::collections::BTreeMap;
use std::io;

use serde::Serialize;

use super::meter::{Quantiles, SecondQuantiles};
use super::nodes::{NodeProcess, Usage};
use super::pacer::Arrival;
use crate::output;

const MIB: f64 = 1024.0 * 1024.0;

/// What the load was.
#[derive(Debug, Serialize)]
pub struct Shape {
    /// Streams, one for each user.
    pub users: usize,
    /// TCP connections that the streams share.
    pub tcp_connections: usize,
    /// 0: direct messages only.
    pub groups: u32,
    pub members: u32,
    pub payload_bytes: u32,
    pub arrival: Arrival,
    pub warmup_s: f64,
    pub duration_s: f64,
    pub cursor_acks_s: Option<f64>,
    pub seed: u64,
}

/// What one node used, in a window.
#[derive(Debug, Serialize)]
pub struct NodeUsage {
    pub endpoint: String,
    pub pid: u32,
    /// Cores kept busy; none when the process could not be observed.
    pub cores: Option<f64>,
    /// Resident memory at the window's end.
    pub rss_bytes: Option<u64>,
}

/// Bytes on the sockets between the generator and the nodes, in a window.
#[derive(Debug, Serialize)]
pub struct Bytes {
    pub sent_per_s: f64,
    pub received_per_s: f64,
    pub sent_per_connection: u64,
    pub received_per_connection: u64,
    pub sent_per_send: f64,
    pub received_per_delivery: f64,
}

/// One rate.
#[derive(Debug, Serialize)]
pub struct Step {
    /// Sends a second that were intended.
    pub rate: u32,
    /// Sends that were due in the window.
    pub offered: u64,
    pub acked: u64,
    /// Acknowledgements that came within the window, a second.
    pub acked_per_s: f64,
    /// Deliveries that came within the window, a second.
    pub delivered_per_s: f64,
    pub ack: Quantiles,
    pub delivery: Quantiles,
    /// The same for each second of the window by itself.
    pub by_second: Vec<SecondQuantiles>,
    pub deliveries_expected: u64,
    pub deliveries_missing: u64,
    pub failed: BTreeMap<String, u64>,
    /// Sends that never got an answer.
    pub unanswered: u64,
    /// True when everything came before the time to wait for it was over.
    pub drained: bool,
    /// Inbox entries that streams were told to read with Sync.
    pub resynced: u64,
    /// Inbox entries that were missing on a stream without a word.
    pub gaps: u64,
    /// Terms begun by shards meanwhile; none when the cluster did not say.
    pub elections: Option<u64>,
    pub nodes: Vec<NodeUsage>,
    pub generator_cores: Option<f64>,
    pub bytes: Bytes,
}

impl Step {
    /// Everything that went wrong, in words; empty when nothing did.
    fn wrongs(&self) -> Vec<String> {
        let mut wrongs: Vec<String> = self
            .failed
            .iter()
            .map(|(reason, count)| format!("{count} × {reason}"))
            .collect();
        let counts = [
            (self.unanswered, "sends unanswered"),
            (self.deliveries_missing, "deliveries missing"),
            (self.resynced, "entries left to Sync"),
            (self.gaps, "inbox entries missing without a word"),
            (self.elections.unwrap_or(0), "elections"),
        ];
        for (count, what) in counts {
            if count > 0 {
                wrongs.push(format!("{count} {what}"));
            }
        }
        wrongs
    }

    /// How even the window was, in words; none when it was too short to tell.
    fn seconds_line(&self) -> Option<String> {
        let slowest = self
            .by_second
            .iter()
            .max_by(|a, b| a.delivery_p99_ms.total_cmp(&b.delivery_p99_ms))?;
        let median = |value: fn(&SecondQuantiles) -> f64| {
            let mut values: Vec<f64> = self.by_second.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        (self.by_second.len() > 2).then(|| {
            format!(
                "at {}/s: p99 of the median second {:.0} ms (ack) and {:.0} ms (received), of \
                 the slowest, second {}: {:.0} ms and {:.0} ms",
                self.rate,
                median(|second| second.ack_p99_ms),
                median(|second| second.delivery_p99_ms),
                slowest.second,
                slowest.ack_p99_ms,
                slowest.delivery_p99_ms,
            )
        })
    }
}

/// The standard workload.
#[derive(Debug, Serialize)]
pub struct StandardReport {
    pub shape: Shape,
    pub steps: Vec<Step>,
}

impl StandardReport {
    /// Writes the tables.
    pub fn show(&self) -> io::Result<()> {
        output::line(&self.shape_line())?;
        let mut table = output::table(&[
            "offered/s",
            "acked/s",
            "delivered/s",
            "",
            "p50 ms",
            "p90",
            "p99",
            "p99.9",
            "max",
        ]);
        for step in &self.steps {
            let rates = [
                step.rate.to_string(),
                format!("{:.0}", step.acked_per_s),
                format!("{:.0}", step.delivered_per_s),
            ];
            table.add_row(latency_row(rates, "send→ack", &step.ack));
            let blank = [String::new(), String::new(), String::new()];
            table.add_row(latency_row(blank, "send→received", &step.delivery));
        }
        output::show(&table)?;
        for step in &self.steps {
            if let Some(line) = step.seconds_line() {
                output::line(&line)?;
            }
        }
        output::line("")?;
        self.show_usage()?;
        for step in &self.steps {
            let wrongs = step.wrongs();
            if !wrongs.is_empty() {
                output::line(&format!("at {}/s: {}", step.rate, wrongs.join(", ")))?;
            }
        }
        if self.steps.iter().all(|step| step.wrongs().is_empty()) {
            output::line("no errors, nothing missing, no elections")?;
        }
        Ok(())
    }

    fn shape_line(&self) -> String {
        let shape = &self.shape;
        let whom = if shape.groups == 0 {
            "direct messages".to_owned()
        } else {
            format!("{} groups of {}", shape.groups, shape.members)
        };
        format!(
            "{} users online ({} streams over {} TCP connections), {whom}, {} byte payloads, \
             {:?} arrival, {} s a rate after {} s of warm-up, seed {}",
            shape.users,
            shape.users,
            shape.tcp_connections,
            shape.payload_bytes,
            shape.arrival,
            shape.duration_s,
            shape.warmup_s,
            shape.seed,
        )
    }

    fn show_usage(&self) -> io::Result<()> {
        let nodes = self.steps.first().map_or(0, |step| step.nodes.len());
        let mut columns = vec!["offered/s".to_owned()];
        for node in 1..=nodes {
            columns.push(format!("node {node} cores"));
            columns.push("MiB".to_owned());
        }
        let rest = ["generator cores", "B/send", "B/delivery", "KiB/connection"];
        columns.extend(rest.map(str::to_owned));
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        let mut table = output::table(&columns);
        for step in &self.steps {
            let mut row = vec![step.rate.to_string()];
            for node in &step.nodes {
                row.push(cores(node.cores));
                row.push(node.rss_bytes.map_or_else(dash, mib));
            }
            row.push(cores(step.generator_cores));
            row.push(format!("{:.0}", step.bytes.sent_per_send));
            row.push(format!("{:.0}", step.bytes.received_per_delivery));
            let both = step.bytes.sent_per_connection + step.bytes.received_per_connection;
            row.push(format!("{:.0}", both as f64 / 1024.0));
            table.add_row(row);
        }
        output::show(&table)
    }
}

/// A row of latencies after some leading cells.
pub fn latency_row<const N: usize>(
    lead: [String; N],
    what: &str,
    quantiles: &Quantiles,
) -> Vec<String> {
    let mut row = lead.to_vec();
    row.push(what.to_owned());
    let values = [
        quantiles.p50_ms,
        quantiles.p90_ms,
        quantiles.p99_ms,
        quantiles.p999_ms,
        quantiles.max_ms,
    ];
    row.extend(values.map(|ms| format!("{ms:.2}")));
    row
}

/// Bytes as MiB.
pub fn mib(bytes: u64) -> String {
    format!("{:.0}", bytes as f64 / MIB)
}

/// What the nodes used between two samples.
pub fn usage_between(
    nodes: &[NodeProcess],
    before: &[Option<Usage>],
    after: &[Option<Usage>],
) -> Vec<NodeUsage> {
    let pairs = nodes.iter().zip(before.iter().zip(after));
    pairs
        .map(|(node, (before, after))| NodeUsage {
            endpoint: node.endpoint.clone(),
            pid: node.pid,
            cores: before
                .zip(*after)
                .map(|(before, after)| after.cores_since(&before)),
            rss_bytes: after.map(|usage| usage.rss_bytes),
        })
        .collect()
}

/// A table of what the nodes used.
pub fn show_nodes(nodes: &[NodeUsage]) -> io::Result<()> {
    let mut table = output::table(&["node", "pid", "cores", "MiB"]);
    for node in nodes {
        table.add_row([
            node.endpoint.clone(),
            node.pid.to_string(),
            cores(node.cores),
            node.rss_bytes.map_or_else(dash, mib),
        ]);
    }
    output::show(&table)
}

fn cores(cores: Option<f64>) -> String {
    cores.map_or_else(dash, |cores| format!("{cores:.2}"))
}

fn dash() -> String {
    "-".to_owned()
}
