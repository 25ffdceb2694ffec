//! Single decisions, one each. The world here stands still: it is as it is written down.

use std::collections::BTreeMap;

use carillon_operator::plan::{
    Claim, ClusterSeen, Desired, Drain, Host, HostName, MemberName, NodeId, NodeSeen, Observed,
    Plan, Pod, PolicySeen, Replacement, Revision, Roll, Standing, Start, Step, Uid, WaitKind, plan,
};

const NOW_S: u64 = 100_000;

fn member(index: u32) -> MemberName {
    MemberName::new("chat", index)
}

fn desired(nodes: u32) -> Desired {
    Desired {
        cluster: "chat".to_owned(),
        nodes,
        replication_factor: if nodes < 3 { 1 } else { 3 },
        revision: Revision("new".to_owned()),
        volume_bytes: 10 << 30,
        volume_bytes_max: None,
        candidates: Default::default(),
        roll: Roll {
            paused: false,
            min_ready_s: 10,
            soak_s: None,
        },
        replacement: Replacement {
            after_s: 600,
            at_once: 1,
        },
        deletion: None,
        paused: false,
        upgrade_refused: None,
    }
}

fn pod(index: u32) -> Pod {
    Pod {
        uid: Uid(format!("pod-{index}")),
        revision: Revision("new".to_owned()),
        host: Some(HostName(format!("host-{index}"))),
        terminating: false,
        founds: false,
        ended: false,
        started: true,
        ready_since_s: Some(NOW_S - 1_000),
        restarts: 0,
        trouble: None,
    }
}

fn claim(index: u32) -> Claim {
    Claim {
        uid: Uid(format!("claim-{index}")),
        requested_bytes: 10 << 30,
        capacity_bytes: Some(10 << 30),
        terminating: false,
        released: false,
        node: Some(NodeId(u64::from(index) + 1)),
        host: None,
    }
}

fn node(index: u32) -> NodeSeen {
    NodeSeen {
        id: NodeId(u64::from(index) + 1),
        member: Some(member(index)),
        up: true,
        standing: Standing::Active,
        replicas: 8,
        caught_up: true,
        disk_bytes: 10 << 30,
        disk_free_bytes: 9 << 30,
        drain: None,
        restart_dangers: Vec::new(),
    }
}

/// All is well.
fn observed(nodes: u32) -> Observed {
    let host = |index| {
        let host = Host {
            ready: true,
            out_of_service: false,
        };
        (HostName(format!("host-{index}")), host)
    };
    Observed {
        now_s: NOW_S,
        cluster_made: Some("one".to_owned()),
        claims: (0..nodes)
            .map(|index| (member(index), claim(index)))
            .collect(),
        pods: (0..nodes)
            .map(|index| (member(index), pod(index)))
            .collect(),
        hosts: (0..nodes).map(host).collect::<BTreeMap<_, _>>(),
        cluster: Ok(ClusterSeen {
            id: "one".to_owned(),
            nodes: (0..nodes).map(node).collect(),
            policy: PolicySeen {
                failure_replacement_after_s: 600,
                lost_nodes_max: 1,
            },
            leaderless: 0,
            meta_leader: Some(NodeId(1)),
        }),
    }
}

fn of(observed: &mut Observed, index: u32) -> &mut NodeSeen {
    let cluster = observed.cluster.as_mut().expect("it answers");
    &mut cluster.nodes[index as usize]
}

fn pod_of(observed: &mut Observed, index: u32) -> &mut Pod {
    observed.pods.get_mut(&member(index)).expect("it has a Pod")
}

fn drained(done: bool, percent: u32) -> Option<Drain> {
    Some(Drain {
        done,
        percent,
        step: "moving replicas".to_owned(),
        waits: Vec::new(),
        sessions_left: 0,
        since_s: NOW_S - 5,
    })
}

fn standing(index: u32, standing: Standing) -> Step {
    Step::SetStanding {
        node: NodeId(u64::from(index) + 1),
        member: Some(member(index)),
        standing,
        forced: false,
    }
}

