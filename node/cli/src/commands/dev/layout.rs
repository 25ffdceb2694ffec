//! The files and ports of a development cluster.
//!
//! Owner of the data directory: `dev.lock` (held while a cluster runs in it),
//! `cluster.toml` (what it was made with), `node-N/` (node N's configuration, log, data).

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::failure::advised;

const LOCK_FILE: &str = "dev.lock";
const SHAPE_FILE: &str = "cluster.toml";
const CLUSTER_NAME: &str = "dev";
const REPLICATION_FACTOR_MAX: u16 = 3;

/// What a cluster is made with; fixed for the life of its data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    pub nodes: u16,
    pub shards: u16,
    pub port_base: u16,
}

/// One node of it.
#[derive(Debug, Clone)]
pub struct NodePlan {
    pub node_id: u64,
    pub dir: PathBuf,
    client: SocketAddr,
    peer: SocketAddr,
    http: SocketAddr,
}

impl NodePlan {
    pub fn client_address(&self) -> String {
        self.client.to_string()
    }

    pub fn peer_address(&self) -> String {
        self.peer.to_string()
    }

    pub fn http_address(&self) -> String {
        self.http.to_string()
    }

    fn listen(&self) -> Listen {
        Listen {
            client: self.client,
            peer: self.peer,
            http: self.http,
        }
    }

    pub fn config_path(&self) -> PathBuf {
        self.dir.join("node.toml")
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.join("node.log")
    }
}

/// What a node reads; the server documents the fields.
#[derive(Debug, Serialize)]
struct NodeConfig<'a> {
    node_id: u64,
    cluster_name: &'a str,
    data_dir: &'a Path,
    listen: Listen,
    cluster: ClusterConfig,
    initial_peers: Vec<Peer>,
}

#[derive(Debug, Serialize)]
struct JoiningConfig<'a> {
    cluster_name: &'a str,
    data_dir: &'a Path,
    listen: Listen,
    join: Join<'a>,
}

#[derive(Debug, Serialize)]
struct Join<'a> {
    peers: &'a [String],
    token: &'a str,
}

#[derive(Debug, Serialize)]
struct Listen {
    client: SocketAddr,
    peer: SocketAddr,
    http: SocketAddr,
}

#[derive(Debug, Serialize)]
struct ClusterConfig {
    shards: u16,
    replication_factor: u16,
}

#[derive(Debug, Serialize)]
struct Peer {
    node_id: u64,
    peer_address: SocketAddr,
    client_address: SocketAddr,
}

/// `carillon/dev` under the user's data directory, as the XDG rules have it.
pub fn default_data_dir() -> anyhow::Result<PathBuf> {
    let absolute = |name| {
        let dir = PathBuf::from(std::env::var_os(name)?);
        dir.is_absolute().then_some(dir)
    };
    let base = absolute("XDG_DATA_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".local").join("share")))
        .ok_or_else(|| {
            advised(
                "found no place for the cluster's data: neither XDG_DATA_HOME nor HOME is set",
                "name a directory with --data",
            )
        })?;
    Ok(base.join("carillon").join("dev"))
}

/// Makes the directory when it is missing, and holds it until the file is dropped.
pub fn lock(dir: &Path) -> anyhow::Result<File> {
    fs::create_dir_all(dir)
        .with_context(|| format!("could not create the data directory {}", dir.display()))?;
    let path = dir.join(LOCK_FILE);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("could not open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only for the message; without it the message says less.
            let _ = file.read_to_string(&mut holder);
            return Err(advised(
                format!(
                    "a cluster is running in {} already (carillon dev, pid {})",
                    dir.display(),
                    holder.trim()
                ),
                "use that one, stop it with Ctrl-C, or name another directory with --data \
                 and other ports with --port-base",
            ));
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("could not lock {}", path.display()));
        }
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .with_context(|| format!("could not write {}", path.display()))?;
    Ok(file)
}

/// Removes the nodes of an earlier run, and nothing else. The directory must be locked.
pub fn remove_nodes(dir: &Path) -> anyhow::Result<()> {
    let doing = || format!("could not remove the old cluster in {}", dir.display());
    for entry in fs::read_dir(dir).with_context(doing)? {
        let path = entry.with_context(doing)?.path();
        // Only what `prepare` has made carries a node.toml.
        let ours = path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with("node-"));
        if ours && path.join("node.toml").is_file() {
            fs::remove_dir_all(&path)
                .with_context(|| format!("could not remove {}", path.display()))?;
        }
    }
    match fs::remove_file(dir.join(SHAPE_FILE)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(doing),
        _ => Ok(()),
    }
}

