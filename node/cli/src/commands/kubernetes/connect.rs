//! The API server, as kubectl would reach it, and what it says when something is not there.

use carillon_crds::ImCluster;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::api::ListParams;
use kube::client::UpgradeConnectionError;
use kube::config::KubeConfigOptions;
use kube::{Api, Client, Config, Resource};
use serde_json::Value;

use super::pods::selector;
use crate::failure::{advised, because};

/// Events that are read at a time; they come in no order.
const EVENTS_PAGE: u32 = 500;
/// Pages of them at most. The API server forgets events after an hour.
const EVENT_PAGES_MAX: usize = 20;

/// A namespace of an API server.
pub(super) struct Connection {
    pub(super) client: Client,
    /// Where the resources are.
    pub(super) namespace: String,
}

impl Connection {
    /// Reaches the API server of a context.
    pub(super) async fn open(
        context: Option<String>,
        namespace: Option<String>,
    ) -> anyhow::Result<Self> {
        // Two libraries of ciphers may be linked; this says which one. An error says that it was
        // said before.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let config = match context {
            Some(context) => {
                let options = KubeConfigOptions {
                    context: Some(context),
                    ..KubeConfigOptions::default()
                };
                Config::from_kubeconfig(&options).await.map_err(without)?
            }
            None => Config::infer().await.map_err(without)?,
        };
        let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
        Ok(Self {
            client: Client::try_from(config)?,
            namespace,
        })
    }

    /// The objects of one kind in the namespace.
    pub(super) fn all<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The resources of the namespace.
    pub(super) fn clusters(&self) -> Api<ImCluster> {
        self.all()
    }

    /// The Pods of a cluster's members.
    pub(super) async fn member_pods(&self, name: &str) -> anyhow::Result<Vec<Pod>> {
        let members = ListParams::default().labels(&selector(name));
        let found = self.all::<Pod>().list(&members).await;
        let mut pods = found
            .map_err(|error| self.refused("list", "pods", error))?
            .items;
        pods.sort_by(|one, other| one.metadata.name.cmp(&other.metadata.name));
        Ok(pods)
    }

    /// One of them.
    pub(super) async fn cluster(&self, name: &str) -> anyhow::Result<ImCluster> {
        let found = self.clusters().get(name).await;
        found.map_err(|error| self.explained(name, error))
    }

    /// What happened to it, oldest first.
    pub(super) async fn events(&self, name: &str) -> anyhow::Result<Vec<Event>> {
        let about = format!("regarding.kind=ImCluster,regarding.name={name}");
        Ok(self.events_of(ListParams::default().fields(&about)).await?)
    }

    /// What happened in the namespace, oldest first.
    pub(super) async fn events_of(&self, wanted: ListParams) -> Result<Vec<Event>, kube::Error> {
        let all = self.all::<Event>();
        let mut wanted = wanted.limit(EVENTS_PAGE);
        let mut events = Vec::new();
        for _ in 0..EVENT_PAGES_MAX {
            let page = all.list(&wanted).await?;
            events.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => wanted = wanted.continue_token(&token),
                None => break,
            }
        }
        events.sort_by_key(when);
        Ok(events)
    }

    /// An error of the API server about one resource, with what to do.
    pub(super) fn explained(&self, name: &str, error: kube::Error) -> anyhow::Error {
        let kube::Error::Api(status) = &error else {
            return unreachable(error);
        };
        let of = format!("imcluster {name} in namespace {}", self.namespace);
        match status.code {
            404 if status
                .message
                .contains("could not find the requested resource") =>
            {
                advised(
                    "this Kubernetes knows no ImCluster",
                    "install the operator: docs/kubernetes.md",
                )
            }
            404 => advised(
                format!("there is no {of}"),
                "kubectl get imcluster --all-namespaces; --namespace says where it is",
            ),
            403 => advised(
                format!("{of}: {}", status.message),
                "ask who administers this Kubernetes for a role that may do it",
            ),
            _ => advised(
                format!("{of}: {}", status.message),
                "correct what it says and try again",
            ),
        }
    }

    /// An error of the API server about objects of a kind, with the right that is missing when one
    /// is.
    pub(super) fn refused(&self, verb: &str, resource: &str, error: kube::Error) -> anyhow::Error {
        let namespace = &self.namespace;
        let what = format!("{resource} in namespace {namespace}: not allowed to {verb} them");
        let advice = format!(
            "ask who administers this Kubernetes for a role in namespace {namespace} with the verb \
             {verb} on {resource}"
        );
        if is_forbidden(&error) {
            return because(error, what, advice);
        }
        match &error {
            kube::Error::Api(status) => advised(
                format!("{resource} in namespace {namespace}: {}", status.message),
                "correct what it says and try again",
            ),
            _ => unreachable(error),
        }
    }
}

/// Whether it is a right that is missing.
pub(super) fn is_forbidden(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code == 403,
        kube::Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(status)) => {
            status.as_u16() == 403
        }
        _ => false,
    }
}

fn unreachable(error: kube::Error) -> anyhow::Error {
    because(
        error,
        "the API server of Kubernetes cannot be reached",
        "see that `kubectl version` works; --context chooses another one",
    )
}

fn without(error: impl Into<anyhow::Error>) -> anyhow::Error {
    let what = "there is no Kubernetes to talk to";
    let advice = "set KUBECONFIG, or name a context with --context";
    because(error, what, advice)
}

/// When an event was seen last, microseconds since 1970.
pub(super) fn when(event: &Event) -> i64 {
    let series = event
        .series
        .as_ref()
        .map(|series| &series.last_observed_time);
    let last = series.or(event.event_time.as_ref());
    last.map_or(0, |time| time.0.as_microsecond())
}

/// How it answers in JSON: as kubectl shows it.
pub(super) fn json(cluster: &ImCluster) -> anyhow::Result<Value> {
    Ok(serde_json::to_value(cluster)?)
}
