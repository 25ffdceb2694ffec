//! The loop: watches fill caches and say what was touched, and passes over what is due are run,
//! a bounded number at a time, while this operator leads.
//!
//! Every watch is a task of its own with a back-off of its own, so that one that fails does not
//! hold up the others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use carillon_crds::ImCluster;
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use kube::core::{DeserializeGuard, DynamicObject, PartialObjectMeta};
use kube::runtime::reflector::{self, Lookup, ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client, Resource, ResourceExt};
use rand::Rng;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::apply;
use crate::build::CLUSTER_LABEL;
use crate::build::objects::{Kind, WATCHED};
use crate::cluster::Connect;
use crate::known::Known;
use crate::observe::Objects;
use crate::queue::{Key, Queue};
use crate::reconcile::{ReconcileError, Reconciler};
use crate::telemetry::Telemetry;

/// What one pass may take; its requests have no limit of their own.
const PASS_TIMEOUT: Duration = Duration::from_secs(90);
/// How often somebody who does not lead looks whether it does by now.
const LEADS_POLL: Duration = Duration::from_secs(1);
/// Touches that wait for the loop; watches wait when there are more.
const TOUCHES_MAX: usize = 1_024;

/// Which ImClusters are looked after.
#[derive(Debug, Clone)]
pub enum Scope {
    All,
    Namespace(String),
}

impl Scope {
    fn api<K>(&self, client: &Client) -> Api<K>
    where
        K: Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        match self {
            Scope::All => Api::all(client.clone()),
            Scope::Namespace(namespace) => Api::namespaced(client.clone(), namespace),
        }
    }

    fn of_kind(&self, client: &Client, kind: Kind) -> Api<PartialObjectMeta<DynamicObject>> {
        let resource = apply::resource(kind);
        match self {
            Scope::All => Api::all_with(client.clone(), &resource),
            Scope::Namespace(namespace) => {
                Api::namespaced_with(client.clone(), namespace, &resource)
            }
        }
    }
}

/// What a watch says.
enum Touch {
    One(Key),
    /// Others changed or deleted an object of it.
    Disturbed(Key),
    /// Something that all have to do with.
    All,
}

type Clusters = Store<DeserializeGuard<ImCluster>>;

struct Caches {
    clusters: Clusters,
    pods: Store<Pod>,
    claims: Store<PersistentVolumeClaim>,
    hosts: Store<Node>,
}

pub struct Controller<C> {
    reconciler: Arc<Reconciler<C>>,
    caches: Caches,
    touches: mpsc::Receiver<Touch>,
    telemetry: Arc<Telemetry>,
    passes_max: usize,
}

impl<C: Connect> Controller<C> {
    /// Starts the watches.
    pub fn start(
        reconciler: Reconciler<C>,
        scope: &Scope,
        telemetry: Arc<Telemetry>,
        passes_max: usize,
        stop: &CancellationToken,
    ) -> Controller<C> {
        let client = reconciler.client.clone();
        let (sender, touches) = mpsc::channel(TOUCHES_MAX);
        let watches = Watches {
            sender,
            telemetry: telemetry.clone(),
            stop: stop.clone(),
        };
        let ours = watch::Config::default().labels(CLUSTER_LABEL);
        let caches = Caches {
            clusters: watches.start(
                "ImCluster",
                scope.api(&client),
                watch::Config::default(),
                own,
            ),
            pods: watches.start("Pod", scope.api(&client), ours.clone(), owner),
            claims: watches.start(
                "PersistentVolumeClaim",
                scope.api(&client),
                ours.clone(),
                owner,
            ),
            hosts: watches.start_hosts(Api::all(client.clone())),
        };
        for kind in WATCHED {
            let api = scope.of_kind(&client, kind);
            watches.start_round(kind, api, ours.clone(), reconciler.known());
        }
        Controller {
            reconciler: Arc::new(reconciler),
            caches,
            touches,
            telemetry,
            passes_max,
        }
    }

    pub async fn run(mut self, stop: CancellationToken) {
        let mut queue = Queue::default();
        let mut running: JoinSet<(Key, Option<Duration>)> = JoinSet::new();
        loop {
            let due = queue
                .next_due()
                .unwrap_or_else(|| Instant::now() + LEADS_POLL);
            let poll = Instant::now() + LEADS_POLL;
            // Cancel-safe: a touch or a result is taken by exactly one arm; the sleep is made anew.
            tokio::select! {
                () = stop.cancelled() => break,
                Some(touch) = self.touches.recv() => self.touched(&mut queue, touch),
                Some(ended) = running.join_next(), if !running.is_empty() => {
                    if let Ok((key, result)) = ended {
                        self.ended(&mut queue, &key, result);
                    }
                }
                () = tokio::time::sleep_until(due.max(Instant::now()).min(poll).into()) => {}
            }
            if !self.reconciler.leadership.leads() || !self.telemetry.synced() {
                continue;
            }
            while running.len() < self.passes_max {
                let Some(key) = queue.take(Instant::now()) else {
                    break;
                };
                self.begin(&mut queue, &mut running, key);
            }
        }
        // A pass stops at its next write, since the Lease is given back; what it has begun is
        // seen by whoever leads next.
        running.shutdown().await;
    }

