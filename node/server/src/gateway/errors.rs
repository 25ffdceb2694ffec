//! What a client is told when something fails: one table for unary calls, streams and
//! sends.
//!
//! A [`Failure`] is a canonical gRPC code and the parts of a `google.rpc.ErrorInfo`:
//! a stable reason, and metadata such as the limit's name. Reasons are part of the
//! protocol, the texts are for people.

use std::collections::HashMap;

use carillon_core::{InvalidId, Refusal};
use carillon_proto::{ERROR_DOMAIN, v1};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::router::OpError;

/// What was asked for was spread over two shards by a split.
const MOVED_REASON: &str = "SHARD_SPLIT";

/// Why a call, a send or a stream failed, as the client learns it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The canonical code.
    pub code: Code,
    /// The `ErrorInfo` reason.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// The `ErrorInfo` metadata.
    pub metadata: Vec<(&'static str, String)>,
}

impl Failure {
    /// A failure without metadata.
    pub fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            metadata: Vec::new(),
        }
    }

    /// It is to be asked again at once, of the shards that there are now.
    pub fn is_moved(&self) -> bool {
        self.reason == MOVED_REASON
    }

    /// INVALID_ARGUMENT.
    pub fn invalid_argument(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, reason, message)
    }

    /// RESOURCE_EXHAUSTED: a named limit would be passed.
    pub fn limit(limit: &'static str, max: u64, actual: u64) -> Self {
        Self::new(
            Code::ResourceExhausted,
            "LIMIT_EXCEEDED",
            format!("{limit} is {max}, but this would be {actual}"),
        )
        .with("limit", limit)
        .with("max", max)
        .with("actual", actual)
    }

    /// INVALID_ARGUMENT: a request asks for more than a named limit allows.
    pub fn argument_limit(limit: &'static str, max: u64, actual: u64) -> Self {
        Self {
            code: Code::InvalidArgument,
            ..Self::limit(limit, max, actual)
        }
    }

    /// UNAVAILABLE: this node is going away.
    pub fn draining() -> Self {
        Self::new(
            Code::Unavailable,
            "DRAINING",
            "this node is being drained or stops; connect to another one",
        )
    }

    /// OUT_OF_RANGE: a cursor that the inbox has not reached.
    pub fn cursor_beyond_head(cursor: u64, head: u64) -> Self {
        let message = format!("the inbox cursor {cursor} is beyond the inbox's end, {head}");
        Self::new(Code::OutOfRange, "CURSOR_BEYOND_HEAD", message)
            .with("cursor", cursor)
            .with("inbox_head", head)
    }

    /// INTERNAL: a bug.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, "INTERNAL", message)
    }

    /// An answer of the wrong kind.
    pub(super) fn unexpected(what: &str, answer: impl std::fmt::Debug) -> Self {
        Self::internal(format!("{what} was answered with {answer:?}"))
    }

    /// Adds a metadata entry.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl ToString) -> Self {
        self.metadata.push((key, value.to_string()));
        self
    }

    /// As the status of a call.
    pub fn into_status(self) -> Status {
        let metadata: HashMap<String, String> = self
            .metadata
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        let details = ErrorDetails::with_error_info(self.reason, ERROR_DOMAIN, metadata);
        Status::with_error_details(self.code, self.message, details)
    }

    /// As the answer to a send on a stream.
    pub(super) fn into_request_error(self, request_id: u64) -> v1::RequestError {
        v1::RequestError {
            request_id,
            code: self.code as i32,
            reason: self.reason.to_owned(),
            message: self.message,
            metadata: self
                .metadata
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
        }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        failure.into_status()
    }
}

