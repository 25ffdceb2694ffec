//! The image of a node (`scripts/build-image.sh node`): it runs as nobody, on a root file
//! system that cannot be written.

use carillon_e2e::{Cluster, Namespace, restricted, until};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::LogParams;
use serde_json::{Value, json};

use crate::POD_LIMIT;

const CONFIGURATION: &str = r#"
node_id = 1
cluster_name = "smoke"
data_dir = "/var/lib/carillon"

[listen]
client = "127.0.0.1:7401"
peer = "127.0.0.1:7501"
http = "127.0.0.1:7601"

[cluster]
replication_factor = 1

[[initial_peers]]
node_id = 1
peer_address = "127.0.0.1:7501"
client_address = "127.0.0.1:7401"
"#;

/// `CARILLON_NODE_IMAGE`, an image that the cluster's nodes have or can pull.
fn image(test: &str) -> Option<String> {
    let image = std::env::var("CARILLON_NODE_IMAGE").ok();
    if image.is_none() {
        println!("SKIPPED: {test}: CARILLON_NODE_IMAGE is not set");
    }
    image
}

/// A pod that runs the image's own program with these arguments and ends.
fn program(name: &str, image: &str, arguments: &[&str]) -> Value {
    let mut pod = restricted(name, "");
    pod["spec"]["restartPolicy"] = json!("Never");
    let container = &mut pod["spec"]["containers"][0];
    container["image"] = json!(image);
    container["args"] = json!(arguments);
    if let Some(fields) = container.as_object_mut() {
        fields.remove("command");
    }
    pod
}

/// Runs it to its end, and returns what it wrote.
async fn ran(namespace: &Namespace, pod: Value) -> anyhow::Result<(bool, String)> {
    let pods = namespace.api::<Pod>();
    let made = namespace.create::<Pod>(pod).await?;
    let name = made.metadata.name.unwrap_or_default();
    let phase = |pod: &Pod| pod.status.as_ref()?.phase.clone();
    let ended = until(&pods, &name, "to end", POD_LIMIT, |pod| {
        matches!(phase(pod).as_deref(), Some("Succeeded" | "Failed"))
    })
    .await?;
    let logs = pods.logs(&name, &LogParams::default()).await?;
    Ok((phase(&ended).as_deref() == Some("Succeeded"), logs))
}

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_node_says_its_version_and_checks_its_configuration() -> anyhow::Result<()> {
    let test = "the image of a node";
    let (Some(image), Some(cluster)) = (image(test), Cluster::with_nodes(test).await?) else {
        return Ok(());
    };
    let namespace = cluster.namespace("image").await?;
    let (ok, said) = ran(&namespace, program("version", &image, &["--version"])).await?;
    let version = env!("CARGO_PKG_VERSION");
    assert!(ok && said == format!("carillon-node {version}\n"), "{said}");

    // A node that wants certificates can be told that this is a trial on loopback.
    let (_, help) = ran(&namespace, program("help", &image, &["--help"])).await?;
    let trial = help.contains("--dev").then_some("--dev");

    for (name, text, valid) in [
        ("valid", CONFIGURATION.to_owned(), true),
        ("invalid", format!("sharts = 3\n{CONFIGURATION}"), false),
    ] {
        namespace
            .create::<ConfigMap>(json!({
                "metadata": {"name": name}, "data": {"node.toml": text},
            }))
            .await?;
        let mut arguments = vec!["--config", "/etc/carillon/node.toml", "--check"];
        arguments.extend(trial);
        let mut pod = program(name, &image, &arguments);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([
            {"name": "configuration", "mountPath": "/etc/carillon", "readOnly": true},
        ]);
        pod["spec"]["volumes"] = json!([
            {"name": "configuration", "configMap": {"name": name}},
        ]);
        let (ok, said) = ran(&namespace, pod).await?;
        assert_eq!(ok, valid, "{name}: {said}");
        let expected = if valid { "is valid" } else { "sharts" };
        assert!(said.contains(expected), "{name}: {said}");
    }
    namespace.remove().await
}
