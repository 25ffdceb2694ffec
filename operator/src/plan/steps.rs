//! What a plan consists of: steps, what is waited for, and what all of it is for.

use super::observed::{MemberName, NodeId, Standing, Uid};

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// To be done in this order.
    pub steps: Vec<Step>,
    /// Why the rest is not done now.
    pub waits: Vec<Wait>,
    /// The most important thing that is going on.
    pub operation: Option<Operation>,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    CreateVolume {
        member: MemberName,
        bytes: u64,
    },
    GrowVolume {
        member: MemberName,
        uid: Uid,
        bytes: u64,
    },
    /// Writes on the claim whose data it has.
    MarkVolume {
        member: MemberName,
        uid: Uid,
        node: NodeId,
        cluster: String,
    },
    /// Writes on the claim that no Pod is made for it any more.
    ReleaseVolume {
        member: MemberName,
        uid: Uid,
    },
    DeleteVolume {
        member: MemberName,
        uid: Uid,
    },
    CreatePod {
        member: MemberName,
        start: Start,
    },
    DeletePod {
        member: MemberName,
        uid: Uid,
        /// Without its kubelet's word that it has stopped.
        force: bool,
        /// For people.
        why: String,
    },
    SetStanding {
        node: NodeId,
        member: Option<MemberName>,
        standing: Standing,
        /// Whatever it breaks.
        forced: bool,
    },
    ForgetNode {
        node: NodeId,
    },
    SetPolicy {
        failure_replacement_after_s: u32,
        lost_nodes_max: u32,
    },
    RemoveFinalizer,
}

/// How a node starts that has an empty volume; with data it goes on as what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// As one of those that make the cluster.
    Found { node: NodeId },
    /// As one that joins it.
    Join,
}

impl Step {
    /// Something may be unavailable or gone after it, or it cannot be taken back: it is done only
    /// when it is still planned for what is read right before it.
    pub fn disrupts(&self) -> bool {
        match self {
            Step::DeletePod { .. }
            // An old read would make a request smaller again.
            | Step::GrowVolume { .. }
            | Step::ReleaseVolume { .. }
            | Step::DeleteVolume { .. }
            | Step::ForgetNode { .. }
            | Step::RemoveFinalizer => true,
            Step::SetStanding { standing, .. } => {
                !matches!(standing, Standing::Active | Standing::Cordoned)
            }
            Step::CreateVolume { .. }
            | Step::MarkVolume { .. }
            | Step::CreatePod { .. }
            | Step::SetPolicy { .. } => false,
        }
    }
}

/// Something that is not done yet, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Wait {
    pub kind: WaitKind,
    pub member: Option<MemberName>,
    /// For people.
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitKind {
    /// `spec.paused`.
    Paused,
    /// `spec.update.paused`, with something to roll out.
    RollPaused,
    UpgradeRefused,
    /// The cluster does not answer.
    NoAnswer,
    /// Kubernetes cannot start a Pod: nowhere to place it, no image, no volume.
    CannotStart,
    /// A member is not ready yet.
    Starting,
    /// A drain takes its time.
    Draining,
    /// Something would break.
    Unsafe,
    /// A restarted member is looked at for a while.
    Soaking,
    /// The first changed member is not well: the roll stands until the spec is changed.
    CanaryFailed,
    /// More members were given up than are replaced at once.
    StormCap,
    /// A Pod or volume is on its way out.
    Ending,
    /// A volume is being made larger.
    Resizing,
    /// A new authority takes the old one's place.
    Rotating,
}

/// What is going on, for the status.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    pub kind: OperationKind,
    pub member: Option<MemberName>,
    pub step: String,
    pub percent: Option<u32>,
}

/// By importance: what comes first is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OperationKind {
    Deleting,
    Creating,
    Replacing,
    ScalingIn,
    ScalingOut,
    Rolling,
    Healing,
    Resizing,
    Rotating,
}

impl Plan {
    /// Nothing to do and nothing to wait for.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.waits.is_empty()
    }

    /// A new authority is taking the old one's place, beside all of this.
    pub fn rotates(&mut self, reason: &str) {
        self.operation(
            OperationKind::Rotating,
            None,
            "a new authority takes the old one's place",
            None,
        );
        self.wait(WaitKind::Rotating, None, reason);
    }

    /// The member's Pod goes in this plan already.
    pub(super) fn deletes(&self, name: &MemberName) -> bool {
        let mut steps = self.steps.iter();
        steps.any(|step| matches!(step, Step::DeletePod { member, .. } if member == name))
    }

    pub(super) fn step(&mut self, step: Step) {
        self.steps.push(step);
    }

    pub(super) fn wait(
        &mut self,
        kind: WaitKind,
        member: Option<&MemberName>,
        reason: impl Into<String>,
    ) {
        self.waits.push(Wait {
            kind,
            member: member.cloned(),
            reason: reason.into(),
        });
    }

    /// Shows it unless something more important goes on.
    pub(super) fn operation(
        &mut self,
        kind: OperationKind,
        member: Option<&MemberName>,
        step: impl Into<String>,
        percent: Option<u32>,
    ) {
        if self
            .operation
            .as_ref()
            .is_none_or(|known| kind < known.kind)
        {
            self.operation = Some(Operation {
                kind,
                member: member.cloned(),
                step: step.into(),
                percent,
            });
        }
    }
}
