"""How unary calls fail: code, ErrorInfo reason, domain and metadata of each mistake.

What goes wrong on a stream is in test_stream.py, what needs a history in the file of its
subject, what needs a hurt cluster in test_hurt.py.
"""

import grpc
import pytest
from carillon.v1 import chat_pb2 as chat
from client import CALL_SECONDS_MAX, Caller, direct, raw_call, refused, text, unique

INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED

# One request for each unary call, good but for what a test makes bad.
REQUESTS = {
    "Send": chat.SendRequest(
        conversation_id="direct:a:b", client_message_id="m", content=text("hi")
    ),
    "GetMessages": chat.GetMessagesRequest(conversation_id="direct:a:b"),
    "Sync": chat.SyncRequest(),
    "ListConversations": chat.ListConversationsRequest(),
    "MarkRead": chat.MarkReadRequest(conversation_id="direct:a:b", read_seq=1),
    "CreateConversation": chat.CreateConversationRequest(conversation_id="g", request_id="r"),
    "GetConversation": chat.GetConversationRequest(conversation_id="g"),
    "AddMembers": chat.AddMembersRequest(conversation_id="g", member_ids=["a"]),
    "RemoveMembers": chat.RemoveMembersRequest(conversation_id="g", member_ids=["a"]),
    "ListMembers": chat.ListMembersRequest(conversation_id="g"),
}
WITH_CONVERSATION = [
    method
    for method, request in REQUESTS.items()
    if "conversation_id" in request.DESCRIPTOR.fields_by_name
]
BAD_IDS = ["a b", "é", "x" * 65, "a/b", "a\n", "\0"]
BAD_CONVERSATION_IDS = ["a:b", "direct:b:a", "direct:a:a", "direct:a", ":", *BAD_IDS]


def changed(method: str, **fields):
    """The good request of a call, but for these fields."""
    request = type(REQUESTS[method])()
    request.CopyFrom(REQUESTS[method])
    for field, value in fields.items():
        request.ClearField(field)
        if isinstance(value, list):
            getattr(request, field).extend(value)
        elif hasattr(value, "DESCRIPTOR"):
            getattr(request, field).CopyFrom(value)
        else:
            setattr(request, field, value)
    return request


@pytest.mark.parametrize("method", REQUESTS)
def test_who_is_calling(channels, method):
    with refused(UNAUTHENTICATED, "USER_MISSING"):
        getattr(Caller(channels[0], None), method)(REQUESTS[method])
    for user in ("", "a b", "x" * 65):
        with refused(INVALID_ARGUMENT, "INVALID_ID", field="user id"):
            getattr(Caller(channels[0], user), method)(REQUESTS[method])


def test_who_is_calling_a_stream(channels):
    with refused(UNAUTHENTICATED, "USER_MISSING"):
        next(Caller(channels[0], None).SyncStream(chat.SyncRequest()))


@pytest.mark.parametrize("method", WITH_CONVERSATION)
def test_conversation_ids(caller, method):
    alice = caller("alice")
    bad_ids = (
        BAD_CONVERSATION_IDS if method == "CreateConversation" else [*BAD_CONVERSATION_IDS, ""]
    )
    for bad in bad_ids:
        with refused(INVALID_ARGUMENT, "INVALID_ID", field="conversation id"):
            getattr(alice, method)(changed(method, conversation_id=bad))
    # In these it is one of the two users that is wrong.
    for bad in ("direct::b", "direct:a:", "direct:a:b c"):
        with refused(INVALID_ARGUMENT, "INVALID_ID"):
            getattr(alice, method)(changed(method, conversation_id=bad))


@pytest.mark.parametrize(
    ("method", "field"),
    [
        ("Send", "client_message_id"),
        ("CreateConversation", "request_id"),
        ("CreateConversation", "member_ids"),
        ("AddMembers", "member_ids"),
        ("RemoveMembers", "member_ids"),
    ],
)
def test_other_ids(caller, method, field):
    alice = caller("alice")
    for bad in ["", "a:b", *BAD_IDS]:
        value = ["good", bad] if field == "member_ids" else bad
        with refused(INVALID_ARGUMENT, "INVALID_ID"):
            getattr(alice, method)(changed(method, **{field: value}))


