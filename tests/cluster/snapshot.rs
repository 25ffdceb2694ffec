//! A follower that was away for so long that the log it needs is gone gets a snapshot.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use carillon_proto::admin::SetPolicyRequest;
use carillon_tests::harness::{Cluster, ClusterOptions, RESTART_LIMIT, http_get};
use carillon_tests::load::Load;
use carillon_tests::scenario::Scenario;
use tokio::time::{sleep, timeout};

/// Few shards, so that each of them has traffic; no log kept behind what is flushed, so
/// that a short absence is long enough.
const SHARDS: u32 = 4;
const CONFIG: &str = "\n[log]\nentries_kept = 0\n";
/// Messages that the follower misses.
const MISSED_MESSAGES: u64 = 600;
/// How long they may take.
const PROGRESS_LIMIT: Duration = Duration::from_secs(10);
/// So that a snapshot takes a while at the slowest rate.
const LONG_TEXT_BYTES: usize = 8_000;
const SLOW_KIB_PER_S: u32 = 64;
const FAST_KIB_PER_S: u32 = 65_536;
/// Between two looks at a node, and how long one may take.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
const LOOK_LIMIT: Duration = Duration::from_secs(2);

fn options() -> ClusterOptions {
    ClusterOptions {
        shards: SHARDS,
        extra_config: CONFIG.to_owned(),
        ..ClusterOptions::default()
    }
}

/// Kills a node, and lets it miss so much that the log which it would need is gone.
async fn leave_behind(cluster: &mut Cluster, load: &Load, victim: u64) -> anyhow::Result<()> {
    let last = cluster.last_indexes(victim).await?;
    cluster.kill9(victim).await?;
    load.wait_acknowledged(MISSED_MESSAGES, PROGRESS_LIMIT)
        .await?;
    let behind = cluster.purge_beyond(victim, &last, SHARDS as usize).await?;
    ensure!(behind > 0, "no shard needs a snapshot");
    println!("{behind} of {SHARDS} shards need a snapshot");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_behind_the_purged_log() {
    let mut scenario = Scenario::new("a_follower_behind_the_purged_log");
    scenario.cluster = options();
    scenario
        .run(async |cluster, load| {
            let victim = 2;
            leave_behind(cluster, load, victim).await?;
            cluster.restart(victim).await?;
            load.wait_acknowledged(MISSED_MESSAGES, PROGRESS_LIMIT)
                .await
        })
        .await;
}

/// While it catches up, however slowly, it does not say that it is ready.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_behind_is_not_ready() {
    let mut scenario = Scenario::new("who_is_behind_is_not_ready");
    scenario.cluster = options();
    scenario.load.text_bytes = LONG_TEXT_BYTES;
    scenario
        .run(async |cluster, load| {
            let victim = 2;
            leave_behind(cluster, load, victim).await?;
            snapshots_of(cluster, SLOW_KIB_PER_S).await?;
            cluster.spawn(victim, &[])?;
            let catches_up = async {
                loop {
                    let address = &cluster.node(victim).addresses().http;
                    // It does not answer before it has begun.
                    match http_get(address, "/readyz", LOOK_LIMIT).await {
                        Ok((503, body)) if body.contains("have to catch up") => return Ok(()),
                        Ok((200, _)) => anyhow::bail!("it is ready and lacks snapshots"),
                        _ => sleep(LOOK_INTERVAL).await,
                    }
                }
            };
            timeout(RESTART_LIMIT, catches_up)
                .await
                .context("it does not catch up")??;
            snapshots_of(cluster, FAST_KIB_PER_S).await?;
            cluster.wait_ready(victim, RESTART_LIMIT).await?;
            load.wait_acknowledged(MISSED_MESSAGES, PROGRESS_LIMIT)
                .await
        })
        .await;
}

/// How fast each node sends snapshots.
async fn snapshots_of(cluster: &Cluster, kib_per_s: u32) -> anyhow::Result<()> {
    let change = SetPolicyRequest {
        snapshot_kib_per_s_max: Some(kib_per_s),
        ..SetPolicyRequest::default()
    };
    cluster.set_policy(change).await
}

/// The same while the leader that sends the snapshots is killed in between.
#[tokio::test(flavor = "multi_thread")]
async fn the_sender_of_a_snapshot_dies() {
    let mut scenario = Scenario::new("the_sender_of_a_snapshot_dies");
    scenario.cluster = options();
    scenario
        .run(async |cluster, load| {
            let victim = 2;
            leave_behind(cluster, load, victim).await?;
            let sender = cluster.leader_heavy_node().await?;
            cluster.spawn(victim, &[])?;
            // While it starts and asks for its snapshots.
            cluster.kill9(sender).await?;
            cluster.restart(sender).await?;
            cluster
                .wait_ready(victim, carillon_tests::harness::RESTART_LIMIT)
                .await?;
            load.wait_acknowledged(MISSED_MESSAGES, PROGRESS_LIMIT)
                .await
        })
        .await;
}
