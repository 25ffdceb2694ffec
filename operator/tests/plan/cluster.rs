//! The Carillon cluster inside: nodes, shards with replicas, drains and moves that take time, and
//! what it refuses.

use std::collections::{BTreeMap, BTreeSet};

use carillon_operator::plan::{
    ClusterSeen, Drain, MemberName, NodeId, NodeSeen, PolicySeen, Standing, Start,
};

use crate::kubernetes::Pod;
use crate::world::{Lies, World};

const SHARDS: usize = 8;
/// Replicas that move per tick at most.
const MOVES_PER_TICK: usize = 2;

#[derive(Default)]
pub struct Cluster {
    pub made: bool,
    pub nodes: BTreeMap<NodeId, Node>,
    pub shards: Vec<BTreeSet<NodeId>>,
    pub last_id: u64,
    pub after_s: u32,
    pub lost_max: u32,
}

pub struct Node {
    pub member: MemberName,
    pub standing: Standing,
    /// It runs since; nothing while it is down.
    pub up_since_s: Option<u64>,
    pub silent_since_s: u64,
    /// It has caught up from here on.
    pub caught_up_at_s: u64,
    pub drain_since_s: u64,
    pub drained_at_s: u64,
    pub replicas_at_first: usize,
}

impl Cluster {
    pub fn replicas(&self, id: NodeId) -> usize {
        self.shards
            .iter()
            .filter(|shard| shard.contains(&id))
            .count()
    }
}

impl World {
    /// The process of a Pod starts: what it is follows from its disk.
    pub fn start_process(&mut self, name: &MemberName, pod: &Pod) -> Result<(), String> {
        if pod.revision.0.starts_with("bad") {
            return Err("it ends at once".to_owned());
        }
        let answers = self.answers();
        let data = self.claims.get(name).and_then(|claim| claim.data);
        let id = match (data, &pod.start) {
            (Some(id), _) if self.cluster.made && !self.cluster.nodes.contains_key(&id) => {
                return Err("its node was forgotten".to_owned());
            }
            (Some(id), _) => id,
            (None, Start::Found { node }) if !self.cluster.made => *node,
            (None, Start::Found { .. }) => return Err("its disk was lost".to_owned()),
            (None, Start::Join) if answers => self.join(name),
            (None, Start::Join) => return Err("nobody answers".to_owned()),
        };
        if let Some(claim) = self.claims.get_mut(name) {
            claim.data = Some(id);
        }
        if let Some(node) = self.cluster.nodes.get_mut(&id) {
            node.up_since_s = Some(self.now_s);
            node.caught_up_at_s = self.now_s + 1 + self.rng.below(10);
        }
        Ok(())
    }

    fn join(&mut self, name: &MemberName) -> NodeId {
        self.cluster.last_id += 1;
        let id = NodeId(self.cluster.last_id);
        for node in self.cluster.nodes.values_mut() {
            if &node.member == name {
                node.standing = Standing::Lost;
            }
        }
        self.note(format!("{name} joins as node {}", id.0));
        let node = self.new_node(name);
        self.cluster.nodes.insert(id, node);
        id
    }

    fn new_node(&self, name: &MemberName) -> Node {
        Node {
            member: name.clone(),
            standing: Standing::Active,
            up_since_s: Some(self.now_s),
            silent_since_s: self.now_s,
            caught_up_at_s: self.now_s,
            drain_since_s: 0,
            drained_at_s: 0,
            replicas_at_first: 0,
        }
    }

    pub fn tick_cluster(&mut self) {
        self.make_cluster();
        self.look_who_runs();
        if !self.answers() {
            return;
        }
        self.give_up();
        for _ in 0..MOVES_PER_TICK {
            self.move_one();
        }
    }

    /// All founders have come up once.
    fn make_cluster(&mut self) {
        let factor = u64::from(self.desired.replication_factor);
        let founders: BTreeMap<NodeId, MemberName> = self
            .claims
            .iter()
            .filter(|(name, _)| self.pods.get(*name).is_some_and(|pod| pod.running))
            .filter_map(|(name, claim)| Some((claim.data?, name.clone())))
            .collect();
        if self.cluster.made || (founders.len() as u64) < factor {
            return;
        }
        self.note("the cluster is made".to_owned());
        self.cluster.made = true;
        self.cluster.last_id = factor;
        self.cluster.after_s = 600;
        self.cluster.lost_max = 1;
        self.cluster.shards = vec![founders.keys().copied().collect(); SHARDS];
        for (id, name) in founders {
            let node = self.new_node(&name);
            self.cluster.nodes.insert(id, node);
        }
    }

