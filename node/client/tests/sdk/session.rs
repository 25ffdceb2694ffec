//! The session against a cluster that misbehaves: reconnect, resend, gap repair, cursors.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::fake::{self, FakeCluster};
use carillon_client::proto as v1;
use carillon_client::{
    Client, ClientBuilder, ClientError, CursorStore, Event, Events, MemoryCursor, text,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::net::TcpListener;
use tokio::time::timeout;

const CONVERSATION: &str = "direct:alice:bob";
/// For what should happen at once, on a busy machine.
const SOON: Duration = Duration::from_secs(10);

fn builder(cluster: &FakeCluster, user: &str) -> ClientBuilder {
    Client::builder(cluster.endpoints())
        .user(user)
        .device("test")
        .prefer_first()
}

async fn connect(cluster: &FakeCluster, user: &str) -> (Client, Events) {
    let client = builder(cluster, user).connect().await.expect("connected");
    let events = client.events().expect("taken once");
    (client, events)
}

async fn next(events: &mut Events) -> Event {
    timeout(SOON, events.next())
        .await
        .expect("an event in time")
        .expect("the session lives")
}

/// The client message ids of the next messages; asserts that the inbox is dense.
async fn messages(events: &mut Events, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    let mut last = None;
    while ids.len() < count {
        if let Event::Message(entry) = next(events).await {
            assert!(
                last.is_none_or(|seq: u64| entry.inbox_seq == seq + 1),
                "{last:?} then {}",
                entry.inbox_seq
            );
            last = Some(entry.inbox_seq);
            ids.push(entry.message.expect("a message").client_message_id);
        }
    }
    ids
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = timeout(SOON, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}");
}

fn names(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|i| format!("m{i}")).collect()
}

#[tokio::test]
async fn a_message_is_acknowledged_and_delivered() {
    let cluster = FakeCluster::start(1).await;
    cluster.post("alice", CONVERSATION, "m0");
    let (alice, _) = connect(&cluster, "alice").await;
    let (bob, mut events) = connect(&cluster, "bob").await;
    assert!(bob.events().is_none(), "events are taken once");
    assert!(matches!(next(&mut events).await, Event::Connected { .. }));
    assert_eq!(messages(&mut events, 1).await, ["m0"]);
    assert!(matches!(next(&mut events).await, Event::CaughtUp));
    let sent = alice
        .send_with_id(CONVERSATION, "m1", text("hello"))
        .await
        .expect("stored");
    assert_eq!((sent.seq, sent.duplicate), (2, false));
    assert_eq!(messages(&mut events, 1).await, ["m1"]);
    let error = alice
        .send("elsewhere", text("x"))
        .await
        .expect_err("unknown");
    assert!(
        matches!(error, ClientError::ConversationNotFound(_)),
        "{error}"
    );
    alice.close().await;
    until("the stream is closed", || {
        cluster.connected_to("alice").is_empty()
    })
    .await;
}

#[tokio::test]
async fn endpoints_are_tried_in_turn() {
    let cluster = FakeCluster::start(2).await;
    cluster.set_down(0, true);
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        listener.local_addr().expect("bound").to_string()
    };
    let mut endpoints = vec![nobody.clone()];
    endpoints.extend(cluster.endpoints());
    let _client = Client::builder(endpoints)
        .user("alice")
        .prefer_first()
        .connect()
        .await
        .expect("the last one works");
    assert_eq!(cluster.connected_to("alice"), [1]);

    let error = Client::builder([nobody])
        .user("alice")
        .connect_timeout(Duration::from_millis(300))
        .connect()
        .await
        .expect_err("nobody there");
    assert!(matches!(error, ClientError::Unavailable { .. }), "{error}");
    let error = builder(&cluster, "mallory")
        .connect()
        .await
        .expect_err("refused");
    assert!(matches!(error, ClientError::Unauthenticated(_)), "{error}");
}

