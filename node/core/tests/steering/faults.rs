//! What happens to the cluster: hosts that crash, are cut off and lose their disks, and
//! operators that drain, cordon, undo, forget, add and move. Never more disks are lost than a
//! group survives: that would be a loss whatever the steering does.

use carillon_core::map::{
    META_SHARD, MergeReason, MetaCommand, MoveReason, MoveStep, Policy, PolicyChange, SplitReason,
    Standing,
};
use carillon_core::{NodeId, ShardId, Slot};

use crate::group::{Config, ReplicaKey};
use crate::world::{Host, World};

const HOSTS_MAX: usize = 14;
/// More are made by splits that run.
const SHARDS_MAX: usize = 10;

impl World {
    pub fn disturb(&mut self) {
        if self.rng.chance(5) {
            self.fault();
        }
        if self.rng.chance(6) {
            self.operate();
        }
    }

    fn fault(&mut self) {
        let at = self.rng.below(self.hosts.len() as u64) as usize;
        if self.hosts[at].gone {
            return;
        }
        match self.rng.below(11) {
            10 => {
                self.hosts[at].stopping = true;
                self.hosts[at].restart_at = self.now + 5;
            }
            0..=3 => {
                let ticks = [3, 8, 30, 60];
                let ticks = self.rng.pick(&ticks).expect("there are some");
                self.note(|| format!("host {at} crashes for {ticks}"));
                self.hosts[at].up = false;
                self.hosts[at].restart_at = self.now + ticks;
            }
            4..=6 => {
                let cut = !self.hosts[at].cut;
                self.note(|| format!("host {at} is cut off: {cut}"));
                self.hosts[at].cut = cut;
            }
            7 => {
                for host in &mut self.hosts {
                    host.cut = false;
                }
            }
            _ => self.lose_disk(at),
        }
    }

    fn lose_disk(&mut self, at: usize) {
        let Some(node) = self.hosts[at].node_id else {
            return;
        };
        if self.hosts.len() >= HOSTS_MAX || !self.survives_without(node) {
            return;
        }
        self.note(|| format!("node {node} loses its disk"));
        self.hosts[at].gone = true;
        self.hosts[at].up = false;
        if self.rng.chance(70) {
            // It comes back empty, as another node at the same address.
            let address = self.hosts[at].address.clone();
            let zone = self.hosts[at].zone.clone();
            self.new_host();
            let host = self.hosts.last_mut().expect("it was made");
            host.address = address;
            host.zone = zone;
            host.up = false;
            host.restart_at = self.now + 2 + self.rng.below(40);
        }
    }

    /// Every group has a quorum of disks without the node's.
    fn survives_without(&self, node: NodeId) -> bool {
        let remains = |shard: ShardId, replica: &ReplicaKey| {
            replica.node_id != node && self.survives(shard, replica)
        };
        let both = |shard: ShardId, committed: &Config, effective: &Config| {
            committed.quorum(|one| remains(shard, one))
                && effective.quorum(|one| remains(shard, one))
        };
        let meta = both(META_SHARD, &self.meta.committed, self.meta.effective());
        // What is under way may become the configuration at any moment.
        let mut moves = self.state.moves.values();
        let switched = moves.all(|running| {
            let shard = self.state.map.shard(running.shard_id).expect("it has one");
            let after = running
                .replicas_after(shard)
                .into_iter()
                .map(ReplicaKey::from);
            let after = Config {
                voters: after.collect(),
                ..self.groups[&running.shard_id].committed.clone()
            };
            !matches!(running.step, MoveStep::Switching { .. })
                || after.quorum(|one| remains(running.shard_id, one))
        });
        let mut groups = self.groups.iter();
        let steps = self.in_flight.iter().any(|(_, step)| {
            matches!(step, carillon_core::steering::Step::MetaChangeVoters { .. })
        });
        meta && !steps
            && switched
            && groups.all(|(shard, group)| both(*shard, &group.committed, group.effective()))
    }

