//! The writer thread: takes what waits, writes it as one batch, syncs, completes.
//!
//! Owner of the files, of the order of writing (`Written` of each group) and of the completions.
//! Invariants: at most one write is not durable; completions run in the order of the requests;
//! after a failed write nothing is written any more.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use crate::allocator::Allocator;
use crate::engine::Shared;
use crate::format::{BatchBuffer, DATA_START, Position, Record, SegmentNumber, put_entry_prefix};
use crate::group::Group;
use crate::index::LiveBytes;
use crate::options::LogOptions;
use crate::queue::{Committed, Operation, Request, Taken};
use crate::recovery::{DirLock, RecoveredFiles};
use crate::rewrite::{Moved, Rewrite};
use crate::segment::SegmentFile;
use crate::{GroupId, LogEntry, LogError, failpoint};

/// A segment is full when less than this fraction of it is free; the last batch may exceed it.
const ROTATE_FREE_FRACTION: u64 = 16;
/// Eviction goes down to this many eighths of the memory limit, so that it is rare.
const EVICT_TO_EIGHTHS: u64 = 7;

/// A full segment, and the end of its batches.
struct Sealed {
    file: Arc<SegmentFile>,
    end: u64,
}

pub(crate) struct Writer<E: LogEntry> {
    shared: Arc<Shared<E>>,
    allocator: Allocator,
    groups: BTreeMap<GroupId, Arc<Group<E>>>,
    /// Oldest first.
    sealed: VecDeque<Sealed>,
    active: Arc<SegmentFile>,
    /// Where the next batch goes in the active segment.
    offset: u64,
    /// The next segment was asked for again, since half of this one is used.
    hurried: bool,
    /// The end of the last batch.
    durable: Position,
    next_sequence: u64,
    live: LiveBytes,
    batch: BatchBuffer,
    rewrite: Option<Rewrite<E>>,
    options: LogOptions,
    /// Dropped last, when both threads are done with the files.
    _lock: DirLock,
}

impl<E: LogEntry> Writer<E> {
    /// Takes over the recovered files, or begins the first segment.
    pub(crate) fn new(
        shared: Arc<Shared<E>>,
        options: &LogOptions,
        files: RecoveredFiles,
        groups: HashMap<GroupId, Arc<Group<E>>>,
    ) -> Result<Self, LogError> {
        let mut allocator = Allocator::start(options, Arc::clone(&shared.poison))?;
        let mut segments = files.segments;
        if segments.is_empty() {
            segments.push((
                Arc::new(allocator.allocate(SegmentNumber(1))?.file),
                DATA_START,
            ));
        }
        segments
            .iter()
            .for_each(|(file, _)| shared.segments.insert(Arc::clone(file)));
        let (active, offset) = segments.pop().expect("at least one segment");
        allocator.prepare(active.number().next())?;
        let writer = Writer {
            shared,
            allocator,
            groups: groups.into_iter().collect(),
            sealed: segments
                .into_iter()
                .map(|(file, end)| Sealed { file, end })
                .collect(),
            offset,
            hurried: false,
            durable: Position {
                segment: active.number(),
                offset,
            },
            active,
            next_sequence: files.next_sequence,
            live: files.live,
            batch: BatchBuffer::new(),
            rewrite: None,
            options: options.clone(),
            _lock: files.lock,
        };
        writer.count_segments();
        Ok(writer)
    }

    /// The thread's body: until the queue is closed and empty, or a write fails.
    pub(crate) fn run(mut self) {
        self.shared.queue.register_writer();
        let mut backlog = VecDeque::new();
        let mut writing = Vec::new();
        let outcome = catch_unwind(AssertUnwindSafe(|| self.serve(&mut backlog, &mut writing)));
        let outcome = outcome.unwrap_or_else(|_| {
            let source = std::io::Error::other("the writer thread panicked");
            Err(LogError::Io {
                action: "write to",
                path: self.options.dir.clone(),
                source,
            })
        });
        if let Err(error) = outcome {
            self.shared.poison.set(&error);
            self.shared.queue.close();
            self.shared.queue.take(&mut backlog, &mut Vec::new(), false);
            writing.extend(backlog);
            writing
                .iter_mut()
                .for_each(|request| request.complete(Err(self.shared.closed_error())));
        }
        self.allocator.stop();
    }

    fn serve(
        &mut self,
        backlog: &mut VecDeque<Request<E>>,
        writing: &mut Vec<Request<E>>,
    ) -> Result<(), LogError> {
        let mut committed = Vec::new();
        loop {
            let taken = self
                .shared
                .queue
                .take(backlog, &mut committed, self.rewrite.is_none());
            self.shared.poison.check()?;
            while !backlog.is_empty() {
                writing.extend(backlog.drain(..self.batch_len(backlog)));
                let ride = if backlog.is_empty() {
                    std::mem::take(&mut committed)
                } else {
                    Vec::new()
                };
                self.write(writing, ride)?;
            }
            if taken == Taken::Closed {
                return self.close(writing, committed);
            }
            if self.rewrite.is_some() {
                self.write(writing, Vec::new())?;
            }
        }
    }

