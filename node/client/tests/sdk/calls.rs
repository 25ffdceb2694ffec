//! The unary calls against a cluster that misbehaves: retries, deadlines, typed errors.

use std::time::{Duration, Instant};

use crate::fake::FakeCluster;
use carillon_client::{Api, Client, ClientError, ConversationId, Range, text};
use futures_util::StreamExt;
use tokio::net::TcpListener;

fn api(endpoints: Vec<String>) -> Api {
    Client::builder(endpoints)
        .user("alice")
        .prefer_first()
        .call_timeout(Duration::from_secs(5))
        .attempt_timeout(Duration::from_millis(300))
        .api()
        .expect("configured")
}

/// An endpoint where nothing listens.
async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    listener.local_addr().expect("bound").to_string()
}

#[tokio::test]
async fn calls_go_to_the_next_endpoint_while_one_is_unavailable() {
    let cluster = FakeCluster::start(2).await;
    let mut endpoints = vec![nobody().await];
    endpoints.extend(cluster.endpoints());
    cluster.set_down(0, true);
    cluster.faults(|f| f.calls_unavailable = 1);
    let api = api(endpoints);
    let to_bob = ConversationId::direct("alice", "bob");
    let sent = api
        .send_with_id(&to_bob, "m1", text("hi"))
        .await
        .expect("stored");
    assert_eq!((sent.seq, sent.duplicate), (1, false));
    let again = api
        .send_with_id(&to_bob, "m1", text("hi"))
        .await
        .expect("stored before");
    assert_eq!((again.seq, again.duplicate), (1, true));
    let page = api
        .get_messages(&to_bob, Range::newest(10))
        .await
        .expect("read");
    assert_eq!(page.messages.len(), 1);
}

#[tokio::test]
async fn refusals_are_typed_and_not_retried() {
    let cluster = FakeCluster::start(1).await;
    let api = api(cluster.endpoints());
    cluster.group("team", &["bob"]);
    let error = api.send("team", text("hi")).await.expect_err("refused");
    assert!(matches!(error, ClientError::NotAMember(_)), "{error}");
    let error = api.send("nowhere", text("hi")).await.expect_err("refused");
    assert!(
        matches!(error, ClientError::ConversationNotFound(_)),
        "{error}"
    );
    let error = api
        .create_group(Some("team".into()), "Team", &["bob"])
        .await
        .expect_err("refused");
    assert!(
        matches!(error, ClientError::ConversationExists(_)),
        "{error}"
    );
    let error = api.add_members("team", &["carol"]).await.expect_err("full");
    match error {
        ClientError::LimitExceeded { limit, max, .. } => {
            assert_eq!((limit.as_str(), max), ("members_max", Some(500)));
        }
        other => panic!("{other:?}"),
    }
    let error = api.mark_read("team", 9).await.expect_err("refused");
    assert!(matches!(error, ClientError::OutOfRange(_)), "{error}");
    assert_eq!(error.reason(), Some("SEQ_BEYOND_END"));
    let error = api.list_conversations(0, "x").await.expect_err("refused");
    assert_eq!(error.reason(), Some("INVALID_PAGE_TOKEN"));
    let error = api.sync(5, 0, Duration::ZERO).await.expect_err("refused");
    assert!(matches!(error, ClientError::CursorBeyondHead(_)), "{error}");
}

#[tokio::test]
async fn a_call_ends_at_its_deadline() {
    let builder = |endpoints: Vec<String>| {
        Client::builder(endpoints)
            .user("alice")
            .call_timeout(Duration::from_millis(700))
            .attempt_timeout(Duration::from_millis(200))
            .api()
            .expect("configured")
    };
    let cluster = FakeCluster::start(1).await;
    let began = Instant::now();
    let error = builder(cluster.endpoints())
        .list_members("team", 0, "")
        .await
        .expect_err("it hangs");
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
    assert!(error.is_transient());
    let error = builder(vec![nobody().await])
        .get_conversation("team")
        .await
        .expect_err("nobody there");
    match &error {
        ClientError::Unavailable { message, .. } => {
            assert!(message.contains("refused"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    assert!(began.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn following_an_inbox_survives_failures() {
    let cluster = FakeCluster::start(2).await;
    let to_alice = "direct:alice:bob";
    for i in 0..250 {
        cluster.post("bob", to_alice, &format!("m{i}"));
    }
    cluster.faults(|f| f.calls_unavailable = 1);
    let seqs: Vec<u64> = api(cluster.endpoints())
        .follow(7)
        .take(243)
        .map(|entry| entry.expect("an entry").inbox_seq)
        .collect()
        .await;
    assert_eq!(seqs, (8..=250).collect::<Vec<_>>());
}
