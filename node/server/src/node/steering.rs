//! The hands of the meta group's leader: looks at all nodes and groups, asks
//! `carillon_core::steering` what to do, and does it, again and again.
//!
//! Owner of the state: [`Sight`], since when nodes are silent, of this leadership only; and
//! what is waited for, for people. Everything else is in the meta group's state, so the next
//! leader goes on where this one stopped.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use carillon_core::ids::{NodeId, ReplicaId, ShardId};
use carillon_core::map::{
    ClusterVersion, ConfigVersion, DrainPurpose, META_SHARD, MetaCommand, MetaReply, MetaState,
    Supported, upgrade_hindrances,
};
use carillon_core::merging::{MergeId, MergeMark};
use carillon_core::steering::{
    FollowerSeen, Loads, MetaSeen, NodeSeen, Plan, Seen, ShardSeen, Step, drain_danger,
    drain_status, plan,
};
use carillon_log::failpoint;
use carillon_proto::admin::{GetDrainRequest, GetDrainResponse, Standing};
use carillon_proto::internal::change_members_request::Change;
use carillon_proto::internal::{
    ChangeMembersRequest, GroupMember, GroupStatus, GroupVoters, MergeRequest, ShardMerges,
    ShardReplica, SplitShardRequest, StatusResponse, TransferRequest,
};
use carillon_raft::{Member, MemberChange};
use futures_util::future::join_all;
use tonic::{Response, Status};

use super::Node;
use super::replicas::meta_member;
use crate::peer::Client;
use crate::peer::group::{
    config_from_proto, config_of, config_to_proto, member_from_proto, member_of, member_to_proto,
    replica_of, version_of,
};
use crate::shard::Replica;

/// How often it is looked; a change of the meta group's state is looked at once.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// The same while replicas move or shards are split, which goes on when a group has done
/// something that changes nothing in the meta group's state.
const LOOK_INTERVAL_MOVING: Duration = Duration::from_millis(200);
/// How long the confirmation may take that this node leads the meta group.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one step may take; what it began goes on, and is seen the next time.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for a step of a merge: while a shard is frozen, nothing waits for a node that does
/// not answer.
const MERGE_STEP_TIMEOUT: Duration = Duration::from_secs(2);
/// A follower that answered within this counts as answering.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// When each node was last heard, and the load of each shard, by this leader.
#[derive(Debug, Default)]
pub struct Sight {
    heard: HashMap<NodeId, Instant>,
    /// What nodes supported when they were last heard.
    supported: HashMap<NodeId, Supported>,
    /// Since when all nodes support the version that the cluster goes to next.
    next_version: Option<(ClusterVersion, Instant)>,
    loads: Loads,
}

impl Sight {
    /// A node that this leader has never heard is silent since it was first looked for.
    fn node(&mut self, node: NodeId, now: Instant, status: Option<&StatusResponse>) -> NodeSeen {
        let heard = self.heard.entry(node).or_insert(now);
        let Some(status) = status else {
            let silent_ms = now.duration_since(*heard).as_millis();
            return NodeSeen {
                up: false,
                silent_ms: u64::try_from(silent_ms).unwrap_or(u64::MAX),
                is_stopping: false,
                disk_free_bytes: None,
                sessions: 0,
                supported: self.supported.get(&node).copied(),
            };
        };
        *heard = now;
        let supported = supported_by(status);
        self.supported.insert(node, supported);
        // A node of before this was looked at says nothing.
        let disk = status.node.as_ref().filter(|node| node.disk_bytes > 0);
        NodeSeen {
            up: true,
            silent_ms: 0,
            is_stopping: status.node.as_ref().is_some_and(|node| node.draining),
            disk_free_bytes: disk.map(|node| node.disk_free_bytes),
            sessions: status.node.as_ref().map_or(0, |node| node.sessions),
            supported: Some(supported),
        }
    }

    /// How long all nodes have supported the cluster's next version, as far as they were heard,
    /// milliseconds. A node that is away for a moment is as it was.
    fn next_version_ms(&mut self, meta: &MetaState, now: Instant) -> u64 {
        let next = meta.cluster_version.next();
        let hindrances = upgrade_hindrances(meta, |node| self.supported.get(&node).copied());
        if !hindrances.is_empty() {
            self.next_version = None;
            return 0;
        }
        let since = match self.next_version {
            Some((version, since)) if version == next => since,
            _ => now,
        };
        self.next_version = Some((next, since));
        u64::try_from(now.duration_since(since).as_millis()).unwrap_or(u64::MAX)
    }
}

