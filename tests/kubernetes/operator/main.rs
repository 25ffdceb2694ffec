//! The operator: people chat on a cluster of three zones while it is made, scaled, rolled,
//! hurt and healed. Each test has a namespace and a cluster of its own. Two at a
//! time, but those that hurt what the others stand on.

mod command;
mod create;
mod failures;
mod invalid;
mod retain;
mod roll;
mod scale;
mod volumes;
