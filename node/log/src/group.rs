//! A group's log as its Raft core sees it: changes are visible at once (the vote: once durable)
//! and queued for the writer in the same order.
//!
//! Owner of the state: the group's lock. Invariants: `first ≤ tail_first ≤ next` and
//! `first ≤ durable_next`; entries from `tail_first` on are in memory; entries before it are
//! durable, and nothing that is queued will change them but a purge.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::engine::Shared;
use crate::index::Written;
use crate::queue::{Callback, Operation, Request};
use crate::stats::Counters;
use crate::{GroupId, LogEntry, LogError};

/// Bytes that one call may carry, by weight.
const CALL_BYTES_MAX: u64 = 512 << 20;

pub(crate) struct Group<E> {
    pub(crate) id: GroupId,
    pub(crate) state: Mutex<GroupState<E>>,
}

pub(crate) struct GroupState<E> {
    pub(crate) first: u64,
    pub(crate) tail_first: u64,
    pub(crate) tail: VecDeque<E>,
    pub(crate) tail_bytes: u64,
    /// Entries below this are durable.
    durable_next: u64,
    /// How often the log was truncated; tells a completion whether the entries it is about are
    /// still the ones of the visible log.
    generation: u64,
    vote: Option<Bytes>,
    committed: Option<Bytes>,
    purged: Option<(u64, Bytes)>,
    removed: bool,
    pub(crate) written: Written,
}

impl<E: LogEntry> Group<E> {
    /// A group with what recovery found.
    pub(crate) fn recovered(id: GroupId, written: Written) -> Arc<Self> {
        let state = GroupState {
            first: written.first(),
            tail_first: written.next(),
            tail: VecDeque::new(),
            tail_bytes: 0,
            durable_next: written.next(),
            generation: 0,
            vote: written.vote.clone(),
            committed: written.committed.clone(),
            purged: written.purged.clone(),
            removed: false,
            written,
        };
        Arc::new(Group {
            id,
            state: Mutex::new(state),
        })
    }
}

impl<E: LogEntry> GroupState<E> {
    pub(crate) fn next(&self) -> u64 {
        self.tail_first + self.tail.len() as u64
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.removed
    }

    fn push(&mut self, entry: E, counters: &Counters) {
        let bytes = entry.weight_bytes() as u64;
        self.tail_bytes += bytes;
        counters.memory_tail_bytes.fetch_add(bytes, Relaxed);
        self.tail.push_back(entry);
    }

    fn forget(&mut self, entry: Option<E>, counters: &Counters) -> u64 {
        let bytes = entry.map_or(0, |entry| entry.weight_bytes() as u64);
        self.tail_bytes -= bytes;
        counters.memory_tail_bytes.fetch_sub(bytes, Relaxed);
        bytes
    }

    fn append(&mut self, id: GroupId, entries: &[E], counters: &Counters) -> Result<(), LogError> {
        let Some(start) = entries.first().map(LogEntry::index) else {
            return Ok(());
        };
        let empty = self.first == self.next();
        if !empty || start < self.first {
            self.require_index(id, self.next(), start)?;
        }
        for (expected, entry) in (start..).zip(entries) {
            self.require_index(id, expected, entry.index())?;
        }
        if empty {
            (self.first, self.tail_first, self.durable_next) = (start, start, start);
        }
        entries
            .iter()
            .for_each(|entry| self.push(entry.clone(), counters));
        Ok(())
    }

    fn require_index(&self, group: GroupId, expected: u64, found: u64) -> Result<(), LogError> {
        if expected == found {
            Ok(())
        } else {
            Err(LogError::NotContiguous {
                group,
                expected,
                found,
            })
        }
    }

    fn truncate_after(&mut self, after: Option<u64>, counters: &Counters) {
        let next = after
            .map_or(0, |index| index.saturating_add(1))
            .clamp(self.first, self.next());
        while self.next() > next {
            match self.tail.pop_back() {
                Some(entry) => _ = self.forget(Some(entry), counters),
                None => self.tail_first = next,
            }
        }
        self.durable_next = self.durable_next.min(next);
        self.generation += 1;
    }

    fn purge(&mut self, upto: u64, log_id: Bytes, counters: &Counters) {
        self.first = self.first.max(upto.saturating_add(1));
        while self.tail_first < self.first {
            match self.tail.pop_front() {
                Some(entry) => {
                    self.forget(Some(entry), counters);
                    self.tail_first += 1;
                }
                None => self.tail_first = self.first,
            }
        }
        self.durable_next = self.durable_next.max(self.first);
        self.purged = Some((upto, log_id));
    }

