//! What is refused, and that nothing of it is left behind.

use futures_util::stream::{self, iter};
use tonic::Code;
use tonic_types::StatusExt as _;

use super::*;

const SENDER: NodeId = NodeId(2);

fn announced(sizes: impl IntoIterator<Item = u64>) -> SnapshotHead {
    let files = sizes.into_iter().map(|size_bytes| FileHead {
        size_bytes,
        ..FileHead::default()
    });
    SnapshotHead {
        shard_id: 3,
        from_node: SENDER.0,
        files: files.collect(),
        ..SnapshotHead::default()
    }
}

fn chunks(parts: impl IntoIterator<Item = Part>) -> impl Chunks {
    let chunks: Vec<_> = parts
        .into_iter()
        .map(|part| Ok(SnapshotChunk { part: Some(part) }))
        .collect();
    iter(chunks)
}

fn data(bytes: &'static [u8]) -> Part {
    Part::Data(Bytes::from_static(bytes))
}

async fn judged(head_of: SnapshotHead) -> Result<SnapshotHead, Status> {
    head(&mut chunks([Part::Head(head_of)]), SENDER).await
}

/// The limit that a refusal names.
fn limit(status: &Status) -> Option<String> {
    status.get_details_error_info()?.metadata.remove("limit")
}

#[tokio::test]
async fn heads_over_a_limit_are_refused_by_name() {
    let file = FILE_BYTES_MAX;
    let whole = SNAPSHOT_BYTES_MAX / file;
    judged(announced([])).await.expect("no files");
    judged(announced([1, file])).await.expect("a large file");
    judged(announced((0..whole).map(|_| file)))
        .await
        .expect("as large as it may be");
    let record = SnapshotHead {
        clock: vec![0; RECORD_BYTES_MAX as usize + 1].into(),
        ..announced([])
    };
    for (name, head) in [
        ("snapshot_file_bytes_max", announced([1, file + 1])),
        ("snapshot_file_bytes_max", announced([u64::MAX, u64::MAX])),
        ("snapshot_bytes_max", announced((0..=whole).map(|_| file))),
        ("snapshot_files_max", announced((0..=FILES_MAX).map(|_| 1))),
        ("snapshot_record_bytes_max", record),
    ] {
        let refused = judged(head).await.expect_err(name);
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
        assert_eq!(limit(&refused).as_deref(), Some(name));
    }
}

#[tokio::test]
async fn heads_that_no_node_would_send_are_refused() {
    let stranger = SnapshotHead {
        from_node: 9,
        ..announced([1])
    };
    for head in [announced([5, 0]), stranger] {
        let refused = judged(head).await.expect_err("refused");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    }
    for parts in [vec![], vec![data(b"x")]] {
        let refused = head(&mut chunks(parts), SENDER).await.expect_err("no head");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    }
}

#[tokio::test]
async fn what_is_received_is_what_was_announced() {
    let directory = tempfile::tempdir().expect("a directory");
    let inbox = SnapshotInbox::new(directory.path().to_owned());
    let head = announced([3, 4]);
    let received = inbox
        .receive(&head, chunks([data(b"ab"), data(b"cde"), data(b"fg")]))
        .await
        .expect("whole");
    let read = |file: &SnapshotFile| std::fs::read(&file.path).expect("a file");
    let contents: Vec<_> = received.files().iter().map(read).collect();
    assert_eq!(contents, [b"abc".to_vec(), b"defg".to_vec()]);
    drop(received);

    let second_head = Part::Head(announced([1]));
    for (name, code, parts) in [
        ("shorter", Code::DataLoss, vec![data(b"abcdef")]),
        ("nothing", Code::DataLoss, vec![]),
        ("longer", Code::DataLoss, vec![data(b"abcdefgh")]),
        (
            "longer by a chunk",
            Code::DataLoss,
            vec![data(b"abcdefg"), data(b"h")],
        ),
        (
            "longer by an empty chunk",
            Code::DataLoss,
            vec![data(b"abcdefg"), data(b"")],
        ),
        (
            "an empty chunk",
            Code::InvalidArgument,
            vec![data(b""), data(b"abcdefg")],
        ),
        (
            "a second head",
            Code::InvalidArgument,
            vec![data(b"abc"), second_head],
        ),
    ] {
        let refused = inbox.receive(&head, chunks(parts)).await.err();
        assert_eq!(refused.map(|status| status.code()), Some(code), "{name}");
    }
    assert_eq!(inbox.promised_bytes.load(Ordering::Relaxed), 0);
    let left = std::fs::read_dir(directory.path()).expect("the directory");
    assert_eq!(left.count(), 0, "files were left behind");
}

#[tokio::test]
async fn room_on_the_disk_is_promised_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let inbox = SnapshotInbox::new(directory.path().to_owned());
    let free = Disk::of(directory.path())
        .expect("a file system")
        .free_bytes;
    let room = free.saturating_sub(DISK_RESERVE_BYTES);
    assert!(room > 0, "this test needs some free disk space");

    let refused = inbox.promise(free).err().expect("the reserve is kept");
    assert_eq!(limit(&refused).as_deref(), Some("snapshot_disk_bytes_max"));
    let first = inbox.promise(room / 5 * 3).expect("there is room");
    let head = announced([1]);
    let never = stream::pending::<Result<SnapshotChunk, Status>>();
    let refused = inbox.promise(room / 5 * 3).err().expect("promised already");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    inbox.promise(0).expect("nothing needs no room");
    drop(first);
    inbox.promise(room / 5 * 3).expect("given back");
    // A promise is held while a snapshot is on its way, and given back when it is given up.
    let mut receiving = Box::pin(inbox.receive(&head, never));
    assert!(futures_util::poll!(&mut receiving).is_pending());
    while inbox.promised_bytes.load(Ordering::Relaxed) == 0 {
        assert!(futures_util::poll!(&mut receiving).is_pending());
    }
    drop(receiving);
    assert_eq!(inbox.promised_bytes.load(Ordering::Relaxed), 0);
}
