//! Moving replicas: a cluster is filled, one node is emptied and gets its share again, and what
//! clients see meanwhile.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use carillon_client::{AdminClient, Client, ConversationId, admin_proto as proto, text};
use clap::Args;
use indicatif::ProgressBar;
use rand::{RngCore as _, SeedableRng, rngs::StdRng};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::duration::parse_duration;
use super::meter::Nanos;
use super::steady::{Steady, SteadyArguments, SteadyReport, seconds};
use super::{Targets, say};
use crate::output;

/// Between two looks at how far the moves are.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Looks in a row that find nothing on its way until a node counts as done.
const QUIET_LOOKS: u32 = 20;
/// Bytes of a message that fills.
const FILLER_BYTES: usize = 50_000;
/// What it is made of.
const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/// Conversations that are filled, so that all shards get some.
const FILLED: usize = 256;
/// Messages that fill, in flight at once.
const FILLERS_IN_FLIGHT: usize = 32;

#[derive(Debug, Args)]
pub struct MovesArguments {
    #[command(flatten)]
    load: SteadyArguments,
    /// How much is stored before anything moves, GiB; each replica has it.
    #[arg(long, default_value_t = 1.0)]
    gib: f64,
    /// The node that is emptied and filled again; there must be more nodes than replicas.
    #[arg(long, default_value_t = 4)]
    node: u64,
    /// How long each of the two may take.
    #[arg(long, default_value = "10m", value_parser = parse_duration)]
    timeout: Duration,
}

#[derive(Debug, Serialize)]
pub struct MovesReport {
    stored_bytes: u64,
    emptied: Phase,
    filled: Phase,
}

/// One direction.
#[derive(Debug, Serialize)]
struct Phase {
    replicas: u32,
    /// What the node has of it.
    bytes: u64,
    took_s: f64,
    bytes_per_s: f64,
    #[serde(flatten)]
    seen: SteadyReport,
}

/// Fills the cluster, moves, and measures.
pub async fn run(arguments: &MovesArguments, targets: &Targets) -> anyhow::Result<MovesReport> {
    let admin = AdminClient::new(&targets.endpoints)?;
    let before = node(&admin, arguments.node).await?;
    if before.replicas_placed == 0 {
        bail!("node {} has no replicas", arguments.node);
    }
    let bytes = (arguments.gib * f64::from(1 << 30)) as u64;
    let stored_bytes = fill(bytes, targets).await?;
    settle(&admin, arguments).await?;
    let had = node(&admin, arguments.node).await?;
    let emptied = phase(
        arguments,
        targets,
        &admin,
        proto::Standing::DrainingForRemoval,
    )
    .await?;
    let filled = phase(arguments, targets, &admin, proto::Standing::Active).await?;
    Ok(MovesReport {
        stored_bytes,
        emptied: emptied.of(&had),
        filled: filled.of(&node(&admin, arguments.node).await?),
    })
}

async fn node(admin: &AdminClient, id: u64) -> anyhow::Result<proto::NodeStatus> {
    let nodes = admin.list_nodes().await;
    let nodes = nodes.context("could not list the nodes")?;
    let node = nodes.into_iter().find(|node| node.node_id == id);
    node.with_context(|| {
        format!("there is no node {id}; start the cluster with `carillon dev --nodes 4`")
    })
}

