//! A Carillon node: gateway for clients, storage for shards.
//!
//! The pure parts are in `carillon-core`; replication is in `carillon-raft`, the log in
//! `carillon-log`, the state in `carillon-store`. This crate observes and executes.

pub mod admin;
pub mod cluster;
pub mod config;
pub mod cork;
pub mod disk;
pub mod drain;
pub mod fanout;
pub mod files;
pub mod flush;
pub mod gateway;
pub mod http;
pub mod identity;
pub mod join;
pub mod listen;
pub mod meta;
pub mod metrics;
pub mod node;
pub mod peer;
pub mod probe;
pub mod query;
pub mod router;
pub mod security;
pub mod shard;
pub mod socket;
pub mod trace;
