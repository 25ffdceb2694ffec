//! `carillon admin status`: the cluster on one screen. Its health in one line, its parts below,
//! and warnings, each with what to do.
//!
//! Keeps no state: asks the cluster, and decides by a pure function what is shown.

use std::collections::BTreeMap;

use anyhow::Context;
use carillon_client::AdminClient;
use carillon_client::admin_proto as proto;
use serde_json::{Value, json};

use super::membership::{merge_line, move_json, sent, standing_name};
use super::node_json;
use super::warnings::{Warning, warnings};
use crate::arguments::Output;
use crate::output::{self, Paint};
use crate::present;

/// Moves that are shown one by one.
const MOVES_SHOWN_MAX: usize = 8;

/// What was asked.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub(super) cluster: proto::GetClusterResponse,
    pub(super) nodes: Vec<proto::NodeStatus>,
    /// Without the meta group.
    pub(super) shards: Vec<proto::ShardStatus>,
    pub(super) moves: proto::ListMovesResponse,
    pub(super) policy: proto::Policy,
    /// By node, for those that are drained.
    pub(super) drains: Vec<(u64, proto::GetDrainResponse)>,
    /// Nodes may join by a token.
    pub(super) join_open: bool,
}

/// How the cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    /// All is as it should be.
    Healthy,
    /// Everything works, and something is missing.
    Degraded,
    /// Something does not work.
    Impaired,
}

impl Health {
    fn name(self) -> &'static str {
        match self {
            Health::Healthy => "healthy",
            Health::Degraded => "degraded",
            Health::Impaired => "impaired",
        }
    }
}

/// Shards by what is the matter with them; one may count more than once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Shards {
    pub(super) led: usize,
    pub(super) leaderless: Vec<u32>,
    pub(super) few: Vec<u32>,
    pub(super) moving: usize,
}

impl Seen {
    async fn ask(admin: &AdminClient) -> anyhow::Result<Self> {
        let cluster = admin.get_cluster().await;
        let cluster = cluster.context("could not ask the cluster for its status")?;
        let nodes = admin
            .list_nodes()
            .await
            .context("could not list the nodes")?;
        let shards = admin.list_shards(None).await;
        let mut shards = shards.context("could not list the shards")?;
        shards.retain(|shard| shard.shard_id != 0);
        let moves = admin
            .list_moves()
            .await
            .context("could not list the moves")?;
        let policy = admin
            .get_policy()
            .await
            .context("could not get the policy")?;
        let token = admin.join_token().await;
        let join_open = !token.context("could not get the join token")?.is_empty();
        let mut drains = Vec::new();
        for node in nodes.iter().filter(|node| is_draining(node)) {
            // Without a leader of the meta group nobody knows: said by the health.
            if let Ok(drain) = admin
                .drain_status(node.node_id, proto::Standing::Unspecified)
                .await
            {
                drains.push((node.node_id, drain));
            }
        }
        Ok(Self {
            cluster,
            nodes,
            shards,
            moves,
            policy,
            drains,
            join_open,
        })
    }

    pub(super) fn by_state(&self) -> Shards {
        let mut found = Shards::default();
        for shard in &self.shards {
            match shard.leader_node {
                0 => found.leaderless.push(shard.shard_id),
                _ => found.led += 1,
            }
            let runs = |one: &&proto::ReplicaStatus| {
                !matches!(
                    one.role(),
                    proto::replica_status::Role::Unknown | proto::replica_status::Role::Learner
                )
            };
            let running = shard.replicas.iter().filter(runs).count();
            if running < self.cluster.replication_factor as usize {
                found.few.push(shard.shard_id);
            }
        }
        found.moving = self.moves.moves.len();
        found
    }

    pub(super) fn health(&self) -> Health {
        let shards = self.by_state();
        let away = self.nodes.iter().any(|node| !node.up);
        if !shards.leaderless.is_empty() || self.cluster.meta_leader_node == 0 {
            Health::Impaired
        } else if away || !shards.few.is_empty() {
            Health::Degraded
        } else {
            Health::Healthy
        }
    }