    fn touched(&self, queue: &mut Queue, touch: Touch) {
        let now = Instant::now();
        match touch {
            Touch::One(key) => {
                self.report(&key);
                queue.touch(key, now);
            }
            Touch::Disturbed(key) => {
                self.reconciler.disturb(key.clone());
                queue.touch(key, now);
            }
            Touch::All => {
                for key in queue.keys() {
                    queue.touch(key, now);
                }
            }
        }
        self.telemetry.clusters(self.caches.clusters.len());
    }

    /// Says in the metrics whether an ImCluster is as wanted.
    fn report(&self, key: &Key) {
        let reference = ObjectRef::<DeserializeGuard<ImCluster>>::new(&key.1).within(&key.0);
        let found = self.caches.clusters.get(&reference);
        let reason = found.as_ref().and_then(|found| match &found.0 {
            Ok(cluster) => {
                let conditions = cluster.status.iter().flat_map(|status| &status.conditions);
                let mut ready =
                    conditions.filter(|one| one.type_ == "Ready" && one.status != "True");
                ready.next().map(|one| one.reason.as_str())
            }
            Err(_) => Some("Unreadable"),
        });
        self.telemetry.not_ready(key, reason);
    }

    fn begin(&self, queue: &mut Queue, running: &mut JoinSet<(Key, Option<Duration>)>, key: Key) {
        let (namespace, name) = &key;
        let reference = ObjectRef::<DeserializeGuard<ImCluster>>::new(name).within(namespace);
        let Some(found) = self.caches.clusters.get(&reference) else {
            self.reconciler.forget(namespace, name);
            queue.remove(&key);
            return;
        };
        let cluster = match &found.0 {
            Ok(cluster) => cluster.clone(),
            Err(error) => {
                tracing::error!(namespace, name, %error, "an ImCluster cannot be understood");
                queue.done(&key, None, Instant::now(), 1.0);
                return;
            }
        };
        let objects = self.objects(&key);
        let reconciler = self.reconciler.clone();
        let telemetry = self.telemetry.clone();
        let span = tracing::info_span!("imcluster", namespace, imcluster = name);
        let pass = async move {
            let began = Instant::now();
            let pass = reconciler.reconcile(&cluster, &objects);
            let result = match tokio::time::timeout(PASS_TIMEOUT, pass).await {
                Ok(Ok(after)) => Some(after),
                Ok(Err(ReconcileError::NotLeading)) => None,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "a pass failed");
                    None
                }
                Err(_) => {
                    tracing::warn!("a pass took too long");
                    None
                }
            };
            telemetry.pass(result.is_some(), began.elapsed());
            (key, result)
        };
        running.spawn(pass.instrument(span));
    }

    fn ended(&self, queue: &mut Queue, key: &Key, result: Option<Duration>) {
        let jitter = rand::rng().random::<f64>();
        queue.done(key, result, Instant::now(), jitter);
    }

    /// What the caches have of one ImCluster.
    fn objects(&self, key: &Key) -> Objects {
        let (namespace, name) = key;
        Objects {
            pods: self
                .caches
                .pods
                .state_filter(|pod| is_of(pod, namespace, name)),
            claims: self
                .caches
                .claims
                .state_filter(|claim| is_of(claim, namespace, name)),
            hosts: self.caches.hosts.state(),
        }
    }
}

fn is_of<K: ResourceExt>(object: &K, namespace: &str, name: &str) -> bool {
    owner(object).is_some_and(|(of, owner)| of == namespace && owner == name)
}

fn own<K: ResourceExt>(object: &K) -> Option<Key> {
    Some((object.namespace()?, object.name_any()))
}

fn owner<K: ResourceExt>(object: &K) -> Option<Key> {
    Some((
        object.namespace()?,
        object.labels().get(CLUSTER_LABEL)?.clone(),
    ))
}

struct Watches {
    sender: mpsc::Sender<Touch>,
    telemetry: Arc<Telemetry>,
    stop: CancellationToken,
}

