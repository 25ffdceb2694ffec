//! Every rule, broken once: the schema's CEL rules, evaluated here as an API server does, and
//! `validate` give the same answers. Rules of changes have only the former.

use carillon_crds::ImCluster;
use carillon_crds::validate::validate;
use kube::CustomResourceExt;
use kube::core::cel::Validator;
use serde_json::{Value, json};

/// Fields, as paths, and what they are set to.
type Changes = Vec<(&'static str, Value)>;

fn good() -> Value {
    json!({
        "apiVersion": "carillon.dev/v1alpha1",
        "kind": "ImCluster",
        "metadata": {"name": "chat"},
        "spec": {"version": "0.2.0", "storage": {"size": "10Gi"}}
    })
}

/// As the API server stores it: with the defaults.
fn stored(object: &Value) -> Value {
    let typed: ImCluster = serde_json::from_value(object.clone()).expect("it parses");
    serde_json::to_value(typed).expect("it is JSON")
}

fn refusals(object: &Value, old: Option<&Value>) -> Vec<String> {
    let crd = serde_json::to_value(ImCluster::crd()).expect("a definition is JSON");
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let new = stored(object);
    let old = old.map(stored);
    match Validator::new().validate(schema, &new, old.as_ref()) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.iter().map(|error| error.to_string()).collect(),
    }
}

fn with(changes: &[(&str, Value)]) -> Value {
    let mut object = good();
    for (pointer, value) in changes {
        let mut at = &mut object;
        for part in pointer.split('/') {
            at = &mut at[part];
        }
        *at = value.clone();
    }
    object
}

#[test]
fn a_good_object_breaks_nothing() {
    assert_eq!(refusals(&good(), None), Vec::<String>::new());
    assert_eq!(refusals(&good(), Some(&good())), Vec::<String>::new());
    let typed = serde_json::from_value(good()).expect("it parses");
    assert_eq!(validate(&typed), Vec::new());
}

#[test]
fn each_rule_is_refused_with_its_message_by_both() {
    let long = "x".repeat(41);
    let cases: Vec<(Changes, &str)> = vec![
        (
            vec![("metadata/name", json!(long))],
            "metadata.name must be",
        ),
        (
            vec![("metadata/name", json!("1st"))],
            "metadata.name must be",
        ),
        (
            vec![("metadata/name", json!("a.b"))],
            "metadata.name must be",
        ),
        (
            vec![("spec/nodes", json!(2))],
            "spec.nodes must be at least",
        ),
        (
            vec![("spec/replicationFactor", json!(2))],
            "spec.replicationFactor must be odd",
        ),
        (
            vec![("spec/storage/autoGrow", json!({"maxSize": "9Gi"}))],
            "spec.storage.autoGrow.maxSize must be at least",
        ),
        (
            vec![("spec/tls", json!({"mode": "Secret"}))],
            "spec.tls.secret must be set",
        ),
        (
            vec![(
                "spec/tls",
                json!({"mode": "Secret", "secret": {"name": "chat-ca"}}),
            )],
            "spec.tls.secret.name must not be",
        ),
        (
            vec![(
                "spec/tls",
                json!({"mode": "Operator", "secret": {"name": "ca"}}),
            )],
            "spec.tls.secret must be set",
        ),
        (
            vec![(
                "spec/tls",
                json!({
                    "mode": "Secret",
                    "secret": {"name": "ca"},
                    "rotation": {"revision": "2"},
                }),
            )],
            "spec.tls.rotation.revision is for mode Operator",
        ),
        (
            vec![("spec/tls", json!({"rotation": {"overlap": "721h"}}))],
            "spec.tls.rotation.overlap must be at most",
        ),
        (vec![("spec/auth", json!({}))], "spec.auth needs jwks"),
        (
            vec![(
                "spec/auth",
                json!({"serverKeys": {"name": "keys", "key": "keys.toml"}, "issuer": "me"}),
            )],
            "need spec.auth.jwks",
        ),
        (
            vec![("spec/failureReplacement", json!({"after": "10s"}))],
            "spec.failureReplacement.after must be",
        ),
        (
            vec![("spec/failureReplacement", json!({"after": "169h"}))],
            "spec.failureReplacement.after must be",
        ),
        (
            vec![("spec/scaleIn", json!({"candidates": ["chat-1", "other-1"]}))],
            "spec.scaleIn.candidates must be names",
        ),
        (
            vec![(
                "spec/podTemplate",
                json!({"labels": {"carillon.dev/cluster": "mine"}}),
            )],
            "spec.podTemplate.labels must not",
        ),
    ];
    for (changes, message) in cases {
        let object = with(&changes);
        let refused = refusals(&object, None);
        assert!(
            refused.len() == 1 && refused[0].contains(message),
            "{changes:?}: expected {message}, got {refused:?}"
        );
        let typed: ImCluster = serde_json::from_value(object).expect("it parses");
        let broken = validate(&typed);
        assert_eq!(broken.len(), 1, "{changes:?}: {broken:?}");
    }
}

#[test]
fn what_cannot_be_changed_is_refused() {
    let cases: Vec<(Changes, Changes, &str)> = vec![
        (
            vec![("spec/nodes", json!(5))],
            vec![
                ("spec/nodes", json!(5)),
                ("spec/replicationFactor", json!(5)),
            ],
            "spec.replicationFactor cannot be changed",
        ),
        (
            vec![],
            vec![("spec/shards", json!(32))],
            "spec.shards is how many",
        ),
        (
            vec![],
            vec![("spec/storage/size", json!("9Gi"))],
            "spec.storage.size must not shrink",
        ),
        (
            vec![("spec/storage/className", json!("slow"))],
            vec![("spec/storage/className", json!("fast"))],
            "spec.storage.className cannot be changed",
        ),
        (
            vec![],
            vec![("spec/storage/className", json!("fast"))],
            "spec.storage.className cannot be changed",
        ),
        (
            vec![],
            vec![(
                "spec/tls",
                json!({"mode": "Secret", "secret": {"name": "ca"}}),
            )],
            "spec.tls.mode and spec.tls.secret cannot be changed",
        ),
        (
            vec![(
                "spec/tls",
                json!({"mode": "Secret", "secret": {"name": "ca"}}),
            )],
            vec![(
                "spec/tls",
                json!({"mode": "Secret", "secret": {"name": "other"}}),
            )],
            "spec.tls.mode and spec.tls.secret cannot be changed",
        ),
    ];
    for (before, after, message) in cases {
        let refused = refusals(&with(&after), Some(&with(&before)));
        assert!(
            refused.len() == 1 && refused[0].contains(message),
            "{before:?} to {after:?}: expected {message}, got {refused:?}"
        );
    }
}

#[test]
fn what_may_change_is_accepted() {
    for change in [
        ("spec/nodes", json!(7)),
        ("spec/version", json!("0.3.0")),
        ("spec/storage/size", json!("10.5Gi")),
        ("spec/paused", json!(true)),
        (
            "spec/tls",
            json!({"mode": "Operator", "clients": {"secret": {"name": "public"}}}),
        ),
        (
            "spec/tls",
            json!({"rotation": {"revision": "2027-01", "overlap": "24h"}}),
        ),
    ] {
        let refused = refusals(&with(std::slice::from_ref(&change)), Some(&good()));
        assert_eq!(refused, Vec::<String>::new(), "{change:?}");
    }
}
