//! Batches, cache and readers against a sorted map.

use std::ops::ControlFlow;

use carillon_core::ids::ShardId;
use carillon_core::{ReadView, View, keys};
use carillon_store::{Store, StoreError, StoreOptions};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::states::{self, KINDS, State, clock, contents, key, slots};

const SHARD: ShardId = ShardId(3);

#[derive(Debug, Clone)]
enum Step {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    Get(Vec<u8>),
    Scan(Vec<u8>, Vec<u8>, bool, usize),
    Remember(Vec<u8>, u64),
    Recall(Vec<u8>),
}

#[derive(Debug, Clone)]
enum After {
    Nothing,
    Flush,
    Compact,
    Reopen,
    Clear,
}

fn a_key() -> impl Strategy<Value = Vec<u8>> {
    (10..14_u16, 0..KINDS.len(), 0..6_u64).prop_map(|(slot, kind, id)| key(slot, KINDS[kind], id))
}

/// Keys that are never those of the state.
fn a_remembered_key() -> impl Strategy<Value = Vec<u8>> {
    (10..14_u16, 0..6_u64).prop_map(|(slot, id)| key(slot, keys::INBOX_HEAD, id))
}

fn a_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (a_key(), vec(any::<u8>(), 0..120)).prop_map(|(k, v)| Step::Put(k, v)),
        1 => a_key().prop_map(Step::Delete),
        4 => a_key().prop_map(Step::Get),
        1 => (a_key(), a_key(), any::<bool>(), 1..20_usize)
            .prop_map(|(from, to, reverse, limit)| Step::Scan(from, to, reverse, limit)),
        2 => (a_remembered_key(), any::<u64>()).prop_map(|(k, v)| Step::Remember(k, v)),
        2 => a_remembered_key().prop_map(Step::Recall),
    ]
}

/// Steps, whether the state is read after the commit, and what happens then.
fn a_batch() -> impl Strategy<Value = (Vec<Step>, bool, After)> {
    (
        vec(a_step(), 0..30),
        prop::bool::weighted(0.3),
        prop_oneof![
            12 => Just(After::Nothing),
            2 => Just(After::Flush),
            1 => Just(After::Compact),
            2 => Just(After::Reopen),
            1 => Just(After::Clear),
        ],
    )
}

fn model_scan(
    state: &State,
    from: &[u8],
    to: &[u8],
    reverse: bool,
    limit: usize,
) -> Vec<(Vec<u8>, Vec<u8>)> {
    if from >= to {
        return Vec::new();
    }
    let range = state
        .range(from.to_vec()..to.to_vec())
        .map(|(k, v)| (k.clone(), v.clone()));
    if reverse {
        range.rev().take(limit).collect()
    } else {
        range.take(limit).collect()
    }
}

