//! The operator: people chat on a cluster of three zones while it is made, scaled, rolled,
//! hurt and healed. Each test has a namespace and a cluster of its own. One test at a time.

mod create;
mod failures;
mod invalid;
mod retain;
mod roll;
mod scale;
mod volumes;
