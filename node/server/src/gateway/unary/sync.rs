//! `Sync` and `SyncStream`: the inbox after a cursor.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use carillon_auth::caller::Caller;
use carillon_core::UserId;
use carillon_proto::internal::{self, MessageRef, answer, query};
use carillon_proto::v1;
use futures_util::Stream;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::{Call, page_entries};
use crate::gateway::Gateway;
use crate::gateway::errors::Failure;
use crate::gateway::limits::{SYNC_ENTRIES_DEFAULT, SYNC_WAIT_MS_MAX};
use crate::gateway::registry::{Follower, Listener};
use crate::gateway::session::Place;

/// What is kept of a caller's deadline to answer after a wait, at most; else a quarter
/// of what is left.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(500);

pub(super) type SyncStream = Pin<Box<dyn Stream<Item = Result<v1::SyncResponse, Status>> + Send>>;

/// Follows a user's inbox until it is dropped.
struct Follow {
    gateway: Arc<Gateway>,
    user: UserId,
    caller: Caller,
    follower: Arc<Follower>,
    _place: Place,
}

impl Follow {
    fn new(call: &Call, place: Place) -> Self {
        let Call {
            gateway,
            user,
            caller,
            ..
        } = call;
        let follower = Arc::new(Follower::default());
        gateway
            .registry
            .add(user, Listener::Follower(follower.clone()));
        Self {
            gateway: gateway.clone(),
            user: user.clone(),
            caller: caller.clone(),
            follower,
            _place: place,
        }
    }

    /// Subscribes at the inbox's shard.
    async fn start(&self, deadline: Instant) -> Result<(), Failure> {
        let head = self
            .gateway
            .subscriptions
            .head(&self.user, deadline)
            .await?;
        self.follower.advance(head);
        Ok(())
    }

    /// Waits for entries after `cursor`.
    ///
    /// # Errors
    /// UNAVAILABLE when this node is going away, UNAUTHENTICATED when the caller would not be let
    /// in any more.
    async fn beyond(&self, cursor: u64) -> Result<(), Failure> {
        // All arms are cancel-safe.
        tokio::select! {
            () = self.follower.beyond(cursor) => Ok(()),
            () = self.gateway.turn_to_go() => Err(Failure::draining()),
            failure = self.gateway.until_unknown(&self.caller) => Err(failure),
        }
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.gateway
            .unlisten(&self.user, &Listener::Follower(self.follower.clone()));
    }
}

impl Call {
    pub(super) async fn sync(
        mut self,
        request: v1::SyncRequest,
    ) -> Result<v1::SyncResponse, Failure> {
        let limit = page_entries(request.limit, SYNC_ENTRIES_DEFAULT)?;
        if request.wait_ms > SYNC_WAIT_MS_MAX {
            let (max, actual) = (u64::from(SYNC_WAIT_MS_MAX), u64::from(request.wait_ms));
            return Err(Failure::argument_limit("sync_wait_ms_max", max, actual));
        }
        let cursor = request.inbox_cursor;
        let page = self.inbox_page(cursor, limit).await?;
        if !page.entries.is_empty() || request.wait_ms == 0 {
            return Ok(page);
        }
        let wait_until = self.wait_until(Duration::from_millis(u64::from(request.wait_ms)));
        let follow = Follow::new(&self, self.gateway.admit()?);
        follow.start(self.deadline).await?;
        match tokio::time::timeout_at(wait_until, follow.beyond(cursor)).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) if failure.code == Code::Unauthenticated => return Err(failure),
            // Nothing came in time, or the node stops: the page is empty.
            Ok(Err(_)) | Err(_) => return Ok(page),
        }
        if !self.deadline_is_callers {
            self.deadline = Instant::now() + self.gateway.limits.op_timeout;
        }
        // What has come may have come when the caller was no longer let in.
        self.gateway.security.still_knows(&self.caller)?;
        self.inbox_page(cursor, limit).await
    }

    /// When to stop waiting, so that there is time for the answer.
    fn wait_until(&self, wait: Duration) -> Instant {
        let now = Instant::now();
        if !self.deadline_is_callers {
            return now + wait;
        }
        let left = self.deadline.saturating_duration_since(now);
        now + wait.min(left - (left / 4).min(ANSWER_TIME_MAX))
    }

    pub(super) fn sync_stream(self, request: &v1::SyncRequest) -> Result<SyncStream, Failure> {
        let limit = page_entries(request.limit, SYNC_ENTRIES_DEFAULT)?;
        let place = self.gateway.admit()?;
        let follow = Follow::new(&self, place);
        let state = Following {
            call: self,
            follow,
            cursor: request.inbox_cursor,
            limit,
            started: false,
        };
        Ok(Box::pin(futures_util::stream::try_unfold(
            state,
            |mut state| async move {
                let page = state.next().await?;
                Ok(Some((page, state)))
            },
        )))
    }

    /// The entries after a cursor, with their messages.
    async fn inbox_page(&self, cursor: u64, limit: u32) -> Result<v1::SyncResponse, Failure> {
        let query = internal::InboxQuery {
            user_id: self.user_id(),
            after_inbox_seq: cursor,
            limit,
        };
        let inbox = match self
            .query(self.user.slot(), query::Kind::Inbox(query))
            .await?
        {
            answer::Kind::Inbox(inbox) => inbox,
            other => return Err(Failure::unexpected("a query for an inbox", other)),
        };
        if cursor > inbox.inbox_head {
            return Err(Failure::cursor_beyond_head(cursor, inbox.inbox_head));
        }
        let refs: Vec<MessageRef> = inbox
            .entries
            .iter()
            .map(|entry| entry.message.clone().unwrap_or_default())
            .collect();
        let resolved = self.resolve(&refs).await?;
        let entries: Vec<v1::InboxEntry> = inbox
            .entries
            .iter()
            .zip(refs)
            .zip(resolved.messages)
            .map(|((entry, reference), message)| v1::InboxEntry {
                inbox_seq: entry.inbox_seq,
                message: Some(message.unwrap_or_else(|| missing(reference))),
                unread: 0,
            })
            .collect();
        Ok(v1::SyncResponse {
            inbox_cursor: entries.last().map_or(cursor, |entry| entry.inbox_seq),
            entries,
            inbox_head: inbox.inbox_head,
        })
    }
}

/// An entry whose message is not there any more: the inbox stays dense.
fn missing(reference: MessageRef) -> v1::Message {
    tracing::warn!(
        conversation = reference.conversation_id,
        seq = reference.seq,
        "inbox entry without a message"
    );
    v1::Message {
        conversation_id: reference.conversation_id,
        seq: reference.seq,
        ..Default::default()
    }
}

/// A `SyncStream` between two pages.
struct Following {
    call: Call,
    follow: Follow,
    cursor: u64,
    limit: u32,
    started: bool,
}

impl Following {
    /// The next page that has entries.
    async fn next(&mut self) -> Result<v1::SyncResponse, Failure> {
        loop {
            self.call.deadline = Instant::now() + self.call.gateway.limits.op_timeout;
            if !self.started {
                self.follow.start(self.call.deadline).await?;
                self.started = true;
            }
            let page = self.call.inbox_page(self.cursor, self.limit).await?;
            // Whoever began this may not be let in any more.
            self.call.gateway.security.still_knows(&self.call.caller)?;
            if !page.entries.is_empty() {
                self.cursor = page.inbox_cursor;
                return Ok(page);
            }
            self.follow.beyond(self.cursor).await?;
        }
    }
}
