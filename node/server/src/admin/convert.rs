//! Between the core's words and those of `carillon.admin.v1`.

use carillon_core::map::{DrainPurpose, Merge, Policy, PolicyChange, Split, Standing};
use carillon_core::placement::Zone;
use carillon_proto::admin as proto;
use carillon_proto::admin::SetPolicyRequest;

/// None when nothing was said.
pub(super) fn standing_from_proto(standing: proto::Standing) -> Option<Standing> {
    Some(match standing {
        proto::Standing::Unspecified => return None,
        proto::Standing::Active => Standing::Active,
        proto::Standing::Cordoned => Standing::Cordoned,
        proto::Standing::DrainingForRestart => Standing::DRAINING_FOR_RESTART,
        proto::Standing::DrainingForRemoval => Standing::DRAINING_FOR_REMOVAL,
        proto::Standing::Lost => Standing::Lost,
    })
}

/// What operators read for a standing; none: of a node that is not registered.
pub(super) fn standing_to_proto(standing: Option<Standing>) -> proto::Standing {
    match standing {
        None => proto::Standing::Unspecified,
        Some(Standing::Active) => proto::Standing::Active,
        Some(Standing::Cordoned) => proto::Standing::Cordoned,
        Some(Standing::Draining { purpose }) => match purpose {
            DrainPurpose::Restart => proto::Standing::DrainingForRestart,
            DrainPurpose::Removal => proto::Standing::DrainingForRemoval,
        },
        Some(Standing::Lost) => proto::Standing::Lost,
    }
}

/// A policy as operators see it.
pub(super) fn policy_to_proto(policy: &Policy) -> proto::Policy {
    proto::Policy {
        down_after_s: policy.down_after_s,
        failure_replacement_after_s: policy.failure_replacement_after_s,
        moves_max: policy.moves_max,
        moves_per_node_max: policy.moves_per_node_max,
        lost_nodes_max: policy.lost_nodes_max,
        snapshot_kib_per_s_max: policy.snapshot_kib_per_s_max,
        balance: policy.balance,
        shard_gib_max: policy.shard_gib_max,
        shard_commands_per_s_max: policy.shard_commands_per_s_max,
        shards_min: policy.shards_min,
        finalize_upgrade_after_s: policy.finalize_upgrade_after_s,
        leader_zone: policy.leader_zone.0.clone(),
    }
}

/// A split as operators see it.
pub(super) fn split_to_proto(split: &Split) -> proto::Split {
    proto::Split {
        shard_id: split.shard_id.0,
        new_shard_id: split.new_shard_id.0,
        slot: u32::from(split.slot.0),
        reason: split.reason.to_string(),
        started_at_ms: split.started_at.0,
    }
}

/// A merge as operators see it.
pub(super) fn merge_to_proto(merge: &Merge) -> proto::Merge {
    proto::Merge {
        merge_id: merge.merge_id.0,
        shard_id: merge.shard_id.0,
        absorbed_shard_id: merge.absorbed_shard_id.0,
        step: merge.step.to_string(),
        reason: merge.reason.to_string(),
        started_at_ms: merge.started_at.0,
    }
}

/// What operators change of it.
pub(super) fn policy_change(request: &SetPolicyRequest) -> PolicyChange {
    PolicyChange {
        down_after_s: request.down_after_s,
        failure_replacement_after_s: request.failure_replacement_after_s,
        moves_max: request.moves_max,
        moves_per_node_max: request.moves_per_node_max,
        lost_nodes_max: request.lost_nodes_max,
        snapshot_kib_per_s_max: request.snapshot_kib_per_s_max,
        balance: request.balance,
        shard_gib_max: request.shard_gib_max,
        shard_commands_per_s_max: request.shard_commands_per_s_max,
        shards_min: request.shards_min,
        finalize_upgrade_after_s: request.finalize_upgrade_after_s,
        leader_zone: request.leader_zone.clone().map(Zone),
    }
}
