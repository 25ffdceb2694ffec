//! Pods: restricted ones run with a volume, others are refused; exec, logs and port-forward
//! reach them; names are resolved.

use carillon_e2e::{Cluster, exec, http_get, restricted, until};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Service};
use kube::api::{LogParams, PostParams};
use serde_json::json;

use crate::POD_LIMIT;
use crate::nodes::is_running;

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_restricted_pod_writes_to_its_volume_and_nowhere_else() -> anyhow::Result<()> {
    let Some(cluster) = Cluster::with_nodes("a restricted pod").await? else {
        return Ok(());
    };
    let namespace = cluster.namespace("restricted").await?;
    let pods = namespace.api::<Pod>();
    namespace
        .create::<PersistentVolumeClaim>(json!({
            "metadata": {"name": "data"},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": Cluster::storage_class(),
                "resources": {"requests": {"storage": "1Gi"}},
            },
        }))
        .await?;
    let mut pod = restricted("strict", "echo started; exec sleep 3600");
    let container = &mut pod["spec"]["containers"][0];
    container["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    pod["spec"]["volumes"] = json!([
        {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
    ]);
    namespace.create::<Pod>(pod).await?;
    until(&pods, "strict", "to run", POD_LIMIT, is_running).await?;

    let who = exec(&pods, "strict", "id -u; grep CapEff /proc/self/status").await?;
    assert!(who.out.starts_with("65532\n"), "{who:?}");
    assert!(who.out.contains("CapEff:\t0000000000000000"), "{who:?}");
    let volume = exec(&pods, "strict", "echo kept >/data/file && cat /data/file").await?;
    assert!(volume.success && volume.out == "kept\n", "{volume:?}");
    let root = exec(&pods, "strict", "echo lost >/file").await?;
    assert!(!root.success && root.err.contains("Read-only"), "{root:?}");
    let logs = pods.logs("strict", &LogParams::default()).await?;
    assert_eq!(logs, "started\n");
    namespace.remove().await
}

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_pod_that_may_be_root_is_refused() -> anyhow::Result<()> {
    let cluster = Cluster::connect().await?;
    let namespace = cluster.namespace("refused").await?;
    let mut pod = restricted("loose", "exec sleep 3600");
    pod["spec"]["securityContext"] = json!({});
    let refused = namespace
        .api::<Pod>()
        .create(&PostParams::default(), &serde_json::from_value(pod)?)
        .await;
    let error = refused.err().map(|error| error.to_string());
    assert!(
        error.as_ref().is_some_and(|e| e.contains("PodSecurity")),
        "{error:?}"
    );
    namespace.remove().await
}

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_port_forward_and_a_service_reach_a_pod() -> anyhow::Result<()> {
    let Some(cluster) = Cluster::with_nodes("a port-forward").await? else {
        return Ok(());
    };
    let namespace = cluster.namespace("reached").await?;
    let pods = namespace.api::<Pod>();
    let script = "echo here >/tmp/index.html; exec httpd -f -p 8080 -h /tmp";
    let mut pod = restricted("web", script);
    pod["spec"]["containers"][0]["readinessProbe"] = json!({
        "httpGet": {"path": "/index.html", "port": 8080}, "periodSeconds": 1,
    });
    namespace.create::<Pod>(pod).await?;
    namespace
        .create::<Service>(json!({
            "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
        }))
        .await?;
    until(&pods, "web", "to be ready", POD_LIMIT, is_running).await?;

    assert_eq!(http_get(&pods, "web", 8080, "/index.html").await?, "here\n");

    // From another pod by name: DNS, kube-proxy, and the network between nodes. The name may
    // have been asked for, and not been there, a moment ago.
    let script =
        "until wget -q -T 2 -O - http://web/index.html; do sleep 0.2; done; exec sleep 3600";
    let mut asker = restricted("asker", script);
    asker["spec"]["affinity"] = json!({"podAntiAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": {
            "topologyKey": "kubernetes.io/hostname",
            "labelSelector": {"matchLabels": {"app": "web"}},
        }}],
    }});
    let wget = json!({"exec": {"command": ["wget", "-q", "-O", "-", "http://web/index.html"]}});
    asker["spec"]["containers"][0]["readinessProbe"] = wget;
    asker["spec"]["containers"][0]["readinessProbe"]["periodSeconds"] = json!(1);
    namespace.create::<Pod>(asker).await?;
    until(&pods, "asker", "to get the page", POD_LIMIT, is_running).await?;
    namespace.remove().await
}
