//! Nodes come and go while people chat: nothing acknowledged is lost, doubled or out of order,
//! and no replica too few is ever there.

use std::time::Duration;

use anyhow::{Result, ensure};
use carillon_proto::admin::{SetPolicyRequest, Standing};
use carillon_tests::harness::{Cluster, ClusterOptions, GRACEFUL_STOP_LIMIT, RESTART_LIMIT};
use carillon_tests::scenario::Scenario;
use tokio::time::{Instant, sleep};

/// Messages that show that the cluster goes on.
const SOME_MESSAGES: u64 = 400;
/// How long they may take.
const PROGRESS_LIMIT: Duration = Duration::from_secs(15);
/// How long all moves together may take, under load, one policy's worth at a time.
const MOVES_LIMIT: Duration = Duration::from_secs(90);
const SHARDS: u32 = 8;
/// A node ends with it that an operator wants to be started again.
const EXIT_RESTART: i32 = 75;
/// Names the points where a node dies; it reads them once when it starts.
const FAILPOINTS: &str = "CARILLON_FAILPOINTS";

/// Where who steers dies: before and after each step.
const STEPS: [&str; 10] = [
    "steering.start",
    "steering.started",
    "steering.learner",
    "steering.learner_added",
    "steering.switch",
    "steering.switched",
    "steering.voters",
    "steering.voters_changed",
    "steering.finish",
    "steering.finished",
];
/// How long that many deaths may take.
const STEPS_LIMIT: Duration = Duration::from_secs(120);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

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

