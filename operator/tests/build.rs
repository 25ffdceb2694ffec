//! The objects that are made: they are what Kubernetes knows, they name each other rightly, Pods
//! are restricted, and a revision changes exactly with what needs a restart.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use carillon_crds::ImCluster;
use carillon_operator::build::config::{self, NodeFiles};
use carillon_operator::build::objects::{self, Kind, Object, Surroundings};
use carillon_operator::build::{Context, pod};
use carillon_operator::observe::{self, Objects};
use carillon_operator::plan::{HostName, MemberName, NodeId, Start};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn cluster(change: impl Fn(&mut Value)) -> ImCluster {
    let mut object = json!({
        "apiVersion": "carillon.dev/v1alpha1",
        "kind": "ImCluster",
        "metadata": {"name": "chat", "namespace": "prod", "uid": "1-2-3"},
        "spec": {
            "version": "0.2.0",
            "storage": {"size": "10Gi", "className": "fast"},
            "resources": {"requests": {"cpu": 1}},
            "tls": {"clients": {"secret": {"name": "public"}}},
            "auth": {
                "jwks": {"name": "keys", "key": "jwks.json"},
                "serverKeys": {"name": "keys", "key": "server.toml"},
                "clockSkew": "30s"
            },
            "config": {"raft": {"heartbeat": "100ms"}, "logging": {"filter": "debug"}},
            "podTemplate": {
                "labels": {"team": "im"},
                "annotations": {"restart": "1"},
                "nodeSelector": {"disk": "ssd"},
                "tolerations": [{"key": "im", "operator": "Exists"}],
                "priorityClassName": "high"
            },
            "imagePullSecrets": [{"name": "registry"}]
        }
    });
    change(&mut object);
    serde_json::from_value(object).expect("it parses")
}

fn context(cluster: &ImCluster) -> Context<'_> {
    Context {
        cluster,
        name: "chat",
        namespace: "prod",
        version: cluster.spec.version.clone(),
        image: "carillon-node:0.2.0".to_owned(),
    }
}

fn files(context: &Context<'_>) -> NodeFiles {
    config::files(context).expect("it is TOML")
}

fn members() -> Vec<MemberName> {
    (0..3).map(|index| MemberName::new("chat", index)).collect()
}

fn all(cluster: &ImCluster) -> Vec<Object> {
    let context = context(cluster);
    let files = files(&context);
    let zones = BTreeMap::from([(HostName("host-1".to_owned()), "a".to_owned())]);
    let around = Surroundings {
        members: &members(),
        zones: &zones,
        files: &files,
        files_in_use: &[],
        has_pod_monitors: true,
    };
    let mut all = objects::all(&context, &around);
    for (index, member) in members().iter().enumerate() {
        let start = match index {
            0 => Start::Found { node: NodeId(1) },
            _ => Start::Join,
        };
        all.push(pod::claim(&context, member, 10 << 30));
        all.push(pod::pod(&context, &files, member, &start));
    }
    all
}

/// What Kubernetes would take from it: a field that its type does not know gets lost.
fn through<T: DeserializeOwned + Serialize>(body: &Value) -> Value {
    let typed: T = serde_json::from_value(body.clone()).expect("it is of its kind");
    serde_json::to_value(typed).expect("it is JSON")
}

fn understood(kind: Kind, body: &Value) -> Value {
    match kind.kind {
        "Service" => through::<Service>(body),
        "ConfigMap" => through::<ConfigMap>(body),
        "ServiceAccount" => through::<ServiceAccount>(body),
        "Pod" => through::<Pod>(body),
        "PersistentVolumeClaim" => through::<PersistentVolumeClaim>(body),
        "NetworkPolicy" => through::<NetworkPolicy>(body),
        "PodDisruptionBudget" => through::<PodDisruptionBudget>(body),
        _ => body.clone(),
    }
}

