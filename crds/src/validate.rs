//! The rules of an [`ImCluster`] in Rust, the same as the schema's CEL rules: for objects that were
//! stored before a rule existed, and for rules of changes as far as one object shows them.
//!
//! `tests/rules.rs` holds both to the same answers.

use std::time::Duration;

use crate::ImCluster;
use crate::imcluster::{Tls, TlsMode};
use crate::quantity;

/// Bytes of the name of an ImCluster: members, and what is named after them, stay below the 63
/// of a DNS label.
pub const NAME_BYTES_MAX: u32 = 40;
/// Nodes of one cluster.
pub const NODES_MAX: u32 = 100;
/// Shards that a cluster may begin with.
pub const SHARDS_MAX: u32 = 4_095;
/// Replicas of a shard.
pub const REPLICATION_FACTOR_MAX: u32 = 7;
/// The bounds of `failureReplacement.after`.
pub const REPLACEMENT_AFTER_MIN: Duration = Duration::from_secs(30);
pub const REPLACEMENT_AFTER_MAX: Duration = Duration::from_secs(168 * 3600);
/// The longest `tls.rotation.overlap`.
pub const OVERLAP_MAX: Duration = Duration::from_secs(720 * 3600);

/// A rule that is broken. The text names the field and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {rule}")]
pub struct Broken {
    pub field: &'static str,
    pub rule: String,
}

/// Every rule that the object breaks.
pub fn validate(cluster: &ImCluster) -> Vec<Broken> {
    let mut broken = Vec::new();
    let mut check = |holds: bool, field: &'static str, rule: &str| {
        if !holds {
            broken.push(Broken {
                field,
                rule: rule.to_owned(),
            });
        }
    };
    let spec = &cluster.spec;
    let name = cluster.metadata.name.as_deref().unwrap_or_default();
    check(
        is_label(name) && name.len() <= NAME_BYTES_MAX as usize,
        "metadata.name",
        "must be at most 40 lower-case letters, digits and '-', and begin with a letter",
    );
    let given = spec.tls.secret.as_ref();
    check(
        given.is_none_or(|secret| secret.name != format!("{name}-ca")),
        "spec.tls.secret.name",
        "must not be the name of the ImCluster and -ca: the operator keeps its own there",
    );
    check(
        (1..=NODES_MAX).contains(&spec.nodes),
        "spec.nodes",
        "must be from 1 to 100",
    );
    check(
        spec.nodes >= spec.replication_factor,
        "spec.nodes",
        "must be at least spec.replicationFactor",
    );
    check(
        (1..=REPLICATION_FACTOR_MAX).contains(&spec.replication_factor)
            && spec.replication_factor % 2 == 1,
        "spec.replicationFactor",
        "must be odd, from 1 to 7",
    );
    check(
        (1..=SHARDS_MAX).contains(&spec.shards),
        "spec.shards",
        "must be from 1 to 4095",
    );
    let size = quantity::bytes(&spec.storage.size);
    check(
        size.is_some_and(|size| size > 0),
        "spec.storage.size",
        "must be a size such as 100Gi",
    );
    if let Some(grow) = &spec.storage.auto_grow {
        check(
            quantity::bytes(&grow.max_size) >= size,
            "spec.storage.autoGrow.maxSize",
            "must be at least spec.storage.size",
        );
    }
    check(
        tls_matches(&spec.tls),
        "spec.tls.secret",
        "must be set when spec.tls.mode is Secret, and only then",
    );
    check(
        spec.tls.mode != TlsMode::Secret || spec.tls.rotation.revision.is_none(),
        "spec.tls.rotation.revision",
        "is for mode Operator: with mode Secret a new authority in the Secret begins a rotation",
    );
    check(
        !spec.tls.rotation.overlap.is_negative()
            && Duration::from(spec.tls.rotation.overlap) <= OVERLAP_MAX,
        "spec.tls.rotation.overlap",
        "must be at most 720h",
    );
    if let Some(auth) = &spec.auth {
        check(
            auth.jwks.is_some() || auth.server_keys.is_some(),
            "spec.auth",
            "needs jwks, serverKeys, or both",
        );
        check(
            auth.jwks.is_some() || (auth.issuer.is_none() && auth.audience.is_none()),
            "spec.auth",
            "issuer and audience are of tokens and need spec.auth.jwks",
        );
    }
    let after = Duration::from(spec.failure_replacement.after);
    check(
        !spec.failure_replacement.after.is_negative()
            && (REPLACEMENT_AFTER_MIN..=REPLACEMENT_AFTER_MAX).contains(&after),
        "spec.failureReplacement.after",
        "must be from 30s to 168h",
    );
    if let Some(scale_in) = &spec.scale_in {
        let prefix = format!("{name}-");
        check(
            scale_in
                .candidates
                .iter()
                .all(|one| one.starts_with(&prefix)),
            "spec.scaleIn.candidates",
            "must be names of members: the name of the ImCluster, '-' and a number",
        );
    }
    check(
        spec.pod_template
            .labels
            .keys()
            .all(|key| !key.starts_with("carillon.dev/") && !key.starts_with("app.kubernetes.io/")),
        "spec.podTemplate.labels",
        "must not begin with carillon.dev/ or app.kubernetes.io/",
    );
    broken
}

fn tls_matches(tls: &Tls) -> bool {
    tls.secret.is_some() == (tls.mode == TlsMode::Secret)
}

fn is_label(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    name.bytes().all(inner)
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && !name.ends_with('-')
}
