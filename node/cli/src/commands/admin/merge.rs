//! `carillon admin merge`: makes one shard of two.

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

/// Between two looks at whether the merge runs.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub struct MergeArguments {
    /// The shard that stays; it takes over the one with the next slots. To cancel, either.
    shard: u32,
    /// Give up a merge of the shard that runs.
    #[arg(long)]
    cancel: bool,
    /// How long to wait until it has ended; it goes on after it, and the exit code is 3.
    #[arg(long, default_value = "5m", value_parser = parse_duration)]
    timeout: Duration,
}

/// How a merge has ended, or that it has not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    Merged,
    Cancelled,
    NotYet,
}

/// Starts or cancels it, and waits until it has ended.
pub async fn run(
    admin: &AdminClient,
    arguments: &MergeArguments,
    output: Output,
) -> anyhow::Result<ExitCode> {
    if arguments.cancel {
        return cancel(admin, arguments.shard, output).await;
    }
    let shard = arguments.shard;
    let merge = admin.merge_shards(shard).await;
    let merge = merge.with_context(|| format!("could not merge shard {shard}"))?;
    let gone = merge.absorbed_shard_id;
    let ended = wait(admin, shard, gone, arguments.timeout).await?;
    if output == Output::Json {
        output::json(&json!({
            "shard_id": shard,
            "absorbed_shard_id": gone,
            "done": ended == Ended::Merged,
            "cancelled": ended == Ended::Cancelled,
        }))?;
    } else {
        output::line(&match ended {
            Ended::Merged => format!("shard {shard} has the slots of shard {gone} too"),
            Ended::Cancelled => "the merge was given up, both shards are as before; \
                                 `carillon admin moves` and `events` say why"
                .to_owned(),
            Ended::NotYet => format!(
                "shard {shard} does not have shard {gone} yet; `carillon admin moves` says what is waited for"
            ),
        })?;
    }
    Ok(if ended == Ended::Merged {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(NOT_DONE)
    })
}

async fn wait(
    admin: &AdminClient,
    shard: u32,
    gone: u32,
    timeout: Duration,
) -> anyhow::Result<Ended> {
    let started = Instant::now();
    loop {
        // What answers may know of the merge a moment later than who started it: it has ended
        // when it does not run and the map says how.
        let shards = admin.list_shards(None).await;
        let moves = admin.list_moves().await;
        if let (Ok(shards), Ok(moves)) = (shards, moves) {
            if shards.iter().all(|known| known.shard_id != gone) {
                return Ok(Ended::Merged);
            }
            if moves.merges.iter().all(|merge| merge.shard_id != shard) {
                return Ok(Ended::Cancelled);
            }
        }
        if started.elapsed() >= timeout {
            return Ok(Ended::NotYet);
        }
        sleep(LOOK_INTERVAL).await;
    }
}

async fn cancel(admin: &AdminClient, shard: u32, output: Output) -> anyhow::Result<ExitCode> {
    let cancelled = admin.cancel_merge(shard).await;
    let cancelled = cancelled.with_context(|| format!("could not cancel shard {shard}'s merge"))?;
    let changed = cancelled.changed;
    if output == Output::Json {
        output::json(&json!({ "shard_id": shard, "changed": changed }))?;
    } else if changed {
        output::line(&format!("the merge of shard {shard} is given up"))?;
    } else {
        output::line(&format!("no merge of shard {shard} runs"))?;
    }
    Ok(ExitCode::SUCCESS)
}
