//! What can go wrong, as a program wants to tell it apart.
//!
//! The server's refusals are told apart by `ErrorInfo.reason`, which is stable; where a
//! reason has no variant of its own, the canonical gRPC code decides.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::time::Duration;

use carillon_proto::{ERROR_DOMAIN, v1};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// What the server said when it refused a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The canonical gRPC code.
    pub code: Code,
    /// The `ErrorInfo` reason, for example `NOT_A_MEMBER`; empty when there was none.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Details by name: the limit, the id in question …
    pub metadata: BTreeMap<String, String>,
}

/// Why a call, a send or a session failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The user is not a member of the conversation.
    #[error("not a member of the conversation: {0}")]
    NotAMember(Box<Refusal>),
    /// There is no such conversation.
    #[error("no such conversation: {0}")]
    ConversationNotFound(Box<Refusal>),
    /// A conversation with this id exists already.
    #[error("the conversation exists already: {0}")]
    ConversationExists(Box<Refusal>),
    /// A named limit was exceeded. Nothing was done, unless an earlier try of the same was.
    #[error("over the limit {limit}{}: {refusal}", max.map(|m| format!(" of {m}")).unwrap_or_default())]
    LimitExceeded {
        /// The limit's name, for example `members_max`.
        limit: String,
        /// Its value, when the server said it.
        max: Option<u64>,
        /// What the server said.
        refusal: Box<Refusal>,
    },
    /// The request itself is wrong; the same request will always be refused.
    #[error("invalid argument: {0}")]
    InvalidArgument(Box<Refusal>),
    /// The inbox cursor is further than the inbox: it belongs to another cluster or user.
    /// Start again from an empty cursor store.
    #[error("the inbox cursor is beyond the end of the inbox: {0}")]
    CursorBeyondHead(Box<Refusal>),
    /// A position beyond the end of what exists.
    #[error("out of range: {0}")]
    OutOfRange(Box<Refusal>),
    /// The server does not know who calls.
    #[error("not signed in: {0}")]
    Unauthenticated(Box<Refusal>),
    /// The user may not do this.
    #[error("not allowed: {0}")]
    PermissionDenied(Box<Refusal>),
    /// Something else than a conversation does not exist.
    #[error("not found: {0}")]
    NotFound(Box<Refusal>),
    /// The state of the system does not allow it now.
    #[error("not possible now: {0}")]
    FailedPrecondition(Box<Refusal>),
    /// Refused for a reason that has no variant of its own.
    #[error("the server answered {code:?}: {0}", code = .0.code)]
    Refused(Box<Refusal>),
    /// No endpoint could do it, after all retries that the deadline allowed.
    #[error("{what} failed on {endpoint}: {message}")]
    Unavailable {
        /// The call or step.
        what: &'static str,
        /// The endpoint tried last.
        endpoint: String,
        /// Why the last try failed.
        message: String,
    },
    /// The deadline passed. Whether the request was carried out is not known; repeating it
    /// (a send under the same client message id) is safe.
    #[error("{what} was not answered within {after:?}")]
    Timeout {
        /// The call or step.
        what: &'static str,
        /// The time that it was given.
        after: Duration,
    },
    /// The same user and device connected elsewhere; this session is over.
    #[error("replaced by another session of the same user and device")]
    Replaced,
    /// The server ended the session because of what this client sent.
    #[error("the server saw a protocol error: {0}")]
    Protocol(String),
    /// The connection broke. Seen in [`crate::Event::Disconnected`]; the session reconnects.
    #[error("the connection to {endpoint} was lost: {message}")]
    ConnectionLost {
        /// The endpoint.
        endpoint: String,
        /// Why.
        message: String,
    },
    /// The client was closed or dropped before the answer came.
    #[error("the client was closed")]
    Closed,
    /// The builder was given something that cannot work.
    #[error("invalid client configuration: {0}")]
    Config(String),
    /// The application's cursor store failed.
    #[error("the cursor store failed to {what}: {message}")]
    CursorStore {
        /// `load` or `save`.
        what: &'static str,
        /// Its error.
        message: String,
    },
}

