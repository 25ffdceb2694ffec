//! Named cases: one situation, and the steps that it leads to.

use std::collections::BTreeMap;

use carillon_core::map::{
    ClusterVersion, ConfigVersion, DrainPurpose, JoinToken, MetaCommand, MetaRefusal, MetaReply,
    MetaState, MoveReason, NodeInfo, PolicyChange, SplitReason, SplitRefusal, Standing, Supported,
    apply_meta, initial_map,
};
use carillon_core::placement::Zone;
use carillon_core::steering::{
    DrainDanger, FollowerSeen, MetaSeen, NodeSeen, Plan, SIZE_STEP_BYTES, SPLIT_PAUSE_MS, Seen,
    ShardSeen, Step, drain_danger, plan,
};
use carillon_core::{NodeId, ShardId, Slot, TimestampMs};

pub const AT: TimestampMs = TimestampMs(1_000);

fn node(id: u64) -> NodeInfo {
    NodeInfo {
        node_id: NodeId(id),
        identity: format!("identity-{id}"),
        client_address: format!("host-{id}:7000"),
        peer_address: format!("host-{id}:8000"),
        zone: Zone::default(),
        weight: 1,
        capacity_bytes: u64::MAX,
    }
}

pub fn cluster(nodes: u64, shards: u32, replication_factor: u32) -> MetaState {
    let nodes: Vec<NodeInfo> = (1..=nodes).map(node).collect();
    let map = initial_map(&nodes, shards, replication_factor).expect("a map");
    let mut state = MetaState::default();
    let command = MetaCommand::CreateCluster {
        cluster_id: "c1".to_owned(),
        cluster_name: String::new(),
        join_token: JoinToken("secret".to_owned()),
        replication_factor,
        nodes,
        shards: map.shards,
        version: ClusterVersion::MAX,
        at: AT,
    };
    assert!(matches!(
        apply_meta(&mut state, command),
        MetaReply::Created { .. }
    ));
    state
}

pub fn set(state: &mut MetaState, id: u64, standing: Standing, forced: bool) -> MetaReply {
    let command = MetaCommand::SetStanding {
        node_id: NodeId(id),
        standing,
        forced,
        at: AT,
    };
    apply_meta(state, command)
}

fn join(state: &mut MetaState, node: NodeInfo) -> MetaReply {
    let token = JoinToken("secret".to_owned());
    apply_meta(
        state,
        MetaCommand::JoinNode {
            node,
            token,
            at: AT,
        },
    )
}

/// All is well: every node answers, every group has the map's replicas and its preferred
/// leader, the meta group has its voters.
pub fn healthy(state: &MetaState) -> Seen {
    let config = ConfigVersion::default();
    let well = FollowerSeen {
        lag_entries: 0,
        answers: true,
    };
    let up = NodeSeen {
        up: true,
        supported: Some(Supported::default()),
        ..NodeSeen::default()
    };
    let nodes: Vec<NodeId> = state.standings.keys().copied().collect();
    let voters = match nodes.len() {
        0..=2 => 1,
        3..=4 => 3,
        _ => 5,
    };
    let shards = state.map.shards.iter().map(|shard| {
        let followers = shard
            .replicas
            .iter()
            .map(|replica| (replica.replica_id, well));
        let seen = ShardSeen {
            leader: shard.preferred_leader,
            config,
            voters: shard.replicas.clone(),
            followers: followers.collect(),
            ..ShardSeen::default()
        };
        (shard.shard_id, seen)
    });
    Seen {
        now: AT,
        nodes: nodes.iter().map(|node| (*node, up)).collect(),
        shards: shards.collect(),
        kept_frozen: BTreeMap::new(),
        next_version_ms: 0,
        meta: MetaSeen {
            leader: nodes[0],
            config,
            voters: nodes[..voters].to_vec(),
            learners: nodes[voters..].to_vec(),
            followers: nodes.iter().map(|node| (*node, well)).collect(),
            changing: false,
        },
    }
}

