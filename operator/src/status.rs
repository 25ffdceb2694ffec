//! The status of an ImCluster, from a plan and what it was made from. Pure.
//!
//! Invariants:
//! * Ready is true only for the generation that the plan was made for, and only when that plan is
//!   empty.
//! * Nothing in it changes while nothing changes: no clock comes in but for conditions that turn.

use carillon_crds::ImClusterStatus;
use carillon_crds::imcluster::{
    CertificateStatus, Condition, MemberState, MemberStatus, OperationStatus, OperationType,
};
use carillon_crds::quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::build::{CLIENT_PORT, CLUSTER_LABEL, names};
use crate::cluster::Seen;
use crate::plan::{
    Desired, Fate, Member, Members, Observed, OperationKind, Plan, Standing, WaitKind,
};
use crate::resolve::Target;

pub struct Facts<'a> {
    pub generation: Option<i64>,
    pub now: Time,
    pub name: &'a str,
    pub namespace: &'a str,
    pub desired: &'a Desired,
    pub observed: &'a Observed,
    pub plan: &'a Plan,
    pub target: &'a Target,
    pub cluster: Option<&'a Seen>,
    /// Releases that Pods were made with.
    pub running: &'a [(String, String)],
    pub certificates: Option<CertificateStatus>,
    /// What failed while the plan was carried out.
    pub failure: Option<String>,
}

pub fn status(facts: &Facts<'_>, before: &ImClusterStatus) -> ImClusterStatus {
    let members = Members::of(facts.desired, facts.observed);
    let serving = |member: &&Member<'_>| member.whole();
    let oldest = facts
        .running
        .iter()
        .min_by_key(|(version, _)| crate::plan::versions::Release::parse(version));
    ImClusterStatus {
        observed_generation: facts.generation,
        selector: format!("{CLUSTER_LABEL}={}", facts.name),
        nodes: members.all.len() as u32,
        ready_nodes: members.all.iter().filter(serving).count() as u32,
        updated_nodes: members
            .staying()
            .filter(|member| member.pod.is_some() && !member.outdated(facts.desired))
            .count() as u32,
        cluster_id: facts.observed.cluster_made.clone(),
        current_version: oldest
            .map(|(version, _)| version.clone())
            .or_else(|| before.current_version.clone()),
        current_image: oldest
            .map(|(_, image)| image.clone())
            .or_else(|| before.current_image.clone()),
        target_version: Some(facts.target.version.clone()),
        cluster_version: facts
            .cluster
            .map(|seen| seen.cluster_version)
            .or(before.cluster_version),
        client_address: Some(format!(
            "{}:{CLIENT_PORT}",
            names::host(&names::client_service(facts.name), facts.namespace)
        )),
        shards: facts
            .cluster
            .map(|seen| seen.shards.clone())
            .or_else(|| before.shards.clone()),
        operation: operation(facts.plan),
        members: members
            .all
            .iter()
            .map(|member| member_status(facts, member))
            .collect(),
        certificates: facts
            .certificates
            .clone()
            .or_else(|| before.certificates.clone()),
        conditions: conditions(facts, &members, &before.conditions),
    }
}

/// Of a spec that breaks a rule: nothing is done about it.
pub fn invalid(generation: Option<i64>, text: &str, before: &ImClusterStatus) -> ImClusterStatus {
    let mut status = before.clone();
    let known = status.conditions.iter().find(|one| one.type_ == "Ready");
    let since = known.filter(|ready| ready.status == "False");
    let since = since.map(|ready| ready.last_transition_time.clone());
    let ready = Condition {
        type_: "Ready".to_owned(),
        status: "False".to_owned(),
        reason: "InvalidSpec".to_owned(),
        message: text.to_owned(),
        observed_generation: generation,
        last_transition_time: since.unwrap_or_else(|| Time(k8s_openapi::jiff::Timestamp::now())),
    };
    status.observed_generation = generation;
    status.conditions.retain(|one| one.type_ != "Ready");
    status.conditions.insert(0, ready);
    status
}

