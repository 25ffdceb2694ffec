//! What each call promises.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use carillon_log::{GroupId, LogError, LogOptions};

use crate::setup::{
    TestEntry, all, append, completion, open, scratch_dir, small_options, truncate, view, vote,
    wait,
};

fn entry(index: u64) -> TestEntry {
    TestEntry::new(index, 1, 100)
}

fn indexes(entries: &[TestEntry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.index).collect()
}

#[test]
fn an_unknown_group_is_empty() {
    let dir = scratch_dir();
    let engine = open(small_options(dir.path()));
    let log = engine.group(GroupId(7));
    assert_eq!(
        (
            log.first_index(),
            log.last_index(),
            log.last_entry().unwrap()
        ),
        (None, None, None)
    );
    assert_eq!(
        (log.vote(), log.committed(), log.purged()),
        (None, None, None)
    );
    assert!(all(&log).is_empty());
    assert_eq!(engine.groups(), [GroupId(7)]);
}

#[test]
fn a_hole_is_refused_and_changes_nothing() {
    let dir = scratch_dir();
    let engine = open(small_options(dir.path()));
    let log = engine.group(GroupId(1));
    append(&log, vec![entry(5), entry(6)]);
    for bad in [
        vec![entry(8)],
        vec![entry(6)],
        vec![entry(7), entry(9)],
        vec![entry(0)],
    ] {
        let error = log
            .append(bad, |_| panic!("a refused append is not completed"))
            .unwrap_err();
        assert!(matches!(error, LogError::NotContiguous { .. }), "{error}");
    }
    append(&log, vec![entry(7)]);
    assert_eq!(indexes(&all(&log)), [5, 6, 7]);
    append(&log, Vec::new());
    log.purge(10, Bytes::from_static(b"ten")).unwrap();
    let error = log.append(vec![entry(10)], |_| ()).unwrap_err();
    assert!(
        matches!(
            error,
            LogError::NotContiguous {
                expected: 11,
                found: 10,
                ..
            }
        ),
        "{error}"
    );
    append(&log, vec![entry(11)]);
    log.purge(3, Bytes::from_static(b"three")).unwrap();
    assert_eq!(log.purged(), Some((10, Bytes::from_static(b"ten"))));
    engine.shutdown().unwrap();
    drop((engine, log));
    let engine = open(small_options(dir.path()));
    assert_eq!(indexes(&view(&engine, 1).entries), [11]);
    assert_eq!(
        view(&engine, 1).purged,
        Some((10, Bytes::from_static(b"ten")))
    );
}

#[test]
fn the_last_entries_of_so_many_bytes_are_known_also_after_a_restart() {
    let dir = scratch_dir();
    let engine = open(small_options(dir.path()));
    let log = engine.group(GroupId(1));
    assert_eq!(log.first_of_last(u64::MAX), 0);
    // Each has more bytes on disk than its data, and not twice as many.
    let large = |index| TestEntry::new(index, 1, 1_000);
    append(&log, (5..15).map(large).collect());
    engine.shutdown().unwrap();
    drop((engine, log));
    let engine = open(small_options(dir.path()));
    let log = engine.group(GroupId(1));
    assert_eq!(log.first_of_last(u64::MAX), 5);
    assert_eq!(log.first_of_last(2_500), 13);
    assert_eq!(log.first_of_last(500), 15, "the last one alone is larger");
    log.purge(13, Bytes::new()).unwrap();
    append(&log, vec![large(15)]);
    assert_eq!(log.first_of_last(u64::MAX), 14);
    assert_eq!(log.first_of_last(1_500), 15);
}

