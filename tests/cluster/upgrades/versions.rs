//! A cluster goes from one version to the next while people chat: its nodes are exchanged one by
//! one, there and back and there again, and nothing acknowledged is lost, doubled or out of order.
//! Only when the upgrade is finalized there is more that it does, and no way back.
//!
//! The older node is this build, held at the version before, or with `CARILLON_PREVIOUS_NODE_BIN`
//! the build of the release before.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use carillon_proto::admin::SetPolicyRequest;
use carillon_tests::harness::{Cluster, ClusterOptions, NodeOptions, RESTART_LIMIT};
use carillon_tests::load::Load;
use carillon_tests::scenario::Scenario;

/// Messages that show that the cluster goes on.
const SOME_MESSAGES: u64 = 200;
/// How long they may take.
const PROGRESS_LIMIT: Duration = Duration::from_secs(30);
/// How long a split may take under load.
const SPLIT_LIMIT: Duration = Duration::from_secs(30);
const SHARDS: u32 = 4;
/// The version of the cluster that the older node knows, and the one that both are to get to.
const BEFORE: u32 = 1;
const AFTER: u32 = 2;
/// Names another build.
const PREVIOUS_BINARY: &str = "CARILLON_PREVIOUS_NODE_BIN";

/// This build, as if it were the one before.
fn held_back() -> NodeOptions {
    let name = "CARILLON_NODE__CLUSTER_VERSION_MAX".to_owned();
    NodeOptions {
        env: [(name, BEFORE.to_string())].into(),
        ..NodeOptions::default()
    }
}

fn scenario(name: &'static str, older: &NodeOptions) -> Scenario {
    let mut scenario = Scenario::new(name);
    scenario.limit = Duration::from_secs(400);
    scenario.cluster = ClusterOptions {
        shards: SHARDS,
        extra_config: "\n[log]\nentries_kept = 0\nflush_after_bytes = 200000\n".to_owned(),
        per_node: (1..=3).map(|node| (node, older.clone())).collect(),
        ..ClusterOptions::default()
    };
    scenario
}

/// Exchanges a node's build: in order, or by a crash.
async fn exchange(cluster: &mut Cluster, node: u64, with: &NodeOptions, crash: bool) -> Result<()> {
    if crash {
        cluster.kill9(node).await?;
    } else {
        cluster.stop_gracefully(node).await?;
    }
    *cluster.options_of(node) = with.clone();
    cluster.restart(node).await?;
    cluster.wait_all_led(RESTART_LIMIT).await
}

/// Exchanges all nodes, one after the other.
async fn roll(cluster: &mut Cluster, load: &Load, with: &NodeOptions, crash: bool) -> Result<()> {
    for node in cluster.node_ids() {
        exchange(cluster, node, with, crash)
            .await
            .with_context(|| format!("node {node} gets another build"))?;
        load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
            .await?;
    }
    Ok(())
}

/// That a call is refused, for this reason.
fn refused<T>(answer: Result<T>, reason: &str) -> Result<()> {
    let error = answer.err().context("it was not refused")?;
    let status = error.downcast_ref::<tonic::Status>();
    let details = String::from_utf8_lossy(status.context("no status")?.details()).into_owned();
    ensure!(
        details.contains(reason),
        "not {reason}: {error:#} {details}"
    );
    Ok(())
}

async fn version(cluster: &Cluster, node: u64) -> Result<u32> {
    Ok(cluster.overview(node).await?.cluster_version)
}

