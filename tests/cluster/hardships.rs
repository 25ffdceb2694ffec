//! Replicas move, and what should not happen does: a node is paused, zones are lost, a disk is
//! full. Nothing acknowledged is lost, and no replica too few is ever there.

use std::time::Duration;

use anyhow::ensure;
use carillon_proto::admin::{SetPolicyRequest, Standing};
use carillon_tests::harness::{
    Cluster, ClusterOptions, NodeOptions, RESTART_LIMIT, SmallDisk, fill_but_for, may_mount,
};
use carillon_tests::scenario::Scenario;
use tokio::time::{Instant, sleep};

/// Between two looks at a node.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Messages that show that the cluster goes on.
const SOME_MESSAGES: u64 = 400;
/// How long they may take.
const PROGRESS_LIMIT: Duration = Duration::from_secs(15);
/// How long all moves together may take under load.
const MOVES_LIMIT: Duration = Duration::from_secs(90);
const SHARDS: u32 = 8;
/// How long a node is paused: longer than a node may be silent before it counts as down.
const PAUSE: Duration = Duration::from_secs(60);
/// How long two zones are away: several times as long as until a silent node is given up.
const ZONES_AWAY: Duration = Duration::from_secs(10);
/// Names the points where a node dies; it reads them once when it starts.
const FAILPOINTS: &str = "CARILLON_FAILPOINTS";

/// The node whose disk is small.
const SMALL: u64 = 4;
/// Room for its share, and for what a node leaves free of its disk.
const SMALL_BYTES: u64 = 1 << 30;
/// What is left of it when replicas come: the node takes none.
const LEFT_BYTES: u64 = 32 << 20;

fn scenario(name: &'static str) -> Scenario {
    let mut scenario = Scenario::new(name);
    scenario.limit = Duration::from_secs(240);
    scenario.cluster = ClusterOptions {
        shards: SHARDS,
        nodes: 4,
        extra_config: "\n[log]\nentries_kept = 0\nflush_after_bytes = 200000\n\
                       segment_bytes = 2097152\n"
            .to_owned(),
        ..ClusterOptions::default()
    };
    scenario
}

