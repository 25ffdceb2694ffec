//! The end of an ImCluster: Pods, volumes if their policy says so, and then the finalizer. Nothing
//! is waited for beyond the API server's word, so it always ends, whatever is broken.

use carillon_crds::imcluster::DeletionPolicy;

use super::observed::Observed;
use super::steps::{OperationKind, Plan, Step};

pub fn plan(policy: DeletionPolicy, observed: &Observed, plan: &mut Plan) {
    plan.operation(OperationKind::Deleting, None, "Pods and volumes go", None);
    for (member, pod) in &observed.pods {
        if !pod.terminating {
            plan.step(Step::DeletePod {
                member: member.clone(),
                uid: pod.uid.clone(),
                force: false,
                why: "the ImCluster is being deleted".to_owned(),
            });
        }
    }
    if policy == DeletionPolicy::Delete {
        for (member, claim) in &observed.claims {
            if !claim.terminating {
                plan.step(Step::DeleteVolume {
                    member: member.clone(),
                    uid: claim.uid.clone(),
                });
            }
        }
    }
    if plan.steps.is_empty() {
        plan.step(Step::RemoveFinalizer);
    }
}
