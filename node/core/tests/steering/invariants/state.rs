//! What holds of the meta group's state after every command, whoever sends them in whatever
//! order.

use std::collections::BTreeSet;

use carillon_core::map::{
    EVENTS_MAX, EventKind, MERGES_MAX, MergeStep, MetaState, Replica, SPLITS_MAX, Standing,
};
use carillon_core::{NodeId, SLOTS, ShardId};

pub fn check_invariants(state: &MetaState) {
    if !state.exists() {
        return;
    }
    let nodes: Vec<NodeId> = state.map.nodes.iter().map(|node| node.node_id).collect();
    assert!(nodes.is_sorted_by(|one, other| one < other), "{nodes:?}");
    assert!(
        nodes.iter().eq(state.standings.keys()),
        "nodes and standings differ"
    );
    assert!(nodes.iter().all(|node| *node < state.next_node_id));
    let identities: BTreeSet<&str> = state.map.nodes.iter().map(|node| &*node.identity).collect();
    assert_eq!(identities.len(), nodes.len(), "an identity is there twice");
    let mut replica_ids = BTreeSet::new();
    let mut next_slot = 0;
    for shard in &state.map.shards {
        assert_eq!(shard.slots.first.0, next_slot);
        next_slot = shard.slots.last.0 + 1;
        let running = state.moves.get(&shard.shard_id);
        let made_anew = state.events.iter().any(|event| {
            matches!(event.what, EventKind::RecoveryStarted { shard_id, .. } if shard_id == shard.shard_id)
        });
        // It has one replica then, and gets the others one after the other.
        let least = match made_anew {
            true => 1,
            false => state.replication_factor as usize,
        };
        check_replicas(&shard.replicas, &nodes, least);
        assert!(shard.replica_on(shard.preferred_leader).is_some());
        let added = running.and_then(|running| running.add);
        for replica in shard.replicas.iter().chain(&added) {
            assert!(
                replica_ids.insert(replica.replica_id),
                "{replica:?} is there twice"
            );
            assert!(replica.replica_id < state.next_replica_id);
        }
        let split = state.splits.get(&shard.shard_id);
        if let Some(split) = split {
            assert!(running.is_none(), "it moves while it is split");
            assert_eq!(split.shard_id, shard.shard_id);
            assert!(shard.slots.split(split.slot).is_some());
            assert!(state.map.shard(split.new_shard_id).is_none());
            let on = |replicas: &[Replica]| -> Vec<NodeId> {
                let mut on: Vec<_> = replicas.iter().map(|replica| replica.node_id).collect();
                on.sort_unstable();
                on
            };
            assert_eq!(on(&split.replicas), on(&shard.replicas));
            for replica in &split.replicas {
                assert!(replica_ids.insert(replica.replica_id));
                assert!(replica.replica_id < state.next_replica_id);
            }
        }
        if let Some(running) = running {
            assert_eq!(running.shard_id, shard.shard_id);
            assert!(running.move_id < state.next_move_id);
            assert!(
                running
                    .remove
                    .is_none_or(|gone| shard.replicas.contains(&gone))
            );
            let after = running.replicas_after(shard);
            check_replicas(&after, &nodes, least);
            let leads = |replica: &Replica| replica.node_id == running.preferred_leader;
            assert!(after.iter().any(leads));
        }
    }
    assert_eq!(next_slot, SLOTS);
    let mut moving = state.moves.keys().chain(state.splits.keys());
    assert!(moving.all(|shard| state.map.shard(*shard).is_some()));
    assert!(state.splits.len() <= SPLITS_MAX);
    check_merges(state);
    let placed = state.map.shards.iter().map(|shard| shard.shard_id);
    let made = state.splits.values().map(|split| split.new_shard_id);
    let shard_ids: BTreeSet<ShardId> = placed.chain(made).collect();
    let shards = state.map.shards.len() + state.splits.len();
    assert_eq!(shard_ids.len(), shards, "a shard's number is given twice");
    assert!(shard_ids.iter().all(|shard| *shard < state.next_shard_id));
    for (shard_id, recovery) in &state.recoveries {
        assert_eq!(*shard_id, recovery.shard_id);
        assert!(!state.moves.contains_key(shard_id), "{recovery:?}");
        let shard = state.map.shard(*shard_id).expect("it exists");
        assert_eq!(shard.replicas, [recovery.to]);
        assert!(!state.names_replica(*shard_id, recovery.from.replica_id));
        for other in &recovery.others {
            assert!(state.names_replica(*shard_id, other.replica_id));
            assert!(replica_ids.insert(other.replica_id), "{recovery:?}");
        }
    }
    assert!(state.events.len() <= EVENTS_MAX);
}

