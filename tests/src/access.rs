//! How the clients of a test reach a cluster, and what they show it.
//!
//! In development mode: plain text, and whoever a client says it is. Elsewhere TLS, and the
//! secret of a server that may act for all users, so that a load needs no token for each.

use anyhow::{Context as _, Result};
use carillon_proto::v1::chat_client::ChatClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use crate::rpc;

/// The generated chat client.
pub type Chat = ChatClient<InterceptedService<Channel, Shows>>;

/// What stands in `authorization` of each call, if anything does.
#[derive(Debug, Clone, Default)]
pub struct Shows(Option<MetadataValue<Ascii>>);

impl Interceptor for Shows {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            let metadata = request.metadata_mut();
            metadata.insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// See the file's head; the default is that of development mode.
#[derive(Debug, Clone, Default)]
pub struct Access {
    tls: Option<ClientTlsConfig>,
    shows: Shows,
}

impl Access {
    /// Over TLS to a cluster of this authority (PEM), whose nodes show a certificate of
    /// `server_name`; `secret` is a server's with the scope `chat`.
    pub fn secured(authority_pem: &str, server_name: &str, secret: &str) -> Result<Self> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(authority_pem))
            .domain_name(server_name);
        let mut value = MetadataValue::try_from(format!("Bearer {secret}"))
            .context("the secret cannot stand in a header")?;
        value.set_sensitive(true);
        Ok(Self {
            tls: Some(tls),
            shows: Shows(Some(value)),
        })
    }

    /// What is at an address, host:port.
    pub fn target(&self, address: &str) -> Result<Target> {
        let endpoint = match &self.tls {
            None => rpc::endpoint(address)?,
            Some(tls) => Endpoint::from_shared(format!("https://{address}"))
                .with_context(|| format!("{address} is no address"))?
                .tls_config(tls.clone())?
                .connect_timeout(rpc::CONNECT_LIMIT)
                .tcp_nodelay(true),
        };
        Ok(Target {
            endpoint,
            shows: self.shows.clone(),
        })
    }
}

/// A node, or a service in front of several.
#[derive(Debug, Clone)]
pub struct Target {
    endpoint: Endpoint,
    shows: Shows,
}

impl Target {
    /// A client that connects when it is first used.
    pub fn chat(&self) -> Chat {
        let channel = self.endpoint.connect_lazy();
        ChatClient::with_interceptor(channel, self.shows.clone())
    }

    /// A client on a connection of its own, which is there.
    pub async fn connect(&self) -> Result<Chat, tonic::transport::Error> {
        let channel = self.endpoint.connect().await?;
        Ok(ChatClient::with_interceptor(channel, self.shows.clone()))
    }
}