    fn look_who_runs(&mut self) {
        let running: BTreeSet<NodeId> = self
            .claims
            .iter()
            .filter(|(name, _)| self.pods.get(*name).is_some_and(|pod| pod.running))
            .filter_map(|(_, claim)| claim.data)
            .collect();
        for (id, node) in &mut self.cluster.nodes {
            match (running.contains(id), node.up_since_s) {
                (true, None) => node.up_since_s = Some(self.now_s),
                (false, Some(_)) => {
                    node.up_since_s = None;
                    node.silent_since_s = self.now_s;
                }
                _ => {}
            }
        }
    }

    pub fn up(&self, id: NodeId) -> bool {
        let node = self.cluster.nodes.get(&id);
        node.is_some_and(|node| node.up_since_s.is_some())
    }

    /// The replicas of it count.
    pub fn serves(&self, id: NodeId) -> bool {
        self.up(id) && self.cluster.nodes[&id].caught_up_at_s <= self.now_s
    }

    /// A majority of those runs that were not given up. Who is down and holds nothing has no say.
    pub fn answers(&self) -> bool {
        let counted = self.cluster.nodes.iter();
        let counted: Vec<NodeId> = counted
            .filter(|(id, node)| {
                let has_say = node.up_since_s.is_some() || self.cluster.replicas(**id) > 0;
                node.standing != Standing::Lost && has_say
            })
            .map(|(id, _)| *id)
            .collect();
        let up = counted.iter().filter(|id| self.up(**id)).count();
        self.cluster.made && up * 2 > counted.len()
    }

    fn give_up(&mut self) {
        let lost = self.cluster.nodes.iter();
        let mut lost = lost
            .filter(|(id, node)| node.standing == Standing::Lost && self.cluster.replicas(**id) > 0)
            .count();
        let now_s = self.now_s;
        let silent: Vec<NodeId> = self
            .cluster
            .nodes
            .iter()
            .filter(|(_, node)| node.up_since_s.is_none() && node.standing != Standing::Lost)
            .map(|(id, _)| *id)
            .collect();
        for id in &silent {
            let node = &self.cluster.nodes[id];
            let due = now_s - node.silent_since_s > u64::from(self.cluster.after_s);
            let half = silent.len() * 2 >= self.cluster.nodes.len();
            if due && !half && lost < self.cluster.lost_max as usize && self.may_lose(*id) {
                lost += 1;
                self.note(format!("node {} is given up", id.0));
                self.cluster
                    .nodes
                    .get_mut(id)
                    .expect("it is there")
                    .standing = Standing::Lost;
            }
        }
        for node in self.cluster.nodes.values_mut() {
            if node.standing == Standing::Lost && node.up_since_s.is_some() {
                node.standing = Standing::Active;
            }
        }
    }

    /// Each shard keeps a majority without the node.
    fn may_lose(&self, id: NodeId) -> bool {
        self.cluster.shards.iter().all(|shard| {
            let left = shard.iter().filter(|one| **one != id && self.up(**one));
            !shard.contains(&id) || left.count() * 2 > shard.len()
        })
    }

    /// One replica goes where it belongs: away from who leaves, or to who has few.
    fn move_one(&mut self) {
        let targets: Vec<NodeId> = self
            .cluster
            .nodes
            .iter()
            .filter(|(id, node)| node.standing == Standing::Active && self.up(**id))
            .map(|(id, _)| *id)
            .collect();
        let start = self.rng.below(SHARDS as u64) as usize;
        for offset in 0..self.cluster.shards.len() {
            let index = (start + offset) % self.cluster.shards.len();
            let shard = &self.cluster.shards[index];
            let serving = shard.iter().filter(|id| self.serves(**id)).count();
            if serving * 2 <= shard.len() {
                continue;
            }
            let from = shard.iter().copied().find(|id| {
                let standing = self.cluster.nodes.get(id).map(|node| node.standing);
                matches!(
                    standing,
                    None | Some(Standing::Lost | Standing::DrainingForRemoval)
                )
            });
            let to = targets
                .iter()
                .copied()
                .filter(|id| !shard.contains(id))
                .min_by_key(|id| self.cluster.replicas(*id));
            let balance = || {
                let fullest = shard
                    .iter()
                    .copied()
                    .max_by_key(|id| self.cluster.replicas(*id))?;
                let gap = self.cluster.replicas(fullest)
                    - self
                        .cluster
                        .replicas(to?)
                        .min(self.cluster.replicas(fullest));
                let all_up = self.cluster.nodes.keys().all(|id| self.up(*id));
                (gap >= 2 && all_up).then_some(fullest)
            };
            if let (Some(from), Some(to)) = (from.or_else(balance), to) {
                let shard = &mut self.cluster.shards[index];
                shard.remove(&from);
                shard.insert(to);
                return;
            }
        }
    }