/// The node does not answer, nor do its replicas; others lead what it led.
pub fn silence(seen: &mut Seen, state: &MetaState, id: u64, seconds: u64) {
    let node = NodeId(id);
    let silent = NodeSeen {
        up: false,
        silent_ms: seconds * 1_000,
        is_stopping: false,
        disk_free_bytes: None,
        sessions: 0,
        supported: Some(Supported::default()),
    };
    seen.nodes.insert(node, silent);
    seen.meta.followers.insert(node, FollowerSeen::default());
    for shard in &state.map.shards {
        let Some(replica) = shard.replica_on(node) else {
            continue;
        };
        let group = seen.shards.get_mut(&shard.shard_id).expect("it is seen");
        group
            .followers
            .insert(replica.replica_id, FollowerSeen::default());
        let mut others = shard.replicas.iter().filter(|other| other.node_id != node);
        if group.leader == node {
            group.leader = others.next().expect("there are others").node_id;
        }
    }
}

fn standings(plan: &Plan) -> Vec<(NodeId, Standing)> {
    let set = |step: &Step| match step {
        Step::Propose(MetaCommand::SetStanding {
            node_id, standing, ..
        }) => Some((*node_id, *standing)),
        _ => None,
    };
    plan.steps.iter().filter_map(set).collect()
}

fn starts(plan: &Plan) -> Vec<(MoveReason, Option<NodeId>)> {
    let start = |step: &Step| match step {
        Step::Propose(MetaCommand::StartMove { reason, from, .. }) => Some((*reason, *from)),
        _ => None,
    };
    plan.steps.iter().filter_map(start).collect()
}

#[test]
fn a_healthy_cluster_is_left_alone() {
    for (nodes, shards, replication_factor) in [(1, 4, 1), (3, 16, 3), (5, 20, 3), (7, 40, 5)] {
        let state = cluster(nodes, shards, replication_factor);
        assert_eq!(plan(&state, &healthy(&state)), Plan::default());
    }
    assert_eq!(
        plan(&MetaState::default(), &Seen::default()),
        Plan::default()
    );
}

#[test]
fn a_node_is_given_up_only_after_its_time_and_while_most_answer() {
    let state = cluster(5, 20, 3);
    let lost = |silent: &[(u64, u64)]| {
        let mut seen = healthy(&state);
        for (id, seconds) in silent {
            silence(&mut seen, &state, *id, *seconds);
        }
        standings(&plan(&state, &seen))
    };
    assert_eq!(lost(&[(5, 600)]), []);
    assert_eq!(lost(&[(5, 601)]), [(NodeId(5), Standing::Lost)]);
    // Two at once: the longest silent first, the other one later.
    assert_eq!(lost(&[(4, 700), (5, 800)]), [(NodeId(5), Standing::Lost)]);
    // Three of five are silent: the fault may be on this side.
    assert_eq!(lost(&[(3, 800), (4, 800), (5, 800)]), []);
    let pair = cluster(2, 4, 2);
    let mut seen = healthy(&pair);
    silence(&mut seen, &pair, 2, 5_000);
    assert_eq!(standings(&plan(&pair, &seen)), []);
}

#[test]
fn no_more_nodes_are_given_up_than_the_policy_allows() {
    let mut state = cluster(5, 20, 3);
    set(&mut state, 5, Standing::Lost, true);
    let mut seen = healthy(&state);
    silence(&mut seen, &state, 5, 900);
    silence(&mut seen, &state, 4, 700);
    let plan = plan(&state, &seen);
    assert_eq!(standings(&plan), []);
    assert!(
        plan.waits
            .iter()
            .any(|wait| wait.node_id == Some(NodeId(4)))
    );
    let refused = set(&mut state, 4, Standing::Lost, false);
    assert!(matches!(
        refused,
        MetaReply::Refused(MetaRefusal::TooManyLost { .. })
    ));
}

