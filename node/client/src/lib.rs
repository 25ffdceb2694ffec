//! The Rust SDK of Carillon: a device of a user, connected to a cluster.
//!
//! * [`Client`]: a session. Sends are acknowledged once a majority of the nodes has them
//!   on disk; they survive reconnects under the same id. Inbox entries come as [`Event`]s,
//!   each once and in order, gaps repaired, from a cursor that the application keeps.
//! * [`Api`]: the unary calls, without a session; [`Client`] has them too.
//! * [`AdminClient`]: what operators ask of a cluster.
//!
//! ```no_run
//! use carillon_client::{Client, ClientError, ConversationId, Event, FileCursor, text};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), ClientError> {
//! let client = Client::builder(["127.0.0.1:7401", "127.0.0.1:7402", "127.0.0.1:7403"])
//!     .user("alice")
//!     .device("laptop")
//!     .cursor_store(FileCursor::new("alice.cursor"))
//!     .connect()
//!     .await?;
//!
//! let to_bob = ConversationId::direct("alice", "bob");
//! let sent = client.send(&to_bob, text("hello")).await?;
//! println!("stored as number {}", sent.seq);
//!
//! let mut events = client.events().expect("taken once");
//! while let Some(event) = events.next().await {
//!     match event {
//!         Event::Message(entry) => {
//!             let message = entry.message.unwrap_or_default();
//!             println!("{}: {:?}", message.sender_id, message.content);
//!             client.mark_read(message.conversation_id, message.seq).await?;
//!         }
//!         Event::Disconnected { error, .. } => println!("reconnecting: {error}"),
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What holds
//! * A send that returned `Ok` is stored; one that returned [`ClientError::Timeout`] may be,
//!   and sending it again under the same [`ClientMessageId`] finds out without doubling it.
//! * Messages of one conversation are stored in the order of the `send` calls (see
//!   [`Client::start_send`] for many in flight).
//! * Every inbox entry after the cursor is given once, in order. When the process dies
//!   between taking a message and taking the next event, that message is given again.
//! * All queues are bounded, with backpressure on sends; a slow reader of events costs no
//!   memory and loses nothing.

mod admin;
mod api;
mod backoff;
mod caller;
mod calls;
mod client;
mod connection;
mod credentials;
mod cursor;
mod endpoints;
mod error;
mod events;
mod ids;
mod inbox;
mod pending;
mod session;

pub use admin::AdminClient;
pub use api::{Api, Range};
pub use client::{Client, ClientBuilder, EVENT_QUEUE_MAX, Sending};
pub use connection::SENDS_IN_FLIGHT_MAX;
pub use credentials::Credentials;
pub use cursor::{CursorStore, FileCursor, MemoryCursor};
pub use endpoints::ENDPOINTS_MAX;
pub use error::{ClientError, Refusal};
pub use events::{Event, Events};
pub use ids::{ClientMessageId, ConversationId, custom, text};
pub use pending::Sent;

/// The wire contract, for the fields of messages and answers.
pub use carillon_proto::{admin as admin_proto, v1 as proto};
