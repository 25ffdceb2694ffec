//! The generated definition: current, described throughout, and what its readers rely on.

use carillon_crds::ImCluster;
use kube::CustomResourceExt;
use serde_json::Value;

fn schema() -> Value {
    let crd = serde_json::to_value(ImCluster::crd()).expect("a definition is JSON");
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

#[test]
fn the_committed_yaml_is_current() {
    let committed = include_str!("../imcluster.yaml");
    let generated = serde_norway::to_string(&ImCluster::crd()).expect("a definition is YAML");
    assert!(
        committed == generated,
        "crds/imcluster.yaml is not what the types say: cargo run -p carillon-crds --example write_yaml"
    );
}

#[test]
fn the_committed_reference_is_current() {
    let committed = include_str!("../../docs/reference-imcluster.md");
    assert!(
        committed == carillon_crds::reference::reference(),
        "docs/reference-imcluster.md is not what the types say: cargo run -p carillon-crds --example write_yaml"
    );
}

/// Fields whose description is not ours to write: they are Kubernetes' own types.
fn is_foreign(path: &str) -> bool {
    path.contains(".tolerations[]") || path.contains(".conditions[]")
}

fn undescribed(schema: &Value, path: &str, found: &mut Vec<String>) {
    if let Some(properties) = schema["properties"].as_object() {
        for (name, property) in properties {
            let path = format!("{path}.{name}");
            let described = property["description"]
                .as_str()
                .is_some_and(|text| text.len() > 5);
            if !described && !is_foreign(&path) {
                found.push(path.clone());
            }
            undescribed(property, &path, found);
        }
    }
    if schema["items"].is_object() {
        undescribed(&schema["items"], &format!("{path}[]"), found);
    }
}

#[test]
fn every_field_has_a_description() {
    let mut found = Vec::new();
    undescribed(&schema()["properties"]["spec"], "spec", &mut found);
    undescribed(&schema()["properties"]["status"], "status", &mut found);
    assert_eq!(found, Vec::<String>::new());
}

/// What a structural schema of Kubernetes must not have.
fn unstructural(schema: &Value, path: &str, found: &mut Vec<String>) {
    for word in [
        "$ref",
        "oneOf",
        "anyOf",
        "allOf",
        "not",
        "const",
        "definitions",
    ] {
        if !schema[word].is_null() {
            found.push(format!("{path}: {word}"));
        }
    }
    let typed = schema["type"].is_string()
        || schema["x-kubernetes-int-or-string"] == true
        || schema["x-kubernetes-preserve-unknown-fields"] == true;
    if !typed {
        found.push(format!("{path}: no type"));
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        unstructural(property, &format!("{path}.{name}"), found);
    }
    for inner in ["items", "additionalProperties"] {
        if schema[inner].is_object() {
            unstructural(&schema[inner], &format!("{path}.{inner}"), found);
        }
    }
}

#[test]
fn the_schema_is_structural() {
    let mut found = Vec::new();
    unstructural(&schema(), "", &mut found);
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn names_columns_and_subresources_are_as_documented() {
    let crd = serde_json::to_value(ImCluster::crd()).expect("a definition is JSON");
    assert_eq!(crd["metadata"]["name"], "imclusters.carillon.dev");
    assert_eq!(crd["spec"]["names"]["shortNames"][0], "imc");
    assert_eq!(crd["spec"]["names"]["categories"][0], "im");
    let version = &crd["spec"]["versions"][0];
    assert_eq!(version["name"], "v1alpha1");
    assert!(version["subresources"]["status"].is_object());
    assert_eq!(
        version["subresources"]["scale"]["specReplicasPath"],
        ".spec.nodes"
    );
    let columns: Vec<&str> = version["additionalPrinterColumns"]
        .as_array()
        .expect("there are columns")
        .iter()
        .filter_map(|column| column["name"].as_str())
        .collect();
    assert_eq!(
        columns,
        [
            "Nodes",
            "Ready",
            "Shards",
            "Version",
            "Available",
            "Reason",
            "Age",
            "Moving",
            "Operation"
        ]
    );
}

/// A spec with nothing but what must be given has everything else from the schema's defaults, and
/// these are what the types have by themselves.
#[test]
fn defaults_of_the_schema_and_of_the_types_agree() {
    let least = serde_json::json!({"version": "0.2.0", "storage": {"size": "1Gi"}});
    let spec: carillon_crds::ImClusterSpec =
        serde_json::from_value(least).expect("the least suffices");
    let typed = serde_json::to_value(&spec).expect("a spec is JSON");
    let properties = schema()["properties"]["spec"]["properties"].clone();
    for (name, property) in properties.as_object().expect("the spec has fields") {
        if let Some(default) = property.get("default") {
            let of_type = typed
                .get(name)
                .cloned()
                .unwrap_or_else(|| serde_json::json!([]));
            assert_eq!(&of_type, default, "spec.{name}");
        }
    }
    assert_eq!(typed["nodes"], 3);
    assert_eq!(typed["failureReplacement"]["after"], "600s");
}