#[test]
fn a_lost_node_that_answers_is_taken_back() {
    let mut state = cluster(4, 8, 3);
    set(&mut state, 4, Standing::Lost, true);
    let plan = plan(&state, &healthy(&state));
    assert_eq!(standings(&plan), [(NodeId(4), Standing::Active)]);
    // Nothing is moved on the strength of a standing that is about to change.
    assert_eq!(starts(&plan), []);
}

#[test]
fn a_node_with_an_empty_disk_is_another_one_and_the_old_one_stays_lost() {
    let mut state = cluster(3, 4, 3);
    let mut empty = node(3);
    empty.identity = "identity-new".to_owned();
    for existed in [false, true] {
        let reply = join(&mut state, empty.clone());
        let epoch = state.map.epoch;
        let node_id = NodeId(4);
        assert_eq!(
            reply,
            MetaReply::Joined {
                node_id,
                existed,
                epoch
            }
        );
    }
    assert_eq!(state.standing(NodeId(3)), Some(Standing::Lost));
    let refused = set(&mut state, 3, Standing::Active, true);
    let (node_id, successor) = (NodeId(3), NodeId(4));
    assert_eq!(
        refused,
        MetaReply::Refused(MetaRefusal::Superseded { node_id, successor })
    );
}

#[test]
fn repair_comes_before_drain_and_nothing_is_balanced_meanwhile() {
    let mut state = cluster(6, 12, 3);
    // Two new and empty nodes: there is much to balance.
    join(&mut state, node(7));
    join(&mut state, node(8));
    let balance = starts(&plan(&state, &healthy(&state)));
    assert!(!balance.is_empty());
    assert!(
        balance
            .iter()
            .all(|(reason, _)| *reason == MoveReason::Balance)
    );
    set(&mut state, 1, Standing::DRAINING_FOR_REMOVAL, false);
    set(&mut state, 2, Standing::Lost, true);
    // The leaders of both go elsewhere before anything moves.
    let mut seen = healthy(&state);
    silence(&mut seen, &state, 2, 900);
    for step in plan(&state, &seen).steps {
        if let Step::Propose(command) = step {
            apply_meta(&mut state, command);
        }
    }
    let started = starts(&plan(&state, &seen));
    let reasons: Vec<MoveReason> = started.iter().map(|(reason, _)| *reason).collect();
    assert!(reasons.is_sorted(), "{reasons:?}");
    assert!(started.contains(&(MoveReason::Repair, Some(NodeId(2)))));
    assert!(!reasons.contains(&MoveReason::Balance), "{reasons:?}");
}

#[test]
fn a_restart_takes_leaders_and_moves_nothing() {
    let mut state = cluster(3, 6, 3);
    set(&mut state, 1, Standing::DRAINING_FOR_RESTART, false);
    let seen = healthy(&state);
    let first = plan(&state, &seen);
    assert_eq!(starts(&first), []);
    for step in first.steps {
        if let Step::Propose(command) = step {
            apply_meta(&mut state, command);
        }
    }
    let mut shards = state.map.shards.iter();
    assert!(shards.all(|shard| shard.preferred_leader != NodeId(1)));
    // The groups still have the old leaders: they are asked to hand over, the meta group too.
    let second = plan(&state, &seen).steps;
    let hands_over = |step: &Step| {
        matches!(
            step,
            Step::TransferLeader {
                from: NodeId(1),
                ..
            }
        )
    };
    assert_eq!(second.iter().filter(|step| hands_over(step)).count(), 3);
    assert!(second.iter().all(hands_over), "{second:?}");
}

#[test]
fn a_message_more_or_less_moves_nothing() {
    let state = cluster(4, 8, 3);
    let mut seen = healthy(&state);
    for (shard_id, group) in &mut seen.shards {
        group.size_bytes = 3 * SIZE_STEP_BYTES + u64::from(shard_id.0) * (SIZE_STEP_BYTES / 9);
        group.load_per_second = u64::from(shard_id.0) * 100;
    }
    assert_eq!(plan(&state, &seen), Plan::default());
}

