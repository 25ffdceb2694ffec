//! Connections of the load generator: HTTP/2 by hand, without a task or a channel per
//! stream in between, and with every byte of the socket counted.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Flow control never limits what is measured: bytes of a connection's and of a stream's
/// window.
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// How long a connection, and then a stream on it, may take to open.
const OPEN_LIMIT: Duration = Duration::from_secs(15);
const CONNECT_PATH: &str = "/carillon.v1.Chat/Connect";

/// Why a connection or stream could not be had.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket.
    #[error("could not connect to {address}")]
    Dial { address: String, source: io::Error },
    /// HTTP/2.
    #[error("{address} broke the connection")]
    Http2 { address: String, source: h2::Error },
    /// The peer does not speak gRPC here.
    #[error("{address} refused the stream: {status}")]
    Refused { address: String, status: String },
    /// Silence, or more streams on a connection than the server allows.
    #[error(
        "{address} did not open the stream within {OPEN_LIMIT:?}; with more than 200 streams \
         on a connection use more --channels"
    )]
    Timeout { address: String },
}

/// Bytes that went over one socket.
#[derive(Debug, Default)]
pub struct Traffic {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Traffic {
    /// Bytes sent and received so far.
    pub fn bytes(&self) -> (u64, u64) {
        (
            self.sent.load(Ordering::Relaxed),
            self.received.load(Ordering::Relaxed),
        )
    }
}

/// One TCP connection to a node.
pub struct Connection {
    address: String,
    origin: String,
    sender: SendRequest<Bytes>,
    pub traffic: Arc<Traffic>,
}

impl Connection {
    /// Connects to `host:port`; the connection is driven by a task until it ends.
    pub async fn dial(address: &str) -> Result<Self, WireError> {
        let dialled = timeout(OPEN_LIMIT, TcpStream::connect(address)).await;
        let failed = |source| WireError::Dial {
            address: address.to_owned(),
            source,
        };
        let socket = dialled
            .map_err(|_| failed(io::ErrorKind::TimedOut.into()))?
            .map_err(failed)?;
        socket.set_nodelay(true).map_err(failed)?;
        let traffic = Arc::new(Traffic::default());
        let counted = Counted {
            socket,
            traffic: traffic.clone(),
        };
        let (sender, driver) = h2::client::Builder::new()
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .initial_window_size(STREAM_WINDOW_BYTES)
            .enable_push(false)
            .handshake::<_, Bytes>(counted)
            .await
            .map_err(|source| WireError::Http2 {
                address: address.to_owned(),
                source,
            })?;
        // Its error reaches every stream of the connection, which is where it is counted.
        tokio::spawn(async move { drop(driver.await) });
        Ok(Self {
            address: address.to_owned(),
            origin: format!("http://{address}{CONNECT_PATH}"),
            sender,
            traffic,
        })
    }

    /// Opens one `Connect` stream. The server answers it before the first frame.
    pub async fn open(&self) -> Result<(SendStream<Bytes>, RecvStream), WireError> {
        let opening = async {
            let (answer, out) = self.request().await.map_err(|source| self.broken(source))?;
            let answer = answer.await.map_err(|source| self.broken(source))?;
            let grpc_status = answer.headers().get("grpc-status");
            if answer.status() != http::StatusCode::OK || grpc_status.is_some() {
                let status = grpc_status.and_then(|status| status.to_str().ok());
                let status = status.unwrap_or("-");
                return Err(self.unexpected(&format!("{}, gRPC status {status}", answer.status())));
            }
            Ok((out, answer.into_body()))
        };
        timeout(OPEN_LIMIT, opening)
            .await
            .map_err(|_| self.timed_out())?
    }

    async fn request(&self) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        let request = http::Request::post(&self.origin)
            .header(http::header::CONTENT_TYPE, "application/grpc")
            .header(http::header::TE, "trailers")
            .body(())
            .expect("the address was connected to");
        let mut ready = self.sender.clone().ready().await?;
        ready.send_request(request, false)
    }

    /// HTTP/2 failed.
    pub fn broken(&self, source: h2::Error) -> WireError {
        WireError::Http2 {
            address: self.address.clone(),
            source,
        }
    }

    /// The stream ended with these trailers instead of an answer.
    pub fn refused(&self, trailers: Option<&http::HeaderMap>) -> WireError {
        let value = |name| {
            let value = trailers.and_then(|trailers| trailers.get(name));
            value.and_then(|value| value.to_str().ok()).unwrap_or("-")
        };
        let (status, message) = (value("grpc-status"), value("grpc-message"));
        self.unexpected(&format!("gRPC status {status}, {message}"))
    }

    /// The server said something else than it should have.
    pub fn unexpected(&self, what: &str) -> WireError {
        WireError::Refused {
            address: self.address.clone(),
            status: what.to_owned(),
        }
    }

    /// The server said nothing.
    pub fn timed_out(&self) -> WireError {
        WireError::Timeout {
            address: self.address.clone(),
        }
    }
}

/// A socket whose bytes are counted.
struct Counted {
    socket: TcpStream,
    traffic: Arc<Traffic>,
}

impl Counted {
    fn sent(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.traffic
                .sent
                .fetch_add(*bytes as u64, Ordering::Relaxed);
        }
        written
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.socket).poll_read(cx, buffer);
        let bytes = buffer.filled().len() - before;
        self.traffic
            .received
            .fetch_add(bytes as u64, Ordering::Relaxed);
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, data);
        self.sent(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, data);
        self.sent(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
