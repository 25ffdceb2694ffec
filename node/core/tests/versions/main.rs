//! Versions of the cluster: at the first one all that is written is what 0.1.0 wrote, byte for
//! byte; newer commands are refused until the version has them; and how it rises.

mod session;

use carillon_core::ids::{NodeId, ReplicaId, ShardId, Slot, TimestampMs};
use carillon_core::map::{
    Actor, ClusterVersion, EventKind, JoinToken, LogPosition, MergeReason, MetaCommand,
    MetaRefusal, MetaReply, MetaState, NodeInfo, PolicyChange, ShardDescriptor, SplitReason,
    Standing, Supported, apply_meta, upgrade_hindrances,
};

const AT: TimestampMs = TimestampMs(1_700_000_000_000);
/// What 0.1.0 wrote for the commands of `session`: before them the state, and for each of them
/// the command, the reply and the state then.
const FIRST_RELEASE: &str = include_str!("v0.1.0.txt");

fn create(version: ClusterVersion) -> impl Fn(Vec<NodeInfo>, Vec<ShardDescriptor>) -> MetaCommand {
    move |nodes, shards| MetaCommand::CreateCluster {
        cluster_id: "c1".to_owned(),
        cluster_name: "demo ♪".to_owned(),
        join_token: JoinToken("secret".to_owned()),
        replication_factor: 3,
        nodes,
        shards,
        version,
        at: AT,
    }
}

fn cluster(version: ClusterVersion) -> MetaState {
    let mut state = MetaState::default();
    let first = session::commands(create(version)).swap_remove(0);
    apply_meta(&mut state, first);
    assert_eq!(state.cluster_version, version);
    state
}

fn finalize(to: u32) -> MetaCommand {
    MetaCommand::FinalizeUpgrade {
        to: ClusterVersion(to),
        at: AT,
    }
}

fn by_ann(command: MetaCommand) -> MetaCommand {
    MetaCommand::By {
        by: Actor("ann".to_owned()),
        command: Box::new(command),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let pairs = hex.as_bytes().chunks(2);
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).expect("ascii");
        u8::from_str_radix(pair, 16).expect("hexadecimal")
    };
    pairs.map(byte).collect()
}

#[test]
fn the_first_version_is_what_0_1_0_writes_byte_for_byte() {
    let mut state = MetaState::default();
    let mut written = vec![format!("state {}", hex(&state.encode()))];
    for command in session::commands(create(ClusterVersion::V1)) {
        written.push(format!("command {}", hex(&command.encode())));
        let reply = apply_meta(&mut state, command);
        assert!(!matches!(reply, MetaReply::Refused(_)), "{reply:?}");
        written.push(format!("reply {}", hex(&reply.encode())));
        written.push(format!("state {}", hex(&state.encode())));
        // And nothing is lost by that.
        assert_eq!(MetaState::decode(&state.encode()).as_ref(), Ok(&state));
    }
    for (number, (is, was)) in written.iter().zip(FIRST_RELEASE.lines()).enumerate() {
        assert_eq!(is, was, "line {}", number + 1);
    }
    assert_eq!(written.len(), FIRST_RELEASE.lines().count());
}

