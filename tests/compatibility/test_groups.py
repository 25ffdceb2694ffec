"""Groups: creating, joining, leaving, and what that writes into the timeline."""

import grpc
import pytest
from carillon.v1 import chat_pb2 as chat
from client import refused, unique

MEMBER, OWNER = chat.MEMBER_ROLE_MEMBER, chat.MEMBER_ROLE_OWNER


def create(who, conversation="", members=(), name="", request_id=None):
    return who.CreateConversation(
        chat.CreateConversationRequest(
            conversation_id=conversation,
            name=name,
            member_ids=members,
            request_id=request_id or unique("r"),
        )
    ).conversation


def add(who, conversation, *users) -> chat.AddMembersResponse:
    ids = [user.user for user in users]
    return who.AddMembers(chat.AddMembersRequest(conversation_id=conversation, member_ids=ids))


def remove(who, conversation, *users) -> chat.RemoveMembersResponse:
    ids = [user.user for user in users]
    return who.RemoveMembers(
        chat.RemoveMembersRequest(conversation_id=conversation, member_ids=ids)
    )


def timeline(who, conversation) -> list[chat.Message]:
    request = chat.GetMessagesRequest(conversation_id=conversation, limit=500)
    return list(who.GetMessages(request).messages)


def members(who, conversation, **fields) -> chat.ListMembersResponse:
    return who.ListMembers(chat.ListMembersRequest(conversation_id=conversation, **fields))


def test_create(caller, at):
    alice, bob = caller("alice"), caller("bob")
    name = "Glockenspiel 🔔"
    made = create(alice, unique("group"), [bob.user, bob.user, alice.user], name)
    assert made.kind == chat.CONVERSATION_KIND_GROUP
    assert (made.name, made.creator_id) == (name, alice.user)
    assert (made.member_count, made.last_seq) == (2, 1), "each member once"
    assert made.created_at_ms > 1_700_000_000_000
    for who in (alice, at(bob, 2), at(bob, 3)):
        request = chat.GetConversationRequest(conversation_id=made.conversation_id)
        assert who.GetConversation(request).conversation == made
        (notice,) = timeline(who, made.conversation_id)
        assert (notice.seq, notice.sender_id, notice.client_message_id) == (1, alice.user, "")
        assert notice.content.notice.created == chat.ConversationCreated(
            actor_id=alice.user, name=name, member_ids=sorted([alice.user, bob.user])
        )


def test_create_again(caller, at):
    alice, bob = caller("alice"), caller("bob")
    conversation = unique("group")
    first = create(alice, conversation, [bob.user], "one", request_id="r")
    assert create(at(alice, 2), conversation, [bob.user], "one", request_id="r") == first
    for who, request_id in ((alice, "other"), (bob, "r")):
        with refused(grpc.StatusCode.ALREADY_EXISTS, "CONVERSATION_EXISTS"):
            create(who, conversation, request_id=request_id)


def test_id_made_by_the_server(caller, at):
    alice, bob = caller("alice"), caller("bob")
    made = create(alice, request_id="r").conversation_id
    assert made and ":" not in made
    assert create(at(alice, 3), request_id="r").conversation_id == made
    assert create(alice, request_id="r2").conversation_id != made
    assert create(bob, request_id="r").conversation_id != made


def test_add(caller, group):
    alice, bob, carol, dave = (caller(name) for name in ("alice", "bob", "carol", "dave"))
    conversation = group(alice, bob)
    alice.say(conversation, "before carol")
    added = add(bob, conversation, carol, dave, alice)
    assert list(added.added_ids) == sorted([carol.user, dave.user]), "Alice was in it already"
    assert (added.conversation.member_count, added.conversation.last_seq) == (4, 3)
    alice.say(conversation, "after carol")

    seen = timeline(carol, conversation)
    assert [message.seq for message in seen] == [3, 4], "from the notice that added her"
    assert seen[0].content.notice.members_added == chat.MembersAdded(
        actor_id=bob.user, member_ids=sorted([carol.user, dave.user])
    )
    assert len(timeline(alice, conversation)) == 4
    assert [entry.message.seq for entry in carol.inbox(head=2)] == [3, 4]
    again = add(alice, conversation, carol)
    assert list(again.added_ids) == []
    assert again.conversation.last_seq == 4, "nothing changed, so there is no notice"


