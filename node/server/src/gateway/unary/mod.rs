//! The calls of `carillon.v1.Chat` besides `Connect`: who calls, until when, and the way
//! to the shards. What each call does is in the files below, by subject.
//!
//! A call is checked whole before anything is asked or changed.

mod conversations;
mod members;
mod messages;
mod page_token;
mod resolve;
mod sync;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use carillon_auth::caller::Caller;
use carillon_core::{Command, Refusal, Reply, Slot, UserId};
use carillon_proto::internal::{self, answer, query};
use carillon_proto::v1::chat_server::Chat;
use carillon_proto::{USER_METADATA_KEY, v1};
use prost::Message;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status, Streaming};

use super::Gateway;
use super::errors::Failure;
use super::limits::{CALL_TIMEOUT_MAX, PAGE_ENTRIES_MAX};
use crate::router::OpError;

/// The part of a caller's deadline that is kept for the way back, so that the call ends
/// with its own error and not with the transport's: more than the router takes to notice.
const DEADLINE_MARGIN_MAX: Duration = Duration::from_millis(50);
/// As above, for short deadlines: one part in this many.
const DEADLINE_MARGIN_PART: u32 = 10;
/// Digits of a `grpc-timeout`.
const TIMEOUT_DIGITS_MAX: usize = 8;

/// The generated server's implementation.
pub(super) struct Unary {
    gateway: Arc<Gateway>,
}

/// One call: by whom, until when.
struct Call {
    gateway: Arc<Gateway>,
    user: UserId,
    /// Whose credential it came with.
    caller: Caller,
    deadline: Instant,
    /// True when the caller set the deadline, so that it cannot be moved.
    deadline_is_callers: bool,
}

impl Unary {
    pub fn new(gateway: Arc<Gateway>) -> Self {
        Self { gateway }
    }

    /// Takes a request apart.
    fn begin<R>(&self, request: Request<R>) -> Result<(Call, R), Failure> {
        let metadata = request.metadata();
        let user = caller(metadata)?;
        let known = request.extensions().get::<Caller>().cloned();
        let known = known.ok_or_else(|| Failure::internal("nobody has asked who calls"))?;
        let asked = metadata
            .get("grpc-timeout")
            .and_then(|value| value.to_str().ok())
            .and_then(parse_timeout);
        let timeout = asked.map_or(self.gateway.limits.op_timeout, |asked| {
            asked.min(CALL_TIMEOUT_MAX)
        });
        let margin = (timeout / DEADLINE_MARGIN_PART).min(DEADLINE_MARGIN_MAX);
        let call = Call {
            gateway: self.gateway.clone(),
            user,
            caller: known,
            deadline: Instant::now() + (timeout - margin),
            deadline_is_callers: asked.is_some(),
        };
        Ok((call, request.into_inner()))
    }
}

impl Call {
    /// Executes a command in the shard that owns `slot`; a refusal is an error.
    async fn command(&self, slot: Slot, command: Bytes) -> Result<Reply, Failure> {
        match self
            .gateway
            .router
            .command(slot, command, self.deadline)
            .await?
        {
            Reply::Refused(refusal) => Err(refusal.into()),
            reply => Ok(reply),
        }
    }

    /// The same for a command that names its slot.
    async fn execute(&self, slot: Slot, command: &Command) -> Result<Reply, Failure> {
        let mut encoded = BytesMut::new();
        command.encode(&mut encoded);
        self.command(slot, encoded.freeze()).await
    }

    /// Reads from the shard that owns `slot`; a refusal is an error.
    async fn query(&self, slot: Slot, kind: query::Kind) -> Result<answer::Kind, Failure> {
        self.gateway.query(slot, kind, self.deadline).await
    }

    fn user_id(&self) -> String {
        self.user.as_str().to_owned()
    }
}

impl Gateway {
    /// Reads from the shard that owns `slot`; a refusal is an error.
    pub(super) async fn query(
        &self,
        slot: Slot,
        kind: query::Kind,
        deadline: Instant,
    ) -> Result<answer::Kind, Failure> {
        let query = internal::Query { kind: Some(kind) };
        match self.router.query(slot, query, deadline).await?.kind {
            Some(answer::Kind::Refused(refused)) => Err(refusal(&refused)?.into()),
            Some(kind) => Ok(kind),
            None => Err(Failure::internal("a query was answered with nothing")),
        }
    }
}

/// The refusal in an answer; see [`crate::query`].
fn refusal(encoded: &Bytes) -> Result<Refusal, OpError> {
    match Reply::decode(encoded) {
        Ok(Reply::Refused(refusal)) => Ok(refusal),
        Ok(other) => Err(OpError::Internal(format!(
            "a query was refused with {other:?}"
        ))),
        Err(error) => Err(OpError::Internal(format!(
            "a query was refused with a damaged message: {error}"
        ))),
    }
}

fn caller(metadata: &MetadataMap) -> Result<UserId, Failure> {
    let user = metadata.get(USER_METADATA_KEY).ok_or_else(|| {
        let message =
            format!("the call does not say who calls; set the metadata key {USER_METADATA_KEY}");
        Failure::new(Code::Unauthenticated, "USER_MISSING", message)
    })?;
    Ok(UserId::parse(Bytes::copy_from_slice(user.as_bytes()))?)
}

