//! What a test asks a cluster as its operator.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use carillon_proto::ACTOR_METADATA_KEY;
use carillon_proto::admin::{
    CancelMergeRequest, ChecksumShardRequest, Event, FinalizeUpgradeRequest, ForgetNodeRequest,
    GetClusterRequest, GetClusterResponse, GetDrainRequest, GetDrainResponse, GetJoinTokenRequest,
    GetPolicyRequest, GetRecoveryRequest, GetRecoveryResponse, ListEventsRequest, ListMovesRequest,
    ListNodesRequest, ListShardsRequest, Merge, MergeShardsRequest, NodeStatus, Policy,
    RecoverShardRequest, RestartNodeRequest, SetPolicyRequest, SetStandingRequest, ShardStatus,
    SplitShardRequest, Standing, TransferLeaderRequest, TriggerSnapshotRequest,
    replica_status::Role,
};
use tokio::time::{Instant, sleep};
use tonic::metadata::MetadataValue;
use tonic::transport::Endpoint;

use super::{Cluster, POLL_INTERVAL, http_get};
use crate::rpc::{self, Admin};

/// Who asks.
const ACTOR: &str = "the tests";
/// How long one question may take.
const QUESTION_LIMIT: Duration = Duration::from_secs(10);
/// How long a leader transfer may take, with retries.
const TRANSFER_LIMIT: Duration = Duration::from_secs(15);
/// How long a purge that was triggered may take.
const PURGE_LIMIT: Duration = Duration::from_secs(5);
/// How long a checksum of one shard may take.
const CHECKSUM_LIMIT: Duration = Duration::from_secs(20);
/// For one page of metrics.
const METRICS_LIMIT: Duration = Duration::from_secs(2);

/// How a merge has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeEnd {
    /// One shard is left.
    Merged,
    /// Both are as before.
    Cancelled,
}

impl Cluster {
    /// The admin client of one node.
    pub fn admin_of(&self, id: u64) -> Result<Admin> {
        let address = &self.node(id).addresses().client;
        match &self.options.secured {
            None => rpc::admin(address),
            Some(secured) => {
                let endpoint = Endpoint::from_shared(format!("https://{address}"))?
                    .tls_config(secured.tls())?
                    .connect_timeout(rpc::CONNECT_LIMIT);
                Ok(Admin::new(endpoint.connect_lazy()))
            }
        }
    }

    /// The admin client of any node that is up.
    pub fn admin(&self) -> Result<Admin> {
        let up = self.up_ids();
        self.admin_of(*up.first().context("no node is up")?)
    }

    /// The cluster as one node sees it.
    pub async fn overview(&self, id: u64) -> Result<GetClusterResponse> {
        let mut admin = self.admin_of(id)?;
        let answer = admin.get_cluster(rpc::within(GetClusterRequest {}, QUESTION_LIMIT));
        Ok(answer.await?.into_inner())
    }

    /// Waits until every node that runs sees all running nodes and a leader of each shard.
    pub async fn wait_all_led(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let up = self.up_ids();
        let mut last = String::new();
        while Instant::now() < deadline {
            let mut missing = None;
            for id in &up {
                match self.overview(*id).await {
                    Ok(seen)
                        if seen.shards > 0
                            && seen.shards_led == seen.shards
                            && seen.meta_leader_node != 0
                            && seen.nodes_up as usize == up.len() => {}
                    Ok(seen) => missing = Some(format!("node {id} sees {seen:?}")),
                    Err(error) => missing = Some(format!("node {id}: {error:#}")),
                }
            }
            match missing {
                None => return Ok(()),
                Some(text) => last = text,
            }
            sleep(POLL_INTERVAL).await;
        }
        bail!("not all shards have a leader after {limit:?}: {last}")
    }

    /// The shards, the meta group among them.
    pub async fn shards(&self) -> Result<Vec<ShardStatus>> {
        let up = self.up_ids();
        self.shards_as_seen_by(*up.first().context("no node is up")?)
            .await
    }

    /// The shards as one node sees them.
    pub async fn shards_as_seen_by(&self, id: u64) -> Result<Vec<ShardStatus>> {
        let mut admin = self.admin_of(id)?;
        let request = rpc::within(ListShardsRequest { shard_id: None }, QUESTION_LIMIT);
        Ok(admin.list_shards(request).await?.into_inner().shards)
    }