#[tokio::test]
async fn unacknowledged_messages_are_sent_again_after_a_reconnect() {
    let cluster = FakeCluster::start(2).await;
    let (client, mut events) = connect(&cluster, "alice").await;
    cluster.faults(|f| f.acks_lost = 30);
    let mut sends = Vec::new();
    for id in names(0..50) {
        let sending = client.start_send(CONVERSATION, id, text("x")).await;
        sends.push(sending.expect("queued"));
    }
    until("all have arrived", || cluster.seen(|s| s.sends.len()) >= 50).await;
    cluster.set_down(0, true);
    let mut duplicates = 0;
    for (i, sending) in sends.into_iter().enumerate() {
        let sent = timeout(SOON, sending)
            .await
            .expect("answered")
            .expect("stored");
        assert_eq!(sent.seq, i as u64 + 1);
        duplicates += usize::from(sent.duplicate);
    }
    assert_eq!(duplicates, 30);
    assert_eq!(cluster.timeline(CONVERSATION), names(0..50));
    assert_eq!(cluster.seen(|s| s.sends[50..].to_vec()), names(0..30));
    assert_eq!(messages(&mut events, 50).await, names(0..50));
    assert_eq!(cluster.connected_to("alice"), [1]);
}

#[tokio::test]
async fn messages_put_off_by_the_server_keep_their_order() {
    let cluster = FakeCluster::start(1).await;
    let (client, _events) = connect(&cluster, "alice").await;
    cluster.faults(|f| f.sends_put_off = 3);
    let mut sends = Vec::new();
    for id in names(0..3) {
        let sending = client.start_send(CONVERSATION, id, text("x")).await;
        sends.push(sending.expect("queued"));
    }
    until("all were put off", || cluster.seen(|s| s.sends.len()) == 3).await;
    for id in names(3..6) {
        let sending = client.start_send(CONVERSATION, id, text("x")).await;
        sends.push(sending.expect("queued"));
    }
    for sending in sends {
        timeout(SOON, sending)
            .await
            .expect("in time")
            .expect("stored");
    }
    assert_eq!(cluster.timeline(CONVERSATION), names(0..6));
}

#[tokio::test]
async fn the_most_in_flight_holds_the_sender_back() {
    let cluster = FakeCluster::start(1).await;
    let client = builder(&cluster, "alice")
        .in_flight_max(2)
        .send_timeout(Duration::from_millis(400))
        .connect()
        .await
        .expect("connected");
    cluster.faults(|f| f.acks_lost = 2);
    let one = client.start_send(CONVERSATION, "m0", text("x")).await;
    let two = client.start_send(CONVERSATION, "m1", text("x")).await;
    let third = client.start_send(CONVERSATION, "m2", text("x"));
    assert!(
        timeout(Duration::from_millis(100), third).await.is_err(),
        "the third waits"
    );
    for sending in [one, two] {
        let error = sending.expect("queued").await.expect_err("never answered");
        assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
    }
    let sent = client.send_with_id(CONVERSATION, "m0", text("x")).await;
    assert!(sent.expect("stored before").duplicate);
}

#[tokio::test]
async fn gaps_are_repaired() {
    let cluster = FakeCluster::start(1).await;
    let (_bob, mut events) = connect(&cluster, "bob").await;
    assert!(matches!(next(&mut events).await, Event::Connected { .. }));
    cluster.faults(|f| f.deliveries_left_out = 3);
    for id in names(0..5) {
        cluster.post("alice", CONVERSATION, &id);
    }
    assert_eq!(messages(&mut events, 5).await, names(0..5));
    // The last one is lost: only a heartbeat can show it.
    cluster.faults(|f| f.deliveries_left_out = 1);
    cluster.post("alice", CONVERSATION, "m5");
    assert_eq!(messages(&mut events, 1).await, ["m5"]);
    // The server says that it left some out.
    cluster.faults(|f| f.deliveries_left_out = 2);
    cluster.post("alice", CONVERSATION, "m6");
    cluster.post("alice", CONVERSATION, "m7");
    cluster.push(
        "bob",
        v1::server_frame::Frame::Resync(v1::Resync {
            after_inbox_seq: 6,
            to_inbox_seq: 8,
            reason: v1::resync::Reason::TooSlow.into(),
        }),
    );
    assert_eq!(messages(&mut events, 2).await, names(6..8));
}

