//! A cluster that asks who is at the other end: who is let in, who is not, and that
//! certificates, keys and tokens change while it runs.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use carillon_auth::keys::Scope;
use carillon_client::{
    AdminClient, Api, Client, ClientError, ConversationId, Credentials, Event, Range, admin_proto,
    text,
};
use carillon_tests::harness::{Authority, Cluster, ClusterOptions, Secured, http_get, since_epoch};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;

/// The nodes look at their files every two seconds, and at their streams every five.
const NOTICED_WITHIN: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(100);

async fn started() -> Result<(Cluster, Arc<Secured>)> {
    let secured = Arc::new(Secured::new()?);
    let options = ClusterOptions {
        secured: Some(secured.clone()),
        ..ClusterOptions::default()
    };
    Ok((Cluster::start(options).await?, secured))
}

fn api(cluster: &Cluster, user: &str, credentials: Credentials) -> Result<Api> {
    let client = Client::builder(cluster.client_addresses()).user(user);
    Ok(client.credentials(credentials).api()?)
}

/// The code and the reason of a refusal.
fn refused<T>(answer: Result<T, ClientError>) -> Result<(Code, String)> {
    let error = answer.err().context("it was allowed")?;
    let refusal = error.refusal();
    let refusal = refusal.with_context(|| format!("the cluster did not refuse it: {error}"))?;
    Ok((refusal.code, refusal.reason.clone()))
}

fn denied() -> (Code, String) {
    (Code::PermissionDenied, "NOT_ALLOWED".to_owned())
}

fn unknown(reason: &str) -> (Code, String) {
    (Code::Unauthenticated, reason.to_owned())
}

/// Nobody answered: the connection was not made.
fn not_reached<T>(answer: Result<T, ClientError>) {
    match answer {
        Ok(_) => panic!("it was answered"),
        Err(error) => assert!(error.is_transient(), "it was answered: {error}"),
    }
}