    /// How many of the waiting requests go into one batch.
    fn batch_len(&self, backlog: &VecDeque<Request<E>>) -> usize {
        let mut bytes = 0;
        let fits = backlog.iter().take_while(|request| {
            let fits = bytes < self.options.batch_bytes_max;
            bytes += request.bytes;
            fits
        });
        fits.count()
    }

    /// Writes requests (emptied when done) and makes them durable.
    fn write(
        &mut self,
        requests: &mut Vec<Request<E>>,
        committed: Vec<Committed<E>>,
    ) -> Result<(), LogError> {
        if self.is_full() {
            self.rotate()?;
        } else if !self.hurried && self.offset >= self.options.segment_bytes / 2 {
            self.hurried = true;
            self.allocator.hurry();
        }
        self.batch.start(self.active.epoch(), self.offset);
        requests.iter().for_each(|request| self.encode(request));
        committed
            .into_iter()
            .for_each(|(group, value)| self.encode_committed(&group, value));
        let moved = match &mut self.rewrite {
            Some(rewrite) => {
                rewrite.add_to(&mut self.batch, self.options.rewrite_batch_bytes_max)?
            }
            None => Vec::new(),
        };
        if !self.batch.is_empty() {
            self.write_batch()?;
        }
        self.count_segments();
        self.shared
            .counters
            .requests
            .fetch_add(requests.len() as u64, Relaxed);
        for request in requests.iter_mut() {
            self.publish(request);
            request.complete(Ok(()));
        }
        requests.clear();
        self.finish_moves(moved);
        self.evict();
        self.reclaim()
    }

    fn is_full(&self) -> bool {
        let segment_bytes = self.options.segment_bytes;
        self.offset >= segment_bytes - segment_bytes / ROTATE_FREE_FRACTION
    }

    /// Adds a request to the batch and to the written state of its group.
    fn encode(&mut self, request: &Request<E>) {
        let (id, batch, live) = (request.group.id, &mut self.batch, &mut self.live);
        let mut state = request.group.state.lock();
        let written = &mut state.written;
        let known = self
            .groups
            .get(&id)
            .is_some_and(|group| Arc::ptr_eq(group, &request.group));
        if !known {
            self.groups.insert(id, Arc::clone(&request.group));
        }
        let mut put = |record: Record| _ = batch.record(|buffer| record.put(buffer, id));
        match &request.operation {
            Operation::Append { entries, .. } => {
                for entry in entries {
                    let location = batch.record(|buffer| {
                        put_entry_prefix(buffer, id, entry.index(), false);
                        entry.encode(buffer);
                    });
                    let contiguous = written.append(entry.index(), location, live);
                    assert!(
                        contiguous,
                        "entry {} of group {id} was queued out of order",
                        entry.index()
                    );
                }
            }
            Operation::Vote(vote) => {
                put(Record::Vote(vote.clone()));
                written.vote = Some(vote.clone());
            }
            Operation::Truncate { after, .. } => {
                put(Record::TruncateAfter(*after));
                written.truncate_after(*after, live);
            }
            Operation::Purge { upto, log_id } => {
                put(Record::Purge {
                    upto: *upto,
                    log_id: log_id.clone(),
                });
                written.purge(*upto, log_id.clone(), live);
            }
            Operation::Remove => {
                put(Record::Remove);
                written.clear(live);
                self.groups.remove(&id);
            }
        }
    }

    fn encode_committed(&mut self, group: &Arc<Group<E>>, value: bytes::Bytes) {
        let mut state = group.state.lock();
        if state.is_removed() {
            return;
        }
        self.groups
            .entry(group.id)
            .or_insert_with(|| Arc::clone(group));
        self.batch
            .record(|buffer| Record::Committed(value.clone()).put(buffer, group.id));
        state.written.committed = Some(value);
    }

    /// Shows readers what became durable.
    fn publish(&self, request: &Request<E>) {
        match &request.operation {
            Operation::Append {
                entries,
                generation,
            } => {
                self.shared
                    .counters
                    .entries
                    .fetch_add(entries.len() as u64, Relaxed);
                if let Some(last) = entries.last() {
                    request
                        .group
                        .state
                        .lock()
                        .durable(*generation, last.index() + 1);
                }
            }
            Operation::Truncate {
                next, generation, ..
            } => {
                request.group.state.lock().durable(*generation, *next);
            }
            Operation::Vote(vote) => request.group.state.lock().publish_vote(vote.clone()),
            Operation::Purge { .. } | Operation::Remove => {}
        }
    }