    pub(crate) fn remove(&mut self, counters: &Counters) {
        counters
            .memory_tail_bytes
            .fetch_sub(self.tail_bytes, Relaxed);
        self.tail_bytes = 0;
        self.tail.clear();
        self.tail_first = self.first;
        self.removed = true;
    }

    /// A change that was made visible in `generation`, and ended the log at `next`, is durable.
    pub(crate) fn durable(&mut self, generation: u64, next: u64) {
        if self.generation == generation {
            self.durable_next = self.durable_next.max(next);
        }
    }

    pub(crate) fn publish_vote(&mut self, vote: Bytes) {
        self.vote = Some(vote);
    }

    /// Bytes of memory that eviction could free.
    pub(crate) fn evictable_bytes(&self) -> u64 {
        if self.durable_next == self.next() {
            return self.tail_bytes;
        }
        let durable = self.durable_next.saturating_sub(self.tail_first);
        self.tail
            .iter()
            .take(durable as usize)
            .map(|entry| entry.weight_bytes() as u64)
            .sum()
    }

    /// Drops the oldest durable entries from memory until `bytes` are freed.
    pub(crate) fn evict(&mut self, bytes: u64, counters: &Counters) {
        let mut freed = 0;
        while freed < bytes && self.tail_first < self.durable_next {
            let Some(entry) = self.tail.pop_front() else {
                return;
            };
            freed += self.forget(Some(entry), counters);
            self.tail_first += 1;
        }
    }
}

/// A handle to the log of one group. Clones share it.
///
/// Calls that take `on_durable` run it on the writer thread after the `fdatasync` that covers
/// them, in the order of the calls over all groups; it must be cheap and must not call anything
/// that waits for the log. When the call itself returns an error, `on_durable` is dropped uncalled.
/// Calls block while `queue_bytes_max` bytes wait for the writer.
pub struct GroupLog<E: LogEntry> {
    pub(crate) group: Arc<Group<E>>,
    pub(crate) shared: Arc<Shared<E>>,
}

impl<E: LogEntry> Clone for GroupLog<E> {
    fn clone(&self) -> Self {
        GroupLog {
            group: Arc::clone(&self.group),
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<E: LogEntry> std::fmt::Debug for GroupLog<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupLog")
            .field("group", &self.group.id)
            .finish_non_exhaustive()
    }
}

impl<E: LogEntry> GroupLog<E> {
    /// The group's id.
    pub fn id(&self) -> GroupId {
        self.group.id
    }

    /// Appends entries that continue the log. They are readable when this returns, before they
    /// are durable. An empty log takes any first index above what is purged.
    ///
    /// # Errors
    /// `NotContiguous` or `TooLarge` (above 512 MiB) change nothing.
    pub fn append(
        &self,
        entries: Vec<E>,
        on_durable: impl FnOnce(Result<(), LogError>) + Send + 'static,
    ) -> Result<(), LogError> {
        let bytes = entries
            .iter()
            .map(|entry| entry.weight_bytes() as u64)
            .sum();
        self.submit(bytes, Some(Box::new(on_durable)), |id, state, counters| {
            state.append(id, &entries, counters)?;
            Ok(Operation::Append {
                entries,
                generation: state.generation,
            })
        })
    }

    /// Saves the vote (opaque to the log). Readers see it only after it is durable.
    pub fn save_vote(
        &self,
        vote: Bytes,
        on_durable: impl FnOnce(Result<(), LogError>) + Send + 'static,
    ) -> Result<(), LogError> {
        self.submit(vote.len() as u64, Some(Box::new(on_durable)), |_, _, _| {
            Ok(Operation::Vote(vote))
        })
    }

    /// The last durable vote.
    pub fn vote(&self) -> Option<Bytes> {
        self.group.state.lock().vote.clone()
    }

    /// Saves the committed log id (opaque to the log): visible at once, written along with the
    /// next write of any group, never a reason for one.
    pub fn save_committed(&self, committed: Bytes) -> Result<(), LogError> {
        self.check_bytes(committed.len() as u64)?;
        self.shared.poison.check()?;
        let mut state = self.usable_state()?;
        state.committed = Some(committed.clone());
        let saved =
            self.shared
                .queue
                .set_committed(self.group.id, Arc::clone(&self.group), committed);
        if saved {
            Ok(())
        } else {
            Err(self.shared.closed_error())
        }
    }

