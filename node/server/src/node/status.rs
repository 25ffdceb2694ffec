//! How a node is: whether it serves, its metrics, its replicas.
//!
//! Owner of no state but the readiness that is told to probes and health checks.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use carillon_core::ids::ShardId;
use carillon_core::map::{META_SHARD, MergeStep, MetaState};
use carillon_proto::admin::replica_status::Role as RoleStatus;
use carillon_proto::admin::{NodeStatus, ReplicaStatus};
use carillon_proto::internal::{
    FollowerStatus, GroupStatus, ShardReplica, SilentNode, StatusResponse,
};
use carillon_raft::{Member, Role};

use super::{Node, RETRY_INTERVAL};
use crate::flush;
use crate::metrics::Observed;
use crate::peer::group::{config_to_proto, member_to_proto};
use crate::peer::snapshot::merges_to_proto;
use crate::shard::Replica;

/// A node that has not found the leaders of all its shards after this serves with those it found.
const BEGIN_LIMIT: Duration = Duration::from_secs(60);

/// Entries that a replica may lack when its node begins to serve: about what is under way at any
/// moment.
const BEHIND_ENTRIES_MAX: u64 = 256;

/// Whether a node serves that has replicas of so many shards, some of them without a leader. When
/// it begins it waits for all. Later it stays while it finds half: one that is cut off finds
/// none, and a few shards that have lost their majorities must not take the rest from people.
fn serves(shards: usize, leaderless: usize, began: bool) -> bool {
    match began {
        false => leaderless == 0,
        true => leaderless * 2 <= shards,
    }
}

/// A leader whose majority says nothing for this long is not counted as one.
const MAJORITY_SILENCE_MAX: Duration = Duration::from_secs(3);

impl Node {
    /// What this node still waits for before it serves; none when it does.
    pub fn not_ready(&self) -> Option<String> {
        if self.stopping.load(Ordering::Acquire) {
            return Some("stopping".to_owned());
        }
        let Some(cluster) = self.identity.cluster_id() else {
            return Some("waits for the initial peers to make the cluster".to_owned());
        };
        let meta = self.cluster().meta();
        if meta.map.shards.is_empty() {
            return Some(format!(
                "belongs to cluster {cluster}, waits for its shard map"
            ));
        }
        if !self.confirmed.load(Ordering::Acquire) {
            return Some("waits for the meta group to confirm the shard map".to_owned());
        }
        let shards = meta.map.shards.iter();
        let here: Vec<ShardId> = shards
            .filter(|shard| shard.replica_on(self.config.node()).is_some())
            .map(|shard| shard.shard_id)
            // Its neighbour has it, or is about to; nobody waits for a leader of it.
            .filter(|shard| !being_absorbed(&meta, *shard))
            .collect();
        let leaderless = here.iter().filter(|shard| !self.is_led(**shard));
        let leaderless: Vec<u32> = leaderless.map(|shard| shard.0).collect();
        let began = self.has_served.load(Ordering::Acquire) || self.started.elapsed() > BEGIN_LIMIT;
        if !serves(here.len(), leaderless.len(), began) {
            return Some(format!(
                "shards without a leader that has a majority: {leaderless:?}"
            ));
        }
        if self.has_served.load(Ordering::Acquire) {
            return None;
        }
        // It could serve, since leaders answer; but who takes the next node away, trusting in this
        // one, would wait until it has caught up.
        let led = here.iter().filter(|shard| !leaderless.contains(&shard.0));
        let behind: Vec<u32> = led
            .filter(|shard| self.is_behind(**shard))
            .map(|shard| shard.0)
            .collect();
        (!behind.is_empty()).then(|| format!("replicas that have to catch up: {behind:?}"))
    }

    /// Whether the replica here lacks much of what is committed.
    fn is_behind(&self, shard: ShardId) -> bool {
        let replica = self.cluster().replica(shard);
        replica.is_none_or(|replica| {
            let behind = replica.group().status().behind();
            behind.is_none_or(|entries| entries > BEHIND_ENTRIES_MAX)
        })
    }

