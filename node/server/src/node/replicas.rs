//! The replicas of a node: the meta group first, which knows the shard map, then the shards
//! that the map, or a move, places here. A replica that is named by neither any more is
//! deleted, with its log. What a split has made here (`born`) becomes a replica too. One that a
//! shard is to be made anew of gets its new number. Nothing of it is begun before the meta group has confirmed the map: who was away may have been given
//! up, and its groups begun anew by others.
//!
//! Owner of no state: replicas are kept by the [`Cluster`](crate::cluster::Cluster), what the
//! disk has by [`LocalReplicas`](super::local::LocalReplicas).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use carillon_core::ids::{NodeId, ReplicaId, SLOTS, ShardId, Slot, SlotRange};
use carillon_core::map::{
    ClusterVersion, JoinToken, META_SHARD, MetaCommand, MetaReply, MetaState, NodeInfo,
    ShardDescriptor, initial_map,
};
use carillon_core::merging::MergeMark;
use carillon_log::GroupId;
use carillon_raft::{Group, Machine, Member, SnapshotSender};
use carillon_store::{ShardReader, StoreError};

use super::local::{LocalReplica, Presence};
use super::{Node, RETRY_INTERVAL, die};
use crate::identity::random_id;
use crate::meta::MetaMachine;
use crate::peer::group::member_of;
use crate::peer::snapshot::Sender;
use crate::shard::machine::{MachineEnded, ShardMachine};
use crate::shard::{Replica, Shared, watched};

/// Voters of the meta group: as many as there are nodes, at most five, and odd from three.
const META_VOTERS_MAX: usize = 5;
/// A replica that is not to lead first begins its group when nobody else has within this.
const INITIALIZE_FALLBACK: Duration = Duration::from_secs(3);
/// One try of a command to the meta group.
const TRY_TIMEOUT: Duration = Duration::from_secs(2);

/// The meta group keeps no keys: its range is beyond the slots.
const META_SLOTS: SlotRange = SlotRange {
    first: Slot(SLOTS),
    last: Slot(SLOTS),
};

fn meta_voters(founders: &[NodeInfo]) -> Vec<Member> {
    let mut nodes: Vec<NodeId> = founders.iter().map(|node| node.node_id).collect();
    nodes.sort_unstable();
    let voters = match nodes.len() {
        few @ ..3 => few,
        count => META_VOTERS_MAX.min(count - (count + 1) % 2),
    };
    nodes.into_iter().take(voters).map(meta_member).collect()
}

impl Node {
    pub(super) async fn start_meta(self: &Arc<Self>) -> anyhow::Result<()> {
        let state = self.store.shard(META_SHARD, META_SLOTS)?;
        let reader = state.reader();
        let machine = MetaMachine::new(
            self.flusher.clone(),
            state,
            self.cluster().clone(),
            self.config.supported(),
        )?;
        let me = meta_member(self.config.node());
        let group = self.start_group(META_SHARD, me, Box::new(machine)).await?;
        self.start_replica(group.clone(), reader, Shared::default(), None);
        // As they were when the cluster was made, whatever is configured by now.
        let founders = self.identity.founders();
        if !founders.is_empty() {
            group.initialize(&meta_voters(&founders)).await?;
        }
        Ok(())
    }

