//! Merges, step by step: one situation, and the steps that it leads to.

use carillon_core::map::{
    MergeReason, MergeRefusal, MergeStep, MetaCommand, MetaRefusal, MetaReply, MetaState,
    MoveReason, PolicyChange, Replica, Standing, apply_meta,
};
use carillon_core::merging::{MergeId, MergeMark};
use carillon_core::steering::{FREEZE_MS_MAX, MERGE_PAUSE_MS, Seen, Step, plan};
use carillon_core::{NodeId, ShardId, Slot, TimestampMs};

use crate::cases::{AT, cluster, healthy, set, silence};

const LEFT: ShardId = ShardId(1);
const RIGHT: ShardId = ShardId(2);
const MERGE: MergeId = MergeId(1);

fn ask(state: &mut MetaState, shard_id: ShardId) -> MetaReply {
    let right = state.map.right_of(shard_id).map(|shard| shard.shard_id);
    let command = MetaCommand::StartMerge {
        shard_id,
        absorbed_shard_id: right.unwrap_or(shard_id),
        reason: MergeReason::Asked,
        epoch: None,
        at: AT,
    };
    apply_meta(state, command)
}

/// Applies what is proposed; the other steps.
fn go_on(state: &mut MetaState, seen: &Seen) -> Vec<Step> {
    let mut others = Vec::new();
    for step in plan(state, seen).steps {
        match step {
            Step::Propose(command) => {
                let reply = apply_meta(state, command.clone());
                assert!(
                    !matches!(reply, MetaReply::Refused(_)),
                    "{command:?}: {reply:?}"
                );
            }
            other => others.push(other),
        }
    }
    others
}

fn keep(seen: &mut Seen, replicas: &[Replica]) {
    let kept = replicas.iter().map(|replica| (replica.replica_id, MERGE));
    seen.kept_frozen.extend(kept);
}

fn mark(seen: &mut Seen, shard: ShardId) -> &mut MergeMark {
    &mut seen.shards.get_mut(&shard).expect("it is seen").mark
}

fn step(state: &MetaState) -> Option<MergeStep> {
    state.merge(MERGE).map(|merge| merge.step)
}

#[test]
fn a_merge_goes_from_step_to_step_and_never_ahead_of_what_was_done() {
    let mut state = cluster(3, 4, 3);
    let mut seen = healthy(&state);
    let shards = state.map.shards.clone();
    assert!(matches!(
        ask(&mut state, LEFT),
        MetaReply::Updated { changed: true, .. }
    ));
    // Both are on all three nodes already.
    assert_eq!(go_on(&mut state, &seen), []);
    assert_eq!(step(&state), Some(MergeStep::Freezing));
    let told = go_on(&mut state, &seen);
    let nodes: Vec<NodeId> = (1..=3).map(NodeId).collect();
    let keeps = Step::KeepFrozen {
        shard_id: RIGHT,
        nodes,
        merge_id: MERGE,
    };
    let freezes = Step::FreezeShard {
        shard_id: RIGHT,
        leader: shards[1].preferred_leader,
        merge_id: MERGE,
    };
    assert_eq!(told, [freezes, keeps.clone()]);
    // One node does not keep it yet.
    mark(&mut seen, RIGHT).frozen_by = Some(MERGE);
    keep(&mut seen, &shards[1].replicas[..2]);
    assert_eq!(go_on(&mut state, &seen), [keeps]);
    assert_eq!(step(&state), Some(MergeStep::Freezing));
    keep(&mut seen, &shards[1].replicas);
    assert_eq!(go_on(&mut state, &seen), []);
    assert_eq!(step(&state), Some(MergeStep::Absorbing));
    // There is no way back, however long it takes and whoever is away.
    seen.now = TimestampMs(AT.0 + 100 * FREEZE_MS_MAX);
    silence(&mut seen, &state, 3, 20);
    let absorbs = Step::AbsorbShard {
        shard_id: LEFT,
        leader: seen.shards[&LEFT].leader,
        merge_id: MERGE,
    };
    assert_eq!(go_on(&mut state, &seen), [absorbs]);
    let cancel = MetaCommand::CancelMerge {
        merge_id: MERGE,
        at: AT,
    };
    let refused = MetaRefusal::Merge(MergeRefusal::TooLate { merge_id: MERGE });
    assert_eq!(apply_meta(&mut state, cancel), MetaReply::Refused(refused));
    mark(&mut seen, LEFT).absorbed = MERGE;
    assert_eq!(go_on(&mut state, &seen), []);
    assert!(state.merges.is_empty());
    assert_eq!(state.map.shards.len(), 3);
    let merged = state.map.shard(LEFT).expect("it stays");
    assert_eq!(merged.slots.first, Slot(0));
    assert_eq!(merged.slots.last, shards[1].slots.last);
    // Somebody asked for it, so that many are enough.
    assert_eq!(state.policy.shards_min, 3);
    // Asked for once more, it is done already; the next neighbour is another matter.
    let again = MetaCommand::StartMerge {
        shard_id: LEFT,
        absorbed_shard_id: RIGHT,
        reason: MergeReason::Asked,
        epoch: None,
        at: AT,
    };
    let reply = apply_meta(&mut state, again);
    assert!(matches!(reply, MetaReply::Updated { changed: false, .. }));
    assert!(state.merges.is_empty());
}

