//! Torn writes, bit flips and stale bytes: what recovery must drop, and what it must refuse.

use std::path::Path;

use bytes::Bytes;
use carillon_log::{GroupId, LogEngine, LogError};

use crate::setup::{
    TestEntry, View, append, completion, open, scratch_dir, segment_paths, small_options, view,
    vote, wait,
};

const SECTOR: usize = 512;

/// The bytes of a one-segment log before and after its last batch, and what both show.
struct LastBatch {
    before: Vec<u8>,
    after: Vec<u8>,
    /// The batch is here in the file.
    range: std::ops::Range<usize>,
    view_before: [View; 2],
    view_after: [View; 2],
}

fn views(engine: &LogEngine<TestEntry>) -> [View; 2] {
    [view(engine, 1), view(engine, 2)]
}

/// Several batches, the last of which holds records of two groups and spans several sectors.
fn last_batch() -> LastBatch {
    let dir = scratch_dir();
    let engine = open(small_options(dir.path()));
    let (one, two) = (engine.group(GroupId(1)), engine.group(GroupId(2)));
    append(
        &one,
        (0..5).map(|index| TestEntry::new(index, 1, 50)).collect(),
    );
    append(
        &two,
        (0..3).map(|index| TestEntry::new(index, 1, 300)).collect(),
    );
    vote(&one, "first");
    let path = segment_paths(dir.path())[0].clone();
    let (before, view_before) = (std::fs::read(&path).unwrap(), views(&engine));
    // One call, and the committed value that rides with it, so that it is one batch for certain.
    two.save_committed(Bytes::from_static(b"committed"))
        .unwrap();
    append(
        &one,
        (5..9).map(|index| TestEntry::new(index, 2, 250)).collect(),
    );
    let (after, view_after) = (std::fs::read(&path).unwrap(), views(&engine));
    let changed = |at: &usize| before[*at] != after[*at];
    let start = (0..after.len()).find(changed).unwrap() / SECTOR * SECTOR;
    let last = (0..after.len()).rfind(changed).unwrap();
    LastBatch {
        range: start..last + 1,
        before,
        after,
        view_before,
        view_after,
    }
}

/// Opens a log that consists of these bytes.
fn open_bytes(segment: &[u8]) -> (tempfile::TempDir, Result<LogEngine<TestEntry>, LogError>) {
    let dir = scratch_dir();
    write_segment(dir.path(), segment);
    let opened = LogEngine::open(small_options(dir.path()));
    (dir, opened)
}

fn write_segment(dir: &Path, segment: &[u8]) {
    std::fs::write(dir.join(format!("{:016x}.segment", 1)), segment).unwrap();
}

#[test]
fn a_write_torn_at_any_byte_is_dropped_as_a_whole() {
    let batch = last_batch();
    assert!(batch.range.len() > 2 * SECTOR);
    for cut in batch.range.clone().chain([batch.range.end]) {
        let torn = [&batch.after[..cut], &batch.before[cut..]].concat();
        // Bytes that were to become zero are as good as written.
        let complete = torn == batch.after;
        let (dir, engine) = open_bytes(&torn);
        let engine = engine.unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        assert_eq!(
            views(&engine),
            if complete {
                batch.view_after.clone()
            } else {
                batch.view_before.clone()
            }
        );
        if cut % 97 == 0 {
            go_on_and_reopen(dir.path(), engine);
        }
    }
}

/// After a recovery the log takes entries, and what was dropped never comes back.
fn go_on_and_reopen(dir: &Path, engine: LogEngine<TestEntry>) {
    let next = engine.group(GroupId(1)).last_index().unwrap() + 1;
    append(&engine.group(GroupId(1)), vec![TestEntry::new(next, 9, 10)]);
    let expected = views(&engine);
    let copy = crate::setup::copy_segments(dir);
    assert_eq!(views(&open(small_options(copy.path()))), expected);
    drop(engine);
    assert_eq!(views(&open(small_options(dir))), expected);
}

#[test]
fn a_write_of_which_any_sectors_arrived_is_whole_or_dropped() {
    let batch = last_batch();
    let sectors: Vec<usize> = batch.range.clone().step_by(SECTOR).collect();
    for arrived in 0..1_usize << sectors.len() {
        let mut torn = batch.before.clone();
        for (_, sector) in sectors
            .iter()
            .enumerate()
            .filter(|(at, _)| arrived & (1 << at) != 0)
        {
            let range = *sector..sector + SECTOR;
            torn[range.clone()].copy_from_slice(&batch.after[range]);
        }
        let complete = torn == batch.after;
        let (_dir, engine) = open_bytes(&torn);
        let engine = engine.unwrap_or_else(|error| panic!("sectors {arrived:b}: {error}"));
        assert_eq!(
            views(&engine),
            if complete {
                batch.view_after.clone()
            } else {
                batch.view_before.clone()
            }
        );
    }
}

#[test]
fn a_flipped_bit_in_durable_data_is_refused_and_in_the_last_batch_drops_it() {
    let batch = last_batch();
    for at in 0..batch.range.end {
        let mut flipped = batch.after.clone();
        flipped[at] ^= 1 << (at % 8);
        let (dir, opened) = open_bytes(&flipped);
        match opened {
            Ok(engine) if batch.range.contains(&at) => {
                assert_eq!(views(&engine), batch.view_before, "byte {at}");
            }
            // Only padding carries no information.
            Ok(engine) => {
                assert_eq!(batch.after[at], 0, "byte {at} was flipped and not noticed");
                assert_eq!(views(&engine), batch.view_after, "byte {at}");
            }
            Err(LogError::Corrupt { path, offset, .. }) => {
                assert!(!batch.range.contains(&at), "byte {at} is in the last batch");
                assert_eq!(path, segment_paths(dir.path())[0]);
                assert!(offset <= at as u64, "byte {at}, reported at {offset}");
                assert_eq!(
                    std::fs::read(&path).unwrap(),
                    flipped,
                    "a refused file is not touched"
                );
            }
            Err(error) => panic!("byte {at}: {error}"),
        }
    }
}

