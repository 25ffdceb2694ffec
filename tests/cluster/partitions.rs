//! The network between the nodes is cut under load: nothing acknowledged is lost, doubled or
//! out of order, and whoever has a majority goes on.
//!
//! Clients reach every node all the time.

use std::time::Duration;

use anyhow::{Result, ensure};
use carillon_tests::harness::{Cluster, Network};
use carillon_tests::load::Load;
use carillon_tests::scenario::Scenario;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::{Instant, sleep, sleep_until};

const NODES: u64 = 3;
/// Messages that show that the cluster goes on.
const SOME_MESSAGES: u64 = 400;
/// How long they may take.
const PROGRESS_LIMIT: Duration = Duration::from_secs(10);
/// The longest time without an acknowledgement in a group while there is a majority. Far above
/// one election: this only finds a cluster that hangs.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long a cut lasts: longer than a silent connection between nodes is kept.
const CUT: Duration = Duration::from_secs(8);
/// The same where each node still reaches a majority.
const BRIDGED: Duration = Duration::from_secs(10);
/// How long a link flaps.
const FLAPPING: Duration = Duration::from_secs(15);
/// How long it is cut each time, and healed: about an election, so that some begin and few end.
const FLAP_MS: std::ops::RangeInclusive<u64> = 300..=700;

/// Runs a scenario in a network of its own, if this machine can have one.
fn partitioned(
    name: &'static str,
    body: impl AsyncFnOnce(&mut Cluster, &Load, StdRng) -> Result<()> + Send,
) {
    if let Some(reason) = Network::impossible() {
        println!("SKIPPED: partitions of the network need namespaces: {reason}");
        return;
    }
    let outcome = Network::run(NODES, |network| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        let mut scenario = Scenario::new(name);
        scenario.cluster.nodes = NODES;
        scenario.cluster.network = Some(network);
        let rng = StdRng::seed_from_u64(scenario.load.seed);
        runtime.block_on(scenario.run(async |cluster, load| body(cluster, load, rng).await));
        anyhow::Ok(())
    });
    if let Err(error) = outcome.flatten() {
        panic!("{name}: {error:?}");
    }
}

fn others(node: u64) -> impl Iterator<Item = u64> {
    (1..=NODES).filter(move |other| *other != node)
}

fn short_pauses(load: &Load) -> Result<()> {
    let pause = load.longest_pause_of_a_group();
    println!("the longest pause of a group was {pause:?}");
    ensure!(pause < PAUSE_MAX, "a group waited for {pause:?}");
    Ok(())
}

/// Leaves the network as it is for a while, in which every shard must go on.
async fn goes_on(load: &Load, cut: Duration) -> Result<()> {
    let until = Instant::now() + cut;
    load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
        .await?;
    sleep_until(until).await;
    // At its end too, and not only until something ran full.
    load.wait_acknowledged(SOME_MESSAGES / 4, PAUSE_MAX).await?;
    short_pauses(load)
}

async fn heal(cluster: &Cluster, load: &Load) -> Result<()> {
    cluster.network()?.heal_all()?;
    load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
}

/// Cuts the links of the node that leads most: the others lead its shards then. Its clients go
/// to them, or wait.
fn cut_off_a_leader(
    name: &'static str,
    cut: impl Fn(&Network, u64, u64) -> Result<()> + Send + Sync,
) {
    partitioned(name, async |cluster, load, _| {
        let leader = cluster.leader_heavy_node().await?;
        for other in others(leader) {
            cut(cluster.network()?, leader, other)?;
        }
        goes_on(load, CUT).await?;
        for other in others(leader) {
            let shards = cluster.shards_as_seen_by(other).await?;
            let by_others = others(leader).collect::<Vec<_>>();
            for shard in shards {
                ensure!(
                    by_others.contains(&shard.leader_node),
                    "node {other} sees shard {} led by {}, but node {leader} is cut off",
                    shard.shard_id,
                    shard.leader_node
                );
            }
        }
        heal(cluster, load).await
    });
}

/// A leader and the others see nothing of each other.
#[test]
fn a_leader_is_alone() {
    cut_off_a_leader("a_leader_is_alone", Network::cut);
}

/// A leader sees the others, which do not see it.
#[test]
fn a_leader_is_not_heard() {
    cut_off_a_leader("a_leader_is_not_heard", Network::cut_one_way);
}

/// A leader does not see the others, which see it.
#[test]
fn a_leader_hears_nothing() {
    cut_off_a_leader("a_leader_hears_nothing", |network, leader, other| {
        network.cut_one_way(other, leader)
    });
}

/// Two nodes do not see each other, and the third sees both: each of them has a majority.
#[test]
fn one_node_sees_both_sides() {
    partitioned("one_node_sees_both_sides", async |cluster, load, _| {
        let one = cluster.leader_heavy_node().await?;
        let other = one % NODES + 1;
        cluster.network()?.cut(one, other)?;
        goes_on(load, BRIDGED).await?;
        for id in 1..=NODES {
            let seen = cluster.overview(id).await?.nodes_up;
            let expected = if [one, other].contains(&id) { 2 } else { 3 };
            ensure!(seen == expected, "node {id} sees {seen}, not {expected}");
        }
        heal(cluster, load).await
    });
}

/// Cuts the links of the node that leads most to some others, and heals them, again and again:
/// one way or both.
fn flap(name: &'static str, links: usize) {
    partitioned(name, async |cluster, load, mut rng| {
        let network = cluster.network()?;
        let one = cluster.leader_heavy_node().await?;
        let until = Instant::now() + FLAPPING;
        while Instant::now() < until {
            let way = rng.random_range(0..4);
            for other in others(one).take(links) {
                match way {
                    0 => network.cut_one_way(one, other)?,
                    1 => network.cut_one_way(other, one)?,
                    _ => network.cut(one, other)?,
                }
            }
            sleep(Duration::from_millis(rng.random_range(FLAP_MS))).await;
            network.heal_all()?;
            sleep(Duration::from_millis(rng.random_range(FLAP_MS))).await;
        }
        short_pauses(load)?;
        heal(cluster, load).await
    });
}

#[test]
fn a_link_flaps() {
    flap("a_link_flaps", 1);
}

#[test]
fn all_links_of_a_leader_flap() {
    flap("all_links_of_a_leader_flap", 2);
}
