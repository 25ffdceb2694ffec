//! `carillon admin`: what operators ask of a cluster.

mod actor;
mod check;
pub(crate) mod membership;
mod merge;
pub(crate) mod parts;
mod policy;
mod recover;
pub(crate) mod roll;
mod split;
mod status;
mod top;
mod warnings;

use std::process::ExitCode;

use anyhow::Context;
use carillon_client::AdminClient;
use carillon_client::admin_proto as proto;
use clap::{Args, Subcommand};
use proto::replica_status::Role;
use serde_json::{Value, json};

use crate::arguments::{Cluster, Output};
use crate::output;
use crate::present;

/// The exit code when what was started is not done within `--timeout`; it goes on.
pub(crate) const NOT_DONE: u8 = 3;

#[derive(Debug, Args)]
pub struct AdminArguments {
    #[command(flatten)]
    who: Who,
    #[command(subcommand)]
    command: AdminCommand,
}

/// Who administers.
#[derive(Debug, Default, Args)]
pub struct Who {
    /// Who asks: recorded with what is changed, and shown by `events`. Default: USER@HOST.
    #[arg(long = "as", value_name = "NAME", global = true)]
    caller: Option<String>,
}

impl Who {
    /// The calls to a cluster, as them.
    pub fn client(&self, cluster: &Cluster) -> anyhow::Result<AdminClient> {
        let name = actor::name(self.caller.as_deref());
        let credentials = cluster.credentials()?;
        Ok(AdminClient::with_credentials(
            &cluster.endpoints,
            &name,
            credentials,
        )?)
    }
}

#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// The cluster on one screen, and what to do about what is wrong.
    Status,
    /// The nodes and how each of them is.
    Nodes,
    /// The shards, their leaders and replicas.
    Shards(ShardsArguments),
    /// Hand the leadership of a shard to another node.
    Transfer(TransferArguments),
    /// Make two shards of one, on the same nodes; nothing is copied.
    Split(split::SplitArguments),
    /// Let a shard take over its neighbour with the next slots.
    Merge(merge::MergeArguments),
    /// Empty a node: of leaders, or of everything.
    Drain(membership::DrainArguments),
    /// Let a node keep what it has and get nothing new.
    Cordon(membership::NodeArguments),
    /// Use a node for everything again: ends a drain, a cordon, a loss.
    Uncordon(membership::NodeArguments),
    /// Say that a node is lost: what it had is made anew on others.
    GiveUp(membership::GiveUpArguments),
    /// Take a node that holds nothing out of the cluster, for ever.
    Forget(membership::NodeArguments),
    /// What a new node must know to join.
    JoinToken(membership::JoinTokenArguments),
    /// When nodes count as down or lost, and how much moves at once; options change it.
    Policy(policy::PolicyArguments),
    /// Replicas on their way, and what is waited for.
    Moves,
    /// What happened to the cluster.
    Events,
    /// Restart the nodes one after the other, without clients noticing.
    Roll(roll::RollArguments),
    /// Take the cluster to its next version, when all nodes support it; there is no way back.
    FinalizeUpgrade,
    /// Whether the cluster is as it should be, down to the replicas' bytes; fails when not.
    Check,
    /// What the nodes do now, again and again.
    Top(top::TopArguments),
    /// What is left of a shard that lost its majority; --unsafe makes it anew from that.
    RecoverShard(recover::RecoverArguments),
    /// Compare the state of a shard's replicas; fails when they differ.
    Checksum(ChecksumArguments),
    /// Flush a shard's state and purge its log.
    Snapshot(SnapshotArguments),
}

#[derive(Debug, Args)]
pub struct ShardsArguments {
    /// Only this one; 0 is the meta group.
    shard: Option<u32>,
    /// Every replica's terms and log positions.
    #[arg(short, long)]
    long: bool,
}

#[derive(Debug, Args)]
pub struct TransferArguments {
    /// The shard.
    shard: u32,
    /// The node that should lead it.
    #[arg(long = "to", value_name = "NODE")]
    node: u64,
}

#[derive(Debug, Args)]
pub struct ChecksumArguments {
    /// The shard. Default: all of them.
    shard: Option<u32>,
}

#[derive(Debug, Args)]
pub struct SnapshotArguments {
    /// The shard.
    shard: u32,
    /// On this node. Default: where it is led.
    #[arg(long)]
    node: Option<u64>,
}

