//! Snapshots: what they hold, how they travel, what installing one replaces.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use carillon_core::ReadView;
use carillon_core::ids::{ShardId, SlotRange};
use carillon_store::{ShardSnapshot, ShardStore, SnapshotFile, Store, StoreError};

use crate::states::{self, Numbers, assert_is, clock, commit, contents, expected, slots};

const SHARD: ShardId = ShardId(5);
/// Small enough for several files.
const FILE_BYTES: u64 = 4 * 1024;

fn range() -> SlotRange {
    slots(20, 23)
}

fn keep_going(_: carillon_store::SnapshotProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn files(snapshot: &ShardSnapshot, dir: &Path) -> Vec<SnapshotFile> {
    snapshot
        .write_files(dir, FILE_BYTES, &mut keep_going)
        .unwrap()
}

/// A store whose shard has applied `1 ..= n`.
fn source(dir: &Path, n: u64) -> (Store, ShardStore) {
    let store = states::open(dir);
    let mut shard = store.shard(SHARD, range()).unwrap();
    for n in 1..=n {
        commit(&mut shard, n);
    }
    (store, shard)
}

fn install(
    shard: &mut ShardStore,
    sent: &[SnapshotFile],
    n: u64,
    snapshot: &ShardSnapshot,
) -> Result<Option<ShardId>, StoreError> {
    let (clock, slots, merges) = (snapshot.clock(), snapshot.slots(), snapshot.merges());
    shard.install(sent, &n.to_be_bytes(), clock, slots, merges)
}

#[test]
fn a_snapshot_does_not_change() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut shard) = source(dir.path(), 40);
    let snapshot = shard.snapshot().unwrap();
    let sum = snapshot.checksum().unwrap();
    for n in 41..=80 {
        commit(&mut shard, n);
    }
    store.flush().unwrap();
    store.compact();
    assert_eq!(snapshot.applied().unwrap()[..], 40_u64.to_be_bytes());
    assert_eq!(snapshot.clock(), clock(40));
    assert_eq!(
        contents(snapshot.reader(), range()),
        expected(SHARD, range(), 40)
    );
    assert_eq!(snapshot.checksum().unwrap(), sum);
    assert_ne!(shard.snapshot().unwrap().checksum().unwrap(), sum);
    let key = expected(SHARD, range(), 40).into_keys().next().unwrap();
    assert!(snapshot.reader().get(&key).is_some());
    assert_is(&mut shard, 80, "the shard itself");
}

/// A node that gets hundreds of replicas would otherwise be busy for long with compacting what is
/// sorted already.
#[test]
fn what_a_new_replica_gets_needs_no_compaction() {
    let from = tempfile::tempdir().unwrap();
    let to = tempfile::tempdir().unwrap();
    let (_from_store, from_shard) = source(from.path(), 150);
    let snapshot = from_shard.snapshot().unwrap();
    let sent = files(&snapshot, &from.path().join("files"));
    assert!(sent.len() > 2, "{}", sent.len());
    let store = states::open(to.path());
    let mut other = store.shard(ShardId(6), slots(24, 27)).unwrap();
    commit(&mut other, 1);
    let before = store.stats().level0_files;
    let mut shard = store.shard(SHARD, range()).unwrap();
    install(&mut shard, &sent, 150, &snapshot).unwrap();
    assert!(store.stats().level0_files <= before + 1, "only its record");
    assert_is(&mut shard, 150, "the new replica");
    assert_is(&mut other, 1, "the other shard");
}