    /// The last saved committed log id.
    pub fn committed(&self) -> Option<Bytes> {
        self.group.state.lock().committed.clone()
    }

    /// Removes all entries with an index above `after`; all entries for `None`.
    pub fn truncate_after(
        &self,
        after: Option<u64>,
        on_durable: impl FnOnce(Result<(), LogError>) + Send + 'static,
    ) -> Result<(), LogError> {
        self.submit(0, Some(Box::new(on_durable)), |_, state, counters| {
            state.truncate_after(after, counters);
            Ok(Operation::Truncate {
                after,
                next: state.next(),
                generation: state.generation,
            })
        })
    }

    /// Removes all entries up to `upto` (which may be beyond the last one) and remembers its log
    /// id (opaque to the log). Does not wait; a crash may bring the entries back. Changes nothing
    /// when at least as much is purged already.
    pub fn purge(&self, upto: u64, log_id: Bytes) -> Result<(), LogError> {
        self.submit(log_id.len() as u64, None, |_, state, counters| {
            let (upto, log_id) = match &state.purged {
                Some((purged, purged_id)) if *purged >= upto => (*purged, purged_id.clone()),
                _ => (upto, log_id),
            };
            state.purge(upto, log_id.clone(), counters);
            Ok(Operation::Purge { upto, log_id })
        })
    }

    /// The last purged index and its log id.
    pub fn purged(&self) -> Option<(u64, Bytes)> {
        self.group.state.lock().purged.clone()
    }

    /// The index of the first entry; `None` when the log is empty.
    pub fn first_index(&self) -> Option<u64> {
        let state = self.group.state.lock();
        (state.first < state.next()).then_some(state.first)
    }

    /// The index of the last entry; `None` when the log is empty.
    pub fn last_index(&self) -> Option<u64> {
        let state = self.group.state.lock();
        (state.first < state.next()).then(|| state.next() - 1)
    }

    /// The index of the first of the last entries that together have at most `bytes_max` bytes on
    /// disk; behind the last one when not even that has so few. Entries that are not on disk yet
    /// are not counted. Takes as long as there are such entries.
    pub fn first_of_last(&self, bytes_max: u64) -> u64 {
        self.group.state.lock().written.first_of_last(bytes_max)
    }

    /// The last entry; `None` when the log is empty.
    ///
    /// # Errors
    /// When it had to be read from disk and could not.
    pub fn last_entry(&self) -> Result<Option<E>, LogError> {
        match self.last_index() {
            Some(last) => Ok(self.entries(last..last.saturating_add(1))?.pop()),
            None => Ok(None),
        }
    }

    /// The entries of `range` that exist. Reads the disk for those no longer in memory.
    pub fn entries(&self, range: Range<u64>) -> Result<Vec<E>, LogError> {
        self.read(range, u64::MAX)
    }

    /// The first entries of `start..end`, up to about `bytes_max` bytes but at least one, unless
    /// none exists.
    pub fn entries_limited(
        &self,
        start: u64,
        end: u64,
        bytes_max: u64,
    ) -> Result<Vec<E>, LogError> {
        self.read(start..end, bytes_max)
    }

    /// Bytes of this group's entries in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.group.state.lock().tail_bytes
    }

    fn check_bytes(&self, bytes: u64) -> Result<(), LogError> {
        if bytes <= CALL_BYTES_MAX {
            return Ok(());
        }
        Err(LogError::TooLarge {
            group: self.group.id,
            bytes,
            bytes_max: CALL_BYTES_MAX,
        })
    }

    fn usable_state(&self) -> Result<parking_lot::MutexGuard<'_, GroupState<E>>, LogError> {
        let state = self.group.state.lock();
        if state.removed {
            Err(LogError::GroupRemoved {
                group: self.group.id,
            })
        } else {
            Ok(state)
        }
    }

    /// Makes a change visible and queues it, both under the group's lock.
    fn submit(
        &self,
        bytes: u64,
        on_durable: Option<Callback>,
        change: impl FnOnce(GroupId, &mut GroupState<E>, &Counters) -> Result<Operation<E>, LogError>,
    ) -> Result<(), LogError> {
        self.check_bytes(bytes)?;
        self.shared.poison.check()?;
        self.shared.queue.wait_for_space();
        let mut state = self.usable_state()?;
        let operation = change(self.group.id, &mut state, &self.shared.counters)?;
        let request = Request {
            group: Arc::clone(&self.group),
            operation,
            on_durable,
            bytes,
        };
        self.shared
            .queue
            .push(request)
            .map_err(|_| self.shared.closed_error())
    }
}
