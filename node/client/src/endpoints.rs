//! The nodes that a client knows, and which of them it uses now.
//!
//! Owner of one lazily connected channel per endpoint. `preferred < entries.len()`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

use crate::credentials::Credentials;
use crate::error::ClientError;

/// The most endpoints one client takes; more is a mistake in the configuration.
pub const ENDPOINTS_MAX: usize = 64;
/// How long one TCP connection may take to open.
const TCP_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// HTTP/2 pings on a connection in use: every so often …
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// … and the connection is given up when one is not answered in this time.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// HTTP/2 flow-control window of one stream, bytes.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// HTTP/2 flow-control window of one connection, bytes.
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// The endpoints of a client, in the order in which they are tried.
#[derive(Debug)]
pub(crate) struct Endpoints {
    credentials: Credentials,
    entries: Vec<Entry>,
    /// The one that answered last.
    preferred: AtomicUsize,
}

#[derive(Debug)]
struct Entry {
    /// As the user wrote it, for messages.
    name: String,
    channel: Channel,
}

impl Endpoints {
    /// Takes `host:port` of each, or a URI; `first` (modulo their number) is tried first. Must
    /// be called within a tokio runtime; connects to nothing yet.
    pub(crate) fn new(
        endpoints: &[String],
        first: usize,
        credentials: Credentials,
    ) -> Result<Self, ClientError> {
        if endpoints.is_empty() {
            return Err(ClientError::Config(
                "no endpoint given; name at least one, as host:port".to_owned(),
            ));
        }
        if endpoints.len() > ENDPOINTS_MAX {
            return Err(ClientError::Config(format!(
                "{} endpoints given, at most {ENDPOINTS_MAX} are allowed",
                endpoints.len()
            )));
        }
        let tls = credentials.tls()?;
        let entries = endpoints
            .iter()
            .map(|name| entry(name, tls.as_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        let preferred = AtomicUsize::new(first % entries.len());
        Ok(Self {
            credentials,
            entries,
            preferred,
        })
    }

    /// Who calls.
    pub(crate) fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// How many there are; at least one.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The one to use first.
    pub(crate) fn preferred(&self) -> usize {
        self.preferred.load(Ordering::Relaxed)
    }

    /// Remembers the one that works.
    pub(crate) fn prefer(&self, index: usize) {
        self.preferred
            .store(index % self.entries.len(), Ordering::Relaxed);
    }

    /// The channel of the endpoint `index` (modulo their number).
    pub(crate) fn channel(&self, index: usize) -> Channel {
        self.entries[index % self.entries.len()].channel.clone()
    }

    /// The name of the endpoint `index` (modulo their number).
    pub(crate) fn name(&self, index: usize) -> &str {
        &self.entries[index % self.entries.len()].name
    }
}

fn entry(name: &str, tls: Option<&ClientTlsConfig>) -> Result<Entry, ClientError> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let uri = match name.split_once("://") {
        None => format!("{scheme}://{name}"),
        Some((given, _)) if given == scheme => name.to_owned(),
        Some((given, _)) => {
            let why = match given {
                "https" => "https needs to know whose certificates are trusted",
                "http" => "certificates or a token are given, which need https",
                _ => "its scheme is not supported, use host:port",
            };
            return Err(ClientError::Config(format!("endpoint {name}: {why}")));
        }
    };
    let wrong = |error: tonic::transport::Error| {
        let mut text = format!("endpoint {name}: {error}");
        let mut source = std::error::Error::source(&error);
        while let Some(below) = source {
            text.push_str(&format!(": {below}"));
            source = below.source();
        }
        ClientError::Config(text)
    };
    let mut endpoint = Endpoint::from_shared(uri).map_err(wrong)?;
    if let Some(tls) = tls {
        endpoint = endpoint.tls_config(tls.clone()).map_err(wrong)?;
    }
    if endpoint.uri().host().is_none_or(str::is_empty) || endpoint.uri().port_u16().is_none() {
        return Err(ClientError::Config(format!(
            "endpoint {name}: expected host:port"
        )));
    }
    let channel = endpoint
        .connect_timeout(TCP_CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .connect_lazy();
    Ok(Entry {
        name: name.to_owned(),
        channel,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[tokio::test]
    async fn endpoints_are_checked_by_name() {
        for bad in [
            vec![],
            names(&["https://a:1"]),
            names(&["a"]),
            names(&["a b:1"]),
            names(&[":7401"]),
            vec!["a:1".to_owned(); ENDPOINTS_MAX + 1],
        ] {
            let error = Endpoints::new(&bad, 0, Credentials::default()).expect_err("refused");
            assert!(matches!(error, ClientError::Config(_)), "{bad:?}: {error}");
        }
        let good = names(&["a:1", "http://b:2"]);
        let good = Endpoints::new(&good, 3, Credentials::default()).expect("taken");
        assert_eq!((good.len(), good.preferred()), (2, 1));
        assert_eq!(good.name(good.preferred() + 1), "a:1");
        let closed = Credentials::default().system_authorities();
        Endpoints::new(&names(&["a:1", "https://b:2"]), 0, closed.clone()).expect("encrypted");
        let error = Endpoints::new(&names(&["http://b:2"]), 0, closed).expect_err("refused");
        assert!(matches!(error, ClientError::Config(_)), "{error}");
    }
}
