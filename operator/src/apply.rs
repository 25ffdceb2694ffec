//! Writing to Kubernetes: server-side apply, and deletions of exactly the object that was meant.

use std::collections::BTreeSet;
use std::sync::Arc;

use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client, ResourceExt};

use crate::build::objects::{Kind, Object, WATCHED};
use crate::build::{CLUSTER_LABEL, FIELD_MANAGER};
use crate::known::Known;
use crate::plan::Uid;

/// The cause of a refusal to make something in a namespace that is on its way out: Pods go first
/// there, before the ImCluster is asked to.
const NAMESPACE_ENDS: &str = "NamespaceTerminating";
/// Deletions of one kind in one pass.
const SWEPT_MAX: usize = 64;

#[derive(Debug, thiserror::Error)]
#[error("{action} {kind} {name}: {}", told(.source))]
pub struct ApplyError {
    pub action: &'static str,
    pub kind: &'static str,
    pub name: String,
    pub source: Box<kube::Error>,
}

/// What the API server says, without what it repeats of the object.
fn told(error: &kube::Error) -> String {
    match error {
        error if namespace_ends(error) => "its namespace is being deleted".to_owned(),
        kube::Error::Api(status) => status.message.lines().next().unwrap_or_default().to_owned(),
        other => other.to_string(),
    }
}

/// Whether the API server refuses because the namespace is being deleted.
pub fn namespace_ends(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else {
        return false;
    };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 403
        && causes
            .into_iter()
            .any(|cause| cause.reason == NAMESPACE_ENDS)
}

impl ApplyError {
    fn new(action: &'static str, kind: Kind, name: &str, source: kube::Error) -> ApplyError {
        ApplyError {
            action,
            kind: kind.kind,
            name: name.to_owned(),
            source: Box::new(source),
        }
    }

    /// Another object has that name by now, or it is gone: look again.
    pub fn is_overtaken(&self) -> bool {
        matches!(&*self.source, kube::Error::Api(status) if matches!(status.code, 404 | 409))
    }
}

pub fn resource(kind: Kind) -> ApiResource {
    let gvk = GroupVersionKind::gvk(kind.group, kind.version, kind.kind);
    ApiResource::from_gvk_with_plural(&gvk, kind.plural)
}

fn api(client: &Client, namespace: &str, kind: Kind) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), namespace, &resource(kind))
}

/// Writes the objects round the members, and keeps in mind what it wrote.
#[derive(Clone)]
pub struct Applier {
    pub client: Client,
    pub known: Arc<Known>,
}

impl Applier {
    /// Makes the object as it is given, or what of it is the operator's.
    pub async fn apply(&self, namespace: &str, object: &Object) -> Result<(), ApplyError> {
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let written = api(&self.client, namespace, object.kind)
            .patch(&object.name, &params, &Patch::Apply(&object.body))
            .await
            .map_err(|error| ApplyError::new("apply", object.kind, &object.name, error))?;
        if WATCHED.contains(&object.kind) {
            self.known.wrote(object.kind, &written.metadata);
        }
        Ok(())
    }

    /// Deletes objects of the ImCluster that are not to be any more.
    pub async fn sweep(
        &self,
        namespace: &str,
        cluster: &str,
        kind: Kind,
        kept: impl Fn(&str) -> bool,
    ) -> Result<(), ApplyError> {
        let selector =
            format!("{CLUSTER_LABEL}={cluster},app.kubernetes.io/managed-by={FIELD_MANAGER}");
        let found = api(&self.client, namespace, kind)
            .list_metadata(&ListParams::default().labels(&selector))
            .await;
        let found = found.map_err(|error| ApplyError::new("list", kind, cluster, error))?;
        let gone: BTreeSet<(String, String)> = found
            .items
            .iter()
            .map(|one| (one.name_any(), one.uid().unwrap_or_default()))
            .filter(|(name, _)| !kept(name))
            .take(SWEPT_MAX)
            .collect();
        for (name, uid) in gone {
            self.known.drops(kind, namespace, &name);
            delete(&self.client, namespace, kind, &name, &Uid(uid), None).await?;
        }
        Ok(())
    }
}

/// Makes the object unless there is one of its name.
pub async fn create(client: &Client, namespace: &str, object: &Object) -> Result<(), ApplyError> {
    let typed: DynamicObject = match serde_json::from_value(object.body.clone()) {
        Ok(typed) => typed,
        Err(error) => {
            let error = kube::Error::SerdeError(error);
            return Err(ApplyError::new("create", object.kind, &object.name, error));
        }
    };
    let params = kube::api::PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..Default::default()
    };
    match api(client, namespace, object.kind)
        .create(&params, &typed)
        .await
    {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(ApplyError::new("create", object.kind, &object.name, error)),
    }
}

/// Changes a few fields of exactly this object.
pub async fn merge(
    client: &Client,
    namespace: &str,
    kind: Kind,
    name: &str,
    uid: &Uid,
    mut change: serde_json::Value,
) -> Result<(), ApplyError> {
    // The API server refuses a patch that would change the uid.
    change["metadata"]["uid"] = serde_json::json!(uid.0);
    api(client, namespace, kind)
        .patch(name, &PatchParams::default(), &Patch::Merge(&change))
        .await
        .map_err(|error| ApplyError::new("patch", kind, name, error))?;
    Ok(())
}

/// Deletes exactly this object. What is gone already counts as deleted.
pub async fn delete(
    client: &Client,
    namespace: &str,
    kind: Kind,
    name: &str,
    uid: &Uid,
    grace_s: Option<u32>,
) -> Result<(), ApplyError> {
    let params = DeleteParams {
        grace_period_seconds: grace_s,
        preconditions: Some(Preconditions {
            uid: Some(uid.0.clone()),
            ..Preconditions::default()
        }),
        ..DeleteParams::default()
    };
    match api(client, namespace, kind).delete(name, &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(ApplyError::new("delete", kind, name, error)),
    }
}
