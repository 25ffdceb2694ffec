//! The disk of one node is nearly full, and then full: the node takes no messages and says so, the
//! others lead and go on, nobody ends, and with room again it catches up. When all disks are full
//! nobody can write, everybody can read, and it goes on with room.

use std::time::Duration;

use anyhow::{Result, ensure};
use carillon_proto::admin::NodeStatus;
use carillon_proto::v1;
use carillon_tests::harness::{Cluster, SmallDisk, fill_but_for, may_mount};
use carillon_tests::rpc;
use carillon_tests::scenario::Scenario;
use tokio::time::{Instant, sleep};
use tonic::Code;

/// The node whose disk becomes full.
const NODE: u64 = 3;
/// A small disk: room for a few segments and the state. An eighth of it is the node's reserve.
const DISK_BYTES: u64 = 256 << 20;
/// Less than the reserve, but more than half of it.
const SHORT_BYTES: u64 = 24 << 20;
/// Small segments, so that the log needs a new one soon.
const CONFIG: &str = "\n[log]\nsegment_bytes = 2097152\n";
/// Until a node has noticed, and has given its leads away.
const NOTICE_LIMIT: Duration = Duration::from_secs(30);
/// How long progress may take.
const PROGRESS_LIMIT: Duration = Duration::from_secs(15);
/// Messages that show that the cluster goes on.
const SOME_MESSAGES: u64 = 300;
/// Between two looks at a node.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Longer than a node needs to notice that its disk is full.
const IDLE: Duration = Duration::from_secs(3);

/// The scenario of clusters whose disks of these nodes are small; none when this process may not
/// make them.
fn scenario(name: &'static str, nodes: &[u64]) -> Option<Scenario> {
    if !may_mount() {
        println!(
            "SKIPPED: a full disk needs a file system of limited size, and only root may mount \
             one; run this test as root"
        );
        return None;
    }
    let mut scenario = Scenario::new(name);
    scenario.limit = Duration::from_secs(150);
    scenario.cluster.extra_config = CONFIG.to_owned();
    let small = |node: &u64| SmallDisk {
        node: *node,
        size_bytes: DISK_BYTES,
    };
    scenario.cluster.small_disks = nodes.iter().map(small).collect();
    Some(scenario)
}

fn fill(cluster: &Cluster, node: u64, left_bytes: u64) -> Result<()> {
    let ballast = cluster.node(node).data_dir().join("ballast");
    fill_but_for(&ballast, left_bytes)
}

fn make_room(cluster: &Cluster, node: u64) -> Result<()> {
    let ballast = cluster.node(node).data_dir().join("ballast");
    Ok(std::fs::remove_file(ballast)?)
}

async fn until(
    cluster: &Cluster,
    node: u64,
    what: &str,
    holds: impl Fn(&NodeStatus) -> bool,
) -> Result<()> {
    let deadline = Instant::now() + NOTICE_LIMIT;
    loop {
        let status = cluster.node_status(node).await?;
        if holds(&status) {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "node {node} is not {what}: {status:?}"
        );
        sleep(LOOK_INTERVAL).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_others_go_on_while_one_disk_is_full() {
    let Some(scenario) = scenario("the_others_go_on_while_one_disk_is_full", &[NODE]) else {
        return;
    };
    scenario
        .run(async |cluster, load| {
            let before = cluster.node_status(NODE).await?;
            ensure!(!before.disk_short && before.leaders > 0, "{before:?}");
            fill(cluster, NODE, SHORT_BYTES)?;
            let leads_nothing = |status: &NodeStatus| status.disk_short && status.leaders == 0;
            until(cluster, NODE, "short, without leads", leads_nothing).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                .await?;

            // Not a byte is left: nothing that it does needs one, for as long as that lasts.
            fill(cluster, NODE, 0)?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                .await?;
            sleep(IDLE).await;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                .await?;
            let full = cluster.node_status(NODE).await?;
            ensure!(full.up && full.run == before.run, "it has ended: {full:?}");
            let log = cluster.node(NODE).log_text();
            ensure!(
                log.contains("the disk is nearly full"),
                "it does not say so"
            );

            make_room(cluster, NODE)?;
            let roomy = |status: &NodeStatus| !status.disk_short;
            until(cluster, NODE, "roomy again", roomy).await?;
            cluster.wait_led_as_preferred(NOTICE_LIMIT).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_can_read_while_all_disks_are_full() {
    let Some(mut scenario) = scenario("all_can_read_while_all_disks_are_full", &[1, 2, 3]) else {
        return;
    };
    // Nobody is acknowledged for a while.
    scenario.limit = Duration::from_secs(180);
    scenario
        .run(async |cluster, load| {
            for node in cluster.node_ids() {
                fill(cluster, node, SHORT_BYTES)?;
            }
            for node in cluster.node_ids() {
                until(cluster, node, "short", |status| status.disk_short).await?;
            }
            let chat = rpc::chat(&cluster.node(1).addresses().client)?;
            let send = v1::SendRequest {
                conversation_id: "direct:a:b".to_owned(),
                client_message_id: "m".to_owned(),
                content: Some(rpc::text("hello")),
            };
            let sent = chat.clone().send(rpc::as_user("a", send)).await;
            rpc::assert_refused(sent, Code::ResourceExhausted, "LIMIT_EXCEEDED");
            let mut conversations = load.conversations().iter();
            let (conversation, members) = conversations.next().expect("people chat somewhere");
            let reader = members.first().expect("a member");
            let read = v1::GetMessagesRequest {
                conversation_id: conversation.to_string(),
                from_seq: 1,
                limit: 10,
                ..v1::GetMessagesRequest::default()
            };
            let read = rpc::as_user(reader.as_str(), read);
            let page = chat.clone().get_messages(read).await?.into_inner();
            ensure!(!page.messages.is_empty(), "nothing can be read");

            for node in cluster.node_ids() {
                make_room(cluster, node)?;
            }
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}
