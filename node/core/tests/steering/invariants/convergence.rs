//! Once the faults end, the cluster becomes whole: nothing is left to do, every shard has all
//! its replicas on active nodes, and emptied nodes are empty.

use carillon_core::NodeId;
use carillon_core::map::{DrainPurpose, Standing};
use carillon_core::steering::{drain_danger, drain_status, plan};

use crate::group::ReplicaKey;
use crate::world::World;

/// Ticks that it may take.
const TICKS_MAX: u64 = 1_500;
/// Ticks without a step until it counts as whole.
const QUIET_TICKS: u64 = 25;

pub fn check(world: &mut World) {
    let mut quiet = 0;
    let end = world.now + TICKS_MAX;
    while quiet < QUIET_TICKS {
        assert!(
            world.now < end,
            "it does not come to rest; the last plan: {:#?}, moves: {:#?}, standings: {:?}",
            world.last_plan,
            world.state.moves,
            world.state.standings
        );
        world.tick();
        let done = world.state.moves.is_empty()
            && world.state.splits.is_empty()
            && world.state.merges.is_empty()
            && world.in_flight.is_empty();
        let idle = done && world.last_plan.steps.is_empty();
        quiet = if idle && world.meta.leader.is_some() {
            quiet + 1
        } else {
            0
        };
    }
    let state = world.state.clone();
    assert!(
        state.moves.is_empty(),
        "{:?}, {:?}, {:#?}",
        state.moves,
        state.standings,
        world.last_plan
    );
    for shard in &state.map.shards {
        let group = &world.groups[&shard.shard_id];
        assert!(!group.changing());
        assert_eq!(
            group.mark.frozen_by, None,
            "shard {} stays frozen",
            shard.shard_id
        );
        let placed = shard.replicas.iter().copied().map(ReplicaKey::from);
        assert!(
            placed.eq_sorted(&group.committed.voters),
            "{shard:?}: {group:?}"
        );
        assert!(group.committed.learners.is_empty(), "{group:?}");
        for replica in &shard.replicas {
            let standing = state.standing(replica.node_id);
            assert_eq!(
                standing,
                Some(Standing::Active),
                "{shard:?}: {:?}",
                world.last_plan
            );
        }
        assert_eq!(
            group.leader.map(|leader| leader.node_id),
            Some(shard.preferred_leader)
        );
    }
    for host in world.hosts.iter().filter(|host| !host.gone) {
        let Some(node) = host.node_id else {
            continue;
        };
        // Who was forgotten keeps what it had when it heard the last of the cluster.
        if state.standing(node).is_some() {
            assert_eq!(host.replicas.len(), state.replicas_on(node), "node {node}");
        }
    }
    check_drains(world);
    check_meta(world);
}

fn check_drains(world: &World) {
    let Some(leader) = world.meta.leader else {
        return;
    };
    let seen = world.seen(Some(leader.node_id));
    assert_eq!(plan(&world.state, &seen).steps, []);
    for (node, standing) in &world.state.standings {
        let status = drain_status(&world.state, &seen, *node);
        let empties = standing.is_leaving();
        assert_eq!(status.done, empties, "node {node}, {standing}: {status:?}");
        let danger = drain_danger(&world.state, &seen, *node, DrainPurpose::Restart);
        assert_eq!(danger.is_empty(), !world.is_needed(*node), "{danger:?}");
    }
}

fn check_meta(world: &World) {
    let standings = world.state.standings.iter();
    let staying = standings.filter(|(_, standing)| **standing != Standing::DRAINING_FOR_REMOVAL);
    let wanted = match staying.count() {
        0..=2 => 1,
        3..=4 => 3,
        _ => 5,
    };
    let votes = |node: &NodeId| {
        world
            .meta
            .committed
            .voters
            .iter()
            .any(|one| one.node_id == *node)
    };
    let active = world.state.standings.iter();
    let active = active
        .filter(|(_, standing)| **standing == Standing::Active)
        .count();
    let voters = world.meta.committed.voters.len();
    assert!(
        voters == wanted || active < wanted,
        "{voters} instead of {wanted} voters of the meta group: {:?}, {:?}",
        world.meta,
        world.state.standings
    );
    for (node, standing) in &world.state.standings {
        assert!(
            *standing != Standing::DRAINING_FOR_REMOVAL || !votes(node),
            "node {node} votes in the meta group"
        );
    }
}

trait SortedEq {
    fn eq_sorted(self, other: &std::collections::BTreeSet<ReplicaKey>) -> bool;
}

impl<I: Iterator<Item = ReplicaKey>> SortedEq for I {
    fn eq_sorted(self, other: &std::collections::BTreeSet<ReplicaKey>) -> bool {
        self.collect::<std::collections::BTreeSet<_>>() == *other
    }
}

impl World {
    /// Some group would stop without the node.
    fn is_needed(&self, node: NodeId) -> bool {
        let mut groups = self.groups.values().chain([&self.meta]);
        groups.any(|group| {
            let config = &group.committed;
            let votes = config.voters.iter().any(|voter| voter.node_id == node);
            let reachable =
                |voter: &ReplicaKey| voter.node_id != node && self.reaches(voter.node_id);
            votes && !config.quorum(reachable)
        })
    }
}
