//! A cluster in memory: hosts with disks, model Raft groups, and between them steps that are
//! late, doubled, lost, or sent by a node that only believes to lead. What decides is real:
//! `apply_meta`, `plan` and `solve`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use carillon_core::map::{
    ClusterVersion, JoinToken, META_SHARD, MetaCommand, MetaReply, MetaState, NodeInfo, Policy,
    Replica, Supported, apply_meta, initial_map,
};
use carillon_core::merging::MergeId;
use carillon_core::placement::Zone;
use carillon_core::steering::{
    DISK_RESERVE_BYTES, FollowerSeen, Loads, MetaSeen, NodeSeen, Plan, Seen, ShardSeen, Step, plan,
};
use carillon_core::{NodeId, ReplicaId, SLOTS, ShardId, TimestampMs};

use crate::group::{Group, ReplicaKey};
use crate::invariants;
use crate::merging::Takeover;
use crate::rng::Rng;

pub const DOWN_AFTER_TICKS: u64 = 5;
pub const REPLACEMENT_AFTER_TICKS: u64 = 20;
/// How late a step may be, in ticks.
const DELAY_TICKS_MAX: u64 = 30;
/// For how long a shard's load stays about the same, in ticks.
const LOAD_CHANGE_TICKS: u64 = 2_000;
/// The largest load of a shard, in commands per second.
const LOAD_MAX: u64 = 8_000;
/// How old an observation may be that somebody plans with, in ticks.
const HISTORY_TICKS: usize = 12;
pub const TOKEN: &str = "secret";
/// What all shards together take up, about; a host has room for little more.
const ALL_BYTES: u64 = 21 * (100 << 20);

/// A machine with a disk. A lost disk makes another host of it, at the same address.
pub struct Host {
    pub node_id: Option<NodeId>,
    pub identity: String,
    pub address: String,
    pub zone: Zone,
    pub weight: u32,
    pub capacity_bytes: u64,
    /// The size of its disk.
    pub disk_bytes: u64,
    pub up: bool,
    pub cut: bool,
    /// Its disk is lost.
    pub gone: bool,
    pub restart_at: u64,
    /// It says that it is about to stop.
    pub stopping: bool,
    pub last_heard: u64,
    /// The meta group's state as far as it is applied here.
    pub view: Rc<MetaState>,
    pub replicas: BTreeSet<(ShardId, ReplicaId)>,
    /// What it keeps on its disk of frozen shards, by replica.
    pub kept_frozen: BTreeMap<ReplicaId, MergeId>,
}

impl Host {
    pub fn reachable(&self) -> bool {
        self.up && !self.cut && !self.gone
    }
}

pub struct World {
    pub rng: Rng,
    pub now: u64,
    pub hosts: Vec<Host>,
    pub by_node: BTreeMap<NodeId, usize>,
    pub state: Rc<MetaState>,
    pub meta: Group,
    pub groups: BTreeMap<ShardId, Group>,
    pub in_flight: Vec<(u64, Step)>,
    /// What was known, and what was seen after that; the newest first.
    history: VecDeque<(Rc<MetaState>, Rc<Seen>)>,
    leads_since: (Option<NodeId>, u64),
    /// What loads count as, of the present leader.
    loads: Loads,
    counted_loads: BTreeMap<ShardId, u64>,
    pub last_plan: Plan,
    /// Learners that were added late, when their moves had been given up.
    pub late_learners: BTreeSet<ReplicaId>,
    /// Shards that were taken over by others.
    pub taken_over: BTreeMap<ShardId, Takeover>,
    pub ids: invariants::ids::Ids,
    /// Whether steps are late, doubled and lost.
    pub faulty: bool,
    pub finished_moves: u64,
    pub finished_merges: u64,
    pub trace: Vec<String>,
    pub tracing: bool,
}