impl ClientError {
    /// What the server said, when it was the server that refused.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::NotAMember(refusal)
            | Self::ConversationNotFound(refusal)
            | Self::ConversationExists(refusal)
            | Self::LimitExceeded { refusal, .. }
            | Self::InvalidArgument(refusal)
            | Self::CursorBeyondHead(refusal)
            | Self::OutOfRange(refusal)
            | Self::Unauthenticated(refusal)
            | Self::PermissionDenied(refusal)
            | Self::NotFound(refusal)
            | Self::FailedPrecondition(refusal)
            | Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// The `ErrorInfo` reason, for example `NOT_A_MEMBER`.
    pub fn reason(&self) -> Option<&str> {
        self.refusal()
            .map(|refusal| refusal.reason.as_str())
            .filter(|reason| !reason.is_empty())
    }

    /// True when trying the same again later can help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable { .. } | Self::Timeout { .. } | Self::ConnectionLost { .. } => true,
            Self::Refused(refusal) => is_transient(refusal.code, None),
            Self::LimitExceeded { limit, .. } => PASSING_LIMITS.contains(&limit.as_str()),
            _ => false,
        }
    }

    /// The typed form of a refusal.
    pub(crate) fn from_refusal(refusal: Refusal) -> Self {
        let refusal = Box::new(refusal);
        match refusal.reason.as_str() {
            "NOT_A_MEMBER" => return Self::NotAMember(refusal),
            "CONVERSATION_NOT_FOUND" => return Self::ConversationNotFound(refusal),
            "CONVERSATION_EXISTS" => return Self::ConversationExists(refusal),
            "CURSOR_BEYOND_HEAD" => return Self::CursorBeyondHead(refusal),
            "LIMIT_EXCEEDED" => {
                let limit = refusal.metadata.get("limit").cloned().unwrap_or_default();
                let max = refusal.metadata.get("max").and_then(|m| m.parse().ok());
                return Self::LimitExceeded {
                    limit,
                    max,
                    refusal,
                };
            }
            _ => {}
        }
        match refusal.code {
            Code::InvalidArgument => Self::InvalidArgument(refusal),
            Code::OutOfRange => Self::OutOfRange(refusal),
            Code::Unauthenticated => Self::Unauthenticated(refusal),
            Code::PermissionDenied => Self::PermissionDenied(refusal),
            Code::NotFound => Self::NotFound(refusal),
            Code::FailedPrecondition => Self::FailedPrecondition(refusal),
            _ => Self::Refused(refusal),
        }
    }

    /// The typed form of a status that is not worth a retry.
    pub(crate) fn from_status(status: &Status) -> Self {
        Self::from_refusal(refusal_of(status))
    }

    /// The typed form of an error frame on a stream.
    pub(crate) fn from_request_error(error: v1::RequestError) -> Self {
        Self::from_refusal(Refusal {
            code: Code::from_i32(error.code),
            reason: error.reason,
            message: error.message,
            metadata: error.metadata.into_iter().collect(),
        })
    }
}

/// What a status says about the server's reason.
fn refusal_of(status: &Status) -> Refusal {
    let info = status
        .get_details_error_info()
        .filter(|info| info.domain == ERROR_DOMAIN);
    let (reason, metadata) = info
        .map(|info| (info.reason, info.metadata.into_iter().collect()))
        .unwrap_or_default();
    Refusal {
        code: status.code(),
        reason,
        message: status.message().to_owned(),
        metadata,
    }
}

/// What to do about a status, for a request that may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The server refused it and would refuse it again.
    Final,
    /// The server, this node or the way there is unavailable: try again, elsewhere.
    Retry,
}