fn operation(plan: &Plan) -> Option<OperationStatus> {
    let operation = plan.operation.as_ref()?;
    let of_member = |wait: &&crate::plan::Wait| {
        wait.member.is_none() || operation.member.is_none() || wait.member == operation.member
    };
    let blocked = plan
        .waits
        .iter()
        .find(of_member)
        .map(|wait| wait.reason.clone());
    let kind = match operation.kind {
        OperationKind::Deleting => OperationType::Deleting,
        OperationKind::Creating => OperationType::Creating,
        OperationKind::Replacing => OperationType::Replacing,
        OperationKind::ScalingIn => OperationType::ScalingIn,
        OperationKind::ScalingOut => OperationType::ScalingOut,
        OperationKind::Rolling => OperationType::Rolling,
        OperationKind::Healing => OperationType::Healing,
        OperationKind::Resizing => OperationType::Resizing,
        OperationKind::Rotating => OperationType::Rotating,
    };
    let member = operation.member.as_ref().map(ToString::to_string);
    let mut summary = format!("{kind:?}");
    if let Some(member) = &member {
        summary = format!("{summary} {member}");
    }
    summary = format!("{summary}: {}", operation.step);
    if let Some(percent) = operation.percent {
        summary = format!("{summary} ({percent} %)");
    }
    Some(OperationStatus {
        r#type: kind,
        member,
        step: operation.step.clone(),
        percent: operation.percent,
        blocked_reason: blocked,
        summary,
    })
}

fn member_status(facts: &Facts<'_>, member: &Member<'_>) -> MemberStatus {
    let known = facts
        .cluster
        .zip(member.node)
        .and_then(|(seen, node)| seen.nodes.get(&node.id));
    let waits = facts.plan.waits.iter();
    let of_it = waits.filter(|wait| wait.member.as_ref() == Some(&member.name));
    let capacity = member.claim.and_then(|claim| claim.capacity_bytes);
    MemberStatus {
        name: member.name.to_string(),
        state: match (member.fate, member.standing()) {
            (Fate::GivenUp, _) => MemberState::Lost,
            (Fate::Surplus | Fate::Released | Fate::VolumeLost, _) => MemberState::Leaving,
            (Fate::Stays, Some(Standing::DrainingForRestart)) => MemberState::Draining,
            (Fate::Stays, _) if member.whole() => MemberState::Ready,
            (Fate::Stays, _) => MemberState::Starting,
        },
        node_id: member.node.map(|node| node.id.0),
        zone: known
            .map(|(_, zone)| zone.clone())
            .filter(|zone| !zone.is_empty()),
        version: known
            .map(|(version, _)| version.clone())
            .filter(|one| !one.is_empty()),
        updated: member.pod.is_some() && !member.outdated(facts.desired),
        volume: capacity.map(quantity::text),
        message: of_it
            .min_by_key(|wait| weight(wait.kind))
            .map(|wait| wait.reason.clone()),
    }
}

/// A condition without its time.
struct Verdict {
    kind: &'static str,
    holds: bool,
    reason: String,
    message: String,
}

fn verdict(kind: &'static str, holds: bool, reason: &str, message: impl Into<String>) -> Verdict {
    Verdict {
        kind,
        holds,
        reason: reason.to_owned(),
        message: message.into(),
    }
}

fn conditions(facts: &Facts<'_>, members: &Members<'_>, before: &[Condition]) -> Vec<Condition> {
    let verdicts = [
        ready(facts),
        available(facts),
        progressing(facts),
        degraded(facts, members),
        shards_healthy(facts),
        of_wait(
            facts,
            "UpgradeBlocked",
            WaitKind::UpgradeRefused,
            "VersionRefused",
        ),
        of_wait(facts, "StorageResizing", WaitKind::Resizing, "Growing"),
        of_wait(facts, "Paused", WaitKind::Paused, "SpecPaused"),
        certificates(facts),
    ];
    verdicts
        .into_iter()
        .map(|verdict| turn(facts, verdict, before))
        .collect()
}

/// Keeps the time of a condition that has not turned.
fn turn(facts: &Facts<'_>, verdict: Verdict, before: &[Condition]) -> Condition {
    let status = if verdict.holds { "True" } else { "False" };
    let same = before
        .iter()
        .find(|known| known.type_ == verdict.kind && known.status == status);
    Condition {
        type_: verdict.kind.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason,
        message: verdict.message,
        observed_generation: facts.generation,
        last_transition_time: match same {
            Some(known) => known.last_transition_time.clone(),
            None => facts.now.clone(),
        },
    }
}

