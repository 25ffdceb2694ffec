//! How a cluster changes: volumes, rolls, who leaves, who is replaced, and what remains.

use kube::KubeSchema;
use kube::core::Duration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::spec::yes;
use crate::quantity::SIZE_PATTERN;

/// The volume of each node.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(
    validation = Rule::new("has(self.className) == has(oldSelf.className) && (!has(self.className) || self.className == oldSelf.className)").message("spec.storage.className cannot be changed: volumes keep the class that they were made with"),
    validation = Rule::new("!has(self.autoGrow) || quantity(self.autoGrow.maxSize).compareTo(quantity(self.size)) >= 0").message("spec.storage.autoGrow.maxSize must be at least spec.storage.size")
)]
#[serde(rename_all = "camelCase")]
pub struct Storage {
    /// Its size, such as 100Gi. May grow, online and also when the disk is full, where the
    /// storage class allows it; never shrinks.
    #[schemars(regex(pattern = SIZE_PATTERN), length(max = 24))]
    #[x_kube(validation = Rule::new("quantity(self).compareTo(quantity(oldSelf)) >= 0").message("spec.storage.size must not shrink: volumes cannot"))]
    pub size: String,
    /// The storage class; left out, the default one. Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub class_name: Option<String>,
    /// Lets a node's volume grow by itself when its disk fills. Left out: it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_grow: Option<AutoGrow>,
}

/// Growth of volumes by themselves. A node's volume grows by a fifth when less than a fifth of
/// its disk is free.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AutoGrow {
    /// The largest size that a volume grows to by itself.
    #[schemars(regex(pattern = SIZE_PATTERN), length(max = 24))]
    pub max_size: String,
}

/// How changes reach the nodes: one node at a time is drained, made anew, waited for until it has
/// caught up, and used again.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Update {
    /// While true no further node is restarted for a change. One that is being drained is used
    /// again; one that is being made anew is finished.
    #[serde(default)]
    pub paused: bool,
    /// How long a restarted node must be ready before the next one's turn.
    #[serde(default = "min_ready_default")]
    #[schemars(regex(pattern = DURATION_PATTERN), length(max = 24))]
    pub min_ready: Duration,
    /// One node first. Left out: no pause after the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
}

/// What the schema accepts as a duration.
pub const DURATION_PATTERN: &str = "^([0-9]{1,6}(s|m|h))+$";

fn min_ready_default() -> Duration {
    std::time::Duration::from_secs(10).into()
}

impl Default for Update {
    fn default() -> Update {
        Update {
            paused: false,
            min_ready: min_ready_default(),
            canary: None,
        }
    }
}

/// One node first.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Canary {
    /// How long the first changed node must be ready, without a restart of its container, before
    /// any other node is changed.
    #[schemars(regex(pattern = DURATION_PATTERN), length(max = 24))]
    pub soak: Duration,
}

/// Who leaves when nodes is lowered.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ScaleIn {
    /// Names of members (NAME-0 and so on) that leave first, in any order. Nobody leaves because
    /// of being named here: only nodes decides how many do. At most 12.
    #[serde(default)]
    #[schemars(length(max = 12), inner(length(max = 48)))]
    pub candidates: Vec<String>,
}

/// When a node that is silent is given up and replaced.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FailureReplacement {
    /// False: nodes are given up only by a person ('carillon admin give-up'), and replaced then.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// How long a node must be silent. Its shards are led by others within a second or two; this
    /// is about making their lost replicas anew, on a new node with a new volume.
    #[serde(default = "after_default")]
    #[schemars(regex(pattern = DURATION_PATTERN), length(max = 24))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('30s') && duration(self) <= duration('168h')").message("spec.failureReplacement.after must be from 30s to 168h"))]
    pub after: Duration,
    /// How many may be given up and not yet replaced at once. More silent nodes than that are more
    /// likely a fault of the network or of a zone, and wait.
    #[serde(default = "max_at_once_default")]
    #[schemars(range(min = 1, max = 100))]
    pub max_at_once: u32,
}

fn after_default() -> Duration {
    std::time::Duration::from_secs(600).into()
}

fn max_at_once_default() -> u32 {
    1
}

impl Default for FailureReplacement {
    fn default() -> FailureReplacement {
        FailureReplacement {
            enabled: true,
            after: after_default(),
            max_at_once: max_at_once_default(),
        }
    }
}

/// What happens to the volumes when the ImCluster is deleted.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// They stay. An ImCluster of the same name in the same namespace goes on with them.
    #[default]
    Retain,
    /// They are deleted, and all messages with them.
    Delete,
}
