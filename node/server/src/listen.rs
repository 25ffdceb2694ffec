//! Connections to this node: how many there may be at a port, and how long one may say
//! nothing.
//!
//! A connection costs memory and a file descriptor before it has said anything; so one that
//! does not begin to speak in time is closed, and there are never more than the limit.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use carillon_auth::identity::Identity;
use carillon_auth::tls::{Admits, Tls, Transport};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tonic::transport::server::Connected;

use crate::metrics::PortMetrics;

/// After a failed accept (no file descriptors left, say), it is tried again after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// HTTP/2: the preface and the head of the settings that must follow it. From there on
/// keep-alive looks after the connection.
pub const HTTP2_BEGIN_BYTES: usize = 24 + 9;

/// What a connection must say, and when.
#[derive(Debug, Clone, Copy)]
pub enum Speaks {
    /// So many bytes within this; then it may be silent.
    AtFirst {
        /// How many.
        bytes: usize,
        /// Within this.
        within: Duration,
    },
    /// Something each time within this.
    Always {
        /// Within this.
        within: Duration,
    },
}

impl Speaks {
    fn within(self) -> Duration {
        match self {
            Speaks::AtFirst { within, .. } | Speaks::Always { within } => within,
        }
    }
}

/// Accepts connections within a limit.
pub struct GuardedListener {
    listener: TcpListener,
    permits: Arc<Semaphore>,
    /// The limit's name.
    limit: &'static str,
    speaks: Speaks,
    metrics: PortMetrics,
    encryption: Option<(Arc<Tls>, Admits)>,
}

impl GuardedListener {
    /// At most `connections_max` connections, the limit of that name, each of which speaks.
    pub fn new(
        listener: TcpListener,
        (limit, connections_max): (&'static str, usize),
        speaks: Speaks,
        metrics: PortMetrics,
    ) -> Self {
        Self {
            listener,
            permits: Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS))),
            limit,
            speaks,
            metrics,
            encryption: None,
        }
    }

    /// Connections are encrypted, and admitted by their certificates, when there are any.
    #[must_use]
    pub fn encrypted(mut self, tls: Option<&Arc<Tls>>, admits: Admits) -> Self {
        self.encryption = tls.map(|tls| (tls.clone(), admits));
        self
    }

    /// Connections as a stream for a tonic server.
    pub fn incoming(self) -> impl futures_util::Stream<Item = io::Result<GuardedStream>> {
        futures_util::stream::unfold(self, |listener| async move {
            let stream = listener.next().await;
            Some((Ok(stream), listener))
        })
    }

    async fn next(&self) -> GuardedStream {
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
            .map_err(|_| io::Error::other(format!("limit {} is reached", self.limit)))?;
        stream.set_nodelay(true)?;
        let info = ConnectionInfo {
            remote,
            owner: Arc::default(),
        };
        let stream = match &self.encryption {
            None => Transport::plain(stream),
            Some((tls, admits)) => {
                Transport::accepted(stream, tls.clone(), *admits, info.owner.clone())
            }
        };
        Ok(GuardedStream {
            stream,
            // Without encryption there is no handshake that could fail.
            greeted: self.encryption.is_none(),
            silent: Some(Box::pin(tokio::time::sleep(self.speaks.within()))),
            speaks: self.speaks,
            metrics: self.metrics.clone(),
            info,
            _permit: permit,
        })
    }
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    remote: SocketAddr,
    owner: Arc<OnceLock<Identity>>,
}

impl ConnectionInfo {
    /// The address.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Whose certificate it has shown, if any.
    pub fn owner(&self) -> Option<&Identity> {
        self.owner.get()
    }
}

/// A connection that is closed when it does not begin to speak.
pub struct GuardedStream {
    stream: Transport,
    /// Something was read: a handshake, if there is one, is done.
    greeted: bool,
    /// Runs while it must speak.
    silent: Option<Pin<Box<Sleep>>>,
    speaks: Speaks,
    metrics: PortMetrics,
    info: ConnectionInfo,
    _permit: OwnedSemaphorePermit,
}

impl Connected for GuardedStream {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl GuardedStream {
    /// What comes of reading or writing, which a handshake is part of until it is done: HTTP/2
    /// begins by writing, so a client that is silent in its handshake must not be waited for there
    /// either.
    fn greeting<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.greeted {
            return polled;
        }
        match polled {
            Poll::Ready(Ok(done)) => {
                self.greeted = true;
                Poll::Ready(Ok(done))
            }
            Poll::Ready(Err(error)) => {
                self.not_greeted(&error);
                Poll::Ready(Err(error))
            }
            Poll::Pending => match self.poll_silent(cx) {
                Some(error) => Poll::Ready(Err(error)),
                None => Poll::Pending,
            },
        }
    }

