//! Well-formed gRPC with broken protobuf, ids that are not UTF-8, and frames that are too
//! large, on the clients' and on the nodes' port.

use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use carillon_proto::internal::{InstallSnapshotResponse, Packet};
use carillon_proto::v1::{self, kick, server_frame};
use carillon_tests::rpc;
use prost::Message as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::timeout;
use tokio_stream::{StreamExt as _, iter, pending};
use tonic::{Code, Status, Streaming};

use crate::raw::{field, stream, unary};
use crate::well::{assert_well, cluster, user};

const SEND: &str = "/carillon.v1.Chat/Send";
const GET_MESSAGES: &str = "/carillon.v1.Chat/GetMessages";
const CONNECT: &str = "/carillon.v1.Chat/Connect";
const RAFT: &str = "/carillon.internal.v1.Peer/Raft";
const RELAY: &str = "/carillon.internal.v1.Peer/Relay";
const INSTALL_SNAPSHOT: &str = "/carillon.internal.v1.Peer/InstallSnapshot";
/// How long a frame or the end of a stream may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Bytes that are not UTF-8.
const NOT_UTF8: &[u8] = b"\xff\xfe\xc3\x28";
/// Larger than any request.
const OVERSIZED_BYTES: usize = 8 << 20;

fn text() -> Vec<u8> {
    rpc::text("x").encode_to_vec()
}

#[tokio::test]
async fn unary_requests_that_are_broken() -> Result<()> {
    let (cluster, _alone) = cluster().await?;
    let address = &cluster.node(1).addresses().client;
    let alice = user("alice");
    let broken: [(&str, &'static str, Vec<u8>); 6] = [
        (
            "an id that is not UTF-8",
            SEND,
            [field(1, NOT_UTF8), field(2, b"m"), field(3, &text())].concat(),
        ),
        (
            "a message id that is not UTF-8",
            SEND,
            [field(1, b"c"), field(2, NOT_UTF8), field(3, &text())].concat(),
        ),
        ("an id that is not UTF-8", GET_MESSAGES, field(1, NOT_UTF8)),
        ("a field that is cut off", SEND, vec![0x0a, 200, 1]),
        ("garbage", SEND, vec![0xff; 50]),
        (
            "a text that is not UTF-8",
            SEND,
            [
                field(1, b"c"),
                field(2, b"m"),
                field(3, &field(1, &field(1, NOT_UTF8))),
            ]
            .concat(),
        ),
    ];
    for (name, method, body) in broken {
        let outcome = unary::<v1::SendResponse>(address, method, &alice, body).await?;
        let status = outcome
            .err()
            .with_context(|| format!("{name} was accepted"))?;
        assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status:?}");
        assert!(!status.message().is_empty(), "{name}: {status:?}");
    }
    let oversized = field(1, &vec![b'x'; OVERSIZED_BYTES]);
    let outcome = unary::<v1::SendResponse>(address, SEND, &alice, oversized).await?;
    let code = outcome.err().map(|status| status.code());
    assert!(
        matches!(
            code,
            Some(Code::OutOfRange | Code::ResourceExhausted | Code::InvalidArgument)
        ),
        "{code:?}"
    );
    assert_well(cluster).await
}

/// Every call says why it cannot read a request, in a way that a program understands: the
/// streaming one and those of the administration too.
#[tokio::test]
async fn every_call_explains_what_it_cannot_read() -> Result<()> {
    const CHAT: [&str; 11] = [
        "/carillon.v1.Chat/Send",
        "/carillon.v1.Chat/GetMessages",
        "/carillon.v1.Chat/Sync",
        "/carillon.v1.Chat/SyncStream",
        "/carillon.v1.Chat/ListConversations",
        "/carillon.v1.Chat/MarkRead",
        "/carillon.v1.Chat/CreateConversation",
        "/carillon.v1.Chat/GetConversation",
        "/carillon.v1.Chat/AddMembers",
        "/carillon.v1.Chat/RemoveMembers",
        "/carillon.v1.Chat/ListMembers",
    ];
    const ADMIN: [&str; 7] = [
        "/carillon.admin.v1.Admin/GetCluster",
        "/carillon.admin.v1.Admin/ListNodes",
        "/carillon.admin.v1.Admin/ListShards",
        "/carillon.admin.v1.Admin/ChecksumShard",
        "/carillon.admin.v1.Admin/TransferLeader",
        "/carillon.admin.v1.Admin/TriggerSnapshot",
        "/carillon.admin.v1.Admin/MeasureAppend",
    ];
    let (cluster, _alone) = cluster().await?;
    let address = &cluster.node(2).addresses().client;
    let alice = user("alice");
    for method in CHAT.into_iter().chain(ADMIN) {
        for garbage in [vec![0xff; 50], vec![0x0a, 200, 1]] {
            let outcome = unary::<v1::SendResponse>(address, method, &alice, garbage).await?;
            let status = outcome.err().context(method)?;
            let expected = (Code::InvalidArgument, "INVALID_REQUEST".to_owned());
            let refusal = rpc::refusal(&status);
            assert_eq!((refusal.code, refusal.reason), expected, "{method}");
        }
        let oversized = field(1, &vec![b'x'; OVERSIZED_BYTES]);
        let outcome = unary::<v1::SendResponse>(address, method, &alice, oversized).await?;
        let status = outcome.err().context(method)?;
        let expected = (Code::ResourceExhausted, "LIMIT_EXCEEDED".to_owned());
        let refusal = rpc::refusal(&status);
        assert_eq!((refusal.code, refusal.reason), expected, "{method}");
        assert_eq!(rpc::error_metadata(&status, "limit"), "request_bytes_max");
        assert_eq!(rpc::error_metadata(&status, "max"), (1 << 20).to_string());
    }
    assert_well(cluster).await
}

