//! What is seen: of Kubernetes, and of the cluster itself.

use std::collections::BTreeMap;
use std::fmt;

/// The name of a member: of its Pod, its Service, and with `data-` before it its volume claim.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemberName(String);

impl MemberName {
    pub fn new(cluster: &str, index: u32) -> MemberName {
        MemberName(format!("{cluster}-{index}"))
    }

    /// A name that somebody gave; nothing when it is no member's of this cluster.
    pub fn parse(cluster: &str, name: &str) -> Option<MemberName> {
        let digits = name.strip_prefix(cluster)?.strip_prefix('-')?;
        let index: u32 = digits.parse().ok()?;
        (index.to_string() == digits).then(|| MemberName(name.to_owned()))
    }

    /// The number at its end.
    pub fn index(&self) -> u32 {
        let digits = self.0.rsplit('-').next().unwrap_or_default();
        digits.parse().unwrap_or_default()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A node's id in the cluster; never given twice, and growing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId(pub u64);

/// The uid of a Kubernetes object: another object of the same name has another one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Uid(pub String);

/// The name of a Kubernetes node; "node" alone is always the cluster's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostName(pub String);

#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// Seconds since 1970.
    pub now_s: u64,
    /// The id of the cluster once it was made, from the status, a volume, or itself.
    pub cluster_made: Option<String>,
    pub claims: BTreeMap<MemberName, Claim>,
    pub pods: BTreeMap<MemberName, Pod>,
    pub hosts: BTreeMap<HostName, Host>,
    /// What the cluster says of itself, or why it says nothing.
    pub cluster: Result<ClusterSeen, String>,
}

/// A volume claim.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    pub uid: Uid,
    pub requested_bytes: u64,
    /// The size that the volume has; nothing before it is bound.
    pub capacity_bytes: Option<u64>,
    /// Somebody deleted it; it goes when its Pod does.
    pub terminating: bool,
    /// The operator gave it up: no Pod is made for it any more.
    pub released: bool,
    /// The node whose data it has.
    pub node: Option<NodeId>,
    /// The Kubernetes node that it was made for, if it was made for one.
    pub host: Option<HostName>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Pod {
    pub uid: Uid,
    pub revision: Revision,
    /// Where it was placed.
    pub host: Option<HostName>,
    pub terminating: bool,
    /// It was made to found the cluster: with an empty volume it joins nothing.
    pub founds: bool,
    /// It ended for good (evicted by its kubelet, for example) and will not run again.
    pub ended: bool,
    /// Its container runs.
    pub started: bool,
    pub ready_since_s: Option<u64>,
    /// How often its container was started again.
    pub restarts: u32,
    /// Why it does not start, for people.
    pub trouble: Option<String>,
}

pub use super::desired::Revision;

/// A Kubernetes node.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    pub ready: bool,
    /// Tainted as out of service: somebody vouches that nothing runs on it.
    pub out_of_service: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ClusterSeen {
    pub id: String,
    pub nodes: Vec<NodeSeen>,
    pub policy: PolicySeen,
    /// Groups without a leader, the meta group among them.
    pub leaderless: u32,
    pub meta_leader: Option<NodeId>,
}

/// As far as the operator sets it.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicySeen {
    pub failure_replacement_after_s: u32,
    pub lost_nodes_max: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub struct NodeSeen {
    pub id: NodeId,
    /// By its address; nothing for a node that is not of a member of this ImCluster.
    pub member: Option<MemberName>,
    pub up: bool,
    pub standing: Standing,
    /// Replicas that the map has on it.
    pub replicas: u32,
    /// All its replicas have what their leaders have, or nearly.
    pub caught_up: bool,
    /// Of its disk; 0 while it is down.
    pub disk_bytes: u64,
    pub disk_free_bytes: u64,
    /// How far its drain is, while it is drained.
    pub drain: Option<Drain>,
    /// What draining it for a restart would break; asked only where a restart may be due.
    pub restart_dangers: Vec<String>,
}

/// What a node may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Active,
    Cordoned,
    DrainingForRestart,
    DrainingForRemoval,
    Lost,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Drain {
    pub done: bool,
    pub percent: u32,
    pub step: String,
    pub waits: Vec<String>,
    pub sessions_left: u32,
    /// When it began, seconds since 1970.
    pub since_s: u64,
}
