//! Random commands in any order keep the invariants of the meta group's state, and are all
//! written and read back as they are.

use carillon_core::map::{
    Actor, ClusterVersion, ConfigVersion, JoinToken, LogPosition, MergeReason, MetaCommand,
    MetaReply, MetaState, MoveId, MoveReason, NodeInfo, Policy, SplitReason, Standing, apply_meta,
    initial_map,
};
use carillon_core::merging::MergeId;
use carillon_core::placement::Zone;
use carillon_core::{Epoch, NodeId, ReplicaId, SLOTS, ShardId, Slot, TimestampMs};
use proptest::prelude::*;

use crate::invariants::state::{check_change, check_invariants};

fn node(id: u64, address: u64) -> NodeInfo {
    NodeInfo {
        node_id: NodeId(id),
        identity: format!("identity-{id}"),
        client_address: format!("host-{address}:7000"),
        peer_address: format!("host-{address}:8000"),
        zone: Zone(format!("zone-{}", address % 2)),
        weight: 1,
        capacity_bytes: u64::MAX,
    }
}

fn any_standing() -> impl Strategy<Value = Standing> {
    prop_oneof![
        3 => Just(Standing::Active),
        1 => Just(Standing::Cordoned),
        1 => Just(Standing::DRAINING_FOR_RESTART),
        2 => Just(Standing::DRAINING_FOR_REMOVAL),
        1 => Just(Standing::Lost),
    ]
}

fn any_config() -> impl Strategy<Value = ConfigVersion> {
    (1u64..3, 1u64..3).prop_map(|(term, index)| ConfigVersion {
        term,
        leader: ReplicaId(term),
        index,
    })
}

/// Commands of which most name what there is. Moves start on the map as it is when they are
/// applied: the epoch is put in then, unless it is to be wrong.
fn any_command() -> impl Strategy<Value = MetaCommand> {
    let at = TimestampMs(7);
    let node_id = || (1u64..8).prop_map(NodeId);
    let shard_id = || (1u32..7).prop_map(ShardId);
    let move_id = || (1u64..7).prop_map(MoveId);
    let reason = prop_oneof![
        Just(MoveReason::Repair),
        Just(MoveReason::Drain),
        Just(MoveReason::Balance),
        Just(MoveReason::Asked),
        Just(MoveReason::Merge),
    ];
    prop_oneof![
        2 => (4u64..9, 1u64..8, any::<bool>()).prop_map(move |(id, address, knows)| {
            let token = if knows { "secret" } else { "" };
            MetaCommand::JoinNode { node: node(id, address), token: JoinToken(token.to_owned()), at }
        }),
        1 => (1u64..8, 1u64..8).prop_map(|(id, address)| MetaCommand::UpdateNode { node: node(id, address) }),
        4 => (node_id(), any_standing(), any::<bool>()).prop_map(move |(node_id, standing, forced)| {
            MetaCommand::SetStanding { node_id, standing, forced, at }
        }),
        3 => node_id().prop_map(move |node_id| MetaCommand::ForgetNode { node_id, at }),
        2 => prop::collection::vec((shard_id(), node_id()), 0..3)
            .prop_map(|leaders| MetaCommand::SetPreferredLeaders { leaders }),
        1 => (0u32..3, 0u32..3).prop_map(move |(moves_max, moves_per_node_max)| MetaCommand::SetPolicy {
            change: Policy { moves_max, moves_per_node_max, ..Policy::default() }.into(),
            at,
        }),
        9 => (
            shard_id(), prop::option::weighted(0.9, node_id()), prop::option::weighted(0.9, node_id()),
            node_id(), reason, prop::bool::weighted(0.9),
        ).prop_map(move |(shard_id, to, from, leader, reason, right)| MetaCommand::StartMove {
            shard_id, to, from, preferred_leader: leader, reason, epoch: Epoch(u64::from(right)), at,
        }),
        4 => (move_id(), any_config()).prop_map(|(move_id, config)| MetaCommand::SwitchMove { move_id, config }),
        1 => (move_id(), any_config()).prop_map(|(move_id, config)| MetaCommand::RewindMove { move_id, config }),
        1 => move_id().prop_map(|move_id| MetaCommand::CancelMove { move_id }),
        3 => move_id().prop_map(move |move_id| MetaCommand::FinishMove { move_id, at }),
        2 => move_id().prop_map(move |move_id| MetaCommand::EndCancelledMove { move_id, at }),
        3 => (shard_id(), 0..SLOTS, prop::bool::weighted(0.9)).prop_map(move |(shard_id, slot, right)| {
            let (slot, epoch) = (Slot(slot), (!right).then_some(Epoch(0)));
            MetaCommand::StartSplit { shard_id, slot, reason: SplitReason::Asked, epoch, at }
        }),
        2 => (4u32..9).prop_map(move |shard| MetaCommand::FinishSplit { new_shard_id: ShardId(shard), at }),
        3 => (shard_id(), shard_id(), prop::bool::weighted(0.9)).prop_map(move |(shard_id, absorbed_shard_id, right)| {
            let epoch = (!right).then_some(Epoch(0));
            MetaCommand::StartMerge { shard_id, absorbed_shard_id, reason: MergeReason::Asked, epoch, at }
        }),
        6 => (1u64..4, 0u8..5).prop_map(move |(merge, which)| {
            let merge_id = MergeId(merge);
            match which {
                0 => MetaCommand::FreezeMerge { merge_id, at },
                1 => MetaCommand::AbsorbMerge { merge_id, at },
                2 => MetaCommand::CancelMerge { merge_id, at },
                3 => MetaCommand::EndCancelledMerge { merge_id, at },
                _ => MetaCommand::FinishMerge { merge_id, at },
            }
        }),
        1 => (1u32..4).prop_map(move |to| MetaCommand::FinalizeUpgrade { to: ClusterVersion(to), at }),
        1 => "[a-z]{0,3}".prop_map(move |token| MetaCommand::RotateJoinToken { token: JoinToken(token), at }),
        4 => (shard_id(), (1u64..30).prop_map(ReplicaId)).prop_map(move |(shard_id, survivor)| {
            MetaCommand::RecoverShard { shard_id, survivor, last: LogPosition::default(), at }
        }),
        2 => (shard_id(), (9u64..30).prop_map(ReplicaId)).prop_map(move |(shard_id, replica_id)| {
            MetaCommand::FinishRecovery { shard_id, replica_id, at }
        }),
    ]
}

