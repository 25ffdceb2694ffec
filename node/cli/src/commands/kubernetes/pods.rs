//! Members' Pods: which of them serve, which one is asked next, and what the others wait for. Pure.

use std::collections::BTreeSet;

use carillon_crds::ImCluster;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};

use crate::failure::advised;

/// The label that says whose an object is.
pub(super) const CLUSTER_LABEL: &str = "carillon.dev/cluster";
/// And of which member.
pub(super) const MEMBER_LABEL: &str = "carillon.dev/member";
/// The node's container.
pub(super) const CONTAINER: &str = "node";
/// Where a node serves clients, and who administers.
pub(super) const CLIENT_PORT: u16 = 7400;
pub(super) const ADMIN_PORT: u16 = 7700;

/// What selects the Pods of all members of a cluster.
pub(super) fn selector(cluster: &str) -> String {
    format!("{CLUSTER_LABEL}={cluster},{MEMBER_LABEL}")
}

/// What an object is called.
pub(super) fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// Those that are ready and not about to end.
pub(super) fn serving(pods: &[Pod]) -> Vec<String> {
    let serve = pods.iter().filter(|pod| is_serving(pod));
    serve.map(|pod| name(pod).to_owned()).collect()
}

fn is_serving(pod: &Pod) -> bool {
    let mut conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.any(|one| one.type_ == "Ready" && one.status == "True")
}

/// The node's container.
pub(super) fn container(pod: &Pod) -> Option<&ContainerStatus> {
    let status = pod.status.as_ref()?;
    let mut all = status.container_statuses.iter().flatten();
    all.find(|one| one.name == CONTAINER)
}

/// What each of those that do not serve waits for.
pub(super) fn waits(pods: &[Pod]) -> Vec<String> {
    let away = pods.iter().filter(|pod| !is_serving(pod));
    away.map(|pod| format!("{}: {}", name(pod), wait(pod)))
        .collect()
}

fn wait(pod: &Pod) -> String {
    if pod.metadata.deletion_timestamp.is_some() {
        return "its Pod is ending".to_owned();
    }
    let state = container(pod).and_then(|one| one.state.as_ref());
    if let Some(waiting) = state.and_then(|state| state.waiting.as_ref()) {
        let reason = waiting.reason.as_deref().unwrap_or("waits");
        return match &waiting.message {
            Some(message) => format!("its container does not run: {reason}, {message}"),
            None => format!("its container does not run: {reason}"),
        };
    }
    if let Some(ended) = state.and_then(|state| state.terminated.as_ref()) {
        return format!("its container ended with {}", ended.exit_code);
    }
    if let Some(unscheduled) = pod.status.as_ref().and_then(unscheduled) {
        return format!("no machine takes it: {unscheduled}");
    }
    match state {
        Some(_) => "it starts, or catches up".to_owned(),
        None => "its container is not there yet".to_owned(),
    }
}

fn unscheduled(status: &PodStatus) -> Option<&str> {
    let mut conditions = status.conditions.iter().flatten();
    let found = conditions.find(|one| one.type_ == "PodScheduled" && one.status == "False");
    found.and_then(|one| one.message.as_deref())
}

/// The error of a cluster of which no member serves.
pub(super) fn nobody(cluster: &str, pods: &[Pod]) -> anyhow::Error {
    let waits = match waits(pods) {
        waits if waits.is_empty() => "it has no Pods".to_owned(),
        waits => waits.join("; "),
    };
    advised(
        format!("no member of {cluster} is ready: {waits}"),
        format!(
            "kubectl carillon status {cluster} says what is being done, kubectl carillon logs \
             {cluster} what the members say"
        ),
    )
}

/// Who is asked next: the one that answered last, then those that did not fail, then the others.
#[derive(Debug, Default)]
pub(super) struct Choice {
    last: Option<String>,
    failed: BTreeSet<String>,
}

impl Choice {
    /// Those that serve, in the order in which they are asked.
    pub(super) fn order(&self, serving: &[String]) -> Vec<String> {
        let mut order = serving.to_vec();
        order.sort_by_key(|pod| (Some(pod) != self.last.as_ref(), self.failed.contains(pod)));
        order
    }

    pub(super) fn worked(&mut self, pod: &str) {
        self.failed.remove(pod);
        self.last = Some(pod.to_owned());
    }