/// What a cluster goes through from `older` nodes to those of this build.
async fn there_and_back(cluster: &mut Cluster, load: &Load, older: &NodeOptions) -> Result<()> {
    let newer = NodeOptions::default();
    // Both kinds in one cluster.
    exchange(cluster, 1, &newer, false).await?;
    ensure!(version(cluster, 1).await? == BEFORE, "it rose by itself");
    let hindrances = cluster.overview(1).await?.upgrade_hindrances;
    ensure!(hindrances.len() == 2, "{hindrances:?}");
    refused(cluster.finalize_upgrade(1).await, "UPGRADE_HINDERED")?;
    refused(cluster.split(1).await, "UPGRADE_NOT_FINALIZED")?;
    load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
        .await?;
    // Each leads what the other follows, the meta group too.
    cluster.transfer(0, 1).await?;
    cluster.transfer(1, 1).await?;
    cluster.transfer(2, 2).await?;
    load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
        .await?;

    roll(cluster, load, &newer, false).await?;
    // Until it is finalized the older ones read all that there is.
    roll(cluster, load, older, true).await?;
    roll(cluster, load, &newer, true).await?;

    refused(cluster.split(1).await, "UPGRADE_NOT_FINALIZED")?;
    let later = SetPolicyRequest {
        shard_gib_max: Some(64),
        ..SetPolicyRequest::default()
    };
    refused(
        cluster.set_policy(later.clone()).await,
        "UPGRADE_NOT_FINALIZED",
    )?;
    let hindrances = cluster.overview(2).await?.upgrade_hindrances;
    ensure!(hindrances.is_empty(), "{hindrances:?}");
    ensure!(cluster.finalize_upgrade(2).await?, "nothing was finalized");
    ensure!(!cluster.finalize_upgrade(2).await?, "finalized twice");
    ensure!(version(cluster, 2).await? == AFTER, "it is not there");
    cluster.set_policy(later).await?;
    cluster.split(1).await?;
    cluster.wait_split(SHARDS as usize + 1, SPLIT_LIMIT).await?;
    let events = cluster.events().await?;
    let raised = events
        .iter()
        .find(|event| event.text.contains("at version"));
    let raised = raised.context("nobody was told")?;
    ensure!(raised.by == "the tests", "by {}", raised.by);
    load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
}

/// An older node is not started in a cluster that has gone on; then the newer one is again.
async fn is_refused(cluster: &mut Cluster, node: u64, older: &NodeOptions) -> Result<()> {
    cluster.stop_gracefully(node).await?;
    *cluster.options_of(node) = older.clone();
    cluster.spawn(node, &[])?;
    let status = cluster.wait_exit(node, RESTART_LIMIT).await?;
    ensure!(!status.success(), "it ended well");
    *cluster.options_of(node) = NodeOptions::default();
    cluster.restart(node).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_exchanged_there_and_back_until_the_upgrade_is_finalized() {
    let older = held_back();
    scenario("nodes_are_exchanged_there_and_back", &older)
        .run(async |cluster, load| {
            ensure!(version(cluster, 1).await? == BEFORE, "it began elsewhere");
            there_and_back(cluster, load, &older).await?;
            is_refused(cluster, 2, &older).await?;
            let log = cluster.node(2).log_text();
            let why = "the cluster is at version 2, and this node supports versions 1 to 1; \
                       install Carillon 0.2.0 or later";
            ensure!(log.contains(why), "node 2 did not say why");
            // Nor does a new one come in.
            *cluster.options_of(4) = older;
            ensure!(cluster.join().await.is_err(), "it has joined");
            let log = cluster.node(4).log_text();
            ensure!(log.contains(why), "node 4 did not say why: {log}");
            cluster.remove(4).await
        })
        .await;
}

/// The same with the build of the release before.
#[tokio::test(flavor = "multi_thread")]
async fn the_release_before_and_this_one_are_exchanged() {
    let Some(binary) = std::env::var_os(PREVIOUS_BINARY) else {
        println!("skipped: {PREVIOUS_BINARY} does not name a node of the release before");
        return;
    };
    let older = NodeOptions {
        binary: Some(PathBuf::from(binary)),
        ..NodeOptions::default()
    };
    scenario("the_release_before_and_this_one", &older)
        .run(async |cluster, load| {
            there_and_back(cluster, load, &older).await?;
            is_refused(cluster, 3, &older).await
        })
        .await;
}

/// A cluster whose nodes all know the newest version begins there.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_cluster_begins_at_the_newest_version_of_its_nodes() -> Result<()> {
    let options = |per_node| ClusterOptions {
        shards: SHARDS,
        per_node,
        ..ClusterOptions::default()
    };
    let cluster = Cluster::start(options([].into())).await?;
    ensure!(version(&cluster, 1).await? == AFTER);
    drop(cluster);
    let cluster = Cluster::start(options([(3, held_back())].into())).await?;
    ensure!(version(&cluster, 1).await? == BEFORE);
    Ok(())
}
