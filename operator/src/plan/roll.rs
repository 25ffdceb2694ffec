//! Restarts: who is not as the spec wants it is drained, made anew, waited for, and used again,
//! one after the other.
//!
//! Invariants:
//! * A Pod whose process runs is deleted only when every other member that holds replicas is
//!   whole: ready, up and caught up.
//! * Whoever does not run is replaced at once: it cannot be drained, and nobody loses anything.
//! * A member that stays is drained only while it is its turn.

use super::desired::Desired;
use super::leaving::progress;
use super::members::{Fate, Member, Members};
use super::observed::{ClusterSeen, Drain, Observed, Pod, Standing};
use super::steps::{OperationKind, Plan, Step, WaitKind};

/// How long the clients of a cluster without second replicas have to leave a node, seconds.
const SOLE_DRAIN_S: u64 = 30;

/// Pods of another revision whose process does not run: a corrected spec recovers them.
pub fn replace_broken(
    desired: &Desired,
    members: &Members<'_>,
    observed: &Observed,
    plan: &mut Plan,
) {
    if desired.roll.paused {
        return;
    }
    // Those that leave too: what is on them may be needed until they have left.
    let kept = members
        .all
        .iter()
        .filter(|member| matches!(member.fate, Fate::Stays | Fate::Surplus));
    for member in kept {
        let Some(pod) = member.pod else { continue };
        // A founder that lost its volume once the cluster was there has to join it. It ends by
        // itself as often as it starts; one that does not may be marked in a moment.
        let stray = observed.cluster_made.is_some()
            && pod.founds
            && pod.restarts > 0
            && member.claim.is_none_or(|claim| claim.node.is_none());
        let replaced = member.outdated(desired) || stray;
        if replaced && broken(member, pod, observed) && !pod.ended && !plan.deletes(&member.name) {
            plan.operation(
                OperationKind::Rolling,
                Some(&member.name),
                "a Pod that does not start is made anew",
                None,
            );
            plan.step(Step::DeletePod {
                member: member.name.clone(),
                uid: pod.uid.clone(),
                force: false,
                why: "it does not start, and is made in another way now".to_owned(),
            });
        }
    }
}

fn broken(member: &Member<'_>, pod: &Pod, observed: &Observed) -> bool {
    let silent = observed.cluster.is_ok() && !member.up();
    !pod.terminating && pod.ready_since_s.is_none() && (!pod.started || silent)
}

pub fn plan(
    desired: &Desired,
    observed: &Observed,
    cluster: &ClusterSeen,
    members: &Members<'_>,
    plan: &mut Plan,
) {
    let due: Vec<&Member<'_>> = members
        .staying()
        .filter(|member| {
            let pod = member.pod.filter(|pod| !pod.terminating && !pod.ended);
            member.outdated(desired) && pod.is_some_and(|pod| !broken(member, pod, observed))
        })
        .collect();
    let turn = match desired.roll.paused || members.leaving().next().is_some() {
        true => None,
        false => whose_turn(&due, cluster),
    };
    release(desired, members, turn, plan);
    if due.is_empty() {
        return;
    }
    let updated = members.staying().count() - due.len();
    plan.operation(
        OperationKind::Rolling,
        turn.map(|member| &member.name),
        format!("{updated} of {} members are as wanted", desired.nodes),
        None,
    );
    match turn {
        Some(member) => advance(desired, observed, cluster, members, member, plan),
        None if desired.roll.paused => plan.wait(
            WaitKind::RollPaused,
            None,
            format!(
                "spec.update.paused is true; {} members are to be restarted",
                due.len()
            ),
        ),
        None => plan.wait(
            WaitKind::Unsafe,
            None,
            "members leave; restarts wait until they have left",
        ),
    }
}

/// Whoever is drained goes on; then those that are not well; the leader of the meta group last.
fn whose_turn<'a, 'b>(due: &[&'b Member<'a>], cluster: &ClusterSeen) -> Option<&'b Member<'a>> {
    due.iter().copied().min_by_key(|member| {
        (
            member.standing() != Some(Standing::DrainingForRestart),
            member.whole(),
            member.node.map(|node| node.id) == cluster.meta_leader,
            member.name.index(),
        )
    })
}

/// Uses those again that were drained and have no reason to be: restarted and caught up, not
/// their turn any more, or asked to stay after all.
fn release(desired: &Desired, members: &Members<'_>, turn: Option<&Member<'_>>, plan: &mut Plan) {
    for member in members.staying() {
        let Some(node) = member.node else { continue };
        let its_turn = turn.is_some_and(|turn| turn.name == member.name);
        let again = match node.standing {
            Standing::DrainingForRemoval => true,
            // Until it serves again, nothing comes back to it.
            Standing::DrainingForRestart if !member.outdated(desired) => member.whole(),
            Standing::DrainingForRestart => !its_turn && member.whole(),
            Standing::Active | Standing::Cordoned | Standing::Lost => false,
        };
        if again {
            plan.step(Step::SetStanding {
                node: node.id,
                member: Some(member.name.clone()),
                standing: Standing::Active,
                forced: false,
            });
        } else if node.standing == Standing::DrainingForRestart && !its_turn {
            plan.wait(
                WaitKind::Starting,
                Some(&member.name),
                "it is used again when it has caught up",
            );
        }
    }
}

