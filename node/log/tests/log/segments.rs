//! The life of segments: rotation, recycling, and rewriting forward what would pin them.

use bytes::Bytes;
use carillon_log::{GroupId, LogOptions};

use crate::setup::{
    DEADLINE, TestEntry, append, copy_segments, open, scratch_dir, segment_paths, small_options,
    view, vote,
};

/// Churn of group 2: appends and purges all but the last few entries; durable on return.
fn churn(engine: &carillon_log::LogEngine<TestEntry>, indexes: std::ops::Range<u64>) {
    let log = engine.group(GroupId(2));
    for index in indexes {
        append(&log, vec![TestEntry::new(index, 1, 3000)]);
        if index % 10 == 9 {
            log.purge(index - 5, Bytes::from(index.to_string()))
                .unwrap();
        }
    }
    vote(&log, "a purge does not wait, the vote after it does");
}

#[test]
fn idle_and_lagging_groups_pin_no_segments() {
    let dir = scratch_dir();
    let engine = open(small_options(dir.path()));
    let lagging = engine.group(GroupId(1));
    append(
        &lagging,
        (0..40)
            .map(|index| TestEntry::new(index, 1, 1000))
            .collect(),
    );
    lagging.purge(4, Bytes::from_static(b"four")).unwrap();
    lagging.save_committed(Bytes::from_static(b"ten")).unwrap();
    let idle = engine.group(GroupId(3));
    vote(&idle, "only a vote");
    let (expected, idle_expected) = (view(&engine, 1), view(&engine, 3));
    for round in 0..30 {
        churn(&engine, round * 50..(round + 1) * 50);
        // 4.5 MB pass through; live are 40 KB of the lagging group and a little of the busy one.
        assert!(engine.stats().segments <= 6, "{:?}", engine.stats());
        assert_eq!(view(&engine, 1), expected);
    }
    let stats = engine.stats();
    assert!(
        stats.rotations > 40 && stats.rewritten_bytes > 0,
        "{stats:?}"
    );
    assert!(stats.live_bytes < 96 * 1024, "{stats:?}");
    let copy = copy_segments(dir.path());
    for dir in [copy.path(), dir.path()] {
        if dir == copy.path() {
            let crashed = open(small_options(dir));
            assert_eq!(view(&crashed, 1), expected);
            assert_eq!(view(&crashed, 3), idle_expected);
            assert_eq!(view(&crashed, 2), view(&engine, 2));
            assert_eq!(crashed.stats().live_bytes, stats.live_bytes);
        } else {
            engine.shutdown().unwrap();
        }
    }
    drop((engine, lagging, idle));
    let engine = open(small_options(dir.path()));
    assert_eq!(view(&engine, 1), expected);
    assert_eq!(view(&engine, 3), idle_expected);
}

#[test]
fn entries_that_were_moved_can_be_truncated_and_purged() {
    let dir = scratch_dir();
    let engine = open(small_options(dir.path()));
    let lagging = engine.group(GroupId(1));
    append(
        &lagging,
        (0..40)
            .map(|index| TestEntry::new(index, 1, 1000))
            .collect(),
    );
    churn(&engine, 0..300);
    assert!(engine.stats().rewritten_bytes > 0);
    crate::setup::truncate(&lagging, Some(30));
    append(
        &lagging,
        (31..36)
            .map(|index| TestEntry::new(index, 2, 700))
            .collect(),
    );
    churn(&engine, 300..500);
    lagging.purge(9, Bytes::new()).unwrap();
    let mut expected: Vec<_> = (10..31)
        .map(|index| TestEntry::new(index, 1, 1000))
        .collect();
    expected.extend((31..36).map(|index| TestEntry::new(index, 2, 700)));
    vote(&lagging, "barrier");
    assert_eq!(view(&engine, 1).entries, expected);
    assert_eq!(
        view(&open(small_options(copy_segments(dir.path()).path())), 1).entries,
        expected
    );
    churn(&engine, 500..700);
    assert_eq!(
        view(&open(small_options(copy_segments(dir.path()).path())), 1).entries,
        expected
    );
}

#[test]
fn stale_bytes_of_recycled_segments_never_come_back() {
    let dir = scratch_dir();
    let engine = open(LogOptions {
        recycled_segments_max: 8,
        ..small_options(dir.path())
    });
    let mut stale = 0;
    for round in 0..40 {
        churn(&engine, round * 10..(round + 1) * 10);
        let copy = copy_segments(dir.path());
        let newest = std::fs::read(segment_paths(copy.path()).last().unwrap()).unwrap();
        stale += usize::from(newest[1024..].iter().any(|byte| *byte != 0));
        let crashed = open(small_options(copy.path()));
        assert_eq!(view(&crashed, 2), view(&engine, 2));
        append(
            &crashed.group(GroupId(2)),
            vec![TestEntry::new((round + 1) * 10, 7, 10)],
        );
        let expected = view(&crashed, 2);
        let again = copy_segments(copy.path());
        assert_eq!(view(&open(small_options(again.path())), 2), expected);
    }
    assert!(stale > 10, "recycled segments were met {stale} times");
}

#[test]
fn one_call_may_be_larger_than_a_segment() {
    let dir = scratch_dir();
    let engine = open(small_options(dir.path()));
    let log = engine.group(GroupId(1));
    for call in 0..6 {
        append(
            &log,
            (call * 8..call * 8 + 8)
                .map(|index| TestEntry::new(index, 1, 30_000))
                .collect(),
        );
    }
    let expected = view(&engine, 1);
    assert_eq!(expected.entries.len(), 48);
    assert_eq!(
        view(&open(small_options(copy_segments(dir.path()).path())), 1),
        expected
    );
    log.purge(40, Bytes::new()).unwrap();
    churn(&engine, 0..100);
    assert_eq!(view(&engine, 1).entries, expected.entries[41..]);
}

#[test]
fn readers_may_race_with_rewriting_and_recycling() {
    let dir = scratch_dir();
    let engine = open(LogOptions {
        memory_tail_bytes_max: 0,
        ..small_options(dir.path())
    });
    let lagging = engine.group(GroupId(1));
    append(
        &lagging,
        (0..40)
            .map(|index| TestEntry::new(index, 1, 1000))
            .collect(),
    );
    let expected = view(&engine, 1).entries;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let begun = std::time::Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    assert_eq!(lagging.entries(0..40).unwrap(), expected);
                    assert!(begun.elapsed() < DEADLINE * 3);
                }
            });
        }
        churn(&engine, 0..1500);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(engine.stats().rewritten_bytes > 0);
}
