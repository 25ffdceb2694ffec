//! What `carillon admin status` warns of: each warning says what is the matter, since when and
//! what will happen by itself, and what to do. Pure; keeps no state.

use std::collections::BTreeMap;

use carillon_client::admin_proto as proto;
use proto::Standing;

use super::status::{Seen, counted};
use crate::present;

/// A node is nearly full from here on, in percent of what it may take.
const FULL_PERCENT: u64 = 80;
/// Its disk is nearly full from here on, in percent; others may use it too.
const DISK_FULL_PERCENT: u64 = 90;
/// And from here on at any moment.
const DISK_URGENT_PERCENT: u64 = 97;
/// Shards that are named one by one.
const NAMED_MAX: usize = 8;

/// Something that an operator should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Warning {
    /// Something does not work, or soon will not.
    pub(super) urgent: bool,
    pub(super) node: Option<u64>,
    pub(super) shard: Option<u32>,
    pub(super) what: String,
    /// What to do, or to type.
    pub(super) todo: String,
}

/// The urgent ones first.
pub(super) fn warnings(seen: &Seen) -> Vec<Warning> {
    let mut all = Vec::new();
    if seen.cluster.meta_leader_node == 0 {
        all.push(Warning {
            urgent: true,
            node: None,
            shard: Some(0),
            what: "the meta group has no leader: nothing is moved, replaced or changed".to_owned(),
            todo: "bring back nodes, until most of its voters answer".to_owned(),
        });
    }
    leaderless(seen, &mut all);
    for node in &seen.nodes {
        away(seen, node, &mut all);
        full(node, &mut all);
    }
    few(seen, &mut all);
    versions(seen, &mut all);
    if !seen.policy.balance {
        all.push(plain(
            "the policy says that nothing is balanced".to_owned(),
            "carillon admin policy --balance true".to_owned(),
        ));
    }
    all.sort_by_key(|warning| !warning.urgent);
    all
}

fn plain(what: String, todo: String) -> Warning {
    Warning {
        urgent: false,
        node: None,
        shard: None,
        what,
        todo,
    }
}

