//! `carillon kubernetes status`: how a cluster is in one line, then what is being done, the
//! members, what is not as it should be, and what happened last.
//!
//! Keeps no state: reads the resource and its events, and decides by a pure function what is
//! shown.

use std::time::{SystemTime, UNIX_EPOCH};

use carillon_crds::ImCluster;
use carillon_crds::imcluster::{Condition, ImClusterStatus, MemberState, MemberStatus};
use k8s_openapi::api::events::v1::Event;
use serde_json::json;

use super::connect::{Connection, json as as_json, when};
use super::wait::is_ready;
use crate::arguments::Output;
use crate::output::{self, Paint};
use crate::present::{duration, printable};

/// Events that are shown.
const EVENTS_SHOWN: usize = 8;
/// Certificates that end sooner than this are pointed out, seconds.
const EXPIRES_SOON_S: i64 = 7 * 86_400;

/// Conditions, and the status of each that is worth a line.
const OF_CONCERN: [(&str, &str); 8] = [
    ("Ready", "False"),
    ("Available", "False"),
    ("Degraded", "True"),
    ("ShardsHealthy", "False"),
    ("UpgradeBlocked", "True"),
    ("StorageResizing", "True"),
    ("CertificatesValid", "False"),
    ("Paused", "True"),
];

/// Shows a cluster.
pub(super) async fn show(
    connection: &Connection,
    name: &str,
    output: Output,
) -> anyhow::Result<()> {
    let cluster = connection.cluster(name).await?;
    let events = connection.events(name).await?;
    match output {
        Output::Json => {
            let events: Vec<_> = events.iter().map(event_json).collect();
            output::json(&json!({"cluster": as_json(&cluster)?, "events": events}))?;
        }
        Output::Table => {
            let paint = Paint::for_stdout();
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let now_s = now.map_or(0, |now| now.as_secs() as i64);
            for line in head(&cluster, &connection.namespace, now_s, paint) {
                output::line(&line)?;
            }
            if let Some(status) = &cluster.status
                && !status.members.is_empty()
            {
                output::line("")?;
                output::show(&members(&status.members))?;
            }
            for line in foot(&cluster, &events, now_s, paint) {
                output::line(&line)?;
            }
        }
    }
    Ok(())
}

fn event_json(event: &Event) -> serde_json::Value {
    json!({
        "at_ms": when(event) / 1_000,
        "type": event.type_,
        "reason": event.reason,
        "note": event.note,
        "member": event.related.as_ref().and_then(|related| related.name.clone()),
    })
}

/// How it is, and what is being done.
fn head(cluster: &ImCluster, namespace: &str, now_s: i64, paint: Paint) -> Vec<String> {
    let name = cluster.metadata.name.as_deref().unwrap_or_default();
    let Some(status) = &cluster.status else {
        let health = paint.warn("the operator has not seen it yet");
        return vec![format!("{} in {namespace}: {health}", paint.bold(name))];
    };
    let mut lines = vec![format!(
        "{} in {namespace}: {}",
        paint.bold(name),
        health(cluster, status, paint)
    )];
    let release = status.current_version.as_deref().unwrap_or("none yet");
    let mut facts = vec![
        format!("release {release}"),
        format!("nodes {}/{}", status.ready_nodes, cluster.spec.nodes),
    ];
    if let Some(target) = &status.target_version
        && status.current_version.as_ref() != Some(target)
    {
        facts.push(format!("on the way to {target}"));
    }
    if let Some(shards) = &status.shards {
        facts.push(format!("shards {} led", shards.summary));
        for (count, what) in [
            (shards.under_replicated, "with too few replicas"),
            (shards.moving, "replicas on their way"),
        ] {
            if count > 0 {
                facts.push(format!("{count} {what}"));
            }
        }
    }
    if let Some(address) = &status.client_address {
        facts.push(format!("clients {address}"));
    }
    if let Some(certificates) = &status.certificates {
        let left_s = certificates.next_expiry.0.as_second() - now_s;
        let ends = match u64::try_from(left_s) {
            Ok(left_s) => format!("certificates end in {}", duration(left_s)),
            Err(_) => "certificates have ended".to_owned(),
        };
        facts.push(match left_s < EXPIRES_SOON_S {
            true => paint.bad(&ends),
            false => ends,
        });
    }
    lines.push(format!("  {}", facts.join("   ")));
    if let Some(operation) = &status.operation {
        let mut now = format!("  now: {}", operation.summary);
        if let Some(percent) = operation.percent {
            now.push_str(&format!(" ({percent} %)"));
        }
        lines.push(paint.bold(&now));
        if let Some(why) = &operation.blocked_reason {
            lines.push(format!("  {}", paint.warn(&format!("waits: {why}"))));
        }
    }
    lines
}

