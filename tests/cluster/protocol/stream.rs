//! `Connect`: hello, send, delivery, cursors, kicks, limits, and a reader that is too slow.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use carillon_proto::v1::{self, client_frame, kick, resync, server_frame};
use carillon_tests::rpc;
use carillon_tests::session::{End, Session, hello};
use tokio::time::{Instant, sleep};
use tonic::Code;

use crate::cast::{Cast, body};

/// How long a stream that has to end may take.
const END_LIMIT: Duration = Duration::from_secs(5);

async fn hello_is_refused(cast: &Cast, hello: v1::Hello, code: Code, reason: &str) -> Result<()> {
    let mut session = Session::silent(&rpc::endpoint(cast.address(1))?).await?;
    session.push(client_frame::Frame::Hello(hello)).await?;
    match session.end(END_LIMIT).await? {
        End::Failed(status) => {
            rpc::assert_refused(Err::<(), _>(status), code, reason);
        }
        End::Closed => anyhow::bail!("ended with OK instead of {reason}"),
    }
    Ok(())
}

async fn ends_with(
    session: &mut Session,
    reason: kick::Reason,
    refusal: Option<(Code, &str)>,
) -> Result<()> {
    let kick = session.kick().await?;
    ensure!(kick.reason() == reason, "{kick:?}");
    match (session.end(END_LIMIT).await?, refusal) {
        (End::Closed, None) => {}
        (End::Failed(status), Some((code, reason))) => {
            rpc::assert_refused(Err::<(), _>(status), code, reason);
        }
        (end, _) => anyhow::bail!("the stream ended with {end:?}"),
    }
    Ok(())
}

#[tokio::test]
async fn a_message_reaches_the_other_user_and_the_own_devices() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, bob, direct) = cast.pair();
    let (mut phone, welcome) = cast.open(1, &alice, "phone").await?;
    assert_eq!((welcome.inbox_cursor, welcome.inbox_head), (0, 0));
    assert!(!welcome.session_id.is_empty());
    assert!(welcome.heartbeat_interval_ms > 0);
    let limits = welcome.limits.context("no limits")?;
    assert_eq!(limits.sends_in_flight_max, 256);
    assert_eq!(limits.content_bytes_max, 65_536);
    assert_eq!(limits.page_entries_max, 500);
    assert_eq!(limits.page_bytes_max, 1 << 20);
    assert_eq!(limits.members_max, 500);
    let (mut laptop, _) = cast.open(2, &alice, "laptop").await?;
    let (mut bobs, _) = cast.open(3, &bob, "phone").await?;

    let sent = phone.say(&direct, "m1", "hello bob").await?;
    assert_eq!((sent.seq, sent.duplicate), (1, false));
    for (session, unread) in [(&mut bobs, 1), (&mut phone, 0), (&mut laptop, 0)] {
        let entry = session.delivery().await?;
        assert_eq!((entry.inbox_seq, entry.unread), (1, unread));
        let message = entry.message.context("no message")?;
        assert_eq!(message.conversation_id, direct);
        assert_eq!((message.seq, message.message_id), (1, sent.message_id));
        assert_eq!(message.sent_at_ms, sent.sent_at_ms);
        assert_eq!(
            (
                message.sender_id.as_str(),
                message.client_message_id.as_str()
            ),
            (alice.as_str(), "m1")
        );
        assert_eq!(body(&message), "hello bob");
        let ack = session.heartbeat(77).await?;
        assert_eq!(ack.inbox_head, 1);
    }

    let reply = bobs.say(&direct, "m1", "hello alice").await?;
    assert_eq!(
        (reply.seq, reply.duplicate),
        (2, false),
        "ids are per sender"
    );
    assert!(reply.message_id > sent.message_id);
    assert_eq!(phone.delivery().await?.unread, 1);
    Ok(())
}