fn host(number: u64, zone: u64, weight: u32) -> Host {
    Host {
        node_id: None,
        identity: format!("identity-{number}"),
        address: format!("host-{number}:8000"),
        zone: Zone(format!("zone-{zone}")),
        weight,
        capacity_bytes: u64::MAX,
        disk_bytes: u64::MAX,
        up: true,
        cut: false,
        gone: false,
        restart_at: 0,
        stopping: false,
        last_heard: 0,
        view: Rc::default(),
        replicas: BTreeSet::new(),
        kept_frozen: BTreeMap::new(),
    }
}

pub fn node_info(host: &Host, node_id: NodeId) -> NodeInfo {
    NodeInfo {
        node_id,
        identity: host.identity.clone(),
        client_address: host.address.clone(),
        peer_address: host.address.clone(),
        zone: host.zone.clone(),
        weight: host.weight,
        capacity_bytes: host.capacity_bytes,
    }
}

impl World {
    pub fn new(seed: u64, tracing: bool) -> World {
        let mut rng = Rng::new(seed);
        let count = 1 + rng.below(6);
        let zones = 1 + rng.below(3);
        let shards = 1 + rng.below(6) as u32;
        let replication_factor = 1 + rng.below(count.min(5)) as u32;
        let mut hosts: Vec<Host> = (1..=count)
            .map(|number| host(number, number % zones, 1 + rng.below(2) as u32))
            .collect();
        // Room for everything, or for little more than everything.
        if rng.chance(30) {
            for host in &mut hosts {
                host.capacity_bytes = 25 * (100 << 20);
            }
        }
        // Disks are of any size; what a cluster begins with is not asked about.
        for host in &mut hosts {
            if rng.chance(30) {
                host.disk_bytes = DISK_RESERVE_BYTES + rng.below(2 * ALL_BYTES);
            }
        }
        let mut nodes = Vec::new();
        let mut by_node = BTreeMap::new();
        for (at, host) in hosts.iter_mut().enumerate() {
            let node_id = NodeId(at as u64 + 1);
            host.node_id = Some(node_id);
            nodes.push(node_info(host, node_id));
            by_node.insert(node_id, at);
        }
        let map = initial_map(&nodes, shards, replication_factor).expect("a map");
        let mut state = MetaState::default();
        let created = apply_meta(
            &mut state,
            MetaCommand::CreateCluster {
                cluster_id: "c1".to_owned(),
                cluster_name: "demo".to_owned(),
                join_token: JoinToken(TOKEN.to_owned()),
                replication_factor,
                nodes,
                shards: map.shards.clone(),
                version: ClusterVersion::MAX,
                at: TimestampMs(0),
            },
        );
        assert!(matches!(created, MetaReply::Created { .. }), "{created:?}");
        let policy = Policy {
            down_after_s: DOWN_AFTER_TICKS as u32,
            failure_replacement_after_s: REPLACEMENT_AFTER_TICKS as u32,
            moves_max: 1 + rng.below(4) as u32,
            moves_per_node_max: 1,
            lost_nodes_max: rng.below(3) as u32,
            balance: true,
            shards_min: 1 + rng.below(6) as u32,
            ..Policy::default()
        };
        let at = TimestampMs(0);
        apply_meta(
            &mut state,
            MetaCommand::SetPolicy {
                change: policy.into(),
                at,
            },
        );
        let state = Rc::new(state);
        for host in &mut hosts {
            host.view = state.clone();
            let node = host.node_id.expect("it was given above");
            for shard in &map.shards {
                let here = shard.replica_on(node);
                host.replicas
                    .extend(here.map(|one| (shard.shard_id, one.replica_id)));
            }
        }
        let groups = map.shards.iter().map(|shard| {
            let group = Group::new(shard.replicas.iter().copied(), false);
            (shard.shard_id, group)
        });
        let meta_voters = match count {
            0..=2 => 1,
            3..=4 => 3,
            _ => 5,
        };
        let meta = Group::new(
            (1..=meta_voters).map(|id| meta_member(NodeId(id)).into()),
            true,
        );
        World {
            now: 0,
            by_node,
            groups: groups.collect(),
            meta,
            state,
            hosts,
            in_flight: Vec::new(),
            history: VecDeque::new(),
            leads_since: (None, 0),
            loads: Loads::default(),
            counted_loads: BTreeMap::new(),
            last_plan: Plan::default(),
            late_learners: BTreeSet::new(),
            taken_over: BTreeMap::new(),
            ids: invariants::ids::Ids::default(),
            faulty: true,
            finished_moves: 0,
            finished_merges: 0,
            trace: Vec::new(),
            tracing,
            rng,
        }
    }

