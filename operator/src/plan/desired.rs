//! What is wanted, with everything that has a default or depends on the operator filled in.

use std::collections::BTreeSet;

use carillon_crds::imcluster::DeletionPolicy;

use super::observed::MemberName;

/// What a Pod is made from, as a hash: two Pods of one revision differ in nothing that needs a
/// restart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision(pub String);

#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// The name of the ImCluster, which members are named after.
    pub cluster: String,
    pub nodes: u32,
    pub replication_factor: u32,
    pub revision: Revision,
    pub volume_bytes: u64,
    /// The size that volumes may grow to by themselves.
    pub volume_bytes_max: Option<u64>,
    /// Who leaves first when there are too many.
    pub candidates: BTreeSet<MemberName>,
    pub roll: Roll,
    pub replacement: Replacement,
    /// Set while the ImCluster is being deleted.
    pub deletion: Option<DeletionPolicy>,
    pub paused: bool,
    /// Why the version that was asked for is not rolled out; `revision` is of the one that runs.
    pub upgrade_refused: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Roll {
    pub paused: bool,
    pub min_ready_s: u64,
    /// How long the first changed member must be ready before the second one's turn.
    pub soak_s: Option<u64>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Replacement {
    /// Silent for longer, a node is given up by the cluster; at least 1.
    pub after_s: u32,
    /// Given up and not yet replaced at once; 0: none is given up without being told to.
    pub at_once: u32,
}
