//! Merges in the model: what the groups do that are frozen, thawed and take over, and what
//! hosts keep of it on their disks.

use carillon_core::map::MergeStep;
use carillon_core::merging::MergeId;
use carillon_core::steering::Step;
use carillon_core::{NodeId, ReplicaId, ShardId};

use crate::group::Group;
use crate::invariants;
use crate::world::World;

/// Who took over a shard, and the entry of that shard's log in which it did.
#[derive(Clone, Copy, Debug)]
pub struct Takeover {
    pub by: ShardId,
    pub entry: u64,
}

impl World {
    /// Executes a step of a merge.
    pub fn merge_step(&mut self, step: Step) {
        match step {
            Step::FreezeShard {
                shard_id,
                leader,
                merge_id,
            } => {
                if self.knows(leader, merge_id, MergeStep::Freezing) {
                    self.commit(shard_id, leader, |group| group.freeze(merge_id));
                }
            }
            Step::KeepFrozen {
                shard_id,
                nodes,
                merge_id,
            } => {
                for node in nodes {
                    if !self.faulty || self.rng.chance(85) {
                        self.keep_frozen(shard_id, node, merge_id);
                    }
                }
            }
            Step::ThawShard {
                shard_id,
                leader,
                merge_id,
            } => {
                if self.knows(leader, merge_id, MergeStep::Thawing) {
                    self.commit(shard_id, leader, |group| group.thaw(merge_id));
                }
            }
            Step::AbsorbShard {
                shard_id,
                leader,
                merge_id,
            } => {
                if self.knows(leader, merge_id, MergeStep::Absorbing) {
                    self.absorb(shard_id, leader, merge_id);
                }
            }
            other => unreachable!("{other:?} is no step of a merge"),
        }
    }

    /// What a node asks its own copy of the meta group's state before it does anything.
    fn knows(&self, node: NodeId, merge_id: MergeId, step: MergeStep) -> bool {
        let view = self.host(node).map(|host| &host.view);
        let merge = view.and_then(|view| view.merge(merge_id));
        merge.is_some_and(|merge| merge.step == step)
    }

    /// Lets the shard's group, where it is led, commit an entry that does `what`.
    fn commit(&mut self, shard_id: ShardId, leader: NodeId, what: impl FnOnce(&mut Group)) -> bool {
        let mut groups = std::mem::take(&mut self.groups);
        let group = groups.get_mut(&shard_id);
        let done = group.is_some_and(|group| {
            let leads = group.leader.is_some_and(|one| one.node_id == leader);
            let done = leads && group.commit_now(|one| self.serves(shard_id, one));
            if done {
                what(group);
            }
            done
        });
        self.groups = groups;
        done
    }

    fn keep_frozen(&mut self, shard_id: ShardId, node: NodeId, merge_id: MergeId) {
        let Some(replica) = self.replica_here(shard_id, node) else {
            return;
        };
        let frozen = self.groups.get(&shard_id).is_some_and(|group| {
            group.mark.frozen_by == Some(merge_id) && group.has(replica) >= group.frozen_entry
        });
        if frozen && self.reaches(node) {
            let at = self.by_node[&node];
            self.hosts[at].kept_frozen.insert(replica, merge_id);
        }
    }

    fn replica_here(&self, shard_id: ShardId, node: NodeId) -> Option<ReplicaId> {
        let host = self.host(node)?;
        let mut replicas = host.replicas.iter();
        let found = replicas.rfind(|(shard, _)| *shard == shard_id)?;
        Some(found.1)
    }

    fn absorb(&mut self, shard_id: ShardId, leader: NodeId, merge_id: MergeId) {
        let Some(merge) = self.state.merge(merge_id).cloned() else {
            return;
        };
        if self.groups[&shard_id].mark.absorbed >= merge_id {
            return;
        }
        let goes = merge.absorbed_shard_id;
        if self.commit(shard_id, leader, |group| group.mark.absorbed = merge_id) {
            let group = &self.groups[&shard_id];
            let entry = group.entries;
            for member in group.effective().members() {
                invariants::merges::may_take_over(self, &member, goes, merge_id);
            }
            let takeover = Takeover {
                by: shard_id,
                entry,
            };
            self.taken_over.insert(goes, takeover);
        }
    }

    /// What a node tells the steering that it keeps.
    pub fn kept_frozen(&self) -> impl Iterator<Item = (ReplicaId, MergeId)> + '_ {
        let hosts = self.hosts.iter().filter(|host| host.reachable());
        hosts.flat_map(|host| {
            let kept = host.kept_frozen.iter().map(|(id, merge)| (*id, *merge));
            kept.filter(|(replica, merge)| {
                // Until it applies that it is thawed.
                self.groups
                    .values()
                    .filter(|group| group.has.contains_key(replica))
                    .all(|group| {
                        group.mark.frozen_by == Some(*merge)
                            || group.has(*replica) < group.thawed_entry
                    })
            })
        })
    }

    /// The shard was taken over, and not here yet: what is here of it must stay.
    pub fn is_needed_for_takeover(&self, shard_id: ShardId, node: NodeId) -> bool {
        let Some(takeover) = self.taken_over.get(&shard_id) else {
            return false;
        };
        let Some(replica) = self.replica_here(takeover.by, node) else {
            return false;
        };
        let group = self.groups.get(&takeover.by);
        group.is_some_and(|group| group.has(replica) < takeover.entry)
    }
}
