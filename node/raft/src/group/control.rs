//! Changing who leads and who is a member.

use std::time::Duration;

use carillon_core::ids::{NodeId, ShardId};
use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::raft::Precondition;
use tokio::time::Instant;

use super::{Group, GroupError, Role, redirect, stopped};
use crate::types::{Member, Position, ReplicaNode, TypeConfig};

/// Entries that the target of a transfer may lag behind when it is asked to lead: they reach it
/// with the request.
const TRANSFER_LAG_ENTRIES_MAX: u64 = 64;

/// Why a transfer did not happen.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// This replica does not lead.
    #[error("this replica of shard {shard} does not lead", shard = shard.0)]
    NotLeader {
        /// The shard.
        shard: ShardId,
        /// The leader's node, if known.
        leader: Option<NodeId>,
    },
    /// The target has no replica that may lead.
    #[error("node {to} has no voting replica of shard {shard}", to = to.0, shard = shard.0)]
    NotAVoter {
        /// The shard.
        shard: ShardId,
        /// The target.
        to: NodeId,
    },
    /// The target cannot be reached; nothing was changed.
    #[error("node {to} is not reachable, so it cannot lead shard {shard}", to = to.0, shard = shard.0)]
    Unreachable {
        /// The shard.
        shard: ShardId,
        /// The target.
        to: NodeId,
    },
    /// The target lags too far behind; nothing was changed.
    #[error("node {to} is {lag_entries} entries behind in shard {shard}; try again later", to = to.0, shard = shard.0)]
    Lagging {
        /// The shard.
        shard: ShardId,
        /// The target.
        to: NodeId,
        /// How far it is behind.
        lag_entries: u64,
    },
    /// The target was asked and did not lead in time. This leader takes no more proposals; the
    /// group elects a new one by itself within an election timeout.
    #[error("node {to} did not take the lead of shard {shard} in time", to = to.0, shard = shard.0)]
    Timeout {
        /// The shard.
        shard: ShardId,
        /// The target.
        to: NodeId,
    },
    /// The group has stopped.
    #[error(transparent)]
    Group(#[from] GroupError),
}

/// A change of a group's members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberChange {
    /// Adds a replica that receives the log without a vote. Adding it again is allowed.
    AddLearner(Member),
    /// Removes one that has no vote. Refused for a voter.
    RemoveLearner(Member),
    /// Makes these the voters; all of them must be voters or learners already.
    Voters {
        /// All of them.
        voters: Vec<Member>,
        /// Those that are no longer among them stay as learners, or leave the group.
        retain: bool,
    },
}

/// Why a change of members was not made.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// This replica does not lead, or not yet.
    #[error("this replica of shard {shard} does not lead", shard = shard.0)]
    NotLeader {
        /// The shard.
        shard: ShardId,
        /// The leader's node, if known; None also when this leader is not ready.
        leader: Option<NodeId>,
    },
    /// Another change is under way.
    #[error("another change of members of shard {shard} is under way; try again later", shard = shard.0)]
    InProgress {
        /// The shard.
        shard: ShardId,
    },
    /// The change is not allowed.
    #[error("change of members of shard {shard} refused: {reason}", shard = shard.0)]
    Refused {
        /// The shard.
        shard: ShardId,
        /// Why.
        reason: String,
    },
    /// Leadership was lost meanwhile: the change may have been made. Look at the status.
    #[error("whether the members of shard {shard} were changed is unknown", shard = shard.0)]
    Unknown {
        /// The shard.
        shard: ShardId,
    },
    /// The group has stopped.
    #[error(transparent)]
    Group(#[from] GroupError),
}

