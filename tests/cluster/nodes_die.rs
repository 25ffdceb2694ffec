//! Nodes die, freeze and restart under load; nothing acknowledged is lost, doubled or out
//! of order.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use carillon_proto::admin::SetPolicyRequest;
use carillon_proto::v1::kick;
use carillon_tests::harness::{
    Cluster, ClusterOptions, GRACEFUL_STOP_LIMIT, RESTART_LIMIT, START_LIMIT, Signal, http_get,
};
use carillon_tests::load::Load;
use carillon_tests::rpc;
use carillon_tests::scenario::Scenario;
use carillon_tests::session::{End, Session};
use tokio::time::{Instant, sleep};

/// Messages that show that the cluster goes on.
const SOME_MESSAGES: u64 = 400;
/// How long they may take with a node down, the election included.
const PROGRESS_LIMIT: Duration = Duration::from_secs(10);
/// The longest time without any acknowledgement when a minority is lost. Far above one
/// election: what is measured is measured by the benchmark, this only finds a cluster
/// that hangs.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long it may take until each shard is led where it is to be: a node leads about six, and
/// gets one back each half second.
const RETURN_LIMIT: Duration = Duration::from_secs(30);
/// How often a majority is frozen, and for how long: a little more than a leader takes proposals
/// without hearing from one.
const FREEZES: u32 = 15;
const LEASE: Duration = Duration::from_millis(750);
/// How long probes may take to see that a node is alone: silent connections are found by then.
const NOT_READY_LIMIT: Duration = Duration::from_secs(12);
/// How long a leader is frozen.
const FREEZE: Duration = Duration::from_secs(5);
/// After a quorum is lost: answers that were on their way have arrived.
const SETTLE: Duration = Duration::from_millis(700);
/// How often something is changed while a node is away.
const CHANGES: u32 = 10;
const FIRST_RATE: u32 = 10_000;
/// How long no progress is watched for.
const NO_PROGRESS: Duration = Duration::from_secs(2);

fn short_pause(load: &Load) -> Result<()> {
    let pause = load.pace().longest_pause;
    ensure!(pause < PAUSE_MAX, "nothing was acknowledged for {pause:?}");
    Ok(())
}

