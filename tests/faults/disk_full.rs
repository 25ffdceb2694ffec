//! The disk of one node is full: the node ends and says so, the cluster goes on, and the
//! node recovers when there is space again.

use std::time::Duration;

use anyhow::ensure;
use carillon_tests::harness::{SmallDisk, fill_disk, may_mount};
use carillon_tests::scenario::Scenario;

/// The node whose disk is small.
const NODE: u64 = 3;
/// Its disk: room for a few segments and the state.
const DISK_BYTES: u64 = 256 << 20;
/// Small segments, so that the log needs a new one soon.
const CONFIG: &str = "\n[log]\nsegment_bytes = 2097152\n";
/// From a full disk until the node has noticed.
const NOTICE_LIMIT: Duration = Duration::from_secs(60);
/// How long progress may take.
const PROGRESS_LIMIT: Duration = Duration::from_secs(15);
/// Messages that show that the cluster goes on.
const SOME_MESSAGES: u64 = 300;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_one_node_only() {
    if !may_mount() {
        println!(
            "SKIPPED: a full disk needs a file system of limited size, and only root may mount \
             one; run this test as root"
        );
        return;
    }
    let mut scenario = Scenario::new("a_full_disk_ends_one_node_only");
    scenario.limit = Duration::from_secs(150);
    scenario.cluster.extra_config = CONFIG.to_owned();
    scenario.cluster.small_disk = Some(SmallDisk {
        node: NODE,
        size_bytes: DISK_BYTES,
    });
    scenario
        .run(async |cluster, load| {
            let ballast = cluster.node(NODE).data_dir().join("ballast");
            let written = fill_disk(&ballast)?;
            println!("the disk of node {NODE} is full after {written} bytes");
            let status = cluster.wait_exit(NODE, NOTICE_LIMIT).await?;
            ensure!(
                !status.success(),
                "node {NODE} ended with {status} on a full disk"
            );
            let log = cluster.node(NODE).log_text().to_lowercase();
            ensure!(
                log.contains("no space left"),
                "the log of node {NODE} does not say that its disk is full"
            );
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
                .await?;

            std::fs::remove_file(&ballast)?;
            cluster.restart(NODE).await?;
            load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT).await
        })
        .await;
}
