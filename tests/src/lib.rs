//! Tests of whole Carillon clusters: real node processes, real gRPC, real faults.
//!
//! * [`history`]: what clients saw. * [`checker`]: whether the promises were kept.
//! * [`harness`]: starts, hurts and heals a cluster. * [`rpc`]: the raw protocol.
//! * [`load`]: concurrent clients that record. * [`verify`]: the final scans and the check.
//! * [`scenario`]: a test around all of these, bounded in time.
//! * [`session`]: one Connect stream, for tests of the protocol.
//!
//! The load speaks the generated protocol and not the SDK, so that a test asserts the
//! protocol itself and not what the SDK makes of it.

pub mod checker;
pub mod harness;
pub mod history;
pub mod load;
pub mod rpc;
pub mod scenario;
pub mod session;
pub mod verify;