impl Node {
    /// Steers the cluster whenever this node leads the meta group, until it stops.
    pub(super) async fn steer(self: Arc<Self>) {
        let mut look_at = tokio::time::Instant::now();
        let mut changes = self.cluster().watch_meta();
        // Clients wait while a merge runs: what was done for it is looked at at once.
        let mut hurries = false;
        loop {
            tokio::select! {
                () = std::future::ready(()), if hurries => {}
                () = tokio::time::sleep_until(look_at) => {}
                changed = changes.changed() => if changed.is_err() { return },
            }
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
            look_at = tokio::time::Instant::now() + LOOK_INTERVAL;
            let Some(meta_group) = self.leads_meta().await else {
                hurries = false;
                *self.sight.lock().await = Sight::default();
                self.waits.lock().clear();
                self.silent.lock().clear();
                continue;
            };
            hurries = false;
            changes.borrow_and_update();
            // Read before anything is looked at, as the plan wants it.
            let meta = self.cluster().meta();
            let seen = self.look(&meta, &meta_group).await;
            let silent = seen.nodes.iter().filter(|(_, node)| !node.up);
            *self.silent.lock() = silent.map(|(id, node)| (*id, node.silent_ms)).collect();
            let Plan { steps, waits } = plan(&meta, &seen);
            *self.waits.lock() = waits;
            if !meta.moves.is_empty() || !meta.splits.is_empty() {
                look_at = tokio::time::Instant::now() + LOOK_INTERVAL_MOVING;
            }
            for step in steps {
                let what = format!("{step:?}");
                let (before, after) = points(&step);
                let (limit, merges) = match step.is_of_a_merge() {
                    true => (MERGE_STEP_TIMEOUT, true),
                    false => (STEP_TIMEOUT, false),
                };
                failpoint::hit(before);
                let done = tokio::time::timeout(limit, self.take_step(step, &meta_group));
                let done = done.await;
                failpoint::hit(after);
                match done {
                    Ok(Ok(())) => {
                        hurries |= merges;
                        tracing::info!(step = what, "steers");
                    }
                    Ok(Err(reason)) => tracing::info!(step = what, reason, "a step was not taken"),
                    Err(_) => tracing::warn!(step = what, "a step takes long; it is looked again"),
                }
            }
        }
    }

    /// What the meta group's leader waits for, as of its last look; empty on other nodes.
    pub fn steering_waits(&self) -> Vec<String> {
        let waits = self.waits.lock();
        waits.iter().map(|wait| wait.text.clone()).collect()
    }

    /// Looks how far the drain of a node is, and what it would break. None on nodes that do not
    /// lead the meta group.
    pub async fn drain(&self, request: GetDrainRequest) -> Option<GetDrainResponse> {
        let meta_group = self.leads_meta().await?;
        let (meta, node) = (self.cluster().meta(), NodeId(request.node_id));
        let seen = self.look(&meta, &meta_group).await;
        let purpose = match request.purpose() {
            Standing::DrainingForRestart => Some(DrainPurpose::Restart),
            Standing::DrainingForRemoval => Some(DrainPurpose::Removal),
            _ => None,
        };
        let dangers = purpose.map(|purpose| drain_danger(&meta, &seen, node, purpose));
        let dangers = dangers.unwrap_or_default();
        let status = drain_status(&meta, &seen, node);
        Some(GetDrainResponse {
            replicas_left: status.replicas_left,
            leaders_left: status.leaders_left,
            bytes_left: status.bytes_left,
            done: status.done,
            waits: status.waits,
            dangers: dangers.iter().map(ToString::to_string).collect(),
            sessions_left: status.sessions_left,
            percent: status.percent,
            step: status.step.to_string(),
            started_at_ms: status.started_at.map_or(0, |at| at.0),
        })
    }

    /// The meta group's replica, when this node leads it for sure, and has applied what was
    /// committed before.
    async fn leads_meta(&self) -> Option<Arc<Replica>> {
        let replica = self.cluster().replica(META_SHARD)?;
        if !replica.leads() || !self.cluster().meta().exists() {
            return None;
        }
        let confirmed = tokio::time::timeout(CONFIRM_TIMEOUT, replica.group().read_index());
        matches!(confirmed.await, Ok(Ok(()))).then_some(replica)
    }

