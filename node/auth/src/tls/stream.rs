//! A connection, encrypted or not.
//!
//! Owner of the state: whoever reads and writes it. The handshake is done by the first read or
//! write, not where connections are accepted, so that nobody who is slow at it keeps others
//! waiting; who does not finish it is closed like anybody who says nothing.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{Accept, TlsAcceptor, TlsConnector, TlsStream};

use super::Tls;
use crate::identity::{Identity, is_valid_at};

/// Who may connect to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admits {
    /// Nodes of the cluster.
    Nodes,
    /// Who administers or looks at the cluster.
    Operators,
    /// Everybody; who shows a certificate of the cluster is known by it.
    Clients,
}

/// A connection.
pub struct Transport {
    state: State,
}

enum State {
    Plain(TcpStream),
    Handshake(Box<Handshake>),
    Encrypted(Box<TlsStream<TcpStream>>),
    /// The handshake failed.
    Failed,
}

struct Handshake {
    accept: Accept<TcpStream>,
    tls: Arc<Tls>,
    admits: Admits,
    owner: Arc<OnceLock<Identity>>,
}

impl Transport {
    /// One that is not encrypted.
    #[must_use]
    pub fn plain(stream: TcpStream) -> Self {
        let state = State::Plain(stream);
        Self { state }
    }

    /// One that was accepted at a port. Who is at the other end is known after the first byte has
    /// been read, if it shows a certificate.
    #[must_use]
    pub fn accepted(
        stream: TcpStream,
        tls: Arc<Tls>,
        admits: Admits,
        owner: Arc<OnceLock<Identity>>,
    ) -> Self {
        let accept = TlsAcceptor::from(tls.server(admits)).accept(stream);
        let handshake = Handshake {
            accept,
            tls,
            admits,
            owner,
        };
        let state = State::Handshake(Box::new(handshake));
        Self { state }
    }

    /// Goes on with the handshake until it is done.
    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let State::Handshake(handshake) = &mut self.state {
            let accepted = ready!(Pin::new(&mut handshake.accept).poll(cx));
            let done = accepted.and_then(|stream| handshake.look_at(stream));
            match done {
                Ok(stream) => self.state = State::Encrypted(Box::new(stream)),
                Err(error) => {
                    self.state = State::Failed;
                    return Poll::Ready(Err(error));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Handshake {
    /// Who it is, and whether that fits.
    fn look_at(
        &self,
        stream: tokio_rustls::server::TlsStream<TcpStream>,
    ) -> io::Result<TlsStream<TcpStream>> {
        let certificates = stream.get_ref().1.peer_certificates();
        if let Some(certificate) = certificates.and_then(<[_]>::first) {
            let owner = owner_of(certificate)?;
            self.tls.admit(self.admits, &owner).map_err(refused)?;
            // Only this handshake sets it.
            let _ = self.owner.set(owner);
        }
        Ok(stream.into())
    }
}

/// Whose certificate it is, if it is valid now: the handshake of a resumed session has not looked.
fn owner_of(certificate: &CertificateDer<'_>) -> io::Result<Identity> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_s = since.map_or(0, |since| since.as_secs());
    if !is_valid_at(certificate, i64::try_from(now_s).unwrap_or(i64::MAX)) {
        return Err(refused("the certificate has ended, or has not begun"));
    }
    Identity::of(certificate).map_err(refused)
}

fn refused(why: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why.to_string())
}

pub(super) async fn dial(
    config: Arc<ClientConfig>,
    address: &str,
    admit: impl Fn(&Identity) -> Result<(), String>,
) -> io::Result<Transport> {
    let name = server_name(address)?;
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let stream = TlsConnector::from(config).connect(name, stream).await?;
    let certificates = stream.get_ref().1.peer_certificates();
    let certificate = certificates.and_then(<[_]>::first);
    let certificate = certificate.ok_or_else(|| refused("the node shows no certificate"))?;
    let owner = owner_of(certificate)?;
    admit(&owner).map_err(refused)?;
    let state = State::Encrypted(Box::new(stream.into()));
    Ok(Transport { state })
}

/// The host of `host:port`, which its certificate must name.
fn server_name(address: &str) -> io::Result<ServerName<'static>> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
    let (host, _) = address
        .rsplit_once(':')
        .ok_or_else(|| invalid(format!("{address} is not host:port")))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(ServerName::IpAddress(ip.into()));
    }
    let name = ServerName::try_from(host.to_owned());
    name.map_err(|error| invalid(format!("{host}: {error}")))
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_handshake(cx))?;
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            State::Encrypted(stream) => Pin::new(stream).poll_read(cx, buffer),
            State::Handshake(_) | State::Failed => Poll::Ready(Err(closed())),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_handshake(cx))?;
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_write(cx, data),
            State::Encrypted(stream) => Pin::new(stream).poll_write(cx, data),
            State::Handshake(_) | State::Failed => Poll::Ready(Err(closed())),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_handshake(cx))?;
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, data),
            State::Encrypted(stream) => Pin::new(stream).poll_write_vectored(cx, data),
            State::Handshake(_) | State::Failed => Poll::Ready(Err(closed())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_handshake(cx))?;
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_flush(cx),
            State::Encrypted(stream) => Pin::new(stream).poll_flush(cx),
            State::Handshake(_) | State::Failed => Poll::Ready(Err(closed())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            State::Encrypted(stream) => Pin::new(stream).poll_shutdown(cx),
            // Nobody has been told anything.
            State::Handshake(_) | State::Failed => Poll::Ready(Ok(())),
        }
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the handshake failed")
}
