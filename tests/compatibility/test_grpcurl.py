"""grpcurl, which is written in Go and has none of our files: reflection tells it all."""

import json
import os
import select
import subprocess
import time

import pytest
from client import ERROR_DOMAIN, WAIT_SECONDS_MAX, direct, unique

GRPCURL = os.environ["CARILLON_GRPCURL"]
# grpcurl's exit code is 64 and the canonical code.
EXIT_CODE_BASE = 64
NOT_FOUND, INVALID_ARGUMENT, UNAUTHENTICATED = 5, 3, 16


def arguments(address: str, *rest: str, user: str | None = None, data: object = None) -> list[str]:
    command = [GRPCURL, "-plaintext", "-format-error", "-max-time", "15"]
    if user is not None:
        command += ["-H", f"carillon-user: {user}"]
    if data is not None:
        command += ["-d", data if isinstance(data, str) else json.dumps(data)]
    return [*command, address, *rest]


def grpcurl(address: str, *rest: str, **options) -> str:
    done = subprocess.run(
        arguments(address, *rest, **options), capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def call(address: str, method: str, user: str | None = None, **fields) -> dict:
    return json.loads(grpcurl(address, f"carillon.v1.Chat/{method}", user=user, data=fields))


def failure(address: str, method: str, user: str | None = None, **fields) -> tuple[int, str, dict]:
    """The code, the ErrorInfo's reason and its metadata, of a call that must fail."""
    command = arguments(address, f"carillon.v1.Chat/{method}", user=user, data=fields)
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    status = json.loads(done.stderr)
    assert done.returncode == EXIT_CODE_BASE + status["code"]
    assert status["message"]
    (detail,) = status["details"]
    assert detail["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    # Reflection tells it what an ErrorInfo is, or it would show bytes.
    assert detail["domain"] == ERROR_DOMAIN
    return status["code"], detail["reason"], detail.get("metadata", {})


@pytest.fixture
def address(cluster) -> str:
    return cluster.nodes[0].client


def test_list(address):
    services = grpcurl(address, "list").split()
    assert {"carillon.v1.Chat", "carillon.admin.v1.Admin", "grpc.health.v1.Health"} <= set(services)
    methods = grpcurl(address, "list", "carillon.v1.Chat").split()
    assert len(methods) >= 12
    assert "carillon.v1.Chat.Connect" in methods


@pytest.mark.parametrize(
    ("symbol", "said"),
    [
        ("carillon.v1.Chat", "rpc Connect ( stream .carillon.v1.ClientFrame )"),
        ("carillon.v1.Message", "string conversation_id = 1;"),
        ("carillon.v1.Hello", "optional uint64 inbox_cursor = 4;"),
        ("carillon.admin.v1.Admin", "rpc ListShards"),
        ("grpc.health.v1.Health", "rpc Check"),
        ("google.rpc.ErrorInfo", "string reason = 1;"),
    ],
)
def test_describe(address, symbol, said):
    assert said in grpcurl(address, "describe", symbol)


def test_health(cluster):
    for node in cluster.nodes:
        for service in ("", "carillon.v1.Chat", "carillon.admin.v1.Admin"):
            answer = grpcurl(node.client, "grpc.health.v1.Health/Check", data={"service": service})
            assert json.loads(answer) == {"status": "SERVING"}


def test_send_read_sync(cluster):
    alice, bob = unique("alice"), unique("bob")
    conversation = direct(alice, bob)
    first, second, third = (node.client for node in cluster.nodes)
    message = {
        "conversation_id": conversation,
        "client_message_id": "m-1",
        "content": {"text": {"body": "hello from Go"}},
    }
    sent = call(first, "Send", alice, **message)
    assert sent["seq"] == "1"
    again = call(second, "Send", alice, **message)
    assert again == {**sent, "duplicate": True}

    read = call(third, "GetMessages", bob, conversation_id=conversation)
    assert read["lastSeq"] == "1"
    assert read["messages"][0]["content"]["text"]["body"] == "hello from Go"
    backward = call(
        third, "GetMessages", bob, conversation_id=conversation, direction="DIRECTION_BACKWARD"
    )
    assert backward["messages"] == read["messages"]

    synced = call(second, "Sync", bob, wait_ms=5_000)
    assert (synced["inboxCursor"], synced["inboxHead"]) == ("1", "1")
    assert synced["entries"][0]["message"] == read["messages"][0]
    listed = call(first, "ListConversations", bob)
    assert listed["unreadTotal"] == "1"
    marked = call(first, "MarkRead", bob, conversation_id=conversation, read_seq=1)
    assert marked == {"readSeq": "1"}


def test_group(address):
    alice, bob, carol = unique("alice"), unique("bob"), unique("carol")
    made = call(address, "CreateConversation", alice, name="Go", member_ids=[bob], request_id="r")
    conversation = made["conversation"]["conversationId"]
    added = call(address, "AddMembers", bob, conversation_id=conversation, member_ids=[carol])
    assert added["addedIds"] == [carol]
    members = call(address, "ListMembers", carol, conversation_id=conversation)["members"]
    assert [member["userId"] for member in members] == sorted([alice, bob, carol])


def test_errors(address):
    alice = unique("alice")
    assert failure(address, "Sync")[:2] == (UNAUTHENTICATED, "USER_MISSING")
    assert failure(address, "GetMessages", alice, conversation_id="no-such")[:2] == (
        NOT_FOUND,
        "CONVERSATION_NOT_FOUND",
    )
    code, reason, metadata = failure(address, "Sync", alice, limit=501)
    assert (code, reason) == (INVALID_ARGUMENT, "LIMIT_EXCEEDED")
    assert metadata == {"limit": "page_entries_max", "max": "500", "actual": "501"}


def test_admin(address):
    answer = json.loads(grpcurl(address, "carillon.admin.v1.Admin/GetCluster"))
    assert (answer["nodes"], answer["shards"]) == (3, 16)


def test_connect_with_all_frames_at_once(address):
    """Frames from standard input, then its end: everything is answered, the call is OK."""
    alice = unique("alice")
    frames = [{"hello": {"user_id": alice, "device_id": "terminal", "platform": "go"}}]
    frames += [
        {
            "send": {
                "request_id": number,
                "conversation_id": direct(alice, "someone"),
                "client_message_id": f"m-{number}",
                "content": {"text": {"body": f"{number}"}},
            }
        }
        for number in range(1, 11)
    ]
    frames.append({"heartbeat": {"nonce": 5}})
    done = subprocess.run(
        arguments(address, "carillon.v1.Chat/Connect", data="@"),
        input="\n".join(json.dumps(frame) for frame in frames),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    answers = documents(done.stdout)[0]
    assert answers[0]["welcome"]["limits"]["sendsInFlightMax"] == 256
    sent = [answer["sent"] for answer in answers if "sent" in answer]
    assert sorted(int(answer["seq"]) for answer in sent) == list(range(1, 11))
    assert [a["heartbeatAck"]["nonce"] for a in answers if "heartbeatAck" in a] == ["5"]


def test_connect_as_a_conversation(cluster):
    """Two grpcurls at two nodes, which talk to each other while both streams are open."""
    alice, bob = unique("alice"), unique("bob")
    with (
        Terminal(cluster.nodes[0].client, alice) as left,
        Terminal(cluster.nodes[1].client, bob) as right,
    ):
        left.take("welcome"), right.take("welcome")
        for number, (sender, receiver) in enumerate([(left, right), (right, left)] * 3, 1):
            sender.say(direct(alice, bob), f"line {number}")
            assert sender.take("sent")["seq"] == str(number)
            entry = receiver.take("delivery")
            # The receiver's stream has its own lines too.
            while entry["message"]["senderId"] == receiver.user:
                entry = receiver.take("delivery")
            assert entry["message"]["content"]["text"]["body"] == f"line {number}"
            assert entry["inboxSeq"] == str(number)


def documents(text: str) -> tuple[list[dict], str]:
    """The JSON documents that a text begins with, and what is left of it."""
    decoder, found = json.JSONDecoder(), []
    while text := text.lstrip():
        try:
            document, end = decoder.raw_decode(text)
        except json.JSONDecodeError:
            break
        found.append(document)
        text = text[end:]
    return found, text


class Terminal:
    """A grpcurl that holds a Connect stream: frames go to its standard input as they come."""

    def __init__(self, address: str, user: str) -> None:
        self.user = user
        self._said = 0
        self._text = ""
        self._frames: list[dict] = []
        self._process = subprocess.Popen(
            arguments(address, "carillon.v1.Chat/Connect", data="@"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._write({"hello": {"user_id": user, "device_id": "terminal"}})

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *failed: object) -> None:
        try:
            self._process.stdin.close()
            code = self._process.wait(timeout=10)
        finally:
            self._process.kill()
            self._process.stdout.close()
        if failed[0] is None:
            assert code == 0, "the end of standard input ends the stream with OK"

    def _write(self, frame: dict) -> None:
        self._process.stdin.write(json.dumps(frame).encode() + b"\n")
        self._process.stdin.flush()

    def say(self, conversation: str, body: str) -> None:
        self._said += 1
        self._write(
            {
                "send": {
                    "request_id": self._said,
                    "conversation_id": conversation,
                    "client_message_id": unique("m"),
                    "content": {"text": {"body": body}},
                }
            }
        )

    def take(self, kind: str) -> dict:
        """The next frame of a kind."""
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while True:
            for index, frame in enumerate(self._frames):
                if kind in frame:
                    return self._frames.pop(index)[kind]
            left = deadline - time.monotonic()
            readable, _, _ = select.select([self._process.stdout], [], [], max(left, 0))
            assert readable, f"no {kind} in time; there are {self._frames}"
            chunk = os.read(self._process.stdout.fileno(), 65_536)
            assert chunk, f"the stream ended before a {kind}"
            # What these tests say is ASCII, so no character is cut in two.
            self._text += chunk.decode()
            found, self._text = documents(self._text)
            self._frames += found