    async fn look(&self, meta: &MetaState, meta_group: &Replica) -> Seen {
        let mut statuses = self.calls.statuses().await;
        statuses.insert(self.config.node(), Some(self.status()));
        let now = Instant::now();
        let mut sight = self.sight.lock().await;
        let nodes = statuses
            .iter()
            .map(|(node, status)| (*node, sight.node(*node, now, status.as_ref())))
            .collect();
        let next_version_ms = sight.next_version_ms(meta, now);
        let mut led: BTreeMap<ShardId, (u64, ShardSeen)> = BTreeMap::new();
        for (node, status) in &statuses {
            for replica in status.iter().flat_map(|status| &status.replicas) {
                let shard = ShardId(replica.shard_id);
                let Some((term, seen)) = shard_seen(*node, replica) else {
                    continue;
                };
                // Who is left of a group that is begun anew may still believe that it leads.
                let recovery = meta.recoveries.get(&shard);
                let new = recovery.map(|recovery| recovery.to.replica_id.0);
                if new.is_some() && new != replica.status.map(|status| status.replica_id) {
                    continue;
                }
                // One that was away may still believe that it leads.
                if shard != META_SHARD && led.get(&shard).is_none_or(|known| known.0 < term) {
                    led.insert(shard, (term, seen));
                }
            }
        }
        // A process that started a moment ago knows little of the load yet.
        let replicas = statuses
            .values()
            .flatten()
            .flat_map(|status| &status.replicas);
        for (shard_id, status) in replicas.filter_map(|one| Some((one.shard_id, one.status?))) {
            if let Some((_, seen)) = led.get_mut(&ShardId(shard_id)) {
                seen.load_per_second = seen.load_per_second.max(status.commands_per_s);
            }
        }
        for (shard, (_, seen)) in &mut led {
            seen.load_per_second = sight.loads.counts_as(*shard, seen.load_per_second);
        }
        drop(sight);
        let kept_frozen = statuses
            .values()
            .flatten()
            .flat_map(|status| &status.replicas)
            .filter(|replica| replica.kept_frozen_by > 0)
            .filter_map(|replica| {
                let id = ReplicaId(replica.status?.replica_id);
                Some((id, MergeId(replica.kept_frozen_by)))
            })
            .collect();
        let shards = led.into_iter().map(|(shard, (_, seen))| (shard, seen));
        Seen {
            now: crate::shard::now(),
            nodes,
            shards: shards.collect(),
            kept_frozen,
            next_version_ms,
            meta: meta_seen(self.config.node(), meta_group),
        }
    }

