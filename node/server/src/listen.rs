//! Connections of clients: how many there may be, and how long one may say nothing.
//!
//! A connection costs memory before it has said anything; so one that does not begin to
//! speak within the hello timeout is closed, and there are never more than the limit.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::metrics::ConnectionMetrics;

/// After a failed accept (no file descriptors left, say), it is tried again after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts connections within a limit.
pub struct GuardedListener {
    listener: TcpListener,
    permits: Arc<Semaphore>,
    first_byte_timeout: Duration,
    metrics: Arc<ConnectionMetrics>,
}

impl GuardedListener {
    /// At most `connections_max` connections, each with its first byte within the timeout.
    pub fn new(
        listener: TcpListener,
        connections_max: usize,
        first_byte_timeout: Duration,
        metrics: Arc<ConnectionMetrics>,
    ) -> Self {
        Self {
            listener,
            permits: Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS))),
            first_byte_timeout,
            metrics,
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
                    let refused = self.metrics.refused();
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
            metrics: self.metrics.clone(),
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
    metrics: Arc<ConnectionMetrics>,
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
            self.silent = None;
            self.metrics.silent();
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

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::metrics::{MetricsPage, Observed, registry};

    const SILENCE_MAX: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn who_is_refused_and_who_is_silent_is_counted() {
        let mut registry = registry();
        let metrics = ConnectionMetrics::register(&mut registry);
        let page = MetricsPage::new(registry);
        let counted = |name: &str, count: u64| {
            let text = page.render(&Observed::default()).expect("text");
            let line = format!("carillon_client_connections_{name}_total {count}\n");
            assert!(text.contains(&line), "{line} in\n{text}");
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let incoming = GuardedListener::new(listener, 1, SILENCE_MAX, metrics).incoming();
        let mut incoming = std::pin::pin!(incoming);
        counted("refused", 0);
        counted("silent", 0);

        let _client = TcpStream::connect(address).await.expect("accepted");
        let mut silent = incoming.next().await.expect("a stream").expect("accepted");
        // One is the limit: the next one is closed, and nothing comes out of the listener.
        let mut second = TcpStream::connect(address).await.expect("by the kernel");
        let mut byte = [0];
        tokio::select! {
            _ = incoming.next() => panic!("two connections at a time"),
            read = second.read(&mut byte) => assert!(matches!(read, Ok(0) | Err(_)), "{read:?}"),
        }
        counted("refused", 1);

        let ended = silent.read(&mut byte).await.expect_err("said nothing");
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        counted("silent", 1);
        drop(silent);

        // Who has spoken may be silent afterwards.
        let mut client = TcpStream::connect(address).await.expect("accepted");
        let mut speaks = incoming.next().await.expect("a stream").expect("accepted");
        client.write_all(b"x").await.expect("written");
        speaks.read_exact(&mut byte).await.expect("it spoke");
        let more = tokio::time::timeout(SILENCE_MAX * 3, speaks.read(&mut byte)).await;
        assert!(more.is_err(), "{more:?}");
        counted("refused", 1);
        counted("silent", 1);
    }
}
