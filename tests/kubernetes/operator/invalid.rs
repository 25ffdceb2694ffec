//! What a person can do wrong, and what is said of it.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use carillon_crds::ImCluster;
use carillon_e2e::Cluster;
use carillon_e2e::chat::{ChatCluster, NAME, beside_others, is, message, spec};
use http::Request;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

const SAID_LIMIT: Duration = Duration::from_secs(60);

/// Each with what its refusal has to say.
fn wrong_from_the_start() -> Vec<(Value, &'static str)> {
    vec![
        (
            json!({"nodes": 2}),
            "must be at least spec.replicationFactor",
        ),
        (json!({"replicationFactor": 2}), "must be odd"),
        (json!({"version": "new"}), "spec.version"),
        (json!({"storage": {"size": "much"}}), "spec.storage.size"),
        (
            json!({"storage": {"autoGrow": {"maxSize": "1Mi"}}}),
            "autoGrow.maxSize must be at least",
        ),
        (
            json!({"tls": {"mode": "Secret"}}),
            "spec.tls.secret must be set",
        ),
        (
            json!({"auth": {"serverKeys": null}}),
            "needs jwks, serverKeys, or both",
        ),
        (
            json!({"auth": {"issuer": "https://a.example"}}),
            "need spec.auth.jwks",
        ),
        (
            json!({"scaleIn": {"candidates": ["other-1"]}}),
            "must be names of members",
        ),
        (
            json!({"failureReplacement": {"after": "1s"}}),
            "must be from 30s to 168h",
        ),
        (
            json!({"podTemplate": {"labels": {"carillon.dev/member": "x"}}}),
            "must not begin with carillon.dev/",
        ),
        (json!({"nodez": 3}), "unknown field"),
        (
            json!({"update": {"minReady": "soon"}}),
            "spec.update.minReady",
        ),
    ]
}

/// What cannot be changed.
fn wrong_later() -> Vec<(Value, &'static str)> {
    vec![
        (json!({"shards": 12}), "cannot be changed"),
        (json!({"replicationFactor": 1}), "cannot be changed once"),
        (json!({"storage": {"size": "512Mi"}}), "must not shrink"),
        (
            json!({"storage": {"className": "zonal"}}),
            "className cannot be changed",
        ),
        (
            json!({"tls": {"mode": "Secret", "secret": {"name": "x"}}}),
            "cannot be changed",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes: make e2e"]
async fn what_is_wrong_is_refused_with_its_reason() -> anyhow::Result<()> {
    let _turn = beside_others().await;
    let cluster = Cluster::connect().await?;
    let namespace = cluster.namespace("wrong").await?;
    let all = namespace.api::<ImCluster>();
    for (wrong, said) in wrong_from_the_start() {
        let object = json!({
            "apiVersion": "carillon.dev/v1alpha1",
            "kind": "ImCluster",
            "metadata": {"name": NAME, "namespace": namespace.name},
            "spec": spec(&wrong)?,
        });
        // As kubectl does.
        let uri = format!(
            "/apis/carillon.dev/v1alpha1/namespaces/{}/imclusters?fieldValidation=Strict",
            namespace.name
        );
        let request = Request::post(uri).header("content-type", "application/json");
        let request = request.body(serde_json::to_vec(&object)?)?;
        let refused = cluster.client.request::<Value>(request).await.err();
        let refused = refused.with_context(|| format!("{wrong} was taken"))?;
        ensure!(refused.to_string().contains(said), "{wrong}: {refused}");
    }
    // Paused: nothing is made, only the rules of changes are looked at.
    let object = json!({
        "apiVersion": "carillon.dev/v1alpha1",
        "kind": "ImCluster",
        "metadata": {"name": NAME},
        "spec": spec(&json!({"paused": true}))?,
    });
    namespace.create::<ImCluster>(object).await?;
    for (wrong, said) in wrong_later() {
        let patch = Patch::Merge(json!({ "spec": wrong }));
        let refused = all.patch(NAME, &PatchParams::default(), &patch).await.err();
        let refused = refused.with_context(|| format!("{wrong} was taken"))?;
        ensure!(refused.to_string().contains(said), "{wrong}: {refused}");
    }
    all.delete(NAME, &DeleteParams::default()).await?;
    namespace.remove().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes: make e2e"]
async fn what_cannot_be_placed_says_why_and_is_placed_once_it_can_be() -> anyhow::Result<()> {
    let test = "what cannot be placed";
    let _turn = beside_others().await;
    let Some(cluster) = Cluster::with_nodes(test).await? else {
        return Ok(());
    };
    let wanted = json!({
        "nodes": 1,
        "replicationFactor": 1,
        "shards": 2,
        "podTemplate": {"nodeSelector": {"carillon.test/nowhere": "true"}},
    });
    let chat = ChatCluster::create(&cluster, "unplaced", &wanted).await?;
    let said = |seen: &ImCluster| {
        is(seen, "Ready", "False") && message(seen, "Ready").contains("didn't match")
    };
    let what = "Ready to say why it cannot be placed";
    chat.until(what, SAID_LIMIT, said).await?;
    chat.becomes(json!({"podTemplate": null})).await?;
    chat.remove().await
}
