//! Who may call `carillon.admin.v1`, and the record of who did.
//!
//! Owner of no state. What changes something is recorded under the target `audit`, once it is
//! done or refused, with who wanted it, from where, and how it ended.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use carillon_auth::caller::{Access, Caller};
use carillon_proto::ACTOR_METADATA_KEY;
use carillon_proto::admin::admin_server::{AdminServer, SERVICE_NAME};
use http::{Request, Response};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tower_service::Service;

use super::AdminService;
use crate::gateway::Explained;
use crate::gateway::errors::Failure;
use crate::listen::ConnectionInfo;
use crate::security::{Security, access, denied};

/// The calls that change nothing and say no secret. `GetJoinToken` says one.
const READS: [&str; 8] = [
    "GetCluster",
    "ListNodes",
    "ListShards",
    "GetPolicy",
    "GetDrain",
    "ListMoves",
    "ListEvents",
    "GetRecovery",
];

/// The way by which calls come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Over the network: the caller has a certificate, or in development mode needs none.
    Connection,
    /// Over the socket beside the data.
    Socket,
}

/// See the file's head.
#[derive(Clone)]
pub struct GuardedAdmin {
    inner: Explained<AdminServer<AdminService>>,
    security: Arc<Security>,
    way: Way,
}

impl GuardedAdmin {
    /// A service that is asked only by those who may.
    pub fn new(
        inner: Explained<AdminServer<AdminService>>,
        security: Arc<Security>,
        way: Way,
    ) -> Self {
        Self {
            inner,
            security,
            way,
        }
    }

    fn caller(&self, request: &Request<Body>) -> Result<Caller, Failure> {
        match self.way {
            Way::Socket => Ok(Caller::Local),
            Way::Connection => {
                let connection = request.extensions().get::<ConnectionInfo>();
                self.security.caller(request.headers(), connection)
            }
        }
    }
}

impl NamedService for GuardedAdmin {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<Request<Body>> for GuardedAdmin {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        let method = method.to_owned();
        let access = access(&method, &READS);
        let caller = self.caller(&request);
        let record = (access == Access::Write).then(|| Record::new(method, &request, &caller));
        let allowed = caller.and_then(|caller| {
            let may = caller.may_administer(access);
            may.map(|()| caller).map_err(|why| denied(&why))
        });
        match allowed {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                let call = self.inner.call(request);
                Box::pin(async move {
                    let response = call.await?;
                    if let Some(record) = record {
                        record.ended(&code(&response));
                    }
                    Ok(response)
                })
            }
            Err(failure) => {
                if let Some(record) = record {
                    record.ended(&failure.code);
                }
                Box::pin(ready(Ok(failure.into_status().into_http())))
            }
        }
    }
}

/// What is recorded of a call.
struct Record {
    method: String,
    by: String,
    claims: String,
    from: String,
}

impl Record {
    fn new(method: String, request: &Request<Body>, caller: &Result<Caller, Failure>) -> Self {
        let connection = request.extensions().get::<ConnectionInfo>();
        let claims = request.headers().get(ACTOR_METADATA_KEY);
        let claims = claims.and_then(|claims| claims.to_str().ok());
        Self {
            method,
            by: match caller {
                Ok(caller) => caller.name().unwrap_or("nobody was asked").to_owned(),
                Err(failure) => format!("unknown: {failure}"),
            },
            claims: claims.unwrap_or_default().to_owned(),
            from: connection.map_or_else(|| "local".to_owned(), |from| from.remote().to_string()),
        }
    }

    fn ended(&self, code: &Code) {
        let Self {
            method,
            by,
            claims,
            from,
        } = self;
        tracing::info!(target: "audit", method, by, claims, from, ?code, "administers");
    }
}

/// The code of a call that ended with its headers, or OK for one that has a body.
fn code(response: &Response<Body>) -> Code {
    let status = response.headers().get(Status::GRPC_STATUS);
    status.map_or(Code::Ok, |status| Code::from_bytes(status.as_bytes()))
}
