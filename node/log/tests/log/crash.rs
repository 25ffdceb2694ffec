//! Crashes of a real process at every failpoint: nothing that was acknowledged is lost.
//!
//! The test binary runs itself again, for the test `child` only, with a failpoint set.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use bytes::Bytes;
use carillon_log::{GroupId, LogEngine, LogError, LogOptions};

use crate::setup::{TestEntry, all, append, completion, open, small_options, truncate, vote};

const DIR_VARIABLE: &str = "CARILLON_LOG_TEST_DIR";
const TASK_VARIABLE: &str = "CARILLON_LOG_TEST_TASK";
/// Rounds after which a child that was not killed gives up.
const ROUNDS_MAX: u64 = 400;
const GROUPS: u64 = 3;

/// What a child said to be durable for one group.
#[derive(Debug, Default, Clone, Copy)]
struct Acknowledged {
    next: u64,
    vote: u64,
    purged: u64,
}

/// The length of an entry follows from its index.
fn entry(index: u64) -> TestEntry {
    TestEntry::new(index, 1, (index * 37 % 1500) as usize)
}

/// Not a test of its own: what the child processes do.
#[test]
#[ignore = "run by the tests of this file in a process of its own"]
fn child() {
    let dir = std::env::var(DIR_VARIABLE).expect("run by a parent");
    match std::env::var(TASK_VARIABLE)
        .expect("run by a parent")
        .as_str()
    {
        "work" => work(Path::new(&dir)),
        "fail" => fail(Path::new(&dir)),
        "delay" => delay(Path::new(&dir)),
        task => panic!("unknown task {task}"),
    }
}

/// Appends, votes, truncates and purges until killed, and prints what is acknowledged.
fn work(dir: &Path) {
    let engine = open(small_options(dir));
    for round in 0..ROUNDS_MAX {
        for group in 0..GROUPS {
            let log = engine.group(GroupId(group as u32));
            let next = log
                .last_index()
                .or(log.purged().map(|(index, _)| index))
                .map_or(0, |index| index + 1);
            append(&log, (next..next + 5).map(entry).collect());
            // The last two are taken back and appended again, as a new leader might do.
            truncate(&log, Some(next + 2));
            append(&log, (next + 3..next + 5).map(entry).collect());
            let voted = log.vote().map_or(0, |vote| {
                String::from_utf8_lossy(&vote).parse::<u64>().unwrap()
            }) + 1;
            vote(&log, &voted.to_string());
            println!(
                "acknowledged {group} {} {voted} {}",
                next + 5,
                log.purged().map_or(0, |(index, _)| index)
            );
            log.save_committed(Bytes::from((next + 4).to_string()))
                .unwrap();
            // Group 0 lags, so that its entries must be moved forward.
            if round % 4 == 3 && (group > 0 || round % 64 == 63) {
                log.purge(next, Bytes::from(next.to_string())).unwrap();
            }
        }
    }
}

fn spawn(dir: &Path, task: &str, failpoints: &str) -> (Vec<String>, std::process::ExitStatus) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "crash::child",
            "--exact",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(DIR_VARIABLE, dir)
        .env(TASK_VARIABLE, task)
        .env(carillon_log::failpoint::VARIABLE, failpoints)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap)
        .collect();
    (lines, child.wait().unwrap())
}

fn parse(lines: &[String], acknowledged: &mut [Acknowledged]) {
    for line in lines {
        // The test harness may have printed the test's name before the first line.
        let Some((_, numbers)) = line.split_once("acknowledged ") else {
            continue;
        };
        let numbers: Vec<u64> = numbers
            .split(' ')
            .map(|number| number.parse().unwrap())
            .collect();
        let [group, next, vote, purged] = numbers[..] else {
            panic!("unexpected line {line}")
        };
        acknowledged[group as usize] = Acknowledged { next, vote, purged };
    }
}

fn check(dir: &Path, acknowledged: &[Acknowledged], context: &str) {
    let engine = open(small_options(dir));
    for (group, acknowledged) in acknowledged.iter().enumerate() {
        let log = engine.group(GroupId(group as u32));
        let entries = all(&log);
        let purged = log.purged().map(|(index, _)| index);
        let next = log.last_index().or(purged).map_or(0, |index| index + 1);
        let context = format!("{context}, group {group}: {acknowledged:?}");
        assert!(
            next >= acknowledged.next,
            "{context}: the log ends before {next}"
        );
        assert!(
            purged.unwrap_or(0) >= acknowledged.purged,
            "{context}: purged only {purged:?}"
        );
        let first = purged.map_or(0, |index| index + 1);
        assert_eq!(
            entries,
            (first..next).map(entry).collect::<Vec<_>>(),
            "{context}"
        );
        let voted = log.vote().map_or(0, |vote| {
            String::from_utf8_lossy(&vote).parse::<u64>().unwrap()
        });
        assert!(voted >= acknowledged.vote, "{context}: voted {voted}");
        let committed = log
            .committed()
            .map(|index| String::from_utf8_lossy(&index).parse::<u64>().unwrap());
        assert!(
            committed.is_none_or(|index| index < next),
            "{context}: committed {committed:?}"
        );
    }
}

