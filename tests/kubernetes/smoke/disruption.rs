//! Disruption: a budget blocks evictions as long as it has to.

use carillon_e2e::{Cluster, restricted, until, until_any};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, EvictParams};
use serde_json::json;

use crate::POD_LIMIT;
use crate::nodes::is_running;

const TOO_MANY_REQUESTS: u16 = 429;

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_budget_blocks_an_eviction() -> anyhow::Result<()> {
    let Some(cluster) = Cluster::with_nodes("a budget").await? else {
        return Ok(());
    };
    let namespace = cluster.namespace("budget").await?;
    let pods = namespace.api::<Pod>();
    let budgets = namespace.api::<PodDisruptionBudget>();
    namespace
        .create::<PodDisruptionBudget>(json!({
            "metadata": {"name": "all"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "only"}}},
        }))
        .await?;
    namespace
        .create::<Pod>(restricted("only", "exec sleep 3600"))
        .await?;
    until(&pods, "only", "to run", POD_LIMIT, is_running).await?;
    until(&budgets, "all", "to count the pod", POD_LIMIT, |budget| {
        let status = budget.status.as_ref();
        status.is_some_and(|s| s.current_healthy == 1)
    })
    .await?;

    match pods.evict("only", &EvictParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == TOO_MANY_REQUESTS => {}
        other => panic!("the eviction was not refused: {other:?}"),
    }
    let pod = pods.get("only").await?;
    assert!(pod.metadata.deletion_timestamp.is_none());

    budgets.delete("all", &DeleteParams::default()).await?;
    until_any(&budgets, "all", "to be gone", POD_LIMIT, |b| b.is_none()).await?;
    pods.evict("only", &EvictParams::default()).await?;
    until_any(&pods, "only", "to be gone", POD_LIMIT, |p| p.is_none()).await?;
    namespace.remove().await
}
