//! A shard that is split: what each of the two has, in memory, on disk and after a reopening.

use std::ops::ControlFlow;

use carillon_core::ReadView;
use carillon_core::ids::{ShardId, Slot};
use carillon_core::merging::MergeMark;
use carillon_store::{Store, StoreError, StoreOptions};

use crate::states::{self, applied, assert_is, clock, commit, commit_split, contents, slots};
use crate::states::{expected, key};

const OLD: ShardId = ShardId(3);
const NEW: ShardId = ShardId(7);
const BATCHES: u64 = 60;

#[test]
fn both_have_their_parts_and_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, before, after) = (slots(20, 27), slots(20, 24), slots(25, 27));
    let store = states::open(dir.path());
    let mut shard = store.shard(OLD, whole).unwrap();
    for n in 1..BATCHES {
        commit(&mut shard, n);
    }
    let reader = shard.reader();
    commit_split(&mut shard, BATCHES, Slot(25), NEW);
    assert_eq!((shard.slots(), reader.slots()), (before, before));
    let state = expected(OLD, whole, BATCHES);
    let end = after.key_start();
    let (kept, gone): (states::State, states::State) =
        state.into_iter().partition(|(key, _)| key[..2] < end[..]);

    // Whatever was asked for: the new one has what the split gave it.
    let mut new = store.shard(NEW, slots(0, 3)).unwrap();
    assert_eq!((new.slots(), applied(&new)), (after, 0));
    assert_eq!(new.clock(), clock(BATCHES));
    assert!(contents(&reader, before) == kept);
    assert!(contents(&new.reader(), after) == gone);
    assert_eq!(store.holder(slots(24, 24)), Some(OLD));
    assert_eq!(store.holder(slots(27, 30)), Some(NEW));
    assert_eq!(store.holder(slots(28, 30)), None);

    let written = key(26, carillon_core::keys::ROW, 999);
    let mut batch = new.begin();
    carillon_core::View::put(&mut batch, &written, b"new");
    batch.commit(&1_u64.to_be_bytes(), clock(61)).unwrap();
    commit(&mut shard, BATCHES + 1);
    let checksums = [&shard, &new].map(|shard| shard.snapshot().unwrap().checksum().unwrap());
    store.flush().unwrap();
    drop((shard, new, reader, store));

    let store = states::open(dir.path());
    let found = store.shards().unwrap();
    assert_eq!((found[&OLD].0, found[&NEW].0), (before, after));
    // Opened with the slots that the shard began with.
    let shard = store.shard(OLD, whole).unwrap();
    let new = store.shard(NEW, whole).unwrap();
    assert_eq!((applied(&shard), applied(&new)), (BATCHES + 1, 1));
    assert_eq!(new.reader().get(&written).as_deref(), Some(&b"new"[..]));
    let found = [&shard, &new].map(|shard| shard.snapshot().unwrap().checksum().unwrap());
    assert_eq!(found, checksums);
}

#[test]
fn a_snapshot_from_after_a_split_takes_the_slots_away() {
    let dir = tempfile::tempdir().unwrap();
    let whole = slots(20, 27);
    let source = states::open(&dir.path().join("source"));
    let mut split = source.shard(OLD, whole).unwrap();
    for n in 1..=10 {
        commit(&mut split, n);
    }
    commit_split(&mut split, 11, Slot(25), NEW);
    let snapshot = split.snapshot().unwrap();
    let files = snapshot
        .write_files(&dir.path().join("files"), 8 * 1024, &mut |_| {
            ControlFlow::Continue(())
        })
        .unwrap();

    let store = states::open(&dir.path().join("target"));
    let mut shard = store.shard(OLD, whole).unwrap();
    for n in 1..=5 {
        commit(&mut shard, n);
    }
    // The new shard cannot be begun with nothing while this one has its slots.
    let error = store.shard(NEW, slots(25, 27)).err().unwrap();
    assert!(
        matches!(error, StoreError::InUse { open: OLD, .. }),
        "{error}"
    );
    let at = 11_u64.to_be_bytes();
    shard
        .install(
            &files,
            &at,
            snapshot.clock(),
            snapshot.slots(),
            snapshot.merges(),
        )
        .unwrap();
    assert_eq!(shard.slots(), slots(20, 24));
    assert!(contents(&shard.reader(), whole) == contents(snapshot.reader(), slots(20, 24)));
    let mut new = store.shard(NEW, slots(25, 27)).unwrap();
    assert_is(&mut new, 0, "begun with nothing");

    // A snapshot of more than there is is refused, and changes nothing.
    let error = shard
        .install(&[], &at, clock(1), whole, MergeMark::default())
        .err()
        .unwrap();
    assert!(matches!(error, StoreError::SnapshotSlots { .. }), "{error}");
    assert_eq!(applied(&shard), 11);
}

/// While not all nodes of a cluster read them, records have no slots, but for those that cannot be
/// without.
#[test]
fn records_have_slots_when_they_need_them_or_all_nodes_read_them() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let mut options = StoreOptions::new(dir.path());
        options.keep_slots = false;
        Store::open(&options).unwrap()
    };
    let with_slots = |store: &Store| -> Vec<ShardId> {
        let found = store.shards().unwrap().into_keys();
        found.collect()
    };
    const OTHER: ShardId = ShardId(4);
    let (whole, others) = (slots(20, 27), slots(40, 47));
    let store = open();
    let mut shard = store.shard(OLD, whole).unwrap();
    let mut other = store.shard(OTHER, others).unwrap();
    commit(&mut shard, 1);
    commit(&mut other, 1);
    assert!(with_slots(&store).is_empty());
    commit_split(&mut shard, 2, Slot(25), NEW);
    // What follows has them too, here and after the next start.
    commit(&mut shard, 3);
    commit(&mut other, 2);
    assert_eq!(with_slots(&store), [OLD, NEW]);
    store.flush().unwrap();
    drop((shard, other, store));

    let store = open();
    let mut shard = store.shard(OLD, whole).unwrap();
    let mut other = store.shard(OTHER, others).unwrap();
    assert_eq!(shard.slots(), slots(20, 24));
    commit(&mut shard, 4);
    commit(&mut other, 3);
    assert_eq!(with_slots(&store), [OLD, NEW]);
    store.keep_slots();
    commit(&mut other, 4);
    assert_eq!(with_slots(&store), [OLD, OTHER, NEW]);
    assert_eq!(applied(&other), 4);
}
