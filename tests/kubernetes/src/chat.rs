//! A chat cluster that the operator makes, and people who chat on it while something is done to
//! it.

use std::env;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use carillon_auth::keys::{Scope, make};
use carillon_crds::ImCluster;
use carillon_tests::access::Access;
use carillon_tests::checker::Report;
use carillon_tests::load::{Load, LoadOptions, seed};
use carillon_tests::sends::Sends;
use carillon_tests::verify::verify_through;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::{RwLock, RwLockReadGuard};
use tokio::time::Instant;

use crate::bed::Bed;
use crate::cluster::{Cluster, Namespace};
use crate::wait::{until, until_any};

/// What each of these clusters is called; its namespace is its own.
pub const NAME: &str = "chat";
/// From nothing, or from anything, to all as the spec wants it, on a busy machine.
pub const READY_LIMIT: Duration = Duration::from_secs(180);
/// Over which a node that is drained tells its people to connect elsewhere.
const DRAIN_SPREAD: &str = "2s";
/// Between two sends of one device: twenty a second of the ten, which leaves the processors to
/// the three clusters at a time and to Kubernetes.
const SEND_INTERVAL: Duration = Duration::from_millis(500);
/// Messages that show that people can chat.
const SOME_MESSAGES: u64 = 60;
/// How long these may take.
const PROGRESS_LIMIT: Duration = Duration::from_secs(60);
const CLIENT_PORT: u16 = 7400;
const KEYS: &str = "chat-server-keys";
const KEYS_FILE: &str = "keys.toml";

/// An `ImCluster` in a namespace of its own.
pub struct ChatCluster {
    /// Where it is.
    pub namespace: Namespace,
    secret: String,
}

/// A small cluster of three zones; `spec` is merged into it.
pub fn spec(spec: &Value) -> anyhow::Result<Value> {
    let mut small = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "image": image()?,
        "shards": 6,
        "topology": {"spread": "Required"},
        "storage": {"size": "1Gi"},
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
        "auth": {"serverKeys": {"name": KEYS, "key": KEYS_FILE}},
        "update": {"minReady": "1s"},
        // A restart takes 10 s longer with the default, which is for far more people.
        "config": {"clients": {"drain_spread": DRAIN_SPREAD}},
        "deletionPolicy": "Delete",
    });
    merge(&mut small, spec);
    Ok(small)
}

/// The image of a node: `CARILLON_NODE_IMAGE`.
pub fn image() -> anyhow::Result<String> {
    env::var("CARILLON_NODE_IMAGE").context("CARILLON_NODE_IMAGE names no image; use make e2e")
}

/// As RFC 7396 says.
fn merge(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                match value {
                    Value::Null => {
                        into.remove(key);
                    }
                    _ => merge(into.entry(key).or_insert(Value::Null), value),
                }
            }
        }
        (into, patch) => *into = patch.clone(),
    }
}

/// The operator says of this spec, not of an older one, that all is as it wants it.
pub fn is_ready(seen: &ImCluster) -> bool {
    is(seen, "Ready", "True")
}

/// A condition has this status, for the spec as it is now.
pub fn is(seen: &ImCluster, condition: &str, status: &str) -> bool {
    let found = seen.status.as_ref().and_then(|seen| {
        let mut all = seen.conditions.iter();
        all.find(|one| one.type_ == condition)
    });
    found.is_some_and(|one| {
        one.status == status && one.observed_generation == seen.metadata.generation
    })
}

/// Why it is Ready, or not; nothing while that is of an older spec.
pub fn reason(seen: &ImCluster) -> &str {
    let all = seen.status.iter().flat_map(|status| &status.conditions);
    let mut found = all.filter(|one| one.type_ == "Ready");
    let found = found.find(|one| one.observed_generation == seen.metadata.generation);
    found.map(|one| one.reason.as_str()).unwrap_or_default()
}

/// The message of a condition.
pub fn message(seen: &ImCluster, condition: &str) -> String {
    let all = seen.status.iter().flat_map(|status| &status.conditions);
    let mut found = all.filter(|one| one.type_ == condition);
    found
        .next()
        .map(|one| one.message.clone())
        .unwrap_or_default()
}

