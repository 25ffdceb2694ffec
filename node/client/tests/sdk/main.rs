//! The SDK against a cluster in memory, over real gRPC on loopback.

mod calls;
mod fake;
mod session;
