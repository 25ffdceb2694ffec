//! Bytes that are no gRPC at all, on every port.

use std::time::Duration;

use anyhow::{Context as _, Result};
use carillon_tests::load;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::well::{HELLO_TIMEOUT, assert_well, cluster};

/// The beginning of every HTTP/2 connection.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// An empty SETTINGS frame.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
/// A connection that sent garbage is closed within this.
const CLOSE_LIMIT: Duration = Duration::from_secs(15);

/// Writes bytes and reads until the other side closes. Bytes after which a server may
/// rightly wait for more are followed by our own end.
async fn throw(address: &str, bytes: &[u8], and_close: bool) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    // The other side may close before everything is written.
    let _ = stream.write_all(bytes).await;
    if and_close {
        let _ = stream.shutdown().await;
    }
    let mut sink = vec![0; 4096];
    let closed = async {
        while let Ok(read) = stream.read(&mut sink).await {
            if read == 0 {
                break;
            }
        }
    };
    timeout(CLOSE_LIMIT, closed)
        .await
        .with_context(|| format!("{address} keeps a connection open after {bytes:.40?}"))
}

#[tokio::test]
async fn garbage_on_every_port() -> Result<()> {
    let seed = load::seed();
    println!("run again with CARILLON_TEST_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let (cluster, _alone) = cluster().await?;
    let mut noise = vec![0; 100_000];
    rng.fill(noise.as_mut_slice());
    let mut after_preface = [PREFACE, SETTINGS].concat();
    after_preface.extend_from_slice(&noise[..2_000]);
    let frame = |length: u32, kind: u8, flags: u8, stream: u32| {
        let mut frame = length.to_be_bytes()[1..].to_vec();
        frame.extend_from_slice(&[kind, flags]);
        frame.extend_from_slice(&stream.to_be_bytes());
        frame
    };
    let huge = [PREFACE, SETTINGS, &frame(0xff_ffff, 0, 0, 1)].concat();
    let bad_headers = [PREFACE, SETTINGS, &frame(50, 1, 4, 1), &noise[..50]].concat();
    let cases: [(&[u8], bool); 9] = [
        (&noise, false),
        (&noise[..10], true),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", true),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", true),
        (&after_preface, true),
        (&huge, false),
        (&bad_headers, true),
        (&PREFACE[..10], true),
        (b"", true),
    ];
    for id in cluster.node_ids() {
        let addresses = cluster.node(id).addresses();
        for address in [&addresses.client, &addresses.peer, &addresses.http] {
            for (bytes, and_close) in cases {
                throw(address, bytes, and_close || *address == addresses.http).await?;
            }
        }
    }
    assert_well(cluster).await
}

/// Nothing, and a few bytes that look like a beginning, do not hold a connection for ever.
#[tokio::test]
async fn connections_that_say_too_little_are_closed() -> Result<()> {
    let (cluster, _alone) = cluster().await?;
    let addresses = cluster.node(1).addresses();
    let mut held = Vec::new();
    for address in [&addresses.client, &addresses.peer] {
        for bytes in [0, 1, PREFACE.len() - 1, PREFACE.len()] {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(&PREFACE[..bytes]).await?;
            held.push((address, bytes, stream));
        }
    }
    let deadline = Instant::now() + HELLO_TIMEOUT + CLOSE_LIMIT;
    for (address, bytes, mut stream) in held {
        // The server's own SETTINGS may come before its end, and the end may be a reset.
        let mut said = Vec::new();
        let closed = timeout_at(deadline, stream.read_to_end(&mut said)).await;
        let text = format!("a connection to {address} with {bytes} bytes stays open");
        closed.context(text).map(drop)?;
    }
    Ok(())
}