fn named(shards: &[u32]) -> String {
    let ids: Vec<String> = shards.iter().take(NAMED_MAX).map(u32::to_string).collect();
    let more = shards.len().saturating_sub(NAMED_MAX);
    let more = match more {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let word = if shards.len() == 1 { "shard" } else { "shards" };
    format!("{word} {}{more}", ids.join(" "))
}

fn leaderless(seen: &Seen, all: &mut Vec<Warning>) {
    let shards = seen.by_state().leaderless;
    let Some(first) = shards.first() else {
        return;
    };
    let verb = if shards.len() == 1 { "has" } else { "have" };
    all.push(Warning {
        urgent: true,
        node: None,
        shard: Some(*first),
        what: format!(
            "{} {verb} no leader: sends to their conversations and reads of them fail",
            named(&shards)
        ),
        todo: format!(
            "bring back the nodes of their replicas; when most are gone for good: carillon admin recover-shard {first}"
        ),
    });
}

fn away(seen: &Seen, node: &proto::NodeStatus, all: &mut Vec<Warning>) {
    let id = node.node_id;
    let of_node = |urgent, what, todo| Warning {
        urgent,
        node: Some(id),
        shard: None,
        what,
        todo,
    };
    if node.standing() == Standing::Lost {
        let (what, todo) = match node.replicas_placed {
            0 => (
                format!("node {id} is given up, and nothing is left on it"),
                format!("carillon admin forget {id}"),
            ),
            left => (
                format!(
                    "node {id} is given up: {} of it are being made anew",
                    counted(left as usize, "replica")
                ),
                format!(
                    "wait, then: carillon admin forget {id}. Should it come back with its disk, it is used again"
                ),
            ),
        };
        all.push(of_node(false, what, todo));
        return;
    }
    if node.up {
        return;
    }
    let silent_s = node.silent_ms / 1_000;
    let since = match silent_s {
        0 => String::new(),
        silent => format!(" for {}", present::duration(silent)),
    };
    let after = u64::from(seen.policy.failure_replacement_after_s);
    let others = seen
        .nodes
        .iter()
        .filter(|other| other.node_id != id && other.up && other.standing() == Standing::Active);
    let room = others.count() >= seen.cluster.replication_factor as usize;
    let then = match room {
        true => "its replicas are made anew elsewhere",
        false => "its replicas are made anew once there is another node to take them: add one",
    };
    let next = if seen.policy.lost_nodes_max == 0 {
        "the policy lets nobody give it up but you".to_owned()
    } else {
        match after.checked_sub(silent_s) {
            Some(left) if left > 0 => {
                format!("in {} it is given up, and {then}", present::duration(left))
            }
            _ => "it is given up as soon as that is safe: carillon admin moves".to_owned(),
        }
    };
    let todo = format!(
        "bring it back; when it is gone for good, do not wait: carillon admin give-up {id}"
    );
    all.push(of_node(
        true,
        format!("node {id} is silent{since}; {next}"),
        todo,
    ));
}

fn full(node: &proto::NodeStatus, all: &mut Vec<Warning>) {
    let id = node.node_id;
    let of_node = |urgent, what, todo: &str| Warning {
        urgent,
        node: Some(id),
        shard: None,
        what,
        todo: todo.to_owned(),
    };
    if let Some(percent) = percent(node.state_bytes, node.capacity_bytes)
        && percent >= FULL_PERCENT
    {
        let what = format!(
            "node {id} has {percent} % of its capacity: {} of {}",
            present::bytes(node.state_bytes),
            present::bytes(node.capacity_bytes)
        );
        all.push(of_node(
                percent >= 100,
                what,
                "add a node, or give it a larger placement.capacity_bytes; it takes nothing new beyond it",
            ));
    }
    let used = node.disk_bytes.saturating_sub(node.disk_free_bytes);
    if let Some(percent) = percent(used, node.disk_bytes)
        && (node.disk_short || percent >= DISK_FULL_PERCENT)
    {
        let what = format!(
            "the disk of node {id} is {percent} % full, {} are free",
            present::bytes(node.disk_free_bytes)
        );
        let todo = match node.disk_short {
            true => "make room: until then it takes no messages, and leads only what no other can",
            false => "make room or add a node: a node whose disk is full takes no messages",
        };
        all.push(of_node(
            node.disk_short || percent >= DISK_URGENT_PERCENT,
            what,
            todo,
        ));
    }
}

/// None of nothing: then it is not known, or there is no limit.
fn percent(part: u64, whole: u64) -> Option<u64> {
    part.saturating_mul(100).checked_div(whole)
}

fn few(seen: &Seen, all: &mut Vec<Warning>) {
    let shards = seen.by_state().few;
    let Some(first) = shards.first() else {
        return;
    };
    let verb = if shards.len() == 1 { "has" } else { "have" };
    all.push(Warning {
        urgent: false,
        node: None,
        shard: Some(*first),
        what: format!(
            "{} {verb} fewer than {} replicas that answer",
            named(&shards),
            seen.cluster.replication_factor
        ),
        todo: "carillon admin moves says what is done about it and what is waited for".to_owned(),
    });
}

fn versions(seen: &Seen, all: &mut Vec<Warning>) {
    let mut versions: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for node in seen.nodes.iter().filter(|node| node.up) {
        let nodes = versions.entry(&node.version).or_default();
        nodes.push(node.node_id.to_string());
    }
    if versions.len() < 2 {
        return;
    }
    let versions: Vec<String> = versions
        .into_iter()
        .map(|(version, nodes)| format!("{version} on {}", nodes.join(" ")))
        .collect();
    all.push(plain(
        format!("the nodes run different versions: {}", versions.join(", ")),
        "give all the same; carillon admin roll restarts them".to_owned(),
    ));
}

#[cfg(test)]
pub(super) mod tests {
    use proto::replica_status::Role;

    use super::*;

    /// Three nodes and two shards, all well.
    pub(in super::super) fn cluster() -> Seen {
        let node = |node_id| proto::NodeStatus {
            node_id,
            up: true,
            version: "0.2.0".to_owned(),
            standing: Standing::Active.into(),
            replicas_placed: 2,
            ..proto::NodeStatus::default()
        };
        let replica = |node_id| proto::ReplicaStatus {
            node_id,
            role: Role::Follower.into(),
            ..proto::ReplicaStatus::default()
        };
        let shard = |shard_id| proto::ShardStatus {
            shard_id,
            leader_node: 1,
            replicas: (1..=3).map(replica).collect(),
            ..proto::ShardStatus::default()
        };
        Seen {
            cluster: proto::GetClusterResponse {
                cluster_name: "demo".to_owned(),
                nodes: 3,
                nodes_up: 3,
                replication_factor: 3,
                meta_leader_node: 1,
                cluster_version: 2,
                cluster_version_known: 2,
                ..proto::GetClusterResponse::default()
            },
            nodes: (1..=3).map(node).collect(),
            shards: vec![shard(1), shard(2)],
            policy: proto::Policy {
                failure_replacement_after_s: 600,
                lost_nodes_max: 1,
                balance: true,
                ..proto::Policy::default()
            },
            ..Seen::default()
        }
    }

    #[test]
    fn a_healthy_cluster_warns_of_nothing() {
        assert_eq!(warnings(&cluster()), []);
    }

    #[test]
    fn a_silent_node_says_since_when_and_what_comes() {
        let mut seen = cluster();
        seen.nodes[1].up = false;
        seen.nodes[1].silent_ms = 192_000;
        let warned = warnings(&seen);
        assert_eq!(warned[0].node, Some(2));
        assert!(warned[0].urgent);
        assert_eq!(
            warned[0].what,
            "node 2 is silent for 3m 12s; in 6m 48s it is given up, and its replicas are made anew once there is another node to take them: add one"
        );
        seen.nodes.push(proto::NodeStatus {
            node_id: 4,
            ..seen.nodes[0].clone()
        });
        assert!(warnings(&seen)[0].what.ends_with("made anew elsewhere"));
        assert!(warned[0].todo.contains("give-up 2"));
        seen.nodes[1].silent_ms = 700_000;
        assert!(warnings(&seen)[0].what.contains("as soon as that is safe"));
        seen.policy.lost_nodes_max = 0;
        assert!(warnings(&seen)[0].what.contains("nobody"));
    }

    #[test]
    fn the_rest_is_named_with_what_to_do() {
        let mut seen = cluster();
        seen.shards[1].leader_node = 0;
        seen.shards[1].replicas[2].role = Role::Unknown.into();
        seen.nodes[0].version = "1.1.0".to_owned();
        seen.nodes[0].capacity_bytes = 100 << 20;
        seen.nodes[0].state_bytes = 85 << 20;
        seen.nodes[1].disk_bytes = 100;
        seen.nodes[1].disk_free_bytes = 2;
        seen.nodes[2].standing = Standing::Lost.into();
        seen.nodes[2].replicas_placed = 0;
        seen.policy.balance = false;
        let warned = warnings(&seen);
        let todo: Vec<&str> = warned.iter().map(|one| one.todo.as_str()).collect();
        assert!(todo[0].contains("recover-shard 2"), "{todo:#?}");
        assert!(todo[1].contains("make room"), "{todo:#?}");
        for part in [
            "capacity_bytes",
            "forget 3",
            "admin moves",
            "admin roll",
            "--balance true",
        ] {
            assert!(
                todo.iter().any(|todo| todo.contains(part)),
                "{part}: {todo:#?}"
            );
        }
        assert_eq!(warned.len(), 7);
    }
}
