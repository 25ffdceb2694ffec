//! Kubernetes events: what a person looks for with `kubectl describe imc`. Progress is in the
//! status; an event is for something that happened once.

use carillon_crds::ImCluster;
use kube::Resource;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use crate::build::FIELD_MANAGER;
use crate::plan::{Standing, Step};

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
        self.publish(cluster, EventType::Normal, reason, note).await;
    }

    pub async fn warning(&self, cluster: &ImCluster, reason: &str, note: &str) {
        self.publish(cluster, EventType::Warning, reason, note)
            .await;
    }

    /// A step that was taken, if people look for such.
    pub async fn step(&self, cluster: &ImCluster, step: &Step) {
        if let Some((reason, note)) = told(step) {
            self.normal(cluster, reason, &note).await;
        }
    }

    /// An event that cannot be written stops nothing.
    async fn publish(&self, cluster: &ImCluster, type_: EventType, reason: &str, note: &str) {
        let mut note = note.to_owned();
        while note.len() > NOTE_BYTES_MAX {
            note.pop();
        }
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note),
            action: reason.to_owned(),
            secondary: None,
        };
        if let Err(error) = self
            .recorder
            .publish(&event, &cluster.object_ref(&()))
            .await
        {
            tracing::warn!(%error, reason, "an event could not be written");
        }
    }
}

fn told(step: &Step) -> Option<(&'static str, String)> {
    Some(match step {
        Step::CreateVolume { member, .. } => ("MemberAdded", format!("{member} gets a volume")),
        Step::CreatePod { member, .. } => ("PodCreated", format!("made the Pod {member}")),
        Step::DeletePod { member, why, .. } => {
            ("PodDeleted", format!("deleted the Pod {member}: {why}"))
        }
        Step::GrowVolume { member, bytes, .. } => {
            let size = carillon_crds::quantity::text(*bytes);
            (
                "VolumeGrows",
                format!("the volume of {member} grows to {size}"),
            )
        }
        Step::DeleteVolume { member, .. } => (
            "VolumeDeleted",
            format!("deleted the volume of {member}: nothing is left on it"),
        ),
        Step::SetStanding {
            node,
            member,
            standing,
            ..
        } => {
            let who = member.as_ref().map(ToString::to_string).unwrap_or_default();
            let text = match standing {
                Standing::Active => "is used again",
                Standing::Cordoned => "gets nothing new",
                Standing::DrainingForRestart => "is drained for a restart",
                Standing::DrainingForRemoval => "is drained: its replicas move to others",
                Standing::Lost => "is given up",
            };
            ("StandingChanged", format!("{who} (node {}) {text}", node.0))
        }
        Step::ForgetNode { node } => ("NodeForgotten", format!("node {} is forgotten", node.0)),
        Step::MarkVolume { .. }
        | Step::ReleaseVolume { .. }
        | Step::SetPolicy { .. }
        | Step::RemoveFinalizer => return None,
    })
}
