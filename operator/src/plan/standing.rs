//! What the cluster is told besides drains: its policy, and which of its nodes are no more.

use super::desired::Desired;
use super::members::Members;
use super::observed::{ClusterSeen, NodeSeen, Standing};
use super::steps::{OperationKind, Plan, Step, Wait, WaitKind};

pub fn policy(desired: &Desired, cluster: &ClusterSeen, plan: &mut Plan) {
    let wanted = &desired.replacement;
    if cluster.policy.failure_replacement_after_s != wanted.after_s
        || cluster.policy.lost_nodes_max != wanted.at_once
    {
        plan.step(Step::SetPolicy {
            failure_replacement_after_s: wanted.after_s,
            lost_nodes_max: wanted.at_once,
        });
    }
}

/// Nodes of members that are no more, or that have a new volume and so a new node: given up when
/// their volume is gone for good, and forgotten when nothing is left on them.
pub fn stale_nodes(members: &Members<'_>, cluster: &ClusterSeen, plan: &mut Plan) {
    for node in &cluster.nodes {
        let Some(name) = &node.member else { continue };
        if members.has_node(node.id) || node.up {
            continue;
        }
        let claim = members.get(name).and_then(|member| member.claim);
        // A claim without a mark may have its data.
        let volume_gone =
            claim.is_none_or(|claim| claim.node.is_some_and(|marked| marked != node.id));
        if gone(node) {
            plan.step(Step::ForgetNode { node: node.id });
        } else if volume_gone && node.standing != Standing::Lost {
            plan.step(Step::SetStanding {
                node: node.id,
                member: Some(name.clone()),
                standing: Standing::Lost,
                forced: false,
            });
        } else {
            plan.operation(
                OperationKind::Replacing,
                Some(name),
                "replicas of a lost volume are made anew",
                None,
            );
            plan.wait(
                WaitKind::Draining,
                Some(name),
                format!(
                    "node {} is lost; {} replicas of it are to be made anew",
                    node.id.0, node.replicas
                ),
            );
        }
    }
}

/// It is out of use and holds nothing.
pub fn gone(node: &NodeSeen) -> bool {
    node.replicas == 0 && matches!(node.standing, Standing::Lost | Standing::DrainingForRemoval)
}

/// Pods that Kubernetes cannot start: why the cluster does not answer, while it does not.
pub fn troubles(members: &Members<'_>, plan: &mut Plan) {
    for member in members.staying() {
        if let Some(trouble) = member.pod.and_then(|pod| pod.trouble.as_ref()) {
            let reason = format!("its Pod does not start: {trouble}");
            plan.wait(WaitKind::CannotStart, Some(&member.name), reason);
        }
    }
}

/// Members that stay and do not serve yet are waited for.
pub fn unready(desired: &Desired, members: &Members<'_>, plan: &mut Plan) {
    for member in members.staying() {
        let reason = match (member.pod, member.node) {
            (None, _) => "its Pod is being made".to_owned(),
            (Some(pod), _) if pod.terminating => "its Pod is ending".to_owned(),
            (Some(pod), _) if pod.ready_since_s.is_none() => match &pod.trouble {
                Some(trouble) => format!("its Pod does not start: {trouble}"),
                None => "it is starting".to_owned(),
            },
            (_, None) => "it has not joined the cluster yet".to_owned(),
            (_, Some(node)) if !node.up => "its node does not answer yet".to_owned(),
            (_, Some(node)) if !node.caught_up => "it is catching up".to_owned(),
            (_, Some(node)) if node.standing == Standing::Lost => {
                "it was given up and is about to be used again".to_owned()
            }
            _ => continue,
        };
        let kind = match member.outdated(desired) {
            true => OperationKind::Rolling,
            false => OperationKind::Healing,
        };
        plan.operation(kind, Some(&member.name), reason.clone(), None);
        let said =
            |wait: &Wait| wait.member.as_ref() == Some(&member.name) && wait.reason == reason;
        if plan.waits.iter().any(said) {
            continue;
        }
        let trouble = member.pod.and_then(|pod| pod.trouble.as_ref());
        let kind = match trouble {
            Some(_) => WaitKind::CannotStart,
            None => WaitKind::Starting,
        };
        plan.wait(kind, Some(&member.name), reason);
    }
}
