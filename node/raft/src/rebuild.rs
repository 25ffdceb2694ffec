//! A group whose majority is gone for good is begun anew by one replica that is left: an entry
//! behind the last one of its log says that it alone is the group, under a new number.
//!
//! Owner of no state: it works on the log of a replica that does not run. Everything in the log
//! counts from then on, committed before or not: who could have committed it without this
//! replica, or something else in its place, is gone, and what a majority had is in the most
//! advanced log that is left if it is anywhere.
//!
//! Invariants: the new term is above every term that a lost replica can have reached; the old
//! number never votes again, so that frames and votes for it concern no group.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use carillon_core::ids::ShardId;
use carillon_log::GroupLog;
use openraft::impls::leader_id_adv::LeaderId;
use openraft::storage::{RaftLogReader, RaftLogStorage};
use openraft::{Entry as RaftEntry, EntryPayload, Vote as RaftVote};

use crate::applied::AppliedRecord;
use crate::codec::CodecError;
use crate::log::{LogRecord, ShardLog};
use crate::types::{LogId, Member, Membership, Position, ReplicaNode, Vote};

/// How many terms the lost replicas are given that this one has not heard of. A term takes an
/// election.
const TERMS_UNHEARD_OF: u64 = 1 << 20;
/// How many entries from the end of a log are looked at for the last one with a payload: blank
/// ones and memberships are few.
const ENTRIES_LOOKED_AT: u64 = 64;

/// Why a log could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The log or the record of the state cannot be read.
    #[error("what replica {replica} of shard {shard} has cannot be read: {source}; it cannot be the one to begin anew from", shard = shard.0)]
    Unreadable {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: u64,
        /// What is wrong.
        source: io::Error,
    },
    /// There is nothing to begin from.
    #[error("replica {replica} of shard {shard} is empty; nothing can be begun anew from it", shard = shard.0)]
    Empty {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: u64,
    },
}

/// What a replica has, whether it runs or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEnd {
    /// The last entry, of the log or of the state if that goes further.
    pub last: Option<Position>,
    /// The last entry that is known to be committed; what follows may be or not.
    pub committed: Option<Position>,
    /// The payload of the last entry that has one, if it is near the end.
    pub payload: Option<Bytes>,
}

fn corrupt(error: CodecError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn applied_last(applied: Option<Bytes>) -> io::Result<Option<LogId>> {
    let record = applied.map(AppliedRecord::decode).transpose();
    Ok(record.map_err(corrupt)?.and_then(|record| record.last))
}

async fn log_last(log: &mut ShardLog) -> io::Result<Option<LogId>> {
    Ok(log.get_log_state().await?.last_log_id)
}

/// Reads where the log and the state of a replica end. `applied` is its machine's record.
///
/// # Errors
/// When something cannot be read.
pub async fn log_end(log: GroupLog<LogRecord>, applied: Option<Bytes>) -> io::Result<LogEnd> {
    let mut log = ShardLog::new(log);
    let applied = applied_last(applied)?;
    let stored = log_last(&mut log).await?;
    let committed = log.read_committed().await?;
    let next = stored.map_or(0, |last| last.index + 1);
    let mut payload = None;
    // One by one: entries may be large.
    for index in (next.saturating_sub(ENTRIES_LOOKED_AT)..next).rev() {
        let entry = log.try_get_log_entries(index..index + 1).await?.pop();
        let Some(entry) = entry else { break };
        if let EntryPayload::Normal(found) = entry.payload {
            payload = Some(found.0);
            break;
        }
    }
    Ok(LogEnd {
        last: stored.max(applied).as_ref().map(Position::of),
        committed: committed.max(applied).as_ref().map(Position::of),
        payload,
    })
}

/// Begins the group anew on the log of the replica that is left: `me` is its new number, and all
/// of the group. Durable when this returns; does nothing when it was done before. The replica
/// must not run; started as `me` it leads after an election of one vote.
///
/// # Errors
/// When something cannot be read or written, or there is nothing.
pub async fn rebuild(
    shard: ShardId,
    me: Member,
    log: GroupLog<LogRecord>,
    applied: Option<Bytes>,
) -> Result<Position, RebuildError> {
    let replica = me.replica.0;
    let last = begin_anew(me, ShardLog::new(log), applied).await;
    let last = last.map_err(|source| RebuildError::Unreadable {
        shard,
        replica,
        source,
    })?;
    last.ok_or(RebuildError::Empty { shard, replica })
}

async fn begin_anew(
    me: Member,
    mut log: ShardLog,
    applied: Option<Bytes>,
) -> io::Result<Option<Position>> {
    let replica = me.replica.0;
    let applied = applied_last(applied)?;
    let stored = log_last(&mut log).await?;
    let Some(last) = stored.max(applied) else {
        return Ok(None);
    };
    if last.leader_id.node_id == replica {
        return Ok(Some(Position::of(&last)));
    }
    let voted = log.read_vote().await?;
    let voted = voted.map_or(0, |vote: Vote| vote.leader_id.term);
    let leader_id = LeaderId {
        term: voted.max(last.leader_id.term) + TERMS_UNHEARD_OF,
        node_id: replica,
    };
    // The vote first: no log has entries of a leader that its vote does not know.
    let vote = RaftVote {
        leader_id,
        committed: false,
    };
    log.save_vote(&vote).await?;
    carillon_log::failpoint::hit("raft.rebuild.voted");
    if stored < Some(last) {
        // A snapshot went further than the log.
        log.purge(last).await?;
    }
    let alone = BTreeSet::from([replica]);
    let node = ReplicaNode { node: me.node.0 };
    let membership = Membership::new(vec![alone], BTreeMap::from([(replica, node)]))
        .map_err(io::Error::other)?;
    let log_id = LogId::new(leader_id, last.index + 1);
    let entry = RaftEntry {
        log_id,
        payload: EntryPayload::Membership(membership),
    };
    log.append_durably(entry).await?;
    Ok(Some(Position::of(&log_id)))
}
