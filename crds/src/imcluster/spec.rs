//! What people ask for: the shape of a cluster, and the parts that are not about change or
//! security.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::change::{DeletionPolicy, FailureReplacement, ScaleIn, Storage, Update};
use super::security::{Auth, NetworkPolicySettings, SecretRef, Tls};
use super::status::ImClusterStatus;
use crate::validate::{NAME_BYTES_MAX, NODES_MAX};

/// What a Carillon cluster shall be. `kubectl explain imcluster.spec` shows all of it.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "carillon.dev",
    version = "v1alpha1",
    kind = "ImCluster",
    namespaced,
    status = "ImClusterStatus",
    derive = "PartialEq",
    shortname = "imc",
    category = "im",
    doc = "A Carillon cluster: nodes that store and deliver chat messages, and whatever they need in Kubernetes.",
    scale(
        spec_replicas_path = ".spec.nodes",
        status_replicas_path = ".status.nodes",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".spec.nodes", description = "Nodes that are wanted."),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyNodes", description = "Nodes that serve and have caught up."),
    printcolumn(name = "Shards", type_ = "string", json_path = ".status.shards.summary", description = "Shards that have a leader, of all."),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.currentVersion", description = "The release that all nodes run."),
    printcolumn(name = "Available", type_ = "string", json_path = ".status.conditions[?(@.type=='Available')].status", description = "Whether the cluster serves."),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason", description = "Why it is Ready, or not."),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Moving", type_ = "integer", json_path = ".status.shards.moving", priority = 1, description = "Replicas on their way."),
    printcolumn(name = "Operation", type_ = "string", json_path = ".status.operation.summary", priority = 1, description = "What is being done."),
    validation = Rule::new(format!("size(self.metadata.name) <= {NAME_BYTES_MAX} && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")).message("metadata.name must be at most 40 lower-case letters, digits and '-', and begin with a letter: Services are named after it"),
    validation = Rule::new("!has(self.spec.tls) || !has(self.spec.tls.secret) || self.spec.tls.secret.name != self.metadata.name + '-ca'").message("spec.tls.secret.name must not be the name of the ImCluster and -ca: the operator keeps its own there"),
    validation = Rule::new("!has(self.spec.scaleIn) || self.spec.scaleIn.candidates.all(name, name.startsWith(self.metadata.name + '-'))").message("spec.scaleIn.candidates must be names of members: the name of the ImCluster, '-' and a number")
)]
#[x_kube(
    validation = Rule::new("self.nodes >= self.replicationFactor").message("spec.nodes must be at least spec.replicationFactor: each replica of a shard is on a node of its own"),
    validation = Rule::new("self.replicationFactor == oldSelf.replicationFactor").message("spec.replicationFactor cannot be changed once the cluster is made"),
    validation = Rule::new("self.shards == oldSelf.shards").message("spec.shards is how many the cluster begins with and cannot be changed; shards are split and merged by themselves and by 'carillon admin'")
)]
#[serde(rename_all = "camelCase")]
pub struct ImClusterSpec {
    /// The release of Carillon, such as 0.2.0. Another one here is a rolling upgrade or rollback.
    /// A step that the cluster cannot make is not begun; the condition UpgradeBlocked says why.
    #[schemars(regex(pattern = r"^[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}(-[0-9A-Za-z.-]{1,32})?$"))]
    pub version: String,
    /// The image of that release, with its tag or digest. Left out: the operator's image
    /// repository (its option --image-repository) with the version as tag. Another image of the
    /// same version is rolled out like a version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// Secrets of type kubernetes.io/dockerconfigjson to pull the image with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub image_pull_secrets: Vec<SecretRef>,
    /// How many nodes. More: new ones join and get their share of the replicas. Fewer: what they
    /// hold moves to others first, see scaleIn; until then the old number can be set back.
    #[serde(default = "nodes_default")]
    #[schemars(range(min = 1, max = NODES_MAX))]
    pub nodes: u32,
    /// Replicas of each shard, an odd number. 3 keeps serving and loses nothing when one node is
    /// lost, 5 when two are. 1 is for trying out: a lost volume is lost data. Cannot be changed.
    #[serde(default = "replication_factor_default")]
    #[schemars(range(min = 1, max = 7))]
    #[x_kube(validation = Rule::new("self % 2 == 1").message("spec.replicationFactor must be odd: an even number needs one node more and survives the loss of no more"))]
    pub replication_factor: u32,
    /// Shards that the cluster begins with. Later ones come and go by load. Cannot be changed.
    #[serde(default = "shards_default")]
    #[schemars(range(min = 1, max = 4095))]
    pub shards: u32,
    /// What nodes fail together with, and how they are spread over it.
    #[serde(default)]
    pub topology: Topology,
    /// The volume of each node.
    pub storage: Storage,
    /// CPU and memory of each node's container. A change restarts the nodes one by one.
    #[serde(default)]
    pub resources: Resources,
    /// Settings of the nodes beyond what the operator sets, by section, as in Carillon's
    /// configuration reference. A change restarts the nodes one by one; a node that refuses it
    /// stops the roll.
    #[serde(default)]
    pub config: NodeConfig,
    /// Who makes the certificates.
    #[serde(default)]
    pub tls: Tls,
    /// Who may connect. Without it no client's token is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
    /// How changes reach the nodes.
    #[serde(default)]
    pub update: Update,
    /// Who leaves when nodes is lowered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_in: Option<ScaleIn>,
    /// When a node that is silent is given up and replaced.
    #[serde(default)]
    pub failure_replacement: FailureReplacement,
    /// The Service that clients connect to.
    #[serde(default)]
    pub service: ClientService,
    /// Scraping of metrics.
    #[serde(default)]
    pub monitoring: Monitoring,
    /// Who may reach the nodes over the network.
    #[serde(default)]
    pub network_policy: NetworkPolicySettings,
    /// What is added to the nodes' Pods. A change restarts the nodes one by one.
    #[serde(default)]
    pub pod_template: PodTemplate,
    /// What happens to the volumes when the ImCluster is deleted. Volumes of nodes that were
    /// scaled in or replaced are deleted in any case, once the cluster has their data elsewhere.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// While true the operator changes nothing of this cluster. It goes on serving and healing its
    /// shards by itself, but lost Pods are not made again.
    #[serde(default)]
    pub paused: bool,
}

