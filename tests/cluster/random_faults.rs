//! A random sequence of faults from a seed: kills, freezes, graceful stops, leader
//! transfers and snapshots, one after the other and sometimes two at a time.

use std::time::Duration;

use anyhow::Result;
use carillon_tests::harness::{Cluster, ClusterOptions, RESTART_LIMIT};
use carillon_tests::load::Load;
use carillon_tests::scenario::Scenario;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::{Instant, sleep};

/// How long faults go on.
const DURATION: Duration = Duration::from_secs(15);
/// The longest time that a node stays frozen or down.
const AWAY_MAX: Duration = Duration::from_millis(2_500);
/// Messages after each round of faults …
const SOME_MESSAGES: u64 = 50;
/// … and how long they may take.
const PROGRESS_LIMIT: Duration = Duration::from_secs(15);
/// Nothing is kept behind what is flushed, and the log rotates often.
const CONFIG: &str = "\n[log]\nsegment_bytes = 2097152\nentries_kept = 0\n";
const SHARDS: u32 = 6;

async fn away(rng: &mut StdRng) {
    sleep(AWAY_MAX.mul_f64(rng.random_range(0.0..1.0))).await;
}

async fn kill(cluster: &mut Cluster, victims: &[u64], rng: &mut StdRng) -> Result<()> {
    for victim in victims {
        cluster.kill9(*victim).await?;
    }
    away(rng).await;
    for victim in victims {
        cluster.spawn(*victim, &[])?;
    }
    for victim in victims {
        cluster.wait_ready(*victim, RESTART_LIMIT).await?;
    }
    Ok(())
}

async fn freeze(cluster: &mut Cluster, victims: &[u64], rng: &mut StdRng) -> Result<()> {
    for victim in victims {
        cluster.freeze(*victim)?;
    }
    away(rng).await;
    for victim in victims {
        cluster.thaw(*victim)?;
    }
    Ok(())
}

/// Snapshots and transfers may fail while leaders change; what counts is what comes after.
async fn move_leaders(cluster: &Cluster, rng: &mut StdRng) {
    for _ in 0..4 {
        let (shard, node) = (rng.random_range(1..=SHARDS), rng.random_range(1..=3));
        let outcome = if rng.random_bool(0.5) {
            cluster.transfer(shard, node).await
        } else {
            cluster.snapshot(shard, node).await.map(drop)
        };
        if let Err(error) = outcome {
            println!("shard {shard}, node {node}: {error:#}");
        }
    }
}

async fn one_round(cluster: &mut Cluster, load: &Load, rng: &mut StdRng) -> Result<()> {
    let first = rng.random_range(1..=3);
    let second = first % 3 + 1;
    let fault = rng.random_range(0..10);
    match fault {
        0..=2 => kill(cluster, &[first], rng).await?,
        3 => kill(cluster, &[first, second], rng).await?,
        4 => kill(cluster, &[1, 2, 3], rng).await?,
        5 | 6 => freeze(cluster, &[first], rng).await?,
        7 => freeze(cluster, &[first, second], rng).await?,
        8 => {
            cluster.stop_gracefully(first).await?;
            cluster.restart(first).await?;
        }
        _ => move_leaders(cluster, rng).await,
    }
    println!("fault {fault} with nodes {first} and {second}");
    load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
}

#[tokio::test(flavor = "multi_thread")]
async fn random_faults() {
    let mut scenario = Scenario::new("random_faults");
    scenario.cluster = ClusterOptions {
        shards: SHARDS,
        extra_config: CONFIG.to_owned(),
        ..ClusterOptions::default()
    };
    let mut rng = StdRng::seed_from_u64(scenario.load.seed);
    scenario
        .run(async |cluster, load| {
            let started = Instant::now();
            while started.elapsed() < DURATION {
                one_round(cluster, load, &mut rng).await?;
            }
            Ok(())
        })
        .await;
}
