//! A cluster with more nodes than replicas: most nodes have no replica of a shard, and have
//! to hear from others who leads it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use carillon_core::UserId;
use carillon_proto::admin::ShardStatus;
use carillon_tests::harness::{Cluster, ClusterOptions};
use carillon_tests::rpc;
use carillon_tests::scenario::Scenario;
use carillon_tests::session::Session;

/// Messages that show that the cluster goes on.
const SOME_MESSAGES: u64 = 400;
/// How long they may take with a node down, the election included.
const PROGRESS_LIMIT: Duration = Duration::from_secs(15);

fn options() -> ClusterOptions {
    ClusterOptions {
        nodes: 5,
        ..ClusterOptions::default()
    }
}

async fn inbox_shard(cluster: &Cluster, user: &str) -> Result<ShardStatus> {
    let slot = u32::from(UserId::copied(user)?.slot().0);
    let shards = cluster.shards().await?;
    let mut shards = shards.into_iter().filter(|shard| shard.shard_id != 0);
    let shard = shards.find(|shard| (shard.slot_first..=shard.slot_last).contains(&slot));
    shard.context("no shard has the user's slot")
}

/// The lead of a user's inbox goes to another node in good order, so no connection breaks;
/// the node that has the user's stream has no replica of it, and must hear of it all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_far_from_its_inbox_hears_of_a_new_leader() -> Result<()> {
    let cluster = Cluster::start(options()).await?;
    let shard = inbox_shard(&cluster, "listener").await?;
    let holders: Vec<u64> = shard
        .replicas
        .iter()
        .map(|replica| replica.node_id)
        .collect();
    ensure!(holders.len() == 3, "replicas of the inbox: {holders:?}");
    let far = cluster
        .node_ids()
        .into_iter()
        .find(|id| !holders.contains(id));
    let far = cluster.node(far.context("every node has a replica")?);
    let (mut listener, _) =
        Session::open(&far.addresses().client, "listener", "phone", None).await?;
    let near = cluster.node(shard.leader_node);
    let (mut speaker, _) =
        Session::open(&near.addresses().client, "speaker", "phone", None).await?;
    let direct = rpc::direct_id("listener", "speaker");
    speaker.say(&direct, "before", "before").await?;
    listener.delivery().await?;
    for (turn, to) in holders.iter().cycle().skip(1).take(4).enumerate() {
        cluster.transfer(shard.shard_id, *to).await?;
        speaker
            .say(&direct, &format!("turn-{turn}"), "after")
            .await?;
        let entry = listener.delivery().await;
        let entry = entry.with_context(|| format!("after node {to} took the lead"))?;
        ensure!(entry.message.is_some(), "an entry without a message");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_a_leader_among_five() {
    let mut scenario = Scenario::new("kill_9_of_a_leader_among_five");
    scenario.cluster = options();
    scenario
        .run(async |cluster, load| {
            let victim = cluster.leader_heavy_node().await?;
            cluster.kill9(victim).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                .await?;
            cluster.restart(victim).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}
