//! The cluster itself: what the tests of Carillon on Kubernetes rely on. One test at a time,
//! since some of them take nodes away from all.

mod disruption;
mod image;
mod nodes;
mod pods;
mod volumes;

use std::time::Duration;

/// Scheduling, mounting and starting a pod whose image is there, on a busy machine.
const POD_LIMIT: Duration = Duration::from_secs(60);
/// A dead node is noticed after about 12 s, a powered one is Ready in a few.
const NODE_LIMIT: Duration = Duration::from_secs(60);
