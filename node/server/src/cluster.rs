//! What this node knows of the cluster: the shard map, the replicas it holds, the links
//! to the others, and who leads what.
//!
//! Owner of the state: the meta group for the map (through [`Cluster::set_meta`]), the router
//! for the routing that follows from it, each replica for its leadership, `peer` for the links.
//!
//! Invariant: the routing changes only by [`Router::reroute`](crate::router::Router::reroute),
//! which hands over what waits; so what one caller submits for a slot stays in its order.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::BufMut;
use carillon_core::ids::{NodeId, ShardId, Slot};
use carillon_core::map::{META_SHARD, MergeStep, MetaState, ShardMap};
use carillon_core::merging::MergeId;
use carillon_raft::Link;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};

use crate::peer::frames;
use crate::router::{Payload, Undone};
use crate::shard::Replica;
use crate::shard::lead::Lead;
use crate::shard::queue::Origin;

/// A shard's leader, in one lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The node that leads.
    pub node: NodeId,
    /// In which lead; any when a node is only asked whether it leads.
    pub lead: Lead,
}

/// Shared by everything in a node.
pub struct Cluster {
    me: NodeId,
    meta: watch::Sender<Arc<MetaState>>,
    routing: RwLock<Routing>,
    routing_version: watch::Sender<u64>,
    /// New shards that are known to exist, before the map has them.
    split_off: Mutex<BTreeSet<ShardId>>,
    /// Shards that are known to be their neighbours', before the map says so.
    absorbed: Mutex<BTreeSet<ShardId>>,
    reroute: Notify,
    replicas: RwLock<BTreeMap<ShardId, Arc<Replica>>>,
    relays: RwLock<HashMap<NodeId, Arc<Link>>>,
    /// What nodes that are linked now say that they lead.
    announced: RwLock<HashMap<ShardId, Route>>,
}

/// The shard of each slot; empty before there is a map.
pub type Routing = Arc<[ShardId]>;

impl Cluster {
    /// Knows nothing but itself.
    pub fn new(me: NodeId) -> Arc<Self> {
        Arc::new(Self {
            me,
            meta: watch::Sender::new(Arc::new(MetaState::default())),
            routing: RwLock::new(Arc::from([])),
            routing_version: watch::Sender::new(0),
            split_off: Mutex::default(),
            absorbed: Mutex::default(),
            reroute: Notify::new(),
            replicas: RwLock::new(BTreeMap::new()),
            relays: RwLock::new(HashMap::new()),
            announced: RwLock::new(HashMap::new()),
        })
    }

    /// This node.
    pub fn me(&self) -> NodeId {
        self.me
    }

    /// The replicated state of the meta group as this node has applied it.
    pub fn meta(&self) -> Arc<MetaState> {
        self.meta.borrow().clone()
    }

    /// Changes of it.
    pub fn watch_meta(&self) -> watch::Receiver<Arc<MetaState>> {
        self.meta.subscribe()
    }

    /// The meta group applied a change.
    pub fn set_meta(&self, state: Arc<MetaState>) {
        self.meta.send_replace(state);
        let mut routing = self.routing.write();
        if routing.is_empty() {
            *routing = self.next_routing();
        } else {
            self.reroute.notify_one();
        }
    }

    /// Another routing may be due.
    pub fn look_at_routing(&self) {
        self.reroute.notify_one();
    }

    /// Resolves when another routing may be due.
    pub async fn reroute_due(&self) {
        self.reroute.notified().await;
    }

    /// The shard's group has done its split, if it is being split.
    pub fn split_is_done(&self, shard: ShardId) {
        let meta = self.meta();
        if let Some(split) = meta.splits.get(&shard) {
            self.exists(split.new_shard_id);
        }
    }

    /// The shard has taken its neighbour over, in this merge at last. Not known by its refusals:
    /// those may be of before, and what goes there too early would wait for a further change.
    pub fn merge_is_done(&self, shard: ShardId, last: MergeId) {
        let meta = self.meta();
        if let Some(merge) = meta.merges.get(&shard)
            && merge.step == MergeStep::Absorbing
            && merge.merge_id <= last
            && self.absorbed.lock().insert(merge.absorbed_shard_id)
        {
            self.reroute.notify_one();
        }
    }

