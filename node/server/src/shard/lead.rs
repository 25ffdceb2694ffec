//! Which lead of a shard: one replica's time as leader, in which it gives nothing back.
//!
//! A lead ends with its Raft term, and whenever something of it is given back: a leader that
//! hears no majority refuses entries, and takes others in the same term as soon as it does.
//! Within a term a later leader has the larger replica id, as openraft's leader ids say; so
//! leads of all replicas are in one order.

use bytes::{Buf, BufMut};
use carillon_core::ids::ReplicaId;

/// See the file's head. [`Lead::ANY`] is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lead {
    /// The Raft term.
    term: u64,
    /// Who leads; 0 when nobody is known to.
    replica: ReplicaId,
    /// How often it began anew within the term.
    count: u32,
}

impl Lead {
    /// Whichever there is: of what has no order, or only asks.
    pub const ANY: Lead = Lead {
        term: 0,
        replica: ReplicaId(0),
        count: 0,
    };
    /// Later than all.
    pub const NEVER: Lead = Lead {
        term: u64::MAX,
        replica: ReplicaId(u64::MAX),
        count: u32::MAX,
    };
    /// Bytes of its form between nodes.
    pub const BYTES: usize = 20;

    /// The first lead of a replica in a term; without a replica, earlier than all of the term.
    pub fn first(term: u64, replica: Option<ReplicaId>) -> Self {
        Lead {
            term,
            replica: replica.unwrap_or_default(),
            count: 0,
        }
    }

    /// The same replica's next lead, in the same term.
    pub fn next(self) -> Self {
        Lead {
            count: self.count.saturating_add(1),
            ..self
        }
    }

    /// Both are of one leader's time as Raft counts it.
    pub fn is_of_the_leader_of(self, other: Lead) -> bool {
        (self.term, self.replica) == (other.term, other.replica)
    }

    /// The Raft term.
    pub fn term(self) -> u64 {
        self.term
    }

    /// Little-endian, [`Lead::BYTES`].
    pub fn write(self, out: &mut impl BufMut) {
        out.put_u64_le(self.term);
        out.put_u64_le(self.replica.0);
        out.put_u32_le(self.count);
    }

    /// Reads what [`Lead::write`] wrote; none when there are too few bytes.
    pub fn read(bytes: &mut impl Buf) -> Option<Self> {
        (bytes.remaining() >= Self::BYTES).then(|| Lead {
            term: bytes.get_u64_le(),
            replica: ReplicaId(bytes.get_u64_le()),
            count: bytes.get_u32_le(),
        })
    }
}
