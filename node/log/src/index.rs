//! What of one group is on disk, in the order of writing: the place of each live entry, and the
//! vote, committed and purged values. Changed by the writer thread (and by recovery), read under
//! the group's lock when an entry is no longer in memory.
//!
//! Invariant: `locations[i]` is the place of entry `first + i`; the bytes of all live entries are
//! counted in `LiveBytes` under their segment.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::format::{Checkpoint, Location, SegmentNumber};

/// Bytes of live entries in each segment. Owner: the writer thread.
#[derive(Debug, Default)]
pub(crate) struct LiveBytes {
    by_segment: BTreeMap<SegmentNumber, u64>,
    total: u64,
}

impl LiveBytes {
    fn add(&mut self, location: Location) {
        if location != Location::MISSING {
            *self.by_segment.entry(location.segment).or_default() += location.record_bytes();
            self.total += location.record_bytes();
        }
    }

    fn remove(&mut self, location: Location) {
        if location == Location::MISSING {
            return;
        }
        let bytes = self
            .by_segment
            .get_mut(&location.segment)
            .expect("live entries are counted");
        *bytes = bytes
            .checked_sub(location.record_bytes())
            .expect("live entries are counted once");
        self.total -= location.record_bytes();
        if *bytes == 0 {
            self.by_segment.remove(&location.segment);
        }
    }

    pub(crate) fn of(&self, segment: SegmentNumber) -> u64 {
        self.by_segment.get(&segment).copied().unwrap_or(0)
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }
}

/// The written state of a group.
#[derive(Debug, Default)]
pub(crate) struct Written {
    first: u64,
    locations: VecDeque<Location>,
    pub(crate) vote: Option<Bytes>,
    pub(crate) committed: Option<Bytes>,
    pub(crate) purged: Option<(u64, Bytes)>,
}

impl Written {
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    pub(crate) fn next(&self) -> u64 {
        self.first + self.locations.len() as u64
    }

    pub(crate) fn location(&self, index: u64) -> Option<Location> {
        let at = usize::try_from(index.checked_sub(self.first)?).ok()?;
        self.locations.get(at).copied()
    }

    /// The first of the last entries that together have at most so many bytes on disk.
    pub(crate) fn first_of_last(&self, bytes_max: u64) -> u64 {
        let mut bytes = 0;
        let fit = self.locations.iter().rev().take_while(|location| {
            bytes += location.record_bytes();
            bytes <= bytes_max
        });
        self.next() - fit.count() as u64
    }

    /// Appends entry `index`; false when it does not continue the log.
    pub(crate) fn append(&mut self, index: u64, location: Location, live: &mut LiveBytes) -> bool {
        if self.locations.is_empty() && index >= self.first {
            self.first = index;
        }
        let contiguous = index == self.next();
        if contiguous {
            self.locations.push_back(location);
            live.add(location);
        }
        contiguous
    }

    /// Entry `index` was moved to `location`; false when the entry is not live.
    pub(crate) fn relocate(
        &mut self,
        index: u64,
        location: Location,
        live: &mut LiveBytes,
    ) -> bool {
        let at = index
            .checked_sub(self.first)
            .and_then(|at| usize::try_from(at).ok());
        let Some(slot) = at.and_then(|at| self.locations.get_mut(at)) else {
            return false;
        };
        live.remove(std::mem::replace(slot, location));
        live.add(location);
        true
    }

    pub(crate) fn truncate_after(&mut self, after: Option<u64>, live: &mut LiveBytes) {
        let keep = after.map_or(0, |index| {
            index.saturating_add(1).saturating_sub(self.first)
        });
        while self.locations.len() as u64 > keep {
            let location = self.locations.pop_back().expect("longer than what is kept");
            live.remove(location);
        }
    }

    pub(crate) fn purge(&mut self, upto: u64, log_id: Bytes, live: &mut LiveBytes) {
        while self.first <= upto
            && let Some(location) = self.locations.pop_front()
        {
            live.remove(location);
            self.first += 1;
        }
        self.first = self.first.max(upto.saturating_add(1));
        self.purged = Some((upto, log_id));
    }

    pub(crate) fn clear(&mut self, live: &mut LiveBytes) {
        self.locations
            .drain(..)
            .for_each(|location| live.remove(location));
        *self = Written::default();
    }

    /// The live entries of `segment`, as index ranges.
    pub(crate) fn ranges_in(&self, segment: SegmentNumber) -> Vec<std::ops::Range<u64>> {
        let mut ranges: Vec<std::ops::Range<u64>> = Vec::new();
        for (index, location) in (self.first..).zip(&self.locations) {
            if location.segment != segment {
                continue;
            }
            match ranges.last_mut() {
                Some(range) if range.end == index => range.end += 1,
                _ => ranges.push(index..index + 1),
            }
        }
        ranges
    }

    pub(crate) fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            first: self.first,
            next: self.next(),
            vote: self.vote.clone(),
            committed: self.committed.clone(),
            purged: self.purged.clone(),
        }
    }

    /// The state that the checkpoint at the start of the oldest segment describes: the entries
    /// themselves are elsewhere, and must turn up moved, or be purged.
    pub(crate) fn from_checkpoint(checkpoint: Checkpoint) -> Option<Self> {
        let entries = usize::try_from(checkpoint.next.checked_sub(checkpoint.first)?).ok()?;
        Some(Written {
            first: checkpoint.first,
            locations: std::iter::repeat_n(Location::MISSING, entries).collect(),
            vote: checkpoint.vote,
            committed: checkpoint.committed,
            purged: checkpoint.purged,
        })
    }

    /// The first entry that was to turn up and did not.
    pub(crate) fn first_missing(&self) -> Option<u64> {
        let at = self
            .locations
            .iter()
            .position(|location| *location == Location::MISSING)?;
        Some(self.first + at as u64)
    }
}