/// A node that is being removed is paused for a minute in the middle of it. Its removal goes on
/// without it as far as it can, and ends when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_paused_while_it_is_removed() {
    scenario("a_node_is_paused_while_it_is_removed")
        .run(async |cluster, load| {
            // One at a time, so that there is a middle.
            cluster
                .set_policy(SetPolicyRequest {
                    moves_max: Some(1),
                    moves_per_node_max: Some(1),
                    ..SetPolicyRequest::default()
                })
                .await?;
            let leaving = 2;
            cluster
                .set_standing(leaving, Standing::DrainingForRemoval)
                .await?;
            cluster.wait_moved(leaving, 2, MOVES_LIMIT).await?;
            cluster.freeze(leaving)?;
            let paused = Instant::now();
            while paused.elapsed() < PAUSE {
                load.wait_acknowledged(SOME_MESSAGES / 4, PROGRESS_LIMIT)
                    .await?;
            }
            cluster.thaw(leaving)?;
            cluster.wait_placed(leaving, 0..=0, MOVES_LIMIT).await?;
            cluster.remove(leaving).await?;
            cluster.forget(leaving).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}

/// Two zones of three are lost at once for longer than nodes may be silent, and come back: no
/// node is given up and nothing is moved for it, and everything goes on.
#[tokio::test(flavor = "multi_thread")]
async fn two_zones_of_three_are_lost_and_back() {
    let mut scenario = scenario("two_zones_of_three_are_lost_and_back");
    scenario.cluster.nodes = 6;
    for node in 1..=scenario.cluster.nodes {
        let zone = format!("zone-{}", (node - 1) / 2);
        let options = NodeOptions {
            env: [("CARILLON_NODE__PLACEMENT__ZONE".to_owned(), zone)].into(),
            ..NodeOptions::default()
        };
        scenario.cluster.per_node.insert(node, options);
    }
    scenario
        .run(async |cluster, load| {
            // Only that most do not answer keeps the cluster from replacing them.
            cluster
                .set_policy(SetPolicyRequest {
                    down_after_s: Some(1),
                    failure_replacement_after_s: Some(2),
                    lost_nodes_max: Some(6),
                    ..SetPolicyRequest::default()
                })
                .await?;
            let before = cluster.events().await?.len();
            let lost = [3, 4, 5, 6];
            for node in lost {
                cluster.kill9(node).await?;
            }
            sleep(ZONES_AWAY).await;
            for node in lost {
                cluster.spawn(node, &[])?;
            }
            for node in lost {
                cluster.wait_ready(node, RESTART_LIMIT).await?;
            }
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                .await?;
            let events = cluster.events().await?;
            let since = &events[before..];
            let storm = since
                .iter()
                .find(|event| event.text.contains("is lost") || event.text.contains("(repair)"));
            ensure!(storm.is_none(), "a repair began: {storm:?}");
            Ok(())
        })
        .await;
}

/// The node that sends a replica's state to a new node dies while it does.
#[tokio::test(flavor = "multi_thread")]
async fn who_sends_a_snapshot_of_a_move_dies() {
    let mut scenario = scenario("who_sends_a_snapshot_of_a_move_dies");
    scenario.cluster.nodes = 3;
    scenario
        .run(async |cluster, load| {
            let source = 1;
            cluster.kill9(source).await?;
            cluster.spawn(source, &[(FAILPOINTS, "store.snapshot.file=crash@1")])?;
            cluster.wait_ready(source, RESTART_LIMIT).await?;
            cluster.wait_led_as_preferred(RESTART_LIMIT).await?;
            let new = cluster.join().await?;
            cluster.wait_exit(source, MOVES_LIMIT).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                .await?;
            cluster.restart(source).await?;
            cluster.wait_placed(new, 5..=7, MOVES_LIMIT).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}

/// A node looks at its disk a few times a second, and what it says decides.
async fn says_it_is_short(cluster: &Cluster, node: u64) -> anyhow::Result<()> {
    let deadline = Instant::now() + PROGRESS_LIMIT;
    while !cluster.node_status(node).await?.disk_short {
        ensure!(Instant::now() < deadline, "it does not notice its disk");
        sleep(LOOK_INTERVAL).await;
    }
    Ok(())
}

/// No replica is sent to a disk that has no room. The disk of a node becomes full while replicas
/// come to it: what comes waits, no shard has fewer replicas for it, and nobody notices. With space
/// again it gets its share.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_full_while_replicas_come() {
    if !may_mount() {
        println!(
            "SKIPPED: a full disk needs a file system of limited size, and only root may mount \
             one; run this test as root"
        );
        return;
    }
    let mut scenario = scenario("a_disk_is_full_while_replicas_come");
    scenario.cluster.small_disks = vec![SmallDisk {
        node: SMALL,
        size_bytes: SMALL_BYTES,
    }];
    scenario
        .run(async |cluster, load| {
            cluster
                .set_policy(SetPolicyRequest {
                    down_after_s: Some(2),
                    ..SetPolicyRequest::default()
                })
                .await?;
            cluster
                .set_standing(SMALL, Standing::DrainingForRemoval)
                .await?;
            cluster.wait_placed(SMALL, 0..=0, MOVES_LIMIT).await?;
            let ballast = cluster.node(SMALL).data_dir().join("ballast");
            fill_but_for(&ballast, LEFT_BYTES)?;
            says_it_is_short(cluster, SMALL).await?;
            cluster.set_standing(SMALL, Standing::Active).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                .await?;
            cluster.wait_placed(SMALL, 0..=0, MOVES_LIMIT).await?;
            // It has room, and loses it while something comes.
            std::fs::remove_file(&ballast)?;
            loop {
                cluster.wait_move_to(SMALL, MOVES_LIMIT).await?;
                cluster.freeze(SMALL)?;
                if !cluster.no_moves().await? {
                    break;
                }
                cluster.thaw(SMALL)?;
            }
            fill_but_for(&ballast, LEFT_BYTES)?;
            cluster.thaw(SMALL)?;
            // Those that send it say why it does not get it, or it ends and says so itself; what is
            // small may still come, and nothing is begun after that.
            let deadline = Instant::now() + MOVES_LIMIT;
            loop {
                let mut nodes = cluster.node_ids().into_iter();
                let says = |id| {
                    let log = cluster.node(id).log_text().to_lowercase();
                    log.contains("snapshot_disk_bytes_max") || log.contains("no space left")
                };
                if nodes.any(says) || cluster.no_moves().await? {
                    break;
                }
                ensure!(
                    Instant::now() < deadline,
                    "nobody says that the disk is full, and something is on its way"
                );
                load.wait_acknowledged(SOME_MESSAGES / 4, PROGRESS_LIMIT)
                    .await?;
            }
            let few = cluster
                .shards()
                .await?
                .into_iter()
                .find(|shard| shard.shard_id != 0 && shard.replicas.len() < 3);
            ensure!(few.is_none(), "too few replicas: {few:?}");
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                .await?;
            std::fs::remove_file(&ballast)?;
            if !cluster.node(SMALL).is_up() {
                cluster.restart(SMALL).await?;
            }
            cluster.wait_placed(SMALL, 5..=7, MOVES_LIMIT).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}
