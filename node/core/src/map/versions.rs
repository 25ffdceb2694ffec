//! The version of the cluster: which forms and commands its nodes may use between each other and
//! on their disks. Part of the meta group's state, so all nodes agree on it.
//!
//! A build supports a range of versions. What it writes at a version is what every build reads
//! that supports the version, so until a cluster goes to a newer one its nodes can be exchanged
//! for older ones. Invariants: the version grows, one step at a time, and never goes back; a
//! command is applied only at a version that has it ([`MetaCommand::needs`]).

use std::fmt;

use super::events::EventKind;
use super::meta::{MetaCommand, MetaReply, MetaState};
use super::refusal::MetaRefusal;
use super::registry::Standing;
use crate::ids::{NodeId, TimestampMs};

/// A version of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterVersion(pub u32);

impl ClusterVersion {
    /// What 0.1.0 reads.
    pub const V1: ClusterVersion = ClusterVersion(1);
    /// With splits and merges of shards, recoveries, who did what, and a policy with more in it.
    pub const V2: ClusterVersion = ClusterVersion(2);
    /// The oldest that this build supports.
    pub const MIN: ClusterVersion = ClusterVersion::V1;
    /// The newest that this build supports.
    pub const MAX: ClusterVersion = ClusterVersion::V2;

    /// The next one.
    #[must_use]
    pub const fn next(self) -> ClusterVersion {
        ClusterVersion(self.0 + 1)
    }

    /// The first release that supports it; none of one that this build does not know.
    pub const fn release(self) -> Option<&'static str> {
        match self.0 {
            1 => Some("0.1.0"),
            2 => Some("0.2.0"),
            _ => None,
        }
    }
}

impl Default for ClusterVersion {
    /// Of a cluster that is not made yet: anybody reads it.
    fn default() -> Self {
        ClusterVersion::V1
    }
}

impl fmt::Display for ClusterVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The versions that a node supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Supported {
    /// The oldest.
    pub min: ClusterVersion,
    /// The newest.
    pub max: ClusterVersion,
}

impl Supported {
    /// What this build supports, up to `max`.
    pub fn up_to(max: ClusterVersion) -> Self {
        Supported {
            min: ClusterVersion::MIN,
            max: max.clamp(ClusterVersion::MIN, ClusterVersion::MAX),
        }
    }

    /// The same as numbers of another node, where 0 is that it said nothing: a build from before
    /// there were versions.
    pub fn said(min: u32, max: u32) -> Self {
        let or_first = |number| match number {
            0 => ClusterVersion::V1,
            number => ClusterVersion(number),
        };
        Supported {
            min: or_first(min),
            max: or_first(max),
        }
    }

    /// Whether a node may be part of a cluster at this version.
    pub fn has(self, version: ClusterVersion) -> bool {
        (self.min..=self.max).contains(&version)
    }

    /// Why a node that supports this may not be part of a cluster at `version`, and what to do;
    /// none when it may.
    pub fn lacks(self, version: ClusterVersion) -> Option<String> {
        if self.has(version) {
            return None;
        }
        let install = match version.release() {
            Some(release) if version > self.max => format!("Carillon {release} or later"),
            Some(_) | None if version > self.max => {
                "the release that its other nodes run".to_owned()
            }
            _ => "an older release, one that supports the version".to_owned(),
        };
        Some(format!(
            "the cluster is at version {version}, and this node supports versions {} to {}; install {install}, and look at cluster_version_max in its configuration",
            self.min, self.max
        ))
    }
}

impl Default for Supported {
    fn default() -> Self {
        Supported::up_to(ClusterVersion::MAX)
    }
}

