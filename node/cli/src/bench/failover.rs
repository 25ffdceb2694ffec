//! How long a cluster needs after it has lost a node: every shard is sent to all the time
//! through the nodes that stay, one of them is killed (or stopped, which is silence), and
//! each shard's first acknowledgement of a send made after that is waited for.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use carillon_client::AdminClient;
use carillon_client::admin_proto::{NodeStatus, ShardStatus};
use carillon_core::slots::Slot;
use clap::Args;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::duration::parse_duration;
use super::fleet::{Clock, Fleet, Listener, Reasons};
use super::meter::{Meter, Nanos, STAMP_BYTES};
use super::nodes::{self, NodeProcess, Signal};
use super::population::direct;
use super::{Targets, say};
use crate::failure::advised;
use crate::output;

/// How often each shard is sent to.
const PROBE_INTERVAL: Duration = Duration::from_millis(10);
/// How long all shards are seen to work before the node goes.
const STEADY: Duration = Duration::from_secs(2);
/// How long that may take to come about.
const STEADY_LIMIT: Duration = Duration::from_secs(15);
/// How long it is waited until every shard is led by the node that is to lead it: nodes that
/// were away get theirs back one after the other.
const SETTLED_LIMIT: Duration = Duration::from_secs(60);
const SETTLED_POLL: Duration = Duration::from_millis(500);
/// Ids that are tried to find a conversation of a shard; one in thousands is its.
const IDS_TRIED_MAX: u32 = 1_000_000;

#[derive(Debug, Args)]
pub struct FailoverArguments {
    /// The node to lose, by its id. Default: the one that leads the most shards.
    #[arg(long)]
    node: Option<u64>,
    /// Stop it (SIGSTOP) instead of killing it: its connections stay and nobody is told.
    /// It continues when the measurement is over.
    #[arg(long)]
    silent: bool,
    /// How long to wait for the last shard.
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    limit: Duration,
}

#[derive(Debug, Serialize)]
pub struct FailoverReport {
    node_id: u64,
    silent: bool,
    /// From the signal until the last shard acknowledged a send made after it.
    all_shards_after_ms: Option<f64>,
    /// Terms that began until then in shards that other nodes led: elections without a reason.
    /// None when the cluster did not say.
    spurious_elections: Option<u64>,
    shards: Vec<ShardFailover>,
    failed: BTreeMap<String, u64>,
}

#[derive(Debug, Serialize)]
struct ShardFailover {
    shard_id: u32,
    leader_before: u64,
    /// None when it did not within the limit.
    acknowledged_after_ms: Option<f64>,
}

/// What the probes of all shards saw.
struct Probes {
    lost_at: AtomicU64,
    seen: Mutex<Seen>,
    changed: Notify,
}

struct Seen {
    /// The first acknowledgement, and the first one of a send after the loss.
    first: Vec<Option<Nanos>>,
    first_after: Vec<Option<Nanos>>,
    failed: Reasons,
}

impl Probes {
    fn new(shards: usize) -> Self {
        Self {
            lost_at: AtomicU64::new(Nanos::MAX),
            seen: Mutex::new(Seen {
                first: vec![None; shards],
                first_after: vec![None; shards],
                failed: Reasons::default(),
            }),
            changed: Notify::new(),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until that is so of what was seen. Cancel-safe.
    async fn until(&self, so: impl Fn(&Seen) -> bool) {
        loop {
            let changed = self.changed.notified();
            if so(&self.seen()) {
                return;
            }
            changed.await;
        }
    }
}

impl Listener for Probes {
    fn sent(&self, shard: usize, sent_at: u64, now: Nanos) {
        let mut seen = self.seen();
        let mut news = false;
        if seen.first[shard].is_none() {
            seen.first[shard] = Some(now);
            news = true;
        }
        let after = sent_at >= self.lost_at.load(Ordering::Relaxed);
        if after && seen.first_after[shard].is_none() {
            seen.first_after[shard] = Some(now);
            news = true;
        }
        if news {
            self.changed.notify_one();
        }
    }

    fn failed(&self, _shard: usize, _sent_at: u64, reason: &str) {
        self.seen().failed.add(reason, 1);
    }

    fn ended(&self, _shard: usize, why: &str, unanswered: u32) {
        self.seen().failed.add(why, u64::from(unanswered.max(1)));
    }
}

/// Lets a stopped node go on, whatever happens here.
struct Continue<'a>(&'a NodeProcess);

impl Drop for Continue<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.signal(Signal::Continue) {
            say(&format!("could not let node {} go on: {error}", self.0.pid));
        }
    }
}

