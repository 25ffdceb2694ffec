//! Waits until all is as the spec wants it, and tells what is being done, each step once.

use std::process::ExitCode;
use std::time::Duration;

use carillon_crds::ImCluster;
use clap::Args;
use futures_util::TryStreamExt as _;
use kube::runtime::watcher;
use serde_json::json;

use super::connect::{Connection, json as as_json};
use crate::arguments::Output;
use crate::commands::admin::NOT_DONE;
use crate::output;
use crate::present::duration;

#[derive(Debug, Args)]
pub struct WaitArguments {
    /// The ImCluster.
    #[arg(value_name = "NAME")]
    name: String,
    /// How long, in seconds; after it the exit code is 3.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    timeout: u64,
}

/// For what takes a while.
#[derive(Debug, Args)]
pub struct WaitOptions {
    /// Wait until it is done, and show what is being done until then.
    #[arg(long)]
    wait: bool,
    /// How long, in seconds; after it the exit code is 3, and it goes on.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 3600,
        requires = "wait"
    )]
    timeout: u64,
}

impl WaitOptions {
    pub(super) fn is_wanted(&self) -> bool {
        self.wait
    }

    pub(super) fn limit(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

/// Carries out `carillon kubernetes wait`.
pub(super) async fn run(
    connection: &Connection,
    arguments: &WaitArguments,
    output: Output,
) -> anyhow::Result<ExitCode> {
    // What is not there is not waited for.
    connection.cluster(&arguments.name).await?;
    let limit = Duration::from_secs(arguments.timeout);
    until_ready(connection, &arguments.name, limit, output).await
}

/// Waits until it is Ready for the spec that it has.
pub(super) async fn until_ready(
    connection: &Connection,
    name: &str,
    limit: Duration,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let mut seen = std::pin::pin!(watcher::watch_object(connection.clusters(), name));
    let mut said = String::new();
    let ready = async {
        while let Some(cluster) = seen.try_next().await? {
            let Some(cluster) = cluster else {
                anyhow::bail!("imcluster {name} was deleted");
            };
            if is_ready(&cluster) {
                return Ok(cluster);
            }
            let now = what(&cluster);
            if now != said && output == Output::Table {
                output::line(&now)?;
            }
            if now != said && output == Output::Json {
                output::json_line(&json!({ "waits": now }))?;
            }
            said = now;
        }
        anyhow::bail!("the API server ended the watch of imcluster {name}")
    };
    let Ok(ready) = tokio::time::timeout(limit, ready).await else {
        if output == Output::Table {
            output::line(&format!(
                "not done within {}; it goes on",
                duration(limit.as_secs())
            ))?;
        }
        return Ok(ExitCode::from(NOT_DONE));
    };
    let ready = ready?;
    match output {
        Output::Table => output::line(&format!("{name} is as its spec wants it"))?,
        Output::Json => output::json_line(&as_json(&ready)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The operator says of this spec, not of an older one, that all is as it wants it.
pub(super) fn is_ready(cluster: &ImCluster) -> bool {
    let mut conditions = cluster.status.iter().flat_map(|status| &status.conditions);
    let ready = conditions.find(|one| one.type_ == "Ready");
    ready.is_some_and(|one| {
        one.status == "True" && one.observed_generation == cluster.metadata.generation
    })
}

/// What is being done, or why nothing is.
fn what(cluster: &ImCluster) -> String {
    let Some(status) = &cluster.status else {
        return "waits for the operator".to_owned();
    };
    if status.observed_generation != cluster.metadata.generation {
        return "waits for the operator to see the change".to_owned();
    }
    if let Some(operation) = &status.operation {
        return operation.summary.clone();
    }
    let ready = status.conditions.iter().find(|one| one.type_ == "Ready");
    ready.map_or_else(
        || "waits for the operator".to_owned(),
        |ready| format!("{}: {}", ready.reason, ready.message),
    )
}
