//! The configuration of a node: one TOML file, with environment overrides.
//!
//! Every field has a default but `cluster_name`, `data_dir` and `listen`, and either
//! `node_id` with `initial_peers` or `join`. An unknown field is refused. An environment
//! variable overrides a field: its name is `CARILLON_NODE__` and the path in upper case with
//! `__` between the parts, for example `CARILLON_NODE__LISTEN__CLIENT=127.0.0.1:7401`.

mod checks;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use carillon_auth::caller::CredentialFiles;
use carillon_auth::tls::{CertificateFiles, TlsFiles};
use carillon_auth::tokens::TokenRules;
use carillon_core::ids::NodeId;
use carillon_core::map::{ClusterVersion, NodeInfo, Supported};
use carillon_core::placement::Zone;
use carillon_log::LogOptions;
use serde::Deserialize;

/// What the environment overrides begin with.
const ENVIRONMENT_PREFIX: &str = "CARILLON_NODE";

/// Whether a node asks who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It does: everything is encrypted, and needs a credential.
    Production,
    /// It does not, and listens on loopback only.
    Development,
}

/// A node's whole configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This node's id in the cluster, from 1; never given to another node. Left out when it
    /// joins a cluster, which gives it one.
    #[serde(default)]
    pub node_id: u64,
    /// The cluster's name, the same on all nodes; nodes of another name are refused.
    pub cluster_name: String,
    /// Where this node keeps everything; made when it does not exist.
    pub data_dir: PathBuf,
    /// Where this node listens.
    pub listen: Listen,
    /// Where others reach this node, when that differs from `listen`.
    #[serde(default)]
    pub advertise: Advertise,
    /// The nodes that make the cluster together at its first start, this one among
    /// them; the same list on all of them. Left out when it joins a cluster.
    #[serde(default)]
    pub initial_peers: Vec<InitialPeer>,
    /// The cluster that this node joins, instead of making one.
    pub join: Option<Join>,
    /// Certificates. Left out in development mode only.
    pub tls: Option<TlsConfig>,
    /// How clients say who they are. Without it nobody can chat, but in development mode.
    pub auth: Option<AuthConfig>,
    /// What decides which replicas this node gets.
    #[serde(default)]
    pub placement: PlacementConfig,
    /// The newest version of the cluster that this node supports. Below what its build does, it
    /// holds the cluster there. Default: what its build does.
    #[serde(default = "default_cluster_version_max")]
    pub cluster_version_max: u32,
    /// The shape of the cluster; read once, at its first start.
    #[serde(default)]
    pub cluster: ClusterShape,
    /// Threads that run the node's tasks; 0 is one per core. Default: 0.
    #[serde(default)]
    pub worker_threads: usize,
    /// Replication.
    #[serde(default)]
    pub raft: RaftConfig,
    /// The Raft log.
    #[serde(default)]
    pub log: LogConfig,
    /// The state store.
    #[serde(default)]
    pub store: StoreConfig,
    /// The disk that has `data_dir`.
    #[serde(default)]
    pub disk: DiskConfig,
    /// What clients may ask for.
    #[serde(default)]
    pub clients: ClientConfig,
    /// How long a graceful stop may take before the node exits anyway. Default: 30s.
    #[serde(default = "default_shutdown_timeout", with = "humantime_serde")]
    pub shutdown_timeout: Duration,
    /// Structured logs on standard error.
    #[serde(default)]
    pub logging: Logging,
    /// Traces of messages.
    #[serde(default)]
    pub tracing: TracingConfig,
}

/// Addresses to listen on, `ip:port`. In development mode loopback only.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// For clients: gRPC.
    pub client: SocketAddr,
    /// For the other nodes: gRPC.
    pub peer: SocketAddr,
    /// For operators: gRPC, `carillon.admin.v1`, which then is not at `client`. Default: at
    /// `client`.
    pub admin: Option<SocketAddr>,
    /// For `/metrics`, `/healthz` and `/readyz`: HTTP/1.1.
    pub http: SocketAddr,
}

/// Addresses that others use, `host:port`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Advertise {
    /// Default: `listen.client`.
    pub client: Option<String>,
    /// Default: `listen.peer`.
    pub peer: Option<String>,
}

/// One of the nodes that make the cluster.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitialPeer {
    /// Its `node_id`.
    pub node_id: u64,
    /// Where other nodes reach it, `host:port`.
    pub peer_address: String,
    /// Where clients reach it, `host:port`.
    pub client_address: String,
}

/// The cluster that a node joins.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// Where some of its nodes are reached by other nodes, `host:port`.
    pub peers: Vec<String>,
    /// What its operators give out: `carillon admin join-token`.
    pub token: String,
}

