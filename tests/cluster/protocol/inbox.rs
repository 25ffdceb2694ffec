//! `Sync`, with and without waiting, and `SyncStream`.

use std::time::Duration;

use anyhow::{Context as _, Result};
use carillon_proto::v1;
use carillon_tests::rpc;
use tokio::time::{Instant, timeout};
use tonic::Code;

use crate::cast::{Cast, body};

/// How long a page of a stream may take.
const PAGE_LIMIT: Duration = Duration::from_secs(10);

fn request(inbox_cursor: u64, limit: u32, wait_ms: u32) -> v1::SyncRequest {
    v1::SyncRequest {
        inbox_cursor,
        limit,
        wait_ms,
    }
}

#[tokio::test]
async fn pages_from_a_cursor() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, bob, direct) = cast.pair();
    let group = cast.group("team", &alice, &[&bob]).await?;
    cast.say_many(&bob, &direct, 10).await?;
    cast.say_many(&alice, &group, 10).await?;
    let whole = cast.inbox(&alice, 21).await?;
    assert_eq!(whole.len(), 21);
    let seqs: Vec<u64> = whole.iter().map(|entry| entry.inbox_seq).collect();
    assert_eq!(seqs, (1..=21).collect::<Vec<_>>());
    assert!(whole.iter().all(|entry| entry.unread == 0), "0 in Sync");
    for conversation in [&direct, &group] {
        let messages = whole.iter().filter_map(|entry| entry.message.as_ref());
        let seqs: Vec<u64> = messages
            .filter(|message| message.conversation_id == **conversation)
            .map(|message| message.seq)
            .collect();
        assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
    }
    for (cursor, limit, first, count) in [
        (0, 5, 1, 5),
        (5, 0, 6, 16),
        (18, 500, 19, 3),
        (21, 10, 0, 0),
    ] {
        for node in 1..=3 {
            let mut chat = cast.chat(node)?;
            let page = chat
                .sync(rpc::as_user(&alice, request(cursor, limit, 0)))
                .await?
                .into_inner();
            assert_eq!(page.entries.len(), count, "after {cursor}");
            assert_eq!(
                page.entries.first().map_or(0, |entry| entry.inbox_seq),
                first
            );
            assert_eq!(page.inbox_cursor, cursor + count as u64);
            assert_eq!(page.inbox_head, 21);
            let from = usize::try_from(cursor)?;
            assert_eq!(page.entries, whole[from..from + count]);
        }
    }
    Ok(())
}

#[tokio::test]
async fn requests_that_are_refused() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, bob, direct) = cast.pair();
    cast.say(&bob, &direct, "m", "x").await?;
    cast.inbox(&alice, 1).await?;
    let mut chat = cast.chat(2)?;
    for (request, code, reason) in [
        (request(2, 0, 0), Code::OutOfRange, "CURSOR_BEYOND_HEAD"),
        (
            request(u64::MAX, 0, 100),
            Code::OutOfRange,
            "CURSOR_BEYOND_HEAD",
        ),
        (request(0, 501, 0), Code::InvalidArgument, "LIMIT_EXCEEDED"),
        (
            request(0, 0, 30_001),
            Code::InvalidArgument,
            "LIMIT_EXCEEDED",
        ),
    ] {
        let outcome = chat.sync(rpc::as_user(&alice, request)).await;
        rpc::assert_refused(outcome, code, reason);
    }
    let stranger = cast.id("stranger");
    let page = chat
        .sync(rpc::as_user(&stranger, request(0, 0, 0)))
        .await?
        .into_inner();
    assert_eq!(
        (page.entries.len(), page.inbox_head),
        (0, 0),
        "everybody has an inbox"
    );
    Ok(())
}

#[tokio::test]
async fn a_long_poll_ends_with_news_or_with_its_time() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, bob, direct) = cast.pair();
    let started = Instant::now();
    let mut chat = cast.chat(2)?;
    let page = chat
        .sync(rpc::as_user(&alice, request(0, 0, 400)))
        .await?
        .into_inner();
    assert!(page.entries.is_empty());
    assert!(
        started.elapsed() >= Duration::from_millis(300),
        "{:?}",
        started.elapsed()
    );

    let waiting = {
        let alice = alice.clone();
        tokio::spawn(async move { chat.sync(rpc::as_user(&alice, request(0, 0, 8_000))).await })
    };
    let started = Instant::now();
    cast.say(&bob, &direct, "m", "news").await?;
    let page = waiting.await??.into_inner();
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(page.entries.len(), 1);
    assert_eq!(page.entries[0].message.as_ref().map(body), Some("news"));
    Ok(())
}

#[tokio::test]
async fn a_sync_stream_catches_up_and_follows() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, bob, direct) = cast.pair();
    cast.say_many(&bob, &direct, 20).await?;
    cast.inbox(&alice, 20).await?;
    let mut open = request(5, 4, 0);
    open.wait_ms = 0;
    let mut call = rpc::as_user(&alice, open);
    // Until it is cancelled: no deadline.
    call.metadata_mut().remove("grpc-timeout");
    let mut stream = cast.chat(3)?.sync_stream(call).await?.into_inner();
    let mut next = 6;
    while next <= 25 {
        if next == 21 {
            for number in 20..25 {
                cast.say(&bob, &direct, &format!("live-{number}"), "live")
                    .await?;
            }
        }
        let page = timeout(PAGE_LIMIT, stream.message()).await?;
        let page = page?.context("the stream ended")?;
        assert!(!page.entries.is_empty() && page.entries.len() <= 4);
        for entry in &page.entries {
            assert_eq!(entry.inbox_seq, next);
            next += 1;
        }
        assert_eq!(page.inbox_cursor, next - 1);
    }
    let outcome = cast
        .chat(1)?
        .sync_stream(rpc::as_user(&alice, request(99, 0, 0)))
        .await;
    let outcome = match outcome {
        Ok(stream) => stream.into_inner().message().await.map(drop),
        Err(status) => Err(status),
    };
    rpc::assert_refused(outcome, Code::OutOfRange, "CURSOR_BEYOND_HEAD");
    Ok(())
}