    pub(super) fn failed(&mut self, pod: &str) {
        if self.last.as_deref() == Some(pod) {
            self.last = None;
        }
        self.failed.insert(pod.to_owned());
    }
}

/// The id of a member's node.
pub(super) fn node_of(cluster: &ImCluster, member: &str) -> anyhow::Result<u64> {
    let members = cluster.status.iter().flat_map(|status| &status.members);
    let Some(found) = members.clone().find(|one| one.name == member) else {
        let there: Vec<&str> = members.map(|one| one.name.as_str()).collect();
        let advice = match there.is_empty() {
            true => "it has no members yet".to_owned(),
            false => format!("name one of these: {}", there.join(", ")),
        };
        return Err(advised(format!("there is no member {member}"), advice));
    };
    found.node_id.ok_or_else(|| {
        advised(
            format!("{member} has no node in the cluster yet"),
            "wait until it has joined: kubectl carillon status shows it",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, status: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name}, "status": status}))
            .expect("a Pod")
    }

    fn ready(name: &str) -> Pod {
        pod(
            name,
            json!({"conditions": [{"type": "Ready", "status": "True"}]}),
        )
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn only_those_serve_that_are_ready_and_stay() {
        let mut ending = ready("chat-1");
        ending.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-11-01T00:00:00Z")).ok();
        let unready = json!({"conditions": [{"type": "Ready", "status": "False"}]});
        let pods = [ready("chat-0"), ending, pod("chat-2", unready)];
        assert_eq!(serving(&pods), ["chat-0"]);
    }

    #[test]
    fn each_that_does_not_serve_says_what_it_waits_for() {
        let crashed = json!({"containerStatuses": [{
            "name": "node", "image": "", "imageID": "", "ready": false, "restartCount": 4,
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
        }]});
        let nowhere = json!({"conditions": [{
            "type": "PodScheduled", "status": "False", "message": "0/3 nodes are available",
        }]});
        let pods = [
            ready("chat-0"),
            pod("chat-1", crashed),
            pod("chat-2", nowhere),
        ];
        assert_eq!(
            waits(&pods),
            [
                "chat-1: its container does not run: CrashLoopBackOff, back-off 40s",
                "chat-2: no machine takes it: 0/3 nodes are available",
            ]
        );
        let said = nobody("chat", &pods[1..]).to_string();
        assert!(
            said.starts_with("no member of chat is ready: chat-1: "),
            "{said}"
        );
        assert!(nobody("chat", &[]).to_string().ends_with("it has no Pods"));
    }

    #[test]
    fn another_one_is_asked_when_one_fails() {
        let all = names(&["chat-0", "chat-1", "chat-2"]);
        let mut choice = Choice::default();
        assert_eq!(choice.order(&all), all);
        choice.worked("chat-1");
        assert_eq!(choice.order(&all), ["chat-1", "chat-0", "chat-2"]);
        choice.failed("chat-1");
        choice.failed("chat-0");
        assert_eq!(choice.order(&all), ["chat-2", "chat-0", "chat-1"]);
        assert_eq!(choice.order(&all[..2]), all[..2], "there is nobody else");
        choice.worked("chat-0");
        assert_eq!(choice.order(&all), ["chat-0", "chat-2", "chat-1"]);
    }

    #[test]
    fn a_member_is_found_by_its_name() {
        let cluster: ImCluster = serde_json::from_value(json!({
            "apiVersion": "carillon.dev/v1alpha1",
            "kind": "ImCluster",
            "metadata": {"name": "chat"},
            "spec": {"version": "0.2.0", "storage": {"size": "10Gi"}},
            "status": {"members": [
                {"name": "chat-0", "state": "Ready", "updated": true, "nodeId": 4},
                {"name": "chat-1", "state": "Starting", "updated": true},
            ]},
        }))
        .expect("an ImCluster");
        assert_eq!(node_of(&cluster, "chat-0").expect("it is there"), 4);
        let error = node_of(&cluster, "chat-1").expect_err("it has not joined");
        assert_eq!(error.to_string(), "chat-1 has no node in the cluster yet");
        let error = node_of(&cluster, "chat-4").expect_err("it is not there");
        assert_eq!(error.to_string(), "there is no member chat-4");
    }
}