    /// A shard that a split makes has a leader, or a state.
    fn exists(&self, new_shard: ShardId) {
        if self.split_off.lock().insert(new_shard) {
            self.reroute.notify_one();
        }
    }

    /// The routing now.
    pub fn routing(&self) -> Routing {
        self.routing.read().clone()
    }

    /// A number that grows with every routing.
    pub fn watch_routing(&self) -> watch::Receiver<u64> {
        self.routing_version.subscribe()
    }

    /// Only for the router, which knows what has to move with it.
    pub fn set_routing(&self, routing: Routing) {
        *self.routing.write() = routing;
        self.routing_version.send_modify(|version| *version += 1);
    }

    /// The routing that the map and the splits and merges that are known to be done make.
    pub fn next_routing(&self) -> Routing {
        let meta = self.meta();
        let mut table = slot_table(&meta.map);
        let mut split_off = self.split_off.lock();
        split_off.retain(|new_shard| meta.split_into(*new_shard).is_some());
        for split in meta.splits.values() {
            if split_off.contains(&split.new_shard_id)
                && let Some(old) = meta.map.shard(split.shard_id)
                && let Some(new) = split.new_shard(old)
            {
                let slots = usize::from(new.slots.first.0)..=usize::from(new.slots.last.0);
                table[slots].fill(new.shard_id);
            }
        }
        drop(split_off);
        let mut absorbed = self.absorbed.lock();
        absorbed.retain(|shard| meta.map.shard(*shard).is_some());
        for merge in meta.merges.values() {
            if absorbed.contains(&merge.absorbed_shard_id)
                && let Some(right) = meta.map.shard(merge.absorbed_shard_id)
            {
                let slots = usize::from(right.slots.first.0)..=usize::from(right.slots.last.0);
                table[slots].fill(merge.shard_id);
            }
        }
        table.into()
    }

    /// Whether a neighbour has taken the shard over, for sure: what this node does not know of
    /// yet is not gone. Whoever still asks for it has an older routing than there is.
    pub fn is_gone(&self, shard: ShardId) -> bool {
        let meta = self.meta();
        let was_there = META_SHARD < shard && shard < meta.next_shard_id;
        let is_there = meta.map.shard(shard).is_some() || meta.split_into(shard).is_some();
        (was_there && !is_there) || self.absorbed.lock().contains(&shard)
    }

    /// Whether a shard has slots, by the routing; of all shards before there is one.
    pub fn is_routed(&self, shard: ShardId) -> bool {
        let routing = self.routing.read();
        routing.is_empty() || routing.contains(&shard)
    }

    /// The shards that have slots, by the routing.
    pub fn routed_shards(&self) -> Vec<ShardId> {
        let mut shards = self.routing().to_vec();
        shards.dedup();
        shards
    }

    /// The shard that owns a slot; shard 1 while no map is known, where nothing answers.
    #[inline]
    pub fn shard_of(&self, slot: Slot) -> ShardId {
        self.routing
            .read()
            .get(usize::from(slot.0))
            .copied()
            .unwrap_or(ShardId(1))
    }

    /// The replica of a shard on this node.
    pub fn replica(&self, shard: ShardId) -> Option<Arc<Replica>> {
        self.replicas.read().get(&shard).cloned()
    }

    /// All replicas on this node, by shard.
    pub fn replicas(&self) -> Vec<Arc<Replica>> {
        self.replicas.read().values().cloned().collect()
    }

    /// A replica has started here.
    pub fn add_replica(&self, replica: Arc<Replica>) {
        self.replicas.write().insert(replica.shard(), replica);
    }

    /// A replica here is about to be deleted; returns it.
    pub fn remove_replica(&self, shard: ShardId) -> Option<Arc<Replica>> {
        self.replicas.write().remove(&shard)
    }

    /// The relay link to a node.
    pub fn relay(&self, node: NodeId) -> Option<Arc<Link>> {
        self.relays.read().get(&node).cloned()
    }

    /// The nodes that have a relay link, up or not.
    pub fn linked_peers(&self) -> Vec<NodeId> {
        self.relays.read().keys().copied().collect()
    }

    /// A node is no longer of the cluster.
    pub fn remove_relay(&self, node: NodeId) -> Option<Arc<Link>> {
        self.relays.write().remove(&node)
    }

