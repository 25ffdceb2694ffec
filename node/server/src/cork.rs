//! Gathers what a connection writes while other tasks still have something for it.
//!
//! HTTP/2 multiplexes many streams over one connection, and each stream's task wakes the
//! connection's as soon as it has a frame, which would make one system call of every frame.
//! Here a flush first lets the tasks that are ready now run, by going once to the end of the
//! runtime's queue; what they add leaves with the same write.
//!
//! Owner of the state: the connection's task. Invariants: bytes leave in the order in which
//! they were written; buffered ≤ `CORK_BYTES_MAX`, and beyond it writes wait for the socket;
//! an idle connection holds no buffer.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// Bytes gathered at most.
const CORK_BYTES_MAX: usize = 64 << 10;

/// See the file's head.
pub struct Corked<S> {
    inner: S,
    buffer: BytesMut,
    /// The others have had their turn since the buffer began to fill.
    yielded: bool,
}

impl<S> Corked<S> {
    /// A connection whose writes are gathered.
    pub fn new(inner: S) -> Self {
        Self {
            inner,
            buffer: BytesMut::new(),
            yielded: false,
        }
    }

    fn room(&self) -> usize {
        CORK_BYTES_MAX - self.buffer.len()
    }
}

impl<S: AsyncWrite + Unpin> Corked<S> {
    /// Writes all that is gathered.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.buffer.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.buffer))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.buffer.advance(written);
        }
        self.buffer = BytesMut::new();
        self.yielded = false;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.room() == 0 {
            ready!(self.poll_drain(cx))?;
        }
        let taken = data.len().min(self.room());
        self.buffer.extend_from_slice(&data[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.room() == 0 {
            ready!(self.poll_drain(cx))?;
        }
        let mut taken = 0;
        for slice in data {
            let part = slice.len().min(self.room());
            self.buffer.extend_from_slice(&slice[..part]);
            taken += part;
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.buffer.is_empty() {
            if !self.yielded {
                self.yielded = true;
                // A task that wakes itself goes to the end of the queue.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(self.poll_drain(cx))?;
        }
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Corked<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<S: Connected> Connected for Corked<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> S::ConnectInfo {
        self.inner.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::task::noop_waker;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Takes `left` bytes, then nothing more; counts the writes.
    #[derive(Default)]
    struct Socket {
        taken: Vec<u8>,
        left: usize,
        writes: usize,
    }

    impl AsyncWrite for Socket {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            data: &[u8],
        ) -> Poll<io::Result<usize>> {
            let count = data.len().min(self.left);
            if count == 0 {
                return Poll::Pending;
            }
            self.left -= count;
            self.writes += 1;
            self.taken.extend_from_slice(&data[..count]);
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn what_is_written_before_the_second_flush_leaves_at_once() {
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        let mut corked = Corked::new(Socket {
            left: usize::MAX,
            ..Socket::default()
        });
        assert!(Pin::new(&mut corked).poll_write(&mut cx, b"one").is_ready());
        assert!(Pin::new(&mut corked).poll_flush(&mut cx).is_pending());
        let slices = [IoSlice::new(b" two"), IoSlice::new(b" three")];
        let written = Pin::new(&mut corked).poll_write_vectored(&mut cx, &slices);
        assert!(matches!(written, Poll::Ready(Ok(10))));
        assert_eq!(corked.inner.writes, 0);
        assert!(Pin::new(&mut corked).poll_flush(&mut cx).is_ready());
        assert_eq!(corked.inner.taken, b"one two three");
        assert_eq!(corked.inner.writes, 1);
        assert_eq!(corked.buffer.capacity(), 0, "an idle connection holds none");
    }

    #[test]
    fn a_full_cork_waits_for_the_socket() {
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        let mut corked = Corked::new(Socket::default());
        let data = vec![7; CORK_BYTES_MAX + 5];
        let written = Pin::new(&mut corked).poll_write(&mut cx, &data);
        assert!(matches!(written, Poll::Ready(Ok(CORK_BYTES_MAX))));
        let more = Pin::new(&mut corked).poll_write(&mut cx, &data);
        assert!(more.is_pending(), "nothing beyond the limit");
        corked.inner.left = CORK_BYTES_MAX;
        let more = Pin::new(&mut corked).poll_write(&mut cx, &data[..5]);
        assert!(matches!(more, Poll::Ready(Ok(5))));
        assert_eq!(corked.inner.taken.len(), CORK_BYTES_MAX);
    }

    #[tokio::test]
    async fn bytes_arrive_in_order() {
        let (near, mut far) = tokio::io::duplex(1000);
        let mut corked = Corked::new(near);
        let sent: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
        let expected = sent.clone();
        let reading = tokio::spawn(async move {
            let mut got = Vec::new();
            far.read_to_end(&mut got).await.map(|_| got)
        });
        for chunk in sent.chunks(777) {
            corked.write_all(chunk).await.expect("written");
            if chunk[0] % 5 == 0 {
                corked.flush().await.expect("flushed");
            }
        }
        corked.shutdown().await.expect("shut down");
        drop(corked);
        let got = reading.await.expect("no panic").expect("read");
        assert!(got == expected);
    }
}
