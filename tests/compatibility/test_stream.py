"""Connect: sign-in, sending, push between users, several devices, and how streams end."""

import time

import grpc
import pytest
from carillon.v1 import chat_pb2 as chat
from client import WAIT_SECONDS_MAX, Device, check_error, direct, text, unique


def test_sign_in_is_welcomed(caller, connect):
    alice = caller("alice")
    welcome = connect(alice.user).take("welcome")
    assert welcome.session_id
    assert welcome.server_time_ms > 1_700_000_000_000
    assert welcome.heartbeat_interval_ms == 1_000
    assert (welcome.inbox_cursor, welcome.inbox_head) == (0, 0)
    assert welcome.limits == chat.Limits(
        sends_in_flight_max=256,
        content_bytes_max=65_536,
        page_entries_max=500,
        page_bytes_max=1_048_576,
        members_max=500,
    )


@pytest.mark.parametrize("node", [1, 2, 3])
def test_push_between_two_users(caller, connect, node):
    """Alice is at the first node, Bob at each of them."""
    alice, bob = caller("alice"), caller("bob")
    conversation = direct(alice.user, bob.user)
    sender, receiver = connect(alice.user), connect(bob.user, node=node)
    assert receiver.take("welcome").inbox_head == 0
    bodies = [f"message {number} – ☎" for number in range(1, 21)]
    requests = [sender.say(conversation, body) for body in bodies]

    answers = {sent.request_id: sent for sent in (sender.take("sent") for _ in requests)}
    assert [answers[request].seq for request in requests] == list(range(1, 21))
    assert not any(sent.duplicate for sent in answers.values())
    pushed = [receiver.take("delivery") for _ in bodies]
    assert [entry.inbox_seq for entry in pushed] == list(range(1, 21))
    assert [entry.unread for entry in pushed] == list(range(1, 21))
    for request, body, entry in zip(requests, bodies, pushed):
        message, sent = entry.message, answers[request]
        assert (message.conversation_id, message.sender_id) == (conversation, alice.user)
        assert message.content.text.body == body
        assert message.seq == sent.seq
        assert message.message_id == sent.message_id
        assert message.sent_at_ms == sent.sent_at_ms


def test_both_ways_at_once(caller, connect):
    alice, bob = caller("alice"), caller("bob", 2)
    conversation = direct(alice.user, bob.user)
    left, right = connect(alice.user), connect(bob.user, node=2)
    left.take("welcome"), right.take("welcome")
    for number in range(50):
        left.say(conversation, f"from alice {number}")
        right.say(conversation, f"from bob {number}")
    # Both have all hundred, in the same order.
    orders = []
    for device in (left, right):
        entries = [device.take("delivery") for _ in range(100)]
        assert [entry.inbox_seq for entry in entries] == list(range(1, 101))
        assert [entry.message.seq for entry in entries] == list(range(1, 101))
        orders.append([entry.message.message_id for entry in entries])
    assert orders[0] == orders[1] == sorted(orders[0])


def test_sender_is_not_counted_and_other_devices_see(caller, connect):
    alice, bob = caller("alice"), caller("bob")
    conversation = direct(alice.user, bob.user)
    phone = connect(alice.user, device="phone")
    laptop = connect(alice.user, node=3, device="laptop")
    phone.take("welcome"), laptop.take("welcome")
    phone.say(conversation, "hello")
    for device in (phone, laptop):
        entry = device.take("delivery")
        assert (entry.inbox_seq, entry.unread) == (1, 0)
        assert entry.message.sender_id == alice.user
    bob.say(conversation, "hi")
    for device in (phone, laptop):
        entry = device.take("delivery")
        assert (entry.inbox_seq, entry.unread) == (2, 1)


def test_duplicate_send_on_the_stream(caller, connect):
    alice, bob = caller("alice"), caller("bob")
    conversation = direct(alice.user, bob.user)
    device = connect(alice.user)
    device.say(conversation, "once", message_id="m-1")
    first = device.take("sent")
    device.say(conversation, "once", message_id="m-1")
    again = device.take("sent")
    assert again.duplicate and not first.duplicate
    assert again.request_id != first.request_id
    assert (again.seq, again.message_id, again.sent_at_ms) == (
        first.seq,
        first.message_id,
        first.sent_at_ms,
    )


