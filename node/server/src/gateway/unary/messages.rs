//! `Send`, `GetMessages` and `MarkRead`.

use bytes::BytesMut;
use carillon_core::command::encode_send;
use carillon_core::{ClientMessageId, Command, ConversationId, Refusal, Reply, Seq};
use carillon_proto::internal::{self, answer, query};
use carillon_proto::v1;
use tokio::time::Instant;

use super::{Call, encoded_content, page_entries};
use crate::gateway::content;
use crate::gateway::errors::Failure;
use crate::gateway::limits::{PAGE_BYTES_DEFAULT, PAGE_BYTES_MAX, PAGE_ENTRIES_DEFAULT};
use crate::gateway::session::{sent, trace_send};

impl Call {
    pub(super) async fn send(self, request: v1::SendRequest) -> Result<v1::SendResponse, Failure> {
        let asked_at = Instant::now();
        let conversation = ConversationId::parse(request.conversation_id)?;
        let client_message_id = ClientMessageId::parse(request.client_message_id)?;
        let content = encoded_content(request.content);
        content::check(&content)?;
        let mut command = BytesMut::new();
        encode_send(
            &mut command,
            &conversation,
            &self.user,
            &client_message_id,
            &content,
        );
        let reply =
            self.gateway
                .router
                .command(conversation.slot(), command.freeze(), self.deadline);
        let sent = sent(0, reply.await);
        if let Some(tracer) = &self.gateway.tracer {
            trace_send(tracer, asked_at, &sent);
        }
        let v1::Sent {
            seq,
            message_id,
            sent_at_ms,
            duplicate,
            ..
        } = sent?;
        Ok(v1::SendResponse {
            seq,
            message_id,
            sent_at_ms,
            duplicate,
        })
    }

    pub(super) async fn get_messages(
        self,
        request: v1::GetMessagesRequest,
    ) -> Result<v1::GetMessagesResponse, Failure> {
        let conversation = ConversationId::copied(&request.conversation_id)?;
        let request = with_limits(request)?;
        let query = internal::MessagesQuery {
            user_id: self.user_id(),
            request: Some(request),
        };
        match self
            .query(conversation.slot(), query::Kind::Messages(query))
            .await?
        {
            answer::Kind::Messages(page) => Ok(page),
            other => Err(Failure::unexpected(
                "a query for a range of messages",
                other,
            )),
        }
    }

    pub(super) async fn mark_read(
        self,
        request: v1::MarkReadRequest,
    ) -> Result<v1::MarkReadResponse, Failure> {
        let conversation = ConversationId::parse(request.conversation_id)?;
        let seq = Seq(request.read_seq);
        let mut command = Command::MarkRead {
            user: self.user.clone(),
            conversation: conversation.clone(),
            seq,
            verified_end: None,
        };
        let slot = self.user.slot();
        let mut reply = self
            .gateway
            .router
            .command(slot, command.encoded(), self.deadline)
            .await?;
        if let Reply::Refused(Refusal::SeqBeyondEnd { .. }) = reply {
            // The entry may exist and not be delivered yet: its conversation knows.
            let end = Seq(self.conversation(&conversation).await?.last_seq);
            if seq > end {
                return Err(Refusal::SeqBeyondEnd { end }.into());
            }
            if let Command::MarkRead { verified_end, .. } = &mut command {
                *verified_end = Some(end);
            }
            reply = self.execute(slot, &command).await?;
        }
        match reply {
            Reply::Read { read_seq, unread } => Ok(v1::MarkReadResponse {
                read_seq: read_seq.0,
                unread,
            }),
            Reply::Refused(refusal) => Err(refusal.into()),
            other => Err(Failure::unexpected("a read position", other)),
        }
    }
}

/// Checks a range and fills in its limits.
fn with_limits(mut request: v1::GetMessagesRequest) -> Result<v1::GetMessagesRequest, Failure> {
    let direction = match v1::Direction::try_from(request.direction) {
        Ok(v1::Direction::Backward) => v1::Direction::Backward,
        Ok(v1::Direction::Unspecified | v1::Direction::Forward) => v1::Direction::Forward,
        Err(_) => {
            let message = format!(
                "direction {} is neither forward nor backward",
                request.direction
            );
            return Err(Failure::invalid_argument("INVALID_DIRECTION", message));
        }
    };
    let (from, to) = (request.from_seq, request.to_seq);
    let reversed = match direction {
        v1::Direction::Backward => from != 0 && to > from,
        _ => to != 0 && from > to,
    };
    if reversed {
        let message =
            format!("to_seq {to} is on the wrong side of from_seq {from} for this direction");
        return Err(Failure::invalid_argument("RANGE_REVERSED", message)
            .with("from_seq", from)
            .with("to_seq", to));
    }
    request.direction = direction.into();
    request.limit = page_entries(request.limit, PAGE_ENTRIES_DEFAULT)?;
    request.bytes_max = match request.bytes_max {
        0 => PAGE_BYTES_DEFAULT,
        asked if asked <= PAGE_BYTES_MAX => asked,
        asked => {
            return Err(Failure::argument_limit(
                "page_bytes_max",
                u64::from(PAGE_BYTES_MAX),
                u64::from(asked),
            ));
        }
    };
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        use v1::Direction::{Backward, Forward, Unspecified};
        let cases = [
            (Forward, 0, 0, true),
            (Forward, 0, 5, true),
            (Forward, 5, 5, true),
            (Forward, 6, 5, false),
            (Unspecified, 6, 5, false),
            (Forward, 6, 0, true),
            (Backward, 0, 0, true),
            (Backward, 0, 9, true),
            (Backward, 5, 5, true),
            (Backward, 5, 6, false),
            (Backward, 5, 0, true),
        ];
        for (direction, from_seq, to_seq, good) in cases {
            let request = v1::GetMessagesRequest {
                from_seq,
                to_seq,
                direction: direction.into(),
                ..Default::default()
            };
            match with_limits(request) {
                Ok(request) => {
                    assert!(good, "{direction:?} {from_seq} {to_seq}");
                    assert_eq!((request.limit, request.bytes_max), (50, 262_144));
                    assert_ne!(request.direction, Unspecified as i32);
                }
                Err(failure) => {
                    assert!(!good, "{direction:?} {from_seq} {to_seq}");
                    assert_eq!(failure.reason, "RANGE_REVERSED");
                }
            }
        }
    }

    #[test]
    fn limits_and_directions() {
        let cases = [
            (
                v1::GetMessagesRequest {
                    limit: 501,
                    ..Default::default()
                },
                "LIMIT_EXCEEDED",
            ),
            (
                v1::GetMessagesRequest {
                    bytes_max: 1_048_577,
                    ..Default::default()
                },
                "LIMIT_EXCEEDED",
            ),
            (
                v1::GetMessagesRequest {
                    direction: 9,
                    ..Default::default()
                },
                "INVALID_DIRECTION",
            ),
        ];
        for (request, reason) in cases {
            assert_eq!(with_limits(request).expect_err(reason).reason, reason);
        }
    }
}
