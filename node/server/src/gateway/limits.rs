//! What a client may ask for. Limits that are part of the protocol are constants; the
//! ones an operator may change are in [`Limits`].

use std::time::Duration;

use carillon_proto::v1;

/// Unanswered sends on one stream.
pub const SENDS_IN_FLIGHT_MAX: u32 = 256;
/// Bytes of an encoded `Content`.
pub const CONTENT_BYTES_MAX: usize = 65_536;
/// Bytes of a custom content's type.
pub const CUSTOM_TYPE_BYTES_MAX: usize = 64;
/// Entries of one page.
pub const PAGE_ENTRIES_MAX: u32 = 500;
/// Entries of a page of `GetMessages`, `ListConversations` and `ListMembers` when the
/// caller does not say.
pub const PAGE_ENTRIES_DEFAULT: u32 = 50;
/// Entries of a page of `Sync` when the caller does not say.
pub const SYNC_ENTRIES_DEFAULT: u32 = 100;
/// Bytes of one page; a single larger message still makes a page.
pub const PAGE_BYTES_MAX: u32 = 1 << 20;
/// Bytes of a page of `GetMessages` when the caller does not say.
pub const PAGE_BYTES_DEFAULT: u32 = 256 << 10;
/// Members of a group, its owner among them.
pub const MEMBERS_MAX: usize = 500;
/// The longest wait of a `Sync`, milliseconds.
pub const SYNC_WAIT_MS_MAX: u32 = 30_000;
/// Bytes of a platform's name in `Hello`.
pub const PLATFORM_BYTES_MAX: usize = 64;
/// Bytes of one frame from a client: a content and its ids, with room to spare.
pub const FRAME_BYTES_MAX: usize = 128 << 10;
/// Bytes of one unary request.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;
/// Missed heartbeat intervals after which a stream is ended.
pub const HEARTBEATS_MISSED_MAX: u32 = 3;
/// A stream's cursor is stored at most this often.
pub const CURSOR_INTERVAL: Duration = Duration::from_secs(1);
/// The longest deadline of a call; a longer one is cut to it.
pub const CALL_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// Users named in one subscription, and users withdrawn in one.
pub const SUBSCRIBE_USERS_MAX: usize = 1_000;
/// Queries of one call that run at the same time.
pub const QUERIES_CONCURRENT_MAX: usize = 8;
/// Messages asked for at a time while a page is put together.
pub const RESOLVE_CHUNK: usize = 128;

/// What an operator may change.
#[derive(Debug, Clone)]
pub struct Limits {
    /// A stream must send something this often; told in Welcome.
    pub heartbeat_interval: Duration,
    /// The first frame of a stream must come within this.
    pub hello_timeout: Duration,
    /// Bytes queued for one stream; deliveries beyond it become a Resync.
    pub session_queue_bytes_max: usize,
    /// `Connect` and `SyncStream` streams and waiting `Sync` calls on this node.
    pub sessions_max: usize,
    /// How long a send on a stream, or a call that has no deadline, may take.
    pub op_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_secs(15),
            hello_timeout: Duration::from_secs(10),
            session_queue_bytes_max: 1 << 20,
            sessions_max: 65_536,
            op_timeout: Duration::from_secs(10),
        }
    }
}

/// The limits as `Welcome` tells them.
pub(super) fn announced() -> v1::Limits {
    v1::Limits {
        sends_in_flight_max: SENDS_IN_FLIGHT_MAX,
        content_bytes_max: CONTENT_BYTES_MAX as u32,
        page_entries_max: PAGE_ENTRIES_MAX,
        page_bytes_max: PAGE_BYTES_MAX,
        members_max: MEMBERS_MAX as u32,
    }
}
