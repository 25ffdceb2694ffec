//! A shard that takes its right neighbour over: what it has then, in memory, on disk and after a
//! reopening, and that nothing of the neighbour's writer comes after it.

use std::ops::ControlFlow;
use std::path::Path;

use carillon_core::ids::{ShardId, SlotRange};
use carillon_core::merging::{MergeId, MergeMark};
use carillon_core::{ReadView as _, View as _, keys};
use carillon_store::{Absorbed, ShardStore, SnapshotFile, Store, StoreError};

use crate::states::{self, State, absorb, applied, clock, commit, contents, expected, freeze};
use crate::states::{key, slots};

const LEFT: ShardId = ShardId(7);
const RIGHT: ShardId = ShardId(3);
const MERGE: MergeId = MergeId(5);
const BATCHES: u64 = 60;

fn left() -> SlotRange {
    slots(20, 24)
}

fn right() -> SlotRange {
    slots(25, 27)
}

fn joined() -> SlotRange {
    slots(20, 27)
}

/// Both as after so many batches, and the right one frozen.
fn both() -> State {
    let mut state = expected(LEFT, left(), BATCHES);
    state.extend(expected(RIGHT, right(), BATCHES));
    state
}

fn open_both(dir: &Path) -> (Store, ShardStore, ShardStore) {
    let store = states::open(dir);
    let mut pair = [(LEFT, left()), (RIGHT, right())]
        .map(|(id, slots)| store.shard(id, slots).unwrap())
        .into_iter();
    let (mut one, mut other) = (pair.next().unwrap(), pair.next().unwrap());
    for n in 1..=BATCHES {
        commit(&mut one, n);
        commit(&mut other, n);
    }
    freeze(&mut other, BATCHES + 1, MERGE);
    (store, one, other)
}

fn frozen() -> MergeMark {
    MergeMark {
        frozen_by: Some(MERGE),
        seen: MERGE,
        absorbed: MergeId(0),
    }
}

fn took_over() -> MergeMark {
    MergeMark {
        absorbed: MERGE,
        ..MergeMark::default()
    }
}

#[test]
fn the_left_one_has_all_and_the_right_one_is_no_more() {
    for is_open in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (store, mut one, other) = open_both(dir.path());
        assert_eq!((other.merges(), applied(&other)), (frozen(), BATCHES + 1));
        let (reader, right_reader) = (one.reader(), other.reader());
        let mut other = is_open.then_some(other);
        // What it read of the other one's is not what it finds there later.
        let written = key(26, keys::ROW, 1);
        let _ = one.begin().get(&written);

        let after = absorb(&mut one, BATCHES + 1, MERGE, RIGHT, right());
        assert_eq!(after, clock(BATCHES + 1).after(clock(BATCHES)));
        assert_eq!((one.slots(), reader.slots()), (joined(), joined()));
        assert_eq!((one.merges(), one.clock()), (took_over(), after));
        assert!(contents(&reader, joined()) == both());
        let found = store.merges().unwrap();
        assert_eq!(found[&LEFT], (joined(), took_over()));
        assert!(!found.contains_key(&RIGHT));
        assert_eq!(store.holder(right()), Some(LEFT));

        if let Some(other) = &mut other {
            assert!(right_reader.is_absorbed() && !reader.is_absorbed());
            // Its group goes on for a moment.
            other
                .begin()
                .commit(&99_u64.to_be_bytes(), clock(1))
                .unwrap();
            let error = other.clear().unwrap_err();
            assert!(matches!(error, StoreError::Absorbed(RIGHT)), "{error}");
        }
        let mut batch = one.begin();
        batch.put(&written, b"new");
        let n = BATCHES + 2;
        batch.commit(&n.to_be_bytes(), clock(n)).unwrap();
        drop(other);
        assert!(!store.applied().unwrap().contains_key(&RIGHT));
        let error = store.shard(RIGHT, right()).err().unwrap();
        assert!(matches!(error, StoreError::InUse { open: LEFT, .. }));
        let checksum = one.snapshot().unwrap().checksum().unwrap();
        store.flush().unwrap();
        drop((one, reader, right_reader));
        // Open or not, it has them.
        let error = store.shard(RIGHT, right()).err().unwrap();
        assert!(matches!(error, StoreError::Taken { by: LEFT, .. }));
        drop(store);

        let store = states::open(dir.path());
        let one = store.shard(LEFT, left()).unwrap();
        assert_eq!((one.slots(), applied(&one)), (joined(), n));
        assert_eq!(one.merges(), took_over());
        assert_eq!(one.reader().get(&written).as_deref(), Some(&b"new"[..]));
        assert_eq!(one.snapshot().unwrap().checksum().unwrap(), checksum);
    }
}

#[test]
fn what_one_has_read_of_the_other_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = states::open(dir.path());
    let mut one = store.shard(LEFT, left()).unwrap();
    let mut other = store.shard(RIGHT, right()).unwrap();
    let theirs = key(26, keys::OUTBOX, 1);
    let put = |other: &mut ShardStore, n: u64, value: &[u8]| {
        let mut batch = other.begin();
        batch.put(&theirs, value);
        batch.commit(&n.to_be_bytes(), clock(n)).unwrap();
        store.applied().unwrap();
    };
    put(&mut other, 1, b"old");
    assert_eq!(one.begin().get(&theirs).as_deref(), Some(&b"old"[..]));
    put(&mut other, 2, b"new");
    freeze(&mut other, 3, MERGE);
    absorb(&mut one, 1, MERGE, RIGHT, right());
    assert_eq!(one.begin().get(&theirs).as_deref(), Some(&b"new"[..]));
}