    async fn take_step(&self, step: Step, meta_group: &Replica) -> Result<(), String> {
        match step {
            Step::Propose(command) => {
                let deadline = tokio::time::Instant::now() + STEP_TIMEOUT;
                match self.services.router.meta(command, deadline).await {
                    Ok(MetaReply::Refused(refusal)) => Err(refusal.to_string()),
                    Ok(_) => Ok(()),
                    Err(error) => Err(error.to_string()),
                }
            }
            Step::AddLearner {
                shard_id,
                leader,
                replica,
                config,
            } => {
                let change = Change::AddLearner(member_to_proto(member_of(&replica)));
                self.change(shard_id, leader, change, config).await
            }
            Step::RemoveLearner {
                shard_id,
                leader,
                replica,
                config,
            } => {
                let change = Change::RemoveLearner(member_to_proto(member_of(&replica)));
                self.change(shard_id, leader, change, config).await
            }
            Step::ChangeVoters {
                shard_id,
                leader,
                voters,
                config,
            } => {
                let voters = voters.iter().map(member_of).map(member_to_proto).collect();
                let change = Change::Voters(GroupVoters { voters });
                self.change(shard_id, leader, change, config).await
            }
            Step::Split {
                shard_id,
                leader,
                new_shard_id,
            } => {
                let request = SplitShardRequest {
                    shard_id: shard_id.0,
                    new_shard_id: new_shard_id.0,
                };
                let client = self.calls.client(leader);
                let mut client = client.map_err(|error| error.to_string())?;
                let told = client.split_shard(request).await;
                told.map(drop).map_err(|status| status.message().to_owned())
            }
            Step::FreezeShard {
                shard_id,
                leader,
                merge_id,
            } => {
                let (mut client, request) = self.merge_call(leader, shard_id, merge_id)?;
                done(client.freeze_shard(request).await)
            }
            Step::KeepFrozen {
                shard_id,
                nodes,
                merge_id,
            } => {
                let keep = nodes.into_iter().map(async |node| {
                    let (mut client, request) = self.merge_call(node, shard_id, merge_id)?;
                    done(client.keep_frozen(request).await)
                        .map_err(|why| format!("node {node}: {why}"))
                });
                let kept = join_all(keep).await;
                kept.into_iter().collect()
            }
            Step::ThawShard {
                shard_id,
                leader,
                merge_id,
            } => {
                let (mut client, request) = self.merge_call(leader, shard_id, merge_id)?;
                done(client.thaw_shard(request).await)
            }
            Step::AbsorbShard {
                shard_id,
                leader,
                merge_id,
            } => {
                let (mut client, request) = self.merge_call(leader, shard_id, merge_id)?;
                done(client.absorb_shard(request).await)
            }
            Step::TransferLeader { shard_id, from, to } => {
                let (shard_id, to_node) = (shard_id.0, to.0);
                let request = TransferRequest { shard_id, to_node };
                let mut client = self.calls.client(from).map_err(|error| error.to_string())?;
                let moved = client.transfer(request).await;
                moved
                    .map(drop)
                    .map_err(|status| status.message().to_owned())
            }
            Step::MetaAddLearner { node_id, config } => {
                let change = MemberChange::AddLearner(meta_member(node_id));
                change_meta(meta_group, change, config).await
            }
            Step::MetaRemoveLearner { node_id, config } => {
                let change = MemberChange::RemoveLearner(meta_member(node_id));
                change_meta(meta_group, change, config).await
            }
            Step::MetaChangeVoters { voters, config } => {
                let change = MemberChange::Voters {
                    voters: voters.into_iter().map(meta_member).collect(),
                    retain: true,
                };
                change_meta(meta_group, change, config).await
            }
        }
    }

    fn merge_call(
        &self,
        node: NodeId,
        shard_id: ShardId,
        merge_id: MergeId,
    ) -> Result<(Client, MergeRequest), String> {
        let client = self.calls.client(node).map_err(|error| error.to_string())?;
        let request = MergeRequest {
            shard_id: shard_id.0,
            merge_id: merge_id.0,
        };
        Ok((client, request))
    }

    /// Changes the members of a shard's group where it is led.
    async fn change(
        &self,
        shard: ShardId,
        leader: NodeId,
        change: Change,
        config: ConfigVersion,
    ) -> Result<(), String> {
        let request = ChangeMembersRequest {
            shard_id: shard.0,
            from: Some(config_to_proto(config_of(config))),
            change: Some(change),
        };
        let mut client = self
            .calls
            .client(leader)
            .map_err(|error| error.to_string())?;
        let changed = client.change_members(request).await;
        changed
            .map(drop)
            .map_err(|status| status.message().to_owned())
    }
}

/// The versions that a node says it supports.
pub fn supported_by(status: &StatusResponse) -> Supported {
    let node = status.node.as_ref();
    let said = node.map(|node| (node.cluster_version_min, node.cluster_version_max));
    let (min, max) = said.unwrap_or_default();
    Supported::said(min, max)
}

fn done<T>(answer: Result<Response<T>, Status>) -> Result<(), String> {
    answer
        .map(drop)
        .map_err(|status| status.message().to_owned())
}

async fn change_meta(
    meta_group: &Replica,
    change: MemberChange,
    config: ConfigVersion,
) -> Result<(), String> {
    let changed = meta_group
        .group()
        .change_members(change, config_of(config))
        .await;
    changed.map_err(|error| error.to_string())
}

