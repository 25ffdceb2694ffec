//! The unary calls of `carillon.v1`, as one user.

use std::time::Duration;

use carillon_proto::v1;
use carillon_proto::v1::chat_client::ChatClient;
use futures_util::{Stream, StreamExt};
use tonic::transport::Channel;

use crate::caller::{ANSWER_BYTES_MAX, Caller};
use crate::error::ClientError;
use crate::ids::{ClientMessageId, ConversationId, random_hex};
use crate::pending::Sent;

/// The longest that one `sync` waits for news, as the protocol has it.
const SYNC_WAIT_MAX: Duration = Duration::from_secs(30);

/// Calls without a session: for programs that send or read once. Made by
/// [`crate::ClientBuilder::api`]; cheap to clone. It connects when the first call needs it.
///
/// Every call is retried on the other endpoints while the failure is transient and the
/// call's deadline has not passed.
#[derive(Debug, Clone)]
pub struct Api {
    caller: Caller,
}

/// Which part of a conversation [`Api::get_messages`] reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Range {
    /// Where to begin, inclusive; 0: at the first entry going forward, at the last going
    /// backward.
    pub from_seq: u64,
    /// Where to end, inclusive; 0: no bound.
    pub to_seq: u64,
    /// Newest first when true.
    pub backward: bool,
    /// At most this many entries; 0: the server's default of 50.
    pub limit: u32,
}

impl Range {
    /// The newest `limit` entries, newest first.
    pub fn newest(limit: u32) -> Self {
        Self {
            backward: true,
            limit,
            ..Self::default()
        }
    }

    /// From `seq` on, oldest first.
    pub fn forward_from(seq: u64) -> Self {
        Self {
            from_seq: seq,
            ..Self::default()
        }
    }
}