/// Everything in `expected` is in `found`.
fn lost(expected: &Value, found: &Value, path: &str, out: &mut Vec<String>) {
    match (expected, found) {
        (Value::Object(expected), _) => {
            for (name, inner) in expected {
                let empty = inner.as_object().is_some_and(serde_json::Map::is_empty);
                if !empty {
                    lost(inner, &found[name], &format!("{path}.{name}"), out);
                }
            }
        }
        (Value::Array(expected), Value::Array(found)) if expected.len() == found.len() => {
            for (one, other) in expected.iter().zip(found) {
                lost(one, other, &format!("{path}[]"), out);
            }
        }
        _ if expected == found => {}
        _ => out.push(format!("{path}: {expected} became {found}")),
    }
}

#[test]
fn kubernetes_understands_every_field() {
    for object in all(&cluster(|_| ())) {
        let mut out = Vec::new();
        lost(
            &object.body,
            &understood(object.kind, &object.body),
            "",
            &mut out,
        );
        assert_eq!(
            out,
            Vec::<String>::new(),
            "{:?} {}",
            object.kind.kind,
            object.name
        );
    }
}

#[test]
fn all_but_claims_are_owned_and_all_are_labelled() {
    for object in all(&cluster(|_| ())) {
        let metadata = &object.body["metadata"];
        let owners = metadata["ownerReferences"].as_array().map_or(0, Vec::len);
        let claim = object.kind.kind == "PersistentVolumeClaim";
        assert_eq!(owners, usize::from(!claim), "{}", object.name);
        assert_eq!(
            metadata["labels"]["carillon.dev/cluster"], "chat",
            "{}",
            object.name
        );
        assert_eq!(metadata["name"], object.name.as_str());
        assert_eq!(metadata["namespace"], "prod");
    }
}

#[test]
fn what_a_pod_mounts_is_made() {
    let all = all(&cluster(|_| ()));
    let exists = |kind: &str, name: &str| {
        all.iter()
            .any(|one| one.kind.kind == kind && one.name == name)
    };
    for pod in all.iter().filter(|one| one.kind.kind == "Pod") {
        let spec = &pod.body["spec"];
        assert!(exists(
            "ServiceAccount",
            spec["serviceAccountName"].as_str().expect("it has one")
        ));
        let mut mounted: Vec<&str> = Vec::new();
        for volume in spec["volumes"].as_array().expect("it has volumes") {
            mounted.push(volume["name"].as_str().expect("it has a name"));
            if let Some(name) = volume["configMap"]["name"].as_str() {
                assert!(exists("ConfigMap", name), "{name}");
            }
            if let Some(name) = volume["persistentVolumeClaim"]["claimName"].as_str() {
                assert!(exists("PersistentVolumeClaim", name), "{name}");
            }
        }
        let mounts = spec["containers"][0]["volumeMounts"]
            .as_array()
            .expect("it has mounts");
        let mounts: Vec<&str> = mounts
            .iter()
            .filter_map(|one| one["name"].as_str())
            .collect();
        assert_eq!(mounts.len(), mounted.len());
        assert!(
            mounts.iter().all(|name| mounted.contains(name)),
            "{mounts:?} {mounted:?}"
        );
    }
}

#[test]
fn pods_are_restricted() {
    for pod in all(&cluster(|_| ()))
        .iter()
        .filter(|one| one.kind.kind == "Pod")
    {
        let spec = &pod.body["spec"];
        assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
        assert_eq!(
            spec["securityContext"]["seccompProfile"]["type"],
            "RuntimeDefault"
        );
        assert_eq!(spec["automountServiceAccountToken"], false);
        let container = &spec["containers"][0]["securityContext"];
        assert_eq!(container["allowPrivilegeEscalation"], false);
        assert_eq!(container["readOnlyRootFilesystem"], true);
        assert_eq!(container["capabilities"]["drop"], json!(["ALL"]));
    }
}

fn revision(change: impl Fn(&mut Value)) -> String {
    let cluster = cluster(change);
    let context = context(&cluster);
    pod::revision(&context, &files(&context)).0
}

