//! Changes of the spec that people make often. Each is a merge patch, refused by the API server
//! with the rule's words when it breaks one.

use std::process::ExitCode;

use carillon_crds::ImCluster;
use clap::Args;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::connect::{Connection, json as as_json};
use super::wait::{WaitOptions, until_ready};
use crate::arguments::Output;
use crate::failure::advised;
use crate::output;

/// A changed value restarts the nodes one by one.
const RESTARTED: &str = "carillon.dev/restarted-at";

#[derive(Debug, Args)]
pub struct NameArguments {
    /// The ImCluster.
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(Debug, Args)]
pub struct ScaleArguments {
    /// The ImCluster.
    #[arg(value_name = "NAME")]
    name: String,
    /// How many nodes there shall be.
    #[arg(value_name = "NODES")]
    nodes: u32,
    /// Who leaves first when there are fewer, such as chat-1; repeat it or separate by commas.
    #[arg(long, value_name = "MEMBER", value_delimiter = ',')]
    leave: Vec<String>,
    #[command(flatten)]
    wait: WaitOptions,
}

#[derive(Debug, Args)]
pub struct UpgradeArguments {
    /// The ImCluster.
    #[arg(value_name = "NAME")]
    name: String,
    /// The release, such as 0.3.0.
    #[arg(long, value_name = "VERSION")]
    to: String,
    /// Its image, with tag or digest. Default: the operator's image repository and the release.
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    #[command(flatten)]
    wait: WaitOptions,
}

#[derive(Debug, Args)]
pub struct RestartArguments {
    /// The ImCluster.
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    wait: WaitOptions,
}

/// Changes the number of nodes.
pub(super) async fn scale(
    connection: &Connection,
    arguments: &ScaleArguments,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let ScaleArguments { name, nodes, .. } = arguments;
    let spec = scaled(&connection.cluster(name).await?, *nodes, &arguments.leave)?;
    let changed = patch(connection, name, spec).await?;
    let what = format!("{name} is to have {nodes} nodes");
    done(connection, &changed, &what, &arguments.wait, output).await
}

/// Of those that are named only some may be there; a name that is none is a mistake of typing.
fn scaled(cluster: &ImCluster, nodes: u32, leave: &[String]) -> anyhow::Result<Value> {
    if leave.is_empty() {
        return Ok(json!({ "nodes": nodes }));
    }
    let members = cluster.status.iter().flat_map(|status| &status.members);
    let members: Vec<&str> = members.map(|member| member.name.as_str()).collect();
    if let Some(unknown) = leave.iter().find(|one| !members.contains(&one.as_str())) {
        let there = members.join(", ");
        let advice = format!("name some of these: {there}");
        return Err(advised(format!("there is no member {unknown}"), advice));
    }
    Ok(json!({"nodes": nodes, "scaleIn": {"candidates": leave}}))
}

/// Changes the release.
pub(super) async fn upgrade(
    connection: &Connection,
    arguments: &UpgradeArguments,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let UpgradeArguments {
        name, to, image, ..
    } = arguments;
    // An image of the release before is not one of this.
    let spec = json!({"version": to, "image": image});
    let changed = patch(connection, name, spec).await?;
    let what = format!("{name} is to run {to}");
    done(connection, &changed, &what, &arguments.wait, output).await
}

/// Restarts all nodes.
pub(super) async fn restart(
    connection: &Connection,
    arguments: &RestartArguments,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let at = now.unwrap_or_default().as_secs().to_string();
    let name = &arguments.name;
    let spec = json!({"podTemplate": {"annotations": {RESTARTED: at}}});
    let changed = patch(connection, name, spec).await?;
    let what = format!("the nodes of {name} are to be restarted");
    done(connection, &changed, &what, &arguments.wait, output).await
}

/// Stops rolls after the member that is being restarted, or lets them go on.
pub(super) async fn pause(
    connection: &Connection,
    arguments: &NameArguments,
    paused: bool,
    output: Output,
) -> anyhow::Result<()> {
    let name = &arguments.name;
    let spec = json!({"update": {"paused": paused}});
    let changed = patch(connection, name, spec).await?;
    let what = match paused {
        true => format!("no further node of {name} is restarted for a change"),
        false => format!("changes of {name} go on"),
    };
    told(&changed, &what, output)
}

async fn patch(connection: &Connection, name: &str, spec: Value) -> anyhow::Result<ImCluster> {
    let patch = Patch::Merge(json!({ "spec": spec }));
    let parameters = PatchParams::default();
    let changed = connection.clusters().patch(name, &parameters, &patch).await;
    changed.map_err(|error| connection.explained(name, error))
}

async fn done(
    connection: &Connection,
    changed: &ImCluster,
    what: &str,
    wait: &WaitOptions,
    output: Output,
) -> anyhow::Result<ExitCode> {
    if !wait.is_wanted() {
        told(changed, what, output)?;
        return Ok(ExitCode::SUCCESS);
    }
    if output == Output::Table {
        output::line(what)?;
    }
    let name = changed.metadata.name.as_deref().unwrap_or_default();
    until_ready(connection, name, wait.limit(), output).await
}

fn told(changed: &ImCluster, what: &str, output: Output) -> anyhow::Result<()> {
    match output {
        Output::Table => output::line(what)?,
        Output::Json => output::json(&as_json(changed)?)?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(members: &[&str]) -> ImCluster {
        let members = members
            .iter()
            .map(|name| json!({"name": name, "state": "Ready", "updated": true}));
        let object = json!({
            "apiVersion": "carillon.dev/v1alpha1",
            "kind": "ImCluster",
            "metadata": {"name": "chat"},
            "spec": {"version": "0.2.0", "storage": {"size": "10Gi"}},
            "status": {"members": members.collect::<Vec<_>>()},
        });
        serde_json::from_value(object).expect("an ImCluster")
    }

    #[test]
    fn who_leaves_must_be_there() {
        let cluster = cluster(&["chat-0", "chat-1"]);
        let leave = |name: &str| scaled(&cluster, 1, &[name.to_owned()]);
        let spec = leave("chat-1").expect("it is there");
        assert_eq!(
            spec,
            json!({"nodes": 1, "scaleIn": {"candidates": ["chat-1"]}})
        );
        let refused = leave("chat-7").expect_err("it is not");
        assert_eq!(refused.to_string(), "there is no member chat-7");
        let by_number = scaled(&cluster, 5, &[]).expect("a number");
        assert_eq!(by_number, json!({"nodes": 5}), "nobody's choice is touched");
    }
}
