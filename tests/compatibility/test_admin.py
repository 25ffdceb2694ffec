"""carillon.admin.v1: every node answers for the whole cluster."""

import grpc
import pytest
from carillon.admin.v1 import admin_pb2 as admin
from carillon.admin.v1 import admin_pb2_grpc
from client import CALL_SECONDS_MAX, check_error, direct, refused

NODES = {1, 2, 3}
SHARDS = 16
LEADER, FOLLOWER = admin.ReplicaStatus.LEADER, admin.ReplicaStatus.FOLLOWER


@pytest.fixture
def stubs(channels) -> list[admin_pb2_grpc.AdminStub]:
    return [admin_pb2_grpc.AdminStub(channel) for channel in channels]


def shards(stub, **fields) -> list[admin.ShardStatus]:
    request = admin.ListShardsRequest(**fields)
    return list(stub.ListShards(request, timeout=CALL_SECONDS_MAX).shards)


def test_cluster(stubs):
    answers = [stub.GetCluster(admin.GetClusterRequest(), timeout=5) for stub in stubs]
    assert [answer.answering_node for answer in answers] == [1, 2, 3]
    for answer in answers:
        assert answer.cluster_id == answers[0].cluster_id != ""
        assert answer.cluster_name == "compatibility"
        assert (answer.nodes, answer.nodes_up) == (3, 3)
        assert (answer.shards, answer.shards_led, answer.replication_factor) == (SHARDS, SHARDS, 3)
        assert answer.map_epoch > 0
        assert answer.meta_leader_node in NODES
        assert answer.version


def test_nodes(stubs, cluster):
    for stub in stubs:
        nodes = stub.ListNodes(admin.ListNodesRequest(), timeout=5).nodes
        assert [node.node_id for node in nodes] == [1, 2, 3]
        for node, started in zip(nodes, cluster.nodes):
            assert (node.client_address, node.peer_address) == (started.client, started.peer)
            assert node.up and not node.draining
            assert node.version
            assert node.replicas >= SHARDS
        assert sum(node.leaders for node in nodes) >= SHARDS


def test_sessions_are_counted(stubs, caller, connect):
    devices = [connect(caller("alice").user, node=2) for _ in range(3)]
    for device in devices:
        device.take("welcome")
    nodes = stubs[0].ListNodes(admin.ListNodesRequest(), timeout=5).nodes
    assert nodes[1].sessions >= 3


def test_shards(stubs):
    for stub in stubs:
        listed = shards(stub)
        assert [shard.shard_id for shard in listed] == list(range(SHARDS + 1)), "0 is meta"
        next_slot = 0
        for shard in listed[1:]:
            assert shard.slot_first == next_slot, "the ranges have no holes"
            next_slot = shard.slot_last + 1
        assert next_slot == 4_096
        for shard in listed:
            assert {replica.node_id for replica in shard.replicas} == NODES
            leaders = [replica for replica in shard.replicas if replica.role == LEADER]
            assert [leader.node_id for leader in leaders] == [shard.leader_node]
            for replica in shard.replicas:
                assert replica.role in (LEADER, FOLLOWER)
                assert replica.term >= 1
                # They are asked one after the other, so only within a replica.
                assert replica.purged_index <= replica.flushed_index <= replica.last_log_index
                assert replica.applied_index <= replica.last_log_index


def test_one_shard(stubs):
    (shard,) = shards(stubs[0], shard_id=7)
    assert shard.shard_id == 7
    (meta,) = shards(stubs[0], shard_id=0)
    assert meta.shard_id == 0


def test_checksums_are_equal(stubs, caller):
    alice = caller("alice")
    for number in range(10):
        alice.say(direct(alice.user, f"other-{number}"), "hello")
    for shard_id in (1, SHARDS):
        answer = stubs[1].ChecksumShard(
            admin.ChecksumShardRequest(shard_id=shard_id), timeout=CALL_SECONDS_MAX
        )
        assert answer.consistent
        assert answer.log_index > 0
        assert [replica.node_id for replica in answer.replicas] == [1, 2, 3]
        assert len({(r.checksum, r.keys, r.bytes) for r in answer.replicas}) == 1
        checksum = answer.replicas[0].checksum
        assert len(checksum) == 32 and set(checksum) <= set("0123456789abcdef")


def test_transfer_and_service_goes_on(stubs, caller):
    alice, bob = caller("alice"), caller("bob")
    conversation = direct(alice.user, bob.user)
    for round_ in range(2):
        (shard,) = shards(stubs[0], shard_id=3)
        target = shard.leader_node % 3 + 1
        answer = stubs[round_].TransferLeader(
            admin.TransferLeaderRequest(shard_id=3, to_node=target), timeout=CALL_SECONDS_MAX
        )
        assert answer.leader_node == target
        (shard,) = shards(stubs[round_], shard_id=3)
        assert shard.leader_node == target
        assert alice.say(conversation, "still here").seq == round_ + 1


def test_transfer_to_where_it_is(stubs):
    (shard,) = shards(stubs[0], shard_id=5)
    request = admin.TransferLeaderRequest(shard_id=5, to_node=shard.leader_node)
    answer = stubs[0].TransferLeader(request, timeout=CALL_SECONDS_MAX)
    assert answer.leader_node == shard.leader_node


@pytest.mark.parametrize("node_id", [0, 1, 2, 3])
def test_snapshot(stubs, caller, node_id):
    alice = caller("alice")
    alice.say(direct(alice.user, "someone"), "hello")
    request = admin.TriggerSnapshotRequest(shard_id=2, node_id=node_id)
    answer = stubs[2].TriggerSnapshot(request, timeout=CALL_SECONDS_MAX)
    assert answer.flushed_index > 0
    (shard,) = shards(stubs[0], shard_id=2)
    (replica,) = [r for r in shard.replicas if r.node_id == (node_id or shard.leader_node)]
    assert replica.flushed_index >= answer.flushed_index


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("ListShards", admin.ListShardsRequest(shard_id=99)),
        ("ChecksumShard", admin.ChecksumShardRequest(shard_id=99)),
        ("TransferLeader", admin.TransferLeaderRequest(shard_id=99, to_node=1)),
        ("TriggerSnapshot", admin.TriggerSnapshotRequest(shard_id=99)),
    ],
)
def test_unknown_shard(stubs, method, request_):
    with refused(grpc.StatusCode.NOT_FOUND, "SHARD_NOT_FOUND", shard_id=99):
        getattr(stubs[0], method)(request_, timeout=CALL_SECONDS_MAX)


def test_unknown_node(stubs):
    with pytest.raises(grpc.RpcError) as raised:
        stubs[0].TransferLeader(
            admin.TransferLeaderRequest(shard_id=1, to_node=9), timeout=CALL_SECONDS_MAX
        )
    check_error(raised.value, grpc.StatusCode.FAILED_PRECONDITION, "TARGET_NOT_READY", node_id=9)
    with pytest.raises(grpc.RpcError) as raised:
        stubs[0].TriggerSnapshot(
            admin.TriggerSnapshotRequest(shard_id=1, node_id=9), timeout=CALL_SECONDS_MAX
        )
    check_error(raised.value, grpc.StatusCode.NOT_FOUND, "NODE_NOT_FOUND", node_id=9)
