//! Members that leave for good. One way for all of them, whatever made them leave:
//!
//! drained for removal → Pod deleted → claim released → node forgotten → claim deleted
//!
//! Each step follows from what is seen, so the order survives restarts of the operator. Until the
//! claim is released the way back is open: the node is made active again by [`super::roll`]. A
//! node that was given up is not drained; the cluster makes its replicas anew.

use super::desired::Desired;
use super::members::{Fate, Member, Members};
use super::observed::{Drain, NodeSeen, Observed, Standing};
use super::standing::gone;
use super::steps::{OperationKind, Plan, Step, WaitKind};

pub fn plan(desired: &Desired, observed: &Observed, members: &Members<'_>, plan: &mut Plan) {
    let useful = members
        .staying()
        .filter(|member| member.up() && usable(member.standing()))
        .count();
    for member in members.leaving() {
        match member.node {
            None => remove(member, observed, plan),
            Some(node) if gone(node) && !node.up => withdraw(member, node, observed, plan),
            Some(node) => empty(desired, member, node, useful, plan),
        }
    }
}

fn usable(standing: Option<Standing>) -> bool {
    matches!(
        standing,
        Some(Standing::Active | Standing::Cordoned | Standing::DrainingForRestart)
    )
}

fn kind(member: &Member<'_>) -> OperationKind {
    match member.fate {
        Fate::Surplus | Fate::Released | Fate::Stays => OperationKind::ScalingIn,
        Fate::GivenUp | Fate::VolumeLost => OperationKind::Replacing,
    }
}

/// Its node still has something, or still runs.
fn empty(desired: &Desired, member: &Member<'_>, node: &NodeSeen, useful: usize, plan: &mut Plan) {
    let name = Some(&member.name);
    match (node.standing, &node.drain) {
        (Standing::DrainingForRemoval, Some(drain)) if drain.done => delete_pod(member, plan),
        (Standing::DrainingForRemoval, drain) => {
            let percent = drain.as_ref().map(|drain| drain.percent);
            plan.operation(
                kind(member),
                name,
                "replicas move to other members",
                percent,
            );
            plan.wait(WaitKind::Draining, name, progress(drain.as_ref()));
        }
        (Standing::Lost, _) => {
            plan.operation(kind(member), name, "replicas are made anew elsewhere", None);
            plan.wait(
                WaitKind::Draining,
                name,
                format!("{} replicas of it are to be made anew", node.replicas),
            );
        }
        _ if useful < desired.replication_factor as usize => {
            plan.operation(kind(member), name, "waits for other members", None);
            plan.wait(
                WaitKind::Unsafe,
                name,
                format!(
                    "its replicas need {} other members that serve, and there are {useful}",
                    desired.replication_factor
                ),
            );
        }
        _ => {
            plan.operation(kind(member), name, "the drain begins", Some(0));
            plan.step(Step::SetStanding {
                node: node.id,
                member: name.cloned(),
                standing: Standing::DrainingForRemoval,
                forced: false,
            });
        }
    }
}

pub fn progress(drain: Option<&Drain>) -> String {
    match drain {
        None => "the drain has begun".to_owned(),
        Some(drain) if drain.waits.is_empty() => format!("{} ({} %)", drain.step, drain.percent),
        Some(drain) => format!(
            "{} ({} %): {}",
            drain.step,
            drain.percent,
            drain.waits.join("; ")
        ),
    }
}

/// Its node is out of use, holds nothing, and does not run. After this there is no way back.
fn withdraw(member: &Member<'_>, node: &NodeSeen, observed: &Observed, plan: &mut Plan) {
    plan.operation(
        kind(member),
        Some(&member.name),
        "the node is forgotten",
        None,
    );
    match (member.claim, member.pod) {
        // It runs no more, but might be started again by its kubelet.
        (_, Some(pod)) if node.standing == Standing::DrainingForRemoval && !pod.terminating => {
            delete_pod(member, plan);
        }
        (_, Some(pod)) if node.standing == Standing::DrainingForRemoval => {
            // With its host dead it ends only by force; it is drained, so nothing is lost.
            end_pod(member, pod, observed, plan);
        }
        (Some(claim), _) if !claim.released && !claim.terminating => {
            plan.step(Step::ReleaseVolume {
                member: member.name.clone(),
                uid: claim.uid.clone(),
            });
        }
        _ => plan.step(Step::ForgetNode { node: node.id }),
    }
}

/// The cluster knows nothing of it: the Pod goes, then the claim.
fn remove(member: &Member<'_>, observed: &Observed, plan: &mut Plan) {
    plan.operation(
        kind(member),
        Some(&member.name),
        "the volume is deleted",
        None,
    );
    match (member.pod, member.claim) {
        (Some(pod), _) if !pod.terminating => delete_pod(member, plan),
        (Some(pod), _) => end_pod(member, pod, observed, plan),
        (None, Some(claim)) if !claim.terminating => plan.step(Step::DeleteVolume {
            member: member.name.clone(),
            uid: claim.uid.clone(),
        }),
        _ => plan.wait(WaitKind::Ending, Some(&member.name), "its volume is ending"),
    }
}

fn delete_pod(member: &Member<'_>, plan: &mut Plan) {
    match member.pod {
        Some(pod) if !pod.terminating => plan.step(Step::DeletePod {
            member: member.name.clone(),
            uid: pod.uid.clone(),
            force: false,
            why: "it has left the cluster".to_owned(),
        }),
        _ => plan.wait(WaitKind::Ending, Some(&member.name), "its Pod is ending"),
    }
}

/// A Pod of a member that holds nothing any more, on a Kubernetes node that says nothing.
fn end_pod(member: &Member<'_>, pod: &super::observed::Pod, observed: &Observed, plan: &mut Plan) {
    let host = pod.host.as_ref().and_then(|name| observed.hosts.get(name));
    // Those whose host is gone are ended already.
    if host.is_some_and(|host| !host.ready && !host.out_of_service) {
        plan.step(Step::DeletePod {
            member: member.name.clone(),
            uid: pod.uid.clone(),
            force: true,
            why: "it has left the cluster, and its Kubernetes node is silent".to_owned(),
        });
    } else {
        plan.wait(WaitKind::Ending, Some(&member.name), "its Pod is ending");
    }
}
