//! A cluster of real node processes on loopback that a test may hurt.
//!
//! Owns the processes, their configuration, data and logs (one temporary directory for a
//! cluster, removed with it). One cluster at a time runs in a test process: whoever starts
//! one waits until the one before is gone, so that timing means something.

mod admin;
mod config;
mod disk;
pub mod http;
mod network;
mod os;
mod process;
mod secured;
mod shared;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep};

pub use admin::MergeEnd;
pub use config::{Addresses, ClusterOptions, NodeOptions, SmallDisk};
pub use disk::{fill_but_for, may_mount};
pub use http::get as http_get;
pub use network::Network;
pub use os::{Signal, raise_open_files};
pub use process::Process;
pub use secured::{Authority, Issued, Secured, since_epoch};
pub use shared::shared_cluster;

/// From the start of all nodes until all are ready.
pub const START_LIMIT: Duration = Duration::from_secs(40);
/// From the start of one node of a running cluster until it is ready.
pub const RESTART_LIMIT: Duration = Duration::from_secs(40);
/// From SIGTERM until the process is gone.
pub const GRACEFUL_STOP_LIMIT: Duration = Duration::from_secs(20);
/// Between two looks at something that has no event.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long a single probe may take.
const PROBE_LIMIT: Duration = Duration::from_secs(2);
/// What is asked beside a node has an answer by then.
const BESIDE_LIMIT: Duration = Duration::from_secs(60);
/// Starts of a whole cluster when a port was taken in between.
const START_TRIES_MAX: u32 = 3;
/// Lines of each node's log that a failed test prints.
const LOG_LINES_PRINTED: usize = 60;

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// One node of a cluster.
#[derive(Debug)]
pub struct Node {
    id: u64,
    addresses: Addresses,
    config: PathBuf,
    data_dir: PathBuf,
    log: PathBuf,
    process: Option<Process>,
    /// Frozen by SIGSTOP.
    frozen: bool,
}

impl Node {
    /// Its id.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its addresses.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Where its data is.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// True while its process runs and is not frozen.
    pub fn is_up(&self) -> bool {
        let running = self.process.as_ref().map(Process::exit_status);
        running == Some(None) && !self.frozen
    }

    /// Everything that it has written to its log.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process.
    pub fn process(&self) -> Result<&Process> {
        self.process
            .as_ref()
            .with_context(|| format!("node {} is not running", self.id))
    }
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    /// What nodes that were taken out had logged.
    gone: Vec<(u64, String)>,
    options: ClusterOptions,
    mounts: Vec<PathBuf>,
    // Dropped after the processes have ended.
    dir: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Starts a cluster and waits until every node is ready and every shard is led.
    pub async fn start(options: ClusterOptions) -> Result<Self> {
        let alone = ONE_AT_A_TIME.lock().await;
        let mut cluster = Self::prepare(options, alone)?;
        for tried in 1.. {
            match cluster.start_all().await {
                Ok(()) => break,
                Err(_) if tried < START_TRIES_MAX && cluster.lost_a_port() => {
                    cluster.assign_addresses()?;
                }
                Err(error) => {
                    cluster.print_logs();
                    return Err(error);
                }
            }
        }
        Ok(cluster)
    }

    fn prepare(options: ClusterOptions, alone: MutexGuard<'static, ()>) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("carillon-test-")
            .tempdir()?;
        let mut cluster = Self {
            nodes: Vec::new(),
            options,
            gone: Vec::new(),
            mounts: Vec::new(),
            dir,
            _alone: alone,
        };
        cluster.assign_addresses()?;
        for (id, options) in &cluster.options.per_node {
            if let Some(archive) = &options.data {
                os::unpack(archive, &cluster.node(*id).data_dir)?;
            }
        }
        for disk in cluster.options.small_disks.clone() {
            let at = cluster.node(disk.node).data_dir.clone();
            os::mount_tmpfs(&at, disk.size_bytes)
                .with_context(|| format!("could not mount a tmpfs at {}", at.display()))?;
            cluster.mounts.push(at);
        }
        Ok(cluster)
    }

    fn assign_addresses(&mut self) -> Result<()> {
        let ids = 1..=self.options.nodes;
        let all = config::addresses(ids, self.options.network.as_ref())?;
        let mut nodes = Vec::with_capacity(all.len());
        for (id, addresses) in (1..).zip(&all) {
            let home = self.dir.path().join(format!("node-{id}"));
            let data_dir = home.join("data");
            std::fs::create_dir_all(&data_dir)?;
            let config = home.join("node.toml");
            config::write_node_toml(&config, id, &data_dir, &all, &self.options)?;
            nodes.push(Node {
                id,
                addresses: addresses.clone(),
                config,
                data_dir,
                log: home.join("node.log"),
                process: None,
                frozen: false,
            });
        }
        // The processes of the nodes before, if any, end here.
        self.nodes = nodes;
        Ok(())
    }