/// What keeps a cluster from its next version, for people; nothing when it may go there.
/// `supported` says what a node supports, as it said itself lately; none when it does not answer.
pub fn upgrade_hindrances(
    state: &MetaState,
    supported: impl Fn(NodeId) -> Option<Supported>,
) -> Vec<String> {
    let next = state.cluster_version.next();
    let standings = state.standings.iter();
    let counting = standings.filter(|(_, standing)| **standing != Standing::Lost);
    let hindrance = |node: NodeId| match supported(node) {
        None => Some(format!(
            "node {node} does not answer; bring it back, or remove it"
        )),
        Some(supported) if supported.has(next) => None,
        Some(supported) => Some(format!(
            "node {node} supports versions up to {}; install {} on it",
            supported.max,
            next.release().map_or_else(
                || "a newer release".to_owned(),
                |release| format!("Carillon {release} or later")
            )
        )),
    };
    counting.filter_map(|(node, _)| hindrance(*node)).collect()
}

impl MetaCommand {
    /// The oldest version of the cluster that has the command. Before it nobody proposes it, and
    /// nobody applies it.
    pub fn needs(&self) -> ClusterVersion {
        match self {
            // Proposed only when all nodes support the next version, so they know it.
            MetaCommand::FinalizeUpgrade { .. } => ClusterVersion::V1,
            MetaCommand::By { command, .. } => match **command {
                MetaCommand::FinalizeUpgrade { .. } => ClusterVersion::V1,
                _ => ClusterVersion::V2,
            },
            // Only the founding nodes are there, and all of them support what it says.
            MetaCommand::CreateCluster { .. }
            | MetaCommand::UpdateNode { .. }
            | MetaCommand::JoinNode { .. }
            | MetaCommand::RotateJoinToken { .. }
            | MetaCommand::SetStanding { .. }
            | MetaCommand::ForgetNode { .. }
            | MetaCommand::SetPreferredLeaders { .. }
            | MetaCommand::StartMove { .. }
            | MetaCommand::SwitchMove { .. }
            | MetaCommand::RewindMove { .. }
            | MetaCommand::CancelMove { .. }
            | MetaCommand::FinishMove { .. }
            | MetaCommand::EndCancelledMove { .. } => ClusterVersion::V1,
            MetaCommand::SetPolicy { change, .. } => match change.has_later() {
                true => ClusterVersion::V2,
                false => ClusterVersion::V1,
            },
            MetaCommand::StartSplit { .. }
            | MetaCommand::FinishSplit { .. }
            | MetaCommand::StartMerge { .. }
            | MetaCommand::FreezeMerge { .. }
            | MetaCommand::AbsorbMerge { .. }
            | MetaCommand::CancelMerge { .. }
            | MetaCommand::EndCancelledMerge { .. }
            | MetaCommand::FinishMerge { .. }
            | MetaCommand::RecoverShard { .. }
            | MetaCommand::FinishRecovery { .. } => ClusterVersion::V2,
        }
    }

    /// The command as it may be proposed at `version`: at one that does not record who wants
    /// something, without that.
    ///
    /// # Errors
    /// When the version has no such command.
    pub fn at_version(self, version: ClusterVersion) -> Result<MetaCommand, MetaRefusal> {
        let command = match self {
            MetaCommand::By { command, .. }
                if version < ClusterVersion::V2
                    && !matches!(*command, MetaCommand::FinalizeUpgrade { .. }) =>
            {
                *command
            }
            other => other,
        };
        check(&command, version)?;
        Ok(command)
    }
}

/// Whether a cluster at `version` has the command.
pub(super) fn check(command: &MetaCommand, version: ClusterVersion) -> Result<(), MetaRefusal> {
    let needs = command.needs();
    if needs > version {
        return Err(MetaRefusal::UpgradeNotFinalized { needs, version });
    }
    Ok(())
}

pub(super) fn finalize(
    state: &mut MetaState,
    to: ClusterVersion,
    at: TimestampMs,
) -> Result<MetaReply, MetaRefusal> {
    let from = state.cluster_version;
    if to <= from {
        return Ok(state.updated(false));
    }
    if to != from.next() {
        return Err(MetaRefusal::VersionSkipped { from, to });
    }
    state.cluster_version = to;
    state.record(at, EventKind::UpgradeFinalized { to });
    state.next_epoch();
    Ok(state.updated(true))
}
