//! `/metrics`, `/healthz` and `/readyz` over HTTP, for Prometheus and for probes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::listen::{GuardedListener, Speaks};
use crate::node::Node;

/// Connections at a time; over it they are closed at once.
const CONNECTIONS_MAX: usize = 64;
/// Longer than probes and Prometheus are silent between two requests.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, node: Arc<Node>) -> std::io::Result<()> {
    let speaks = Speaks::Always {
        within: SILENCE_MAX,
    };
    let limit = ("http_connections_max", CONNECTIONS_MAX);
    let listener = GuardedListener::new(
        listener,
        limit,
        speaks,
        node.connection_metrics().of("http"),
    );
    let app = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(node);
    axum::serve(listener, app).await
}

/// Listens, with an error that names the address.
pub async fn bind(what: &'static str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        anyhow::anyhow!(
            "cannot listen on {address} for {what}: {error}; is another node running there?"
        )
    })
}

async fn metrics(State(node): State<Arc<Node>>) -> Response {
    match node.metrics_text() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// 200 when this node serves clients, else 503 and what it waits for.
async fn ready(State(node): State<Arc<Node>>) -> Response {
    match node.not_ready_yet() {
        None => "ready\n".into_response(),
        Some(waits_for) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{waits_for}\n")).into_response()
        }
    }
}
