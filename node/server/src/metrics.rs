//! What this node measures of itself, in the Prometheus text format under `/metrics`.
//!
//! Metrics are registered once, here and in the gateway; gauges of things that have their
//! own state are read when they are asked for.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Counters of the shards' work, shared by all replicas.
pub struct NodeMetrics {
    entries_proposed: Counter,
    commands_per_entry: Histogram,
}

impl NodeMetrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let metrics = Self {
            entries_proposed: Counter::default(),
            commands_per_entry: Histogram::new(exponential_buckets(1.0, 2.0, 14)),
        };
        registry.register(
            "entries_proposed",
            "Raft log entries that leaders on this node proposed",
            metrics.entries_proposed.clone(),
        );
        registry.register(
            "commands_per_entry",
            "Commands in each of them",
            metrics.commands_per_entry.clone(),
        );
        Arc::new(metrics)
    }

    /// Entries that leaders here proposed.
    pub fn entries_proposed(&self) -> u64 {
        self.entries_proposed.get()
    }

    /// A leader proposed an entry of so many commands.
    pub fn entry_proposed(&self, commands: usize) {
        self.entries_proposed.inc();
        self.commands_per_entry.observe(commands as f64);
    }
}

/// A port of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Port {
    /// `client`, `peer`, `admin` or `http`.
    port: &'static str,
}

/// Counters of the connections that nobody got or used, by port.
pub struct ConnectionMetrics {
    refused: Family<Port, Counter>,
    silent: Family<Port, Counter>,
    handshakes_failed: Family<Port, Counter>,
}

/// Those of one port.
#[derive(Clone)]
pub struct PortMetrics {
    refused: Counter,
    silent: Counter,
    handshakes_failed: Counter,
}

impl ConnectionMetrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let metrics = Self {
            refused: Family::default(),
            silent: Family::default(),
            handshakes_failed: Family::default(),
        };
        registry.register(
            "connections_refused",
            "Connections that were closed at once: there were as many as there may be",
            metrics.refused.clone(),
        );
        registry.register(
            "connections_silent",
            "Connections that were closed because too little was said on them",
            metrics.silent.clone(),
        );
        registry.register(
            "handshakes_failed",
            "Encrypted connections that were not made: the certificate, or none, did not fit",
            metrics.handshakes_failed.clone(),
        );
        Arc::new(metrics)
    }

    /// Those of one port.
    pub fn of(&self, port: &'static str) -> PortMetrics {
        let port = Port { port };
        PortMetrics {
            refused: self.refused.get_or_create(&port).clone(),
            silent: self.silent.get_or_create(&port).clone(),
            handshakes_failed: self.handshakes_failed.get_or_create(&port).clone(),
        }
    }
}

impl PortMetrics {
    /// A connection was refused; returns how many by now.
    pub fn refused(&self) -> u64 {
        self.refused.inc() + 1
    }

    /// A handshake failed; returns how many by now.
    pub fn handshake_failed(&self) -> u64 {
        self.handshakes_failed.inc() + 1
    }

    /// A connection was closed for its silence.
    pub fn silent(&self) {
        self.silent.inc();
    }
}

/// Values that are read from their owners when metrics are asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Observed {
    /// Replicas on this node.
    pub replicas: u64,
    /// Shards that this node leads.
    pub leaders: u64,
    /// When its first certificate ends, in seconds since 1970; 0 when it has none.
    pub certificate_ends_at_s: i64,
    /// How often certificates or keys were read that could not be used.
    pub reload_failures: u64,
    /// Nodes that are linked, itself included.
    pub nodes_up: u64,
    /// Operations of this node that have not ended.
    pub operations_outstanding: u64,
    /// Entries stored in shards led here and not in all their inboxes.
    pub deliveries_outstanding: u64,
    /// Log entries that the slowest follower of a shard led here lacks.
    pub replication_lag_entries_max: u64,
    /// Streams of append requests to followers that were begun since the start.
    pub append_streams: u64,
    /// Bytes of the Raft log on disk.
    pub log_bytes: u64,
    /// fsyncs of the Raft log since the start.
    pub log_syncs: u64,
    /// Microseconds spent in them.
    pub log_sync_microseconds: u64,
    /// Bytes of state on disk, about.
    pub state_bytes: u64,
    /// Bytes of state in memory that are not flushed.
    pub memtable_bytes: u64,
    /// Table files of state that wait for their first compaction.
    pub level0_files: u64,
    /// Bytes of state that compactions still have to rewrite, about.
    pub compaction_pending_bytes: u64,
    /// Batches of entries that waited until the state could take them, since the start.
    pub applies_held_back: u64,
    /// Bytes per second to which writes of state are slowed down; 0 when they are not.
    pub delayed_write_bytes_per_second: u64,
    /// 1 while writes of state wait for flushes or compactions.
    pub writes_stopped: u64,
    /// Shards that have no leader, as far as this node knows.
    pub shards_without_leader: u64,
    /// The size of the disk.
    pub disk_bytes: u64,
    /// What is free of it.
    pub disk_free_bytes: u64,
    /// 1 while the node takes no commands because its disk is nearly full.
    pub disk_short: u64,
}

type Read = fn(&Observed) -> u64;

/// The gauges for [`Observed`] and the registry of everything.
pub struct MetricsPage {
    registry: Registry,
    gauges: Vec<(Gauge<u64, AtomicU64>, Read)>,
}

