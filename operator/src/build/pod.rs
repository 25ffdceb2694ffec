//! A member's Pod and its volume claim.

use carillon_crds::imcluster::{ImClusterSpec, Spread};
use carillon_crds::quantity;
use serde_json::{Value, json};

use super::config::{
    AUTH_DIR, CLIENT_TLS_DIR, CONFIG_DIR, DATA_DIR, FOUND_FILE, JOIN_FILE, NodeFiles, TLS_DIR,
    ZONES_DIR,
};
use super::objects::{CLAIM, Object, POD, config_name};
use super::{
    ADMIN_PORT, CLIENT_PORT, Context, HTTP_PORT, MEMBER_LABEL, PEER_PORT, REVISION_ANNOTATION,
    START_ANNOTATION, VERSION_ANNOTATION, names,
};
use crate::plan::{MemberName, Revision, Start};

const PROGRAM: &str = "carillon-node";
/// Who the node runs as, and whose its volume is.
const USER: u32 = 10_001;
/// Probes that may fail until a node that starts is killed, ten seconds apart: replaying a long
/// log takes its time.
const STARTUP_FAILURES_MAX: u32 = 180;
/// What of the time of a Pod's end is for stopping, after the drain: a part in so many,
const STOP_PARTS: u32 = 3;
/// at most so many seconds.
const STOP_S_MAX: u32 = 30;
/// Seconds that a Pod stays on a Kubernetes node that does not answer.
const TOLERATION_S: u32 = 30;

/// How long a node may take to stop once it is drained, seconds.
pub fn stop_s(spec: &ImClusterSpec) -> u32 {
    let grace_s = spec.pod_template.termination_grace_period_seconds;
    (grace_s / STOP_PARTS).min(STOP_S_MAX)
}

/// What a restart is needed for: two Pods of one revision differ only in whose they are, and in
/// how they start with an empty volume.
pub fn revision(context: &Context<'_>, files: &NodeFiles) -> Revision {
    let nobody = MemberName::new(context.name, 0);
    let pod = json!({
        "spec": spec(context, files, &nobody, &Start::Join),
        "labels": context.cluster.spec.pod_template.labels,
        "annotations": context.cluster.spec.pod_template.annotations,
    });
    Revision(super::hash(pod.to_string().as_bytes()))
}

pub fn pod(context: &Context<'_>, files: &NodeFiles, member: &MemberName, start: &Start) -> Object {
    let template = &context.cluster.spec.pod_template;
    let mut metadata = context.metadata(member.as_str());
    for (key, value) in &template.labels {
        metadata["labels"][key] = json!(value);
    }
    metadata["labels"][MEMBER_LABEL] = json!(member.as_str());
    metadata["annotations"] = json!(template.annotations);
    metadata["annotations"][REVISION_ANNOTATION] = json!(revision(context, files).0);
    metadata["annotations"][VERSION_ANNOTATION] = json!(context.version);
    metadata["annotations"][START_ANNOTATION] = json!(match start {
        Start::Found { .. } => "found",
        Start::Join => "join",
    });
    let rest = json!({"spec": spec(context, files, member, start)});
    Object::new(POD, member.to_string(), metadata, rest)
}

fn spec(context: &Context<'_>, files: &NodeFiles, member: &MemberName, start: &Start) -> Value {
    let spec = &context.cluster.spec;
    let template = &spec.pod_template;
    let mut tolerations = json!(template.tolerations);
    if let Value::Array(list) = &mut tolerations {
        for key in [
            "node.kubernetes.io/not-ready",
            "node.kubernetes.io/unreachable",
        ] {
            list.push(json!({
                "key": key,
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": TOLERATION_S,
            }));
        }
    }
    let mut pod = json!({
        "serviceAccountName": context.name,
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": template.termination_grace_period_seconds,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": spread(context),
        "tolerations": tolerations,
        "containers": [container(context, member, start)],
        "volumes": volumes(context, files, member),
    });
    if !template.node_selector.is_empty() {
        pod["nodeSelector"] = json!(template.node_selector);
    }
    if let Some(class) = &template.priority_class_name {
        pod["priorityClassName"] = json!(class);
    }
    if !spec.image_pull_secrets.is_empty() {
        pod["imagePullSecrets"] = json!(spec.image_pull_secrets);
    }
    pod
}

fn spread(context: &Context<'_>) -> Value {
    let topology = &context.cluster.spec.topology;
    let otherwise = match topology.spread {
        Spread::Preferred => "ScheduleAnyway",
        Spread::Required => "DoNotSchedule",
    };
    let over = |key: &str| {
        json!({
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": otherwise,
            "labelSelector": {"matchLabels": context.selector()},
            // A machine or a zone on which no member may be counts for nothing.
            "nodeTaintsPolicy": "Honor",
        })
    };
    json!([over(&topology.zone_key), over("kubernetes.io/hostname")])
}

