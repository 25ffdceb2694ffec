//! The API server, as kubectl would reach it, and what it says when something is not there.

use carillon_crds::ImCluster;
use k8s_openapi::api::events::v1::Event;
use kube::api::ListParams;
use kube::config::KubeConfigOptions;
use kube::{Api, Client, Config};
use serde_json::Value;

use crate::failure::advised;

/// Events that are read at a time; they come in no order.
const EVENTS_PAGE: u32 = 500;
/// Pages of them at most. The API server forgets events after an hour.
const EVENT_PAGES_MAX: usize = 20;

/// A namespace of an API server.
pub(super) struct Connection {
    client: Client,
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

    /// The resources of the namespace.
    pub(super) fn clusters(&self) -> Api<ImCluster> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// One of them.
    pub(super) async fn cluster(&self, name: &str) -> anyhow::Result<ImCluster> {
        let found = self.clusters().get(name).await;
        found.map_err(|error| self.explained(name, error))
    }

    /// What happened to it, oldest first.
    pub(super) async fn events(&self, name: &str) -> anyhow::Result<Vec<Event>> {
        let all = Api::<Event>::namespaced(self.client.clone(), &self.namespace);
        let about = format!("regarding.kind=ImCluster,regarding.name={name}");
        let mut wanted = ListParams::default().fields(&about).limit(EVENTS_PAGE);
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
            let what = "the API server of Kubernetes cannot be reached";
            let advice = "see that `kubectl version` works; --context chooses another one";
            return anyhow::Error::new(error).context(advised(what, advice));
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
}

fn without(error: impl std::error::Error + Send + Sync + 'static) -> anyhow::Error {
    let what = "there is no Kubernetes to talk to";
    let advice = "set KUBECONFIG, or name a context with --context";
    anyhow::Error::new(error).context(advised(what, advice))
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
