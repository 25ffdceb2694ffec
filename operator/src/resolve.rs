//! What a spec asks for, with what the operator knows filled in. Pure.

use std::time::Duration;

use carillon_crds::{ImCluster, quantity};
use kube::Resource;

use crate::build::config::NodeFiles;
use crate::build::{Context, pod};
use crate::plan::{Desired, MemberName, Replacement, Roll, versions};

/// The release to roll out, and why it is not the one that was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    pub version: String,
    pub image: String,
    pub refused: Option<String>,
}

/// A step that the cluster cannot make is refused: what runs goes on running, and is made anew
/// like that when it is lost, also when that was the last of it.
pub fn target(
    cluster: &ImCluster,
    repository: &str,
    running: &[(String, String)],
    cluster_version: Option<u32>,
) -> Target {
    let version = cluster.spec.version.clone();
    let last = cluster.status.as_ref().and_then(|status| {
        let last = status.current_version.clone();
        last.zip(status.current_image.clone())
    });
    let running = match running {
        [] => last.as_slice(),
        running => running,
    };
    let releases: Vec<&str> = running
        .iter()
        .map(|(version, _)| version.as_str())
        .collect();
    let refused = versions::refusal(&version, &releases, cluster_version);
    let oldest = running
        .iter()
        .min_by_key(|(version, _)| versions::Release::parse(version));
    match (refused, oldest) {
        (Some(reason), Some((version, image))) => Target {
            version: version.clone(),
            image: image.clone(),
            refused: Some(reason),
        },
        (refused, _) => Target {
            image: cluster
                .spec
                .image
                .clone()
                .unwrap_or_else(|| format!("{repository}:{version}")),
            version,
            refused,
        },
    }
}

fn whole_seconds(duration: kube::core::Duration) -> u64 {
    Duration::from(duration).as_secs()
}

pub fn desired(context: &Context<'_>, files: &NodeFiles, refused: Option<String>) -> Desired {
    let spec = &context.cluster.spec;
    let candidates = spec
        .scale_in
        .iter()
        .flat_map(|scale_in| &scale_in.candidates);
    let grow = spec.storage.auto_grow.as_ref();
    Desired {
        cluster: context.name.to_owned(),
        nodes: spec.nodes,
        replication_factor: spec.replication_factor,
        revision: pod::revision(context, files),
        volume_bytes: quantity::bytes(&spec.storage.size).unwrap_or_default(),
        volume_bytes_max: grow.and_then(|grow| quantity::bytes(&grow.max_size)),
        candidates: candidates
            .filter_map(|name| MemberName::parse(context.name, name))
            .collect(),
        roll: Roll {
            paused: spec.update.paused,
            min_ready_s: whole_seconds(spec.update.min_ready),
            soak_s: spec
                .update
                .canary
                .as_ref()
                .map(|canary| whole_seconds(canary.soak)),
        },
        replacement: Replacement {
            after_s: u32::try_from(whole_seconds(spec.failure_replacement.after))
                .unwrap_or(u32::MAX),
            at_once: match spec.failure_replacement.enabled {
                true => spec.failure_replacement.max_at_once,
                false => 0,
            },
        },
        deletion: context
            .cluster
            .meta()
            .deletion_timestamp
            .as_ref()
            .map(|_| spec.deletion_policy),
        paused: spec.paused,
        upgrade_refused: refused,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cluster(version: &str, status: serde_json::Value) -> ImCluster {
        let object = json!({
            "apiVersion": "carillon.dev/v1alpha1",
            "kind": "ImCluster",
            "metadata": {"name": "chat"},
            "spec": {"version": version, "storage": {"size": "1Gi"}},
            "status": status,
        });
        serde_json::from_value(object).expect("it parses")
    }

    /// A release that the cluster cannot make is not rolled out by the loss of its last Pod.
    #[test]
    fn what_ran_last_is_made_anew_when_the_next_release_is_refused() {
        let status = json!({"currentVersion": "0.2.0", "currentImage": "here/node:0.2.0"});
        let refused = cluster("0.9.0", status.clone());
        for running in [
            vec![],
            vec![("0.2.0".to_owned(), "here/node:0.2.0".to_owned())],
        ] {
            let target = target(&refused, "node", &running, Some(2));
            assert!(target.refused.is_some(), "{target:?}");
            assert_eq!(
                (target.version.as_str(), target.image.as_str()),
                ("0.2.0", "here/node:0.2.0")
            );
        }
        let first = target(&cluster("0.2.0", json!({})), "node", &[], None);
        assert_eq!((first.image.as_str(), first.refused), ("node:0.2.0", None));
    }
}