/// One step on for the member whose turn it is.
fn advance(
    desired: &Desired,
    observed: &Observed,
    cluster: &ClusterSeen,
    members: &Members<'_>,
    member: &Member<'_>,
    plan: &mut Plan,
) {
    let name = Some(&member.name);
    let (Some(pod), Some(node)) = (member.pod, member.node) else {
        // It runs and has not joined: standing::unready says so.
        return;
    };
    if let Some(reason) = hindrance(cluster, members, member) {
        plan.wait(WaitKind::Unsafe, name, reason);
        return;
    }
    if node.standing == Standing::DrainingForRestart {
        let drain = node.drain.as_ref();
        if drain.is_some_and(|drain| may_stop(desired, observed, drain)) {
            plan.step(Step::DeletePod {
                member: member.name.clone(),
                uid: pod.uid.clone(),
                force: false,
                why: "it is drained, and made anew as the spec wants it".to_owned(),
            });
        } else {
            plan.wait(WaitKind::Draining, name, progress(drain));
        }
        return;
    }
    if let Some((kind, reason)) = soaking(desired, observed, members) {
        plan.wait(kind, name, reason);
        return;
    }
    // Without second replicas there is no way without an interruption.
    let sole = desired.replication_factor == 1;
    if !node.restart_dangers.is_empty() && !sole {
        plan.wait(WaitKind::Unsafe, name, node.restart_dangers.join("; "));
        return;
    }
    plan.step(Step::SetStanding {
        node: node.id,
        member: name.cloned(),
        standing: Standing::DrainingForRestart,
        forced: sole,
    });
}

/// Why the member's process must not stop now.
fn hindrance(cluster: &ClusterSeen, members: &Members<'_>, member: &Member<'_>) -> Option<String> {
    if cluster.leaderless > 0 {
        return Some(format!("{} shards have no leader", cluster.leaderless));
    }
    for other in members.all.iter().filter(|other| other.name != member.name) {
        if !other.whole() {
            let trouble = other.pod.and_then(|pod| pod.trouble.as_ref());
            return Some(match trouble {
                Some(trouble) => format!("{}: its Pod does not start: {trouble}", other.name),
                None => format!("{} is not ready", other.name),
            });
        }
        if other.standing() == Some(Standing::DrainingForRestart) {
            return Some(format!("{} is drained for a restart", other.name));
        }
    }
    let strays = cluster
        .nodes
        .iter()
        .filter(|node| !members.has_node(node.id));
    for stray in strays {
        if stray.replicas > 0 && !(stray.up && stray.caught_up) {
            return Some(format!("replicas of node {} are missing", stray.id.0));
        }
    }
    None
}

fn may_stop(desired: &Desired, observed: &Observed, drain: &Drain) -> bool {
    let long_enough = observed.now_s >= drain.since_s.saturating_add(SOLE_DRAIN_S);
    let sole = desired.replication_factor == 1;
    drain.done || (sole && (drain.sessions_left == 0 || long_enough))
}

/// Why those that were changed before have to be looked at a little longer.
fn soaking(
    desired: &Desired,
    observed: &Observed,
    members: &Members<'_>,
) -> Option<(WaitKind, String)> {
    let mut soaked = None;
    for member in members.staying() {
        let Some(pod) = member.pod.filter(|_| !member.outdated(desired)) else {
            continue;
        };
        let ready_s = pod
            .ready_since_s
            .map_or(0, |since| observed.now_s.saturating_sub(since));
        if ready_s < desired.roll.min_ready_s {
            // A number that changes with each look would be written with each look.
            let min_ready_s = desired.roll.min_ready_s;
            let reason = format!("{} must have been ready for {min_ready_s} s", member.name);
            return Some((WaitKind::Soaking, reason));
        }
        soaked = soaked.max(Some((pod.restarts == 0, ready_s)));
    }
    let soak_s = desired.roll.soak_s?;
    match soaked? {
        (false, _) => Some((
            WaitKind::CanaryFailed,
            "the container of the first changed member was started again; change the spec"
                .to_owned(),
        )),
        (true, ready_s) if ready_s < soak_s => Some((
            WaitKind::Soaking,
            format!("the first changed member is looked at until it has been ready for {soak_s} s"),
        )),
        (true, _) => None,
    }
}
