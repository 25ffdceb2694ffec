"""What the tests say things with: plain grpcio and the generated stubs.

A Caller makes unary calls as one user, a Device holds one Connect stream, and `refused`
says how a call must fail.
"""

import collections
import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Iterator

import grpc
import pytest
from carillon.v1 import chat_pb2 as chat
from carillon.v1 import chat_pb2_grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

ERROR_DOMAIN = "carillon"
CALL_SECONDS_MAX = 15.0
# How long a frame, an entry or the end of a stream is waited for.
WAIT_SECONDS_MAX = 15.0
# Less than the interval that the test clusters' Welcome gives.
HEARTBEAT_SECONDS = 0.5
# The nonce of heartbeats that a Device sends by itself.
IDLE_NONCE = 0

_numbers = itertools.count(1)


def unique(name: str) -> str:
    """An id that no other test uses."""
    return f"{name}-{next(_numbers)}"


def direct(one: str, other: str) -> str:
    """The conversation of two users."""
    return "direct:" + ":".join(sorted([one, other], key=str.encode))


def text(body: str) -> chat.Content:
    return chat.Content(text=chat.Text(body=body))


def error_info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    """The ErrorInfo among a status's details; there must be exactly one."""
    status = rpc_status.from_call(error)
    assert status is not None, f"no status details with {error.code()}: {error.details()}"
    found = [
        detail for detail in status.details if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)
    ]
    assert len(found) == 1, f"expected one ErrorInfo, got {status.details}"
    info = error_details_pb2.ErrorInfo()
    assert found[0].Unpack(info)
    return info


def check_error(
    error: grpc.RpcError, code: grpc.StatusCode, reason: str, **metadata: object
) -> error_details_pb2.ErrorInfo:
    """Asserts code, reason, domain, a text for people, and the metadata that are named."""
    assert error.code() is code, f"{error.code()}: {error.details()}"
    info = error_info(error)
    assert (info.reason, info.domain) == (reason, ERROR_DOMAIN)
    assert error.details(), "an error has a text for people"
    wanted = {key: str(value) for key, value in metadata.items()}
    assert wanted.items() <= dict(info.metadata).items(), info.metadata
    return info


def raw_call(channel: grpc.Channel, path: str):
    """A unary call that is given its request as bytes, whatever they are."""
    return channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)


@contextlib.contextmanager
def refused(code: grpc.StatusCode, reason: str, **metadata: object) -> Iterator[None]:
    """The call inside must fail in this way."""
    with pytest.raises(grpc.RpcError) as raised:
        yield
    check_error(raised.value, code, reason, **metadata)


class Caller:
    """Unary calls (and SyncStream) as one user: `alice.Send(request)`.

    Without a user the call does not say who calls.
    """

    def __init__(self, channel: grpc.Channel, user: str | None) -> None:
        self.user = user
        self._stub = chat_pb2_grpc.ChatStub(channel)

    def __getattr__(self, method: str):
        call = getattr(self._stub, method)
        metadata = [] if self.user is None else [("carillon-user", self.user)]

        def invoke(request, timeout: float | None = CALL_SECONDS_MAX):
            return call(request, metadata=metadata, timeout=timeout)

        return invoke

    def say(self, conversation: str, body: str, message_id: str | None = None):
        """Sends a text under a new client_message_id, or under the one given."""
        return self.Send(
            chat.SendRequest(
                conversation_id=conversation,
                client_message_id=message_id or unique("m"),
                content=text(body),
            )
        )

    def inbox(self, head: int, cursor: int = 0) -> list[chat.InboxEntry]:
        """Syncs from the cursor until the inbox has reached `head`."""
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        entries: list[chat.InboxEntry] = []
        while cursor < head:
            assert time.monotonic() < deadline, f"the inbox is at {cursor}, not at {head}"
            page = self.Sync(chat.SyncRequest(inbox_cursor=cursor, wait_ms=2_000))
            entries += page.entries
            cursor = page.inbox_cursor
        return entries


class Device:
    """One Connect stream. Its frames are read by a thread of its own into one list per kind.

    Sends heartbeats while there is nothing else to send, unless `heartbeats` is false.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        hello: chat.Hello | None = None,
        *,
        heartbeats: bool = True,
        reads: bool = True,
    ) -> None:
        self._outgoing: queue.SimpleQueue[chat.ClientFrame | None] = queue.SimpleQueue()
        self._heartbeats = heartbeats
        self._changed = threading.Condition()
        self._frames: dict[str, collections.deque] = collections.defaultdict(collections.deque)
        self._order: list[str] = []
        self._ended = False
        self._error: grpc.RpcError | None = None
        if hello is not None:
            self.write(hello=hello)
        self.call = chat_pb2_grpc.ChatStub(channel).Connect(self._requests())
        if reads:
            self.start_reading()

    def start_reading(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()

    def write(self, **frame: object) -> None:
        """Queues a frame: `device.write(send=chat.Send(...))`."""
        self._outgoing.put(chat.ClientFrame(**frame))

    def say(self, conversation: str, body: str, message_id: str | None = None) -> int:
        """Sends a text; returns the request_id."""
        request_id = next(_numbers)
        send = chat.Send(
            request_id=request_id,
            conversation_id=conversation,
            client_message_id=message_id or unique("m"),
            content=text(body),
        )
        self.write(send=send)
        return request_id

    def _requests(self) -> Iterator[chat.ClientFrame]:
        while True:
            try:
                frame = self._outgoing.get(timeout=HEARTBEAT_SECONDS)
            except queue.Empty:
                if not self._heartbeats:
                    continue
                frame = chat.ClientFrame(heartbeat=chat.Heartbeat(nonce=IDLE_NONCE))
            if frame is None:
                return
            yield frame

    def _read(self) -> None:
        try:
            for frame in self.call:
                self._keep(frame)
        except grpc.RpcError as error:
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _keep(self, frame: chat.ServerFrame) -> None:
        kind = frame.WhichOneof("frame")
        assert kind is not None, "the server sent an empty frame"
        value = getattr(frame, kind)
        if kind == "heartbeat_ack" and value.nonce == IDLE_NONCE:
            return
        with self._changed:
            self._frames[kind].append(value)
            self._order.append(kind)
            self._changed.notify_all()

    def take(self, kind: str, seconds: float = WAIT_SECONDS_MAX):
        """The next frame of this kind, in the order they came; waits for it."""
        with self._changed:
            came = self._changed.wait_for(
                lambda: self._frames[kind] or self._ended, timeout=seconds
            )
            if self._frames[kind]:
                return self._frames[kind].popleft()
            how = f"the stream ended ({self._error})" if came else "none came in time"
            raise AssertionError(f"no {kind}: {how}; came: {self._order}")

    def left(self, kind: str) -> list:
        """What came of this kind and was not taken."""
        with self._changed:
            return list(self._frames[kind])

    @property
    def kinds(self) -> list[str]:
        """The kinds of all frames so far, in order."""
        with self._changed:
            return list(self._order)

    def end(self) -> grpc.RpcError | None:
        """Waits for the stream's end; the error, or none for OK."""
        with self._changed:
            ended = self._changed.wait_for(lambda: self._ended, timeout=WAIT_SECONDS_MAX)
            assert ended, f"the stream did not end; came: {self._order}"
            return self._error

    def finish(self) -> None:
        """Says that nothing more is sent."""
        self._outgoing.put(None)

    def close(self) -> None:
        """Leaves, whatever state the stream is in."""
        self._outgoing.put(None)
        self.call.cancel()
