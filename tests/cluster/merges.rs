//! Neighbouring shards become one while people chat: nothing acknowledged is lost, doubled or
//! out of order, whoever dies in whatever moment.

use std::time::Duration;

use anyhow::{Result, ensure};
use carillon_proto::admin::Standing;
use carillon_tests::harness::{Cluster, ClusterOptions, MergeEnd, RESTART_LIMIT};
use carillon_tests::scenario::Scenario;

/// Messages that show that the cluster goes on.
const SOME_MESSAGES: u64 = 400;
/// How long they may take.
const PROGRESS_LIMIT: Duration = Duration::from_secs(15);
/// How long a merge may take under load, with nodes that come and go.
const MERGE_LIMIT: Duration = Duration::from_secs(60);
const MOVES_LIMIT: Duration = Duration::from_secs(90);
const SHARDS: u32 = 4;
/// Tries of a merge that is given up when a node dies while a shard is frozen.
const TRIES_MAX: u32 = 20;
/// Names the points where a node dies; it reads them once when it starts.
const FAILPOINTS: &str = "CARILLON_FAILPOINTS";

/// Where a node dies that has replicas of both shards.
const REPLICA_POINTS: [&str; 8] = [
    "shard.freeze",
    "shard.frozen",
    "node.merge.kept",
    "shard.absorb",
    "shard.absorbing",
    "shard.absorbed",
    "node.merge.durable",
    "node.merge.log_removed",
];
/// Where who steers dies.
const STEERING_POINTS: [&str; 12] = [
    "steering.freeze_merge",
    "steering.merge_freezes",
    "steering.freeze",
    "steering.frozen",
    "steering.keep",
    "steering.kept",
    "steering.absorb_merge",
    "steering.merge_absorbs",
    "steering.absorb",
    "steering.absorbed",
    "steering.finish_merge",
    "steering.merge_finished",
];

fn scenario(name: &'static str) -> Scenario {
    let mut scenario = Scenario::new(name);
    scenario.limit = Duration::from_secs(300);
    scenario.cluster = ClusterOptions {
        shards: SHARDS,
        extra_config: "\n[log]\nentries_kept = 0\nflush_after_bytes = 200000\n".to_owned(),
        ..ClusterOptions::default()
    };
    scenario
}

/// The shards of the cluster by their slots, without the meta group.
async fn shard_ids(cluster: &Cluster) -> Result<Vec<u32>> {
    let mut shards = cluster.shards().await?;
    shards.sort_by_key(|shard| shard.slot_first);
    let ids = shards.iter().map(|shard| shard.shard_id);
    Ok(ids.filter(|shard| *shard != 0).collect())
}

/// Kills all nodes at once, and waits until they are back.
async fn kill_all(cluster: &mut Cluster) -> Result<()> {
    for node in cluster.node_ids() {
        cluster.kill9(node).await?;
    }
    for node in cluster.node_ids() {
        cluster.spawn(node, &[])?;
    }
    for node in cluster.node_ids() {
        cluster.wait_ready(node, RESTART_LIMIT).await?;
    }
    Ok(())
}

/// Merges a shard with its neighbour however often that is given up; the shards that are left.
async fn merge_in_the_end(cluster: &Cluster, shard: u32) -> Result<()> {
    for _ in 0..TRIES_MAX {
        let gone = match cluster.merge(shard).await {
            Ok(gone) => gone,
            // An earlier try is being taken back.
            Err(error) if format!("{error:#}").contains("takes over") => {
                cluster.wait_no_merges(MERGE_LIMIT).await?;
                continue;
            }
            Err(error) => return Err(error),
        };
        if cluster.wait_merge(shard, gone, MERGE_LIMIT).await? == MergeEnd::Merged {
            return Ok(());
        }
    }
    anyhow::bail!("shard {shard} was not merged in {TRIES_MAX} tries")
}

