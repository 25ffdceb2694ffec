//! `carillon admin check`: whether the cluster is as it should be, down to the bytes of its
//! replicas. Changes nothing; exits with 1 when something is wrong.

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::Context;
use carillon_client::AdminClient;
use carillon_client::admin_proto as proto;
use carillon_core::slots::SLOTS;
use indicatif::{ProgressBar, ProgressStyle};
use proto::replica_status::Role;
use serde_json::json;

use crate::arguments::Output;
use crate::output::{self, Paint};

/// What was looked at, and what is wrong with it; nothing when it is well.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    what: &'static str,
    wrong: Vec<String>,
}

/// Looks at everything.
pub async fn run(admin: &AdminClient, output: Output) -> anyhow::Result<ExitCode> {
    let cluster = admin.get_cluster().await;
    let cluster = cluster.context("could not ask the cluster for its status")?;
    let nodes = admin
        .list_nodes()
        .await
        .context("could not list the nodes")?;
    let shards = admin.list_shards(None).await;
    let shards = shards.context("could not list the shards")?;
    let mut findings = look(&cluster, &nodes, &shards);
    findings.push(compare(admin, &shards, output).await?);
    let well = findings.iter().all(|finding| finding.wrong.is_empty());
    show(&findings, well, output)?;
    Ok(if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What can be seen without reading any state.
fn look(
    cluster: &proto::GetClusterResponse,
    nodes: &[proto::NodeStatus],
    shards: &[proto::ShardStatus],
) -> Vec<Finding> {
    let name = |shard: u32| match shard {
        0 => "the meta group".to_owned(),
        shard => format!("shard {shard}"),
    };
    let finding = |what, wrong| Finding { what, wrong };
    let placed = || shards.iter().filter(|shard| shard.shard_id != 0);
    let down = nodes.iter().filter(|node| !node.up);
    let leaderless = shards.iter().filter(|shard| shard.leader_node == 0);
    let few = placed().filter_map(|shard| {
        let on: BTreeSet<u64> = shard
            .replicas
            .iter()
            .map(|replica| replica.node_id)
            .collect();
        let wanted = cluster.replication_factor as usize;
        let text = format!(
            "shard {} has replicas on {} of {wanted} nodes",
            shard.shard_id,
            on.len()
        );
        (on.len() < wanted).then_some(text)
    });
    let silent = shards.iter().flat_map(|shard| {
        let silent = shard.replicas.iter();
        let silent = silent.filter(|replica| replica.role() == Role::Unknown);
        silent.map(|replica| format!("{} on node {}", name(shard.shard_id), replica.node_id))
    });
    let mut next = 0;
    let mut gaps = Vec::new();
    let mut by_slot: Vec<&proto::ShardStatus> = placed().collect();
    by_slot.sort_by_key(|shard| shard.slot_first);
    for shard in by_slot {
        if shard.slot_first != next {
            gaps.push(format!(
                "shard {} begins at slot {}, not {next}",
                shard.shard_id, shard.slot_first
            ));
        }
        next = shard.slot_last + 1;
    }
    let slots = u32::from(SLOTS);
    if next != slots {
        gaps.push(format!(
            "the last shard ends before slot {next}, not {slots}"
        ));
    }
    vec![
        finding(
            "every node answers",
            down.map(|node| format!("node {}", node.node_id)).collect(),
        ),
        finding(
            "every shard has a leader",
            leaderless.map(|shard| name(shard.shard_id)).collect(),
        ),
        finding(
            "every shard has its replicas, on different nodes",
            few.collect(),
        ),
        finding("every replica runs", silent.collect()),
        finding("every slot has one shard", gaps),
    ]
}

/// Compares the bytes of all replicas, shard by shard.
async fn compare(
    admin: &AdminClient,
    shards: &[proto::ShardStatus],
    output: Output,
) -> anyhow::Result<Finding> {
    let bar = match output {
        Output::Table => ProgressBar::new(shards.len().saturating_sub(1) as u64),
        Output::Json => ProgressBar::hidden(),
    };
    let style = ProgressStyle::with_template("{bar:32} {pos}/{len} shards compared  {msg}");
    bar.set_style(style.context("a progress bar's template")?);
    let mut wrong = Vec::new();
    // The meta group (0) has no state in the store to compare.
    for shard in shards.iter().filter(|shard| shard.shard_id != 0) {
        bar.set_message(format!("shard {}", shard.shard_id));
        match admin.checksum_shard(shard.shard_id).await {
            Ok(answer) if answer.consistent => {}
            Ok(answer) if answer.replicas.len() < shard.replicas.len() => {
                let (said, all) = (answer.replicas.len(), shard.replicas.len());
                wrong.push(format!(
                    "shard {}: {said} of {all} replicas said what they have",
                    shard.shard_id
                ));
            }
            Ok(_) => wrong.push(format!("shard {}: NOT EQUAL", shard.shard_id)),
            Err(error) => wrong.push(format!("shard {}: {error}", shard.shard_id)),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(Finding {
        what: "all replicas of each shard have the same bytes",
        wrong,
    })
}

fn show(findings: &[Finding], well: bool, output: Output) -> std::io::Result<()> {
    if output == Output::Json {
        let list = findings.iter();
        let list = list.map(|finding| json!({ "check": finding.what, "wrong": finding.wrong }));
        let list: Vec<_> = list.collect();
        return output::json(&json!({ "well": well, "checks": list }));
    }
    let paint = Paint::for_stdout();
    for finding in findings {
        if finding.wrong.is_empty() {
            output::line(&format!("{} {}", paint.good("✓"), finding.what))?;
            continue;
        }
        output::line(&format!("{} {}", paint.bad("✗"), finding.what))?;
        for wrong in &finding.wrong {
            output::line(&format!("    {wrong}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(shard_id: u32, first: u32, last: u32, nodes: &[u64]) -> proto::ShardStatus {
        let replicas = nodes.iter().map(|node| proto::ReplicaStatus {
            node_id: *node,
            role: Role::Follower.into(),
            ..proto::ReplicaStatus::default()
        });
        proto::ShardStatus {
            shard_id,
            slot_first: first,
            slot_last: last,
            leader_node: 1,
            replicas: replicas.collect(),
            ..proto::ShardStatus::default()
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cluster = proto::GetClusterResponse {
            replication_factor: 2,
            ..proto::GetClusterResponse::default()
        };
        let node = |node_id, up| proto::NodeStatus {
            node_id,
            up,
            ..proto::NodeStatus::default()
        };
        let well = [
            shard(0, 0, 0, &[1, 2]),
            shard(1, 0, 9, &[1, 2]),
            shard(2, 10, 4_095, &[2, 1]),
        ];
        let findings = look(&cluster, &[node(1, true), node(2, true)], &well);
        assert!(
            findings.iter().all(|finding| finding.wrong.is_empty()),
            "{findings:?}"
        );

        let mut ill = [
            shard(0, 0, 0, &[1, 2]),
            shard(1, 0, 9, &[1, 1]),
            shard(2, 11, 4_094, &[2, 1]),
        ];
        ill[0].leader_node = 0;
        ill[2].replicas[0].role = Role::Unknown.into();
        let findings = look(&cluster, &[node(1, true), node(2, false)], &ill);
        let wrong: Vec<&[String]> = findings.iter().map(|finding| &*finding.wrong).collect();
        assert_eq!(wrong[0], ["node 2"]);
        assert_eq!(wrong[1], ["the meta group"]);
        assert_eq!(wrong[2], ["shard 1 has replicas on 1 of 2 nodes"]);
        assert_eq!(wrong[3], ["shard 2 on node 2"]);
        let gaps = [
            "shard 2 begins at slot 11, not 10",
            "the last shard ends before slot 4095, not 4096",
        ];
        assert_eq!(wrong[4], gaps);
    }
}
