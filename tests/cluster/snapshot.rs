//! A follower that was away for so long that the log it needs is gone gets a snapshot.

use std::time::Duration;

use anyhow::ensure;
use carillon_tests::harness::ClusterOptions;
use carillon_tests::scenario::Scenario;

/// Few shards, so that each of them has traffic; no log kept behind what is flushed, so
/// that a short absence is long enough.
const SHARDS: u32 = 4;
const CONFIG: &str = "\n[log]\nentries_kept = 0\n";
/// Messages that the follower misses.
const MISSED_MESSAGES: u64 = 600;
/// How long they may take.
const PROGRESS_LIMIT: Duration = Duration::from_secs(10);

fn options() -> ClusterOptions {
    ClusterOptions {
        shards: SHARDS,
        extra_config: CONFIG.to_owned(),
        ..ClusterOptions::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_behind_the_purged_log() {
    let mut scenario = Scenario::new("a_follower_behind_the_purged_log");
    scenario.cluster = options();
    scenario
        .run(async |cluster, load| {
            let victim = 2;
            let last = cluster.last_indexes(victim).await?;
            cluster.kill9(victim).await?;
            load.wait_acknowledged(MISSED_MESSAGES, PROGRESS_LIMIT)
                .await?;
            let behind = cluster.purge_beyond(victim, &last, SHARDS as usize).await?;
            ensure!(behind > 0, "no shard needs a snapshot");
            println!("{behind} of {SHARDS} shards need a snapshot");
            cluster.restart(victim).await?;
            load.wait_acknowledged(MISSED_MESSAGES, PROGRESS_LIMIT)
                .await
        })
        .await;
}

/// The same while the leader that sends the snapshots is killed in between.
#[tokio::test(flavor = "multi_thread")]
async fn the_sender_of_a_snapshot_dies() {
    let mut scenario = Scenario::new("the_sender_of_a_snapshot_dies");
    scenario.cluster = options();
    scenario
        .run(async |cluster, load| {
            let victim = 2;
            let last = cluster.last_indexes(victim).await?;
            cluster.kill9(victim).await?;
            load.wait_acknowledged(MISSED_MESSAGES, PROGRESS_LIMIT)
                .await?;
            let behind = cluster.purge_beyond(victim, &last, SHARDS as usize).await?;
            ensure!(behind > 0, "no shard needs a snapshot");
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
