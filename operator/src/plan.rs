//! What to do next, as a function of what is wanted and what is seen: `plan(desired, observed)`.
//!
//! Nothing is remembered between two plans. Whatever must outlive the operator is written where
//! it is seen again: the standing of a node in the cluster, annotations of a volume claim, the
//! revision of a Pod. So an operator may stop at any point, and another one goes on.
//!
//! Invariants:
//! * At most one member is made unavailable by a plan, and none while another one that holds
//!   replicas is unavailable ([`roll`]).
//! * A volume is deleted only after it was released, and it is released only when the cluster has
//!   nothing on it any more ([`leaving`]).
//! * On what it wanted, a plan is empty: no step, and nothing to wait for.
//!
//! Every step may be refused, late, or done already; whoever executes it looks again afterwards.
//! Steps that [`Step::disrupts`] is true of are executed only when a plan of what is seen right
//! then has them too.

mod bootstrap;
mod deletion;
mod desired;
mod leaving;
mod members;
mod observed;
mod roll;
mod standing;
mod steps;
pub mod versions;
mod volumes;

pub use desired::{Desired, Replacement, Revision, Roll};
pub use members::{Fate, Member, Members};
pub use observed::{
    Claim, ClusterSeen, Drain, Host, HostName, MemberName, NodeId, NodeSeen, Observed, Pod,
    PolicySeen, Standing, Uid,
};
pub use steps::{Operation, OperationKind, Plan, Start, Step, Wait, WaitKind};

/// What is safe to do now, in this order, and why the rest waits.
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    let mut plan = Plan::default();
    if let Some(policy) = desired.deletion {
        deletion::plan(policy, observed, &mut plan);
        return plan;
    }
    if desired.paused {
        plan.wait(WaitKind::Paused, None, "spec.paused is true");
        return plan;
    }
    if let Some(reason) = &desired.upgrade_refused {
        plan.wait(WaitKind::UpgradeRefused, None, reason.clone());
    }
    let members = Members::of(desired, observed);
    bootstrap::clear_ended(observed, &mut plan);
    volumes::grow(desired, &members, &mut plan);
    if observed.cluster_made.is_none() {
        standing::troubles(&members, &mut plan);
        bootstrap::found(desired, observed, &members, &mut plan);
        roll::replace_broken(desired, &members, observed, &mut plan);
        return plan;
    }
    bootstrap::restore(desired, observed, &members, &mut plan);
    bootstrap::add(desired, &members, &mut plan);
    match &observed.cluster {
        Err(reason) => {
            roll::replace_broken(desired, &members, observed, &mut plan);
            standing::troubles(&members, &mut plan);
            plan.wait(WaitKind::NoAnswer, None, reason.clone());
        }
        Ok(cluster) => {
            volumes::mark(&members, cluster, &mut plan);
            standing::policy(desired, cluster, &mut plan);
            standing::stale_nodes(&members, cluster, &mut plan);
            leaving::plan(desired, observed, &members, &mut plan);
            roll::replace_broken(desired, &members, observed, &mut plan);
            roll::plan(desired, observed, cluster, &members, &mut plan);
        }
    }
    standing::unready(desired, &members, &mut plan);
    plan
}
