//! Who the members are, which node of the cluster runs in which, and who has to leave.
//!
//! A member is a name that has a volume claim or a Pod. The node of a member is, in this order:
//! the newest at its address that answers; the one that its claim is marked with; the newest at
//! its address. The last is a guess, which keeps what may be its data from being deleted; nobody
//! is given up for it.

use std::collections::BTreeSet;

use super::desired::Desired;
use super::observed::{Claim, ClusterSeen, MemberName, NodeId, NodeSeen, Observed, Pod, Standing};

/// Whether a member is one of those that are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Stays,
    /// There are more than are wanted.
    Surplus,
    /// The cluster gave its node up.
    GivenUp,
    /// Its volume is deleted under it.
    VolumeLost,
    /// It was given up by the operator before, and cannot come back.
    Released,
}

#[derive(Debug, Clone)]
pub struct Member<'a> {
    pub name: MemberName,
    pub claim: Option<&'a Claim>,
    pub pod: Option<&'a Pod>,
    pub node: Option<&'a NodeSeen>,
    pub fate: Fate,
}

impl Member<'_> {
    pub fn stays(&self) -> bool {
        self.fate == Fate::Stays
    }

    pub fn ready(&self) -> bool {
        self.pod
            .is_some_and(|pod| !pod.terminating && pod.ready_since_s.is_some())
    }

    pub fn up(&self) -> bool {
        self.node.is_some_and(|node| node.up)
    }

    /// It serves, and lacks nothing that another one would be needed for.
    pub fn whole(&self) -> bool {
        self.ready() && self.node.is_some_and(|node| node.up && node.caught_up)
    }

    pub fn standing(&self) -> Option<Standing> {
        self.node.map(|node| node.standing)
    }

    pub fn outdated(&self, desired: &Desired) -> bool {
        self.pod.is_some_and(|pod| pod.revision != desired.revision)
    }

    fn draining_for_removal(&self) -> bool {
        self.standing() == Some(Standing::DrainingForRemoval)
    }
}

#[derive(Debug, Clone)]
pub struct Members<'a> {
    /// By index.
    pub all: Vec<Member<'a>>,
}

impl<'a> Members<'a> {
    pub fn of(desired: &Desired, observed: &'a Observed) -> Members<'a> {
        let names: BTreeSet<&MemberName> =
            observed.claims.keys().chain(observed.pods.keys()).collect();
        let cluster = observed.cluster.as_ref().ok();
        let mut all: Vec<Member<'a>> = names
            .into_iter()
            .map(|name| {
                let claim = observed.claims.get(name);
                let node = cluster.and_then(|cluster| node_of(cluster, name, claim));
                let mut member = Member {
                    name: name.clone(),
                    claim,
                    pod: observed.pods.get(name),
                    node,
                    fate: Fate::Stays,
                };
                member.fate = fate(&member, observed);
                member
            })
            .collect();
        all.sort_by_key(|member| member.name.index());
        choose_surplus(desired, &mut all);
        Members { all }
    }

    pub fn staying(&self) -> impl Iterator<Item = &Member<'a>> {
        self.all.iter().filter(|member| member.stays())
    }

    pub fn leaving(&self) -> impl Iterator<Item = &Member<'a>> {
        self.all.iter().filter(|member| !member.stays())
    }

    pub fn get(&self, name: &MemberName) -> Option<&Member<'a>> {
        self.all.iter().find(|member| &member.name == name)
    }

    /// Whether the node is the one of a member.
    pub fn has_node(&self, id: NodeId) -> bool {
        let mut nodes = self.all.iter().filter_map(|member| member.node);
        nodes.any(|node| node.id == id)
    }
}

fn node_of<'a>(
    cluster: &'a ClusterSeen,
    name: &MemberName,
    claim: Option<&Claim>,
) -> Option<&'a NodeSeen> {
    let here = || {
        let of_name = cluster.nodes.iter();
        of_name.filter(|node| node.member.as_ref() == Some(name))
    };
    let newest_up = here().filter(|node| node.up).max_by_key(|node| node.id);
    let marked = claim.and_then(|claim| claim.node);
    newest_up
        .or_else(|| here().find(|node| Some(node.id) == marked))
        .or_else(|| here().max_by_key(|node| node.id))
}

fn fate(member: &Member<'_>, observed: &Observed) -> Fate {
    let Some(claim) = member.claim else {
        // A Pod that runs without its claim loses its data with its next start.
        let runs = member.pod.is_some_and(|pod| pod.started);
        return if runs { Fate::VolumeLost } else { Fate::Stays };
    };
    let given_up = member.node.is_some_and(|node| {
        node.standing == Standing::Lost && !node.up && claim.node == Some(node.id)
    });
    if claim.released {
        Fate::Released
    } else if claim.terminating || out_of_reach(member, claim, observed) {
        Fate::VolumeLost
    } else if given_up {
        Fate::GivenUp
    } else {
        Fate::Stays
    }
}

/// A volume that nothing was ever on, and that no Pod can reach since the Kubernetes node is gone
/// that it was made for. One with data waits until the cluster gives its node up.
fn out_of_reach(member: &Member<'_>, claim: &Claim, observed: &Observed) -> bool {
    // Its data may be that of a node that was given up: nothing is deleted before that is empty.
    let nothing = member
        .node
        .is_none_or(|node| node.standing == Standing::Lost && !node.up);
    let empty = observed.cluster.is_ok() && claim.node.is_none() && nothing;
    let unplaced = member.pod.is_none_or(|pod| pod.host.is_none());
    let host = claim.host.as_ref();
    empty && unplaced && host.is_some_and(|host| !observed.hosts.contains_key(host))
}

/// Marks those that leave because there are too many. Whoever leaves already goes on leaving,
/// unless the candidates say otherwise.
fn choose_surplus(desired: &Desired, all: &mut [Member<'_>]) {
    let mut staying: Vec<&mut Member<'_>> =
        all.iter_mut().filter(|member| member.stays()).collect();
    let surplus = staying.len().saturating_sub(desired.nodes as usize);
    staying.sort_by_key(|member| {
        (
            !desired.candidates.contains(&member.name),
            !member.draining_for_removal(),
            member.node.is_some(),
            member.whole(),
            u32::MAX - member.name.index(),
        )
    });
    for member in staying.into_iter().take(surplus) {
        member.fate = Fate::Surplus;
    }
}
