//! Volumes: one that is full says so, and can be written to again when it has grown; one that
//! is not bound to a node is used from another.

use carillon_e2e::{Cluster, exec, restricted, until, until_any};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::POD_LIMIT;
use crate::nodes::is_running;

/// The least that XFS wants, and more.
const SMALL: &str = "320Mi";
const LARGER: &str = "400Mi";

fn claim(class: &str, size: &str) -> Value {
    json!({
        "metadata": {"name": "data"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": class,
            "resources": {"requests": {"storage": size}},
        },
    })
}

fn with_data(name: &str) -> Value {
    let mut pod = restricted(name, "exec sleep 3600");
    let container = &mut pod["spec"]["containers"][0];
    container["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    // What is written and not on disk yet counts: dd was killed for it.
    container["resources"]["limits"]["memory"] = json!("256Mi");
    pod["spec"]["volumes"] = json!([
        {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
    ]);
    pod
}

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_full_volume_grows_while_it_is_used() -> anyhow::Result<()> {
    let Some((cluster, _)) = Cluster::with_bed("a full volume").await? else {
        return Ok(());
    };
    let namespace = cluster.namespace("full").await?;
    let pods = namespace.api::<Pod>();
    let claims = namespace.api::<PersistentVolumeClaim>();
    namespace
        .create::<PersistentVolumeClaim>(claim("sized", SMALL))
        .await?;
    namespace.create::<Pod>(with_data("writer")).await?;
    until(&pods, "writer", "to run", POD_LIMIT, is_running).await?;

    let filled = exec(
        &pods,
        "writer",
        "dd if=/dev/zero of=/data/large bs=1M count=1000",
    )
    .await?;
    assert!(filled.err.contains("No space left"), "{filled:?}");

    let larger = json!({"spec": {"resources": {"requests": {"storage": LARGER}}}});
    claims
        .patch("data", &PatchParams::default(), &Patch::Merge(&larger))
        .await?;
    until(&claims, "data", "to have grown", POD_LIMIT, |claim| {
        let capacity = claim.status.as_ref().and_then(|s| s.capacity.as_ref());
        capacity.is_some_and(|c| c.get("storage").is_some_and(|size| size.0 == LARGER))
    })
    .await?;
    let written = exec(
        &pods,
        "writer",
        "dd if=/dev/zero of=/data/more bs=1M count=40",
    )
    .await?;
    assert!(written.success, "{written:?}");
    namespace.remove().await
}

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_volume_is_used_from_another_node() -> anyhow::Result<()> {
    let Some(cluster) = Cluster::with_nodes("a volume that moves").await? else {
        return Ok(());
    };
    let namespace = cluster.namespace("moves").await?;
    let pods = namespace.api::<Pod>();
    namespace
        .create::<PersistentVolumeClaim>(claim(&Cluster::storage_class(), "1Gi"))
        .await?;
    namespace.create::<Pod>(with_data("first")).await?;
    let first = until(&pods, "first", "to run", POD_LIMIT, is_running).await?;
    exec(&pods, "first", "echo from the first >/data/file; sync").await?;
    pods.delete("first", &DeleteParams::default()).await?;
    until_any(&pods, "first", "to be gone", POD_LIMIT, |p| p.is_none()).await?;

    let node = first.spec.and_then(|spec| spec.node_name);
    let mut second = with_data("second");
    second["spec"]["affinity"] = json!({"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{
            "matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": [node]},
            ],
        }]},
    }});
    namespace.create::<Pod>(second).await?;
    until(&pods, "second", "to run", POD_LIMIT, is_running).await?;
    let read = exec(&pods, "second", "cat /data/file").await?;
    assert_eq!(read.out, "from the first\n");
    namespace.remove().await
}