    /// Founds the cluster's map, and registers what this node says of itself.
    pub(super) async fn keep_meta(self: Arc<Self>) {
        loop {
            let meta = self.cluster().meta();
            if !meta.exists() {
                if let Some(command) = self.founding() {
                    self.propose_meta(command).await;
                }
            } else if let Some(node) = self.identity.outdated(&meta) {
                self.propose_meta(MetaCommand::UpdateNode { node }).await;
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    /// The command that makes the cluster; only the node that founds it has one.
    fn founding(&self) -> Option<MetaCommand> {
        let nodes = self.identity.founders();
        if nodes.is_empty() {
            return None;
        }
        let shape = &self.config.cluster;
        let map = match initial_map(&nodes, shape.shards, shape.replication_factor) {
            Ok(map) => map,
            Err(error) => die(&format!("the cluster cannot be laid out: {error}")),
        };
        Some(MetaCommand::CreateCluster {
            cluster_id: self.identity.cluster_id().unwrap_or_default(),
            cluster_name: self.config.cluster_name.clone(),
            join_token: JoinToken(random_id()),
            replication_factor: shape.replication_factor,
            nodes: map.nodes,
            shards: map.shards,
            version: self.identity.founding_version(),
            at: crate::shard::now(),
        })
    }

    async fn propose_meta(&self, command: MetaCommand) {
        let deadline = tokio::time::Instant::now() + TRY_TIMEOUT;
        match self.services.router.meta(command, deadline).await {
            Ok(MetaReply::Refused(refusal)) => {
                tracing::warn!(%refusal, "the meta group refused a command")
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "the meta group did not take a command; it is tried again")
            }
        }
    }

    /// Starts and deletes replicas as the map and the moves say, as they become known.
    pub(super) async fn follow_map(self: Arc<Self>) {
        self.confirm_map().await;
        let mut changes = self.cluster().watch_meta();
        loop {
            let meta = changes.borrow_and_update().clone();
            if let Err(error) = self.adopt(&meta).await {
                die(&format!("what a split has made cannot be kept: {error:#}"));
            }
            if let Err(error) = self.end_absorbed().await {
                die(&format!(
                    "what a merge has left cannot be removed: {error:#}"
                ));
            }
            // Once more after something was deleted: another replica of it may be due.
            while self.follow(&meta).await {}
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = self.slots_changed.notified() => {}
            }
        }
    }

    /// Waits until this node has the map that the meta group had after this process started. On
    /// a disk without replicas there is nothing to keep from starting.
    async fn confirm_map(&self) {
        let held = self.local.all();
        if held.values().all(|local| local.presence == Presence::Gone) {
            self.confirmed.store(true, Ordering::Release);
            return;
        }
        loop {
            let meta = self.cluster().meta();
            if let Some(node) = self.identity.registered(&meta) {
                // Changes nothing, or what has to change anyhow. The answer comes from the log.
                let command = MetaCommand::UpdateNode { node };
                let deadline = tokio::time::Instant::now() + TRY_TIMEOUT;
                if let Ok(MetaReply::Updated { epoch, .. }) =
                    self.services.router.meta(command, deadline).await
                {
                    let mut known = self.cluster().watch_meta();
                    // An error only says that the node ends.
                    let _ = known.wait_for(|meta| meta.map.epoch >= epoch).await;
                    self.confirmed.store(true, Ordering::Release);
                    return;
                }
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    /// True when something was deleted.
    async fn follow(self: &Arc<Self>, meta: &MetaState) -> bool {
        let held = match self.store.merges() {
            Ok(found) => held_frozen(meta, self.config.node(), &self.local.all(), &found),
            Err(error) => die(&format!("state store: {error}")),
        };
        let duties = duties(meta, self.config.node(), &self.local.all(), &held);
        let begun = duties.iter().filter_map(|(shard, duty)| match duty {
            Duty::Run(local) | Duty::Rebuild(local) => Some((*shard, *local)),
            Duty::Hold | Duty::Delete(_) => None,
        });
        if let Err(error) = self.record(begun.collect()).await {
            die(&format!("the record of replicas cannot be kept: {error}"));
        }
        let mut deleted = false;
        for (shard, duty) in duties {
            let done = match duty {
                Duty::Run(_) if self.cluster().replica(shard).is_some() => Ok(()),
                Duty::Run(local) => self.start_shard(meta, shard, local).await,
                Duty::Rebuild(local) => self.rebuild_shard(meta, shard, local).await,
                Duty::Hold => {
                    self.hold_shard(shard).await;
                    Ok(())
                }
                Duty::Delete(local) => {
                    deleted = true;
                    self.delete_shard(shard, local).await
                }
            };
            if let Err(error) = done {
                die(&format!("shard {}: {error:#}", shard.0));
            }
        }
        deleted
    }

    /// Keeps what this disk has, off the threads that serve: it waits for the disk.
    pub(super) async fn record(
        &self,
        replicas: Vec<(ShardId, LocalReplica)>,
    ) -> anyhow::Result<()> {
        let local = self.local.clone();
        Ok(tokio::task::spawn_blocking(move || local.put(replicas)).await??)
    }

    async fn start_shard(
        self: &Arc<Self>,
        meta: &MetaState,
        shard: ShardId,
        local: LocalReplica,
    ) -> anyhow::Result<()> {
        let me = Member {
            replica: local.replica_id,
            node: self.config.node(),
        };
        let state = match self.store.shard(shard, local.slots) {
            Err(StoreError::InUse { open: other, .. } | StoreError::Taken { by: other, .. })
                if other != shard =>
            {
                // The other one has not come to its split yet. When it does, this is begun with
                // what the split leaves, or with nothing. Or it has taken this one over, and the
                // map here is yet to say so.
                tracing::info!(shard = shard.0, waits_for = other.0, "a replica waits");
                return Ok(());
            }
            opened => opened?,
        };
        let reader = state.reader();
        let shared = Shared {
            slots_changed: self.slots_changed.clone(),
            ..Shared::default()
        };
        let (machine, ended) = ShardMachine::new(
            self.flusher.clone(),
            state,
            shared.clone(),
            self.services.fanout.clone(),
        );
        let group = self.start_group(shard, me, Box::new(machine)).await?;
        // The slots here are those of today. What the log says of the time before a split would
        // not do here what it did to the others.
        if meta.cluster_version >= ClusterVersion::V2
            && local.replica_id > meta.last_founding_replica_id
        {
            group.require_snapshot();
        }
        self.start_replica(group.clone(), reader, shared, Some(ended));
        if let Some(descriptor) = meta.map.shard(shard)
            && let Some(voters) = founding_voters(meta, descriptor)
        {
            self.begin_group(group, voters, descriptor.preferred_leader == me.node)
                .await?;
            return Ok(());
        }
        if let Some(split) = meta.split_into(shard) {
            self.lead_after_split(group, split.shard_id);
        }
        Ok(())
    }

    /// Begins a group that the cluster began with.
    async fn begin_group(
        &self,
        group: Group,
        voters: Vec<Member>,
        first: bool,
    ) -> anyhow::Result<()> {
        if first {
            group.initialize(&voters).await?;
            return Ok(());
        }
        tokio::spawn(async move {
            let mut leadership = group.leadership();
            let led = leadership.wait_for(|leadership| leadership.leader.is_some());
            if tokio::time::timeout(INITIALIZE_FALLBACK, led)
                .await
                .is_err()
                && let Err(error) = group.initialize(&voters).await
            {
                tracing::warn!(shard = group.shard().0, %error, "the group could not be begun here");
            }
        });
        Ok(())
    }

    /// Stops a replica and deletes all that is of it. What a crash leaves of it is deleted at
    /// the next start. Of one whose state is its neighbour's only the log is deleted, and only
    /// once that is durable.
    pub(super) async fn delete_shard(
        &self,
        shard: ShardId,
        local: LocalReplica,
    ) -> anyhow::Result<()> {
        let presence = |presence| LocalReplica { presence, ..local };
        if !self.store.applied()?.contains_key(&shard) {
            self.leave_to_neighbour(shard).await?;
        }
        // One that was begun with nothing may have got something until it was stopped.
        let has_state = self.store.applied()?.contains_key(&shard);
        self.record(vec![(shard, presence(Presence::Leaving))])
            .await?;
        carillon_log::failpoint::hit("node.replica.leaving");
        if let Some(replica) = self.cluster().remove_replica(shard) {
            replica.retire().await;
        }
        let (log, store, kept) = (self.log.clone(), self.store.clone(), self.local.clone());
        let delete = move || -> anyhow::Result<()> {
            log.remove_group(GroupId(shard.0))?;
            carillon_log::failpoint::hit("node.replica.log_removed");
            if !has_state {
                carillon_log::failpoint::hit("node.merge.log_removed");
                return Ok(());
            }
            let mut state = store.shard(shard, local.slots)?;
            // A split may have taken slots from it just now. Once its state is gone only the
            // record says so, and a crash must not make more of it than it was.
            let narrowed = LocalReplica {
                slots: state.slots(),
                presence: Presence::Leaving,
                ..local
            };
            kept.put([(shard, narrowed)])?;
            state.clear()?;
            Ok(())
        };
        let deleted = tokio::task::spawn_blocking(delete);
        watched(shard, "its log and state", deleted).await??;
        self.flusher.expire();
        self.record(vec![(shard, presence(Presence::Gone))]).await?;
        tracing::info!(
            shard = shard.0,
            replica = local.replica_id.0,
            "a replica was deleted"
        );
        // Whoever leads it now is elsewhere.
        self.services.router.on_leader_changed(shard);
        self.services.gateway.on_leader_changed(shard);
        Ok(())
    }

    /// Makes the replica `local` of the one that was here, which stops for good: the log and the
    /// state are the new one's. Begun again after a crash.
    async fn rebuild_shard(
        self: &Arc<Self>,
        meta: &MetaState,
        shard: ShardId,
        local: LocalReplica,
    ) -> anyhow::Result<()> {
        carillon_log::failpoint::hit("node.rebuild.begun");
        if let Some(replica) = self.cluster().remove_replica(shard) {
            replica.retire().await;
        }
        let me = Member {
            replica: local.replica_id,
            node: self.config.node(),
        };
        let applied = self.store.shard(shard, local.slots)?.applied().cloned();
        let log = self.log.group(GroupId(shard.0));
        let end = carillon_raft::rebuild(shard, me, log, applied).await?;
        carillon_log::failpoint::hit("node.rebuild.log_begun");
        let live = LocalReplica {
            presence: Presence::Live,
            ..local
        };
        self.record(vec![(shard, live)]).await?;
        carillon_log::failpoint::hit("node.rebuild.recorded");
        tracing::warn!(
            shard = shard.0,
            replica = local.replica_id.0,
            index = end.index,
            term = end.term,
            "the shard is begun anew from the replica that was here"
        );
        self.start_shard(meta, shard, live).await?;
        self.services.router.on_leader_changed(shard);
        self.services.gateway.on_leader_changed(shard);
        Ok(())
    }

    async fn start_group(
        &self,
        shard: ShardId,
        me: Member,
        machine: Box<dyn Machine>,
    ) -> anyhow::Result<Group> {
        let options = self.config.raft.group_options();
        let sender: Arc<dyn SnapshotSender> = Arc::new(Sender {
            cluster: self.cluster().clone(),
            identity: self.identity.clone(),
            directory: self.snapshots.clone(),
            outgoing: self.outgoing.clone(),
        });
        let log = self.log.group(GroupId(shard.0));
        Ok(Group::start(shard, me, options, log, machine, self.links.clone(), sender).await?)
    }

    fn start_replica(
        self: &Arc<Self>,
        group: Group,
        reader: ShardReader,
        shared: Shared,
        machine_ended: Option<MachineEnded>,
    ) {
        let replica = Replica::new(
            group,
            reader,
            self.services.clone(),
            self.config.raft.clone(),
            shared,
            machine_ended,
        );
        self.cluster().add_replica(replica.clone());
        tokio::spawn(replica.clone().run());
        let node = self.clone();
        tokio::spawn(async move {
            let reason = replica.group().stopped().await;
            let ended = replica.is_retired() || replica.reader().is_absorbed();
            if !node.stopping.load(Ordering::Acquire) && !ended {
                die(&format!("shard {}: {reason}", replica.shard().0));
            }
        });
    }
}

/// What this node has to do about a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Duty {
    /// Run this replica.
    Run(LocalReplica),
    /// Make this replica of the one that is here, and run it.
    Rebuild(LocalReplica),
    /// Stop it and leave its state: it is frozen, and the one that takes it over here has yet to
    /// come to that.
    Hold,
    /// Delete it.
    Delete(LocalReplica),
}

/// Shards that the map has no more, since their neighbours have taken them over, and that are
/// still here, frozen, for a neighbour that has not come to that: what the disk has of them.
fn held_frozen(
    meta: &MetaState,
    me: NodeId,
    local: &BTreeMap<ShardId, LocalReplica>,
    found: &BTreeMap<ShardId, (SlotRange, MergeMark)>,
) -> BTreeSet<ShardId> {
    let stays = |shard: ShardId| {
        let wanted = meta.replica_for(shard, me);
        let here = local.get(&shard);
        here.is_some_and(|here| {
            here.presence == Presence::Live
                && wanted.is_some_and(|wanted| wanted.replica_id == here.replica_id)
        })
    };
    let frozen = found.iter().filter_map(|(shard, (slots, merges))| {
        let merge_id = merges.frozen_by?;
        Some((*shard, *slots, merge_id))
    });
    let held = frozen.filter(|(shard, slots, merge_id)| {
        meta.map.shard(*shard).is_none()
            && found.iter().any(|(left, (of_left, merges))| {
                of_left.joined(*slots).is_some() && merges.absorbed < *merge_id && stays(*left)
            })
    });
    held.map(|(shard, _, _)| shard).collect()
}

/// What the map, the moves and the disk demand of `me`. The map here may be older than what
/// was done because of a newer one; then what the disk has counts.
fn duties(
    meta: &MetaState,
    me: NodeId,
    local: &BTreeMap<ShardId, LocalReplica>,
    held: &BTreeSet<ShardId>,
) -> BTreeMap<ShardId, Duty> {
    let epoch = meta.map.epoch;
    let mut duties = BTreeMap::new();
    for (shard, local) in local {
        let named = meta.names_replica(*shard, local.replica_id);
        let stays = named || epoch <= local.since;
        let recovery = meta.recoveries.get(shard);
        let survivor = recovery.filter(|recovery| recovery.from.replica_id == local.replica_id);
        let duty = match (local.presence, survivor) {
            (Presence::Live, Some(recovery)) => Duty::Rebuild(LocalReplica {
                replica_id: recovery.to.replica_id,
                since: epoch,
                presence: Presence::Rebuilding,
                ..*local
            }),
            (Presence::Live, None) if stays => Duty::Run(*local),
            (Presence::Live, None) if held.contains(shard) => Duty::Hold,
            (Presence::Rebuilding, _) if stays => Duty::Rebuild(*local),
            (Presence::Live | Presence::Rebuilding | Presence::Leaving, _) => Duty::Delete(*local),
            (Presence::Gone, _) => continue,
        };
        duties.insert(*shard, duty);
    }
    for descriptor in &meta.map.shards {
        let shard = descriptor.shard_id;
        let Some(wanted) = meta.replica_for(shard, me) else {
            continue;
        };
        let newer = |local: &LocalReplica| wanted.replica_id > local.replica_id;
        // Made of what is here or of nothing.
        let recovery = meta.recoveries.get(&shard);
        if recovery.is_some_and(|recovery| recovery.to == wanted) {
            continue;
        }
        if !duties.contains_key(&shard) && local.get(&shard).is_none_or(newer) {
            let replica = LocalReplica {
                replica_id: wanted.replica_id,
                slots: descriptor.slots,
                since: epoch,
                presence: Presence::Live,
            };
            duties.insert(shard, Duty::Run(replica));
        }
    }
    duties
}

/// The voters that a group begins with; none when it has begun long ago, since a replica is
/// there that was added to it.
fn founding_voters(meta: &MetaState, descriptor: &ShardDescriptor) -> Option<Vec<Member>> {
    let last = meta.last_founding_replica_id;
    let mut replicas = descriptor.replicas.iter();
    if meta.moves.contains_key(&descriptor.shard_id)
        || replicas.any(|replica| replica.replica_id > last)
    {
        return None;
    }
    Some(descriptor.replicas.iter().map(member_of).collect())
}

/// Replicas of the meta group are numbered like their nodes: each node has one for good.
pub(super) fn meta_member(node: NodeId) -> Member {
    Member {
        replica: ReplicaId(node.0),
        node,
    }
}

#[cfg(test)]
mod tests {
    use carillon_core::ids::Epoch;
    use carillon_core::map::{
        Move, MoveId, MoveReason, MoveStep, Recovery, Replica as Placed, ShardMap, initial_map,
    };
    use carillon_core::merging::MergeId;
    use carillon_core::placement::Zone;
    use carillon_core::{TimestampMs, map::NodeInfo};

    use super::*;

    const ME: NodeId = NodeId(2);
    const SHARD: ShardId = ShardId(1);

    /// Three nodes and one shard, at this epoch.
    fn meta(epoch: u64) -> MetaState {
        let node = |id| NodeInfo {
            node_id: NodeId(id),
            identity: format!("{id}"),
            client_address: String::new(),
            peer_address: String::new(),
            zone: Zone::default(),
            weight: 1,
            capacity_bytes: u64::MAX,
        };
        let map = initial_map(&[node(1), node(2), node(3)], 1, 3).expect("a map");
        MetaState {
            last_founding_replica_id: ReplicaId(3),
            map: ShardMap {
                epoch: Epoch(epoch),
                ..map
            },
            ..MetaState::default()
        }
    }

    fn mine(meta: &MetaState) -> ReplicaId {
        let shard = meta.map.shard(SHARD).expect("it exists");
        shard.replica_on(ME).expect("it is placed here").replica_id
    }

    /// The shard's replica here has another number; none for zero.
    fn with_replica(epoch: u64, id: u64) -> MetaState {
        let mut meta = meta(epoch);
        let replicas = &mut meta.map.shards[0].replicas;
        replicas.retain(|replica| replica.node_id != ME);
        if id > 0 {
            replicas.push(Placed {
                replica_id: ReplicaId(id),
                node_id: ME,
            });
        }
        meta
    }

    fn local(id: u64, since: u64, presence: Presence) -> BTreeMap<ShardId, LocalReplica> {
        let replica = LocalReplica {
            replica_id: ReplicaId(id),
            slots: SlotRange::ALL,
            since: Epoch(since),
            presence,
        };
        [(SHARD, replica)].into()
    }

    fn duty(meta: &MetaState, local: &BTreeMap<ShardId, LocalReplica>) -> Option<(char, u64)> {
        duty_holding(meta, local, &BTreeSet::new())
    }

    fn duty_holding(
        meta: &MetaState,
        local: &BTreeMap<ShardId, LocalReplica>,
        held: &BTreeSet<ShardId>,
    ) -> Option<(char, u64)> {
        let duty = duties(meta, ME, local, held).remove(&SHARD)?;
        Some(match duty {
            Duty::Hold => ('h', 0),
            Duty::Run(replica) => ('r', replica.replica_id.0),
            Duty::Rebuild(replica) => ('b', replica.replica_id.0),
            Duty::Delete(replica) => ('d', replica.replica_id.0),
        })
    }

    #[test]
    fn what_is_placed_here_runs_and_what_is_not_goes() {
        let first = meta(1);
        let id = mine(&first).0;
        assert_eq!(duty(&first, &BTreeMap::new()), Some(('r', id)));
        assert_eq!(duty(&first, &local(id, 1, Presence::Live)), Some(('r', id)));
        let away = with_replica(9, 0);
        assert_eq!(duty(&away, &BTreeMap::new()), None);
        assert_eq!(duty(&away, &local(id, 1, Presence::Live)), Some(('d', id)));
        assert_eq!(
            duty(&away, &local(id, 1, Presence::Leaving)),
            Some(('d', id))
        );
        assert_eq!(duty(&away, &local(id, 1, Presence::Gone)), None);
        // It came back meanwhile: first the old one goes, then the new one comes.
        let back = with_replica(9, 40);
        assert_eq!(duty(&back, &local(id, 1, Presence::Live)), Some(('d', id)));
        assert_eq!(duty(&back, &local(id, 1, Presence::Gone)), Some(('r', 40)));
    }

    #[test]
    fn a_map_older_than_the_disk_deletes_and_starts_nothing() {
        // Added at epoch 9, then a crash; the map found after it is of epoch 8 and knows nothing.
        let before = with_replica(8, 0);
        assert_eq!(
            duty(&before, &local(40, 9, Presence::Live)),
            Some(('r', 40))
        );
        assert_eq!(
            duty(&with_replica(10, 0), &local(40, 9, Presence::Live)),
            Some(('d', 40))
        );
        // Deleted, then a crash; the map found after it still wants it, or one before it.
        for id in [2, 40] {
            let wants = with_replica(8, id);
            assert_eq!(duty(&wants, &local(40, 7, Presence::Gone)), None);
            assert_eq!(
                duty(&wants, &local(40, 7, Presence::Leaving)),
                Some(('d', 40))
            );
        }
    }

    #[test]
    fn the_replica_that_is_left_gets_its_new_number_and_only_that_runs() {
        let mut meta = with_replica(9, 40);
        let from = Placed {
            replica_id: ReplicaId(2),
            node_id: ME,
        };
        let to = Placed {
            replica_id: ReplicaId(40),
            ..from
        };
        let recovery = Recovery {
            shard_id: SHARD,
            from,
            to,
            others: Vec::new(),
            started_at: TimestampMs(1),
        };
        meta.recoveries.insert(SHARD, recovery);
        assert_eq!(duty(&meta, &local(2, 1, Presence::Live)), Some(('b', 40)));
        // Begun, then a crash; the map found after it is as old as the one before, or newer.
        let begun = local(40, 9, Presence::Rebuilding);
        for epoch in [8, 9] {
            let found = with_replica(epoch, 2);
            assert_eq!(duty(&found, &begun), Some(('b', 40)), "epoch {epoch}");
        }
        assert_eq!(duty(&meta, &begun), Some(('b', 40)));
        assert_eq!(duty(&meta, &local(40, 9, Presence::Live)), Some(('r', 40)));
        // It is never made of nothing, nor of what was deleted.
        assert_eq!(duty(&meta, &BTreeMap::new()), None);
        assert_eq!(duty(&meta, &local(2, 1, Presence::Gone)), None);
        assert_eq!(duty(&meta, &local(2, 1, Presence::Leaving)), Some(('d', 2)));
        // Given up while it was made.
        let away = with_replica(10, 0);
        assert_eq!(duty(&away, &begun), Some(('d', 40)));
    }

    #[test]
    fn what_is_frozen_stays_until_the_neighbour_here_has_it() {
        let (before, after) = SlotRange::ALL.split(Slot(100)).expect("two parts");
        let (left, right) = (SHARD, ShardId(2));
        // The map has one shard: it took the other one over.
        let meta = meta(9);
        let id = mine(&meta);
        let here = |replica_id, slots, presence| LocalReplica {
            replica_id,
            slots,
            since: Epoch(1),
            presence,
        };
        let local: BTreeMap<ShardId, LocalReplica> = [
            (left, here(id, before, Presence::Live)),
            (right, here(ReplicaId(70), after, Presence::Live)),
        ]
        .into();
        let mark = |frozen_by: u64, absorbed| MergeMark {
            frozen_by: (frozen_by > 0).then_some(MergeId(frozen_by)),
            seen: MergeId(frozen_by),
            absorbed: MergeId(absorbed),
        };
        let found = |of_left: MergeMark, of_right: MergeMark| -> BTreeMap<_, _> {
            [(left, (before, of_left)), (right, (after, of_right))].into()
        };
        let held = |meta: &MetaState, local: &BTreeMap<_, _>, found: &BTreeMap<_, _>| {
            !held_frozen(meta, ME, local, found).is_empty()
        };
        let frozen = found(mark(0, 4), mark(5, 0));
        assert!(held(&meta, &local, &frozen));
        let holding = duties(&meta, ME, &local, &[right].into());
        assert_eq!(holding[&right], Duty::Hold);
        assert!(matches!(holding[&left], Duty::Run(_)));
        // It was thawed; the neighbour is past that merge; it is no neighbour.
        assert!(!held(&meta, &local, &found(mark(0, 4), mark(0, 0))));
        assert!(!held(&meta, &local, &found(mark(0, 5), mark(5, 0))));
        let apart = [
            (left, (before, mark(0, 0))),
            (
                right,
                (
                    SlotRange {
                        first: Slot(101),
                        ..after
                    },
                    mark(5, 0),
                ),
            ),
        ];
        assert!(!held(&meta, &local, &apart.into()));
        // The neighbour here is another replica than the map's, or goes.
        let mut other = local.clone();
        other.insert(left, here(ReplicaId(id.0 + 90), before, Presence::Live));
        assert!(!held(&meta, &other, &frozen));
        other.insert(left, here(id, before, Presence::Leaving));
        assert!(!held(&meta, &other, &frozen));
        // The map has it: it is as with any other.
        let mut both = meta.clone();
        let shard = ShardDescriptor {
            shard_id: right,
            ..both.map.shards[0].clone()
        };
        both.map.shards.push(shard);
        assert!(!held(&both, &local, &frozen));
        assert_eq!(
            duty_holding(&with_replica(9, 0), &local, &BTreeSet::new()),
            Some(('d', id.0))
        );
    }

    #[test]
    fn only_groups_of_the_first_day_are_begun() {
        let mut meta = meta(1);
        let voters = founding_voters(&meta, &meta.map.shards[0]).expect("a first group");
        assert_eq!(voters.len(), 3);
        let new = Placed {
            replica_id: ReplicaId(4),
            node_id: NodeId(4),
        };
        let running = Move {
            move_id: MoveId(1),
            shard_id: SHARD,
            add: Some(new),
            remove: None,
            preferred_leader: NodeId(1),
            step: MoveStep::CatchingUp,
            reason: MoveReason::Balance,
            started_at: TimestampMs(1),
        };
        meta.moves.insert(SHARD, running);
        assert_eq!(
            founding_voters(&meta, &meta.map.shards[0]),
            None,
            "it moves"
        );
        meta.moves.clear();
        meta.map.shards[0].replicas[1] = new;
        assert_eq!(
            founding_voters(&meta, &meta.map.shards[0]),
            None,
            "it has moved"
        );
    }
}