#[test]
fn a_revision_changes_with_what_needs_a_restart_and_with_nothing_else() {
    let before = revision(|_| ());
    assert_eq!(before, revision(|_| ()));
    let same: [(&str, Value); 9] = [
        ("nodes", json!(5)),
        ("paused", json!(true)),
        ("deletionPolicy", json!("Delete")),
        ("update", json!({"paused": true})),
        ("scaleIn", json!({"candidates": ["chat-1"]})),
        ("service", json!({"type": "LoadBalancer"})),
        ("monitoring", json!({"enabled": false})),
        ("networkPolicy", json!({"enabled": false})),
        ("failureReplacement", json!({"after": "1h"})),
    ];
    for (field, value) in same {
        let after = revision(|object| object["spec"][field] = value.clone());
        assert_eq!(before, after, "{field} needs no restart");
    }
    let grown = revision(|object| object["spec"]["storage"]["size"] = json!("20Gi"));
    assert_eq!(before, grown, "volumes grow online");
    let other: [(&str, Value); 6] = [
        ("config", json!({"raft": {"heartbeat": "120ms"}})),
        ("resources", json!({"requests": {"cpu": 2}})),
        ("podTemplate", json!({"annotations": {"restart": "2"}})),
        ("tls", json!({})),
        (
            "auth",
            json!({"jwks": {"name": "other", "key": "jwks.json"}}),
        ),
        ("topology", json!({"spread": "Required"})),
    ];
    for (field, value) in other {
        let after = revision(|object| object["spec"][field] = value.clone());
        assert_ne!(before, after, "{field} needs a restart");
    }
}

#[test]
fn the_configuration_names_founders_for_founders_only() {
    let cluster = cluster(|_| ());
    let files = files(&context(&cluster));
    let found: toml::Table = files.found.parse().expect("it is TOML");
    let join: toml::Table = files.join.parse().expect("it is TOML");
    assert_eq!(found["initial_peers"].as_array().map(Vec::len), Some(3));
    assert!(found.get("join").is_none());
    assert!(join.get("initial_peers").is_none());
    assert_eq!(
        join["join"]["peers"][0].as_str(),
        Some("chat-admin.prod.svc:7500")
    );
    for one in [&found, &join] {
        assert_eq!(one["cluster_name"].as_str(), Some("prod.chat"));
        assert_eq!(one["raft"]["heartbeat"].as_str(), Some("100ms"));
        assert_eq!(one["logging"]["format"].as_str(), Some("json"));
        assert_eq!(one["auth"]["clock_skew"].as_str(), Some("30s"));
        assert_eq!(one["cluster"]["replication_factor"].as_integer(), Some(3));
    }
}

#[test]
fn a_setting_that_is_null_is_not_set() {
    let cluster = cluster(|object| {
        object["spec"]["config"]["raft"] = json!({"heartbeat": null});
        object["spec"]["config"]["clients"] = json!({"nested": {"a": null, "b": [1, null]}});
    });
    let files = files(&context(&cluster));
    let join: toml::Table = files.join.parse().expect("it is TOML");
    assert!(join.get("raft").is_none());
    let nested = &join["clients"]["nested"];
    assert!(nested.get("a").is_none());
    assert_eq!(nested["b"].as_array().map(Vec::len), Some(1));
}

/// Members that are to leave have replicas as long as they are there.
#[test]
fn a_budget_counts_the_members_that_there_are() {
    let budget = |nodes: u32| {
        let cluster = cluster(|object| object["spec"]["nodes"] = json!(nodes));
        let all = all(&cluster);
        let budget = all
            .iter()
            .find(|one| one.kind == objects::DISRUPTION_BUDGET);
        budget.map(|budget| budget.body["spec"]["minAvailable"].clone())
    };
    // There are three members.
    assert_eq!(budget(5), Some(json!(4)));
    assert_eq!(budget(3), Some(json!(2)));
    assert_eq!(budget(1), Some(json!(2)));
}

