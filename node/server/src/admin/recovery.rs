//! A shard that lost its majority: what is left of it, what could be lost, and the order to make
//! it anew. Keeps no state.
//!
//! Invariants: nothing is ordered while anything that is left does not answer, while a given-up
//! node does, or while the shard is led by a majority; the replica whose log goes furthest is
//! the only one that it can be made of.

use std::collections::BTreeMap;
use std::time::Duration;

use carillon_core::ids::{NodeId, ReplicaId, ShardId};
use carillon_core::map::{
    LogPosition as CorePosition, MetaCommand, MetaState, Replica, ShardDescriptor, Standing,
};
use carillon_proto::admin::replica_status::Role;
use carillon_proto::admin::{
    GetRecoveryResponse, LogPosition, RecoverShardRequest, RecoverShardResponse,
    RecoverableReplica, ReplicaStatus,
};
use carillon_proto::internal::{LogEndRequest, LogEndResponse, ShardReplica, StatusResponse};
use futures_util::future::join_all;
use tonic::{Code, Status};

use super::convert::standing_to_proto;
use super::{AdminService, Asker, status_with_reason};
use crate::gateway::errors::Failure;

/// A node that does not say what it has within this does not answer.
const LOG_END_TIMEOUT: Duration = Duration::from_secs(2);
/// A leader counts only those that answered it within this, milliseconds.
const ANSWERED_MS_MAX: u64 = 3_000;

/// What operators type to confirm that a shard is to be made anew.
fn confirmation(shard: ShardId) -> String {
    format!("shard {shard}")
}

impl AdminService {
    pub(super) async fn recovery(&self, shard_id: u32) -> Result<GetRecoveryResponse, Status> {
        let shard = self.descriptor(ShardId(shard_id)).await?;
        let meta = self.node.cluster().meta();
        let statuses = self.all_statuses().await;
        let replicas = meta.replicas_of(&shard).into_iter().map(async |replica| {
            let status = replica_status(&statuses, shard_id, replica);
            let end = match meta.standing(replica.node_id) {
                None | Some(Standing::Lost) => None,
                Some(_) => self.log_end(shard_id, replica).await,
            };
            found(&meta, &shard, replica, status, end)
        });
        let replicas = join_all(replicas).await;
        let up = |node: NodeId| statuses.get(&node).is_some_and(Option::is_some);
        let answers = |id: u64| {
            let mut replicas = replicas.iter();
            replicas.any(|one| one.replica_id == id && one.answers)
        };
        let led = statuses.iter().find_map(|(node, status)| {
            let of_shard = status.iter().flat_map(|status| &status.replicas);
            let mut of_shard = of_shard.filter(|one| one.shard_id == shard_id);
            let led = of_shard.any(|one| leads_a_majority(one, answers));
            led.then_some(*node)
        });
        Ok(assess(&meta, &shard, replicas, led, up))
    }

    /// What a node says of its replica; none when it does not, or has another one.
    async fn log_end(&self, shard_id: u32, replica: Replica) -> Option<LogEndResponse> {
        let mut client = self.client(replica.node_id).ok()?;
        let asked = client.log_end(LogEndRequest { shard_id });
        let answer = tokio::time::timeout(LOG_END_TIMEOUT, asked).await.ok()?;
        let end = answer.ok()?.into_inner();
        (end.replica_id == replica.replica_id.0).then_some(end)
    }