fn crash_at(point: &str, hits: &[u64]) {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = [Acknowledged::default(); GROUPS as usize];
    // Crash after crash in the same directory, each recovery on top of the one before.
    for hit in hits {
        let failpoints = format!("{point}=crash@{hit}");
        let (lines, status) = spawn(dir.path(), "work", &failpoints);
        assert_eq!(
            status.signal(),
            Some(libc::SIGKILL),
            "{failpoints}: {status}"
        );
        parse(&lines, &mut acknowledged);
        check(dir.path(), &acknowledged, &failpoints);
    }
    assert!(
        acknowledged.iter().all(|group| group.next > 0),
        "{point}: {acknowledged:?}"
    );
}

#[test]
fn killed_before_a_write() {
    crash_at("log.before_write", &[1, 2, 3, 50, 131]);
}

#[test]
fn killed_inside_a_write() {
    crash_at("log.after_partial_write", &[1, 2, 3, 50, 131]);
}

#[test]
fn killed_after_a_write() {
    crash_at("log.after_write", &[1, 2, 3, 50, 131]);
}

#[test]
fn killed_before_a_sync() {
    crash_at("log.before_sync", &[1, 2, 3, 50, 131]);
}

#[test]
fn killed_after_a_sync() {
    crash_at("log.after_sync", &[1, 2, 3, 50, 131]);
}

#[test]
fn killed_while_changing_segments() {
    crash_at("log.rotate", &[1, 2, 5]);
}

#[test]
fn killed_before_deleting_a_segment() {
    crash_at("log.delete_segment", &[1, 2, 5]);
}

fn fail(dir: &Path) {
    let fatal = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&fatal);
    let on_fatal = Arc::new(move |error: &LogError| {
        assert!(matches!(error, LogError::Io { .. }), "{error}");
        counted.fetch_add(1, SeqCst);
    });
    let engine = LogEngine::<TestEntry>::open(LogOptions {
        on_fatal,
        ..small_options(dir)
    })
    .unwrap();
    let log = engine.group(GroupId(0));
    append(&log, vec![entry(0)]);
    let (done, receiver) = completion();
    log.append(vec![entry(1)], done).unwrap();
    let failed = receiver.recv_timeout(crate::setup::DEADLINE).unwrap();
    assert!(
        matches!(failed, Err(LogError::Poisoned { .. })),
        "{failed:?}"
    );
    assert!(matches!(
        log.append(vec![entry(2)], |_| ()),
        Err(LogError::Poisoned { .. })
    ));
    assert!(matches!(
        log.save_vote(Bytes::new(), |_| ()),
        Err(LogError::Poisoned { .. })
    ));
    assert!(matches!(
        log.save_committed(Bytes::new()),
        Err(LogError::Poisoned { .. })
    ));
    assert!(matches!(
        log.purge(0, Bytes::new()),
        Err(LogError::Poisoned { .. })
    ));
    assert!(matches!(log.entries(0..1), Err(LogError::Poisoned { .. })));
    assert!(matches!(
        engine.remove_group(GroupId(0)),
        Err(LogError::Poisoned { .. })
    ));
    assert!(matches!(engine.shutdown(), Err(LogError::Poisoned { .. })));
    assert_eq!(fatal.load(SeqCst), 1);
    println!("failed as expected");
}

#[test]
fn a_failed_write_or_sync_poisons_the_log() {
    for point in [
        "log.before_write",
        "log.after_partial_write",
        "log.before_sync",
        "log.after_sync",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (lines, status) = spawn(dir.path(), "fail", &format!("{point}=error@2"));
        assert!(status.success(), "{point}: {status} {lines:?}");
        assert!(
            lines.iter().any(|line| line.contains("failed as expected")),
            "{lines:?}"
        );
        let entries = all(&open(small_options(dir.path())).group(GroupId(0)));
        assert_eq!(entries[0], entry(0));
    }
}

fn delay(dir: &Path) {
    let engine = open(small_options(dir));
    let log = engine.group(GroupId(0));
    let (appended, append_done) = completion();
    let (voted, vote_done) = completion();
    log.append(vec![entry(0)], appended).unwrap();
    log.save_vote(Bytes::from_static(b"vote"), voted).unwrap();
    assert_eq!(
        all(&log),
        [entry(0)],
        "entries are readable before they are durable"
    );
    assert!(append_done.try_recv().is_err() && vote_done.try_recv().is_err());
    assert_eq!(
        log.vote(),
        None,
        "a vote is not readable before it is durable"
    );
    crate::setup::wait(&append_done);
    crate::setup::wait(&vote_done);
    assert_eq!(log.vote(), Some(Bytes::from_static(b"vote")));
    println!("delayed as expected");
}

#[test]
fn entries_are_visible_before_the_sync_and_votes_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let (lines, status) = spawn(dir.path(), "delay", "log.before_sync=delay(1000)");
    assert!(
        status.success()
            && lines
                .iter()
                .any(|line| line.contains("delayed as expected")),
        "{lines:?}"
    );
}
