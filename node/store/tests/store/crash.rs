//! What is found after the process was killed. The test starts itself again as a child that
//! kills itself, with SIGKILL, at a named point of the write path.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use carillon_core::ids::{ShardId, Slot, SlotRange};
use carillon_core::merging::{MergeId, MergeMark};
use carillon_store::{SnapshotFile, Store, StoreOptions};

use crate::states::{self, Numbers, applied, assert_is, clock, commit, slots};

const DIR: &str = "CARILLON_STORE_TEST_DIR";
const ROLE: &str = "CARILLON_STORE_TEST_ROLE";
const POINT: &str = "CARILLON_STORE_TEST_POINT";

const SIGKILL: i32 = 9;
const SHARDS: u32 = 3;
const INSTALLED: ShardId = ShardId(1);

fn shard_slots(shard: ShardId) -> SlotRange {
    let first = 100 * shard.0 as u16;
    slots(first, first + 3)
}

/// Where the child dies, and how many times it may pass there before.
static DEATH: OnceLock<(String, AtomicU64)> = OnceLock::new();

fn die_here(point: &'static str) {
    let Some((name, passes)) = DEATH.get() else {
        return;
    };
    if name == point && passes.fetch_sub(1, Ordering::Relaxed) == 1 {
        kill(std::process::id());
        loop {
            std::thread::park();
        }
    }
}

fn kill(pid: u32) {
    let status = Command::new("kill")
        .args(["-KILL", &pid.to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

fn child(role: &str, dir: &Path, point: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "crash::child_process",
            "--exact",
            "--ignored",
            "--nocapture",
        ])
        .env(ROLE, role)
        .env(DIR, dir)
        .env(POINT, point)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "run by the other tests of this file, as another process"]
fn child_process() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let dir = std::env::var(DIR).unwrap();
    let point = std::env::var(POINT).unwrap();
    if let Some((name, passes)) = point.split_once('@') {
        let death = (name.to_owned(), AtomicU64::new(passes.parse().unwrap()));
        DEATH.set(death).unwrap();
    }
    let options = StoreOptions {
        failpoint: die_here,
        ..states::options(Path::new(&dir))
    };
    let store = Store::open(&options).unwrap();
    match role.as_str() {
        "write" => write_until_killed(&store),
        "install" => install(&store, Path::new(&dir)),
        "split" => split(&store),
        "merge" => merge(&store),
        other => panic!("no role {other}"),
    }
}

/// Goes on where the store ends, and says what is committed and what is flushed.
fn write_until_killed(store: &Store) {
    let mut shards: Vec<_> = (0..SHARDS)
        .map(|id| store.shard(ShardId(id), shard_slots(ShardId(id))).unwrap())
        .collect();
    println!("ready");
    for round in 0_u64.. {
        for shard in &mut shards {
            let n = applied(shard) + 1;
            commit(shard, n);
            println!("committed {} {n}", shard.id());
        }
        if round % 37 == 36 {
            for (shard, applied) in store.flush().unwrap() {
                let n = u64::from_be_bytes(applied[..].try_into().unwrap());
                println!("flushed {shard} {n}");
            }
            store.meta_put(b"rounds", &round.to_be_bytes()).unwrap();
            println!("meta 0 {round}");
        }
    }
}

/// What the child has said about each shard, by the word that it began with.
type Said = BTreeMap<(String, u32), u64>;

fn listen(child: &mut Child, mut until: impl FnMut(&str) -> bool) -> Said {
    let mut said = Said::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let mut words = line.split(' ');
        if let (Some(word), Some(Ok(shard)), Some(Ok(n))) = (
            words.next(),
            words.next().map(str::parse),
            words.next().map(str::parse),
        ) {
            said.insert((word.to_owned(), shard), n);
        }
        if until(&line) {
            kill(child.id());
        }
    }
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(SIGKILL), "the child ended by itself");
    said
}