#[test]
fn what_is_not_frozen_for_the_merge_is_not_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let absorbed = |one: &mut ShardStore, merge: u64| {
        let merges = MergeMark {
            absorbed: MergeId(merge),
            ..MergeMark::default()
        };
        let other = Absorbed {
            id: RIGHT,
            slots: right(),
        };
        one.begin()
            .commit_absorb(&1_u64.to_be_bytes(), clock(1), merges, &other)
    };
    {
        let (_store, mut one, _other) = open_both(&dir.path().join("another merge"));
        let error = absorbed(&mut one, MERGE.0 + 1).unwrap_err();
        assert!(matches!(error, StoreError::NotFrozen { shard: RIGHT, .. }));
        assert!(error.is_fatal());
        // Nothing is written after it: the process ends.
        let refused = one.begin().commit(b"2", clock(2)).unwrap_err();
        assert!(refused.is_fatal(), "{refused}");
    }
    let store = states::open(&dir.path().join("not there"));
    let mut one = store.shard(LEFT, left()).unwrap();
    let error = absorbed(&mut one, MERGE.0).unwrap_err();
    assert!(matches!(error, StoreError::NotFrozen { .. }), "{error}");
}

/// A snapshot of the left one from after the merge, and the checksum of what it has.
fn snapshot(dir: &Path) -> (Vec<SnapshotFile>, carillon_store::ShardSnapshot) {
    let (_store, mut one, _other) = open_both(&dir.join("source"));
    absorb(&mut one, BATCHES + 1, MERGE, RIGHT, right());
    let snapshot = one.snapshot().unwrap();
    assert_eq!(
        (snapshot.slots(), snapshot.merges()),
        (joined(), took_over())
    );
    let files = snapshot
        .write_files(&dir.join("files"), 8 * 1024, &mut |_| {
            ControlFlow::Continue(())
        })
        .unwrap();
    (files, snapshot)
}

fn install(
    shard: &mut ShardStore,
    from: &(Vec<SnapshotFile>, carillon_store::ShardSnapshot),
) -> Result<Option<ShardId>, StoreError> {
    let (files, snapshot) = from;
    shard.install(
        files,
        &(BATCHES + 1).to_be_bytes(),
        snapshot.clock(),
        snapshot.slots(),
        snapshot.merges(),
    )
}

#[test]
fn a_snapshot_from_after_a_merge_takes_the_frozen_ones_place() {
    for is_open in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let from = snapshot(dir.path());
        let store = states::open(&dir.path().join("target"));
        let mut one = store.shard(LEFT, left()).unwrap();
        let mut other = store.shard(RIGHT, right()).unwrap();
        for n in 1..=10 {
            commit(&mut one, n);
        }
        for n in 1..=BATCHES {
            commit(&mut other, n);
        }
        freeze(&mut other, BATCHES + 1, MERGE);
        let mut other = is_open.then_some(other);

        assert_eq!(install(&mut one, &from).unwrap(), Some(RIGHT));
        assert_eq!((one.slots(), one.merges()), (joined(), took_over()));
        assert!(contents(&one.reader(), joined()) == both());
        if let Some(other) = &mut other {
            assert!(other.reader().is_absorbed());
            other
                .begin()
                .commit(&99_u64.to_be_bytes(), clock(1))
                .unwrap();
            let error = other
                .install(&[], b"1", clock(1), right(), frozen())
                .unwrap_err();
            assert!(matches!(error, StoreError::Absorbed(RIGHT)), "{error}");
        }
        drop((one, other, store));
        let store = states::open(&dir.path().join("target"));
        assert!(!store.applied().unwrap().contains_key(&RIGHT));
        let one = store.shard(LEFT, left()).unwrap();
        assert_eq!(one.merges(), took_over());
        assert!(contents(&one.reader(), joined()) == both());
    }
}

#[test]
fn a_snapshot_takes_no_place_of_one_that_is_not_frozen() {
    let dir = tempfile::tempdir().unwrap();
    let from = snapshot(dir.path());
    // Never frozen, thawed, or frozen for a later merge.
    for merge in [None, Some(MergeId(MERGE.0 + 1))] {
        let store = states::open(&dir.path().join(format!("target {merge:?}")));
        let mut one = store.shard(LEFT, left()).unwrap();
        let mut other = store.shard(RIGHT, right()).unwrap();
        commit(&mut one, 1);
        commit(&mut other, 1);
        if let Some(merge) = merge {
            freeze(&mut other, 2, merge);
        }
        let error = install(&mut one, &from).unwrap_err();
        assert!(matches!(error, StoreError::SnapshotSlots { .. }), "{error}");
        assert_eq!((applied(&one), one.slots()), (1, left()));
        assert!(contents(&other.reader(), right()) == expected(RIGHT, right(), 1));
    }
    // Where there is none, or none any more, its part comes with the snapshot.
    let store = states::open(&dir.path().join("target"));
    let mut one = store.shard(LEFT, left()).unwrap();
    assert_eq!(install(&mut one, &from).unwrap(), None);
    assert!(contents(&one.reader(), joined()) == both());
}
