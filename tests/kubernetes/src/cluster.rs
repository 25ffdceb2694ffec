//! The cluster that the tests run on, and a namespace of its own for each test.

use std::env;
use std::fmt::Debug;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Namespace as NamespaceObject, Node, ServiceAccount};
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Api, Client, Config, Resource};
use serde_json::json;

use crate::bed::Bed;
use crate::wait::until;

/// The controllers give a new namespace its account within seconds.
const ACCOUNT_LIMIT: Duration = Duration::from_secs(30);
/// What the test bed's nodes have; any image with a shell and busybox's programs will do.
const TOOLS_IMAGE: &str = "carillon.test/busybox:1";

/// The cluster of `KUBECONFIG`.
#[derive(Clone)]
pub struct Cluster {
    /// To ask it whatever a test wants.
    pub client: Client,
    bed: Option<Bed>,
    nodes: usize,
}

impl Cluster {
    /// Connects to it.
    pub async fn connect() -> anyhow::Result<Self> {
        // Two libraries of ciphers may be linked; this says which one. An error says that it
        // was said before.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut config = Config::infer()
            .await
            .context("no cluster: `make e2e` starts one, or set KUBECONFIG")?;
        // An eviction that a budget refuses is a 429, which the client would try again for
        // minutes; and an API server that is away is to be seen.
        config.default_retry = false;
        let client = Client::try_from(config)?;
        let nodes = Api::<Node>::all(client.clone())
            .list(&ListParams::default())
            .await
            .context("the nodes cannot be listed")?
            .items
            .len();
        Ok(Self {
            client,
            bed: Bed::find(),
            nodes,
        })
    }

    /// For a test that runs pods: the cluster, or `None` and a line that says why the test is
    /// skipped.
    pub async fn with_nodes(test: &str) -> anyhow::Result<Option<Self>> {
        let cluster = Self::connect().await?;
        if cluster.nodes == 0 {
            println!("SKIPPED: {test}: the cluster is a control plane only");
            return Ok(None);
        }
        Ok(Some(cluster))
    }

    /// For a test that hurts machines.
    pub async fn with_bed(test: &str) -> anyhow::Result<Option<(Self, Bed)>> {
        let Some(cluster) = Self::with_nodes(test).await? else {
            return Ok(None);
        };
        let Some(bed) = cluster.bed.clone() else {
            println!("SKIPPED: {test}: this cluster's machines are not the test bed's");
            return Ok(None);
        };
        Ok(Some((cluster, bed)))
    }

    /// An image with a shell: `CARILLON_TOOLS_IMAGE`, else the test bed's.
    pub fn tools_image() -> String {
        env::var("CARILLON_TOOLS_IMAGE").unwrap_or_else(|_| TOOLS_IMAGE.into())
    }

    /// A storage class whose volumes move with their pods: `CARILLON_STORAGE_CLASS`, else the
    /// test bed's.
    pub fn storage_class() -> String {
        env::var("CARILLON_STORAGE_CLASS").unwrap_or_else(|_| "network".into())
    }

    /// A namespace that refuses every pod which is not restricted.
    pub async fn namespace(&self, prefix: &str) -> anyhow::Result<Namespace> {
        let name = format!("{prefix}-{:06x}", rand::random::<u32>() & 0x00ff_ffff);
        let object = NamespaceObject {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: serde_json::from_value(json!({
                    "pod-security.kubernetes.io/enforce": "restricted",
                }))?,
                ..ObjectMeta::default()
            },
            ..NamespaceObject::default()
        };
        let all = Api::<NamespaceObject>::all(self.client.clone());
        all.create(&PostParams::default(), &object).await?;
        let namespace = Namespace {
            client: self.client.clone(),
            name,
        };
        // Pods are refused until it is there.
        let accounts = namespace.api::<ServiceAccount>();
        until(&accounts, "default", "to be made", ACCOUNT_LIMIT, |_| true).await?;
        Ok(namespace)
    }
}

/// A test's namespace. It goes with all that is in it when the test removes it; what a failed
/// test leaves is there to be looked at.
pub struct Namespace {
    client: Client,
    /// Its name, of which a part is random.
    pub name: String,
}

impl Namespace {
    /// Its objects of one kind.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Makes an object out of JSON.
    pub async fn create<K>(&self, object: serde_json::Value) -> anyhow::Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + serde::Serialize
            + serde::de::DeserializeOwned,
    {
        let object: K = serde_json::from_value(object).context("not such an object")?;
        let what = format!("{} {:?}", K::kind(&()), object.meta().name);
        self.api::<K>()
            .create(&PostParams::default(), &object)
            .await
            .with_context(|| format!("{what} cannot be made"))
    }

    /// Begins to remove it; does not wait.
    pub async fn remove(self) -> anyhow::Result<()> {
        let all = Api::<NamespaceObject>::all(self.client.clone());
        all.delete(&self.name, &DeleteParams::default()).await?;
        Ok(())
    }
}
