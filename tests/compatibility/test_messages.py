"""Send and GetMessages: idempotency, the timeline read both ways, limits of a page."""

import pytest
from carillon.v1 import chat_pb2 as chat
from client import direct, text, unique

BACKWARD = chat.DIRECTION_BACKWARD
FORWARD = chat.DIRECTION_FORWARD


@pytest.fixture
def history(caller):
    """A conversation of 25 messages, and one who may read it."""
    alice, bob = caller("alice"), caller("bob", 2)
    conversation = direct(alice.user, bob.user)
    for number in range(1, 26):
        (alice if number % 2 else bob).say(conversation, f"message {number}")
    return alice, conversation


def read(who, conversation, **fields) -> chat.GetMessagesResponse:
    return who.GetMessages(chat.GetMessagesRequest(conversation_id=conversation, **fields))


def seqs(page: chat.GetMessagesResponse) -> list[int]:
    return [message.seq for message in page.messages]


def test_send_and_read_back(caller, at):
    alice, bob = caller("alice"), caller("bob")
    conversation = direct(alice.user, bob.user)
    sent = alice.say(conversation, "hello", message_id="first")
    assert (sent.seq, sent.duplicate) == (1, False)
    # Whoever reads, at whatever node, at once: it is there.
    for reader in (alice, bob, at(alice, 2), at(bob, 3)):
        page = read(reader, conversation)
        assert list(page.messages) == [
            chat.Message(
                conversation_id=conversation,
                seq=1,
                message_id=sent.message_id,
                sender_id=alice.user,
                client_message_id="first",
                sent_at_ms=sent.sent_at_ms,
                content=text("hello"),
            )
        ]
        assert (page.last_seq, page.next_seq) == (1, 0)


def test_duplicate_send(caller, at):
    alice, bob = caller("alice"), caller("bob")
    conversation = direct(alice.user, bob.user)
    first = alice.say(conversation, "hello", message_id="m")
    for node in (1, 2, 3):
        again = at(alice, node).say(conversation, "hello", message_id="m")
        assert again == chat.SendResponse(
            seq=first.seq,
            message_id=first.message_id,
            sent_at_ms=first.sent_at_ms,
            duplicate=True,
        )
    # The id is the sender's own: Bob's, and Alice's elsewhere, are others.
    assert not bob.say(conversation, "hello", message_id="m").duplicate
    assert not alice.say(direct(alice.user, unique("carol")), "hello", message_id="m").duplicate
    assert seqs(read(alice, conversation)) == [1, 2]


def test_message_ids_grow(history):
    alice, conversation = history
    messages = read(alice, conversation).messages
    ids = [message.message_id for message in messages]
    assert ids == sorted(set(ids))
    times = [message.sent_at_ms for message in messages]
    assert times == sorted(times)
    # 42 bits of milliseconds since 2025-01-01 UTC.
    epoch_ms = 1_735_689_600_000
    for message in messages:
        assert abs((message.message_id >> 22) + epoch_ms - message.sent_at_ms) < 60_000


@pytest.mark.parametrize(
    ("fields", "expected", "next_seq"),
    [
        (dict(), range(1, 26), 0),
        (dict(direction=FORWARD, limit=10), range(1, 11), 11),
        (dict(direction=FORWARD, from_seq=11, limit=10), range(11, 21), 21),
        (dict(direction=FORWARD, from_seq=21, limit=10), range(21, 26), 0),
        (dict(direction=FORWARD, from_seq=5, to_seq=7), range(5, 8), 0),
        (dict(direction=FORWARD, to_seq=3), range(1, 4), 0),
        (dict(direction=FORWARD, from_seq=26), [], 0),
        (dict(direction=FORWARD, from_seq=20, to_seq=9_999), range(20, 26), 0),
        (dict(direction=BACKWARD), range(25, 0, -1), 0),
        (dict(direction=BACKWARD, limit=10), range(25, 15, -1), 15),
        (dict(direction=BACKWARD, from_seq=15, limit=10), range(15, 5, -1), 5),
        (dict(direction=BACKWARD, from_seq=5, limit=10), range(5, 0, -1), 0),
        (dict(direction=BACKWARD, from_seq=7, to_seq=5), range(7, 4, -1), 0),
        (dict(direction=BACKWARD, to_seq=23), range(25, 22, -1), 0),
        (dict(direction=BACKWARD, from_seq=9_999, limit=2), [25, 24], 23),
    ],
)
def test_ranges(history, fields, expected, next_seq):
    alice, conversation = history
    page = read(alice, conversation, **fields)
    assert seqs(page) == list(expected)
    assert (page.last_seq, page.next_seq) == (25, next_seq)


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_pages_make_the_whole(history, direction):
    alice, conversation = history
    found, from_seq = [], 0
    while True:
        page = read(alice, conversation, direction=direction, from_seq=from_seq, limit=7)
        found += seqs(page)
        from_seq = page.next_seq
        if from_seq == 0:
            break
    whole = list(range(1, 26))
    assert found == (whole if direction == FORWARD else whole[::-1])


def test_pages_are_limited_in_bytes(caller):
    alice, bob = caller("alice"), caller("bob")
    conversation = direct(alice.user, bob.user)
    for _ in range(8):
        alice.say(conversation, "x" * 60_000)
    page = read(alice, conversation)
    assert seqs(page) == [1, 2, 3, 4], "262,144 bytes when nothing is said"
    assert page.next_seq == 5
    page = read(alice, conversation, bytes_max=1_048_576)
    assert seqs(page) == list(range(1, 9))
    page = read(alice, conversation, bytes_max=1, direction=BACKWARD)
    assert seqs(page) == [8], "always one"
    assert page.next_seq == 7


def test_the_largest_content(caller):
    alice, bob = caller("alice"), caller("bob")
    conversation = direct(alice.user, bob.user)
    # The tags and lengths of Content.text and Text.body take eight bytes.
    content = text("x" * (65_536 - 8))
    assert content.ByteSize() == 65_536
    alice.Send(
        chat.SendRequest(conversation_id=conversation, client_message_id="m", content=content)
    )
    assert read(bob, conversation).messages[0].content == content
