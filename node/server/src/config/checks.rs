//! What a configuration may not say.

use std::time::Duration;

use carillon_core::map::{ClusterVersion, NODE_TEXT_BYTES_MAX, SHARDS_MAX};
use carillon_core::placement::{REPLICATION_FACTOR_MAX, WEIGHT_MAX};
use tracing_subscriber::EnvFilter;

use super::{Config, ConfigError, Mode};

/// Less would be flushed all the time.
const MEMTABLE_BYTES_MIN: u64 = 512 << 10;
/// A disk for which this is much keeps up with no cluster.
const BACKGROUND_WRITE_BYTES_PER_S_MIN: u64 = 8_000_000;
/// Of less, every larger message would be a Resync.
const SESSION_QUEUE_BYTES_MIN: u64 = 64 << 10;
/// Streams cannot be asked for a sign of life more often, nor calls answered sooner.
const HEARTBEAT_MIN: Duration = Duration::from_millis(100);

impl Config {
    /// What holds for the nodes that make a cluster.
    fn validate_founder(&self) -> Result<(), ConfigError> {
        let invalid = |field, problem: String| Err(ConfigError::Invalid { field, problem });
        if self.node_id == 0 {
            let problem = "is missing or 0, but ids begin at 1; a node that is to be given one \
                           needs a section [join]";
            return invalid("node_id", problem.into());
        }
        if !self
            .initial_peers
            .iter()
            .any(|peer| peer.node_id == self.node_id)
        {
            return invalid(
                "initial_peers",
                format!("does not name this node, {}", self.node_id),
            );
        }
        let mut ids: Vec<u64> = self.initial_peers.iter().map(|peer| peer.node_id).collect();
        ids.sort_unstable();
        if let Some(twice) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            return invalid("initial_peers", format!("names node {} twice", twice[0]));
        }
        if ids[0] == 0 {
            return invalid(
                "initial_peers",
                "has a node_id 0, but ids begin at 1".into(),
            );
        }
        if !(1..=SHARDS_MAX).contains(&self.cluster.shards) {
            return invalid(
                "cluster.shards",
                format!("is {}, must be 1 to {SHARDS_MAX}", self.cluster.shards),
            );
        }
        let factor = self.cluster.replication_factor;
        if !(1..=REPLICATION_FACTOR_MAX).contains(&factor) || factor as usize > ids.len() {
            return invalid(
                "cluster.replication_factor",
                format!(
                    "is {factor}, must be 1 to {REPLICATION_FACTOR_MAX} and at most the {} initial peers",
                    ids.len()
                ),
            );
        }
        Ok(())
    }

    /// Without encryption and credentials nobody else may reach the node.
    fn validate_development(&self) -> Result<(), ConfigError> {
        let invalid = |field, problem: String| Err(ConfigError::Invalid { field, problem });
        for (field, is_there) in [("tls", self.tls.is_some()), ("auth", self.auth.is_some())] {
            if is_there {
                let problem = "is not used in development mode: start the node without --dev, or \
                               remove the section";
                return invalid(field, problem.into());
            }
        }
        for (field, address) in [
            ("listen.client", Some(self.listen.client)),
            ("listen.peer", Some(self.listen.peer)),
            ("listen.admin", self.listen.admin),
        ] {
            if let Some(address) = address.filter(|address| !address.ip().is_loopback()) {
                let problem = format!(
                    "{address} is not a loopback address, but in development mode (--dev) nothing \
                     is encrypted and nobody is asked who they are"
                );
                return invalid(field, problem);
            }
        }
        Ok(())
    }

    fn validate_production(&self) -> Result<(), ConfigError> {
        let invalid = |field, problem: String| Err(ConfigError::Invalid { field, problem });
        if self.tls.is_none() {
            let problem = "is missing: a node needs certificates; to try it on this machine \
                           without any, start it with --dev";
            return invalid("tls", problem.into());
        }
        if !carillon_auth::identity::is_name(&self.cluster_name) {
            let problem = "must be letters, digits, '.', '_' and '-': it is part of the owner's \
                           URI in certificates";
            return invalid("cluster_name", problem.into());
        }
        Ok(())
    }

    fn validate_tracing(&self) -> Result<(), ConfigError> {
        let invalid = |field, problem: String| Err(ConfigError::Invalid { field, problem });
        let ratio = self.tracing.sample_ratio;
        if !(0.0..=1.0).contains(&ratio) {
            let problem = format!("is {ratio}, must be 0 to 1");
            return invalid("tracing.sample_ratio", problem);
        }
        let Some(endpoint) = &self.tracing.otlp_endpoint else {
            return Ok(());
        };
        let uri: Option<http::Uri> = endpoint.parse().ok();
        match uri.as_ref().and_then(http::Uri::scheme_str) {
            Some("http") => Ok(()),
            Some("https") => {
                let problem = "begins with https, which a node does not speak to a collector: \
                               let one run on its machine or in its network, which encrypts \
                               what it passes on";
                invalid("tracing.otlp_endpoint", problem.into())
            }
            _ => invalid(
                "tracing.otlp_endpoint",
                format!("is {endpoint:?}, must be http://HOST:PORT, often port 4317"),
            ),
        }
    }

    /// Refuses what cannot work, by field.
    pub(super) fn validate(&self, mode: Mode) -> Result<(), ConfigError> {
        let invalid = |field, problem: String| Err(ConfigError::Invalid { field, problem });
        let versions = ClusterVersion::MIN.0..=ClusterVersion::MAX.0;
        if !versions.contains(&self.cluster_version_max) {
            let (min, max) = (versions.start(), versions.end());
            return invalid(
                "cluster_version_max",
                format!(
                    "is {}, but this build supports {min} to {max}",
                    self.cluster_version_max
                ),
            );
        }
        if let Some(join) = &self.join {
            if self.node_id != 0 || !self.initial_peers.is_empty() {
                let problem = "stands beside node_id or initial_peers; a node that joins a \
                               cluster is given its id, and makes none";
                return invalid("join", problem.into());
            }
            if join.peers.is_empty() {
                return invalid("join.peers", "is empty; name a node of the cluster".into());
            }
            if join.token.is_empty() {
                let problem = "is empty; carillon admin join-token shows the cluster's";
                return invalid("join.token", problem.into());
            }
        } else {
            self.validate_founder()?;
        }
        if !(1..=WEIGHT_MAX).contains(&self.placement.weight) {
            return invalid(
                "placement.weight",
                format!("is {}, must be 1 to {WEIGHT_MAX}", self.placement.weight),
            );
        }
        if self.placement.zone.len() > NODE_TEXT_BYTES_MAX {
            return invalid(
                "placement.zone",
                format!("must have at most {NODE_TEXT_BYTES_MAX} bytes"),
            );
        }
        if self.cluster_name.is_empty() || self.cluster_name.len() > 64 {
            return invalid("cluster_name", "must have 1 to 64 bytes".into());
        }
        match mode {
            Mode::Production => self.validate_production()?,
            Mode::Development => self.validate_development()?,
        }
        if let Err(error) = self.raft.group_options().validate() {
            return invalid("raft", error.to_string());
        }
        for (field, value, min) in [
            (
                "store.memtable_bytes",
                self.store.memtable_bytes as u64,
                MEMTABLE_BYTES_MIN,
            ),
            (
                "store.background_write_bytes_per_s",
                self.store.background_write_bytes_per_s,
                BACKGROUND_WRITE_BYTES_PER_S_MIN,
            ),
            (
                "clients.session_queue_bytes_max",
                self.clients.session_queue_bytes_max as u64,
                SESSION_QUEUE_BYTES_MIN,
            ),
            (
                "clients.connections_max",
                self.clients.connections_max as u64,
                1,
            ),
            ("clients.sessions_max", self.clients.sessions_max as u64, 1),
        ] {
            if value < min {
                return invalid(field, format!("is {value}, must be at least {min}"));
            }
        }
        for (field, value, min) in [
            ("clients.heartbeat", self.clients.heartbeat, HEARTBEAT_MIN),
            (
                "clients.hello_timeout",
                self.clients.hello_timeout,
                HEARTBEAT_MIN,
            ),
            (
                "clients.call_timeout",
                self.clients.call_timeout,
                HEARTBEAT_MIN,
            ),
        ] {
            if value < min {
                return invalid(field, format!("is {value:?}, must be at least {min:?}"));
            }
        }
        if let Err(error) = self.log.options(&self.data_dir).validate() {
            return invalid("log", error.to_string());
        }
        self.validate_tracing()?;
        if let Err(error) = EnvFilter::try_new(&self.logging.filter) {
            return invalid("logging.filter", error.to_string());
        }
        if self.raft.entries_in_flight_max == 0 {
            return invalid("raft.entries_in_flight_max", "must be at least 1".into());
        }
        if !(4_096..=carillon_raft::ENTRY_BYTES_MAX).contains(&self.raft.entry_bytes_max) {
            return invalid(
                "raft.entry_bytes_max",
                format!("must be 4096 to {}", carillon_raft::ENTRY_BYTES_MAX),
            );
        }
        Ok(())
    }
}
