//! Shards become two while people chat: nothing acknowledged is lost, doubled or out of order,
//! whoever dies in whatever moment.

use std::time::Duration;

use anyhow::ensure;
use carillon_proto::admin::Standing;
use carillon_tests::harness::{ClusterOptions, RESTART_LIMIT};
use carillon_tests::scenario::Scenario;

/// Messages that show that the cluster goes on.
const SOME_MESSAGES: u64 = 400;
/// How long they may take.
const PROGRESS_LIMIT: Duration = Duration::from_secs(15);
/// How long a split may take under load, with nodes that come and go.
const SPLIT_LIMIT: Duration = Duration::from_secs(30);
const MOVES_LIMIT: Duration = Duration::from_secs(90);
const SHARDS: u32 = 4;
/// Names the points where a node dies; it reads them once when it starts.
const FAILPOINTS: &str = "CARILLON_FAILPOINTS";

/// Where a node dies that has a replica of a shard that is split: before the split is written,
/// when it is and nothing has become of it, when the new replica is on record.
const REPLICA_POINTS: [&str; 3] = ["shard.split", "shard.split_applied", "node.split.adopted"];
/// Where who steers dies.
const STEERING_POINTS: [&str; 6] = [
    "steering.start_split",
    "steering.split_started",
    "steering.split",
    "steering.split_told",
    "steering.finish_split",
    "steering.split_finished",
];

fn scenario(name: &'static str) -> Scenario {
    let mut scenario = Scenario::new(name);
    scenario.limit = Duration::from_secs(240);
    scenario.cluster = ClusterOptions {
        shards: SHARDS,
        extra_config: "\n[log]\nentries_kept = 0\nflush_after_bytes = 200000\n".to_owned(),
        ..ClusterOptions::default()
    };
    scenario
}

/// Each shard is split, and what that makes once more; then all nodes are killed at once, and
/// a new node takes its share of what there is now.
#[tokio::test(flavor = "multi_thread")]
async fn all_shards_are_split_twice() {
    scenario("all_shards_are_split_twice")
        .run(async |cluster, load| {
            let mut shards = SHARDS as usize;
            for _ in 0..2 {
                let known = cluster.shards().await?;
                for shard in known.iter().filter(|shard| shard.shard_id != 0) {
                    cluster.split(shard.shard_id).await?;
                    shards += 1;
                    cluster.wait_split(shards, SPLIT_LIMIT).await?;
                }
                load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                    .await?;
            }
            for node in cluster.node_ids() {
                cluster.kill9(node).await?;
            }
            for node in cluster.node_ids() {
                cluster.spawn(node, &[])?;
            }
            for node in cluster.node_ids() {
                cluster.wait_ready(node, RESTART_LIMIT).await?;
            }
            cluster.wait_split(shards, SPLIT_LIMIT).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                .await?;
            let new = cluster.join().await?;
            // Three quarters of sixteen times three, and one to spare.
            cluster.wait_placed(new, 11..=13, MOVES_LIMIT).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}

/// Every node dies at every point of a split, one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_die_at_each_point_of_a_split() {
    scenario("nodes_die_at_each_point_of_a_split")
        .run(async |cluster, load| {
            let mut shards = SHARDS as usize;
            for (number, point) in REPLICA_POINTS.iter().enumerate() {
                for (place, node) in cluster.node_ids().into_iter().enumerate() {
                    // What was split before is not to be replayed: it would die of it.
                    cluster.snapshot(1, node).await?;
                    cluster.kill9(node).await?;
                    let points = format!("{point}=crash@1");
                    cluster.spawn(node, &[(FAILPOINTS, &points)])?;
                    cluster.wait_ready(node, RESTART_LIMIT).await?;
                    cluster.wait_all_led(RESTART_LIMIT).await?;
                    // Who is behind may get the split as a snapshot.
                    cluster.wait_caught_up(node, RESTART_LIMIT).await?;
                    // Also where it leads, and where it follows.
                    let shard = 1 + ((number + place) as u32 % SHARDS);
                    if place % 2 == 0 {
                        cluster.transfer(shard, node).await?;
                    }
                    cluster.split(shard).await?;
                    shards += 1;
                    cluster.wait_exit(node, SPLIT_LIMIT).await?;
                    cluster.restart(node).await?;
                    cluster.wait_split(shards, SPLIT_LIMIT).await?;
                    load.wait_acknowledged(SOME_MESSAGES / 4, PROGRESS_LIMIT)
                        .await?;
                }
            }
            Ok(())
        })
        .await;
}

/// The node that steers dies before and after each step of a split; the next one goes on.
#[tokio::test(flavor = "multi_thread")]
async fn who_steers_dies_at_each_step_of_a_split() {
    scenario("who_steers_dies_at_each_step_of_a_split")
        .run(async |cluster, load| {
            let mut shards = SHARDS as usize;
            // An operator's split is started without the steering.
            for point in &STEERING_POINTS[2..] {
                let leader = cluster.meta_leader(RESTART_LIMIT).await?;
                for node in cluster.node_ids() {
                    cluster.kill9(node).await?;
                    let points = format!("{point}=crash@1");
                    // The others go on.
                    let dies = node == leader;
                    cluster.spawn(node, &[(FAILPOINTS, if dies { &points } else { "" })])?;
                    cluster.wait_ready(node, RESTART_LIMIT).await?;
                }
                cluster.wait_all_led(RESTART_LIMIT).await?;
                cluster.transfer(0, leader).await?;
                cluster.split(1 + shards as u32 % SHARDS).await?;
                shards += 1;
                cluster.wait_exit(leader, SPLIT_LIMIT).await?;
                cluster.restart(leader).await?;
                cluster.wait_split(shards, SPLIT_LIMIT).await?;
                load.wait_acknowledged(SOME_MESSAGES / 4, PROGRESS_LIMIT)
                    .await?;
            }
            Ok(())
        })
        .await;
}

/// A node is away while shards are split, and comes back when their logs no longer say so: it
/// gets both parts as snapshots, and keeps nothing of the old one beside them.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_gets_both_parts() {
    scenario("a_node_that_was_away_gets_both_parts")
        .run(async |cluster, load| {
            let away = 3;
            cluster.make_follower(away).await?;
            let before = cluster.last_indexes(away).await?;
            cluster.kill9(away).await?;
            let mut shards = SHARDS as usize;
            for shard in 1..=SHARDS {
                cluster.split(shard).await?;
                shards += 1;
                cluster.wait_split(shards, SPLIT_LIMIT).await?;
            }
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                .await?;
            let behind = cluster.purge_beyond(away, &before, SHARDS as usize).await?;
            ensure!(behind == SHARDS as usize, "only {behind} need a snapshot");
            cluster.restart(away).await?;
            cluster.wait_split(shards, SPLIT_LIMIT).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}

/// A shard that was split on a node is removed from it, both parts of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_split_moves_away() {
    let mut scenario = scenario("what_was_split_moves_away");
    scenario.cluster.nodes = 4;
    scenario
        .run(async |cluster, load| {
            let mut shards = SHARDS as usize;
            for shard in 1..=SHARDS {
                cluster.split(shard).await?;
                shards += 1;
            }
            cluster.wait_split(shards, SPLIT_LIMIT).await?;
            let leaving = 2;
            cluster
                .set_standing(leaving, Standing::DrainingForRemoval)
                .await?;
            cluster.wait_placed(leaving, 0..=0, MOVES_LIMIT).await?;
            cluster.remove(leaving).await?;
            cluster.forget(leaving).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}
