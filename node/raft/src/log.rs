//! openraft's log storage over a group of the node's log engine.
//!
//! Owner of no state: a handle to the group. Votes and entries reach the engine's one queue in
//! the order in which openraft hands them over, so they become durable in that order. A log that
//! fails poisons itself and its node ends the process; here the failure is only passed on, which
//! stops the group.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use bytes::{Bytes, BytesMut};
use carillon_log::{EntryDecodeError, GroupLog, LogEntry, LogError};
use futures_util::Stream;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use tokio::sync::oneshot;

use crate::codec;
use crate::types::{Entry, LogId, TypeConfig, Vote};

/// Bytes of entries that one read for replication or applying returns, unless the first entry
/// alone is larger.
const READ_BYTES_MAX: u64 = 1 << 20;
/// Bytes after which an append goes on in a further call to the engine.
const APPEND_BYTES_TARGET: usize = 4 << 20;
/// What an entry holds in memory besides its payload, in bytes.
const ENTRY_OVERHEAD_BYTES: usize = 96;
/// What a member of a membership entry holds in memory, in bytes.
const MEMBER_BYTES: usize = 64;

/// An entry of a Raft group as the log engine stores it.
#[derive(Debug, Clone)]
pub struct LogRecord(pub(crate) Entry);

impl LogEntry for LogRecord {
    fn index(&self) -> u64 {
        self.0.log_id.index
    }

    fn encode(&self, buffer: &mut BytesMut) {
        codec::put_entry(buffer, &self.0);
    }

    fn decode(buffer: &mut Bytes) -> Result<Self, EntryDecodeError> {
        let decode = |buffer: &mut Bytes| {
            let entry = codec::get_entry(buffer)?;
            codec::end(buffer, "entry")?;
            Ok(LogRecord(entry))
        };
        decode(buffer).map_err(|error: codec::CodecError| EntryDecodeError::new(error.to_string()))
    }

    fn weight_bytes(&self) -> usize {
        ENTRY_OVERHEAD_BYTES
            + match &self.0.payload {
                openraft::EntryPayload::Blank => 0,
                openraft::EntryPayload::Normal(payload) => payload.0.len(),
                openraft::EntryPayload::Membership(membership) => {
                    membership.nodes().count() * MEMBER_BYTES
                }
            }
    }
}

/// The log of one shard's replica.
#[derive(Clone)]
pub(crate) struct ShardLog {
    group: GroupLog<LogRecord>,
}

fn failed(error: LogError) -> io::Error {
    io::Error::other(error)
}

fn corrupt(error: codec::CodecError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl ShardLog {
    pub(crate) fn new(group: GroupLog<LogRecord>) -> ShardLog {
        ShardLog { group }
    }

    fn purged_log_id(&self) -> io::Result<Option<LogId>> {
        self.group
            .purged()
            .map(|(_, log_id)| codec::whole_log_id(log_id).map_err(corrupt))
            .transpose()
    }

    fn limited(&self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let records = self
            .group
            .entries_limited(start, end, READ_BYTES_MAX)
            .map_err(failed)?;
        Ok(records.into_iter().map(|record| record.0).collect())
    }

    /// Runs an operation of the engine and waits until it is durable.
    async fn durable(
        &self,
        operation: impl FnOnce(Box<dyn FnOnce(Result<(), LogError>) + Send>) -> Result<(), LogError>,
    ) -> io::Result<()> {
        let (done, durable) = oneshot::channel();
        // The receiver is gone only when the caller no longer waits.
        operation(Box::new(move |result| drop(done.send(result)))).map_err(failed)?;
        match durable.await {
            Ok(result) => result.map_err(failed),
            Err(_) => Err(failed(LogError::Closed)),
        }
    }
}

impl ShardLog {
    /// Appends one entry behind the last, and waits until it is durable.
    pub(crate) async fn append_durably(&self, entry: Entry) -> io::Result<()> {
        self.durable(|done| self.group.append(vec![LogRecord(entry)], done))
            .await
    }
}

/// The half-open range of indexes that bounds mean.
fn half_open(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(index) => index.saturating_add(1),
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for ShardLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = half_open(&range);
        if start >= end {
            return Ok(Vec::new());
        }
        let records = self.group.entries(start..end).map_err(failed)?;
        Ok(records.into_iter().map(|record| record.0).collect())
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        self.limited(start, end)
    }

    /// Reads in steps bounded in bytes, not the whole range at once.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = half_open(&range);
        let log = self.clone();
        let mut next = start;
        let mut read = Vec::new().into_iter();
        let mut ended = false;
        futures_util::stream::iter(std::iter::from_fn(move || {
            if let Some(entry) = read.next() {
                return Some(Ok(entry));
            }
            if ended || next >= end {
                return None;
            }
            match log.limited(next, end) {
                Ok(entries) => {
                    next = next.saturating_add(entries.len() as u64);
                    ended = entries.is_empty();
                    read = entries.into_iter();
                    read.next().map(Ok)
                }
                Err(error) => {
                    ended = true;
                    Some(Err(error))
                }
            }
        }))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        self.group
            .vote()
            .map(|vote| codec::whole_vote(vote).map_err(corrupt))
            .transpose()
    }
}

impl RaftLogStorage<TypeConfig> for ShardLog {
    type LogReader = ShardLog;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let last_purged_log_id = self.purged_log_id()?;
        let last = self.group.last_entry().map_err(failed)?;
        let last_log_id = last.map(|record| record.0.log_id).or(last_purged_log_id);
        Ok(LogState {
            last_purged_log_id,
            last_log_id,
        })
    }

    async fn get_log_reader(&mut self) -> ShardLog {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let vote = codec::encoded(|buffer| codec::put_vote(buffer, vote));
        self.durable(|done| self.group.save_vote(vote, done)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        match committed {
            Some(committed) => {
                let committed = codec::encoded(|buffer| codec::put_log_id(buffer, &committed));
                self.group.save_committed(committed).map_err(failed)
            }
            None => Ok(()),
        }
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        self.group
            .committed()
            .map(|log_id| codec::whole_log_id(log_id).map_err(corrupt))
            .transpose()
    }

    async fn append<I>(
        &mut self,
        entries: I,
        flushed: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        let mut bytes = 0;
        for entry in entries {
            let record = LogRecord(entry);
            bytes += record.weight_bytes();
            records.push(record);
            if bytes >= APPEND_BYTES_TARGET {
                bytes = 0;
                // Calls complete in order, and a failure fails all that follow: the last tells.
                self.group
                    .append(std::mem::take(&mut records), |_| ())
                    .map_err(failed)?;
            }
        }
        let done = move |result: Result<(), LogError>| flushed.io_completed(result.map_err(failed));
        self.group.append(records, done).map_err(failed)
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let after = last_log_id.map(|log_id| log_id.index);
        self.durable(|done| self.group.truncate_after(after, done))
            .await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let encoded = codec::encoded(|buffer| codec::put_log_id(buffer, &log_id));
        self.group.purge(log_id.index, encoded).map_err(failed)
    }
}