/// Writes the nodes' directories and configurations. The directory must be locked.
pub fn prepare(layout: &Layout, dir: &Path) -> anyhow::Result<Vec<NodePlan>> {
    let dir = fs::canonicalize(dir)
        .with_context(|| format!("could not find the data directory {}", dir.display()))?;
    keep_shape(layout, &dir)?;
    let plans = plan(layout, &dir);
    for plan in &plans {
        fs::create_dir_all(&plan.dir)
            .with_context(|| format!("could not create {}", plan.dir.display()))?;
        let path = plan.config_path();
        fs::write(&path, config(layout, plan, &plans)?)
            .with_context(|| format!("could not write {}", path.display()))?;
    }
    Ok(plans)
}

/// A cluster keeps the number of nodes and shards that it was made with.
fn keep_shape(layout: &Layout, dir: &Path) -> anyhow::Result<()> {
    let path = dir.join(SHAPE_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => {
            let made: Layout = toml::from_str(&text)
                .with_context(|| format!("could not understand {}", path.display()))?;
            if made != *layout {
                return Err(advised(
                    format!(
                        "the cluster in {} was made with --nodes {} --shards {} --port-base {}",
                        dir.display(),
                        made.nodes,
                        made.shards,
                        made.port_base
                    ),
                    "give the same again, begin anew with --fresh, or name another directory \
                     with --data",
                ));
            }
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let text = toml::to_string(layout).context("could not describe the cluster")?;
            fs::write(&path, text).with_context(|| format!("could not write {}", path.display()))
        }
        Err(error) => Err(error).with_context(|| format!("could not read {}", path.display())),
    }
}

/// The nodes that the cluster is made with.
pub fn plan(layout: &Layout, dir: &Path) -> Vec<NodePlan> {
    let ids = 1..=u64::from(layout.nodes);
    ids.map(|id| node(layout, dir, id)).collect()
}

/// The node of this number, which is at most 99.
pub fn node(layout: &Layout, dir: &Path, number: u64) -> NodePlan {
    let offset = u16::try_from(number).unwrap_or(u16::MAX);
    let at = |more: u16| {
        let port = layout.port_base.saturating_add(more).saturating_add(offset);
        SocketAddr::from(([127, 0, 0, 1], port))
    };
    NodePlan {
        node_id: number,
        dir: dir.join(format!("node-{number}")),
        client: at(0),
        peer: at(100),
        http: at(200),
    }
}

/// What the cluster in a directory was made with.
pub fn made(dir: &Path) -> anyhow::Result<Layout> {
    let path = dir.join(SHAPE_FILE);
    let text = fs::read_to_string(&path).map_err(|error| {
        advised(
            format!(
                "no cluster is in {}: {}: {error}",
                dir.display(),
                SHAPE_FILE
            ),
            "start one with carillon dev, or name its directory with --data",
        )
    })?;
    toml::from_str(&text).with_context(|| format!("could not understand {}", path.display()))
}

/// Makes a node's directory when it is missing, and holds it until the file is dropped; none
/// when somebody holds it.
pub fn try_lock(dir: &Path) -> anyhow::Result<Option<File>> {
    fs::create_dir_all(dir).with_context(|| format!("could not create {}", dir.display()))?;
    let path = dir.join(LOCK_FILE);
    let file = File::create(&path).with_context(|| format!("could not open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("could not lock {}", path.display()))
        }
    }
}

/// Removes what a node stored. Its directory must be locked.
pub fn remove_node(plan: &NodePlan) -> anyhow::Result<()> {
    let doing = || format!("could not remove the old node in {}", plan.dir.display());
    for entry in fs::read_dir(&plan.dir).with_context(doing)? {
        let path = entry.with_context(doing)?.path();
        if path.is_dir() {
            fs::remove_dir_all(&path).with_context(doing)?;
        } else if path.file_name().is_some_and(|name| name != LOCK_FILE) {
            fs::remove_file(&path).with_context(doing)?;
        }
    }
    Ok(())
}

/// Writes the configuration of a node that joins.
pub fn write_joining(plan: &NodePlan, peers: &[String], token: &str) -> anyhow::Result<()> {
    let config = JoiningConfig {
        cluster_name: CLUSTER_NAME,
        data_dir: &plan.dir,
        listen: plan.listen(),
        join: Join { peers, token },
    };
    let text = toml::to_string(&config).context("could not write the node's configuration")?;
    let path = plan.config_path();
    fs::write(
        &path,
        format!("# Written by carillon dev --join at every start.\n{text}"),
    )
    .with_context(|| format!("could not write {}", path.display()))
}