fn container(context: &Context<'_>, member: &MemberName, start: &Start) -> Value {
    let spec = &context.cluster.spec;
    let file = match start {
        Start::Found { .. } => FOUND_FILE,
        Start::Join => JOIN_FILE,
    };
    let config = format!("{CONFIG_DIR}/{file}");
    let drain_s = spec.pod_template.termination_grace_period_seconds - stop_s(spec);
    let get = |path: &str| json!({"path": path, "port": "http"});
    let port = |name: &str, number: u16| json!({"name": name, "containerPort": number});
    json!({
        "name": "node",
        "image": context.image,
        "imagePullPolicy": "IfNotPresent",
        "command": [PROGRAM, "--config", config],
        "env": environment(context, member, start),
        "ports": [
            port("client", CLIENT_PORT),
            port("peer", PEER_PORT),
            port("http", HTTP_PORT),
            port("admin", ADMIN_PORT),
        ],
        "resources": spec.resources,
        "startupProbe": {
            "httpGet": get("/healthz"),
            "periodSeconds": 10,
            "failureThreshold": STARTUP_FAILURES_MAX,
        },
        "livenessProbe": {
            "httpGet": get("/healthz"),
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        "readinessProbe": {
            "httpGet": get("/readyz"),
            "periodSeconds": 3,
            "timeoutSeconds": 3,
            "failureThreshold": 2,
        },
        // Whoever stops the Pod, kubectl drain among them: leaders and clients leave first.
        "lifecycle": {"preStop": {"exec": {"command": [
            PROGRAM, "drain", "--config", config, "--timeout", format!("{drain_s}s"),
        ]}}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts(context),
    })
}

fn environment(context: &Context<'_>, member: &MemberName, start: &Start) -> Value {
    let host = names::host(member.as_str(), context.namespace);
    let mut all = vec![
        json!({
            "name": "CARILLON_NODE__PLACEMENT__HOST",
            "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}},
        }),
        json!({
            "name": "CARILLON_NODE__ADVERTISE__CLIENT",
            "value": format!("{host}:{CLIENT_PORT}"),
        }),
        json!({
            "name": "CARILLON_NODE__ADVERTISE__PEER",
            "value": format!("{host}:{PEER_PORT}"),
        }),
    ];
    match start {
        Start::Found { node } => all.push(json!({
            "name": "CARILLON_NODE__NODE_ID",
            "value": node.0.to_string(),
        })),
        Start::Join => all.push(json!({
            "name": "CARILLON_NODE__JOIN__TOKEN",
            "valueFrom": {"secretKeyRef": {
                "name": names::join_secret(context.name),
                "key": "token",
                // Whoever has data needs none.
                "optional": true,
            }},
        })),
    }
    Value::Array(all)
}

fn mounts(context: &Context<'_>) -> Value {
    let spec = &context.cluster.spec;
    let read = |name: &str, path: &str| json!({"name": name, "mountPath": path, "readOnly": true});
    let mut all = vec![
        json!({"name": "data", "mountPath": DATA_DIR}),
        read("config", CONFIG_DIR),
        read("zones", ZONES_DIR),
        read("tls", TLS_DIR),
    ];
    if spec.tls.clients.is_some() {
        all.push(read("client-tls", CLIENT_TLS_DIR));
    }
    if spec.auth.is_some() {
        all.push(read("auth", AUTH_DIR));
    }
    Value::Array(all)
}

/// Only the owner's group, which the node is in, may read secrets.
const SECRET_MODE: u32 = 0o440;

fn volumes(context: &Context<'_>, files: &NodeFiles, member: &MemberName) -> Value {
    let spec = &context.cluster.spec;
    let secret = |name: &str, of: &str| json!({"name": name, "secret": {"secretName": of, "defaultMode": SECRET_MODE}});
    let mut all = vec![
        json!({"name": "data", "persistentVolumeClaim": {"claimName": names::claim(member)}}),
        json!({
            "name": "config",
            "configMap": {"name": config_name(context.name, &files.hash())},
        }),
        json!({"name": "zones", "configMap": {"name": names::zones(context.name)}}),
        secret("tls", &names::member_tls(member)),
    ];
    if let Some(clients) = &spec.tls.clients {
        all.push(secret("client-tls", &clients.secret.name));
    }
    if let Some(auth) = &spec.auth {
        let keys = [(&auth.jwks, "jwks"), (&auth.server_keys, "server-keys")];
        let sources: Vec<Value> = keys
            .into_iter()
            .filter_map(|(key, path)| Some((key.as_ref()?, path)))
            .map(|(key, path)| {
                json!({"secret": {
                    "name": key.name,
                    "items": [{"key": key.key, "path": path}],
                }})
            })
            .collect();
        all.push(json!({
            "name": "auth",
            "projected": {"sources": sources, "defaultMode": SECRET_MODE},
        }));
    }
    Value::Array(all)
}

/// Not owned by the ImCluster: the policy for deletions decides, not the garbage collector.
pub fn claim(context: &Context<'_>, member: &MemberName, bytes: u64) -> Object {
    let name = names::claim(member);
    let mut metadata = context.metadata(&name);
    metadata["labels"][MEMBER_LABEL] = json!(member.as_str());
    metadata
        .as_object_mut()
        .map(|fields| fields.remove("ownerReferences"));
    let mut spec = json!({
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": quantity::text(bytes)}},
    });
    if let Some(class) = &context.cluster.spec.storage.class_name {
        spec["storageClassName"] = json!(class);
    }
    Object::new(CLAIM, name, metadata, json!({"spec": spec}))
}
