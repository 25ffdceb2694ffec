//! `carillon-operator`: the operator's process.

use std::net::SocketAddr;

use anyhow::Context;
use carillon_operator::cluster::grpc::Grpc;
use carillon_operator::controller::{Controller, Scope};
use carillon_operator::events::Events;
use carillon_operator::lease::Election;
use carillon_operator::reconcile::Reconciler;
use carillon_operator::telemetry::{self, Telemetry};
use clap::{Parser, ValueEnum};
use kube::Client;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Keeps Carillon clusters as their ImClusters say.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Looks after the ImClusters of this namespace only; left out, of all.
    #[arg(long, env = "CARILLON_OPERATOR_NAMESPACE")]
    namespace: Option<String>,
    /// Where the nodes' images come from when an ImCluster names none; its version is the tag.
    #[arg(
        long,
        env = "CARILLON_OPERATOR_IMAGE_REPOSITORY",
        default_value = "carillon-node"
    )]
    image_repository: String,
    /// The namespace of the Lease by which operators agree on who writes.
    #[arg(
        long,
        env = "CARILLON_OPERATOR_LEASE_NAMESPACE",
        default_value = "carillon-system"
    )]
    lease_namespace: String,
    /// What this operator is called in the Lease and in events; different for each.
    #[arg(long, env = "CARILLON_OPERATOR_IDENTITY")]
    identity: String,
    /// Where /metrics, /healthz and /readyz are served.
    #[arg(long, env = "CARILLON_OPERATOR_LISTEN", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// How many ImClusters are worked on at once.
    #[arg(long, env = "CARILLON_OPERATOR_PASSES_MAX", default_value_t = 8)]
    passes_max: usize,
    /// A tracing filter, such as info,carillon_operator=debug.
    #[arg(long, env = "CARILLON_OPERATOR_LOG", default_value = "info")]
    log: String,
    /// One JSON object a line, or text.
    #[arg(long, env = "CARILLON_OPERATOR_LOG_FORMAT", default_value = "json")]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Json,
    Text,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let filter = EnvFilter::try_new(&options.log).context("--log is no filter")?;
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    match options.log_format {
        LogFormat::Json => log.json().init(),
        LogFormat::Text => log.init(),
    }
    run(options).await
}

async fn run(options: Options) -> anyhow::Result<()> {
    let client = Client::try_default()
        .await
        .context("no API server is configured")?;
    let stop = CancellationToken::new();
    let election = Election::new(
        client.clone(),
        &options.lease_namespace,
        options.identity.clone(),
    );
    let leadership = election.leadership();
    let telemetry = Telemetry::new(leadership.clone());
    let listener = tokio::net::TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("cannot listen on {}", options.listen))?;
    let served = telemetry::router(telemetry.clone());
    let serving = tokio::spawn(async move { axum::serve(listener, served).await });
    let scope = match options.namespace {
        Some(namespace) => Scope::Namespace(namespace),
        None => Scope::All,
    };
    let reconciler = Reconciler::new(
        client.clone(),
        Grpc,
        leadership,
        Events::new(client, options.identity),
        options.image_repository,
    );
    let controller = Controller::start(reconciler, &scope, telemetry, options.passes_max, &stop);
    let electing = tokio::spawn(election.run(stop.clone()));
    let controlling = tokio::spawn(controller.run(stop.clone()));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), ?scope, "started");
    let mut terminate = signal(SignalKind::terminate())?;
    // Cancel-safe: it is awaited once.
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        ended = serving => anyhow::bail!("the HTTP server ended: {ended:?}"),
    }
    tracing::info!("stopping");
    stop.cancel();
    // The controller first: who gives the Lease back must not write any more.
    controlling.await.context("the controller panicked")?;
    electing.await.context("the election panicked")?;
    Ok(())
}
