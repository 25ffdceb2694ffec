//! Shards lose two of their three replicas, and are made anew from the one that is left: what
//! it had is there, people chat on, and who was given up can do no harm.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use carillon_proto::admin::{SetPolicyRequest, ShardStatus, Standing};
use carillon_tests::harness::{Cluster, ClusterOptions, RESTART_LIMIT};
use carillon_tests::load::Load;
use carillon_tests::scenario::Scenario;
use tokio::time::{Instant, sleep};

/// Messages that show that the cluster goes on.
const SOME_MESSAGES: u64 = 400;
/// How long they may take.
const PROGRESS_LIMIT: Duration = Duration::from_secs(20);
/// How long all moves together may take, under load, one policy's worth at a time.
const MOVES_LIMIT: Duration = Duration::from_secs(90);
/// How long recovering all shards may take, with nodes that crash meanwhile.
const RECOVERY_LIMIT: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
const SHARDS: u32 = 8;
const REPLICAS: usize = 3;
/// Names the points where a node dies; it reads them once when it starts.
const FAILPOINTS: &str = "CARILLON_FAILPOINTS";
/// Where a node dies that makes a shard anew.
const STEPS: [&str; 4] = [
    "node.rebuild.begun",
    "raft.rebuild.voted",
    "node.rebuild.log_begun",
    "node.rebuild.recorded",
];

/// Five nodes, so that the meta group keeps its majority without two.
fn scenario(name: &'static str) -> Scenario {
    let mut scenario = Scenario::new(name);
    scenario.limit = Duration::from_secs(240);
    scenario.cluster = ClusterOptions {
        nodes: 5,
        shards: SHARDS,
        ..ClusterOptions::default()
    };
    scenario
}

fn nodes_of(shard: &ShardStatus) -> BTreeSet<u64> {
    shard.replicas.iter().map(|one| one.node_id).collect()
}

/// The two nodes that most shards have replicas on, and these shards.
async fn worst_pair(cluster: &Cluster) -> Result<([u64; 2], Vec<u32>)> {
    let shards = cluster.shards().await?;
    let nodes = cluster.node_ids();
    let pairs = nodes.iter().flat_map(|one| {
        let others = nodes.iter().filter(move |other| *other > one);
        others.map(move |other| [*one, *other])
    });
    let hit = |pair: &[u64; 2]| -> Vec<u32> {
        let on_both = |shard: &&ShardStatus| {
            let on = nodes_of(shard);
            shard.shard_id != 0 && pair.iter().all(|node| on.contains(node))
        };
        shards
            .iter()
            .filter(on_both)
            .map(|one| one.shard_id)
            .collect()
    };
    let worst = pairs.max_by_key(|pair| hit(pair).len());
    let worst = worst.context("there are no pairs")?;
    let hit = hit(&worst);
    ensure!(!hit.is_empty(), "no shard is on {worst:?}");
    Ok((worst, hit))
}

/// Kills the two one after the other. What is acknowledged between needs the replica that is
/// left, which has all that was acknowledged before with it.
async fn lose(cluster: &mut Cluster, load: &Load, lost: [u64; 2]) -> Result<()> {
    // What is placed stays, so that it can be said when all is done.
    let calm = SetPolicyRequest {
        balance: Some(false),
        ..SetPolicyRequest::default()
    };
    cluster.set_policy(calm).await?;
    cluster.kill9(lost[0]).await?;
    load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
        .await?;
    cluster.kill9(lost[1]).await
}

/// Gives both up. Before that, nothing is made anew.
async fn give_up(cluster: &Cluster, lost: [u64; 2], shard: u32) -> Result<()> {
    let early = cluster.recovery(shard).await?;
    ensure!(
        early.hindrances.iter().any(|why| why.contains("give-up")),
        "{early:?}"
    );
    let refused = cluster.recover(shard).await;
    let refused = refused.expect_err("the lost may come back").to_string();
    ensure!(refused.contains("give-up"), "{refused}");
    for node in lost {
        cluster.give_up(node).await?;
    }
    Ok(())
}

/// Makes these shards anew, as soon as it can be decided.
async fn recover(cluster: &Cluster, shards: &[u32]) -> Result<()> {
    let deadline = Instant::now() + RECOVERY_LIMIT;
    for shard in shards {
        loop {
            let error = match cluster.recover(*shard).await {
                Ok(()) => break,
                Err(error) => error,
            };
            ensure!(Instant::now() < deadline, "shard {shard}: {error:#}");
            sleep(LOOK_INTERVAL).await;
        }
    }
    Ok(())
}

