//! `carillon admin policy`: shows the policy of the cluster, or changes it.

use anyhow::Context;
use carillon_client::AdminClient;
use carillon_client::admin_proto as proto;
use clap::Args;
use serde_json::{Value, json};

use crate::arguments::Output;
use crate::output;
use crate::present;

/// What is given is changed, the rest stays.
#[derive(Debug, Args)]
pub struct PolicyArguments {
    /// A node that is silent for longer, seconds, gets nothing new [1 to 3600].
    #[arg(long, value_name = "SECONDS")]
    down_after_s: Option<u32>,
    /// A node that is silent for longer, seconds, is given up and replaced [up to 604800].
    #[arg(long, value_name = "SECONDS")]
    failure_replacement_after_s: Option<u32>,
    /// Moves that run at once in the cluster [1 to 64].
    #[arg(long, value_name = "COUNT")]
    moves_max: Option<u32>,
    /// Moves that a node takes part in at once [1 to moves-max].
    #[arg(long, value_name = "COUNT")]
    moves_per_node_max: Option<u32>,
    /// Nodes that are given up and not yet replaced, at once; 0: none by itself.
    #[arg(long, value_name = "COUNT")]
    lost_nodes_max: Option<u32>,
    /// KiB per second of snapshots that a node sends, all together [64 to 16777216].
    #[arg(long, value_name = "KIB")]
    snapshot_kib_per_s_max: Option<u32>,
    /// Whether replicas move from full nodes to empty ones.
    #[arg(long, value_name = "true|false")]
    balance: Option<bool>,
    /// A shard that takes up more GiB on a node is split; 0: none.
    #[arg(long, value_name = "GIB")]
    shard_gib_max: Option<u32>,
    /// A shard that applies more commands per second is split [100 to 1000000]; 0: none.
    #[arg(long, value_name = "COUNT")]
    shard_commands_per_s_max: Option<u32>,
    /// Shards that stay however small; above it, small neighbours are merged [1 to 4095].
    #[arg(long, value_name = "COUNT")]
    shards_min: Option<u32>,
    /// The zone that shards are led from while it has healthy nodes; '' for none.
    #[arg(long, value_name = "ZONE")]
    leader_zone: Option<String>,
    /// The cluster goes to its next version when all nodes have supported it for longer [to
    /// 2419200]; 0: only by finalize-upgrade.
    #[arg(long, value_name = "SECONDS")]
    finalize_upgrade_after_s: Option<u32>,
}

/// Carries it out.
pub async fn run(
    admin: &AdminClient,
    arguments: &PolicyArguments,
    output: Output,
) -> anyhow::Result<()> {
    let change = proto::SetPolicyRequest {
        down_after_s: arguments.down_after_s,
        failure_replacement_after_s: arguments.failure_replacement_after_s,
        moves_max: arguments.moves_max,
        moves_per_node_max: arguments.moves_per_node_max,
        lost_nodes_max: arguments.lost_nodes_max,
        snapshot_kib_per_s_max: arguments.snapshot_kib_per_s_max,
        balance: arguments.balance,
        shard_gib_max: arguments.shard_gib_max,
        shard_commands_per_s_max: arguments.shard_commands_per_s_max,
        shards_min: arguments.shards_min,
        leader_zone: arguments.leader_zone.clone(),
        finalize_upgrade_after_s: arguments.finalize_upgrade_after_s,
    };
    let policy = if change == proto::SetPolicyRequest::default() {
        let policy = admin.get_policy().await;
        policy.context("could not get the policy")?
    } else {
        let policy = admin.set_policy(change).await;
        policy.context("the policy could not be changed")?
    };
    show(&policy, output)
}

fn show(policy: &proto::Policy, output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        return Ok(output::json(&policy_json(policy))?);
    }
    let mut table = output::table(&["policy", "value", "means"]);
    for (name, value, means) in [
        (
            "down-after-s",
            policy.down_after_s.to_string(),
            "silent for longer, a node gets nothing new",
        ),
        (
            "failure-replacement-after-s",
            policy.failure_replacement_after_s.to_string(),
            "silent for longer, it is given up and replaced",
        ),
        (
            "moves-max",
            policy.moves_max.to_string(),
            "moves at once in the cluster",
        ),
        (
            "moves-per-node-max",
            policy.moves_per_node_max.to_string(),
            "moves at once that a node takes part in",
        ),
        (
            "lost-nodes-max",
            policy.lost_nodes_max.to_string(),
            "given up and not yet replaced, at once",
        ),
        (
            "snapshot-kib-per-s-max",
            policy.snapshot_kib_per_s_max.to_string(),
            "of snapshots that a node sends",
        ),
        (
            "balance",
            policy.balance.to_string(),
            "replicas move from full nodes to empty ones",
        ),
        (
            "shard-gib-max",
            policy.shard_gib_max.to_string(),
            "a shard that is larger is split; 0: none",
        ),
        (
            "shard-commands-per-s-max",
            policy.shard_commands_per_s_max.to_string(),
            "a shard that applies more is split; 0: none",
        ),
        (
            "shards-min",
            policy.shards_min.to_string(),
            "shards that stay; above it, small neighbours are merged",
        ),
        (
            "leader-zone",
            match policy.leader_zone.as_str() {
                "" => "-".to_owned(),
                zone => present::printable(zone),
            },
            "shards are led from there while it has healthy nodes",
        ),
        (
            "finalize-upgrade-after-s",
            policy.finalize_upgrade_after_s.to_string(),
            "supported for longer, the next version is gone to; 0: never",
        ),
    ] {
        table.add_row([name, value.as_str(), means]);
    }
    Ok(output::show(&table)?)
}

/// All of it.
pub(super) fn policy_json(policy: &proto::Policy) -> Value {
    json!({
        "down_after_s": policy.down_after_s,
        "failure_replacement_after_s": policy.failure_replacement_after_s,
        "moves_max": policy.moves_max,
        "moves_per_node_max": policy.moves_per_node_max,
        "lost_nodes_max": policy.lost_nodes_max,
        "snapshot_kib_per_s_max": policy.snapshot_kib_per_s_max,
        "balance": policy.balance,
        "shard_gib_max": policy.shard_gib_max,
        "shard_commands_per_s_max": policy.shard_commands_per_s_max,
        "shards_min": policy.shards_min,
        "leader_zone": policy.leader_zone,
        "finalize_upgrade_after_s": policy.finalize_upgrade_after_s,
    })
}
