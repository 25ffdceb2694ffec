//! Operations that change lanes because their slots get another shard.
//!
//! The order of things makes it safe: the new lane is stopped first, then the routing is
//! changed, then the old lane is told. Whoever enters the old lane looks at the routing under
//! the lane's lock, so what comes after the change goes to the new lane and waits there, and
//! what came before is handed over in front of it.

use std::collections::BTreeMap;
use std::collections::VecDeque;

use carillon_core::ids::ShardId;

use super::{About, Completed, Lane, LaneState, OpError, Operation, Router, finish, retract};

impl Router {
    /// Makes the routing what the map says, once the last change is wholly through. Returns the
    /// shards that got slots of others, which know nothing of who listens on this node.
    pub fn reroute(&self) -> Vec<ShardId> {
        let _one = self.rerouting.lock();
        let lanes = self.lanes.read().clone();
        if lanes
            .iter()
            .any(|lane| !lane.state.lock().leaving.is_empty())
        {
            return Vec::new();
        }
        let (now, next) = (self.cluster.routing(), self.cluster.next_routing());
        let mut moves: Vec<(ShardId, ShardId)> = now
            .iter()
            .zip(next.iter())
            .filter(|(from, to)| from != to)
            .map(|(from, to)| (*from, *to))
            .collect();
        moves.sort_unstable();
        moves.dedup();
        if moves.is_empty() {
            return Vec::new();
        }
        for (_, to) in &moves {
            let lane = self.lane(*to);
            let mut state = lane.state.lock();
            state.awaited += 1;
            state.route = None;
        }
        self.cluster.set_routing(next);
        let mut gained = Vec::new();
        for (from, to) in moves {
            let merged = !self.cluster.is_routed(from);
            tracing::info!(from = from.0, to = to.0, "slots have another shard");
            gained.push(to);
            let lane = self.lane(from);
            let mut completed = Completed::new();
            {
                let mut state = lane.state.lock();
                state.leaving.push(to);
                state.route = None;
                if merged {
                    // It is frozen for ever: what is in flight was done before, and is
                    // recognised when it is asked for again, or is never done there.
                    retract(&mut state);
                }
                self.flow(&lane, &mut state, &mut completed);
            }
            finish(completed);
        }
        gained.dedup();
        gained
    }

    /// Whether nobody answers what several slots of the shard are asked any more: it has none,
    /// since its neighbour has taken it over.
    pub(super) fn has_ended(&self, shard: ShardId, about: About) -> bool {
        matches!(about, About::Slots { .. }) && !self.cluster.is_routed(shard)
    }

    /// Hands over what belongs to other lanes, once nothing is in flight any more.
    pub(super) fn hand_over(&self, lane: &Lane, state: &mut LaneState, completed: &mut Completed) {
        if state.leaving.is_empty() || state.unsettled > 0 || state.awaited > 0 {
            return;
        }
        state.line_up();
        let now = self.routing_version();
        let mut kept = VecDeque::new();
        let mut gone: BTreeMap<ShardId, Vec<Operation>> = BTreeMap::new();
        for operation in state.waiting.drain(..) {
            match operation.about {
                About::Slot(slot) => match self.shard_of(slot) {
                    owner if owner == lane.shard => kept.push_back(operation),
                    owner => gone.entry(owner).or_default().push(operation),
                },
                About::Slots { version } if version < now => {
                    completed.push((operation.sink, Err(OpError::Moved)));
                }
                about if self.has_ended(lane.shard, about) => {
                    completed.push((operation.sink, Err(OpError::Moved)));
                }
                // Made since: whoever leads says whether it fits.
                About::Slots { .. } | About::Meta => kept.push_back(operation),
            }
        }
        state.waiting = kept;
        state.probe_after = None;
        for to in std::mem::take(&mut state.leaving) {
            let target = self.lane(to);
            let mut target_state = target.state.lock();
            for operation in gone.remove(&to).unwrap_or_default().into_iter().rev() {
                target_state.waiting.push_front(operation);
            }
            target_state.awaited -= 1;
            target_state.probe_after = None;
            self.flow(&target, &mut target_state, completed);
        }
        debug_assert!(gone.is_empty(), "slots went where the lane was not told of");
        // Another change may have waited for this one.
        self.cluster.look_at_routing();
    }
}
