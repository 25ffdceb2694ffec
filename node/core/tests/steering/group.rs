//! A model of a Raft group: what matters of it to whoever changes its members.
//!
//! A change is an entry of the log with a version of its own. It counts from when it is
//! written and is committed when a majority has it; the leader may be lost before, and the
//! next one may have the entry or not. Voters change over a joint configuration.

use std::collections::{BTreeMap, BTreeSet};

use carillon_core::NodeId;
use carillon_core::ReplicaId;
use carillon_core::map::{ConfigVersion, Replica};
use carillon_core::merging::{MergeId, MergeMark};

use crate::rng::Rng;

/// Entries that a replica gets in a tick.
const ENTRIES_PER_TICK: u64 = 400;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub version: ConfigVersion,
    pub voters: BTreeSet<ReplicaKey>,
    /// The voters that are to be, while it is joint.
    pub next: Option<BTreeSet<ReplicaKey>>,
    pub learners: BTreeSet<ReplicaKey>,
}

/// A replica that can be in an ordered set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReplicaKey {
    pub replica_id: ReplicaId,
    pub node_id: NodeId,
}

impl From<Replica> for ReplicaKey {
    fn from(replica: Replica) -> Self {
        ReplicaKey {
            replica_id: replica.replica_id,
            node_id: replica.node_id,
        }
    }
}

impl From<ReplicaKey> for Replica {
    fn from(key: ReplicaKey) -> Self {
        Replica {
            replica_id: key.replica_id,
            node_id: key.node_id,
        }
    }
}

impl Config {
    /// A majority of each set of voters fulfils it.
    pub fn quorum(&self, fulfils: impl Fn(&ReplicaKey) -> bool) -> bool {
        let majority = |voters: &BTreeSet<ReplicaKey>| {
            2 * voters.iter().filter(|voter| fulfils(voter)).count() > voters.len()
        };
        majority(&self.voters) && self.next.as_ref().is_none_or(majority)
    }

    pub fn votes(&self, replica: &ReplicaKey) -> bool {
        self.voters.contains(replica) || self.next.iter().any(|next| next.contains(replica))
    }

    pub fn members(&self) -> BTreeSet<ReplicaKey> {
        let next = self.next.iter().flatten();
        self.voters
            .iter()
            .chain(next)
            .chain(&self.learners)
            .copied()
            .collect()
    }
}

#[derive(Clone, Debug)]
pub struct Group {
    pub committed: Config,
    /// The configuration that is written and not committed yet.
    pub written: Option<Config>,
    /// The entry that wrote it.
    pub written_entry: u64,
    pub leader: Option<ReplicaKey>,
    pub term: u64,
    pub entries: u64,
    /// Entries that are on a majority.
    pub committed_entries: u64,
    /// What each replica has.
    pub has: BTreeMap<ReplicaId, u64>,
    /// The demoted stay learners: so in the meta group.
    pub keeps_demoted: bool,
    pub config_entries: u64,
    /// What merges have done to the shard.
    pub mark: MergeMark,
    /// The entry by which it was frozen last.
    pub frozen_entry: u64,
    /// The entry by which it was thawed last.
    pub thawed_entry: u64,
}

impl Group {
    pub fn new(voters: impl Iterator<Item = Replica>, keeps_demoted: bool) -> Group {
        let voters: BTreeSet<ReplicaKey> = voters.map(ReplicaKey::from).collect();
        Group {
            committed: Config {
                version: ConfigVersion {
                    term: 1,
                    leader: ReplicaId(0),
                    index: 1,
                },
                voters: voters.clone(),
                next: None,
                learners: BTreeSet::new(),
            },
            written: None,
            written_entry: 0,
            leader: None,
            term: 1,
            entries: 1,
            committed_entries: 1,
            has: voters.iter().map(|voter| (voter.replica_id, 1)).collect(),
            keeps_demoted,
            config_entries: 1,
            mark: MergeMark::default(),
            frozen_entry: 0,
            thawed_entry: 0,
        }
    }

    /// Commits an entry, when a majority answers that is not far behind.
    pub fn commit_now(&mut self, reachable: impl Fn(&ReplicaKey) -> bool) -> bool {
        let Some(leader) = self.leader else {
            return false;
        };
        let entry = self.entries + 1;
        let gets = |one: &ReplicaKey| {
            *one == leader || reachable(one) && self.has(one.replica_id) + ENTRIES_PER_TICK >= entry
        };
        if !self.effective().quorum(gets) {
            return false;
        }
        let members = self.effective().members().into_iter();
        let getting: Vec<ReplicaKey> = members.filter(gets).collect();
        self.entries = entry;
        for member in getting {
            self.has.insert(member.replica_id, entry);
        }
        self.committed_entries = entry;
        true
    }

    /// Applies that it is frozen; nothing when that is late.
    pub fn freeze(&mut self, merge_id: MergeId) {
        if merge_id > self.mark.seen {
            self.mark.frozen_by = Some(merge_id);
            self.mark.seen = merge_id;
            self.frozen_entry = self.entries;
        }
    }

    /// Applies that it is thawed, or will not be frozen.
    pub fn thaw(&mut self, merge_id: MergeId) {
        if merge_id >= self.mark.seen {
            self.mark.frozen_by = None;
            self.mark.seen = merge_id;
            self.thawed_entry = self.entries;
        }
    }

    /// The configuration that the leader acts by.
    pub fn effective(&self) -> &Config {
        self.written.as_ref().unwrap_or(&self.committed)
    }

    pub fn changing(&self) -> bool {
        self.written.is_some() || self.committed.next.is_some()
    }

