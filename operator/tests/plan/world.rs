//! The world: Kubernetes objects, the Carillon cluster inside, and the spec. One tick is a second.

use std::collections::{BTreeMap, VecDeque};

use carillon_operator::plan::{
    Desired, HostName, MemberName, Observed, Replacement, Revision, Roll,
};

use crate::cluster::Cluster;
use crate::kubernetes::{Claim, Host, Pod};
use crate::operator;
use crate::rng::Rng;

/// How old what is read may be, in ticks.
const STALE_TICKS: usize = 6;

/// What the operator is told that is not so: a stand-in for a wrong plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lies {
    None,
    AllHaveCaughtUp,
    AllIsMovedAway,
    /// Disruptive steps are done without looking again.
    NothingIsReadAgain,
}

pub struct World {
    pub rng: Rng,
    pub now_s: u64,
    pub lies: Lies,
    pub desired: Desired,
    pub hosts: BTreeMap<HostName, Host>,
    pub claims: BTreeMap<MemberName, Claim>,
    pub pods: BTreeMap<MemberName, Pod>,
    pub cluster: Cluster,
    /// What the status has kept of the cluster's id.
    pub status_id: Option<String>,
    /// The ImCluster is gone.
    pub finalized: bool,
    /// Volumes stay in one place rather than following their Pod.
    pub local_volumes: bool,
    pub uids: u64,
    /// Running processes that the operator stopped.
    pub disruptions: u64,
    /// What happened, for a failure's text.
    pub journal: VecDeque<String>,
    history: VecDeque<(Desired, Observed)>,
}

impl World {
    pub fn new(seed: u64, lies: Lies) -> World {
        let mut rng = Rng::new(seed);
        let replication_factor = if rng.chance(15) { 1 } else { 3 };
        let nodes = replication_factor + rng.below(3) as u32;
        let hosts = (0..6 + rng.below(3)).map(|index| {
            let host = Host {
                up: true,
                down_since_s: 0,
            };
            (HostName(format!("host-{index}")), host)
        });
        World {
            now_s: 0,
            lies,
            desired: Desired {
                cluster: "chat".to_owned(),
                nodes,
                replication_factor,
                revision: Revision("good-0".to_owned()),
                volume_bytes: 10 << 30,
                volume_bytes_max: None,
                candidates: Default::default(),
                roll: Roll {
                    paused: false,
                    min_ready_s: 2,
                    soak_s: rng.chance(30).then_some(12),
                },
                replacement: Replacement {
                    after_s: 40,
                    at_once: 1,
                },
                deletion: None,
                paused: false,
                upgrade_refused: None,
            },
            hosts: hosts.collect(),
            claims: BTreeMap::new(),
            pods: BTreeMap::new(),
            cluster: Cluster::default(),
            status_id: None,
            finalized: false,
            local_volumes: rng.chance(50),
            uids: 0,
            disruptions: 0,
            journal: VecDeque::new(),
            history: VecDeque::new(),
            rng,
        }
    }

    pub fn tick(&mut self) {
        self.now_s += 1;
        self.tick_kubernetes();
        self.tick_cluster();
        let seen = (self.desired.clone(), self.observe());
        self.history.push_front(seen);
        self.history.truncate(STALE_TICKS);
        if self.rng.chance(60) && !self.finalized {
            operator::reconcile(self);
        }
    }

    /// Something that was so lately.
    pub fn stale(&mut self) -> (Desired, Observed) {
        let age = match self.rng.chance(50) {
            true => 0,
            false => self.rng.below(self.history.len() as u64) as usize,
        };
        self.history[age].clone()
    }

    /// What is so.
    pub fn observe(&self) -> Observed {
        let cluster = self.cluster_seen();
        let marked = self.claims.values().find_map(|claim| claim.cluster.clone());
        let answered = cluster.as_ref().ok().map(|cluster| cluster.id.clone());
        Observed {
            now_s: self.now_s,
            cluster_made: self.status_id.clone().or(marked).or(answered),
            claims: self.claims_seen(),
            pods: self.pods_seen(),
            hosts: self.hosts_seen(),
            cluster,
        }
    }

    pub fn note(&mut self, text: String) {
        let line = format!("{:>5}  {text}", self.now_s);
        if std::env::var("CARILLON_SEED").is_ok() {
            println!("{line}");
        }
        self.journal.push_back(line);
        if self.journal.len() > 60 {
            self.journal.pop_front();
        }
    }

    pub fn told(&self) -> String {
        let lines: Vec<&str> = self.journal.iter().map(String::as_str).collect();
        lines.join("\n")
    }
}
