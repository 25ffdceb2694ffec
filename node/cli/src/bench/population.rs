//! Who takes part: users, and the conversations that they write into.
//!
//! Everything follows from the shape, so that a second run on the same cluster finds its
//! groups there already.

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use carillon_proto::v1;
use carillon_proto::v1::chat_client::ChatClient;
use futures_util::stream::{StreamExt, TryStreamExt};
use rand::rngs::StdRng;
use rand::seq::index;
use rand::{Rng, SeedableRng};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

/// Groups that are created at the same time.
const CREATING_MAX: usize = 32;
/// How long creating one group may take.
const CREATE_LIMIT: Duration = Duration::from_secs(10);
/// Whom each user writes to directly: the users this far after them.
const PEER_OFFSETS: [usize; 4] = [1, 17, 257, 1031];

/// A conversation, and its members by their places among the users.
pub struct Room {
    pub id: Bytes,
    pub members: Vec<usize>,
}

/// See the module.
pub struct Population {
    pub users: Vec<String>,
    pub rooms: Vec<Room>,
    /// Every member of a room gets its messages, the sender's own device too.
    pub deliveries_per_send: u64,
}

impl Population {
    /// Groups of `members` random users each; `members` ≤ `users`.
    pub fn groups(users: usize, groups: usize, members: usize) -> Self {
        let rooms = (0..groups).map(|group| {
            let mut rng = StdRng::seed_from_u64(group as u64);
            Room {
                id: Bytes::from(format!("bench-{users}u-{members}m-{group}")),
                members: index::sample(&mut rng, users, members).into_vec(),
            }
        });
        Self {
            rooms: rooms.collect(),
            users: names(users),
            deliveries_per_send: members as u64,
        }
    }

    /// Direct conversations: each user with a few others; at least 2 users.
    pub fn direct(users: usize) -> Self {
        let names = names(users);
        let pairs = (0..users).flat_map(|user| {
            let peers = PEER_OFFSETS.map(|offset| (user + offset) % users);
            peers.map(|peer| (user, peer))
        });
        let rooms = pairs
            .filter(|(user, peer)| user != peer)
            .map(|(user, peer)| Room {
                id: direct(&names[user], &names[peer]),
                members: vec![user, peer],
            })
            .collect();
        Self {
            users: names,
            rooms,
            deliveries_per_send: 2,
        }
    }

    /// A random member of a random room, with the room's id.
    pub fn pick(&self, rng: &mut StdRng) -> (usize, Bytes) {
        let room = &self.rooms[rng.random_range(0..self.rooms.len())];
        let sender = room.members[rng.random_range(0..room.members.len())];
        (sender, room.id.clone())
    }

    /// Creates the groups; those that exist are left as they are.
    pub async fn create_groups(&self, endpoints: &[String]) -> anyhow::Result<()> {
        let channels = endpoints
            .iter()
            .map(|endpoint| channel(endpoint))
            .collect::<anyhow::Result<Vec<_>>>()?;
        futures_util::stream::iter(self.rooms.iter().enumerate())
            .map(|(n, room)| create(channels[n % channels.len()].clone(), &self.users, room))
            .buffer_unordered(CREATING_MAX)
            .try_collect()
            .await
    }
}

/// The id of the direct conversation of two users.
pub fn direct(one: &str, other: &str) -> Bytes {
    Bytes::from(String::from(carillon_client::ConversationId::direct(
        one, other,
    )))
}

/// A channel that connects when it is first used.
pub fn channel(endpoint: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{endpoint}"))
        .with_context(|| format!("{endpoint} is not an address; give host:port"))?;
    Ok(endpoint.tcp_nodelay(true).connect_lazy())
}

/// A request on behalf of a user.
pub fn request_as<T>(user: &str, message: T) -> anyhow::Result<Request<T>> {
    let mut request = Request::new(message);
    let user = MetadataValue::try_from(user).context("a user id is not ASCII")?;
    request
        .metadata_mut()
        .insert(carillon_proto::USER_METADATA_KEY, user);
    Ok(request)
}

fn names(users: usize) -> Vec<String> {
    (0..users).map(|user| format!("bench-u{user}")).collect()
}

async fn create(channel: Channel, users: &[String], room: &Room) -> anyhow::Result<()> {
    let id = String::from_utf8_lossy(&room.id).into_owned();
    let (owner, others) = room.members.split_first().context("a group is empty")?;
    let message = v1::CreateConversationRequest {
        conversation_id: id.clone(),
        name: "benchmark".to_owned(),
        member_ids: others.iter().map(|user| users[*user].clone()).collect(),
        request_id: id.clone(),
    };
    let mut request = request_as(&users[*owner], message)?;
    request.set_timeout(CREATE_LIMIT);
    match ChatClient::new(channel).create_conversation(request).await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::AlreadyExists => Ok(()),
        Err(status) => Err(status).with_context(|| format!("could not create the group {id}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_shape_gives_the_same_groups() {
        let one = Population::groups(100, 20, 10);
        let other = Population::groups(100, 20, 10);
        for (a, b) in one.rooms.iter().zip(&other.rooms) {
            assert_eq!((&a.id, &a.members), (&b.id, &b.members));
            let mut distinct = a.members.clone();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len(), 10);
        }
    }

    #[test]
    fn direct_rooms_are_of_two_different_users() {
        for users in [2, 17, 4096] {
            let population = Population::direct(users);
            assert!(!population.rooms.is_empty());
            for room in &population.rooms {
                assert_ne!(room.members[0], room.members[1]);
            }
        }
    }
}