    /// What a new node must know.
    pub async fn join_token(&self) -> Result<String> {
        let mut admin = self.admin()?;
        let answer = admin.get_join_token(rpc::within(GetJoinTokenRequest {}, QUESTION_LIMIT));
        Ok(answer.await?.into_inner().join_token)
    }

    /// What is left of a shard that lost its majority.
    pub async fn recovery(&self, shard_id: u32) -> Result<GetRecoveryResponse> {
        let mut admin = self.admin()?;
        let request = rpc::within(GetRecoveryRequest { shard_id }, QUESTION_LIMIT);
        Ok(admin.get_recovery(request).await?.into_inner())
    }

    /// Makes a shard anew from the replica that is left.
    pub async fn recover(&self, shard_id: u32) -> Result<()> {
        let recovery = self.recovery(shard_id).await?;
        if !recovery.hindrances.is_empty() {
            bail!("{}", recovery.hindrances.join("; "));
        }
        let request = RecoverShardRequest {
            shard_id,
            survivor_replica_id: recovery.survivor_replica_id,
            confirmation: recovery.confirmation,
        };
        let mut request = rpc::within(request, QUESTION_LIMIT);
        let name = MetadataValue::from_static(ACTOR);
        request.metadata_mut().insert(ACTOR_METADATA_KEY, name);
        let mut admin = self.admin()?;
        admin.recover_shard(request).await?;
        Ok(())
    }

    /// What happened, the oldest first.
    pub async fn events(&self) -> Result<Vec<Event>> {
        let mut admin = self.admin()?;
        let request = rpc::within(ListEventsRequest {}, QUESTION_LIMIT);
        Ok(admin.list_events(request).await?.into_inner().events)
    }

    /// Says that a node is lost, whatever that breaks.
    pub async fn give_up(&self, node_id: u64) -> Result<()> {
        self.say_standing(node_id, Standing::Lost, true).await
    }

    /// Says what a node may be used for.
    pub async fn set_standing(&self, node_id: u64, standing: Standing) -> Result<()> {
        self.say_standing(node_id, standing, false).await
    }

    async fn say_standing(&self, node_id: u64, standing: Standing, forced: bool) -> Result<()> {
        let request = SetStandingRequest {
            node_id,
            standing: standing.into(),
            forced,
        };
        let mut admin = self.admin()?;
        admin
            .set_standing(rpc::within(request, QUESTION_LIMIT))
            .await?;
        Ok(())
    }

    /// Begins to split a shard in the middle; the number of the one that it makes.
    pub async fn split(&self, shard_id: u32) -> Result<u32> {
        let mut admin = self.admin()?;
        let request = SplitShardRequest {
            shard_id,
            slot: None,
        };
        let answer = admin.split_shard(rpc::within(request, QUESTION_LIMIT));
        Ok(answer.await?.into_inner().new_shard_id)
    }