fn health(cluster: &ImCluster, status: &ImClusterStatus, paint: Paint) -> String {
    let of = |kind: &str| status.conditions.iter().find(|one| one.type_ == kind);
    if is_ready(cluster) {
        return paint.good("all is as the spec wants it");
    }
    if status.observed_generation != cluster.metadata.generation {
        return paint.warn("the operator has not seen the last change yet");
    }
    let reason = of("Ready").map_or("not ready", |ready| ready.reason.as_str());
    match of("Available") {
        Some(available) if available.status == "True" => paint.warn(&format!(
            "it serves, but is not as the spec wants it: {reason}"
        )),
        _ => paint.bad(&format!("it does not serve: {reason}")),
    }
}

fn members(members: &[MemberStatus]) -> comfy_table::Table {
    let columns = [
        "member", "node", "zone", "state", "release", "volume", "what",
    ];
    let mut table = output::table(&columns);
    for member in members {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        let mut what = member.message.as_deref().map(printable).unwrap_or_default();
        if what.is_empty() && !member.updated {
            what = "its turn comes".to_owned();
        }
        table.add_row([
            member.name.clone(),
            member
                .node_id
                .map_or_else(|| "-".to_owned(), |id| id.to_string()),
            text(&member.zone),
            state(member.state).to_owned(),
            text(&member.version),
            text(&member.volume),
            what,
        ]);
    }
    table
}

fn state(state: MemberState) -> &'static str {
    match state {
        MemberState::Ready => "ready",
        MemberState::Starting => "starting",
        MemberState::Draining => "draining",
        MemberState::Leaving => "leaving",
        MemberState::Lost => "lost",
    }
}