    /// The end of a connection that said too little in time.
    fn poll_silent(&mut self, cx: &mut Context<'_>) -> Option<io::Error> {
        let silent = self.silent.as_mut()?;
        if silent.as_mut().poll(cx).is_pending() {
            return None;
        }
        self.silent = None;
        self.metrics.silent();
        let why = "the client said too little";
        Some(io::Error::new(io::ErrorKind::TimedOut, why))
    }

    /// What a client was refused for in its handshake, or broke it off for.
    fn not_greeted(&mut self, error: &io::Error) {
        self.greeted = true;
        // Whoever only looked whether somebody listens has said nothing.
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return;
        }
        let failed = self.metrics.handshake_failed();
        if failed.is_power_of_two() {
            let from = self.info.remote;
            tracing::warn!(%from, failed, %error, "an encrypted connection was not made");
        }
    }

    fn spoke(&mut self, count: usize) {
        match &mut self.speaks {
            _ if count == 0 => {}
            Speaks::AtFirst { bytes, .. } => {
                *bytes = bytes.saturating_sub(count);
                if *bytes == 0 {
                    self.silent = None;
                }
            }
            Speaks::Always { within } => {
                let until = Instant::now() + *within;
                if let Some(silent) = &mut self.silent {
                    silent.as_mut().reset(until);
                }
            }
        }
    }
}

impl axum::serve::Listener for GuardedListener {
    type Io = GuardedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let stream = self.next().await;
        let from = stream.info.remote;
        (stream, from)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
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
        self.spoke(buffer.filled().len() - before);
        let read = self.greeting(cx, read);
        if read.is_pending()
            && let Some(error) = self.poll_silent(cx)
        {
            return Poll::Ready(Err(error));
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
        let written = Pin::new(&mut self.stream).poll_write(cx, data);
        self.greeting(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, data);
        self.greeting(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.greeting(cx, flushed)
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
    use crate::metrics::{ConnectionMetrics, MetricsPage, Observed, registry};

    const SILENCE_MAX: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn who_is_refused_and_who_is_silent_is_counted() {
        let mut registry = registry();
        let metrics = ConnectionMetrics::register(&mut registry).of("client");
        let page = MetricsPage::new(registry);
        let counted = |name: &str, count: u64| {
            let text = page.render(&Observed::default()).expect("text");
            let port = "{port=\"client\"}";
            let line = format!("carillon_connections_{name}_total{port} {count}\n");
            assert!(text.contains(&line), "{line} in\n{text}");
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let incoming = GuardedListener::new(
            listener,
            ("connections_max", 1),
            Speaks::AtFirst {
                bytes: 3,
                within: SILENCE_MAX,
            },
            metrics,
        )
        .incoming();
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

        // Who has only begun to speak is silent too.
        let mut client = TcpStream::connect(address).await.expect("accepted");
        let mut begins = incoming.next().await.expect("a stream").expect("accepted");
        client.write_all(b"xy").await.expect("written");
        let mut two = [0; 2];
        begins.read_exact(&mut two).await.expect("it spoke");
        let ended = begins.read(&mut byte).await.expect_err("said too little");
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        counted("silent", 2);
        drop(begins);

        // Who has spoken may be silent afterwards.
        let mut client = TcpStream::connect(address).await.expect("accepted");
        let mut speaks = incoming.next().await.expect("a stream").expect("accepted");
        client.write_all(b"xyz").await.expect("written");
        let mut three = [0; 3];
        speaks.read_exact(&mut three).await.expect("it spoke");
        let more = tokio::time::timeout(SILENCE_MAX * 3, speaks.read(&mut byte)).await;
        assert!(more.is_err(), "{more:?}");
        counted("refused", 1);
        counted("silent", 2);
    }

    #[tokio::test]
    async fn who_must_always_speak_is_closed_when_it_stops() {
        let metrics = ConnectionMetrics::register(&mut registry()).of("http");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let speaks = Speaks::Always {
            within: SILENCE_MAX,
        };
        let listener = GuardedListener::new(listener, ("connections_max", 1), speaks, metrics);
        let mut client = TcpStream::connect(address).await.expect("accepted");
        let mut stream = listener.next().await;
        let mut byte = [0];
        for _ in 0..4 {
            tokio::time::sleep(SILENCE_MAX / 2).await;
            client.write_all(b"x").await.expect("written");
            stream.read_exact(&mut byte).await.expect("it spoke");
        }
        let ended = stream.read(&mut byte).await.expect_err("it stopped");
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
    }
}
