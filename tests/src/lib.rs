//! Tests of whole Carillon clusters: real node processes, real gRPC, real faults.
//!
//! * [`history`]: what clients saw. * [`checker`]: whether the promises were kept.
//! * [`harness`]: starts, hurts and heals a cluster. * [`rpc`]: the raw protocol.
//! * [`access`]: plain text, or TLS and a secret. * [`load`]: concurrent clients that record.
//! * [`verify`]: the final scans and the check. * [`sends`]: how long acknowledgements took.
//! * [`scenario`]: a test around all of these, bounded in time.
//! * [`session`]: one Connect stream, for tests of the protocol.
//!
//! The load speaks the generated protocol and not the SDK, so that a test asserts the
//! protocol itself and not what the SDK makes of it.

pub mod access;
pub mod checker;
pub mod harness;
pub mod history;
pub mod load;
pub mod rpc;
pub mod scenario;
pub mod sends;
pub mod session;
pub mod verify;
