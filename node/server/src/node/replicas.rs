//! The replicas of a node: the meta group first, which knows the shard map, then the shards
//! that the map places here.
//!
//! Owner of no state: replicas are kept by the [`Cluster`](crate::cluster::Cluster).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use carillon_core::ids::{NodeId, ReplicaId, SLOTS, ShardId, Slot, SlotRange};
use carillon_core::map::{MetaCommand, MetaState, ShardDescriptor};
use carillon_log::GroupId;
use carillon_raft::{Group, Machine, Member, SnapshotSender};
use carillon_store::ShardReader;

use super::{Node, RETRY_INTERVAL, die};
use crate::meta::{META_SHARD, MetaMachine};
use crate::peer::snapshot::Sender;
use crate::shard::Replica;
use crate::shard::checksums::Checksums;
use crate::shard::machine::ShardMachine;

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

impl Node {
    pub(super) async fn start_meta(self: &Arc<Self>) -> anyhow::Result<()> {
        let state = self.store.shard(META_SHARD, META_SLOTS)?;
        let reader = state.reader();
        let machine = MetaMachine::new(self.flusher.clone(), state, self.cluster().clone())?;
        let me = meta_member(self.config.node());
        let group = self.start_group(META_SHARD, me, Box::new(machine)).await?;
        self.start_replica(group.clone(), reader, Arc::default(), Arc::default());
        if !self.identity.founders().is_empty() {
            group.initialize(&self.meta_voters()).await?;
        }
        Ok(())
    }

    fn meta_voters(&self) -> Vec<Member> {
        let mut nodes: Vec<NodeId> = self
            .config
            .initial_peers
            .iter()
            .map(|peer| NodeId(peer.node_id))
            .collect();
        nodes.sort_unstable();
        let voters = match nodes.len() {
            few @ ..3 => few,
            count => META_VOTERS_MAX.min(count - (count + 1) % 2),
        };
        nodes.into_iter().take(voters).map(meta_member).collect()
    }

    /// Founds the cluster's map, registers this node's addresses, and, while this node
    /// leads the meta group, sees to it that every node gets its log.
    pub(super) async fn keep_meta(self: Arc<Self>) {
        loop {
            let meta = self.cluster().meta();
            if meta.cluster_id.is_empty() {
                let nodes = self.identity.founders();
                if !nodes.is_empty() {
                    self.propose_meta(MetaCommand::CreateCluster {
                        cluster_id: self.identity.cluster_id().unwrap_or_default(),
                        cluster_name: self.config.cluster_name.clone(),
                        shards: self.config.cluster.shards,
                        replication_factor: self.config.cluster.replication_factor,
                        nodes,
                    })
                    .await;
                }
            } else {
                if let Some(node) = self.identity.outdated(&self.config, &meta) {
                    self.propose_meta(MetaCommand::UpdateNode { node }).await;
                }
                self.add_meta_learners(&meta).await;
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    async fn propose_meta(&self, command: MetaCommand) {
        let deadline = tokio::time::Instant::now() + TRY_TIMEOUT;
        if let Err(error) = self
            .services
            .router
            .command_to(META_SHARD, command.encode(), deadline)
            .await
        {
            tracing::debug!(%error, "the meta group did not take a command; it is tried again");
        }
    }

    async fn add_meta_learners(&self, meta: &MetaState) {
        let Some(replica) = self
            .cluster()
            .replica(META_SHARD)
            .filter(|replica| replica.leads())
        else {
            return;
        };
        let status = replica.group().status();
        for node in &meta.map.nodes {
            let member = meta_member(node.node_id);
            if status.voters.contains(&member) || status.learners.contains(&member) {
                continue;
            }
            if let Err(error) = replica.group().add_learner(member, false).await {
                tracing::debug!(node = node.node_id.0, %error, "the node is not in the meta group yet");
            }
        }
    }

    /// Starts the replicas that the map places here, as the map becomes known.
    pub(super) async fn follow_map(self: Arc<Self>) {
        let mut changes = self.cluster().watch_meta();
        loop {
            let meta = changes.borrow_and_update().clone();
            for descriptor in &meta.map.shards {
                let Some(here) = descriptor.replica_on(self.config.node()) else {
                    continue;
                };
                if self.cluster().replica(descriptor.shard_id).is_some() {
                    continue;
                }
                let me = Member {
                    replica: here.replica_id,
                    node: here.node_id,
                };
                if let Err(error) = self.start_shard(descriptor, me).await {
                    die(&format!(
                        "shard {} cannot be started: {error:#}",
                        descriptor.shard_id.0
                    ));
                }
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    async fn start_shard(
        self: &Arc<Self>,
        descriptor: &ShardDescriptor,
        me: Member,
    ) -> anyhow::Result<()> {
        let shard = descriptor.shard_id;
        let state = self.store.shard(shard, descriptor.slots)?;
        let reader = state.reader();
        let (leading, checksums) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(Checksums::default()),
        );
        let machine = ShardMachine::new(
            self.flusher.clone(),
            state,
            leading.clone(),
            self.services.fanout.clone(),
            checksums.clone(),
        );
        let group = self.start_group(shard, me, Box::new(machine)).await?;
        self.start_replica(group.clone(), reader, leading, checksums);
        let voters: Vec<Member> = descriptor
            .replicas
            .iter()
            .map(|replica| Member {
                replica: replica.replica_id,
                node: replica.node_id,
            })
            .collect();
        if descriptor.preferred_leader == me.node {
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
                tracing::warn!(shard = shard.0, %error, "the group could not be begun here");
            }
        });
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
        });
        let log = self.log.group(GroupId(shard.0));
        Ok(Group::start(shard, me, options, log, machine, self.links.clone(), sender).await?)
    }

    fn start_replica(
        self: &Arc<Self>,
        group: Group,
        reader: ShardReader,
        leading: Arc<AtomicBool>,
        checksums: Arc<Checksums>,
    ) {
        let replica = Replica::new(
            group,
            reader,
            self.services.clone(),
            self.config.raft.clone(),
            leading,
            checksums,
        );
        self.cluster().add_replica(replica.clone());
        tokio::spawn(replica.clone().run());
        let node = self.clone();
        tokio::spawn(async move {
            let reason = replica.group().stopped().await;
            if !node.stopping.load(Ordering::Acquire) {
                die(&format!("shard {}: {reason}", replica.shard().0));
            }
        });
    }
}

/// Replicas of the meta group are numbered like their nodes: each node has one for good.
fn meta_member(node: NodeId) -> Member {
    Member {
        replica: ReplicaId(node.0),
        node,
    }
}