#[test]
fn replicas_are_gathered_one_after_the_other() {
    let mut state = cluster(6, 2, 3);
    let (left, right) = (state.map.shards[0].nodes(), state.map.shards[1].nodes());
    assert_ne!(left, right, "the case needs two that are apart");
    ask(&mut state, LEFT);
    let started = plan(&state, &healthy(&state)).steps;
    let [
        Step::Propose(MetaCommand::StartMove {
            shard_id,
            to,
            from,
            reason,
            ..
        }),
    ] = &started[..]
    else {
        panic!("{started:?}");
    };
    assert_eq!((*shard_id, *reason), (RIGHT, MoveReason::Merge));
    assert!(left.contains(&to.expect("it goes somewhere")));
    assert!(right.contains(&from.expect("it comes from somewhere")));
    // Nothing else moves either of them, and neither is split.
    let epoch = state.map.epoch;
    let other = MetaCommand::StartMove {
        shard_id: RIGHT,
        to: *to,
        from: *from,
        preferred_leader: to.expect("as above"),
        reason: MoveReason::Asked,
        epoch,
        at: AT,
    };
    let refused = MetaReply::Refused(MetaRefusal::Merge(MergeRefusal::Running {
        shard_id: LEFT,
        absorbed_shard_id: RIGHT,
    }));
    assert_eq!(apply_meta(&mut state, other), refused);
    // Before they are together it is not frozen.
    let freeze = MetaCommand::FreezeMerge {
        merge_id: MERGE,
        at: AT,
    };
    let apart = MetaRefusal::Merge(MergeRefusal::Apart { merge_id: MERGE });
    assert_eq!(apply_meta(&mut state, freeze), MetaReply::Refused(apart));
    // A node that is to be emptied comes first.
    set(&mut state, left[0].0, Standing::DRAINING_FOR_REMOVAL, true);
    let seen = healthy(&state);
    go_on(&mut state, &seen);
    assert!(state.merges.is_empty());
}

#[test]
fn what_stays_frozen_for_long_is_thawed() {
    for late in [false, true] {
        let mut state = cluster(3, 4, 3);
        let mut seen = healthy(&state);
        ask(&mut state, LEFT);
        go_on(&mut state, &seen);
        mark(&mut seen, RIGHT).frozen_by = Some(MERGE);
        mark(&mut seen, RIGHT).seen = MERGE;
        if late {
            seen.now = TimestampMs(AT.0 + FREEZE_MS_MAX + 1);
        } else {
            silence(&mut seen, &state, 3, 1);
        }
        assert_eq!(go_on(&mut state, &seen), []);
        assert_eq!(step(&state), Some(MergeStep::Thawing));
        let told = go_on(&mut state, &seen);
        assert!(
            matches!(
                told[..],
                [Step::ThawShard {
                    shard_id: RIGHT,
                    ..
                }]
            ),
            "{told:?}"
        );
        // It has not heard of the merge yet: a freeze may still be on its way.
        mark(&mut seen, RIGHT).frozen_by = None;
        mark(&mut seen, RIGHT).seen = MergeId(0);
        assert_eq!(go_on(&mut state, &seen), told);
        mark(&mut seen, RIGHT).seen = MERGE;
        assert_eq!(go_on(&mut state, &seen), []);
        assert!(state.merges.is_empty());
        assert_eq!(state.map.shards.len(), 4);
    }
}

