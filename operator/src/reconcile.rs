//! One pass over one ImCluster: observe → resolve → plan → apply → status.
//!
//! Owner of nothing but [`Memory`], which saves requests and may be lost at any time: the objects
//! that were applied already, the certificates that were looked at, and whom others disturbed.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use carillon_crds::imcluster::{DeletionPolicy, TlsMode};
use carillon_crds::validate::validate;
use carillon_crds::{ImCluster, ImClusterStatus};
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams};
use kube::core::Resource;
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::apply::{self, Applier, ApplyError};
use crate::build::config::{self, NodeFiles};
use crate::build::objects::{self, CLAIM, POD, Surroundings};
use crate::build::{
    CLUSTER_ID_ANNOTATION, CLUSTER_LABEL, Context, FIELD_MANAGER, FINALIZER, NODE_ANNOTATION,
    RELEASED_ANNOTATION, names, pod,
};
use crate::cluster::{Admin, AdminError, Connect, Seen, Whose};
use crate::discovery::Discovery;
use crate::events::Events;
use crate::known::Known;
use crate::lease::Leadership;
use crate::memory::Memory;
use crate::observe::{self, Kubernetes, Objects};
use crate::plan::{Desired, MemberName, Observed, Plan, Step, plan};
use crate::queue::Key;
use crate::resolve::{self, Target};
use crate::secrets::{self, SecretsError};
use crate::status::{self, Facts};

/// Members of a cluster that is being deleted have nobody to hand over to: they stop in order,
/// and do not wait for each other.
const DELETION_GRACE_S: u32 = 15;
/// When nothing waits, and when something does.
const IDLE: Duration = Duration::from_secs(30);
const BUSY: Duration = Duration::from_secs(3);
/// Objects of one ImCluster that are read at once.
pub(crate) const PAGE: u32 = 500;