    /// A link to a node exists.
    pub fn add_relay(&self, node: NodeId, link: Arc<Link>) {
        self.relays.write().insert(node, link);
    }

    /// Nodes that are linked now, itself included.
    pub fn nodes_up(&self) -> usize {
        1 + self
            .relays
            .read()
            .values()
            .filter(|link| link.is_up())
            .count()
    }

    /// True when the node is this one or linked now.
    pub fn is_up(&self, node: NodeId) -> bool {
        node == self.me || self.relay(node).is_some_and(|link| link.is_up())
    }

    /// The leader of a shard as this node knows it: by its replica, or because the leader
    /// announced itself.
    pub fn leader(&self, shard: ShardId) -> Option<Route> {
        let replica = self.replicas.read().get(&shard).cloned();
        let known = replica.and_then(|replica| replica.leader());
        let announced = self.announced.read().get(&shard).copied();
        known
            .into_iter()
            .chain(announced)
            .max_by_key(|route| route.lead)
    }

    /// This node leads a shard: tells all others, of which many have no replica of it.
    pub fn announce(&self, shard: ShardId, lead: Lead) {
        for link in self.relays.read().values().filter(|link| link.is_up()) {
            frames::send_leads(link, shard, lead);
        }
    }

    /// Another node leads a shard, it says. False when that is nothing new here, or the
    /// replica here learns of it by itself and tells whom it concerns.
    pub fn announced(&self, shard: ShardId, route: Route) -> bool {
        {
            let mut announced = self.announced.write();
            let before = announced.get(&shard);
            if before.is_some_and(|before| before.lead >= route.lead) {
                return false;
            }
            // Kept also where a replica knows it, which may be deleted one day.
            announced.insert(shard, route);
        }
        if self.meta().split_into(shard).is_some() {
            self.exists(shard);
        }
        self.replica(shard).is_none()
    }

    /// The link to a node is down: what it said of itself may be over without a word.
    pub fn forget_announced(&self, node: NodeId) {
        self.announced.write().retain(|_, route| route.node != node);
    }

    /// Whom to ask next when no leader is known: the replicas' nodes in turn.
    pub fn probe_route(&self, shard: ShardId, turn: usize) -> Option<Route> {
        if self.replicas.read().contains_key(&shard) {
            // The replica here will learn of the leader first.
            return None;
        }
        let meta = self.meta.borrow();
        let placed = meta.map.shard(shard).map(|placed| &placed.replicas);
        let replicas = placed.or_else(|| meta.split_into(shard).map(|split| &split.replicas));
        let up: Vec<NodeId> = replicas?
            .iter()
            .map(|replica| replica.node_id)
            .filter(|node| self.relay(*node).is_some_and(|link| link.is_up()))
            .collect();
        let node = *up.get(turn % up.len().max(1))?;
        Some(Route {
            node,
            lead: Lead::ANY,
        })
    }

    /// Hands an operation to the leader, here or over the relay. An error means that it
    /// was not taken.
    pub fn offer(
        &self,
        shard: ShardId,
        route: Route,
        sequence: u64,
        payload: &Payload,
    ) -> Result<(), Undone> {
        if route.node == self.me {
            let Some(replica) = self.replica(shard) else {
                return Err(Undone::Retry(None));
            };
            return replica.take(route.lead, payload, Origin::Lane { sequence });
        }
        let Some(link) = self.relay(route.node) else {
            return Err(Undone::Retry(None));
        };
        let (kind, body) = match payload {
            Payload::Command(body) => (frames::COMMAND, body),
            Payload::Query(body) => (frames::QUERY, body),
            Payload::Deliver(body) => (frames::DELIVER, body),
        };
        let sent = link.send(kind, shard, sequence, |buffer| {
            route.lead.write(buffer);
            buffer.put_slice(body);
        });
        if sent {
            Ok(())
        } else {
            Err(Undone::Retry(None))
        }
    }
}

fn slot_table(map: &ShardMap) -> Vec<ShardId> {
    let Some(last) = map.shards.last() else {
        return Vec::new();
    };
    let mut table = vec![last.shard_id; usize::from(carillon_core::ids::SLOTS)];
    for descriptor in &map.shards {
        for slot in descriptor.slots.first.0..=descriptor.slots.last.0 {
            table[usize::from(slot)] = descriptor.shard_id;
        }
    }
    table
}