fn check_prefix(dir: &Path, said: &Said, what: &str) {
    let store = states::open(dir);
    for id in 0..SHARDS {
        let mut shard = store.shard(ShardId(id), shard_slots(ShardId(id))).unwrap();
        let found = applied(&shard);
        let flushed = said.get(&("flushed".to_owned(), id)).copied();
        assert!(
            flushed.unwrap_or(0) <= found,
            "{what}: shard {id} was flushed at {flushed:?} and is found at {found}"
        );
        // One commit may have happened whose line was not printed any more.
        let committed = said.get(&("committed".to_owned(), id)).copied();
        if let Some(committed) = committed {
            assert!(
                found <= committed + 1,
                "{what}: shard {id} is found at {found}, ahead of {committed}"
            );
        }
        assert_is(&mut shard, found, what);
    }
    if let Some(rounds) = said.get(&("meta".to_owned(), 0)) {
        let found = store.meta_get(b"rounds").unwrap().unwrap();
        let found = u64::from_be_bytes(found[..].try_into().unwrap());
        assert!(
            *rounds <= found,
            "{what}: metadata {rounds} is found as {found}"
        );
    }
}

#[test]
fn a_killed_process_leaves_a_prefix_of_whole_batches() {
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let mut numbers = Numbers(seed);
    let dir = tempfile::tempdir().unwrap();
    for round in 0..6 {
        let lines = 50 + numbers.below(1500);
        let mut heard = 0;
        let mut child = child("write", dir.path(), "");
        let said = listen(&mut child, |_| {
            heard += 1;
            heard == lines
        });
        check_prefix(dir.path(), &said, &format!("round {round}, seed {seed}"));
    }
}

#[test]
fn a_process_killed_while_it_writes_leaves_a_prefix_of_whole_batches() {
    for point in [
        "store.before_commit@1",
        "store.before_commit@500",
        "store.before_write@1",
        "store.before_write@20",
        "store.before_flush@1",
        "store.before_flush@3",
        "store.after_flush@1",
        "store.after_flush@2",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let said = listen(&mut child("write", dir.path(), point), |_| false);
        check_prefix(dir.path(), &said, point);
    }
}

const OLD: u64 = 80;
const NEW: u64 = 120;

/// Installs a snapshot of another store, in `dir/source`.
fn install(store: &Store, dir: &Path) {
    let mut shard = store.shard(INSTALLED, shard_slots(INSTALLED)).unwrap();
    let mut neighbour = store.shard(ShardId(2), shard_slots(ShardId(2))).unwrap();
    // Not flushed: it is the ingestion that has to do it.
    for n in 1..=OLD {
        commit(&mut shard, n);
        commit(&mut neighbour, n);
    }
    let sent = snapshot_files(&dir.join("source"), &dir.join("files"));
    assert!(sent.len() > 1);
    println!("installing");
    shard
        .install(
            &sent,
            &NEW.to_be_bytes(),
            clock(NEW),
            shard_slots(INSTALLED),
            MergeMark::default(),
        )
        .unwrap();
    println!("installed");
}

/// A snapshot of the shard after batch [`NEW`], made in `source`, as files in `out`.
fn snapshot_files(source: &Path, out: &Path) -> Vec<SnapshotFile> {
    let store = states::open(source);
    let mut shard = store.shard(INSTALLED, shard_slots(INSTALLED)).unwrap();
    for n in applied(&shard) + 1..=NEW {
        commit(&mut shard, n);
    }
    shard
        .snapshot()
        .unwrap()
        .write_files(out, 8 * 1024, &mut |_| ControlFlow::Continue(()))
        .unwrap()
}

