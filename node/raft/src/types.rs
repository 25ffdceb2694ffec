//! The types that openraft is instantiated with, and their public counterparts.
//!
//! Owner of no state. Nothing of openraft leaves this crate: [`Member`] and [`Position`] are what
//! others see.

use std::fmt;

use bytes::Bytes;
use carillon_core::apply::Effects;
use carillon_core::ids::{NodeId, ReplicaId};
use openraft::impls::leader_id_adv::LeaderId;
use openraft::raft::responder::Responder;
use openraft::type_config::alias;
use openraft::{EntryPayload, RaftTypeConfig};

/// A replica of a shard and the node it is on. Replica ids are never reused within a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// The replica: its identity in the shard's Raft group.
    pub replica: ReplicaId,
    /// The node where it is.
    pub node: NodeId,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "replica {} on node {}", self.replica.0, self.node.0)
    }
}

/// A place in a shard's Raft log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The term of the leader that wrote the entry.
    pub term: u64,
    /// The replica that led in that term.
    pub leader: ReplicaId,
    /// The entry's index; the first one is 0.
    pub index: u64,
}

impl Position {
    pub(crate) fn of(log_id: &LogId) -> Position {
        Position {
            term: log_id.leader_id.term,
            leader: ReplicaId(log_id.leader_id.node_id),
            index: log_id.index,
        }
    }

    pub(crate) fn log_id(self) -> LogId {
        let leader_id = LeaderId {
            term: self.term,
            node_id: self.leader.0,
        };
        LogId::new(leader_id, self.index)
    }
}

/// What openraft knows of a member besides its id: where it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ReplicaNode {
    pub(crate) node: u64,
}

/// The payload of an entry: one encoded batch of commands.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Payload(pub(crate) Bytes);

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "payload of {} bytes", self.0.len())
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What applying an entry returns to its proposer.
#[derive(Default)]
pub(crate) struct Reply(pub(crate) Vec<Effects>);

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "effects of {} commands", self.0.len())
    }
}

/// One callback per entry; dropping it unanswered tells the proposer that the outcome is unknown.
pub(crate) struct Callback<T>(Option<Box<dyn FnOnce(Option<T>) + Send>>);

impl<T> Callback<T> {
    pub(crate) fn new(done: impl FnOnce(Option<T>) + Send + 'static) -> Callback<T> {
        Callback(Some(Box::new(done)))
    }
}

impl<T: Send + 'static> Responder<TypeConfig, T> for Callback<T> {
    fn on_complete(mut self, result: T) {
        if let Some(done) = self.0.take() {
            done(Some(result));
        }
    }
}

impl<T> Drop for Callback<T> {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done(None);
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TypeConfig;

impl RaftTypeConfig for TypeConfig {
    type D = Payload;
    type R = Reply;
    type NodeId = u64;
    type Node = ReplicaNode;
    type Term = u64;
    type LeaderId = LeaderId<u64, u64>;
    type Vote = openraft::Vote<Self::LeaderId>;
    type Payload = EntryPayload<Payload, u64, ReplicaNode>;
    type Entry = openraft::Entry<Self::LeaderId, Self::Payload>;
    type AsyncRuntime = openraft_rt_tokio::TokioRuntime;
    type Responder<T>
        = Callback<T>
    where
        T: Send + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: Send + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(crate) type LogId = alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = alias::VoteOf<TypeConfig>;
pub(crate) type Entry = alias::EntryOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, ReplicaNode>;
pub(crate) type StoredMembership = alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type AppendRequest = openraft::raft::AppendEntriesRequest<TypeConfig>;
pub(crate) type AppendResponse = openraft::raft::AppendEntriesResponse<TypeConfig>;
pub(crate) type VoteRequest = openraft::raft::VoteRequest<TypeConfig>;
pub(crate) type VoteResponse = openraft::raft::VoteResponse<TypeConfig>;
pub(crate) type TransferRequest = openraft::raft::TransferLeaderRequest<TypeConfig>;
pub(crate) type Raft = openraft::Raft<TypeConfig, crate::machine::StateMachine>;

pub(crate) fn member(replica: u64, node: &ReplicaNode) -> Member {
    Member {
        replica: ReplicaId(replica),
        node: NodeId(node.node),
    }
}

/// The members of a membership that vote in any of its configurations.
pub(crate) fn voters(membership: &Membership) -> Vec<Member> {
    membership
        .voter_ids()
        .filter_map(|id| membership.get_node(&id).map(|node| member(id, node)))
        .collect()
}

/// The members that only receive the log.
pub(crate) fn learners(membership: &Membership) -> Vec<Member> {
    membership
        .learner_ids()
        .filter_map(|id| membership.get_node(&id).map(|node| member(id, node)))
        .collect()
}