#[test]
fn after_a_clean_shutdown_even_the_last_entries_are_known_to_be_durable() {
    let dir = scratch_dir();
    let engine = open(small_options(dir.path()));
    append(&engine.group(GroupId(1)), vec![TestEntry::new(0, 1, 50)]);
    engine.shutdown().unwrap();
    drop(engine);
    let path = segment_paths(dir.path())[0].clone();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[SECTOR + 70] ^= 4;
    let (_dir, opened) = open_bytes(&bytes);
    let error = opened.unwrap_err();
    assert!(
        matches!(error, LogError::Corrupt { offset: 512, .. }),
        "{error}"
    );
}

/// A log of several segments, not shut down.
fn several_segments() -> (tempfile::TempDir, View) {
    let dir = scratch_dir();
    let engine = open(small_options(dir.path()));
    let log = engine.group(GroupId(1));
    for index in 0..100 {
        append(&log, vec![TestEntry::new(index, 1, 2000)]);
    }
    assert!(engine.stats().segments >= 3);
    let copy = crate::setup::copy_segments(dir.path());
    let view = view(&engine, 1);
    assert_eq!(
        crate::setup::view(
            &open(small_options(
                crate::setup::copy_segments(copy.path()).path()
            )),
            1
        ),
        view
    );
    (copy, view)
}

fn refused(dir: &Path) -> LogError {
    let error = LogEngine::<TestEntry>::open(small_options(dir)).unwrap_err();
    assert!(matches!(error, LogError::Corrupt { .. }), "{error}");
    error
}

#[test]
fn a_full_segment_that_lost_its_end_is_refused() {
    let (dir, _) = several_segments();
    let path = &segment_paths(dir.path())[0];
    let mut bytes = std::fs::read(path).unwrap();
    let last = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[last] ^= 1;
    std::fs::write(path, &bytes).unwrap();
    assert!(refused(dir.path()).to_string().contains("durable up to"));
    std::fs::write(path, &bytes[..20 * SECTOR]).unwrap();
    refused(dir.path());
    std::fs::write(path, &bytes[..20]).unwrap();
    refused(dir.path());
    std::fs::write(path, b"").unwrap();
    refused(dir.path());
}

#[test]
fn a_missing_segment_is_refused() {
    let (dir, _) = several_segments();
    let paths = segment_paths(dir.path());
    std::fs::rename(&paths[1], dir.path().join("aside")).unwrap();
    assert!(refused(dir.path()).to_string().contains("missing"));
    std::fs::rename(dir.path().join("aside"), &paths[1]).unwrap();
    std::fs::remove_file(&paths[0]).unwrap();
    assert!(refused(dir.path()).to_string().contains("is in no segment"));
}

#[test]
fn a_damaged_checkpoint_is_refused() {
    let (dir, _) = several_segments();
    let paths = segment_paths(dir.path());
    for path in &paths[1..3] {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[SECTOR + 60] ^= 16;
        std::fs::write(path, &bytes).unwrap();
        refused(dir.path());
        bytes[SECTOR + 60] ^= 16;
        std::fs::write(path, &bytes).unwrap();
    }
    open(small_options(dir.path())).shutdown().unwrap();
}

#[test]
fn a_rotation_cut_off_inside_its_checkpoint_is_undone() {
    let (dir, view_before) = several_segments();
    let paths = segment_paths(dir.path());
    // The newest segment is only prepared; what comes before it was written last.
    let used = paths
        .iter()
        .rposition(|path| {
            std::fs::read(path).unwrap()[SECTOR..]
                .iter()
                .any(|b| *b != 0)
        })
        .unwrap();
    let mut bytes = std::fs::read(&paths[used]).unwrap();
    bytes[SECTOR + 60..].fill(0);
    std::fs::write(&paths[used], &bytes).unwrap();
    let engine = open(small_options(dir.path()));
    let kept = view(&engine, 1).entries;
    assert!(!kept.is_empty() && kept.len() < view_before.entries.len());
    assert_eq!(kept, view_before.entries[..kept.len()]);
    go_on_and_reopen(dir.path(), engine);
}

#[test]
fn a_damaged_entry_is_found_when_it_is_read() {
    let dir = scratch_dir();
    let engine = open(small_options(dir.path()));
    let log = engine.group(GroupId(1));
    for index in 0..20 {
        append(&log, vec![TestEntry::new(index, 1, 1000)]);
    }
    let path = segment_paths(dir.path())[0].clone();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[SECTOR + 200] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(log.entries(0..1), Err(LogError::Corrupt { .. })));
    assert_eq!(log.entries(1..20).unwrap().len(), 19);
    let (done, receiver) = completion();
    log.append(vec![TestEntry::new(20, 1, 10)], done).unwrap();
    wait(&receiver);
}

#[test]
fn another_version_of_the_format_is_named() {
    let batch = last_batch();
    let mut bytes = batch.after;
    bytes[8..12].copy_from_slice(&2_u32.to_le_bytes());
    bytes[12..16].fill(0);
    let crc = crc32fast::hash(&bytes[..32]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    let (_dir, opened) = open_bytes(&bytes);
    assert!(matches!(
        opened,
        Err(LogError::UnsupportedVersion {
            found: 2,
            supported: 1,
            ..
        })
    ));
}
