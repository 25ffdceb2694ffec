//! Who may talk to this node: certificates, tokens and server keys, read again when their files
//! change.
//!
//! Owner of the state: [`Security`]. Invariants: without `--dev` nothing is listened on that is
//! not encrypted, but metrics and probes; files that cannot be used leave what was there before.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use carillon_auth::caller::{Access, Caller, Credentials, Denied, Unknown};
use carillon_auth::tls::Tls;
use carillon_auth::tokens::TokenError;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use tokio::sync::watch;
use tonic::Code;

use crate::config::Config;
use crate::gateway::errors::Failure;
use crate::listen::ConnectionInfo;

/// The files are looked at this often: a few kilobytes.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);

/// See the file's head.
pub struct Security {
    /// None in development mode.
    closed: Option<Closed>,
    /// Counts the changes of credentials.
    changes: watch::Sender<u64>,
    failures: AtomicU64,
}

struct Closed {
    tls: Arc<Tls>,
    credentials: Credentials,
}

impl Security {
    /// Reads the files that a configuration names.
    ///
    /// # Errors
    /// When one cannot be used.
    pub fn load(config: &Config) -> anyhow::Result<Arc<Self>> {
        // Only in development mode are there none: the configuration is checked.
        let closed = match &config.tls {
            Some(tls) => {
                let auth = config.auth.clone().unwrap_or_default();
                if auth.jwks.is_none() && auth.server_keys.is_none() {
                    tracing::warn!(
                        "nobody can chat: neither auth.jwks nor auth.server_keys is configured"
                    );
                }
                if auth.jwks.is_some() && auth.audience.is_none() {
                    tracing::warn!(
                        "tokens for any audience are taken: auth.audience is not configured"
                    );
                }
                let tls = Tls::load(&config.cluster_name, tls.files());
                let credentials = Credentials::load(auth.files(), auth.rules());
                Some(Closed {
                    tls: Arc::new(tls.context("configuration section tls")?),
                    credentials: credentials.context("configuration section auth")?,
                })
            }
            None => None,
        };
        Ok(Arc::new(Self {
            closed,
            changes: watch::Sender::new(0),
            failures: AtomicU64::new(0),
        }))
    }

    /// The certificates; none in development mode.
    pub fn tls(&self) -> Option<&Arc<Tls>> {
        self.closed.as_ref().map(|closed| &closed.tls)
    }

    /// When the first of the node's own certificates ends, in seconds since 1970; none in
    /// development mode.
    pub fn certificate_ends_at_s(&self) -> Option<i64> {
        self.tls().map(|tls| tls.ends_at_s())
    }

    /// How often files were read that could not be used.
    pub fn reload_failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Who makes a call: by its metadata, or else by the certificate of its connection.
    ///
    /// # Errors
    /// UNAUTHENTICATED.
    pub fn caller(
        &self,
        headers: &HeaderMap,
        connection: Option<&ConnectionInfo>,
    ) -> Result<Caller, Failure> {
        let Some(closed) = &self.closed else {
            return Ok(Caller::Anyone);
        };
        let mut given = headers.get_all(AUTHORIZATION).iter();
        if let Some(authorization) = given.next() {
            // Whoever stands in between may have added one.
            if given.next().is_some() {
                return Err(unknown(Unknown::Malformed));
            }
            // What is not text is no credential of ours.
            let authorization = authorization.to_str().unwrap_or_default();
            let caller = closed.credentials.identify(Some(authorization), now_s());
            return caller.map_err(unknown);
        }
        match connection.and_then(ConnectionInfo::owner) {
            Some(owner) => Ok(Caller::Operator(owner.clone())),
            None => Err(unknown(Unknown::Missing)),
        }
    }

    /// Whether who was let in some time ago still would be.
    ///
    /// # Errors
    /// UNAUTHENTICATED.
    pub fn still_knows(&self, caller: &Caller) -> Result<(), Failure> {
        let Some(closed) = &self.closed else {
            return Ok(());
        };
        let known = closed.credentials.still_knows(caller, now_s());
        known.map_err(unknown)
    }

    /// Counts the changes of the files that say who is let in.
    pub fn watch_changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Reads the files again and again, until the process ends.
    pub async fn follow_files(self: Arc<Self>) {
        if self.closed.is_none() {
            return;
        }
        let mut look = tokio::time::interval(RELOAD_INTERVAL);
        let mut said = String::new();
        loop {
            look.tick().await;
            let security = self.clone();
            // A volume may be slow.
            let read = tokio::task::spawn_blocking(move || security.reload()).await;
            let Ok(read) = read else { return };
            match read {
                Ok(()) => said.clear(),
                Err(error) => {
                    let error = format!("{error:#}");
                    self.failures.fetch_add(1, Ordering::Relaxed);
                    // Once, not with every look.
                    if error != said {
                        tracing::error!(
                            error,
                            "certificates or keys cannot be used; those from before go on"
                        );
                        said = error;
                    }
                }
            }
        }
    }

    /// One look at each kind of file; a failure of one keeps nothing from the other.
    fn reload(&self) -> anyhow::Result<()> {
        let Some(closed) = &self.closed else {
            return Ok(());
        };
        let tls = closed.tls.reload();
        let credentials = closed.credentials.reload();
        if let Ok(true) = tls {
            let ends_at_s = closed.tls.ends_at_s();
            tracing::info!(ends_at_s, "new certificates are used");
        }
        if let Ok(true) = credentials {
            tracing::info!("new keys of tokens and servers are used");
            self.changes.send_modify(|changes| *changes += 1);
        }
        match (tls, credentials) {
            (Err(tls), Err(credentials)) => anyhow::bail!("{tls}; {credentials}"),
            (tls, credentials) => {
                tls?;
                credentials?;
                Ok(())
            }
        }
    }
}

fn now_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

fn unknown(unknown: Unknown) -> Failure {
    let reason = match unknown {
        Unknown::Missing => "CREDENTIAL_MISSING",
        Unknown::Token(TokenError::Expired) => "TOKEN_EXPIRED",
        _ => "CREDENTIAL_INVALID",
    };
    Failure::new(Code::Unauthenticated, reason, unknown.to_string())
}

/// What somebody is told who may not do something.
pub fn denied(denied: &Denied) -> Failure {
    Failure::new(Code::PermissionDenied, "NOT_ALLOWED", denied.to_string())
}

/// Whether a method only reads, by its name and the names of those that do.
pub fn access(method: &str, reads: &[&str]) -> Access {
    if reads.contains(&method) {
        Access::Read
    } else {
        Access::Write
    }
}