/// Tries until it is as expected, at most so long.
async fn eventually<T>(
    what: &str,
    expected: impl Fn(&Result<T, ClientError>) -> bool,
    mut tried: impl AsyncFnMut() -> Result<T, ClientError>,
) -> Result<()> {
    let deadline = tokio::time::Instant::now() + NOTICED_WITHIN;
    loop {
        let answer = tried().await;
        if expected(&answer) {
            return Ok(());
        }
        let late = tokio::time::Instant::now() > deadline;
        ensure!(
            !late,
            "{what} within {NOTICED_WITHIN:?}: {:?}",
            answer.err()
        );
        tokio::time::sleep(PAUSE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_servers_and_operators_do_what_they_may_and_nothing_else() -> Result<()> {
    let (cluster, secured) = started().await?;
    let alice = secured.nobody().token(secured.token("alice")?);
    let to_bob = ConversationId::direct("alice", "bob");

    // Alice chats, over a stream and without one, and bob hears her.
    let bob = Client::builder(cluster.client_addresses())
        .user("bob")
        .credentials(secured.nobody().token(secured.token("bob")?))
        .connect()
        .await?;
    let mut events = bob.events().context("events")?;
    let stream = Client::builder(cluster.client_addresses())
        .user("alice")
        .credentials(alice.clone())
        .connect()
        .await?;
    assert_eq!(stream.send(&to_bob, text("hello")).await?.seq, 1);
    let calls = api(&cluster, "alice", alice.clone())?;
    assert_eq!(calls.send(&to_bob, text("again")).await?.seq, 2);
    let mut heard = 0;
    while heard < 2 {
        let event = tokio::time::timeout(NOTICED_WITHIN, events.next()).await?;
        if let Event::Message(entry) = event.context("the stream ended")? {
            heard += 1;
            assert_eq!(entry.message.context("a message")?.seq, heard);
        }
    }

    // For nobody else: neither by a call nor by a stream.
    let as_bob = api(&cluster, "bob", alice.clone())?;
    assert_eq!(refused(as_bob.send(&to_bob, text("x")).await)?, denied());
    assert_eq!(
        refused(as_bob.get_messages(&to_bob, Range::newest(1)).await)?,
        denied()
    );
    let stream_as_bob = Client::builder(cluster.client_addresses())
        .user("bob")
        .credentials(alice.clone())
        .connect();
    assert_eq!(refused(stream_as_bob.await)?, denied());
    // With the token of one device from no other.
    let ends_at_s = (since_epoch() + NOTICED_WITHIN).as_secs();
    let claims = json!({"sub": "alice", "exp": ends_at_s, "device_id": "phone"});
    let phone = secured.nobody().token(secured.sign("one", &claims)?);
    for (device, is_let_in) in [("phone", true), ("laptop", false)] {
        let connected = Client::builder(cluster.client_addresses())
            .user("alice")
            .device(device)
            .credentials(phone.clone())
            .connect()
            .await;
        match connected {
            Ok(_) => assert!(is_let_in, "{device}"),
            Err(error) => {
                assert!(!is_let_in, "{device}: {error}");
                assert_eq!(refused::<()>(Err(error))?, denied());
            }
        }
    }

    // What is no token, or none of this cluster, or none any more.
    let own_key = secured.sign("two", &json!({"sub": "alice", "exp": ends_at_s}))?;
    let past = secured.sign("one", &json!({"sub": "alice", "exp": 1}))?;
    let future = json!({"sub": "alice", "exp": ends_at_s, "nbf": ends_at_s - 1});
    let future = secured.sign("one", &future)?;
    let none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSIsImV4cCI6OTk5OTk5OTk5OX0.";
    for (credentials, reason) in [
        (secured.nobody(), "CREDENTIAL_MISSING"),
        (secured.nobody().token("nonsense"), "CREDENTIAL_INVALID"),
        (secured.nobody().token(none), "CREDENTIAL_INVALID"),
        (secured.nobody().token(own_key), "CREDENTIAL_INVALID"),
        (secured.nobody().token(past), "TOKEN_EXPIRED"),
        (secured.nobody().token(future), "CREDENTIAL_INVALID"),
        (
            secured.nobody().token("carillon_guess"),
            "CREDENTIAL_INVALID",
        ),
    ] {
        let calls = api(&cluster, "alice", credentials.clone())?;
        let answer = calls.get_messages(&to_bob, Range::newest(1)).await;
        assert_eq!(refused(answer)?, unknown(reason), "{credentials:?}");
        let stream = Client::builder(cluster.client_addresses()).user("alice");
        let stream = stream.credentials(credentials.clone()).connect().await;
        assert_eq!(refused(stream)?, unknown(reason), "{credentials:?}");
    }

    // An operator's certificate opens no conversation, and a token administers nothing.
    let admin = secured.with(&secured.authority().issue("admin", "olga")?);
    let calls = api(&cluster, "alice", admin.clone())?;
    let answer = calls.get_messages(&to_bob, Range::newest(1)).await;
    assert_eq!(refused(answer)?, denied());
    let operate = |credentials| {
        AdminClient::with_credentials(&cluster.client_addresses(), "somebody", credentials)
    };
    let viewer = secured.with(&secured.authority().issue("viewer", "vera")?);
    let node = secured.with(&secured.authority().issue("node", "any")?);
    for (credentials, may_look, may_change) in [
        (admin, true, true),
        (viewer, true, false),
        (node, false, false),
        (alice.clone(), false, false),
    ] {
        let admin = operate(credentials)?;
        let looked = admin.get_cluster().await;
        assert_eq!(looked.is_ok(), may_look, "{looked:?}");
        // It says how to let nodes in, and so is no mere look.
        let token = admin.join_token().await;
        assert_eq!(token.is_ok(), may_change, "{token:?}");
        let changed = admin
            .set_standing(1, admin_proto::Standing::Cordoned, false)
            .await;
        assert_eq!(changed.is_ok(), may_change, "{changed:?}");
        for refusal in [looked.err(), token.err(), changed.err()]
            .into_iter()
            .flatten()
        {
            assert_eq!(refused::<()>(Err(refusal))?, denied());
        }
    }
    let nobody = operate(secured.nobody())?.get_cluster().await;
    assert_eq!(refused(nobody)?, unknown("CREDENTIAL_MISSING"));
    // The cluster remembers whose certificate it was, and what they called themselves.
    let events = cluster.events().await?;
    let by: Vec<&str> = events.iter().map(|event| event.by.as_str()).collect();
    assert!(by.contains(&"olga for somebody"), "{by:?}");
    let audited = cluster.node_ids().iter().any(|id| {
        let log = cluster.node(*id).log_text();
        log.contains("audit") && log.contains("olga") && log.contains("SetStanding")
    });
    assert!(audited, "the log of no node tells of it");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_heard_without_encryption_or_with_a_certificate_of_others() -> Result<()> {
    let (cluster, secured) = started().await?;
    let plain = Client::builder(cluster.client_addresses())
        .user("alice")
        .connect_timeout(Duration::from_secs(2))
        .connect()
        .await;
    not_reached(plain);
    // An authority of its own makes nobody an admin, and a cluster of another authority is not
    // talked to.
    let other = Authority::new()?;
    let forged = other.issue("admin", "mallory")?;
    let forged = AdminClient::with_credentials(
        &cluster.client_addresses(),
        "mallory",
        secured.with(&forged),
    )?;
    let answer = forged.get_cluster().await;
    not_reached(answer);
    let trusts_other = Credentials::default()
        .authority(other.pem())
        .token(secured.token("alice")?);
    let answer = api(&cluster, "alice", trusts_other)?;
    let answer = answer.list_conversations(1, "").await;
    not_reached(answer);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_tokens_that_are_taken_back_end_streams() -> Result<()> {
    let (cluster, secured) = started().await?;
    secured.set_token_keys(&["one", "two"])?;
    let ends_at_s = (since_epoch() + Duration::from_secs(3_600)).as_secs();
    let of_two = secured.sign("two", &json!({"sub": "alice", "exp": ends_at_s}))?;
    let stays = secured.token("bob")?;
    let connect = |user: &str, token: &str| {
        Client::builder(cluster.client_addresses())
            .user(user)
            .credentials(secured.nobody().token(token))
            .connect()
    };
    all_say(&cluster, "new keys of tokens and servers are used", 1).await?;
    let alice = connect("alice", &of_two).await?;
    let bob = connect("bob", &stays).await?;
    let short = secured.token_for("carol", Duration::from_secs(6))?;
    let carol = connect("carol", &short).await?;

    secured.set_token_keys(&["one"])?;
    for (client, reason) in [(alice, "CREDENTIAL_INVALID"), (carol, "TOKEN_EXPIRED")] {
        // The SDK tries again after it was sent away, and learns why there.
        let mut events = client.events().context("events")?;
        let ended = async { while events.next().await.is_some() {} };
        tokio::time::timeout(NOTICED_WITHIN, ended)
            .await
            .with_context(|| format!("{} stays", client.user()))?;
        let to_bob = ConversationId::direct(client.user(), "bob");
        let answer = client.send(&to_bob, text("late")).await;
        assert_eq!(refused(answer)?, unknown(reason));
    }
    let to_carol = ConversationId::direct("bob", "carol");
    bob.send(&to_carol, text("still here")).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_act_for_users_as_far_as_their_scopes_go() -> Result<()> {
    let (cluster, secured) = started().await?;
    let to_bob = ConversationId::direct("alice", "bob");
    let writes = secured.server(&[Scope::ChatWrite])?;
    let calls = api(&cluster, "alice", secured.nobody().token(&writes))?;
    eventually("a new server is let in", Result::is_ok, async || {
        calls.send(&to_bob, text("from the server")).await
    })
    .await?;
    let reads = secured.server(&[Scope::ChatRead])?;
    let gone = unknown("CREDENTIAL_INVALID");
    eventually(
        "the old one is not any more",
        |answer| refused_as(answer, &gone),
        async || calls.send(&to_bob, text("x")).await,
    )
    .await?;
    let calls = api(&cluster, "bob", secured.nobody().token(&reads))?;
    eventually("the next one is let in", Result::is_ok, async || {
        calls.get_messages(&to_bob, Range::newest(1)).await
    })
    .await?;
    assert_eq!(refused(calls.send(&to_bob, text("x")).await)?, denied());
    Ok(())
}

fn refused_as<T>(answer: &Result<T, ClientError>, expected: &(Code, String)) -> bool {
    let refusal = answer.as_ref().err().and_then(ClientError::refusal);
    refusal.is_some_and(|refusal| (refusal.code, refusal.reason.clone()) == *expected)
}

/// Waits until every node has said this so often.
async fn all_say(cluster: &Cluster, what: &str, times: usize) -> Result<()> {
    let deadline = tokio::time::Instant::now() + NOTICED_WITHIN;
    for id in cluster.node_ids() {
        while cluster.node(id).log_text().matches(what).count() < times {
            let late = tokio::time::Instant::now() > deadline;
            ensure!(!late, "node {id} does not say {what:?} {times} times");
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_exchanged_while_people_chat() -> Result<()> {
    let (mut cluster, secured) = started().await?;
    let to_bob = ConversationId::direct("alice", "bob");
    let new = Authority::new()?;
    let both = format!("{}{}", secured.authority().pem(), new.pem());
    let credentials = Credentials::default()
        .authority(&both)
        .token(secured.token("alice")?);
    let alice = Client::builder(cluster.client_addresses())
        .user("alice")
        .credentials(credentials.clone())
        .connect()
        .await?;
    let mut seq = 0;
    let mut send = async || -> Result<()> {
        seq += 1;
        assert_eq!(alice.send(&to_bob, text("on and on")).await?.seq, seq);
        Ok(())
    };
    send().await?;
    secured.trust(&both)?;
    all_say(&cluster, "new certificates are used", 1).await?;
    secured.show(&new.issue("node", "any")?)?;
    all_say(&cluster, "new certificates are used", 2).await?;
    // Nodes of both kinds of certificate talk to each other, whoever starts anew.
    for id in cluster.node_ids() {
        cluster.kill9(id).await?;
        send().await?;
        cluster.restart(id).await?;
        send().await?;
    }
    // Whoever trusts the new authority only is served.
    let only_new = Credentials::default()
        .authority(new.pem())
        .token(secured.token("bob")?);
    let calls = api(&cluster, "bob", only_new)?;
    let page = calls.get_messages(&to_bob, Range::newest(1)).await?;
    assert_eq!(page.messages[0].seq, 7);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_with_a_certificate_of_the_cluster() -> Result<()> {
    let (mut cluster, secured) = started().await?;
    // The token alone is not enough: what it has is the certificate of an admin.
    secured.show(&secured.authority().issue("admin", "olga")?)?;
    let refused = cluster.join().await.expect_err("it is no node");
    let log = cluster.node(4).log_text();
    assert!(
        log.contains("carillon://test/node/NAME is needed"),
        "{refused}: {log}"
    );
    secured.show(&secured.authority().issue("node", "new")?)?;
    cluster.restart(4).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_finish_a_handshake_is_closed_and_counted() -> Result<()> {
    let secured = Arc::new(Secured::new()?);
    let options = ClusterOptions {
        secured: Some(secured),
        extra_config: "\n[clients]\nhello_timeout = \"1s\"\n".to_owned(),
        ..ClusterOptions::default()
    };
    let cluster = Cluster::start(options).await?;
    let addresses = cluster.node(1).addresses();
    // The beginning of a TLS record, which says that more follows.
    let half = [0x16, 0x03, 0x01, 0x02, 0x00, 0x01];
    for (port, said) in [
        (&addresses.client, &[][..]),
        (&addresses.client, &half[..]),
        (&addresses.peer, &half[..]),
        (&addresses.client, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ] {
        let mut stream = TcpStream::connect(port).await?;
        stream.write_all(said).await?;
        let mut answer = Vec::new();
        let closed = tokio::time::timeout(NOTICED_WITHIN, stream.read_to_end(&mut answer)).await;
        // Reset or ended: it is not there any more.
        let _ = closed.with_context(|| format!("{port} keeps whoever says {said:?}"))?;
    }
    let (_, page) = http_get(&addresses.http, "/metrics", NOTICED_WITHIN).await?;
    for (name, least) in [
        ("carillon_connections_silent_total{port=\"client\"}", 2),
        ("carillon_connections_silent_total{port=\"peer\"}", 1),
        ("carillon_handshakes_failed_total{port=\"client\"}", 1),
    ] {
        let value = page.lines().find_map(|line| line.strip_prefix(name));
        let value: u64 = value.context(name)?.trim().parse()?;
        assert!(value >= least, "{name} is {value}");
    }
    Ok(())
}
