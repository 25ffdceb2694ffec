//! `carillon admin drain | cordon | uncordon | give-up | forget | join-token | moves | events`: nodes that
//! come and go.

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use carillon_client::AdminClient;
use carillon_client::admin_proto as proto;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use proto::Standing;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::NOT_DONE;
use crate::arguments::Output;
use crate::bench::duration::parse_duration;
use crate::failure::advised;
use crate::output;
use crate::present;

/// Between two looks at a drain.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// What a node is emptied for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Purpose {
    /// It leads nothing, and may stop for a moment.
    Restart,
    /// It holds nothing, and may stop for ever.
    Removal,
}

/// A node that is meant: by its id, or by what whoever typed it calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whom {
    /// Its id.
    pub node: u64,
    /// The member of an ImCluster that it is.
    pub member: Option<String>,
}

impl Whom {
    fn json(&self, mut rest: Value) -> Value {
        rest["node_id"] = json!(self.node);
        if let Some(member) = &self.member {
            rest["member"] = json!(member);
        }
        rest
    }
}

impl From<u64> for Whom {
    fn from(node: u64) -> Self {
        Self { node, member: None }
    }
}

impl fmt::Display for Whom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.member {
            Some(member) => write!(f, "{member} (node {})", self.node),
            None => write!(f, "node {}", self.node),
        }
    }
}

#[derive(Debug, Args)]
pub struct NodeArguments {
    /// The node, by its id.
    pub node: u64,
}

#[derive(Debug, Args)]
pub struct JoinTokenArguments {
    /// Make the old one worthless first. Nodes that have joined stay.
    #[arg(long)]
    rotate: bool,
}

