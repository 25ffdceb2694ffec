//! The tower service of `carillon.v1.Chat`: `Connect` goes to the gateway's own stream
//! handler, everything else to the generated server.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use carillon_proto::v1::chat_server::{ChatServer, SERVICE_NAME};
use http::{Request, Response};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tower_service::Service;

use super::Gateway;
use super::connect::connect;
use super::errors::Failure;
use super::limits::{PAGE_BYTES_MAX, REQUEST_BYTES_MAX};
use super::unary::Unary;

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

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        if method == "Connect" {
            let response = connect(&self.gateway, request);
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
fn code(response: &Response<Body>) -> Code {
    let status = response.headers().get(Status::GRPC_STATUS);
    status.map_or(Code::Ok, |status| Code::from_bytes(status.as_bytes()))
}