    /// Waits until nothing is being split any more, and each shard has a leader.
    pub async fn wait_split(&self, shards: usize, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let known = self.shards().await?;
            let led = known.iter().filter(|shard| shard.leader_node != 0).count();
            // And the meta group.
            if known.len() == shards + 1 && led == known.len() && self.no_splits().await? {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("{led} of {shards} shards are led after {limit:?}: {known:?}");
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Whether no shard is being split.
    pub async fn no_splits(&self) -> Result<bool> {
        let mut admin = self.admin()?;
        let moves = admin.list_moves(rpc::within(ListMovesRequest {}, QUESTION_LIMIT));
        Ok(moves.await?.into_inner().splits.is_empty())
    }

    /// Begins to merge a shard with its right neighbour; the number of the neighbour.
    pub async fn merge(&self, shard_id: u32) -> Result<u32> {
        let mut admin = self.admin()?;
        let request = MergeShardsRequest { shard_id };
        let answer = admin.merge_shards(rpc::within(request, QUESTION_LIMIT));
        Ok(answer.await?.into_inner().absorbed_shard_id)
    }

    /// Gives up a merge.
    pub async fn cancel_merge(&self, shard_id: u32) -> Result<bool> {
        let mut admin = self.admin()?;
        let request = CancelMergeRequest { shard_id };
        let answer = admin.cancel_merge(rpc::within(request, QUESTION_LIMIT));
        Ok(answer.await?.into_inner().changed)
    }

    /// Waits until a merge of a shard has ended, each shard has a leader, and says how it ended.
    pub async fn wait_merge(
        &self,
        shard_id: u32,
        absorbed_shard_id: u32,
        limit: Duration,
    ) -> Result<MergeEnd> {
        self.wait_no_merges(limit).await?;
        let shards = self.wait_each_led(limit).await?;
        let is_there = |id: u32| shards.iter().any(|shard| shard.shard_id == id);
        ensure!(is_there(shard_id), "shard {shard_id} is gone: {shards:?}");
        Ok(match is_there(absorbed_shard_id) {
            true => MergeEnd::Cancelled,
            false => MergeEnd::Merged,
        })
    }

    /// Waits until each shard that there is has a leader; the shards.
    pub async fn wait_each_led(&self, limit: Duration) -> Result<Vec<ShardStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            let shards = self.shards().await?;
            if shards.iter().all(|shard| shard.leader_node != 0) {
                return Ok(shards);
            }
            if Instant::now() >= deadline {
                bail!("not all shards are led after {limit:?}: {shards:?}");
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits until no shards are being merged.
    pub async fn wait_no_merges(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let last = match self.merges().await {
                Ok(merges) if merges.is_empty() => return Ok(()),
                Ok(merges) => format!("{merges:?}"),
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() >= deadline {
                bail!("merges run after {limit:?}: {last}");
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    async fn merges(&self) -> Result<Vec<Merge>> {
        let mut admin = self.admin()?;
        let moves = admin.list_moves(rpc::within(ListMovesRequest {}, QUESTION_LIMIT));
        Ok(moves.await?.into_inner().merges)
    }

    /// The node that leads the meta group, once there is one.
    pub async fn meta_leader(&self, limit: Duration) -> Result<u64> {
        let deadline = Instant::now() + limit;
        loop {
            let shards = self.shards().await?;
            let meta = shards.iter().find(|shard| shard.shard_id == 0);
            match meta.map_or(0, |meta| meta.leader_node) {
                0 => ensure!(Instant::now() < deadline, "the meta group has no leader"),
                leader => return Ok(leader),
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// The policy of the cluster, as one node tells it.
    pub async fn policy_as_told_by(&self, id: u64) -> Result<Policy> {
        let mut admin = self.admin_of(id)?;
        let answer = admin.get_policy(rpc::within(GetPolicyRequest {}, QUESTION_LIMIT));
        answer.await?.into_inner().policy.context("no policy")
    }

    /// Changes the policy of the cluster.
    pub async fn set_policy(&self, change: SetPolicyRequest) -> Result<()> {
        let mut admin = self.admin()?;
        admin
            .set_policy(rpc::within(change, QUESTION_LIMIT))
            .await?;
        Ok(())
    }

    /// Takes the cluster to its next version, which this node knows; whether it went there.
    pub async fn finalize_upgrade(&self, id: u64) -> Result<bool> {
        let mut admin = self.admin_of(id)?;
        let mut request = rpc::within(FinalizeUpgradeRequest {}, QUESTION_LIMIT);
        let name = MetadataValue::from_static(ACTOR);
        request.metadata_mut().insert(ACTOR_METADATA_KEY, name);
        Ok(admin.finalize_upgrade(request).await?.into_inner().changed)
    }

    /// Takes a node out of the cluster for ever.
    pub async fn forget(&self, node_id: u64) -> Result<()> {
        let mut admin = self.admin()?;
        let request = ForgetNodeRequest { node_id };
        admin
            .forget_node(rpc::within(request, QUESTION_LIMIT))
            .await?;
        Ok(())
    }

    /// How far the drain of a node is, and what it would break to stop it.
    async fn drain(&self, node_id: u64) -> Result<GetDrainResponse> {
        let request = GetDrainRequest {
            node_id,
            purpose: Standing::DrainingForRestart.into(),
        };
        let mut admin = self.admin()?;
        let answer = admin.get_drain(rpc::within(request, QUESTION_LIMIT));
        Ok(answer.await?.into_inner())
    }

    /// Waits until a node that is being drained may stop.
    pub async fn wait_drained(&self, node_id: u64, limit: Duration) -> Result<()> {
        self.wait_drain(node_id, limit, |drain| drain.done).await
    }

    /// Waits until a drain has moved this many replicas of a node, or more.
    pub async fn wait_moved(&self, node_id: u64, moved: u32, limit: Duration) -> Result<()> {
        let before = self.drain(node_id).await?.replicas_left;
        self.wait_drain(node_id, limit, |drain| {
            drain.replicas_left + moved <= before
        })
        .await
    }

    /// Waits until the cluster has noticed that a node is away: no other may stop then.
    pub async fn wait_silent(&self, node_id: u64, limit: Duration) -> Result<()> {
        let other = self.up_ids().into_iter().find(|id| *id != node_id);
        let other = other.context("no other node is up")?;
        self.wait_drain(other, limit, |drain| !drain.dangers.is_empty())
            .await
    }

    async fn wait_drain(
        &self,
        node_id: u64,
        limit: Duration,
        until: impl Fn(&GetDrainResponse) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let last = match self.drain(node_id).await {
                Ok(drain) if until(&drain) => return Ok(()),
                Ok(drain) => format!("{drain:?}"),
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() >= deadline {
                bail!("the drain of node {node_id} after {limit:?}: {last}");
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Whether no replica is on its way.
    pub async fn no_moves(&self) -> Result<bool> {
        let mut admin = self.admin()?;
        let moves = admin.list_moves(rpc::within(ListMovesRequest {}, QUESTION_LIMIT));
        Ok(moves.await?.into_inner().moves.is_empty())
    }

    /// Waits until a replica is on its way to a node.
    pub async fn wait_move_to(&self, node_id: u64, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let mut admin = self.admin()?;
            let moves = admin.list_moves(rpc::within(ListMovesRequest {}, QUESTION_LIMIT));
            let moves = moves.await?.into_inner().moves;
            if moves.iter().any(|running| running.to_node == node_id) {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "nothing moves to node {node_id} within {limit:?}"
            );
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits until no replica is on its way.
    pub async fn wait_no_moves(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !self.no_moves().await? {
            ensure!(Instant::now() < deadline, "moves run after {limit:?}");
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Waits until no replica is on its way, and a node has this many of them, on the map and
    /// on its disk.
    pub async fn wait_placed(
        &self,
        node_id: u64,
        wanted: std::ops::RangeInclusive<u32>,
        limit: Duration,
    ) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let mut admin = self.admin()?;
            let moves = admin.list_moves(rpc::within(ListMovesRequest {}, QUESTION_LIMIT));
            let moves = moves.await?.into_inner();
            let nodes = admin.list_nodes(rpc::within(ListNodesRequest {}, QUESTION_LIMIT));
            let nodes = nodes.await?.into_inner().nodes;
            let node = nodes.iter().find(|node| node.node_id == node_id);
            let node = node.with_context(|| format!("node {node_id} is not registered"))?;
            if moves.moves.is_empty()
                && wanted.contains(&node.replicas_placed)
                && (!node.up || node.replicas == node.replicas_placed)
            {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!(
                    "node {node_id} has {} of {wanted:?} replicas after {limit:?}: {moves:?}",
                    node.replicas_placed
                );
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// How a node is.
    pub async fn node_status(&self, node_id: u64) -> Result<NodeStatus> {
        let mut admin = self.admin()?;
        let nodes = admin.list_nodes(rpc::within(ListNodesRequest {}, QUESTION_LIMIT));
        let nodes = nodes.await?.into_inner().nodes;
        let node = nodes.into_iter().find(|node| node.node_id == node_id);
        node.with_context(|| format!("node {node_id}"))
    }

    /// Asks a node's process to stop in order and to be started again; another process of the
    /// node than the one that is meant does nothing.
    pub async fn ask_to_restart(&self, node_id: u64, run: u64) -> Result<()> {
        let mut admin = self.admin()?;
        let request = RestartNodeRequest { node_id, run };
        admin
            .restart_node(rpc::within(request, QUESTION_LIMIT))
            .await?;
        Ok(())
    }

    /// Waits until each shard is led by the node that is to lead it.
    pub async fn wait_led_as_preferred(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let shards = self.shards().await?;
            let elsewhere: Vec<String> = shards
                .iter()
                .filter(|shard| shard.shard_id != 0)
                .filter(|shard| shard.leader_node != shard.preferred_leader_node)
                .map(|shard| {
                    let (led, preferred) = (shard.leader_node, shard.preferred_leader_node);
                    format!("shard {} by {led}, not {preferred}", shard.shard_id)
                })
                .collect();
            if elsewhere.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("led by others after {limit:?}: {}", elsewhere.join("; "));
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// How many shards each node leads, the meta group among them.
    pub async fn leader_counts(&self) -> Result<BTreeMap<u64, usize>> {
        let mut counts: BTreeMap<u64, usize> =
            self.node_ids().into_iter().map(|id| (id, 0)).collect();
        for shard in self.shards().await? {
            *counts.entry(shard.leader_node).or_default() += 1;
        }
        Ok(counts)
    }

    /// The node that leads most shards.
    pub async fn leader_heavy_node(&self) -> Result<u64> {
        let counts = self.leader_counts().await?;
        let most = counts.into_iter().filter(|(id, _)| *id != 0);
        let most = most.max_by_key(|(_, count)| *count);
        Ok(most.context("the cluster has no nodes")?.0)
    }

    /// Hands a shard to a node; tries again while the node is not ready for it.
    pub async fn transfer(&self, shard_id: u32, to_node: u64) -> Result<()> {
        let deadline = Instant::now() + TRANSFER_LIMIT;
        loop {
            let mut admin = self.admin()?;
            let request = TransferLeaderRequest { shard_id, to_node };
            let answer = admin.transfer_leader(rpc::within(request, QUESTION_LIMIT));
            match answer.await {
                Ok(answer) if answer.get_ref().leader_node == to_node => return Ok(()),
                Ok(_) => {}
                Err(status) if Instant::now() >= deadline => {
                    return Err(status).with_context(|| {
                        format!("shard {shard_id} could not go to node {to_node}")
                    });
                }
                Err(_) => {}
            }
            if Instant::now() >= deadline {
                bail!("shard {shard_id} did not go to node {to_node} within {TRANSFER_LIMIT:?}");
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Hands the leadership of all shards of a node to the others.
    pub async fn make_follower(&self, id: u64) -> Result<()> {
        let others: Vec<u64> = self
            .up_ids()
            .into_iter()
            .filter(|other| *other != id)
            .collect();
        for (number, shard) in self.shards().await?.iter().enumerate() {
            if shard.leader_node == id {
                self.transfer(shard.shard_id, others[number % others.len()])
                    .await?;
            }
        }
        Ok(())
    }

    /// Flushes a shard's state on a node and purges its log there.
    pub async fn snapshot(&self, shard_id: u32, node_id: u64) -> Result<u64> {
        let mut admin = self.admin()?;
        let request = TriggerSnapshotRequest { shard_id, node_id };
        let answer = admin
            .trigger_snapshot(rpc::within(request, CHECKSUM_LIMIT))
            .await;
        let answer = answer
            .with_context(|| format!("could not snapshot shard {shard_id} on node {node_id}"))?;
        Ok(answer.into_inner().flushed_index)
    }

    /// Makes sure that a node, which is down, cannot catch up from the logs of the others
    /// any more: all their shards are flushed and purged. Waits, bounded, until so many of
    /// its shards need a snapshot; returns how many do.
    pub async fn purge_beyond(
        &self,
        down: u64,
        last_before: &BTreeMap<u32, u64>,
        wanted: usize,
    ) -> Result<usize> {
        for shard in self
            .shards()
            .await?
            .iter()
            .filter(|shard| shard.shard_id != 0)
        {
            for replica in shard
                .replicas
                .iter()
                .filter(|replica| replica.node_id != down)
            {
                self.snapshot(shard.shard_id, replica.node_id).await?;
            }
        }
        let is_behind = |shard: &ShardStatus| {
            let last = last_before.get(&shard.shard_id);
            let mut others = shard
                .replicas
                .iter()
                .filter(|replica| replica.node_id != down);
            let purged = |last: &u64| others.all(|replica| replica.purged_index > *last);
            shard.shard_id != 0 && last.is_some_and(purged)
        };
        let deadline = Instant::now() + PURGE_LIMIT;
        loop {
            let shards = self.shards().await?;
            let behind = shards.iter().filter(|shard| is_behind(shard)).count();
            if behind >= wanted || Instant::now() >= deadline {
                return Ok(behind);
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// The last log index of each of a node's shards.
    pub async fn last_indexes(&self, id: u64) -> Result<BTreeMap<u32, u64>> {
        let shards = self.shards().await?;
        let of_node = |shard: &ShardStatus| {
            let mut replicas = shard.replicas.iter();
            let replica = replicas.find(|replica| replica.node_id == id)?;
            (replica.role() != Role::Unknown).then_some((shard.shard_id, replica.last_log_index))
        };
        Ok(shards.iter().filter_map(of_node).collect())
    }

    /// Waits until a node has applied all that anybody had in the logs of its shards at the time
    /// of the call.
    pub async fn wait_caught_up(&self, id: u64, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let last = |shard: &ShardStatus| {
            let replicas = shard.replicas.iter();
            replicas.map(|replica| replica.last_log_index).max()
        };
        let shards = self.shards().await?;
        let shards = shards.iter();
        let wanted: BTreeMap<u32, u64> = shards
            .filter_map(|shard| Some((shard.shard_id, last(shard)?)))
            .collect();
        loop {
            let shards = self.shards().await?;
            let lacks = |shard: &&ShardStatus| {
                let mut replicas = shard.replicas.iter();
                let replica = replicas.find(|replica| replica.node_id == id);
                let wanted = wanted.get(&shard.shard_id).copied().unwrap_or(0);
                replica.is_some_and(|replica| replica.applied_index < wanted)
            };
            let Some(behind) = shards.iter().find(lacks) else {
                return Ok(());
            };
            ensure!(
                Instant::now() < deadline,
                "node {id} lacks entries of shard {} after {limit:?}",
                behind.shard_id
            );
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Compares the state of all replicas of all shards; tries again, bounded, while one
    /// does not answer. Replicas that answer at the same index with different checksums
    /// are an error at once.
    pub async fn check_checksums(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let shards = self.shards().await?;
        let ids = shards.iter().map(|shard| shard.shard_id);
        for shard_id in ids.filter(|shard| *shard != 0) {
            loop {
                // A replica may have moved since the last try.
                let shards = self.shards().await?;
                let shard = shards.iter().find(|shard| shard.shard_id == shard_id);
                let Some(shard) = shard else { break };
                let outcome = self.checksum_once(shard_id, shard.replicas.len()).await?;
                let Err(reason) = outcome else { break };
                if Instant::now() >= deadline {
                    // Who is behind in the meta group, or waits for its disk, may have a replica
                    // that is to go.
                    let meta = shards.iter().find(|shard| shard.shard_id == 0);
                    let stores = self.stores().await;
                    bail!(
                        "no checksum of {shard:?} within {limit:?}: {reason}; {meta:?}; {stores}"
                    );
                }
                sleep(POLL_INTERVAL).await;
            }
        }
        Ok(())
    }

    /// What the metrics of all nodes say of their stores, for people.
    async fn stores(&self) -> String {
        let mut all = String::new();
        for id in self.up_ids() {
            let http = &self.node(id).addresses().http;
            let page = http_get(http, "/metrics", METRICS_LIMIT).await;
            let page = page.map_or_else(|error| error.to_string(), |(_, page)| page);
            let told = |line: &&str| {
                let names = ["carillon_state", "carillon_applies", "carillon_memtable"];
                names.iter().any(|name| line.starts_with(name))
            };
            let lines: Vec<&str> = page.lines().filter(told).collect();
            all.push_str(&format!("node {id}: {}; ", lines.join(", ")));
        }
        all
    }

    async fn checksum_once(&self, shard_id: u32, replicas: usize) -> Result<Result<(), String>> {
        let mut admin = self.admin()?;
        let request = rpc::within(ChecksumShardRequest { shard_id }, CHECKSUM_LIMIT);
        let answer = match admin.checksum_shard(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return Ok(Err(status.to_string())),
        };
        let differs = answer.replicas.windows(2).any(|pair| {
            (&pair[0].checksum, pair[0].keys, pair[0].bytes)
                != (&pair[1].checksum, pair[1].keys, pair[1].bytes)
        });
        if differs {
            bail!("the replicas of shard {shard_id} differ: {answer:?}");
        }
        let complete = answer.consistent && answer.replicas.len() == replicas;
        Ok(complete.then_some(()).ok_or_else(|| format!("{answer:?}")))
    }
}