#[tokio::test]
async fn a_retry_gets_the_first_answer() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, bob, direct) = cast.pair();
    let other = cast.group("team", &alice, &[&bob]).await?;
    let (mut phone, _) = cast.open(1, &alice, "phone").await?;
    let first = phone.say(&direct, "m1", "one").await?;
    phone.say(&direct, "m2", "two").await?;
    let (mut laptop, _) = cast.open(2, &alice, "laptop").await?;
    let again = laptop.say(&direct, "m1", "one").await?;
    assert!(again.duplicate);
    assert_eq!(
        (again.seq, again.message_id, again.sent_at_ms),
        (first.seq, first.message_id, first.sent_at_ms)
    );
    let unary = cast.say(&alice, &direct, "m1", "something else").await?;
    assert!(unary.duplicate);
    assert_eq!((unary.seq, unary.message_id), (first.seq, first.message_id));
    let elsewhere = cast.say(&alice, &other, "m1", "one").await?;
    assert!(!elsewhere.duplicate, "ids are per conversation");
    let history = cast.history(&bob, &direct).await?;
    assert_eq!(history.iter().map(body).collect::<Vec<_>>(), ["one", "two"]);
    Ok(())
}

#[tokio::test]
async fn answers_of_many_sends_overlap_and_keep_their_order() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, _, direct) = cast.pair();
    let (mut phone, _) = cast.open(3, &alice, "phone").await?;
    let mut requests = Vec::new();
    for number in 0..200 {
        let id = format!("m{number}");
        requests.push(phone.send(&direct, &id, rpc::text(&id)).await?);
    }
    let mut last = 0;
    for request in requests {
        let sent = phone.sent(request).await?;
        assert_eq!(sent.seq, last + 1);
        last = sent.seq;
    }
    Ok(())
}

#[tokio::test]
async fn too_many_sends_in_flight_are_refused_and_not_stored() -> Result<()> {
    const BURST: u64 = 1_500;
    const ROUNDS_MAX: u64 = 10;
    let cast = Cast::new().await?;
    let (alice, _, direct) = cast.pair();
    let (mut phone, _) = cast.open(1, &alice, "phone").await?;
    let (mut stored, mut refused) = (0, 0);
    for round in 0..ROUNDS_MAX {
        let mut requests = Vec::new();
        for number in 0..BURST {
            let id = format!("m{round}-{number}");
            requests.push(phone.send(&direct, &id, rpc::text("x")).await?);
        }
        let mut waiting: BTreeSet<u64> = requests.into_iter().collect();
        while !waiting.is_empty() {
            let answered = match phone.next().await? {
                server_frame::Frame::Sent(sent) => {
                    stored += 1;
                    sent.request_id
                }
                server_frame::Frame::Error(error) => {
                    refused += 1;
                    assert_eq!(Code::from_i32(error.code), Code::ResourceExhausted);
                    assert_eq!(error.reason, "LIMIT_EXCEEDED");
                    assert_eq!(error.metadata["limit"], "sends_in_flight_max");
                    error.request_id
                }
                _ => continue,
            };
            assert!(
                waiting.remove(&answered),
                "request {answered} was answered twice"
            );
        }
        if refused > 0 {
            break;
        }
    }
    assert!(
        refused > 0,
        "{BURST} sends at once never met the limit of 256"
    );
    let last = phone.say(&direct, "last", "x").await?;
    assert_eq!(last.seq, stored + 1, "what was refused is not stored");
    Ok(())
}

