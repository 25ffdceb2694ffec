//! From references to messages: an inbox and a conversation list hold only where a
//! message is; the message is in its conversation's shard.

use std::collections::{BTreeMap, HashMap};

use carillon_core::{ShardId, Slot};
use carillon_proto::internal::{self, MessageRef, answer, query};
use carillon_proto::v1;
use futures_util::{StreamExt, TryStreamExt};
use prost::Message;
use tokio::time::Instant;

use super::Call;
use crate::gateway::errors::Failure;
use crate::gateway::limits::{PAGE_BYTES_MAX, QUERIES_CONCURRENT_MAX, RESOLVE_CHUNK};

/// What references stand for.
#[derive(Default)]
pub(super) struct Resolved {
    /// The messages in the order of the references, up to a page's bytes but at least
    /// one; none where there is no message.
    pub messages: Vec<Option<v1::Message>>,
    /// The conversations that they are in.
    pub conversations: HashMap<String, v1::Conversation>,
}

/// References into one shard, and where each stands among all.
struct Group {
    slot: Slot,
    places: Vec<usize>,
    refs: Vec<MessageRef>,
}

impl Call {
    /// Reads what the references stand for, several shards at a time.
    pub(super) async fn resolve(&self, refs: &[MessageRef]) -> Result<Resolved, Failure> {
        let mut resolved = Resolved::default();
        let mut bytes = 0;
        for chunk in refs.chunks(RESOLVE_CHUNK) {
            let answers = self.answers(chunk).await?;
            let mut messages = vec![None; chunk.len()];
            for (places, answer) in answers {
                for (place, message) in places.into_iter().zip(answer.messages) {
                    messages[place] = (message.seq > 0).then_some(message);
                }
                for conversation in answer.conversations {
                    resolved
                        .conversations
                        .insert(conversation.conversation_id.clone(), conversation);
                }
            }
            for message in messages {
                bytes += message.as_ref().map_or(0, Message::encoded_len);
                if bytes > PAGE_BYTES_MAX as usize && !resolved.messages.is_empty() {
                    return Ok(resolved);
                }
                resolved.messages.push(message);
            }
        }
        Ok(resolved)
    }

    /// Asks all shards that have a part of the chunk; again when a split has moved a part.
    async fn answers(
        &self,
        chunk: &[MessageRef],
    ) -> Result<Vec<(Vec<usize>, internal::MessagesByRefAnswer)>, Failure> {
        loop {
            let version = self.gateway.router.routing_version();
            let answers = futures_util::stream::iter(self.group(chunk))
                .map(|group| self.resolve_group(group))
                .buffer_unordered(QUERIES_CONCURRENT_MAX)
                .try_collect()
                .await;
            match answers {
                Err(failure) if failure.is_moved() && Instant::now() < self.deadline => {
                    self.gateway.router.rerouted(version).await;
                }
                answers => return answers,
            }
        }
    }

    fn group(&self, refs: &[MessageRef]) -> impl Iterator<Item = Group> + use<> {
        let mut groups: BTreeMap<ShardId, Group> = BTreeMap::new();
        for (place, reference) in refs.iter().enumerate() {
            let slot = Slot::of(reference.conversation_id.as_bytes());
            let group = groups
                .entry(self.gateway.router.shard_of(slot))
                .or_insert_with(|| Group {
                    slot,
                    places: Vec::new(),
                    refs: Vec::new(),
                });
            group.places.push(place);
            group.refs.push(reference.clone());
        }
        groups.into_values()
    }

    async fn resolve_group(
        &self,
        group: Group,
    ) -> Result<(Vec<usize>, internal::MessagesByRefAnswer), Failure> {
        let kind = query::Kind::MessagesByRef(internal::MessagesByRefQuery { refs: group.refs });
        match self.query(group.slot, kind).await? {
            answer::Kind::MessagesByRef(answer) if answer.messages.len() == group.places.len() => {
                Ok((group.places, answer))
            }
            other => Err(Failure::unexpected("a query for messages", other)),
        }
    }
}
