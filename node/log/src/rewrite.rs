//! Moving the live entries of the oldest segment forward, so that an idle or lagging group pins
//! no segments: a bounded amount with each write.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::BufMut;

use crate::format::{self, BatchBuffer, Location};
use crate::group::Group;
use crate::segment::SegmentFile;
use crate::{GroupId, LogEntry, LogError};

/// Entries that one write moves at most.
const REWRITE_ENTRIES_MAX: usize = 4096;

/// An entry that was put into a batch at a new place.
pub(crate) struct Moved<E> {
    pub(crate) group: Arc<Group<E>>,
    pub(crate) index: u64,
    pub(crate) location: Location,
}

/// The emptying of one segment. Owner: the writer thread.
pub(crate) struct Rewrite<E> {
    source: Arc<SegmentFile>,
    pending: VecDeque<(Arc<Group<E>>, Range<u64>)>,
}

impl<E: LogEntry> Rewrite<E> {
    /// Finds the live entries of `source`.
    pub(crate) fn new(source: Arc<SegmentFile>, groups: &BTreeMap<GroupId, Arc<Group<E>>>) -> Self {
        let mut pending = VecDeque::new();
        for group in groups.values() {
            let ranges = group.state.lock().written.ranges_in(source.number());
            pending.extend(ranges.into_iter().map(|range| (Arc::clone(group), range)));
        }
        Rewrite { source, pending }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.pending.is_empty()
    }

    /// Adds the next entries to `batch`, after everything else in it. Those that are purged,
    /// truncated or replaced by now are skipped.
    pub(crate) fn add_to(
        &mut self,
        batch: &mut BatchBuffer,
        bytes_max: u64,
    ) -> Result<Vec<Moved<E>>, LogError> {
        let mut moved = Vec::new();
        let mut bytes = 0;
        while bytes < bytes_max
            && moved.len() < REWRITE_ENTRIES_MAX
            && let Some((group, range)) = self.pending.front_mut()
        {
            let Some(index) = range.next() else {
                self.pending.pop_front();
                continue;
            };
            let source = group.state.lock().written.location(index);
            let Some(source) = source.filter(|source| source.segment == self.source.number())
            else {
                continue;
            };
            let payload = self.source.read_payload(source)?;
            let (_, _, encoded) =
                format::split_entry(&payload).ok_or_else(|| LogError::Corrupt {
                    path: self.source.path().to_owned(),
                    offset: u64::from(source.offset),
                    detail: format!("expected entry {index} of group {}", group.id),
                })?;
            let location = batch.record(|buffer| {
                format::put_entry_prefix(buffer, group.id, index, true);
                buffer.put_slice(encoded);
            });
            bytes += location.record_bytes();
            moved.push(Moved {
                group: Arc::clone(group),
                index,
                location,
            });
        }
        while self
            .pending
            .front()
            .is_some_and(|(_, range)| range.is_empty())
        {
            self.pending.pop_front();
        }
        Ok(moved)
    }
}
