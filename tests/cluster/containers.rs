//! What a container runtime asks of a node: whether it is well, and to be ready to stop.

use std::process::Output;
use std::time::Duration;

use anyhow::Result;
use carillon_proto::admin::Standing;
use carillon_tests::harness::{Cluster, ClusterOptions};

/// A node that has lost the others knows it by then.
const NOTICED_WITHIN: Duration = Duration::from_secs(20);

fn said(output: &Output) -> String {
    let both = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_say_how_the_node_is() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default()).await?;
    for question in ["live", "ready"] {
        let answer = cluster.beside(1, &["probe", question]).await?;
        assert!(answer.status.success(), "{}", said(&answer));
    }
    // Alone it runs, but serves nobody.
    cluster.kill9(2).await?;
    cluster.kill9(3).await?;
    let answer = cluster.beside(1, &["probe", "live"]).await?;
    assert!(answer.status.success(), "{}", said(&answer));
    let is_not_ready = async || -> Result<bool> {
        let answer = cluster.beside(1, &["probe", "ready"]).await?;
        Ok(!answer.status.success() && said(&answer).contains("503"))
    };
    let noticed = async {
        while !is_not_ready().await? {}
        anyhow::Ok(())
    };
    tokio::time::timeout(NOTICED_WITHIN, noticed).await??;
    cluster.kill9(1).await?;
    let answer = cluster.beside(1, &["probe", "live"]).await?;
    assert!(!answer.status.success());
    assert!(
        said(&answer).contains("does not answer"),
        "{}",
        said(&answer)
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_drained_before_it_is_stopped_unless_others_need_it() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default()).await?;
    let drained = cluster.beside(2, &["drain"]).await?;
    assert!(drained.status.success(), "{}", said(&drained));
    let standing = async |cluster: &Cluster, id: u64| -> Result<Standing> {
        Ok(cluster.node_status(id).await?.standing())
    };
    assert_eq!(standing(&cluster, 2).await?, Standing::DrainingForRestart);
    let led = cluster.shards().await?;
    assert!(led.iter().all(|shard| shard.leader_node != 2), "{led:?}");

    // While it is away the others cannot spare one more.
    cluster.kill9(2).await?;
    let refused = cluster.beside(3, &["drain", "--timeout", "2s"]).await?;
    assert!(!refused.status.success(), "{}", said(&refused));
    let why = said(&refused);
    assert!(why.contains("bring back the others first"), "{why}");
    assert_eq!(standing(&cluster, 3).await?, Standing::Active);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_node_keeps_nobody_waiting() -> Result<()> {
    let options = ClusterOptions {
        nodes: 1,
        replication_factor: 1,
        ..ClusterOptions::default()
    };
    let cluster = Cluster::start(options).await?;
    let drained = cluster.beside(1, &["drain"]).await?;
    assert!(drained.status.success(), "{}", said(&drained));
    assert!(
        said(&drained).contains("the only node"),
        "{}",
        said(&drained)
    );
    Ok(())
}