/// Loses a node and measures.
pub async fn run(
    arguments: &FailoverArguments,
    targets: &Targets,
) -> anyhow::Result<FailoverReport> {
    let admin = AdminClient::new(&targets.endpoints)?;
    let shards = settled(&admin).await?;
    let nodes = admin
        .list_nodes()
        .await
        .context("could not list the nodes")?;
    let (lost, others) = choose(arguments.node, nodes, targets)?;
    let probes = Arc::new(Probes::new(shards.len()));
    let clock = Clock::start();
    let users: Vec<String> = (0..shards.len()).map(|n| format!("bench-p{n}")).collect();
    let rooms = shards
        .iter()
        .zip(&users)
        .map(|(shard, user)| room_of(shard, user))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let fleet = Fleet::connect(clock, &others, &users, users.len(), probes.clone())
        .await
        .context("could not connect to the nodes that stay")?;
    let probing = tokio::spawn(probe(fleet, clock, rooms));
    timeout(
        STEADY_LIMIT,
        probes.until(|seen| seen.first.iter().all(Option::is_some)),
    )
    .await
    .context("not every shard acknowledged sends before a node was lost")?;
    tokio::time::sleep(STEADY).await;

    let signal = if arguments.silent {
        Signal::Stop
    } else {
        Signal::Kill
    };
    say(&format!(
        "{} node {} (pid {})",
        if arguments.silent {
            "stopping"
        } else {
            "killing"
        },
        lost.0,
        lost.1.pid
    ));
    let lost_at = clock.now_ns();
    probes.lost_at.store(lost_at, Ordering::Relaxed);
    lost.1.signal(signal).context("could not signal the node")?;
    let _continue = arguments.silent.then(|| Continue(&lost.1));
    let recovered = probes.until(|seen| seen.first_after.iter().all(Option::is_some));
    // The report says which shards did not.
    let _ = timeout(arguments.limit, recovered).await;
    probing.abort();
    // Not fatal: the measurement is made.
    let after = AdminClient::new(&others)?.list_shards(None).await.ok();
    let spurious = after.map(|after| spurious_elections(&shards, &after, lost.0));
    Ok(FailoverReport {
        spurious_elections: spurious,
        ..report(arguments.silent, lost.0, lost_at, &shards, &probes)
    })
}

/// Terms that have begun in shards that a node did not lead.
fn spurious_elections(before: &[ShardStatus], after: &[ShardStatus], lost: u64) -> u64 {
    let term = |shard: &ShardStatus| {
        let terms = shard.replicas.iter().map(|replica| replica.term);
        terms.max().unwrap_or(0)
    };
    let others = before.iter().filter(|shard| shard.leader_node != lost);
    let begun = others.map(|shard| {
        let now = after.iter().find(|now| now.shard_id == shard.shard_id);
        now.map_or(0, |now| term(now).saturating_sub(term(shard)))
    });
    begun.sum()
}

/// The shards, once each is led by the node that is to lead it; as they are when that does not
/// come about, which is said.
async fn settled(admin: &AdminClient) -> anyhow::Result<Vec<ShardStatus>> {
    let deadline = Instant::now() + SETTLED_LIMIT;
    loop {
        let mut shards = admin
            .list_shards(None)
            .await
            .context("could not list the shards")?;
        // The meta group takes no messages.
        shards.retain(|shard| shard.shard_id != 0);
        let elsewhere = |shard: &&ShardStatus| shard.leader_node != shard.preferred_leader_node;
        let elsewhere = shards.iter().filter(elsewhere).count();
        if elsewhere == 0 {
            return Ok(shards);
        }
        if Instant::now() >= deadline {
            say(&format!(
                "{elsewhere} shards are still led by other nodes than they should be"
            ));
            return Ok(shards);
        }
        tokio::time::sleep(SETTLED_POLL).await;
    }
}

/// The node to lose with its process, and where the others are.
fn choose(
    wanted: Option<u64>,
    nodes: Vec<NodeStatus>,
    targets: &Targets,
) -> anyhow::Result<((u64, NodeProcess), Vec<String>)> {
    let up: Vec<NodeStatus> = nodes.into_iter().filter(|node| node.up).collect();
    let lost = match wanted {
        Some(id) => up.iter().find(|node| node.node_id == id),
        None => up.iter().max_by_key(|node| node.leaders),
    };
    let lost = lost.context("the node to lose is not up")?;
    if up.len() < 3 {
        return Err(advised(
            format!(
                "only {} nodes are up; without one more there is no majority",
                up.len()
            ),
            "start the cluster again with all of its nodes",
        ));
    }
    let known = targets.nodes.iter();
    let process = known
        .into_iter()
        .find(|process| process.endpoint == lost.client_address)
        .cloned()
        .or_else(|| nodes::find(std::slice::from_ref(&lost.client_address)).pop());
    let Some(process) = process else {
        return Err(advised(
            format!(
                "found no process that listens at {} on this machine",
                lost.client_address
            ),
            "run it where the nodes are, as the user who runs them, or use --node-pid",
        ));
    };
    let others = up
        .iter()
        .filter(|node| node.node_id != lost.node_id)
        .map(|node| node.client_address.clone())
        .collect();
    Ok(((lost.node_id, process), others))
}

