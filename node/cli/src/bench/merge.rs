//! What clients see while shards are merged, one pair after the other.

use std::io;
use std::time::Duration;

use anyhow::{Context, bail};
use carillon_client::AdminClient;
use clap::Args;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::duration::parse_duration;
use super::meter::Nanos;
use super::steady::{Steady, SteadyArguments, SteadyReport, seconds};
use super::{Targets, say};
use crate::output;

/// Between two looks at whether a merge runs.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Debug, Args)]
pub struct MergeArguments {
    #[command(flatten)]
    load: SteadyArguments,
    /// Merges, at most: each takes the first shard that has not been merged and its neighbour.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    merges: u32,
    /// How long one may take.
    #[arg(long, default_value = "60s", value_parser = parse_duration)]
    timeout: Duration,
}

#[derive(Debug, Serialize)]
pub struct MergeReport {
    merges: u32,
    /// Merges that were given up.
    given_up: u32,
    /// From the first one until the last one had ended.
    took_s: f64,
    #[serde(flatten)]
    seen: SteadyReport,
}

/// Merges shards and measures.
pub async fn run(arguments: &MergeArguments, targets: &Targets) -> anyhow::Result<MergeReport> {
    let admin = AdminClient::new(&targets.endpoints)?;
    let shards = admin.list_shards(None).await;
    let mut shards = shards.context("could not list the shards")?;
    shards.retain(|shard| shard.shard_id != 0);
    shards.sort_by_key(|shard| shard.slot_first);
    let pairs = shards.chunks_exact(2).take(arguments.merges as usize);
    let pairs: Vec<u32> = pairs.map(|pair| pair[0].shard_id).collect();
    let load = Steady::start(&arguments.load, targets).await?;
    say(&format!("merges {} pairs of shards", pairs.len()));
    let (mut merges, mut given_up) = (0, 0);
    let began: Nanos = load.now_ns();
    for shard in pairs {
        let merge = admin.merge_shards(shard).await;
        let gone = merge.with_context(|| format!("could not merge shard {shard}"))?;
        match ended(&admin, shard, gone.absorbed_shard_id, arguments.timeout).await? {
            true => merges += 1,
            false => given_up += 1,
        }
    }
    let took_s = seconds(load.now_ns() - began);
    Ok(MergeReport {
        merges,
        given_up,
        took_s,
        seen: load.end().await?,
    })
}

/// Waits until the merge has ended; whether one shard is left.
async fn ended(
    admin: &AdminClient,
    shard: u32,
    gone: u32,
    timeout: Duration,
) -> anyhow::Result<bool> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Ok(moves) = admin.list_moves().await
            && moves.merges.iter().all(|merge| merge.shard_id != shard)
        {
            let shards = admin.list_shards(None).await;
            let shards = shards.context("could not list the shards")?;
            return Ok(shards.iter().all(|known| known.shard_id != gone));
        }
        if Instant::now() >= deadline {
            bail!("shard {shard} is not merged after {timeout:?}");
        }
        sleep(LOOK_INTERVAL).await;
    }
}

impl MergeReport {
    pub fn show(&self) -> io::Result<()> {
        output::line(&format!(
            "{} pairs of shards merged in {:.1} s, {} given up, {}",
            self.merges,
            self.took_s,
            self.given_up,
            self.seen.load(),
        ))?;
        self.seen.show()
    }
}