    pub fn note(&mut self, text: impl FnOnce() -> String) {
        if self.tracing {
            let text = format!("{}: {}", self.now, text());
            eprintln!("{text}");
            self.trace.push(text);
        }
    }

    pub fn host(&self, node: NodeId) -> Option<&Host> {
        self.by_node.get(&node).map(|at| &self.hosts[*at])
    }

    /// The replica's host answers and has it.
    pub fn serves(&self, shard: ShardId, replica: &ReplicaKey) -> bool {
        let host = self.host(replica.node_id);
        host.is_some_and(|host| {
            host.reachable() && host.replicas.contains(&(shard, replica.replica_id))
        })
    }

    /// The replica's data is on a disk that was not lost.
    pub fn survives(&self, shard: ShardId, replica: &ReplicaKey) -> bool {
        let host = self.host(replica.node_id);
        host.is_some_and(|host| {
            !host.gone
                && (shard == META_SHARD || host.replicas.contains(&(shard, replica.replica_id)))
        })
    }

    pub fn tick(&mut self) {
        self.now += 1;
        self.tick_hosts();
        self.tick_groups();
        self.tick_steering();
        self.deliver();
        invariants::check(self);
    }

    fn tick_hosts(&mut self) {
        for at in 0..self.hosts.len() {
            if !self.hosts[at].up && !self.hosts[at].gone && self.hosts[at].restart_at <= self.now {
                self.hosts[at].up = true;
                self.hosts[at].stopping = false;
            }
            if !self.hosts[at].reachable() {
                continue;
            }
            self.hosts[at].last_heard = self.now;
            let Some(node) = self.hosts[at].node_id else {
                self.join(at);
                continue;
            };
            let is_member = self.meta.committed.members().contains(&meta_member(node));
            if is_member && self.meta.leader.is_some() && self.rng.chance(70) {
                self.hosts[at].view = self.state.clone();
            }
            self.keep_replicas(at, node);
        }
    }

    fn join(&mut self, at: usize) {
        if self.meta.leader.is_none() || self.rng.chance(50) {
            return;
        }
        let command = MetaCommand::JoinNode {
            node: node_info(&self.hosts[at], NodeId(0)),
            token: JoinToken(TOKEN.to_owned()),
            at: self.timestamp(),
        };
        if let MetaReply::Joined { node_id, .. } = self.apply(command) {
            self.hosts[at].node_id = Some(node_id);
            self.by_node.insert(node_id, at);
            self.note(|| format!("host {at} joined as node {node_id}"));
        }
    }

    /// The host makes and deletes replicas as its view of the meta group's state says.
    fn keep_replicas(&mut self, at: usize, node: NodeId) {
        let view = self.hosts[at].view.clone();
        for shard in &view.map.shards {
            let shard_id = shard.shard_id;
            if let Some(replica) = view.replica_for(shard_id, node) {
                let key = (shard_id, replica.replica_id);
                if !self.hosts[at].replicas.contains(&key) {
                    invariants::disks::may_arrive(self, &self.hosts[at], shard_id);
                    self.hosts[at].replicas.insert(key);
                    self.ids.created(replica.replica_id);
                }
            }
        }
        let held: Vec<_> = self.hosts[at].replicas.iter().copied().collect();
        for (shard_id, replica_id) in held {
            // What a split has left here may be newer than the view.
            if !view.names_replica(shard_id, replica_id) && replica_id < view.next_replica_id {
                if self.is_needed_for_takeover(shard_id, node) {
                    continue;
                }
                let replica = ReplicaKey {
                    replica_id,
                    node_id: node,
                };
                invariants::data::may_delete(self, shard_id, &replica);
                self.note(|| format!("node {node} deletes replica {replica_id} of {shard_id}"));
                self.hosts[at].replicas.remove(&(shard_id, replica_id));
                self.ids.deleted(replica_id);
                if let Some(group) = self.groups.get_mut(&shard_id) {
                    group.has.remove(&replica_id);
                }
            }
        }
    }