#[test]
fn limited_reads_stop_at_the_limit_but_are_never_empty() {
    let dir = scratch_dir();
    let options = LogOptions {
        memory_tail_bytes_max: 600,
        ..small_options(dir.path())
    };
    let engine = open(options);
    let log = engine.group(GroupId(1));
    for index in 0..20 {
        append(&log, vec![entry(index)]);
    }
    assert!(log.memory_bytes() <= 600, "most entries are on disk only");
    for start in 0..20 {
        assert_eq!(
            indexes(&log.entries_limited(start, 20, 0).unwrap()),
            [start]
        );
        let some = log.entries_limited(start, 20, 500).unwrap();
        assert!(
            some.len() <= 4 && some.len() as u64 >= 3.min(20 - start),
            "{} from {start}",
            some.len()
        );
        assert_eq!(
            indexes(&log.entries_limited(start, 20, u64::MAX).unwrap()),
            (start..20).collect::<Vec<_>>()
        );
    }
    assert!(log.entries_limited(20, 30, 500).unwrap().is_empty());
    assert_eq!(indexes(&log.entries(3..6).unwrap()), [3, 4, 5]);
    assert!(log.entries(6..6).unwrap().is_empty());
}

#[test]
fn removed_groups_are_gone_for_good() {
    let dir = scratch_dir();
    let engine = open(small_options(dir.path()));
    let log = engine.group(GroupId(1));
    append(&log, vec![entry(0), entry(1)]);
    vote(&log, "vote");
    log.save_committed(Bytes::from_static(b"committed"))
        .unwrap();
    engine.remove_group(GroupId(1)).unwrap();
    engine.remove_group(GroupId(2)).unwrap();
    assert!(matches!(
        log.append(vec![entry(2)], |_| ()),
        Err(LogError::GroupRemoved { .. })
    ));
    assert!(matches!(
        log.save_committed(Bytes::new()),
        Err(LogError::GroupRemoved { .. })
    ));
    assert!(engine.groups().is_empty());
    let reborn = engine.group(GroupId(1));
    assert_eq!(
        (reborn.vote(), reborn.committed(), reborn.last_index()),
        (None, None, None)
    );
    append(&reborn, vec![entry(3)]);
    engine.shutdown().unwrap();
    drop((engine, log, reborn));
    let engine = open(small_options(dir.path()));
    assert_eq!(view(&engine, 1).entries, [entry(3)]);
    assert_eq!(view(&engine, 1).vote, None);
    assert_eq!(engine.stats().memory_tail_bytes, 0);
}

#[test]
fn a_closed_log_refuses_and_an_open_one_is_locked() {
    let dir = scratch_dir();
    let engine = open(small_options(dir.path()));
    let log = engine.group(GroupId(1));
    let second = carillon_log::LogEngine::<TestEntry>::open(small_options(dir.path()));
    assert!(matches!(second, Err(LogError::Locked { .. })));
    engine.shutdown().unwrap();
    engine.shutdown().unwrap();
    assert!(matches!(
        log.append(vec![entry(0)], |_| ()),
        Err(LogError::Closed)
    ));
    assert!(matches!(
        log.save_committed(Bytes::new()),
        Err(LogError::Closed)
    ));
    assert!(matches!(
        engine.remove_group(GroupId(1)),
        Err(LogError::Closed)
    ));
    open(small_options(dir.path())).shutdown().unwrap();
}

