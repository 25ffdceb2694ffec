//! Pods for tests, and talking to them through the API server.

use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::AttachParams;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::cluster::Cluster;

const EXEC_LIMIT: Duration = Duration::from_secs(60);
const HTTP_LIMIT: Duration = Duration::from_secs(10);
/// A user that is nobody.
const USER: i64 = 65532;

/// A pod as strict as it can be: not root, no rights, a root file system that cannot be
/// written, a small /tmp. `script` is for a shell.
pub fn restricted(name: &str, script: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "automountServiceAccountToken": false,
            // A shell that is process 1 does not hear SIGTERM.
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "main",
                "image": Cluster::tools_image(),
                "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", script],
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                },
                "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}},
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
            }],
            "volumes": [{"name": "tmp", "emptyDir": {"medium": "Memory"}}],
        },
    })
}

/// What a command in a pod said.
#[derive(Debug)]
pub struct Said {
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
    /// Whether it ended with 0.
    pub success: bool,
}

/// Runs a command in a pod.
pub async fn exec(pods: &Api<Pod>, pod: &str, script: &str) -> anyhow::Result<Said> {
    let running = async {
        let parameters = AttachParams::default().stdout(true).stderr(true);
        let mut attached = pods.exec(pod, ["sh", "-c", script], &parameters).await?;
        let status = attached.take_status().context("no status channel")?;
        let mut stdout = attached.stdout().context("no standard output")?;
        let mut stderr = attached.stderr().context("no standard error")?;
        let (mut out, mut err) = (String::new(), String::new());
        let (one, other) = tokio::join!(
            stdout.read_to_string(&mut out),
            stderr.read_to_string(&mut err)
        );
        one?;
        other?;
        let status = status
            .await
            .context("the API server did not say how it ended")?;
        let success = status.status.as_deref() == Some("Success");
        anyhow::Ok(Said { out, err, success })
    };
    tokio::time::timeout(EXEC_LIMIT, running)
        .await
        .with_context(|| format!("{script:?} in {pod} did not end in {EXEC_LIMIT:?}"))?
        .with_context(|| format!("{script:?} in {pod}"))
}

/// Gets a page of a pod over a port-forward, and returns its body.
pub async fn http_get(pods: &Api<Pod>, pod: &str, port: u16, path: &str) -> anyhow::Result<String> {
    let asking = async {
        let mut forwarded = pods.portforward(pod, &[port]).await?;
        let mut stream = forwarded.take_stream(port).context("no stream")?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {pod}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = tokio::time::timeout(HTTP_LIMIT, asking)
        .await
        .with_context(|| format!("{pod}:{port}{path} did not answer in {HTTP_LIMIT:?}"))??;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.lines().next().is_some_and(|l| l.contains(" 200 ")) => {
            Ok(body.to_owned())
        }
        _ => bail!("{pod}:{port}{path} answered {answer:?}"),
    }
}