fn created(replication_factor: u32, version: ClusterVersion) -> MetaState {
    let nodes: Vec<NodeInfo> = (1..=4).map(|id| node(id, id)).collect();
    let map = initial_map(&nodes, 3, replication_factor).expect("a map");
    let mut state = MetaState::default();
    let command = MetaCommand::CreateCluster {
        cluster_id: "c1".to_owned(),
        cluster_name: String::new(),
        join_token: JoinToken("secret".to_owned()),
        replication_factor,
        nodes,
        shards: map.shards,
        version,
        at: TimestampMs(1),
    };
    apply_meta(&mut state, command);
    state
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn commands_in_any_order_keep_the_invariants(
        replication_factor in 1u32..4,
        first in prop::bool::weighted(0.3),
        commands in prop::collection::vec((any_command(), prop::bool::weighted(0.2)), 1..80),
    ) {
        let version = if first { ClusterVersion::V1 } else { ClusterVersion::MAX };
        let mut state = created(replication_factor, version);
        check_invariants(&state);
        for (mut command, somebody) in commands {
            if let MetaCommand::StartMove { epoch, .. } = &mut command
                && *epoch == Epoch(1)
            {
                *epoch = state.map.epoch;
            }
            if somebody {
                let by = Actor("ann".to_owned());
                command = MetaCommand::By { by, command: Box::new(command) };
            }
            let version = state.cluster_version;
            match command.clone().at_version(version) {
                Ok(possible) => command = possible,
                Err(refusal) => {
                    // Nobody proposes it, and who applied it all the same would change nothing.
                    let before = state.clone();
                    prop_assert_eq!(apply_meta(&mut state, command), MetaReply::Refused(refusal));
                    prop_assert_eq!(&state, &before);
                    continue;
                }
            }
            let bytes = command.encode();
            if version == ClusterVersion::V1 {
                // What the first release reads, and the one that ends this.
                prop_assert!((1..=14).contains(&bytes[1]) || bytes[1] == 42 || bytes[1] == 17, "{command:?}");
                prop_assert_eq!(state.encode()[0], 1);
            }
            prop_assert_eq!(&MetaCommand::decode(&bytes).expect("it decodes"), &command);
            let before = state.clone();
            let reply = apply_meta(&mut state, command.clone());
            prop_assert_eq!(&MetaReply::decode(&reply.encode()).expect("it decodes"), &reply);
            if let MetaCommand::StartMove { epoch, .. } = &command
                && *epoch != before.map.epoch
            {
                let started = matches!(reply, MetaReply::MoveStarted { existed: false, .. });
                prop_assert!(!started, "a move started on another map");
            }
            if matches!(reply, MetaReply::Refused(_)) {
                prop_assert_eq!(&state, &before);
            }
            check_change(&before, &state);
            check_invariants(&state);
            prop_assert_eq!(&MetaState::decode(&state.encode()).expect("it decodes"), &state);
            // Once more does nothing more.
            let once = state.clone();
            apply_meta(&mut state, command);
            prop_assert_eq!(&state, &once);
        }
    }
}
