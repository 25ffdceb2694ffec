//! What the admin API's answers mean for a plan. Pure.

use std::collections::{BTreeMap, BTreeSet};

use carillon_crds::imcluster::ShardsStatus;
use carillon_proto::admin as proto;
use proto::replica_status::Role;

use super::{Seen, Whose};
use crate::build::names;
use crate::plan::{ClusterSeen, Drain, MemberName, NodeId, NodeSeen, PolicySeen, Standing};

/// Log entries that a replica may be behind its leader and count as caught up: what is on its way
/// at any moment under load.
const BEHIND_ENTRIES_MAX: u64 = 256;

pub struct Answers {
    pub cluster: proto::GetClusterResponse,
    pub nodes: Vec<proto::NodeStatus>,
    pub shards: Vec<proto::ShardStatus>,
    pub policy: proto::Policy,
    pub moves: usize,
    pub drains: BTreeMap<u64, proto::GetDrainResponse>,
}

/// The member that a node is of, by the address at which other nodes reach it.
pub fn member(whose: &Whose<'_>, node: &proto::NodeStatus) -> Option<MemberName> {
    let (host, _) = node.peer_address.rsplit_once(':')?;
    let (service, _) = host.split_once('.')?;
    let name = MemberName::parse(whose.cluster, service)?;
    (host == names::host(service, whose.namespace)).then_some(name)
}

pub fn understand(whose: &Whose<'_>, answers: &Answers) -> Seen {
    let mut leaderless = 0;
    let mut shards = ShardsStatus {
        moving: answers.moves as u32,
        ..ShardsStatus::default()
    };
    let mut behind = BTreeSet::new();
    for shard in &answers.shards {
        let lacking = lacking(shard);
        let short = !lacking.is_empty()
            || shard.replicas.len() < answers.cluster.replication_factor as usize;
        behind.extend(lacking);
        let led = shard.leader_node != 0;
        leaderless += u32::from(!led);
        // The meta group is not one of those that people count.
        if shard.shard_id != 0 {
            shards.total += 1;
            shards.leaderless += u32::from(!led);
            shards.under_replicated += u32::from(short);
            shards.healthy += u32::from(led && !short);
        }
    }
    shards.summary = format!("{}/{}", shards.total - shards.leaderless, shards.total);
    let nodes = answers.nodes.iter();
    Seen {
        cluster: ClusterSeen {
            id: answers.cluster.cluster_id.clone(),
            nodes: nodes
                .map(|node| {
                    let drain = answers.drains.get(&node.node_id);
                    node_seen(whose, node, !behind.contains(&node.node_id), drain)
                })
                .collect(),
            policy: PolicySeen {
                failure_replacement_after_s: answers.policy.failure_replacement_after_s,
                lost_nodes_max: answers.policy.lost_nodes_max,
            },
            leaderless,
            meta_leader: match answers.cluster.meta_leader_node {
                0 => None,
                some => Some(NodeId(some)),
            },
        },
        cluster_version: answers.cluster.cluster_version,
        shards,
        nodes: answers
            .nodes
            .iter()
            .map(|node| {
                (
                    NodeId(node.node_id),
                    (node.version.clone(), node.zone.clone()),
                )
            })
            .collect(),
    }
}

/// Nodes whose replicas of the shard do not answer, or are behind.
fn lacking(shard: &proto::ShardStatus) -> Vec<u64> {
    let leader = shard.replicas.iter().find(|one| one.role() == Role::Leader);
    let behind = |replica: &&proto::ReplicaStatus| {
        let answers = match replica.role() {
            Role::Leader | Role::Follower => true,
            // Of the meta group all nodes have a replica, and only some of them a vote.
            Role::Learner => shard.shard_id == 0,
            _ => false,
        };
        let lag = leader.map(|leader| leader.last_log_index.saturating_sub(replica.applied_index));
        !answers || lag.is_none_or(|entries| entries > BEHIND_ENTRIES_MAX)
    };
    shard
        .replicas
        .iter()
        .filter(behind)
        .map(|replica| replica.node_id)
        .collect()
}

fn node_seen(
    whose: &Whose<'_>,
    node: &proto::NodeStatus,
    caught_up: bool,
    drain: Option<&proto::GetDrainResponse>,
) -> NodeSeen {
    let standing = match node.standing() {
        proto::Standing::Cordoned => Standing::Cordoned,
        proto::Standing::DrainingForRestart => Standing::DrainingForRestart,
        proto::Standing::DrainingForRemoval => Standing::DrainingForRemoval,
        proto::Standing::Lost => Standing::Lost,
        proto::Standing::Active | proto::Standing::Unspecified => Standing::Active,
    };
    let drained = matches!(
        standing,
        Standing::DrainingForRestart | Standing::DrainingForRemoval
    );
    NodeSeen {
        id: NodeId(node.node_id),
        member: member(whose, node),
        up: node.up,
        standing,
        replicas: node.replicas_placed,
        caught_up: node.up && caught_up,
        disk_bytes: node.disk_bytes,
        disk_free_bytes: node.disk_free_bytes,
        drain: drain.filter(|_| drained).map(|drain| Drain {
            done: drain.done,
            percent: drain.percent,
            step: drain.step.clone(),
            waits: drain.waits.clone(),
            sessions_left: drain.sessions_left,
            since_s: u64::try_from(drain.started_at_ms / 1_000).unwrap_or_default(),
        }),
        restart_dangers: match (drained, drain) {
            (false, Some(drain)) => drain.dangers.clone(),
            _ => Vec::new(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOSE: Whose<'static> = Whose {
        cluster: "chat",
        namespace: "prod",
    };

    fn at(peer_address: &str) -> Option<String> {
        let node = proto::NodeStatus {
            peer_address: peer_address.to_owned(),
            ..Default::default()
        };
        member(&WHOSE, &node).map(|name| name.to_string())
    }

    #[test]
    fn members_are_told_by_their_address() {
        assert_eq!(at("chat-0.prod.svc:7500").as_deref(), Some("chat-0"));
        assert_eq!(at("chat-12.prod.svc:7500").as_deref(), Some("chat-12"));
        assert_eq!(at("chat-0.test.svc:7500"), None);
        assert_eq!(at("chat-two-0.prod.svc:7500"), None);
        assert_eq!(at("chat-00.prod.svc:7500"), None);
        assert_eq!(at("127.0.0.1:7500"), None);
    }

    #[test]
    fn a_replica_that_is_behind_makes_its_node_not_caught_up() {
        let replica = |node_id, role: Role, last_log_index, applied_index| proto::ReplicaStatus {
            node_id,
            role: role.into(),
            last_log_index,
            applied_index,
            ..Default::default()
        };
        let shard = proto::ShardStatus {
            shard_id: 1,
            leader_node: 1,
            replicas: vec![
                replica(1, Role::Leader, 1_000, 1_000),
                replica(2, Role::Follower, 1_000, 900),
                replica(3, Role::Follower, 700, 700),
                replica(4, Role::Unknown, 1_000, 1_000),
                replica(5, Role::Learner, 1_000, 1_000),
            ],
            ..Default::default()
        };
        assert_eq!(lacking(&shard), [3, 4, 5]);
        let meta = proto::ShardStatus {
            shard_id: 0,
            ..shard
        };
        assert_eq!(lacking(&meta), [3, 4]);
    }
}
