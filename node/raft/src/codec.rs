//! Bytes of what this crate stores and sends: log ids, votes, memberships, entries, requests.
//!
//! Little-endian, fixed-width. Owner of no state. The bytes come from the network or the disk:
//! every read is checked against what is left, every count against what could fit, and nothing
//! panics. A decoder that takes a whole message refuses bytes behind it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::EntryPayload;
use openraft::impls::leader_id_adv::LeaderId;

use crate::types::{
    AppendRequest, AppendResponse, Entry, LogId, Membership, Payload, ReplicaNode,
    StoredMembership, TransferRequest, Vote, VoteRequest, VoteResponse,
};

/// Members that one membership may name. Far above any use; bounds what a decoder allocates.
const MEMBERS_MAX: usize = 1024;
/// Configurations of a joint membership.
const CONFIGURATIONS_MAX: usize = 8;
/// Entries of one append request (see `max_payload_entries`).
const ENTRIES_MAX: usize = 65_536;

/// Why bytes are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The bytes end too early.
    #[error("{what} is cut short")]
    Short {
        /// What was being read.
        what: &'static str,
    },
    /// A value that no encoder writes.
    #[error("{what} has the unknown tag {tag}")]
    Tag {
        /// What was being read.
        what: &'static str,
        /// The value found.
        tag: u8,
    },
    /// A count over its limit.
    #[error("{what} has {count} elements, at most {max} are allowed")]
    Count {
        /// What was being read.
        what: &'static str,
        /// The count found.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// A membership in which a voter has no node, or a configuration no voter.
    #[error("the membership is not valid")]
    Membership,
    /// Bytes behind the end.
    #[error("{what} has {count} bytes behind its end")]
    Trailing {
        /// What was being read.
        what: &'static str,
        /// The bytes left.
        count: usize,
    },
}

type Result<T> = std::result::Result<T, CodecError>;

macro_rules! checked_get {
    ($name:ident, $type:ty, $read:ident) => {
        fn $name(buffer: &mut Bytes, what: &'static str) -> Result<$type> {
            if buffer.len() < size_of::<$type>() {
                return Err(CodecError::Short { what });
            }
            Ok(buffer.$read())
        }
    };
}
checked_get!(u8_of, u8, get_u8);
checked_get!(u32_of, u32, get_u32_le);
checked_get!(u64_of, u64, get_u64_le);

/// A count, which is refused when it is over `max` or when so many elements of at least
/// `element_bytes` each can not be in what is left.
fn count_of(
    buffer: &mut Bytes,
    what: &'static str,
    max: usize,
    element_bytes: usize,
) -> Result<usize> {
    let count = u32_of(buffer, what)? as usize;
    if count > max {
        return Err(CodecError::Count { what, count, max });
    }
    if count * element_bytes > buffer.len() {
        return Err(CodecError::Short { what });
    }
    Ok(count)
}

fn put_count(buffer: &mut BytesMut, count: usize) {
    // Counts are bounded far below (members) or by the frame (entries, bytes).
    buffer.put_u32_le(u32::try_from(count).unwrap_or(u32::MAX));
}

fn bool_of(buffer: &mut Bytes, what: &'static str) -> Result<bool> {
    match u8_of(buffer, what)? {
        0 => Ok(false),
        1 => Ok(true),
        tag => Err(CodecError::Tag { what, tag }),
    }
}

/// Succeeds when nothing is left.
pub(crate) fn end(buffer: &Bytes, what: &'static str) -> Result<()> {
    if buffer.is_empty() {
        Ok(())
    } else {
        Err(CodecError::Trailing {
            what,
            count: buffer.len(),
        })
    }
}

pub(crate) fn put_u64(buffer: &mut BytesMut, value: u64) {
    buffer.put_u64_le(value);
}

pub(crate) fn get_u64(buffer: &mut Bytes) -> Result<u64> {
    u64_of(buffer, "number")
}

pub(crate) fn get_u8(buffer: &mut Bytes) -> Result<u8> {
    u8_of(buffer, "code")
}

pub(crate) fn put_log_id(buffer: &mut BytesMut, log_id: &LogId) {
    buffer.put_u64_le(log_id.leader_id.term);
    buffer.put_u64_le(log_id.leader_id.node_id);
    buffer.put_u64_le(log_id.index);
}

pub(crate) fn get_log_id(buffer: &mut Bytes) -> Result<LogId> {
    let term = u64_of(buffer, "log id")?;
    let node_id = u64_of(buffer, "log id")?;
    let index = u64_of(buffer, "log id")?;
    Ok(LogId {
        leader_id: LeaderId { term, node_id },
        index,
    })
}

pub(crate) fn put_log_id_option(buffer: &mut BytesMut, log_id: Option<&LogId>) {
    match log_id {
        None => buffer.put_u8(0),
        Some(log_id) => {
            buffer.put_u8(1);
            put_log_id(buffer, log_id);
        }
    }
}

pub(crate) fn get_log_id_option(buffer: &mut Bytes) -> Result<Option<LogId>> {
    if bool_of(buffer, "optional log id")? {
        get_log_id(buffer).map(Some)
    } else {
        Ok(None)
    }
}

