//! `carillon.admin.v1`: the cluster, nodes, shards, checksums, leader transfer, snapshots.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use carillon_proto::admin::{
    ChecksumShardRequest, GetClusterRequest, ListNodesRequest, ListShardsRequest,
    TransferLeaderRequest, TriggerSnapshotRequest, replica_status::Role,
};
use carillon_tests::harness::http_get;
use carillon_tests::rpc;
use tonic::Code;

use crate::cast::Cast;

const LIMIT: Duration = Duration::from_secs(20);

#[tokio::test]
async fn every_node_shows_the_same_cluster() -> Result<()> {
    let cast = Cast::new().await?;
    cast.cluster.wait_all_led(LIMIT).await?;
    let mut ids = Vec::new();
    for node in 1..=3 {
        let mut admin = cast.cluster.admin_of(node)?;
        let cluster = admin.get_cluster(GetClusterRequest {}).await?.into_inner();
        assert_eq!((cluster.nodes, cluster.nodes_up), (3, 3));
        assert_eq!((cluster.shards, cluster.shards_led), (16, 16));
        assert_eq!(
            (cluster.replication_factor, cluster.answering_node),
            (3, node)
        );
        assert_eq!(cluster.cluster_name, "test");
        assert!(cluster.map_epoch > 0 && !cluster.version.is_empty());
        ids.push(cluster.cluster_id);

        let nodes = admin
            .list_nodes(ListNodesRequest {})
            .await?
            .into_inner()
            .nodes;
        assert_eq!(
            nodes.iter().map(|node| node.node_id).collect::<Vec<_>>(),
            [1, 2, 3]
        );
        for status in &nodes {
            let addresses = cast.cluster.node(status.node_id).addresses();
            assert_eq!(
                (&status.client_address, &status.peer_address),
                (&addresses.client, &addresses.peer)
            );
            assert!(status.up && !status.draining, "{status:?}");
            assert!(status.replicas >= 16, "{status:?}");
        }
    }
    assert!(!ids[0].is_empty() && ids.iter().all(|id| *id == ids[0]));
    Ok(())
}

#[tokio::test]
async fn shards_cover_all_slots_and_are_spread() -> Result<()> {
    let cast = Cast::new().await?;
    let shards = cast.cluster.shards().await?;
    assert_eq!(
        shards
            .iter()
            .map(|shard| shard.shard_id)
            .collect::<Vec<_>>(),
        (0..=16).collect::<Vec<_>>()
    );
    let mut next = 0;
    for shard in &shards[1..] {
        assert_eq!(shard.slot_first, next);
        next = shard.slot_last + 1;
        let nodes: Vec<u64> = shard
            .replicas
            .iter()
            .map(|replica| replica.node_id)
            .collect();
        assert_eq!(nodes, [1, 2, 3]);
        let leaders = shard
            .replicas
            .iter()
            .filter(|replica| replica.role() == Role::Leader);
        assert!(leaders.count() <= 1, "{shard:?}");
        for replica in &shard.replicas {
            assert!(
                replica.applied_index <= replica.last_log_index,
                "{replica:?}"
            );
            assert!(replica.purged_index <= replica.flushed_index, "{replica:?}");
        }
    }
    assert_eq!(next, 4096);
    let mut admin = cast.cluster.admin()?;
    let one = admin
        .list_shards(ListShardsRequest { shard_id: Some(3) })
        .await?
        .into_inner()
        .shards;
    assert_eq!(
        one.iter().map(|shard| shard.shard_id).collect::<Vec<_>>(),
        [3]
    );
    let outcome = admin
        .list_shards(ListShardsRequest { shard_id: Some(99) })
        .await;
    rpc::assert_refused(outcome, Code::NotFound, "SHARD_NOT_FOUND");
    Ok(())
}

