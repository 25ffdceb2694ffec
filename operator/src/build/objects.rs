//! The objects that do not belong to one member's life: Services, configuration, and the like.
//! [`all`] has every one of them that is to exist; what it does not have is deleted.

use std::collections::BTreeMap;

use carillon_crds::imcluster::ServiceType;
use serde_json::{Value, json};

use super::config::{FOUND_FILE, JOIN_FILE, NodeFiles};
use super::{
    ADMIN_PORT, CLIENT_PORT, Context, HTTP_PORT, MEMBER_LABEL, PEER_PORT, names, policies,
};
use crate::plan::{HostName, MemberName};

/// A kind of objects that the operator makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
}

const fn core(kind: &'static str, plural: &'static str) -> Kind {
    Kind {
        group: "",
        version: "v1",
        kind,
        plural,
    }
}

pub const SERVICE: Kind = core("Service", "services");
pub const CONFIG_MAP: Kind = core("ConfigMap", "configmaps");
pub const SECRET: Kind = core("Secret", "secrets");
pub const SERVICE_ACCOUNT: Kind = core("ServiceAccount", "serviceaccounts");
pub const POD: Kind = core("Pod", "pods");
pub const CLAIM: Kind = core("PersistentVolumeClaim", "persistentvolumeclaims");
pub const DISRUPTION_BUDGET: Kind = Kind {
    group: "policy",
    version: "v1",
    kind: "PodDisruptionBudget",
    plural: "poddisruptionbudgets",
};
pub const NETWORK_POLICY: Kind = Kind {
    group: "networking.k8s.io",
    version: "v1",
    kind: "NetworkPolicy",
    plural: "networkpolicies",
};
pub const POD_MONITOR: Kind = Kind {
    group: "monitoring.coreos.com",
    version: "v1",
    kind: "PodMonitor",
    plural: "podmonitors",
};

/// Kinds of which nothing that is not in [`all`] may stay.
pub const SWEPT: [Kind; 5] = [
    SERVICE,
    CONFIG_MAP,
    DISRUPTION_BUDGET,
    NETWORK_POLICY,
    POD_MONITOR,
];

/// Kinds that are watched for what others do to them. Of PodMonitors there may be no API.
pub const WATCHED: [Kind; 6] = [
    SERVICE,
    CONFIG_MAP,
    SECRET,
    SERVICE_ACCOUNT,
    DISRUPTION_BUDGET,
    NETWORK_POLICY,
];

/// One object to apply.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    pub kind: Kind,
    pub name: String,
    pub body: Value,
}

impl Object {
    pub fn new(kind: Kind, name: String, metadata: Value, rest: Value) -> Object {
        let api_version = match kind.group {
            "" => kind.version.to_owned(),
            group => format!("{group}/{}", kind.version),
        };
        let mut body = json!({"apiVersion": api_version, "kind": kind.kind, "metadata": metadata});
        if let (Value::Object(body), Value::Object(rest)) = (&mut body, rest) {
            body.extend(rest);
        }
        Object { kind, name, body }
    }
}

/// What [`all`] depends on besides the spec.
pub struct Surroundings<'a> {
    /// Members that there are or are about to be.
    pub members: &'a [MemberName],
    /// Zones of all Kubernetes nodes; empty for none.
    pub zones: &'a BTreeMap<HostName, String>,
    pub files: &'a NodeFiles,
    /// Hashes of the configurations that Pods still use.
    pub files_in_use: &'a [String],
    /// The API server has PodMonitors.
    pub has_pod_monitors: bool,
}

/// The name of the configuration with this hash. Pods keep the one that they were made with, so
/// that a restart of a container brings nothing new.
pub fn config_name(cluster: &str, hash: &str) -> String {
    format!("{cluster}-config-{hash}")
}