    pub(super) async fn recover(
        &self,
        request: RecoverShardRequest,
        asker: Asker,
    ) -> Result<RecoverShardResponse, Status> {
        let shard_id = ShardId(request.shard_id);
        let survivor = ReplicaId(request.survivor_replica_id);
        self.descriptor(shard_id).await?;
        if request.confirmation != confirmation(shard_id) {
            let text = format!(
                "the shard's name was not typed back: it is {:?}",
                confirmation(shard_id)
            );
            return Err(Failure::invalid_argument("NOT_CONFIRMED", text).into_status());
        }
        if let Some(running) = self.recovering(shard_id, survivor) {
            return Ok(running);
        }
        let recovery = self.recovery(request.shard_id).await?;
        let refused = |text: String| {
            let metadata = [("shard_id", shard_id.to_string())];
            status_with_reason(Code::FailedPrecondition, "RECOVERY_REFUSED", text, metadata)
        };
        if !recovery.hindrances.is_empty() {
            return Err(refused(recovery.hindrances.join("; ")));
        }
        let mut replicas = recovery.replicas.iter();
        let chosen = replicas.find(|one| one.replica_id == recovery.survivor_replica_id);
        let last = chosen.and_then(|one| one.last);
        let Some(last) = last.filter(|_| recovery.survivor_replica_id == survivor.0) else {
            return Err(refused(format!(
                "the replica whose log goes furthest is {} on node {}, not {survivor}; look at it again",
                recovery.survivor_replica_id, recovery.survivor_node
            )));
        };
        let command = MetaCommand::RecoverShard {
            shard_id,
            survivor,
            last: position_from_proto(last),
            at: crate::shard::now(),
        };
        self.meta_by(asker, command).await?;
        self.recovering(shard_id, survivor).ok_or_else(|| {
            let text = "it is decided, but this node does not know yet; ask again";
            status_with_reason(Code::Unavailable, "NO_LEADER", text.to_owned(), [])
        })
    }

    /// What a survivor is being made into.
    fn recovering(&self, shard: ShardId, survivor: ReplicaId) -> Option<RecoverShardResponse> {
        let meta = self.node.cluster().meta();
        let running = meta.recoveries.get(&shard);
        let running = running.filter(|running| running.from.replica_id == survivor)?;
        Some(RecoverShardResponse {
            node_id: running.to.node_id.0,
            replica_id: running.to.replica_id.0,
        })
    }
}

fn position_from_proto(position: LogPosition) -> CorePosition {
    CorePosition {
        term: position.term,
        leader: ReplicaId(position.leader_replica_id),
        index: position.index,
    }
}

fn replica_status(
    statuses: &BTreeMap<NodeId, Option<StatusResponse>>,
    shard_id: u32,
    replica: Replica,
) -> Option<&ReplicaStatus> {
    let status = statuses.get(&replica.node_id)?.as_ref()?;
    let here = status
        .replicas
        .iter()
        .filter(|one| one.shard_id == shard_id);
    let mut here = here.filter_map(|one| one.status.as_ref());
    here.find(|one| one.replica_id == replica.replica_id.0)
}

/// The replica leads, and most voters answer, here and lately there.
fn leads_a_majority(replica: &ShardReplica, answers_here: impl Fn(u64) -> bool) -> bool {
    let Some(group) = &replica.group else {
        return false;
    };
    let own = replica.status.as_ref().map_or(0, |one| one.replica_id);
    let answers = |id: u64| {
        let mut followers = group.followers.iter();
        let follower = followers.find(|follower| follower.replica_id == id);
        let ago = follower.and_then(|follower| follower.answered_ms_ago);
        id == own || (answers_here(id) && ago.is_some_and(|ago| ago <= ANSWERED_MS_MAX))
    };
    let answering = group
        .voters
        .iter()
        .filter(|voter| answers(voter.replica_id));
    2 * answering.count() > group.voters.len()
}

fn found(
    meta: &MetaState,
    shard: &ShardDescriptor,
    replica: Replica,
    status: Option<&ReplicaStatus>,
    end: Option<LogEndResponse>,
) -> RecoverableReplica {
    let answers = end.is_some();
    let end = end.unwrap_or_default();
    RecoverableReplica {
        node_id: replica.node_id.0,
        replica_id: replica.replica_id.0,
        standing: standing_to_proto(meta.standing(replica.node_id)).into(),
        answers,
        role: status.map_or(Role::Unknown, ReplicaStatus::role).into(),
        votes: shard.replicas.contains(&replica),
        last: end.last,
        committed: end.committed,
        applied_index: status.map_or(0, |status| status.applied_index),
        flushed_index: status.map_or(0, |status| status.flushed_index),
        last_at_ms: end.last_at_ms,
    }
}