    fn tick_groups(&mut self) {
        let mut groups = std::mem::take(&mut self.groups);
        let mut rng = Rng::new(self.rng.next());
        for (shard_id, group) in &mut groups {
            group.tick(&mut rng, |replica| self.serves(*shard_id, replica));
            self.return_to_preferred(*shard_id, group, &mut rng);
        }
        self.groups = groups;
        let mut meta = self.meta.clone();
        meta.tick(&mut rng, |replica| self.reaches(replica.node_id));
        self.meta = meta;
    }

    pub fn reaches(&self, node: NodeId) -> bool {
        self.host(node).is_some_and(Host::reachable)
    }

    /// What the leader of a shard does: it knows who should lead instead.
    fn return_to_preferred(&self, shard_id: ShardId, group: &mut Group, rng: &mut Rng) {
        let Some(leader) = group.leader else {
            return;
        };
        let view = self.host(leader.node_id).map(|host| host.view.clone());
        let shard = view.as_ref().and_then(|view| view.map.shard(shard_id));
        if let Some(shard) = shard
            && shard.preferred_leader != leader.node_id
            && rng.chance(50)
        {
            let to = shard.preferred_leader;
            group.transfer(to, |replica| self.serves(shard_id, replica));
        }
    }

    fn tick_steering(&mut self) {
        let leader = self.meta.leader.map(|leader| leader.node_id);
        if self.leads_since.0 != leader {
            self.leads_since = (leader, self.now);
            self.loads = Loads::default();
        }
        for shard_id in self.groups.keys() {
            let load = self.load_per_second(*shard_id);
            let counts = self.loads.counts_as(*shard_id, load);
            self.counted_loads.insert(*shard_id, counts);
        }
        let seen = Rc::new(self.seen(leader));
        self.history.push_front((self.state.clone(), seen.clone()));
        self.history.truncate(HISTORY_TICKS);
        if let Some(leader) = leader {
            let view = self.host(leader).expect("it leads").view.clone();
            self.last_plan = plan(&view, &seen);
            for step in self.last_plan.steps.clone() {
                self.send(step);
            }
        }
        if self.faulty && self.rng.chance(8) {
            self.plan_by_a_stale_leader();
        }
    }

    /// Somebody who led once plans with what it knew then, or with what it sees alone.
    fn plan_by_a_stale_leader(&mut self) {
        let at = self.rng.below(self.hosts.len() as u64) as usize;
        let host = &self.hosts[at];
        let (Some(node), true) = (host.node_id, host.up && !host.gone) else {
            return;
        };
        let (view, seen) = if host.cut {
            (host.view.clone(), Rc::new(self.seen_alone(node)))
        } else {
            // The state is always read before the groups are looked at.
            let then = self.rng.below(self.history.len() as u64) as usize;
            let before = then + self.rng.below((self.history.len() - then) as u64) as usize;
            (self.history[before].0.clone(), self.history[then].1.clone())
        };
        for step in plan(&view, &seen).steps {
            self.send(step);
        }
    }

    fn send(&mut self, step: Step) {
        let mut due = self.now + self.rng.below(2);
        if self.faulty {
            if self.rng.chance(8) {
                return;
            }
            if self.rng.chance(15) {
                due += self.rng.below(DELAY_TICKS_MAX);
            }
            if self.rng.chance(10) {
                let again = due + self.rng.below(DELAY_TICKS_MAX);
                self.in_flight.push((again, step.clone()));
            }
        }
        self.in_flight.push((due, step));
    }

