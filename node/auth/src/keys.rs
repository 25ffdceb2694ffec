//! Credentials of a product's own servers: a name, a secret of which only the digest is kept,
//! and what it may be used for.
//!
//! Owner of no state. The secrets are random and long, so that a plain digest of one is as good as
//! any; whoever reads the file can use none of them.

use std::collections::HashMap;
use std::fmt;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use crate::tokens::KeyPrint;

/// What every secret begins with, so that it is known where it turns up.
pub const SECRET_PREFIX: &str = "carillon_";
/// Random bytes of a secret.
const SECRET_BYTES: usize = 32;
/// Keys in one file, at most.
pub const SERVER_KEYS_MAX: usize = 1_024;

/// What a server may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Scope {
    /// Read as any user: messages, inboxes, conversations, members.
    #[serde(rename = "chat.read")]
    ChatRead,
    /// Act as any user: everything of `carillon.v1.Chat`, reading too.
    #[serde(rename = "chat.write")]
    ChatWrite,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::ChatRead, Self::ChatWrite];

    /// By its name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|scope| scope.to_string() == text)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ChatRead => "chat.read",
            Self::ChatWrite => "chat.write",
        })
    }
}

/// A server that may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerKey {
    /// What it is called in logs.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// The digest of its secret.
    pub print: KeyPrint,
}

/// Why a file of server keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ServerKeysError {
    /// It is not such a file.
    #[error("not a file of server keys: {0}")]
    Unreadable(#[from] toml::de::Error),
    /// One key of it cannot be used.
    #[error("key {name:?}: {problem}")]
    Key {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// It has too many.
    #[error("it has {0} keys, more than {SERVER_KEYS_MAX}")]
    Count(usize),
}

/// The servers that may call.
#[derive(Debug, Default)]
pub struct ServerKeys {
    by_print: HashMap<KeyPrint, ServerKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    keys: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    sha256: String,
    scopes: Vec<Scope>,
}

impl ServerKeys {
    /// Reads a file: an array `keys` of tables with `name`, `sha256` and `scopes`.
    ///
    /// # Errors
    /// [`ServerKeysError`].
    pub fn parse(text: &str) -> Result<Self, ServerKeysError> {
        let File { keys } = toml::from_str(text)?;
        if keys.len() > SERVER_KEYS_MAX {
            return Err(ServerKeysError::Count(keys.len()));
        }
        let mut by_print = HashMap::with_capacity(keys.len());
        for Entry {
            name,
            sha256,
            scopes,
        } in keys
        {
            let refused = |problem| ServerKeysError::Key {
                name: name.clone(),
                problem,
            };
            if !crate::identity::is_name(&name) {
                return Err(refused("a name is 1 to 128 letters, digits, '.', '_', '-'"));
            }
            if scopes.is_empty() {
                return Err(refused("it has no scopes and could do nothing"));
            }
            let print = parse_hex(&sha256).ok_or_else(|| refused("sha256 is not 64 hex digits"))?;
            let key = ServerKey {
                name: name.clone(),
                scopes,
                print,
            };
            if by_print.insert(print, key).is_some() {
                return Err(refused("another key has the same secret"));
            }
        }
        Ok(Self { by_print })
    }

    /// Whose secret it is. Looked up by its digest, so that nothing of how long it takes says
    /// anything about the secrets.
    #[must_use]
    pub fn find(&self, secret: &str) -> Option<&ServerKey> {
        if !secret.starts_with(SECRET_PREFIX) {
            return None;
        }
        self.by_print.get(&KeyPrint::of(secret.as_bytes()))
    }

    /// Whether a key is as it was when it was found.
    #[must_use]
    pub fn has(&self, key: &ServerKey) -> bool {
        self.by_print.get(&key.print) == Some(key)
    }
}

/// A new secret, and the entry of the file that makes it known.
///
/// # Errors
/// [`NoRandom`].
pub fn make(name: &str, scopes: &[Scope]) -> Result<(String, String), NoRandom> {
    let mut bytes = [0; SECRET_BYTES];
    rand::fill(&mut bytes).map_err(|_| NoRandom)?;
    let secret = format!("{SECRET_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
    let print = KeyPrint::of(secret.as_bytes());
    let hex: String = print
        .bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let scopes = scopes.iter().map(|scope| format!("\"{scope}\""));
    let scopes = scopes.collect::<Vec<_>>().join(", ");
    let entry = format!("[[keys]]\nname = {name:?}\nsha256 = \"{hex}\"\nscopes = [{scopes}]\n");
    Ok((secret, entry))
}

/// The system gives no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no random bytes")]
pub struct NoRandom;

fn parse_hex(text: &str) -> Option<KeyPrint> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(KeyPrint(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_found_by_its_secret_only() {
        let (secret, entry) = make("billing", &[Scope::ChatRead]).expect("random");
        let (other, _) = make("billing", &[Scope::ChatRead]).expect("random");
        let keys = ServerKeys::parse(&entry).expect("a file");
        let found = keys.find(&secret).expect("known");
        assert_eq!(
            (found.name.as_str(), &found.scopes[..]),
            ("billing", &[Scope::ChatRead][..])
        );
        assert_eq!(keys.find(&other), None);
        let digest = entry.split('"').nth(3).expect("the digest");
        assert_eq!(keys.find(digest), None, "who reads the file has no secret");
        assert!(!entry.contains(&secret));
    }

    #[test]
    fn a_key_that_lost_a_scope_is_another_one() {
        let (secret, entry) = make("billing", &Scope::ALL).expect("random");
        let before = ServerKeys::parse(&entry).expect("a file");
        let key = before.find(&secret).expect("known").clone();
        assert!(before.has(&key));
        let less = entry.replace(", \"chat.write\"", "");
        assert_ne!(less, entry);
        assert!(!ServerKeys::parse(&less).expect("a file").has(&key));
        assert!(!ServerKeys::default().has(&key));
    }

    #[test]
    fn files_that_cannot_work_are_refused_with_what_is_wrong() {
        let hex = "0".repeat(64);
        for (text, says) in [
            (
                format!("[[keys]]\nname='a b'\nsha256='{hex}'\nscopes=['chat.read']"),
                "a name is",
            ),
            (
                format!("[[keys]]\nname='a'\nsha256='{hex}'\nscopes=[]"),
                "no scopes",
            ),
            (
                "[[keys]]\nname='a'\nsha256='00'\nscopes=['chat.read']".to_owned(),
                "64 hex",
            ),
            (
                format!("[[keys]]\nname='a'\nsha256='{hex}'\nscopes=['root']"),
                "chat.read",
            ),
            (
                format!("[[keys]]\nname='a'\nsecret='x'\nsha256='{hex}'\nscopes=[]"),
                "secret",
            ),
        ] {
            let error = ServerKeys::parse(&text).expect_err("refused").to_string();
            assert!(error.contains(says), "{error}");
        }
        let one = format!("[[keys]]\nname='a'\nsha256='{hex}'\nscopes=['chat.read']\n");
        let error = ServerKeys::parse(&format!("{one}{one}")).expect_err("refused");
        assert!(error.to_string().contains("same secret"), "{error}");
    }
}