fn ready(facts: &Facts<'_>) -> Verdict {
    if let Some(failure) = &facts.failure {
        return verdict("Ready", false, "Failed", failure.clone());
    }
    if facts.plan.is_empty() {
        return verdict(
            "Ready",
            true,
            "AsWanted",
            "everything is as the spec wants it",
        );
    }
    let important = facts.plan.waits.iter().min_by_key(|wait| weight(wait.kind));
    match important {
        Some(wait) => {
            let message = match &wait.member {
                Some(member) => format!("{member}: {}", wait.reason),
                None => wait.reason.clone(),
            };
            verdict("Ready", false, &format!("{:?}", wait.kind), message)
        }
        None => verdict("Ready", false, "Changing", "steps are being taken"),
    }
}

/// What a person has to see first.
fn weight(kind: WaitKind) -> u32 {
    match kind {
        WaitKind::Paused => 0,
        WaitKind::CanaryFailed => 1,
        WaitKind::UpgradeRefused => 2,
        WaitKind::CannotStart => 3,
        WaitKind::NoAnswer => 4,
        WaitKind::Starting => 5,
        WaitKind::StormCap => 6,
        WaitKind::RollPaused => 7,
        WaitKind::Unsafe => 8,
        WaitKind::Draining | WaitKind::Soaking | WaitKind::Ending | WaitKind::Resizing => 9,
        WaitKind::Rotating => 10,
    }
}

fn available(facts: &Facts<'_>) -> Verdict {
    match (&facts.observed.cluster, facts.cluster) {
        (Err(reason), _) => verdict("Available", false, "NoAnswer", reason.clone()),
        (Ok(cluster), _) if cluster.leaderless > 0 => verdict(
            "Available",
            false,
            "NoLeader",
            format!("{} shards have no leader", cluster.leaderless),
        ),
        (Ok(_), _) => verdict("Available", true, "Serving", "all shards have a leader"),
    }
}

fn progressing(facts: &Facts<'_>) -> Verdict {
    match &facts.plan.operation {
        Some(operation) => verdict(
            "Progressing",
            true,
            &format!("{:?}", operation.kind),
            operation.step.clone(),
        ),
        None => verdict("Progressing", false, "AsWanted", "nothing is being changed"),
    }
}

fn degraded(facts: &Facts<'_>, members: &Members<'_>) -> Verdict {
    let failed = facts.failure.iter().cloned();
    let missing = members
        .staying()
        .filter(|member| !member.whole())
        .map(|member| format!("{} does not serve", member.name));
    let lost = members
        .leaving()
        .filter(|member| member.fate == Fate::GivenUp)
        .map(|member| format!("{} was given up", member.name));
    let all: Vec<String> = failed.chain(missing).chain(lost).collect();
    match all.is_empty() {
        true => verdict("Degraded", false, "Whole", "nothing is missing"),
        false => verdict("Degraded", true, "Missing", all.join("; ")),
    }
}

fn shards_healthy(facts: &Facts<'_>) -> Verdict {
    match facts.cluster.map(|seen| &seen.shards) {
        None => verdict(
            "ShardsHealthy",
            false,
            "NoAnswer",
            "the cluster does not answer",
        ),
        Some(shards) if shards.healthy == shards.total => verdict(
            "ShardsHealthy",
            true,
            "AllHealthy",
            "all shards have a leader and all their replicas",
        ),
        Some(shards) => verdict(
            "ShardsHealthy",
            false,
            "SomeAreNot",
            format!(
                "{} without a leader, {} with too few replicas that have caught up",
                shards.leaderless, shards.under_replicated
            ),
        ),
    }
}

fn of_wait(facts: &Facts<'_>, kind: &'static str, wait: WaitKind, reason: &str) -> Verdict {
    match facts.plan.waits.iter().find(|one| one.kind == wait) {
        Some(found) => verdict(kind, true, reason, found.reason.clone()),
        None => verdict(kind, false, "No", ""),
    }
}

fn certificates(facts: &Facts<'_>) -> Verdict {
    match &facts.certificates {
        None => verdict(
            "CertificatesValid",
            false,
            "NotMade",
            "certificates are not made yet",
        ),
        Some(known) if known.next_expiry.0 <= facts.now.0 => verdict(
            "CertificatesValid",
            false,
            "Expired",
            "a certificate has ended and could not be renewed",
        ),
        Some(CertificateStatus {
            rotation: Some(waits),
            ..
        }) => verdict("CertificatesValid", true, "Rotating", waits.clone()),
        Some(_) => verdict(
            "CertificatesValid",
            true,
            "Valid",
            "they are renewed before they end",
        ),
    }
}