#[test]
fn a_drain_and_a_stop_fit_into_the_time_that_a_pod_has() {
    for (grace_s, drain, stop) in [(90, "60s", "30s"), (30, "20s", "10s"), (600, "570s", "30s")] {
        let cluster = cluster(|object| {
            object["spec"]["podTemplate"]["terminationGracePeriodSeconds"] = json!(grace_s);
        });
        let context = context(&cluster);
        let files = files(&context);
        let member = MemberName::new("chat", 1);
        let pod = pod::pod(&context, &files, &member, &Start::Join);
        let command = &pod.body["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"];
        assert_eq!(command[5], json!(drain));
        let join: toml::Table = files.join.parse().expect("it is TOML");
        assert_eq!(join["shutdown_timeout"].as_str(), Some(stop));
    }
}

/// `CARILLON_NODE_BIN`, or the node that was built beside this test.
fn node_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("CARILLON_NODE_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("this test is a file");
    let built = test.parent().and_then(Path::parent);
    built.expect("it is in deps").join("carillon-node")
}

#[test]
fn a_node_takes_its_configuration() {
    let tracing = json!({"otlp_endpoint": "http://collector:4317", "sample_ratio": 0.01});
    let cluster = cluster(|object| object["spec"]["config"]["tracing"] = tracing.clone());
    let files = files(&context(&cluster));
    assert!(files.join.contains("[tracing]"), "{}", files.join);
    let folder = tempfile::tempdir().expect("a folder");
    let etc = folder.path().display().to_string();
    std::fs::create_dir(folder.path().join("zones")).expect("made");
    std::fs::write(folder.path().join("zones/zones"), "host-0 \nhost-1 a\n").expect("written");
    let check = |text: &str, env: (&str, &str)| {
        let file = folder.path().join("node.toml");
        std::fs::write(&file, text.replace("/etc/carillon", &etc)).expect("written");
        let output = Command::new(node_binary())
            .arg("--config")
            .arg(&file)
            .arg("--check")
            .env_remove("CARILLON_DEV")
            .env("CARILLON_NODE__PLACEMENT__HOST", "host-1")
            .env("CARILLON_NODE__ADVERTISE__CLIENT", "chat-0.prod.svc:7400")
            .env("CARILLON_NODE__ADVERTISE__PEER", "chat-0.prod.svc:7500")
            .env(env.0, env.1)
            .output()
            .expect("carillon-node is built, or CARILLON_NODE_BIN names one");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said)
    };
    for (text, env) in [
        (&files.found, ("CARILLON_NODE__NODE_ID", "1")),
        (&files.join, ("CARILLON_NODE__JOIN__TOKEN", "secret")),
        // It is on a machine without a zone.
        (&files.join, ("CARILLON_NODE__PLACEMENT__HOST", "host-0")),
    ] {
        let (taken, said) = check(text, env);
        assert!(taken, "{said}\n{text}");
    }
    let odd = files.found.replace("[tls]", "[tls]\nnobody_knows = 1");
    let (taken, said) = check(&odd, ("CARILLON_NODE__NODE_ID", "1"));
    assert!(!taken && said.contains("nobody_knows"), "{said}");
}

/// kind, k3s and machines of one's own have no zones.
#[test]
fn a_machine_without_a_zone_is_known_all_the_same() {
    let host = |name: &str, labels: Value| {
        let host = json!({"metadata": {"name": name, "labels": labels}});
        Arc::new(serde_json::from_value(host).expect("a Node"))
    };
    let objects = Objects {
        hosts: vec![
            host("host-0", json!({})),
            host("host-1", json!({"zone": "a"})),
        ],
        ..Objects::default()
    };
    let seen = observe::understand("chat", "prod", "zone", &objects);
    let zone = |name: &str| {
        seen.zones
            .get(&HostName(name.to_owned()))
            .map(String::as_str)
    };
    assert_eq!((zone("host-0"), zone("host-1")), (Some(""), Some("a")));
}

#[test]
fn a_cluster_without_second_replicas_has_no_disruption_budget() {
    let has = |object: &ImCluster| {
        all(object)
            .iter()
            .any(|one| one.kind == objects::DISRUPTION_BUDGET)
    };
    assert!(has(&cluster(|_| ())));
    assert!(!has(&cluster(|object| {
        object["spec"]["nodes"] = json!(1);
        object["spec"]["replicationFactor"] = json!(1);
    })));
}