fn check_replicas(replicas: &[Replica], nodes: &[NodeId], least: usize) {
    assert!(replicas.len() >= least, "{replicas:?}");
    let on: BTreeSet<NodeId> = replicas.iter().map(|replica| replica.node_id).collect();
    assert_eq!(
        on.len(),
        replicas.len(),
        "two replicas on a node: {replicas:?}"
    );
    assert!(on.iter().all(|node| nodes.contains(node)), "{replicas:?}");
}

fn check_merges(state: &MetaState) {
    assert!(state.merges.len() <= MERGES_MAX);
    for (shard_id, merge) in &state.merges {
        assert_eq!(*shard_id, merge.shard_id);
        assert!(merge.merge_id < state.next_merge_id);
        let (stays, goes) = state.merging(merge).expect("both are there");
        assert_eq!(stays.slots.last.0 + 1, goes.slots.first.0);
        let frozen = matches!(merge.step, MergeStep::Freezing | MergeStep::Absorbing);
        for shard in [stays, goes] {
            assert!(!state.splits.contains_key(&shard.shard_id), "{merge:?}");
            let moves = state.moves.contains_key(&shard.shard_id);
            assert!(!frozen || !moves, "{merge:?}: it moves");
        }
        let made_anew = state.recoveries.contains_key(shard_id);
        assert!(
            !frozen || made_anew || stays.nodes() == goes.nodes() || {
                // What takes over may have been made anew meanwhile, and have fewer replicas since.
                merge.step == MergeStep::Absorbing && stays.replicas.len() < goes.replicas.len()
            }
        );
    }
}

/// What holds of two states that follow each other.
pub fn check_change(before: &MetaState, after: &MetaState) {
    assert!(before.map.epoch <= after.map.epoch);
    assert!(before.next_replica_id <= after.next_replica_id);
    assert!(before.next_node_id <= after.next_node_id);
    assert!(before.next_move_id <= after.next_move_id);
    assert!(before.next_shard_id <= after.next_shard_id);
    for (shard_id, split) in &before.splits {
        // What was started is finished, as it was.
        let made = after.map.shard(split.new_shard_id);
        let on = made.map_or(&split.replicas, |made| &made.replicas);
        assert_eq!(*on, split.replicas);
        assert!(made.is_some() || after.splits.get(shard_id) == Some(split));
    }
    assert!(before.next_merge_id <= after.next_merge_id);
    for (shard_id, merge) in &before.merges {
        // What is being taken over is, whatever happens.
        if merge.step == MergeStep::Absorbing {
            let is_done = after.map.shard(merge.absorbed_shard_id).is_none();
            assert!(is_done || after.merges.get(shard_id) == Some(merge));
        }
    }
    let same_moves = before.moves.keys().eq(after.moves.keys())
        && before.splits.keys().eq(after.splits.keys())
        && before.merges == after.merges;
    let same_map = before.map.shards == after.map.shards && before.map.nodes == after.map.nodes;
    if !same_moves || !same_map || before.standings != after.standings {
        assert!(before.map.epoch < after.map.epoch, "the epoch did not grow");
    }
    for node in &after.map.nodes {
        let known = before.map.node(node.node_id);
        assert!(known.is_none_or(|known| known.identity == node.identity));
        assert!(known.is_some() || node.node_id >= before.next_node_id);
    }
    // Who is out of the registry held nothing.
    for node in before.map.nodes.iter().map(|node| node.node_id) {
        if after.map.node(node).is_none() {
            assert_eq!(before.replicas_on(node), 0);
            assert!(before.standing(node).is_some_and(Standing::is_leaving));
        }
    }
}