#[test]
fn installing_replaces_the_slots_and_nothing_else() {
    let seed = 0x5EED;
    println!("seed {seed}");
    let mut numbers = Numbers(seed);
    for round in 0..12 {
        let from = tempfile::tempdir().unwrap();
        let to = tempfile::tempdir().unwrap();
        // Also: an empty snapshot, and one onto an empty shard.
        let source_n = [0, 1, 60, 150][round % 4];
        let target_n = [200, 0, 90][round % 3];
        let (_from_store, from_shard) = source(from.path(), source_n);
        let snapshot = from_shard.snapshot().unwrap();
        let sent = files(&snapshot, &from.path().join("files"));
        assert!(source_n < 60 || sent.len() > 2, "{}", sent.len());

        let store = states::open(to.path());
        let mut before = store.shard(ShardId(1), slots(0, 19)).unwrap();
        let mut after = store.shard(ShardId(9), slots(24, 30)).unwrap();
        let mut shard = store.shard(SHARD, range()).unwrap();
        for n in 1..=target_n {
            commit(&mut shard, 1000 + n);
            commit(&mut before, n);
            commit(&mut after, n);
            match numbers.below(40) {
                0 => drop(store.flush().unwrap()),
                1 => store.compact(),
                _ => {}
            }
        }
        let old = contents(&shard.reader(), range());
        let held = shard.snapshot().unwrap();

        install(&mut shard, &sent, source_n, &snapshot).unwrap();
        let check = |shard: &mut ShardStore, what: &str| {
            if source_n > 0 {
                assert_is(shard, source_n, what);
            } else {
                assert_eq!(contents(&shard.reader(), range()), states::State::new());
                assert_eq!(
                    shard.applied().unwrap()[..],
                    source_n.to_be_bytes(),
                    "{what}"
                );
            }
            assert_eq!(
                shard.snapshot().unwrap().checksum().unwrap(),
                snapshot.checksum().unwrap(),
                "{what}"
            );
        };
        check(&mut shard, "after the install");
        assert_is(&mut before, target_n, "the shard before");
        assert_is(&mut after, target_n, "the shard after");
        assert_eq!(contents(held.reader(), range()), old, "an older snapshot");
        assert!(!store.path().join("staging/install-5").exists());
        assert!(sent.iter().all(|file| !file.path.exists()), "consumed");
        drop(held);

        store.compact();
        check(&mut shard, "after a compaction");
        drop((shard, before, after));
        drop(store);

        let store = states::open(to.path());
        assert!(store.interrupted_installs().is_empty());
        let mut shard = store.shard(SHARD, range()).unwrap();
        check(&mut shard, "after a restart");
        for n in source_n + 1..=source_n + 50 {
            commit(&mut shard, n);
        }
        assert_is(&mut shard, source_n + 50, "after further commits");
        store.flush().unwrap();
        store.compact();
        assert_is(&mut shard, source_n + 50, "after their compaction");
    }
}

#[test]
fn installing_twice_and_clearing() {
    let from = tempfile::tempdir().unwrap();
    let to = tempfile::tempdir().unwrap();
    let (_store, mut origin) = source(from.path(), 30);
    let store = states::open(to.path());
    let mut shard = store.shard(SHARD, range()).unwrap();
    for upto in [30_u64, 70, 110] {
        for n in states::applied(&origin) + 1..=upto {
            commit(&mut origin, n);
        }
        let snapshot = origin.snapshot().unwrap();
        let sent = files(&snapshot, &from.path().join("files"));
        install(&mut shard, &sent, upto, &snapshot).unwrap();
        assert_is(&mut shard, upto, "installed");
        commit(&mut shard, upto + 1);
        assert_is(&mut shard, upto + 1, "and one more");
    }
    shard.clear().unwrap();
    assert_is(&mut shard, 0, "cleared");
    drop(shard);
    drop(store);
    let store = states::open(to.path());
    let mut shard = store.shard(SHARD, range()).unwrap();
    assert_is(&mut shard, 0, "cleared and reopened");
    assert!(store.applied().unwrap().is_empty());
    commit(&mut shard, 1);
    assert_is(&mut shard, 1, "used again");
}

#[test]
fn readers_see_an_install_at_once() {
    let from = tempfile::tempdir().unwrap();
    let to = tempfile::tempdir().unwrap();
    let (_from_store, from_shard) = source(from.path(), 120);
    let snapshot = from_shard.snapshot().unwrap();
    let (_store, mut shard) = source(to.path(), 90);
    let old = expected(SHARD, range(), 90);
    let new = expected(SHARD, range(), 120);
    assert_ne!(old, new);
    let installed = Arc::new(AtomicBool::new(false));
    let reader = {
        let reader = shard.reader();
        let installed = Arc::clone(&installed);
        std::thread::spawn(move || {
            loop {
                let last = installed.load(Ordering::Acquire);
                // One iteration sees one version of the state.
                let seen = contents(&reader, range());
                assert!(seen == old || seen == new, "a half-installed state");
                let pinned = reader.snapshot().unwrap();
                let is_new = pinned.applied().unwrap()[..] == 120_u64.to_be_bytes();
                let expected = if is_new { &new } else { &old };
                assert!(contents(pinned.reader(), range()) == *expected);
                if last {
                    assert!(is_new);
                    return;
                }
            }
        })
    };
    let sent = files(&snapshot, &from.path().join("files"));
    install(&mut shard, &sent, 120, &snapshot).unwrap();
    installed.store(true, Ordering::Release);
    reader.join().unwrap();
}

