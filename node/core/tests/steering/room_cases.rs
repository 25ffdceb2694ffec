//! Disks that are nearly full: no replica comes to them, whatever capacity nodes announce.

use carillon_core::map::{MetaCommand, MetaState, MoveReason, Standing, apply_meta};
use carillon_core::steering::{DISK_RESERVE_BYTES, Plan, SIZE_STEP_BYTES, Seen, Step, plan};
use carillon_core::{NodeId, ShardId};

use crate::cases::{cluster, healthy, set, silence};

/// Plans that may be needed until moves start: what was led on the lost node comes first.
const PLANS_MAX: usize = 5;
const MIB: u64 = 1 << 20;

/// Five nodes, of which the last is lost.
fn one_lost() -> MetaState {
    let mut state = cluster(5, 12, 3);
    set(&mut state, 5, Standing::Lost, true);
    state
}

fn seen(state: &MetaState, size_bytes: u64, free: impl Fn(u64) -> u64) -> Seen {
    let mut seen = healthy(state);
    for (node, seen) in &mut seen.nodes {
        seen.disk_free_bytes = Some(free(node.0));
    }
    for shard in seen.shards.values_mut() {
        shard.size_bytes = size_bytes;
    }
    silence(&mut seen, state, 5, 900);
    seen
}

/// The first plan that starts moves, and where to; the last plan when none does.
fn starts(state: &mut MetaState, seen: &Seen) -> (Vec<NodeId>, Plan) {
    let mut last = Plan::default();
    for _ in 0..PLANS_MAX {
        last = plan(state, seen);
        let to = |step: &Step| match step {
            Step::Propose(MetaCommand::StartMove { to, .. }) => *to,
            _ => None,
        };
        let starts: Vec<NodeId> = last.steps.iter().filter_map(to).collect();
        if !starts.is_empty() {
            return (starts, last);
        }
        for step in &last.steps {
            if let Step::Propose(command) = step {
                apply_meta(state, command.clone());
            }
        }
    }
    (Vec::new(), last)
}

#[test]
fn replicas_go_to_disks_that_have_room() {
    let mut state = one_lost();
    let full = DISK_RESERVE_BYTES + SIZE_STEP_BYTES - 1;
    let seen = seen(&state, 10 * MIB, |node| match node {
        4 => full,
        _ => u64::MAX,
    });
    let (to, last) = starts(&mut state, &seen);
    assert!(!to.is_empty(), "{last:?}");
    assert!(!to.contains(&NodeId(4)), "{to:?}");
}

#[test]
fn a_replica_that_fits_nowhere_waits_and_says_which_disks_are_full() {
    let mut state = one_lost();
    let full = seen(&state, 10 * MIB, |_| DISK_RESERVE_BYTES);
    let (to, last) = starts(&mut state, &full);
    assert_eq!(to, []);
    let says = |wait: &&carillon_core::steering::Wait| {
        wait.text
            .contains("no room is on the disks of nodes 1, 2, 3, 4")
    };
    assert!(last.waits.iter().any(|wait| says(&wait)), "{last:#?}");
    // Leaders are where they were: a full disk gives nothing up.
    let lead = state.map.shards.iter().map(|shard| shard.preferred_leader);
    assert!(lead.into_iter().any(|node| node == NodeId(1)));
    let seen = seen(&state, 10 * MIB, |_| u64::MAX);
    assert_ne!(starts(&mut state, &seen).0, []);
}

/// Nothing is balanced while a node is emptied; what makes room for its replicas is no balance.
#[test]
fn what_makes_room_for_a_drain_moves_first_and_as_part_of_it() {
    let mut state = cluster(3, 4, 1);
    let on = |state: &MetaState, id: u32| {
        let shard = state.map.shard(ShardId(id)).expect("it is there");
        shard.replicas[0].node_id
    };
    let sizes = |state: &MetaState, seen: &mut Seen| {
        // Two shards are on one node: they are the small ones.
        let nodes: Vec<NodeId> = (1..=4).map(|id| on(state, id)).collect();
        let crowded = |node: &NodeId| nodes.iter().filter(|other| *other == node).count() == 2;
        for id in 1..=4 {
            let small = crowded(&nodes[id as usize - 1]);
            let size = if small { 3 } else { 6 } * SIZE_STEP_BYTES;
            seen.shards
                .get_mut(&ShardId(id))
                .expect("it is seen")
                .size_bytes = size;
        }
        let drained = nodes.iter().find(|node| !crowded(node)).copied();
        (drained.expect("four shards, three nodes"), nodes)
    };
    for node in &mut state.map.nodes {
        node.capacity_bytes = 10 * SIZE_STEP_BYTES;
    }
    let mut seen = healthy(&state);
    let (drained, nodes) = sizes(&state, &mut seen);
    set(&mut state, drained.0, Standing::DRAINING_FOR_REMOVAL, false);
    let starts = |plan: &Plan| {
        let start = |step: &Step| match step {
            Step::Propose(MetaCommand::StartMove {
                shard_id,
                from: Some(from),
                reason,
                ..
            }) => Some((*shard_id, *from, *reason)),
            _ => None,
        };
        plan.steps.iter().filter_map(start).collect::<Vec<_>>()
    };
    let first = plan(&state, &seen);
    let [(shard_id, from, reason)] = starts(&first)[..] else {
        panic!("{first:#?}");
    };
    assert_eq!(reason, MoveReason::Drain);
    assert_ne!(from, drained);
    assert_eq!(nodes[shard_id.0 as usize - 1], from);
    assert!(
        first
            .waits
            .iter()
            .any(|wait| wait.text.contains("has no room before others")),
        "{first:#?}"
    );
}

#[test]
fn a_disk_takes_as_much_as_it_has_room_for() {
    let size = 1 << 30;
    for (left, fits) in [
        (size + SIZE_STEP_BYTES - 1, false),
        (size + SIZE_STEP_BYTES, true),
    ] {
        let mut state = one_lost();
        let seen = seen(&state, size, |_| DISK_RESERVE_BYTES + left);
        let (to, last) = starts(&mut state, &seen);
        assert_eq!(!to.is_empty(), fits, "{left}: {last:#?}");
        let mut nodes = to.clone();
        nodes.sort();
        nodes.dedup();
        assert_eq!(nodes.len(), to.len(), "only one to each: {to:?}");
    }
}
