//! Deleting a cluster, with its data and without.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use carillon_crds::ImCluster;
use carillon_e2e::chat::{ChatCluster, NAME, beside_others, spec};
use carillon_e2e::{Cluster, until_any};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret, Service};
use kube::api::DeleteParams;
use serde_json::json;

const GONE_LIMIT: Duration = Duration::from_secs(150);
const SOME_MESSAGES: u64 = 150;
const PROGRESS_LIMIT: Duration = Duration::from_secs(60);

/// A Service of somebody else's, which stays when the cluster is deleted.
async fn own_service(chat: &ChatCluster) -> anyhow::Result<String> {
    const SERVICE: &str = "own";
    let service = json!({
        "metadata": {"name": SERVICE},
        "spec": {
            "selector": {"carillon.dev/cluster": NAME},
            "ports": [{"name": "client", "port": 7400}],
        },
    });
    chat.namespace.create::<Service>(service).await?;
    chat.address_of(SERVICE).await
}

async fn deleted(chat: &ChatCluster) -> anyhow::Result<()> {
    let all = chat.namespace.api::<ImCluster>();
    all.delete(NAME, &DeleteParams::default()).await?;
    until_any(&all, NAME, "to be gone", GONE_LIMIT, |seen| seen.is_none()).await?;
    let pods = chat.namespace.api::<Pod>();
    for pod in chat.pods().await? {
        let name = pod.metadata.name.unwrap_or_default();
        until_any(&pods, &name, "to be gone", GONE_LIMIT, |seen| {
            seen.is_none()
        })
        .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_deleted_cluster_comes_back_on_its_volumes() -> anyhow::Result<()> {
    let test = "a deleted cluster";
    let _turn = beside_others().await;
    let Some(cluster) = Cluster::with_nodes(test).await? else {
        return Ok(());
    };
    let retain = json!({"deletionPolicy": "Retain"});
    let chat = ChatCluster::create(&cluster, "retain", &retain).await?;
    let before = chat.ready().await?.status.context("no status")?;
    let load = chat.load(own_service(&chat).await?, None).await?;
    deleted(&chat).await?;
    chat.apply(&spec(&retain)?).await?;
    let after = chat.ready().await?.status.context("no status")?;
    ensure!(
        after.cluster_id == before.cluster_id,
        "it is another cluster"
    );
    // They sent all the time, and trust the cluster that is there now.
    load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
        .await?;
    let (report, sends) = chat.check(load).await?;
    println!("{test}: {report}; {sends}");
    chat.remove().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_cluster_is_deleted_with_all_that_is_of_it() -> anyhow::Result<()> {
    let test = "a cluster that is deleted with its data";
    let _turn = beside_others().await;
    let Some(cluster) = Cluster::with_nodes(test).await? else {
        return Ok(());
    };
    let wanted = json!({"nodes": 1, "replicationFactor": 1, "shards": 2});
    let chat = ChatCluster::create(&cluster, "deleted", &wanted).await?;
    chat.ready().await?;
    deleted(&chat).await?;
    let claims = chat.namespace.api::<PersistentVolumeClaim>();
    let claim = "data-chat-0";
    until_any(&claims, claim, "to be gone", GONE_LIMIT, |seen| {
        seen.is_none()
    })
    .await?;
    let secrets = chat.namespace.api::<Secret>();
    let authority = secrets.get_opt("chat-ca").await?;
    ensure!(authority.is_none(), "its authority is left");
    chat.namespace.remove().await
}