@pytest.mark.parametrize(
    "method", [method for method in WITH_CONVERSATION if method != "CreateConversation"]
)
def test_unknown_conversation(caller, method):
    request = changed(method, conversation_id=unique("nowhere"))
    with refused(NOT_FOUND, "CONVERSATION_NOT_FOUND"):
        getattr(caller("alice"), method)(request)


@pytest.mark.parametrize(
    "method",
    [method for method in WITH_CONVERSATION if method not in ("CreateConversation", "MarkRead")],
)
def test_not_a_member(caller, group, method):
    request = changed(method, conversation_id=group(caller("bob")))
    with refused(PERMISSION_DENIED, "NOT_A_MEMBER"):
        getattr(caller("alice"), method)(request)


def test_someone_elses_direct_conversation(caller):
    alice, bob, eve = caller("alice"), caller("bob"), caller("eve")
    conversation = direct(alice.user, bob.user)
    alice.say(conversation, "secret")
    with refused(PERMISSION_DENIED, "NOT_A_MEMBER"):
        eve.GetMessages(chat.GetMessagesRequest(conversation_id=conversation))
    with refused(PERMISSION_DENIED, "NOT_A_MEMBER"):
        eve.say(conversation, "me too")
    with refused(NOT_FOUND, "CONVERSATION_NOT_FOUND"):
        eve.MarkRead(chat.MarkReadRequest(conversation_id=conversation, read_seq=1))


