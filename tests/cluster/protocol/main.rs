//! The client's and the operator's contract, call by call, over raw gRPC against one
//! healthy cluster that all tests of this executable share. Every test has users and
//! conversations of its own.

mod admin;
mod cast;
mod groups;
mod inbox;
mod messages;
mod rows;
mod standard;
mod stream;