fn chat(channel: Channel) -> ChatClient<Channel> {
    ChatClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

impl Api {
    pub(crate) fn new(caller: Caller) -> Self {
        Self { caller }
    }

    /// Sends one message under a fresh id. Answered once a majority has it on disk.
    pub async fn send(
        &self,
        conversation: impl Into<ConversationId>,
        content: v1::Content,
    ) -> Result<Sent, ClientError> {
        self.send_with_id(conversation, ClientMessageId::random(), content)
            .await
    }

    /// Sends one message under the given id: repeating it with the same id stores nothing
    /// new and returns the first answer.
    pub async fn send_with_id(
        &self,
        conversation: impl Into<ConversationId>,
        id: impl Into<ClientMessageId>,
        content: v1::Content,
    ) -> Result<Sent, ClientError> {
        let (conversation, id) = (conversation.into(), id.into());
        let request = v1::SendRequest {
            conversation_id: conversation.as_str().to_owned(),
            client_message_id: id.as_str().to_owned(),
            content: Some(content),
        };
        let answer = self
            .caller
            .call("send", request, Duration::ZERO, async |channel, request| {
                chat(channel).send(request).await
            })
            .await?;
        Ok(Sent {
            conversation,
            client_message_id: id,
            seq: answer.seq,
            message_id: answer.message_id,
            sent_at_ms: answer.sent_at_ms,
            duplicate: answer.duplicate,
        })
    }

    /// One page of a conversation's timeline; `next_seq` of the answer goes on.
    pub async fn get_messages(
        &self,
        conversation: impl Into<ConversationId>,
        range: Range,
    ) -> Result<v1::GetMessagesResponse, ClientError> {
        let direction = if range.backward {
            v1::Direction::Backward
        } else {
            v1::Direction::Forward
        };
        let request = v1::GetMessagesRequest {
            conversation_id: conversation.into().into(),
            from_seq: range.from_seq,
            to_seq: range.to_seq,
            direction: direction.into(),
            limit: range.limit,
            bytes_max: 0,
        };
        self.caller
            .call(
                "get_messages",
                request,
                Duration::ZERO,
                async |channel, request| chat(channel).get_messages(request).await,
            )
            .await
    }

    /// The inbox after `cursor`, at most `limit` entries (0: the server's default of 100);
    /// waits up to `wait` (at most 30 s) when there is nothing new.
    pub async fn sync(
        &self,
        cursor: u64,
        limit: u32,
        wait: Duration,
    ) -> Result<v1::SyncResponse, ClientError> {
        let wait = wait.min(SYNC_WAIT_MAX);
        let request = v1::SyncRequest {
            inbox_cursor: cursor,
            limit,
            wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
        };
        self.caller
            .call("sync", request, wait, async |channel, request| {
                chat(channel).sync(request).await
            })
            .await
    }

    /// Follows the inbox from `cursor` until dropped: catches up, then waits for news by
    /// long polls, across nodes that come and go. Ends after the first error that a retry
    /// does not help with. For one reader without a device; a device uses a
    /// [`crate::Client`].
    pub fn follow(
        &self,
        cursor: u64,
    ) -> impl Stream<Item = Result<v1::InboxEntry, ClientError>> + Send + 'static {
        let api = self.clone();
        let pages = futures_util::stream::unfold(Some(cursor), move |cursor| {
            let api = api.clone();
            async move {
                let cursor = cursor?;
                match api.sync(cursor, 0, SYNC_WAIT_MAX).await {
                    Ok(page) => Some((Ok(page.entries), Some(page.inbox_cursor))),
                    Err(error) if error.is_transient() => Some((Ok(Vec::new()), Some(cursor))),
                    Err(error) => Some((Err(error), None)),
                }
            }
        });
        pages.flat_map(|page| {
            let items: Vec<_> = match page {
                Ok(entries) => entries.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            };
            futures_util::stream::iter(items)
        })
    }

    /// One page of the user's conversations, the most recently active first. `page_token`
    /// is empty for the first page; `page_size` 0 means the server's default of 50.
    pub async fn list_conversations(
        &self,
        page_size: u32,
        page_token: &str,
    ) -> Result<v1::ListConversationsResponse, ClientError> {
        let request = v1::ListConversationsRequest {
            page_size,
            page_token: page_token.to_owned(),
        };
        self.caller
            .call(
                "list_conversations",
                request,
                Duration::ZERO,
                async |channel, request| chat(channel).list_conversations(request).await,
            )
            .await
    }

    /// Everything up to and with `seq` is read; never moves backward.
    pub async fn mark_read(
        &self,
        conversation: impl Into<ConversationId>,
        seq: u64,
    ) -> Result<v1::MarkReadResponse, ClientError> {
        let request = v1::MarkReadRequest {
            conversation_id: conversation.into().into(),
            read_seq: seq,
        };
        self.caller
            .call(
                "mark_read",
                request,
                Duration::ZERO,
                async |channel, request| chat(channel).mark_read(request).await,
            )
            .await
    }

    /// Creates a group with the caller as its owner. With `id` `None` the server makes one.
    pub async fn create_group(
        &self,
        id: Option<ConversationId>,
        name: &str,
        members: &[&str],
    ) -> Result<v1::Conversation, ClientError> {
        let request = v1::CreateConversationRequest {
            conversation_id: id.map(String::from).unwrap_or_default(),
            name: name.to_owned(),
            member_ids: owned(members),
            request_id: random_hex(),
        };
        let answer = self
            .caller
            .call(
                "create_group",
                request,
                Duration::ZERO,
                async |channel, request| chat(channel).create_conversation(request).await,
            )
            .await?;
        present(answer.conversation, "create_group")
    }

    /// One conversation that the caller is a member of.
    pub async fn get_conversation(
        &self,
        conversation: impl Into<ConversationId>,
    ) -> Result<v1::Conversation, ClientError> {
        let request = v1::GetConversationRequest {
            conversation_id: conversation.into().into(),
        };
        let answer = self
            .caller
            .call(
                "get_conversation",
                request,
                Duration::ZERO,
                async |channel, request| chat(channel).get_conversation(request).await,
            )
            .await?;
        present(answer.conversation, "get_conversation")
    }

    /// Adds members to a group; those who are members already are left alone.
    pub async fn add_members(
        &self,
        conversation: impl Into<ConversationId>,
        members: &[&str],
    ) -> Result<v1::AddMembersResponse, ClientError> {
        let request = v1::AddMembersRequest {
            conversation_id: conversation.into().into(),
            member_ids: owned(members),
        };
        self.caller
            .call(
                "add_members",
                request,
                Duration::ZERO,
                async |channel, request| chat(channel).add_members(request).await,
            )
            .await
    }

    /// Removes members from a group; the owner may remove anyone, anyone may leave.
    pub async fn remove_members(
        &self,
        conversation: impl Into<ConversationId>,
        members: &[&str],
    ) -> Result<v1::RemoveMembersResponse, ClientError> {
        let request = v1::RemoveMembersRequest {
            conversation_id: conversation.into().into(),
            member_ids: owned(members),
        };
        self.caller
            .call(
                "remove_members",
                request,
                Duration::ZERO,
                async |channel, request| chat(channel).remove_members(request).await,
            )
            .await
    }

    /// One page of a conversation's members, by user id. `page_token` is empty for the
    /// first page; `page_size` 0 means the server's default of 50.
    pub async fn list_members(
        &self,
        conversation: impl Into<ConversationId>,
        page_size: u32,
        page_token: &str,
    ) -> Result<v1::ListMembersResponse, ClientError> {
        let request = v1::ListMembersRequest {
            conversation_id: conversation.into().into(),
            page_size,
            page_token: page_token.to_owned(),
        };
        self.caller
            .call(
                "list_members",
                request,
                Duration::ZERO,
                async |channel, request| chat(channel).list_members(request).await,
            )
            .await
    }
}

fn owned(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

fn present<T>(part: Option<T>, what: &str) -> Result<T, ClientError> {
    part.ok_or_else(|| ClientError::Protocol(format!("the answer to {what} lacks its subject")))
}