    fn operate(&mut self) {
        if self.meta.leader.is_none() {
            return;
        }
        let nodes: Vec<NodeId> = self.state.standings.keys().copied().collect();
        let Some(node_id) = self.rng.pick(&nodes) else {
            return;
        };
        let at = self.timestamp();
        let forced = self.rng.chance(10);
        let set = |standing| MetaCommand::SetStanding {
            node_id,
            standing,
            forced,
            at,
        };
        let shards = self.state.map.shards.iter();
        let shards: Vec<ShardId> = shards.map(|shard| shard.shard_id).collect();
        let shard_id = self.rng.pick(&shards).expect("there are some");
        let command = match self.rng.below(19) {
            0 | 1 => set(Standing::DRAINING_FOR_REMOVAL),
            2 => set(Standing::DRAINING_FOR_RESTART),
            3 => set(Standing::Cordoned),
            4..=6 => set(Standing::Active),
            7 => MetaCommand::ForgetNode { node_id, at },
            8 => {
                if self.hosts.len() < HOSTS_MAX {
                    self.new_host();
                }
                return;
            }
            9 | 10 => {
                let from = self
                    .rng
                    .pick(&self.state.map.shard(shard_id).expect("it is").replicas);
                MetaCommand::StartMove {
                    shard_id,
                    to: Some(node_id),
                    from: from.map(|replica| replica.node_id),
                    preferred_leader: node_id,
                    reason: MoveReason::Asked,
                    epoch: self.state.map.epoch,
                    at,
                }
            }
            11 => {
                let moves: Vec<_> = self.state.moves.values().map(|one| one.move_id).collect();
                let Some(move_id) = self.rng.pick(&moves) else {
                    return;
                };
                MetaCommand::CancelMove { move_id }
            }
            13 if forced || self.host(node_id).is_some_and(|host| host.gone) => {
                MetaCommand::SetStanding {
                    node_id,
                    standing: Standing::Lost,
                    forced: true,
                    at,
                }
            }
            12 | 13 => MetaCommand::SetPreferredLeaders {
                leaders: vec![(shard_id, node_id)],
            },
            14 if shards.len() < SHARDS_MAX => {
                let shard = self.state.map.shard(shard_id).expect("it is there");
                let width = u64::from(shard.slots.last.0 - shard.slots.first.0);
                MetaCommand::StartSplit {
                    shard_id,
                    slot: Slot(shard.slots.first.0 + self.rng.below(width + 1) as u16),
                    reason: SplitReason::Asked,
                    epoch: None,
                    at,
                }
            }
            15 | 16 => MetaCommand::StartMerge {
                shard_id,
                absorbed_shard_id: match self.state.map.right_of(shard_id) {
                    Some(right) => right.shard_id,
                    None => return,
                },
                reason: MergeReason::Asked,
                epoch: None,
                at,
            },
            17 => {
                let merges: Vec<_> = self.state.merges.values().map(|one| one.merge_id).collect();
                let Some(merge_id) = self.rng.pick(&merges) else {
                    return;
                };
                MetaCommand::CancelMerge { merge_id, at }
            }
            _ => MetaCommand::SetPolicy {
                change: PolicyChange {
                    balance: Some(self.rng.chance(70)),
                    ..PolicyChange::default()
                },
                at,
            },
        };
        self.note(|| format!("an operator: {command:?}"));
        self.apply(command);
    }

    /// The faults end: hosts come back, and operators clear up what only they can.
    pub fn calm_down(&mut self) {
        self.faulty = false;
        // Operators get larger disks.
        for host in &mut self.hosts {
            host.disk_bytes = u64::MAX;
        }
        for host in &mut self.hosts {
            host.cut = false;
            host.stopping = false;
            host.restart_at = 0;
        }
        for _ in 0..10 {
            self.tick();
        }
        let at = self.timestamp();
        let policy = Policy {
            balance: true,
            lost_nodes_max: 1,
            moves_max: 3,
            ..self.state.policy.clone()
        };
        self.apply(MetaCommand::SetPolicy {
            change: policy.into(),
            at,
        });
        for (node_id, standing) in self.state.standings.clone() {
            let gone = self.host(node_id).is_none_or(|host| host.gone);
            let to = match standing {
                _ if gone => Standing::Lost,
                Standing::Cordoned | Standing::DRAINING_FOR_RESTART => Standing::Active,
                other => other,
            };
            let command = MetaCommand::SetStanding {
                node_id,
                standing: to,
                forced: true,
                at,
            };
            self.apply(command);
        }
        let active = self.state.standings.iter();
        let active = active
            .filter(|(_, standing)| **standing == Standing::Active)
            .count();
        for _ in active..self.state.replication_factor as usize {
            self.new_host();
        }
        let waiting = |host: &Host| !host.gone && host.node_id.is_none();
        for _ in 0..20 {
            if self.hosts.iter().any(waiting) {
                self.tick();
            }
        }
    }
}
