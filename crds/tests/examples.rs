//! The golden examples of docs/examples/kubernetes: what a person copies must be accepted as it
//! is, with every field known to the schema.

use carillon_crds::ImCluster;
use carillon_crds::validate::validate;
use kube::CustomResourceExt;
use kube::core::cel::Validator;
use serde_json::Value;

fn examples() -> Vec<(String, Value)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/kubernetes");
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the examples are there") {
        let path = entry.expect("it can be read").path();
        let text = std::fs::read_to_string(&path).expect("it can be read");
        let value: Value = serde_norway::from_str(&text).expect("it is YAML");
        if value["kind"] == "ImCluster" {
            all.push((path.display().to_string(), value));
        }
    }
    assert!(all.len() >= 2, "there are at least two examples");
    all
}

fn schema() -> Value {
    let crd = serde_json::to_value(ImCluster::crd()).expect("a definition is JSON");
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// What a structural schema says of a value, as far as ours use it.
fn faults(schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    if schema["x-kubernetes-preserve-unknown-fields"] == true
        || schema["x-kubernetes-int-or-string"] == true
    {
        return;
    }
    let fits = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("boolean") => value.is_boolean(),
        _ => true,
    };
    if !fits {
        found.push(format!("{path} is no {}", schema["type"]));
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        found.push(format!("{path} is none of {allowed:?}"));
    }
    if let (Some(least), Some(number)) = (schema["minimum"].as_f64(), value.as_f64())
        && number < least
    {
        found.push(format!("{path} is below {least}"));
    }
    if let (Some(most), Some(number)) = (schema["maximum"].as_f64(), value.as_f64())
        && number > most
    {
        found.push(format!("{path} is above {most}"));
    }
    for required in schema["required"].as_array().into_iter().flatten() {
        if value[required.as_str().unwrap_or_default()].is_null() {
            found.push(format!("{path} has no {required}"));
        }
    }
    for (name, inner) in value.as_object().into_iter().flatten() {
        let property = &schema["properties"][name];
        let other = &schema["additionalProperties"];
        match (property.is_object(), other.is_object()) {
            (true, _) => faults(property, inner, &format!("{path}.{name}"), found),
            (_, true) => faults(other, inner, &format!("{path}.{name}"), found),
            _ => found.push(format!("{path}.{name} is unknown")),
        }
    }
    for inner in value.as_array().into_iter().flatten() {
        faults(&schema["items"], inner, &format!("{path}[]"), found);
    }
}

#[test]
fn each_example_is_accepted_as_it_is() {
    for (path, value) in examples() {
        let mut found = Vec::new();
        faults(
            &schema()["properties"]["spec"],
            &value["spec"],
            "spec",
            &mut found,
        );
        assert_eq!(found, Vec::<String>::new(), "{path}");
        let typed: ImCluster = serde_json::from_value(value).expect("it parses");
        assert_eq!(validate(&typed), Vec::new(), "{path}");
        let stored = serde_json::to_value(&typed).expect("it is JSON");
        if let Err(errors) = Validator::new().validate(&schema(), &stored, None) {
            panic!("{path}: {errors:?}");
        }
    }
}

#[test]
fn a_misspelt_field_is_noticed() {
    let value = serde_json::json!({"version": "0.2.0", "storage": {"sise": "1Gi"}});
    let mut found = Vec::new();
    faults(&schema()["properties"]["spec"], &value, "spec", &mut found);
    assert!(
        found.iter().any(|fault| fault.contains("sise")),
        "{found:?}"
    );
}
