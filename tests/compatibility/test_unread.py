"""ListConversations and MarkRead: the list, its pages, exact unread counts."""

import time

import grpc
import pytest
from carillon.v1 import chat_pb2 as chat
from client import direct, refused


def conversations(who, **fields) -> chat.ListConversationsResponse:
    return who.ListConversations(chat.ListConversationsRequest(**fields))


def mark(who, conversation, seq) -> chat.MarkReadResponse:
    return who.MarkRead(chat.MarkReadRequest(conversation_id=conversation, read_seq=seq))


def test_list_shows_last_message_and_unread(caller, at):
    alice, bob, carol = caller("alice"), caller("bob", 2), caller("carol", 3)
    with_bob, with_carol = direct(alice.user, bob.user), direct(alice.user, carol.user)
    for number in range(3):
        bob.say(with_bob, f"bob {number}")
    alice.inbox(head=3)
    time.sleep(0.005)  # Activity is told apart by the millisecond.
    carol.say(with_carol, "carol 0")
    alice.inbox(head=4)
    for node in (1, 2, 3):
        listed = conversations(at(alice, node))
        assert listed.unread_total == 4
        assert listed.next_page_token == ""
        first, second = listed.conversations
        assert (first.conversation_id, first.unread, first.read_seq) == (with_carol, 1, 0)
        assert (second.conversation_id, second.unread, second.read_seq) == (with_bob, 3, 0)
        assert {first.kind, second.kind} == {chat.CONVERSATION_KIND_DIRECT}
        assert second.last_message.content.text.body == "bob 2"
        assert second.last_message.seq == 3


def test_mark_read_moves_forward_only(caller):
    alice, bob = caller("alice"), caller("bob", 2)
    conversation = direct(alice.user, bob.user)
    for number in range(10):
        bob.say(conversation, f"{number}")
    alice.inbox(head=10)
    assert mark(alice, conversation, 4) == chat.MarkReadResponse(read_seq=4, unread=6)
    assert mark(alice, conversation, 2) == chat.MarkReadResponse(read_seq=4, unread=6)
    assert mark(alice, conversation, 9) == chat.MarkReadResponse(read_seq=9, unread=1)
    listed = conversations(alice)
    assert (listed.unread_total, listed.conversations[0].read_seq) == (1, 9)
    assert mark(alice, conversation, 10) == chat.MarkReadResponse(read_seq=10, unread=0)
    bob.say(conversation, "one more")
    alice.inbox(head=11)
    assert conversations(alice).unread_total == 1


def test_own_messages_do_not_count(caller):
    alice, bob = caller("alice"), caller("bob", 3)
    conversation = direct(alice.user, bob.user)
    for number in range(6):
        (alice if number % 2 else bob).say(conversation, f"{number}")
    alice.inbox(head=6), bob.inbox(head=6)
    assert conversations(alice).unread_total == 3
    assert conversations(bob).unread_total == 3
    # Entries 1, 3 and 5 are Bob's.
    assert mark(alice, conversation, 2).unread == 2
    assert mark(alice, conversation, 3).unread == 1


def test_notices_do_not_count(caller, group):
    alice, bob = caller("alice"), caller("bob")
    conversation = group(alice, bob)
    bob.inbox(head=1)
    listed = conversations(bob)
    assert (listed.unread_total, listed.conversations[0].unread) == (0, 0)
    assert listed.conversations[0].kind == chat.CONVERSATION_KIND_GROUP
    assert listed.conversations[0].name == "a group"
    alice.say(conversation, "hi")
    bob.inbox(head=2)
    assert conversations(bob).unread_total == 1


def test_marking_at_once_after_reading(caller):
    """The message may not be in the inbox yet; its conversation has it."""
    alice, bob = caller("alice"), caller("bob", 2)
    conversation = direct(alice.user, bob.user)
    bob.say(conversation, "0")
    alice.inbox(head=1)
    for _ in range(20):
        seq = bob.say(conversation, "next").seq
        assert mark(alice, conversation, seq).read_seq == seq
    alice.inbox(head=21)
    assert conversations(alice).unread_total == 0


@pytest.mark.parametrize("page_size", [1, 3, 10])
def test_pages_of_the_list(caller, page_size):
    alice = caller("alice")
    others = [caller("other") for _ in range(7)]
    for other in others:
        other.say(direct(alice.user, other.user), "hi")
    alice.inbox(head=7)
    found, token = [], ""
    while True:
        page = conversations(alice, page_size=page_size, page_token=token)
        assert len(page.conversations) <= page_size
        assert page.unread_total == 7, "over all conversations, whatever the page"
        found += [summary.conversation_id for summary in page.conversations]
        token = page.next_page_token
        if not token:
            break
    assert sorted(found) == sorted(direct(alice.user, other.user) for other in others)


def test_beyond_the_end(caller):
    alice, bob = caller("alice"), caller("bob")
    conversation = direct(alice.user, bob.user)
    bob.say(conversation, "hi")
    alice.inbox(head=1)
    with refused(grpc.StatusCode.OUT_OF_RANGE, "SEQ_BEYOND_END", end=1):
        mark(alice, conversation, 2)
    with refused(grpc.StatusCode.NOT_FOUND, "CONVERSATION_NOT_FOUND"):
        mark(alice, "no-such-conversation", 1)
