//! `Send` and `GetMessages`: both directions, ranges, limits of entries and bytes.

use anyhow::{Context as _, Result};
use carillon_proto::v1::{self, Direction};
use carillon_tests::rpc;
use prost::Message as _;
use tonic::{Code, Request};

use crate::cast::{Cast, body};

const MESSAGES: u64 = 30;

struct Page {
    seqs: Vec<u64>,
    next: u64,
}

async fn page(cast: &Cast, user: &str, request: v1::GetMessagesRequest) -> Result<Page> {
    let node = u64::from(request.limit) % 3 + 1;
    let answer = cast
        .chat(node)?
        .get_messages(rpc::as_user(user, request))
        .await?
        .into_inner();
    assert_eq!(answer.last_seq, MESSAGES);
    Ok(Page {
        seqs: answer.messages.iter().map(|message| message.seq).collect(),
        next: answer.next_seq,
    })
}

/// What a page has to be, by the rules in chat.proto.
fn expected(from: u64, to: u64, direction: Direction, limit: u64) -> Page {
    let all: Vec<u64> = match direction {
        Direction::Backward => {
            let from = if from == 0 {
                MESSAGES
            } else {
                from.min(MESSAGES)
            };
            (to.max(1)..=from).rev().collect()
        }
        _ => {
            let to = if to == 0 { MESSAGES } else { to.min(MESSAGES) };
            (from.max(1)..=to).collect()
        }
    };
    let mut seqs = all.clone();
    seqs.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let next = all.get(seqs.len()).copied().unwrap_or(0);
    Page { seqs, next }
}

