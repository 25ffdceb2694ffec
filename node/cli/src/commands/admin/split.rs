//! `carillon admin split`: makes two shards of one.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use carillon_client::AdminClient;
use clap::Args;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::NOT_DONE;
use crate::arguments::Output;
use crate::bench::duration::parse_duration;
use crate::output;

/// Between two looks at whether the new shard is there.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub struct SplitArguments {
    /// The shard.
    shard: u32,
    /// The first slot that the new shard gets. Default: the middle.
    #[arg(long)]
    slot: Option<u32>,
    /// How long to wait until the new shard is led; it goes on after it, and the exit code
    /// is 3.
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,
}

/// Starts it, and waits until the new shard has a leader and its slots.
pub async fn run(
    admin: &AdminClient,
    arguments: &SplitArguments,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let shard = arguments.shard;
    let started = Instant::now();
    let split = admin.split_shard(shard, arguments.slot).await;
    let split = split.with_context(|| format!("could not split shard {shard}"))?;
    let done = loop {
        // It is not found until it is in the map.
        if let Ok(shards) = admin.list_shards(Some(split.new_shard_id)).await
            && shards.iter().any(|shard| shard.leader_node != 0)
        {
            break true;
        }
        if started.elapsed() >= arguments.timeout {
            break false;
        }
        sleep(LOOK_INTERVAL).await;
    };
    if output == Output::Json {
        output::json(&json!({
            "shard_id": shard,
            "new_shard_id": split.new_shard_id,
            "slot": split.slot,
            "done": done,
        }))?;
    } else if done {
        output::line(&format!(
            "shard {} has the slots of shard {shard} from {} on",
            split.new_shard_id, split.slot
        ))?;
    } else {
        output::line(&format!(
            "shard {} is not led yet; `carillon admin moves` says what is waited for",
            split.new_shard_id
        ))?;
    }
    Ok(if done {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(NOT_DONE)
    })
}