fn scan(
    view: &dyn ReadView,
    from: &[u8],
    to: &[u8],
    reverse: bool,
    limit: usize,
) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    view.scan(from, to, reverse, &mut |key, value| {
        found.push((key.to_vec(), value.to_vec()));
        if found.len() == limit {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn behaves_like_a_sorted_map(
        batches in vec(a_batch(), 1..40),
        cache_bytes in prop_oneof![Just(0_usize), Just(700), Just(1 << 20)],
        held_bytes_max in prop_oneof![Just(0_usize), Just(700), Just(1 << 20)],
    ) {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions { shard_cache_bytes: cache_bytes, held_bytes_max, ..states::options(dir.path()) };
        let range = slots(10, 13);
        let mut store = Store::open(&options).unwrap();
        let mut shard = store.shard(SHARD, range).unwrap();
        let mut committed = State::new();
        let mut remembered = State::new();
        for (n, (steps, read, after)) in batches.into_iter().enumerate() {
            let mut state = committed.clone();
            let mut remembering = remembered.clone();
            let mut batch = shard.begin();
            for step in steps {
                match step {
                    Step::Put(key, value) => {
                        batch.put(&key, &value);
                        state.insert(key, value);
                    }
                    Step::Delete(key) => {
                        batch.delete(&key);
                        state.remove(&key);
                    }
                    Step::Get(key) => {
                        let found = batch.get(&key).map(|value| value.to_vec());
                        prop_assert_eq!(found, state.get(&key).cloned());
                    }
                    Step::Remember(key, value) => {
                        batch.remember(&key, value);
                        remembering.insert(key, value.to_le_bytes().to_vec());
                    }
                    Step::Recall(key) => {
                        // It may have been forgotten, but is never another value.
                        if let Some(value) = batch.recall(&key) {
                            prop_assert_eq!(Some(&value.to_le_bytes().to_vec()), remembering.get(&key));
                        }
                    }
                    Step::Scan(from, to, reverse, limit) => {
                        prop_assert_eq!(scan(&batch, &from, &to, reverse, limit), model_scan(&state, &from, &to, reverse, limit));
                    }
                }
            }
            batch.commit(&n.to_be_bytes(), clock(n as u64)).unwrap();
            committed = state;
            remembered = remembering;
            let mut applied = Some(n);
            match after {
                After::Nothing => {}
                After::Flush => {
                    let flushed = store.flush().unwrap();
                    prop_assert_eq!(flushed.get(&SHARD).map(|a| a.to_vec()), applied.map(|n| n.to_be_bytes().to_vec()));
                }
                After::Compact => store.compact(),
                After::Reopen => {
                    drop(shard);
                    drop(store);
                    store = Store::open(&options).unwrap();
                    shard = store.shard(SHARD, range).unwrap();
                }
                After::Clear => {
                    shard.clear().unwrap();
                    committed.clear();
                    applied = None;
                }
            }
            prop_assert!(shard.cache_stats().bytes <= cache_bytes);
            prop_assert_eq!(shard.applied().map(|a| a.to_vec()), applied.map(|n| n.to_be_bytes().to_vec()));
            prop_assert_eq!(shard.clock(), applied.map(|n| clock(n as u64)).unwrap_or_default());
            prop_assert_eq!(contents(&shard.begin(), range), committed.clone());
            // Reading writes what is held, so it is not done after every batch.
            if read {
                prop_assert_eq!(contents(&shard.reader(), range), committed.clone());
                let snapshot = shard.snapshot().unwrap();
                prop_assert_eq!(snapshot.applied(), shard.applied());
            }
        }
    }
}

#[test]
fn a_shard_has_one_writer() {
    let dir = tempfile::tempdir().unwrap();
    let store = states::open(dir.path());
    let first = store.shard(ShardId(1), slots(0, 99)).unwrap();
    for (id, range) in [(ShardId(1), slots(500, 600)), (ShardId(2), slots(99, 200))] {
        let refused = store.shard(id, range).map(|_| ()).unwrap_err();
        assert!(
            matches!(
                refused,
                StoreError::InUse {
                    open: ShardId(1),
                    ..
                }
            ),
            "{refused}"
        );
    }
    let _second = store.shard(ShardId(2), slots(100, 200)).unwrap();
    drop(first);
    let _third = store.shard(ShardId(3), slots(0, 99)).unwrap();
}

#[test]
fn meta_is_durable_without_a_flush() {
    let dir = tempfile::tempdir().unwrap();
    let store = states::open(dir.path());
    assert_eq!(store.meta_get(b"identity").unwrap(), None);
    store.meta_put(b"identity", b"node 1").unwrap();
    store.meta_put(b"identity", b"node one").unwrap();
    drop(store);
    let store = states::open(dir.path());
    assert_eq!(
        store.meta_get(b"identity").unwrap().as_deref(),
        Some(&b"node one"[..])
    );
}

#[test]
fn statistics_follow_the_state() {
    let dir = tempfile::tempdir().unwrap();
    let store = states::open(dir.path());
    let mut shard = store.shard(SHARD, slots(10, 13)).unwrap();
    for n in 1..200 {
        states::commit(&mut shard, n);
    }
    assert!(store.stats().memtable_bytes > 0);
    store.flush().unwrap();
    let stats = store.stats();
    assert!(stats.table_bytes > 0, "{stats:?}");
    assert!(!stats.write_stopped);
    assert_eq!(stats.background_errors, 0);
    assert!(shard.approximate_bytes() > 0);
    assert_eq!(store.approximate_bytes(slots(2000, 3000)), 0);
}
