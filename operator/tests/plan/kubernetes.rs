//! Kubernetes as far as the operator sees it: hosts, claims, Pods, and the time that all takes.

use std::collections::BTreeMap;

use carillon_operator::plan::{self, HostName, MemberName, NodeId, Revision, Start, Uid};

use crate::world::World;

/// A host that is silent for longer has its Pods evicted.
const EVICTED_AFTER_S: u64 = 8;
/// And is seen as not ready after this.
const NOT_READY_AFTER_S: u64 = 2;

pub struct Host {
    pub up: bool,
    pub down_since_s: u64,
}

pub struct Claim {
    pub uid: Uid,
    pub requested_bytes: u64,
    pub capacity_bytes: Option<u64>,
    pub terminating: bool,
    pub released: bool,
    pub mark: Option<NodeId>,
    pub cluster: Option<String>,
    /// Where the volume is, if it cannot be anywhere else.
    pub pinned: Option<HostName>,
    /// The identity that is on the disk.
    pub data: Option<NodeId>,
}

pub struct Pod {
    pub uid: Uid,
    pub revision: Revision,
    pub start: Start,
    pub host: Option<HostName>,
    /// When a Pod that is being deleted is gone, on a host that works.
    pub gone_at_s: Option<u64>,
    pub ended: bool,
    /// When its container may run.
    pub starts_at_s: u64,
    pub running: bool,
    pub ready_at_s: u64,
    pub ready_since_s: Option<u64>,
    pub restarts: u32,
    pub trouble: Option<String>,
}

impl World {
    pub fn uid(&mut self) -> Uid {
        self.uids += 1;
        Uid(format!("uid-{}", self.uids))
    }

    pub fn host_up(&self, name: Option<&HostName>) -> bool {
        name.and_then(|name| self.hosts.get(name))
            .is_some_and(|host| host.up)
    }

    pub fn tick_kubernetes(&mut self) {
        self.end_claims();
        let names: Vec<MemberName> = self.pods.keys().cloned().collect();
        for name in names {
            self.tick_pod(&name);
        }
        for claim in self.claims.values_mut() {
            let bound = claim.capacity_bytes.is_some();
            if bound && self.rng.chance(50) {
                claim.capacity_bytes = Some(claim.requested_bytes);
            }
        }
    }