    pub fn has(&self, replica: ReplicaId) -> u64 {
        self.has.get(&replica).copied().unwrap_or(0)
    }

    /// One tick of replication, commitment and elections.
    pub fn tick(&mut self, rng: &mut Rng, reachable: impl Fn(&ReplicaKey) -> bool) {
        self.elect(rng, &reachable);
        let Some(leader) = self.leader else {
            return;
        };
        self.entries += rng.below(80);
        self.has.insert(leader.replica_id, self.entries);
        for member in self.effective().members() {
            if member != leader && reachable(&member) {
                let has = self.has(member.replica_id) + ENTRIES_PER_TICK;
                self.has.insert(member.replica_id, has.min(self.entries));
            }
        }
        // What a quorum has is committed.
        let mut levels: Vec<u64> = self.has.values().copied().collect();
        levels.sort();
        let quorum_has = |level: &u64| {
            self.effective()
                .quorum(|one| self.has(one.replica_id) >= *level)
        };
        if let Some(level) = levels.into_iter().rev().find(quorum_has) {
            self.committed_entries = self.committed_entries.max(level);
        }
        self.commit(rng, &reachable);
    }

    fn elect(&mut self, rng: &mut Rng, reachable: &impl Fn(&ReplicaKey) -> bool) {
        let stays = |leader: &ReplicaKey| reachable(leader) && self.effective().votes(leader);
        if self.leader.as_ref().is_some_and(stays) {
            return;
        }
        self.leader = None;
        if rng.chance(40) {
            return;
        }
        // The next leader may not have what was written and not committed.
        let members = self.effective().members().into_iter();
        let most = members
            .filter(reachable)
            .map(|one| self.has(one.replica_id))
            .max();
        if self.written.is_some() && (most < Some(self.written_entry) || rng.chance(50)) {
            self.written = None;
        }
        if !self.effective().quorum(reachable) {
            return;
        }
        let mut best: Vec<ReplicaKey> = self.effective().members().into_iter().collect();
        best.retain(|one| self.effective().votes(one) && reachable(one));
        let most = best.iter().map(|one| self.has(one.replica_id)).max();
        best.retain(|one| Some(self.has(one.replica_id)) == most);
        self.leader = rng.pick(&best);
        self.term += 1;
        if let Some(leader) = self.leader {
            let has = self.has(leader.replica_id);
            assert!(
                has >= self.committed_entries,
                "the new leader {leader:?} lacks committed entries: {self:?}"
            );
            self.entries = has;
            for level in self.has.values_mut() {
                *level = (*level).min(has);
            }
        }
    }

    fn commit(&mut self, rng: &mut Rng, reachable: &impl Fn(&ReplicaKey) -> bool) {
        if let Some(written) = &self.written
            && rng.chance(60)
            && written
                .quorum(|one| reachable(one) && self.has(one.replica_id) >= self.written_entry)
        {
            self.committed = self.written.take().expect("it is there");
        }
        if self.written.is_none()
            && self.leader.is_some()
            && rng.chance(60)
            && let Some(next) = self.committed.next.clone()
        {
            let mut learners = self.committed.learners.clone();
            if self.keeps_demoted {
                learners.extend(self.committed.voters.difference(&next));
            }
            self.write(next, None, learners);
        }
    }

    fn write(
        &mut self,
        voters: BTreeSet<ReplicaKey>,
        next: Option<BTreeSet<ReplicaKey>>,
        learners: BTreeSet<ReplicaKey>,
    ) {
        self.config_entries += 1;
        self.entries += 1;
        self.written_entry = self.entries;
        self.written = Some(Config {
            version: ConfigVersion {
                term: self.term,
                // A term of the model has one leader.
                leader: ReplicaId(0),
                index: self.config_entries,
            },
            voters,
            next,
            learners,
        });
    }

    fn may_change(&self, config: ConfigVersion) -> bool {
        self.leader.is_some() && !self.changing() && self.committed.version == config
    }

    pub fn add_learner(&mut self, replica: ReplicaKey, config: ConfigVersion) {
        if !self.may_change(config) || self.committed.members().contains(&replica) {
            return;
        }
        let mut learners = self.committed.learners.clone();
        learners.insert(replica);
        self.write(self.committed.voters.clone(), None, learners);
    }

    pub fn remove_learner(&mut self, replica: ReplicaKey, config: ConfigVersion) {
        if !self.may_change(config) || !self.committed.learners.contains(&replica) {
            return;
        }
        let mut learners = self.committed.learners.clone();
        learners.remove(&replica);
        self.write(self.committed.voters.clone(), None, learners);
    }

    pub fn change_voters(&mut self, voters: BTreeSet<ReplicaKey>, config: ConfigVersion) {
        let members = self.committed.members();
        if !self.may_change(config) || voters.is_empty() || !voters.is_subset(&members) {
            return;
        }
        if voters == self.committed.voters {
            return;
        }
        let learners = self
            .committed
            .learners
            .difference(&voters)
            .copied()
            .collect();
        self.write(self.committed.voters.clone(), Some(voters), learners);
    }

    pub fn transfer(&mut self, to: NodeId, reachable: impl Fn(&ReplicaKey) -> bool) {
        let voters = self.effective().voters.iter();
        let to = voters.copied().find(|voter| voter.node_id == to);
        let leads = self.leader.is_some();
        if let Some(to) =
            to.filter(|to| leads && reachable(to) && self.has(to.replica_id) == self.entries)
        {
            self.leader = Some(to);
            self.term += 1;
        }
    }
}
