//! One node kills itself at each named point of its write path, under load, and comes
//! back; the others go on, and in the end everything is as promised.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use carillon_tests::harness::{Cluster, ClusterOptions};
use carillon_tests::load::{self, Load};
use carillon_tests::scenario::Scenario;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Names the points; the node reads it once when it starts.
const ENVIRONMENT: &str = "CARILLON_FAILPOINTS";
/// The node that crashes.
const NODE: u64 = 2;
/// Few shards with traffic on each; small segments, so that the log rotates; nothing kept
/// behind what is flushed, so that a short absence needs a snapshot.
const SHARDS: u32 = 4;
const CONFIG: &str = "\n[log]\nsegment_bytes = 2097152\nentries_kept = 0\n";
/// From the start of the node until it has reached its point.
const CRASH_LIMIT: Duration = Duration::from_secs(40);
/// How long progress may take.
const PROGRESS_LIMIT: Duration = Duration::from_secs(10);
/// Messages between two crashes.
const SOME_MESSAGES: u64 = 150;
/// A point in the path of every write is hit at most this many times before the crash.
const HITS_MAX: u32 = 40;

/// Reached by traffic alone.
const WRITE_POINTS: [&str; 5] = [
    "log.before_write",
    "log.after_partial_write",
    "log.before_sync",
    "log.after_sync",
    "store.before_commit",
];
/// Reached by traffic, but seldom.
const ROTATE_POINT: &str = "log.rotate";
/// Reached by a flush.
const FLUSH_POINTS: [&str; 2] = ["store.before_flush", "store.after_flush"];
/// Reached by a snapshot that comes in.
const INSTALL_POINTS: [&str; 4] = [
    "store.install.marker",
    "store.install.cleared",
    "store.install.ingested",
    "store.install.before_clear_marker",
];

fn scenario(name: &'static str) -> Scenario {
    let mut scenario = Scenario::new(name);
    scenario.limit = Duration::from_secs(240);
    scenario.cluster = ClusterOptions {
        shards: SHARDS,
        extra_config: CONFIG.to_owned(),
        ..ClusterOptions::default()
    };
    scenario
}

/// The node died by its own SIGKILL at the point; it comes back without.
async fn crashed_and_back(cluster: &mut Cluster, load: &Load, point: &str) -> Result<()> {
    let status = cluster.wait_exit(NODE, CRASH_LIMIT).await;
    let status = status.with_context(|| format!("{point} was not reached"))?;
    ensure!(
        !status.success(),
        "{point}: node {NODE} ended with {status}"
    );
    cluster
        .restart(NODE)
        .await
        .with_context(|| format!("after a crash at {point}"))?;
    load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
        .await?;
    println!("{point}: crashed and came back");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn crashes_in_the_write_path() {
    let mut rng = StdRng::seed_from_u64(load::seed());
    scenario("crashes_in_the_write_path")
        .run(async |cluster, load| {
            for point in WRITE_POINTS {
                let hits = rng.random_range(1..=HITS_MAX);
                cluster.kill9(NODE).await?;
                cluster.spawn(NODE, &[(ENVIRONMENT, &format!("{point}=crash@{hits}"))])?;
                crashed_and_back(cluster, load, point).await?;
            }
            cluster.kill9(NODE).await?;
            cluster.spawn(NODE, &[(ENVIRONMENT, &format!("{ROTATE_POINT}=crash@1"))])?;
            crashed_and_back(cluster, load, ROTATE_POINT).await
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn crashes_in_a_flush() {
    scenario("crashes_in_a_flush")
        .run(async |cluster, load| {
            for point in FLUSH_POINTS {
                cluster.kill9(NODE).await?;
                cluster.spawn(NODE, &[(ENVIRONMENT, &format!("{point}=crash@1"))])?;
                cluster.wait_ready(NODE, CRASH_LIMIT).await?;
                load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                    .await?;
                // The node dies before it can answer.
                let answered = cluster.snapshot(1, NODE).await;
                ensure!(answered.is_err(), "{point}: the node survived a flush");
                crashed_and_back(cluster, load, point).await?;
            }
            Ok(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn crashes_while_a_snapshot_comes_in() {
    scenario("crashes_while_a_snapshot_comes_in")
        .run(async |cluster, load| {
            for point in INSTALL_POINTS {
                let last = cluster.last_indexes(NODE).await?;
                cluster.kill9(NODE).await?;
                load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                    .await?;
                let behind = cluster.purge_beyond(NODE, &last, SHARDS as usize).await?;
                ensure!(behind > 0, "no shard needs a snapshot");
                cluster.spawn(NODE, &[(ENVIRONMENT, &format!("{point}=crash@1"))])?;
                crashed_and_back(cluster, load, point).await?;
            }
            Ok(())
        })
        .await;
}
