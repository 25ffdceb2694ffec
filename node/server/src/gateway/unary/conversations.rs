//! `ListConversations`, `CreateConversation` and `GetConversation`.

use carillon_core::{Command, ConversationId, ConversationName, Reply, RequestId, UserId};
use carillon_proto::internal::{self, MessageRef, answer, query};
use carillon_proto::v1;
use xxhash_rust::xxh3::xxh3_128;

use super::page_token::ConversationsAfter;
use super::{Call, members, page_entries};
use crate::gateway::errors::Failure;
use crate::gateway::limits::PAGE_ENTRIES_DEFAULT;
use crate::query::conversation;

/// Bits of the hash that an id made by the server keeps.
const MADE_ID_BITS: u32 = 96;

impl Call {
    pub(super) async fn list_conversations(
        self,
        request: v1::ListConversationsRequest,
    ) -> Result<v1::ListConversationsResponse, Failure> {
        let page_size = page_entries(request.page_size, PAGE_ENTRIES_DEFAULT)?;
        let after = ConversationsAfter::parse(&request.page_token)?;
        let query = internal::ConversationListQuery {
            user_id: self.user_id(),
            page_size,
            after_last_at_ms: after.as_ref().map(|after| after.last_at_ms),
            after_conversation_id: after
                .map(|after| after.conversation.as_str().to_owned())
                .unwrap_or_default(),
        };
        let list = match self
            .query(self.user.slot(), query::Kind::ConversationList(query))
            .await?
        {
            answer::Kind::ConversationList(list) => list,
            other => return Err(Failure::unexpected("a query for conversations", other)),
        };
        let refs: Vec<MessageRef> = list
            .rows
            .iter()
            .map(|row| MessageRef {
                conversation_id: row.conversation_id.clone(),
                seq: row.last_delivered_seq,
            })
            .collect();
        let mut resolved = self.resolve(&refs).await?;
        // A page may end early because of its bytes.
        let shown = resolved.messages.len();
        let more = list.more || shown < list.rows.len();
        let next_page_token = match list.rows[..shown].last() {
            Some(last) if more => token_after(last)?,
            _ => String::new(),
        };
        let conversations = list
            .rows
            .into_iter()
            .zip(resolved.messages)
            .map(|(row, last_message)| {
                let about = resolved
                    .conversations
                    .remove(&row.conversation_id)
                    .unwrap_or_default();
                v1::ConversationSummary {
                    conversation_id: row.conversation_id,
                    kind: about.kind,
                    name: about.name,
                    last_message,
                    unread: row.unread,
                    read_seq: row.read_seq,
                }
            })
            .collect();
        Ok(v1::ListConversationsResponse {
            conversations,
            next_page_token,
            unread_total: list.unread_total,
        })
    }

    pub(super) async fn create_conversation(
        self,
        request: v1::CreateConversationRequest,
    ) -> Result<v1::CreateConversationResponse, Failure> {
        let request_id = RequestId::parse(request.request_id)?;
        let id = if request.conversation_id.is_empty() {
            made_id(&self.user, &request_id)
        } else {
            ConversationId::parse(request.conversation_id)?
        };
        if id.is_direct() {
            let message = "a direct conversation needs no creation; choose an id without ':'";
            return Err(
                Failure::invalid_argument("INVALID_ID", message).with("field", "conversation id")
            );
        }
        let name = ConversationName::parse(request.name)?;
        let members = members::first_members(&self.user, request.member_ids)?;
        let slot = id.slot();
        let create = Command::CreateGroup {
            conversation: id,
            name,
            creator: self.user.clone(),
            members,
            request_id,
        };
        match self.execute(slot, &create).await? {
            Reply::Created { summary, .. } => Ok(v1::CreateConversationResponse {
                conversation: Some(conversation(&summary)),
            }),
            other => Err(Failure::unexpected("a creation", other)),
        }
    }

    pub(super) async fn get_conversation(
        self,
        request: v1::GetConversationRequest,
    ) -> Result<v1::GetConversationResponse, Failure> {
        let id = ConversationId::parse(request.conversation_id)?;
        let conversation = self.conversation(&id).await?;
        Ok(v1::GetConversationResponse {
            conversation: Some(conversation),
        })
    }

    /// A conversation that the caller is a member of.
    pub(super) async fn conversation(
        &self,
        id: &ConversationId,
    ) -> Result<v1::Conversation, Failure> {
        let query = internal::ConversationQuery {
            user_id: self.user_id(),
            conversation_id: id.as_str().to_owned(),
        };
        match self
            .query(id.slot(), query::Kind::Conversation(query))
            .await?
        {
            answer::Kind::Conversation(conversation) => Ok(conversation),
            other => Err(Failure::unexpected("a query for a conversation", other)),
        }
    }
}

fn token_after(row: &internal::ConversationRow) -> Result<String, Failure> {
    let conversation = ConversationId::copied(&row.conversation_id).map_err(|error| {
        Failure::internal(format!("the conversation list holds a bad id: {error}"))
    })?;
    Ok(ConversationsAfter {
        last_at_ms: row.last_at_ms,
        conversation,
    }
    .token())
}

/// The id of a group whose creator did not choose one: the same on every retry.
fn made_id(creator: &UserId, request_id: &RequestId) -> ConversationId {
    let seed = [creator.as_bytes(), request_id.as_bytes()].join(&0);
    let hash = xxh3_128(&seed) >> (u128::BITS - MADE_ID_BITS);
    let digits = MADE_ID_BITS as usize / 4;
    ConversationId::parse(format!("g{hash:0digits$x}")).expect("a letter and digits are an id")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_ids_follow_from_caller_and_request() {
        let id = |user: &str, request: &str| {
            made_id(
                &UserId::copied(user).expect("an id"),
                &RequestId::copied(request).expect("an id"),
            )
        };
        assert_eq!(id("alice", "r1"), id("alice", "r1"));
        assert_eq!(id("alice", "r1").as_str().len(), 25);
        assert_ne!(id("alice", "r1"), id("alice", "r2"));
        assert_ne!(id("alice", "r1"), id("alic", "er1"));
    }
}
