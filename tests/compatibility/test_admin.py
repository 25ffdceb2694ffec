"""carillon.admin.v1: every node answers for the whole cluster."""

import concurrent.futures

import grpc
import pytest
from carillon.admin.v1 import admin_pb2 as admin
from carillon.admin.v1 import admin_pb2_grpc
from client import CALL_SECONDS_MAX, check_error, direct, raw_call, refused

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
        ("SplitShard", admin.SplitShardRequest(shard_id=99)),
        ("MergeShards", admin.MergeShardsRequest(shard_id=99)),
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


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("SetStanding", admin.SetStandingRequest(node_id=9, standing=admin.CORDONED)),
        ("SetStanding", admin.SetStandingRequest(node_id=9, standing=admin.DRAINING_FOR_RESTART)),
        ("GetDrain", admin.GetDrainRequest(node_id=9)),
        ("ForgetNode", admin.ForgetNodeRequest(node_id=9)),
    ],
)
def test_unknown_node_to_drain(stubs, method, request_):
    for stub in stubs:
        with refused(grpc.StatusCode.NOT_FOUND, "NODE_NOT_FOUND"):
            getattr(stub, method)(request_, timeout=CALL_SECONDS_MAX)


@pytest.mark.parametrize("standing", [admin.STANDING_UNSPECIFIED, 99])
def test_standing_that_is_none(stubs, standing):
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_STANDING"):
        stubs[0].SetStanding(
            admin.SetStandingRequest(node_id=1, standing=standing), timeout=CALL_SECONDS_MAX
        )


def test_a_node_that_is_needed(stubs):
    """Three nodes with three replicas of everything: none can be drained, none forgotten."""
    ask = admin.GetDrainRequest(node_id=2, purpose=admin.DRAINING_FOR_REMOVAL)
    assert stubs[0].GetDrain(ask, timeout=CALL_SECONDS_MAX).dangers
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "NODE_NEEDED"):
        stubs[0].SetStanding(
            admin.SetStandingRequest(node_id=2, standing=admin.DRAINING_FOR_REMOVAL),
            timeout=CALL_SECONDS_MAX,
        )
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "NODE_IN_USE"):
        stubs[1].ForgetNode(admin.ForgetNodeRequest(node_id=2), timeout=CALL_SECONDS_MAX)
    nodes = stubs[2].ListNodes(admin.ListNodesRequest(), timeout=5).nodes
    assert {node.standing for node in nodes} == {admin.ACTIVE}, "nothing has changed"


def test_a_shard_that_is_well_is_not_recovered(stubs):
    for stub in stubs:
        recovery = stub.GetRecovery(admin.GetRecoveryRequest(shard_id=7), timeout=CALL_SECONDS_MAX)
        assert {replica.node_id for replica in recovery.replicas} == NODES
        for replica in recovery.replicas:
            assert replica.answers and replica.votes
            assert replica.last.term >= 1 and replica.last.index >= replica.applied_index
        assert recovery.survivor_node in NODES and recovery.why
        assert len(recovery.hindrances) == 1 and "led by node" in recovery.hindrances[0]
        assert recovery.confirmation == "shard 7"
    recover = admin.RecoverShardRequest(
        shard_id=7, survivor_replica_id=recovery.survivor_replica_id, confirmation="shard 7"
    )
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "RECOVERY_REFUSED", shard_id=7):
        stubs[1].RecoverShard(recover, timeout=CALL_SECONDS_MAX)
    recover.confirmation = "shard 8"
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "NOT_CONFIRMED"):
        stubs[1].RecoverShard(recover, timeout=CALL_SECONDS_MAX)


@pytest.mark.parametrize("shard_id", [0, SHARDS + 1])
def test_recovery_of_no_shard(stubs, shard_id):
    with refused(grpc.StatusCode.NOT_FOUND, "SHARD_NOT_FOUND"):
        stubs[0].GetRecovery(admin.GetRecoveryRequest(shard_id=shard_id), timeout=5)
    with refused(grpc.StatusCode.NOT_FOUND, "SHARD_NOT_FOUND"):
        stubs[0].RecoverShard(admin.RecoverShardRequest(shard_id=shard_id), timeout=5)


def test_events_say_who(stubs):
    def cordon(standing, **call) -> admin.Event:
        request = admin.SetStandingRequest(node_id=2, standing=standing)
        stubs[0].SetStanding(request, timeout=CALL_SECONDS_MAX, **call)
        return stubs[0].ListEvents(admin.ListEventsRequest(), timeout=5).events[-1]

    try:
        event = cordon(admin.CORDONED, metadata=[("carillon-actor", "ann@desk")])
        assert event.by == "ann@desk" and "node 2 is cordoned" in event.text
    finally:
        event = cordon(admin.ACTIVE)
    assert event.by == "unknown"
    with refused(
        grpc.StatusCode.INVALID_ARGUMENT,
        "LIMIT_EXCEEDED",
        limit="actor_bytes_max",
        max=128,
        actual=129,
    ):
        cordon(admin.CORDONED, metadata=[("carillon-actor", "a" * 129)])


@pytest.mark.parametrize(
    ("field", "limit", "maximum"),
    [
        ("duration_ms", "duration_ms_max", 60_000),
        ("command_bytes", "command_bytes_max", 65_536),
        ("in_flight", "in_flight_max", 65_536),
    ],
)
def test_measurement_over_a_limit(stubs, field, limit, maximum):
    request = admin.MeasureAppendRequest(**{field: maximum + 1})
    with refused(
        grpc.StatusCode.INVALID_ARGUMENT,
        "LIMIT_EXCEEDED",
        limit=limit,
        max=maximum,
        actual=maximum + 1,
    ):
        stubs[0].MeasureAppend(request, timeout=CALL_SECONDS_MAX)


def test_one_measurement_at_a_time(stubs):
    request = admin.MeasureAppendRequest(duration_ms=1_500, in_flight=1)

    def measure(_) -> admin.MeasureAppendResponse | grpc.RpcError:
        try:
            return stubs[0].MeasureAppend(request, timeout=CALL_SECONDS_MAX)
        except grpc.RpcError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor() as pool:
        answers = list(pool.map(measure, range(2)))
    (error,) = [answer for answer in answers if isinstance(answer, grpc.RpcError)]
    check_error(
        error,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "LIMIT_EXCEEDED",
        limit="measurements_max",
        max=1,
    )
    (measured,) = [answer for answer in answers if answer is not error]
    assert measured.shards > 0 and measured.acknowledged > 0
    assert 0 < measured.p50_us <= measured.p99_us <= measured.max_us


def test_requests_that_cannot_be_read(channels):
    call = raw_call(channels[0], "/carillon.admin.v1.Admin/ListShards")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"):
        call(b"\xff" * 20, timeout=CALL_SECONDS_MAX)
    with refused(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "LIMIT_EXCEEDED",
        limit="request_bytes_max",
        max=1_048_576,
    ):
        call(bytes(1_048_577), timeout=CALL_SECONDS_MAX)
