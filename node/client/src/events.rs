//! What a session tells the application, as a bounded stream.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use carillon_proto::v1::InboxEntry;
use futures_util::Stream;
use tokio::sync::mpsc;

use crate::cursor::Cursor;
use crate::error::ClientError;

/// Something that happened to a session.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// A new inbox entry; each once, in order of `inbox_seq`, without gaps.
    Message(InboxEntry),
    /// A stream to a node is up.
    Connected {
        /// The endpoint, as it was given to the builder.
        endpoint: String,
        /// The session's name in the server's logs.
        session_id: String,
    },
    /// The stream is gone. Unanswered sends are kept and go out again.
    Disconnected {
        /// Why.
        error: ClientError,
        /// False when the session is over; nothing follows then.
        reconnecting: bool,
    },
    /// All that was in the inbox at the last `Connected` has been given; what follows is
    /// live.
    CaughtUp,
}

/// The events of one session.
///
/// Taking the next event says that the one before it has been dealt with: the cursor
/// moves and is saved. After the last one use [`Events::commit`].
///
/// The queue behind it is bounded. When the application is slower than its inbox, the
/// session drops what does not fit and reads it again later; nothing is lost and nothing
/// grows. Sends go on meanwhile.
pub struct Events {
    queue: mpsc::Receiver<Event>,
    cursor: Arc<Cursor>,
    /// The message given last, not yet dealt with.
    given: Option<u64>,
}

impl Events {
    pub(crate) fn new(queue: mpsc::Receiver<Event>, cursor: Arc<Cursor>) -> Self {
        Self {
            queue,
            cursor,
            given: None,
        }
    }

    /// The next event; `None` when the session is over. Cancel-safe: an event is given or
    /// stays.
    pub async fn next(&mut self) -> Option<Event> {
        self.commit();
        let event = self.queue.recv().await;
        self.note(event.as_ref());
        event
    }

    /// Says that the last event given has been dealt with, without taking another one.
    pub fn commit(&mut self) {
        if let Some(seq) = self.given.take()
            && let Err(error) = self.cursor.advance(seq)
        {
            tracing::warn!(cursor = seq, %error, "the cursor store failed to save");
        }
    }

    /// The `inbox_seq` of the last message dealt with.
    pub fn cursor(&self) -> u64 {
        self.cursor.taken()
    }

    fn note(&mut self, event: Option<&Event>) {
        if let Some(Event::Message(entry)) = event {
            self.given = Some(entry.inbox_seq);
        }
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.commit();
        let event = std::task::ready!(self.queue.poll_recv(cx));
        self.note(event.as_ref());
        Poll::Ready(event)
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events")
            .field("cursor", &self.cursor())
            .field("given", &self.given)
            .finish_non_exhaustive()
    }
}
