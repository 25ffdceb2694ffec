//! The raw protocol: generated clients over plain channels, and what errors carry.

use std::time::Duration;

use anyhow::{Context as _, Result};
use carillon_proto::admin::admin_client::AdminClient;
use carillon_proto::{ERROR_DOMAIN, USER_METADATA_KEY, v1};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::access::Access;
pub use crate::access::Chat;

/// The generated admin client.
pub type Admin = AdminClient<Channel>;

/// How long a TCP connection may take.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// How long a call may take when a test does not say otherwise.
pub const CALL_LIMIT: Duration = Duration::from_secs(10);

/// The endpoint of an address, host:port.
pub fn endpoint(address: &str) -> Result<Endpoint> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .with_context(|| format!("{address} is no address"))?;
    Ok(endpoint.connect_timeout(CONNECT_LIMIT).tcp_nodelay(true))
}

/// A chat client that connects when it is first used, of a cluster in development mode.
pub fn chat(address: &str) -> Result<Chat> {
    Ok(Access::default().target(address)?.chat())
}

/// An admin client that connects when it is first used.
pub fn admin(address: &str) -> Result<Admin> {
    Ok(Admin::new(endpoint(address)?.connect_lazy()))
}

/// A request with a deadline.
pub fn within<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

/// A request of a user, with the usual deadline.
///
/// # Panics
/// When the user's id cannot stand in a header.
pub fn as_user<T>(user: &str, message: T) -> Request<T> {
    let mut request = within(message, CALL_LIMIT);
    let value = MetadataValue::try_from(user).expect("user ids of tests are plain ASCII");
    request.metadata_mut().insert(USER_METADATA_KEY, value);
    request
}

/// A content that is a text.
pub fn text(body: impl Into<String>) -> v1::Content {
    v1::Content {
        kind: Some(v1::content::Kind::Text(v1::Text { body: body.into() })),
    }
}

/// The id of the direct conversation of two users.
pub fn direct_id(a: &str, b: &str) -> String {
    let (first, second) = if a < b { (a, b) } else { (b, a) };
    format!("direct:{first}:{second}")
}

/// What a refusal has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The canonical code.
    pub code: Code,
    /// The ErrorInfo reason; empty when there is none.
    pub reason: String,
}

/// The code and the reason of an error; checks that it has a text and our domain.
///
/// # Panics
/// When the error has no text, or details of somebody else.
pub fn refusal(status: &Status) -> Refusal {
    assert!(
        !status.message().is_empty(),
        "an error without a text: {status:?}"
    );
    let info = status.get_details_error_info();
    if let Some(info) = &info {
        assert_eq!(info.domain, ERROR_DOMAIN, "{status:?}");
    }
    Refusal {
        code: status.code(),
        reason: info.map(|info| info.reason).unwrap_or_default(),
    }
}

/// Asserts that a call was refused with a code and a reason.
///
/// # Panics
/// When it was not.
#[track_caller]
pub fn assert_refused<T: std::fmt::Debug>(
    outcome: std::result::Result<T, Status>,
    code: Code,
    reason: &str,
) -> Status {
    let status = outcome.expect_err("the call had to be refused");
    let expected = Refusal {
        code,
        reason: reason.to_owned(),
    };
    assert_eq!(refusal(&status), expected, "{status:?}");
    status
}

/// The metadata of an error's ErrorInfo under a key; empty when there is none.
pub fn error_metadata(status: &Status, key: &str) -> String {
    let info = status.get_details_error_info();
    info.and_then(|mut info| info.metadata.remove(key))
        .unwrap_or_default()
}
