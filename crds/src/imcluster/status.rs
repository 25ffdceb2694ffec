//! What there is, as the operator last saw it. Shards one by one are the admin API's to tell.

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What there is of the cluster.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ImClusterStatus {
    /// The generation of the spec that all of this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Selects the Pods of the nodes, for kubectl scale and autoscalers.
    #[serde(default)]
    pub selector: String,
    /// Members that there are, those on their way out among them.
    #[serde(default)]
    pub nodes: u32,
    /// Members that serve.
    #[serde(default)]
    pub ready_nodes: u32,
    /// Members whose Pod is as the spec wants it.
    #[serde(default)]
    pub updated_nodes: u32,
    /// The id that the cluster was made with. Once it is here, no second cluster is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// The release that all nodes run; while they differ, the oldest; while none runs, the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_version: Option<String>,
    /// The image of that release, as the nodes run it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_image: Option<String>,
    /// The release that the nodes are brought to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_version: Option<String>,
    /// The cluster's version: what all of its nodes understand, and how far it can go back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_version: Option<u32>,
    /// Where clients inside the Kubernetes cluster connect to, host:port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_address: Option<String>,
    /// Shards, when the cluster was last asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards: Option<ShardsStatus>,
    /// What is being done, while something is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationStatus>,
    /// Each member.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub members: Vec<MemberStatus>,
    /// Certificates that the operator made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificates: Option<CertificateStatus>,
    /// Ready: all is as the spec wants it. Available: the cluster serves. Progressing: something
    /// is being changed. Degraded: something is missing or waits for a person. ShardsHealthy,
    /// UpgradeBlocked, StorageResizing, CertificatesValid and Paused say what their names say.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Shards in numbers.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ShardsStatus {
    /// All of them.
    pub total: u32,
    /// Those with a leader and all their replicas caught up.
    pub healthy: u32,
    /// Those with fewer replicas that answer than there should be.
    pub under_replicated: u32,
    /// Those without a leader.
    pub leaderless: u32,
    /// Replicas on their way.
    pub moving: u32,
    /// Shards with a leader, of all.
    pub summary: String,
}

/// What is being done.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OperationStatus {
    /// What kind of work it is.
    pub r#type: OperationType,
    /// On which member, if on one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// How far it is there.
    pub step: String,
    /// How much of the step is done, of 100, when that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u32>,
    /// What it waits for, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked_reason: Option<String>,
    /// All of it on one line.
    pub summary: String,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationType {
    Creating,
    ScalingOut,
    ScalingIn,
    Rolling,
    Replacing,
    Healing,
    Resizing,
    Rotating,
    Deleting,
}

/// One member: a Pod, its volume, and the node of the cluster that runs in it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// The name of its Pod; its volume is data- and that name.
    pub name: String,
    /// What it is in.
    pub state: MemberState,
    /// Its id in the cluster, as in 'carillon admin nodes'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<u64>,
    /// The zone that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The release that it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Whether its Pod is as the spec wants it.
    pub updated: bool,
    /// The size of its volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// What is the matter with it, or what it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// It serves.
    Ready,
    /// It starts, or catches up.
    Starting,
    /// Its leaders and clients leave, so that it can be restarted.
    Draining,
    /// Its replicas move to others, so that it can leave for good.
    Leaving,
    /// It was given up; what it had is made anew elsewhere.
    Lost,
}

/// Certificates that the operator made.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CertificateStatus {
    /// When the authority's certificate ends.
    pub authority_expires: Time,
    /// When the first of the others ends. They are renewed when a third of their time is left.
    pub next_expiry: Time,
    /// How far a new authority is in taking the old one's place, while it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<String>,
}