    fn deliver(&mut self) {
        let now = self.now;
        let (mut due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.in_flight)
            .into_iter()
            .partition(|(at, _)| *at <= now);
        self.in_flight = later;
        if self.faulty && self.rng.chance(20) {
            due.reverse();
        }
        for (_, step) in due {
            self.execute(step);
        }
    }

    fn execute(&mut self, step: Step) {
        self.note(|| format!("{step:?}"));
        if let Some(shard_id) = shard_of(&step)
            && !self.groups.contains_key(&shard_id)
        {
            // It was taken over.
            return;
        }
        match step {
            Step::Propose(command) => {
                if self.meta.leader.is_some() {
                    self.apply(command);
                }
            }
            Step::AddLearner {
                shard_id,
                replica,
                config,
                ..
            } => {
                let running = self.state.moves.get(&shard_id);
                let running = running.filter(|running| running.goes_on());
                if running.and_then(|running| running.add) != Some(replica) {
                    self.late_learners.insert(replica.replica_id);
                }
                self.group(shard_id).add_learner(replica.into(), config);
            }
            Step::ChangeVoters {
                shard_id,
                voters,
                config,
                ..
            } => {
                let voters = voters.into_iter().map(ReplicaKey::from).collect();
                self.group(shard_id).change_voters(voters, config);
            }
            Step::RemoveLearner {
                shard_id,
                replica,
                config,
                ..
            } => {
                self.group(shard_id).remove_learner(replica.into(), config);
            }
            Step::Split {
                shard_id,
                new_shard_id,
                ..
            } => self.split(shard_id, new_shard_id),
            Step::FreezeShard { .. }
            | Step::KeepFrozen { .. }
            | Step::ThawShard { .. }
            | Step::AbsorbShard { .. } => self.merge_step(step),
            Step::TransferLeader { shard_id, from, to } => self.transfer(shard_id, from, to),
            Step::MetaAddLearner { node_id, config } => {
                self.meta.add_learner(meta_member(node_id), config);
            }
            Step::MetaChangeVoters { voters, config } => {
                let voters = voters.into_iter().map(meta_member).collect();
                self.meta.change_voters(voters, config);
            }
            Step::MetaRemoveLearner { node_id, config } => {
                self.meta.remove_learner(meta_member(node_id), config);
            }
        }
    }

    /// The shard's group does its split when it can: the new group is there from then on.
    fn split(&mut self, shard_id: ShardId, new_shard_id: ShardId) {
        if self.group(shard_id).leader.is_none() {
            return;
        }
        let running = self.state.splits.get(&shard_id);
        let Some(split) = running.filter(|split| split.new_shard_id == new_shard_id) else {
            return;
        };
        if self.groups.contains_key(&new_shard_id) {
            return;
        }
        let replicas = split.replicas.clone();
        let group = Group::new(replicas.iter().copied(), false);
        self.groups.insert(new_shard_id, group);
        // Whoever has the old shard has the new one with it.
        for replica in replicas {
            let at = self.by_node[&replica.node_id];
            let host = &mut self.hosts[at];
            let (first, last) = ((shard_id, ReplicaId(0)), (shard_id, ReplicaId(u64::MAX)));
            if !host.gone && host.replicas.range(first..=last).next().is_some() {
                host.replicas.insert((new_shard_id, replica.replica_id));
                self.ids.created(replica.replica_id);
            }
        }
    }

    fn group(&mut self, shard_id: ShardId) -> &mut Group {
        self.groups.get_mut(&shard_id).expect("it is there")
    }