#[test]
fn what_0_1_0_wrote_is_read_and_goes_on() {
    let mut state = MetaState::default();
    for line in FIRST_RELEASE.lines() {
        match line.split_once(' ').expect("what and bytes") {
            ("command", hex) => {
                let command = MetaCommand::decode(&bytes(hex)).expect("it is read");
                apply_meta(&mut state, command);
            }
            ("reply", hex) => drop(MetaReply::decode(&bytes(hex)).expect("it is read")),
            ("state", hex) => assert_eq!(MetaState::decode(&bytes(hex)).as_ref(), Ok(&state)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(state.cluster_version, ClusterVersion::V1);
    assert_eq!(state.next_shard_id, ShardId(5));
    let before = state.clone();
    apply_meta(&mut state, finalize(2));
    assert_eq!(MetaState::decode(&state.encode()).as_ref(), Ok(&state));
    // Whether it was read from the disk or made here, it is the same from then on.
    let mut read = MetaState::decode(&before.encode()).expect("it is read");
    apply_meta(&mut read, finalize(2));
    assert_eq!(read, state);
}

#[test]
fn the_version_rises_by_one_step_and_never_falls() {
    let mut state = cluster(ClusterVersion::V1);
    let before = state.clone();
    let skipped = MetaRefusal::VersionSkipped {
        from: ClusterVersion::V1,
        to: ClusterVersion(3),
    };
    assert_eq!(
        apply_meta(&mut state, finalize(3)),
        MetaReply::Refused(skipped)
    );
    assert_eq!(
        apply_meta(&mut state, finalize(1)),
        before.updated_to(false)
    );
    assert_eq!(state, before);

    let reply = apply_meta(&mut state, by_ann(finalize(2)));
    assert_eq!(reply, state.updated_to(true));
    assert_eq!(state.cluster_version, ClusterVersion::V2);
    assert_ne!(state.map.epoch, before.map.epoch);
    let event = state.events.back().expect("it is recorded");
    let to = ClusterVersion::V2;
    assert_eq!(event.what, EventKind::UpgradeFinalized { to });
    assert_eq!(event.by, Some(Actor("ann".to_owned())));
    let raised = state.clone();
    for late in [1, 2] {
        apply_meta(&mut state, finalize(late));
        assert_eq!(state, raised);
    }
}

trait Updated {
    fn updated_to(&self, changed: bool) -> MetaReply;
}

impl Updated for MetaState {
    fn updated_to(&self, changed: bool) -> MetaReply {
        MetaReply::Updated {
            changed,
            epoch: self.map.epoch,
        }
    }
}

fn of_version_2() -> Vec<MetaCommand> {
    let shard_id = ShardId(1);
    vec![
        MetaCommand::StartSplit {
            shard_id,
            slot: Slot(7),
            reason: SplitReason::Asked,
            epoch: None,
            at: AT,
        },
        MetaCommand::FinishSplit {
            new_shard_id: ShardId(5),
            at: AT,
        },
        MetaCommand::StartMerge {
            shard_id,
            absorbed_shard_id: ShardId(2),
            reason: MergeReason::Asked,
            epoch: None,
            at: AT,
        },
        MetaCommand::RecoverShard {
            shard_id,
            survivor: ReplicaId(1),
            last: LogPosition::default(),
            at: AT,
        },
        MetaCommand::SetPolicy {
            change: PolicyChange {
                finalize_upgrade_after_s: Some(0),
                ..PolicyChange::default()
            },
            at: AT,
        },
    ]
}

#[test]
fn what_needs_the_second_version_is_refused_at_the_first() {
    let refused = MetaRefusal::UpgradeNotFinalized {
        needs: ClusterVersion::V2,
        version: ClusterVersion::V1,
    };
    let mut state = cluster(ClusterVersion::V1);
    let before = state.clone();
    for command in of_version_2() {
        for command in [command.clone(), by_ann(command)] {
            let possible = command.clone().at_version(state.cluster_version);
            assert_eq!(possible, Err(refused.clone()));
            let reply = apply_meta(&mut state, command);
            assert_eq!(reply, MetaReply::Refused(refused.clone()));
            assert_eq!(state, before);
        }
    }
    let text = refused.to_string();
    assert!(text.contains("carillon admin finalize-upgrade"), "{text}");
    apply_meta(&mut state, finalize(2));
    for command in of_version_2() {
        let reply = apply_meta(&mut state, by_ann(command));
        let not_yet = matches!(
            reply,
            MetaReply::Refused(MetaRefusal::UpgradeNotFinalized { .. })
        );
        assert!(!not_yet, "{reply:?}");
    }
}

#[test]
fn who_wants_something_is_left_out_at_the_first_version() {
    let join = || MetaCommand::RotateJoinToken {
        token: JoinToken("another".to_owned()),
        at: AT,
    };
    let at = |version| by_ann(join()).at_version(version);
    assert_eq!(at(ClusterVersion::V1), Ok(join()));
    assert_eq!(at(ClusterVersion::V2), Ok(by_ann(join())));
    // All nodes know this one when it is proposed.
    let raise = by_ann(finalize(2));
    assert_eq!(raise.clone().at_version(ClusterVersion::V1), Ok(raise));
}

#[test]
fn every_node_that_is_not_lost_must_support_the_next_version() {
    let mut state = cluster(ClusterVersion::V1);
    let new = Some(Supported::default());
    let old = Some(Supported::said(0, 0));
    assert!(upgrade_hindrances(&state, |_| new).is_empty());
    let third_is = |seen| move |node| if node == NodeId(3) { seen } else { new };
    let one = upgrade_hindrances(&state, third_is(old));
    assert_eq!(
        one,
        ["node 3 supports versions up to 1; install Carillon 0.2.0 or later on it"]
    );
    let silent = upgrade_hindrances(&state, third_is(None));
    assert_eq!(
        silent,
        ["node 3 does not answer; bring it back, or remove it"]
    );
    apply_meta(
        &mut state,
        MetaCommand::SetStanding {
            node_id: NodeId(3),
            standing: Standing::Lost,
            forced: true,
            at: AT,
        },
    );
    assert!(upgrade_hindrances(&state, third_is(None)).is_empty());
    assert!(upgrade_hindrances(&state, third_is(old)).is_empty());
}

#[test]
fn a_node_says_which_release_it_needs() {
    let first = Supported::up_to(ClusterVersion::V1);
    assert_eq!(first.lacks(ClusterVersion::V1), None);
    let why = first.lacks(ClusterVersion::V2).expect("it is too old");
    assert!(why.contains("install Carillon 0.2.0 or later"), "{why}");
    let newer = Supported::default().lacks(ClusterVersion(9));
    assert!(
        newer
            .expect("it is too old")
            .contains("its other nodes run")
    );
    let later = Supported::said(3, 4).lacks(ClusterVersion::V2);
    assert!(later.expect("it is too new").contains("an older release"));
}

#[test]
fn a_state_of_a_later_release_is_named_as_such() {
    let mut bytes = cluster(ClusterVersion::MAX).encode().to_vec();
    bytes[0] += 1;
    let why = MetaState::decode(&bytes).expect_err("nobody knows it");
    assert!(why.to_string().contains("a later release"), "{why}");
}