    /// Why the health is what it is, in some words.
    fn why(&self) -> String {
        let shards = self.by_state();
        let mut parts = Vec::new();
        if self.cluster.meta_leader_node == 0 {
            parts.push("the meta group has no leader".to_owned());
        }
        if !shards.leaderless.is_empty() {
            let count = shards.leaderless.len();
            parts.push(format!("{} without a leader", counted(count, "shard")));
        }
        let away = self.nodes.iter().filter(|node| !node.up).count();
        if away > 0 {
            parts.push(format!("{} away", counted(away, "node")));
        }
        if !shards.few.is_empty() {
            let count = shards.few.len();
            parts.push(format!("{} with too few replicas", counted(count, "shard")));
        }
        match parts.is_empty() {
            true => format!(
                "{} and {} as they should be",
                counted(self.nodes.len(), "node"),
                counted(self.shards.len(), "shard")
            ),
            false => parts.join(", "),
        }
    }
}

pub(super) fn is_draining(node: &proto::NodeStatus) -> bool {
    matches!(
        node.standing(),
        proto::Standing::DrainingForRemoval | proto::Standing::DrainingForRestart
    )
}

/// `1 node`, `2 nodes`.
pub(super) fn counted(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    }
}

/// Asks and shows.
pub(super) async fn run(admin: &AdminClient, output: Output) -> anyhow::Result<()> {
    match output {
        Output::Json => output::json(&value(admin).await?)?,
        Output::Table => {
            let seen = Seen::ask(admin).await?;
            let warnings = warnings(&seen);
            for line in screen(&seen, &warnings, Paint::for_stdout()) {
                output::line(&line)?;
            }
        }
    }
    Ok(())
}

/// All that is on the screen, for programs.
pub(super) async fn value(admin: &AdminClient) -> anyhow::Result<Value> {
    let seen = Seen::ask(admin).await?;
    let warnings = warnings(&seen);
    Ok(to_json(&seen, &warnings))
}

fn screen(seen: &Seen, warnings: &[Warning], paint: Paint) -> Vec<String> {
    let cluster = &seen.cluster;
    let health = seen.health();
    let name = health.name();
    let name = match health {
        Health::Healthy => paint.good(name),
        Health::Degraded => paint.warn(name),
        Health::Impaired => paint.bad(name),
    };
    let title = paint.bold(&present::printable(&cluster.cluster_name));
    let mut lines = vec![format!("{title} is {name}: {}", seen.why()), String::new()];
    let mut row = |name: &str, text: String| lines.push(format!("{name:<9} {text}"));
    let shards = seen.by_state();
    row("nodes", nodes_line(&seen.nodes));
    row(
        "shards",
        format!(
            "{} of {} led, {} without a leader, {} with too few replicas, {} moving",
            shards.led,
            seen.shards.len(),
            shards.leaderless.len(),
            shards.few.len(),
            shards.moving
        ),
    );
    let meta = match cluster.meta_leader_node {
        0 => "no leader".to_owned(),
        node => format!("led by node {node}, map epoch {}", cluster.map_epoch),
    };
    row("meta", meta);
    row("version", version_line(cluster, &seen.nodes));
    let moves = &seen.moves.moves;
    if moves.is_empty() {
        row("moves", "none".to_owned());
    }
    for (number, running) in moves.iter().take(MOVES_SHOWN_MAX).enumerate() {
        let label = if number == 0 { "moves" } else { "" };
        row(label, move_line(running));
    }
    if moves.len() > MOVES_SHOWN_MAX {
        let more = moves.len() - MOVES_SHOWN_MAX;
        row("", format!("and {more} more: carillon admin moves"));
    }
    for split in &seen.moves.splits {
        let (shard, new) = (split.shard_id, split.new_shard_id);
        row(
            "split",
            format!("shard {shard} into itself and shard {new}"),
        );
    }
    for merge in &seen.moves.merges {
        row("merge", merge_line(merge));
    }
    for (number, (node, drain)) in seen.drains.iter().enumerate() {
        let label = if number == 0 { "drains" } else { "" };
        row(label, drain_line(*node, drain));
    }
    if seen.join_open {
        row(
            "joining",
            "open to whoever has the token (carillon admin join-token --rotate changes it)"
                .to_owned(),
        );
    }
    row(
        "asked",
        format!(
            "node {}, version {}, cluster {}",
            cluster.answering_node,
            present::printable(&cluster.version),
            present::printable(&cluster.cluster_id)
        ),
    );
    for warning in warnings {
        let mark = if warning.urgent {
            paint.bad("!")
        } else {
            paint.warn("·")
        };
        lines.push(String::new());
        lines.push(format!("{mark} {}", present::printable(&warning.what)));
        lines.push(format!("  {}", paint.dim(&warning.todo)));
    }
    lines
}