def test_members(caller, group):
    alice = caller("alice")
    others = [caller("other") for _ in range(6)]
    conversation = group(alice, *others)
    late = caller("late")
    add(alice, conversation, late)
    expected = {other.user: (MEMBER, 1) for other in others}
    expected |= {alice.user: (OWNER, 1), late.user: (MEMBER, 2)}
    for page_size in (0, 1, 3, 8):
        found, token = [], ""
        while True:
            page = members(late, conversation, page_size=page_size, page_token=token)
            found += page.members
            token = page.next_page_token
            if not token:
                break
        assert [member.user_id for member in found] == sorted(expected)
        assert {m.user_id: (m.role, m.joined_seq) for m in found} == expected


def test_remove(caller, group):
    alice, bob, carol = caller("alice"), caller("bob"), caller("carol")
    conversation = group(alice, bob, carol)
    with refused(grpc.StatusCode.PERMISSION_DENIED, "NOT_OWNER"):
        remove(bob, conversation, carol)
    removed = remove(alice, conversation, bob, caller("stranger"))
    assert list(removed.removed_ids) == [bob.user]
    assert removed.conversation.member_count == 2
    notice = timeline(alice, conversation)[-1].content.notice.members_removed
    assert notice == chat.MembersRemoved(actor_id=alice.user, member_ids=[bob.user])
    alice.say(conversation, "without bob")
    carol.inbox(head=3)

    # The notice of it is the last that Bob gets; the conversation is gone from his list.
    assert [entry.message.seq for entry in bob.inbox(head=2)] == [1, 2]
    assert bob.Sync(chat.SyncRequest(inbox_cursor=2, wait_ms=300)).inbox_head == 2
    assert not bob.ListConversations(chat.ListConversationsRequest()).conversations
    for attempt in (
        lambda: bob.say(conversation, "let me in"),
        lambda: timeline(bob, conversation),
        lambda: members(bob, conversation),
        lambda: add(bob, conversation, bob),
    ):
        with refused(grpc.StatusCode.PERMISSION_DENIED, "NOT_A_MEMBER"):
            attempt()


def test_owner_leaves(caller, group):
    alice, bob, carol = caller("alice"), caller("bob"), caller("carol")
    conversation = group(alice)
    add(alice, conversation, carol)
    add(alice, conversation, bob)
    remove(alice, conversation, alice)
    notice = timeline(carol, conversation)[-1].content.notice.members_removed
    assert notice.new_owner_id == carol.user, "who joined first"
    roles = {member.user_id: member.role for member in members(bob, conversation).members}
    assert roles == {bob.user: MEMBER, carol.user: OWNER}
    assert list(remove(carol, conversation, bob).removed_ids) == [bob.user]


def test_come_back(caller, group):
    alice, bob = caller("alice"), caller("bob")
    conversation = group(alice, bob)
    remove(bob, conversation, bob)
    alice.say(conversation, "while bob is away")
    add(alice, conversation, bob)
    alice.say(conversation, "bob is back")
    assert [message.seq for message in timeline(bob, conversation)] == [4, 5]
    assert [entry.message.seq for entry in bob.inbox(head=4)] == [1, 2, 4, 5]


def test_largest_group(caller, connect):
    """500 members, and every one of them gets the message."""
    owner = caller("owner")
    others = [caller("member", 1 + number % 3) for number in range(499)]
    made = create(owner, unique("group"), [other.user for other in others])
    assert made.member_count == 500
    device = connect(others[250].user, node=2)
    head = device.take("welcome").inbox_head
    owner.say(made.conversation_id, "everyone")
    pushed = [device.take("delivery") for _ in range(2 - head)]
    assert pushed[-1].message.content.text.body == "everyone"
    for other in others[::50]:
        assert [entry.message.seq for entry in other.inbox(head=2)] == [1, 2]
    with refused(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "LIMIT_EXCEEDED",
        limit="members_max",
        max=500,
        actual=501,
    ):
        add(owner, made.conversation_id, caller("one-too-many"))


def test_too_large_from_the_start(caller):
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED", limit="members_max"):
        create(caller("owner"), unique("group"), [f"member-{n}" for n in range(500)])


@pytest.mark.parametrize("change", [add, remove])
def test_direct_conversations_do_not_change(caller, change):
    alice, bob = caller("alice"), caller("bob")
    conversation = f"direct:{alice.user}:{bob.user}"
    alice.say(conversation, "hi")
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "DIRECT_FIXED"):
        change(alice, conversation, bob)
