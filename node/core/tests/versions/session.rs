//! A cluster's life as the first release could have it: every command that it had, in an order
//! in which most of them do something.

use carillon_core::ids::{Epoch, NodeId, ReplicaId, ShardId, TimestampMs};
use carillon_core::map::{
    ConfigVersion, JoinToken, MetaCommand, MoveId, MoveReason, NodeInfo, PolicyChange,
    ShardDescriptor, Standing, initial_map,
};
use carillon_core::placement::Zone;

fn node(id: u64) -> NodeInfo {
    NodeInfo {
        node_id: NodeId(id),
        identity: format!("identity-{id}"),
        client_address: format!("127.0.0.1:{}", 7000 + id),
        peer_address: format!("127.0.0.1:{}", 8000 + id),
        zone: Zone(format!("zone-{}", id % 2)),
        weight: 100,
        capacity_bytes: 1 << 40,
    }
}

/// The commands; `create` makes the first of them of its nodes and shards.
pub fn commands(
    create: impl Fn(Vec<NodeInfo>, Vec<ShardDescriptor>) -> MetaCommand,
) -> Vec<MetaCommand> {
    let at = TimestampMs(1_700_000_000_000);
    let nodes = vec![node(1), node(2), node(3)];
    let shards = initial_map(&nodes, 4, 3).expect("a map").shards;
    let start = |shard_id, from, to, epoch| MetaCommand::StartMove {
        shard_id: ShardId(shard_id),
        to: Some(NodeId(to)),
        from: Some(NodeId(from)),
        preferred_leader: NodeId(to),
        reason: MoveReason::Asked,
        epoch: Epoch(epoch),
        at,
    };
    let standing = |id, standing| MetaCommand::SetStanding {
        node_id: NodeId(id),
        standing,
        forced: true,
        at,
    };
    let config = ConfigVersion {
        term: 3,
        leader: ReplicaId(2),
        index: 300,
    };
    let updated = NodeInfo {
        weight: 7,
        ..node(2)
    };
    let join = |id| MetaCommand::JoinNode {
        node: node(id),
        token: JoinToken("secret".to_owned()),
        at,
    };
    let policy = PolicyChange {
        moves_max: Some(6),
        balance: Some(false),
        ..PolicyChange::default()
    };
    let leaders = vec![(ShardId(1), NodeId(2))];
    vec![
        create(nodes, shards),
        MetaCommand::UpdateNode { node: updated },
        join(4),
        join(5),
        MetaCommand::SetPolicy { change: policy, at },
        MetaCommand::SetPreferredLeaders { leaders },
        start(1, 1, 4, 6),
        MetaCommand::SwitchMove {
            move_id: MoveId(1),
            config,
        },
        MetaCommand::RewindMove {
            move_id: MoveId(1),
            config,
        },
        MetaCommand::SwitchMove {
            move_id: MoveId(1),
            config,
        },
        MetaCommand::FinishMove {
            move_id: MoveId(1),
            at,
        },
        start(2, 2, 5, 8),
        MetaCommand::CancelMove { move_id: MoveId(2) },
        MetaCommand::EndCancelledMove {
            move_id: MoveId(2),
            at,
        },
        start(3, 3, 5, 10),
        standing(1, Standing::Cordoned),
        standing(2, Standing::DRAINING_FOR_RESTART),
        standing(3, Standing::DRAINING_FOR_REMOVAL),
        standing(4, Standing::Lost),
        join(6),
        standing(6, Standing::Lost),
        MetaCommand::ForgetNode {
            node_id: NodeId(6),
            at,
        },
        MetaCommand::RotateJoinToken {
            token: JoinToken("other".to_owned()),
            at,
        },
    ]
}