#[test]
fn what_a_drain_would_break_is_named() {
    let state = cluster(3, 2, 3);
    let seen = healthy(&state);
    let danger = |seen: &Seen, purpose| drain_danger(&state, seen, NodeId(1), purpose);
    assert_eq!(danger(&seen, DrainPurpose::Restart), []);
    let removal = danger(&seen, DrainPurpose::Removal);
    assert!(
        matches!(removal[0], DrainDanger::TooFewNodes { active: 2, .. }),
        "{removal:?}"
    );
    // With another one down there is no majority without it: meta group and both shards.
    let mut worse = seen;
    silence(&mut worse, &state, 2, 5);
    let restart = danger(&worse, DrainPurpose::Restart);
    let no_majority = |danger: &DrainDanger| matches!(danger, DrainDanger::NoMajority { .. });
    assert_eq!(restart.len(), 3);
    assert!(restart.iter().all(no_majority), "{restart:?}");
}

#[test]
fn a_shard_listed_twice_gets_the_last_leader_once() {
    let mut state = cluster(3, 3, 3);
    let leaders = vec![(ShardId(1), NodeId(3)), (ShardId(1), NodeId(2))];
    let command = MetaCommand::SetPreferredLeaders { leaders };
    apply_meta(&mut state, command.clone());
    let once = state.clone();
    apply_meta(&mut state, command);
    assert_eq!(state, once);
    let shard = state.map.shard(ShardId(1)).expect("it is there");
    assert_eq!(shard.preferred_leader, NodeId(2));
}

/// Found by counting what the simulation leaves unbalanced: a drained node that nobody had
/// forgotten yet held back every move for balance.
#[test]
fn a_drained_node_does_not_keep_others_from_being_balanced() {
    let mut state = cluster(3, 8, 3);
    join(&mut state, node(4));
    join(&mut state, node(5));
    set(&mut state, 5, Standing::DRAINING_FOR_REMOVAL, false);
    let mut seen = healthy(&state);
    // It may have been stopped already.
    silence(&mut seen, &state, 5, 60);
    let started = starts(&plan(&state, &seen));
    let balances = |(reason, _): &(MoveReason, _)| *reason == MoveReason::Balance;
    assert!(
        !started.is_empty() && started.iter().all(balances),
        "{started:?}"
    );
    // One that still holds something does.
    set(&mut state, 5, Standing::Active, false);
    set(&mut state, 3, Standing::DRAINING_FOR_REMOVAL, false);
    let started = starts(&plan(&state, &seen));
    assert!(!started.iter().any(balances), "{started:?}");
}

/// The only split that is proposed.
fn started(plan: &Plan) -> Option<(ShardId, SplitReason)> {
    let mut starts = plan.steps.iter().filter_map(|step| match step {
        Step::Propose(MetaCommand::StartSplit {
            shard_id, reason, ..
        }) => Some((*shard_id, *reason)),
        _ => None,
    });
    let first = starts.next();
    assert!(starts.next().is_none(), "{plan:#?}");
    first
}

