//! Where replicas and leaders are to be: the pure placement solver.
//!
//! [`solve`] takes the nodes, the shards and where their replicas are now, and says where
//! they should be. It owns no state and reads no clock, file or random number; equal inputs
//! give equal answers on every machine, whatever the order of the lists. All arithmetic is
//! on integers.
//!
//! What is looked for, the first before the second and so on:
//! 1. every shard has its replicas, each on another node, none on a node that is down or
//!    draining while another node has room;
//! 2. a shard's replicas are spread over the zones as evenly as the zones allow;
//! 3. the objective `imbalance + GAIN × bytes moved` is small. The imbalance is the sum of
//!    `usage² / weight` over the nodes, of bytes before load before number of replicas. A
//!    replica that is not where it was before must so repay its way, which is the
//!    hysteresis ([`Constraints::gain_percent_min`]);
//! 4. leaders are in the zone that is asked for ([`Constraints::leader_zone`]), of shards that
//!    have an active replica there;
//! 5. leaders are even, by changing as few as possible.
//!
//! Invariants of every answer:
//! - `distinct nodes of a shard = its replicas ≤ replication factor`.
//! - a node that gets a new replica is active, and `used ≤ capacity` on it.
//! - `replicas after ≥ min(replicas before on known nodes, replication factor)`.
//! - `solve(solve(x)) = solve(x)`: a second run moves nothing.
//! - while a node is down, nothing is moved that repair does not need; a replica of another shard
//!   only to make room that no node has.
//!
//! The steps: `check` looks at the problem, `layout` is the working state with its indexes,
//! `repair` makes 1 and 2 true, by `displace` when no node has room as it is, `balance` and `swap` lower 3 as `objective` counts it,
//! `leaders` does 4 and 5, `report` says what could not be done.

mod balance;
mod check;
mod displace;
mod layout;
mod leaders;
mod objective;
mod repair;
mod report;
mod swap;

use std::collections::BTreeMap;
use std::fmt;

pub use self::check::PlacementError;
use self::layout::Layout;
pub use self::report::{Shortfall, ShortfallReason};
use crate::ids::{NodeId, ShardId};

/// The largest number of shards of a problem.
pub const PROBLEM_SHARDS_MAX: usize = 65_536;
/// The largest number of replicas of a shard. Every one of them is part of every commit,
/// and a majority of seven survives three losses already.
pub const REPLICATION_FACTOR_MAX: u32 = 7;
/// The largest weight of a node.
pub const WEIGHT_MAX: u32 = 10_000;
/// The largest [`Constraints::gain_percent_min`].
pub const GAIN_PERCENT_MAX: u32 = 100;

/// How often repair and balance take turns at most. Each turn needs the one before to have
/// improved something, and two or three are what is seen.
const TURNS_MAX: u32 = 64;

/// A failure domain: nodes of one zone may fail together. Nodes that name no zone share
/// the empty one.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Zone(pub String);

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a node may be used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeState {
    /// Everything.
    #[default]
    Active,
    /// It keeps what it has and takes nothing new. A replica leaves it only for a better
    /// spread over the zones, or as surplus. It is to lead what it led, and new shards only
    /// when none of their replicas is on an active node.
    Cordoned,
    /// It is to lose all its replicas, as far as others have room, and leads nothing.
    Draining,
    /// Its replicas are to be replaced; it takes nothing and leads nothing. A replica for
    /// which there is no replacement stays listed: it may come back, and without it the
    /// group would count a smaller majority. While a node is down nothing is balanced: a
    /// loss is no time for more moves. Leave the node out once it holds nothing and is not
    /// expected back.
    Down,
}

impl NodeState {
    /// Replicas there count as good.
    pub const fn is_healthy(self) -> bool {
        matches!(self, NodeState::Active | NodeState::Cordoned)
    }
}

