//! The resources that people and the operator speak about: `ImCluster` of `carillon.dev/v1alpha1`.
//!
//! The types are the source. `imcluster.yaml` beside this crate and the reference in `docs/` are
//! generated from them (`cargo run -p carillon-crds --example write_yaml`), and tests hold both
//! current.
//!
//! Invariants:
//! * Every field changes what the operator does; what nobody reads is not here.
//! * A rule that a person can break is a CEL rule, so that the API server refuses it with its
//!   reason; [`validate`] has the same rules in Rust, for what was stored before a rule existed.

pub mod imcluster;
pub mod quantity;
pub mod reference;
pub mod validate;

pub use imcluster::{ImCluster, ImClusterSpec, ImClusterStatus};