pub fn all(context: &Context<'_>, around: &Surroundings<'_>) -> Vec<Object> {
    let mut all = vec![
        Object::new(
            SERVICE_ACCOUNT,
            context.name.to_owned(),
            context.metadata(context.name),
            json!({"automountServiceAccountToken": false}),
        ),
        client_service(context),
        admin_service(context),
        zones(context, around.zones),
        config(context, around.files),
    ];
    all.extend(
        around
            .members
            .iter()
            .map(|member| member_service(context, member)),
    );
    all.extend(policies::disruption_budget(context, around.members.len()));
    all.extend(policies::network_policy(context));
    if around.has_pod_monitors {
        all.extend(policies::pod_monitor(context));
    }
    all
}

/// Whether an object of the swept kinds may stay although it is not applied: the configurations
/// of Pods of older revisions.
pub fn stays(context: &Context<'_>, around: &Surroundings<'_>, kind: Kind, name: &str) -> bool {
    let in_use = around.files_in_use.iter();
    kind == CONFIG_MAP
        && in_use
            .map(|hash| config_name(context.name, hash))
            .any(|used| used == name)
}

fn client_service(context: &Context<'_>) -> Object {
    let service = &context.cluster.spec.service;
    let name = names::client_service(context.name);
    let mut metadata = context.metadata(&name);
    if !service.annotations.is_empty() {
        metadata["annotations"] = json!(service.annotations);
    }
    let kind = match service.r#type {
        ServiceType::ClusterIP => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
    };
    let spec = json!({
        "type": kind,
        "selector": context.selector(),
        "ports": [port("client", CLIENT_PORT)],
    });
    Object::new(SERVICE, name, metadata, json!({"spec": spec}))
}

/// Members that serve, for those who join or administer.
fn admin_service(context: &Context<'_>) -> Object {
    let name = names::admin_service(context.name);
    let spec = json!({
        "type": "ClusterIP",
        "clusterIP": "None",
        "selector": context.selector(),
        "ports": [port("admin", ADMIN_PORT), port("peer", PEER_PORT)],
    });
    let metadata = context.metadata(&name);
    Object::new(SERVICE, name, metadata, json!({"spec": spec}))
}

/// The address of one member, also before it is ready: the others must reach it to make it so.
fn member_service(context: &Context<'_>, member: &MemberName) -> Object {
    let mut selector = context.selector();
    selector[MEMBER_LABEL] = json!(member.as_str());
    let mut metadata = context.metadata(member.as_str());
    metadata["labels"][MEMBER_LABEL] = json!(member.as_str());
    let spec = json!({
        "type": "ClusterIP",
        "clusterIP": "None",
        "publishNotReadyAddresses": true,
        "selector": selector,
        "ports": [
            port("client", CLIENT_PORT),
            port("peer", PEER_PORT),
            port("http", HTTP_PORT),
            port("admin", ADMIN_PORT),
        ],
    });
    Object::new(SERVICE, member.to_string(), metadata, json!({"spec": spec}))
}

fn port(name: &str, number: u16) -> Value {
    json!({"name": name, "port": number, "targetPort": name, "protocol": "TCP"})
}

/// The zone of each Kubernetes node, one a line, empty for none; a node of the cluster finds its own there,
/// wherever its Pod was placed.
fn zones(context: &Context<'_>, zones: &BTreeMap<HostName, String>) -> Object {
    let name = names::zones(context.name);
    let lines: String = zones
        .iter()
        .map(|(host, zone)| format!("{} {zone}\n", host.0))
        .collect();
    let metadata = context.metadata(&name);
    Object::new(
        CONFIG_MAP,
        name,
        metadata,
        json!({"data": {"zones": lines}}),
    )
}

fn config(context: &Context<'_>, files: &NodeFiles) -> Object {
    let name = config_name(context.name, &files.hash());
    let metadata = context.metadata(&name);
    let rest = json!({
        "immutable": true,
        "data": {FOUND_FILE: files.found, JOIN_FILE: files.join},
    });
    Object::new(CONFIG_MAP, name, metadata, rest)
}
