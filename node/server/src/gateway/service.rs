//! The tower service of `carillon.v1.Chat`: `Connect` goes to the gateway's own stream
//! handler, everything else to the generated server.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use carillon_auth::caller::Caller;
use carillon_proto::USER_METADATA_KEY;
use carillon_proto::v1::chat_server::{ChatServer, SERVICE_NAME};
use http::{HeaderValue, Request, Response};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tower_service::Service;

use super::Gateway;
use super::connect::connect;
use super::errors::Failure;
use super::limits::{PAGE_BYTES_MAX, REQUEST_BYTES_MAX};
use super::unary::Unary;
use crate::listen::ConnectionInfo;
use crate::security::{Security, access, denied};

/// The calls that are counted, by the last part of their path.
const METHODS: [&str; 11] = [
    "Send",
    "GetMessages",
    "Sync",
    "SyncStream",
    "ListConversations",
    "MarkRead",
    "CreateConversation",
    "GetConversation",
    "AddMembers",
    "RemoveMembers",
    "ListMembers",
];

/// Those that change nothing.
const READS: [&str; 6] = [
    "GetMessages",
    "Sync",
    "SyncStream",
    "ListConversations",
    "GetConversation",
    "ListMembers",
];

/// A page may hold one message beyond its bytes, and carries ids and counts besides.
const RESPONSE_BYTES_MAX: usize = 4 * PAGE_BYTES_MAX as usize;

/// A generated server whose errors have a reason also when a request cannot be read.
#[derive(Clone)]
pub struct Explained<S>(pub S);

impl<S: NamedService> NamedService for Explained<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Explained<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let call = self.0.call(request);
        Box::pin(async move { call.await.map(explained) })
    }
}

/// A service that answers to whoever has any credential.
#[derive(Clone)]
pub struct Known<S> {
    inner: S,
    security: Arc<Security>,
}

impl<S> Known<S> {
    /// One that asks who calls.
    pub fn new(inner: S, security: Arc<Security>) -> Self {
        Self { inner, security }
    }
}

impl<S: NamedService> NamedService for Known<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Known<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let connection = request.extensions().get::<ConnectionInfo>();
        match self.security.caller(request.headers(), connection) {
            Ok(_) => Box::pin(self.inner.call(request)),
            Err(failure) => Box::pin(ready(Ok(failure.into_status().into_http()))),
        }
    }
}

/// See the module.
#[derive(Clone)]
pub struct ChatService {
    gateway: Arc<Gateway>,
    unary: ChatServer<Unary>,
}

impl ChatService {
    pub(super) fn new(gateway: Arc<Gateway>) -> Self {
        let unary = ChatServer::new(Unary::new(gateway.clone()))
            .max_decoding_message_size(REQUEST_BYTES_MAX)
            .max_encoding_message_size(RESPONSE_BYTES_MAX);
        Self { gateway, unary }
    }

    /// Who calls, and whether they may. A user's token says for whom a call is that does not say
    /// so itself.
    fn admit(&self, request: &mut Request<Body>) -> Result<Caller, Failure> {
        let connection = request.extensions().get::<ConnectionInfo>();
        let caller = self
            .gateway
            .security
            .caller(request.headers(), connection)?;
        request.extensions_mut().insert(caller.clone());
        if caller == Caller::Anyone {
            return Ok(caller);
        }
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        if method == "Connect" {
            // Its hello says for whom.
            return Ok(caller);
        }
        let access = access(method, &READS);
        match (request.headers().get(USER_METADATA_KEY), &caller) {
            (Some(user), _) => {
                // What is not text is no id of a user, and is refused as such.
                if let Ok(user) = user.to_str() {
                    let may = caller.may_chat_as(user, None, access);
                    may.map_err(|why| denied(&why))?;
                }
            }
            (None, Caller::User(token)) => {
                // An id that cannot be in a header is none; the call is refused for its lack.
                if let Ok(user) = HeaderValue::from_str(&token.user_id) {
                    request.headers_mut().insert(USER_METADATA_KEY, user);
                }
            }
            // Refused for the lack of a user.
            (None, _) => {}
        }
        Ok(caller)
    }
}

impl NamedService for ChatService {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<Request<Body>> for ChatService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let caller = match self.admit(&mut request) {
            Ok(caller) => caller,
            Err(failure) => return Box::pin(ready(Ok(failure.into_status().into_http()))),
        };
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        if method == "Connect" {
            let response = connect(&self.gateway, caller, request);
            return Box::pin(std::future::ready(Ok(response)));
        }
        let method = METHODS.into_iter().find(|known| *known == method);
        let metrics = self.gateway.metrics.clone();
        let call = self.unary.call(request);
        Box::pin(async move {
            let response = explained(call.await?);
            if let Some(method) = method {
                metrics.call(method, code(&response));
            }
            Ok(response)
        })
    }
}

/// Gives a reason to the errors that tonic makes of requests that it cannot read; our own have
/// one, and a call that does not exist needs none.
fn explained(response: Response<Body>) -> Response<Body> {
    let Some(status) = response.extensions().get::<Status>() else {
        return response;
    };
    if !status.details().is_empty() {
        return response;
    }
    let failure = match status.code() {
        Code::OutOfRange => {
            let max = REQUEST_BYTES_MAX;
            let message = format!("the request is larger than request_bytes_max, {max} bytes");
            Failure::new(Code::ResourceExhausted, "LIMIT_EXCEEDED", message)
                .with("limit", "request_bytes_max")
                .with("max", max)
        }
        Code::InvalidArgument | Code::Internal => {
            Failure::invalid_argument("INVALID_REQUEST", status.message())
        }
        _ => return response,
    };
    failure.into_status().into_http()
}

/// The code of a call that ended with its headers, or OK for one that has a body.
pub fn code(response: &Response<Body>) -> Code {
    let status = response.headers().get(Status::GRPC_STATUS);
    status.map_or(Code::Ok, |status| Code::from_bytes(status.as_bytes()))
}