fn waits(plan: &Plan, kind: WaitKind) -> bool {
    plan.waits.iter().any(|wait| wait.kind == kind)
}

fn deleted(plan: &Plan) -> Vec<&MemberName> {
    let steps = plan.steps.iter();
    steps
        .filter_map(|step| match step {
            Step::DeletePod { member, .. } => Some(member),
            _ => None,
        })
        .collect()
}

#[test]
fn nothing_is_done_where_all_is_well() {
    for nodes in [1, 3, 5] {
        let plan = plan(&desired(nodes), &observed(nodes));
        assert!(plan.is_empty(), "{plan:?}");
        assert_eq!(plan.operation, None);
    }
}

#[test]
fn the_first_members_found_the_cluster_and_others_wait_for_it() {
    let mut seen = observed(0);
    seen.cluster_made = None;
    seen.cluster = Err("nobody is there".to_owned());
    let plan = plan(&desired(5), &seen);
    let starts: Vec<_> = plan
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::CreatePod { member, start } => Some((member.index(), start.clone())),
            _ => None,
        })
        .collect();
    let found = |index| {
        let start = Start::Found {
            node: NodeId(u64::from(index) + 1),
        };
        (index, start)
    };
    assert_eq!(starts, [found(0), found(1), found(2)]);
    assert!(waits(&plan, WaitKind::NoAnswer));
}

#[test]
fn why_the_first_members_do_not_start_is_said_first() {
    let mut seen = observed(3);
    seen.cluster_made = None;
    seen.cluster = Err("nobody answers".to_owned());
    let pod = pod_of(&mut seen, 1);
    pod.trouble = Some("no machine is large enough".to_owned());
    pod.ready_since_s = None;
    let plan = plan(&desired(3), &seen);
    let first = plan.waits.first().map(|wait| wait.reason.as_str());
    let said = "its Pod does not start: no machine is large enough";
    assert_eq!(first, Some(said));
}

#[test]
fn a_lost_pod_is_made_again_at_once_and_joins() {
    let mut seen = observed(3);
    seen.pods.remove(&member(1));
    *of(&mut seen, 1) = NodeSeen {
        up: false,
        caught_up: false,
        ..node(1)
    };
    let plan = plan(&desired(3), &seen);
    let made = Step::CreatePod {
        member: member(1),
        start: Start::Join,
    };
    assert_eq!(plan.steps, [made]);
    assert!(waits(&plan, WaitKind::Starting));
}

#[test]
fn the_leader_of_the_meta_group_is_restarted_last() {
    let mut seen = observed(3);
    for index in 0..3 {
        pod_of(&mut seen, index).revision = Revision("old".to_owned());
    }
    let first = plan(&desired(3), &seen);
    assert_eq!(first.steps, [standing(1, Standing::DrainingForRestart)]);
    for index in [1, 2] {
        pod_of(&mut seen, index).revision = Revision("new".to_owned());
    }
    let last = plan(&desired(3), &seen);
    assert_eq!(last.steps, [standing(0, Standing::DrainingForRestart)]);
}

#[test]
fn a_pod_is_deleted_when_its_drain_is_done_and_not_before() {
    let mut seen = observed(3);
    pod_of(&mut seen, 1).revision = Revision("old".to_owned());
    of(&mut seen, 1).standing = Standing::DrainingForRestart;
    of(&mut seen, 1).drain = drained(false, 40);
    let waiting = plan(&desired(3), &seen);
    assert_eq!(waiting.steps, []);
    assert!(waiting.waits[0].reason.contains("40 %"), "{waiting:?}");
    of(&mut seen, 1).drain = drained(true, 100);
    assert_eq!(deleted(&plan(&desired(3), &seen)), [&member(1)]);
    of(&mut seen, 2).caught_up = false;
    let other = plan(&desired(3), &seen);
    assert_eq!(
        deleted(&other),
        Vec::<&MemberName>::new(),
        "chat-2 lacks something"
    );
}