    /// A claim that is deleted goes once no Pod uses it.
    fn end_claims(&mut self) {
        let gone: Vec<MemberName> = self
            .claims
            .iter()
            .filter(|(name, claim)| claim.terminating && !self.pods.contains_key(*name))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            self.note(format!("volume of {name} is gone"));
            self.claims.remove(&name);
        }
    }

    fn tick_pod(&mut self, name: &MemberName) {
        let now_s = self.now_s;
        let Some(mut pod) = self.pods.remove(name) else {
            return;
        };
        let host_known = pod
            .host
            .as_ref()
            .is_none_or(|host| self.hosts.contains_key(host));
        let host_up = pod.host.is_none() || self.host_up(pod.host.as_ref());
        if !host_known {
            // The garbage collector takes Pods of hosts that are no more, in its time.
            if self.rng.chance(15) {
                return;
            }
            pod.running = false;
            pod.ready_since_s = None;
        } else if !host_up {
            pod.running = false;
            let down_s = now_s - self.hosts[pod.host.as_ref().expect("it is known")].down_since_s;
            if down_s >= NOT_READY_AFTER_S {
                pod.ready_since_s = None;
            }
            if down_s >= EVICTED_AFTER_S && pod.gone_at_s.is_none() {
                pod.gone_at_s = Some(now_s);
            }
        } else if pod.gone_at_s.is_some_and(|at| at <= now_s) {
            return;
        } else {
            self.run_pod(name, &mut pod);
        }
        self.pods.insert(name.clone(), pod);
    }

    fn run_pod(&mut self, name: &MemberName, pod: &mut Pod) {
        if pod.ended {
            pod.running = false;
            pod.ready_since_s = None;
            return;
        }
        if pod.host.is_none() && pod.gone_at_s.is_none() {
            self.schedule(name, pod);
        }
        if pod.host.is_none() {
            return;
        }
        let now_s = self.now_s;
        if !pod.running && pod.gone_at_s.is_none() && now_s >= pod.starts_at_s {
            match self.start_process(name, pod) {
                Ok(()) => {
                    pod.running = true;
                    pod.trouble = None;
                    pod.ready_at_s = now_s + 1 + self.rng.below(4);
                }
                Err(trouble) => {
                    // One that asks to join goes on asking, any other one ends and is started
                    // again.
                    pod.restarts += u32::from(pod.start != Start::Join);
                    pod.trouble = Some(trouble);
                }
            }
        }
        let serves = pod.running && now_s >= pod.ready_at_s && self.cluster.made;
        if !serves {
            pod.ready_since_s = None;
        } else if pod.ready_since_s.is_none() {
            pod.ready_since_s = Some(now_s);
        }
    }

    fn schedule(&mut self, name: &MemberName, pod: &mut Pod) {
        let pinned = match self.claims.get(name) {
            None => {
                pod.trouble = Some("its claim does not exist".to_owned());
                return;
            }
            Some(claim) if claim.terminating => {
                pod.trouble = Some("its claim is being deleted".to_owned());
                return;
            }
            Some(claim) => claim.pinned.clone(),
        };
        let up: Vec<HostName> = self
            .hosts
            .iter()
            .filter(|(_, host)| host.up)
            .map(|(name, _)| name.clone())
            .filter(|name| pinned.as_ref().is_none_or(|pinned| pinned == name))
            .collect();
        if up.is_empty() {
            pod.trouble = Some("no Kubernetes node has its volume".to_owned());
            return;
        }
        let host = up[self.rng.below(up.len() as u64) as usize].clone();
        pod.starts_at_s = self.now_s + 1 + self.rng.below(3);
        pod.trouble = None;
        let local = self.local_volumes;
        if let Some(claim) = self.claims.get_mut(name) {
            claim.capacity_bytes.get_or_insert(claim.requested_bytes);
            if local {
                claim.pinned.get_or_insert(host.clone());
            }
        }
        pod.host = Some(host);
    }

    pub fn hosts_seen(&self) -> BTreeMap<HostName, plan::Host> {
        let seen = self.hosts.iter().map(|(name, host)| {
            let silent_s = self.now_s - host.down_since_s;
            let seen = plan::Host {
                ready: host.up || silent_s < NOT_READY_AFTER_S,
                out_of_service: false,
            };
            (name.clone(), seen)
        });
        seen.collect()
    }

    pub fn claims_seen(&self) -> BTreeMap<MemberName, plan::Claim> {
        let seen = self.claims.iter().map(|(name, claim)| {
            let seen = plan::Claim {
                uid: claim.uid.clone(),
                requested_bytes: claim.requested_bytes,
                capacity_bytes: claim.capacity_bytes,
                terminating: claim.terminating,
                released: claim.released,
                node: claim.mark,
                host: claim.pinned.clone(),
            };
            (name.clone(), seen)
        });
        seen.collect()
    }

    pub fn pods_seen(&self) -> BTreeMap<MemberName, plan::Pod> {
        let seen = self.pods.iter().map(|(name, pod)| {
            let seen = plan::Pod {
                uid: pod.uid.clone(),
                revision: pod.revision.clone(),
                host: pod.host.clone(),
                terminating: pod.gone_at_s.is_some(),
                founds: matches!(pod.start, Start::Found { .. }),
                ended: pod.ended,
                started: pod.running,
                ready_since_s: pod.ready_since_s,
                restarts: pod.restarts,
                trouble: pod.trouble.clone(),
            };
            (name.clone(), seen)
        });
        seen.collect()
    }
}
