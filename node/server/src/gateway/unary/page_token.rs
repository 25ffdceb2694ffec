//! Page tokens: where the next page begins, as text that callers only hand back.
//!
//! Lower-case hexadecimal of: version, kind, the place, and four bytes of a hash over
//! them, so that a token of another call or one that was cut is told from a good one.

use bytes::{Buf, BufMut};
use carillon_core::{ConversationId, UserId};
use xxhash_rust::xxh3::xxh3_64;

use crate::gateway::errors::Failure;

const VERSION: u8 = 1;
const KIND_CONVERSATIONS: u8 = 1;
const KIND_MEMBERS: u8 = 2;
const HASH_BYTES: usize = 4;
/// The longest token: a conversation id and what is around it, two digits a byte.
const TOKEN_CHARACTERS_MAX: usize = 512;

/// After which row `ListConversations` goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConversationsAfter {
    /// The last row's time.
    pub last_at_ms: i64,
    /// The last row.
    pub conversation: ConversationId,
}

impl ConversationsAfter {
    pub fn token(&self) -> String {
        let mut place = Vec::new();
        place.put_i64(self.last_at_ms);
        place.put_slice(self.conversation.as_bytes());
        encode(KIND_CONVERSATIONS, &place)
    }

    /// None for the first page.
    pub fn parse(token: &str) -> Result<Option<Self>, Failure> {
        if token.is_empty() {
            return Ok(None);
        }
        let place = decode(KIND_CONVERSATIONS, token).ok_or_else(invalid)?;
        let mut rest = &*place;
        let last_at_ms = rest.try_get_i64().map_err(|_| invalid())?;
        let conversation = ConversationId::parse(rest.to_vec()).map_err(|_| invalid())?;
        Ok(Some(Self {
            last_at_ms,
            conversation,
        }))
    }
}

/// After which user `ListMembers` goes on.
pub(super) struct MembersAfter(pub UserId);

impl MembersAfter {
    pub fn token(&self) -> String {
        encode(KIND_MEMBERS, self.0.as_bytes())
    }

    /// None for the first page.
    pub fn parse(token: &str) -> Result<Option<Self>, Failure> {
        if token.is_empty() {
            return Ok(None);
        }
        let place = decode(KIND_MEMBERS, token).ok_or_else(invalid)?;
        Ok(Some(Self(UserId::parse(place).map_err(|_| invalid())?)))
    }
}

fn invalid() -> Failure {
    let message =
        "the page token is not one that this call returned; begin again with an empty one";
    Failure::invalid_argument("INVALID_PAGE_TOKEN", message)
}

fn hash(bytes: &[u8]) -> [u8; HASH_BYTES] {
    (xxh3_64(bytes) as u32).to_be_bytes()
}

fn encode(kind: u8, place: &[u8]) -> String {
    let mut bytes = vec![VERSION, kind];
    bytes.put_slice(place);
    bytes.put_slice(&hash(&bytes));
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            for digit in [byte >> 4, byte & 0xf] {
                text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
            }
            text
        })
}

fn decode(kind: u8, token: &str) -> Option<Vec<u8>> {
    if token.len() > TOKEN_CHARACTERS_MAX || !token.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let bytes: Vec<u8> = token
        .as_bytes()
        .chunks_exact(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect::<Option<_>>()?;
    let (rest, end) = bytes.split_last_chunk::<HASH_BYTES>()?;
    if *end != hash(rest) {
        return None;
    }
    let place = rest.strip_prefix(&[VERSION, kind])?;
    Some(place.to_vec())
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};

    use super::*;

    fn conversations(last_at_ms: i64, id: &str) -> ConversationsAfter {
        ConversationsAfter {
            last_at_ms,
            conversation: ConversationId::copied(id).expect("an id"),
        }
    }

    #[test]
    fn round_trips() {
        let longest = format!("direct:{}:{}", "a".repeat(64), "b".repeat(64));
        for after in [
            conversations(0, "g"),
            conversations(-1, "g1"),
            conversations(i64::MAX, &longest),
        ] {
            assert_eq!(ConversationsAfter::parse(&after.token()), Ok(Some(after)));
        }
        let alice = UserId::copied("alice").expect("an id");
        let parsed = MembersAfter::parse(&MembersAfter(alice.clone()).token()).expect("valid");
        assert_eq!(parsed.expect("not the first page").0, alice);
        assert_eq!(ConversationsAfter::parse(""), Ok(None));
    }

    #[test]
    fn tokens_of_other_calls_and_damaged_ones_are_refused() {
        let token = conversations(5, "g1").token();
        let member = MembersAfter(UserId::copied("alice").expect("an id")).token();
        let cut = &token[..token.len() - 2];
        let upper = token.to_uppercase();
        let changed = format!("{}0", &token[..token.len() - 1]);
        let changed = if changed == token {
            format!("{}1", &token[..token.len() - 1])
        } else {
            changed
        };
        for bad in [
            cut,
            &member,
            &changed,
            &upper,
            "x",
            "zz",
            "00",
            &"0".repeat(10_000),
        ] {
            let failure = ConversationsAfter::parse(bad).expect_err(bad);
            assert_eq!(failure.reason, "INVALID_PAGE_TOKEN");
        }
        assert!(MembersAfter::parse(&token).is_err());
    }

    #[test]
    fn garbage_is_refused() {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        for _ in 0..2_000 {
            let length = rng.random_range(1..64);
            let hex: String = (0..length)
                .map(|_| char::from(b"0123456789abcdef"[rng.random_range(0..16)]))
                .collect();
            let any: String = (0..length).map(|_| rng.random::<char>()).collect();
            for text in [hex, any] {
                assert!(ConversationsAfter::parse(&text).is_err(), "{text}");
                assert!(MembersAfter::parse(&text).is_err(), "{text}");
            }
        }
    }
}
