//! What a report has, and how it is read: one thing after the other, each with a limit of its own.

use std::time::Duration;

use anyhow::Context as _;
use futures_util::AsyncReadExt as _;
use k8s_openapi::api::core::v1::{
    ConfigMap, ContainerStatus, Node, PersistentVolumeClaim, Pod, Service,
};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{ListParams, LogParams};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::Report;
use super::tail::Tail;
use crate::arguments::Cluster;
use crate::commands::admin::Who;
use crate::commands::admin::parts::Part;
use crate::commands::kubernetes::access::Reached;
use crate::commands::kubernetes::connect::{Connection, is_forbidden};
use crate::commands::kubernetes::pods::{CLUSTER_LABEL, name as pod_name};
use crate::failure::advised;

/// Objects of one kind.
const OBJECTS_MAX: u32 = 500;
/// The end of each log: lines that are read …
const LOG_LINES_MAX: i64 = 20_000;
/// … and bytes that are kept.
const LOG_BYTES_MAX: usize = 4 << 20;
/// For one question.
const READ_LIMIT: Duration = Duration::from_secs(20);
/// For one log.
const LOG_LIMIT: Duration = Duration::from_secs(60);
/// What selects the operator's Pods.
const OPERATOR: &str = "app.kubernetes.io/name=carillon-operator";

/// For who reads the report.
pub(super) fn limits() -> Value {
    json!({
        "objects_of_a_kind_max": OBJECTS_MAX,
        "log_lines_max": LOG_LINES_MAX,
        "log_bytes_max": LOG_BYTES_MAX,
        "read_limit_s": READ_LIMIT.as_secs(),
        "log_limit_s": LOG_LIMIT.as_secs(),
    })
}

/// The objects around a cluster.
pub(super) async fn objects(
    report: &mut Report,
    connection: &Connection,
    name: &str,
) -> anyhow::Result<()> {
    let version = connection.client.apiserver_version();
    let version = in_time(version).await.context("the API server's version");
    report.object("kubernetes.json", version)?;
    report.object("events.json", events(connection, name).await)?;
    let of = Of { connection, name };
    report.object("pods.json", of.list::<Pod>("pods").await)?;
    let claims = of.list::<PersistentVolumeClaim>("persistentvolumeclaims");
    report.object("persistentvolumeclaims.json", claims.await)?;
    report.object("services.json", of.list::<Service>("services").await)?;
    let budgets = of.list::<PodDisruptionBudget>("poddisruptionbudgets");
    report.object("poddisruptionbudgets.json", budgets.await)?;
    report.object("configmaps.json", of.list::<ConfigMap>("configmaps").await)?;
    let policies = of.list::<NetworkPolicy>("networkpolicies");
    report.object("networkpolicies.json", policies.await)?;
    report.object("nodes.json", machines(connection).await)
}

/// Objects of a cluster.
struct Of<'a> {
    connection: &'a Connection,
    name: &'a str,
}

impl Of<'_> {
    async fn list<K>(&self, resource: &str) -> anyhow::Result<Vec<K>>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned
            + Serialize,
    {
        let label = format!("{CLUSTER_LABEL}={}", self.name);
        let wanted = ListParams::default().labels(&label).limit(OBJECTS_MAX);
        let all = self.connection.all::<K>();
        match timeout(READ_LIMIT, all.list(&wanted)).await {
            Ok(Ok(found)) => Ok(found.items),
            Ok(Err(error)) => Err(self.connection.refused("list", resource, error)),
            Err(_) => Err(late()),
        }
    }
}

fn late() -> anyhow::Error {
    anyhow::anyhow!("the API server did not answer within {READ_LIMIT:?}")
}

async fn in_time<T>(asked: impl Future<Output = Result<T, kube::Error>>) -> anyhow::Result<T> {
    match timeout(READ_LIMIT, asked).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(late()),
    }
}

/// What happened to the cluster's objects.
async fn events(connection: &Connection, name: &str) -> anyhow::Result<Vec<Event>> {
    let found = timeout(READ_LIMIT, connection.events_of(ListParams::default())).await;
    let mut events = match found {
        Ok(Ok(events)) => events,
        Ok(Err(error)) => return Err(connection.refused("list", "events.events.k8s.io", error)),
        Err(_) => return Err(late()),
    };
    events.retain(|event| {
        let regarding = event.regarding.as_ref();
        let about = regarding.and_then(|regarding| regarding.name.as_deref());
        about.is_some_and(|about| is_of(name, about))
    });
    Ok(events)
}

