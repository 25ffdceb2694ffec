"""What operators may set about how the cluster heals itself and moves replicas."""

import grpc
import pytest
from carillon.admin.v1 import admin_pb2 as admin
from carillon.admin.v1 import admin_pb2_grpc
from client import check_error

DEFAULTS = admin.Policy(
    down_after_s=30,
    failure_replacement_after_s=600,
    moves_max=4,
    moves_per_node_max=2,
    lost_nodes_max=1,
    snapshot_kib_per_s_max=65_536,
    balance=True,
    shard_gib_max=32,
    shard_commands_per_s_max=50_000,
    shards_min=16,
    finalize_upgrade_after_s=86_400,
)


@pytest.fixture
def stub(channels) -> admin_pb2_grpc.AdminStub:
    return admin_pb2_grpc.AdminStub(channels[0])


def test_a_change_leaves_the_rest(stub):
    assert stub.GetPolicy(admin.GetPolicyRequest(), timeout=5).policy == DEFAULTS
    answer = stub.SetPolicy(admin.SetPolicyRequest(moves_max=3, balance=False), timeout=5)
    assert answer.changed
    assert (answer.policy.moves_max, answer.policy.balance) == (3, False)
    assert answer.policy.down_after_s == 30
    again = stub.SetPolicy(admin.SetPolicyRequest(moves_max=3), timeout=5)
    assert not again.changed
    stub.SetPolicy(admin.SetPolicyRequest(moves_max=4, balance=True), timeout=5)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"down_after_s": 0}, "down_after_s"),
        ({"failure_replacement_after_s": 29}, "failure_replacement_after_s"),
        ({"moves_max": 65}, "moves_max"),
        ({"moves_per_node_max": 5}, "moves_per_node_max"),
        ({"lost_nodes_max": 1025}, "lost_nodes_max"),
        ({"snapshot_kib_per_s_max": 63}, "snapshot_kib_per_s_max"),
        ({"shard_gib_max": 1_048_577}, "shard_gib_max"),
        ({"shard_commands_per_s_max": 99}, "shard_commands_per_s_max"),
        ({"shards_min": 0}, "shards_min"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(stub, change, named):
    with pytest.raises(grpc.RpcError, match=named) as raised:
        stub.SetPolicy(admin.SetPolicyRequest(**change), timeout=5)
    check_error(raised.value, grpc.StatusCode.INVALID_ARGUMENT, "POLICY_OUT_OF_RANGE")


def test_the_zone_of_leaders(stub):
    answer = stub.SetPolicy(admin.SetPolicyRequest(leader_zone="east"), timeout=5)
    assert answer.changed and answer.policy.leader_zone == "east"
    assert stub.GetPolicy(admin.GetPolicyRequest(), timeout=5).policy.leader_zone == "east"
    with pytest.raises(grpc.RpcError) as raised:
        stub.SetPolicy(admin.SetPolicyRequest(leader_zone="z" * 256), timeout=5)
    check_error(raised.value, grpc.StatusCode.INVALID_ARGUMENT, "POLICY_OUT_OF_RANGE")
    assert stub.SetPolicy(admin.SetPolicyRequest(leader_zone=""), timeout=5).policy == DEFAULTS


def test_a_rotated_token_is_another_one(stub):
    before = stub.GetJoinToken(admin.GetJoinTokenRequest(), timeout=5).join_token
    new = stub.RotateJoinToken(admin.RotateJoinTokenRequest(), timeout=5).join_token
    assert new not in ("", before)
    assert stub.GetJoinToken(admin.GetJoinTokenRequest(), timeout=5).join_token == new