#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error("{0}")]
    Kube(#[from] Box<kube::Error>),
    #[error("{0}")]
    Apply(#[from] ApplyError),
    #[error("{0}")]
    Secrets(#[from] SecretsError),
    #[error("{0}")]
    Admin(#[from] AdminError),
    #[error("spec.config cannot be written as TOML: {0}")]
    Config(#[from] toml::ser::Error),
    #[error("another operator leads")]
    NotLeading,
}

impl From<kube::Error> for ReconcileError {
    fn from(error: kube::Error) -> ReconcileError {
        ReconcileError::Kube(Box::new(error))
    }
}

impl ReconcileError {
    /// Nothing can be made, since the namespace is being deleted.
    fn namespace_ends(&self) -> bool {
        match self {
            ReconcileError::Kube(error) | ReconcileError::Secrets(SecretsError::Kube(error)) => {
                apply::namespace_ends(error)
            }
            ReconcileError::Apply(error) | ReconcileError::Secrets(SecretsError::Apply(error)) => {
                apply::namespace_ends(&error.source)
            }
            _ => false,
        }
    }
}

pub struct Reconciler<C> {
    pub client: Client,
    pub connect: C,
    pub leadership: Leadership,
    pub events: Events,
    /// Where images come from when the spec names none.
    pub image_repository: String,
    pub(crate) applier: Applier,
    discovery: Discovery,
    /// ImClusters of which others changed or deleted an object.
    disturbed: Mutex<BTreeSet<Key>>,
    /// By namespace and name; a pass holds its own for its whole time.
    memory: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<Memory>>>>,
}

/// What one look gave.
struct Look<A> {
    kubernetes: Kubernetes,
    observed: Observed,
    seen: Option<Seen>,
    admin: Option<A>,
}

impl<C: Connect> Reconciler<C> {
    pub fn new(
        client: Client,
        connect: C,
        leadership: Leadership,
        events: Events,
        image_repository: String,
    ) -> Reconciler<C> {
        Reconciler {
            applier: Applier {
                client: client.clone(),
                known: Arc::default(),
            },
            discovery: Discovery::new(client.clone()),
            client,
            connect,
            leadership,
            events,
            image_repository,
            disturbed: Mutex::default(),
            memory: Mutex::default(),
        }
    }

    /// Forgets what was kept of an ImCluster that is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        self.memory
            .lock()
            .unwrap_or_else(|held| held.into_inner())
            .remove(&key);
        self.is_disturbed(&key);
    }

    /// What is known of the objects that were applied.
    pub fn known(&self) -> Arc<Known> {
        self.applier.known.clone()
    }

    /// Others changed or deleted something of this ImCluster: its next pass looks at all of it.
    pub fn disturb(&self, key: Key) {
        let mut all = self
            .disturbed
            .lock()
            .unwrap_or_else(|held| held.into_inner());
        all.insert(key);
    }

    /// Whether it was disturbed since this was asked last.
    fn is_disturbed(&self, key: &Key) -> bool {
        let mut all = self
            .disturbed
            .lock()
            .unwrap_or_else(|held| held.into_inner());
        all.remove(key)
    }

    fn memory(&self, namespace: &str, name: &str) -> Arc<tokio::sync::Mutex<Memory>> {
        let key = (namespace.to_owned(), name.to_owned());
        let mut all = self.memory.lock().unwrap_or_else(|held| held.into_inner());
        all.entry(key).or_default().clone()
    }

    /// Does what can be done now; says when to look again.
    pub async fn reconcile(
        &self,
        cluster: &ImCluster,
        objects: &Objects,
    ) -> Result<Duration, ReconcileError> {
        let name = cluster.name_any();
        let namespace = cluster.namespace().unwrap_or_default();
        let memory = self.memory(&namespace, &name);
        let mut memory = memory.lock().await;
        let deleting = cluster.meta().deletion_timestamp.is_some();
        if deleting && !cluster.finalizers().iter().any(|one| one == FINALIZER) {
            return Ok(IDLE);
        }
        let broken = validate(cluster);
        if !deleting && !broken.is_empty() {
            let broken: Vec<String> = broken.iter().map(ToString::to_string).collect();
            self.refuse(cluster, &broken.join("; ")).await?;
            return Ok(IDLE);
        }
        if !deleting {
            self.add_finalizer(cluster, &namespace).await?;
        }
        // Its own deletion follows, and is seen.
        if !deleting && memory.namespace_ends.is_some() && memory.namespace_ends == cluster.uid() {
            return Ok(IDLE);
        }
        memory.disturbed |= self.is_disturbed(&(namespace.clone(), name.clone()));
        if memory.credentials.is_none() {
            // Another operator led until now: the cluster is looked at before anything is said.
            memory.credentials = secrets::credentials(&self.client, &namespace, &name).await?;
        }
        let look = self.look(cluster, objects, &memory).await;
        let target = self.target(cluster, &look);
        let context = context(cluster, &name, &namespace, &target);
        let files = match files(&context) {
            Ok(files) => files,
            Err(error) => {
                self.refuse(cluster, &format!("spec.config: {error}"))
                    .await?;
                return Ok(IDLE);
            }
        };
        let desired = resolve::desired(&context, &files, target.refused.clone());
        let mut planned = plan(&desired, &look.observed);
        let result = match deleting || desired.paused {
            true => Ok(()),
            false => {
                self.surround(&context, &files, &look, &planned, &mut memory)
                    .await
            }
        };
        // An object that is refused, such as a Service with an annotation that somebody does not
        // like, keeps no member from being healed.
        let result = match result {
            Err(error @ ReconcileError::Apply(_)) => {
                self.execute(cluster, &planned, &look, &memory).await?;
                Err(error)
            }
            Ok(()) => self.execute(cluster, &planned, &look, &memory).await,
            failed => failed,
        };
        if !deleting
            && result
                .as_ref()
                .err()
                .is_some_and(ReconcileError::namespace_ends)
        {
            tracing::info!("its namespace is being deleted: nothing is made in it any more");
            memory.namespace_ends = cluster.uid();
            return Ok(IDLE);
        }
        let finished = planned.steps.contains(&Step::RemoveFinalizer);
        if deleting && finished && result.is_ok() {
            return Ok(IDLE);
        }
        let after = if planned.is_empty() { IDLE } else { BUSY };
        let mut certificates = memory.certificates.clone();
        if let Some(rotating) = memory
            .rotating
            .as_ref()
            .filter(|_| !deleting && !desired.paused)
        {
            planned.rotates(&rotating.waits);
            if let Some(certificates) = &mut certificates {
                certificates.rotation = Some(rotating.waits.clone());
            }
        }
        let facts = Facts {
            generation: cluster.meta().generation,
            now: Time(Timestamp::now()),
            name: &name,
            namespace: &namespace,
            desired: &desired,
            observed: &look.observed,
            plan: &planned,
            target: &target,
            cluster: look.seen.as_ref(),
            running: &look.kubernetes.running,
            certificates,
            failure: result.as_ref().err().map(ToString::to_string),
        };
        self.write_status(cluster, &facts).await?;
        result?;
        Ok(match deleting || desired.paused {
            true => after,
            false => memory.again_after(after),
        })
    }

    fn target(&self, cluster: &ImCluster, look: &Look<C::Admin>) -> Target {
        let known = cluster
            .status
            .as_ref()
            .and_then(|status| status.cluster_version);
        let version = look
            .seen
            .as_ref()
            .map(|seen| seen.cluster_version)
            .or(known);
        resolve::target(
            cluster,
            &self.image_repository,
            &look.kubernetes.running,
            version,
        )
    }

    /// Looks at the cluster itself, and puts it beside what Kubernetes has.
    async fn look(
        &self,
        cluster: &ImCluster,
        objects: &Objects,
        memory: &Memory,
    ) -> Look<C::Admin> {
        let name = cluster.name_any();
        let namespace = cluster.namespace().unwrap_or_default();
        let zone_key = &cluster.spec.topology.zone_key;
        let kubernetes = observe::understand(&name, &namespace, zone_key, objects);
        let whose = Whose {
            cluster: &name,
            namespace: &namespace,
        };
        let mut admin = None;
        let mut seen = Err("its certificates are not made yet".to_owned());
        if let Some(credentials) = &memory.credentials {
            match self
                .connect
                .connect(&kubernetes.endpoints, credentials)
                .await
            {
                Ok(connected) => {
                    // Who may have to be restarted is the plan's to say; asking for all is cheap.
                    let members = kubernetes.members();
                    seen = connected
                        .look(&whose, &members)
                        .await
                        .map_err(|error| error.to_string());
                    admin = Some(connected);
                }
                Err(error) => seen = Err(error.to_string()),
            }
        }
        let known = cluster
            .status
            .as_ref()
            .and_then(|status| status.cluster_id.clone());
        let answered = seen.as_ref().ok().map(|seen| seen.cluster.id.clone());
        let observed = Observed {
            now_s: now_s(),
            cluster_made: known.or_else(|| kubernetes.cluster_id.clone()).or(answered),
            claims: kubernetes.claims.clone(),
            pods: kubernetes.pods.clone(),
            hosts: kubernetes.hosts.clone(),
            cluster: seen
                .as_ref()
                .map(|seen| seen.cluster.clone())
                .map_err(Clone::clone),
        };
        Look {
            kubernetes,
            observed,
            seen: seen.ok(),
            admin,
        }
    }

    /// Applies what is round the members, unless it was applied lately and nothing has changed.
    async fn surround(
        &self,
        context: &Context<'_>,
        files: &NodeFiles,
        look: &Look<C::Admin>,
        planned: &Plan,
        memory: &mut Memory,
    ) -> Result<(), ReconcileError> {
        let mut members = look.kubernetes.members();
        let created = planned.steps.iter().filter_map(|step| match step {
            Step::CreatePod { member, .. } => Some(member.clone()),
            _ => None,
        });
        members.extend(created);
        let members: Vec<MemberName> = members.into_iter().collect();
        let around = Surroundings {
            members: &members,
            zones: &look.kubernetes.zones,
            files,
            files_in_use: &look.kubernetes.files,
            has_pod_monitors: self.discovery.has_pod_monitors().await,
        };
        let all = objects::all(context, &around);
        let bodies: Vec<&serde_json::Value> = all.iter().map(|object| &object.body).collect();
        let rotation = &context.cluster.spec.tls.rotation;
        let hash = crate::build::hash(
            json!([bodies, look.kubernetes.files, rotation])
                .to_string()
                .as_bytes(),
        );
        let current = memory.is_current(&hash);
        let now = Instant::now();
        let rotates = memory
            .rotating
            .as_ref()
            .is_some_and(|one| one.again_at <= now);
        let given = context.cluster.spec.tls.mode == TlsMode::Secret;
        let looks = !memory.looked_lately();
        if !current || rotates || (given && looks) {
            self.must_lead()?;
            self.certify(context, &members, memory).await?;
        }
        if (!current || looks || memory.join_token.is_none())
            && let Some(admin) = &look.admin
            && let Ok(token) = admin.join_token().await
            && (!current || memory.join_token.as_ref() != Some(&token))
        {
            self.must_lead()?;
            let secret = secrets::join_token(context, &token);
            self.applier.apply(context.namespace, &secret).await?;
            memory.join_token = Some(token);
        }
        if looks {
            memory.looked = Some(now);
        }
        if current {
            return Ok(());
        }
        self.must_lead()?;
        let mut refused = None;
        for object in &all {
            match self.applier.apply(context.namespace, object).await {
                Err(error) if object.kind == objects::POD_MONITOR && error.is_overtaken() => {
                    tracing::info!(%error, "their API is gone");
                    self.discovery.forget().await;
                }
                Err(error) => {
                    refused.get_or_insert(error);
                }
                Ok(()) => {}
            }
        }
        if let Some(error) = refused {
            return Err(error.into());
        }
        for kind in objects::SWEPT {
            if kind == objects::POD_MONITOR && !around.has_pod_monitors {
                continue;
            }
            let kept = |name: &str| {
                let applied = all.iter().any(|one| one.kind == kind && one.name == name);
                applied || objects::stays(context, &around, kind, name)
            };
            self.applier
                .sweep(context.namespace, context.name, kind, kept)
                .await?;
        }
        memory.applied(hash);
        Ok(())
    }

    /// Takes the steps of a plan in order. Before one that disrupts, everything is read again and
    /// planned again: the step is taken only if it is in that plan too.
    async fn execute(
        &self,
        cluster: &ImCluster,
        planned: &Plan,
        look: &Look<C::Admin>,
        memory: &Memory,
    ) -> Result<(), ReconcileError> {
        let mut failure = None;
        for step in &planned.steps {
            self.must_lead()?;
            let done = if step.disrupts() {
                let Some((cluster, fresh)) = self.look_again(cluster, memory).await? else {
                    return Ok(());
                };
                let (desired, files, target) = self.desire(&cluster, &fresh)?;
                if !plan(&desired, &fresh.observed).steps.contains(step) {
                    tracing::info!(?step, "no longer planned");
                    continue;
                }
                self.take(&cluster, &target, &files, step, fresh.admin.as_ref())
                    .await
            } else {
                let (_, files, target) = self.desire(cluster, look)?;
                self.take(cluster, &target, &files, step, look.admin.as_ref())
                    .await
            };
            match done {
                Ok(()) => self.events.step(cluster, step).await,
                // Something else was faster: the next look shows it.
                Err(ReconcileError::Apply(error)) if error.is_overtaken() => {
                    tracing::info!(%error, "overtaken");
                }
                Err(error) if error.namespace_ends() => return Err(error),
                Err(error) => {
                    self.events
                        .warning(cluster, "StepFailed", &error.to_string())
                        .await;
                    // A storage class that cannot grow holds up nothing else.
                    if !matches!(step, Step::GrowVolume { .. }) {
                        return Err(error);
                    }
                    failure = Some(error);
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    fn desire(
        &self,
        cluster: &ImCluster,
        look: &Look<C::Admin>,
    ) -> Result<(Desired, NodeFiles, Target), ReconcileError> {
        let (name, namespace) = (cluster.name_any(), cluster.namespace().unwrap_or_default());
        let target = self.target(cluster, look);
        let context = context(cluster, &name, &namespace, &target);
        let files = files(&context)?;
        let desired = resolve::desired(&context, &files, target.refused.clone());
        Ok((desired, files, target))
    }

    /// Everything as it is now, not as a watch has it. Nothing when the ImCluster is gone.
    async fn look_again(
        &self,
        cluster: &ImCluster,
        memory: &Memory,
    ) -> Result<Option<(ImCluster, Look<C::Admin>)>, ReconcileError> {
        let (name, namespace) = (cluster.name_any(), cluster.namespace().unwrap_or_default());
        let clusters: Api<ImCluster> = Api::namespaced(self.client.clone(), &namespace);
        let Some(fresh) = clusters.get_opt(&name).await? else {
            return Ok(None);
        };
        if fresh.uid() != cluster.uid() {
            return Ok(None);
        }
        let ours = ListParams::default()
            .labels(&format!("{CLUSTER_LABEL}={name}"))
            .limit(PAGE);
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        let hosts: Api<Node> = Api::all(self.client.clone());
        let objects = Objects {
            pods: shared(pods.list(&ours).await?.items),
            claims: shared(claims.list(&ours).await?.items),
            hosts: shared(hosts.list(&ListParams::default()).await?.items),
        };
        let look = self.look(&fresh, &objects, memory).await;
        Ok(Some((fresh, look)))
    }

    async fn take(
        &self,
        cluster: &ImCluster,
        target: &Target,
        files: &NodeFiles,
        step: &Step,
        admin: Option<&C::Admin>,
    ) -> Result<(), ReconcileError> {
        let (name, namespace) = (cluster.name_any(), cluster.namespace().unwrap_or_default());
        let context = context(cluster, &name, &namespace, target);
        let (client, namespace) = (&self.client, namespace.as_str());
        tracing::info!(?step, "taking a step");
        let admin = admin.ok_or_else(|| AdminError::Unreachable("nobody answered".to_owned()));
        match step {
            Step::CreateVolume { member, bytes } => {
                let claim = pod::claim(&context, member, *bytes);
                apply::create(client, namespace, &claim).await?;
            }
            Step::CreatePod { member, start } => {
                let pod = pod::pod(&context, files, member, start);
                apply::create(client, namespace, &pod).await?;
            }
            Step::GrowVolume { member, uid, bytes } => {
                let size = carillon_crds::quantity::text(*bytes);
                let change = json!({"spec": {"resources": {"requests": {"storage": size}}}});
                let name = names::claim(member);
                apply::merge(client, namespace, CLAIM, &name, uid, change).await?;
            }
            Step::MarkVolume {
                member,
                uid,
                node,
                cluster,
            } => {
                let change = json!({"metadata": {"annotations": {
                    NODE_ANNOTATION: node.0.to_string(),
                    CLUSTER_ID_ANNOTATION: cluster,
                }}});
                let name = names::claim(member);
                apply::merge(client, namespace, CLAIM, &name, uid, change).await?;
            }
            Step::ReleaseVolume { member, uid } => {
                let change = json!({"metadata": {"annotations": {RELEASED_ANNOTATION: "true"}}});
                let name = names::claim(member);
                apply::merge(client, namespace, CLAIM, &name, uid, change).await?;
            }
            Step::DeleteVolume { member, uid } => {
                let name = names::claim(member);
                apply::delete(client, namespace, CLAIM, &name, uid, None).await?;
            }
            Step::DeletePod {
                member, uid, force, ..
            } => {
                let grace_s = match (force, cluster.meta().deletion_timestamp.is_some()) {
                    (true, _) => Some(0),
                    (false, true) => Some(DELETION_GRACE_S),
                    (false, false) => None,
                };
                apply::delete(client, namespace, POD, member.as_str(), uid, grace_s).await?;
            }
            Step::SetStanding {
                node,
                standing,
                forced,
                ..
            } => admin?.set_standing(*node, *standing, *forced).await?,
            Step::ForgetNode { node } => admin?.forget(*node).await?,
            Step::SetPolicy {
                failure_replacement_after_s,
                lost_nodes_max,
            } => {
                admin?
                    .set_policy(*failure_replacement_after_s, *lost_nodes_max)
                    .await?;
            }
            Step::RemoveFinalizer => {
                if cluster.spec.deletion_policy == DeletionPolicy::Delete {
                    secrets::forget_authority(client, &context).await?;
                }
                self.set_finalizers(cluster, namespace, false).await?;
            }
        }
        Ok(())
    }

    pub(crate) fn must_lead(&self) -> Result<(), ReconcileError> {
        match self.leadership.leads() {
            true => Ok(()),
            false => Err(ReconcileError::NotLeading),
        }
    }

    async fn add_finalizer(
        &self,
        cluster: &ImCluster,
        namespace: &str,
    ) -> Result<(), ReconcileError> {
        if cluster.finalizers().iter().any(|one| one == FINALIZER) {
            return Ok(());
        }
        self.must_lead()?;
        self.set_finalizers(cluster, namespace, true).await
    }

    async fn set_finalizers(
        &self,
        cluster: &ImCluster,
        namespace: &str,
        ours: bool,
    ) -> Result<(), ReconcileError> {
        let mut all: Vec<String> = cluster.finalizers().to_vec();
        all.retain(|one| one != FINALIZER);
        if ours {
            all.push(FINALIZER.to_owned());
        }
        // Refused when somebody changed the list meanwhile.
        let change = json!({"metadata": {
            "finalizers": all,
            "resourceVersion": cluster.resource_version(),
        }});
        let clusters: Api<ImCluster> = Api::namespaced(self.client.clone(), namespace);
        clusters
            .patch(
                &cluster.name_any(),
                &PatchParams::default(),
                &Patch::Merge(&change),
            )
            .await?;
        Ok(())
    }

    /// A spec from before a rule existed, or one with what no rule of the API server can see.
    async fn refuse(&self, cluster: &ImCluster, broken: &str) -> Result<(), ReconcileError> {
        let before = cluster.status.clone().unwrap_or_default();
        let status = status::invalid(cluster.meta().generation, broken, &before);
        if status != before {
            self.events.warning(cluster, "InvalidSpec", broken).await;
        }
        self.patch_status(cluster, &before, &status).await
    }

    async fn write_status(
        &self,
        cluster: &ImCluster,
        facts: &Facts<'_>,
    ) -> Result<(), ReconcileError> {
        let before = cluster.status.clone().unwrap_or_default();
        let status = status::status(facts, &before);
        self.patch_status(cluster, &before, &status).await
    }

    async fn patch_status(
        &self,
        cluster: &ImCluster,
        before: &ImClusterStatus,
        status: &ImClusterStatus,
    ) -> Result<(), ReconcileError> {
        if before == status {
            return Ok(());
        }
        self.must_lead()?;
        let namespace = cluster.namespace().unwrap_or_default();
        let clusters: Api<ImCluster> = Api::namespaced(self.client.clone(), &namespace);
        let body = json!({
            "apiVersion": ImCluster::api_version(&()),
            "kind": ImCluster::kind(&()),
            "metadata": {"name": cluster.name_any(), "uid": cluster.uid()},
            "status": status,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        clusters
            .patch_status(&cluster.name_any(), &params, &Patch::Apply(&body))
            .await?;
        Ok(())
    }
}

/// A cluster that is being deleted starts no node: whatever its settings are, it can go.
fn files(context: &Context<'_>) -> Result<NodeFiles, toml::ser::Error> {
    match context.cluster.meta().deletion_timestamp {
        Some(_) => Ok(NodeFiles::none()),
        None => config::files(context),
    }
}

fn context<'a>(
    cluster: &'a ImCluster,
    name: &'a str,
    namespace: &'a str,
    target: &Target,
) -> Context<'a> {
    Context {
        cluster,
        name,
        namespace,
        version: target.version.clone(),
        image: target.image.clone(),
    }
}

pub(crate) fn shared<K>(items: Vec<K>) -> Vec<Arc<K>> {
    items.into_iter().map(Arc::new).collect()
}

pub(crate) fn now_s() -> u64 {
    u64::try_from(Timestamp::now().as_second()).unwrap_or_default()
}
