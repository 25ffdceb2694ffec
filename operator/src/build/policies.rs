//! What protects the Pods: from evictions, from the network, and from going unseen.

use serde_json::json;

use super::objects::{DISRUPTION_BUDGET, NETWORK_POLICY, Object, POD_MONITOR};
use super::{ADMIN_PORT, CLIENT_PORT, Context, HTTP_PORT, PEER_PORT};

/// How often metrics are scraped.
const SCRAPE_INTERVAL: &str = "15s";

/// One member may be evicted at a time, of `members` that there are; those that are to leave have
/// replicas until they are gone. None where there are no second replicas: evictions would wait for
/// ever.
pub fn disruption_budget(context: &Context<'_>, members: usize) -> Option<Object> {
    let spec = &context.cluster.spec;
    if spec.replication_factor == 1 {
        return None;
    }
    // A number, not maxUnavailable: the members belong to no controller that Kubernetes knows.
    let budget = json!({
        "minAvailable": members.max(spec.nodes as usize).saturating_sub(1),
        "selector": {"matchLabels": context.selector()},
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    });
    Some(Object::new(
        DISRUPTION_BUDGET,
        context.name.to_owned(),
        context.metadata(context.name),
        json!({"spec": budget}),
    ))
}

pub fn network_policy(context: &Context<'_>) -> Option<Object> {
    if !context.cluster.spec.network_policy.enabled {
        return None;
    }
    let members = json!({"podSelector": {"matchLabels": context.selector()}});
    let operator = json!({
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "carillon-operator"}},
    });
    let port = |number: u16| json!({"protocol": "TCP", "port": number});
    let policy = json!({
        "podSelector": {"matchLabels": context.selector()},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"ports": [port(CLIENT_PORT), port(HTTP_PORT)]},
            {"from": [members.clone()], "ports": [port(PEER_PORT)]},
            {"from": [members, operator], "ports": [port(ADMIN_PORT)]},
        ],
    });
    Some(Object::new(
        NETWORK_POLICY,
        context.name.to_owned(),
        context.metadata(context.name),
        json!({"spec": policy}),
    ))
}

pub fn pod_monitor(context: &Context<'_>) -> Option<Object> {
    let monitoring = &context.cluster.spec.monitoring;
    if !monitoring.enabled {
        return None;
    }
    let mut metadata = context.metadata(context.name);
    for (key, value) in &monitoring.labels {
        metadata["labels"][key] = json!(value);
    }
    let monitor = json!({
        "selector": {"matchLabels": context.selector()},
        "podMetricsEndpoints": [{
            "port": "http",
            "path": "/metrics",
            "interval": SCRAPE_INTERVAL,
        }],
        "podTargetLabels": [super::CLUSTER_LABEL, super::MEMBER_LABEL],
    });
    Some(Object::new(
        POD_MONITOR,
        context.name.to_owned(),
        metadata,
        json!({"spec": monitor}),
    ))
}
