"""What clients are told while nodes are paused, hand over, or stop.

These tests have clusters of their own, so that they may hurt them.
"""

import concurrent.futures
import contextlib
import signal
import time
from collections.abc import Iterator
from functools import partial

import grpc
import pytest
from carillon.admin.v1 import admin_pb2 as admin
from carillon.admin.v1 import admin_pb2_grpc
from carillon.v1 import chat_pb2 as chat
from client import WAIT_SECONDS_MAX, Caller, Device, check_error, direct, refused, text, unique
from cluster import Cluster, Node
from grpc_health.v1 import health_pb2, health_pb2_grpc

FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING
SHARDS = 4
# Sends on a stream and calls without a deadline wait this long for a majority.
CONFIG = '[clients]\ncall_timeout = "3s"\nsession_queue_bytes_max = 65536\n'
# Undelivered stays of one member in a group; with one more they cannot come back.
EARLIER_STAYS_MAX = 8


@pytest.fixture(scope="module")
def hurt() -> Iterator[Cluster]:
    """Three nodes; each test leaves them all running and ready."""
    with Cluster(shards=SHARDS, extra=CONFIG) as running:
        yield running


@contextlib.contextmanager
def others_paused(cluster: Cluster) -> Iterator[None]:
    """All nodes but the first do not answer for a while: there is no majority."""
    for node in cluster.nodes[1:]:
        node.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for node in cluster.nodes[1:]:
            node.signal(signal.SIGCONT)


@contextlib.contextmanager
def device(channel: grpc.Channel, user: str, name: str = "phone", **options) -> Iterator[Device]:
    stream = Device(channel, chat.Hello(user_id=user, device_id=name), **options)
    try:
        yield stream
    finally:
        stream.close()


def wait_for_sessions(channel: grpc.Channel, count: int) -> None:
    """Waits until the node at this channel has so many streams and waiting calls."""
    stub = admin_pb2_grpc.AdminStub(channel)
    answering = stub.GetCluster(admin.GetClusterRequest(), timeout=5).answering_node
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while True:
        nodes = stub.ListNodes(admin.ListNodesRequest(), timeout=5).nodes
        (sessions,) = [node.sessions for node in nodes if node.node_id == answering]
        if sessions == count:
            return
        assert time.monotonic() < deadline, f"the node has {sessions} sessions, not {count}"
        time.sleep(0.02)


def wait_alive(node: Node) -> None:
    """Waits until the node runs, ready or not."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while node.probe("/healthz")[0] != 200:
        assert time.monotonic() < deadline, node.log_end()
        time.sleep(0.02)


def wait_for_node(stub: admin_pb2_grpc.AdminStub, node_id: int) -> None:
    """Waits until the cluster has a node of this number."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while True:
        nodes = stub.ListNodes(admin.ListNodesRequest(), timeout=5).nodes
        if node_id in (node.node_id for node in nodes):
            return
        assert time.monotonic() < deadline, f"there is no node {node_id}"
        time.sleep(0.05)


def wait_for_status(watch, status: int) -> None:
    """Reads a health watch up to this status; the watch's own deadline ends the wait."""
    assert any(answer.status == status for answer in watch)


def wait_answered(call, code: grpc.StatusCode, reason: str, **metadata: object):
    """Calls again and again while the call fails in this way; what it answers then."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            check_error(error, code, reason, **metadata)
        assert time.monotonic() < deadline, f"{reason} all the time"
        time.sleep(0.1)


def in_time(call) -> object | None:
    """The answer of a call, or none when the shard did not give one in the node's time."""
    try:
        return call(timeout=None)
    except grpc.RpcError as error:
        check_error(error, grpc.StatusCode.DEADLINE_EXCEEDED, "TIMEOUT")
        return None