fn config(layout: &Layout, plan: &NodePlan, plans: &[NodePlan]) -> anyhow::Result<String> {
    let peers = plans.iter().map(|peer| Peer {
        node_id: peer.node_id,
        peer_address: peer.peer,
        client_address: peer.client,
    });
    let config = NodeConfig {
        node_id: plan.node_id,
        cluster_name: CLUSTER_NAME,
        data_dir: &plan.dir,
        listen: plan.listen(),
        cluster: ClusterConfig {
            shards: layout.shards,
            replication_factor: layout.nodes.min(REPLICATION_FACTOR_MAX),
        },
        initial_peers: peers.collect(),
    };
    let text = toml::to_string(&config)
        .with_context(|| format!("could not write the configuration of node {}", plan.node_id))?;
    Ok(format!("# Written by carillon dev at every start.\n{text}"))
}

/// Refuses to start when something else listens where a node would.
pub fn check_ports(plans: &[NodePlan]) -> anyhow::Result<()> {
    for plan in plans {
        for (what, address) in [
            ("clients", plan.client),
            ("peers", plan.peer),
            ("HTTP", plan.http),
        ] {
            if let Err(error) = TcpListener::bind(address) {
                return Err(advised(
                    format!(
                        "node {} cannot have {address} for {what}: {error}",
                        plan.node_id
                    ),
                    "stop what listens there, perhaps another cluster, or choose other ports \
                     with --port-base",
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let random: u64 = rand::random();
            let dir = std::env::temp_dir().join(format!("carillon-dev-{name}-{random:x}"));
            fs::create_dir_all(&dir).expect("scratch directory");
            Self(dir)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn layout() -> Layout {
        Layout {
            nodes: 3,
            shards: 16,
            port_base: 7400,
        }
    }

    #[test]
    fn the_configuration_is_what_the_server_reads() {
        let scratch = Scratch::new("config");
        let plans = prepare(&layout(), &scratch.0).expect("prepared");
        let text = fs::read_to_string(plans[1].config_path()).expect("written");
        let value: toml::Table = toml::from_str(&text).expect("TOML");
        assert_eq!(value["node_id"].as_integer(), Some(2));
        assert_eq!(value["listen"]["client"].as_str(), Some("127.0.0.1:7402"));
        assert_eq!(value["listen"]["peer"].as_str(), Some("127.0.0.1:7502"));
        assert_eq!(value["listen"]["http"].as_str(), Some("127.0.0.1:7602"));
        assert_eq!(value["cluster"]["shards"].as_integer(), Some(16));
        assert_eq!(value["cluster"]["replication_factor"].as_integer(), Some(3));
        let peers = value["initial_peers"].as_array().expect("a list");
        assert_eq!(peers.len(), 3);
        assert_eq!(peers[2]["peer_address"].as_str(), Some("127.0.0.1:7503"));
        assert!(Path::new(value["data_dir"].as_str().expect("a path")).is_absolute());
    }

    #[test]
    fn a_cluster_keeps_its_shape_until_it_is_fresh() {
        let scratch = Scratch::new("shape");
        prepare(&layout(), &scratch.0).expect("prepared");
        prepare(&layout(), &scratch.0).expect("prepared again");
        let other = Layout {
            shards: 4,
            ..layout()
        };
        let error = prepare(&other, &scratch.0).expect_err("refused");
        assert!(error.to_string().contains("--shards 16"), "{error}");
        fs::write(scratch.0.join("mine.txt"), "kept").expect("written");
        fs::create_dir(scratch.0.join("node-notes")).expect("made");
        remove_nodes(&scratch.0).expect("removed");
        prepare(&other, &scratch.0).expect("made anew");
        assert!(scratch.0.join("mine.txt").exists() && scratch.0.join("node-notes").exists());
    }

    #[test]
    fn one_cluster_at_a_time_runs_in_a_directory() {
        let scratch = Scratch::new("lock");
        let first = lock(&scratch.0).expect("locked");
        let error = lock(&scratch.0).expect_err("refused").to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        lock(&scratch.0).expect("free again");
    }

    #[test]
    fn a_taken_port_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("bound");
        let mut plans = plan(&layout(), Path::new("/"));
        plans.truncate(1);
        plans[0].client = address;
        let error = check_ports(&plans).expect_err("refused").to_string();
        assert!(error.contains(&address.to_string()), "{error}");
    }
}