#[test]
fn what_has_become_too_much_is_split_one_after_the_other() {
    let mut state = cluster(3, 4, 3);
    let mut seen = healthy(&state);
    assert_eq!(started(&plan(&state, &seen)), None);
    let shard = |seen: &mut Seen, id: u32, gib: u64, load: u64| {
        let shard = seen.shards.get_mut(&ShardId(id)).expect("it is seen");
        (shard.size_bytes, shard.load_per_second) = (gib << 30, load);
    };
    shard(&mut seen, 2, 33, 0);
    shard(&mut seen, 3, 1, 70_000);
    let first = plan(&state, &seen);
    assert_eq!(started(&first), Some((ShardId(3), SplitReason::Load)));
    for step in first.steps {
        if let Step::Propose(command) = step {
            apply_meta(&mut state, command);
        }
    }
    let new = ShardId(5);
    assert_eq!(state.splits[&ShardId(3)].new_shard_id, new);
    // Its group is told, again and again, and nothing else is split meanwhile.
    for _ in 0..2 {
        let told = plan(&state, &seen);
        assert!(
            told.steps.iter().any(|step| matches!(
                step,
                Step::Split {
                    shard_id: ShardId(3),
                    ..
                }
            )),
            "{told:#?}"
        );
        assert_eq!(started(&told), None);
    }
    let split = state.splits[&ShardId(3)].clone();
    let made = ShardSeen {
        leader: split.replicas[0].node_id,
        voters: split.replicas.clone(),
        ..ShardSeen::default()
    };
    seen.shards.insert(new, made);
    let finished = plan(&state, &seen);
    for step in finished.steps {
        if let Step::Propose(command) = step {
            apply_meta(&mut state, command);
        }
    }
    assert!(state.splits.is_empty());
    let (old, new) = (
        state.map.shard(ShardId(3)).expect("it stays"),
        state.map.shard(new).expect("it is there"),
    );
    assert_eq!(old.slots.last.0 + 1, new.slots.first.0);
    assert_eq!(new.replicas, split.replicas);

    // Loads are averages of what was before: the next one has to wait.
    assert_eq!(started(&plan(&state, &seen)), None);
    seen.now = TimestampMs(AT.0 + SPLIT_PAUSE_MS);
    shard(&mut seen, 3, 1, 30_000);
    let next = plan(&state, &seen);
    assert_eq!(started(&next), Some((ShardId(2), SplitReason::Size)));
    // Nobody wants it.
    let never = PolicyChange {
        shard_gib_max: Some(0),
        shard_commands_per_s_max: Some(0),
        ..PolicyChange::default()
    };
    apply_meta(
        &mut state,
        MetaCommand::SetPolicy {
            change: never,
            at: AT,
        },
    );
    assert_eq!(started(&plan(&state, &seen)), None);
}

#[test]
fn a_shard_is_not_split_where_or_when_it_cannot_be() {
    let mut state = cluster(4, 2, 3);
    let start = |state: &MetaState, shard: u32, slot: u16| MetaCommand::StartSplit {
        shard_id: ShardId(shard),
        slot: Slot(slot),
        reason: SplitReason::Asked,
        epoch: Some(state.map.epoch),
        at: AT,
    };
    for (shard, slot) in [(1, 0), (1, 2_048), (2, 2_048), (2, 9_999), (3, 5)] {
        let command = start(&state, shard, slot);
        let reply = apply_meta(&mut state, command);
        assert!(matches!(reply, MetaReply::Refused(_)), "{shard} {slot}");
    }
    let first = start(&state, 1, 5);
    assert!(matches!(
        apply_meta(&mut state, first),
        MetaReply::Updated { changed: true, .. }
    ));
    // The same again does nothing; another one, or a move, is refused.
    let same = start(&state, 1, 5);
    assert!(matches!(
        apply_meta(&mut state, same),
        MetaReply::Updated { changed: false, .. }
    ));
    let other = start(&state, 1, 6);
    let refused = apply_meta(&mut state, other);
    assert!(
        matches!(
            &refused,
            MetaReply::Refused(MetaRefusal::Split(SplitRefusal::Running { .. }))
        ),
        "{refused:?}"
    );
    let from = state.map.shard(ShardId(1)).expect("it is there").replicas[0].node_id;
    let mut to = (1..=4).map(NodeId);
    let to = to.find(|node| state.map.shards[0].replica_on(*node).is_none());
    let command = MetaCommand::StartMove {
        shard_id: ShardId(1),
        to,
        from: Some(from),
        preferred_leader: to.expect("one has none"),
        reason: MoveReason::Asked,
        epoch: state.map.epoch,
        at: AT,
    };
    let refused = apply_meta(&mut state, command);
    assert!(
        matches!(&refused, MetaReply::Refused(MetaRefusal::Split(_))),
        "{refused:?}"
    );
}
