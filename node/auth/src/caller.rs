//! Who calls, and what that allows.
//!
//! Owner of the state: [`Credentials`], which holds what the files said when they were last read.
//! Invariant: files that cannot be read or used change nothing; what they said before goes on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::identity::{Identity, Role};
use crate::keys::{SECRET_PREFIX, Scope, ServerKey, ServerKeys, ServerKeysError};
use crate::tokens::{Token, TokenError, TokenKeys, TokenKeysError, TokenRules};

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Nobody is asked who they are: development mode.
    Anyone,
    /// A user, by a token.
    User(Token),
    /// A server of the product, by its secret.
    Server(ServerKey),
    /// Who administers or looks at the cluster, by a certificate.
    Operator(Identity),
    /// Who can reach the node's own files: a program beside it.
    Local,
}

/// Why nobody knows who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// Nothing says who it is.
    #[error(
        "no credential was given: put a user's token or a server's secret into the metadata \
         authorization, as \"Bearer ...\""
    )]
    Missing,
    /// It is not of the form `Bearer ...`.
    #[error("the metadata authorization is not of the form \"Bearer ...\"")]
    Malformed,
    /// A secret that is not known, or no longer.
    #[error("the server's secret is not known to this cluster")]
    Secret,
    /// Tokens are not taken by this cluster.
    #[error("this cluster takes no tokens: auth.jwks is not configured")]
    NoTokens,
    /// A token that is not taken.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// Why somebody who is known may not do that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Acting for another user.
    #[error("the token is of another user than the request")]
    User,
    /// With another device's token.
    #[error("the token is for another device than the request's")]
    Device,
    /// A server without the scope.
    #[error("the server key {name} lacks the scope {scope}")]
    Scope {
        /// The key's name.
        name: String,
        /// What it lacks.
        scope: Scope,
    },
    /// Not with this kind of credential.
    #[error("{0}")]
    Kind(&'static str),
}

/// Whether a call changes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It only looks.
    Read,
    /// It changes something.
    Write,
}

impl Caller {
    /// Whether the caller may use the chat as a user, on a device if the call names one.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn may_chat_as(
        &self,
        user_id: &str,
        device_id: Option<&str>,
        access: Access,
    ) -> Result<(), Denied> {
        match self {
            Self::Anyone => Ok(()),
            Self::User(token) if token.user_id != user_id => Err(Denied::User),
            Self::User(token) => match (&token.device_id, device_id) {
                (Some(own), Some(device)) if own != device => Err(Denied::Device),
                _ => Ok(()),
            },
            Self::Server(key) => key.may(access),
            Self::Operator(_) | Self::Local => Err(Denied::Kind(
                "an operator's certificate opens no conversations; use a user's token or a \
                 server's secret",
            )),
        }
    }

    /// Whether the caller may administer the cluster.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn may_administer(&self, access: Access) -> Result<(), Denied> {
        match self {
            Self::Anyone | Self::Local => Ok(()),
            Self::Operator(identity) => match (identity.role, access) {
                (Role::Admin, _) | (Role::Viewer, Access::Read) => Ok(()),
                (Role::Viewer, Access::Write) => Err(Denied::Kind(
                    "this certificate is of a viewer, who changes nothing",
                )),
                (Role::Node, _) => Err(Denied::Kind(
                    "this certificate is of a node; administering needs one of an admin",
                )),
            },
            Self::User(_) | Self::Server(_) => Err(Denied::Kind(
                "administering needs a certificate of an admin, not a token or a secret",
            )),
        }
    }

    /// What the caller is called where it is recorded; nothing when nobody was asked.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Anyone => None,
            Self::User(token) => Some(&token.user_id),
            Self::Server(key) => Some(&key.name),
            Self::Operator(identity) => Some(&identity.name),
            Self::Local => Some("local"),
        }
    }
}

impl ServerKey {
    fn may(&self, access: Access) -> Result<(), Denied> {
        let scope = match access {
            Access::Read => Scope::ChatRead,
            Access::Write => Scope::ChatWrite,
        };
        // Who may write may read.
        if self.scopes.contains(&scope) || self.scopes.contains(&Scope::ChatWrite) {
            return Ok(());
        }
        Err(Denied::Scope {
            name: self.name.clone(),
            scope,
        })
    }
}

/// The files that say who may call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CredentialFiles {
    /// A JSON Web Key Set.
    pub jwks: Option<PathBuf>,
    /// Server keys.
    pub server_keys: Option<PathBuf>,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// One cannot be read.
    #[error("{path} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The keys of tokens cannot be used.
    #[error("auth.jwks, {path}: {source}")]
    TokenKeys {
        /// The file.
        path: PathBuf,
        /// Why.
        source: TokenKeysError,
    },
    /// The server keys cannot be used.
    #[error("auth.server_keys, {path}: {source}")]
    ServerKeys {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ServerKeysError,
    },
}

