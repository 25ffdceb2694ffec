//! The shell round `plan`, as the real one is: plans with what was read lately, looks again before
//! what disrupts, and may stop after any step.

use carillon_operator::plan::{Desired, MemberName, Observed, Plan, Standing, Step, Uid, plan};

use crate::invariants;
use crate::kubernetes::{Claim, Pod};
use crate::world::{Lies, World};

/// How often, of 100, it stops between two steps.
const STOPS_PERCENT: u64 = 4;

pub fn reconcile(world: &mut World) {
    let (desired, observed) = world.stale();
    let answered = observed.cluster.as_ref().ok();
    if let Some(cluster) = answered.filter(|_| world.status_id.is_none()) {
        // The status is written first, and not always.
        if world.rng.chance(80) {
            world.status_id = Some(cluster.id.clone());
        }
    }
    let planned = decide(&desired, &observed);
    for step in planned.steps {
        if world.rng.chance(STOPS_PERCENT) {
            return;
        }
        if step.disrupts() && world.lies != Lies::NothingIsReadAgain {
            let fresh = decide(&world.desired, &world.observe());
            if !fresh.steps.contains(&step) {
                continue;
            }
        }
        execute(world, &desired, step);
    }
}

/// Whoever plans twice gets the same.
pub fn decide(desired: &Desired, observed: &Observed) -> Plan {
    let one = plan(desired, observed);
    assert_eq!(
        one,
        plan(desired, observed),
        "a plan depends on more than what it is given"
    );
    one
}

fn execute(world: &mut World, desired: &Desired, step: Step) {
    world.note(format!("{step:?}"));
    match step {
        Step::CreateVolume { member, bytes } => create_volume(world, member, bytes),
        Step::GrowVolume { member, uid, bytes } => {
            if let Some(claim) = claim(world, &member, &uid) {
                assert!(bytes >= claim.requested_bytes, "a volume shrinks");
                claim.requested_bytes = bytes;
            }
        }
        Step::MarkVolume {
            member,
            uid,
            node,
            cluster,
        } => {
            if let Some(claim) = claim(world, &member, &uid) {
                claim.mark = Some(node);
                claim.cluster = Some(cluster);
            }
        }
        Step::ReleaseVolume { member, uid } => {
            if let Some(claim) = claim(world, &member, &uid) {
                claim.released = true;
            }
        }
        Step::DeleteVolume { member, uid } => {
            invariants::data::check(world, &member, &uid);
            if let Some(claim) = claim(world, &member, &uid) {
                claim.terminating = true;
            }
        }
        Step::CreatePod { member, start } => {
            if !world.pods.contains_key(&member) {
                let pod = Pod {
                    uid: world.uid(),
                    revision: desired.revision.clone(),
                    start,
                    host: None,
                    gone_at_s: None,
                    ended: false,
                    starts_at_s: 0,
                    running: false,
                    ready_at_s: 0,
                    ready_since_s: None,
                    restarts: 0,
                    trouble: None,
                };
                world.pods.insert(member, pod);
            }
        }
        Step::DeletePod {
            member, uid, force, ..
        } => delete_pod(world, &member, &uid, force),
        Step::SetStanding {
            node,
            standing,
            forced,
            ..
        } => {
            invariants::membership::check(world, node, standing);
            world.set_standing(node, standing, forced);
        }
        Step::ForgetNode { node } => world.forget(node),
        Step::SetPolicy {
            failure_replacement_after_s,
            lost_nodes_max,
        } => {
            world.cluster.after_s = failure_replacement_after_s;
            world.cluster.lost_max = lost_nodes_max;
        }
        Step::RemoveFinalizer => world.finalized = true,
    }
}

fn create_volume(world: &mut World, member: MemberName, bytes: u64) {
    if world.claims.contains_key(&member) {
        return;
    }
    let claim = Claim {
        uid: world.uid(),
        requested_bytes: bytes,
        capacity_bytes: None,
        terminating: false,
        released: false,
        mark: None,
        cluster: None,
        pinned: None,
        data: None,
    };
    world.claims.insert(member, claim);
}

fn claim<'a>(world: &'a mut World, member: &MemberName, uid: &Uid) -> Option<&'a mut Claim> {
    let claim = world.claims.get_mut(member);
    claim.filter(|claim| &claim.uid == uid)
}

fn delete_pod(world: &mut World, member: &MemberName, uid: &Uid, force: bool) {
    let known = world.pods.get(member).is_some_and(|pod| &pod.uid == uid);
    if !known {
        return;
    }
    invariants::quorum::check(world, member);
    let stops_s = 1 + world.rng.below(4);
    let now_s = world.now_s;
    if force {
        world.pods.remove(member);
    } else if let Some(pod) = world.pods.get_mut(member) {
        pod.gone_at_s.get_or_insert(now_s + stops_s);
        pod.running = false;
        pod.ready_since_s = None;
    }
}

/// Drained for removal: only for who is not needed.
pub fn is_removal(standing: Standing) -> bool {
    standing == Standing::DrainingForRemoval
}