impl MetricsPage {
    /// Finishes a registry into a page.
    pub fn new(mut registry: Registry) -> Self {
        let described: [(&str, &str, Option<Unit>, Read); 23] = [
            ("replicas", "Replicas on this node", None, |o| o.replicas),
            ("leaders", "Shards that this node leads", None, |o| {
                o.leaders
            }),
            (
                "nodes_up",
                "Nodes that this node is linked with, itself included",
                None,
                |o| o.nodes_up,
            ),
            (
                "operations_outstanding",
                "Operations of this node's clients that have not ended",
                None,
                |o| o.operations_outstanding,
            ),
            (
                "deliveries_outstanding",
                "Entries of shards led here that are not in all inboxes",
                None,
                |o| o.deliveries_outstanding,
            ),
            (
                "replication_lag_entries_max",
                "Log entries that the slowest follower lacks",
                None,
                |o| o.replication_lag_entries_max,
            ),
            (
                "append_streams",
                "Streams of append requests to followers, heartbeats and retries among them",
                None,
                |o| o.append_streams,
            ),
            ("log", "Raft log on disk", Some(Unit::Bytes), |o| {
                o.log_bytes
            }),
            (
                "log_syncs",
                "fsyncs of the Raft log since the start",
                None,
                |o| o.log_syncs,
            ),
            (
                "log_sync_microseconds",
                "Time spent in fsyncs of the Raft log",
                None,
                |o| o.log_sync_microseconds,
            ),
            ("state", "State on disk, about", Some(Unit::Bytes), |o| {
                o.state_bytes
            }),
            (
                "memtable",
                "State in memory that is not flushed",
                Some(Unit::Bytes),
                |o| o.memtable_bytes,
            ),
            (
                "state_level0_files",
                "Table files of state that wait for their first compaction",
                None,
                |o| o.level0_files,
            ),
            (
                "state_compaction_pending",
                "State that compactions still have to rewrite, about",
                Some(Unit::Bytes),
                |o| o.compaction_pending_bytes,
            ),
            (
                "applies_held_back",
                "Batches of entries that waited until the state could take them, since the start",
                None,
                |o| o.applies_held_back,
            ),
            (
                "state_delayed_write_bytes_per_second",
                "What writes of state are slowed down to, 0 when they are not",
                None,
                |o| o.delayed_write_bytes_per_second,
            ),
            (
                "state_writes_stopped",
                "1 while writes of state wait for flushes or compactions",
                None,
                |o| o.writes_stopped,
            ),
            (
                "shards_without_leader",
                "Shards that have no leader, as far as this node knows",
                None,
                |o| o.shards_without_leader,
            ),
            ("disk", "The size of the disk", Some(Unit::Bytes), |o| {
                o.disk_bytes
            }),
            (
                "disk_free",
                "What is free of the disk",
                Some(Unit::Bytes),
                |o| o.disk_free_bytes,
            ),
            (
                "disk_short",
                "1 while the node takes no commands because its disk is nearly full",
                None,
                |o| o.disk_short,
            ),
            (
                "certificate_ends_at",
                "When the first of the node's certificates ends, since 1970; 0 without any",
                Some(Unit::Seconds),
                |o| u64::try_from(o.certificate_ends_at_s).unwrap_or(0),
            ),
            (
                "reload_failures",
                "How often certificates or keys were read that could not be used",
                None,
                |o| o.reload_failures,
            ),
        ];
        let mut gauges = Vec::with_capacity(described.len());
        for (name, help, unit, read) in described {
            let gauge = Gauge::<u64, AtomicU64>::default();
            match unit {
                Some(unit) => registry.register_with_unit(name, help, unit, gauge.clone()),
                None => registry.register(name, help, gauge.clone()),
            }
            gauges.push((gauge, read));
        }
        Self { registry, gauges }
    }

    /// The page, with these values.
    pub fn render(&self, observed: &Observed) -> Result<String, std::fmt::Error> {
        for (gauge, read) in &self.gauges {
            gauge.set(read(observed));
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// A registry whose metrics begin with `carillon_`.
pub fn registry() -> Registry {
    Registry::with_prefix("carillon")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_has_what_was_observed() {
        let mut registry = registry();
        let metrics = NodeMetrics::register(&mut registry);
        metrics.entry_proposed(3);
        let page = MetricsPage::new(registry);
        let text = page
            .render(&Observed {
                leaders: 5,
                log_bytes: 7,
                level0_files: 11,
                compaction_pending_bytes: 12,
                delayed_write_bytes_per_second: 13,
                writes_stopped: 1,
                shards_without_leader: 2,
                disk_bytes: 15,
                disk_free_bytes: 14,
                disk_short: 1,
                ..Observed::default()
            })
            .expect("text");
        for line in [
            "carillon_leaders 5",
            "carillon_log_bytes 7",
            "carillon_entries_proposed_total 1",
            "carillon_state_level0_files 11",
            "carillon_state_compaction_pending_bytes 12",
            "carillon_state_delayed_write_bytes_per_second 13",
            "carillon_state_writes_stopped 1",
            "carillon_shards_without_leader 2",
            "carillon_disk_bytes 15",
            "carillon_disk_free_bytes 14",
            "carillon_disk_short 1",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
}