    /// Writes the batch at the end of the active segment and syncs it.
    fn write_batch(&mut self) -> Result<(), LogError> {
        let data = self.batch.finish(self.next_sequence, self.durable);
        let file = &self.active;
        let point = |name| failpoint::hit_io(name).map_err(LogError::io("write to", file.path()));
        point("log.before_write")?;
        if let Some(action) = failpoint::due("log.after_partial_write") {
            file.write_at(&data[..data.len() / 2], self.offset)?;
            action
                .perform("log.after_partial_write")
                .map_err(LogError::io("write to", file.path()))?;
        }
        file.write_at(data, self.offset)?;
        point("log.after_write")?;
        point("log.before_sync")?;
        let begun = Instant::now();
        file.sync()?;
        self.shared.counters.synced(begun.elapsed());
        point("log.after_sync")?;
        self.shared
            .counters
            .bytes
            .fetch_add(data.len() as u64, Relaxed);
        self.next_sequence += 1;
        self.offset += data.len() as u64;
        self.durable = Position {
            segment: file.number(),
            offset: self.offset,
        };
        Ok(())
    }

    /// Goes on in a new segment, which begins with the state of all groups.
    fn rotate(&mut self) -> Result<(), LogError> {
        failpoint::hit_io("log.rotate").map_err(LogError::io("rotate", self.active.path()))?;
        let number = self.active.number().next();
        let allocated = self.allocator.allocate(number)?;
        let file = Arc::new(allocated.file);
        self.batch.start(file.epoch(), DATA_START);
        for (id, group) in &self.groups {
            let checkpoint = group.state.lock().written.checkpoint();
            self.batch
                .record(|buffer| Record::Checkpoint(checkpoint).put(buffer, *id));
        }
        self.shared.segments.insert(Arc::clone(&file));
        let full = std::mem::replace(&mut self.active, file);
        self.sealed.push_back(Sealed {
            file: full,
            end: self.offset,
        });
        self.offset = DATA_START;
        self.hurried = false;
        self.write_batch()?;
        self.shared.counters.rotations.fetch_add(1, Relaxed);
        self.shared
            .counters
            .rotation_stalls
            .fetch_add(u64::from(allocated.stalled), Relaxed);
        self.allocator.prepare(number.next())
    }

    /// Directs readers to the new places of entries that were moved.
    fn finish_moves(&mut self, moved: Vec<Moved<E>>) {
        for Moved {
            group,
            index,
            location,
        } in moved
        {
            let relocated = group
                .state
                .lock()
                .written
                .relocate(index, location, &mut self.live);
            assert!(
                relocated,
                "entry {index} of group {} left the log while it was moved",
                group.id
            );
            self.shared
                .counters
                .rewritten_bytes
                .fetch_add(location.record_bytes(), Relaxed);
        }
    }

    /// Keeps the entries in memory below the limit, taking from each group its share.
    fn evict(&self) {
        let counters = &self.shared.counters;
        let bytes = counters.memory_tail_bytes.load(Relaxed);
        let bytes_max = self.options.memory_tail_bytes_max;
        if bytes <= bytes_max {
            return;
        }
        let excess = bytes - bytes_max / 8 * EVICT_TO_EIGHTHS;
        let evictable: Vec<_> = self
            .groups
            .values()
            .map(|group| (group, group.state.lock().evictable_bytes()))
            .collect();
        let total: u64 = evictable.iter().map(|(_, bytes)| bytes).sum();
        for (group, bytes) in evictable.into_iter().filter(|(_, bytes)| *bytes > 0) {
            let share = u128::from(bytes) * u128::from(excess.min(total)) / u128::from(total);
            group.state.lock().evict(share as u64 + 1, counters);
        }
    }

    /// Disposes of the oldest segments while nothing live is in them, and begins to empty the
    /// oldest one when too much of the full segments is dead.
    fn reclaim(&mut self) -> Result<(), LogError> {
        if self.rewrite.as_ref().is_some_and(Rewrite::is_done) {
            self.rewrite = None;
        }
        while self.rewrite.is_none()
            && let Some(oldest) = self
                .sealed
                .pop_front_if(|oldest| self.live.of(oldest.file.number()) == 0)
        {
            self.shared.segments.remove(oldest.file.number());
            self.allocator.dispose(oldest.file)?;
        }
        if self.rewrite.is_none()
            && let Some(oldest) = self.sealed.front()
        {
            let used: u64 = self.sealed.iter().map(|sealed| sealed.end).sum();
            let live: u64 = self
                .sealed
                .iter()
                .map(|sealed| self.live.of(sealed.file.number()))
                .sum();
            let dead = used.saturating_sub(live);
            if dead > self.options.garbage_bytes_max && dead > live {
                self.rewrite = Some(Rewrite::new(Arc::clone(&oldest.file), &self.groups));
            }
        }
        self.count_segments();
        Ok(())
    }

    fn count_segments(&self) {
        self.shared
            .counters
            .live_bytes
            .store(self.live.total(), Relaxed);
        self.shared
            .counters
            .segments
            .store(self.shared.segments.len() as u64, Relaxed);
    }

    /// Writes what is left, and an empty batch: it says that all before it was durable.
    fn close(
        &mut self,
        writing: &mut Vec<Request<E>>,
        committed: Vec<Committed<E>>,
    ) -> Result<(), LogError> {
        self.rewrite = None;
        self.write(writing, committed)?;
        self.batch.start(self.active.epoch(), self.offset);
        self.write_batch()
    }
}