/// Whether a name is that of a cluster, one of its members, their volumes or its Services.
fn is_of(cluster: &str, name: &str) -> bool {
    let name = name.strip_prefix("data-").unwrap_or(name);
    let Some(rest) = name.strip_prefix(cluster) else {
        return false;
    };
    let number = |rest: &str| {
        let digits = rest.strip_prefix('-').unwrap_or_default();
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    ["", "-client", "-admin"].contains(&rest) || number(rest)
}

/// The machines, with what decides who is placed on them.
async fn machines(connection: &Connection) -> anyhow::Result<Vec<Value>> {
    let all = Api::<Node>::all(connection.client.clone());
    let wanted = ListParams::default().limit(OBJECTS_MAX);
    let found = match timeout(READ_LIMIT, all.list(&wanted)).await {
        Ok(Ok(found)) => found.items,
        Ok(Err(error)) if is_forbidden(&error) => {
            return Err(advised(
                "nodes: not allowed to list them",
                "a ClusterRole with the verb list on nodes allows it",
            ));
        }
        Ok(Err(error)) => return Err(error.into()),
        Err(_) => return Err(late()),
    };
    Ok(found.iter().map(machine).collect())
}

fn machine(node: &Node) -> Value {
    let (spec, status) = (node.spec.as_ref(), node.status.as_ref());
    json!({
        "name": node.metadata.name,
        "labels": node.metadata.labels,
        "creationTimestamp": node.metadata.creation_timestamp,
        "deletionTimestamp": node.metadata.deletion_timestamp,
        "unschedulable": spec.and_then(|spec| spec.unschedulable),
        "taints": spec.and_then(|spec| spec.taints.as_ref()),
        "conditions": status.and_then(|status| status.conditions.as_ref()),
        "allocatable": status.and_then(|status| status.allocatable.as_ref()),
        "nodeInfo": status.and_then(|status| status.node_info.as_ref()),
    })
}

/// What the members say, and what they said before they were last started again.
pub(super) async fn member_logs(
    report: &mut Report,
    connection: &Connection,
    name: &str,
) -> anyhow::Result<()> {
    let pods = match timeout(READ_LIMIT, connection.member_pods(name)).await {
        Ok(Ok(pods)) => pods,
        Ok(Err(error)) => return report.log("logs", Err(error)),
        Err(_) => return report.log("logs", Err(late())),
    };
    for pod in &pods {
        logs(report, connection, &connection.all(), pod, "logs").await?;
    }
    Ok(())
}

/// The logs of all containers of a Pod.
async fn logs(
    report: &mut Report,
    connection: &Connection,
    api: &Api<Pod>,
    pod: &Pod,
    folder: &str,
) -> anyhow::Result<()> {
    let status = pod.status.as_ref();
    let containers = status.iter().flat_map(|status| &status.container_statuses);
    for ContainerStatus {
        name,
        restart_count,
        ..
    } in containers.flatten()
    {
        let file = format!("{folder}/{}.{name}", pod_name(pod));
        let log = log(connection, api, pod, name, false).await;
        report.log(&format!("{file}.log"), log)?;
        if *restart_count > 0 {
            let log = self::log(connection, api, pod, name, true).await;
            report.log(&format!("{file}.previous.log"), log)?;
        }
    }
    Ok(())
}

async fn log(
    connection: &Connection,
    api: &Api<Pod>,
    pod: &Pod,
    container: &str,
    previous: bool,
) -> anyhow::Result<String> {
    let wanted = LogParams {
        container: Some(container.to_owned()),
        previous,
        tail_lines: Some(LOG_LINES_MAX),
        ..LogParams::default()
    };
    let mut tail = Tail::new(LOG_BYTES_MAX);
    let reading = async {
        let log = api.log_stream(pod_name(pod), &wanted).await;
        let log = log.map_err(|error| connection.refused("get", "pods/log", error))?;
        let mut log = std::pin::pin!(log);
        let mut bytes = vec![0; 64 << 10];
        loop {
            match log.read(&mut bytes).await? {
                0 => return anyhow::Ok(()),
                count => tail.push(&bytes[..count]),
            }
        }
    };
    match timeout(LOG_LIMIT, reading).await {
        Ok(read) => read?,
        Err(_) => tail.push(b"\n(the rest did not come in time)\n"),
    }
    Ok(tail.text())
}

/// The operator's Pods and logs.
pub(super) async fn operator(
    report: &mut Report,
    connection: &Connection,
    namespace: &str,
) -> anyhow::Result<()> {
    let wanted = ListParams::default().labels(OPERATOR).limit(OBJECTS_MAX);
    let everywhere = Api::<Pod>::all(connection.client.clone());
    let found = match in_time(everywhere.list(&wanted)).await {
        Ok(found) => Ok(found),
        Err(_) => {
            let there = Api::<Pod>::namespaced(connection.client.clone(), namespace);
            in_time(there.list(&wanted)).await
        }
    };
    let pods = match found {
        Ok(found) if found.items.is_empty() => Err(anyhow::anyhow!(
            "the operator is not found; --operator-namespace says where it is"
        )),
        Ok(found) => Ok(found.items),
        Err(error) => Err(error.context(format!("pods in namespace {namespace}"))),
    };
    let pods = match pods {
        Ok(pods) => pods,
        Err(error) => return report.log("operator", Err(error)),
    };
    report.object("operator/pods.json", anyhow::Ok(&pods))?;
    for pod in &pods {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or(namespace);
        let api = Api::namespaced(connection.client.clone(), namespace);
        logs(report, connection, &api, pod, "operator").await?;
    }
    Ok(())
}

/// What the cluster says of itself.
pub(super) async fn admin(
    report: &mut Report,
    connection: &Connection,
    name: &str,
    given: &Cluster,
) -> anyhow::Result<()> {
    let reached = match timeout(READ_LIMIT, Reached::admin(connection, name, given)).await {
        Ok(Ok(reached)) => reached,
        Ok(Err(error)) => return report.log("admin", Err(error)),
        Err(_) => return report.log("admin", Err(late())),
    };
    let client = Who::default().client(&reached.cluster)?;
    for part in Part::ALL {
        let said = part.ask(&client).await;
        let said = said.map_err(|error| reached.explained(error));
        report.object(&format!("admin/{}.json", part.name()), said)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_of_this_cluster_only() {
        for own in ["chat", "chat-0", "chat-12", "data-chat-1", "chat-client"] {
            assert!(is_of("chat", own), "{own}");
        }
        for other in [
            "chat-2-0",
            "chats",
            "chat-",
            "data-chats-1",
            "mychat",
            "chat-x1",
        ] {
            assert!(!is_of("chat", other), "{other}");
        }
    }
}
