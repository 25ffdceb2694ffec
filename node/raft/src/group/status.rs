//! What a group tells about itself.

use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::{Instant, ServerState};

use super::Group;
use crate::types::{Member, Position, learners, member, voters};

/// What a replica does in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Receives the log without a vote.
    Learner,
    /// Receives the log and votes.
    Follower,
    /// Wants to lead.
    Candidate,
    /// Leads.
    Leader,
    /// Has stopped.
    Stopped,
}

/// How far another member is, as the leader knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FollowerStatus {
    /// The member.
    pub member: Member,
    /// The last index that it is known to have stored; None for nothing.
    pub matched: Option<u64>,
    /// Entries of the leader's log that it is not known to have.
    pub lag_entries: u64,
    /// The time since it last answered; None if it never did in this term.
    pub answered_ago: Option<Duration>,
}

/// The state of a group on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    /// What this replica does.
    pub role: Role,
    /// The newest term it knows.
    pub term: u64,
    /// Who leads, if known.
    pub leader: Option<Member>,
    /// The last index in its log.
    pub last_log: Option<u64>,
    /// The last entry that it knows to be committed.
    pub committed: Option<Position>,
    /// The last entry that its leader has told it to be committed, though it may not have it.
    pub told_committed: Option<Position>,
    /// The last entry that its machine has applied.
    pub applied: Option<Position>,
    /// The last entry that is durable in its machine, as far as reported.
    pub flushed: Option<Position>,
    /// The last entry that was purged from its log.
    pub purged: Option<Position>,
    /// Where in the log the configuration of members is that holds now; no two have the same.
    pub config: Option<Position>,
    /// The members that vote.
    pub voters: Vec<Member>,
    /// The members that do not.
    pub learners: Vec<Member>,
    /// A change of members is under way.
    pub changing: bool,
    /// The other members, when this replica leads.
    pub followers: Vec<FollowerStatus>,
}

impl GroupStatus {
    /// Committed entries that it has not applied; none before its leader has told it of any.
    pub fn behind(&self) -> Option<u64> {
        let next = |position: Option<Position>| position.map_or(0, |position| position.index + 1);
        let committed = self.told_committed?;
        Some(next(Some(committed)).saturating_sub(next(self.applied)))
    }
}

impl Group {
    /// The last index in its log.
    pub(crate) fn last_log(&self) -> Option<u64> {
        self.inner.raft.metrics().borrow_watched().last_log_index
    }

    /// The present state. Cheap: reads what the group last published.
    pub fn status(&self) -> GroupStatus {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let known = |id: u64| membership.get_node(&id).map(|node| member(id, node));
        let role = match metrics.state {
            ServerState::Learner => Role::Learner,
            ServerState::Follower => Role::Follower,
            ServerState::Candidate => Role::Candidate,
            ServerState::Leader => Role::Leader,
            ServerState::Shutdown => Role::Stopped,
        };
        let next = metrics.last_log_index.map_or(0, |index| index + 1);
        let matched = metrics.replication.iter().flatten();
        let followers = matched.filter_map(|(id, matched)| {
            let follower = known(*id).filter(|_| *id != self.inner.me.replica.0)?;
            let matched = matched.as_ref().map(|log_id| log_id.index);
            let answered = metrics
                .heartbeat
                .as_ref()
                .and_then(|heartbeat| heartbeat.get(id).copied().flatten());
            Some(FollowerStatus {
                member: follower,
                matched,
                lag_entries: next.saturating_sub(matched.map_or(0, |index| index + 1)),
                answered_ago: answered.map(|instant| instant.elapsed()),
            })
        });
        let position = |log_id: &Option<_>| log_id.as_ref().map(Position::of);
        GroupStatus {
            role,
            term: metrics.current_term,
            leader: metrics.current_leader.and_then(known),
            last_log: metrics.last_log_index,
            committed: position(&metrics.local_committed),
            told_committed: position(&metrics.cluster_committed),
            applied: position(&self.inner.progress.applied.borrow()),
            flushed: position(&self.inner.progress.flushed.borrow().last),
            purged: position(&metrics.purged),
            config: position(metrics.membership_config.log_id()),
            voters: voters(membership),
            learners: learners(membership),
            changing: membership.get_joint_config().len() > 1
                || metrics.membership_config != metrics.committed_membership_config,
            followers: followers.collect(),
        }
    }
}