impl From<InvalidId> for Failure {
    fn from(error: InvalidId) -> Self {
        let message = error.to_string();
        match error {
            InvalidId::TooLong {
                what: what @ "conversation name",
                max,
                actual,
            } => {
                let limit = "conversation_name_bytes_max";
                Self::argument_limit(limit, max as u64, actual as u64).with("field", what)
            }
            InvalidId::NameNotUtf8 => Self::invalid_argument("INVALID_REQUEST", message),
            InvalidId::TooLong { what, max, actual } => {
                Self::invalid_argument("INVALID_ID", message)
                    .with("field", what)
                    .with("max", max)
                    .with("actual", actual)
            }
            InvalidId::Empty { what, .. } | InvalidId::Character { what, .. } => {
                Self::invalid_argument("INVALID_ID", message).with("field", what)
            }
            InvalidId::NotDirect | InvalidId::DirectOrder | InvalidId::DirectSelf => {
                Self::invalid_argument("INVALID_ID", message).with("field", "conversation id")
            }
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal {
            Refusal::ConversationNotFound => Code::NotFound,
            Refusal::NotAMember | Refusal::NotOwner => Code::PermissionDenied,
            Refusal::ConversationExists => Code::AlreadyExists,
            Refusal::MembersLimit { .. } => Code::ResourceExhausted,
            Refusal::DirectFixed => Code::FailedPrecondition,
            Refusal::SeqBeyondEnd { .. } => Code::OutOfRange,
            // Deliveries catch up in a moment, so the same call will succeed.
            Refusal::NotDeliveredYet => Code::Unavailable,
        };
        let failure = Self::new(code, refusal.reason(), refusal.to_string());
        match refusal {
            Refusal::MembersLimit { max, actual } => failure
                .with("limit", "members_max")
                .with("max", max)
                .with("actual", actual),
            Refusal::SeqBeyondEnd { end } => failure.with("end", end),
            _ => failure,
        }
    }
}

impl From<OpError> for Failure {
    fn from(error: OpError) -> Self {
        let message = error.to_string();
        match error {
            OpError::DeadlineExceeded { shard } => {
                let message = format!("{message}; it may still happen, so retry with the same ids");
                Self::new(Code::DeadlineExceeded, "TIMEOUT", message).with("shard", shard)
            }
            OpError::Overloaded { limit, max } => {
                let message = format!("{message}; try again later");
                Self::new(Code::ResourceExhausted, "LIMIT_EXCEEDED", message)
                    .with("limit", limit)
                    .with("max", max)
            }
            OpError::ShuttingDown => Self::draining(),
            OpError::Moved => {
                let message = format!("{message}; try again");
                Self::new(Code::Unavailable, MOVED_REASON, message)
            }
            OpError::Internal(_) => Self::internal(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use carillon_core::{ConversationId, Seq, UserId};

    use super::*;

    #[test]
    fn every_refusal_has_its_code_and_reason() {
        let cases = [
            (
                Refusal::ConversationNotFound,
                Code::NotFound,
                "CONVERSATION_NOT_FOUND",
            ),
            (Refusal::NotAMember, Code::PermissionDenied, "NOT_A_MEMBER"),
            (
                Refusal::ConversationExists,
                Code::AlreadyExists,
                "CONVERSATION_EXISTS",
            ),
            (Refusal::NotOwner, Code::PermissionDenied, "NOT_OWNER"),
            (
                Refusal::MembersLimit {
                    max: 500,
                    actual: 501,
                },
                Code::ResourceExhausted,
                "LIMIT_EXCEEDED",
            ),
            (
                Refusal::DirectFixed,
                Code::FailedPrecondition,
                "DIRECT_FIXED",
            ),
            (
                Refusal::SeqBeyondEnd { end: Seq(3) },
                Code::OutOfRange,
                "SEQ_BEYOND_END",
            ),
            (
                Refusal::NotDeliveredYet,
                Code::Unavailable,
                "NOT_DELIVERED_YET",
            ),
        ];
        for (refusal, code, reason) in cases {
            let status = Failure::from(refusal.clone()).into_status();
            assert_eq!(status.code(), code, "{refusal:?}");
            let info = status.get_details_error_info().expect("an ErrorInfo");
            assert_eq!(
                (info.reason.as_str(), info.domain.as_str()),
                (reason, "carillon")
            );
        }
    }

    #[test]
    fn limits_name_themselves() {
        let status = Failure::from(Refusal::MembersLimit {
            max: 500,
            actual: 501,
        })
        .into_status();
        let info = status.get_details_error_info().expect("an ErrorInfo");
        assert_eq!(info.metadata["limit"], "members_max");
        assert_eq!(info.metadata["max"], "500");
        assert_eq!(info.metadata["actual"], "501");
    }

    #[test]
    fn every_router_error_has_its_code_and_reason() {
        let cases = [
            (
                OpError::DeadlineExceeded { shard: 3 },
                Code::DeadlineExceeded,
                "TIMEOUT",
            ),
            (
                OpError::Overloaded { limit: "l", max: 1 },
                Code::ResourceExhausted,
                "LIMIT_EXCEEDED",
            ),
            (OpError::ShuttingDown, Code::Unavailable, "DRAINING"),
            (OpError::Moved, Code::Unavailable, "SHARD_SPLIT"),
            (OpError::Internal("x".into()), Code::Internal, "INTERNAL"),
        ];
        for (error, code, reason) in cases {
            let failure = Failure::from(error);
            assert_eq!((failure.code, failure.reason), (code, reason));
        }
    }

    #[test]
    fn bad_ids_are_invalid_arguments() {
        let failures = [
            UserId::copied("").expect_err("empty"),
            UserId::copied("a b").expect_err("a space"),
            UserId::copied(&"a".repeat(65)).expect_err("long"),
            ConversationId::copied("direct:b:a").expect_err("wrong order"),
            ConversationId::copied("direct:a:a").expect_err("oneself"),
            ConversationId::copied("a:b").expect_err("a colon"),
        ];
        for error in failures {
            let failure = Failure::from(error);
            assert_eq!(
                (failure.code, failure.reason),
                (Code::InvalidArgument, "INVALID_ID")
            );
            assert!(failure.metadata.iter().any(|(key, _)| *key == "field"));
        }
    }

    #[test]
    fn request_errors_carry_the_same() {
        let error = Failure::limit("sends_in_flight_max", 256, 257).into_request_error(9);
        assert_eq!(
            (error.request_id, error.code, error.reason.as_str()),
            (9, 8, "LIMIT_EXCEEDED")
        );
        assert_eq!(error.metadata["limit"], "sends_in_flight_max");
    }
}
