//! Replication of shards: openraft groups and the links between nodes, behind a small interface.
//!
//! This is the only crate that knows openraft, and none of its types leave it. The server gives
//! each replica a [`Machine`] (what committed entries do), a group of the node's log and the
//! node's [`Links`], and gets a [`Group`]: propose, read, lead, change members, flush. It also
//! carries the packets: it dials and serves the connections, gives what [`Link::open`] yields to
//! the transport and what the transport brings to [`run_link`]; snapshots go by a
//! [`SnapshotSender`] of its own. [`Link`] serves other traffic between nodes as well.
//!
//! Code map: `group` and its parts are the handle; `machine`, `log` and `network` with `append`
//! are openraft's three interfaces, `receive` is the other end of `network`; `link` and `frame`
//! carry bytes, `codec` and `applied` give them meaning; `rebuild` begins a group anew whose
//! majority is lost; `types` and `options` configure.
//!
//! Guards against what openraft leaves open, each explained where it is: requests name the
//! replica they are for (`network`); responses stay within their connection (`link`); the process
//! must end when a group stops (`Group::stopped`) and when anything panics, since a panic in a
//! replication task would go unnoticed; a transfer asks only a replica that can take over
//! (`group::control`); a leader without a majority answers `NotReady`, a discarded entry
//! `Unknown` (`group`); received payloads are copied out of their packets (`codec`); reads ask a
//! majority, never a lease (`group::read`).

mod append;
mod applied;
mod codec;
mod frame;
mod group;
mod link;
mod log;
mod machine;
mod network;
mod options;
mod rebuild;
mod receive;
mod types;

#[cfg(test)]
mod suite_tests;

pub use applied::AppliedRecord;
pub use codec::CodecError;
pub use frame::{
    FRAME_BYTES_MAX, Frame, FrameError, FrameKind, PACKET_BYTES_MAX, PACKET_BYTES_TARGET,
    next_frame,
};
pub use group::{
    ENTRY_BYTES_MAX, FollowerStatus, Group, GroupError, GroupStatus, InstallError, Leadership,
    MaintenanceError, MemberChange, MembershipError, Outcome, ReadRefused, Retention, Role,
    TransferError,
};
pub use link::{
    LINK_BUFFER_BYTES_DEFAULT, Link, LinkEpoch, LinkLost, LinkState, LinkStats, Links, OutStream,
};
pub use log::LogRecord;
pub use machine::{
    APPLY_BYTES_MAX, APPLY_ENTRIES_MAX, CommittedEntry, FlushJob, Machine, SnapshotContent,
};
pub use network::{OutgoingSnapshot, SnapshotSender};
pub use options::{GroupOptions, InvalidOptions};
pub use rebuild::{LogEnd, RebuildError, log_end, rebuild};
pub use receive::{GroupRegistry, LinkEnd, run_link};
pub use types::{Member, Position};
