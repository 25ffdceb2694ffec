//! The disk of one node is full: the node ends and says so, the cluster goes on, and the
//! node recovers when there is space again.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use carillon_tests::harness::SmallDisk;
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
/// Ballast is written in pieces of this many bytes, then in single bytes' worth.
const PIECE_BYTES: usize = 1 << 20;

/// Writes a file until the disk has no byte left.
fn fill(path: &Path) -> Result<u64> {
    let mut file = File::create(path)?;
    let mut written = 0;
    let mut piece = vec![0xA5; PIECE_BYTES];
    loop {
        match file.write(&piece) {
            Ok(bytes) => written += bytes as u64,
            Err(error) if error.kind() == ErrorKind::StorageFull && piece.len() > 1 => {
                piece.truncate(piece.len() / 2);
            }
            Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(written),
            Err(error) => return Err(error).context("could not write the ballast"),
        }
    }
}

fn may_mount() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    effective.is_some_and(|effective| effective & CAP_SYS_ADMIN != 0)
}

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
            let written = fill(&ballast)?;
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