/// The cluster's version, the releases that its nodes run, and what the next version waits for.
fn version_line(cluster: &proto::GetClusterResponse, nodes: &[proto::NodeStatus]) -> String {
    let mut releases = BTreeMap::<String, usize>::new();
    for node in nodes.iter().filter(|node| node.up) {
        *releases
            .entry(present::printable(&node.version))
            .or_default() += 1;
    }
    let releases: Vec<String> = releases
        .iter()
        .map(|(release, count)| format!("{} on {release}", counted(*count, "node")))
        .collect();
    let version = cluster.cluster_version;
    let mut text = format!("{version}, {}", releases.join(", "));
    if version < cluster.cluster_version_known {
        let next = version + 1;
        match cluster.upgrade_hindrances.first() {
            None => text.push_str(&format!(
                "; {next} is possible: carillon admin finalize-upgrade"
            )),
            Some(why) => {
                text.push_str(&format!("; for {next}, {}", present::printable(why)));
                let more = cluster.upgrade_hindrances.len() - 1;
                if more > 0 {
                    text.push_str(&format!("; and {more} more"));
                }
            }
        }
    }
    text
}

fn nodes_line(nodes: &[proto::NodeStatus]) -> String {
    let up = nodes.iter().filter(|node| node.up).count();
    let mut text = format!("{up} of {} up", nodes.len());
    for standing in [
        proto::Standing::Cordoned,
        proto::Standing::DrainingForRestart,
        proto::Standing::DrainingForRemoval,
        proto::Standing::Lost,
    ] {
        let of = nodes.iter().filter(|node| node.standing() == standing);
        let of: Vec<String> = of.map(|node| node.node_id.to_string()).collect();
        if !of.is_empty() {
            text.push_str(&format!(", {}: {}", standing_name(standing), of.join(" ")));
        }
    }
    text
}

fn move_line(running: &proto::Move) -> String {
    let mut text = format!("shard {}", running.shard_id);
    if running.from_node != 0 {
        text.push_str(&format!(" from node {}", running.from_node));
    }
    if running.to_node != 0 {
        text.push_str(&format!(" to node {}", running.to_node));
    }
    text.push_str(&format!(", {} ({})", running.step, running.reason));
    if running.snapshot_bytes_total > 0 {
        text.push_str(&format!(": {}", sent(running)));
    }
    text
}

fn drain_line(node: u64, drain: &proto::GetDrainResponse) -> String {
    let since = match drain.started_at_ms {
        0 => String::new(),
        at => format!(" since {}", present::moment(at)),
    };
    format!(
        "node {node}: {} %{since}, {}: {} leaders, {} streams, {} replicas left",
        drain.percent, drain.step, drain.leaders_left, drain.sessions_left, drain.replicas_left
    )
}

