//! One healthy cluster for all tests of a test executable that do not hurt it.
//!
//! It lives in a static, which is never dropped: its processes die with their threads, and
//! a function that runs at exit removes its directory.

use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Result, anyhow};
use tokio::sync::OnceCell;

use super::{Cluster, ClusterOptions, os};

/// A start that failed is not tried again by every test.
static CLUSTER: OnceCell<Result<Cluster, String>> = OnceCell::const_new();
/// What to end and remove at exit.
static AT_EXIT: Mutex<Option<(Vec<u32>, PathBuf)>> = Mutex::new(None);

/// The shared cluster; the first caller's options count, so use the same everywhere in
/// one test executable.
pub async fn shared_cluster(options: ClusterOptions) -> Result<&'static Cluster> {
    let cluster = CLUSTER
        .get_or_init(async || start(options).await.map_err(|error| format!("{error:#}")))
        .await;
    cluster
        .as_ref()
        .map_err(|error| anyhow!("the shared cluster did not start: {error}"))
}

async fn start(options: ClusterOptions) -> Result<Cluster> {
    let cluster = Cluster::start(options).await?;
    let processes = cluster
        .nodes
        .iter()
        .filter_map(|node| node.process.as_ref());
    let pids = processes.map(super::Process::pid).collect();
    if let Ok(mut at_exit) = AT_EXIT.lock() {
        *at_exit = Some((pids, cluster.dir.path().to_owned()));
    }
    os::at_exit(clean_up)?;
    Ok(cluster)
}

extern "C" fn clean_up() {
    let Some(Ok(cluster)) = CLUSTER.get() else {
        return;
    };
    let Some((pids, dir)) = AT_EXIT.lock().ok().and_then(|mut at_exit| at_exit.take()) else {
        return;
    };
    for node in &cluster.nodes {
        if let Some(process) = node.process.as_ref().filter(|p| pids.contains(&p.pid())) {
            // It may have ended: then there is nothing to do.
            let _ = process.signal(os::Signal::Kill);
        }
    }
    if std::env::var_os("CARILLON_TEST_KEEP").is_none() {
        // Best effort: what stays is in the temporary directory.
        let _ = std::fs::remove_dir_all(dir);
    }
}
