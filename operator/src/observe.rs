//! What Kubernetes has of one ImCluster, in the words of a plan. Pure: whether the objects come
//! from a cache or were read right now is the caller's to know.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use carillon_crds::quantity;

use crate::build::{
    CLUSTER_ID_ANNOTATION, CLUSTER_LABEL, MEMBER_LABEL, NODE_ANNOTATION, RELEASED_ANNOTATION,
    REVISION_ANNOTATION, START_ANNOTATION, VERSION_ANNOTATION, names,
};
use crate::cluster::Endpoint;
use crate::plan::{self, HostName, MemberName, NodeId, Revision, Uid};

/// The taint that somebody sets who vouches that a Kubernetes node runs nothing.
const OUT_OF_SERVICE_TAINT: &str = "node.kubernetes.io/out-of-service";

/// Where the scheduler says for which Kubernetes node a volume is made.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// Objects as they were read.
#[derive(Clone, Default)]
pub struct Objects {
    pub pods: Vec<Arc<Pod>>,
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
    pub hosts: Vec<Arc<Node>>,
}

/// What they mean.
#[derive(Clone, Default)]
pub struct Kubernetes {
    pub pods: BTreeMap<MemberName, plan::Pod>,
    pub claims: BTreeMap<MemberName, plan::Claim>,
    pub hosts: BTreeMap<HostName, plan::Host>,
    pub zones: BTreeMap<HostName, String>,
    /// The cluster's id as a claim has kept it.
    pub cluster_id: Option<String>,
    pub endpoints: Vec<Endpoint>,
    /// Releases and images that Pods were made with.
    pub running: Vec<(String, String)>,
    /// Hashes of the configurations that Pods use.
    pub files: Vec<String>,
}

impl Kubernetes {
    pub fn members(&self) -> BTreeSet<MemberName> {
        self.pods
            .keys()
            .chain(self.claims.keys())
            .cloned()
            .collect()
    }
}

pub fn understand(cluster: &str, namespace: &str, zone_key: &str, objects: &Objects) -> Kubernetes {
    let mut seen = Kubernetes::default();
    for pod in &objects.pods {
        let Some(member) = member(cluster, namespace, &**pod) else {
            continue;
        };
        if let Some(endpoint) = endpoint(namespace, &member, pod) {
            seen.endpoints.push(endpoint);
        }
        if let Some(version) = pod.annotations().get(VERSION_ANNOTATION) {
            seen.running.push((version.clone(), image(pod)));
        }
        seen.files.extend(files(cluster, pod));
        seen.pods.insert(member, pod_seen(pod));
    }
    for claim in &objects.claims {
        let Some(member) = member(cluster, namespace, &**claim) else {
            continue;
        };
        let id = claim.annotations().get(CLUSTER_ID_ANNOTATION);
        seen.cluster_id = seen.cluster_id.or_else(|| id.cloned());
        seen.claims.insert(member, claim_seen(claim));
    }
    for host in &objects.hosts {
        let name = HostName(host.name_any());
        // One without the label is known all the same: nodes start there, in no zone.
        let zone = host.labels().get(zone_key).cloned().unwrap_or_default();
        seen.zones.insert(name.clone(), zone);
        seen.hosts.insert(name, host_seen(host));
    }
    seen
}

fn member<K: ResourceExt>(cluster: &str, namespace: &str, object: &K) -> Option<MemberName> {
    let labels = object.labels();
    let ours = labels
        .get(CLUSTER_LABEL)
        .is_some_and(|label| label == cluster)
        && object.namespace().as_deref() == Some(namespace);
    MemberName::parse(cluster, labels.get(MEMBER_LABEL).filter(|_| ours)?)
}

fn endpoint(namespace: &str, member: &MemberName, pod: &Pod) -> Option<Endpoint> {
    let address = pod
        .status
        .as_ref()?
        .pod_ip
        .as_ref()?
        .parse::<IpAddr>()
        .ok()?;
    let running = pod.metadata.deletion_timestamp.is_none();
    running.then(|| Endpoint {
        address,
        host: names::host(member.as_str(), namespace),
    })
}

fn image(pod: &Pod) -> String {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut images = containers.filter_map(|container| container.image.clone());
    images.next().unwrap_or_default()
}