    fn transfer(&mut self, shard_id: ShardId, from: NodeId, to: NodeId) {
        let reaches = self.reaches(to);
        if shard_id == META_SHARD {
            if self
                .meta
                .leader
                .is_some_and(|leader| leader.node_id == from)
            {
                self.meta.transfer(to, |_| reaches);
            }
            return;
        }
        let mut groups = std::mem::take(&mut self.groups);
        let group = groups.get_mut(&shard_id).expect("it is there");
        if group.leader.is_some_and(|leader| leader.node_id == from) {
            group.transfer(to, |replica| self.serves(shard_id, replica));
        }
        self.groups = groups;
    }

    pub fn timestamp(&self) -> TimestampMs {
        TimestampMs(self.now as i64 * 1_000)
    }

    pub fn apply(&mut self, command: MetaCommand) -> MetaReply {
        let finishes = matches!(command, MetaCommand::FinishMove { .. });
        let merged = match command {
            MetaCommand::FinishMerge { merge_id, .. } => Some(merge_id),
            _ => None,
        };
        let before = self.state.clone();
        let mut state = MetaState::clone(&before);
        let reply = apply_meta(&mut state, command);
        if matches!(reply, MetaReply::Refused(_)) {
            assert_eq!(state, *before, "a refused command changed something");
            self.note(|| format!("refused: {reply:?}"));
            return reply;
        }
        if state == *before {
            return reply;
        }
        if finishes {
            self.finished_moves += 1;
        }
        if let Some(merge_id) = merged {
            self.finished_merges += 1;
            let merge = before.merge(merge_id).expect("it ran");
            self.groups.remove(&merge.absorbed_shard_id);
        }
        invariants::state::check_change(&before, &state);
        self.state = Rc::new(state);
        reply
    }

    pub fn seen(&self, leader: Option<NodeId>) -> Seen {
        let mut seen = Seen {
            now: self.timestamp(),
            kept_frozen: self.kept_frozen().collect(),
            ..Seen::default()
        };
        for host in &self.hosts {
            let Some(node) = host.node_id else {
                continue;
            };
            let heard = host.last_heard.max(self.leads_since.1);
            let up = host.reachable();
            let node_seen = NodeSeen {
                up,
                silent_ms: if up { 0 } else { (self.now - heard) * 1_000 },
                is_stopping: host.stopping,
                disk_free_bytes: up.then(|| self.disk_free_bytes(host)),
                sessions: 0,
                supported: Some(Supported::default()),
            };
            seen.nodes.insert(node, node_seen);
        }
        for (shard_id, group) in &self.groups {
            if let Some(leader) = group.leader
                && self.serves(*shard_id, &leader)
            {
                seen.shards
                    .insert(*shard_id, self.shard_seen(*shard_id, group, leader));
            }
        }
        let config = self.meta.effective();
        let nodes = |members: &BTreeSet<ReplicaKey>| -> Vec<NodeId> {
            members.iter().map(|member| member.node_id).collect()
        };
        let follower = |member: ReplicaKey| {
            let follower = FollowerSeen {
                lag_entries: self.meta.entries
                    - self.meta.has(member.replica_id).min(self.meta.entries),
                answers: self.reaches(member.node_id),
            };
            (member.node_id, follower)
        };
        if let Some(leader) = leader {
            seen.meta = MetaSeen {
                leader,
                config: config.version,
                voters: nodes(&config.voters),
                learners: nodes(&config.learners),
                changing: self.meta.changing(),
                followers: config.members().into_iter().map(follower).collect(),
            };
        }
        seen
    }

    fn shard_seen(&self, shard_id: ShardId, group: &Group, leader: ReplicaKey) -> ShardSeen {
        let config = group.effective();
        let replicas = |members: &BTreeSet<ReplicaKey>| -> Vec<Replica> {
            members.iter().copied().map(Replica::from).collect()
        };
        let followers = config.members().into_iter().map(|member| {
            let follower = FollowerSeen {
                lag_entries: group.entries - group.has(member.replica_id).min(group.entries),
                answers: self.serves(shard_id, &member),
            };
            (member.replica_id, follower)
        });
        ShardSeen {
            leader: leader.node_id,
            config: config.version,
            voters: replicas(&config.voters),
            learners: replicas(&config.learners),
            changing: group.changing(),
            followers: followers
                .filter(|(id, _)| *id != leader.replica_id)
                .collect(),
            size_bytes: self.size_bytes(shard_id) + self.now * 1_000,
            load_per_second: self.counted_loads.get(&shard_id).copied().unwrap_or(0),
            mark: group.mark,
        }
    }