#[test]
fn an_install_killed_at_any_point_is_whole_or_has_not_been() {
    for (point, expected) in [
        ("store.install.marker@1", OLD),
        ("store.install.cleared@1", OLD),
        ("store.install.ingested@1", NEW),
        ("store.install.before_clear_marker@1", NEW),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        let mut child = child("install", dir.path(), point);
        listen(&mut child, |line| {
            assert_ne!(line, "installed", "{point}");
            false
        });

        let store = states::open(dir.path());
        assert_eq!(store.interrupted_installs(), [INSTALLED], "{point}");
        assert!(!store.path().join("staging").exists());
        let mut shard = store.shard(INSTALLED, shard_slots(INSTALLED)).unwrap();
        let mut neighbour = store.shard(ShardId(2), shard_slots(ShardId(2))).unwrap();
        let found = applied(&shard);
        // What was committed before and never flushed may be gone, and is gone as a whole.
        assert!(
            found == expected || (expected == OLD && found < OLD),
            "{point}: {found}"
        );
        assert_is(&mut shard, found, point);
        let found = applied(&neighbour);
        assert!(
            expected == OLD || found == OLD,
            "{point}: the neighbour is at {found}"
        );
        assert_is(&mut neighbour, found, point);

        // The next install is not in the way of the first.
        let sent = snapshot_files(&source, &dir.path().join("again"));
        shard
            .install(
                &sent,
                &NEW.to_be_bytes(),
                clock(NEW),
                shard_slots(INSTALLED),
                MergeMark::default(),
            )
            .unwrap();
        assert_is(&mut shard, NEW, point);
        drop((shard, neighbour, store));
        let store = states::open(dir.path());
        assert!(store.interrupted_installs().is_empty());
        let mut shard = store.shard(INSTALLED, shard_slots(INSTALLED)).unwrap();
        assert_is(&mut shard, NEW, "after the second install");
    }
}

const NEW_SHARD: ShardId = ShardId(9);

/// Splits a shard with its batch after [`OLD`], and goes on with both.
fn split(store: &Store) {
    let mut shard = store.shard(INSTALLED, shard_slots(INSTALLED)).unwrap();
    for n in 1..=OLD {
        commit(&mut shard, n);
    }
    states::commit_split(&mut shard, OLD + 1, Slot(102), NEW_SHARD);
    let mut new = store.shard(NEW_SHARD, shard_slots(ShardId(0))).unwrap();
    for n in 1..=10 {
        commit(&mut new, n);
        commit(&mut shard, OLD + 1 + n);
    }
    store.flush().unwrap();
    unreachable!("every point is before this");
}

#[test]
fn a_split_killed_at_any_point_is_whole_or_has_not_been() {
    for (point, is_split) in [
        ("store.before_commit@81", Some(false)),
        // What is not flushed may be there or not.
        ("store.before_write@1", None),
        ("store.before_write@12", None),
        ("store.before_commit@82", None),
        ("store.before_commit@90", None),
        ("store.before_flush@1", None),
        ("store.after_flush@1", Some(true)),
    ] {
        let dir = tempfile::tempdir().unwrap();
        listen(&mut child("split", dir.path(), point), |_| false);
        let store = states::open(dir.path());
        let found = store.shards().unwrap();
        let new = found.get(&NEW_SHARD).map(|(slots, _)| *slots);
        assert!(
            is_split.is_none_or(|is_split| new.is_some() == is_split),
            "{point}: {found:?}"
        );
        let shard = store.shard(INSTALLED, shard_slots(INSTALLED)).unwrap();
        match new {
            None => {
                assert_eq!(shard.slots(), shard_slots(INSTALLED), "{point}");
                assert!(applied(&shard) <= OLD, "{point}: half of it was done");
            }
            Some(new) => {
                assert_eq!((shard.slots(), new), (slots(100, 101), slots(102, 103)));
                assert!(applied(&shard) > OLD, "{point}: half of it was done");
                drop(store.shard(NEW_SHARD, new).unwrap());
            }
        }
    }
}

const RIGHT: ShardId = ShardId(9);
const MERGE: MergeId = MergeId(5);

fn right() -> SlotRange {
    slots(104, 107)
}

/// Freezes a shard and flushes that, as a node does before its neighbour takes it over, and then
/// goes on with the neighbour.
fn merge(store: &Store) {
    let mut shard = store.shard(INSTALLED, shard_slots(INSTALLED)).unwrap();
    let mut other = store.shard(RIGHT, right()).unwrap();
    for n in 1..=OLD {
        commit(&mut shard, n);
        commit(&mut other, n);
    }
    states::freeze(&mut other, OLD + 1, MERGE);
    store.flush().unwrap();
    println!("frozen");
    states::absorb(&mut shard, OLD + 1, MERGE, RIGHT, right());
    for n in 1..=10 {
        other
            .begin()
            .commit(&(OLD + 1 + n).to_be_bytes(), clock(n))
            .unwrap();
        let n = OLD + 1 + n;
        let mut batch = shard.begin();
        states::write(&mut batch, &changes_of_both(n));
        batch.commit(&n.to_be_bytes(), clock(n)).unwrap();
    }
    store.flush().unwrap();
    unreachable!("every point is before this");
}