#[tokio::test]
async fn sends_that_fail_name_their_request_and_leave_the_stream_open() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, bob, direct) = cast.pair();
    let carol = cast.id("carol");
    let group = cast.group("team", &bob, &[]).await?;
    let text = rpc::text("x");
    let large = rpc::text("x".repeat(65_536));
    let notice = v1::Content {
        kind: Some(v1::content::Kind::Notice(v1::Notice::default())),
    };
    let nothing = v1::Content { kind: None };
    let foreign = rpc::direct_id(&bob, &carol);
    let oneself = format!("direct:{alice}:{alice}");
    let unknown = cast.id("unknown");
    let long = "x".repeat(65);
    let (mut phone, _) = cast.open(1, &alice, "phone").await?;
    let cases = [
        (
            unknown.as_str(),
            "m",
            &text,
            Code::NotFound,
            "CONVERSATION_NOT_FOUND",
        ),
        (
            group.as_str(),
            "m",
            &text,
            Code::PermissionDenied,
            "NOT_A_MEMBER",
        ),
        (
            foreign.as_str(),
            "m",
            &text,
            Code::PermissionDenied,
            "NOT_A_MEMBER",
        ),
        (
            oneself.as_str(),
            "m",
            &text,
            Code::InvalidArgument,
            "INVALID_ID",
        ),
        ("", "m", &text, Code::InvalidArgument, "INVALID_ID"),
        ("a b", "m", &text, Code::InvalidArgument, "INVALID_ID"),
        (
            direct.as_str(),
            "",
            &text,
            Code::InvalidArgument,
            "INVALID_ID",
        ),
        (
            direct.as_str(),
            long.as_str(),
            &text,
            Code::InvalidArgument,
            "INVALID_ID",
        ),
        (
            direct.as_str(),
            "m",
            &notice,
            Code::InvalidArgument,
            "CONTENT_NOT_ALLOWED",
        ),
        (
            direct.as_str(),
            "m",
            &nothing,
            Code::InvalidArgument,
            "INVALID_CONTENT",
        ),
        (
            direct.as_str(),
            "m",
            &large,
            Code::ResourceExhausted,
            "LIMIT_EXCEEDED",
        ),
    ];
    for (conversation, id, content, code, reason) in cases {
        let request = phone.send(conversation, id, content.clone()).await?;
        let error = phone.refused(request).await?;
        assert_eq!(Code::from_i32(error.code), code, "{error:?}");
        assert_eq!(error.reason, reason, "{error:?}");
        assert!(!error.message.is_empty());
    }
    let sent = phone.say(&direct, "m", "x").await?;
    assert_eq!(
        (sent.seq, sent.duplicate),
        (1, false),
        "nothing of the above was stored"
    );
    Ok(())
}

#[tokio::test]
async fn the_server_keeps_a_cursor_for_each_device() -> Result<()> {
    const STORED_LIMIT: Duration = Duration::from_secs(10);
    let cast = Cast::new().await?;
    let (alice, bob, direct) = cast.pair();
    cast.say_many(&bob, &direct, 5).await?;
    cast.inbox(&alice, 5).await?;
    let (mut phone, welcome) = cast.open(1, &alice, "phone").await?;
    assert_eq!((welcome.inbox_cursor, welcome.inbox_head), (0, 5));
    for inbox_seq in [3, 2] {
        phone
            .push(client_frame::Frame::CursorAck(v1::CursorAck { inbox_seq }))
            .await?;
    }
    // Its echo shows that the acknowledgements before it were read.
    phone.heartbeat(1).await?;
    drop(phone);
    let deadline = Instant::now() + STORED_LIMIT;
    loop {
        let (_session, welcome) = cast.open(2, &alice, "phone").await?;
        if welcome.inbox_cursor == 3 {
            break;
        }
        assert_eq!(welcome.inbox_cursor, 0);
        ensure!(Instant::now() < deadline, "the cursor is not kept");
        sleep(Duration::from_millis(100)).await;
    }
    let (_tablet, welcome) = cast.open(3, &alice, "tablet").await?;
    assert_eq!(
        welcome.inbox_cursor, 0,
        "a new device begins at the beginning"
    );
    let (_given, welcome) = Session::open(cast.address(1), &alice, "phone", Some(4)).await?;
    assert_eq!((welcome.inbox_cursor, welcome.inbox_head), (4, 5));
    let beyond = hello(&alice, "phone", Some(6));
    hello_is_refused(&cast, beyond, Code::OutOfRange, "CURSOR_BEYOND_HEAD").await
}

#[tokio::test]
async fn a_device_that_connects_again_replaces_itself() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, bob, direct) = cast.pair();
    let (mut first, _) = cast.open(1, &alice, "phone").await?;
    let (mut other, _) = cast.open(1, &alice, "laptop").await?;
    let (mut second, _) = cast.open(1, &alice, "phone").await?;
    ends_with(&mut first, kick::Reason::Replaced, None).await?;
    cast.say(&bob, &direct, "m", "x").await?;
    assert_eq!(second.delivery().await?.inbox_seq, 1);
    assert_eq!(other.delivery().await?.inbox_seq, 1);
    Ok(())
}