#[tokio::test]
async fn a_slow_application_loses_nothing_and_can_still_send() {
    let cluster = FakeCluster::start(1).await;
    for id in names(0..700) {
        cluster.post("alice", CONVERSATION, &id);
    }
    let bob = builder(&cluster, "bob")
        .event_queue(4)
        .connect()
        .await
        .expect("connected");
    let mut events = bob.events().expect("taken once");
    for id in names(700..3000) {
        cluster.post("alice", CONVERSATION, &id);
    }
    // The event queue is full, and nobody takes from it.
    let sent = timeout(SOON, bob.send_with_id(CONVERSATION, "m3000", text("x")))
        .await
        .expect("acknowledged");
    assert_eq!(sent.expect("stored").seq, 3001);
    assert_eq!(messages(&mut events, 3001).await, names(0..3001));
}

/// A store that the test keeps a handle of.
#[derive(Clone, Default)]
struct Shared(Arc<AtomicU64>);

impl CursorStore for Shared {
    fn load(&self) -> io::Result<Option<u64>> {
        Ok(Some(self.0.load(Ordering::SeqCst)))
    }

    fn save(&self, cursor: u64) -> io::Result<()> {
        self.0.store(cursor, Ordering::SeqCst);
        Ok(())
    }
}

#[tokio::test]
async fn the_cursor_moves_with_the_application() {
    let cluster = FakeCluster::start(1).await;
    for id in names(0..10) {
        cluster.post("alice", CONVERSATION, &id);
    }
    let store = Shared::default();
    let open = || {
        builder(&cluster, "bob")
            .cursor_store(store.clone())
            .connect()
    };
    let bob = open().await.expect("connected");
    let mut events = bob.events().expect("taken once");
    assert_eq!(messages(&mut events, 4).await, names(0..4));
    assert_eq!(store.0.load(Ordering::SeqCst), 3, "the fourth is in work");
    events.commit();
    assert_eq!(store.0.load(Ordering::SeqCst), 4);
    until("the server is told", || {
        cluster.seen(|s| s.cursors.last() == Some(&4))
    })
    .await;
    drop((bob, events));

    let bob = open().await.expect("connected again");
    let mut events = bob.events().expect("taken once");
    assert_eq!(messages(&mut events, 6).await, names(4..10));
    assert_eq!(
        cluster.seen(|s| s.hellos.clone()),
        [(0, Some(0)), (0, Some(4))]
    );
    bob.close().await;
    events.commit();
    assert!(cluster.seen(|s| s.cursors.len()) <= 3, "coalesced");
}

