//! What clients see while shards are split, one after the other.

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

/// Between two looks at whether a new shard is led.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Debug, Args)]
pub struct SplitArguments {
    #[command(flatten)]
    load: SteadyArguments,
    /// Shards that are split, at most; those with the smallest numbers.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    splits: u32,
    /// How long one may take.
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,
}

#[derive(Debug, Serialize)]
pub struct SplitReport {
    splits: u32,
    /// From the first one until the last new shard was in the map.
    took_s: f64,
    #[serde(flatten)]
    seen: SteadyReport,
}

/// Splits shards and measures.
pub async fn run(arguments: &SplitArguments, targets: &Targets) -> anyhow::Result<SplitReport> {
    let admin = AdminClient::new(&targets.endpoints)?;
    let shards = admin.list_shards(None).await;
    let shards = shards.context("could not list the shards")?;
    let wide = |shard: &u32| {
        let known = shards.iter().find(|known| known.shard_id == *shard);
        known.is_some_and(|known| known.slot_first < known.slot_last)
    };
    let ids = shards.iter().map(|shard| shard.shard_id);
    let ids: Vec<u32> = ids.filter(|shard| *shard != 0).filter(wide).collect();
    let ids = &ids[..ids.len().min(arguments.splits as usize)];
    let load = Steady::start(&arguments.load, targets).await?;
    say(&format!("splits {} shards", ids.len()));
    let began: Nanos = load.now_ns();
    for shard in ids {
        let split = admin.split_shard(*shard, None).await;
        let new = split.with_context(|| format!("could not split shard {shard}"))?;
        let deadline = Instant::now() + arguments.timeout;
        loop {
            // It is not found until it is in the map.
            if let Ok(found) = admin.list_shards(Some(new.new_shard_id)).await
                && found.iter().any(|found| found.leader_node != 0)
            {
                break;
            }
            if Instant::now() >= deadline {
                bail!("shard {shard} is not split after {:?}", arguments.timeout);
            }
            sleep(LOOK_INTERVAL).await;
        }
    }
    let took_s = seconds(load.now_ns() - began);
    Ok(SplitReport {
        splits: ids.len() as u32,
        took_s,
        seen: load.end().await?,
    })
}

impl SplitReport {
    pub fn show(&self) -> io::Result<()> {
        output::line(&format!(
            "{} shards split in {:.1} s, {}",
            self.splits,
            self.took_s,
            self.seen.load(),
        ))?;
        self.seen.show()
    }
}
