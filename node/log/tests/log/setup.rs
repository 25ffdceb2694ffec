//! The entry type, directories and waiting that all tests use.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use carillon_log::{
    EntryDecodeError, GroupId, GroupLog, LogEngine, LogEntry, LogError, LogOptions,
};

/// No operation of a healthy log takes this long.
pub const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Clone, PartialEq, Eq)]
pub struct TestEntry {
    pub index: u64,
    pub term: u64,
    pub data: Bytes,
}

impl std::fmt::Debug for TestEntry {
    /// Short, since a failed assertion prints whole logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let crc = crc32fast::hash(&self.data);
        write!(
            f,
            "{}@{}[{} bytes, crc {crc:08x}]",
            self.index,
            self.term,
            self.data.len()
        )
    }
}

impl TestEntry {
    /// An entry whose content follows from its index and term, so that any reader can check it.
    pub fn new(index: u64, term: u64, len: usize) -> Self {
        let seed =
            index.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ term.wrapping_mul(0xd6e8_feb8_6659_fd93);
        let data = (0..len as u64)
            .map(|at| (seed.wrapping_add(at * 7) >> (at % 13)) as u8)
            .collect();
        TestEntry { index, term, data }
    }
}

impl LogEntry for TestEntry {
    fn index(&self) -> u64 {
        self.index
    }

    fn encode(&self, buffer: &mut BytesMut) {
        buffer.put_u64_le(self.index);
        buffer.put_u64_le(self.term);
        buffer.put_slice(&self.data);
    }

    fn decode(buffer: &mut Bytes) -> Result<Self, EntryDecodeError> {
        if buffer.len() < 16 {
            return Err(EntryDecodeError::new("shorter than an index and a term"));
        }
        let (index, term) = (buffer.get_u64_le(), buffer.get_u64_le());
        Ok(TestEntry {
            index,
            term,
            data: buffer.split_to(buffer.len()),
        })
    }

    fn weight_bytes(&self) -> usize {
        16 + self.data.len()
    }
}

/// A directory in memory where there is one: most tests need the bytes of the files, not the disk.
pub fn scratch_dir() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    made.expect("a temporary directory")
}

/// Small limits, so that a little data meets them all.
pub fn small_options(dir: &Path) -> LogOptions {
    LogOptions {
        segment_bytes: 64 * 1024,
        memory_tail_bytes_max: 8 * 1024,
        garbage_bytes_max: 96 * 1024,
        rewrite_batch_bytes_max: 4 * 1024,
        ..LogOptions::new(dir)
    }
}

pub fn open(options: LogOptions) -> LogEngine<TestEntry> {
    LogEngine::open(options).expect("the log opens")
}

/// What a completion is told.
pub type Durable = Result<(), LogError>;

/// A completion and the place where its result arrives.
pub fn completion() -> (impl FnOnce(Durable) + Send + 'static, Receiver<Durable>) {
    let (sender, receiver) = sync_channel(1);
    (move |result| _ = sender.send(result), receiver)
}

pub fn wait(receiver: &Receiver<Durable>) {
    receiver
        .recv_timeout(DEADLINE)
        .expect("a completion in time")
        .expect("a durable write");
}

pub fn append(log: &GroupLog<TestEntry>, entries: Vec<TestEntry>) {
    let (done, receiver) = completion();
    log.append(entries, done).expect("an append");
    wait(&receiver);
}

pub fn truncate(log: &GroupLog<TestEntry>, after: Option<u64>) {
    let (done, receiver) = completion();
    log.truncate_after(after, done).expect("a truncation");
    wait(&receiver);
}

pub fn vote(log: &GroupLog<TestEntry>, vote: &str) {
    let (done, receiver) = completion();
    log.save_vote(Bytes::copy_from_slice(vote.as_bytes()), done)
        .expect("a vote");
    wait(&receiver);
}

pub fn all(log: &GroupLog<TestEntry>) -> Vec<TestEntry> {
    log.entries(0..u64::MAX).expect("readable entries")
}

/// Everything a group shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    pub entries: Vec<TestEntry>,
    pub vote: Option<Bytes>,
    pub committed: Option<Bytes>,
    pub purged: Option<(u64, Bytes)>,
}

pub fn view(engine: &LogEngine<TestEntry>, group: u32) -> View {
    let log = engine.group(GroupId(group));
    let entries = all(&log);
    assert_eq!(log.first_index(), entries.first().map(|entry| entry.index));
    assert_eq!(log.last_index(), entries.last().map(|entry| entry.index));
    assert_eq!(
        log.last_entry().expect("a readable entry").as_ref(),
        entries.last()
    );
    View {
        entries,
        vote: log.vote(),
        committed: log.committed(),
        purged: log.purged(),
    }
}

/// The segment files, oldest first.
pub fn segment_paths(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|suffix| suffix == "segment"))
        .collect();
    paths.sort();
    paths
}

/// Copies the segments as a crash of the machine would leave them; the log is idle, but may be
/// preparing or disposing of a file, hence the comparison.
pub fn copy_segments(from: &Path) -> tempfile::TempDir {
    loop {
        let to = scratch_dir();
        let paths = segment_paths(from);
        let copied = paths.iter().all(|path| {
            std::fs::copy(path, to.path().join(path.file_name().expect("a file name"))).is_ok()
        });
        if copied && segment_paths(from) == paths {
            return to;
        }
    }
}
