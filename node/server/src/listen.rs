//! Connections of clients: how many there may be, and how long one may say nothing.
//!
//! A connection costs memory before it has said anything; so one that does not begin to
//! speak within the hello timeout is closed, and there are never more than the limit.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// After a failed accept (no file descriptors left, say), it is tried again after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts connections within a limit.
pub struct GuardedListener {
    listener: TcpListener,
    permits: Arc<Semaphore>,
    first_byte_timeout: Duration,
    refused: Arc<AtomicU64>,
}

impl GuardedListener {
    /// At most `connections_max` connections, each with its first byte within the timeout.
    pub fn new(
        listener: TcpListener,
        connections_max: usize,
        first_byte_timeout: Duration,
    ) -> Self {
        Self {
            listener,
            permits: Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS))),
            first_byte_timeout,
            refused: Arc::new(AtomicU64::new(0)),
        }
    }

    /// Connections as a stream for a tonic server.
    pub fn incoming(self) -> impl futures_util::Stream<Item = io::Result<GuardedStream>> {
        futures_util::stream::unfold(self, |listener| async move {
            let stream = listener.accept().await;
            Some((Ok(stream), listener))
        })
    }

    async fn accept(&self) -> GuardedStream {
        loop {
            let (stream, from) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            match self.admit(stream, from) {
                Ok(stream) => return stream,
                Err(error) => {
                    let refused = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
                    if refused.is_power_of_two() {
                        tracing::warn!(%from, refused, %error, "a connection was refused");
                    }
                }
            }
        }
    }

    fn admit(&self, stream: TcpStream, remote: SocketAddr) -> io::Result<GuardedStream> {
        let permit = self
            .permits
            .clone()
            .try_acquire_owned()
            .map_err(|_| io::Error::other("limit clients.connections_max is reached"))?;
        stream.set_nodelay(true)?;
        let info = TcpConnectInfo {
            local_addr: stream.local_addr().ok(),
            remote_addr: Some(remote),
        };
        Ok(GuardedStream {
            stream,
            silent: Some(Box::pin(tokio::time::sleep(self.first_byte_timeout))),
            info,
            _permit: permit,
        })
    }
}

/// A connection that is closed when it does not begin to speak.
pub struct GuardedStream {
    stream: TcpStream,
    /// Until the first byte.
    silent: Option<Pin<Box<Sleep>>>,
    info: TcpConnectInfo,
    _permit: OwnedSemaphorePermit,
}

impl Connected for GuardedStream {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.info.clone()
    }
}

impl AsyncRead for GuardedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.silent = None;
        } else if read.is_pending()
            && let Some(silent) = &mut self.silent
            && silent.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client said nothing",
            )));
        }
        read
    }
}

impl AsyncWrite for GuardedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
