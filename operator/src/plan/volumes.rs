//! Volumes: they grow, never shrink, and are marked with the node whose data they have.

use super::desired::Desired;
use super::members::{Member, Members};
use super::observed::ClusterSeen;
use super::steps::{OperationKind, Plan, Step, WaitKind};

/// A volume grows by itself when less than one part in this many is free, by as much.
const GROWTH_PARTS: u64 = 5;
/// Sizes that the operator chooses are whole multiples of this.
const SIZE_STEP_BYTES: u64 = 1 << 30;

/// What a file system keeps of its volume for itself at most, besides a part of it: the log of XFS,
/// which has at least so much.
const FILE_SYSTEM_BYTES: u64 = 64 << 20;

/// Makes volumes as large as they are to be. Neither drains nor restarts come into it, so it works
/// when the disk is full.
pub fn grow(desired: &Desired, members: &Members<'_>, plan: &mut Plan) {
    for member in members.staying() {
        // Before it is bound a claim cannot be changed.
        let bound = member.claim.filter(|claim| claim.capacity_bytes.is_some());
        let Some(claim) = bound else { continue };
        let target = target_bytes(desired, member, claim.requested_bytes, claim.capacity_bytes);
        if target > claim.requested_bytes {
            plan.operation(OperationKind::Resizing, Some(&member.name), "growing", None);
            plan.step(Step::GrowVolume {
                member: member.name.clone(),
                uid: claim.uid.clone(),
                bytes: target,
            });
        } else if claim
            .capacity_bytes
            .is_some_and(|have| have < claim.requested_bytes)
        {
            plan.operation(OperationKind::Resizing, Some(&member.name), "growing", None);
            plan.wait(
                WaitKind::Resizing,
                Some(&member.name),
                "the volume is being made larger",
            );
        }
    }
}

fn target_bytes(
    desired: &Desired,
    member: &Member<'_>,
    requested: u64,
    capacity: Option<u64>,
) -> u64 {
    let at_least = desired.volume_bytes.max(requested);
    let (Some(most), Some(node)) = (desired.volume_bytes_max, member.node) else {
        return at_least;
    };
    // The disk must show the last growth before it can ask for the next one. A file system is a
    // little smaller than its volume.
    let grown = capacity.is_some_and(|have| {
        let shown = node.disk_bytes.saturating_add(FILE_SYSTEM_BYTES);
        have >= requested && shown >= have - have / (2 * GROWTH_PARTS)
    });
    let short = node.up && node.disk_free_bytes < node.disk_bytes / GROWTH_PARTS;
    if !grown || !short {
        return at_least;
    }
    let larger = (requested + requested / GROWTH_PARTS).next_multiple_of(SIZE_STEP_BYTES);
    at_least.max(larger.min(most))
}

/// Writes on each claim which node's data it has, once that node answers. A mark only grows: an
/// old view cannot take it back.
pub fn mark(members: &Members<'_>, cluster: &ClusterSeen, plan: &mut Plan) {
    for member in &members.all {
        let (Some(claim), Some(node)) = (member.claim, member.node) else {
            continue;
        };
        if node.up && !claim.terminating && claim.node.is_none_or(|marked| marked < node.id) {
            plan.step(Step::MarkVolume {
                member: member.name.clone(),
                uid: claim.uid.clone(),
                node: node.id,
                cluster: cluster.id.clone(),
            });
        }
    }
}