impl Group {
    /// Hands the lead to the replica on node `to`, and returns when it leads. Asked only of a
    /// voter that is reachable and nearly caught up, since a leader that has asked takes no more
    /// proposals.
    ///
    /// # Errors
    /// [`TransferError`]; only `Timeout` leaves something behind.
    pub async fn transfer_leader(
        &self,
        to: NodeId,
        timeout: Duration,
    ) -> Result<(), TransferError> {
        let inner = &self.inner;
        let shard = inner.shard;
        let one_at_a_time = inner.transferring.lock().await;
        let deadline = Instant::now() + timeout;
        let target = self.transfer_target(to, deadline).await?;
        let Some(target) = target else { return Ok(()) };
        tracing::info!(shard = shard.0, %target, "transferring the lead");
        let fatal = |fatal| stopped(shard, &fatal);
        inner
            .raft
            .trigger()
            .transfer_leader(target.replica.0)
            .await
            .map_err(fatal)?;
        let mut leadership = self.leadership();
        let leads = leadership.wait_for(|now| now.leader == Some(target));
        let result = match tokio::time::timeout_at(deadline, leads).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(GroupError::Stopped {
                shard,
                reason: "the group's core is gone".to_owned(),
            }
            .into()),
            Err(_) => Err(TransferError::Timeout { shard, to }),
        };
        drop(one_at_a_time);
        result
    }

    /// The replica to ask, once it may be asked; None when this one is meant, and leads.
    async fn transfer_target(
        &self,
        to: NodeId,
        deadline: Instant,
    ) -> Result<Option<Member>, TransferError> {
        let inner = &self.inner;
        let shard = inner.shard;
        let mut metrics = inner.raft.metrics();
        loop {
            // Marked as seen before it is read below.
            drop(metrics.borrow_and_update());
            let status = self.status();
            if status.role != Role::Leader {
                let leader = status
                    .leader
                    .filter(|leader| *leader != inner.me)
                    .map(|leader| leader.node);
                return Err(TransferError::NotLeader { shard, leader });
            }
            let target = status.voters.iter().find(|voter| voter.node == to).copied();
            let target = target.ok_or(TransferError::NotAVoter { shard, to })?;
            if target == inner.me {
                return Ok(None);
            }
            if !inner.links.link(to).is_up() {
                return Err(TransferError::Unreachable { shard, to });
            }
            let follower = status
                .followers
                .iter()
                .find(|follower| follower.member == target);
            let answered = follower.and_then(|follower| follower.answered_ago);
            let answers = answered.is_some_and(|ago| ago <= inner.options.election_timeout_max);
            let lag_entries = follower.map_or(u64::MAX, |follower| follower.lag_entries);
            if answers && lag_entries <= TRANSFER_LAG_ENTRIES_MAX {
                return Ok(Some(target));
            }
            if tokio::time::timeout_at(deadline, metrics.changed())
                .await
                .is_err()
            {
                return Err(if answers {
                    TransferError::Lagging {
                        shard,
                        to,
                        lag_entries,
                    }
                } else {
                    TransferError::Unreachable { shard, to }
                });
            }
        }
    }

    /// Calls an election at once because the process on node `dead` is known to have ended (not
    /// merely to be out of reach), and asks the voters to ignore the lease of the leader there.
    /// False, and nothing done, when the leader is not on that node or this replica has no vote.
    ///
    /// Harmless to safety even if the claim is wrong, since no read relies on a lease; it would
    /// only depose a leader in good health. Of several survivors one should call this first.
    ///
    /// # Errors
    /// When the group has stopped.
    pub async fn elect_now(&self, dead: NodeId) -> Result<bool, GroupError> {
        let inner = &self.inner;
        let status = self.status();
        let dead_leads = status
            .leader
            .is_some_and(|leader| leader.node == dead && leader != inner.me);
        if !dead_leads || !status.voters.contains(&inner.me) {
            return Ok(false);
        }
        // Only the election that this begins: should the term have moved on, it is a usual one.
        inner.forced.allow(status.term + 1);
        let fatal = |fatal| stopped(inner.shard, &fatal);
        inner.raft.trigger().elect(false).await.map_err(fatal)?;
        Ok(true)
    }

    /// Calls a usual election at once: of a group that nobody leads yet. Nothing happens when
    /// this replica has no vote.
    ///
    /// # Errors
    /// When the group has stopped.
    pub async fn campaign(&self) -> Result<(), GroupError> {
        let elected = self.inner.raft.trigger().elect(false).await;
        elected.map_err(|fatal| stopped(self.inner.shard, &fatal))
    }

    /// Changes who is a member, by way of a joint configuration where voters change. It begins
    /// only from the configuration `from` (see [`GroupStatus::config`]), so what was decided on
    /// long ago, or by somebody else, changes nothing.
    ///
    /// [`GroupStatus::config`]: super::GroupStatus::config
    ///
    /// # Errors
    /// [`MembershipError`]; `Refused` when the group has another configuration.
    pub async fn change_members(
        &self,
        change: MemberChange,
        from: Position,
    ) -> Result<(), MembershipError> {
        let id = |member: Member| member.replica.0;
        let node = |member: Member| ReplicaNode {
            node: member.node.0,
        };
        let (changes, retain) = match change {
            MemberChange::AddLearner(member) => {
                let nodes = [(id(member), node(member))];
                (ChangeMembers::AddNodes(nodes.into()), true)
            }
            MemberChange::RemoveLearner(member) => {
                (ChangeMembers::RemoveNodes([id(member)].into()), true)
            }
            MemberChange::Voters { voters, retain } => {
                let ids = voters.into_iter().map(id).collect();
                (ChangeMembers::ReplaceAllVoters(ids), retain)
            }
        };
        let only_from = Precondition::LastMembershipLogId {
            last_membership_log_id: Some(from.log_id()),
        };
        let raft = &self.inner.raft;
        let changed = raft
            .change_membership_if(changes, retain, [only_from])
            .await;
        self.membership_result(changed.map(|_| ()))
    }

    /// The position of the group's configuration when that is joint.
    pub fn joint(&self) -> Option<Position> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let config = &metrics.membership_config;
        let is_joint = config.membership().get_joint_config().len() > 1;
        let position = config.log_id().as_ref().map(Position::of);
        position.filter(|_| is_joint)
    }

    /// Takes the second step of a change of voters, from the joint configuration at `joint`. For
    /// a change whose leader is gone. Who does not vote any more stays as a learner.
    ///
    /// # Errors
    /// [`MembershipError`]; `Refused` when the group has another configuration.
    pub async fn end_change(&self, joint: Position) -> Result<(), MembershipError> {
        let only_from = Precondition::LastMembershipLogId {
            last_membership_log_id: Some(joint.log_id()),
        };
        let nothing = ChangeMembers::AddVoterIds(Default::default());
        let raft = &self.inner.raft;
        let ended = raft.change_membership_if(nothing, true, [only_from]).await;
        self.membership_result(ended.map(|_| ()))
    }

    fn membership_result(
        &self,
        result: Result<(), RaftError<TypeConfig, ClientWriteError<TypeConfig>>>,
    ) -> Result<(), MembershipError> {
        let shard = self.inner.shard;
        let error = match result {
            Ok(()) => return Ok(()),
            Err(RaftError::Fatal(fatal)) => return Err(stopped(shard, &fatal).into()),
            Err(RaftError::APIError(error)) => error,
        };
        Err(match error {
            ClientWriteError::ForwardToLeader(forward) => MembershipError::NotLeader {
                shard,
                leader: redirect(self.inner.me, &forward).flatten(),
            },
            ClientWriteError::LogEntryDiscarded(_) => MembershipError::Unknown { shard },
            ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_)) => {
                MembershipError::InProgress { shard }
            }
            ClientWriteError::ChangeMembershipError(error) => MembershipError::Refused {
                shard,
                reason: error.to_string(),
            },
            ClientWriteError::PreconditionFailed(error) => MembershipError::Refused {
                shard,
                reason: error.to_string(),
            },
        })
    }
}
