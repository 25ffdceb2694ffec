//! Who on this node listens to which user's inbox.
//!
//! Owner of the state: sharded locks, each held for the length of one push.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use bytes::Bytes;
use carillon_core::{DeviceId, Slot, UserId};
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use xxhash_rust::xxh3::xxh3_64;

use super::session::Session;

/// Locks that users are spread over.
const STRIPES: usize = 64;

/// One that is told of new entries.
#[derive(Clone)]
pub(super) enum Listener {
    /// A stream of a device, which gets the entries.
    Session {
        /// The device.
        device: DeviceId,
        /// Its stream.
        session: Arc<Session>,
    },
    /// A waiting `Sync` or a `SyncStream`, which only learns that there are some.
    Follower(Arc<Follower>),
}

impl Listener {
    fn is(&self, other: &Listener) -> bool {
        match (self, other) {
            (Listener::Session { session: a, .. }, Listener::Session { session: b, .. }) => {
                Arc::ptr_eq(a, b)
            }
            (Listener::Follower(a), Listener::Follower(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    fn head_known(&self, head: u64) {
        match self {
            Listener::Session { session, .. } => session.head_known(head),
            Listener::Follower(follower) => follower.advance(head),
        }
    }
}

/// Knows how far an inbox has grown, and wakes the one who waits for it.
#[derive(Debug, Default)]
pub(super) struct Follower {
    head: AtomicU64,
    news: Notify,
}

impl Follower {
    /// The inbox has grown to `head`.
    pub fn advance(&self, head: u64) {
        if self.head.fetch_max(head, Ordering::AcqRel) < head {
            self.news.notify_one();
        }
    }

    /// Waits until the inbox is known to end beyond `cursor`. Cancel-safe.
    pub async fn beyond(&self, cursor: u64) {
        while self.head.load(Ordering::Acquire) <= cursor {
            self.news.notified().await;
        }
    }
}

type Stripe = HashMap<Bytes, Vec<Listener>>;

/// See the module.
pub(super) struct Registry {
    stripes: Box<[Mutex<Stripe>]>,
}

impl Registry {
    pub fn new() -> Self {
        Self {
            stripes: (0..STRIPES)
                .map(|_| Mutex::new(Stripe::default()))
                .collect(),
        }
    }

    fn stripe(&self, user: &[u8]) -> &Mutex<Stripe> {
        &self.stripes[(xxh3_64(user) % STRIPES as u64) as usize]
    }

    /// Adds a listener; returns the stream of the same device that it replaces.
    pub fn add(&self, user: &UserId, listener: Listener) -> Option<Arc<Session>> {
        let mut stripe = self.stripe(user.as_bytes()).lock();
        let listeners = stripe.entry(user.to_bytes()).or_default();
        let replaced = match &listener {
            Listener::Follower(_) => None,
            Listener::Session { device, .. } => listeners
                .iter()
                .position(|other| matches!(other, Listener::Session { device: same, .. } if same == device))
                .map(|index| listeners.swap_remove(index)),
        };
        listeners.push(listener);
        match replaced {
            Some(Listener::Session { session, .. }) => Some(session),
            _ => None,
        }
    }

    /// Removes a listener, if it is still there. True when the user has none any more
    /// because of it.
    pub fn remove(&self, user: &UserId, listener: &Listener) -> bool {
        let mut stripe = self.stripe(user.as_bytes()).lock();
        let Some(listeners) = stripe.get_mut(user.as_bytes()) else {
            return false;
        };
        let Some(index) = listeners.iter().position(|other| other.is(listener)) else {
            return false;
        };
        listeners.swap_remove(index);
        let last = listeners.is_empty();
        if last {
            stripe.remove(user.as_bytes());
        }
        last
    }

    /// True when somebody listens to the user's inbox.
    pub fn contains(&self, user: &UserId) -> bool {
        self.stripe(user.as_bytes())
            .lock()
            .contains_key(user.as_bytes())
    }

    /// Tells an entry to all who listen; false when nobody does. Adds who is to be woken for
    /// it to leave.
    pub fn push(
        &self,
        user: &[u8],
        inbox_seq: u64,
        unread: u32,
        message: &[u8],
        wakers: &mut Vec<Waker>,
    ) -> bool {
        let stripe = self.stripe(user).lock();
        let Some(listeners) = stripe.get(user) else {
            return false;
        };
        for listener in listeners {
            match listener {
                Listener::Session { session, .. } => {
                    wakers.extend(session.push(inbox_seq, unread, message));
                }
                Listener::Follower(follower) => follower.advance(inbox_seq),
            }
        }
        true
    }

    /// Tells where a user's inbox ends.
    pub fn head_known(&self, user: &UserId, head: u64) {
        let stripe = self.stripe(user.as_bytes()).lock();
        for listener in stripe.get(user.as_bytes()).into_iter().flatten() {
            listener.head_known(head);
        }
    }

    /// The users of some slots that somebody listens to.
    pub fn users_of(&self, slots: impl Fn(Slot) -> bool) -> Vec<UserId> {
        let mut users = Vec::new();
        for stripe in &self.stripes {
            let ids = stripe.lock();
            let wanted = ids.keys().filter(|id| slots(Slot::of(id)));
            users.extend(wanted.map(|id| {
                UserId::parse(id.clone()).expect("the key was a user's id when it was added")
            }));
        }
        users
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follower() -> Listener {
        Listener::Follower(Arc::default())
    }

    #[test]
    fn the_last_listener_leaves() {
        let registry = Registry::new();
        let alice = UserId::copied("alice").expect("an id");
        let (one, two) = (follower(), follower());
        assert!(!registry.push(b"alice", 1, 0, b"", &mut Vec::new()));
        registry.add(&alice, one.clone());
        registry.add(&alice, two.clone());
        assert!(registry.push(b"alice", 1, 0, b"", &mut Vec::new()));
        assert!(!registry.remove(&alice, &one), "another one is left");
        assert!(!registry.remove(&alice, &one), "only once");
        assert!(registry.contains(&alice));
        assert!(registry.remove(&alice, &two));
        assert!(!registry.contains(&alice));
        assert!(!registry.remove(&alice, &two));
    }

    #[test]
    fn users_are_found_by_slot() {
        let registry = Registry::new();
        let users: Vec<UserId> = (0..100)
            .map(|n| UserId::copied(&format!("user-{n}")).expect("an id"))
            .collect();
        for user in &users {
            registry.add(user, follower());
        }
        assert_eq!(registry.users_of(|_| true).len(), users.len());
        let slot = users[7].slot();
        assert!(registry.users_of(|other| other == slot).contains(&users[7]));
        assert!(registry.users_of(|_| false).is_empty());
    }

    #[tokio::test]
    async fn followers_wake_up() {
        let follower = Follower::default();
        follower.advance(4);
        follower.beyond(3).await;
        let (woken, ()) = tokio::join!(follower.beyond(4), async { follower.advance(5) });
        let () = woken;
        follower.advance(2);
        follower.beyond(4).await;
    }
}
