//! Groups of replicas in one process: elections, replication, snapshots, restarts, members.

mod chaos;
mod harness;

use std::time::{Duration, Instant};

use bytes::Bytes;
use carillon_core::ids::{NodeId, ReplicaId};
use carillon_raft::{
    AppliedRecord, ENTRY_BYTES_MAX, Group, GroupError, Member, MemberChange, MembershipError,
    Outcome, Position, ReadRefused, Retention, Role, TransferError,
};
use harness::{Cluster, PATIENCE, State, fast, propose, until};

fn payload(number: usize) -> Bytes {
    Bytes::from(format!("payload {number}"))
}

fn payloads(range: std::ops::Range<usize>) -> Vec<Bytes> {
    range.map(payload).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_elect_and_apply_the_same() {
    let cluster = Cluster::voting(fast()).await;
    for number in 0..100 {
        cluster.propose(payload(number)).await;
    }
    assert_eq!(cluster.converged(100).await, payloads(0..100));

    let leader = cluster.leader().await;
    let leading = cluster.nodes[leader].me;
    cluster.nodes[leader].group().read_index().await.unwrap();
    for follower in cluster.nodes.iter().filter(|node| node.me != leading) {
        let group = follower.group();
        let redirected = propose(group, payload(0)).await;
        assert!(
            matches!(redirected, Outcome::NotLeader { leader: Some(node) } if node == leading.node),
            "{redirected:?}"
        );
        assert_eq!(
            group.read_index().await,
            Err(ReadRefused::NotLeader {
                leader: Some(leading.node)
            })
        );
        let leadership = *group.leadership().borrow();
        assert_eq!(
            (leadership.leader, leadership.me_leading, leadership.ready),
            (Some(leading), false, true)
        );
    }

    let status = cluster.nodes[leader].group().status();
    assert_eq!(
        (status.role, status.leader, status.changing),
        (Role::Leader, Some(leading), false)
    );
    assert_eq!(
        (
            status.voters.len(),
            status.learners.len(),
            status.followers.len()
        ),
        (3, 0, 2)
    );
    assert_eq!(
        status.applied.map(|position| position.index),
        status.last_log
    );

    // Beginning again changes nothing.
    let members: Vec<Member> = cluster.nodes.iter().map(|node| node.me).collect();
    cluster.nodes[1].group().initialize(&members).await.unwrap();

    let large = Bytes::from(vec![0; ENTRY_BYTES_MAX + 1]);
    let refused = propose(cluster.nodes[leader].group(), large).await;
    assert!(matches!(
        refused,
        Outcome::TooLarge {
            bytes_max: ENTRY_BYTES_MAX
        }
    ));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_without_room_takes_no_commands_but_elects() {
    let cluster = Cluster::voting(fast()).await;
    cluster.propose(payload(0)).await;
    cluster.converged(1).await;
    let leader = cluster.leader().await;
    let (full, third) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.fill_disk(full, true);
    // One of the two has to elect the other, whichever, and then to keep the first entry of the
    // term, though its leader sends it what it has of the log once more.
    cluster.isolate(leader);
    for to in [full, third] {
        while cluster.leader_except(leader).await != to {
            let from = cluster.nodes[full + third - to].group();
            let to = cluster.nodes[to].me.node;
            from.transfer_leader(to, PATIENCE).await.ok();
        }
    }
    cluster.heal(leader);
    for number in 1..20 {
        cluster.propose(payload(number)).await;
    }
    assert_eq!(cluster.nodes[full].payloads(), payloads(0..1));

    cluster.fill_disk(full, false);
    assert_eq!(cluster.converged(20).await, payloads(0..20));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_proposals_in_flight_keep_their_order() {
    let cluster = Cluster::voting(fast()).await;
    let leader = cluster.leader().await;
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    for number in 0..2000 {
        let sender = sender.clone();
        let done = move |outcome| {
            sender
                .send((number, matches!(outcome, Outcome::Applied(_))))
                .ok();
        };
        cluster.nodes[leader]
            .group()
            .propose(payload(number), done)
            .await;
    }
    drop(sender);
    let mut answered = 0;
    while let Some((number, applied)) = receiver.recv().await {
        assert_eq!((number, applied), (answered, true));
        answered += 1;
    }
    assert_eq!(cluster.converged(2000).await, payloads(0..2000));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_entries_replicate() {
    let cluster = Cluster::voting(fast()).await;
    for number in 0..6u8 {
        cluster
            .propose(vec![number; ENTRY_BYTES_MAX - usize::from(number)])
            .await;
    }
    cluster.converged(6).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_reads_share_rounds() {
    let cluster = Cluster::voting(fast()).await;
    let leader = cluster.leader().await;
    let reads = (0..500).map(|_| {
        let group = cluster.nodes[leader].group().clone();
        tokio::spawn(async move { group.read_index().await })
    });
    for read in reads.collect::<Vec<_>>() {
        read.await.unwrap().unwrap();
    }
    // Without a majority nothing is confirmed.
    cluster.isolate(leader);
    let refused = cluster.nodes[leader]
        .group()
        .read_index()
        .await
        .unwrap_err();
    assert!(
        matches!(
            refused,
            ReadRefused::Timeout | ReadRefused::NotReady | ReadRefused::NotLeader { .. }
        ),
        "{refused:?}"
    );
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_behind_the_purged_log_gets_a_snapshot() {
    let mut cluster = Cluster::voting(fast()).await;
    for number in 0..20 {
        cluster.propose(payload(number)).await;
    }
    cluster.converged(20).await;
    let leader = cluster.leader().await;
    let away = (leader + 1) % 3;
    cluster.stop(away).await;
    for number in 20..220 {
        cluster.propose(payload(number)).await;
    }
    for node in cluster.nodes.iter().filter(|node| node.is_running()) {
        let flushed = node
            .group()
            .flush_and_purge(Retention::entries(10))
            .await
            .unwrap()
            .unwrap();
        let group = node.group().clone();
        until("the purge", || {
            group
                .status()
                .purged
                .is_some_and(|purged| purged.index == flushed.index - 10)
        })
        .await;
        assert!(group.status().flushed.unwrap().index >= flushed.index);
    }
    cluster.run(away).await;
    assert_eq!(cluster.converged(220).await, payloads(0..220));
    assert_eq!(cluster.nodes[away].installs(), 1);

    // It goes on with the log, also after a restart from what the snapshot made durable.
    for number in 220..240 {
        cluster.propose(payload(number)).await;
    }
    cluster.converged(240).await;
    cluster.stop(away).await;
    cluster.propose(payload(240)).await;
    cluster.run(away).await;
    assert_eq!(cluster.converged(241).await, payloads(0..241));
    assert_eq!(cluster.nodes[away].installs(), 1);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_restart_after_purging() {
    let mut cluster = Cluster::voting(fast()).await;
    for number in 0..150 {
        cluster.propose(payload(number)).await;
    }
    cluster.converged(150).await;
    for node in &cluster.nodes {
        node.group()
            .flush_and_purge(Retention::entries(5))
            .await
            .unwrap();
    }
    // Applied, but not flushed: to be applied again from the log.
    for number in 150..180 {
        cluster.propose(payload(number)).await;
    }
    cluster.converged(180).await;
    for round in 0..2 {
        for place in 0..3 {
            cluster.stop(place).await;
        }
        for place in 0..3 {
            cluster.run(place).await;
        }
        cluster.propose(payload(180 + round)).await;
        assert_eq!(
            cluster.converged(181 + round).await,
            payloads(0..181 + round)
        );
    }
    // A purge that asks for more than there is keeps everything.
    let leader = cluster.leader().await;
    let before = cluster.nodes[leader].group().status().purged;
    cluster.nodes[leader]
        .group()
        .flush_and_purge(Retention::entries(1_000_000))
        .await
        .unwrap();
    assert_eq!(cluster.nodes[leader].group().status().purged, before);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_begins_from_a_state_that_its_replicas_have() {
    let mut cluster = Cluster::start(3, fast()).await;
    let voters: Vec<Member> = cluster.nodes.iter().map(|node| node.me).collect();
    let inherited = State {
        applied: Some(AppliedRecord::beginning(&voters).encode()),
        payloads: vec![(0, payload(0))],
    };
    // The third comes to it later, with nothing.
    for place in 0..2 {
        cluster.run_from(place, inherited.clone()).await;
    }
    cluster.nodes[0].group().campaign().await.unwrap();
    cluster.leader().await;
    for number in 1..20 {
        cluster.propose(payload(number)).await;
    }
    assert_eq!(cluster.converged(20).await, payloads(0..20));
    assert_eq!(cluster.nodes[2].installs(), 1);
    for place in 0..3 {
        let mut members = cluster.nodes[place].group().status().voters;
        members.sort_unstable();
        assert_eq!(members, voters);
    }
    // And again after all of them have restarted, two with what they flushed, one with nothing
    // more than it began with.
    for place in 0..2 {
        cluster.nodes[place]
            .group()
            .flush_and_purge(Retention::NONE)
            .await
            .unwrap();
    }
    for place in 0..3 {
        cluster.stop(place).await;
    }
    for place in 0..3 {
        cluster.run(place).await;
    }
    cluster.propose(payload(20)).await;
    assert_eq!(cluster.converged(21).await, payloads(0..21));
    cluster.end().await;
}

fn config(group: &Group) -> Position {
    group.status().config.expect("the group has begun")
}

/// The first entries may be about another state than the one that it begins with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_requires_a_snapshot_takes_no_log_from_its_beginning() {
    let mut cluster = Cluster::voting(fast()).await;
    for number in 0..50 {
        cluster.propose(payload(number)).await;
    }
    let leader = cluster.leader().await;
    let fourth = cluster.add_node().await;
    cluster.nodes[fourth].group().require_snapshot();
    let group = cluster.nodes[leader].group().clone();
    let change = MemberChange::AddLearner(cluster.nodes[fourth].me);
    group.change_members(change, config(&group)).await.unwrap();
    for number in 50..60 {
        cluster.propose(payload(number)).await;
    }
    // The first entry goes, the others stay for whoever lacks them.
    let applied = group.status().applied.unwrap().index;
    let retention = Retention::entries(applied);
    group.flush_and_purge(retention).await.unwrap();
    until("the learner's state", || {
        cluster.nodes[fourth].payloads().len() == 60
    })
    .await;
    assert_eq!(cluster.nodes[fourth].installs(), 1);
    // It goes on with the log.
    cluster.propose(payload(60)).await;
    until("the next entry", || {
        cluster.nodes[fourth].payloads().len() == 61
    })
    .await;
    assert_eq!(cluster.nodes[fourth].installs(), 1);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_change_by_way_of_a_learner() {
    let mut cluster = Cluster::voting(fast()).await;
    for number in 0..50 {
        cluster.propose(payload(number)).await;
    }
    let leader = cluster.leader().await;
    cluster.nodes[leader]
        .group()
        .flush_and_purge(Retention::NONE)
        .await
        .unwrap();
    let fourth = cluster.add_node().await;
    let learner = cluster.nodes[fourth].me;
    let group = cluster.nodes[leader].group().clone();
    let change = MemberChange::AddLearner(learner);
    group.change_members(change, config(&group)).await.unwrap();
    assert_eq!(group.status().learners, vec![learner]);
    // The log no longer begins at the start, so it needed a snapshot.
    until("the learner's state", || {
        cluster.nodes[fourth].payloads().len() == 50
    })
    .await;
    assert_eq!(cluster.nodes[fourth].installs(), 1);

    let leaving = (0..3).find(|place| *place != leader).unwrap();
    let voters: Vec<Member> = (0..4)
        .filter(|place| *place != leaving)
        .map(|place| cluster.nodes[place].me)
        .collect();
    let from = config(&group);
    let to_the_new = MemberChange::Voters {
        voters: voters.clone(),
        retain: false,
    };
    let earlier = Position {
        index: from.index - 1,
        ..from
    };
    // Decided on before the learner came: nothing changes.
    let refused = group.change_members(to_the_new.clone(), earlier).await;
    let refused = refused.unwrap_err();
    assert!(
        matches!(refused, MembershipError::Refused { .. }),
        "{refused:?}"
    );
    assert_eq!(group.status().config, Some(from));
    let done = group.change_members(to_the_new.clone(), from).await;
    done.unwrap();
    let again = group.change_members(to_the_new, from).await.unwrap_err();
    assert!(
        matches!(again, MembershipError::Refused { .. }),
        "{again:?}"
    );
    let mut now = group.status().voters;
    now.sort_unstable();
    assert_eq!((now, group.status().learners), (voters, Vec::new()));
    cluster.stop(leaving).await;
    for number in 50..80 {
        cluster.propose(payload(number)).await;
    }
    assert_eq!(cluster.converged(80).await, payloads(0..80));

    let unknown = Member {
        replica: ReplicaId(999),
        node: NodeId(9),
    };
    let to_unknown = MemberChange::Voters {
        voters: vec![unknown],
        retain: false,
    };
    let refused = group.change_members(to_unknown, config(&group)).await;
    let refused = refused.unwrap_err();
    assert!(
        matches!(refused, MembershipError::Refused { .. }),
        "{refused:?}"
    );
    let follower = (0..4)
        .find(|place| *place != leader && *place != leaving)
        .unwrap();
    let refused = cluster.nodes[follower]
        .group()
        .change_members(MemberChange::AddLearner(unknown), config(&group))
        .await
        .unwrap_err();
    assert!(
        matches!(refused, MembershipError::NotLeader { .. }),
        "{refused:?}"
    );
    cluster.end().await;
}

/// Who asked for a change of voters is gone between its two steps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_voters_that_nobody_ends_is_ended() {
    let mut cluster = Cluster::voting(fast()).await;
    let new = [cluster.add_node().await, cluster.add_node().await];
    let leader = cluster.leader().await;
    let group = cluster.nodes[leader].group().clone();
    for place in new {
        let change = MemberChange::AddLearner(cluster.nodes[place].me);
        group.change_members(change, config(&group)).await.unwrap();
    }
    cluster.propose(payload(0)).await;
    cluster.converged(1).await;
    // Without the new ones the joint configuration is written and not committed, which keeps the
    // second step away until who asked is gone.
    for place in new {
        cluster.isolate(place);
    }
    let mut voters = vec![cluster.nodes[leader].me];
    voters.extend(new.map(|place| cluster.nodes[place].me));
    let change = MemberChange::Voters {
        voters: voters.clone(),
        retain: false,
    };
    let (asks, from) = (group.clone(), config(&group));
    let asked = tokio::spawn(async move { asks.change_members(change, from).await });
    until("the joint configuration", || group.joint().is_some()).await;
    asked.abort();
    assert!(asked.await.unwrap_err().is_cancelled());
    for place in new {
        cluster.heal(place);
    }
    cluster.propose(payload(1)).await;
    let group = cluster.nodes[cluster.leader().await].group().clone();
    let joint = group.joint().expect("nobody has ended it");
    let earlier = Position {
        index: joint.index - 1,
        ..joint
    };
    let refused = group.end_change(earlier).await.unwrap_err();
    assert!(
        matches!(refused, MembershipError::Refused { .. }),
        "{refused:?}"
    );
    group.end_change(joint).await.unwrap();
    until("the new voters", || !group.status().changing).await;
    assert_eq!(group.joint(), None);
    let mut now = group.status().voters;
    now.sort_unstable();
    assert_eq!(now, voters);
    // The others are learners, which somebody may remove.
    assert_eq!(group.status().learners.len(), 2);
    cluster.propose(payload(2)).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_can_leave() {
    let mut cluster = Cluster::voting(fast()).await;
    let fourth = cluster.add_node().await;
    let learner = cluster.nodes[fourth].me;
    let leader = cluster.leader().await;
    let group = cluster.nodes[leader].group().clone();
    for change in [
        MemberChange::AddLearner(learner),
        MemberChange::RemoveLearner(learner),
    ] {
        group.change_members(change, config(&group)).await.unwrap();
    }
    assert_eq!(group.status().learners, Vec::new());
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lead_goes_where_it_is_asked_to() {
    let mut cluster = Cluster::voting(fast()).await;
    cluster.propose(payload(0)).await;
    for round in 1..6 {
        let leader = cluster.leader().await;
        let to = (leader + 1) % 3;
        let target = cluster.nodes[to].me;
        cluster.nodes[leader]
            .group()
            .transfer_leader(target.node, PATIENCE)
            .await
            .unwrap();
        assert_eq!(cluster.leader_except(leader).await, to);
        cluster.propose(payload(round)).await;
    }
    assert_eq!(cluster.converged(6).await, payloads(0..6));

    let leader = cluster.leader().await;
    let group = cluster.nodes[leader].group().clone();
    group
        .transfer_leader(cluster.nodes[leader].me.node, PATIENCE)
        .await
        .unwrap();
    let refused = group
        .transfer_leader(NodeId(77), PATIENCE)
        .await
        .unwrap_err();
    assert!(
        matches!(refused, TransferError::NotAVoter { .. }),
        "{refused:?}"
    );
    let follower = (leader + 1) % 3;
    let refused = cluster.nodes[follower]
        .group()
        .transfer_leader(NodeId(1), PATIENCE)
        .await
        .unwrap_err();
    assert!(
        matches!(
            refused,
            TransferError::NotLeader {
                leader: Some(_),
                ..
            }
        ),
        "{refused:?}"
    );
    let away = cluster.nodes[follower].me.node;
    cluster.stop(follower).await;
    let refused = group
        .transfer_leader(away, Duration::from_millis(200))
        .await
        .unwrap_err();
    assert!(
        matches!(refused, TransferError::Unreachable { .. }),
        "{refused:?}"
    );
    // Refusing changed nothing.
    cluster.propose(payload(6)).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uncommitted_entries_of_a_cut_off_leader_are_truncated() {
    let cluster = Cluster::voting(fast()).await;
    for number in 0..10 {
        cluster.propose(payload(number)).await;
    }
    cluster.converged(10).await;
    let old = cluster.leader().await;
    cluster.isolate(old);
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    for number in 0..20 {
        let sender = sender.clone();
        let lost = Bytes::from(format!("lost {number}"));
        cluster.nodes[old]
            .group()
            .propose(lost, move |outcome| drop(sender.send(outcome)))
            .await;
    }
    drop(sender);
    let new = cluster.leader_except(old).await;
    for number in 10..40 {
        let outcome = propose(cluster.nodes[new].group(), payload(number)).await;
        assert!(matches!(outcome, Outcome::Applied(_)), "{outcome:?}");
    }
    cluster.heal(old);
    assert_eq!(cluster.converged(40).await, payloads(0..40));
    let mut unknown = 0;
    while let Some(outcome) = receiver.recv().await {
        match outcome {
            Outcome::Unknown => unknown += 1,
            Outcome::NotReady | Outcome::NotLeader { .. } => {}
            outcome => panic!("a lost proposal ended with {outcome:?}"),
        }
    }
    assert!(unknown > 0, "no entry was truncated");
    // Healing did not depose the new leader: the old one asks before it campaigns.
    assert_eq!(cluster.leader_except(old).await, new);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_leader_is_replaced_at_once_when_that_is_known() {
    let slow = carillon_raft::GroupOptions {
        heartbeat: Duration::from_secs(2),
        election_timeout_min: Duration::from_secs(20),
        election_timeout_max: Duration::from_secs(25),
        read_timeout: Duration::from_secs(30),
        ..fast()
    };
    let mut cluster = Cluster::voting(slow).await;
    cluster.propose(payload(0)).await;
    cluster.converged(1).await;
    let dead = cluster.leader().await;
    let node = cluster.nodes[dead].me.node;
    let (first, second) = ((dead + 1) % 3, (dead + 2) % 3);
    assert!(
        !cluster.nodes[first]
            .group()
            .elect_now(cluster.nodes[second].me.node)
            .await
            .unwrap(),
        "that one does not lead"
    );
    cluster.stop(dead).await;
    let began = Instant::now();
    assert!(cluster.nodes[first].group().elect_now(node).await.unwrap());
    cluster.propose(payload(1)).await;
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "took {:?}",
        began.elapsed()
    );
    assert!(
        cluster.nodes[first]
            .group()
            .leadership()
            .borrow()
            .me_leading
    );
    assert!(
        !cluster.nodes[second].group().elect_now(node).await.unwrap(),
        "the leader is another one by now"
    );
    cluster.end().await;
}

/// openraft waits out its back-off inside the stream of requests that it gives to
/// `stream_append`. A network that returns an error before it polls that stream is asked again
/// at once, for ever: that once wrote 14 GB of log in 20 minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_peer_is_retried_at_the_pace_of_the_back_off() {
    const DOWN: Duration = Duration::from_secs(2);
    // The leader has to stay one, so that it is its tries that are counted.
    let patient = carillon_raft::GroupOptions {
        election_timeout_min: Duration::from_secs(2),
        election_timeout_max: Duration::from_secs(3),
        read_timeout: Duration::from_secs(5),
        ..fast()
    };
    let cluster = Cluster::voting(patient).await;
    cluster.propose(payload(0)).await;
    cluster.converged(1).await;
    let leader = cluster.leader().await;
    let lost = (leader + 1) % 3;
    cluster.isolate(lost);
    let began = Instant::now();
    let before = cluster.append_streams(leader, lost);
    // There is something to replicate all the time.
    let mut proposed = 1;
    while began.elapsed() < DOWN {
        cluster.propose(payload(proposed)).await;
        proposed += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let tries = cluster.append_streams(leader, lost) - before;
    // Heartbeats are streams too, and the machine may be slow, so that `DOWN` was longer.
    let heartbeats = began.elapsed().as_millis() as u64 / fast().heartbeat.as_millis() as u64;
    assert!(
        (1..=heartbeats * 2).contains(&tries),
        "{tries} tries in {:?}",
        began.elapsed()
    );
    assert_eq!(cluster.leader().await, leader);
    cluster.heal(lost);
    assert_eq!(cluster.converged(proposed).await, payloads(0..proposed));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_replica_leads_itself() {
    let mut cluster = Cluster::start(1, fast()).await;
    cluster.nodes[0]
        .group()
        .initialize(&[cluster.nodes[0].me])
        .await
        .unwrap();
    for number in 0..10 {
        cluster.propose(payload(number)).await;
    }
    cluster.nodes[0].group().read_index().await.unwrap();
    let flushed = cluster.nodes[0]
        .group()
        .flush_and_purge(Retention::NONE)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        Some(flushed.index),
        cluster.nodes[0].group().status().last_log
    );
    cluster.stop(0).await;
    cluster.run(0).await;
    cluster.propose(payload(10)).await;
    assert_eq!(cluster.converged(11).await, payloads(0..11));
    // With its state lost, what was purged is missing: it must not go on.
    let group = cluster.nodes[0].group().clone();
    let flushed = group.flush_and_purge(Retention::NONE).await.unwrap();
    until("the purge", || group.status().purged == flushed).await;
    cluster.stop(0).await;
    let kept = std::mem::take(&mut *cluster.nodes[0].disk.durable.lock());
    let refused = cluster.try_run(0).await.unwrap_err();
    assert!(
        matches!(refused, GroupError::StateBehindLog { applied: None, .. }),
        "{refused:?}"
    );
    *cluster.nodes[0].disk.durable.lock() = kept;
    cluster.run(0).await;
    assert_eq!(cluster.converged(11).await, payloads(0..11));

    let group = cluster.nodes[0].group().clone();
    cluster.end().await;
    assert_eq!(group.read_index().await, Err(ReadRefused::Stopped));
    assert!(matches!(
        propose(&group, payload(0)).await,
        Outcome::Unknown
    ));
    assert!(!group.stopped().await.is_empty());
}

/// Two of three are gone for good: the third begins anew with all that it has, also what no
/// majority had, and grows again. The gone ones come back and change nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_begun_anew_by_the_one_that_is_left() {
    let mut cluster = Cluster::voting(fast()).await;
    for number in 0..50 {
        cluster.propose(payload(number)).await;
    }
    cluster.converged(50).await;
    let left = cluster.leader().await;
    let lost: Vec<usize> = (0..3).filter(|place| *place != left).collect();
    for place in &lost {
        cluster.stop(*place).await;
    }
    // Taken by a leader that has lost its majority, and never acknowledged.
    let (sender, answered) = tokio::sync::oneshot::channel();
    let group = cluster.nodes[left].group().clone();
    let done = move |outcome| drop(sender.send(outcome));
    group.propose(payload(50), done).await;
    group.decided().await;
    let term = group.status().term;
    drop(group);
    cluster.stop(left).await;
    // Not even taken, if it had noticed already that nobody answers.
    let count = match answered.await {
        Ok(Outcome::NotReady | Outcome::NotLeader { .. }) => 50,
        Ok(Outcome::Unknown) | Err(_) => 51,
        Ok(other) => panic!("{other:?}"),
    };

    let new = ReplicaId(900);
    let first = cluster.rebuild(left, new).await;
    let again = cluster.rebuild(left, new).await;
    assert_eq!(first, again, "it was begun twice");
    cluster.run(left).await;
    let leader = cluster.leader().await;
    assert_eq!(leader, left);
    let all = || cluster.nodes[left].payloads();
    until("all of the log", || all().len() == count).await;
    assert_eq!(all(), payloads(0..count));
    let status = cluster.nodes[left].group().status();
    assert_eq!(status.voters, [cluster.nodes[left].me]);
    assert!(status.term > term + 1_000, "{status:?}");

    // The gone ones elect one of themselves; what they say reaches no member of the group.
    for place in &lost {
        cluster.run(*place).await;
    }
    cluster.leader_except(left).await;
    assert!(cluster.nodes[left].group().leadership().borrow().me_leading);
    for place in &lost {
        cluster.stop(*place).await;
    }

    cluster.propose(payload(count)).await;
    let added = cluster.add_node().await;
    let me = cluster.nodes[added].me;
    let group = cluster.nodes[left].group().clone();
    let learner = MemberChange::AddLearner(me);
    group.change_members(learner, config(&group)).await.unwrap();
    until("the new one has all", || {
        cluster.nodes[added].payloads().len() == count + 1
    })
    .await;
    let voters = vec![cluster.nodes[left].me, me];
    let change = MemberChange::Voters {
        voters,
        retain: false,
    };
    group.change_members(change, config(&group)).await.unwrap();
    cluster.propose(payload(count + 1)).await;
    let all = cluster.converged(count + 2).await;
    assert_eq!(all, payloads(0..count + 2));
    cluster.end().await;
}