/// What the shard with the slots of both changes in its batch number `n`.
fn changes_of_both(n: u64) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    states::changes(INSTALLED, slots(100, 107), n)
}

/// However it dies after the freeze was durable: the right one is there as it was frozen, or the
/// left one has it whole. Taken over again from there, all is as it would have been.
#[test]
fn a_merge_killed_at_any_point_is_whole_or_has_not_been() {
    // Each shard's commits up to the freeze, which is one more of the right one's.
    let frozen = 2 * OLD + 1;
    for (point, is_merged) in [
        (format!("store.before_commit@{}", frozen + 1), Some(false)),
        // What is not flushed may be there or not.
        (format!("store.before_commit@{}", frozen + 2), None),
        (format!("store.before_commit@{}", frozen + 9), None),
        ("store.before_flush@2".to_owned(), None),
        ("store.after_flush@2".to_owned(), Some(true)),
    ] {
        let dir = tempfile::tempdir().unwrap();
        listen(&mut child("merge", dir.path(), &point), |_| false);
        let store = states::open(dir.path());
        let found = store.merges().unwrap();
        let merged = !found.contains_key(&RIGHT);
        assert!(
            is_merged.is_none_or(|is| is == merged),
            "{point}: {found:?}"
        );
        let mut shard = store.shard(INSTALLED, shard_slots(INSTALLED)).unwrap();
        if !merged {
            assert_eq!(shard.slots(), shard_slots(INSTALLED), "{point}");
            assert_eq!(applied(&shard), OLD, "{point}: its part was flushed");
            assert_eq!(found[&RIGHT].1.frozen_by, Some(MERGE), "{point}");
            let mut other = store.shard(RIGHT, right()).unwrap();
            assert_eq!(applied(&other), OLD + 1);
            other
                .begin()
                .commit(&(OLD + 2).to_be_bytes(), clock(OLD))
                .unwrap();
            states::absorb(&mut shard, OLD + 1, MERGE, RIGHT, right());
        }
        assert_eq!(shard.slots(), slots(100, 107), "{point}");
        assert_eq!(shard.merges().absorbed, MERGE, "{point}");
        let mut state = states::expected(INSTALLED, shard_slots(INSTALLED), OLD);
        state.extend(states::expected(RIGHT, right(), OLD));
        for n in OLD + 2..=applied(&shard) {
            for (key, value) in changes_of_both(n) {
                match value {
                    Some(value) => state.insert(key, value),
                    None => state.remove(&key),
                };
            }
        }
        assert!(
            states::contents(&shard.reader(), slots(100, 107)) == state,
            "{point}: at {}",
            applied(&shard)
        );
    }
}

#[test]
fn a_failing_disk_poisons_the_store() {
    let dir = tempfile::tempdir().unwrap();
    static SEEN: OnceLock<String> = OnceLock::new();
    let options = StoreOptions {
        on_fatal: std::sync::Arc::new(|error| {
            SEEN.set(error.to_string()).unwrap();
        }),
        ..states::options(dir.path())
    };
    let store = Store::open(&options).unwrap();
    let mut shard = store.shard(ShardId(0), shard_slots(ShardId(0))).unwrap();
    commit(&mut shard, 1);
    // No directory, no new table file: the flush cannot succeed.
    std::fs::remove_dir_all(store.path()).unwrap();
    let error = store.flush().unwrap_err();
    assert!(error.is_fatal(), "{error}");
    assert!(
        SEEN.get().is_some_and(|seen| seen.contains("a flush")),
        "{SEEN:?}"
    );
    let refused = shard.begin().commit(b"2", clock(2)).unwrap_err();
    assert!(refused.is_fatal(), "{refused}");
    assert!(store.meta_put(b"a", b"b").is_err());
}