/// Says what can be done, from what was found.
fn assess(
    meta: &MetaState,
    shard: &ShardDescriptor,
    replicas: Vec<RecoverableReplica>,
    led: Option<NodeId>,
    up: impl Fn(NodeId) -> bool,
) -> GetRecoveryResponse {
    let last = |one: &RecoverableReplica| one.last.map(position_from_proto);
    let survivor = replicas
        .iter()
        .filter(|one| one.answers && one.last.is_some())
        .max_by_key(|one| {
            let leads = one.role() == Role::Leader;
            (last(one), leads, one.votes, u64::MAX - one.replica_id)
        });
    let mut response = GetRecoveryResponse {
        survivor_replica_id: survivor.map_or(0, |one| one.replica_id),
        survivor_node: survivor.map_or(0, |one| one.node_id),
        confirmation: confirmation(shard.shard_id),
        hindrances: hindrances(meta, shard, &replicas, led, up),
        ..GetRecoveryResponse::default()
    };
    match survivor {
        Some(survivor) => {
            response.why = why(&replicas, survivor);
            response.losses = losses(&replicas, survivor);
        }
        None => response
            .hindrances
            .push("no replica that is left has anything of the shard".to_owned()),
    }
    response.replicas = replicas;
    response
}

fn is_lost(replica: &RecoverableReplica) -> bool {
    use carillon_proto::admin::Standing as Proto;
    matches!(replica.standing(), Proto::Lost | Proto::Unspecified)
}

fn hindrances(
    meta: &MetaState,
    shard: &ShardDescriptor,
    replicas: &[RecoverableReplica],
    led: Option<NodeId>,
    up: impl Fn(NodeId) -> bool,
) -> Vec<String> {
    let shard_id = shard.shard_id;
    if let Some(running) = meta.recoveries.get(&shard_id) {
        let node = running.to.node_id;
        if meta.standing(node).is_some_and(|now| now != Standing::Lost) {
            return vec![format!(
                "shard {shard_id} is being made anew on node {node}"
            )];
        }
    } else if let Some(node) = led {
        return vec![format!(
            "shard {shard_id} is led by node {node}, and most of its replicas answer: nothing is to be recovered"
        )];
    }
    let mut hindrances = Vec::new();
    for replica in replicas {
        let node = NodeId(replica.node_id);
        if is_lost(replica) {
            if up(node) {
                hindrances.push(format!(
                    "node {node} is given up, but answers; it is used again in a moment, unless another one has its address"
                ));
            }
        } else if !replica.answers {
            hindrances.push(format!(
                "node {node} has a replica and does not answer; bring it back, or say that it is gone for good: `carillon admin give-up {node} --force`"
            ));
        }
    }
    if hindrances.is_empty() && meta.may_have_majority(shard) {
        hindrances.push(format!(
            "most replicas of shard {shard_id} are left and answer; they elect a leader in a moment"
        ));
    }
    hindrances
}

fn why(replicas: &[RecoverableReplica], survivor: &RecoverableReplica) -> String {
    let last = survivor.last.unwrap_or_default();
    let answering = replicas.iter().filter(|one| one.answers).count();
    let place = format!("entry {} of term {}", last.index, last.term);
    match answering {
        1 => format!("it is the only replica that is left; its log ends with {place}"),
        count => format!(
            "of the {count} replicas that are left its log goes furthest, to {place}: it has all that any of them has"
        ),
    }
}

/// What only lost replicas may have had.
fn losses(replicas: &[RecoverableReplica], survivor: &RecoverableReplica) -> Vec<String> {
    let last = survivor.last.unwrap_or_default();
    let voters = replicas.iter().filter(|one| one.votes).count();
    let lost: Vec<&RecoverableReplica> = replicas
        .iter()
        .filter(|one| one.votes && is_lost(one))
        .collect();
    let nodes: Vec<String> = lost.iter().map(|one| one.node_id.to_string()).collect();
    let nodes = nodes.join(" and ");
    let mut losses = Vec::new();
    if lost.is_empty() {
        return losses;
    }
    if 2 * lost.len() <= voters {
        losses.push(format!(
            "nothing that was acknowledged: that took more replicas than the {} on the lost nodes ({nodes})",
            lost.len()
        ));
    } else if survivor.role() == Role::Leader {
        losses.push(format!(
            "it led the shard, so it has all that was acknowledged while it did; lost is only what another leader took since then, if the replicas on the lost nodes ({nodes}) elected one among themselves"
        ));
    } else {
        losses.push(format!(
            "every message that was acknowledged and is not in its log: the replicas on the lost nodes ({nodes}) were a majority without it, and may have acknowledged messages after entry {}; how many, nobody can tell without their disks",
            last.index
        ));
        losses.push(
            "with such a message its number in the conversation is given again; whoever saw the first one keeps it, and may not be shown the second one until they read the conversation".to_owned(),
        );
        losses.push(
            "for users of this shard: deliveries, read positions and cursors that it does not have; their messages are in the conversations".to_owned(),
        );
    }
    let committed = survivor.committed.map_or(0, |position| position.index);
    if last.index > committed {
        losses.push(format!(
            "on the other hand up to {} entries of it may never have been acknowledged; they count from now on",
            last.index - committed
        ));
    }
    losses
}

