//! What the operator asks of a Carillon cluster and tells it: its admin API.
//!
//! [`Admin`] has two implementations: [`grpc`], and the one of the tests.

pub mod grpc;
mod seen;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;

use carillon_crds::imcluster::ShardsStatus;

use crate::plan::{ClusterSeen, MemberName, NodeId, Standing};

/// Where a member's admin API is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub address: IpAddr,
    /// The name that its certificate must have.
    pub host: String,
}

/// The operator's certificate, and whom it trusts; PEM.
#[derive(Clone)]
pub struct Credentials {
    pub authority: String,
    pub certificate: String,
    pub key: String,
}

/// How members are told by addresses.
#[derive(Debug, Clone)]
pub struct Whose<'a> {
    pub cluster: &'a str,
    pub namespace: &'a str,
}

/// What a plan is made from, and what only people look at.
#[derive(Debug, Clone)]
pub struct Seen {
    pub cluster: ClusterSeen,
    pub cluster_version: u32,
    pub shards: ShardsStatus,
    /// The release and the zone of each node.
    pub nodes: BTreeMap<NodeId, (String, String)>,
}

#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("no member's admin API answers: {0}")]
    Unreachable(String),
    /// It answered no, with its reason.
    #[error("the cluster refuses it: {0}")]
    Refused(String),
}

pub trait Admin: Send + Sync {
    /// Looks at the cluster; asks what a restart would break for those in `restarts`.
    fn look(
        &self,
        whose: &Whose<'_>,
        restarts: &BTreeSet<MemberName>,
    ) -> impl Future<Output = Result<Seen, AdminError>> + Send;

    fn set_standing(
        &self,
        node: NodeId,
        standing: Standing,
        forced: bool,
    ) -> impl Future<Output = Result<(), AdminError>> + Send;

    fn forget(&self, node: NodeId) -> impl Future<Output = Result<(), AdminError>> + Send;

    fn set_policy(
        &self,
        failure_replacement_after_s: u32,
        lost_nodes_max: u32,
    ) -> impl Future<Output = Result<(), AdminError>> + Send;

    fn join_token(&self) -> impl Future<Output = Result<String, AdminError>> + Send;
}

/// Finds a member that answers.
pub trait Connect: Send + Sync + 'static {
    type Admin: Admin;

    fn connect(
        &self,
        endpoints: &[Endpoint],
        credentials: &Credentials,
    ) -> impl Future<Output = Result<Self::Admin, AdminError>> + Send;

    /// Whether this member takes the certificate of these credentials and shows one of their
    /// authority; or why that is not known.
    fn prove(
        &self,
        endpoint: &Endpoint,
        credentials: &Credentials,
    ) -> impl Future<Output = Result<(), String>> + Send;
}
