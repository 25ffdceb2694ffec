//! What the cluster itself is asked for, by members' names: drains, cordons, leaders; and all of
//! `carillon admin`.
//!
//! The operator drains and restarts by its own plan. It ends a drain that it did not begin, within
//! half a minute; so one is only begun while it holds still. A cordon it leaves alone, until it
//! drains and restarts the member itself.

use std::process::ExitCode;

use carillon_client::admin_proto::Standing;
use carillon_crds::ImCluster;
use clap::Args;

use super::access::Reached;
use super::connect::Connection;
use super::pods::node_of;
use crate::arguments::{Cluster, Output};
use crate::commands::admin::membership::{DrainOptions, Whom};
use crate::commands::admin::{self, AdminArguments, Who, membership};
use crate::failure::advised;
use crate::output;

#[derive(Debug, Args)]
pub struct ClusterAdminArguments {
    /// The ImCluster.
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    admin: AdminArguments,
}

#[derive(Debug, Args)]
pub struct MemberArguments {
    /// The ImCluster.
    #[arg(value_name = "NAME")]
    name: String,
    /// The member, such as chat-1.
    #[arg(value_name = "MEMBER")]
    member: String,
    #[command(flatten)]
    who: Who,
}

#[derive(Debug, Args)]
pub struct MemberDrainArguments {
    #[command(flatten)]
    member: MemberArguments,
    #[command(flatten)]
    options: DrainOptions,
}

#[derive(Debug, Args)]
pub struct PromoteArguments {
    /// The ImCluster.
    #[arg(value_name = "NAME")]
    name: String,
    /// The shard; 0 is the meta group.
    #[arg(value_name = "SHARD")]
    shard: u32,
    /// The member that should lead it, such as chat-1.
    #[arg(value_name = "MEMBER")]
    member: String,
    #[command(flatten)]
    who: Who,
}

/// Carries out `carillon kubernetes admin NAME …`.
pub(super) async fn admin(
    connection: &Connection,
    arguments: ClusterAdminArguments,
    given: &Cluster,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let reached = Reached::admin(connection, &arguments.name, given).await?;
    let done = admin::run(arguments.admin, &reached.cluster, output).await;
    done.map_err(|error| reached.explained(error))
}

/// Empties a member, or takes that back, or shows how far it is.
pub(super) async fn drain(
    connection: &Connection,
    arguments: &MemberDrainArguments,
    given: &Cluster,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let MemberDrainArguments { member, options } = arguments;
    let reached = Reached::admin(connection, &member.name, given).await?;
    let whom = whom(&reached.seen, &member.member)?;
    if options.begins() {
        holds_still(&reached.seen, &member.member)?;
    }
    let client = member.who.client(&reached.cluster)?;
    let done = membership::drain(&client, &whom, options, output).await;
    done.map_err(|error| reached.explained(error))
}

/// Lets a member get nothing new, or uses it for everything again.
pub(super) async fn cordon(
    connection: &Connection,
    arguments: &MemberArguments,
    cordoned: bool,
    given: &Cluster,
    output: Output,
) -> anyhow::Result<()> {
    let reached = Reached::admin(connection, &arguments.name, given).await?;
    let whom = whom(&reached.seen, &arguments.member)?;
    let standing = match cordoned {
        true => Standing::Cordoned,
        false => Standing::Active,
    };
    let client = arguments.who.client(&reached.cluster)?;
    let done = membership::set(&client, &whom, standing, false, output).await;
    done.map_err(|error| reached.explained(error))?;
    if cordoned && output == Output::Table {
        let MemberArguments { name, member, .. } = arguments;
        output::line(&format!(
            "until `kubectl carillon uncordon {name} {member}`, or the operator restarts it for a \
             change"
        ))?;
    }
    Ok(())
}

/// Hands the leadership of a shard to a member.
pub(super) async fn promote(
    connection: &Connection,
    arguments: &PromoteArguments,
    given: &Cluster,
    output: Output,
) -> anyhow::Result<()> {
    let reached = Reached::admin(connection, &arguments.name, given).await?;
    let whom = whom(&reached.seen, &arguments.member)?;
    let client = arguments.who.client(&reached.cluster)?;
    let done = admin::transfer(&client, arguments.shard, &whom, output).await;
    done.map_err(|error| reached.explained(error))
}

fn whom(cluster: &ImCluster, member: &str) -> anyhow::Result<Whom> {
    Ok(Whom {
        node: node_of(cluster, member)?,
        member: Some(member.to_owned()),
    })
}

/// A drain stays only while the operator changes nothing.
fn holds_still(cluster: &ImCluster, member: &str) -> anyhow::Result<()> {
    let name = cluster.metadata.name.as_deref().unwrap_or_default();
    let status = cluster.status.as_ref();
    let observed = status.and_then(|status| status.observed_generation);
    if cluster.spec.paused && observed == cluster.metadata.generation {
        return Ok(());
    }
    if cluster.spec.paused {
        return Err(advised(
            "the operator has not seen yet that spec.paused is true",
            "try again in a moment; kubectl carillon status shows when it has",
        ));
    }
    Err(advised(
        format!("the operator would end the drain of {member}: the ImCluster does not ask for it"),
        format!(
            "to move its Pod: kubectl delete pod {member}, or kubectl drain of its machine; to \
             remove it: kubectl carillon scale {name} NODES --leave {member}; to drain by hand, \
             tell the operator to hold still first: kubectl patch imc {name} --type merge -p \
             '{{\"spec\":{{\"paused\":true}}}}', and false afterwards"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cluster(paused: bool, observed: i64) -> ImCluster {
        serde_json::from_value(json!({
            "apiVersion": "carillon.dev/v1alpha1",
            "kind": "ImCluster",
            "metadata": {"name": "chat", "generation": 2},
            "spec": {"version": "0.2.0", "storage": {"size": "10Gi"}, "paused": paused},
            "status": {"observedGeneration": observed},
        }))
        .expect("an ImCluster")
    }

    #[test]
    fn a_drain_waits_for_an_operator_that_holds_still() {
        let refused = |paused, observed| {
            let refused = holds_still(&cluster(paused, observed), "chat-1");
            refused.expect_err("the operator acts").to_string()
        };
        assert!(refused(false, 2).contains("would end the drain of chat-1"));
        assert!(refused(true, 1).contains("has not seen yet"));
        assert!(holds_still(&cluster(true, 2), "chat-1").is_ok());
    }
}