/// A node that may hold replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub node_id: NodeId,
    /// What it fails together with.
    pub zone: Zone,
    /// What its replicas may take up. Nothing new is put there beyond it; what is there
    /// already may be more.
    pub capacity_bytes: u64,
    /// Its share relative to the others', 1 to [`WEIGHT_MAX`].
    pub weight: u32,
    /// What it may be used for.
    pub state: NodeState,
}

/// A shard that is to be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Its number.
    pub shard_id: ShardId,
    /// What a replica takes up.
    pub size_bytes: u64,
    /// How much it does, in commands per second.
    pub load_per_second: u64,
}

/// What holds besides the replication factor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraints {
    /// A node gets no new replica beyond this many.
    pub replicas_per_node_max: u32,
    /// The hysteresis, 0 to [`GAIN_PERCENT_MAX`]: a replica, or a leader, is moved for
    /// balance only when the node that gives it has more than the one that takes it, by
    /// more than what is moved and this percentage of a node's mean.
    pub gain_percent_min: u32,
    /// Shards are led from here where they have a replica on an active node of it; empty: from
    /// anywhere.
    pub leader_zone: Zone,
}

impl Default for Constraints {
    fn default() -> Self {
        Constraints {
            replicas_per_node_max: PROBLEM_SHARDS_MAX as u32,
            gain_percent_min: 5,
            leader_zone: Zone::default(),
        }
    }
}

/// What is to be placed, and on what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problem {
    /// In any order; at most [`NODES_MAX`](crate::map::NODES_MAX).
    pub nodes: Vec<Node>,
    /// In any order; at most [`PROBLEM_SHARDS_MAX`].
    pub shards: Vec<Shard>,
    /// Replicas of a shard, 1 to [`REPLICATION_FACTOR_MAX`].
    pub replication_factor: u32,
    /// What else holds.
    pub constraints: Constraints,
}

/// Where a shard is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// The nodes of its replicas. In an answer: the preferred leader first, then by number.
    pub replicas: Vec<NodeId>,
    /// The node that is to lead it while it is healthy; none when no node may.
    pub preferred_leader: Option<NodeId>,
}

/// Where all shards are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// By shard.
    pub shards: BTreeMap<ShardId, Placement>,
}

impl Assignment {
    /// How many replicas are on nodes that did not have them in `previous`: what has to be
    /// copied.
    pub fn replicas_added_since(&self, previous: &Assignment) -> usize {
        let added = |(shard_id, placement): (&ShardId, &Placement)| {
            let before = previous.shards.get(shard_id);
            let before = before.map_or(&[][..], |before| &before.replicas);
            let replicas = placement.replicas.iter();
            replicas.filter(|node| !before.contains(node)).count()
        };
        self.shards.iter().map(added).sum()
    }
}

/// The answer to a [`Problem`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Solution {
    /// Where everything is to be. Every shard of the problem is in it, no other.
    pub assignment: Assignment,
    /// By shard: what could not be satisfied, and why. Empty when all is well.
    pub shortfalls: Vec<Shortfall>,
}

/// Says where replicas and leaders are to be, given where they are.
///
/// `previous` may be anything: empty, of other nodes and shards, with too few, too many or
/// doubled replicas. The order of executing the answer is the caller's: copy first, then
/// remove, so that a shard has its full number of replicas throughout.
///
/// # Errors
/// [`PlacementError`] when the problem contradicts itself or exceeds a limit.
pub fn solve(problem: &Problem, previous: &Assignment) -> Result<Solution, PlacementError> {
    let checked = check::check(problem)?;
    let mut layout = Layout::new(&checked, previous);
    repair::remove_surplus(&mut layout);
    for _ in 0..TURNS_MAX {
        let repaired = repair::repair(&mut layout);
        let balanced = balance::balance(&mut layout);
        if !repaired && !balanced {
            break;
        }
    }
    leaders::choose(&mut layout);
    Ok(report::solution(&layout))
}