/// Where a test may end this process: before and after each kind of step.
fn points(step: &Step) -> (&'static str, &'static str) {
    match step {
        Step::Propose(MetaCommand::StartMove { .. }) => ("steering.start", "steering.started"),
        Step::AddLearner { .. } => ("steering.learner", "steering.learner_added"),
        Step::Propose(MetaCommand::SwitchMove { .. }) => ("steering.switch", "steering.switched"),
        Step::ChangeVoters { .. } => ("steering.voters", "steering.voters_changed"),
        Step::Propose(MetaCommand::FinishMove { .. }) => ("steering.finish", "steering.finished"),
        Step::Propose(MetaCommand::CancelMove { .. }) => ("steering.cancel", "steering.cancelled"),
        Step::RemoveLearner { .. } => ("steering.unlearn", "steering.learner_removed"),
        Step::TransferLeader { .. } => ("steering.transfer", "steering.transferred"),
        Step::Propose(MetaCommand::StartSplit { .. }) => {
            ("steering.start_split", "steering.split_started")
        }
        Step::Split { .. } => ("steering.split", "steering.split_told"),
        Step::Propose(MetaCommand::FinishSplit { .. }) => {
            ("steering.finish_split", "steering.split_finished")
        }
        Step::Propose(MetaCommand::StartMerge { .. }) => {
            ("steering.start_merge", "steering.merge_started")
        }
        Step::Propose(MetaCommand::FreezeMerge { .. }) => {
            ("steering.freeze_merge", "steering.merge_freezes")
        }
        Step::FreezeShard { .. } => ("steering.freeze", "steering.frozen"),
        Step::KeepFrozen { .. } => ("steering.keep", "steering.kept"),
        Step::Propose(MetaCommand::AbsorbMerge { .. }) => {
            ("steering.absorb_merge", "steering.merge_absorbs")
        }
        Step::AbsorbShard { .. } => ("steering.absorb", "steering.absorbed"),
        Step::Propose(MetaCommand::FinishMerge { .. }) => {
            ("steering.finish_merge", "steering.merge_finished")
        }
        Step::Propose(MetaCommand::CancelMerge { .. }) => {
            ("steering.cancel_merge", "steering.merge_cancelled")
        }
        Step::ThawShard { .. } => ("steering.thaw", "steering.thawed"),
        Step::Propose(_) => ("steering.propose", "steering.proposed"),
        Step::MetaAddLearner { .. }
        | Step::MetaRemoveLearner { .. }
        | Step::MetaChangeVoters { .. } => ("steering.meta", "steering.meta_changed"),
    }
}

/// What a node says of a group that it leads, and in which term.
fn shard_seen(leader: NodeId, replica: &ShardReplica) -> Option<(u64, ShardSeen)> {
    let GroupStatus {
        config,
        changing,
        voters,
        learners,
        followers,
    } = replica.group.as_ref()?;
    let (config, status) = (config.as_ref()?, replica.status.as_ref()?);
    let placed = |members: &[GroupMember]| {
        let placed = members.iter().copied().map(member_from_proto);
        placed.map(replica_of).collect()
    };
    let within = ANSWERS_WITHIN.as_millis() as u64;
    let followers = followers.iter().map(|follower| {
        let seen = FollowerSeen {
            lag_entries: follower.lag_entries,
            answers: follower.answered_ms_ago.is_some_and(|ago| ago <= within),
        };
        (ReplicaId(follower.replica_id), seen)
    });
    let seen = ShardSeen {
        leader,
        config: version_of(config_from_proto(*config)),
        voters: placed(voters),
        learners: placed(learners),
        changing: *changing,
        followers: followers.collect(),
        size_bytes: status.state_bytes,
        load_per_second: status.commands_per_s,
        mark: replica
            .merges
            .as_ref()
            .map(mark_from_proto)
            .unwrap_or_default(),
    };
    Some((status.term, seen))
}

fn mark_from_proto(merges: &ShardMerges) -> MergeMark {
    MergeMark {
        frozen_by: (merges.frozen_by > 0).then_some(MergeId(merges.frozen_by)),
        seen: MergeId(merges.seen),
        absorbed: MergeId(merges.absorbed),
    }
}

fn meta_seen(me: NodeId, meta_group: &Replica) -> MetaSeen {
    let status = meta_group.group().status();
    let config = status.config.map(version_of).unwrap_or_default();
    let nodes = |members: &[Member]| members.iter().map(|member| member.node).collect();
    let followers = status.followers.iter().map(|follower| {
        let seen = FollowerSeen {
            lag_entries: follower.lag_entries,
            answers: follower
                .answered_ago
                .is_some_and(|ago| ago <= ANSWERS_WITHIN),
        };
        (follower.member.node, seen)
    });
    MetaSeen {
        leader: me,
        config,
        voters: nodes(&status.voters),
        learners: nodes(&status.learners),
        changing: status.changing,
        followers: followers.collect(),
    }
}