#[test]
fn options_outside_their_limits_are_named() {
    let dir = scratch_dir();
    let options = LogOptions {
        segment_bytes: 1,
        ..small_options(dir.path())
    };
    let error = carillon_log::LogEngine::<TestEntry>::open(options).unwrap_err();
    assert!(
        matches!(
            error,
            LogError::InvalidOptions {
                name: "segment_bytes",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn memory_stays_below_its_limit_over_all_groups() {
    let dir = scratch_dir();
    let options = LogOptions {
        memory_tail_bytes_max: 64 * 1024,
        ..small_options(dir.path())
    };
    let engine = open(options);
    for index in 0..300 {
        for group in 0..4 {
            append(
                &engine.group(GroupId(group)),
                vec![TestEntry::new(index, 1, 500 * (group as usize + 1))],
            );
            // One entry may be added between a write and the eviction after it.
            assert!(
                engine.stats().memory_tail_bytes <= 66 * 1024,
                "{:?}",
                engine.stats()
            );
        }
    }
    let memory: u64 = (0..4)
        .map(|group| engine.group(GroupId(group)).memory_bytes())
        .sum();
    assert_eq!(memory, engine.stats().memory_tail_bytes);
    for group in 0..4_u32 {
        let expected: Vec<_> = (0..300)
            .map(|index| TestEntry::new(index, 1, 500 * (group as usize + 1)))
            .collect();
        assert_eq!(view(&engine, group).entries, expected);
        truncate(&engine.group(GroupId(group)), Some(10));
        assert_eq!(view(&engine, group).entries, expected[..11]);
        engine
            .group(GroupId(group))
            .purge(20, Bytes::new())
            .unwrap();
    }
    assert_eq!(engine.stats().memory_tail_bytes, 0);
}

#[test]
fn groups_on_many_threads_share_syncs_and_keep_their_order() {
    const THREADS: u32 = 8;
    const APPENDS: u64 = 400;
    let dir = scratch_dir();
    // A queue this short makes callers wait for the writer.
    let engine = open(LogOptions {
        queue_bytes_max: 4096,
        ..small_options(dir.path())
    });
    std::thread::scope(|scope| {
        for group in 0..THREADS {
            let log = engine.group(GroupId(group));
            scope.spawn(move || {
                let completed = Arc::new(AtomicU64::new(0));
                for index in 0..APPENDS {
                    let completed = Arc::clone(&completed);
                    let done = move |result: Result<(), LogError>| {
                        result.unwrap();
                        assert_eq!(
                            completed.fetch_add(1, SeqCst),
                            index,
                            "completions in order"
                        );
                    };
                    log.append(vec![TestEntry::new(index, 1, 64)], done)
                        .unwrap();
                    assert_eq!(log.last_index(), Some(index), "readable at once");
                    assert_eq!(
                        log.last_entry().unwrap(),
                        Some(TestEntry::new(index, 1, 64))
                    );
                    if index % 50 == 49 {
                        log.purge(index - 25, Bytes::new()).unwrap();
                    }
                }
                vote(&log, "end");
                assert_eq!(completed.load(SeqCst), APPENDS);
            });
        }
    });
    let stats = engine.stats();
    assert_eq!(stats.entries, u64::from(THREADS) * APPENDS);
    assert!(stats.syncs < stats.requests, "{stats:?}");
    assert_eq!((stats.queue_bytes, stats.queue_requests), (0, 0));
    engine.shutdown().unwrap();
    drop(engine);
    let engine = open(small_options(dir.path()));
    for group in 0..THREADS {
        let expected: Vec<_> = (APPENDS - 25..APPENDS)
            .map(|index| TestEntry::new(index, 1, 64))
            .collect();
        assert_eq!(view(&engine, group).entries, expected);
    }
}

#[test]
fn completions_run_in_the_order_of_the_calls_over_all_groups() {
    let dir = scratch_dir();
    let engine = open(small_options(dir.path()));
    let order = Arc::new(Mutex::new(Vec::new()));
    let note = |at: u64| {
        let order = Arc::clone(&order);
        move |result: Result<(), LogError>| {
            result.unwrap();
            order.lock().unwrap().push(at);
        }
    };
    for round in 0..50 {
        let log = engine.group(GroupId(round as u32 % 3));
        log.append(vec![entry(round / 3)], note(round * 3)).unwrap();
        log.save_vote(Bytes::from(round.to_string()), note(round * 3 + 1))
            .unwrap();
        log.truncate_after(Some(round), note(round * 3 + 2))
            .unwrap();
    }
    let (done, receiver) = completion();
    engine
        .group(GroupId(0))
        .save_vote(Bytes::new(), done)
        .unwrap();
    wait(&receiver);
    assert_eq!(*order.lock().unwrap(), (0..150).collect::<Vec<_>>());
}
