//! `carillon admin recover-shard`: what is left of a shard that lost its majority, what could be
//! lost, and, once the shard's name is typed back, making it anew from one replica.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::Context;
use carillon_client::AdminClient;
use carillon_client::admin_proto as proto;
use clap::Args;
use serde_json::{Value, json};

use super::membership::standing_name;
use super::role;
use crate::arguments::Output;
use crate::failure::advised;
use crate::output::{self, Paint};
use crate::present;

#[derive(Debug, Args)]
pub struct RecoverArguments {
    /// The shard.
    shard: u32,
    /// Make it anew from the replica that is shown. What only the others had is lost for ever.
    #[arg(long = "unsafe")]
    unsafely: bool,
    /// The shard's name, instead of typing it when asked: 'shard 7'.
    #[arg(long, requires = "unsafely", value_name = "NAME")]
    confirm: Option<String>,
}

/// Shows what is left, and makes the shard anew when that is wanted.
pub async fn run(
    admin: &AdminClient,
    arguments: &RecoverArguments,
    output: Output,
) -> anyhow::Result<()> {
    let shard = arguments.shard;
    let recovery = admin.recovery(shard).await;
    let recovery =
        recovery.with_context(|| format!("could not ask what is left of shard {shard}"))?;
    if !arguments.unsafely {
        return show(shard, &recovery, output);
    }
    if !recovery.hindrances.is_empty() {
        return Err(advised(
            format!("shard {shard} is not made anew"),
            recovery.hindrances.join("; "),
        ));
    }
    let typed = match &arguments.confirm {
        Some(typed) => typed.clone(),
        None => ask(shard, &recovery)?,
    };
    if typed != recovery.confirmation {
        return Err(advised(
            format!("shard {shard} is not made anew: its name was not typed back"),
            format!("the name is {:?}", recovery.confirmation),
        ));
    }
    let answer = admin
        .recover_shard(shard, recovery.survivor_replica_id, &typed)
        .await
        .with_context(|| format!("shard {shard} could not be made anew"))?;
    match output {
        Output::Table => output::line(&format!(
            "shard {shard} is made anew from replica {} on node {}, which is replica {} now; `carillon admin moves` shows when it gets its other replicas",
            recovery.survivor_replica_id, answer.node_id, answer.replica_id
        ))?,
        Output::Json => output::json(&json!({
            "shard_id": shard,
            "node_id": answer.node_id,
            "from_replica_id": recovery.survivor_replica_id,
            "replica_id": answer.replica_id,
        }))?,
    }
    Ok(())
}

/// Shows what is left and could be lost, and lets the name be typed.
fn ask(shard: u32, recovery: &proto::GetRecoveryResponse) -> anyhow::Result<String> {
    if !io::stdin().is_terminal() {
        return Err(advised(
            format!("shard {shard} is not made anew: nobody is there to be asked"),
            format!("add --confirm '{}'", recovery.confirmation),
        ));
    }
    show(shard, recovery, Output::Table)?;
    let mut out = io::stdout().lock();
    write!(
        out,
        "\nThis cannot be undone. Type {:?} to go on: ",
        recovery.confirmation
    )?;
    out.flush()?;
    let mut typed = String::new();
    io::stdin().lock().read_line(&mut typed)?;
    Ok(typed.trim().to_owned())
}

fn show(shard: u32, recovery: &proto::GetRecoveryResponse, output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        return Ok(output::json(&recovery_json(shard, recovery))?);
    }
    let paint = Paint::for_stdout();
    let mut table = output::table(&[
        "replica",
        "node",
        "node is",
        "answers",
        "role",
        "log ends at",
        "committed",
        "applied",
        "flushed",
        "last commands",
    ]);
    for replica in &recovery.replicas {
        let known = |value: String| match replica.answers {
            true => value,
            false => "-".to_owned(),
        };
        let votes = if replica.votes { "" } else { ", no vote yet" };
        table.add_row([
            replica.replica_id.to_string(),
            replica.node_id.to_string(),
            standing_name(replica.standing()).to_owned(),
            if replica.answers { "yes" } else { "no" }.to_owned(),
            known(format!("{}{votes}", role(replica.role()))),
            known(position(replica.last)),
            known(position(replica.committed)),
            known(replica.applied_index.to_string()),
            known(replica.flushed_index.to_string()),
            match replica.last_at_ms {
                0 => "-".to_owned(),
                at => present::moment(at),
            },
        ]);
    }
    output::show(&table)?;
    if recovery.survivor_replica_id != 0 {
        output::line(&format!(
            "\n{} replica {} on node {}: {}",
            paint.bold("from"),
            recovery.survivor_replica_id,
            recovery.survivor_node,
            recovery.why
        ))?;
        if !recovery.losses.is_empty() {
            output::line(&paint.bad("what could be lost"))?;
        }
        for loss in &recovery.losses {
            output::line(&format!("  - {loss}"))?;
        }
    }
    for hindrance in &recovery.hindrances {
        output::line(&format!("{} {hindrance}", paint.warn("not now:")))?;
    }
    if recovery.hindrances.is_empty() {
        output::line(&format!(
            "\n`carillon admin recover-shard {shard} --unsafe` makes it anew"
        ))?;
    }
    Ok(())
}

fn position(position: Option<proto::LogPosition>) -> String {
    match position {
        Some(position) => format!("{} of term {}", position.index, position.term),
        None => "nothing".to_owned(),
    }
}

fn recovery_json(shard: u32, recovery: &proto::GetRecoveryResponse) -> Value {
    let position = |position: Option<proto::LogPosition>| {
        position.map(|position| {
            json!({
                "term": position.term,
                "leader_replica_id": position.leader_replica_id,
                "index": position.index,
            })
        })
    };
    let replicas: Vec<Value> = recovery
        .replicas
        .iter()
        .map(|replica| {
            json!({
                "node_id": replica.node_id,
                "replica_id": replica.replica_id,
                "standing": standing_name(replica.standing()),
                "answers": replica.answers,
                "role": role(replica.role()),
                "votes": replica.votes,
                "last": position(replica.last),
                "committed": position(replica.committed),
                "applied_index": replica.applied_index,
                "flushed_index": replica.flushed_index,
                "last_at_ms": replica.last_at_ms,
            })
        })
        .collect();
    json!({
        "shard_id": shard,
        "replicas": replicas,
        "survivor_replica_id": recovery.survivor_replica_id,
        "survivor_node": recovery.survivor_node,
        "why": recovery.why,
        "losses": recovery.losses,
        "hindrances": recovery.hindrances,
        "confirmation": recovery.confirmation,
    })
}
