//! Who may call `carillon.admin.v1`, and the record of who did.
//!
//! Owner of no state. What changes something is recorded under the target `audit`, once it is
//! done or refused, with who wanted it, from where, and how it ended.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use carillon_auth::caller::{Access, Caller};
use carillon_core::map::ACTOR_BYTES_MAX;
use carillon_proto::ACTOR_METADATA_KEY;
use carillon_proto::admin::admin_server::{AdminServer, SERVICE_NAME};
use http::{Request, Response};
use tonic::Code;
use tonic::body::Body;
use tonic::server::NamedService;
use tower_service::Service;

use super::AdminService;
use crate::gateway::errors::Failure;
use crate::gateway::{Explained, code};
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

/// Bytes of a method's name that are recorded, at most.
const METHOD_BYTES_MAX: usize = 64;

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
    /// Calls of unknown callers.
    refused: Arc<AtomicU64>,
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
            refused: Arc::default(),
        }
    }

    /// Counts who administers without being known, and tells of some.
    fn unknown(&self, request: &Request<Body>, failure: &Failure) {
        let count = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            let connection = request.extensions().get::<ConnectionInfo>();
            let from = connection.map(ConnectionInfo::remote);
            tracing::warn!(?from, count, error = %failure, "somebody unknown administers");
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
        let record = match &caller {
            // Anybody could fill a disk with these.
            Err(failure) => {
                self.unknown(&request, failure);
                None
            }
            Ok(caller) => (access == Access::Write).then(|| Record::new(method, &request, caller)),
        };
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
                        record.ended(code(&response));
                    }
                    Ok(response)
                })
            }
            Err(failure) => {
                if let Some(record) = record {
                    record.ended(failure.code);
                }
                Box::pin(ready(Ok(failure.into_status().into_http())))
            }
        }
    }
}

/// What is recorded of a call, when it has ended or nobody waits for its end any more.
struct Record {
    method: String,
    by: String,
    claims: String,
    from: String,
    /// How it ended; none while it has not.
    code: Option<Code>,
}

impl Record {
    fn new(mut method: String, request: &Request<Body>, caller: &Caller) -> Self {
        let connection = request.extensions().get::<ConnectionInfo>();
        let claims = request.headers().get(ACTOR_METADATA_KEY);
        let claims = claims.and_then(|claims| claims.to_str().ok());
        let mut claims = claims.unwrap_or_default().to_owned();
        claims.truncate(claims.floor_char_boundary(ACTOR_BYTES_MAX));
        method.truncate(method.floor_char_boundary(METHOD_BYTES_MAX));
        Self {
            method,
            by: caller.name().unwrap_or("nobody was asked").to_owned(),
            claims,
            from: connection.map_or_else(|| "local".to_owned(), |from| from.remote().to_string()),
            code: None,
        }
    }

    fn ended(mut self, code: Code) {
        self.code = Some(code);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Self {
            method,
            by,
            claims,
            from,
            code,
        } = self;
        match code {
            Some(code) => {
                tracing::info!(target: "audit", method, by, claims, from, ?code, "administers");
            }
            // It may be carried out all the same.
            None => {
                tracing::info!(target: "audit", method, by, claims, from, "administers, and did not wait for the end");
            }
        }
    }
}