#[tokio::test]
async fn a_leader_is_transferred_to_each_node() -> Result<()> {
    const SHARD: u32 = 5;
    let cast = Cast::new().await?;
    for to_node in [1, 2, 3, 3, 1] {
        cast.cluster.transfer(SHARD, to_node).await?;
        for node in 1..=3 {
            let mut admin = cast.cluster.admin_of(node)?;
            let request = ListShardsRequest {
                shard_id: Some(SHARD),
            };
            let shards = admin.list_shards(request).await?.into_inner().shards;
            let leaders: Vec<u64> = shards[0]
                .replicas
                .iter()
                .filter(|replica| replica.role() == Role::Leader)
                .map(|replica| replica.node_id)
                .collect();
            assert_eq!(leaders, [to_node]);
        }
    }
    let mut admin = cast.cluster.admin()?;
    let outcome = admin
        .transfer_leader(TransferLeaderRequest {
            shard_id: 99,
            to_node: 1,
        })
        .await;
    rpc::assert_refused(outcome, Code::NotFound, "SHARD_NOT_FOUND");
    let outcome = admin
        .transfer_leader(TransferLeaderRequest {
            shard_id: SHARD,
            to_node: 9,
        })
        .await;
    let refusal = rpc::refusal(&outcome.err().context("no such node")?);
    ensure!(
        ["NODE_NOT_FOUND", "TARGET_NOT_READY"].contains(&refusal.reason.as_str()),
        "{refusal:?}"
    );
    Ok(())
}

#[tokio::test]
async fn replicas_have_equal_checksums() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, _, direct) = cast.pair();
    cast.say_many(&alice, &direct, 20).await?;
    cast.cluster.check_checksums(LIMIT).await?;
    let mut admin = cast.cluster.admin_of(2)?;
    let mut keys = 0;
    for shard_id in 1..=16 {
        let answer = admin
            .checksum_shard(ChecksumShardRequest { shard_id })
            .await?
            .into_inner();
        for replica in &answer.replicas {
            assert_eq!(replica.checksum.len(), 32, "{replica:?}");
            assert!(
                replica
                    .checksum
                    .bytes()
                    .all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase())
            );
        }
        keys += answer.replicas[0].keys;
    }
    assert!(keys > 20, "{keys} keys over all shards");
    let outcome = admin
        .checksum_shard(ChecksumShardRequest { shard_id: 99 })
        .await;
    rpc::assert_refused(outcome, Code::NotFound, "SHARD_NOT_FOUND");
    Ok(())
}

#[tokio::test]
async fn a_snapshot_makes_the_state_durable() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, _, direct) = cast.pair();
    cast.say_many(&alice, &direct, 5).await?;
    for node_id in [0, 1, 2, 3] {
        let flushed = cast.cluster.snapshot(7, node_id).await?;
        let shards = cast.cluster.shards().await?;
        let shard = shards
            .iter()
            .find(|shard| shard.shard_id == 7)
            .context("no shard 7")?;
        let node = if node_id == 0 {
            shard.leader_node
        } else {
            node_id
        };
        let replica = shard
            .replicas
            .iter()
            .find(|replica| replica.node_id == node);
        let replica = replica.context("no replica")?;
        assert!(
            replica.flushed_index >= flushed && flushed > 0,
            "{flushed} {replica:?}"
        );
    }
    let mut admin = cast.cluster.admin()?;
    let request = TriggerSnapshotRequest {
        shard_id: 99,
        node_id: 0,
    };
    rpc::assert_refused(
        admin.trigger_snapshot(request).await,
        Code::NotFound,
        "SHARD_NOT_FOUND",
    );
    let request = TriggerSnapshotRequest {
        shard_id: 1,
        node_id: 9,
    };
    rpc::assert_refused(
        admin.trigger_snapshot(request).await,
        Code::NotFound,
        "NODE_NOT_FOUND",
    );
    Ok(())
}

#[tokio::test]
async fn probes_and_metrics_over_http() -> Result<()> {
    let cast = Cast::new().await?;
    for node in 1..=3 {
        let address = &cast.cluster.node(node).addresses().http;
        for path in ["/healthz", "/readyz"] {
            assert_eq!(
                http_get(address, path, LIMIT).await?.0,
                200,
                "{path} of node {node}"
            );
        }
        let (code, body) = http_get(address, "/metrics", LIMIT).await?;
        assert_eq!(code, 200);
        assert!(
            body.contains("# TYPE") && body.contains("# EOF"),
            "{body:.200}"
        );
        assert_eq!(http_get(address, "/nothing", LIMIT).await?.0, 404);
    }
    Ok(())
}