pub(crate) fn put_vote(buffer: &mut BytesMut, vote: &Vote) {
    buffer.put_u64_le(vote.leader_id.term);
    buffer.put_u64_le(vote.leader_id.node_id);
    buffer.put_u8(u8::from(vote.committed));
}

pub(crate) fn get_vote(buffer: &mut Bytes) -> Result<Vote> {
    let term = u64_of(buffer, "vote")?;
    let node_id = u64_of(buffer, "vote")?;
    let committed = bool_of(buffer, "vote")?;
    Ok(openraft::Vote {
        leader_id: LeaderId { term, node_id },
        committed,
    })
}

/// A value that is a message of its own, as bytes.
pub(crate) fn encoded(write: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut buffer = BytesMut::with_capacity(64);
    write(&mut buffer);
    buffer.freeze()
}

/// Decodes bytes that are one vote.
pub(crate) fn whole_vote(mut bytes: Bytes) -> Result<Vote> {
    let vote = get_vote(&mut bytes)?;
    end(&bytes, "vote")?;
    Ok(vote)
}

/// Decodes bytes that are one log id.
pub(crate) fn whole_log_id(mut bytes: Bytes) -> Result<LogId> {
    let log_id = get_log_id(&mut bytes)?;
    end(&bytes, "log id")?;
    Ok(log_id)
}

pub(crate) fn put_membership(buffer: &mut BytesMut, membership: &Membership) {
    let configurations = membership.get_joint_config();
    put_count(buffer, configurations.len());
    for voters in configurations {
        put_count(buffer, voters.len());
        voters.iter().for_each(|id| buffer.put_u64_le(*id));
    }
    put_count(buffer, membership.nodes().count());
    for (id, node) in membership.nodes() {
        buffer.put_u64_le(*id);
        buffer.put_u64_le(node.node);
    }
}

pub(crate) fn get_membership(buffer: &mut Bytes) -> Result<Membership> {
    let configurations = count_of(buffer, "membership", CONFIGURATIONS_MAX, 4)?;
    let mut voters = Vec::with_capacity(configurations);
    for _ in 0..configurations {
        let count = count_of(buffer, "voters", MEMBERS_MAX, 8)?;
        voters.push(
            (0..count)
                .map(|_| u64_of(buffer, "voter"))
                .collect::<Result<BTreeSet<u64>>>()?,
        );
    }
    let count = count_of(buffer, "members", MEMBERS_MAX, 16)?;
    let mut nodes = BTreeMap::new();
    for _ in 0..count {
        let id = u64_of(buffer, "member")?;
        let node = u64_of(buffer, "member")?;
        nodes.insert(id, ReplicaNode { node });
    }
    Membership::new(voters, nodes).map_err(|_| CodecError::Membership)
}

pub(crate) fn put_stored_membership(buffer: &mut BytesMut, stored: &StoredMembership) {
    put_log_id_option(buffer, stored.log_id().as_ref());
    put_membership(buffer, stored.membership());
}

pub(crate) fn get_stored_membership(buffer: &mut Bytes) -> Result<StoredMembership> {
    let log_id = get_log_id_option(buffer)?;
    Ok(StoredMembership::new(log_id, get_membership(buffer)?))
}

const ENTRY_BLANK: u8 = 0;
const ENTRY_NORMAL: u8 = 1;
const ENTRY_MEMBERSHIP: u8 = 2;
/// Log id, tag.
const ENTRY_BYTES_MIN: usize = 25;

pub(crate) fn put_entry(buffer: &mut BytesMut, entry: &Entry) {
    put_log_id(buffer, &entry.log_id);
    match &entry.payload {
        EntryPayload::Blank => buffer.put_u8(ENTRY_BLANK),
        EntryPayload::Normal(payload) => {
            buffer.put_u8(ENTRY_NORMAL);
            put_count(buffer, payload.0.len());
            buffer.put_slice(&payload.0);
        }
        EntryPayload::Membership(membership) => {
            buffer.put_u8(ENTRY_MEMBERSHIP);
            put_membership(buffer, membership);
        }
    }
}

/// The payload is a slice of `buffer`.
pub(crate) fn get_entry(buffer: &mut Bytes) -> Result<Entry> {
    let log_id = get_log_id(buffer)?;
    let payload = match u8_of(buffer, "entry")? {
        ENTRY_BLANK => EntryPayload::Blank,
        ENTRY_NORMAL => {
            let length = u32_of(buffer, "entry payload")? as usize;
            if length > buffer.len() {
                return Err(CodecError::Short {
                    what: "entry payload",
                });
            }
            EntryPayload::Normal(Payload(buffer.split_to(length)))
        }
        ENTRY_MEMBERSHIP => EntryPayload::Membership(get_membership(buffer)?),
        tag => return Err(CodecError::Tag { what: "entry", tag }),
    };
    Ok(Entry { log_id, payload })
}