def test_custom_content_is_untouched(caller, connect):
    alice, bob = caller("alice"), caller("bob")
    content = chat.Content(custom=chat.Custom(type="acme.poll", data=bytes(range(256))))
    receiver = connect(bob.user)
    receiver.take("welcome")
    alice.Send(
        chat.SendRequest(
            conversation_id=direct(alice.user, bob.user),
            client_message_id=unique("m"),
            content=content,
        )
    )
    assert receiver.take("delivery").message.content == content


def test_heartbeats_are_echoed(caller, connect):
    alice, bob = caller("alice"), caller("bob")
    device = connect(alice.user)
    device.take("welcome")
    device.write(heartbeat=chat.Heartbeat(nonce=2**64 - 1))
    ack = device.take("heartbeat_ack")
    assert (ack.nonce, ack.inbox_head) == (2**64 - 1, 0)
    assert ack.server_time_ms > 1_700_000_000_000
    bob.say(direct(alice.user, bob.user), "hi")
    device.take("delivery")
    device.write(heartbeat=chat.Heartbeat(nonce=7))
    assert device.take("heartbeat_ack").inbox_head == 1


def test_cursor_is_kept_for_each_device(caller, connect):
    alice, bob = caller("alice"), caller("bob")
    conversation = direct(alice.user, bob.user)
    for number in range(5):
        bob.say(conversation, f"{number}")
    alice.inbox(head=5)

    def cursor(device: str, given: int | None = None) -> int:
        stream = connect(alice.user, device=device, cursor=given)
        welcome = stream.take("welcome")
        assert welcome.inbox_head == 5
        stream.finish()
        assert stream.end() is None
        return welcome.inbox_cursor

    def acknowledge(inbox_seq: int) -> None:
        stream = connect(alice.user, device="phone")
        stream.take("welcome")
        stream.write(cursor_ack=chat.CursorAck(inbox_seq=inbox_seq))
        stream.finish()
        assert stream.end() is None

    def wait_for_cursor(expected: int, at_least: int) -> None:
        # An acknowledgement is not answered, so it may take a moment.
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while (kept := cursor("phone")) != expected:
            assert kept >= at_least, "a cursor never moves backward"
            assert time.monotonic() < deadline, f"the cursor is {kept}, not {expected}"

    assert cursor("phone") == 0
    acknowledge(3)
    wait_for_cursor(3, at_least=0)
    acknowledge(2)
    acknowledge(4)
    wait_for_cursor(4, at_least=3)
    assert cursor("tablet") == 0, "each device has its own"
    assert cursor("phone", given=1) == 1, "the device knows better"


def test_catch_up_and_live_meet(caller, connect):
    """Sync up to Welcome.inbox_head, deliveries after it: nothing twice, nothing left out."""
    alice, bob = caller("alice"), caller("bob", 3)
    conversation = direct(alice.user, bob.user)
    sender = connect(bob.user, node=3)
    sender.take("welcome")
    for number in range(200):
        sender.say(conversation, f"{number}")
    # In the middle of it.
    receiver = connect(alice.user, node=2)
    head = receiver.take("welcome").inbox_head
    entries = alice.inbox(head=head)[:head]
    entries += [receiver.take("delivery") for _ in range(200 - head)]
    assert [entry.inbox_seq for entry in entries] == list(range(1, 201))
    assert [entry.message.content.text.body for entry in entries] == [
        str(number) for number in range(200)
    ]
    assert not receiver.left("resync")


def test_half_close_answers_what_was_sent(caller, connect):
    alice, bob = caller("alice"), caller("bob")
    device = connect(alice.user)
    for number in range(100):
        device.say(direct(alice.user, bob.user), f"{number}")
    device.finish()
    assert device.end() is None, "the stream ends with OK"
    assert sorted(sent.seq for sent in device.left("sent")) == list(range(1, 101))
    assert device.kinds[0] == "welcome"


def test_same_device_replaces(caller, connect):
    alice = caller("alice")
    first = connect(alice.user)
    first.take("welcome")
    second = connect(alice.user)
    second.take("welcome")
    assert first.take("kick").reason == chat.Kick.REPLACED
    assert first.end() is None
    second.write(heartbeat=chat.Heartbeat(nonce=1))
    assert second.take("heartbeat_ack").nonce == 1


def test_silence_ends_the_stream(caller, connect):
    device = connect(caller("alice").user, heartbeats=False)
    device.take("welcome")
    assert device.take("kick").reason == chat.Kick.HEARTBEAT_TIMEOUT
    assert device.end() is None