impl ChatCluster {
    /// The secret of a server that may act for all users.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// Asks for one; does not wait for it.
    pub async fn create(cluster: &Cluster, prefix: &str, wanted: &Value) -> anyhow::Result<Self> {
        let namespace = cluster.namespace(prefix).await?;
        let (secret, entry) = make("tests", &[Scope::ChatRead, Scope::ChatWrite])?;
        let keys = json!({"metadata": {"name": KEYS}, "stringData": {KEYS_FILE: entry}});
        namespace.create::<Secret>(keys).await?;
        let chat = Self { namespace, secret };
        chat.apply(&spec(wanted)?).await?;
        Ok(chat)
    }

    /// Makes the resource (again) with this spec.
    pub async fn apply(&self, spec: &Value) -> anyhow::Result<()> {
        let object = json!({
            "apiVersion": "carillon.dev/v1alpha1",
            "kind": "ImCluster",
            "metadata": {"name": NAME},
            "spec": spec,
        });
        self.namespace.create::<ImCluster>(object).await.map(drop)
    }

    /// Changes its spec.
    pub async fn change(&self, patch: Value) -> anyhow::Result<()> {
        let patch = Patch::Merge(json!({ "spec": patch }));
        let all = self.namespace.api::<ImCluster>();
        let changed = all.patch(NAME, &PatchParams::default(), &patch).await;
        changed.map(drop).context("the change was refused")
    }

    /// Changes its spec, and waits until all is as it wants it.
    pub async fn becomes(&self, patch: Value) -> anyhow::Result<ImCluster> {
        let what = format!("to be Ready with {patch}");
        self.change(patch).await?;
        self.until(&what, READY_LIMIT, is_ready).await
    }

    /// Waits until it is Ready.
    pub async fn ready(&self) -> anyhow::Result<ImCluster> {
        self.until("to be Ready", READY_LIMIT, is_ready).await
    }

    /// Waits until it is as wanted.
    pub async fn until(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&ImCluster) -> bool,
    ) -> anyhow::Result<ImCluster> {
        let all = self.namespace.api::<ImCluster>();
        until(&all, NAME, what, limit, wanted).await
    }

    /// The Pods of its members, by name.
    pub async fn pods(&self) -> anyhow::Result<Vec<Pod>> {
        let members = ListParams::default().labels("carillon.dev/member");
        let pods = self.namespace.api::<Pod>().list(&members).await?;
        Ok(pods.items)
    }

    /// How clients reach it.
    pub async fn access(&self) -> anyhow::Result<Access> {
        let all = self.namespace.api::<Secret>();
        let authority = all.get(&format!("{NAME}-ca")).await?;
        let data = authority.data.unwrap_or_default();
        let ByteString(pem) = data.get("ca.crt").context("the authority has no ca.crt")?;
        let pem = std::str::from_utf8(pem)?;
        let name = format!("{NAME}-client.{}.svc", self.namespace.name);
        Access::secured(pem, &name, &self.secret)
    }

    /// Where its Service is.
    pub async fn address(&self) -> anyhow::Result<String> {
        self.address_of(&format!("{NAME}-client")).await
    }

    /// Where a Service is.
    pub async fn address_of(&self, service: &str) -> anyhow::Result<String> {
        let all = self.namespace.api::<Service>();
        let service = all.get(service).await?;
        let ip = service.spec.and_then(|spec| spec.cluster_ip);
        let ip = ip.context("the Service has no address")?;
        Ok(format!("{ip}:{CLIENT_PORT}"))
    }

    /// People begin to chat, through the Service at this address; with messages of the usual size
    /// or of another one.
    pub async fn load(&self, address: String, text_bytes: Option<usize>) -> anyhow::Result<Load> {
        let seed = seed();
        println!("run again with CARILLON_TEST_SEED={seed}");
        let light = LoadOptions::light(seed);
        let options = LoadOptions {
            text_bytes: text_bytes.unwrap_or(light.text_bytes),
            users: 8,
            second_devices: 2,
            groups: 4,
            group_members: 4,
            directs: 4,
            send_interval: SEND_INTERVAL,
            access: self.access().await?,
            ..light
        };
        let load = Load::start(&[address], options).await?;
        load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
            .await?;
        load.reset_longest_pause();
        Ok(load)
    }

    /// Deletes it, and then its namespace: of a namespace alone Pods would go first, and be made
    /// anew.
    pub async fn remove(self) -> anyhow::Result<()> {
        let all = self.namespace.api::<ImCluster>();
        all.delete(NAME, &DeleteParams::default()).await?;
        until_any(&all, NAME, "to be gone", READY_LIMIT, |seen| seen.is_none()).await?;
        self.namespace.remove().await
    }

    /// Ends a load and checks what its people see, through each member. All of these run.
    pub async fn check(&self, load: Load) -> anyhow::Result<(Report, Sends)> {
        let access = self.access().await?;
        let mut nodes = Vec::new();
        for pod in self.pods().await? {
            let name = pod.metadata.name.unwrap_or_default();
            let ip = pod.status.and_then(|status| status.pod_ip);
            let ip = ip.with_context(|| format!("{name} has no address"))?;
            let target = access.target(&format!("{ip}:{CLIENT_PORT}"))?;
            nodes.push((name, target.chat()));
        }
        verify_through(nodes, load).await
    }
}

