//! `ListConversations` and `MarkRead`: order, pages, exact unread.

use anyhow::{Context as _, Result};
use carillon_proto::v1;
use carillon_tests::rpc;
use tonic::Code;

use crate::cast::{Cast, body};

async fn list(
    cast: &Cast,
    user: &str,
    page_size: u32,
    page_token: &str,
) -> Result<v1::ListConversationsResponse> {
    let request = v1::ListConversationsRequest {
        page_size,
        page_token: page_token.to_owned(),
    };
    let answer = cast
        .chat(1)?
        .list_conversations(rpc::as_user(user, request))
        .await?;
    Ok(answer.into_inner())
}

async fn mark_read(
    cast: &Cast,
    user: &str,
    conversation: &str,
    read_seq: u64,
) -> Result<v1::MarkReadResponse, tonic::Status> {
    let request = v1::MarkReadRequest {
        conversation_id: conversation.to_owned(),
        read_seq,
    };
    let mut chat = cast
        .chat(2)
        .map_err(|error| tonic::Status::unknown(error.to_string()))?;
    let answer = chat.mark_read(rpc::as_user(user, request)).await?;
    Ok(answer.into_inner())
}

#[tokio::test]
async fn the_most_recent_conversation_comes_first() -> Result<()> {
    const CONVERSATIONS: u64 = 9;
    let cast = Cast::new().await?;
    let alice = cast.id("alice");
    let mut expected = Vec::new();
    for number in 0..CONVERSATIONS {
        let friend = cast.id(&format!("friend-{number}"));
        let direct = rpc::direct_id(&alice, &friend);
        cast.say(&friend, &direct, "m1", "one").await?;
        cast.say(&friend, &direct, "m2", "two").await?;
        cast.inbox(&alice, (number + 1) * 2).await?;
        expected.insert(0, direct);
    }
    let whole = list(&cast, &alice, 0, "").await?;
    let ids: Vec<&str> = whole
        .conversations
        .iter()
        .map(|row| row.conversation_id.as_str())
        .collect();
    assert_eq!(ids, expected);
    assert_eq!(whole.unread_total, CONVERSATIONS * 2);
    assert!(whole.next_page_token.is_empty());
    for row in &whole.conversations {
        assert_eq!(row.kind(), v1::ConversationKind::Direct);
        assert_eq!((row.unread, row.read_seq), (2, 0));
        assert_eq!(row.last_message.as_ref().map(body), Some("two"));
    }

    let (mut paged, mut token) = (Vec::new(), String::new());
    loop {
        let page = list(&cast, &alice, 4, &token).await?;
        assert!(page.conversations.len() <= 4);
        assert_eq!(page.unread_total, CONVERSATIONS * 2);
        paged.extend(
            page.conversations
                .into_iter()
                .map(|row| row.conversation_id),
        );
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(paged, expected);

    // The oldest one becomes the newest.
    let oldest = expected.pop().context("not empty")?;
    cast.say(&alice, &oldest, "m", "again").await?;
    cast.inbox(&alice, CONVERSATIONS * 2 + 1).await?;
    expected.insert(0, oldest);
    let whole = list(&cast, &alice, 500, "").await?;
    let ids: Vec<&str> = whole
        .conversations
        .iter()
        .map(|row| row.conversation_id.as_str())
        .collect();
    assert_eq!(ids, expected);
    assert_eq!(
        whole.conversations[0].unread, 2,
        "own messages do not count"
    );
    Ok(())
}

#[tokio::test]
async fn bad_pages_are_refused() -> Result<()> {
    let cast = Cast::new().await?;
    let alice = cast.id("alice");
    for (page_size, token, reason) in [
        (0, "nonsense", "INVALID_PAGE_TOKEN"),
        (0, "AAAA", "INVALID_PAGE_TOKEN"),
        (501, "", "LIMIT_EXCEEDED"),
    ] {
        let request = v1::ListConversationsRequest {
            page_size,
            page_token: token.to_owned(),
        };
        let outcome = cast
            .chat(1)?
            .list_conversations(rpc::as_user(&alice, request))
            .await;
        rpc::assert_refused(outcome, Code::InvalidArgument, reason);
    }
    let empty = list(&cast, &alice, 0, "").await?;
    assert_eq!((empty.conversations.len(), empty.unread_total), (0, 0));
    Ok(())
}

#[tokio::test]
async fn unread_is_exact_at_every_position() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, bob) = (cast.id("alice"), cast.id("bob"));
    // Seq 1 is a notice; then bob and alice take turns.
    let group = cast.group("team", &alice, &[&bob]).await?;
    for number in 0..10 {
        cast.say(&bob, &group, &format!("b{number}"), "from bob")
            .await?;
        cast.say(&alice, &group, &format!("a{number}"), "from alice")
            .await?;
    }
    cast.inbox(&alice, 21).await?;
    cast.inbox(&bob, 21).await?;
    let unread_of = |read_seq: u64| {
        (read_seq + 1..=21)
            .filter(|seq| *seq > 1 && seq % 2 == 0)
            .count()
    };
    for read_seq in [1, 2, 3, 8, 9, 15, 20, 21] {
        let marked = mark_read(&cast, &alice, &group, read_seq).await?;
        assert_eq!(marked.read_seq, read_seq);
        assert_eq!(
            marked.unread as usize,
            unread_of(read_seq),
            "read up to {read_seq}"
        );
        let row = list(&cast, &alice, 0, "").await?;
        assert_eq!(row.unread_total as usize, unread_of(read_seq));
        assert_eq!(row.conversations[0].read_seq, read_seq);
    }
    let back = mark_read(&cast, &alice, &group, 3).await?;
    assert_eq!((back.read_seq, back.unread), (21, 0), "never backward");
    let bobs = list(&cast, &bob, 0, "").await?;
    assert_eq!(
        bobs.unread_total, 10,
        "everybody has a position of their own"
    );

    cast.say(&bob, &group, "more", "x").await?;
    cast.inbox(&alice, 22).await?;
    assert_eq!(list(&cast, &alice, 0, "").await?.unread_total, 1);
    Ok(())
}