/// Decides between a refusal and a failure of the way there. Transport failures come from
/// tonic with different codes, but always with a source and never with an `ErrorInfo`.
pub(crate) fn verdict(status: &Status) -> Verdict {
    let reached = || refusal_of(status).metadata.get("limit").cloned();
    if is_transient(status.code(), reached().as_deref()) {
        return Verdict::Retry;
    }
    let from_transport = status.source().is_some() && status.get_details_error_info().is_none();
    let hidden = matches!(
        status.code(),
        Code::Unknown | Code::Internal | Code::Cancelled
    );
    if from_transport && hidden {
        Verdict::Retry
    } else {
        Verdict::Final
    }
}

/// Limits of what a node does at a time: reached now, and perhaps not in a moment. A request
/// that is sent again meets one although its first try may have been stored.
const PASSING_LIMITS: [&str; 5] = [
    "sends_in_flight_max",
    "sessions_max",
    "lane_operations_max",
    "proposals_waiting_max",
    "disk_reserve_bytes",
];

/// Whether it says "not now" rather than "no", `limit` being the limit that it names. The
/// deadline and cancellation belong here because every request of this protocol may be
/// repeated.
pub(crate) fn is_transient(code: Code, limit: Option<&str>) -> bool {
    match code {
        Code::Unavailable | Code::DeadlineExceeded | Code::Aborted | Code::Cancelled => true,
        Code::ResourceExhausted => limit.is_some_and(|limit| PASSING_LIMITS.contains(&limit)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use tonic_types::ErrorDetails;

    fn status(code: Code, reason: &str, metadata: &[(&str, &str)]) -> Status {
        let metadata: HashMap<String, String> = metadata
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        Status::with_error_details(
            code,
            "the text",
            ErrorDetails::with_error_info(reason, ERROR_DOMAIN, metadata),
        )
    }

    #[test]
    fn reasons_become_variants() {
        let error = ClientError::from_status(&status(Code::PermissionDenied, "NOT_A_MEMBER", &[]));
        assert!(matches!(error, ClientError::NotAMember(_)), "{error:?}");
        assert_eq!(error.reason(), Some("NOT_A_MEMBER"));

        let error = ClientError::from_status(&status(
            Code::ResourceExhausted,
            "LIMIT_EXCEEDED",
            &[("limit", "members_max"), ("max", "500")],
        ));
        match &error {
            ClientError::LimitExceeded { limit, max, .. } => {
                assert_eq!((limit.as_str(), *max), ("members_max", Some(500)));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(
            error.to_string(),
            "over the limit members_max of 500: the text"
        );
    }

    #[test]
    fn unknown_reasons_fall_back_to_the_code() {
        let error = ClientError::from_status(&status(Code::InvalidArgument, "INVALID_ID", &[]));
        assert!(
            matches!(error, ClientError::InvalidArgument(_)),
            "{error:?}"
        );
        assert_eq!(error.reason(), Some("INVALID_ID"));
        let error = ClientError::from_status(&Status::data_loss("x"));
        assert!(matches!(error, ClientError::Refused(_)), "{error:?}");
        assert_eq!(error.reason(), None);
    }

    #[test]
    fn what_may_pass_is_retried() {
        assert_eq!(verdict(&Status::unavailable("x")), Verdict::Retry);
        assert_eq!(verdict(&Status::deadline_exceeded("x")), Verdict::Retry);
        assert_eq!(verdict(&Status::internal("bug")), Verdict::Final);
        assert_eq!(
            verdict(&status(Code::NotFound, "CONVERSATION_NOT_FOUND", &[])),
            Verdict::Final
        );
        let limited = |limit| {
            let metadata = [("limit", limit), ("max", "5")];
            verdict(&status(
                Code::ResourceExhausted,
                "LIMIT_EXCEEDED",
                &metadata,
            ))
        };
        assert_eq!(limited("members_max"), Verdict::Final);
        assert_eq!(limited("lane_operations_max"), Verdict::Retry);
        let broken = std::io::Error::new(std::io::ErrorKind::BrokenPipe, "pipe");
        assert_eq!(
            verdict(&Status::from_error(Box::new(broken))),
            Verdict::Retry
        );
    }
}
