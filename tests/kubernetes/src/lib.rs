//! What tests on a real Kubernetes are written with: the cluster that they run on, a namespace
//! for each of them, waiting for what the API server says, pods to talk to, and faults.
//!
//! [`chat`] has a chat cluster that the operator makes, and people who chat on it.
//!
//! The cluster is the one of `KUBECONFIG`. `make e2e` starts one on this machine (`cluster/`),
//! whose nodes these tests may hurt; on any other cluster what hurts nodes is skipped.

mod bed;
pub mod chat;
mod cluster;
mod pods;
mod wait;

pub use bed::{Bed, Fault};
pub use cluster::{Cluster, Namespace};
pub use pods::{Said, exec, http_get, restricted};
pub use wait::{Waited, until, until_any};
