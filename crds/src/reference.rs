//! The reference of the resource for people: a page of tables made from its schema, so that it
//! says what the API server goes by.
//!
//! Owner of no state. `docs/reference-imcluster.md` is what [`reference`] returns; a test holds
//! it current.

use std::fmt::Write as _;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

use crate::ImCluster;

const HEAD: &str = "\
# ImCluster: every field

Generated from the types (`cargo run -p carillon-crds --example write_yaml`). On a cluster the same is in `kubectl explain imcluster.spec`, and the columns of `kubectl get imc` are below. How to use it: [kubernetes.md](kubernetes.md); examples: [one node](examples/kubernetes/one-node.yaml), [production](examples/kubernetes/production.yaml).

A field without a default that is not required may be left out. What a rule refuses, the API server refuses before anything changes, with the rule's words.
";

/// The page, in Markdown.
pub fn reference() -> String {
    let crd = ImCluster::crd();
    let mut page = HEAD.to_owned();
    for version in crd.spec.versions {
        let _ = writeln!(page, "\n## Columns\n\n| column | what |\n|---|---|");
        for column in version.additional_printer_columns.iter().flatten() {
            let shown = match column.priority {
                Some(1..) => " (`-o wide`)",
                _ => "",
            };
            let what = column
                .description
                .as_deref()
                .unwrap_or("Since it was made.");
            let _ = writeln!(page, "| {}{shown} | {} |", column.name, cell(what));
        }
        let schema = version.schema.and_then(|schema| schema.open_api_v3_schema);
        let parts = schema.and_then(|schema| schema.properties);
        for part in ["spec", "status"] {
            if let Some(schema) = parts.as_ref().and_then(|parts| parts.get(part)) {
                object(&mut page, part, schema);
            }
        }
    }
    page
}

/// A section for an object, and after it one for each object in it.
fn object(page: &mut String, path: &str, schema: &JSONSchemaProps) {
    let _ = writeln!(page, "\n## {path}\n");
    if let Some(what) = &schema.description {
        let _ = writeln!(page, "{}\n", cell(what));
    }
    let _ = writeln!(page, "| field | type | default | what |\n|---|---|---|---|");
    let fields = schema.properties.iter().flatten();
    for (name, field) in fields.clone() {
        let required = schema.required.iter().flatten().any(|one| one == name);
        let default = match &field.default {
            Some(value) => format!("`{}`", value.0),
            None if required => "required".to_owned(),
            None => String::new(),
        };
        let (kind, what) = (
            kind(field),
            field.description.as_deref().unwrap_or_default(),
        );
        let _ = writeln!(page, "| `{name}` | {kind} | {default} | {} |", cell(what));
    }
    rules(page, schema);
    for (name, field) in fields {
        let (inner, path) = match &field.items {
            Some(JSONSchemaPropsOrArray::Schema(items)) => (&**items, format!("{path}.{name}[]")),
            _ => (field, format!("{path}.{name}")),
        };
        if inner.properties.as_ref().is_some_and(|all| !all.is_empty()) {
            object(page, &path, inner);
        }
    }
}

/// What is refused, in the words that are said then.
fn rules(page: &mut String, schema: &JSONSchemaProps) {
    let rules = schema.x_kubernetes_validations.iter().flatten();
    let words: Vec<&str> = rules.filter_map(|rule| rule.message.as_deref()).collect();
    if words.is_empty() {
        return;
    }
    let _ = writeln!(page, "\nRules:\n");
    for word in words {
        let _ = writeln!(page, "- {}", cell(word));
    }
}

/// What a value is, with its bounds.
fn kind(schema: &JSONSchemaProps) -> String {
    if schema.x_kubernetes_int_or_string == Some(true) {
        return "quantity".to_owned();
    }
    let named = schema.type_.as_deref().unwrap_or("anything");
    match named {
        "array" => match &schema.items {
            Some(JSONSchemaPropsOrArray::Schema(items)) => format!("list of {}", kind(items)),
            _ => "list".to_owned(),
        },
        "object" => match &schema.additional_properties {
            Some(JSONSchemaPropsOrBool::Schema(values)) => format!("map to {}", kind(values)),
            _ => named.to_owned(),
        },
        "string" => match &schema.enum_ {
            Some(values) => {
                let values = values.iter().map(|value| match value.0.as_str() {
                    Some(text) => format!("`{text}`"),
                    None => format!("`{}`", value.0),
                });
                values.collect::<Vec<_>>().join(", ")
            }
            None => named.to_owned(),
        },
        "integer" | "number" => match (schema.minimum, schema.maximum) {
            (Some(min), Some(max)) => format!("{named}, {min} to {max}"),
            (Some(min), None) => format!("{named}, at least {min}"),
            (None, Some(max)) => format!("{named}, at most {max}"),
            (None, None) => named.to_owned(),
        },
        _ => named.to_owned(),
    }
}

/// A text within a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
