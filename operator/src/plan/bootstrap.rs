//! Pods and volumes that are missing: of the founders, of members that lost theirs, and of new
//! members. Making something that is missing disrupts nothing.

use super::desired::Desired;
use super::members::{Fate, Member, Members};
use super::observed::{MemberName, NodeId, Observed, Standing};
use super::steps::{OperationKind, Plan, Start, Step, WaitKind};

/// Takes away Pods that have ended, and those that nothing is left of but their name.
pub fn clear_ended(observed: &Observed, plan: &mut Plan) {
    for (member, pod) in &observed.pods {
        let host = pod.host.as_ref().map(|name| observed.hosts.get(name));
        let host_gone = host.is_some_and(|host| host.is_none_or(|host| host.out_of_service));
        let (force, why) = if pod.terminating && host_gone {
            (true, "its Kubernetes node is gone")
        } else if pod.ended && !pod.terminating {
            (false, "it has ended")
        } else {
            continue;
        };
        plan.step(Step::DeletePod {
            member: member.clone(),
            uid: pod.uid.clone(),
            force,
            why: why.to_owned(),
        });
    }
}

/// The first members make the cluster together; all of them must come up once.
pub fn found(desired: &Desired, observed: &Observed, members: &Members<'_>, plan: &mut Plan) {
    plan.operation(
        OperationKind::Creating,
        None,
        "the first members make the cluster",
        None,
    );
    for index in 0..desired.replication_factor {
        let name = MemberName::new(&desired.cluster, index);
        let start = Start::Found {
            node: NodeId(u64::from(index) + 1),
        };
        match members.get(&name) {
            None => {
                create_volume(desired, &name, plan);
                create_pod(&name, start, plan);
            }
            Some(member) => complete(desired, member, start, plan),
        }
    }
    let reason = match &observed.cluster {
        Ok(_) => "the cluster's id is being recorded".to_owned(),
        Err(reason) => format!("the first members have not made the cluster yet: {reason}"),
    };
    plan.wait(WaitKind::NoAnswer, None, reason);
}

/// Makes what members lost that are needed: those that stay, and those whose data still has to
/// move away. While the cluster does not answer, nobody knows who that is, and it may be missing
/// just these: all that have a volume are started.
pub fn restore(desired: &Desired, observed: &Observed, members: &Members<'_>, plan: &mut Plan) {
    for member in &members.all {
        let holds = member.node.is_some_and(|node| {
            node.standing != Standing::Lost && !node.drain.as_ref().is_some_and(|d| d.done)
        });
        let moves_away = member.fate == Fate::Surplus && (holds || observed.cluster.is_err());
        if member.stays() || moves_away {
            if member.pod.is_none() {
                plan.operation(
                    OperationKind::Healing,
                    Some(&member.name),
                    "the Pod is made anew",
                    None,
                );
            }
            complete(desired, member, Start::Join, plan);
        }
    }
}

fn complete(desired: &Desired, member: &Member<'_>, start: Start, plan: &mut Plan) {
    if member.claim.is_none() {
        create_volume(desired, &member.name, plan);
    }
    if member.pod.is_none() && member.claim.is_none_or(|claim| !claim.terminating) {
        create_pod(&member.name, start, plan);
    }
}

/// New members, with the lowest numbers that are free.
pub fn add(desired: &Desired, members: &Members<'_>, plan: &mut Plan) {
    let missing = (desired.nodes as usize).saturating_sub(members.staying().count());
    let given_up = members
        .leaving()
        .filter(|member| member.fate == Fate::GivenUp)
        .count();
    let waiting = given_up.saturating_sub(desired.replacement.at_once.max(1) as usize);
    if waiting > 0 && missing > 0 {
        plan.wait(
            WaitKind::StormCap,
            None,
            format!(
                "{given_up} members were given up; {waiting} of them wait to be replaced until others are"
            ),
        );
    }
    let kind = match given_up {
        0 => OperationKind::ScalingOut,
        _ => OperationKind::Replacing,
    };
    let free = (0..).map(|index| MemberName::new(&desired.cluster, index));
    let free = free.filter(|name| members.get(name).is_none());
    for name in free.take(missing.saturating_sub(waiting)) {
        plan.operation(kind, Some(&name), "a new member starts", None);
        create_volume(desired, &name, plan);
        create_pod(&name, Start::Join, plan);
    }
}

fn create_volume(desired: &Desired, member: &MemberName, plan: &mut Plan) {
    plan.step(Step::CreateVolume {
        member: member.clone(),
        bytes: desired.volume_bytes,
    });
}

fn create_pod(member: &MemberName, start: Start, plan: &mut Plan) {
    plan.step(Step::CreatePod {
        member: member.clone(),
        start,
    });
}
