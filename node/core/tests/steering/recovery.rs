//! Shards that lost their majority: when they are made anew, what of them is named then, and
//! how they get their replicas back.

use carillon_core::map::{
    Actor, EventKind, LogPosition, MetaCommand, MetaRefusal, MetaReply, MetaState, MoveReason,
    Replica, ShardDescriptor, Standing, apply_meta,
};
use carillon_core::steering::{Seen, Step, plan};
use carillon_core::{NodeId, ReplicaId, ShardId};

use crate::cases::{AT, cluster, healthy, set, silence};
use crate::invariants::state::check_invariants;

const SHARD: ShardId = ShardId(1);
/// Plans that may be needed until a move starts.
const PLANS_MAX: usize = 5;

fn shard(state: &MetaState) -> &ShardDescriptor {
    state.map.shard(SHARD).expect("it exists")
}

fn recover(state: &mut MetaState, survivor: Replica) -> MetaReply {
    let command = MetaCommand::RecoverShard {
        shard_id: SHARD,
        survivor: survivor.replica_id,
        last: LogPosition {
            term: 3,
            leader: survivor.replica_id,
            index: 77,
        },
        at: AT,
    };
    let by = Actor("ann".to_owned());
    let command = Box::new(command);
    apply_meta(state, MetaCommand::By { by, command })
}

fn finish(state: &mut MetaState, replica_id: ReplicaId) -> MetaReply {
    let command = MetaCommand::FinishRecovery {
        shard_id: SHARD,
        replica_id,
        at: AT,
    };
    apply_meta(state, command)
}

fn lose(state: &mut MetaState, replicas: &[Replica]) {
    for replica in replicas {
        set(state, replica.node_id.0, Standing::Lost, true);
    }
}

/// What is seen of a cluster of which these nodes are gone. The shard is led only by a group of
/// one.
fn seen(state: &MetaState, lost: &[Replica]) -> Seen {
    let mut seen = healthy(state);
    for replica in lost {
        silence(&mut seen, state, replica.node_id.0, 1_000);
    }
    if shard(state).replicas.len() > 1 {
        seen.shards.remove(&SHARD);
    }
    seen
}

#[test]
fn a_shard_is_made_anew_from_one_replica_and_grows_again() {
    let mut state = cluster(5, 3, 3);
    let replicas = shard(&state).replicas.clone();
    let (left, lost) = (replicas[0], &replicas[1..]);
    let refused = |reply: MetaReply| match reply {
        MetaReply::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    };
    let majority = MetaRefusal::ShardHasMajority { shard_id: SHARD };
    assert_eq!(refused(recover(&mut state, left)), majority);
    lose(&mut state, &lost[..1]);
    assert_eq!(refused(recover(&mut state, left)), majority);
    lose(&mut state, lost);
    let gone = refused(recover(&mut state, lost[0]));
    assert!(matches!(gone, MetaRefusal::NotASurvivor { .. }), "{gone:?}");

    let to = Replica {
        replica_id: state.next_replica_id,
        ..left
    };
    assert!(matches!(
        recover(&mut state, left),
        MetaReply::Updated { changed: true, .. }
    ));
    assert_eq!(shard(&state).replicas, [to]);
    assert_eq!(shard(&state).preferred_leader, left.node_id);
    for old in [left, lost[0], lost[1]] {
        assert!(!state.names_replica(SHARD, old.replica_id), "{old:?}");
    }
    let event = state.events.back().expect("it happened");
    assert_eq!(event.by, Some(Actor("ann".to_owned())));
    assert!(matches!(event.what, EventKind::RecoveryStarted { .. }));
    let once = state.clone();
    recover(&mut state, left);
    assert_eq!(state, once, "it is begun once");
    check_invariants(&state);

    // Nothing moves before the new group leads.
    let mut looked = seen(&state, lost);
    let group = looked.shards.remove(&SHARD).expect("it is seen");
    let waiting = plan(&state, &looked);
    let of_shard = |step: &Step| matches!(step, Step::Propose(MetaCommand::StartMove { shard_id, .. }) if *shard_id == SHARD);
    assert!(!waiting.steps.iter().any(of_shard), "{waiting:?}");
    assert!(waiting.waits.iter().any(|wait| wait.text.contains("anew")));
    looked.shards.insert(SHARD, group);
    let ends = Step::Propose(MetaCommand::FinishRecovery {
        shard_id: SHARD,
        replica_id: to.replica_id,
        at: looked.now,
    });
    assert!(plan(&state, &looked).steps.contains(&ends));
    finish(&mut state, to.replica_id);
    finish(&mut state, to.replica_id);
    assert!(state.recoveries.is_empty());
    // What led on the lost nodes gets other preferred leaders first.
    let grows = (0..PLANS_MAX).find_map(|_| {
        let looked = seen(&state, lost);
        let steps = plan(&state, &looked).steps;
        for step in &steps {
            if let Step::Propose(command) = step {
                apply_meta(&mut state, command.clone());
            }
        }
        steps.into_iter().find(of_shard)
    });
    let Some(Step::Propose(MetaCommand::StartMove {
        to: Some(node),
        from: None,
        reason: MoveReason::Repair,
        ..
    })) = grows
    else {
        panic!("{grows:?}");
    };
    assert!(lost.iter().all(|replica| replica.node_id != node));
}