/// Carries out `carillon admin …`.
pub async fn run(
    arguments: AdminArguments,
    cluster: &Cluster,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let AdminArguments { who, command } = arguments;
    let admin = who.client(cluster)?;
    match command {
        AdminCommand::Status => status::run(&admin, output).await?,
        AdminCommand::Nodes => {
            let nodes = admin
                .list_nodes()
                .await
                .context("could not list the nodes")?;
            show_nodes(&nodes, output)?;
        }
        AdminCommand::Shards(arguments) => shards(&admin, &arguments, output).await?,
        AdminCommand::Transfer(TransferArguments { shard, node }) => {
            transfer(&admin, shard, &node.into(), output).await?;
        }
        AdminCommand::Split(arguments) => return split::run(&admin, &arguments, output).await,
        AdminCommand::Merge(arguments) => return merge::run(&admin, &arguments, output).await,
        AdminCommand::Drain(arguments) => {
            let whom = arguments.node.into();
            return membership::drain(&admin, &whom, &arguments.options, output).await;
        }
        AdminCommand::Cordon(arguments) => {
            let standing = proto::Standing::Cordoned;
            membership::set(&admin, &arguments.node.into(), standing, false, output).await?;
        }
        AdminCommand::Uncordon(arguments) => {
            let standing = proto::Standing::Active;
            membership::set(&admin, &arguments.node.into(), standing, false, output).await?;
        }
        AdminCommand::GiveUp(arguments) => {
            let standing = proto::Standing::Lost;
            membership::set(
                &admin,
                &arguments.node.into(),
                standing,
                arguments.force,
                output,
            )
            .await?;
        }
        AdminCommand::Forget(arguments) => {
            membership::forget(&admin, arguments.node, output).await?;
        }
        AdminCommand::JoinToken(arguments) => {
            membership::join_token(&admin, &arguments, output).await?;
        }
        AdminCommand::Policy(arguments) => policy::run(&admin, &arguments, output).await?,
        AdminCommand::Moves => membership::moves(&admin, output).await?,
        AdminCommand::Events => membership::events(&admin, output).await?,
        AdminCommand::Roll(arguments) => roll::run(&admin, &arguments, output).await?,
        AdminCommand::FinalizeUpgrade => finalize_upgrade(&admin, output).await?,
        AdminCommand::Check => return check::run(&admin, output).await,
        AdminCommand::Top(arguments) => top::run(&admin, &arguments, output).await?,
        AdminCommand::RecoverShard(arguments) => recover::run(&admin, &arguments, output).await?,
        AdminCommand::Checksum(arguments) => return checksum(&admin, &arguments, output).await,
        AdminCommand::Snapshot(arguments) => snapshot(&admin, &arguments, output).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn finalize_upgrade(admin: &AdminClient, output: Output) -> anyhow::Result<()> {
    let answer = admin.finalize_upgrade().await;
    let answer = answer.context("the upgrade could not be finalized")?;
    let version = answer.cluster_version;
    match (output, answer.changed) {
        (Output::Json, changed) => output::json(&json!({
            "changed": changed,
            "cluster_version": version,
        }))?,
        (Output::Table, true) => output::line(&format!("the cluster is at version {version}"))?,
        (Output::Table, false) => output::line(&format!(
            "the cluster is at version {version}, and there is no newer one"
        ))?,
    }
    Ok(())
}

fn show_nodes(nodes: &[proto::NodeStatus], output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        return Ok(output::json(&nodes_json(nodes))?);
    }
    let mut table = output::table(&[
        "node",
        "state",
        "client",
        "peer",
        "up for",
        "leads",
        "replicas",
        "sessions",
        "state size",
        "log size",
        "version",
    ]);
    for node in nodes {
        let state = match (node.up, node.draining) {
            (false, _) => "down",
            (true, true) => "stopping",
            (true, false) => "up",
        };
        let state = match node.standing() {
            proto::Standing::Active => state.to_owned(),
            other => format!("{state}, {}", membership::standing_name(other)),
        };
        table.add_row([
            node.node_id.to_string(),
            state,
            present::printable(&node.client_address),
            present::printable(&node.peer_address),
            present::duration(node.uptime_seconds),
            node.leaders.to_string(),
            node.replicas_placed.to_string(),
            node.sessions.to_string(),
            present::bytes(node.state_bytes),
            present::bytes(node.log_bytes),
            present::printable(&node.version),
        ]);
    }
    Ok(output::show(&table)?)
}

fn nodes_json(nodes: &[proto::NodeStatus]) -> Value {
    json!({ "nodes": nodes.iter().map(node_json).collect::<Vec<_>>() })
}

fn node_json(node: &proto::NodeStatus) -> Value {
    json!({
        "node_id": node.node_id,
        "client_address": node.client_address,
        "peer_address": node.peer_address,
        "up": node.up,
        "draining": node.draining,
        "standing": membership::standing_name(node.standing()),
        "zone": node.zone,
        "replicas_placed": node.replicas_placed,
        "version": node.version,
        "cluster_version_min": node.cluster_version_min,
        "cluster_version_max": node.cluster_version_max,
        "uptime_seconds": node.uptime_seconds,
        "replicas": node.replicas,
        "leaders": node.leaders,
        "sessions": node.sessions,
        "state_bytes": node.state_bytes,
        "log_bytes": node.log_bytes,
        "silent_ms": node.silent_ms,
        "capacity_bytes": node.capacity_bytes,
        "disk_bytes": node.disk_bytes,
        "disk_free_bytes": node.disk_free_bytes,
        "disk_reserve_bytes": node.disk_reserve_bytes,
        "disk_short": node.disk_short,
    })
}

async fn shards(
    admin: &AdminClient,
    arguments: &ShardsArguments,
    output: Output,
) -> anyhow::Result<()> {
    let shards = admin
        .list_shards(arguments.shard)
        .await
        .context("could not list the shards")?;
    if output == Output::Json {
        return Ok(output::json(&shards_json(&shards))?);
    }
    let table = if arguments.long {
        replica_table(&shards)
    } else {
        shard_table(&shards)
    };
    Ok(output::show(&table)?)
}

fn shard_table(shards: &[proto::ShardStatus]) -> comfy_table::Table {
    let mut table = output::table(&[
        "shard", "slots", "leader", "replicas", "term", "applied", "lag", "size",
    ]);
    for shard in shards {
        let leader = shard.replicas.iter().find(|r| r.role() == Role::Leader);
        let seen = leader.or_else(|| shard.replicas.iter().max_by_key(|r| r.applied_index));
        let applied = seen.map_or(0, |r| r.applied_index);
        let known = |r: &&proto::ReplicaStatus| r.role() != Role::Unknown;
        let behind = shard.replicas.iter().filter(known);
        let behind = behind.map(|r| r.applied_index).min();
        let nodes: Vec<String> = shard
            .replicas
            .iter()
            .map(|r| match r.role() {
                Role::Unknown => format!("{}(down)", r.node_id),
                _ => r.node_id.to_string(),
            })
            .collect();
        table.add_row([
            shard_name(shard.shard_id),
            slots(shard),
            leader_cell(shard),
            nodes.join(" "),
            seen.map_or(0, |r| r.term).to_string(),
            applied.to_string(),
            applied
                .saturating_sub(behind.unwrap_or(applied))
                .to_string(),
            present::bytes(seen.map_or(0, |r| r.state_bytes)),
        ]);
    }
    table
}

fn replica_table(shards: &[proto::ShardStatus]) -> comfy_table::Table {
    let mut table = output::table(&[
        "shard", "node", "replica", "role", "term", "last log", "applied", "flushed", "purged",
        "size",
    ]);
    for shard in shards {
        for replica in &shard.replicas {
            table.add_row([
                shard_name(shard.shard_id),
                replica.node_id.to_string(),
                replica.replica_id.to_string(),
                role(replica.role()).to_owned(),
                replica.term.to_string(),
                replica.last_log_index.to_string(),
                replica.applied_index.to_string(),
                replica.flushed_index.to_string(),
                replica.purged_index.to_string(),
                present::bytes(replica.state_bytes),
            ]);
        }
    }
    table
}

fn shard_name(shard: u32) -> String {
    match shard {
        0 => "meta".to_owned(),
        id => id.to_string(),
    }
}

fn slots(shard: &proto::ShardStatus) -> String {
    match shard.shard_id {
        0 => "-".to_owned(),
        _ => format!("{}-{}", shard.slot_first, shard.slot_last),
    }
}

/// The leader, and who is to lead when that is another node.
fn leader_cell(shard: &proto::ShardStatus) -> String {
    let leader = leader_name(shard.leader_node);
    match shard.preferred_leader_node {
        0 => leader,
        preferred if preferred == shard.leader_node => leader,
        preferred => format!("{leader} (for {preferred})"),
    }
}

fn leader_name(node: u64) -> String {
    match node {
        0 => "none".to_owned(),
        node => format!("node {node}"),
    }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Learner => "learner",
        Role::Unknown | Role::Unspecified => "unknown",
    }
}