def wait_all_told(stream: Device, first: int, last: int) -> None:
    """Waits until deliveries and resyncs together told of each of these entries once."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while True:
        pushed = [entry.inbox_seq for entry in stream.left("delivery")]
        assert pushed == sorted(set(pushed)), "once and in order"
        left_out = [
            inbox_seq
            for resync in stream.left("resync")
            for inbox_seq in range(resync.after_inbox_seq + 1, resync.to_inbox_seq + 1)
        ]
        told = sorted(pushed + left_out)
        if told == list(range(first, last + 1)):
            return
        assert time.monotonic() < deadline, f"not each of {first} to {last} once: {told}"
        time.sleep(0.02)


def test_too_many_sends_in_flight(hurt, open_channel):
    """Of 300 sends that nothing can commit yet, 256 wait and are stored in their order."""
    alice, bob = unique("alice"), unique("bob")
    with device(open_channel(hurt.nodes[0].client), alice) as stream:
        stream.take("welcome")
        with others_paused(hurt):
            requests = [stream.say(direct(alice, bob), f"{number}") for number in range(300)]
            errors = [stream.take("error") for _ in range(44)]
            assert [error.request_id for error in errors] == requests[256:]
            for error in errors:
                assert error.code == RESOURCE_EXHAUSTED.value[0]
                assert error.reason == "LIMIT_EXCEEDED"
                assert error.metadata["limit"] == "sends_in_flight_max"
                assert error.metadata["max"] == "256"
            assert not stream.left("sent"), "no majority has them"
        sent = {
            answer.request_id: answer.seq for answer in (stream.take("sent") for _ in range(256))
        }
        assert sent == {request: seq for seq, request in enumerate(requests[:256], 1)}


def test_too_many_commands_waiting(open_channel):
    """What a leader can neither replicate nor queue is refused, and may come again later."""
    # A leader takes commands for as long as `election_max` when nobody answers it.
    config = (
        '[raft]\nelection_min = "1900ms"\nelection_max = "2s"\n'
        "proposals_waiting_max = 16\nentry_bytes_max = 4096\n"
    )
    total = 64
    with Cluster(nodes=2, shards=1, extra=config) as cluster:
        channel = open_channel(cluster.nodes[0].client)
        admin_pb2_grpc.AdminStub(channel).TransferLeader(
            admin.TransferLeaderRequest(shard_id=1, to_node=1), timeout=15
        )
        alice = Caller(channel, unique("alice"))
        conversation = direct(alice.user, unique("bob"))
        with device(channel, alice.user) as stream:
            stream.take("welcome")
            with others_paused(cluster):
                # One of these fills an entry of the log, of which four are under way.
                for number in range(total):
                    stream.say(conversation, "x" * 3_000, message_id=f"{number}")
                error = stream.take("error")
                assert error.code == RESOURCE_EXHAUSTED.value[0]
                assert error.reason == "LIMIT_EXCEEDED"
                assert error.metadata["limit"] == "proposals_waiting_max"
                assert error.metadata["max"] == "16"
            for number in range(total):
                again = partial(alice.say, conversation, "x" * 3_000, message_id=f"{number}")
                wait_answered(
                    again, RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED", limit="proposals_waiting_max"
                )
            assert alice.say(conversation, "the last").seq == total + 1, "each is there once"


def test_too_many_sessions(open_channel):
    """Streams and waiting calls have places; what does not wait needs none."""
    with Cluster(nodes=1, shards=1, extra="[clients]\nsessions_max = 2\n") as cluster:
        channel = open_channel(cluster.nodes[0].client)
        alice = Caller(channel, unique("alice"))
        full = dict(limit="sessions_max", max=2, actual=3)
        with device(channel, alice.user) as phone:
            phone.take("welcome")
            follow = alice.SyncStream(chat.SyncRequest())
            wait_for_sessions(channel, 2)
            with device(channel, alice.user, "laptop") as laptop:
                check_error(laptop.end(), RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED", **full)
            with refused(RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED", **full):
                next(alice.SyncStream(chat.SyncRequest()))
            with refused(RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED", **full):
                alice.Sync(chat.SyncRequest(wait_ms=1_000))
            assert not alice.Sync(chat.SyncRequest()).entries
            follow.cancel()
            wait_for_sessions(channel, 1)
            with device(channel, alice.user, "laptop") as laptop:
                laptop.take("welcome")


def test_coming_back_while_deliveries_wait(open_channel):
    """A group knows a bounded number of stays that a member has still to be told of."""
    config = '[clients]\ncall_timeout = "1s"\n'
    with Cluster(nodes=2, shards=SHARDS, replication_factor=1, extra=config) as cluster:
        channel = open_channel(cluster.nodes[0].client)

        def change(who: Caller, method: str, **fields):
            request = getattr(chat, f"{method}Request")(conversation_id=conversation, **fields)
            return getattr(who, method)(request)

        with others_paused(cluster):
            # Each shard is on one node: half of the users and groups are out of reach.
            users = [Caller(channel, unique("user")) for _ in range(30)]
            ask = chat.SyncRequest()
            away = next(user for user in users if in_time(partial(user.Sync, ask)) is None)
            owner = next(user for user in users if in_time(partial(user.Sync, ask)) is not None)
            creations = (
                chat.CreateConversationRequest(conversation_id=unique("group"), request_id="r")
                for _ in range(30)
            )
            made = (in_time(partial(owner.CreateConversation, creation)) for creation in creations)
            conversation = next(filter(None, made)).conversation.conversation_id
            for _ in range(EARLIER_STAYS_MAX + 1):
                assert change(owner, "AddMembers", member_ids=[away.user]).added_ids
                assert change(owner, "RemoveMembers", member_ids=[away.user]).removed_ids
            with refused(UNAVAILABLE, "NOT_DELIVERED_YET"):
                change(owner, "AddMembers", member_ids=[away.user])
        come_back = partial(change, owner, "AddMembers", member_ids=[away.user])
        assert wait_answered(come_back, UNAVAILABLE, "NOT_DELIVERED_YET").added_ids
        told = 2 * (EARLIER_STAYS_MAX + 1) + 1
        entries = away.inbox(head=told)
        assert [entry.message.seq for entry in entries] == list(range(2, told + 2))


def test_timeout_and_retry(hurt, open_channel):
    """A send that no majority answers in time may still happen; a retry makes it sure."""
    channel = open_channel(hurt.nodes[0].client)
    alice = Caller(channel, unique("alice"))
    conversation = direct(alice.user, unique("bob"))
    request = chat.SendRequest(
        conversation_id=conversation, client_message_id="two", content=text("a call")
    )
    with device(channel, alice.user) as stream:
        stream.take("welcome")
        with others_paused(hurt):
            stream.say(conversation, "on the stream", message_id="one")
            with refused(grpc.StatusCode.DEADLINE_EXCEEDED, "TIMEOUT"):
                alice.Send(request, timeout=None)
            error = stream.take("error")
            assert error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
            assert error.reason == "TIMEOUT"
        for node in hurt.nodes:
            node.wait_ready()
        stream.say(conversation, "on the stream", message_id="one")
        seqs = [stream.take("sent").seq, alice.Send(request).seq]
        assert sorted(seqs) == [1, 2], "each is there exactly once"


def test_leaders_change_under_a_stream(hurt, open_channel):
    """All shards move around while messages come: pushed or told to resync, never lost."""
    channels = [open_channel(node.client) for node in hurt.nodes]
    stub = admin_pb2_grpc.AdminStub(channels[0])
    alice, bob = Caller(channels[0], unique("alice")), unique("bob")
    conversation = direct(alice.user, bob)
    total = 20 * SHARDS * 2
    with device(channels[1], bob) as sender, device(channels[2], alice.user) as receiver:
        sender.take("welcome")
        assert receiver.take("welcome").inbox_head == 0
        for shard_id in [*range(1, SHARDS + 1)] * 2:
            (shard,) = stub.ListShards(admin.ListShardsRequest(shard_id=shard_id)).shards
            for number in range(20):
                sender.say(conversation, f"{shard_id} {number}")
            target = shard.leader_node % 3 + 1
            stub.TransferLeader(
                admin.TransferLeaderRequest(shard_id=shard_id, to_node=target), timeout=15
            )
        sent = [sender.take("sent") for _ in range(total)]
        assert sorted(answer.seq for answer in sent) == list(range(1, total + 1))
        alice.inbox(head=total)

        wait_all_told(receiver, 1, total)


def test_shards_are_split_under_a_stream(open_channel):
    """Shards become two while messages come: none is refused, lost or overtaken."""
    with Cluster(shards=SHARDS, extra=CONFIG) as cluster:
        channels = [open_channel(node.client) for node in cluster.nodes]
        stub = admin_pb2_grpc.AdminStub(channels[0])
        alice, bob = Caller(channels[0], unique("alice")), unique("bob")
        conversation = direct(alice.user, bob)
        total = 20 * SHARDS
        with device(channels[1], bob) as sender, device(channels[2], alice.user) as receiver:
            sender.take("welcome")
            assert receiver.take("welcome").inbox_head == 0
            for shard_id in range(1, SHARDS + 1):
                for number in range(20):
                    sender.say(conversation, f"{shard_id} {number}")
                answer = stub.SplitShard(admin.SplitShardRequest(shard_id=shard_id), timeout=15)
                assert answer.new_shard_id == SHARDS + shard_id
                wait_led(stub, answer.new_shard_id, answer.slot)
            sent = [sender.take("sent") for _ in range(total)]
            assert [answer.seq for answer in sent] == list(range(1, total + 1))
            alice.inbox(head=total)
            wait_all_told(receiver, 1, total)
        slots = []
        for shard in stub.ListShards(admin.ListShardsRequest()).shards:
            if shard.shard_id != 0:
                slots.extend(range(shard.slot_first, shard.slot_last + 1))
        assert sorted(slots) == list(range(4096)), "each slot has one shard"
        # One slot is left of it, which is no place to split it at.
        narrow = stub.SplitShard(admin.SplitShardRequest(shard_id=1, slot=1), timeout=15)
        wait_led(stub, narrow.new_shard_id, 1)
        for slot in (None, 0, 1, 4095, 70_000):
            with refused(FAILED_PRECONDITION, "SHARD_NOT_SPLIT"):
                stub.SplitShard(admin.SplitShardRequest(shard_id=1, slot=slot), timeout=15)


def test_shards_are_merged_under_a_stream(open_channel):
    """Shards become one while messages come: none is refused, lost or overtaken."""
    with Cluster(shards=SHARDS, extra=CONFIG) as cluster:
        channels = [open_channel(node.client) for node in cluster.nodes]
        stub = admin_pb2_grpc.AdminStub(channels[0])
        alice, bob = Caller(channels[0], unique("alice")), unique("bob")
        conversation = direct(alice.user, bob)
        total = 20 * (SHARDS - 1)
        with device(channels[1], bob) as sender, device(channels[2], alice.user) as receiver:
            sender.take("welcome")
            assert receiver.take("welcome").inbox_head == 0
            for merges in range(1, SHARDS):
                answer = stub.MergeShards(admin.MergeShardsRequest(shard_id=1), timeout=15)
                assert answer.absorbed_shard_id == merges + 1
                for number in range(20):
                    sender.say(conversation, f"{merges} {number}")
                wait_merged(stub, answer.absorbed_shard_id)
            sent = [sender.take("sent") for _ in range(total)]
            assert [answer.seq for answer in sent] == list(range(1, total + 1))
            alice.inbox(head=total)
            wait_all_told(receiver, 1, total)
        (shard,) = (
            shard
            for shard in stub.ListShards(admin.ListShardsRequest()).shards
            if shard.shard_id != 0
        )
        assert (shard.shard_id, shard.slot_first, shard.slot_last) == (1, 0, 4095)
        # There is nothing left to merge it with, and nothing to cancel.
        with refused(FAILED_PRECONDITION, "SHARD_NOT_MERGED"):
            stub.MergeShards(admin.MergeShardsRequest(shard_id=1), timeout=15)
        cancelled = stub.CancelMerge(admin.CancelMergeRequest(shard_id=1), timeout=15)
        assert not cancelled.changed


def wait_merged(stub: admin_pb2_grpc.AdminStub, gone: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while time.monotonic() < deadline:
        with contextlib.suppress(grpc.RpcError):
            shards = stub.ListShards(admin.ListShardsRequest()).shards
            if gone not in [shard.shard_id for shard in shards]:
                return
        time.sleep(0.05)
    raise AssertionError(f"shard {gone} is not merged")


def wait_led(stub: admin_pb2_grpc.AdminStub, shard_id: int, slot: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while time.monotonic() < deadline:
        with contextlib.suppress(grpc.RpcError):
            (shard,) = stub.ListShards(admin.ListShardsRequest(shard_id=shard_id)).shards
            if shard.leader_node != 0 and shard.slot_first == slot:
                return
        time.sleep(0.05)
    raise AssertionError(f"shard {shard_id} is not led")


def test_slow_reader_is_told_to_resync(hurt, open_channel):
    """A device that does not read costs a bounded queue; what it missed is in its inbox."""
    channel = open_channel(hurt.nodes[0].client)
    # A connection that takes little more than what is read from it.
    narrow = open_channel(
        hurt.nodes[1].client, ("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16_384)
    )
    alice, bob = Caller(channel, unique("alice")), Caller(channel, unique("bob"))
    conversation = direct(alice.user, bob.user)
    with device(narrow, alice.user, reads=False) as slow:
        wait_for_sessions(open_channel(hurt.nodes[1].client), 1)
        for _ in range(60):
            bob.say(conversation, "x" * 30_000)
        alice.inbox(head=60)
        slow.start_reading()
        first = slow.take("welcome").inbox_head + 1
        wait_all_told(slow, first, 60)
        resyncs = slow.left("resync")
        assert {resync.reason for resync in resyncs} == {chat.Resync.TOO_SLOW}
        left_out = resyncs[0]
        missed = alice.inbox(head=60, cursor=left_out.after_inbox_seq)
        assert missed[0].inbox_seq == left_out.after_inbox_seq + 1
        # Pushing goes on after it.
        bob.say(conversation, "a small one")
        wait_all_told(slow, first, 61)
        assert slow.left("delivery")[-1].inbox_seq == 61


def test_a_node_that_cannot_serve_says_so():
    """One of three is alive but not ready, and says what it waits for."""
    lonely = Cluster()
    try:
        node = lonely.nodes[0]
        node.start()
        wait_alive(node)
        status, body = node.probe("/readyz")
        assert status == 503
        assert "waits for" in body
    finally:
        lonely.close()


def test_no_majority_is_not_ready(open_channel):
    """With two of three gone, the node left answers health checks with NOT_SERVING."""
    with Cluster(shards=SHARDS, extra=CONFIG) as cluster:
        node = cluster.nodes[0]
        health = health_pb2_grpc.HealthStub(open_channel(node.client))
        services = ["", "carillon.v1.Chat", "carillon.admin.v1.Admin"]
        watches = [
            health.Watch(health_pb2.HealthCheckRequest(service=service), timeout=20)
            for service in services
        ]
        for watch in watches:
            wait_for_status(watch, SERVING)
        for other in cluster.nodes[1:]:
            other.kill()
        for watch in watches:
            wait_for_status(watch, NOT_SERVING)
        status, body = node.probe("/readyz")
        assert status == 503
        assert "without a leader" in body
        for other in cluster.nodes[1:]:
            other.start()
        for watch in watches:
            wait_for_status(watch, SERVING)
        # Leaders go back to where they are to be: for a moment a shard may have none.
        node.wait_ready()


def test_no_leader(open_channel):
    """A node that starts alone leads nothing of what it led, and knows nobody else who does."""
    with Cluster(shards=SHARDS, extra=CONFIG) as cluster:
        node = cluster.nodes[0]
        transfer = admin.TransferLeaderRequest(shard_id=1, to_node=1)
        admin_pb2_grpc.AdminStub(open_channel(node.client)).TransferLeader(transfer, timeout=15)
        for running in cluster.nodes:
            running.kill()
        node.start()
        wait_alive(node)
        stub = admin_pb2_grpc.AdminStub(open_channel(node.client))
        with refused(UNAVAILABLE, "NO_LEADER", shard_id=1):
            stub.ChecksumShard(admin.ChecksumShardRequest(shard_id=1), timeout=15)


def test_another_node_that_cannot_do_it(open_channel):
    """What is asked of one node only is refused with its name."""
    with Cluster(nodes=2, shards=1, replication_factor=1) as cluster:
        stub = admin_pb2_grpc.AdminStub(open_channel(cluster.nodes[0].client))
        (shard,) = stub.ListShards(admin.ListShardsRequest(shard_id=1), timeout=5).shards
        other = 3 - shard.replicas[0].node_id

        def flush(node_id: int) -> None:
            request = admin.TriggerSnapshotRequest(shard_id=1, node_id=node_id)
            stub.TriggerSnapshot(request, timeout=15)

        with refused(grpc.StatusCode.NOT_FOUND, "REPLICA_NOT_FOUND", node_id=other):
            flush(other)
        cluster.nodes[1].kill()
        with refused(UNAVAILABLE, "NODE_UNREACHABLE", node_id=2):
            flush(2)


def test_a_lost_node(open_channel):
    """One of three loses its disk: what is refused when it is given up, and replaced."""
    with Cluster(shards=SHARDS, extra=CONFIG) as cluster:
        stub = admin_pb2_grpc.AdminStub(open_channel(cluster.nodes[0].client))
        lost = cluster.nodes[2]

        def set_standing(node_id: int, standing: admin.Standing) -> bool:
            request = admin.SetStandingRequest(node_id=node_id, standing=standing)
            return stub.SetStanding(request, timeout=15).changed

        # Who steers the cluster is not the one that is lost.
        stub.TransferLeader(admin.TransferLeaderRequest(shard_id=0, to_node=1), timeout=15)
        lost.kill()
        with refused(FAILED_PRECONDITION, "NODE_NEEDED"):
            set_standing(2, admin.DRAINING_FOR_RESTART)
        assert set_standing(3, admin.LOST)
        assert not set_standing(3, admin.LOST), "it is so already"
        with refused(FAILED_PRECONDITION, "NODE_NEEDED"):
            set_standing(2, admin.LOST)
        with refused(FAILED_PRECONDITION, "NODE_IN_USE"):
            stub.ForgetNode(admin.ForgetNodeRequest(node_id=3), timeout=15)
        token = stub.GetJoinToken(admin.GetJoinTokenRequest(), timeout=5).join_token
        new = cluster.replacement(lost, token)
        new.start()
        wait_for_node(stub, new.node_id)
        with refused(FAILED_PRECONDITION, "REFUSED"):
            set_standing(3, admin.ACTIVE)


def test_a_lost_node_is_replaced_at_its_address(open_channel):
    """As docs/operations.md says: everything is made anew, and the old one can be forgotten."""
    with Cluster(shards=SHARDS, extra=CONFIG) as cluster:
        stub = admin_pb2_grpc.AdminStub(open_channel(cluster.nodes[0].client))
        lost = cluster.nodes[2]

        def forget() -> bool:
            return stub.ForgetNode(admin.ForgetNodeRequest(node_id=3), timeout=15).changed

        stub.TransferLeader(admin.TransferLeaderRequest(shard_id=0, to_node=1), timeout=15)
        lost.kill()
        token = stub.GetJoinToken(admin.GetJoinTokenRequest(), timeout=5).join_token
        new = cluster.replacement(lost, token)
        new.start()
        wait_for_node(stub, new.node_id)
        assert wait_answered(forget, FAILED_PRECONDITION, "NODE_IN_USE")
        assert not forget(), "it was forgotten already"
        nodes = stub.ListNodes(admin.ListNodesRequest(), timeout=5).nodes
        assert [node.node_id for node in nodes] == [1, 2, new.node_id]
        assert [node.replicas_placed for node in nodes] == [SHARDS] * 3


def test_graceful_stop(open_channel):
    """SIGTERM: streams get DRAINING, waiting calls are answered, health says it, exit 0."""
    with (
        Cluster(shards=SHARDS, extra=CONFIG) as cluster,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        node, other = cluster.nodes[:2]
        channel = open_channel(node.client)
        alice = Caller(channel, unique("alice"))
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service="carillon.v1.Chat"), timeout=30
        )
        wait_for_status(watch, SERVING)
        with device(channel, alice.user) as stream:
            stream.take("welcome")
            follow = alice.SyncStream(chat.SyncRequest(), timeout=30)
            poll = pool.submit(alice.Sync, chat.SyncRequest(wait_ms=20_000), timeout=30)
            wait_for_sessions(channel, 3)
            node.signal(signal.SIGTERM)
            kick = stream.take("kick")
            assert kick.reason == chat.Kick.DRAINING
            assert kick.reconnect_after_ms <= 500
            assert stream.end() is None
        with pytest.raises(grpc.RpcError) as raised:
            next(follow)
        check_error(raised.value, UNAVAILABLE, "DRAINING")
        assert not poll.result(timeout=10).entries
        wait_for_status(watch, NOT_SERVING)
        assert node.wait() == 0

        # The device goes on at another node.
        channel = open_channel(other.client)
        with device(channel, alice.user) as stream:
            stream.take("welcome")
            stream.say(direct(alice.user, unique("bob")), "still here")
            assert stream.take("sent").seq == 1
            assert stream.take("delivery").inbox_seq == 1
