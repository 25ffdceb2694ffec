//! Named cases: when the cluster goes to its next version by itself, and what it does not do
//! before that.

use carillon_core::map::{ClusterVersion, MetaCommand, Standing, Supported};
use carillon_core::steering::{SIZE_STEP_BYTES, Seen, Step, plan};
use carillon_core::{NodeId, ShardId};

use crate::cases::{AT, cluster, healthy, silence};

const DAY_MS: u64 = 24 * 3_600 * 1_000;

fn at_first() -> (carillon_core::map::MetaState, Seen) {
    let mut state = cluster(3, 2, 3);
    state.cluster_version = ClusterVersion::V1;
    let mut seen = healthy(&state);
    seen.next_version_ms = DAY_MS;
    (state, seen)
}

fn raises(state: &carillon_core::map::MetaState, seen: &Seen) -> bool {
    let to = ClusterVersion::V2;
    let step = Step::Propose(MetaCommand::FinalizeUpgrade { to, at: AT });
    plan(state, seen).steps.contains(&step)
}

#[test]
fn the_version_rises_after_all_nodes_have_supported_it_for_long() {
    let (mut state, mut seen) = at_first();
    assert!(raises(&state, &seen));
    seen.next_version_ms = DAY_MS - 1;
    assert!(!raises(&state, &seen), "not yet");
    state.policy.finalize_upgrade_after_s = 60;
    assert!(raises(&state, &seen));
    state.policy.finalize_upgrade_after_s = 0;
    seen.next_version_ms = u64::MAX;
    assert!(!raises(&state, &seen), "only when told to");
}

#[test]
fn it_does_not_rise_past_what_is_known() {
    let (mut state, seen) = at_first();
    state.cluster_version = ClusterVersion::MAX;
    assert!(plan(&state, &seen).steps.is_empty());
}

#[test]
fn a_node_that_is_silent_or_older_is_waited_for_unless_it_is_lost() {
    let (mut state, mut seen) = at_first();
    silence(&mut seen, &state, 3, 1);
    assert!(!raises(&state, &seen));
    let waits = plan(&state, &seen).waits;
    let named = waits
        .iter()
        .any(|wait| wait.text.contains("node 3 does not answer"));
    assert!(named, "{waits:?}");
    state.standings.insert(NodeId(3), Standing::Lost);
    assert!(raises(&state, &seen));

    let (state, mut seen) = at_first();
    let old = seen.nodes.get_mut(&NodeId(2)).expect("it is there");
    old.supported = Some(Supported::said(0, 0));
    assert!(!raises(&state, &seen));
}

#[test]
fn nothing_is_split_or_merged_by_itself_at_the_first_version() {
    let (mut state, mut seen) = at_first();
    state.policy.finalize_upgrade_after_s = 0;
    let large = seen.shards.get_mut(&ShardId(1)).expect("it is there");
    large.size_bytes = 1 << 40;
    large.size_bytes -= large.size_bytes % SIZE_STEP_BYTES;
    assert!(plan(&state, &seen).steps.is_empty());
    state.cluster_version = ClusterVersion::V2;
    let split = |step: &Step| matches!(step, Step::Propose(MetaCommand::StartSplit { .. }));
    assert!(plan(&state, &seen).steps.iter().any(split));
}