#[test]
fn other_replicas_that_are_left_are_kept_until_the_new_group_leads() {
    let mut state = cluster(5, 1, 5);
    let replicas = shard(&state).replicas.clone();
    let (left, lost) = replicas.split_at(2);
    lose(&mut state, lost);
    recover(&mut state, left[0]);
    assert!(!state.names_replica(SHARD, left[0].replica_id));
    assert!(state.names_replica(SHARD, left[1].replica_id));
    let running = &state.recoveries[&SHARD];
    let to = running.to;
    assert_eq!(running.others, [left[1]]);

    let waits = recover(&mut state, left[1]);
    assert!(
        matches!(waits, MetaReply::Refused(MetaRefusal::ShardIsRecovering { node_id, .. }) if node_id == to.node_id),
        "{waits:?}"
    );
    // Its node is lost as well: the other one is taken.
    lose(&mut state, &left[..1]);
    recover(&mut state, left[1]);
    let again = state.recoveries[&SHARD].to;
    assert_eq!(again.node_id, left[1].node_id);
    assert_eq!(shard(&state).replicas, [again]);
    assert!(!state.names_replica(SHARD, to.replica_id));
    // What was planned for the first one ends nothing.
    finish(&mut state, to.replica_id);
    assert!(!state.recoveries.is_empty());
    finish(&mut state, again.replica_id);
    assert!(state.recoveries.is_empty());
    assert!(!state.names_replica(SHARD, left[1].replica_id));
    check_invariants(&state);
}

#[test]
fn a_move_that_ran_is_over() {
    let mut state = cluster(4, 1, 3);
    let replicas = shard(&state).replicas.clone();
    let target = (1..=4)
        .map(NodeId)
        .find(|node| shard(&state).replica_on(*node).is_none())
        .expect("four nodes, three replicas");
    let command = MetaCommand::StartMove {
        shard_id: SHARD,
        to: Some(target),
        from: Some(replicas[2].node_id),
        preferred_leader: replicas[0].node_id,
        reason: MoveReason::Asked,
        epoch: state.map.epoch,
        at: AT,
    };
    apply_meta(&mut state, command);
    let added = state.moves[&SHARD].add.expect("it adds one");
    lose(&mut state, &replicas[1..]);
    recover(&mut state, replicas[0]);
    assert!(state.moves.is_empty());
    assert_eq!(state.recoveries[&SHARD].others, [added]);
    let command = MetaCommand::StartMove {
        shard_id: SHARD,
        to: Some(target),
        from: None,
        preferred_leader: replicas[0].node_id,
        reason: MoveReason::Repair,
        epoch: state.map.epoch,
        at: AT,
    };
    let refused = apply_meta(&mut state, command);
    assert!(
        matches!(
            refused,
            MetaReply::Refused(MetaRefusal::ShardIsRecovering { .. })
        ),
        "{refused:?}"
    );
}