/// The certificates of a node: PEM files, read again when they change.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The authorities that issue the certificates of nodes and operators, one or more.
    pub ca: PathBuf,
    /// This node's certificate with its chain; its owner must be `carillon://CLUSTER/node/NAME`.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// What clients are shown. Default: the same.
    pub clients: Option<ClientCertificate>,
}

/// What clients are shown in place of the node's own certificate.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientCertificate {
    /// The certificate with its chain.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl TlsConfig {
    /// The files.
    pub fn files(&self) -> TlsFiles {
        let clients = self.clients.as_ref().map(|clients| CertificateFiles {
            certificate: clients.certificate.clone(),
            key: clients.key.clone(),
        });
        TlsFiles {
            ca: self.ca.clone(),
            own: CertificateFiles {
                certificate: self.certificate.clone(),
                key: self.key.clone(),
            },
            clients,
        }
    }
}

/// How clients say who they are. The files are read again when they change.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthConfig {
    /// A JSON Web Key Set (RFC 7517): whose tokens are taken. Default: nobody's.
    pub jwks: Option<PathBuf>,
    /// What tokens must have as `iss`. Default: anything.
    pub issuer: Option<String>,
    /// What tokens must have as, or among, `aud`. Default: anything.
    pub audience: Option<String>,
    /// How far the clocks of who signs tokens and of the nodes may differ. Default: 30s.
    #[serde(with = "humantime_serde")]
    pub clock_skew: Duration,
    /// Credentials of the product's servers: `carillon server-key` makes its entries. Default:
    /// none.
    pub server_keys: Option<PathBuf>,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            jwks: None,
            issuer: None,
            audience: None,
            clock_skew: Duration::from_secs(30),
            server_keys: None,
        }
    }
}

impl AuthConfig {
    /// The files.
    pub fn files(&self) -> CredentialFiles {
        CredentialFiles {
            jwks: self.jwks.clone(),
            server_keys: self.server_keys.clone(),
        }
    }

    /// What is checked of tokens.
    pub fn rules(&self) -> TokenRules {
        TokenRules {
            issuer: self.issuer.clone(),
            audience: self.audience.clone(),
            clock_skew: self.clock_skew,
        }
    }
}

/// What decides which replicas a node gets.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlacementConfig {
    /// What the node fails together with. A shard's replicas are spread over as many zones as
    /// there are. Default: none, all such nodes are in one.
    pub zone: String,
    /// A file that says which zone each host is in, a line `HOST ZONE` each, in place of `zone`.
    pub zones_file: Option<PathBuf>,
    /// This node's host in it.
    pub host: Option<String>,
    /// The node's share of replicas relative to other nodes', 1 to 10000. Default: 100.
    pub weight: u32,
    /// Bytes that its replicas may take up; nothing new is put there beyond it. Default: no
    /// limit.
    pub capacity_bytes: Option<u64>,
}

impl Default for PlacementConfig {
    fn default() -> Self {
        Self {
            zone: String::new(),
            zones_file: None,
            host: None,
            weight: 100,
            capacity_bytes: None,
        }
    }
}

impl PlacementConfig {
    /// Finds the zone of this node's host.
    fn look_up_zone(&mut self) -> Result<(), ConfigError> {
        let invalid = |field, problem: String| ConfigError::Invalid { field, problem };
        let (file, host) = match (&self.zones_file, &self.host) {
            (Some(file), Some(host)) => (file, host),
            (None, None) => return Ok(()),
            (None, Some(_)) => {
                let problem = "stands without zones_file, which would say where it is";
                return Err(invalid("placement.host", problem.into()));
            }
            (Some(_), None) => {
                let problem = "stands without host, which of them this node is on";
                return Err(invalid("placement.zones_file", problem.into()));
            }
        };
        if !self.zone.is_empty() {
            let problem = "stands beside zones_file; one of them says where the node is";
            return Err(invalid("placement.zone", problem.into()));
        }
        let text = std::fs::read_to_string(file).map_err(|error| {
            let problem = format!("{} cannot be read: {error}", file.display());
            invalid("placement.zones_file", problem)
        })?;
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        let (_, zone) = lines.find(|(name, _)| name == host).ok_or_else(|| {
            let problem = format!("has no line for the host {host}");
            invalid("placement.zones_file", problem)
        })?;
        zone.trim().clone_into(&mut self.zone);
        Ok(())
    }
}

/// The shape of the cluster, replicated at its first start.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterShape {
    /// Raft groups that the 4096 slots are split over, 1 to 4095. Default: 16.
    pub shards: u32,
    /// Replicas of each shard, 1 to 7, at most the number of nodes. Default: 3.
    pub replication_factor: u32,
}

impl Default for ClusterShape {
    fn default() -> Self {
        Self {
            shards: 16,
            replication_factor: 3,
        }
    }
}