    pub fn set_standing(&mut self, id: NodeId, standing: Standing, forced: bool) {
        let others = self
            .cluster
            .nodes
            .iter()
            .filter(|(other, node)| **other != id && node.standing == Standing::Active);
        let refused = match standing {
            Standing::DrainingForRestart => !self.may_lose(id),
            Standing::DrainingForRemoval => {
                others.count() < self.desired.replication_factor as usize
            }
            Standing::Lost => self.up(id) || !self.may_lose(id),
            Standing::Active | Standing::Cordoned => false,
        };
        if !self.answers() || (refused && !forced) {
            self.note(format!("refused: node {} {standing:?}", id.0));
            return;
        }
        let replicas = self.cluster.replicas(id);
        let leaves_s = 1 + self.rng.below(5);
        let now_s = self.now_s;
        if let Some(node) = self.cluster.nodes.get_mut(&id) {
            node.standing = standing;
            node.drain_since_s = now_s;
            node.drained_at_s = now_s + leaves_s;
            node.replicas_at_first = replicas;
        }
    }

    pub fn forget(&mut self, id: NodeId) {
        let out_of_use = self.cluster.nodes.get(&id).is_some_and(|node| {
            matches!(node.standing, Standing::Lost | Standing::DrainingForRemoval)
        });
        if self.answers() && out_of_use && self.cluster.replicas(id) == 0 {
            self.cluster.nodes.remove(&id);
            // Its process, if there is one, ends.
            let of_it = self.claims.iter().find(|(_, claim)| claim.data == Some(id));
            if let Some(pod) = of_it.and_then(|(name, _)| self.pods.get_mut(name)) {
                pod.running = false;
                pod.ready_since_s = None;
            }
        }
    }

    pub fn cluster_seen(&self) -> Result<ClusterSeen, String> {
        if !self.answers() {
            return Err("no node answers".to_owned());
        }
        let leaderless = self.cluster.shards.iter().filter(|shard| {
            let serving = shard.iter().filter(|id| self.serves(**id)).count();
            serving * 2 <= shard.len()
        });
        Ok(ClusterSeen {
            id: "one".to_owned(),
            nodes: self
                .cluster
                .nodes
                .iter()
                .map(|(id, node)| self.node_seen(*id, node))
                .collect(),
            policy: PolicySeen {
                failure_replacement_after_s: self.cluster.after_s,
                lost_nodes_max: self.cluster.lost_max,
            },
            leaderless: leaderless.count() as u32,
            meta_leader: self.cluster.nodes.keys().copied().find(|id| self.up(*id)),
        })
    }

    fn node_seen(&self, id: NodeId, node: &Node) -> NodeSeen {
        let replicas = match self.lies {
            Lies::AllIsMovedAway => 0,
            _ => self.cluster.replicas(id),
        };
        let done = match node.standing {
            Standing::DrainingForRestart => self.now_s >= node.drained_at_s,
            Standing::DrainingForRemoval => replicas == 0 && self.now_s >= node.drained_at_s,
            _ => false,
        };
        let drained = matches!(
            node.standing,
            Standing::DrainingForRestart | Standing::DrainingForRemoval
        );
        let refused = match self.may_lose(id) {
            true => Vec::new(),
            false => vec!["a shard would have no majority".to_owned()],
        };
        NodeSeen {
            id,
            member: Some(node.member.clone()),
            up: node.up_since_s.is_some(),
            standing: node.standing,
            replicas: replicas as u32,
            caught_up: self.lies == Lies::AllHaveCaughtUp || self.serves(id),
            disk_bytes: 0,
            disk_free_bytes: 0,
            drain: drained.then(|| Drain {
                // A cluster without second replicas never gets rid of its leaders.
                done: done && (self.desired.replication_factor > 1 || replicas == 0),
                percent: 50,
                step: "moving replicas".to_owned(),
                waits: Vec::new(),
                sessions_left: u32::from(self.now_s < node.drained_at_s),
                since_s: node.drain_since_s,
            }),
            restart_dangers: refused,
        }
    }
}