fn to_json(seen: &Seen, warnings: &[Warning]) -> Value {
    let cluster = &seen.cluster;
    let shards = seen.by_state();
    let nodes: Vec<Value> = seen.nodes.iter().map(node_json).collect();
    let moves: Vec<Value> = seen.moves.moves.iter().map(move_json).collect();
    let drains = seen.drains.iter().map(|(node, drain)| {
        json!({
            "node_id": node,
            "percent": drain.percent,
            "step": drain.step,
            "started_at_ms": drain.started_at_ms,
            "leaders_left": drain.leaders_left,
            "sessions_left": drain.sessions_left,
            "replicas_left": drain.replicas_left,
            "done": drain.done,
        })
    });
    let drains: Vec<Value> = drains.collect();
    let warnings = warnings.iter().map(|warning| {
        json!({
            "urgent": warning.urgent,
            "node_id": warning.node,
            "shard_id": warning.shard,
            "what": warning.what,
            "do": warning.todo,
        })
    });
    let warnings: Vec<Value> = warnings.collect();
    json!({
        "health": seen.health().name(),
        "why": seen.why(),
        "cluster_id": cluster.cluster_id,
        "cluster_name": cluster.cluster_name,
        "map_epoch": cluster.map_epoch,
        "nodes": cluster.nodes,
        "nodes_up": cluster.nodes_up,
        "shards": cluster.shards,
        "shards_led": cluster.shards_led,
        "shards_without_leader": shards.leaderless,
        "shards_under_replicated": shards.few,
        "replication_factor": cluster.replication_factor,
        "meta_leader_node": cluster.meta_leader_node,
        "answering_node": cluster.answering_node,
        "version": cluster.version,
        "cluster_version": cluster.cluster_version,
        "cluster_version_known": cluster.cluster_version_known,
        "upgrade_hindrances": cluster.upgrade_hindrances,
        "node_list": nodes,
        "moves": moves,
        "waits": seen.moves.waits,
        "join_open": seen.join_open,
        "drains": drains,
        "warnings": warnings,
    })
}

#[cfg(test)]
mod tests {
    use super::super::warnings::tests::cluster;
    use super::*;

    #[test]
    fn a_healthy_cluster_is_a_few_lines() {
        let seen = cluster();
        let lines = screen(&seen, &[], Paint::off());
        assert_eq!(
            lines[0],
            "demo is healthy: 3 nodes and 2 shards as they should be"
        );
        assert_eq!(lines[2], "nodes     3 of 3 up");
        assert!(
            lines[3].ends_with("2 of 2 led, 0 without a leader, 0 with too few replicas, 0 moving")
        );
        assert_eq!(lines[5], "version   2, 3 nodes on 0.2.0");
        assert_eq!(lines[6], "moves     none");
        assert_eq!(lines.len(), 8);
    }

    #[test]
    fn the_version_says_what_the_next_one_waits_for() {
        let mut seen = cluster();
        seen.cluster.cluster_version = 1;
        let line = |seen: &Seen| version_line(&seen.cluster, &seen.nodes);
        assert_eq!(
            line(&seen),
            "1, 3 nodes on 0.2.0; 2 is possible: carillon admin finalize-upgrade"
        );
        seen.nodes[2].version = "0.1.0".to_owned();
        seen.cluster.upgrade_hindrances = vec!["node 3 is old".to_owned(), "more".to_owned()];
        assert_eq!(
            line(&seen),
            "1, 1 node on 0.1.0, 2 nodes on 0.2.0; for 2, node 3 is old; and 1 more"
        );
    }

    #[test]
    fn health_is_what_works() {
        let mut seen = cluster();
        seen.nodes[1].up = false;
        assert_eq!(seen.health(), Health::Degraded);
        seen.shards[0].leader_node = 0;
        assert_eq!(seen.health(), Health::Impaired);
        assert_eq!(seen.why(), "1 shard without a leader, 1 node away");
    }

    #[test]
    fn moves_show_how_fast_they_are_and_what_is_left() {
        let mut seen = cluster();
        seen.moves.moves = vec![proto::Move {
            shard_id: 2,
            from_node: 1,
            to_node: 4,
            step: "catching up".to_owned(),
            reason: "drain".to_owned(),
            snapshot_bytes_sent: 25 << 20,
            snapshot_bytes_total: 100 << 20,
            snapshot_bytes_per_s: 5 << 20,
            ..proto::Move::default()
        }];
        let lines = screen(&seen, &[], Paint::off());
        assert_eq!(
            lines[6],
            "moves     shard 2 from node 1 to node 4, catching up (drain): 25 % of 100.0 MiB, 5.0 MiB/s, 15s left"
        );
    }
}
