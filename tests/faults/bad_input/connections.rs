//! Very many connections that never say hello, and connections that stop in the middle.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use carillon_tests::harness::{Cluster, http_get};
use carillon_tests::rpc;
use carillon_tests::session::Session;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::well::{HELLO_TIMEOUT, assert_well, cluster, user};

/// Connections that say nothing at all …
const SILENT: usize = 5_000;
/// … and connections that open a Connect stream and never say hello.
const WITHOUT_HELLO: usize = 5_000;
/// Connections that are opened at the same time.
const OPENING_MAX: usize = 200;
/// How much memory a node may need for all of them together.
const GROWTH_BYTES_MAX: u64 = 384 << 20;
/// How long a good client may wait for its answer in the middle of it.
const GOOD_CLIENT_LIMIT: Duration = Duration::from_secs(5);
/// How much later than the hello timeout a connection may be closed.
const SLACK: Duration = Duration::from_secs(20);
/// Connections that stop in the middle of a request.
const HALF_OPEN: usize = 300;
/// Files that a node may have open besides what it had before.
const FILES_SLACK: usize = 40;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const END_STREAM: u8 = 1;
const HEADERS: u8 = 1;
const DATA: u8 = 0;
const RST_STREAM: u8 = 3;

/// An HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("small");
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// An HPACK string literal.
fn literal(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("short");
    assert!(length < 127, "one byte of length is enough");
    let mut out = vec![length];
    out.extend_from_slice(text.as_bytes());
    out
}

/// Everything up to an open Connect stream without a message: preface, SETTINGS, HEADERS.
fn opening(address: &str) -> Vec<u8> {
    let headers = [
        vec![0x83, 0x86, 0x04],
        literal("/carillon.v1.Chat/Connect"),
        vec![0x01],
        literal(address),
        vec![0x0f, 0x10],
        literal("application/grpc"),
        vec![0x00],
        literal("te"),
        literal("trailers"),
    ]
    .concat();
    const END_HEADERS: u8 = 4;
    let settings = frame(4, 0, 0, &[]);
    [
        PREFACE,
        &settings,
        &frame(HEADERS, END_HEADERS, 1, &headers),
    ]
    .concat()
}

/// Reads until the connection is closed or stream 1 is ended by the server.
async fn until_ended(stream: &mut TcpStream) {
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).await.is_err() {
            return;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        if stream.read_exact(&mut payload).await.is_err() {
            return;
        }
        let of_stream = head[8] == 1;
        let may_end = head[3] == DATA || head[3] == HEADERS;
        if of_stream && (head[3] == RST_STREAM || may_end && head[4] & END_STREAM != 0) {
            return;
        }
    }
}

async fn open_all(address: &str) -> Result<Vec<(bool, TcpStream)>> {
    let mut opened = Vec::with_capacity(SILENT + WITHOUT_HELLO);
    let mut opening_now = JoinSet::new();
    let bytes = opening(address);
    for number in 0..SILENT + WITHOUT_HELLO {
        if opening_now.len() >= OPENING_MAX
            && let Some(done) = opening_now.join_next().await
        {
            opened.push(done??);
        }
        let (address, bytes) = (address.to_owned(), bytes.clone());
        opening_now.spawn(async move {
            let mut stream = TcpStream::connect(&address).await?;
            let speaks = number % 2 == 1;
            if speaks {
                stream.write_all(&bytes).await?;
            }
            std::io::Result::Ok((speaks, stream))
        });
    }
    while let Some(done) = opening_now.join_next().await {
        opened.push(done??);
    }
    Ok(opened)
}