    /// Whether a shard has a leader. One that is here counts only while a majority answers
    /// it: it keeps leading, but nothing it takes is committed. One that is elsewhere counts
    /// only while its node is linked: without a majority nobody takes its place.
    fn is_led(&self, shard: ShardId) -> bool {
        let Some(replica) = self.cluster().replica(shard) else {
            return false;
        };
        match replica.leader() {
            None => return false,
            Some(route) if route.node != self.config.node() => {
                return self.cluster().is_up(route.node);
            }
            Some(_) => {}
        }
        let status = replica.group().status();
        let answering = status
            .followers
            .iter()
            .filter(|follower| status.voters.contains(&follower.member))
            .filter(|follower| {
                follower
                    .answered_ago
                    .is_some_and(|ago| ago < MAJORITY_SILENCE_MAX)
            })
            .count();
        (answering + 1) * 2 > status.voters.len()
    }

    /// The same for probes, which must not be ahead of what gRPC health says.
    pub fn not_ready_yet(&self) -> Option<String> {
        self.not_ready()
            .or_else(|| (!*self.ready.borrow()).then(|| "about to be ready".to_owned()))
    }

    pub(super) async fn watch_ready(self: Arc<Self>) {
        let mut interval = tokio::time::interval(RETRY_INTERVAL);
        loop {
            interval.tick().await;
            let ready = self.not_ready().is_none();
            if ready {
                self.has_served.store(true, Ordering::Release);
            }
            self.ready
                .send_if_modified(|known| std::mem::replace(known, ready) != ready);
        }
    }

    /// Shards that have no leader, as far as this node knows.
    fn shards_without_leader(&self) -> u64 {
        let cluster = self.cluster();
        let meta = cluster.meta();
        let shards = meta.map.shards.iter().map(|shard| shard.shard_id);
        let has_leader = |shard: &ShardId| match cluster.replica(*shard) {
            Some(_) => self.is_led(*shard),
            // Who leads elsewhere is known as long as its node is linked.
            None => cluster.leader(*shard).is_some(),
        };
        shards.filter(|shard| !has_leader(shard)).count() as u64
    }

    /// The metrics page.
    pub fn metrics_text(&self) -> Result<String, std::fmt::Error> {
        let (log, store) = (self.log.stats(), self.store.stats());
        let replicas = self.cluster().replicas();
        let lag = |replica: &Arc<Replica>| {
            replica
                .group()
                .status()
                .followers
                .iter()
                .map(|follower| follower.lag_entries)
                .max()
                .unwrap_or(0)
        };
        let disk = self.room.disk();
        let observed = Observed {
            replicas: replicas.len() as u64,
            leaders: replicas.iter().filter(|replica| replica.leads()).count() as u64,
            nodes_up: self.cluster().nodes_up() as u64,
            operations_outstanding: self.services.router.outstanding() as u64,
            deliveries_outstanding: self.services.fanout.undelivered(),
            replication_lag_entries_max: replicas.iter().map(lag).max().unwrap_or(0),
            append_streams: self
                .links
                .all()
                .iter()
                .map(|link| link.stats().append_streams)
                .sum(),
            log_bytes: log.segments * self.config.log.segment_bytes,
            log_syncs: log.syncs,
            log_sync_microseconds: log.sync_micros,
            state_bytes: store.table_bytes,
            memtable_bytes: store.memtable_bytes,
            level0_files: store.level0_files,
            compaction_pending_bytes: store.pending_compaction_bytes,
            applies_held_back: self.flusher.held_back(),
            delayed_write_bytes_per_second: store.delayed_write_bytes_per_second,
            writes_stopped: u64::from(store.write_stopped),
            certificate_ends_at_s: self.security.certificate_ends_at_s().unwrap_or(0),
            reload_failures: self.security.reload_failures(),
            shards_without_leader: self.shards_without_leader(),
            disk_bytes: disk.bytes,
            disk_free_bytes: disk.free_bytes,
            disk_short: u64::from(!self.room.takes_commands()),
        };
        self.page.render(&observed)
    }