def frames_of(channel, *requests: bytes) -> tuple[list[chat.ServerFrame], grpc.RpcError | None]:
    """What comes of a stream that sends these bytes as frames, and how it ends."""
    connect = channel.stream_stream(
        "/carillon.v1.Chat/Connect",
        request_serializer=bytes,
        response_deserializer=chat.ServerFrame.FromString,
    )
    frames = []
    try:
        for frame in connect(iter(requests), timeout=WAIT_SECONDS_MAX):
            frames.append(frame)
    except grpc.RpcError as error:
        return frames, error
    return frames, None


def hello_of(user: str) -> bytes:
    hello = chat.Hello(user_id=user, device_id="phone")
    return chat.ClientFrame(hello=hello).SerializeToString()


@pytest.mark.parametrize("garbage", [b"\xff" * 20, b"\x0a\x7fshort", b"\x12\x02\x0a\x00"])
@pytest.mark.parametrize("after_hello", [False, True])
def test_bytes_that_are_no_frame(channels, caller, after_hello, garbage):
    before = [hello_of(caller("alice").user)] if after_hello else []
    frames, error = frames_of(channels[0], *before, garbage)
    assert frames[-1].kick.reason == chat.Kick.PROTOCOL_ERROR
    check_error(error, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FRAME")


def test_frame_of_an_unknown_kind(channels, caller):
    frames, error = frames_of(channels[0], hello_of(caller("alice").user), b"\x7a\x00")
    assert frames[-1].kick.reason == chat.Kick.PROTOCOL_ERROR
    check_error(error, grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_FRAME")


@pytest.mark.parametrize(
    "content",
    [
        b"\x0a\x03\x0a\x01\xff",
        b"\x12\x03\x0a\x01\xff",
        b"\x0a\x03\x0a\x01a\x0a\x03\x0a\x01b",
        b"\x0a\x06\x0a\x01a\x0a\x01b",
        b"\x0a\x05\x0a\x01a\x7a\x00",
        b"\x7a\x00",
        b"\x0a\x09\x0a",
    ],
    ids=[
        "text is not UTF-8",
        "type is not UTF-8",
        "two texts",
        "text with two bodies",
        "text with an unknown field",
        "unknown kind",
        "cut off",
    ],
)
def test_content_that_not_every_reader_could_read(channels, caller, content):
    """Content is kept as it was sent, so it must be what any library reads alike."""
    alice = caller("alice")
    send = chat.Send(
        request_id=7, conversation_id=direct(alice.user, "bob"), client_message_id="m"
    ).SerializeToString()
    send += bytes([4 << 3 | 2, len(content)]) + content
    frame = bytes([2 << 3 | 2, len(send)]) + send
    frames, error = frames_of(channels[0], hello_of(alice.user), frame)
    assert error is None, "the stream is well"
    (answer,) = [frame.error for frame in frames if frame.WhichOneof("frame") == "error"]
    assert (answer.request_id, answer.reason) == (7, "INVALID_CONTENT")
    assert answer.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


def test_no_hello_in_time(channels):
    device = Device(channels[0], heartbeats=False)
    try:
        check_error(device.end(), grpc.StatusCode.DEADLINE_EXCEEDED, "HELLO_TIMEOUT")
    finally:
        device.close()


def test_hello_must_be_first(channels, caller):
    device = Device(channels[0], heartbeats=False)
    try:
        device.say(direct("a", "b"), "too early")
        check_error(device.end(), grpc.StatusCode.FAILED_PRECONDITION, "HELLO_EXPECTED")
        assert device.take("kick").reason == chat.Kick.PROTOCOL_ERROR
    finally:
        device.close()


def test_hello_only_once(caller, connect):
    device = connect(caller("alice").user)
    device.take("welcome")
    device.write(hello=chat.Hello(user_id="eve", device_id="phone"))
    kick = device.take("kick")
    assert kick.reason == chat.Kick.PROTOCOL_ERROR
    assert kick.message
    check_error(device.end(), grpc.StatusCode.FAILED_PRECONDITION, "HELLO_REPEATED")


def test_empty_frame(caller, connect):
    device = connect(caller("alice").user)
    device.take("welcome")
    device.write()
    assert device.take("kick").reason == chat.Kick.PROTOCOL_ERROR
    check_error(device.end(), grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_FRAME")


@pytest.mark.parametrize(
    ("hello", "code", "reason", "metadata"),
    [
        (
            chat.Hello(user_id="", device_id="phone"),
            "INVALID_ARGUMENT",
            "INVALID_ID",
            dict(field="user id"),
        ),
        (
            chat.Hello(user_id="a b", device_id="phone"),
            "INVALID_ARGUMENT",
            "INVALID_ID",
            dict(field="user id"),
        ),
        (
            chat.Hello(user_id="alice", device_id=""),
            "INVALID_ARGUMENT",
            "INVALID_ID",
            dict(field="device id"),
        ),
        (
            chat.Hello(user_id="alice", device_id="é"),
            "INVALID_ARGUMENT",
            "INVALID_ID",
            dict(field="device id"),
        ),
        (
            chat.Hello(user_id="alice", device_id="phone", platform="x" * 65),
            "INVALID_ARGUMENT",
            "LIMIT_EXCEEDED",
            dict(limit="platform_bytes_max", max=64, actual=65),
        ),
        (
            chat.Hello(user_id="nobody-yet", device_id="phone", inbox_cursor=1),
            "OUT_OF_RANGE",
            "CURSOR_BEYOND_HEAD",
            dict(cursor=1, inbox_head=0),
        ),
    ],
)
def test_hello_refused(channels, hello, code, reason, metadata):
    device = Device(channels[0], hello)
    try:
        check_error(device.end(), grpc.StatusCode[code], reason, **metadata)
        assert device.kinds == []
    finally:
        device.close()


def test_failed_sends_leave_the_stream_alone(caller, connect, group):
    """Each is answered with a RequestError that names it; the stream goes on."""
    alice, bob = caller("alice"), caller("bob")
    conversation, foreign = direct(alice.user, bob.user), group(bob)
    device = connect(alice.user)
    sends = {
        1: (dict(conversation_id="a b", client_message_id="m", content=text("x")), "INVALID_ID"),
        2: (
            dict(conversation_id="direct:b:a", client_message_id="m", content=text("x")),
            "INVALID_ID",
        ),
        3: (
            dict(conversation_id=conversation, client_message_id="", content=text("x")),
            "INVALID_ID",
        ),
        4: (dict(conversation_id=conversation, client_message_id="m"), "INVALID_CONTENT"),
        5: (
            dict(conversation_id=conversation, client_message_id="m", content=text("")),
            "INVALID_CONTENT",
        ),
        6: (
            dict(
                conversation_id=conversation,
                client_message_id="m",
                content=chat.Content(notice=chat.Notice()),
            ),
            "CONTENT_NOT_ALLOWED",
        ),
        7: (
            dict(conversation_id=conversation, client_message_id="m", content=text("x" * 65_536)),
            "LIMIT_EXCEEDED",
        ),
        8: (
            dict(conversation_id="no-such-group", client_message_id="m", content=text("x")),
            "CONVERSATION_NOT_FOUND",
        ),
        9: (
            dict(conversation_id=foreign, client_message_id="m", content=text("x")),
            "NOT_A_MEMBER",
        ),
        10: (
            dict(
                conversation_id=direct("eve", "mallory"), client_message_id="m", content=text("x")
            ),
            "NOT_A_MEMBER",
        ),
    }
    codes = {
        "INVALID_ID": grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_CONTENT": grpc.StatusCode.INVALID_ARGUMENT,
        "CONTENT_NOT_ALLOWED": grpc.StatusCode.INVALID_ARGUMENT,
        "LIMIT_EXCEEDED": grpc.StatusCode.RESOURCE_EXHAUSTED,
        "CONVERSATION_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
        "NOT_A_MEMBER": grpc.StatusCode.PERMISSION_DENIED,
    }
    for request_id, (fields, _) in sends.items():
        device.write(send=chat.Send(request_id=request_id, **fields))
    errors = {error.request_id: error for error in (device.take("error") for _ in sends)}
    for request_id, (_, reason) in sends.items():
        error = errors[request_id]
        assert error.reason == reason, error
        assert error.code == codes[reason].value[0], error
        assert error.message
    assert errors[7].metadata["limit"] == "content_bytes_max"
    assert errors[7].metadata["max"] == "65536"
    assert errors[1].metadata["field"] == "conversation id"
    device.say(conversation, "still here")
    assert device.take("sent").seq == 1


def test_oversized_frame(caller, connect):
    device = connect(caller("alice").user)
    device.take("welcome")
    device.say(direct("a", "b"), "x" * (256 << 10))
    assert device.take("kick").reason == chat.Kick.PROTOCOL_ERROR
    check_error(
        device.end(),
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "LIMIT_EXCEEDED",
        limit="frame_bytes_max",
        max=131_072,
    )
