"""What every gRPC server is expected to have: health and reflection; and the HTTP probes."""

import grpc
import pytest
from client import CALL_SECONDS_MAX, raw_call
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

SERVING = health_pb2.HealthCheckResponse.SERVING
SERVICES = ["", "carillon.v1.Chat", "carillon.admin.v1.Admin"]


@pytest.mark.parametrize("service", SERVICES)
def test_health(channels, service):
    for channel in channels:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        assert stub.Check(request, timeout=5).status == SERVING
        watch = stub.Watch(request, timeout=5)
        assert next(watch).status == SERVING
        watch.cancel()


def test_health_of_nothing(channels):
    stub = health_pb2_grpc.HealthStub(channels[0])
    with pytest.raises(grpc.RpcError) as raised:
        stub.Check(health_pb2.HealthCheckRequest(service="carillon.v9.Chat"), timeout=5)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection(channels):
    database = ProtoReflectionDescriptorDatabase(channels[0])
    services = set(database.get_services())
    assert {"carillon.v1.Chat", "carillon.admin.v1.Admin", "grpc.health.v1.Health"} <= services
    assert not [name for name in services if "internal" in name], "peers have their own port"
    pool = DescriptorPool(database)
    methods = pool.FindServiceByName("carillon.v1.Chat").methods_by_name
    assert methods["Connect"].client_streaming and methods["Connect"].server_streaming
    assert set(methods) >= {"Send", "GetMessages", "Sync", "SyncStream", "MarkRead"}
    assert "sent_at_ms" in pool.FindMessageTypeByName("carillon.v1.Message").fields_by_name


def test_internal_services_are_not_for_clients(channels):
    call = raw_call(channels[0], "/carillon.internal.v1.Peer/Status")
    with pytest.raises(grpc.RpcError) as raised:
        call(b"", timeout=CALL_SECONDS_MAX)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_probes_and_metrics(cluster):
    for node in cluster.nodes:
        assert node.probe("/healthz")[0] == 200
        assert node.probe("/readyz")[0] == 200
        status, metrics = node.probe("/metrics")
        assert status == 200
        assert metrics.endswith("# EOF\n"), "OpenMetrics"
        assert "carillon" in metrics