async fn next(
    stream: &mut Streaming<v1::ServerFrame>,
) -> Result<Result<Option<v1::ServerFrame>, Status>> {
    timeout(LIMIT, stream.message())
        .await
        .context("neither a frame nor an end")
}

/// Sends frames on a stream that stays open; returns the Kick, if any, and the end.
async fn ends(address: &str, frames: Vec<Vec<u8>>) -> Result<(Option<v1::Kick>, Option<Status>)> {
    let frames = iter(frames.into_iter().map(Bytes::from)).chain(pending());
    let mut stream = match stream::<v1::ServerFrame>(address, CONNECT, frames).await? {
        Ok(stream) => stream,
        Err(status) => return Ok((None, Some(status))),
    };
    let mut kick = None;
    loop {
        match next(&mut stream).await? {
            Ok(Some(frame)) => {
                if let Some(server_frame::Frame::Kick(told)) = frame.frame {
                    kick = Some(told);
                }
            }
            Ok(None) => return Ok((kick, None)),
            Err(status) => return Ok((kick, Some(status))),
        }
    }
}

#[tokio::test]
async fn streams_that_begin_badly() -> Result<()> {
    let (cluster, _alone) = cluster().await?;
    let address = &cluster.node(2).addresses().client;
    let hello = |user: &[u8], device: &[u8]| field(1, &[field(1, user), field(2, device)].concat());
    for (name, frame) in [
        ("a user that is not UTF-8", hello(NOT_UTF8, b"phone")),
        ("a device that is not UTF-8", hello(b"alice", NOT_UTF8)),
        ("an empty user", hello(b"", b"phone")),
        ("an oversized user", hello(&[b'x'; 10_000], b"phone")),
        ("a user with a NUL", hello(b"a\0b", b"phone")),
        ("garbage", vec![0xff; 40]),
        ("a frame that is cut off", vec![0x0a, 100, 1]),
        ("an unknown frame", field(15, b"?")),
        ("an empty frame", Vec::new()),
    ] {
        let (_, status) = ends(address, vec![frame]).await?;
        let status = status.with_context(|| format!("{name}: the stream ended with OK"))?;
        let refusal = rpc::refusal(&status);
        assert!(
            matches!(
                refusal.code,
                Code::InvalidArgument | Code::FailedPrecondition
            ),
            "{name}: {status:?}"
        );
        assert!(!refusal.reason.is_empty(), "{name}: {status:?}");
    }
    assert_well(cluster).await
}