#[tokio::test]
async fn a_cursor_of_another_cluster_ends_the_session() {
    let cluster = FakeCluster::start(1).await;
    let bob = builder(&cluster, "bob")
        .cursor_store(MemoryCursor::starting_at(99))
        .connect()
        .await
        .expect("connected");
    let mut events = bob.events().expect("taken once");
    let end = loop {
        if let Event::Disconnected {
            error,
            reconnecting,
        } = next(&mut events).await
        {
            break (error, reconnecting);
        }
    };
    assert!(
        matches!(end, (ClientError::CursorBeyondHead(_), false)),
        "{end:?}"
    );
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn a_replaced_session_stays_away() {
    let cluster = FakeCluster::start(1).await;
    let (bob, mut events) = connect(&cluster, "bob").await;
    cluster.faults(|f| f.acks_lost = 1);
    let waiting = bob
        .start_send(CONVERSATION, "m0", text("x"))
        .await
        .expect("queued");
    until("it has arrived", || cluster.seen(|s| s.sends.len()) == 1).await;
    cluster.kick("bob", v1::kick::Reason::Replaced, 0);
    let error = timeout(SOON, waiting)
        .await
        .expect("answered")
        .expect_err("over");
    assert!(matches!(error, ClientError::Replaced), "{error}");
    let mut last = None;
    while let Some(event) = timeout(SOON, events.next()).await.expect("an end") {
        last = Some(event);
    }
    assert!(
        matches!(
            last,
            Some(Event::Disconnected {
                error: ClientError::Replaced,
                reconnecting: false
            })
        ),
        "{last:?}"
    );
    let error = bob.send(CONVERSATION, text("x")).await.expect_err("over");
    assert!(matches!(error, ClientError::Replaced), "{error}");
    assert_eq!(cluster.seen(|s| s.hellos.len()), 1);
}

#[tokio::test]
async fn a_draining_node_is_left_when_it_says() {
    let cluster = FakeCluster::start(2).await;
    let (bob, mut events) = connect(&cluster, "bob").await;
    let began = std::time::Instant::now();
    cluster.kick("bob", v1::kick::Reason::Draining, 300);
    let sent = bob.send_with_id(CONVERSATION, "m0", text("x")).await;
    assert_eq!(sent.expect("stored").seq, 1);
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!(cluster.connected_to("bob"), [1]);
    assert_eq!(messages(&mut events, 1).await, ["m0"]);
}

#[tokio::test]
async fn a_silent_node_is_given_up() {
    let cluster = FakeCluster::start(2).await;
    let (bob, _events) = connect(&cluster, "bob").await;
    cluster.faults(|f| f.silent_nodes = HashSet::from([0]));
    let sent = timeout(SOON, bob.send(CONVERSATION, text("x")))
        .await
        .expect("in time");
    assert_eq!(sent.expect("stored").seq, 1);
    assert_eq!(cluster.seen(|s| s.hellos.last().map(|h| h.0)), Some(1));
}

#[tokio::test]
async fn through_random_faults_every_message_passes_once_and_in_order() {
    const MESSAGES: usize = 400;
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let cluster = FakeCluster::start(3).await;
    let (alice, mut own) = connect(&cluster, "alice").await;
    let bob = builder(&cluster, "bob")
        .event_queue(16)
        .connect()
        .await
        .expect("connected");
    let mut events = bob.events().expect("taken once");
    let receive = async { messages(&mut events, MESSAGES).await };
    let receive_own = async { messages(&mut own, MESSAGES).await };
    let send = async {
        let mut sends = Vec::new();
        for id in names(0..MESSAGES) {
            let sending = alice.start_send(CONVERSATION, id, text("x")).await;
            sends.push(sending.expect("queued"));
            match rng.random_range(0..40) {
                0 => cluster.break_streams(None),
                1 => {
                    let node = rng.random_range(0..3);
                    (0..3).for_each(|n| cluster.set_down(n, n == node));
                }
                2 => cluster.faults(|f| f.acks_lost = 5),
                3 => cluster.faults(|f| f.deliveries_left_out = 7),
                4 => cluster.faults(|f| f.calls_unavailable = 3),
                5 => cluster.kick("alice", v1::kick::Reason::Draining, 10),
                _ => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
        // The acknowledgements that are still lost need one more reconnect.
        cluster.faults(|f| *f = fake::Faults::default());
        cluster.break_streams(None);
        for sending in sends {
            timeout(SOON, sending)
                .await
                .expect("in time")
                .expect("stored");
        }
    };
    let (received, own, ()) = tokio::join!(receive, receive_own, send);
    assert_eq!(cluster.timeline(CONVERSATION), names(0..MESSAGES));
    assert_eq!(received, names(0..MESSAGES));
    assert_eq!(own, names(0..MESSAGES));
}