/// Stores so many bytes of text that no compression makes less of, for users who are not there.
async fn fill(bytes: u64, targets: &Targets) -> anyhow::Result<u64> {
    let user = format!("bench-filler-{:x}", rand::random::<u32>());
    let client = Client::builder(targets.endpoints.iter().cloned())
        .user(user.clone())
        .device("bench")
        .connect()
        .await
        .context("could not connect who fills")?;
    let client = Arc::new(client);
    let rooms = (0..FILLED).map(|n| ConversationId::direct(&user, &format!("{user}-away-{n}")));
    let rooms: Vec<ConversationId> = rooms.collect();
    let mut rng = StdRng::from_os_rng();
    let mut filler = vec![0; FILLER_BYTES];
    say(&format!("storing {} MiB", bytes >> 20));
    let bar = ProgressBar::new(bytes);
    let (mut sends, mut sent) = (JoinSet::new(), 0);
    for room in rooms.iter().cycle() {
        if sent >= bytes {
            break;
        }
        rng.fill_bytes(&mut filler);
        let letters = filler
            .iter()
            .map(|byte| char::from(LETTERS[usize::from(byte % 64)]));
        let body: String = letters.collect();
        sent += body.len() as u64;
        let (client, room) = (client.clone(), room.clone());
        sends.spawn(async move { client.send(room, text(&body)).await.map(drop) });
        while sends.len() >= FILLERS_IN_FLIGHT
            && let Some(done) = sends.join_next().await
        {
            done.context("who fills ended")?.context("could not fill")?;
        }
        bar.set_position(sent);
    }
    while let Some(done) = sends.join_next().await {
        done.context("who fills ended")?.context("could not fill")?;
    }
    bar.finish_and_clear();
    Ok(sent)
}

/// Waits until the node has what it is to have, and nothing is on its way.
async fn settle(admin: &AdminClient, arguments: &MovesArguments) -> anyhow::Result<()> {
    let deadline = Instant::now() + arguments.timeout;
    let mut quiet = 0;
    while quiet < QUIET_LOOKS {
        let moves = admin.list_moves().await;
        let node = node(admin, arguments.node).await?;
        let settled = moves.is_ok_and(|moves| moves.moves.is_empty())
            && node.replicas == node.replicas_placed;
        quiet = if settled { quiet + 1 } else { 0 };
        if Instant::now() >= deadline {
            bail!(
                "node {} is not done after {:?}",
                arguments.node,
                arguments.timeout
            );
        }
        sleep(LOOK_INTERVAL).await;
    }
    Ok(())
}

/// A direction whose bytes are not known yet.
struct Measured {
    took_s: f64,
    seen: SteadyReport,
}

async fn phase(
    arguments: &MovesArguments,
    targets: &Targets,
    admin: &AdminClient,
    standing: proto::Standing,
) -> anyhow::Result<Measured> {
    let load = Steady::start(&arguments.load, targets).await?;
    say(match standing {
        proto::Standing::Active => "fills the node",
        _ => "empties the node",
    });
    let began: Nanos = load.now_ns();
    let set = admin.set_standing(arguments.node, standing, false).await;
    set.context("could not say what the node is used for")?;
    settle(admin, arguments).await?;
    // The looks after the last move were not part of it.
    let looks = LOOK_INTERVAL * QUIET_LOOKS;
    let took_s = seconds(load.now_ns() - began) - looks.as_secs_f64();
    Ok(Measured {
        took_s,
        seen: load.end().await?,
    })
}

impl Measured {
    fn of(self, node: &proto::NodeStatus) -> Phase {
        let bytes = node.state_bytes;
        Phase {
            replicas: node.replicas,
            bytes,
            took_s: self.took_s,
            bytes_per_s: bytes as f64 / self.took_s.max(f64::MIN_POSITIVE),
            seen: self.seen,
        }
    }
}

impl MovesReport {
    pub fn show(&self) -> io::Result<()> {
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        output::line(&format!("{:.0} MiB stored", mib(self.stored_bytes as f64)))?;
        for (what, phase) in [("emptied", &self.emptied), ("filled", &self.filled)] {
            output::line(&format!(
                "a node with {} replicas, {:.0} MiB, {what} in {:.1} s, {:.1} MiB/s, under {}",
                phase.replicas,
                mib(phase.bytes as f64),
                phase.took_s,
                mib(phase.bytes_per_s),
                phase.seen.load(),
            ))?;
            phase.seen.show()?;
        }
        Ok(())
    }
}
