"""Sync and SyncStream: the inbox from a cursor, waiting for news, following."""

import threading
import time

import grpc
import pytest
from carillon.v1 import chat_pb2 as chat
from client import check_error, direct, refused


def sync(who, cursor=0, **fields) -> chat.SyncResponse:
    return who.Sync(chat.SyncRequest(inbox_cursor=cursor, **fields))


@pytest.fixture
def inbox(caller):
    """Bob, whose inbox has 30 entries from three conversations."""
    bob = caller("bob")
    others = [caller(name, node) for node, name in enumerate(("alice", "carol", "dave"), 1)]
    for number in range(30):
        other = others[number % 3]
        other.say(direct(other.user, bob.user), f"{number}")
    bob.inbox(head=30)
    return bob


def test_from_a_cursor(inbox, at):
    for node in (1, 2, 3):
        page = sync(at(inbox, node), cursor=12)
        assert [entry.inbox_seq for entry in page.entries] == list(range(13, 31))
        assert (page.inbox_cursor, page.inbox_head) == (30, 30)
    assert all(entry.unread == 0 for entry in page.entries)


def test_pages(inbox):
    found, cursor = [], 0
    while cursor < 30:
        page = sync(inbox, cursor, limit=7)
        assert len(page.entries) == min(7, 30 - cursor)
        assert page.inbox_head == 30
        found += page.entries
        cursor = page.inbox_cursor
        assert cursor == found[-1].inbox_seq
    assert [entry.inbox_seq for entry in found] == list(range(1, 31))
    assert {entry.message.content.text.body for entry in found} == {str(n) for n in range(30)}
    # Within a conversation in its own order.
    for conversation in {entry.message.conversation_id for entry in found}:
        seqs = [e.message.seq for e in found if e.message.conversation_id == conversation]
        assert seqs == list(range(1, 11))


def test_at_the_head_and_beyond(inbox):
    page = sync(inbox, cursor=30)
    assert (list(page.entries), page.inbox_cursor, page.inbox_head) == ([], 30, 30)
    with refused(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_BEYOND_HEAD", cursor=31, inbox_head=30):
        sync(inbox, cursor=31)


def test_new_users_have_an_empty_inbox(caller):
    page = sync(caller("newcomer"))
    assert (list(page.entries), page.inbox_cursor, page.inbox_head) == ([], 0, 0)


def test_long_poll_is_woken(caller):
    alice, bob = caller("alice"), caller("bob", 2)
    conversation = direct(alice.user, bob.user)
    answers = []

    def wait():
        started = time.monotonic()
        page = sync(bob, wait_ms=10_000)
        answers.append((page, time.monotonic() - started))

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.3)
    alice.say(conversation, "wake up")
    waiting.join()
    page, seconds = answers[0]
    assert [entry.message.content.text.body for entry in page.entries] == ["wake up"]
    assert 0.25 < seconds < 5, "it was woken, and did not wait until the end"


def test_long_poll_ends_empty(caller):
    started = time.monotonic()
    page = sync(caller("alice"), wait_ms=400)
    assert 0.35 < time.monotonic() - started < 5
    assert (list(page.entries), page.inbox_cursor) == ([], 0)


def test_long_poll_with_a_shorter_deadline_is_answered(caller):
    """The caller's own deadline counts: an empty page, not DEADLINE_EXCEEDED."""
    page = caller("alice").Sync(chat.SyncRequest(wait_ms=30_000), timeout=1.0)
    assert list(page.entries) == []


def test_stream_catches_up_and_follows(inbox, caller):
    alice = caller("alice", 3)
    stream = inbox.SyncStream(chat.SyncRequest(inbox_cursor=5, limit=10))
    found = []
    while len(found) < 25:
        page = next(stream)
        assert 0 < len(page.entries) <= 10
        found += page.entries
        assert page.inbox_cursor == found[-1].inbox_seq
    for number in range(5):
        alice.say(direct(alice.user, inbox.user), f"live {number}")
    while len(found) < 30:
        found += next(stream).entries
    assert [entry.inbox_seq for entry in found] == list(range(6, 36))
    assert found[-1].message.content.text.body == "live 4"
    stream.cancel()
    with pytest.raises(grpc.RpcError) as ended:
        next(stream)
    assert ended.value.code() is grpc.StatusCode.CANCELLED


def test_stream_beyond_the_head(caller):
    stream = caller("alice").SyncStream(chat.SyncRequest(inbox_cursor=1))
    with pytest.raises(grpc.RpcError) as ended:
        next(stream)
    check_error(ended.value, grpc.StatusCode.OUT_OF_RANGE, "CURSOR_BEYOND_HEAD")