#[test]
fn a_restarted_member_is_used_again_when_it_has_caught_up() {
    let mut seen = observed(3);
    of(&mut seen, 1).standing = Standing::DrainingForRestart;
    of(&mut seen, 1).caught_up = false;
    assert_eq!(plan(&desired(3), &seen).steps, []);
    of(&mut seen, 1).caught_up = true;
    assert_eq!(
        plan(&desired(3), &seen).steps,
        [standing(1, Standing::Active)]
    );
}

#[test]
fn a_pod_that_does_not_start_stops_the_roll_and_a_corrected_spec_recovers_it() {
    let mut seen = observed(3);
    for index in [0, 2] {
        pod_of(&mut seen, index).revision = Revision("old".to_owned());
    }
    *pod_of(&mut seen, 1) = Pod {
        started: false,
        ready_since_s: None,
        trouble: Some("ImagePullBackOff".to_owned()),
        ..pod(1)
    };
    of(&mut seen, 1).up = false;
    of(&mut seen, 1).caught_up = false;
    of(&mut seen, 1).standing = Standing::DrainingForRestart;
    let stopped = plan(&desired(3), &seen);
    assert_eq!(stopped.steps, []);
    let told = stopped
        .waits
        .iter()
        .any(|wait| wait.reason.contains("ImagePullBackOff"));
    assert!(told, "{stopped:?}");
    let mut corrected = desired(3);
    corrected.revision = Revision("corrected".to_owned());
    assert_eq!(deleted(&plan(&corrected, &seen)), [&member(1)]);
}

#[test]
fn a_paused_roll_uses_again_who_is_drained() {
    let mut seen = observed(3);
    pod_of(&mut seen, 1).revision = Revision("old".to_owned());
    of(&mut seen, 1).standing = Standing::DrainingForRestart;
    of(&mut seen, 1).drain = drained(true, 100);
    let mut paused = desired(3);
    paused.roll.paused = true;
    let plan = plan(&paused, &seen);
    assert_eq!(plan.steps, [standing(1, Standing::Active)]);
    assert!(waits(&plan, WaitKind::RollPaused));
}

#[test]
fn the_first_changed_member_is_looked_at_for_a_while() {
    let mut seen = observed(3);
    for index in [0, 2] {
        pod_of(&mut seen, index).revision = Revision("old".to_owned());
    }
    pod_of(&mut seen, 1).ready_since_s = Some(NOW_S - 60);
    let mut careful = desired(3);
    careful.roll.soak_s = Some(300);
    let soaking = plan(&careful, &seen);
    assert_eq!(soaking.steps, []);
    assert!(waits(&soaking, WaitKind::Soaking));
    pod_of(&mut seen, 1).restarts = 2;
    assert!(waits(&plan(&careful, &seen), WaitKind::CanaryFailed));
    pod_of(&mut seen, 1).restarts = 0;
    pod_of(&mut seen, 1).ready_since_s = Some(NOW_S - 300);
    assert_eq!(
        plan(&careful, &seen).steps,
        [standing(2, Standing::DrainingForRestart)]
    );
}

#[test]
fn a_single_node_is_restarted_in_spite_of_what_breaks() {
    let mut seen = observed(1);
    pod_of(&mut seen, 0).revision = Revision("old".to_owned());
    of(&mut seen, 0).restart_dangers = vec!["8 shards have no majority".to_owned()];
    let forced = Step::SetStanding {
        node: NodeId(1),
        member: Some(member(0)),
        standing: Standing::DrainingForRestart,
        forced: true,
    };
    assert_eq!(plan(&desired(1), &seen).steps, [forced]);
    of(&mut seen, 0).standing = Standing::DrainingForRestart;
    of(&mut seen, 0).drain = drained(false, 0);
    assert_eq!(
        deleted(&plan(&desired(1), &seen)),
        [&member(0)],
        "its leaders have nowhere to go"
    );
}