#[test]
fn a_damaged_file_changes_nothing() {
    let from = tempfile::tempdir().unwrap();
    let to = tempfile::tempdir().unwrap();
    let (_from_store, from_shard) = source(from.path(), 100);
    let snapshot = from_shard.snapshot().unwrap();
    let (_store, mut shard) = source(to.path(), 50);
    type Damage = fn(&mut Vec<SnapshotFile>);
    let damages: [(&str, Damage); 7] = [
        ("a flipped bit", |files| {
            let mut bytes = std::fs::read(&files[1].path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&files[1].path, bytes).unwrap();
        }),
        ("a cut file", |files| {
            let bytes = std::fs::read(&files[0].path).unwrap();
            std::fs::write(&files[0].path, &bytes[..bytes.len() - 1]).unwrap();
        }),
        ("a missing file", |files| {
            std::fs::remove_file(&files[1].path).unwrap();
        }),
        ("files out of order", |files| files.swap(0, 1)),
        ("a file twice", |files| {
            let again = files[0].clone();
            files.insert(0, again);
        }),
        ("keys of other slots", |files| {
            files.last_mut().unwrap().last_key = b"\x00\x18".as_slice().into();
        }),
        ("another checksum", |files| files[0].crc32 ^= 1),
    ];
    for (index, (what, damage)) in damages.into_iter().enumerate() {
        let mut sent = files(&snapshot, &from.path().join(format!("files-{index}")));
        damage(&mut sent);
        let error = install(&mut shard, &sent, 100, &snapshot).expect_err(what);
        assert!(
            matches!(
                error,
                StoreError::SnapshotFile { .. } | StoreError::File { .. }
            ),
            "{what}: {error}"
        );
        assert!(!error.is_fatal());
        assert_is(&mut shard, 50, what);
    }
    commit(&mut shard, 51);
    assert_is(&mut shard, 51, "it goes on");
}

#[test]
fn a_cancelled_snapshot_leaves_no_files() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, shard) = source(dir.path(), 100);
    let out = dir.path().join("files");
    let mut seen = Vec::new();
    let error = shard
        .snapshot()
        .unwrap()
        .write_files(&out, FILE_BYTES, &mut |progress| {
            seen.push(progress);
            if progress.files == 2 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .unwrap_err();
    assert!(matches!(error, StoreError::Cancelled(SHARD)), "{error}");
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0);
    assert_eq!(seen.len(), 2);
    assert!(seen[0].keys < seen[1].keys && seen[0].bytes < seen[1].bytes);
}

#[test]
fn equal_state_has_equal_checksums_however_it_came_to_be() {
    let one = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let store = states::open(one.path());
    let mut shard = store.shard(SHARD, range()).unwrap();
    let other_store = states::open(other.path());
    let mut other_shard = other_store.shard(SHARD, range()).unwrap();
    for n in 1..=120 {
        commit(&mut shard, n);
        if n % 50 == 0 {
            store.flush().unwrap();
        }
    }
    store.compact();
    // The same changes in batches of three, at another log position.
    for third in 0..40 {
        let mut batch = other_shard.begin();
        for n in third * 3 + 1..=third * 3 + 3 {
            states::write(&mut batch, &states::changes(SHARD, range(), n));
        }
        batch
            .commit(b"elsewhere in its log", clock(third * 3 + 3))
            .unwrap();
    }
    let sum = shard.snapshot().unwrap().checksum().unwrap();
    assert_eq!(other_shard.snapshot().unwrap().checksum().unwrap(), sum);
    assert_eq!(sum.keys as usize, expected(SHARD, range(), 120).len());

    // The clock is state too.
    let batch = other_shard.begin();
    batch.commit(b"later", clock(121)).unwrap();
    assert_ne!(other_shard.snapshot().unwrap().checksum().unwrap(), sum);
}