/// A direct conversation of a user that belongs to a shard.
fn room_of(shard: &ShardStatus, user: &str) -> anyhow::Result<Bytes> {
    let slots = shard.slot_first..=shard.slot_last;
    (0..IDS_TRIED_MAX)
        .map(|n| direct(user, &format!("bench-probe-{n}")))
        .find(|id| slots.contains(&u32::from(Slot::of(id).get())))
        .with_context(|| format!("found no conversation of shard {}", shard.shard_id))
}

/// Sends to every shard, over and over; ends by being aborted.
async fn probe(fleet: Arc<Fleet<Probes>>, clock: Clock, rooms: Vec<Bytes>) {
    let run: u64 = rand::random();
    let stamp = Meter::new(run, 0);
    let mut ticks = interval(PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        for (shard, room) in rooms.iter().enumerate() {
            let now = clock.now_ns();
            let content = stamp.content(now, STAMP_BYTES);
            let id = format!("{run:x}-{shard}-{now:x}");
            // With 256 unanswered one of them tells as well as one more would; a stream
            // that is over is reported by its reader.
            let _ = fleet.send(shard, now, room.clone(), id, content);
        }
    }
}

fn report(
    silent: bool,
    node_id: u64,
    lost_at: Nanos,
    shards: &[ShardStatus],
    probes: &Probes,
) -> FailoverReport {
    let seen = probes.seen();
    let ms = |at: Nanos| (at.saturating_sub(lost_at)) as f64 / 1e6;
    let shards: Vec<ShardFailover> = shards
        .iter()
        .zip(&seen.first_after)
        .map(|(shard, first_after)| ShardFailover {
            shard_id: shard.shard_id,
            leader_before: shard.leader_node,
            acknowledged_after_ms: first_after.map(ms),
        })
        .collect();
    let all: Option<Vec<f64>> = shards.iter().map(|s| s.acknowledged_after_ms).collect();
    FailoverReport {
        node_id,
        silent,
        all_shards_after_ms: all.map(|all| all.into_iter().fold(0.0, f64::max)),
        spurious_elections: None,
        failed: seen.failed.clone().into_map(),
        shards,
    }
}

impl FailoverReport {
    /// What its file is called.
    pub fn name(&self) -> &'static str {
        if self.silent {
            "failover-silent"
        } else {
            "failover-killed"
        }
    }

    pub fn show(&self) -> io::Result<()> {
        let how = if self.silent { "silent" } else { "killed" };
        let after = match self.all_shards_after_ms {
            Some(ms) => format!("all shards acknowledged again after {ms:.0} ms"),
            None => "not every shard acknowledged again within the limit".to_owned(),
        };
        output::line(&format!("node {} {how}: {after}", self.node_id))?;
        let elections = match self.spurious_elections {
            Some(0) => "no election in any shard that others led".to_owned(),
            Some(count) => format!("{count} elections in shards that others led"),
            None => "whether others held elections is not known".to_owned(),
        };
        output::line(&elections)?;
        let mut table = output::table(&["shard", "led by", "acknowledged again after ms"]);
        for shard in &self.shards {
            table.add_row([
                shard.shard_id.to_string(),
                format!("node {}", shard.leader_before),
                shard
                    .acknowledged_after_ms
                    .map_or_else(|| "not at all".to_owned(), |ms| format!("{ms:.0}")),
            ]);
        }
        output::show(&table)?;
        for (reason, count) in &self.failed {
            output::line(&format!("{count} × {reason}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_client::admin_proto::ReplicaStatus;

    #[test]
    fn only_shards_of_other_nodes_count() {
        let shard = |shard_id, leader_node, term| ShardStatus {
            shard_id,
            leader_node,
            replicas: vec![
                ReplicaStatus::default(),
                ReplicaStatus {
                    term,
                    ..ReplicaStatus::default()
                },
            ],
            ..ShardStatus::default()
        };
        let before = [shard(1, 1, 5), shard(2, 2, 5), shard(3, 3, 5)];
        let after = [shard(1, 2, 9), shard(2, 2, 5), shard(3, 2, 7)];
        assert_eq!(spurious_elections(&before, &after, 1), 2);
        assert_eq!(spurious_elections(&before, &before, 1), 0);
    }
}