fn shards_json(shards: &[proto::ShardStatus]) -> Value {
    json!({ "shards": shards.iter().map(shard_json).collect::<Vec<_>>() })
}

fn shard_json(shard: &proto::ShardStatus) -> Value {
    let replicas: Vec<Value> = shard
        .replicas
        .iter()
        .map(|replica| {
            json!({
                "node_id": replica.node_id,
                "replica_id": replica.replica_id,
                "role": role(replica.role()),
                "term": replica.term,
                "last_log_index": replica.last_log_index,
                "applied_index": replica.applied_index,
                "flushed_index": replica.flushed_index,
                "purged_index": replica.purged_index,
                "state_bytes": replica.state_bytes,
            })
        })
        .collect();
    json!({
        "shard_id": shard.shard_id,
        "slot_first": shard.slot_first,
        "slot_last": shard.slot_last,
        "leader_node": shard.leader_node,
        "preferred_leader_node": shard.preferred_leader_node,
        "replicas": replicas,
    })
}

/// Hands the leadership of a shard to a node.
pub(crate) async fn transfer(
    admin: &AdminClient,
    shard: u32,
    whom: &membership::Whom,
    output: Output,
) -> anyhow::Result<()> {
    let answer = admin.transfer_leader(shard, whom.node).await;
    let answer = answer.with_context(|| format!("could not hand shard {shard} to {whom}"))?;
    match output {
        Output::Table if answer.leader_node == whom.node => {
            output::line(&format!("shard {} is led by {whom}", shard_name(shard)))?;
        }
        Output::Table => output::line(&format!(
            "shard {} is led by node {}",
            shard_name(shard),
            answer.leader_node
        ))?,
        Output::Json => output::json(&json!({
            "shard_id": shard,
            "leader_node": answer.leader_node,
        }))?,
    }
    Ok(())
}