/// A fourth node takes its share, one of the first three leaves for good.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_and_another_leaves() {
    scenario("a_node_joins_and_another_leaves")
        .run(async |cluster, load| {
            let new = cluster.join().await?;
            ensure!(new == 4, "the new node is {new}");
            // Three quarters of eight times three, and one to spare.
            cluster.wait_placed(new, 5..=7, MOVES_LIMIT).await?;
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

/// The nodes that take part in moves, and the one that steers them, are killed meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_killed_while_replicas_move() {
    scenario("nodes_are_killed_while_replicas_move")
        .run(async |cluster, load| {
            let new = cluster.join().await?;
            for victim in [new, 1, 3, new, 2] {
                cluster.kill9(victim).await?;
                load.wait_acknowledged(SOME_MESSAGES / 4, PROGRESS_LIMIT)
                    .await?;
                cluster.restart(victim).await?;
            }
            cluster.wait_placed(new, 5..=7, MOVES_LIMIT).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}

/// The node that steers dies before and after each step of a move, one step after the other;
/// the next one goes on.
#[tokio::test(flavor = "multi_thread")]
async fn who_steers_dies_at_each_step_of_a_move() {
    let mut scenario = scenario("who_steers_dies_at_each_step_of_a_move");
    scenario.cluster.nodes = 4;
    scenario
        .run(async |cluster, load| {
            let mut points = STEPS.iter();
            for node in cluster.node_ids() {
                cluster.kill9(node).await?;
                die_at(cluster, node, points.next())?;
                cluster.wait_ready(node, RESTART_LIMIT).await?;
            }
            let leaving = 2;
            let mut standing = Standing::Active;
            let deadline = Instant::now() + STEPS_LIMIT;
            let mut died = 0;
            // Each dead node comes back to die at the next point. Those that wait at the end
            // are where no node steered that had them.
            while died < STEPS.len() - cluster.node_ids().len() {
                ensure!(
                    Instant::now() < deadline,
                    "only {died} deaths in {STEPS_LIMIT:?}"
                );
                let all = cluster.node_ids();
                if let Some(dead) = all.into_iter().find(|id| !cluster.node(*id).is_up()) {
                    died += 1;
                    cluster.wait_exit(dead, RESTART_LIMIT).await?;
                    die_at(cluster, dead, points.next())?;
                    continue;
                }
                // There and back, so that something always moves. Refused while a dead node
                // is needed.
                if cluster.no_moves().await.unwrap_or(false) {
                    standing = match standing {
                        Standing::Active => Standing::DrainingForRemoval,
                        _ => Standing::Active,
                    };
                    let _ = cluster.set_standing(leaving, standing).await;
                }
                sleep(LOOK_INTERVAL).await;
            }
            // All at once: several may be dead, and each that is left would die at its point
            // while another one waits for it.
            for node in cluster.node_ids() {
                if cluster.node(node).is_up() {
                    cluster.kill9(node).await?;
                }
            }
            for node in cluster.node_ids() {
                cluster.spawn(node, &[])?;
            }
            for node in cluster.node_ids() {
                cluster.wait_ready(node, RESTART_LIMIT).await?;
            }
            cluster.set_standing(leaving, Standing::Active).await?;
            cluster.wait_placed(leaving, 5..=7, MOVES_LIMIT).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}

/// Starts a node that dies at a point, or never.
fn die_at(cluster: &mut Cluster, node: u64, point: Option<&&str>) -> Result<()> {
    let points = point.map(|point| format!("{point}=crash@1"));
    match &points {
        Some(points) => cluster.spawn(node, &[(FAILPOINTS, points)]),
        None => cluster.spawn(node, &[]),
    }
}

/// A node that deletes a replica dies while it does, twice, and ends what it began.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_dies_while_it_deletes() {
    let mut scenario = scenario("a_node_dies_while_it_deletes");
    scenario.cluster.nodes = 4;
    scenario
        .run(async |cluster, load| {
            let leaving = 2;
            cluster.kill9(leaving).await?;
            cluster.spawn(leaving, &[(FAILPOINTS, "node.replica.leaving=crash@1")])?;
            cluster.wait_ready(leaving, RESTART_LIMIT).await?;
            cluster
                .set_standing(leaving, Standing::DrainingForRemoval)
                .await?;
            cluster.wait_exit(leaving, MOVES_LIMIT).await?;
            cluster.spawn(leaving, &[(FAILPOINTS, "node.replica.log_removed=crash@1")])?;
            cluster.wait_exit(leaving, RESTART_LIMIT).await?;
            cluster.restart(leaving).await?;
            cluster.wait_placed(leaving, 0..=0, MOVES_LIMIT).await?;
            cluster.remove(leaving).await?;
            cluster.forget(leaving).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}

/// What a dead node had is made anew on the others, and it can be forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_is_replaced() {
    let mut scenario = scenario("a_dead_node_is_replaced");
    scenario.cluster.nodes = 4;
    scenario
        .run(async |cluster, load| {
            let dead = cluster.leader_heavy_node().await?;
            cluster.remove(dead).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                .await?;
            ensure!(
                cluster.forget(dead).await.is_err(),
                "a node in use was forgotten"
            );
            cluster.set_standing(dead, Standing::Lost).await?;
            cluster.wait_placed(dead, 0..=0, MOVES_LIMIT).await?;
            cluster.forget(dead).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}

/// A node that falls silent is given up after the time that the policy says, and what it had is
/// made anew, without anybody's doing.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_node_is_given_up_and_replaced() {
    let mut scenario = scenario("a_silent_node_is_given_up_and_replaced");
    scenario.cluster.nodes = 4;
    scenario
        .run(async |cluster, load| {
            cluster
                .set_policy(SetPolicyRequest {
                    down_after_s: Some(1),
                    failure_replacement_after_s: Some(3),
                    ..SetPolicyRequest::default()
                })
                .await?;
            let dead = cluster.leader_heavy_node().await?;
            cluster.remove(dead).await?;
            cluster.wait_placed(dead, 0..=0, MOVES_LIMIT).await?;
            cluster.forget(dead).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}

/// Each node is drained, restarted by an operator and used again: clients leave it before it
/// stops, it stops in order and asks to be started again. Asked twice, it restarts once.
#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_are_drained_and_restarted() {
    let mut scenario = scenario("all_nodes_are_drained_and_restarted");
    scenario
        .cluster
        .extra_config
        .push_str("[clients]\ndrain_spread = \"1s\"\n");
    scenario
        .run(async |cluster, load| {
            for node in cluster.node_ids() {
                cluster
                    .set_standing(node, Standing::DrainingForRestart)
                    .await?;
                cluster.wait_drained(node, MOVES_LIMIT).await?;
                let sessions = cluster.node_status(node).await?.sessions;
                ensure!(
                    sessions == 0,
                    "node {node} is drained with {sessions} streams"
                );
                let run = cluster.node_status(node).await?.run;
                cluster.ask_to_restart(node, run).await?;
                let status = cluster.wait_exit(node, GRACEFUL_STOP_LIMIT).await?;
                ensure!(status.code() == Some(EXIT_RESTART), "node {node}: {status}");
                cluster.restart(node).await?;
                cluster.ask_to_restart(node, run).await?;
                cluster.set_standing(node, Standing::Active).await?;
                load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                    .await?;
            }
            Ok(())
        })
        .await;
}

/// What has not moved yet stays, what has moved stays away, and the node is used again.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_is_taken_back_half_way() {
    let mut scenario = scenario("a_drain_is_taken_back_half_way");
    scenario.cluster.nodes = 4;
    scenario
        .run(async |cluster, load| {
            // One at a time, so that there is a half.
            cluster
                .set_policy(SetPolicyRequest {
                    moves_max: Some(1),
                    moves_per_node_max: Some(1),
                    balance: Some(false),
                    ..SetPolicyRequest::default()
                })
                .await?;
            let node = 2;
            cluster
                .set_standing(node, Standing::DrainingForRemoval)
                .await?;
            cluster.wait_moved(node, 2, MOVES_LIMIT).await?;
            cluster.set_standing(node, Standing::Active).await?;
            cluster.wait_placed(node, 1..=5, MOVES_LIMIT).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}

/// With one node away no other may stop: the drain names the shards, and changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_would_break_majorities_is_refused() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default()).await?;
    cluster
        .set_standing(2, Standing::DrainingForRestart)
        .await?;
    cluster.wait_drained(2, MOVES_LIMIT).await?;
    let leaders = cluster.leader_counts().await?;
    ensure!(leaders[&2] == 0, "drained, but leads: {leaders:?}");
    cluster.kill9(2).await?;
    cluster.wait_silent(2, MOVES_LIMIT).await?;
    let refused = cluster.set_standing(3, Standing::DrainingForRestart).await;
    let refused = refused.expect_err("two of three answer").to_string();
    ensure!(refused.contains("shard 1 "), "{refused}");
    ensure!(
        refused.contains("more"),
        "all 17 groups are named: {refused}"
    );
    cluster.restart(2).await?;
    cluster.set_standing(2, Standing::Active).await?;
    cluster.wait_led_as_preferred(MOVES_LIMIT).await?;
    let leaders = cluster.leader_counts().await?;
    ensure!(
        leaders[&3] > 0,
        "node 3 was drained all the same: {leaders:?}"
    );
    Ok(())
}

/// A drain that would leave too few nodes is refused, and changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_needed_is_not_drained() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions::default()).await?;
    let refused = cluster.set_standing(1, Standing::DrainingForRemoval).await;
    let refused = refused
        .expect_err("three nodes, three replicas")
        .to_string();
    ensure!(refused.contains("replica"), "{refused}");
    ensure!(
        cluster.forget(1).await.is_err(),
        "a node in use was forgotten"
    );
    Ok(())
}