#[test]
fn the_one_that_was_named_leaves_and_the_number_takes_it_back() {
    let mut seen = observed(4);
    let mut fewer = desired(3);
    assert_eq!(
        plan(&fewer, &seen).steps,
        [standing(3, Standing::DrainingForRemoval)]
    );
    fewer.candidates = [member(1)].into();
    assert_eq!(
        plan(&fewer, &seen).steps,
        [standing(1, Standing::DrainingForRemoval)]
    );
    of(&mut seen, 1).standing = Standing::DrainingForRemoval;
    of(&mut seen, 1).drain = drained(false, 30);
    let plan_fewer = plan(&fewer, &seen);
    assert_eq!(plan_fewer.steps, []);
    assert_eq!(
        plan_fewer.operation.and_then(|operation| operation.percent),
        Some(30)
    );
    assert_eq!(
        plan(&desired(4), &seen).steps,
        [standing(1, Standing::Active)]
    );
}

#[test]
fn a_member_leaves_in_this_order() {
    let fewer = desired(3);
    let mut seen = observed(4);
    let leaving = of(&mut seen, 3);
    leaving.standing = Standing::DrainingForRemoval;
    leaving.replicas = 0;
    leaving.drain = drained(true, 100);
    assert_eq!(deleted(&plan(&fewer, &seen)), [&member(3)]);
    seen.pods.remove(&member(3));
    of(&mut seen, 3).up = false;
    let uid = Uid("claim-3".to_owned());
    let release = Step::ReleaseVolume {
        member: member(3),
        uid: uid.clone(),
    };
    assert_eq!(plan(&fewer, &seen).steps, [release]);
    seen.claims
        .get_mut(&member(3))
        .expect("it is there")
        .released = true;
    assert_eq!(
        plan(&fewer, &seen).steps,
        [Step::ForgetNode { node: NodeId(4) }]
    );
    seen.cluster.as_mut().expect("it answers").nodes.pop();
    let delete = Step::DeleteVolume {
        member: member(3),
        uid,
    };
    assert_eq!(plan(&fewer, &seen).steps, [delete]);
}

#[test]
fn who_was_given_up_is_replaced_by_a_new_member_and_not_more_at_once_than_allowed() {
    let mut seen = observed(5);
    for index in [1, 2] {
        let lost = of(&mut seen, index);
        lost.up = false;
        lost.caught_up = false;
        lost.standing = Standing::Lost;
        *pod_of(&mut seen, index) = Pod {
            started: false,
            ready_since_s: None,
            ..pod(index)
        };
    }
    let plan = plan(&desired(5), &seen);
    let made: Vec<u32> = plan
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::CreatePod { member, .. } => Some(member.index()),
            _ => None,
        })
        .collect();
    assert_eq!(made, [5]);
    assert!(waits(&plan, WaitKind::StormCap));
}

#[test]
fn volumes_grow_also_when_nothing_else_can_be_done() {
    let mut seen = observed(3);
    seen.cluster = Err("its disks are full".to_owned());
    let mut larger = desired(3);
    larger.volume_bytes = 20 << 30;
    let plan = plan(&larger, &seen);
    let grown = plan
        .steps
        .iter()
        .filter(|step| matches!(step, Step::GrowVolume { bytes, .. } if *bytes == 20 << 30));
    assert_eq!(grown.count(), 3);
}

#[test]
fn a_full_volume_grows_by_itself_up_to_its_ceiling() {
    let mut growing = desired(3);
    growing.volume_bytes_max = Some(11 << 30);
    let mut seen = observed(3);
    of(&mut seen, 1).disk_free_bytes = 1 << 30;
    let step = Step::GrowVolume {
        member: member(1),
        uid: Uid("claim-1".to_owned()),
        bytes: 11 << 30,
    };
    assert_eq!(plan(&growing, &seen).steps, [step]);
    let at_most = seen.claims.get_mut(&member(1)).expect("it is there");
    at_most.requested_bytes = 11 << 30;
    at_most.capacity_bytes = Some(11 << 30);
    of(&mut seen, 1).disk_bytes = 11 << 30;
    assert!(plan(&growing, &seen).is_empty());
}