/// Timing and sizes of replication.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RaftConfig {
    /// A leader is heard from at least this often. Default: 150ms.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// A follower waits at least this long for a leader before it asks to be one; more
    /// than three heartbeats. Default: 500ms.
    #[serde(with = "humantime_serde")]
    pub election_min: Duration,
    /// And at most this long. A silent leader is replaced after about twice this.
    /// Default: 600ms.
    #[serde(with = "humantime_serde")]
    pub election_max: Duration,
    /// A shard goes back to the node that is to lead it when that node has been reachable,
    /// and another has led, for this long. Default: 10s.
    #[serde(with = "humantime_serde")]
    pub leader_return_after: Duration,
    /// Paces log entries under load: the shards of a node propose together and then gather
    /// commands for as many times this as they made entries, or for as long as an entry
    /// takes to be applied if that is longer. It goes on earlier when everything proposed
    /// is applied and at least 48 commands wait for each shard that has some. The first
    /// command after a pause never waits. Default: 2ms.
    #[serde(with = "humantime_serde")]
    pub entry_interval: Duration,
    /// Commands are never gathered for longer than this. Default: 40ms.
    #[serde(with = "humantime_serde")]
    pub batch_interval_max: Duration,
    /// Log entries of one shard proposed and not applied, at most. Default: 4.
    pub entries_in_flight_max: usize,
    /// Bytes of commands in one log entry, at most; while one is applied, its thread does
    /// nothing else. Default: 262144.
    pub entry_bytes_max: usize,
    /// Commands that wait to be proposed in one shard, at most; over it callers get
    /// RESOURCE_EXHAUSTED. Default: 8192.
    pub proposals_waiting_max: usize,
}

impl Default for RaftConfig {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(150),
            election_min: Duration::from_millis(500),
            election_max: Duration::from_millis(600),
            leader_return_after: Duration::from_secs(10),
            entry_interval: Duration::from_millis(2),
            batch_interval_max: Duration::from_millis(40),
            entries_in_flight_max: 4,
            entry_bytes_max: 256 << 10,
            proposals_waiting_max: 8_192,
        }
    }
}

impl RaftConfig {
    /// The timing of a group.
    pub fn group_options(&self) -> carillon_raft::GroupOptions {
        carillon_raft::GroupOptions {
            heartbeat: self.heartbeat,
            election_timeout_min: self.election_min,
            election_timeout_max: self.election_max,
            ..carillon_raft::GroupOptions::default()
        }
    }
}

/// Sizes of the Raft log.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Bytes of one preallocated segment file. Default: 67108864.
    pub segment_bytes: u64,
    /// Bytes of entries kept in memory, all shards together. Default: 268435456.
    pub memory_bytes_max: usize,
    /// The state is flushed and the log purged when this many bytes were appended since
    /// the last time. Default: 134217728.
    pub flush_after_bytes: u64,
    /// Or when this much time has passed since then and something was written.
    /// Default: 5m.
    #[serde(with = "humantime_serde")]
    pub flush_after: Duration,
    /// Entries of each shard that are kept at most behind what is flushed, so that a replica
    /// that was away for a moment needs no snapshot. Default: 65536.
    pub entries_kept: u64,
    /// And bytes of them at most, unless a quarter of the shard's state is more: to send the
    /// state takes less than to apply so much again. Default: 16777216.
    pub bytes_kept: u64,
}

impl LogConfig {
    /// How the log of a node with this data directory is opened.
    pub fn options(&self, data_dir: &Path) -> LogOptions {
        LogOptions {
            segment_bytes: self.segment_bytes,
            memory_tail_bytes_max: self.memory_bytes_max as u64,
            ..LogOptions::new(data_dir.join("log"))
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            memory_bytes_max: 256 << 20,
            flush_after_bytes: 128 << 20,
            flush_after: Duration::from_secs(300),
            entries_kept: 65_536,
            bytes_kept: 16 << 20,
        }
    }
}

/// Sizes of the state store.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// Bytes of state gathered in memory before they are flushed, about. Default: 33554432.
    pub memtable_bytes: usize,
    /// Bytes of the block cache. Default: 268435456.
    pub block_cache_bytes: usize,
    /// Bytes per second that flushes and compactions write together at most; a twentieth of it
    /// while little is to be written. Default: 320000000.
    pub background_write_bytes_per_s: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            memtable_bytes: 32 << 20,
            block_cache_bytes: 256 << 20,
            background_write_bytes_per_s: 320_000_000,
        }
    }
}

/// The disk of a node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiskConfig {
    /// What is kept free for what goes on when the disk is nearly full, bytes. Below it the node
    /// takes no commands and gives its leads to others. 0: a fiftieth of the disk, at most 4 GiB,
    /// at least `log.segment_bytes` and four times `store.memtable_bytes`, but no more than an
    /// eighth. Default: 0.
    pub reserve_bytes: u64,
}