/// A `grpc-timeout`: up to eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > TIMEOUT_DIGITS_MAX || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3_600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// A page's entries: the default for 0, refused over the limit.
fn page_entries(asked: u32, default: u32) -> Result<u32, Failure> {
    match asked {
        0 => Ok(default),
        asked if asked <= PAGE_ENTRIES_MAX => Ok(asked),
        asked => Err(Failure::argument_limit(
            "page_entries_max",
            u64::from(PAGE_ENTRIES_MAX),
            u64::from(asked),
        )),
    }
}

fn encoded_content(content: Option<v1::Content>) -> Bytes {
    content
        .map(|content| content.encode_to_vec().into())
        .unwrap_or_default()
}

/// Answers a call with what a method of [`Call`] makes of it.
macro_rules! answer {
    ($unary:expr, $request:expr, $method:ident) => {{
        let (call, request) = $unary.begin($request)?;
        Ok(Response::new(call.$method(request).await?))
    }};
}

#[tonic::async_trait]
impl Chat for Unary {
    type ConnectStream = tokio_stream::Empty<Result<v1::ServerFrame, Status>>;
    type SyncStreamStream = sync::SyncStream;

    /// Not reached: [`super::service`] takes this path before the generated server.
    async fn connect(
        &self,
        _request: Request<Streaming<v1::ClientFrame>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        Err(Failure::internal("the stream was given to the wrong handler").into())
    }

    async fn send(
        &self,
        request: Request<v1::SendRequest>,
    ) -> Result<Response<v1::SendResponse>, Status> {
        answer!(self, request, send)
    }

    async fn get_messages(
        &self,
        request: Request<v1::GetMessagesRequest>,
    ) -> Result<Response<v1::GetMessagesResponse>, Status> {
        answer!(self, request, get_messages)
    }

    async fn sync(
        &self,
        request: Request<v1::SyncRequest>,
    ) -> Result<Response<v1::SyncResponse>, Status> {
        answer!(self, request, sync)
    }

    async fn sync_stream(
        &self,
        request: Request<v1::SyncRequest>,
    ) -> Result<Response<Self::SyncStreamStream>, Status> {
        let (call, request) = self.begin(request)?;
        Ok(Response::new(call.sync_stream(&request)?))
    }

    async fn list_conversations(
        &self,
        request: Request<v1::ListConversationsRequest>,
    ) -> Result<Response<v1::ListConversationsResponse>, Status> {
        answer!(self, request, list_conversations)
    }

    async fn mark_read(
        &self,
        request: Request<v1::MarkReadRequest>,
    ) -> Result<Response<v1::MarkReadResponse>, Status> {
        answer!(self, request, mark_read)
    }

    async fn create_conversation(
        &self,
        request: Request<v1::CreateConversationRequest>,
    ) -> Result<Response<v1::CreateConversationResponse>, Status> {
        answer!(self, request, create_conversation)
    }

    async fn get_conversation(
        &self,
        request: Request<v1::GetConversationRequest>,
    ) -> Result<Response<v1::GetConversationResponse>, Status> {
        answer!(self, request, get_conversation)
    }

    async fn add_members(
        &self,
        request: Request<v1::AddMembersRequest>,
    ) -> Result<Response<v1::AddMembersResponse>, Status> {
        answer!(self, request, add_members)
    }

    async fn remove_members(
        &self,
        request: Request<v1::RemoveMembersRequest>,
    ) -> Result<Response<v1::RemoveMembersResponse>, Status> {
        answer!(self, request, remove_members)
    }

    async fn list_members(
        &self,
        request: Request<v1::ListMembersRequest>,
    ) -> Result<Response<v1::ListMembersResponse>, Status> {
        answer!(self, request, list_members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        let cases = [
            ("10S", Some(Duration::from_secs(10))),
            ("2H", Some(Duration::from_secs(7_200))),
            ("3M", Some(Duration::from_secs(180))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("5n", Some(Duration::from_nanos(5))),
            ("999999999S", None),
            ("S", None),
            ("", None),
            ("1é", None),
            ("+1S", None),
            ("1s", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_timeout(text), expected, "{text}");
        }
    }

    #[test]
    fn callers() {
        let mut metadata = MetadataMap::new();
        let missing = caller(&metadata).expect_err("nobody");
        assert_eq!(
            (missing.code, missing.reason),
            (Code::Unauthenticated, "USER_MISSING")
        );
        metadata.insert(USER_METADATA_KEY, "a b".parse().expect("metadata"));
        assert_eq!(caller(&metadata).expect_err("a space").reason, "INVALID_ID");
        metadata.insert(USER_METADATA_KEY, "alice".parse().expect("metadata"));
        assert_eq!(caller(&metadata).expect("alice").as_str(), "alice");
    }

    #[test]
    fn pages() {
        assert_eq!(page_entries(0, 50), Ok(50));
        assert_eq!(page_entries(500, 50), Ok(500));
        let failure = page_entries(501, 50).expect_err("over the limit");
        assert_eq!(
            (failure.code, failure.reason),
            (Code::InvalidArgument, "LIMIT_EXCEEDED")
        );
    }
}