/// An entry that shares no memory with `buffer`: a slice would keep the whole packet, with the
/// frames of other shards, in memory for as long as the entry is in the log's tail.
fn get_entry_copied(buffer: &mut Bytes) -> Result<Entry> {
    let mut entry = get_entry(buffer)?;
    if let EntryPayload::Normal(payload) = &mut entry.payload {
        payload.0 = Bytes::copy_from_slice(&payload.0);
    }
    Ok(entry)
}

pub(crate) fn put_append_request(buffer: &mut BytesMut, sequence: u64, request: &AppendRequest) {
    buffer.put_u64_le(sequence);
    put_vote(buffer, &request.vote);
    put_log_id_option(buffer, request.prev_log_id.as_ref());
    put_log_id_option(buffer, request.leader_commit.as_ref());
    put_count(buffer, request.entries.len());
    request
        .entries
        .iter()
        .for_each(|entry| put_entry(buffer, entry));
}

/// The sequence number in its stream, and the request.
pub(crate) fn get_append_request(buffer: &mut Bytes) -> Result<(u64, AppendRequest)> {
    let sequence = u64_of(buffer, "append request")?;
    let vote = get_vote(buffer)?;
    let prev_log_id = get_log_id_option(buffer)?;
    let leader_commit = get_log_id_option(buffer)?;
    let count = count_of(buffer, "append request", ENTRIES_MAX, ENTRY_BYTES_MIN)?;
    let entries = (0..count)
        .map(|_| get_entry_copied(buffer))
        .collect::<Result<Vec<_>>>()?;
    end(buffer, "append request")?;
    Ok((
        sequence,
        AppendRequest {
            vote,
            prev_log_id,
            entries,
            leader_commit,
        },
    ))
}

const APPEND_SUCCESS: u8 = 0;
const APPEND_PARTIAL: u8 = 1;
const APPEND_CONFLICT: u8 = 2;
const APPEND_HIGHER_VOTE: u8 = 3;

pub(crate) fn put_append_response(buffer: &mut BytesMut, response: &AppendResponse) {
    match response {
        AppendResponse::Success => buffer.put_u8(APPEND_SUCCESS),
        AppendResponse::PartialSuccess(matching) => {
            buffer.put_u8(APPEND_PARTIAL);
            put_log_id_option(buffer, matching.as_ref());
        }
        AppendResponse::Conflict => buffer.put_u8(APPEND_CONFLICT),
        AppendResponse::HigherVote(vote) => {
            buffer.put_u8(APPEND_HIGHER_VOTE);
            put_vote(buffer, vote);
        }
    }
}

pub(crate) fn get_append_response(buffer: &mut Bytes) -> Result<AppendResponse> {
    let response = match u8_of(buffer, "append response")? {
        APPEND_SUCCESS => AppendResponse::Success,
        APPEND_PARTIAL => AppendResponse::PartialSuccess(get_log_id_option(buffer)?),
        APPEND_CONFLICT => AppendResponse::Conflict,
        APPEND_HIGHER_VOTE => AppendResponse::HigherVote(get_vote(buffer)?),
        tag => {
            return Err(CodecError::Tag {
                what: "append response",
                tag,
            });
        }
    };
    end(buffer, "append response")?;
    Ok(response)
}

pub(crate) fn put_vote_request(buffer: &mut BytesMut, request: &VoteRequest) {
    put_vote(buffer, &request.vote);
    put_log_id_option(buffer, request.last_log_id.as_ref());
    buffer.put_u8(u8::from(request.leadership_transfer));
}

pub(crate) fn get_vote_request(buffer: &mut Bytes) -> Result<VoteRequest> {
    let vote = get_vote(buffer)?;
    let last_log_id = get_log_id_option(buffer)?;
    let leadership_transfer = bool_of(buffer, "vote request")?;
    end(buffer, "vote request")?;
    Ok(VoteRequest {
        vote,
        last_log_id,
        leadership_transfer,
    })
}

pub(crate) fn put_vote_response(buffer: &mut BytesMut, response: &VoteResponse) {
    put_vote(buffer, &response.vote);
    put_log_id_option(buffer, response.last_log_id.as_ref());
    buffer.put_u8(u8::from(response.vote_granted));
}

pub(crate) fn get_vote_response(buffer: &mut Bytes) -> Result<VoteResponse> {
    let vote = get_vote(buffer)?;
    let last_log_id = get_log_id_option(buffer)?;
    let granted = bool_of(buffer, "vote response")?;
    end(buffer, "vote response")?;
    Ok(VoteResponse::new(vote, last_log_id, granted))
}

pub(crate) fn put_transfer_request(buffer: &mut BytesMut, request: &TransferRequest) {
    put_vote(buffer, request.from_leader());
    buffer.put_u64_le(*request.to_node_id());
    put_log_id_option(buffer, request.last_log_id());
}

pub(crate) fn get_transfer_request(buffer: &mut Bytes) -> Result<TransferRequest> {
    let from = get_vote(buffer)?;
    let to = u64_of(buffer, "transfer request")?;
    let last_log_id = get_log_id_option(buffer)?;
    end(buffer, "transfer request")?;
    Ok(TransferRequest::new(from, to, last_log_id))
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
