//! The gRPC servers of a node: one for its peers, one for clients.

use std::sync::Arc;
use std::time::Duration;

use carillon_proto::admin::admin_server::AdminServer;
use carillon_proto::internal::peer_server::PeerServer;
use futures_util::StreamExt as _;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::Server;

use super::{Node, die};
use crate::admin::AdminService;
use crate::cork::Corked;
use crate::gateway::Explained;
use crate::gateway::limits::REQUEST_BYTES_MAX;
use crate::listen::{GuardedListener, HTTP2_BEGIN_BYTES, Speaks};
use crate::peer::service::PeerService;
use crate::peer::{
    CONNECTION_WINDOW_BYTES, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, Peers, STREAM_WINDOW_BYTES,
    SnapshotInbox,
};

/// Connections of other nodes at a time: four from each of the largest cluster's nodes, some
/// of them lost and not noticed yet.
const PEER_CONNECTIONS_MAX: usize = 8_192;
/// Another node begins to speak within this.
const PEER_BEGINS_WITHIN: Duration = Duration::from_secs(10);
/// Connections of clients are asked for a sign of life this often.
const CLIENT_KEEPALIVE: Duration = Duration::from_secs(30);

pub(super) async fn serve_peers(node: Arc<Node>, peers: Arc<Peers>, listener: TcpListener) {
    let inbox = SnapshotInbox::new(node.snapshots.clone());
    let incoming = GuardedListener::new(
        listener,
        ("peer_connections_max", PEER_CONNECTIONS_MAX),
        Speaks::AtFirst {
            bytes: HTTP2_BEGIN_BYTES,
            within: PEER_BEGINS_WITHIN,
        },
        node.connection_metrics.of("peer"),
    );
    let service = PeerServer::new(PeerService { node, peers, inbox })
        .max_decoding_message_size(carillon_raft::PACKET_BYTES_MAX + 1024)
        .max_encoding_message_size(carillon_raft::PACKET_BYTES_MAX + 1024);
    let incoming = incoming.incoming().map(|stream| stream.map(Corked::new));
    let served = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_service(service)
        .serve_with_incoming(incoming)
        .await;
    if let Err(error) = served {
        die(&format!("the peers' server ended: {error}"));
    }
}

pub(super) async fn serve_clients(node: Arc<Node>, listener: TcpListener) -> anyhow::Result<()> {
    let (reporter, health) = tonic_health::server::health_reporter();
    tokio::spawn(report_health(reporter, node.ready.subscribe()));
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(carillon_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // For the details of errors.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("carillon.v1.Chat")
            .with_service_name("carillon.admin.v1.Admin")
            .with_service_name("grpc.health.v1.Health")
    };
    let clients = &node.config.clients;
    let files = crate::files::raise_limit();
    let connections_max = crate::files::connections_max(clients.connections_max, files);
    if connections_max < clients.connections_max {
        tracing::warn!(
            files,
            connections_max,
            "clients get fewer connections than clients.connections_max: raise the limit of open files"
        );
    }
    let incoming = GuardedListener::new(
        listener,
        ("clients.connections_max", connections_max),
        Speaks::AtFirst {
            bytes: HTTP2_BEGIN_BYTES,
            within: clients.hello_timeout,
        },
        node.connection_metrics.of("client"),
    )
    .incoming()
    .map(|stream| stream.map(Corked::new));
    let admin = AdminServer::new(AdminService::new(node.clone()))
        .max_decoding_message_size(REQUEST_BYTES_MAX);
    Server::builder()
        .http2_keepalive_interval(Some(CLIENT_KEEPALIVE))
        .add_service(node.services.gateway.service())
        .add_service(Explained(admin))
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}

async fn report_health(
    reporter: tonic_health::server::HealthReporter,
    mut ready: watch::Receiver<bool>,
) {
    use tonic_health::ServingStatus;
    loop {
        let status = if *ready.borrow_and_update() {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        for service in ["", "carillon.v1.Chat", "carillon.admin.v1.Admin"] {
            reporter.set_service_status(service, status).await;
        }
        if ready.changed().await.is_err() {
            return;
        }
    }
}