    /// What is free on a host's disk.
    pub fn disk_free_bytes(&self, host: &Host) -> u64 {
        let sizes = host
            .replicas
            .iter()
            .map(|(shard, _)| self.size_bytes(*shard));
        host.disk_bytes.saturating_sub(sizes.sum())
    }

    /// Later slots have more, so that shards differ; a split divides what there is.
    pub fn size_bytes(&self, shard_id: ShardId) -> u64 {
        let placed = self.state.map.shard(shard_id).map(|shard| shard.slots);
        let made = || {
            let split = self.state.split_into(shard_id)?;
            Some(
                split
                    .new_shard(self.state.map.shard(split.shard_id)?)?
                    .slots,
            )
        };
        let Some(slots) = placed.or_else(made) else {
            return 0;
        };
        let below = |slot: u16| u64::from(slot) * u64::from(slot);
        let part = below(slots.last.0 + 1) - below(slots.first.0);
        part * ALL_BYTES / below(SLOTS)
    }

    /// Each shard has a load of its own, which changes for good now and then, and is seen with
    /// noise of a fifth of it and more.
    fn load_per_second(&self, shard_id: ShardId) -> u64 {
        let seed = u64::from(shard_id.0) << 32;
        let mut of_shard = Rng::new(seed | (self.now / LOAD_CHANGE_TICKS));
        let load = of_shard.below(LOAD_MAX);
        let mut noise = Rng::new(seed | self.now);
        load - load / 10 + noise.below(load / 5 + 200)
    }

    /// What a node sees that is cut off: itself.
    fn seen_alone(&self, node: NodeId) -> Seen {
        let mut seen = self.seen(Some(node));
        for (other, node_seen) in &mut seen.nodes {
            if *other == node {
                node_seen.up = true;
                node_seen.silent_ms = 0;
            } else {
                node_seen.up = false;
                node_seen.silent_ms = 2 * REPLACEMENT_AFTER_TICKS * 1_000;
            }
        }
        seen.shards.clear();
        seen
    }

    pub fn new_host(&mut self) {
        let number = self.hosts.len() as u64 + 1;
        let zone = self.rng.below(3);
        let mut host = host(number, zone, 1);
        if self.faulty && self.rng.chance(30) {
            host.disk_bytes = DISK_RESERVE_BYTES + self.rng.below(ALL_BYTES);
        }
        self.hosts.push(host);
    }
}

/// The shard that a step is about.
fn shard_of(step: &Step) -> Option<ShardId> {
    match step {
        Step::AddLearner { shard_id, .. }
        | Step::ChangeVoters { shard_id, .. }
        | Step::RemoveLearner { shard_id, .. }
        | Step::Split { shard_id, .. }
        | Step::FreezeShard { shard_id, .. }
        | Step::KeepFrozen { shard_id, .. }
        | Step::ThawShard { shard_id, .. }
        | Step::AbsorbShard { shard_id, .. } => Some(*shard_id),
        Step::TransferLeader { shard_id, .. } => Some(*shard_id).filter(|id| *id != META_SHARD),
        Step::Propose(_)
        | Step::MetaAddLearner { .. }
        | Step::MetaChangeVoters { .. }
        | Step::MetaRemoveLearner { .. } => None,
    }
}

/// Members of the meta group are numbered like their nodes.
pub fn meta_member(node_id: NodeId) -> ReplicaKey {
    ReplicaKey {
        replica_id: ReplicaId(node_id.0),
        node_id,
    }
}