fn nodes_default() -> u32 {
    3
}

fn replication_factor_default() -> u32 {
    3
}

fn shards_default() -> u32 {
    16
}

/// What nodes fail together with, and how they are spread over it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Topology {
    /// The label of Kubernetes nodes whose value is the zone. Replicas of a shard are spread over
    /// as many zones as there are.
    #[serde(default = "zone_key_default")]
    #[schemars(length(min = 1, max = 316))]
    pub zone_key: String,
    /// Preferred: spread nodes over zones, but start one in a full zone rather than not at all.
    /// Required: leave it unscheduled then.
    #[serde(default)]
    pub spread: Spread,
}

fn zone_key_default() -> String {
    "topology.kubernetes.io/zone".to_owned()
}

impl Default for Topology {
    fn default() -> Topology {
        Topology {
            zone_key: zone_key_default(),
            spread: Spread::default(),
        }
    }
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spread {
    #[default]
    Preferred,
    Required,
}

/// CPU and memory of each node's container.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What is reserved, by resource, such as cpu and memory.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub requests: BTreeMap<String, Quantity>,
    /// What is the most, by resource.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub limits: BTreeMap<String, Quantity>,
}

fn quantities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "additionalProperties": {"x-kubernetes-int-or-string": true},
        "maxProperties": 16
    })
}

/// Settings of the nodes beyond what the operator sets. Addresses, certificates, the cluster's
/// shape and the like are the operator's and are not here.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NodeConfig {
    /// Threads that run a node's tasks; 0 is one per core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1024))]
    pub worker_threads: Option<u32>,
    /// Section [raft]: pace of elections and batches.
    #[serde(default, skip_serializing_if = "Section::is_empty")]
    #[schemars(schema_with = "section")]
    pub raft: Section,
    /// Section [log]: the Raft log.
    #[serde(default, skip_serializing_if = "Section::is_empty")]
    #[schemars(schema_with = "section")]
    pub log: Section,
    /// Section [store]: the state.
    #[serde(default, skip_serializing_if = "Section::is_empty")]
    #[schemars(schema_with = "section")]
    pub store: Section,
    /// Section [clients]: limits and times of clients' connections.
    #[serde(default, skip_serializing_if = "Section::is_empty")]
    #[schemars(schema_with = "section")]
    pub clients: Section,
    /// Section [disk]: what is kept free.
    #[serde(default, skip_serializing_if = "Section::is_empty")]
    #[schemars(schema_with = "section")]
    pub disk: Section,
    /// Section [logging]: what is logged, and how.
    #[serde(default, skip_serializing_if = "Section::is_empty")]
    #[schemars(schema_with = "section")]
    pub logging: Section,
    /// Section [tracing]: traces of messages, sent to an OpenTelemetry collector.
    #[serde(default, skip_serializing_if = "Section::is_empty")]
    #[schemars(schema_with = "section")]
    pub tracing: Section,
}

/// Settings by name; the node checks them.
pub type Section = BTreeMap<String, serde_json::Value>;

fn section(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// The Service that clients connect to.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ClientService {
    /// ClusterIP: from inside the Kubernetes cluster only. NodePort and LoadBalancer: from outside.
    #[serde(default)]
    pub r#type: ServiceType,
    /// Annotations of the Service, which many load balancers are configured by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub annotations: BTreeMap<String, String>,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceType {
    #[default]
    ClusterIP,
    NodePort,
    LoadBalancer,
}

/// Scraping of metrics.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Monitoring {
    /// Makes a PodMonitor, where the API server has that API (the Prometheus operator is
    /// installed).
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Labels of the PodMonitor, by which a Prometheus selects it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub labels: BTreeMap<String, String>,
}

pub(crate) fn yes() -> bool {
    true
}

impl Default for Monitoring {
    fn default() -> Monitoring {
        Monitoring {
            enabled: true,
            labels: BTreeMap::new(),
        }
    }
}

/// What is added to the nodes' Pods.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(
    validation = Rule::new("!has(self.labels) || self.labels.all(key, !key.startsWith('carillon.dev/') && !key.startsWith('app.kubernetes.io/'))").message("spec.podTemplate.labels must not begin with carillon.dev/ or app.kubernetes.io/: the operator sets these")
)]
#[serde(rename_all = "camelCase")]
pub struct PodTemplate {
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub labels: BTreeMap<String, String>,
    /// Annotations. A changed value restarts the nodes one by one, which is how to ask for a
    /// restart.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub annotations: BTreeMap<String, String>,
    /// Labels that a Kubernetes node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of Kubernetes nodes that do not keep the Pods away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// The Pods' priority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub priority_class_name: Option<String>,
    /// How long a Pod may take to hand over its leaders and clients and to stop; the last third,
    /// at most 30 s, is for stopping.
    #[serde(default = "termination_default")]
    #[schemars(range(min = 5, max = 3600))]
    pub termination_grace_period_seconds: u32,
}

fn termination_default() -> u32 {
    90
}

impl Default for PodTemplate {
    fn default() -> PodTemplate {
        PodTemplate {
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            priority_class_name: None,
            termination_grace_period_seconds: termination_default(),
        }
    }
}