    /// This node and its replicas, for the admin service of any node.
    pub fn status(&self) -> StatusResponse {
        let replicas = self.cluster().replicas();
        let (log, store) = (self.log.stats(), self.store.stats());
        let disk = self.room.disk();
        let node = NodeStatus {
            node_id: self.config.node_id,
            client_address: self.config.client_address(),
            peer_address: self.config.peer_address(),
            up: true,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            replicas: replicas
                .iter()
                .filter(|replica| replica.shard() != META_SHARD)
                .count() as u32,
            leaders: replicas
                .iter()
                .filter(|replica| replica.shard() != META_SHARD && replica.leads())
                .count() as u32,
            sessions: self.services.gateway.sessions() as u32,
            state_bytes: store.table_bytes + store.memtable_bytes,
            log_bytes: log.segments * self.config.log.segment_bytes,
            draining: self.stopping.load(Ordering::Acquire),
            // Of the registry; whoever answers an operator adds them, and two more below.
            standing: 0,
            replicas_placed: 0,
            zone: String::new(),
            sends_stored: self.services.gateway.metrics().sends_stored(),
            deliveries: self.services.gateway.metrics().deliveries(),
            entries_proposed: self.services.metrics.entries_proposed(),
            run: self.run,
            disk_bytes: disk.bytes,
            disk_free_bytes: disk.free_bytes,
            silent_ms: 0,
            capacity_bytes: 0,
            cluster_version_min: self.config.supported().min.0,
            cluster_version_max: self.config.supported().max.0,
            disk_reserve_bytes: self.room.reserve_bytes(),
            disk_short: !self.room.takes_commands(),
        };
        let replicas = replicas
            .iter()
            .map(|replica| self.replica_status(replica))
            .collect();
        StatusResponse {
            node: Some(node),
            replicas,
            waits: self.steering_waits(),
            sending: self.outgoing.progress(),
            silent: {
                let silent = self.silent.lock();
                let silent = silent.iter().map(|(node, silent_ms)| SilentNode {
                    node_id: node.0,
                    silent_ms: *silent_ms,
                });
                silent.collect()
            },
        }
    }

    fn replica_status(&self, replica: &Replica) -> ShardReplica {
        let status = replica.group().status();
        let role = match status.role {
            Role::Leader => RoleStatus::Leader,
            Role::Follower => RoleStatus::Follower,
            Role::Candidate => RoleStatus::Candidate,
            Role::Learner => RoleStatus::Learner,
            Role::Stopped => RoleStatus::Unknown,
        };
        let index = |position: Option<carillon_raft::Position>| {
            position.map_or(0, |position| position.index)
        };
        ShardReplica {
            shard_id: replica.shard().0,
            group: (status.role == Role::Leader).then(|| group_status(&status)),
            merges: merges_to_proto(replica.merges()),
            kept_frozen_by: self.kept_frozen_by(replica).unwrap_or_default().0,
            status: Some(ReplicaStatus {
                node_id: self.config.node_id,
                replica_id: replica.group().me().replica.0,
                role: role.into(),
                term: status.term,
                last_log_index: status.last_log.unwrap_or(0),
                applied_index: index(status.applied),
                flushed_index: index(status.flushed),
                purged_index: index(status.purged),
                commands_per_s: replica.load_per_second(),
                state_bytes: flush::state_bytes(&self.store, replica),
            }),
        }
    }
}

/// Whether the shard's neighbour takes it over, which is not taken back any more.
fn being_absorbed(meta: &MetaState, shard: ShardId) -> bool {
    let mut merges = meta.merges.values();
    merges.any(|merge| merge.absorbed_shard_id == shard && merge.step == MergeStep::Absorbing)
}

fn group_status(status: &carillon_raft::GroupStatus) -> GroupStatus {
    let members = |members: &[Member]| members.iter().copied().map(member_to_proto).collect();
    let followers = status.followers.iter().map(|follower| FollowerStatus {
        replica_id: follower.member.replica.0,
        lag_entries: follower.lag_entries,
        answered_ms_ago: follower
            .answered_ago
            .map(|ago| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)),
    });
    GroupStatus {
        config: status.config.map(config_to_proto),
        changing: status.changing,
        voters: members(&status.voters),
        learners: members(&status.learners),
        followers: followers.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::serves;

    #[test]
    fn a_node_begins_with_all_leaders_and_goes_on_with_half() {
        // (shards, leaderless, began, serves)
        for (shards, leaderless, began, expected) in [
            (4, 0, false, true),
            (4, 1, false, false),
            (4, 1, true, true),
            (4, 2, true, true),
            (4, 3, true, false),
            (1, 1, true, false),
            (0, 0, false, true),
        ] {
            assert_eq!(
                serves(shards, leaderless, began),
                expected,
                "{leaderless} of {shards}, {began}"
            );
        }
    }
}