@pytest.mark.parametrize(
    ("content", "code", "reason"),
    [
        (chat.Content(), INVALID_ARGUMENT, "INVALID_CONTENT"),
        (text(""), INVALID_ARGUMENT, "INVALID_CONTENT"),
        (chat.Content(custom=chat.Custom(data=b"x")), INVALID_ARGUMENT, "INVALID_CONTENT"),
        (
            chat.Content(custom=chat.Custom(type="x" * 65)),
            INVALID_ARGUMENT,
            "INVALID_CONTENT",
        ),
        (
            chat.Content(
                notice=chat.Notice(created=chat.ConversationCreated(actor_id="a", name="n"))
            ),
            INVALID_ARGUMENT,
            "CONTENT_NOT_ALLOWED",
        ),
        (text("x" * 65_536), RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED"),
    ],
)
def test_content(caller, content, code, reason):
    alice = caller("alice")
    conversation = direct(alice.user, unique("bob"))
    with refused(code, reason):
        alice.Send(changed("Send", conversation_id=conversation, content=content))
    # Nothing of it was done.
    with refused(NOT_FOUND, "CONVERSATION_NOT_FOUND"):
        alice.GetMessages(chat.GetMessagesRequest(conversation_id=conversation))


def test_no_content(caller):
    with refused(INVALID_ARGUMENT, "INVALID_CONTENT"):
        caller("alice").Send(chat.SendRequest(conversation_id="g", client_message_id="m"))


@pytest.mark.parametrize(
    ("method", "fields", "limit", "maximum", "actual"),
    [
        ("GetMessages", dict(limit=501), "page_entries_max", 500, 501),
        ("GetMessages", dict(bytes_max=1_048_577), "page_bytes_max", 1_048_576, 1_048_577),
        ("Sync", dict(limit=501), "page_entries_max", 500, 501),
        ("Sync", dict(wait_ms=30_001), "sync_wait_ms_max", 30_000, 30_001),
        ("ListConversations", dict(page_size=501), "page_entries_max", 500, 501),
        ("ListMembers", dict(page_size=501), "page_entries_max", 500, 501),
        (
            "CreateConversation",
            dict(name="x" * 257),
            "conversation_name_bytes_max",
            256,
            257,
        ),
    ],
)
def test_arguments_over_a_limit(caller, method, fields, limit, maximum, actual):
    with refused(INVALID_ARGUMENT, "LIMIT_EXCEEDED", limit=limit, max=maximum, actual=actual):
        getattr(caller("alice"), method)(changed(method, **fields))


@pytest.mark.parametrize(
    ("method", "count"), [("CreateConversation", 500), ("AddMembers", 500), ("RemoveMembers", 501)]
)
def test_too_many_members(caller, method, count):
    members = [f"member-{number}" for number in range(count)]
    with refused(RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED", limit="members_max"):
        getattr(caller("alice"), method)(changed(method, member_ids=members))


@pytest.mark.parametrize("method", ["AddMembers", "RemoveMembers"])
def test_no_members_named(caller, method):
    with refused(INVALID_ARGUMENT, "MEMBERS_MISSING"):
        getattr(caller("alice"), method)(changed(method, member_ids=[]))


@pytest.mark.parametrize(
    "fields",
    [
        dict(direction=chat.DIRECTION_FORWARD, from_seq=6, to_seq=5),
        dict(from_seq=6, to_seq=5),
        dict(direction=chat.DIRECTION_BACKWARD, from_seq=5, to_seq=6),
    ],
)
def test_reversed_range(caller, fields):
    with refused(INVALID_ARGUMENT, "RANGE_REVERSED"):
        caller("alice").GetMessages(changed("GetMessages", **fields))


def test_unknown_direction(caller):
    with refused(INVALID_ARGUMENT, "INVALID_DIRECTION"):
        caller("alice").GetMessages(changed("GetMessages", direction=3))


@pytest.mark.parametrize("method", ["ListConversations", "ListMembers"])
@pytest.mark.parametrize("token", ["x", "garbage garbage", "AAAAAAAA", "é", "A" * 4_000])
def test_page_tokens(caller, group, method, token):
    alice = caller("alice")
    fields = dict(page_token=token)
    if method == "ListMembers":
        fields["conversation_id"] = group(alice)
    with refused(INVALID_ARGUMENT, "INVALID_PAGE_TOKEN"):
        getattr(alice, method)(changed(method, **fields))


def test_page_token_of_another_call(caller, group):
    alice = caller("alice")
    conversation = group(alice, caller("bob"))
    token = alice.ListMembers(
        chat.ListMembersRequest(conversation_id=conversation, page_size=1)
    ).next_page_token
    assert token
    with refused(INVALID_ARGUMENT, "INVALID_PAGE_TOKEN"):
        alice.ListConversations(chat.ListConversationsRequest(page_token=token))


@pytest.mark.parametrize("name", [*REQUESTS, "SyncStream"])
def test_bytes_that_are_no_request(channels, name):
    """A client may send anything as a message: the call fails, the connection lives."""
    call = raw_call(channels[0], f"/carillon.v1.Chat/{name}")
    for garbage in (b"\xff" * 20, b"\x0a\x7fshort", b"\x0b"):
        with refused(INVALID_ARGUMENT, "INVALID_REQUEST"):
            call(garbage, metadata=[("carillon-user", "alice")], timeout=CALL_SECONDS_MAX)
    alice = Caller(channels[0], unique("alice"))
    assert alice.say(direct(alice.user, unique("bob")), "still here").seq == 1


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("Send", b"\x0a\x02\xff\xfe"),
        ("Send", b"\x0a\x0adirect:a:b\x12\x01m\x1a\x05\x0a\x03\x0a\x01\xff"),
        ("CreateConversation", b"\x0a\x01g\x12\x01\xff\x22\x01r"),
        ("ListMembers", b"\x0a\x01g\x1a\x01\xff"),
    ],
)
def test_text_that_is_not_utf8(channels, name, request_):
    """An id, a message's text, a name, a token: protobuf has only UTF-8 there."""
    with refused(INVALID_ARGUMENT, "INVALID_REQUEST"):
        raw_call(channels[0], f"/carillon.v1.Chat/{name}")(
            request_, metadata=[("carillon-user", "alice")], timeout=CALL_SECONDS_MAX
        )


def test_oversized_request(caller):
    with refused(
        RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED", limit="request_bytes_max", max=1_048_576
    ):
        caller("alice").Send(changed("Send", content=text("x" * 1_048_576)))


def test_unknown_method(channels):
    for path in ("/carillon.v1.Chat/Nothing", "/carillon.v9.Chat/Send"):
        with pytest.raises(grpc.RpcError) as raised:
            raw_call(channels[0], path)(b"", timeout=CALL_SECONDS_MAX)
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