    async fn start_all(&mut self) -> Result<()> {
        for id in self.node_ids() {
            self.spawn(id, &[])?;
        }
        let deadline = Instant::now() + START_LIMIT;
        for id in self.node_ids() {
            self.wait_ready(id, deadline - Instant::now()).await?;
        }
        self.wait_all_led(deadline - Instant::now()).await
    }

    fn lost_a_port(&self) -> bool {
        self.nodes.iter().any(|node| {
            !node.is_up()
                && node
                    .log_text()
                    .to_lowercase()
                    .contains("address already in use")
        })
    }

    /// The ids of all nodes.
    pub fn node_ids(&self) -> Vec<u64> {
        self.nodes.iter().map(Node::id).collect()
    }

    /// The network between the nodes, of a cluster that was started with one.
    pub fn network(&self) -> Result<&Network> {
        let network = self.options.network.as_ref();
        network.context("the cluster has no network of its own")
    }

    /// The ids of the nodes whose process runs.
    pub fn up_ids(&self) -> Vec<u64> {
        let up = self.nodes.iter().filter(|node| node.is_up());
        up.map(Node::id).collect()
    }

    /// One node.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn node(&self, id: u64) -> &Node {
        let node = self.nodes.iter().find(|node| node.id == id);
        node.unwrap_or_else(|| panic!("the cluster has no node {id}"))
    }

    fn node_mut(&mut self, id: u64) -> &mut Node {
        let node = self.nodes.iter_mut().find(|node| node.id == id);
        node.unwrap_or_else(|| panic!("the cluster has no node {id}"))
    }

    /// The client addresses of all nodes, by id.
    pub fn client_addresses(&self) -> Vec<String> {
        let addresses = self.nodes.iter().map(|node| node.addresses.client.clone());
        addresses.collect()
    }

    /// What is different at a node from its next start on.
    pub fn options_of(&mut self, id: u64) -> &mut NodeOptions {
        self.options.per_node.entry(id).or_default()
    }

    /// Starts a node's process with more environment, without waiting for it.
    pub fn spawn(&mut self, id: u64, env: &[(&str, &str)]) -> Result<()> {
        let own = self.options.per_node.get(&id).cloned().unwrap_or_default();
        let binary = own.binary.map_or_else(config::node_binary, Ok)?;
        let mut all: BTreeMap<String, String> = self.options.env.clone();
        if self.options.secured.is_none() {
            // By the environment: a release that does not know of it has no other mode.
            all.insert("CARILLON_DEV".to_owned(), "true".to_owned());
        }
        all.extend(own.env);
        for (name, value) in env {
            all.insert((*name).to_owned(), (*value).to_owned());
        }
        let all: Vec<(String, String)> = all.into_iter().collect();
        let network = self.options.network.as_ref();
        let namespace = network.map(|network| network.of(id)).transpose()?;
        let node = self.node_mut(id);
        if node.process.as_ref().map(Process::exit_status) == Some(None) {
            bail!("node {id} runs already");
        }
        let args = [Path::new("--config"), node.config.as_path()];
        node.process = Some(Process::start(&binary, &args, &all, &node.log, namespace)?);
        node.frozen = false;
        Ok(())
    }

    /// Runs `carillon-node` with a node's configuration and more arguments, beside the node.
    pub async fn beside(&self, id: u64, args: &[&str]) -> Result<std::process::Output> {
        let mut command = tokio::process::Command::new(config::node_binary()?);
        command
            .arg("--config")
            .arg(&self.node(id).config)
            .args(args);
        if self.options.secured.is_none() {
            command.arg("--dev");
        }
        let run = command.kill_on_drop(true).output();
        let output = tokio::time::timeout(BESIDE_LIMIT, run).await;
        Ok(output.with_context(|| format!("{args:?} does not end"))??)
    }

    /// Starts a new node that joins, and waits until it is ready; returns its id, which is the
    /// next one.
    pub async fn join(&mut self) -> Result<u64> {
        let id = self.nodes.iter().map(Node::id).max().unwrap_or(0) + 1;
        let token = self.join_token().await?;
        let mut addresses = config::addresses(id..=id, self.options.network.as_ref())?;
        let addresses = addresses.pop().context("no addresses")?;
        let home = self.dir.path().join(format!("node-{id}"));
        let data_dir = home.join("data");
        std::fs::create_dir_all(&data_dir)?;
        let config = home.join("node.toml");
        let peers = self.nodes.iter().filter(|node| node.is_up());
        let peers: Vec<String> = peers.map(|node| node.addresses.peer.clone()).collect();
        config::write_joining_toml(
            &config,
            &data_dir,
            &addresses,
            &peers,
            &token,
            &self.options,
        )?;
        self.nodes.push(Node {
            id,
            addresses,
            config,
            data_dir,
            log: home.join("node.log"),
            process: None,
            frozen: false,
        });
        self.restart(id).await?;
        Ok(id)
    }

    /// Ends a node for ever: its process is killed and nothing waits for it any more.
    pub async fn remove(&mut self, id: u64) -> Result<()> {
        if self.node(id).is_up() {
            self.kill9(id).await?;
        }
        let log = self.node(id).log_text();
        self.gone.push((id, log));
        self.nodes.retain(|node| node.id != id);
        Ok(())
    }

    /// Starts a node that is down and waits until it is ready.
    pub async fn restart(&mut self, id: u64) -> Result<()> {
        self.spawn(id, &[])?;
        self.wait_ready(id, RESTART_LIMIT).await
    }

    /// Ends a node with SIGKILL.
    pub async fn kill9(&mut self, id: u64) -> Result<()> {
        self.signal(id, Signal::Kill)?;
        self.wait_exit(id, PROBE_LIMIT).await.map(drop)
    }

    /// Freezes a node with SIGSTOP.
    pub fn freeze(&mut self, id: u64) -> Result<()> {
        self.signal(id, Signal::Stop)?;
        self.node_mut(id).frozen = true;
        Ok(())
    }

    /// Thaws a node that was frozen.
    pub fn thaw(&mut self, id: u64) -> Result<()> {
        self.signal(id, Signal::Continue)?;
        self.node_mut(id).frozen = false;
        Ok(())
    }

    /// Asks a node to end with SIGTERM and waits until it has; it must exit with 0.
    pub async fn stop_gracefully(&mut self, id: u64) -> Result<()> {
        self.signal(id, Signal::Term)?;
        let status = self.wait_exit(id, GRACEFUL_STOP_LIMIT).await?;
        if !status.success() {
            bail!("node {id} ended with {status} after SIGTERM");
        }
        Ok(())
    }

    /// Sends a signal to a node's process.
    pub fn signal(&self, id: u64, signal: Signal) -> Result<()> {
        self.node(id).process()?.signal(signal)
    }

    /// Waits until a node's process has ended by itself.
    pub async fn wait_exit(&mut self, id: u64, limit: Duration) -> Result<ExitStatus> {
        let process = self.node_mut(id).process.as_mut();
        let process = process.with_context(|| format!("node {id} is not running"))?;
        let status = process.wait(limit).await;
        status.with_context(|| format!("node {id} did not end"))
    }

    /// Waits until a node says that it is ready.
    pub async fn wait_ready(&self, id: u64, limit: Duration) -> Result<()> {
        let node = self.node(id);
        let deadline = Instant::now() + limit;
        let mut last = String::from("was not asked");
        while Instant::now() < deadline {
            if let Some(status) = node.process()?.exit_status() {
                bail!("node {id} ended with {status} while it started");
            }
            match http_get(&node.addresses.http, "/readyz", PROBE_LIMIT).await {
                Ok((200, _)) => return Ok(()),
                Ok((code, body)) => last = format!("{code} {}", body.trim()),
                Err(error) => last = format!("{error:#}"),
            }
            sleep(POLL_INTERVAL).await;
        }
        bail!("node {id} is not ready after {limit:?}: {last}")
    }

    /// Prints the end of each node's log.
    pub fn print_logs(&self) {
        for (id, log) in &self.gone {
            print_log(*id, "was taken out", log);
        }
        for node in &self.nodes {
            let state = match &node.process {
                None => "never started".to_owned(),
                Some(process) => process
                    .exit_status()
                    .map_or_else(|| "running".to_owned(), |status| status.to_string()),
            };
            print_log(node.id, &state, &node.log_text());
        }
    }
}

fn print_log(id: u64, state: &str, log: &str) {
    // What openraft says step by step is in the kept log, if somebody needs it.
    let own = log.lines().filter(|line| !line.contains(" openraft::"));
    let lines: Vec<&str> = own.collect();
    let from = lines.len().saturating_sub(LOG_LINES_PRINTED);
    eprintln!("---- log of node {id} ({state}), the last lines");
    for line in &lines[from..] {
        eprintln!("{line}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        for node in &mut self.nodes {
            node.process = None;
        }
        for mount in &self.mounts {
            if let Err(error) = os::unmount(mount) {
                eprintln!("could not unmount {}: {error}", mount.display());
            }
        }
        if std::env::var_os("CARILLON_TEST_KEEP").is_some() {
            self.dir.disable_cleanup(true);
            eprintln!("kept: {}", self.dir.path().display());
        }
    }
}
