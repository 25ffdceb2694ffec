//! The unary calls on a [`Client`]: each goes to its [`crate::Api`].

use std::time::Duration;

use carillon_proto::v1;

use crate::api::Range;
use crate::client::Client;
use crate::error::ClientError;
use crate::ids::ConversationId;

impl Client {
    /// See [`crate::Api::get_messages`].
    pub async fn get_messages(
        &self,
        conversation: impl Into<ConversationId>,
        range: Range,
    ) -> Result<v1::GetMessagesResponse, ClientError> {
        self.api().get_messages(conversation, range).await
    }

    /// See [`crate::Api::sync`]. The session keeps itself in step; this is for programs
    /// that read an inbox by hand.
    pub async fn sync(
        &self,
        cursor: u64,
        limit: u32,
        wait: Duration,
    ) -> Result<v1::SyncResponse, ClientError> {
        self.api().sync(cursor, limit, wait).await
    }

    /// See [`crate::Api::list_conversations`].
    pub async fn list_conversations(
        &self,
        page_size: u32,
        page_token: &str,
    ) -> Result<v1::ListConversationsResponse, ClientError> {
        self.api().list_conversations(page_size, page_token).await
    }

    /// See [`crate::Api::mark_read`].
    pub async fn mark_read(
        &self,
        conversation: impl Into<ConversationId>,
        seq: u64,
    ) -> Result<v1::MarkReadResponse, ClientError> {
        self.api().mark_read(conversation, seq).await
    }

    /// See [`crate::Api::create_group`].
    pub async fn create_group(
        &self,
        id: Option<ConversationId>,
        name: &str,
        members: &[&str],
    ) -> Result<v1::Conversation, ClientError> {
        self.api().create_group(id, name, members).await
    }

    /// See [`crate::Api::get_conversation`].
    pub async fn get_conversation(
        &self,
        conversation: impl Into<ConversationId>,
    ) -> Result<v1::Conversation, ClientError> {
        self.api().get_conversation(conversation).await
    }

    /// See [`crate::Api::add_members`].
    pub async fn add_members(
        &self,
        conversation: impl Into<ConversationId>,
        members: &[&str],
    ) -> Result<v1::AddMembersResponse, ClientError> {
        self.api().add_members(conversation, members).await
    }

    /// See [`crate::Api::remove_members`].
    pub async fn remove_members(
        &self,
        conversation: impl Into<ConversationId>,
        members: &[&str],
    ) -> Result<v1::RemoveMembersResponse, ClientError> {
        self.api().remove_members(conversation, members).await
    }

    /// See [`crate::Api::list_members`].
    pub async fn list_members(
        &self,
        conversation: impl Into<ConversationId>,
        page_size: u32,
        page_token: &str,
    ) -> Result<v1::ListMembersResponse, ClientError> {
        self.api()
            .list_members(conversation, page_size, page_token)
            .await
    }
}
