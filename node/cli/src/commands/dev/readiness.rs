//! Waiting until a cluster that is starting works: every node ready, every shard led.

use std::time::Duration;

use anyhow::Context;
use carillon_client::AdminClient;
use futures_util::future::try_join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::commands::dev::layout::NodePlan;
use crate::commands::dev::progress::Progress;
use crate::failure::advised;

/// How long a cluster may take to come up.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How often it is asked.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How long one answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// The most that is read of an answer, bytes.
const ANSWER_BYTES_MAX: u64 = 16 * 1024;

/// Waits for the whole cluster.
pub async fn wait(
    plans: &[NodePlan],
    admin: &AdminClient,
    progress: &Progress,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_LIMIT;
    try_join_all(plans.iter().map(|plan| node(plan, progress, deadline))).await?;
    shards(admin, progress, deadline).await
}

/// Waits for these nodes.
pub async fn nodes(plans: &[NodePlan], progress: &Progress) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_LIMIT;
    let all = plans.iter().map(|plan| node(plan, progress, deadline));
    try_join_all(all).await.map(drop)
}

async fn node(plan: &NodePlan, progress: &Progress, deadline: Instant) -> anyhow::Result<()> {
    let row = progress.row(&format!("node {}", plan.node_id), "starting");
    let mut told = String::new();
    loop {
        let state = match timeout(ANSWER_LIMIT, readyz(&plan.http_address())).await {
            Ok(Ok(Ready::Yes)) => {
                row.done(&format!("ready at {}", plan.client_address()));
                return Ok(());
            }
            Ok(Ok(Ready::No(why))) => why,
            Ok(Err(_)) => "starting".to_owned(),
            Err(_) => "does not answer".to_owned(),
        };
        if Instant::now() >= deadline {
            return Err(advised(
                format!(
                    "node {} was not ready within {READY_LIMIT:?}: {state}",
                    plan.node_id
                ),
                format!(
                    "see why in its log: tail -n 50 {}",
                    plan.log_path().display()
                ),
            ));
        }
        if state != told {
            row.say(&state);
            told = state;
        }
        sleep(POLL_INTERVAL).await;
    }
}

enum Ready {
    Yes,
    /// With the node's own words.
    No(String),
}

async fn readyz(address: &str) -> anyhow::Result<Ready> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream
        .take(ANSWER_BYTES_MAX)
        .read_to_end(&mut answer)
        .await?;
    parse(&String::from_utf8_lossy(&answer))
}

fn parse(answer: &str) -> anyhow::Result<Ready> {
    let (head, body) = answer.split_once("\r\n\r\n").context("not HTTP")?;
    let status = head.split_whitespace().nth(1).context("no status")?;
    if status == "200" {
        return Ok(Ready::Yes);
    }
    let why = body.lines().next().unwrap_or_default().trim();
    Ok(Ready::No(if why.is_empty() {
        format!("not ready yet (HTTP {status})")
    } else {
        crate::present::printable(why)
    }))
}

async fn shards(admin: &AdminClient, progress: &Progress, deadline: Instant) -> anyhow::Result<()> {
    let row = progress.row("shards", "electing leaders");
    let mut led_before = None;
    loop {
        let state = match admin.get_cluster().await {
            Ok(cluster) if cluster.shards > 0 && cluster.shards_led == cluster.shards => {
                row.done(&format!("all {} have a leader", cluster.shards));
                return Ok(());
            }
            Ok(cluster) => {
                if led_before != Some(cluster.shards_led) {
                    led_before = Some(cluster.shards_led);
                    row.say(&format!(
                        "{} of {} have a leader",
                        cluster.shards_led, cluster.shards
                    ));
                }
                format!(
                    "{} of {} shards have a leader",
                    cluster.shards_led, cluster.shards
                )
            }
            Err(error) => error.to_string(),
        };
        if Instant::now() >= deadline {
            return Err(advised(
                format!("the cluster was not ready within {READY_LIMIT:?}: {state}"),
                "the nodes' logs say why: node-*/node.log in the data directory",
            ));
        }
        sleep(POLL_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_whether_and_why_not() {
        let yes = parse("HTTP/1.1 200 OK\r\nX: y\r\n\r\nok").expect("understood");
        assert!(matches!(yes, Ready::Yes));
        let no = "HTTP/1.1 503 Service Unavailable\r\n\r\n3 of 16 shards have a leader\n";
        match parse(no).expect("understood") {
            Ready::No(why) => assert_eq!(why, "3 of 16 shards have a leader"),
            Ready::Yes => panic!("503 is not ready"),
        }
        assert!(parse("SSH-2.0").is_err());
    }
}
