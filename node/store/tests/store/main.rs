//! Tests of the store as its users see it.

mod crash;
mod crowded;
mod flushes;
mod memory_model;
mod merges;
mod reads;
mod snapshots;
mod splits;
mod states;
