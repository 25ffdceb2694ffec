//! The Kubernetes objects of an ImCluster, as JSON that is applied as it is. Pure: the same input
//! gives the same bytes, so a hash says whether anything has to be applied.
//!
//! Invariants:
//! * Everything but volume claims is owned by the ImCluster and goes with it.
//! * Pods run under the restricted Pod Security standard.
//! * What needs a restart is in [`pod::revision`], and nothing else is.

pub mod config;
pub mod names;
pub mod objects;
pub mod pod;
pub mod policies;

use carillon_crds::ImCluster;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource;
use serde_json::{Value, json};

/// The ports of a node.
pub const CLIENT_PORT: u16 = 7400;
pub const PEER_PORT: u16 = 7500;
pub const HTTP_PORT: u16 = 7600;
pub const ADMIN_PORT: u16 = 7700;

/// The label that says whose an object is.
pub const CLUSTER_LABEL: &str = "carillon.dev/cluster";
/// And of which member.
pub const MEMBER_LABEL: &str = "carillon.dev/member";
pub const REVISION_ANNOTATION: &str = "carillon.dev/revision";
pub const VERSION_ANNOTATION: &str = "carillon.dev/version";
/// "found" or "join": how the node starts when its volume is empty.
pub const START_ANNOTATION: &str = "carillon.dev/start";
/// On a claim: the node whose data it has, and of which cluster.
pub const NODE_ANNOTATION: &str = "carillon.dev/node-id";
pub const CLUSTER_ID_ANNOTATION: &str = "carillon.dev/cluster-id";
/// On a claim: no Pod is made for it any more.
pub const RELEASED_ANNOTATION: &str = "carillon.dev/released";
pub const FINALIZER: &str = "carillon.dev/operator";
pub const FIELD_MANAGER: &str = "carillon-operator";

/// What all objects of one ImCluster are made from.
#[derive(Clone)]
pub struct Context<'a> {
    pub cluster: &'a ImCluster,
    pub name: &'a str,
    pub namespace: &'a str,
    /// The release that is rolled out; the spec's, unless that is refused.
    pub version: String,
    pub image: String,
}

impl Context<'_> {
    pub fn labels(&self) -> Value {
        json!({
            "app.kubernetes.io/name": "carillon",
            "app.kubernetes.io/instance": self.name,
            "app.kubernetes.io/managed-by": FIELD_MANAGER,
            CLUSTER_LABEL: self.name,
        })
    }

    /// What selects the Pods of all members.
    pub fn selector(&self) -> Value {
        json!({CLUSTER_LABEL: self.name, "app.kubernetes.io/name": "carillon"})
    }

    pub fn metadata(&self, name: &str) -> Value {
        json!({
            "name": name,
            "namespace": self.namespace,
            "labels": self.labels(),
            "ownerReferences": [self.owner()],
        })
    }

    fn owner(&self) -> OwnerReference {
        self.cluster.controller_owner_ref(&()).unwrap_or_default()
    }
}

/// A hash for names and annotations: eight letters or digits of it are enough to tell apart what
/// one ImCluster has.
pub fn hash(bytes: &[u8]) -> String {
    let hash = xxhash_rust::xxh3::xxh3_64(bytes);
    format!("{hash:016x}")[..10].to_owned()
}
