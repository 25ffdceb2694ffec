"""One cluster for the whole run, and who talks to it."""

import contextlib
from collections.abc import Callable, Iterator

import grpc
import pytest
from carillon.v1 import chat_pb2 as chat
from client import Caller, Device, unique
from cluster import Cluster

# Short, so that the tests of silence do not take long.
CLIENTS = '[clients]\nheartbeat = "1s"\nhello_timeout = "2s"\n'
CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", 8 << 20),
    # A node that restarts is found again at once.
    ("grpc.max_reconnect_backoff_ms", 200),
    # Each test has connections of its own.
    ("grpc.use_local_subchannel_pool", 1),
]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three nodes. No test hurts them."""
    with Cluster(extra=CLIENTS) as running:
        yield running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Shows the end of each node's log with a test that failed."""
    report = yield
    if report.failed:
        for value in item.funcargs.values():
            if isinstance(value, Cluster):
                report.sections += [
                    (f"the end of {node.log}", node.log_end()) for node in value.nodes
                ]
    return report


@pytest.fixture
def open_channel() -> Iterator[Callable[[str], grpc.Channel]]:
    """Opens channels that are closed with the test."""
    with contextlib.ExitStack() as opened:

        def open_one(address: str, *options: tuple[str, int]) -> grpc.Channel:
            channel = grpc.insecure_channel(address, options=[*CHANNEL_OPTIONS, *options])
            return opened.enter_context(channel)

        yield open_one


@pytest.fixture
def channels(cluster: Cluster, open_channel) -> list[grpc.Channel]:
    """A channel to each of the three nodes."""
    return [open_channel(node.client) for node in cluster.nodes]


@pytest.fixture
def caller(channels) -> Callable[..., Caller]:
    """A user that no other test uses, as a caller at one of the nodes."""

    def new(name: str, node: int = 1) -> Caller:
        return Caller(channels[node - 1], unique(name))

    return new


@pytest.fixture
def at(channels) -> Callable[[Caller, int], Caller]:
    """The same user at another node."""
    return lambda who, node: Caller(channels[node - 1], who.user)


@pytest.fixture
def connect(channels) -> Iterator[Callable[..., Device]]:
    """Opens Connect streams as a user; they are closed with the test."""
    with contextlib.ExitStack() as opened:

        def new(
            user: str,
            node: int = 1,
            device: str = "phone",
            cursor: int | None = None,
            channel: grpc.Channel | None = None,
            **options: bool,
        ) -> Device:
            hello = chat.Hello(
                user_id=user, device_id=device, platform="python", inbox_cursor=cursor
            )
            stream = Device(channel or channels[node - 1], hello, **options)
            opened.callback(stream.close)
            return stream

        yield new


@pytest.fixture
def group(caller) -> Callable[..., str]:
    """Makes a group of an owner and others; returns its id."""

    def new(owner: Caller, *others: Caller, name: str = "a group") -> str:
        answer = owner.CreateConversation(
            chat.CreateConversationRequest(
                conversation_id=unique("group"),
                name=name,
                member_ids=[other.user for other in others],
                request_id=unique("r"),
            )
        )
        return answer.conversation.conversation_id

    return new