#[cfg(test)]
mod tests {
    use carillon_core::map::{NodeInfo, ShardMap, initial_map};
    use carillon_core::placement::Zone;
    use carillon_proto::admin::Standing as Proto;

    use super::*;

    const SHARD: ShardId = ShardId(1);

    /// Three nodes and one shard; these nodes are lost.
    fn meta(lost: &[u64]) -> MetaState {
        let node = |id| NodeInfo {
            node_id: NodeId(id),
            identity: format!("{id}"),
            client_address: String::new(),
            peer_address: format!("{id}"),
            zone: Zone::default(),
            weight: 1,
            capacity_bytes: u64::MAX,
        };
        let map: ShardMap = initial_map(&[node(1), node(2), node(3)], 1, 3).expect("a map");
        let standing = |id: u64| match lost.contains(&id) {
            true => Standing::Lost,
            false => Standing::Active,
        };
        MetaState {
            standings: (1..=3).map(|id| (NodeId(id), standing(id))).collect(),
            map,
            ..MetaState::default()
        }
    }

    fn assessed(
        meta: &MetaState,
        ends: &[(u64, Option<(u64, u64)>)],
        led: Option<u64>,
    ) -> GetRecoveryResponse {
        let shard = meta.map.shard(SHARD).expect("it exists");
        let replicas = ends.iter().map(|(node, end)| {
            let replica = shard.replica_on(NodeId(*node)).expect("it is placed");
            let end = end.map(|(term, index)| LogEndResponse {
                last: Some(LogPosition {
                    term,
                    leader_replica_id: 1,
                    index,
                }),
                ..LogEndResponse::default()
            });
            found(meta, shard, replica, None, end)
        });
        let replicas = replicas.collect();
        assess(meta, shard, replicas, led.map(NodeId), |_| false)
    }

    #[test]
    fn the_log_that_goes_furthest_is_the_one_of_the_latest_term() {
        let meta = meta(&[2, 3]);
        let one = assessed(&meta, &[(1, Some((4, 90))), (2, None), (3, None)], None);
        assert_eq!(one.hindrances, Vec::<String>::new());
        assert_eq!(one.survivor_node, 1);
        assert!(one.why.contains("only replica"), "{}", one.why);
        assert!(one.losses[0].contains("2 and 3"), "{:?}", one.losses);
        assert_eq!(one.replicas[1].standing(), Proto::Lost);
        let later = assessed(&meta, &[(1, Some((5, 7))), (2, Some((4, 90)))], None);
        assert_eq!(later.survivor_node, 1);
        assert!(later.why.contains("furthest"), "{}", later.why);
    }

    #[test]
    fn nothing_is_recovered_that_may_come_back() {
        let all = [(1, Some((4, 90))), (2, Some((4, 90))), (3, None)];
        let healthy = assessed(&meta(&[]), &all, Some(1));
        assert!(healthy.hindrances[0].contains("led by node 1"));
        let silent = assessed(&meta(&[]), &all, None);
        assert!(silent.hindrances[0].contains("give-up 3"), "{silent:?}");
        let elects = assessed(&meta(&[3]), &all, None);
        assert!(elects.hindrances[0].contains("elect"), "{elects:?}");
        let empty = [(1, None), (2, None), (3, None)];
        let nothing = assessed(&meta(&[1, 2, 3]), &empty, None);
        assert_eq!(nothing.survivor_replica_id, 0);
        assert!(nothing.hindrances[0].contains("no replica"), "{nothing:?}");
    }
}