/// What is not as it should be, and what happened.
fn foot(cluster: &ImCluster, events: &[Event], now_s: i64, paint: Paint) -> Vec<String> {
    let conditions = cluster.status.iter().flat_map(|status| &status.conditions);
    let concern = |one: &&Condition| {
        let is = |(kind, status): &(&str, &str)| one.type_ == *kind && one.status == *status;
        OF_CONCERN.iter().any(is)
    };
    let mut lines = Vec::new();
    for one in conditions.filter(concern) {
        if lines.is_empty() {
            lines.push(String::new());
        }
        let what = format!("{}={} {}", one.type_, one.status, one.reason);
        lines.push(format!(
            "{}: {}",
            paint.warn(&what),
            printable(&one.message)
        ));
    }
    let last = events.len().saturating_sub(EVENTS_SHOWN);
    for (number, event) in events[last..].iter().enumerate() {
        if number == 0 {
            lines.push(String::new());
        }
        let ago = u64::try_from(now_s - when(event) / 1_000_000).unwrap_or(0);
        let about = event
            .related
            .as_ref()
            .and_then(|related| related.name.clone());
        let about = about.map(|name| format!("{name}: ")).unwrap_or_default();
        let reason = event.reason.as_deref().unwrap_or_default();
        let reason = match event.type_.as_deref() {
            Some("Warning") => paint.bad(reason),
            _ => reason.to_owned(),
        };
        let note = printable(event.note.as_deref().unwrap_or_default());
        let ago = paint.dim(&format!("{} ago", duration(ago)));
        lines.push(format!("{ago}  {reason}  {about}{note}"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const NOW_S: i64 = 1_800_000_000;

    fn cluster(status: Value) -> ImCluster {
        let object = json!({
            "apiVersion": "carillon.dev/v1alpha1",
            "kind": "ImCluster",
            "metadata": {"name": "chat", "generation": 2},
            "spec": {"version": "0.3.0", "storage": {"size": "10Gi"}},
            "status": status,
        });
        serde_json::from_value(object).expect("an ImCluster")
    }

    fn condition(kind: &str, status: &str, generation: i64) -> Value {
        json!({
            "type": kind, "status": status, "reason": "Draining", "message": "chat-1 is drained",
            "observedGeneration": generation, "lastTransitionTime": "2026-11-01T00:00:00Z",
        })
    }

    #[test]
    fn a_cluster_that_is_as_it_should_be_is_two_lines() {
        let cluster = cluster(json!({
            "observedGeneration": 2, "readyNodes": 3, "currentVersion": "0.3.0",
            "targetVersion": "0.3.0", "clientAddress": "chat-client.team.svc:7400",
            "shards": {"total": 16, "healthy": 16, "underReplicated": 0, "leaderless": 0,
                       "moving": 0, "summary": "16/16"},
            "certificates": {"authorityExpires": "2036-01-01T00:00:00Z",
                             "nextExpiry": "2027-03-01T00:00:00Z"},
            "conditions": [condition("Ready", "True", 2), condition("Available", "True", 2)],
        }));
        let lines = head(&cluster, "team", NOW_S, Paint::off());
        assert_eq!(
            lines,
            [
                "chat in team: all is as the spec wants it",
                "  release 0.3.0   nodes 3/3   shards 16/16 led   clients chat-client.team.svc:7400   \
             certificates end in 44d 16h",
            ]
        );
        assert!(foot(&cluster, &[], NOW_S, Paint::off()).is_empty());
    }

    #[test]
    fn what_is_being_done_says_what_it_waits_for() {
        let cluster = cluster(json!({
            "observedGeneration": 2, "readyNodes": 2, "currentVersion": "0.2.0",
            "targetVersion": "0.3.0",
            "operation": {"type": "Rolling", "member": "chat-1", "step": "draining",
                          "percent": 40, "blockedReason": "shard 3 catches up",
                          "summary": "Rolling chat-1: draining"},
            "conditions": [condition("Ready", "False", 2), condition("Available", "True", 2)],
        }));
        let lines = head(&cluster, "team", NOW_S, Paint::off());
        assert_eq!(
            lines,
            [
                "chat in team: it serves, but is not as the spec wants it: Draining",
                "  release 0.2.0   nodes 2/3   on the way to 0.3.0",
                "  now: Rolling chat-1: draining (40 %)",
                "  waits: shard 3 catches up",
            ]
        );
        let lines = foot(&cluster, &[], NOW_S, Paint::off());
        assert_eq!(lines, ["", "Ready=False Draining: chat-1 is drained"]);
    }

    #[test]
    fn a_change_that_the_operator_has_not_seen_is_not_ready() {
        let cluster = cluster(json!({
            "observedGeneration": 1, "conditions": [condition("Ready", "True", 1)],
        }));
        let lines = head(&cluster, "team", NOW_S, Paint::off());
        assert_eq!(
            lines[0],
            "chat in team: the operator has not seen the last change yet"
        );
    }

    #[test]
    fn the_last_events_are_shown_with_their_age() {
        let event = |reason: &str, at: &str| -> Event {
            serde_json::from_value(json!({
                "apiVersion": "events.k8s.io/v1", "kind": "Event",
                "metadata": {"name": reason}, "reason": reason, "type": "Normal",
                "note": "is drained", "related": {"kind": "Pod", "name": "chat-1"},
                "eventTime": at,
            }))
            .expect("an Event")
        };
        let cluster = cluster(json!({}));
        let events = [event("Draining", "2027-01-15T07:59:00.000000Z")];
        let lines = foot(&cluster, &events, NOW_S, Paint::off());
        assert_eq!(lines, ["", "1m 0s ago  Draining  chat-1: is drained"]);
    }
}