impl Watches {
    /// A watch whose events touch one ImCluster each.
    fn start<K>(
        &self,
        kind: &'static str,
        api: Api<K>,
        config: watch::Config,
        key: fn(&K) -> Option<Key>,
    ) -> Store<K>
    where
        K: Resource + Lookup + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
        <K as Lookup>::DynamicType: Default + Eq + std::hash::Hash + Clone + Send + Sync,
    {
        self.spawn(kind, api, config, move |event| {
            let object = match event {
                Event::Apply(object) | Event::Delete(object) | Event::InitApply(object) => object,
                Event::Init | Event::InitDone => return None,
            };
            key(object).map(Touch::One)
        })
    }

    /// Kubernetes nodes report all the time; only labels and readiness matter.
    fn start_hosts(&self, api: Api<Node>) -> Store<Node> {
        let mut known: HashMap<String, (BTreeMap<String, String>, bool)> = HashMap::new();
        self.spawn(
            "Node",
            api,
            watch::Config::default(),
            move |event| match event {
                Event::Apply(host) | Event::InitApply(host) => {
                    let conditions = host
                        .status
                        .as_ref()
                        .and_then(|status| status.conditions.as_ref());
                    let mut conditions = conditions.into_iter().flatten();
                    let ready = conditions.any(|one| one.type_ == "Ready" && one.status == "True");
                    let state = (host.labels().clone(), ready);
                    let before = known.insert(host.name_any(), state.clone());
                    (before.as_ref() != Some(&state)).then_some(Touch::All)
                }
                Event::Delete(host) => known.remove(&host.name_any()).map(|_| Touch::All),
                Event::Init | Event::InitDone => None,
            },
        )
    }

    /// A watch on what is round the members: nothing but metadata is sent, and nothing is kept
    /// but what [`Known`] does. The operator works without it, only later: it holds up nothing,
    /// and a failure does not end the process.
    fn start_round(
        &self,
        kind: Kind,
        api: Api<PartialObjectMeta<DynamicObject>>,
        config: watch::Config,
        known: Arc<Known>,
    ) {
        let (sender, telemetry) = (self.sender.clone(), self.telemetry.clone());
        let stream = watcher::watcher(api, config).default_backoff();
        let stream = stream.take_until(self.stop.clone().cancelled_owned());
        tokio::spawn(async move {
            let mut stream = std::pin::pin!(stream);
            let mut listed = BTreeSet::new();
            while let Some(event) = stream.next().await {
                let touched: BTreeSet<Key> = match event {
                    Ok(Event::Init) => {
                        listed.clear();
                        BTreeSet::new()
                    }
                    Ok(Event::InitApply(object)) => {
                        listed.extend(own(&object));
                        known.seen(kind, &object.metadata).into_iter().collect()
                    }
                    Ok(Event::InitDone) => known.listed(kind, &std::mem::take(&mut listed)),
                    Ok(Event::Apply(object)) => {
                        known.seen(kind, &object.metadata).into_iter().collect()
                    }
                    Ok(Event::Delete(object)) => {
                        known.gone(kind, &object.metadata).into_iter().collect()
                    }
                    Err(error) => {
                        tracing::warn!(kind = kind.kind, %error, "a watch failed");
                        telemetry.watch_failure(kind.kind);
                        BTreeSet::new()
                    }
                };
                for key in touched {
                    tracing::debug!(kind = kind.kind, ?key, "changed by others");
                    if sender.send(Touch::Disturbed(key)).await.is_err() {
                        return;
                    }
                }
            }
        });
    }

    fn spawn<K>(
        &self,
        kind: &'static str,
        api: Api<K>,
        config: watch::Config,
        mut touch: impl FnMut(&Event<K>) -> Option<Touch> + Send + 'static,
    ) -> Store<K>
    where
        K: Resource + Lookup + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
        <K as Lookup>::DynamicType: Default + Eq + std::hash::Hash + Clone + Send + Sync,
    {
        let (reader, mut writer) = reflector::store::<K>();
        let (sender, telemetry) = (self.sender.clone(), self.telemetry.clone());
        telemetry.watch_begins(kind);
        let stream = watcher::watcher(api, config).default_backoff();
        let stream = stream.take_until(self.stop.clone().cancelled_owned());
        tokio::spawn(async move {
            let mut stream = std::pin::pin!(stream);
            while let Some(event) = stream.next().await {
                match event {
                    Ok(event) => {
                        writer.apply_watcher_event(&event);
                        telemetry.watch_works(kind, matches!(event, Event::InitDone));
                        if let Some(touch) = touch(&event)
                            && sender.send(touch).await.is_err()
                        {
                            break;
                        }
                    }
                    Err(error) => {
                        tracing::warn!(kind, %error, "a watch failed");
                        telemetry.watch_fails(kind);
                    }
                }
            }
        });
        reader
    }
}