/// Orders it until it is decided. Who decided it may be dead by then.
async fn order(cluster: &Cluster, shard: u32) -> Result<()> {
    let deadline = Instant::now() + RECOVERY_LIMIT;
    while let Err(error) = cluster.recover(shard).await {
        let text = format!("{error:#}");
        if text.contains("made anew") {
            break;
        }
        ensure!(Instant::now() < deadline, "shard {shard}: {text}");
        sleep(LOOK_INTERVAL).await;
    }
    Ok(())
}

/// Waits until each shard has all its replicas, and a leader, on these nodes.
async fn wait_whole(cluster: &Cluster, on: &[u64]) -> Result<()> {
    let deadline = Instant::now() + MOVES_LIMIT;
    loop {
        let shards = cluster.shards().await?;
        let whole = |shard: &&ShardStatus| {
            let nodes = nodes_of(shard);
            shard.shard_id == 0
                || (nodes.len() == REPLICAS
                    && shard.leader_node != 0
                    && nodes.iter().all(|node| on.contains(node)))
        };
        let missing: Vec<_> = shards.iter().filter(|one| !whole(one)).collect();
        if missing.is_empty() && cluster.no_moves().await? {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{missing:?}");
        sleep(LOOK_INTERVAL).await;
    }
}

/// Two nodes are gone for good, with their disks.
#[tokio::test(flavor = "multi_thread")]
async fn shards_without_their_majority_are_made_anew() {
    scenario("shards_without_their_majority_are_made_anew")
        .run(async |cluster, load| {
            let (lost, hit) = worst_pair(cluster).await?;
            lose(cluster, load, lost).await?;
            for node in lost {
                let disk = cluster.node(node).data_dir().to_owned();
                cluster.remove(node).await?;
                std::fs::remove_dir_all(disk)?;
            }
            give_up(cluster, lost, hit[0]).await?;
            let other = (1..=SHARDS).find(|shard| !hit.contains(shard));
            if let Some(other) = other {
                let refused = cluster.recover(other).await;
                refused.expect_err("it has its majority");
            }
            recover(cluster, &hit).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                .await?;
            let left = cluster.node_ids();
            wait_whole(cluster, &left).await?;
            for node in lost {
                cluster.forget(node).await?;
            }
            let events = cluster.events().await?;
            let text = format!("shard {} is made anew", hit[0]);
            let event = events.iter().find(|event| event.text.contains(&text));
            let event = event.with_context(|| format!("{events:?}"))?;
            ensure!(event.by == "the tests", "{event:?}");
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}

/// Both come back with their disks, at once: together they are a majority of what the shards
/// were before, and must not act on it.
#[tokio::test(flavor = "multi_thread")]
async fn lost_nodes_that_come_back_do_no_harm() {
    scenario("lost_nodes_that_come_back_do_no_harm")
        .run(async |cluster, load| {
            let (lost, hit) = worst_pair(cluster).await?;
            lose(cluster, load, lost).await?;
            give_up(cluster, lost, hit[0]).await?;
            recover(cluster, &hit).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                .await?;
            for node in lost {
                cluster.spawn(node, &[])?;
            }
            for node in lost {
                cluster.wait_ready(node, RESTART_LIMIT).await?;
                cluster.set_standing(node, Standing::Active).await?;
            }
            wait_whole(cluster, &cluster.node_ids()).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}

/// The nodes that make shards anew die at each step of it, and go on when they are back.
#[tokio::test(flavor = "multi_thread")]
async fn who_makes_a_shard_anew_dies_at_each_step() {
    scenario("who_makes_a_shard_anew_dies_at_each_step")
        .run(async |cluster, load| {
            let (lost, hit) = worst_pair(cluster).await?;
            let left: Vec<u64> = cluster.node_ids();
            let left = left.into_iter().filter(|node| !lost.contains(node));
            let left: Vec<u64> = left.collect();
            lose(cluster, load, lost).await?;
            give_up(cluster, lost, hit[0]).await?;
            for node in lost {
                cluster.remove(node).await?;
            }
            let survivor = cluster.recovery(hit[0]).await?.survivor_node;
            ensure!(left.contains(&survivor), "node {survivor}");
            cluster.kill9(survivor).await?;
            for (number, step) in STEPS.iter().enumerate() {
                let point = format!("{step}=crash@1");
                cluster.spawn(survivor, &[(FAILPOINTS, &point)])?;
                if number == 0 {
                    order(cluster, hit[0]).await?;
                }
                // Later it goes on as soon as it is back, to the next step.
                let status = cluster.wait_exit(survivor, RESTART_LIMIT).await;
                status.with_context(|| format!("{step} was not reached"))?;
            }
            cluster.restart(survivor).await?;
            recover(cluster, &hit[1..]).await?;
            wait_whole(cluster, &left).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}