#[tokio::test]
async fn frames_that_the_protocol_does_not_allow() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, _, direct) = cast.pair();
    let precondition = |reason| Some((Code::FailedPrecondition, reason));

    let (mut twice, _) = cast.open(1, &alice, "phone").await?;
    twice
        .push(client_frame::Frame::Hello(hello(&alice, "phone", None)))
        .await?;
    ends_with(
        &mut twice,
        kick::Reason::ProtocolError,
        precondition("HELLO_REPEATED"),
    )
    .await?;

    let mut none = Session::silent(&rpc::endpoint(cast.address(2))?).await?;
    none.send(&direct, "m", rpc::text("x")).await?;
    ends_with(
        &mut none,
        kick::Reason::ProtocolError,
        precondition("HELLO_EXPECTED"),
    )
    .await?;

    let (mut large, _) = cast.open(3, &alice, "phone").await?;
    large
        .send(&direct, "m", rpc::text("x".repeat(200 << 10)))
        .await?;
    let refusal = Some((Code::ResourceExhausted, "LIMIT_EXCEEDED"));
    ends_with(&mut large, kick::Reason::ProtocolError, refusal).await
}

#[tokio::test]
async fn a_hello_that_is_refused() -> Result<()> {
    let cast = Cast::new().await?;
    let alice = cast.id("alice");
    let long = "x".repeat(65);
    for (user, device) in [
        ("", "d"),
        ("a b", "d"),
        ("direct:a:b", "d"),
        (&long, "d"),
        (&alice, ""),
        (&alice, &long),
    ] {
        let hello = hello(user, device, None);
        hello_is_refused(&cast, hello, Code::InvalidArgument, "INVALID_ID").await?;
    }
    let platform = v1::Hello {
        platform: long.clone(),
        ..hello(&alice, "d", None)
    };
    hello_is_refused(&cast, platform, Code::InvalidArgument, "LIMIT_EXCEEDED").await
}

#[tokio::test]
async fn a_client_that_closes_its_side_gets_its_answers() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, _, direct) = cast.pair();
    let (mut phone, _) = cast.open(1, &alice, "phone").await?;
    for number in 0..10 {
        phone
            .send(&direct, &format!("m{number}"), rpc::text("x"))
            .await?;
    }
    let mut inbound = phone.close_outbound();
    let mut answers = 0;
    while let Some(frame) = inbound.message().await? {
        answers += u32::from(matches!(frame.frame, Some(server_frame::Frame::Sent(_))));
    }
    assert_eq!(answers, 10);
    Ok(())
}

/// A device that does not read is told what it missed, gets the rest live, and finds what
/// is between with Sync.
#[tokio::test]
async fn a_slow_reader_is_told_to_resync() -> Result<()> {
    const MESSAGES: u64 = 400;
    const BODY_BYTES: usize = 12 << 10;
    let cast = Cast::new().await?;
    let (alice, bob, direct) = cast.pair();
    let narrow = rpc::endpoint(cast.address(1))?
        .initial_stream_window_size(65_535)
        .initial_connection_window_size(65_535);
    let (mut slow, welcome) = Session::open_on(&narrow, &alice, "phone", None).await?;
    assert_eq!(welcome.inbox_head, 0);
    let (mut bobs, _) = cast.open(2, &bob, "phone").await?;
    let large = "x".repeat(BODY_BYTES);
    for first in (0..MESSAGES).step_by(50) {
        let mut requests = Vec::new();
        for number in first..first + 50 {
            requests.push(
                bobs.send(&direct, &format!("m{number}"), rpc::text(&large))
                    .await?,
            );
        }
        for request in requests {
            bobs.sent(request).await?;
        }
    }
    cast.inbox(&alice, MESSAGES).await?;

    let (mut next, mut resyncs) = (1, 0);
    while next <= MESSAGES {
        match slow.next().await? {
            server_frame::Frame::Delivery(entry) => {
                assert_eq!(entry.inbox_seq, next);
                next += 1;
            }
            server_frame::Frame::Resync(told) => {
                assert_eq!(told.reason(), resync::Reason::TooSlow, "{told:?}");
                assert_eq!(told.after_inbox_seq + 1, next, "{told:?}");
                assert!(told.to_inbox_seq > told.after_inbox_seq, "{told:?}");
                next = told.to_inbox_seq + 1;
                resyncs += 1;
            }
            other => anyhow::bail!("{other:?}"),
        }
    }
    assert!(
        resyncs > 0,
        "{MESSAGES} messages of {BODY_BYTES} bytes were all queued"
    );
    assert_eq!(slow.heartbeat(1).await?.inbox_head, MESSAGES);
    cast.say(&bob, &direct, "after", "live again").await?;
    assert_eq!(slow.delivery().await?.inbox_seq, MESSAGES + 1);
    Ok(())
}