async fn good_client_works(address: &str) -> Result<()> {
    let (alice, bob) = (user("alice"), user("bob"));
    let direct = rpc::direct_id(&alice, &bob);
    let exchange = async {
        let (mut alices, _) = Session::open(address, &alice, "phone", None).await?;
        let (mut bobs, _) = Session::open(address, &bob, "phone", None).await?;
        for number in 0..20 {
            alices.say(&direct, &format!("m{number}"), "x").await?;
            bobs.delivery().await?;
        }
        anyhow::Ok(())
    };
    timeout(GOOD_CLIENT_LIMIT, exchange)
        .await
        .context("a good client had to wait too long")?
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_connections_without_hello() -> Result<()> {
    let (cluster, _alone) = cluster().await?;
    let node = cluster.node(1);
    let address = &node.addresses().client;
    good_client_works(address).await?;
    let before = node.process()?.resident_bytes()?;
    let files = node.process()?.open_files()?;

    let started = Instant::now();
    let connections = open_all(address).await?;
    let opened = started.elapsed();
    good_client_works(address).await?;
    let with_all = node.process()?.resident_bytes()?;
    println!(
        "{} connections after {opened:?}: {} files, {} MiB more",
        connections.len(),
        node.process()?.open_files()?,
        with_all.saturating_sub(before) >> 20
    );

    let deadline = Instant::now() + HELLO_TIMEOUT + SLACK;
    let mut ending = JoinSet::new();
    for (speaks, mut stream) in connections {
        ending.spawn(async move {
            let ended = tokio::time::timeout_at(deadline, until_ended(&mut stream)).await;
            (speaks, ended.is_ok())
        });
    }
    let (mut unaware, mut kept) = (0, 0);
    while let Some(ended) = ending.join_next().await {
        let (speaks, ended) = ended?;
        unaware += usize::from(!ended && !speaks);
        kept += usize::from(!ended && speaks);
    }
    println!(
        "ended after {:?}, {unaware} silent ones do not know",
        started.elapsed()
    );
    ensure!(kept == 0, "{kept} streams without a hello were not ended");
    let (_, metrics) = http_get(&node.addresses().http, "/metrics", GOOD_CLIENT_LIMIT).await?;
    let closed = counted(
        &metrics,
        "carillon_connections_silent_total{port=\"client\"}",
    )?;
    ensure!(closed > 0, "no connection was closed for its silence");
    ensure!(
        counted(
            &metrics,
            "carillon_connections_refused_total{port=\"client\"}"
        )? == 0
    );
    // A connection that overflowed the kernel's accept queue exists only on the side of a
    // client that says nothing; so for the silent ones the node's own files count.
    files_are_given_back(cluster, files).await?;
    let grown = node
        .process()?
        .resident_bytes()?
        .max(with_all)
        .saturating_sub(before);
    ensure!(
        grown <= GROWTH_BYTES_MAX,
        "node 1 grew by {grown} bytes, allowed are {GROWTH_BYTES_MAX}"
    );
    assert_well(cluster).await
}

/// The value of a metric without labels.
fn counted(metrics: &str, name: &str) -> Result<u64> {
    let value = metrics
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .with_context(|| format!("{name} is not among the metrics"))?;
    Ok(value.parse()?)
}

async fn files_are_given_back(cluster: &Cluster, before: usize) -> Result<()> {
    let deadline = Instant::now() + HELLO_TIMEOUT + SLACK;
    loop {
        let now = cluster.node(1).process()?.open_files()?;
        if now <= before + FILES_SLACK {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "node 1 has {now} files open, before it were {before}"
        );
        sleep(Duration::from_millis(100)).await;
    }
}

/// Connections whose clients vanish in the middle of a frame, close only their side, or
/// are reset.
#[tokio::test(flavor = "multi_thread")]
async fn half_open_connections() -> Result<()> {
    let (cluster, _alone) = cluster().await?;
    let node = cluster.node(1);
    let address = &node.addresses().client;
    let files = node.process()?.open_files()?;
    let opening = opening(address);
    // A DATA frame that announces a message and stops after its first bytes.
    let mut half = opening.clone();
    half.extend_from_slice(&frame(DATA, 0, 1, &[0, 0, 0, 1, 0])[..12]);
    let mut held = Vec::new();
    for number in 0..HALF_OPEN {
        let mut stream = TcpStream::connect(address).await?;
        match number % 5 {
            0 => stream.write_all(&half).await?,
            1 => stream.write_all(&opening[..opening.len() / 2]).await?,
            2 => {
                stream.write_all(&opening).await?;
                stream.shutdown().await?;
            }
            3 => {
                stream.write_all(&half).await?;
                stream.set_zero_linger()?;
                continue;
            }
            _ => {
                stream.write_all(&PREFACE[..12]).await?;
                continue;
            }
        }
        held.push(stream);
    }
    good_client_works(address).await?;
    drop(held);
    files_are_given_back(cluster, files).await?;
    assert_well(cluster).await
}