/// Shards are merged until one is left, everything is killed, and that one is split and merged
/// again.
#[tokio::test(flavor = "multi_thread")]
async fn all_shards_become_one() {
    scenario("all_shards_become_one")
        .run(async |cluster, load| {
            for left in (1..SHARDS as usize).rev() {
                let shard = shard_ids(cluster).await?[0];
                merge_in_the_end(cluster, shard).await?;
                cluster.wait_split(left, MERGE_LIMIT).await?;
                load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                    .await?;
            }
            kill_all(cluster).await?;
            cluster.wait_split(1, MERGE_LIMIT).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                .await?;
            let shard = shard_ids(cluster).await?[0];
            cluster.split(shard).await?;
            cluster.wait_split(2, MERGE_LIMIT).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                .await?;
            merge_in_the_end(cluster, shard).await?;
            kill_all(cluster).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}

/// Every node dies at every point of a merge, one after the other: as a leader of one of the
/// shards or as a follower.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_die_at_each_point_of_a_merge() {
    let mut scenario = scenario("nodes_die_at_each_point_of_a_merge");
    scenario.limit = Duration::from_secs(420);
    scenario
        .run(async |cluster, load| {
            for (number, point) in REPLICA_POINTS.iter().enumerate() {
                let dying = cluster.node_ids()[number % 3];
                let shard = shard_ids(cluster).await?[0];
                // What was merged before is not to be replayed: it would die of it.
                for known in shard_ids(cluster).await? {
                    cluster.snapshot(known, dying).await?;
                }
                cluster.kill9(dying).await?;
                let points = format!("{point}=crash@1");
                cluster.spawn(dying, &[(FAILPOINTS, &points)])?;
                cluster.wait_ready(dying, RESTART_LIMIT).await?;
                cluster.wait_all_led(RESTART_LIMIT).await?;
                // Some points are the leader's.
                let next = shard_ids(cluster).await?[1];
                match *point {
                    "shard.freeze" => cluster.transfer(next, dying).await?,
                    "shard.absorb" => cluster.transfer(shard, dying).await?,
                    _ if number % 2 == 0 => cluster.transfer(shard, dying).await?,
                    _ => {}
                }
                let gone = cluster.merge(shard).await?;
                cluster.wait_exit(dying, MERGE_LIMIT).await?;
                cluster.restart(dying).await?;
                let ended = cluster.wait_merge(shard, gone, MERGE_LIMIT).await?;
                load.wait_acknowledged(SOME_MESSAGES / 4, PROGRESS_LIMIT)
                    .await?;
                if ended == MergeEnd::Cancelled {
                    // It works the next time.
                    merge_in_the_end(cluster, shard).await?;
                }
                cluster.split(shard).await?;
                cluster.wait_split(SHARDS as usize, MERGE_LIMIT).await?;
            }
            Ok(())
        })
        .await;
}

/// The node that steers dies before and after each step of a merge; the next one goes on.
#[tokio::test(flavor = "multi_thread")]
async fn who_steers_dies_at_each_step_of_a_merge() {
    let mut scenario = scenario("who_steers_dies_at_each_step_of_a_merge");
    scenario.limit = Duration::from_secs(420);
    scenario
        .run(async |cluster, load| {
            for point in STEERING_POINTS {
                let leader = cluster.meta_leader(RESTART_LIMIT).await?;
                cluster.kill9(leader).await?;
                let points = format!("{point}=crash@1");
                cluster.spawn(leader, &[(FAILPOINTS, &points)])?;
                cluster.wait_ready(leader, RESTART_LIMIT).await?;
                cluster.wait_all_led(RESTART_LIMIT).await?;
                cluster.transfer(0, leader).await?;
                let shard = shard_ids(cluster).await?[0];
                let gone = cluster.merge(shard).await?;
                cluster.wait_exit(leader, MERGE_LIMIT).await?;
                cluster.restart(leader).await?;
                let ended = cluster.wait_merge(shard, gone, MERGE_LIMIT).await?;
                load.wait_acknowledged(SOME_MESSAGES / 4, PROGRESS_LIMIT)
                    .await?;
                if ended == MergeEnd::Cancelled {
                    merge_in_the_end(cluster, shard).await?;
                }
                cluster.split(shard).await?;
                cluster.wait_split(SHARDS as usize, MERGE_LIMIT).await?;
            }
            Ok(())
        })
        .await;
}

/// A node dies when the shards are merged for good, and comes back when the log no longer says
/// so: it gets the merged shard as a snapshot, and keeps nothing beside it.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_gets_the_merged_shard() {
    scenario("a_node_that_was_away_gets_the_merged_shard")
        .run(async |cluster, load| {
            let away = 3;
            let shard = shard_ids(cluster).await?[0];
            cluster.make_follower(away).await?;
            let before = cluster.last_indexes(away).await?;
            cluster.kill9(away).await?;
            // It dies with both frozen shard and no word of what takes it over.
            let points = "shard.absorb=crash@1;shard.absorbing=crash@1";
            cluster.spawn(away, &[(FAILPOINTS, points)])?;
            cluster.wait_ready(away, RESTART_LIMIT).await?;
            cluster.make_follower(away).await?;
            // Given up when the machine is slow; only a merge for good makes the node die.
            merge_in_the_end(cluster, shard).await?;
            cluster.wait_exit(away, MERGE_LIMIT).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                .await?;
            let left = SHARDS as usize - 1;
            let behind = cluster.purge_beyond(away, &before, 1).await?;
            ensure!(behind >= 1, "none needs a snapshot");
            cluster.restart(away).await?;
            cluster.wait_split(left, MERGE_LIMIT).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}

/// Shards that are on different nodes are gathered, merged, and move away like any other.
#[tokio::test(flavor = "multi_thread")]
async fn shards_are_gathered_merged_and_move_away() {
    let mut scenario = scenario("shards_are_gathered_merged_and_move_away");
    scenario.cluster.nodes = 4;
    scenario
        .run(async |cluster, load| {
            let mut left = SHARDS as usize;
            while left > 2 {
                let shard = shard_ids(cluster).await?[0];
                merge_in_the_end(cluster, shard).await?;
                left -= 1;
            }
            cluster.wait_split(left, MERGE_LIMIT).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                .await?;
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

/// A node dies while a shard is frozen: the merge is given up, and everything goes on with both
/// shards, also when who thaws dies too.
#[tokio::test(flavor = "multi_thread")]
async fn a_merge_is_given_up_when_a_node_dies() {
    scenario("a_merge_is_given_up_when_a_node_dies")
        .run(async |cluster, load| {
            let (dying, thawing) = (3, 2);
            for point in ["", "shard.thaw", "shard.thawed"] {
                let shard = shard_ids(cluster).await?[0];
                let points = format!("{point}=crash@1");
                for (node, points) in [(dying, "shard.frozen=crash@1"), (thawing, &*points)] {
                    cluster.kill9(node).await?;
                    let points = if point.is_empty() && node == thawing {
                        ""
                    } else {
                        points
                    };
                    cluster.spawn(node, &[(FAILPOINTS, points)])?;
                    cluster.wait_ready(node, RESTART_LIMIT).await?;
                }
                cluster.wait_all_led(RESTART_LIMIT).await?;
                let next = shard_ids(cluster).await?[1];
                cluster.transfer(next, thawing).await?;
                let gone = cluster.merge(shard).await?;
                ensure!(gone == next, "shard {gone} is no neighbour of {shard}");
                cluster.wait_exit(dying, MERGE_LIMIT).await?;
                if !point.is_empty() {
                    cluster.wait_exit(thawing, MERGE_LIMIT).await?;
                    cluster.restart(thawing).await?;
                }
                let ended = cluster.wait_merge(shard, gone, MERGE_LIMIT).await?;
                ensure!(ended == MergeEnd::Cancelled, "it was not given up");
                load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                    .await?;
                cluster.restart(dying).await?;
                merge_in_the_end(cluster, shard).await?;
                cluster.split(shard).await?;
                cluster.wait_split(SHARDS as usize, MERGE_LIMIT).await?;
            }
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}

/// An operator may change their mind while the shards are gathered, and no later.
#[tokio::test(flavor = "multi_thread")]
async fn a_merge_is_cancelled() {
    let mut scenario = scenario("a_merge_is_cancelled");
    scenario.cluster.nodes = 4;
    scenario
        .run(async |cluster, load| {
            let shard = shard_ids(cluster).await?[0];
            let gone = cluster.merge(shard).await?;
            let cancelled = cluster.cancel_merge(gone).await;
            let ended = cluster.wait_merge(shard, gone, MERGE_LIMIT).await?;
            let wanted = match cancelled {
                Ok(true) => MergeEnd::Cancelled,
                // It was too late.
                Ok(false) | Err(_) => MergeEnd::Merged,
            };
            ensure!(ended == wanted, "it was {ended:?}");
            cluster.wait_no_moves(MOVES_LIMIT).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}
