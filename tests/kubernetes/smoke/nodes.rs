//! Nodes: that they are there, and that each way of losing one is noticed and ends.

use std::collections::BTreeSet;

use carillon_e2e::{Bed, Cluster, Fault, exec, restricted, until};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::ListParams;
use serde_json::json;

use crate::{NODE_LIMIT, POD_LIMIT};

/// Not node 1: this machine may reach services through it.
const VICTIM: u32 = 3;
const ZONE: &str = "topology.kubernetes.io/zone";

/// What Kubernetes says of a node: `True`, `False`, `Unknown`.
fn readiness(node: &Node) -> Option<&str> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|c| c.type_ == "Ready")?;
    Some(ready.status.as_str())
}

fn victim() -> String {
    format!("node{VICTIM}")
}

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn all_nodes_are_ready_in_three_zones() -> anyhow::Result<()> {
    let Some((cluster, _)) = Cluster::with_bed("nodes in three zones").await? else {
        return Ok(());
    };
    let nodes = Api::<Node>::all(cluster.client.clone());
    let found = nodes.list(&ListParams::default()).await?.items;
    assert!(found.len() >= 3, "{} nodes", found.len());
    for node in &found {
        assert_eq!(readiness(node), Some("True"), "{:?}", node.metadata.name);
    }
    let zones: BTreeSet<_> = found
        .iter()
        .filter_map(|node| node.metadata.labels.as_ref()?.get(ZONE))
        .collect();
    assert_eq!(zones.len(), 3, "{zones:?}");
    Ok(())
}

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_node_without_power_is_noticed_and_comes_back() -> anyhow::Result<()> {
    let Some((cluster, bed)) = Cluster::with_bed("a node without power").await? else {
        return Ok(());
    };
    is_lost_and_comes_back(&cluster, &bed, Fault::PowerOff).await
}

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_node_that_is_cut_off_is_noticed_and_comes_back() -> anyhow::Result<()> {
    let Some((cluster, bed)) = Cluster::with_bed("a node that is cut off").await? else {
        return Ok(());
    };
    is_lost_and_comes_back(&cluster, &bed, Fault::Cut).await
}

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_node_without_its_kubelet_is_noticed_and_comes_back() -> anyhow::Result<()> {
    let Some((cluster, bed)) = Cluster::with_bed("a node without its kubelet").await? else {
        return Ok(());
    };
    is_lost_and_comes_back(&cluster, &bed, Fault::KubeletOff).await
}

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn pods_go_on_without_the_api_server() -> anyhow::Result<()> {
    let Some((cluster, bed)) = Cluster::with_bed("no API server").await? else {
        return Ok(());
    };
    let namespace = cluster.namespace("no-api").await?;
    let pods = namespace.api::<Pod>();
    let script = "while date +%s >>/tmp/seconds; do sleep 1; done";
    namespace.create::<Pod>(restricted("clock", script)).await?;
    until(&pods, "clock", "to run", POD_LIMIT, is_running).await?;
    let before = lines(&pods).await?;

    bed.api_server(false).await?;
    let nodes = Api::<Node>::all(cluster.client.clone());
    let answer = nodes.list(&ListParams::default()).await;
    // Time in which the clock goes on, if it does.
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    bed.api_server(true).await?;
    assert!(answer.is_err(), "the API server still answers");

    let clock = until(&pods, "clock", "to run", POD_LIMIT, is_running).await?;
    let status = clock.status.unwrap_or_default();
    let restarts = status.container_statuses.map(|c| c[0].restart_count);
    assert_eq!(restarts, Some(0));
    let after = lines(&pods).await?;
    assert!(after >= before + 3, "{before} lines before, {after} after");
    namespace.remove().await
}

async fn lines(pods: &Api<Pod>) -> anyhow::Result<u32> {
    let said = exec(pods, "clock", "wc -l </tmp/seconds").await?;
    Ok(said.out.trim().parse()?)
}

/// Loses the node in one way, sees that Kubernetes notices, ends it, and runs a pod there.
async fn is_lost_and_comes_back(cluster: &Cluster, bed: &Bed, fault: Fault) -> anyhow::Result<()> {
    let nodes = Api::<Node>::all(cluster.client.clone());
    bed.node(VICTIM, fault).await?;
    let noticed = until(&nodes, &victim(), "to be lost", NODE_LIMIT, |node| {
        readiness(node) == Some("Unknown")
    })
    .await;
    // Ended in any case: other tests want the node.
    if let Some(end) = fault.end() {
        bed.node(VICTIM, end).await?;
    }
    noticed?;
    until(&nodes, &victim(), "to be ready again", NODE_LIMIT, |node| {
        readiness(node) == Some("True")
    })
    .await?;

    let namespace = cluster.namespace("back").await?;
    let pods = namespace.api::<Pod>();
    let mut pod = restricted("there", "exec sleep 3600");
    pod["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": victim()});
    namespace.create::<Pod>(pod).await?;
    until(&pods, "there", "to run", POD_LIMIT, is_running).await?;
    namespace.remove().await
}

/// All its containers run and are ready.
pub fn is_running(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}