/// Found on a real disk: of 300 MiB XFS keeps 64 for its log, and the volume never grew.
#[test]
fn a_small_volume_grows_though_its_file_system_keeps_much_of_it() {
    let mut growing = desired(3);
    growing.volume_bytes = 300 << 20;
    growing.volume_bytes_max = Some(1 << 30);
    let mut seen = observed(3);
    for number in 0..3 {
        let claim = seen.claims.get_mut(&member(number)).expect("it is there");
        claim.requested_bytes = 300 << 20;
        claim.capacity_bytes = Some(300 << 20);
        let node = of(&mut seen, number);
        node.disk_bytes = 236 << 20;
        node.disk_free_bytes = 200 << 20;
    }
    assert!(plan(&growing, &seen).is_empty());
    of(&mut seen, 1).disk_free_bytes = 40 << 20;
    let step = Step::GrowVolume {
        member: member(1),
        uid: Uid("claim-1".to_owned()),
        bytes: 1 << 30,
    };
    assert_eq!(plan(&growing, &seen).steps, [step]);
    // It is asked for, and the file system does not show it yet.
    let asked = seen.claims.get_mut(&member(1)).expect("it is there");
    asked.requested_bytes = 1 << 30;
    asked.capacity_bytes = Some(1 << 30);
    growing.volume_bytes_max = Some(4 << 30);
    assert!(plan(&growing, &seen).is_empty());
}

#[test]
fn a_refused_upgrade_is_said_and_nothing_is_restarted() {
    let mut refused = desired(3);
    refused.upgrade_refused = Some("two releases at once".to_owned());
    let plan = plan(&refused, &observed(3));
    assert_eq!(plan.steps, []);
    assert!(waits(&plan, WaitKind::UpgradeRefused));
}

/// Found by the simulated world: who is surplus holds what the others need to answer.
#[test]
fn all_that_have_a_volume_are_started_while_the_cluster_is_silent() {
    let mut seen = observed(5);
    seen.cluster = Err("no majority".to_owned());
    seen.pods.clear();
    let plan = plan(&desired(3), &seen);
    let made = plan
        .steps
        .iter()
        .filter(|step| matches!(step, Step::CreatePod { .. }));
    assert_eq!(made.count(), 5);
}

/// Found by the simulated world: a corrected spec must reach them too.
#[test]
fn broken_pods_of_surplus_members_are_made_anew_while_the_cluster_is_silent() {
    let mut seen = observed(4);
    seen.cluster = Err("no majority".to_owned());
    for index in 0..4 {
        *pod_of(&mut seen, index) = Pod {
            revision: Revision("bad".to_owned()),
            started: false,
            ready_since_s: None,
            ..pod(index)
        };
    }
    assert_eq!(deleted(&plan(&desired(3), &seen)).len(), 4);
}

/// Found by the simulated world: nobody gives up a node that never was.
#[test]
fn an_empty_volume_of_a_kubernetes_node_that_is_gone_is_replaced() {
    let mut seen = observed(4);
    seen.cluster.as_mut().expect("it answers").nodes.pop();
    let claim = seen.claims.get_mut(&member(3)).expect("it is there");
    claim.node = None;
    claim.host = Some(HostName("gone".to_owned()));
    *pod_of(&mut seen, 3) = Pod {
        host: None,
        started: false,
        ready_since_s: None,
        ..pod(3)
    };
    let plan = plan(&desired(4), &seen);
    assert_eq!(deleted(&plan), [&member(3)]);
    let made = Step::CreatePod {
        member: member(4),
        start: Start::Join,
    };
    assert!(plan.steps.contains(&made), "{plan:?}");
}

/// Found on an API server, which refuses it.
#[test]
fn a_volume_that_is_not_bound_is_not_grown() {
    let mut seen = observed(3);
    seen.claims
        .get_mut(&member(1))
        .expect("it is there")
        .capacity_bytes = None;
    let mut larger = desired(3);
    larger.volume_bytes = 20 << 30;
    let plan = plan(&larger, &seen);
    let grown = plan
        .steps
        .iter()
        .filter(|step| matches!(step, Step::GrowVolume { .. }));
    assert_eq!(grown.count(), 2);
}
