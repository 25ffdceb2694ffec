//! Kubernetes events: what a person looks for with `kubectl describe imc`. Progress is in the
//! status; an event is for something that happened once.

use carillon_crds::ImCluster;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use crate::apply::namespace_ends;
use crate::build::FIELD_MANAGER;
use crate::plan::{MemberName, Standing, Step};

/// Bytes of a note; the API server refuses longer ones.
const NOTE_BYTES_MAX: usize = 1_000;

#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
}

impl Events {
    pub fn new(client: kube::Client, instance: String) -> Events {
        let reporter = Reporter {
            controller: FIELD_MANAGER.to_owned(),
            instance: Some(instance),
        };
        Events {
            recorder: Recorder::new(client, reporter),
        }
    }

    pub async fn normal(&self, cluster: &ImCluster, reason: &str, note: &str) {
        self.publish(cluster, EventType::Normal, reason, note, None)
            .await;
    }

    pub async fn warning(&self, cluster: &ImCluster, reason: &str, note: &str) {
        self.publish(cluster, EventType::Warning, reason, note, None)
            .await;
    }

    /// A step that was taken, if people look for such.
    pub async fn step(&self, cluster: &ImCluster, step: &Step) {
        if let Some(Told {
            reason,
            member,
            note,
        }) = told(step)
        {
            self.publish(cluster, EventType::Normal, reason, &note, member)
                .await;
        }
    }

    /// An event that cannot be written stops nothing. Those of one reason and member within a few
    /// minutes are counted as one.
    async fn publish(
        &self,
        cluster: &ImCluster,
        type_: EventType,
        reason: &str,
        note: &str,
        member: Option<&MemberName>,
    ) {
        let mut note = note.to_owned();
        while note.len() > NOTE_BYTES_MAX {
            note.pop();
        }
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note),
            action: reason.to_owned(),
            secondary: member.map(|member| ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(member.to_string()),
                namespace: cluster.meta().namespace.clone(),
                ..ObjectReference::default()
            }),
        };
        match self
            .recorder
            .publish(&event, &cluster.object_ref(&()))
            .await
        {
            Ok(()) => {}
            Err(error) if namespace_ends(&error) => {}
            Err(error) => tracing::warn!(%error, reason, "an event could not be written"),
        }
    }
}

struct Told<'a> {
    reason: &'static str,
    member: Option<&'a MemberName>,
    note: String,
}

fn told(step: &Step) -> Option<Told<'_>> {
    let (reason, member, note) = match step {
        Step::CreateVolume { member, .. } => {
            let note = format!("{member} gets a volume");
            ("MemberAdded", Some(member), note)
        }
        Step::CreatePod { member, .. } => {
            let note = format!("made the Pod {member}");
            ("PodCreated", Some(member), note)
        }
        Step::DeletePod { member, why, .. } => {
            let note = format!("deleted the Pod {member}: {why}");
            ("PodDeleted", Some(member), note)
        }
        Step::GrowVolume { member, bytes, .. } => {
            let size = carillon_crds::quantity::text(*bytes);
            let note = format!("the volume of {member} grows to {size}");
            ("VolumeGrows", Some(member), note)
        }
        Step::DeleteVolume { member, .. } => {
            let note = format!("deleted the volume of {member}: nothing is left on it");
            ("VolumeDeleted", Some(member), note)
        }
        Step::SetStanding {
            node,
            member,
            standing,
            ..
        } => {
            let (reason, text) = match standing {
                Standing::Active => ("MemberUsed", "is used again"),
                Standing::Cordoned => ("MemberCordoned", "gets nothing new"),
                Standing::DrainingForRestart => ("DrainStarted", "is drained for a restart"),
                Standing::DrainingForRemoval => {
                    ("RemovalStarted", "is drained: its replicas move to others")
                }
                Standing::Lost => ("MemberGivenUp", "is given up"),
            };
            let who = member.as_ref().map(ToString::to_string).unwrap_or_default();
            let note = format!("{who} (node {}) {text}", node.0);
            (reason, member.as_ref(), note)
        }
        Step::ForgetNode { node } => {
            let note = format!("node {} is forgotten", node.0);
            ("NodeForgotten", None, note)
        }
        Step::MarkVolume { .. }
        | Step::ReleaseVolume { .. }
        | Step::SetPolicy { .. }
        | Step::RemoveFinalizer => return None,
    };
    Some(Told {
        reason,
        member,
        note,
    })
}