/// What may happen to people who chat while something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: each message is stored with its first try or its second.
    Planned,
    /// Waiting, and trying more often. Nothing is lost, doubled or out of order all the same.
    Failure,
}

/// A chat cluster, people who chat on it, and what it runs on.
pub struct Trial {
    /// The Kubernetes.
    pub cluster: Cluster,
    /// Its machines, where they may be hurt.
    pub bed: Option<Bed>,
    /// The chat cluster.
    pub chat: ChatCluster,
    /// Who chats.
    pub load: Load,
}

impl Trial {
    /// People can chat, now.
    pub async fn goes_on(&self) -> anyhow::Result<()> {
        self.load
            .wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
            .await
    }
}

/// Tests that hurt what others stand on too have it for themselves.
static MACHINES: RwLock<()> = RwLock::const_new(());

/// For a test that needs the machines, the API server and the operator as they are, while others
/// do too.
pub async fn beside_others() -> RwLockReadGuard<'static, ()> {
    MACHINES.read().await
}

/// A test: a cluster is made, people chat on it while something is done, and then it is checked
/// that they got what they were promised.
pub struct Test {
    name: &'static str,
    spec: Value,
    kind: Kind,
    alone: bool,
    text_bytes: Option<usize>,
}

impl Test {
    /// One of a cluster with this spec, see [`spec`].
    pub fn new(name: &'static str, spec: Value, kind: Kind) -> Self {
        Self {
            name,
            spec,
            kind,
            alone: false,
            text_bytes: None,
        }
    }

    /// It hurts what others stand on: machines, the API server, the operator.
    #[must_use]
    pub fn alone(self) -> Self {
        Self {
            alone: true,
            ..self
        }
    }

    /// People write that much in a message.
    #[must_use]
    pub fn texts_of(self, text_bytes: usize) -> Self {
        Self {
            text_bytes: Some(text_bytes),
            ..self
        }
    }

    /// Runs it. The body leaves all members running.
    ///
    /// # Errors
    /// Whatever did not go as it must.
    pub async fn run(
        self,
        body: impl AsyncFnOnce(&Trial) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let _turns = match self.alone {
            true => (Some(MACHINES.write().await), None),
            false => (None, Some(MACHINES.read().await)),
        };
        let Some(cluster) = Cluster::with_nodes(self.name).await? else {
            return Ok(());
        };
        let (name, started) = (self.name, Instant::now());
        let chat = ChatCluster::create(&cluster, "trial", &self.spec).await?;
        chat.ready().await?;
        let load = chat.load(chat.address().await?, self.text_bytes).await?;
        println!("{name}: people chat after {:?}", started.elapsed());
        let trial = Trial {
            bed: Bed::find(),
            cluster,
            chat,
            load,
        };
        let began = Instant::now();
        body(&trial).await.context(name)?;
        println!("{name}: took {:?}", began.elapsed());
        trial.goes_on().await?;
        let Trial { chat, load, .. } = trial;
        let checked = Instant::now();
        let (report, sends) = chat.check(load).await?;
        println!(
            "{name}: done after {:?}, {:?} of it checked: {report}; {sends}",
            started.elapsed(),
            checked.elapsed()
        );
        ensure!(
            self.kind == Kind::Failure || sends.tried_more == 0,
            "{} messages had to be tried more than twice: {sends}",
            sends.tried_more
        );
        chat.remove().await
    }
}
