//! `carillon admin roll`: restarts the nodes one after the other, each of them drained before
//! and used again after, so that clients notice nothing.
//!
//! Keeps no state: what a roll that was broken off left drained, the next one takes up.

use std::time::Duration;

use anyhow::Context;
use carillon_client::AdminClient;
use carillon_client::admin_proto as proto;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use proto::Standing;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::arguments::Output;
use crate::bench::duration::parse_duration;
use crate::failure::advised;
use crate::output;

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

#[derive(Debug, Args)]
pub struct RollArguments {
    /// Only these nodes, in this order. Default: all that are active, the meta group's leader
    /// last.
    nodes: Vec<u64>,
    /// How long each step of a node may take: until it is drained, until it is back, until it
    /// has caught up.
    #[arg(long, default_value = "10m", value_parser = parse_duration)]
    timeout: Duration,
}

/// Restarts them.
pub async fn run(
    admin: &AdminClient,
    arguments: &RollArguments,
    output: Output,
) -> anyhow::Result<()> {
    let nodes = match arguments.nodes.is_empty() {
        true => all(admin).await?,
        false => arguments.nodes.clone(),
    };
    let bar = match output {
        Output::Table => ProgressBar::new(nodes.len() as u64),
        Output::Json => ProgressBar::hidden(),
    };
    let style = ProgressStyle::with_template("{bar:32} {pos}/{len} nodes  {msg}");
    bar.set_style(style.context("a progress bar's template")?);
    let mut restarted = Vec::new();
    for node in &nodes {
        let began = Instant::now();
        let roll = Roll {
            admin,
            bar: &bar,
            node: *node,
            limit: arguments.timeout,
        };
        roll.restart().await?;
        bar.inc(1);
        let seconds = began.elapsed().as_secs_f64();
        if output == Output::Table {
            bar.suspend(|| output::line(&format!("node {node} was restarted, {seconds:.1} s")))?;
        }
        restarted.push(json!({ "node_id": node, "seconds": seconds }));
    }
    bar.finish_and_clear();
    match output {
        Output::Table => output::line(&format!("all {} nodes were restarted", nodes.len()))?,
        Output::Json => output::json(&json!({ "restarted": restarted }))?,
    }
    Ok(())
}

/// The nodes to restart. The meta group's leader comes last: each time it is restarted another
/// one has to take over what it does for the cluster.
pub async fn all(admin: &AdminClient) -> anyhow::Result<Vec<u64>> {
    let leader = admin.get_cluster().await;
    let leader = leader.context("could not look at the cluster")?;
    let nodes = admin
        .list_nodes()
        .await
        .context("could not list the nodes")?;
    let rolled = |node: &&proto::NodeStatus| {
        matches!(
            node.standing(),
            Standing::Active | Standing::DrainingForRestart
        )
    };
    let mut ids: Vec<u64> = nodes
        .iter()
        .filter(rolled)
        .map(|node| node.node_id)
        .collect();
    ids.sort_by_key(|id| (*id == leader.meta_leader_node, *id));
    Ok(ids)
}

/// The restart of one node.
pub struct Roll<'a> {
    pub admin: &'a AdminClient,
    /// Shows what is waited for.
    pub bar: &'a ProgressBar,
    pub node: u64,
    /// For each step.
    pub limit: Duration,
}

