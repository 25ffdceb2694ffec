//! Who talks to whom: made from a seed, the same for the same seed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::access::Access;
use crate::history::{ConversationId, UserId};
use crate::rpc;

/// How much load, of what shape.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where all randomness comes from.
    pub seed: u64,
    /// Users; each has one device …
    pub users: usize,
    /// … and the first so many have two.
    pub second_devices: usize,
    /// Groups; every user is in at least one.
    pub groups: usize,
    /// Members of each group, about.
    pub group_members: usize,
    /// Direct conversations, each of two different users.
    pub directs: usize,
    /// Unanswered sends of one device.
    pub in_flight_max: usize,
    /// Between two sends of one device, on average.
    pub send_interval: Duration,
    /// Bytes of a message's text.
    pub text_bytes: usize,
    /// How the devices reach the cluster.
    pub access: Access,
}

impl LoadOptions {
    /// The usual load: 24 devices, about 480 sends a second.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            users: 20,
            second_devices: 4,
            groups: 6,
            group_members: 7,
            directs: 8,
            in_flight_max: 8,
            send_interval: Duration::from_millis(50),
            text_bytes: 128,
            access: Access::default(),
        }
    }

    /// Less and slower, for scenarios that are about something else.
    pub fn light(seed: u64) -> Self {
        Self {
            send_interval: Duration::from_millis(200),
            in_flight_max: 4,
            ..Self::new(seed)
        }
    }
}

/// The seed of a test: `CARILLON_TEST_SEED`, or a new one. Print it.
pub fn seed() -> u64 {
    let given = std::env::var("CARILLON_TEST_SEED").ok();
    given
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| rand::rng().random_range(1..u64::from(u32::MAX)))
}

/// A group that has to be created before the load.
#[derive(Debug, Clone)]
pub(super) struct NewGroup {
    pub id: ConversationId,
    pub creator: UserId,
    pub others: Vec<UserId>,
}

/// The cast.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub conversations: BTreeMap<ConversationId, BTreeSet<UserId>>,
    pub groups: Vec<NewGroup>,
    pub devices: Vec<(UserId, String)>,
}

impl Plan {
    pub fn make(options: &LoadOptions) -> Self {
        let mut rng = StdRng::seed_from_u64(options.seed);
        let run = options.seed;
        let users: Vec<UserId> = (0..options.users)
            .map(|number| UserId::from(format!("user-{number}.{run}")))
            .collect();
        let mut conversations = BTreeMap::new();
        let mut groups = Vec::with_capacity(options.groups);
        for number in 0..options.groups {
            let mut members: BTreeSet<UserId> = users
                .iter()
                .skip(number)
                .step_by(options.groups)
                .cloned()
                .collect();
            while members.len() < options.group_members.min(users.len()) {
                members.insert(users[rng.random_range(0..users.len())].clone());
            }
            let id = ConversationId::from(format!("group-{number}.{run}"));
            let mut order: Vec<UserId> = members.iter().cloned().collect();
            order.shuffle(&mut rng);
            let creator = order.remove(0);
            groups.push(NewGroup {
                id: id.clone(),
                creator,
                others: order,
            });
            conversations.insert(id, members);
        }
        let directs = options.directs.min(users.len().saturating_sub(1));
        let mut made = 0;
        while made < directs {
            let first = rng.random_range(0..users.len());
            let second = (first + rng.random_range(1..users.len())) % users.len();
            let pair = [users[first].clone(), users[second].clone()];
            let id = rpc::direct_id(pair[0].as_str(), pair[1].as_str());
            let new = conversations.insert(id.into(), pair.into()).is_none();
            made += usize::from(new);
        }
        let first_devices = users.iter().map(|user| (user.clone(), "phone".to_owned()));
        let second_devices = users.iter().take(options.second_devices);
        let second_devices = second_devices.map(|user| (user.clone(), "laptop".to_owned()));
        Self {
            conversations,
            groups,
            devices: first_devices.chain(second_devices).collect(),
        }
    }

    /// The conversations of a user.
    pub fn conversations_of(&self, user: &UserId) -> Vec<ConversationId> {
        let mine = self.conversations.iter();
        let mine = mine.filter(|(_, members)| members.contains(user));
        mine.map(|(id, _)| id.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_plan() {
        let plan = |seed| format!("{:?}", Plan::make(&LoadOptions::new(seed)));
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
    }

    #[test]
    fn everybody_is_in_a_conversation() {
        for seed in 0..50 {
            let plan = Plan::make(&LoadOptions::new(seed));
            assert_eq!(plan.devices.len(), 24);
            assert_eq!(plan.conversations.len(), 6 + 8);
            for (user, _) in &plan.devices {
                assert!(!plan.conversations_of(user).is_empty(), "seed {seed}");
            }
        }
    }
}
