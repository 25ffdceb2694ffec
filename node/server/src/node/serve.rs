//! The gRPC servers of a node: for its peers, for clients, for operators, and for programs
//! beside it.

use std::sync::Arc;
use std::time::Duration;

use carillon_auth::tls::Admits;
use carillon_proto::admin::admin_server::AdminServer;
use carillon_proto::internal::peer_server::PeerServer;
use futures_util::StreamExt as _;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::{Routes, RoutesBuilder};
use tonic::transport::Server;

use super::{Node, die};
use crate::admin::{AdminService, GuardedAdmin, Way};
use crate::cork::Corked;
use crate::gateway::limits::REQUEST_BYTES_MAX;
use crate::gateway::{Explained, Known};
use crate::listen::{GuardedListener, HTTP2_BEGIN_BYTES, Speaks};
use crate::peer::service::PeerService;
use crate::peer::{
    CONNECTION_WINDOW_BYTES, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, Peers, STREAM_WINDOW_BYTES,
    SnapshotInbox,
};
use crate::socket;

/// Connections of other nodes at a time: four from each of the largest cluster's nodes, some
/// of them lost and not noticed yet.
const PEER_CONNECTIONS_MAX: usize = 8_192;
/// Another node begins to speak within this.
const PEER_BEGINS_WITHIN: Duration = Duration::from_secs(10);
/// Connections of operators at a time, at the port of their own.
const ADMIN_CONNECTIONS_MAX: usize = 1_024;
/// Calls and streams at a time on one connection of clients or operators; more wait at the
/// client. Whoever is not known yet may ask for health, which can be watched without an end.
const STREAMS_PER_CONNECTION_MAX: u32 = 1_024;
const CHAT: &str = "carillon.v1.Chat";
const ADMIN: &str = "carillon.admin.v1.Admin";
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
    )
    .encrypted(node.security.tls(), Admits::Nodes);
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
    .encrypted(node.security.tls(), Admits::Clients)
    .incoming()
    .map(|stream| stream.map(Corked::new));
    let mut services = vec![CHAT];
    let mut routes = Routes::builder();
    routes.add_service(node.services.gateway.service());
    if node.config.listen.admin.is_none() {
        services.push(ADMIN);
        routes.add_service(admin(&node, Way::Connection));
    }
    add_common(&node, &mut routes, &services)?;
    Server::builder()
        .max_concurrent_streams(Some(STREAMS_PER_CONNECTION_MAX))
        .http2_keepalive_interval(Some(CLIENT_KEEPALIVE))
        .add_routes(routes.routes())
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}

/// The port that is for operators only.
pub(super) async fn serve_operators(node: Arc<Node>, listener: TcpListener) {
    let incoming = GuardedListener::new(
        listener,
        ("admin_connections_max", ADMIN_CONNECTIONS_MAX),
        Speaks::AtFirst {
            bytes: HTTP2_BEGIN_BYTES,
            within: node.config.clients.hello_timeout,
        },
        node.connection_metrics.of("admin"),
    )
    .encrypted(node.security.tls(), Admits::Operators)
    .incoming();
    let mut routes = Routes::builder();
    routes.add_service(admin(&node, Way::Connection));
    if let Err(error) = add_common(&node, &mut routes, &[ADMIN]) {
        die(&format!("the operators' server cannot start: {error}"));
    }
    let served = Server::builder()
        .max_concurrent_streams(Some(STREAMS_PER_CONNECTION_MAX))
        .http2_keepalive_interval(Some(CLIENT_KEEPALIVE))
        .add_routes(routes.routes())
        .serve_with_incoming(incoming)
        .await;
    if let Err(error) = served {
        die(&format!("the operators' server ended: {error}"));
    }
}

/// The socket beside the data: whoever may open it may read the data too, and needs no other
/// credential.
pub(super) async fn serve_local(node: Arc<Node>) {
    let path = socket::path(&node.config.data_dir);
    let listener = match socket::bind(&path) {
        Ok(listener) => listener,
        Err(error) => {
            let path = path.display();
            tracing::warn!(%path, %error, "carillon-node drain does not work on this node");
            return;
        }
    };
    let served = Server::builder()
        .add_service(admin(&node, Way::Socket))
        .serve_with_incoming(UnixListenerStream::new(listener))
        .await;
    if let Err(error) = served {
        die(&format!("the local server ended: {error}"));
    }
}

fn admin(node: &Arc<Node>, way: Way) -> GuardedAdmin {
    let admin = AdminServer::new(AdminService::new(node.clone()));
    let admin = Explained(admin.max_decoding_message_size(REQUEST_BYTES_MAX));
    GuardedAdmin::new(admin, node.security.clone(), way)
}

/// Health for everybody; what there is to call for those who are known.
fn add_common(
    node: &Arc<Node>,
    routes: &mut RoutesBuilder,
    services: &[&'static str],
) -> anyhow::Result<()> {
    let (reporter, health) = tonic_health::server::health_reporter();
    tokio::spawn(report_health(
        reporter,
        services.to_vec(),
        node.ready.subscribe(),
    ));
    let reflection = || {
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(carillon_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // For the details of errors.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("grpc.health.v1.Health");
        services
            .iter()
            .fold(reflection, |all, name| all.with_service_name(*name))
    };
    routes.add_service(health);
    routes.add_service(Known::new(reflection().build_v1()?, node.security.clone()));
    routes.add_service(Known::new(
        reflection().build_v1alpha()?,
        node.security.clone(),
    ));
    Ok(())
}

async fn report_health(
    reporter: tonic_health::server::HealthReporter,
    services: Vec<&'static str>,
    mut ready: watch::Receiver<bool>,
) {
    use tonic_health::ServingStatus;
    loop {
        let status = if *ready.borrow_and_update() {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        for service in std::iter::once("").chain(services.iter().copied()) {
            reporter.set_service_status(service, status).await;
        }
        if ready.changed().await.is_err() {
            return;
        }
    }
}
