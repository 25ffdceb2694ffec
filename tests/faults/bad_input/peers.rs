//! Calls on the nodes' port by somebody who is not of the cluster, and snapshots that no node
//! would send.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use carillon_proto::internal::peer_client::PeerClient;
use carillon_proto::internal::snapshot_chunk::Part;
use carillon_proto::internal::{
    ChecksumRequest, FlushRequest, IdentifyRequest, InstallSnapshotResponse, SnapshotChunk,
    SnapshotFile, SnapshotHead, StatusRequest, TransferRequest,
};
use carillon_tests::harness::Cluster;
use carillon_tests::rpc;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::well::{assert_well, cluster};

/// A shard that every node has a replica of.
const SHARD: u32 = 1;

/// Who somebody says to be.
#[derive(Clone)]
struct Caller {
    node: u64,
    identity: String,
    cluster: String,
}

impl Caller {
    /// A node of the cluster, as it says itself.
    async fn of(cluster: &Cluster, node: u64) -> Result<Self> {
        let request = IdentifyRequest {
            node_id: 99,
            cluster_name: "test".to_owned(),
            ..IdentifyRequest::default()
        };
        let mut client = peer(cluster, node).await?;
        let answer = client.identify(request).await?.into_inner();
        Ok(Self {
            node: answer.node_id,
            identity: answer.identity,
            cluster: answer.cluster_id,
        })
    }

    fn says<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        for (key, value) in [
            ("carillon-node", &self.node.to_string()),
            ("carillon-identity", &self.identity),
            ("carillon-cluster", &self.cluster),
        ] {
            let value = value.parse().expect("plain text");
            request.metadata_mut().insert(key, value);
        }
        request
    }
}

async fn peer(cluster: &Cluster, node: u64) -> Result<PeerClient<Channel>> {
    let address = &cluster.node(node).addresses().peer;
    Ok(PeerClient::new(rpc::endpoint(address)?.connect().await?))
}

/// The codes of all calls that change something, for a caller.
async fn codes(
    client: &mut PeerClient<Channel>,
    request: impl Fn() -> Request<()>,
) -> Result<Vec<Option<Code>>> {
    fn with<T>(request: Request<()>, message: T) -> Request<T> {
        request.map(|()| message)
    }
    let checksum = ChecksumRequest {
        shard_id: SHARD,
        nonce: 7,
    };
    let transfer = TransferRequest {
        shard_id: SHARD,
        to_node: 2,
    };
    let flush = FlushRequest { shard_id: SHARD };
    let head = chunk(Part::Head(head(SHARD, &[])));
    let snapshot = with(request(), tokio_stream::iter([head]));
    let code = |status: Status| status.code();
    Ok(vec![
        client
            .checksum(with(request(), checksum))
            .await
            .err()
            .map(code),
        client
            .start_checksum(with(request(), checksum))
            .await
            .err()
            .map(code),
        client
            .transfer(with(request(), transfer))
            .await
            .err()
            .map(code),
        client.flush(with(request(), flush)).await.err().map(code),
        client.install_snapshot(snapshot).await.err().map(code),
        client
            .raft(with(request(), tokio_stream::empty()))
            .await
            .err()
            .map(code),
        client
            .relay(with(request(), tokio_stream::empty()))
            .await
            .err()
            .map(code),
    ])
}

#[tokio::test]
async fn who_is_not_of_the_cluster_changes_nothing() -> Result<()> {
    let (cluster, _alone) = cluster().await?;
    let node_two = Caller::of(cluster, 2).await?;
    let mut client = peer(cluster, 1).await?;

    let unnamed = codes(&mut client, || Request::new(())).await?;
    assert!(
        unnamed
            .iter()
            .all(|code| *code == Some(Code::InvalidArgument)),
        "{unnamed:?}"
    );
    for (name, caller) in [
        (
            "another data directory",
            Caller {
                identity: "0".repeat(32),
                ..node_two.clone()
            },
        ),
        (
            "another cluster",
            Caller {
                cluster: "0".repeat(32),
                ..node_two.clone()
            },
        ),
        (
            "an unknown node",
            Caller {
                node: 9,
                ..node_two.clone()
            },
        ),
    ] {
        let codes = codes(&mut client, || caller.says(())).await?;
        assert!(
            codes
                .iter()
                .all(|code| *code == Some(Code::FailedPrecondition)),
            "{name}: {codes:?}"
        );
    }
    // Who belongs to it is heard, and anybody may ask how a node is.
    let flush = FlushRequest { shard_id: SHARD };
    client.flush(node_two.says(flush)).await?;
    client.status(StatusRequest {}).await?;
    assert_well(cluster).await
}