#[tokio::test]
async fn ranges_in_both_directions() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, bob, direct) = cast.pair();
    cast.say_many(&alice, &direct, MESSAGES).await?;
    for direction in [
        Direction::Unspecified,
        Direction::Forward,
        Direction::Backward,
    ] {
        for (from, to) in [(0, 0), (1, 0), (10, 0), (30, 0), (0, 1), (5, 5), (0, 30)] {
            for limit in [1, 7, 30, 500] {
                let request = v1::GetMessagesRequest {
                    conversation_id: direct.clone(),
                    from_seq: from,
                    to_seq: to,
                    direction: direction.into(),
                    limit,
                    bytes_max: 0,
                };
                let found = page(&cast, &bob, request.clone()).await?;
                let expected = expected(from, to, direction, limit.into());
                assert_eq!(found.seqs, expected.seqs, "{request:?}");
                assert_eq!(found.next, expected.next, "{request:?}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn pages_are_followed_to_the_end() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, _, direct) = cast.pair();
    cast.say_many(&alice, &direct, MESSAGES).await?;
    for direction in [Direction::Forward, Direction::Backward] {
        let mut seqs = Vec::new();
        let mut from_seq = 0;
        loop {
            let request = v1::GetMessagesRequest {
                conversation_id: direct.clone(),
                from_seq,
                direction: direction.into(),
                limit: 4,
                ..v1::GetMessagesRequest::default()
            };
            let page = page(&cast, &alice, request).await?;
            seqs.extend(page.seqs);
            if page.next == 0 {
                break;
            }
            from_seq = page.next;
        }
        if direction == Direction::Backward {
            seqs.reverse();
        }
        assert_eq!(seqs, (1..=MESSAGES).collect::<Vec<_>>());
    }
    Ok(())
}

#[tokio::test]
async fn pages_are_bounded_in_bytes_but_never_empty() -> Result<()> {
    const BODY_BYTES: usize = 10_000;
    let cast = Cast::new().await?;
    let (alice, _, direct) = cast.pair();
    for number in 0..6 {
        let large = "x".repeat(BODY_BYTES);
        cast.say(&alice, &direct, &format!("m{number}"), &large)
            .await?;
    }
    let whole = cast.history(&alice, &direct).await?;
    let size = whole[0].encoded_len();
    for (bytes_max, count) in [
        (1, 1),
        (size * 2 + size / 2, 2),
        (size * 5 + size / 2, 5),
        (0, 6),
        (1 << 20, 6),
    ] {
        let request = v1::GetMessagesRequest {
            conversation_id: direct.clone(),
            bytes_max: u32::try_from(bytes_max)?,
            ..v1::GetMessagesRequest::default()
        };
        let answer = cast
            .chat(1)?
            .get_messages(rpc::as_user(&alice, request))
            .await?
            .into_inner();
        assert_eq!(
            answer.messages.len(),
            count,
            "with at most {bytes_max} bytes"
        );
        let next = if count == 6 { 0 } else { count as u64 + 1 };
        assert_eq!(answer.next_seq, next);
    }
    Ok(())
}

#[tokio::test]
async fn requests_that_are_refused() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, bob, direct) = cast.pair();
    let carol = cast.id("carol");
    cast.say_many(&alice, &direct, 3).await?;
    let good = v1::GetMessagesRequest {
        conversation_id: direct.clone(),
        ..v1::GetMessagesRequest::default()
    };
    let with = |change: &dyn Fn(&mut v1::GetMessagesRequest)| {
        let mut request = good.clone();
        change(&mut request);
        request
    };
    let cases = [
        (
            with(&|r| (r.from_seq, r.to_seq) = (3, 1)),
            Code::InvalidArgument,
            "RANGE_REVERSED",
        ),
        (
            with(&|r| {
                (r.from_seq, r.to_seq) = (1, 3);
                r.direction = Direction::Backward.into();
            }),
            Code::InvalidArgument,
            "RANGE_REVERSED",
        ),
        (
            with(&|r| r.limit = 501),
            Code::InvalidArgument,
            "LIMIT_EXCEEDED",
        ),
        (
            with(&|r| r.bytes_max = (1 << 20) + 1),
            Code::InvalidArgument,
            "LIMIT_EXCEEDED",
        ),
        (
            with(&|r| r.direction = 9),
            Code::InvalidArgument,
            "INVALID_DIRECTION",
        ),
        (
            with(&|r| r.conversation_id.clear()),
            Code::InvalidArgument,
            "INVALID_ID",
        ),
        (
            with(&|r| r.conversation_id = "x".repeat(65)),
            Code::InvalidArgument,
            "INVALID_ID",
        ),
        (
            with(&|r| r.conversation_id = cast.id("none")),
            Code::NotFound,
            "CONVERSATION_NOT_FOUND",
        ),
    ];
    let mut chat = cast.chat(2)?;
    for (request, code, reason) in cases {
        let outcome = chat.get_messages(rpc::as_user(&alice, request)).await;
        rpc::assert_refused(outcome, code, reason);
    }
    let outcome = chat.get_messages(rpc::as_user(&carol, good.clone())).await;
    rpc::assert_refused(outcome, Code::PermissionDenied, "NOT_A_MEMBER");
    let outcome = chat.get_messages(Request::new(good.clone())).await;
    rpc::assert_refused(outcome, Code::Unauthenticated, "USER_MISSING");

    // Far beyond the end is an empty page, and the service is as before.
    let beyond = with(&|r| r.from_seq = u64::MAX);
    let answer = chat
        .get_messages(rpc::as_user(&bob, beyond))
        .await?
        .into_inner();
    assert_eq!(
        (answer.messages.len(), answer.last_seq, answer.next_seq),
        (0, 3, 0)
    );
    assert_eq!(cast.history(&bob, &direct).await?.len(), 3);
    Ok(())
}

#[tokio::test]
async fn sends_that_are_refused() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, bob, direct) = cast.pair();
    let unknown = cast.id("unknown");
    let foreign = rpc::direct_id(&bob, &cast.id("carol"));
    let reversed = {
        let (first, second) = if alice < bob {
            (&bob, &alice)
        } else {
            (&alice, &bob)
        };
        format!("direct:{first}:{second}")
    };
    let cases = [
        (
            unknown.as_str(),
            "m",
            "x",
            Code::NotFound,
            "CONVERSATION_NOT_FOUND",
        ),
        (
            foreign.as_str(),
            "m",
            "x",
            Code::PermissionDenied,
            "NOT_A_MEMBER",
        ),
        (
            reversed.as_str(),
            "m",
            "x",
            Code::InvalidArgument,
            "INVALID_ID",
        ),
        ("direct:a", "m", "x", Code::InvalidArgument, "INVALID_ID"),
        (
            direct.as_str(),
            "a/b",
            "x",
            Code::InvalidArgument,
            "INVALID_ID",
        ),
        (
            direct.as_str(),
            "m",
            "",
            Code::InvalidArgument,
            "INVALID_CONTENT",
        ),
    ];
    let mut chat = cast.chat(1)?;
    for (conversation, id, text, code, reason) in cases {
        let request = v1::SendRequest {
            conversation_id: conversation.to_owned(),
            client_message_id: id.to_owned(),
            content: Some(rpc::text(text)),
        };
        let outcome = chat.send(rpc::as_user(&alice, request)).await;
        rpc::assert_refused(outcome, code, reason);
    }
    let large = v1::SendRequest {
        conversation_id: direct.clone(),
        client_message_id: "m".to_owned(),
        content: Some(rpc::text("x".repeat(65_536))),
    };
    let outcome = chat.send(rpc::as_user(&alice, large)).await;
    let status = rpc::assert_refused(outcome, Code::ResourceExhausted, "LIMIT_EXCEEDED");
    assert_eq!(rpc::error_metadata(&status, "limit"), "content_bytes_max");
    assert_eq!(cast.say(&alice, &direct, "m", "x").await?.seq, 1);
    Ok(())
}

#[tokio::test]
async fn contents_come_back_as_they_were() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, bob, direct) = cast.pair();
    let largest = "x".repeat(65_536 - 8);
    let custom = v1::Custom {
        r#type: "acme.poll".to_owned(),
        data: vec![0, 255, 10].into(),
    };
    let contents = [
        rpc::text("grüße 日本 🎐\n\0"),
        rpc::text(largest),
        v1::Content {
            kind: Some(v1::content::Kind::Custom(custom)),
        },
    ];
    let mut chat = cast.chat(1)?;
    for (number, content) in contents.iter().enumerate() {
        let request = v1::SendRequest {
            conversation_id: direct.clone(),
            client_message_id: format!("m{number}"),
            content: Some(content.clone()),
        };
        chat.send(rpc::as_user(&alice, request)).await?;
    }
    let history = cast.history(&bob, &direct).await?;
    for (message, content) in history.iter().zip(&contents) {
        assert_eq!(message.content.as_ref().context("no content")?, content);
    }
    assert_eq!(body(&history[0]), "grüße 日本 🎐\n\0");
    Ok(())
}