#[tokio::test]
async fn streams_that_go_on_badly() -> Result<()> {
    let (cluster, _alone) = cluster().await?;
    let address = &cluster.node(3).addresses().client;
    let seed = carillon_tests::load::seed();
    println!("run again with CARILLON_TEST_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut noise = vec![0; 3_000];
    rng.fill(noise.as_mut_slice());
    noise[0] = 0x07;
    for (name, frame) in [
        ("garbage", noise),
        ("a frame that is cut off", vec![0x12, 100, 1]),
        ("an unknown frame", field(15, b"?")),
        ("an oversized frame", field(2, &vec![b'x'; 1 << 20])),
    ] {
        let alice = user("alice");
        let hello = field(
            1,
            &[field(1, alice.as_bytes()), field(2, b"phone")].concat(),
        );
        let (kick, status) = ends(address, vec![hello, frame]).await?;
        let kick = kick.with_context(|| format!("{name}: no Kick, ended with {status:?}"))?;
        assert_eq!(kick.reason(), kick::Reason::ProtocolError, "{name}");
        assert!(!kick.message.is_empty(), "{name}");
        let status = status.with_context(|| format!("{name}: the stream ended with OK"))?;
        assert!(
            !rpc::refusal(&status).reason.is_empty(),
            "{name}: {status:?}"
        );
    }
    assert_well(cluster).await
}

/// A send with a broken id is the send's failure, not the stream's.
#[tokio::test]
async fn sends_with_ids_that_are_not_utf8() -> Result<()> {
    let (cluster, _alone) = cluster().await?;
    let address = &cluster.node(1).addresses().client;
    let alice = user("alice");
    let send = |request: u8, conversation: &[u8], id: &[u8], content: &[u8]| {
        let head = vec![0x08, request];
        field(
            2,
            &[
                head,
                field(2, conversation),
                field(3, id),
                field(4, content),
            ]
            .concat(),
        )
    };
    let frames = vec![
        field(
            1,
            &[field(1, alice.as_bytes()), field(2, b"phone")].concat(),
        ),
        send(1, NOT_UTF8, b"m", &text()),
        send(2, b"c", NOT_UTF8, &text()),
        send(3, b"c", b"m", &field(1, &field(1, NOT_UTF8))),
        send(4, b"c", b"m", b"\xff\xff"),
    ];
    let frames = iter(frames.into_iter().map(Bytes::from)).chain(pending());
    let mut stream = stream::<v1::ServerFrame>(address, CONNECT, frames).await??;
    let mut reasons = std::collections::BTreeMap::new();
    while reasons.len() < 4 {
        let frame = next(&mut stream).await??.context("the stream ended")?;
        if let Some(server_frame::Frame::Error(error)) = frame.frame {
            assert_eq!(
                Code::from_i32(error.code),
                Code::InvalidArgument,
                "{error:?}"
            );
            reasons.insert(error.request_id, error.reason);
        }
    }
    let reasons: Vec<&str> = reasons.values().map(String::as_str).collect();
    assert_eq!(
        reasons,
        [
            "INVALID_ID",
            "INVALID_ID",
            "INVALID_CONTENT",
            "INVALID_CONTENT"
        ]
    );
    assert_well(cluster).await
}

/// Packets and snapshots between nodes that no node would send.
#[tokio::test]
async fn packets_of_garbage_on_the_peer_port() -> Result<()> {
    const PACKETS: usize = 50;
    let (cluster, _alone) = cluster().await?;
    let seed = carillon_tests::load::seed();
    println!("run again with CARILLON_TEST_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for id in cluster.node_ids() {
        let address = &cluster.node(id).addresses().peer;
        for method in [RAFT, RELAY] {
            for _ in 0..PACKETS {
                let mut frames = vec![0; rng.random_range(0..200)];
                rng.fill(frames.as_mut_slice());
                if frames.len() > 20 && rng.random_bool(0.5) {
                    // A frame with a true length, a kind, a shard, and noise inside.
                    let length = u32::try_from(frames.len() - 4)?;
                    frames[..4].copy_from_slice(&length.to_le_bytes());
                    frames[4] = rng.random_range(0..32);
                    frames[5..9].copy_from_slice(&rng.random_range(0..18_u32).to_le_bytes());
                }
                let packet = Packet {
                    frames: frames.into(),
                };
                let packets = iter([Bytes::from(packet.encode_to_vec())]);
                // Any end is fine, as long as it comes and the node lives.
                if let Ok(mut answers) = stream::<Packet>(address, method, packets).await? {
                    let ended = async { while let Ok(Some(_)) = answers.message().await {} };
                    timeout(LIMIT, ended)
                        .await
                        .context("the peer's stream does not end")?;
                }
            }
        }
        let noise = iter([
            Bytes::from(field(1, &[0xff; 30])),
            Bytes::from(vec![0xff; 30]),
        ]);
        let outcome = stream::<InstallSnapshotResponse>(address, INSTALL_SNAPSHOT, noise).await?;
        let ended = match outcome {
            Ok(mut answers) => timeout(LIMIT, answers.message()).await?.map(drop),
            Err(status) => Err(status),
        };
        assert!(ended.is_err(), "node {id} took garbage as a snapshot");
    }
    assert_well(cluster).await
}