impl Roll<'_> {
    /// Drains it, restarts it, and waits until it has caught up.
    pub async fn restart(&self) -> anyhow::Result<()> {
        let node = self.node;
        let before = self.status().await?;
        if !before.up {
            return Err(advised(
                format!("node {node} is down; a roll would take another one away"),
                format!("start node {node}, or give it up, and roll again"),
            ));
        }
        self.wait("waits until the others do without it", async || {
            let drain = self.admin.drain_status(node, Standing::DrainingForRestart);
            Ok(drain.await?.dangers)
        })
        .await?;
        let drain = self
            .admin
            .set_standing(node, Standing::DrainingForRestart, false);
        drain
            .await
            .with_context(|| format!("could not drain node {node}"))?;
        self.wait("drains it", async || {
            let drain = self.admin.drain_status(node, Standing::Unspecified).await?;
            let (leaders, streams) = (drain.leaders_left, drain.sessions_left);
            let left = format!("{leaders} leaders and {streams} streams are left");
            Ok((!drain.done).then_some(left).into_iter().collect())
        })
        .await?;
        let restart = self.admin.restart_node(node, before.run).await;
        restart.with_context(|| format!("could not restart node {node}; it stays drained"))?;
        self.wait("waits until it is back", async || {
            let nodes = self.admin.list_nodes().await?;
            let now = nodes.into_iter().find(|status| status.node_id == node);
            let back = now.is_some_and(|now| now.up && now.run != before.run && !now.draining);
            let away = format!("node {node} is not back; whatever supervises it starts it again");
            Ok((!back).then_some(away).into_iter().collect())
        })
        .await
        .with_context(|| {
            format!("node {node} stays drained: start it, then carillon admin uncordon {node}")
        })?;
        let uncordon = self.admin.set_standing(node, Standing::Active, false).await;
        uncordon.with_context(|| format!("could not use node {node} again"))?;
        self.wait("waits until it has caught up", async || {
            let shards = self.admin.list_shards(None).await?;
            let behind = shards.iter().filter(|shard| is_behind(shard, node));
            let behind = behind.map(|shard| format!("shard {} is behind", shard.shard_id));
            Ok(behind.collect())
        })
        .await
    }

    async fn status(&self) -> anyhow::Result<proto::NodeStatus> {
        let nodes = self.admin.list_nodes().await;
        let nodes = nodes.context("could not list the nodes")?;
        let found = nodes.into_iter().find(|status| status.node_id == self.node);
        found.ok_or_else(|| {
            advised(
                format!("the cluster has no node {}", self.node),
                "carillon admin nodes lists them",
            )
        })
    }

    /// Waits until nothing is missing any more. An answer that fails is asked for again: the
    /// node that answers may be the one that restarts.
    async fn wait(
        &self,
        what: &str,
        missing: impl AsyncFn() -> Result<Vec<String>, carillon_client::ClientError>,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + self.limit;
        loop {
            let left = match missing().await {
                Ok(left) if left.is_empty() => return Ok(()),
                Ok(left) => left.into_iter().next().unwrap_or_default(),
                Err(error) => error.to_string(),
            };
            self.bar
                .set_message(format!("node {}: {what}; {left}", self.node));
            if Instant::now() >= deadline {
                return Err(advised(
                    format!(
                        "node {}: {what}, after {:?} still: {left}",
                        self.node, self.limit
                    ),
                    "a roll can be begun again at any time; it goes on where it stopped",
                ));
            }
            sleep(LOOK_INTERVAL).await;
        }
    }
}

/// The node's replica of the shard is not there, or has not applied what the leader has.
fn is_behind(shard: &proto::ShardStatus, node: u64) -> bool {
    let Some(own) = shard
        .replicas
        .iter()
        .find(|replica| replica.node_id == node)
    else {
        return false;
    };
    let leader = shard
        .replicas
        .iter()
        .find(|replica| replica.node_id == shard.leader_node);
    leader.is_none_or(|leader| own.applied_index + LAG_ENTRIES_MAX < leader.applied_index)
}

/// Entries that a replica may be behind under load and count as one that has caught up.
const LAG_ENTRIES_MAX: u64 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_is_not_known_to_follow_is_behind() {
        let replica = |node_id, applied_index| proto::ReplicaStatus {
            node_id,
            applied_index,
            ..proto::ReplicaStatus::default()
        };
        let shard = |leader_node| proto::ShardStatus {
            leader_node,
            replicas: vec![replica(1, 5_000), replica(2, 4_500), replica(3, 0)],
            ..proto::ShardStatus::default()
        };
        assert!(!is_behind(&shard(1), 2));
        assert!(is_behind(&shard(1), 3));
        assert!(is_behind(&shard(0), 2), "nobody leads");
        assert!(!is_behind(&shard(1), 4), "it has no replica");
    }
}