fn chunk(part: Part) -> SnapshotChunk {
    SnapshotChunk { part: Some(part) }
}

fn head(shard_id: u32, sizes: &[u64]) -> SnapshotHead {
    let files = sizes.iter().map(|size_bytes| SnapshotFile {
        size_bytes: *size_bytes,
        ..SnapshotFile::default()
    });
    SnapshotHead {
        shard_id,
        from_node: 2,
        files: files.collect(),
        ..SnapshotHead::default()
    }
}

async fn installed(
    client: &mut PeerClient<Channel>,
    caller: &Caller,
    head: SnapshotHead,
    data: &[&'static [u8]],
) -> Result<InstallSnapshotResponse, Status> {
    let data = data.iter().map(|data| Part::Data(Bytes::from_static(data)));
    let chunks: Vec<_> = std::iter::once(Part::Head(head))
        .chain(data)
        .map(chunk)
        .collect();
    let request = caller.says(tokio_stream::iter(chunks));
    client
        .install_snapshot(request)
        .await
        .map(tonic::Response::into_inner)
}

/// Its name, who sends what, and how it is refused.
type Case<'a> = (&'a str, &'a Caller, SnapshotHead, &'a [&'static [u8]], Code);

#[tokio::test]
async fn snapshots_that_no_node_would_send() -> Result<()> {
    const LARGE: u64 = 128 << 20;
    let (cluster, _alone) = cluster().await?;
    let (node_two, node_three) = (Caller::of(cluster, 2).await?, Caller::of(cluster, 3).await?);
    let mut client = peer(cluster, 1).await?;
    let received = cluster.node(1).data_dir().join("snapshots");
    let terabyte = vec![LARGE; 8_193];
    let cases: [Case<'_>; 8] = [
        (
            "an unknown shard",
            &node_two,
            head(77, &[1]),
            &[b"x"],
            Code::NotFound,
        ),
        (
            "of another",
            &node_three,
            head(SHARD, &[1]),
            &[b"x"],
            Code::InvalidArgument,
        ),
        (
            "an empty file",
            &node_two,
            head(SHARD, &[1, 0]),
            &[b"x"],
            Code::InvalidArgument,
        ),
        (
            "a large file",
            &node_two,
            head(SHARD, &[LARGE + 1]),
            &[b"x"],
            Code::ResourceExhausted,
        ),
        (
            "too much",
            &node_two,
            head(SHARD, &terabyte),
            &[b"x"],
            Code::ResourceExhausted,
        ),
        (
            "too short",
            &node_two,
            head(SHARD, &[1, 3]),
            &[b"xyz"],
            Code::DataLoss,
        ),
        (
            "too long",
            &node_two,
            head(SHARD, &[1, 1]),
            &[b"xyz"],
            Code::DataLoss,
        ),
        (
            "longer still",
            &node_two,
            head(SHARD, &[1, 1]),
            &[b"xy", b"z"],
            Code::DataLoss,
        ),
    ];
    for (name, caller, head, data, code) in cases {
        let outcome = installed(&mut client, caller, head, data).await;
        let status = outcome
            .err()
            .with_context(|| format!("{name} was installed"))?;
        assert_eq!(status.code(), code, "{name}: {status:?}");
        let left = std::fs::read_dir(&received)?.count();
        assert_eq!(left, 0, "{name} left something behind");
    }
    // What is as announced and is no snapshot is refused by the shard.
    let outcome = installed(&mut client, &node_two, head(SHARD, &[3]), &[b"xyz"]).await;
    assert!(outcome.is_err(), "garbage was installed");
    assert_eq!(std::fs::read_dir(&received)?.count(), 0);
    assert_well(cluster).await
}