#[test]
fn small_neighbours_are_merged_down_to_what_is_to_stay() {
    let mut state = cluster(3, 4, 3);
    let started = |state: &MetaState, seen: &Seen| {
        plan(state, seen)
            .steps
            .into_iter()
            .find_map(|step| match step {
                Step::Propose(MetaCommand::StartMerge { shard_id, .. }) => Some(shard_id),
                _ => None,
            })
    };
    let mut seen = healthy(&state);
    // A cluster keeps the shards that it began with.
    assert_eq!(started(&state, &seen), None);
    let change = PolicyChange {
        shards_min: Some(2),
        ..PolicyChange::default()
    };
    apply_meta(&mut state, MetaCommand::SetPolicy { change, at: AT });
    let set = |seen: &mut Seen, id: u32, gib: u64, load: u64| {
        let shard = seen.shards.get_mut(&ShardId(id)).expect("it is seen");
        (shard.size_bytes, shard.load_per_second) = (gib << 30, load);
    };
    // Eight GiB together, or a quarter of the load, is too much.
    for (id, gib, load) in [(1, 2, 0), (2, 6, 0), (3, 3, 0), (4, 2, 12_500)] {
        set(&mut seen, id, gib, load);
    }
    assert_eq!(started(&state, &seen), None);
    set(&mut seen, 4, 2, 12_000);
    assert_eq!(started(&state, &seen), Some(ShardId(3)));
    set(&mut seen, 2, 1, 0);
    assert_eq!(started(&state, &seen), Some(ShardId(1)));
    // Not soon after the last split or merge, and not while anything is wrong.
    state.last_split_at = AT;
    seen.now = TimestampMs(AT.0 + MERGE_PAUSE_MS - 1);
    assert_eq!(started(&state, &seen), None);
    seen.now = TimestampMs(AT.0 + MERGE_PAUSE_MS);
    assert_eq!(started(&state, &seen), Some(ShardId(1)));
    silence(&mut seen, &state, 2, 1);
    assert_eq!(started(&state, &seen), None);
}

#[test]
fn shards_without_a_neighbour_or_in_a_change_are_not_merged() {
    let mut state = cluster(3, 4, 3);
    let refused = |reply: MetaReply| match reply {
        MetaReply::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    };
    let last = ShardId(4);
    let no_neighbour = MergeRefusal::NoNeighbour { shard_id: last };
    assert_eq!(refused(ask(&mut state, last)), no_neighbour.into());
    let unknown = ShardId(9);
    assert_eq!(
        refused(ask(&mut state, unknown)),
        MetaRefusal::UnknownShard { shard_id: unknown }
    );
    ask(&mut state, LEFT);
    let running = MetaRefusal::from(MergeRefusal::Running {
        shard_id: LEFT,
        absorbed_shard_id: RIGHT,
    });
    assert_eq!(refused(ask(&mut state, RIGHT)), running);
    assert_eq!(
        refused(ask(&mut state, ShardId(3))),
        MergeRefusal::TooMany { max: 1 }.into()
    );
    let split = MetaCommand::StartSplit {
        shard_id: RIGHT,
        slot: state.map.shards[1].slots.middle().expect("it is wide"),
        reason: carillon_core::map::SplitReason::Asked,
        epoch: None,
        at: AT,
    };
    assert_eq!(refused(apply_meta(&mut state, split)), running);
}
