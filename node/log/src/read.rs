//! Reading entries: from the tail in memory, and from the segment files what is older.
//!
//! Places and files are collected under the group's lock, the files are read outside it.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::format::{self, Location};
use crate::group::GroupLog;
use crate::segment::SegmentFile;
use crate::{LogEntry, LogError};

/// Records this near to each other in a file are read with one call …
const READ_GAP_BYTES_MAX: u64 = 16 * 1024;
/// … up to this many bytes (one record may be larger).
const READ_RUN_BYTES_MAX: u64 = 1024 * 1024;

/// Records of one file that are read with one call.
struct Run {
    file: Arc<SegmentFile>,
    start: u64,
    end: u64,
    records: Vec<(u64, Location)>,
}

impl Run {
    fn takes(&self, location: Location) -> bool {
        let offset = u64::from(location.offset);
        self.file.number() == location.segment
            && offset >= self.end
            && offset - self.end <= READ_GAP_BYTES_MAX
            && location.end() - self.start <= READ_RUN_BYTES_MAX
    }
}

impl<E: LogEntry> GroupLog<E> {
    pub(crate) fn read(&self, range: Range<u64>, bytes_max: u64) -> Result<Vec<E>, LogError> {
        self.shared.poison.check()?;
        let state = self.group.state.lock();
        let range = range.start.max(state.first)..range.end.min(state.next());
        let mut bytes = 0;
        let mut runs: Vec<Run> = Vec::new();
        for index in range.start..range.end.min(state.tail_first) {
            let location = state
                .written
                .location(index)
                .expect("entries leave memory after they are on disk");
            if bytes > 0 && bytes + u64::from(location.len) > bytes_max {
                drop(state);
                return self.read_runs(&runs);
            }
            bytes += u64::from(location.len);
            match runs.last_mut() {
                Some(run) if run.takes(location) => {
                    run.end = location.end();
                    run.records.push((index, location));
                }
                _ => runs.push(Run {
                    file: self.shared.segments.get(location.segment),
                    start: u64::from(location.offset),
                    end: location.end(),
                    records: vec![(index, location)],
                }),
            }
        }
        let mut newest = Vec::new();
        for index in range.start.max(state.tail_first)..range.end {
            let entry = &state.tail[(index - state.tail_first) as usize];
            let entry_bytes = entry.weight_bytes() as u64;
            if bytes > 0 && bytes.saturating_add(entry_bytes) > bytes_max {
                break;
            }
            bytes += entry_bytes;
            newest.push(entry.clone());
        }
        drop(state);
        if runs.is_empty() {
            return Ok(newest);
        }
        let mut entries = self.read_runs(&runs)?;
        entries.append(&mut newest);
        Ok(entries)
    }

    fn read_runs(&self, runs: &[Run]) -> Result<Vec<E>, LogError> {
        let mut entries = Vec::with_capacity(runs.iter().map(|run| run.records.len()).sum());
        for run in runs {
            let len = usize::try_from(run.end - run.start).expect("runs fit into memory");
            let data = run.file.read_at(run.start, len)?;
            for (index, location) in &run.records {
                let payload = run.file.payload_in(&data, run.start, *location)?;
                entries.push(self.decode(*index, payload, run, *location)?);
            }
        }
        Ok(entries)
    }

    fn decode(
        &self,
        index: u64,
        payload: &[u8],
        run: &Run,
        location: Location,
    ) -> Result<E, LogError> {
        let group = self.group.id;
        let wrong_entry = || LogError::Corrupt {
            path: run.file.path().to_owned(),
            offset: u64::from(location.offset),
            detail: format!("expected entry {index} of group {group}"),
        };
        let encoded = match format::split_entry(payload) {
            Some((found_group, found_index, encoded))
                if (found_group, found_index) == (group, index) =>
            {
                encoded
            }
            _ => return Err(wrong_entry()),
        };
        // A copy of its own, so that an entry that is kept does not keep the whole run in memory.
        let mut encoded = Bytes::copy_from_slice(encoded);
        let entry = E::decode(&mut encoded).map_err(|source| LogError::Decode {
            group,
            index,
            source,
        })?;
        if entry.index() == index {
            Ok(entry)
        } else {
            Err(wrong_entry())
        }
    }
}