#[tokio::test]
async fn marks_that_are_refused() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, bob, direct) = cast.pair();
    cast.say_many(&bob, &direct, 3).await?;
    cast.inbox(&alice, 3).await?;
    let beyond = mark_read(&cast, &alice, &direct, 4).await;
    rpc::assert_refused(beyond, Code::OutOfRange, "SEQ_BEYOND_END");
    let unknown = mark_read(&cast, &alice, &cast.id("unknown"), 1).await;
    rpc::assert_refused(unknown, Code::NotFound, "CONVERSATION_NOT_FOUND");
    let foreign = mark_read(&cast, &cast.id("carol"), &direct, 1).await;
    rpc::assert_refused(foreign, Code::NotFound, "CONVERSATION_NOT_FOUND");
    let invalid = mark_read(&cast, &alice, "a b", 1).await;
    rpc::assert_refused(invalid, Code::InvalidArgument, "INVALID_ID");
    assert_eq!(list(&cast, &alice, 0, "").await?.unread_total, 3);
    Ok(())
}

/// The end of a conversation can be marked as soon as a read shows it, even if the
/// delivery is still on its way.
#[tokio::test]
async fn what_was_just_sent_can_be_marked() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, bob, direct) = cast.pair();
    cast.say(&bob, &direct, "first", "x").await?;
    cast.inbox(&alice, 1).await?;
    for number in 0..20 {
        let sent = cast.say(&bob, &direct, &format!("m{number}"), "x").await?;
        let marked = mark_read(&cast, &alice, &direct, sent.seq).await?;
        assert_eq!((marked.read_seq, marked.unread), (sent.seq, 0));
    }
    cast.inbox(&alice, 21).await?;
    assert_eq!(list(&cast, &alice, 0, "").await?.unread_total, 0);
    Ok(())
}
