//! The configuration of a test cluster: ports, `node.toml`, where the binary is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};

use anyhow::{Context as _, Result, bail};
use rand::Rng as _;

use super::network::Network;
use super::secured::Secured;

/// Ports are taken from here: below the range that Linux gives to outgoing connections
/// (32,768 and up), so that no client can take the port of a node that is down.
const PORTS: std::ops::Range<u16> = 12_000..32_000;
/// Ports that were given to a node. None is given twice: its node may be down just now.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
/// Where this process has its nodes; other processes have theirs elsewhere on the loopback
/// network, and so cannot take the port of one that is down.
pub static LOOPBACK: LazyLock<Ipv4Addr> =
    LazyLock::new(|| Ipv4Addr::new(127, rand::rng().random_range(1..255), rand::random(), 1));
/// Tries to find a free port.
const PORT_TRIES_MAX: u32 = 1_000;

/// A file system in memory for one node's data, so that its disk can be full.
#[derive(Debug, Clone, Copy)]
pub struct SmallDisk {
    /// Which node.
    pub node: u64,
    /// How large its disk is, bytes.
    pub size_bytes: u64,
}

/// What is different at one node.
#[derive(Debug, Clone, Default)]
pub struct NodeOptions {
    /// Another build of the node.
    pub binary: Option<PathBuf>,
    /// More environment.
    pub env: BTreeMap<String, String>,
    /// A `.tar.gz` with the data directory that it starts on; else an empty one.
    pub data: Option<PathBuf>,
}

/// What cluster to start.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// How many nodes; their ids are 1, 2, 3 …
    pub nodes: u64,
    /// Shards without the meta group.
    pub shards: u32,
    /// Replicas of each shard.
    pub replication_factor: u32,
    /// Appended to each node.toml.
    pub extra_config: String,
    /// Environment of all nodes.
    pub env: BTreeMap<String, String>,
    /// What is different at some nodes, by id.
    pub per_node: BTreeMap<u64, NodeOptions>,
    /// Nodes with small disks.
    pub small_disks: Vec<SmallDisk>,
    /// Gives each node a network namespace of its own, so that links can be cut. A cluster with
    /// one is started inside [`Network::run`].
    pub network: Option<Network>,
    /// Certificates and keys; without them the nodes run in development mode.
    pub secured: Option<Arc<Secured>>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            nodes: 3,
            shards: 16,
            replication_factor: 3,
            extra_config: String::new(),
            env: BTreeMap::new(),
            per_node: BTreeMap::new(),
            small_disks: Vec::new(),
            network: None,
            secured: None,
        }
    }
}

/// The addresses of one node, host:port.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// gRPC for clients and operators.
    pub client: String,
    /// Between nodes.
    pub peer: String,
    /// Metrics and probes.
    pub http: String,
}

impl Addresses {
    /// Those of a node that has all ports of its IP to itself.
    pub fn at(ip: Ipv4Addr) -> Self {
        let at = |port| format!("{ip}:{port}");
        Self {
            client: at(PORTS.start),
            peer: at(PORTS.start + 1),
            http: at(PORTS.start + 2),
        }
    }
}

/// The addresses of the nodes with these ids: in the network, or on free ports of the host.
pub fn addresses(ids: RangeInclusive<u64>, network: Option<&Network>) -> Result<Vec<Addresses>> {
    match network {
        Some(network) => ids.map(|id| Ok(Addresses::at(network.ip(id)?))).collect(),
        None => free_addresses(ids.count()),
    }
}

/// Finds free ports for so many nodes.
fn free_addresses(nodes: usize) -> Result<Vec<Addresses>> {
    let address = || -> Result<String> {
        for _ in 0..PORT_TRIES_MAX {
            let port = rand::rng().random_range(PORTS);
            let free = TcpListener::bind((*LOOPBACK, port)).is_ok();
            if free && GIVEN.lock().is_ok_and(|mut given| given.insert(port)) {
                return Ok(format!("{}:{port}", *LOOPBACK));
            }
        }
        bail!("no free port in {PORTS:?} after {PORT_TRIES_MAX} tries")
    };
    (0..nodes)
        .map(|_| {
            Ok(Addresses {
                client: address()?,
                peer: address()?,
                http: address()?,
            })
        })
        .collect()
}

/// What every node's `node.toml` has.
fn head(data_dir: &Path, own: &Addresses) -> String {
    format!(
        "cluster_name = \"test\"\n\
         data_dir = {:?}\n\
         \n\
         [listen]\n\
         client = \"{}\"\n\
         peer = \"{}\"\n\
         http = \"{}\"\n",
        data_dir.display().to_string(),
        own.client,
        own.peer,
        own.http,
    )
}

/// Writes a node's `node.toml`.
pub fn write_node_toml(
    path: &Path,
    node_id: u64,
    data_dir: &Path,
    all: &[Addresses],
    options: &ClusterOptions,
) -> Result<()> {
    let own = usize::try_from(node_id - 1)
        .ok()
        .and_then(|index| all.get(index))
        .context("a node without addresses")?;
    let mut text = format!("node_id = {node_id}\n{}", head(data_dir, own));
    for (index, addresses) in all.iter().enumerate() {
        write!(
            text,
            "\n[[initial_peers]]\n\
             node_id = {}\n\
             peer_address = \"{}\"\n\
             client_address = \"{}\"\n",
            index + 1,
            addresses.peer,
            addresses.client,
        )?;
    }
    write!(
        text,
        "\n[cluster]\nshards = {}\nreplication_factor = {}\n{}{}",
        options.shards,
        options.replication_factor,
        options.extra_config,
        security(options),
    )?;
    std::fs::write(path, text).with_context(|| format!("could not write {}", path.display()))
}

/// The sections of certificates and keys.
fn security(options: &ClusterOptions) -> String {
    let secured = options.secured.as_ref();
    secured.map(|secured| secured.config()).unwrap_or_default()
}

/// Writes the `node.toml` of a node that joins a cluster.
pub fn write_joining_toml(
    path: &Path,
    data_dir: &Path,
    own: &Addresses,
    peers: &[String],
    token: &str,
    options: &ClusterOptions,
) -> Result<()> {
    let text = format!(
        "{}\n[join]\npeers = {peers:?}\ntoken = {token:?}\n{}{}",
        head(data_dir, own),
        options.extra_config,
        security(options),
    );
    std::fs::write(path, text).with_context(|| format!("could not write {}", path.display()))
}

/// The `carillon-node` binary: `CARILLON_NODE_BIN`, or the one that was built beside this
/// test (`<target>/release/deps/<test>` and `<target>/release/carillon-node`).
pub fn node_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("CARILLON_NODE_BIN") {
        return Ok(PathBuf::from(path));
    }
    let test = std::env::current_exe()?;
    let beside = test
        .parent()
        .and_then(Path::parent)
        .context("the test executable has no directory")?
        .join("carillon-node");
    if !beside.is_file() {
        bail!(
            "no carillon-node at {}: build it first (cargo build --release -p carillon-node) or \
             set CARILLON_NODE_BIN",
            beside.display()
        );
    }
    Ok(beside)
}