async fn goes_on_without(cluster: &mut Cluster, load: &Load, victim: u64) -> Result<()> {
    load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
        .await?;
    short_pause(load)?;
    cluster.restart(victim).await?;
    load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_a_leader() {
    let scenario = Scenario::new("kill_9_of_a_leader");
    scenario
        .run(async |cluster, load| {
            let victim = cluster.leader_heavy_node().await?;
            cluster.kill9(victim).await?;
            goes_on_without(cluster, load, victim).await
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_a_follower() {
    let scenario = Scenario::new("kill_9_of_a_follower");
    scenario
        .run(async |cluster, load| {
            let victim = 3;
            cluster.make_follower(victim).await?;
            load.reset_longest_pause();
            cluster.kill9(victim).await?;
            goes_on_without(cluster, load, victim).await
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_two_nodes_and_back() {
    let scenario = Scenario::new("kill_9_of_two_nodes_and_back");
    scenario
        .run(async |cluster, load| {
            let first = cluster.leader_heavy_node().await?;
            let second = first % 3 + 1;
            cluster.kill9(first).await?;
            cluster.kill9(second).await?;
            sleep(SETTLE).await;
            let before = load.pace().acknowledged;
            sleep(NO_PROGRESS).await;
            let after = load.pace().acknowledged;
            ensure!(
                before == after,
                "{} messages were acknowledged without a quorum",
                after - before
            );
            cluster.restart(first).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                .await?;
            cluster.restart(second).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}

/// A node that was away gets back what it is to lead, under load, one shard at a time.
#[tokio::test(flavor = "multi_thread")]
async fn leads_return_to_a_node_that_is_back() {
    let mut scenario = Scenario::new("leads_return_to_a_node_that_is_back");
    scenario.cluster = ClusterOptions {
        extra_config: "\n[raft]\nleader_return_after = \"1s\"\n".to_owned(),
        ..ClusterOptions::default()
    };
    scenario
        .run(async |cluster, load| {
            cluster.wait_led_as_preferred(RETURN_LIMIT).await?;
            let before = cluster.leader_counts().await?;
            let victim = cluster.leader_heavy_node().await?;
            cluster.kill9(victim).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                .await?;
            cluster.restart(victim).await?;
            load.reset_longest_pause();
            cluster.wait_led_as_preferred(RETURN_LIMIT).await?;
            short_pause(load)?;
            let after = cluster.leader_counts().await?;
            println!("shards led before {before:?}, after {after:?}");
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigstop_of_a_leader() {
    let scenario = Scenario::new("sigstop_of_a_leader");
    scenario
        .run(async |cluster, load| {
            let victim = cluster.leader_heavy_node().await?;
            cluster.freeze(victim)?;
            sleep(FREEZE).await;
            short_pause(load)?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                .await?;
            cluster.thaw(victim)?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}

/// A leader that a majority does not answer takes nothing for that time, and goes on in the same
/// term: what it refuses in between must not be overtaken by what it takes after.
#[tokio::test(flavor = "multi_thread")]
async fn a_majority_is_frozen_again_and_again() {
    freeze_majorities("a_majority_is_frozen_again_and_again", 3).await;
}

/// The same where most of what is sent comes from nodes without a replica.
#[tokio::test(flavor = "multi_thread")]
async fn a_majority_far_away_is_frozen_again_and_again() {
    freeze_majorities("a_majority_far_away_is_frozen_again_and_again", 5).await;
}

async fn freeze_majorities(name: &'static str, nodes: u64) {
    let mut scenario = Scenario::new(name);
    scenario.cluster.nodes = nodes;
    // All in one shard, so that there is much to overtake.
    scenario.cluster.shards = 1;
    scenario
        .run(async |cluster, load| {
            for _ in 0..FREEZES {
                let shards = cluster.shards().await?;
                let shard = shards.iter().find(|shard| shard.shard_id == 1);
                let shard = shard.context("shard 1")?;
                let holders = shard.replicas.iter().map(|replica| replica.node_id);
                let others: Vec<u64> = holders.filter(|id| *id != shard.leader_node).collect();
                for id in &others {
                    cluster.freeze(*id)?;
                }
                sleep(LEASE).await;
                for id in &others {
                    cluster.thaw(*id)?;
                }
                load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                    .await?;
            }
            Ok(())
        })
        .await;
}

/// Probes must not send clients to a node that can do nothing for them, whoever led its shards.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_the_others_is_not_ready() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default()).await?;
    // It leads nothing, so it only sees that others say nothing.
    cluster.make_follower(1).await?;
    for other in [2, 3] {
        cluster.freeze(other)?;
    }
    let deadline = Instant::now() + NOT_READY_LIMIT;
    loop {
        let http = &cluster.node(1).addresses().http;
        let (code, text) = http_get(http, "/readyz", NOT_READY_LIMIT).await?;
        if code == 503 {
            break;
        }
        ensure!(Instant::now() < deadline, "still {code}: {text}");
        sleep(Duration::from_millis(100)).await;
    }
    // What the alert asks for says the same: leaders that say nothing are none.
    let http = &cluster.node(1).addresses().http;
    let (_, metrics) = http_get(http, "/metrics", NOT_READY_LIMIT).await?;
    let all_led = "carillon_shards_without_leader 0\n";
    ensure!(!metrics.contains(all_led), "all shards are led, it says");
    for other in [2, 3] {
        cluster.thaw(other)?;
    }
    cluster.wait_ready(1, RETURN_LIMIT).await
}

/// Who changes something through one node, and asks another about it, is told of the change,
/// however long that one was away.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_tells_nothing_old() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default()).await?;
    let away = 3;
    cluster.make_follower(away).await?;
    for round in 1..=CHANGES {
        cluster.freeze(away)?;
        let change = SetPolicyRequest {
            snapshot_kib_per_s_max: Some(FIRST_RATE + round),
            ..SetPolicyRequest::default()
        };
        cluster.set_policy(change).await?;
        cluster.thaw(away)?;
        let told = cluster.policy_as_told_by(away).await?;
        let rate = told.snapshot_kib_per_s_max;
        ensure!(
            rate == FIRST_RATE + round,
            "in round {round} it says {rate}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_all_at_once() {
    let scenario = Scenario::new("kill_9_of_all_at_once");
    scenario
        .run(async |cluster, load| {
            for round in 0..2 {
                for id in cluster.node_ids() {
                    cluster.kill9(id).await?;
                }
                for id in cluster.node_ids() {
                    cluster.spawn(id, &[])?;
                }
                for id in cluster.node_ids() {
                    cluster.wait_ready(id, START_LIMIT).await?;
                }
                println!("round {round}: all are back");
                load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                    .await?;
            }
            Ok(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rolling_restart_with_sigterm() {
    let scenario = Scenario::new("rolling_restart_with_sigterm");
    scenario
        .run(async |cluster, load| {
            for id in cluster.node_ids() {
                cluster.stop_gracefully(id).await?;
                load.wait_acknowledged(SOME_MESSAGES / 2, PROGRESS_LIMIT)
                    .await?;
                cluster.restart(id).await?;
                cluster.wait_all_led(RESTART_LIMIT).await?;
            }
            short_pause(load)
        })
        .await;
}

/// A node whose disk was replaced by an empty one has forgotten its votes: it must not
/// come back under its old id.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_disk_is_refused() {
    let scenario = Scenario::new("an_empty_disk_is_refused");
    scenario
        .run(async |cluster, load| {
            let victim = 2;
            cluster.kill9(victim).await?;
            let data = cluster.node(victim).data_dir().to_owned();
            let aside = data.with_extension("aside");
            std::fs::rename(&data, &aside)?;
            std::fs::create_dir(&data)?;
            cluster.spawn(victim, &[])?;
            let status = cluster.wait_exit(victim, RESTART_LIMIT).await?;
            ensure!(
                !status.success(),
                "a node with an empty disk ended with {status}"
            );
            let log = cluster.node(victim).log_text();
            ensure!(
                log.contains("identity") || log.contains("data directory"),
                "the log does not say why"
            );
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                .await?;

            std::fs::remove_dir_all(&data)?;
            std::fs::rename(&aside, &data)?;
            cluster.restart(victim).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}

/// A node that is asked to stop says so to its clients, answers what it took, and leaves
/// the rest to the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_draining_node_tells_its_clients() -> Result<()> {
    const KICK_LIMIT: Duration = Duration::from_secs(5);
    let mut cluster = Cluster::start(ClusterOptions::default()).await?;
    let direct = rpc::direct_id("alice", "bob");
    let address = cluster.node(1).addresses().client.clone();
    let (mut alice, _) = Session::open(&address, "alice", "phone", None).await?;
    let mut requests = Vec::new();
    for number in 0..50 {
        requests.push(
            alice
                .send(&direct, &format!("m{number}"), rpc::text("x"))
                .await?,
        );
    }
    cluster.signal(1, Signal::Term)?;
    let kick = alice.kick().await?;
    assert_eq!(kick.reason(), kick::Reason::Draining);
    assert!(matches!(alice.end(KICK_LIMIT).await?, End::Closed));
    let mut stored = 0;
    for request in requests {
        // Answered before the Kick, or never taken: then it is sent again elsewhere.
        stored += u64::from(alice.sent(request).await.is_ok());
    }
    println!("{stored} of 50 were answered before the end");
    let (mut again, _) =
        Session::open(&cluster.node(2).addresses().client, "alice", "phone", None).await?;
    for number in 0..50 {
        let sent = again.say(&direct, &format!("m{number}"), "x").await?;
        ensure!(sent.seq == number + 1, "m{number} is at {}", sent.seq);
    }
    let status = cluster.wait_exit(1, GRACEFUL_STOP_LIMIT).await?;
    ensure!(status.success(), "node 1 ended with {status}");
    Ok(())
}
