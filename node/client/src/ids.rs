//! The names that a client gives: conversations and its own messages.
//!
//! The rules for their characters are the server's (`docs/protocol.md`); nothing is
//! checked here, so that a newer server can allow more.

use std::fmt;

use carillon_proto::v1;
use rand::RngCore;

/// A conversation's id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConversationId(String);

impl ConversationId {
    /// The id of the direct conversation of two users: the same whoever asks.
    pub fn direct(one: &str, other: &str) -> Self {
        let (first, second) = if one.as_bytes() <= other.as_bytes() {
            (one, other)
        } else {
            (other, one)
        };
        Self(format!("direct:{first}:{second}"))
    }

    /// The id as it goes over the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The other user, when this is a direct conversation of `user`.
    pub fn direct_peer(&self, user: &str) -> Option<&str> {
        let (first, second) = self.0.strip_prefix("direct:")?.split_once(':')?;
        if first == user {
            Some(second)
        } else if second == user {
            Some(first)
        } else {
            None
        }
    }
}

impl From<&str> for ConversationId {
    fn from(id: &str) -> Self {
        Self(id.to_owned())
    }
}

impl From<&String> for ConversationId {
    fn from(id: &String) -> Self {
        Self(id.clone())
    }
}

impl From<String> for ConversationId {
    fn from(id: String) -> Self {
        Self(id)
    }
}

impl From<&ConversationId> for ConversationId {
    fn from(id: &ConversationId) -> Self {
        id.clone()
    }
}

impl From<ConversationId> for String {
    fn from(id: ConversationId) -> Self {
        id.0
    }
}

impl fmt::Display for ConversationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The sender's own id of a message. A message that is sent twice under the same one,
/// to the same conversation by the same user, is stored once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientMessageId(String);

impl ClientMessageId {
    /// A fresh one of 128 random bits.
    pub fn random() -> Self {
        Self(random_hex())
    }

    /// The id as it goes over the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for ClientMessageId {
    fn from(id: &str) -> Self {
        Self(id.to_owned())
    }
}

impl From<String> for ClientMessageId {
    fn from(id: String) -> Self {
        Self(id)
    }
}

impl From<ClientMessageId> for String {
    fn from(id: ClientMessageId) -> Self {
        id.0
    }
}

impl fmt::Display for ClientMessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// 128 random bits as 32 lower-case hexadecimal digits.
pub(crate) fn random_hex() -> String {
    let mut bits = [0u8; 16];
    rand::rng().fill_bytes(&mut bits);
    format!("{:032x}", u128::from_be_bytes(bits))
}

/// A text message.
pub fn text(body: impl Into<String>) -> v1::Content {
    v1::Content {
        kind: Some(v1::content::Kind::Text(v1::Text { body: body.into() })),
    }
}

/// A message of the application's own kind; `kind` is its name, for example `acme.poll`.
pub fn custom(kind: impl Into<String>, data: impl Into<bytes::Bytes>) -> v1::Content {
    v1::Content {
        kind: Some(v1::content::Kind::Custom(v1::Custom {
            r#type: kind.into(),
            data: data.into(),
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direct_ids_are_the_same_for_both() {
        let id = ConversationId::direct("bob", "alice");
        assert_eq!(id, ConversationId::direct("alice", "bob"));
        assert_eq!(id.as_str(), "direct:alice:bob");
        assert_eq!(id.direct_peer("alice"), Some("bob"));
        assert_eq!(id.direct_peer("bob"), Some("alice"));
        assert_eq!(id.direct_peer("carol"), None);
        assert_eq!(ConversationId::from("team").direct_peer("bob"), None);
    }

    #[test]
    fn random_ids_differ_and_fit_the_limit() {
        let (one, other) = (ClientMessageId::random(), ClientMessageId::random());
        assert_ne!(one, other);
        assert_eq!(one.as_str().len(), 32);
    }
}
