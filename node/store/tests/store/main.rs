//! Tests of the store as its users see it.

mod crash;
mod memory_model;
mod snapshots;
mod states;