/// What clients may ask for. Limits that are part of the protocol are constants.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientConfig {
    /// Streams must send something this often; told to them in Welcome. Default: 15s.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// A stream must say hello, and a connection must begin to speak HTTP/2, within this. Default: 10s.
    #[serde(with = "humantime_serde")]
    pub hello_timeout: Duration,
    /// Connections at a time, at most; over it they are closed at once. Default: 65536.
    pub connections_max: usize,
    /// Streams and waiting calls at a time, at most; over it RESOURCE_EXHAUSTED.
    /// Default: 65536.
    pub sessions_max: usize,
    /// Bytes queued for one stream that does not read; over it Resync. Default: 1048576.
    pub session_queue_bytes_max: usize,
    /// How long a call without a deadline may take. Default: 10s.
    #[serde(with = "humantime_serde")]
    pub call_timeout: Duration,
    /// When the node is drained, its streams are told to connect elsewhere one after the other
    /// over this time. Default: 10s.
    #[serde(with = "humantime_serde")]
    pub drain_spread: Duration,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(15),
            hello_timeout: Duration::from_secs(10),
            connections_max: 65_536,
            sessions_max: 65_536,
            session_queue_bytes_max: 1 << 20,
            call_timeout: Duration::from_secs(10),
            drain_spread: Duration::from_secs(10),
        }
    }
}

/// Logs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Logging {
    /// A tracing filter, for example `info,carillon_node=debug`. Default: `info,openraft=error`.
    pub filter: String,
    /// `text` or `json`. Default: `text`.
    pub format: LogFormat,
}

impl Default for Logging {
    fn default() -> Self {
        Self {
            filter: "info,openraft=error".to_owned(),
            format: LogFormat::Text,
        }
    }
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// The way of messages through the cluster, as traces of OpenTelemetry. To be the same on all
/// nodes, or traces have gaps.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TracingConfig {
    /// Where a collector takes OTLP over gRPC, `http://HOST:PORT`. Default: nowhere, nothing is
    /// traced.
    pub otlp_endpoint: Option<String>,
    /// The share of messages that are traced, 0 to 1. Default: 0.001.
    pub sample_ratio: f64,
}

impl Default for TracingConfig {
    fn default() -> Self {
        Self {
            otlp_endpoint: None,
            sample_ratio: 0.001,
        }
    }
}

fn default_cluster_version_max() -> u32 {
    ClusterVersion::MAX.0
}

fn default_shutdown_timeout() -> Duration {
    Duration::from_secs(30)
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It could not be read, or a field is unknown, missing or of the wrong type.
    #[error("configuration {path} cannot be used")]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: config::ConfigError,
    },
    /// A field has a value that cannot work.
    #[error("configuration field {field}: {problem}")]
    Invalid {
        /// The field's path.
        field: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
}

impl Config {
    /// Reads `path`, applies the environment and checks the whole.
    pub fn load(path: &Path, mode: Mode) -> Result<Self, ConfigError> {
        let environment = config::Environment::with_prefix(ENVIRONMENT_PREFIX);
        Self::load_with(path, environment, mode)
    }

    fn load_with(
        path: &Path,
        environment: config::Environment,
        mode: Mode,
    ) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        let mut config: Self = config::Config::builder()
            .add_source(config::File::from(path).format(config::FileFormat::Toml))
            .add_source(
                environment
                    .prefix_separator("__")
                    .separator("__")
                    .try_parsing(true),
            )
            .build()
            .and_then(config::Config::try_deserialize)
            .map_err(read)?;
        config.placement.look_up_zone()?;
        config.validate(mode)?;
        Ok(config)
    }

    /// This node's id.
    pub fn node(&self) -> NodeId {
        NodeId(self.node_id)
    }

    /// The versions of the cluster that this node supports.
    pub fn supported(&self) -> Supported {
        Supported::up_to(ClusterVersion(self.cluster_version_max))
    }

    /// Where clients reach this node.
    pub fn client_address(&self) -> String {
        self.advertise
            .client
            .clone()
            .unwrap_or_else(|| self.listen.client.to_string())
    }

    /// Where other nodes reach this node.
    pub fn peer_address(&self) -> String {
        self.advertise
            .peer
            .clone()
            .unwrap_or_else(|| self.listen.peer.to_string())
    }

    /// This node as the cluster's registry has it.
    pub fn node_info(&self, identity: &str) -> NodeInfo {
        NodeInfo {
            node_id: self.node(),
            identity: identity.to_owned(),
            client_address: self.client_address(),
            peer_address: self.peer_address(),
            zone: Zone(self.placement.zone.clone()),
            weight: self.placement.weight,
            capacity_bytes: self.placement.capacity_bytes.unwrap_or(u64::MAX),
        }
    }
}

#[cfg(test)]
mod tests;
