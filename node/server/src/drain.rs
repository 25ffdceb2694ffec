//! `carillon-node drain`: drains the node beside it for a restart, and waits until it may stop;
//! what a container does before it is stopped.
//!
//! Owner of no state: it asks over the socket in the data directory.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, bail};
use carillon_proto::admin::admin_client::AdminClient;
use carillon_proto::admin::{
    GetClusterRequest, GetDrainRequest, ListNodesRequest, SetStandingRequest, Standing,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::Instant;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Uri};
use tower_service::Service;

use crate::config::Config;
use crate::socket;

/// How often it is asked how far it is; the cluster itself looks no more often.
const ASK_INTERVAL: Duration = Duration::from_millis(200);
/// One answer may take this long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Drains, and waits at most so long.
///
/// # Errors
/// When the node may not stop yet, with what it waits for, or does not answer.
pub async fn drain(config: &Config, timeout: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + timeout;
    let mut admin = connect(socket::path(&config.data_dir)).await?;
    let cluster = admin.get_cluster(GetClusterRequest {}).await?.into_inner();
    if cluster.nodes <= 1 {
        println!("it is the only node: there is nobody to hand over to");
        return Ok(());
    }
    let node_id = cluster.answering_node;
    let mut said = String::new();
    loop {
        let waits = match step(&mut admin, node_id).await {
            Ok(None) => {
                println!("node {node_id} is drained");
                return Ok(());
            }
            Ok(Some(waits)) => waits,
            // Others may be away for a moment, which may be why it is asked again.
            Err(status) => status.message().to_owned(),
        };
        if waits != said {
            println!("node {node_id}: {waits}");
            said = waits;
        }
        if Instant::now() + ASK_INTERVAL >= deadline {
            bail!("node {node_id} is not drained after {timeout:?}: {said}");
        }
        tokio::time::sleep(ASK_INTERVAL).await;
    }
}

/// Asks for the drain unless it is asked for already; what it waits for, or nothing when done.
async fn step(
    admin: &mut AdminClient<Channel>,
    node_id: u64,
) -> Result<Option<String>, tonic::Status> {
    let nodes = admin.list_nodes(ListNodesRequest {}).await?.into_inner();
    let own = nodes.nodes.iter().find(|node| node.node_id == node_id);
    let standing = own.map_or(Standing::Unspecified, |own| own.standing());
    let is_drained = matches!(
        standing,
        Standing::DrainingForRestart | Standing::DrainingForRemoval | Standing::Lost
    );
    if !is_drained {
        let request = SetStandingRequest {
            node_id,
            standing: Standing::DrainingForRestart.into(),
            forced: false,
        };
        match admin.set_standing(request).await {
            Ok(_) => {}
            Err(status) if status.code() == Code::FailedPrecondition => {
                return Ok(Some(status.message().to_owned()));
            }
            Err(status) => return Err(status),
        }
    }
    let request = GetDrainRequest {
        node_id,
        purpose: Standing::DrainingForRestart.into(),
    };
    let drain = admin.get_drain(request).await?.into_inner();
    // Of a removal only what a restart needs too: it leads nothing and its clients have left.
    let may_stop = drain.done || (drain.leaders_left == 0 && drain.sessions_left == 0);
    Ok((!may_stop).then(|| match drain.waits.is_empty() {
        true => drain.step,
        false => format!("{}: {}", drain.step, drain.waits.join("; ")),
    }))
}

async fn connect(path: PathBuf) -> anyhow::Result<AdminClient<Channel>> {
    // The address is not used: the socket is the way.
    let endpoint = Endpoint::from_static("http://local").timeout(ANSWER_TIMEOUT);
    let shown = path.display().to_string();
    let channel = endpoint.connect_with_connector(Socket(path)).await;
    let channel = channel.with_context(|| format!("no node answers at {shown}"))?;
    Ok(AdminClient::new(channel))
}

/// Connects to the socket, whatever address is asked for.
struct Socket(PathBuf);

impl Service<Uri> for Socket {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<UnixStream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.0.clone();
        Box::pin(async move { UnixStream::connect(path).await.map(TokioIo::new) })
    }
}