#[derive(Debug, Args)]
pub struct GiveUpArguments {
    /// The node, by its id.
    pub node: u64,
    /// Even when others that were given up are not replaced yet.
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct DrainArguments {
    /// The node, by its id.
    pub node: u64,
    #[command(flatten)]
    pub options: DrainOptions,
}

#[derive(Debug, Args)]
pub struct DrainOptions {
    /// What for. Without it and --cancel it is shown how far a drain is.
    #[arg(long = "for", value_enum)]
    purpose: Option<Purpose>,
    /// Take a drain back: the node is used for everything again.
    #[arg(long, conflicts_with = "purpose")]
    cancel: bool,
    /// Whatever it breaks: shards without a majority while it is away, replicas too few.
    #[arg(long, requires = "purpose")]
    force: bool,
    /// Wait until the node is empty.
    #[arg(long, conflicts_with = "cancel")]
    wait: bool,
    /// How long to wait; the drain goes on after it, and the exit code is 3.
    #[arg(long, requires = "wait", default_value = "1h", value_parser = parse_duration)]
    timeout: Duration,
}

impl DrainOptions {
    /// A drain is asked for; not taken back, and not only looked at.
    pub fn begins(&self) -> bool {
        self.purpose.is_some()
    }
}

/// Empties a node, or takes that back.
pub async fn drain(
    admin: &AdminClient,
    whom: &Whom,
    options: &DrainOptions,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let standing = match options.purpose {
        _ if options.cancel => Some(Standing::Active),
        Some(Purpose::Restart) => Some(Standing::DrainingForRestart),
        Some(Purpose::Removal) => Some(Standing::DrainingForRemoval),
        None => None,
    };
    if let Some(standing) = standing {
        let set = admin.set_standing(whom.node, standing, options.force).await;
        let what = match options.cancel {
            true => "take the drain back of",
            false => "drain",
        };
        set.with_context(|| format!("could not {what} {whom}"))?;
    }
    if standing.is_none() && !options.wait {
        show_drain(admin, whom, output).await?;
        return Ok(ExitCode::SUCCESS);
    }
    if !options.wait {
        show_standing(admin, whom, output).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let done = wait_drained(admin, whom, options.timeout, output).await?;
    show_standing(admin, whom, output).await?;
    Ok(if done {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(NOT_DONE)
    })
}

/// Shows how far a drain is.
async fn show_drain(admin: &AdminClient, whom: &Whom, output: Output) -> anyhow::Result<()> {
    let drain = admin.drain_status(whom.node, Standing::Unspecified).await;
    let drain = drain.with_context(|| format!("could not ask how {whom} is drained"))?;
    if output == Output::Json {
        return Ok(output::json(&whom.json(json!({
            "step": drain.step,
            "percent": drain.percent,
            "started_at_ms": drain.started_at_ms,
            "done": drain.done,
            "leaders_left": drain.leaders_left,
            "sessions_left": drain.sessions_left,
            "replicas_left": drain.replicas_left,
            "bytes_left": drain.bytes_left,
            "waits": drain.waits,
        })))?);
    }
    let since = match drain.started_at_ms {
        0 => String::new(),
        at => format!(" since {}", present::moment(at)),
    };
    output::line(&format!(
        "{whom}: {} %{since}, {}",
        drain.percent,
        left_of(&drain)
    ))?;
    for wait in &drain.waits {
        output::line(&format!("waits: {wait}"))?;
    }
    Ok(())
}

/// Waits until a node is empty; false when it takes too long.
async fn wait_drained(
    admin: &AdminClient,
    whom: &Whom,
    limit: Duration,
    output: Output,
) -> anyhow::Result<bool> {
    let deadline = Instant::now() + limit;
    let bar = match output {
        Output::Table => ProgressBar::new(100),
        Output::Json => ProgressBar::hidden(),
    };
    let style = ProgressStyle::with_template("{bar:32} {pos:>3} %  {msg}");
    bar.set_style(style.context("a progress bar's template")?);
    loop {
        let drain = admin.drain_status(whom.node, Standing::Unspecified).await;
        let drain = drain.with_context(|| format!("could not ask how {whom} is drained"))?;
        bar.set_position(u64::from(drain.percent));
        if drain.done || Instant::now() >= deadline {
            bar.finish_and_clear();
            return Ok(drain.done);
        }
        let waits = drain.waits.iter().take(1);
        let waits = waits.map(|wait| format!("; waits: {wait}"));
        let waits: String = waits.collect();
        bar.set_message(format!("{}{waits}", left_of(&drain)));
        sleep(LOOK_INTERVAL).await;
    }
}

/// Where a drain is, and what is left.
fn left_of(drain: &proto::GetDrainResponse) -> String {
    let (leaders, streams) = (drain.leaders_left, drain.sessions_left);
    let (replicas, bytes) = (drain.replicas_left, present::bytes(drain.bytes_left));
    format!(
        "{}: {leaders} leaders, {streams} streams, {replicas} replicas ({bytes}) left",
        drain.step
    )
}

async fn status(admin: &AdminClient, node: u64) -> anyhow::Result<proto::NodeStatus> {
    let nodes = admin.list_nodes().await;
    let nodes = nodes.context("could not list the nodes")?;
    let found = nodes.into_iter().find(|status| status.node_id == node);
    found.ok_or_else(|| {
        advised(
            format!("the cluster has no node {node}"),
            "carillon admin nodes lists them",
        )
    })
}

/// Says what a node may be used for, and shows it.
pub async fn set(
    admin: &AdminClient,
    whom: &Whom,
    standing: Standing,
    forced: bool,
    output: Output,
) -> anyhow::Result<()> {
    let set = admin.set_standing(whom.node, standing, forced).await;
    set.with_context(|| format!("{whom} could not be made {}", standing_name(standing)))?;
    show_standing(admin, whom, output).await
}

async fn show_standing(admin: &AdminClient, whom: &Whom, output: Output) -> anyhow::Result<()> {
    let status = status(admin, whom.node).await?;
    match output {
        Output::Table => output::line(&format!(
            "{whom} is {}: {} replicas, leads {}",
            standing_name(status.standing()),
            status.replicas_placed,
            status.leaders
        ))?,
        Output::Json => output::json(&whom.json(json!({
            "standing": standing_name(status.standing()),
            "replicas": status.replicas_placed,
            "leaders": status.leaders,
        })))?,
    }
    Ok(())
}

/// What people read for a standing.
pub fn standing_name(standing: Standing) -> &'static str {
    match standing {
        Standing::Unspecified => "unknown",
        Standing::Active => "active",
        Standing::Cordoned => "cordoned",
        Standing::DrainingForRestart => "draining for restart",
        Standing::DrainingForRemoval => "draining for removal",
        Standing::Lost => "lost",
    }
}

/// Takes a node out of the cluster.
pub async fn forget(admin: &AdminClient, node: u64, output: Output) -> anyhow::Result<()> {
    let changed = admin.forget_node(node).await;
    let changed = changed.with_context(|| format!("could not forget node {node}"))?;
    match output {
        Output::Table if changed => output::line(&format!("node {node} is forgotten"))?,
        Output::Table => output::line(&format!("node {node} was forgotten before"))?,
        Output::Json => output::json(&json!({ "node_id": node, "changed": changed }))?,
    }
    Ok(())
}

/// Shows what a new node must know.
pub async fn join_token(
    admin: &AdminClient,
    arguments: &JoinTokenArguments,
    output: Output,
) -> anyhow::Result<()> {
    let token = match arguments.rotate {
        true => admin.rotate_join_token().await,
        false => admin.join_token().await,
    };
    let token = token.context("could not get the join token")?;
    match output {
        Output::Table => output::line(&token)?,
        Output::Json => output::json(&json!({ "join_token": token }))?,
    }
    Ok(())
}

/// Shows replicas on their way.
pub async fn moves(admin: &AdminClient, output: Output) -> anyhow::Result<()> {
    let answer = admin.list_moves().await;
    let answer = answer.context("could not list the moves")?;
    if output == Output::Json {
        return Ok(output::json(&moves_json(&answer))?);
    }
    for split in &answer.splits {
        output::line(&format!(
            "shard {} is being split at slot {}, into shard {} too ({}), since {}",
            split.shard_id,
            split.slot,
            split.new_shard_id,
            split.reason,
            present::moment(split.started_at_ms)
        ))?;
    }
    for merge in &answer.merges {
        output::line(&format!(
            "{} ({}), since {}",
            merge_line(merge),
            merge.reason,
            present::moment(merge.started_at_ms)
        ))?;
    }
    if answer.moves.is_empty() {
        output::line("no replica is on its way")?;
    } else {
        let columns = [
            "move", "shard", "from", "to", "step", "sent", "why", "since",
        ];
        let mut table = output::table(&columns);
        let node = |node: u64| match node {
            0 => "-".to_owned(),
            node => format!("node {node}"),
        };
        for running in &answer.moves {
            table.add_row([
                running.move_id.to_string(),
                running.shard_id.to_string(),
                node(running.from_node),
                node(running.to_node),
                running.step.clone(),
                sent(running),
                running.reason.clone(),
                present::moment(running.started_at_ms),
            ]);
        }
        output::show(&table)?;
    }
    for wait in &answer.waits {
        output::line(&format!("waits: {wait}"))?;
    }
    Ok(())
}

/// What moves, and what is waited for.
pub fn moves_json(answer: &proto::ListMovesResponse) -> Value {
    let moves: Vec<Value> = answer.moves.iter().map(move_json).collect();
    let splits: Vec<Value> = answer.splits.iter().map(split_json).collect();
    let merges: Vec<Value> = answer.merges.iter().map(merge_json).collect();
    json!({ "moves": moves, "splits": splits, "merges": merges, "waits": answer.waits })
}

fn split_json(split: &proto::Split) -> Value {
    json!({
        "shard_id": split.shard_id,
        "new_shard_id": split.new_shard_id,
        "slot": split.slot,
        "reason": split.reason,
        "started_at_ms": split.started_at_ms,
    })
}

/// What a merge does now.
pub fn merge_line(merge: &proto::Merge) -> String {
    format!(
        "shard {} takes over shard {}, {}",
        merge.shard_id, merge.absorbed_shard_id, merge.step
    )
}

fn merge_json(merge: &proto::Merge) -> Value {
    json!({
        "merge_id": merge.merge_id,
        "shard_id": merge.shard_id,
        "absorbed_shard_id": merge.absorbed_shard_id,
        "step": merge.step,
        "reason": merge.reason,
        "started_at_ms": merge.started_at_ms,
    })
}

/// How much of the snapshot is sent, how fast, and how long the rest takes at that.
pub fn sent(running: &proto::Move) -> String {
    let (sent, total) = (running.snapshot_bytes_sent, running.snapshot_bytes_total);
    if total == 0 {
        return "-".to_owned();
    }
    let rate = running.snapshot_bytes_per_s;
    let left = match rate {
        0 => String::new(),
        rate => format!(
            ", {} left",
            present::duration(total.saturating_sub(sent) / rate)
        ),
    };
    let percent = sent.saturating_mul(100) / total;
    format!(
        "{percent} % of {}, {}/s{left}",
        present::bytes(total),
        present::bytes(rate)
    )
}

pub fn move_json(running: &proto::Move) -> Value {
    json!({
        "move_id": running.move_id,
        "shard_id": running.shard_id,
        "from_node": running.from_node,
        "to_node": running.to_node,
        "step": running.step,
        "reason": running.reason,
        "started_at_ms": running.started_at_ms,
        "snapshot_bytes_sent": running.snapshot_bytes_sent,
        "snapshot_bytes_total": running.snapshot_bytes_total,
        "snapshot_bytes_per_s": running.snapshot_bytes_per_s,
    })
}

/// Shows what happened.
pub async fn events(admin: &AdminClient, output: Output) -> anyhow::Result<()> {
    let events = admin.list_events().await;
    let events = events.context("could not list the events")?;
    if output == Output::Json {
        return Ok(output::json(&events_json(&events))?);
    }
    let mut table = output::table(&["when", "who", "what"]);
    for event in &events {
        table.add_row([
            present::moment(event.at_ms),
            present::printable(&event.by),
            present::printable(&event.text),
        ]);
    }
    Ok(output::show(&table)?)
}

/// What happened.
pub fn events_json(events: &[proto::Event]) -> Value {
    let list = events.iter();
    let list =
        list.map(|event| json!({ "at_ms": event.at_ms, "by": event.by, "text": event.text }));
    json!({ "events": list.collect::<Vec<_>>() })
}
