//! Connections to other nodes: with certificates, or in development mode without.
//!
//! Owner of no state.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use carillon_auth::tls::{Tls, Transport};
use http::Uri;
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Error};
use tower_service::Service;

use super::{CONNECTION_WINDOW_BYTES, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, STREAM_WINDOW_BYTES};

/// A connection, with its handshake, is made within this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How this node reaches others.
#[derive(Clone)]
pub struct Dialer {
    tls: Option<Arc<Tls>>,
}

impl Dialer {
    /// With certificates, if there are any.
    pub fn new(tls: Option<Arc<Tls>>) -> Self {
        Self { tls }
    }

    /// Connects to a node at `host:port`.
    ///
    /// # Errors
    /// When the address is none, or the node is not there or not one of the cluster.
    pub async fn connect(&self, address: &str) -> Result<Channel, Error> {
        let endpoint = endpoint(address)?;
        match &self.tls {
            None => endpoint.connect().await,
            Some(tls) => {
                let connector = Connector::new(tls, address);
                endpoint.connect_with_connector(connector).await
            }
        }
    }

    /// Connects to a node when it is asked something.
    ///
    /// # Errors
    /// When the address is none.
    pub fn connect_lazy(&self, address: &str) -> Result<Channel, Error> {
        let endpoint = endpoint(address)?;
        Ok(match &self.tls {
            None => endpoint.connect_lazy(),
            Some(tls) => endpoint.connect_with_connector_lazy(Connector::new(tls, address)),
        })
    }
}

/// The settings that all connections between nodes have.
fn endpoint(address: &str) -> Result<Endpoint, Error> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// Makes the encrypted connections of one channel.
#[derive(Clone)]
struct Connector {
    tls: Arc<Tls>,
    address: Arc<str>,
}

impl Connector {
    fn new(tls: &Arc<Tls>, address: &str) -> Self {
        Self {
            tls: tls.clone(),
            address: address.into(),
        }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Transport>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Transport>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { tls, address } = self.clone();
        Box::pin(async move { tls.dial(&address).await.map(TokioIo::new) })
    }
}
