//! The cluster of these tests, and whether it is still well.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use carillon_tests::harness::{Cluster, ClusterOptions, raise_open_files, shared_cluster};
use carillon_tests::rpc;
use carillon_tests::session::Session;
use tokio::sync::{Mutex, MutexGuard};

/// A connection that says nothing is closed after this: long enough to have 10,000 of them
/// at the same time.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(12);
const CONFIG: &str = "\n[clients]\nhello_timeout = \"12s\"\n";
/// Files that this process and each node may open: 10,000 connections and some more.
pub const OPEN_FILES: u64 = 16_384;

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The cluster that all tests here share, one test at a time: what one of them leaves
/// open must not be counted by another.
pub async fn cluster() -> Result<(&'static Cluster, MutexGuard<'static, ()>)> {
    let alone = ONE_AT_A_TIME.lock().await;
    let allowed = raise_open_files(OPEN_FILES)?;
    ensure!(
        allowed >= OPEN_FILES,
        "this test needs {OPEN_FILES} open files, the system allows {allowed} (ulimit -n)"
    );
    let options = ClusterOptions {
        extra_config: CONFIG.to_owned(),
        ..ClusterOptions::default()
    };
    Ok((shared_cluster(options).await?, alone))
}

/// A user id that no other test has.
pub fn user(name: &str) -> String {
    format!("{name}.{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// All nodes run and none has panicked; two users exchange a message through each node.
pub async fn assert_well(cluster: &Cluster) -> Result<()> {
    for id in cluster.node_ids() {
        let node = cluster.node(id);
        ensure!(node.is_up(), "node {id} has ended");
        ensure!(!node.log_text().contains("panic"), "node {id} has panicked");
        let (alice, bob) = (user("alice"), user("bob"));
        let direct = rpc::direct_id(&alice, &bob);
        let address = &node.addresses().client;
        let (mut sender, _) = Session::open(address, &alice, "phone", None).await?;
        let other = &cluster.node(id % 3 + 1).addresses().client;
        let (mut receiver, _) = Session::open(other, &bob, "phone", None).await?;
        sender.say(&direct, "m", "are you well?").await?;
        ensure!(receiver.delivery().await?.inbox_seq == 1);
    }
    Ok(())
}
