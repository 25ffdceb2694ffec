//! The pure core of Carillon: what a command does to the state, and what follows from it.
//!
//! Nothing here reads a clock, a random number, a file or a socket; the manifest lists no
//! crate that could. The same commands in the same order give the same bytes of state on
//! every replica, whatever the boundaries of the batches.
//!
//! Code map:
//! - [`ids`]: the newtypes of every id, sequence number and epoch.
//! - [`slots`]: what ids hash to, and ranges of it.
//! - [`keys`]: every key of the state, `slot ‖ kind ‖ id ‖ 0 ‖ …`.
//! - [`records`]: every value of the state.
//! - [`command`]: what a Raft entry holds.
//! - [`mod@apply`]: `apply(view, context, command) -> Effects`.
//! - [`reply`]: the answers to commands, which may cross nodes.
//! - [`read`]: reads that change nothing.
//! - [`map`]: the cluster's map of shards and the meta group's state machine.
//! - [`merging`]: what merges do to a shard.
//! - [`placement`]: `solve(problem, previous) -> Solution`, where replicas and leaders go.
//! - [`steering`]: `plan(state, seen) -> Plan`, what the meta group's leader does next.
//! - [`memory`]: a state in memory, for tests and the simulator.
//!
//! Invariants of the state, per conversation `c` and user `u`:
//! - `delivered_upto(c) ≤ last_seq(c)`, and an outbox marker exists iff it is `<`.
//! - `dedup_pruned_seq(c) < last_seq(c)`.
//! - entries `1 ..= last_seq(c)` and `1 ..= inbox_head(u)` exist, with no gaps.
//! - `row(u, c).unread` = the entries delivered to `u` in `c` after `read_seq` that are
//!   countable and that others sent.

pub mod apply;
pub mod codec;
pub mod command;
pub mod ids;
pub mod keys;
pub mod map;
pub mod memory;
pub mod merging;
mod notice;
pub mod placement;
pub mod read;
pub mod records;
pub mod reply;
pub mod slots;
pub mod steering;
pub mod view;

pub use apply::{Context, Effects, Event, apply};
pub use codec::Corrupt;
pub use command::{BatchReader, Command};
pub use ids::*;
pub use reply::{Refusal, Reply};
pub use view::{ReadView, View};