/// The hash at the end of the name of the configuration that the Pod mounts.
fn files(cluster: &str, pod: &Pod) -> Option<String> {
    let volumes = pod.spec.as_ref()?.volumes.as_ref()?;
    let prefix = format!("{cluster}-config-");
    let mut hashes = volumes.iter().filter_map(|volume| {
        let name = &volume.config_map.as_ref()?.name;
        name.strip_prefix(&prefix).map(str::to_owned)
    });
    hashes.next()
}

pub fn seconds(time: &Time) -> u64 {
    u64::try_from(time.0.as_second()).unwrap_or_default()
}

/// What a container waits for that is about to run.
const ON_ITS_WAY: [&str; 2] = ["ContainerCreating", "PodInitializing"];

fn pod_seen(pod: &Pod) -> plan::Pod {
    let status = pod.status.as_ref();
    let phase = status
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let condition = |kind: &str| {
        let mut all = conditions.into_iter().flatten();
        all.find(|condition| condition.type_ == kind)
    };
    let ready = condition("Ready").filter(|ready| ready.status == "True");
    let container = status
        .and_then(|status| status.container_statuses.as_ref())
        .and_then(|all| all.first());
    let state = container.and_then(|container| container.state.as_ref());
    let waiting = state
        .and_then(|state| state.waiting.as_ref())
        .filter(|waiting| {
            let reason = waiting.reason.as_deref().unwrap_or_default();
            !ON_ITS_WAY.contains(&reason)
        })
        .map(|waiting| {
            let reason = waiting.reason.clone().unwrap_or_default();
            match &waiting.message {
                Some(message) => format!("{reason}: {message}"),
                None => reason,
            }
        });
    let unscheduled = condition("PodScheduled")
        .filter(|scheduled| scheduled.status == "False")
        .and_then(|scheduled| scheduled.message.clone());
    let annotations = pod.annotations();
    plan::Pod {
        uid: Uid(pod.uid().unwrap_or_default()),
        revision: Revision(
            annotations
                .get(REVISION_ANNOTATION)
                .cloned()
                .unwrap_or_default(),
        ),
        host: pod
            .spec
            .as_ref()
            .and_then(|spec| spec.node_name.clone())
            .map(HostName),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        founds: annotations
            .get(START_ANNOTATION)
            .is_some_and(|start| start == "found"),
        ended: matches!(phase, "Succeeded" | "Failed"),
        started: state.is_some_and(|state| state.running.is_some()),
        ready_since_s: ready.map(|ready| {
            ready
                .last_transition_time
                .as_ref()
                .map(seconds)
                .unwrap_or_default()
        }),
        restarts: container
            .map(|container| u32::try_from(container.restart_count).unwrap_or_default())
            .unwrap_or_default(),
        trouble: unscheduled.or(waiting),
    }
}

fn claim_seen(claim: &PersistentVolumeClaim) -> plan::Claim {
    let size = |quantities: Option<&BTreeMap<String, _>>| {
        let quantity: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity> =
            quantities.and_then(|all| all.get("storage"));
        quantity.and_then(|quantity| quantity::bytes(&quantity.0))
    };
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    let capacity = claim
        .status
        .as_ref()
        .and_then(|status| status.capacity.as_ref());
    let annotations = claim.annotations();
    plan::Claim {
        uid: Uid(claim.uid().unwrap_or_default()),
        requested_bytes: size(requests).unwrap_or_default(),
        capacity_bytes: size(capacity),
        terminating: claim.metadata.deletion_timestamp.is_some(),
        released: annotations.contains_key(RELEASED_ANNOTATION),
        node: annotations
            .get(NODE_ANNOTATION)
            .and_then(|id| id.parse().ok())
            .map(NodeId),
        host: annotations.get(SELECTED_NODE).cloned().map(HostName),
    }
}

fn host_seen(host: &Node) -> plan::Host {
    let conditions = host
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    let taints = host.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let mut taints = taints.into_iter().flatten();
    plan::Host {
        ready: conditions.any(|one| one.type_ == "Ready" && one.status == "True"),
        out_of_service: taints.any(|taint| taint.key == OUT_OF_SERVICE_TAINT),
    }
}