/// What one of the files says, and what was read, to see whether it changed.
struct Part<T> {
    says: Option<T>,
    bytes: Vec<u8>,
}

/// Who may call, as the files say.
pub struct Credentials {
    files: CredentialFiles,
    rules: TokenRules,
    tokens: ArcSwap<Part<TokenKeys>>,
    servers: ArcSwap<Part<ServerKeys>>,
}

impl Credentials {
    /// Reads the files.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub fn load(files: CredentialFiles, rules: TokenRules) -> Result<Self, CredentialsError> {
        Ok(Self {
            tokens: ArcSwap::from_pointee(tokens(&files)?),
            servers: ArcSwap::from_pointee(servers(&files)?),
            files,
            rules,
        })
    }

    /// Reads the files again; whether they say something else now. One that cannot be used keeps
    /// nothing from the other.
    ///
    /// # Errors
    /// [`CredentialsError`]: of that file what was there before goes on.
    pub fn reload(&self) -> Result<bool, CredentialsError> {
        let tokens = renew(&self.tokens, tokens(&self.files));
        let servers = renew(&self.servers, servers(&self.files));
        Ok(tokens? | servers?)
    }

    /// Who calls, by what the metadata `authorization` says.
    ///
    /// # Errors
    /// [`Unknown`].
    pub fn identify(&self, authorization: Option<&str>, now_s: u64) -> Result<Caller, Unknown> {
        let given = authorization.ok_or(Unknown::Missing)?;
        let (scheme, credential) = given.split_once(' ').ok_or(Unknown::Malformed)?;
        // RFC 7235, section 2.1: the scheme's case does not matter.
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Unknown::Malformed);
        }
        if credential.starts_with(SECRET_PREFIX) {
            let servers = self.servers.load();
            let found = servers.says.as_ref().and_then(|keys| keys.find(credential));
            return Ok(Caller::Server(found.ok_or(Unknown::Secret)?.clone()));
        }
        let tokens = self.tokens.load();
        let keys = tokens.says.as_ref().ok_or(Unknown::NoTokens)?;
        Ok(Caller::User(keys.check(credential, &self.rules, now_s)?))
    }

    /// Whether who was let in some time ago still would be.
    ///
    /// # Errors
    /// [`Unknown`], why not.
    pub fn still_knows(&self, caller: &Caller, now_s: u64) -> Result<(), Unknown> {
        match caller {
            Caller::User(token) if token.ends_at_s <= now_s => Err(TokenError::Expired.into()),
            Caller::User(token) => match &self.tokens.load().says {
                Some(keys) if keys.has(&token.key) => Ok(()),
                Some(_) => Err(TokenError::UnknownKey.into()),
                None => Err(Unknown::NoTokens),
            },
            Caller::Server(key) => {
                let servers = self.servers.load();
                let known = servers.says.as_ref().is_some_and(|keys| keys.has(key));
                if known { Ok(()) } else { Err(Unknown::Secret) }
            }
            Caller::Anyone | Caller::Operator(_) | Caller::Local => Ok(()),
        }
    }
}

/// Takes what was read, if it can be used; whether it says something else now.
fn renew<T>(
    part: &ArcSwap<Part<T>>,
    read: Result<Part<T>, CredentialsError>,
) -> Result<bool, CredentialsError> {
    let read = read?;
    let changed = read.bytes != part.load().bytes;
    if changed {
        part.store(Arc::new(read));
    }
    Ok(changed)
}

fn tokens(files: &CredentialFiles) -> Result<Part<TokenKeys>, CredentialsError> {
    let bytes = read(files.jwks.as_deref())?;
    let says = match &files.jwks {
        None => None,
        Some(path) => {
            let keys = TokenKeys::parse(&bytes);
            Some(keys.map_err(|source| CredentialsError::TokenKeys {
                path: path.clone(),
                source,
            })?)
        }
    };
    Ok(Part { says, bytes })
}

fn servers(files: &CredentialFiles) -> Result<Part<ServerKeys>, CredentialsError> {
    let bytes = read(files.server_keys.as_deref())?;
    let says = match &files.server_keys {
        None => None,
        Some(path) => {
            let keys = ServerKeys::parse(&String::from_utf8_lossy(&bytes));
            Some(keys.map_err(|source| CredentialsError::ServerKeys {
                path: path.clone(),
                source,
            })?)
        }
    };
    Ok(Part { says, bytes })
}

fn read(path: Option<&Path>) -> Result<Vec<u8>, CredentialsError> {
    let Some(path) = path else {
        return Ok(Vec::new());
    };
    std::fs::read(path).map_err(|source| CredentialsError::Read {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
