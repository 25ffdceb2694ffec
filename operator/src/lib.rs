//! The operator of Carillon: keeps what Kubernetes has of an `ImCluster` as its spec says.
//!
//! One pass ([`reconcile`]) is observe ([`observe`], [`cluster`]) → resolve ([`resolve`]) → plan
//! ([`plan`]) → build ([`build`]) → apply ([`apply`]) → status ([`status`]). [`controller`] runs
//! passes when [`queue`] says so, while [`lease`] says that it may.
//!
//! Architecture invariants:
//! * [`plan`], [`rotation`], [`authority`], [`build`], [`observe`], [`resolve`], [`status`], [`known`]
//!   and [`queue`] know no client.
//! * Nothing that matters is kept in memory: whoever starts next goes on from what is there.
//! * Carillon serves and heals without the operator; the operator brings Pods and policy.

pub mod apply;
pub mod authority;
pub mod build;
mod certify;
pub mod cluster;
pub mod controller;
pub mod discovery;
pub mod events;
pub mod known;
pub mod lease;
mod memory;
pub mod observe;
pub mod plan;
pub mod queue;
pub mod reconcile;
pub mod resolve;
pub mod rotation;
pub mod secrets;
pub mod status;
pub mod telemetry;
pub mod tls;
