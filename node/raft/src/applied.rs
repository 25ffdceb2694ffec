//! The record of what a state machine has applied, which it persists together with its state.
//!
//! Owner of no state. Invariant: membership log id ≤ last applied.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes};
use openraft::impls::leader_id_adv::LeaderId;

use crate::codec::{self, CodecError};
use crate::types::{
    LogId, Member, Membership, Position, ReplicaNode, SnapshotMeta, StoredMembership, learners,
    voters,
};

const VERSION: u8 = 1;

/// How far a replica's state goes: the last applied entry and the membership as of it.
///
/// A [`crate::Machine`] stores the encoded record in the same atomic write as the state it
/// describes, and hands it out with snapshots; it need not look inside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppliedRecord {
    pub(crate) last: Option<LogId>,
    pub(crate) membership: StoredMembership,
}

impl AppliedRecord {
    /// The record as bytes.
    pub fn encode(&self) -> Bytes {
        codec::encoded(|buffer| {
            buffer.put_u8(VERSION);
            codec::put_log_id_option(buffer, self.last.as_ref());
            codec::put_stored_membership(buffer, &self.membership);
        })
    }

    /// The record of a group that begins with these voters and a state that each of them has
    /// already. Started from it, replicas need no [`Group::initialize`](crate::Group::initialize);
    /// it is as if the group had one entry, its membership, applied and purged.
    #[must_use]
    pub fn beginning(voters: &[Member]) -> AppliedRecord {
        let nobody = LeaderId {
            term: 0,
            node_id: 0,
        };
        let first = LogId::new(nobody, 0);
        let ids = voters.iter().map(|voter| voter.replica.0).collect();
        let nodes: BTreeMap<u64, ReplicaNode> = voters
            .iter()
            .map(|voter| {
                let node = voter.node.0;
                (voter.replica.0, ReplicaNode { node })
            })
            .collect();
        let membership = Membership::new(vec![ids], nodes);
        let membership = membership.expect("every voter has a node");
        AppliedRecord {
            last: Some(first),
            membership: StoredMembership::new(Some(first), membership),
        }
    }

    /// Reads what [`AppliedRecord::encode`] wrote.
    pub fn decode(mut bytes: Bytes) -> Result<AppliedRecord, CodecError> {
        match codec::get_u8(&mut bytes)? {
            VERSION => {}
            tag => {
                return Err(CodecError::Tag {
                    what: "applied record version",
                    tag,
                });
            }
        }
        let last = codec::get_log_id_option(&mut bytes)?;
        let membership = codec::get_stored_membership(&mut bytes)?;
        codec::end(&bytes, "applied record")?;
        Ok(AppliedRecord { last, membership })
    }

    /// The last applied entry; None before the first.
    pub fn position(&self) -> Option<Position> {
        self.last.as_ref().map(Position::of)
    }

    /// The voting members as of this record.
    pub fn voters(&self) -> Vec<Member> {
        voters(self.membership.membership())
    }

    /// The members that do not vote, as of this record.
    pub fn learners(&self) -> Vec<Member> {
        learners(self.membership.membership())
    }

    pub(crate) fn meta(&self) -> SnapshotMeta {
        SnapshotMeta {
            last_log_id: self.last,
            last_membership: self.membership.clone(),
        }
    }

    pub(crate) fn of_meta(meta: &SnapshotMeta) -> AppliedRecord {
        AppliedRecord {
            last: meta.last_log_id,
            membership: meta.last_membership.clone(),
        }
    }
}