async fn checksum(
    admin: &AdminClient,
    arguments: &ChecksumArguments,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let shards: Vec<u32> = match arguments.shard {
        Some(shard) => vec![shard],
        None => {
            let all = admin.list_shards(None).await;
            let all = all.context("could not list the shards")?;
            // The meta group (0) has no state in the store to compare.
            all.iter()
                .map(|shard| shard.shard_id)
                .filter(|id| *id != 0)
                .collect()
        }
    };
    let mut table = output::table(&[
        "shard", "index", "node", "checksum", "keys", "size", "result",
    ]);
    let mut list = Vec::new();
    let mut consistent = true;
    for shard in shards {
        let answer = admin
            .checksum_shard(shard)
            .await
            .with_context(|| format!("could not compute the checksum of shard {shard}"))?;
        consistent &= answer.consistent;
        let result = if answer.consistent {
            "equal"
        } else {
            "NOT EQUAL"
        };
        for replica in &answer.replicas {
            table.add_row([
                shard_name(shard),
                answer.log_index.to_string(),
                replica.node_id.to_string(),
                present::printable(&replica.checksum),
                replica.keys.to_string(),
                present::bytes(replica.bytes),
                result.to_owned(),
            ]);
        }
        list.push(checksum_json(shard, &answer));
    }
    match output {
        Output::Table => output::show(&table)?,
        Output::Json => output::json(&json!({ "consistent": consistent, "shards": list }))?,
    }
    Ok(if consistent {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn checksum_json(shard: u32, answer: &proto::ChecksumShardResponse) -> Value {
    let replicas: Vec<Value> = answer
        .replicas
        .iter()
        .map(|replica| {
            json!({
                "node_id": replica.node_id,
                "checksum": replica.checksum,
                "keys": replica.keys,
                "bytes": replica.bytes,
            })
        })
        .collect();
    json!({
        "shard_id": shard,
        "log_index": answer.log_index,
        "consistent": answer.consistent,
        "replicas": replicas,
    })
}

async fn snapshot(
    admin: &AdminClient,
    arguments: &SnapshotArguments,
    output: Output,
) -> anyhow::Result<()> {
    let shard = arguments.shard;
    let answer = admin
        .trigger_snapshot(shard, arguments.node)
        .await
        .with_context(|| format!("could not snapshot shard {shard}"))?;
    match output {
        Output::Table => output::line(&format!(
            "shard {} is durable without its log up to index {}",
            shard_name(shard),
            answer.flushed_index
        ))?,
        Output::Json => output::json(&json!({
            "shard_id": shard,
            "flushed_index": answer.flushed_index,
        }))?,
    }
    Ok(())
}
