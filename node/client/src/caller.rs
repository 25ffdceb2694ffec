//! Unary calls with retries: one request, several endpoints, one deadline.
//!
//! Every unary call of the protocol may be repeated (sends carry a client message id,
//! creations a request id, the rest is idempotent), so a try whose outcome is not known
//! is simply made again, on the next endpoint.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::backoff::Backoff;
use crate::endpoints::Endpoints;
use crate::error::{ClientError, Verdict, verdict};

/// The largest answer taken, bytes: a page is at most 1 MiB of messages, and this leaves
/// room for what surrounds them.
pub(crate) const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Makes calls as somebody: a user, or who administers.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    endpoints: Arc<Endpoints>,
    /// The metadata of every call that says who makes it.
    as_whom: Option<(&'static str, MetadataValue<Ascii>)>,
    /// For all tries of a call together.
    call_timeout: Duration,
    /// For one try; what is slower is tried elsewhere.
    attempt_timeout: Duration,
}

impl Caller {
    /// `as_whom`, a key and a name, becomes the metadata of every call.
    pub(crate) fn new(
        endpoints: Arc<Endpoints>,
        as_whom: Option<(&'static str, &str)>,
        call_timeout: Duration,
        attempt_timeout: Duration,
    ) -> Result<Self, ClientError> {
        let as_whom = as_whom
            .map(|(key, name)| match MetadataValue::try_from(name) {
                Ok(value) => Ok((key, value)),
                Err(_) => Err(ClientError::Config(format!(
                    "the name {name:?} has characters not allowed"
                ))),
            })
            .transpose()?;
        Ok(Self {
            endpoints,
            as_whom,
            call_timeout,
            attempt_timeout,
        })
    }

    pub(crate) fn endpoints(&self) -> &Arc<Endpoints> {
        &self.endpoints
    }

    /// Calls `rpc` until it is answered, refused, or the call's deadline has passed.
    /// `wait` is what the server may take on purpose (long polls), on top of the limits.
    pub(crate) async fn call<Req, Resp, F, Fut>(
        &self,
        what: &'static str,
        request: Req,
        wait: Duration,
        rpc: F,
    ) -> Result<Resp, ClientError>
    where
        Req: Clone,
        F: Fn(Channel, Request<Req>) -> Fut,
        Fut: Future<Output = Result<Response<Resp>, Status>>,
    {
        let allowed = self.call_timeout + wait;
        let deadline = Instant::now() + allowed;
        let mut backoff = Backoff::default();
        let mut index = self.endpoints.preferred();
        let mut tries_in_round = 0;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let this_try = left.min(self.attempt_timeout + wait);
            let channel = self.endpoints.channel(index);
            let request = self.request(request.clone(), this_try)?;
            let answer = timeout(this_try, rpc(channel, request)).await;
            let failure = match answer {
                Ok(Ok(response)) => {
                    self.endpoints.prefer(index);
                    return Ok(response.into_inner());
                }
                Ok(Err(status)) if verdict(&status) == Verdict::Final => {
                    return Err(ClientError::from_status(&status));
                }
                // The try's own limit, as the server or the channel noticed it.
                Ok(Err(status)) if is_out_of_time(&status) => None,
                Ok(Err(status)) => Some(describe(&status)),
                Err(_) => None,
            };
            tracing::debug!(
                what,
                endpoint = self.endpoints.name(index),
                ?failure,
                "try failed"
            );
            tries_in_round += 1;
            // The other endpoints are asked at once, a second round waits.
            let pause = if tries_in_round < self.endpoints.len() {
                Duration::ZERO
            } else {
                tries_in_round = 0;
                backoff.next_wait()
            };
            if Instant::now() + pause >= deadline {
                return Err(match failure {
                    Some(message) => ClientError::Unavailable {
                        what,
                        endpoint: self.endpoints.name(index).to_owned(),
                        message,
                    },
                    None => ClientError::Timeout {
                        what,
                        after: allowed,
                    },
                });
            }
            sleep(pause).await;
            index += 1;
        }
    }

    /// A request with the user and the time that the server has for it.
    ///
    /// # Errors
    /// [`ClientError::Config`] when the token is none.
    pub(crate) fn request<T>(&self, message: T, time: Duration) -> Result<Request<T>, ClientError> {
        let mut request = Request::new(message);
        if let Some((key, name)) = &self.as_whom {
            request.metadata_mut().insert(*key, name.clone());
        }
        if let Some(authorization) = self.endpoints.credentials().authorization()? {
            request
                .metadata_mut()
                .insert("authorization", authorization);
        }
        request.set_timeout(time);
        Ok(request)
    }
}

fn is_out_of_time(status: &Status) -> bool {
    matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled)
}

/// A status in one line, with what lies below it: tonic's own message for a refused
/// connection is only "transport error".
pub(crate) fn describe(status: &Status) -> String {
    let mut text = if status.message().is_empty() {
        status.code().description().to_owned()
    } else {
        status.message().to_owned()
    };
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let below = error.to_string();
        if !text.contains(&below) {
            text.push_str(": ");
            text.push_str(&below);
        }
        source = error.source();
    }
    text
}
