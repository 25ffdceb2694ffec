//! Tests of the log through its public interface and through the bytes of its files.

mod contract;
mod corruption;
mod crash;
mod model;
mod segments;
mod setup;
