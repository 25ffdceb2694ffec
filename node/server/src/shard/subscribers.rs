//! Which nodes have sessions of a shard's users: soft state of the shard's leader, told
//! by the gateways and told again to every new leader.

use bytes::Bytes;
use carillon_core::ids::{NodeId, Slot, SlotRange};
use hashbrown::HashMap;

/// Users with sessions, and the nodes that have them.
#[derive(Default)]
pub struct Subscribers {
    users: HashMap<Bytes, Vec<NodeId>>,
}

impl Subscribers {
    /// A node has a session of the user.
    pub fn add(&mut self, user: Bytes, node: NodeId) {
        let nodes = self.users.entry(user).or_default();
        if !nodes.contains(&node) {
            nodes.push(node);
        }
    }

    /// A node has none any more.
    pub fn remove(&mut self, user: &[u8], node: NodeId) {
        if let Some(nodes) = self.users.get_mut(user) {
            nodes.retain(|other| *other != node);
            if nodes.is_empty() {
                self.users.remove(user);
            }
        }
    }

    /// Where the user has sessions.
    pub fn nodes(&self, user: &[u8]) -> &[NodeId] {
        self.users.get(user).map_or(&[], Vec::as_slice)
    }

    /// Nothing is known any more: another replica leads, or a node went away.
    pub fn clear(&mut self) {
        self.users.clear();
    }

    /// A split has taken the other slots away.
    pub fn keep(&mut self, slots: SlotRange) {
        self.users.retain(|user, _| slots.contains(Slot::of(user)));
    }

    /// A node is gone; it tells again when it is back.
    pub fn forget_node(&mut self, node: NodeId) {
        self.users.retain(|_, nodes| {
            nodes.retain(|other| *other != node);
            !nodes.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_sessions() {
        let mut subscribers = Subscribers::default();
        subscribers.add(Bytes::from_static(b"alice"), NodeId(1));
        subscribers.add(Bytes::from_static(b"alice"), NodeId(1));
        subscribers.add(Bytes::from_static(b"alice"), NodeId(2));
        assert_eq!(subscribers.nodes(b"alice"), [NodeId(1), NodeId(2)]);
        subscribers.remove(b"alice", NodeId(1));
        assert_eq!(subscribers.nodes(b"alice"), [NodeId(2)]);
        subscribers.forget_node(NodeId(2));
        assert!(subscribers.nodes(b"alice").is_empty());
        for user in [&b"alice"[..], b"bob"] {
            subscribers.add(Bytes::copy_from_slice(user), NodeId(1));
        }
        let slot = Slot::of(b"bob");
        subscribers.keep(SlotRange {
            first: slot,
            last: slot,
        });
        assert!(subscribers.nodes(b"alice").is_empty());
        assert_eq!(subscribers.nodes(b"bob"), [NodeId(1)]);
    }
}
