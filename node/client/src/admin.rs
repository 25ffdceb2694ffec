//! The calls of `carillon.admin.v1`. Any node answers for the whole cluster.

use std::sync::Arc;
use std::time::Duration;

use carillon_proto::admin::admin_client::AdminClient as Stub;
use carillon_proto::{ACTOR_METADATA_KEY, admin};
use tonic::transport::Channel;

use crate::caller::{ANSWER_BYTES_MAX, Caller};
use crate::credentials::Credentials;
use crate::endpoints::Endpoints;
use crate::error::ClientError;

/// For all tries of one call together.
const CALL_TIMEOUT: Duration = Duration::from_secs(6);
/// For one try.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(4);
/// What a transfer of leadership may take beyond that: it waits for the new leader.
const TRANSFER_EXTRA: Duration = Duration::from_secs(10);
/// What a checksum may take beyond that: it reads all of a shard's state.
const CHECKSUM_EXTRA: Duration = Duration::from_secs(60);
/// What a flush of a shard's state may take beyond that.
const SNAPSHOT_EXTRA: Duration = Duration::from_secs(60);

/// Looks at and operates a cluster; cheap to clone.
#[derive(Debug, Clone)]
pub struct AdminClient {
    caller: Caller,
}

fn stub(channel: Channel) -> Stub<Channel> {
    Stub::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

impl AdminClient {
    /// Uses the client ports of these nodes, `host:port`, in turn. Must be called within a
    /// tokio runtime; connects when the first call needs it.
    pub fn new(endpoints: &[String]) -> Result<Self, ClientError> {
        Self::made(endpoints, None, Credentials::default())
    }

    /// The same for somebody with a name, which the cluster records with what they change: at
    /// most 128 characters of ASCII. It gives no right.
    pub fn acting_as(endpoints: &[String], name: &str) -> Result<Self, ClientError> {
        Self::with_credentials(endpoints, name, Credentials::default())
    }

    /// The same with a certificate, which says what they may do.
    pub fn with_credentials(
        endpoints: &[String],
        name: &str,
        credentials: Credentials,
    ) -> Result<Self, ClientError> {
        Self::made(endpoints, Some((ACTOR_METADATA_KEY, name)), credentials)
    }

    fn made(
        endpoints: &[String],
        as_whom: Option<(&'static str, &str)>,
        credentials: Credentials,
    ) -> Result<Self, ClientError> {
        let endpoints = Arc::new(Endpoints::new(endpoints, 0, credentials)?);
        Ok(Self {
            caller: Caller::new(endpoints, as_whom, CALL_TIMEOUT, ATTEMPT_TIMEOUT)?,
        })
    }

    /// The cluster at a glance.
    pub async fn get_cluster(&self) -> Result<admin::GetClusterResponse, ClientError> {
        let request = admin::GetClusterRequest {};
        self.caller
            .call(
                "get_cluster",
                request,
                Duration::ZERO,
                async |channel, request| stub(channel).get_cluster(request).await,
            )
            .await
    }

    /// The nodes and how each of them is.
    pub async fn list_nodes(&self) -> Result<Vec<admin::NodeStatus>, ClientError> {
        let request = admin::ListNodesRequest {};
        let answer = self
            .caller
            .call(
                "list_nodes",
                request,
                Duration::ZERO,
                async |channel, request| stub(channel).list_nodes(request).await,
            )
            .await?;
        Ok(answer.nodes)
    }

    /// The shards and their replicas: one of them, or all with the meta group (0).
    pub async fn list_shards(
        &self,
        shard: Option<u32>,
    ) -> Result<Vec<admin::ShardStatus>, ClientError> {
        let request = admin::ListShardsRequest { shard_id: shard };
        let answer = self
            .caller
            .call(
                "list_shards",
                request,
                Duration::ZERO,
                async |channel, request| stub(channel).list_shards(request).await,
            )
            .await?;
        Ok(answer.shards)
    }

    /// The checksum of a shard's state on each replica, at the same log index.
    pub async fn checksum_shard(
        &self,
        shard: u32,
    ) -> Result<admin::ChecksumShardResponse, ClientError> {
        let request = admin::ChecksumShardRequest { shard_id: shard };
        self.caller
            .call(
                "checksum_shard",
                request,
                CHECKSUM_EXTRA,
                async |channel, request| stub(channel).checksum_shard(request).await,
            )
            .await
    }

    /// Takes the cluster to its next version, when all nodes support it.
    pub async fn finalize_upgrade(&self) -> Result<admin::FinalizeUpgradeResponse, ClientError> {
        let request = admin::FinalizeUpgradeRequest {};
        self.caller
            .call(
                "finalize_upgrade",
                request,
                Duration::ZERO,
                async |channel, request| stub(channel).finalize_upgrade(request).await,
            )
            .await
    }

    /// Splits a shard, at this slot or in the middle; answered when it is started.
    pub async fn split_shard(
        &self,
        shard: u32,
        slot: Option<u32>,
    ) -> Result<admin::SplitShardResponse, ClientError> {
        let request = admin::SplitShardRequest {
            shard_id: shard,
            slot,
        };
        self.caller
            .call(
                "split_shard",
                request,
                Duration::ZERO,
                async |channel, request| stub(channel).split_shard(request).await,
            )
            .await
    }

    /// Lets a shard take over its right neighbour; answered when it is started.
    pub async fn merge_shards(
        &self,
        shard: u32,
    ) -> Result<admin::MergeShardsResponse, ClientError> {
        let request = admin::MergeShardsRequest { shard_id: shard };
        self.caller
            .call(
                "merge_shards",
                request,
                Duration::ZERO,
                async |channel, request| stub(channel).merge_shards(request).await,
            )
            .await
    }

    /// Gives up a merge that either of its shards names.
    pub async fn cancel_merge(
        &self,
        shard: u32,
    ) -> Result<admin::CancelMergeResponse, ClientError> {
        let request = admin::CancelMergeRequest { shard_id: shard };
        self.caller
            .call(
                "cancel_merge",
                request,
                Duration::ZERO,
                async |channel, request| stub(channel).cancel_merge(request).await,
            )
            .await
    }

    /// Hands the leadership of a shard to the replica on `node`; answered when it leads.
    pub async fn transfer_leader(
        &self,
        shard: u32,
        node: u64,
    ) -> Result<admin::TransferLeaderResponse, ClientError> {
        let request = admin::TransferLeaderRequest {
            shard_id: shard,
            to_node: node,
        };
        self.caller
            .call(
                "transfer_leader",
                request,
                TRANSFER_EXTRA,
                async |channel, request| stub(channel).transfer_leader(request).await,
            )
            .await
    }

    /// What a new node must know to join.
    pub async fn join_token(&self) -> Result<String, ClientError> {
        let request = admin::GetJoinTokenRequest {};
        let answer = self.caller.call(
            "get_join_token",
            request,
            Duration::ZERO,
            async |channel, request| stub(channel).get_join_token(request).await,
        );
        Ok(answer.await?.join_token)
    }

    /// Makes the join token worthless; the new one.
    pub async fn rotate_join_token(&self) -> Result<String, ClientError> {
        let request = admin::RotateJoinTokenRequest {};
        let answer = self.caller.call(
            "rotate_join_token",
            request,
            Duration::ZERO,
            async |channel, request| stub(channel).rotate_join_token(request).await,
        );
        Ok(answer.await?.join_token)
    }

    /// When nodes count as down or lost, and how much moves at once.
    pub async fn get_policy(&self) -> Result<admin::Policy, ClientError> {
        let request = admin::GetPolicyRequest {};
        let answer = self.caller.call(
            "get_policy",
            request,
            Duration::ZERO,
            async |channel, request| stub(channel).get_policy(request).await,
        );
        Ok(answer.await?.policy.unwrap_or_default())
    }

    /// Changes what is given of the policy; all of it, as it is then.
    pub async fn set_policy(
        &self,
        change: admin::SetPolicyRequest,
    ) -> Result<admin::Policy, ClientError> {
        let answer = self.caller.call(
            "set_policy",
            change,
            Duration::ZERO,
            async |channel, request| stub(channel).set_policy(request).await,
        );
        Ok(answer.await?.policy.unwrap_or_default())
    }

    /// Says what a node may be used for; false when it was so already. `forced`: even when too
    /// few nodes are left.
    pub async fn set_standing(
        &self,
        node: u64,
        standing: admin::Standing,
        forced: bool,
    ) -> Result<bool, ClientError> {
        let request = admin::SetStandingRequest {
            node_id: node,
            standing: standing.into(),
            forced,
        };
        let answer = self.caller.call(
            "set_standing",
            request,
            Duration::ZERO,
            async |channel, request| stub(channel).set_standing(request).await,
        );
        Ok(answer.await?.changed)
    }

    /// How far the drain of a node is, and what draining it for `purpose` would break.
    pub async fn drain_status(
        &self,
        node: u64,
        purpose: admin::Standing,
    ) -> Result<admin::GetDrainResponse, ClientError> {
        let request = admin::GetDrainRequest {
            node_id: node,
            purpose: purpose.into(),
        };
        let answer = self.caller.call(
            "get_drain",
            request,
            Duration::ZERO,
            async |channel, request| stub(channel).get_drain(request).await,
        );
        answer.await
    }

    /// Stops the process `run` of a node in order; whoever supervises it starts it again.
    pub async fn restart_node(&self, node: u64, run: u64) -> Result<(), ClientError> {
        let request = admin::RestartNodeRequest { node_id: node, run };
        let answer = self.caller.call(
            "restart_node",
            request,
            Duration::ZERO,
            async |channel, request| stub(channel).restart_node(request).await,
        );
        answer.await.map(drop)
    }

    /// Takes a node that holds nothing out of the cluster for ever; false when it was already.
    pub async fn forget_node(&self, node: u64) -> Result<bool, ClientError> {
        let request = admin::ForgetNodeRequest { node_id: node };
        let answer = self.caller.call(
            "forget_node",
            request,
            Duration::ZERO,
            async |channel, request| stub(channel).forget_node(request).await,
        );
        Ok(answer.await?.changed)
    }

    /// Replicas on their way, and what is waited for.
    pub async fn list_moves(&self) -> Result<admin::ListMovesResponse, ClientError> {
        let request = admin::ListMovesRequest {};
        let answer = self.caller.call(
            "list_moves",
            request,
            Duration::ZERO,
            async |channel, request| stub(channel).list_moves(request).await,
        );
        answer.await
    }

    /// What happened to the cluster, oldest first.
    pub async fn list_events(&self) -> Result<Vec<admin::Event>, ClientError> {
        let request = admin::ListEventsRequest {};
        let answer = self.caller.call(
            "list_events",
            request,
            Duration::ZERO,
            async |channel, request| stub(channel).list_events(request).await,
        );
        Ok(answer.await?.events)
    }

    /// What is left of a shard that lost its majority, and what could be lost by making it anew.
    pub async fn recovery(&self, shard: u32) -> Result<admin::GetRecoveryResponse, ClientError> {
        let request = admin::GetRecoveryRequest { shard_id: shard };
        self.caller
            .call(
                "get_recovery",
                request,
                Duration::ZERO,
                async |channel, request| stub(channel).get_recovery(request).await,
            )
            .await
    }

    /// Makes a shard anew from the replica that [`recovery`](Self::recovery) named. What only
    /// others had is lost. `confirmation` is what it asked for.
    pub async fn recover_shard(
        &self,
        shard: u32,
        survivor: u64,
        confirmation: &str,
    ) -> Result<admin::RecoverShardResponse, ClientError> {
        let request = admin::RecoverShardRequest {
            shard_id: shard,
            survivor_replica_id: survivor,
            confirmation: confirmation.to_owned(),
        };
        self.caller
            .call(
                "recover_shard",
                request,
                Duration::ZERO,
                async |channel, request| stub(channel).recover_shard(request).await,
            )
            .await
    }

    /// Flushes a shard's state on `node` (`None`: on its leader's) and purges its log.
    pub async fn trigger_snapshot(
        &self,
        shard: u32,
        node: Option<u64>,
    ) -> Result<admin::TriggerSnapshotResponse, ClientError> {
        let request = admin::TriggerSnapshotRequest {
            shard_id: shard,
            node_id: node.unwrap_or(0),
        };
        self.caller
            .call(
                "trigger_snapshot",
                request,
                SNAPSHOT_EXTRA,
                async |channel, request| stub(channel).trigger_snapshot(request).await,
            )
            .await
    }
}
