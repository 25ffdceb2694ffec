//! How a client is sure that it talks to its cluster, and says who it is.
//!
//! Owner of no state; a token may come from the application each time it is needed.

use std::fmt;
use std::sync::Arc;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::error::ClientError;

type TokenSource = Arc<dyn Fn() -> String + Send + Sync>;

/// Certificates and tokens. The default is none of them: an unencrypted connection to a cluster
/// in development mode.
#[derive(Clone, Default)]
pub struct Credentials {
    trust: Trust,
    /// Certificate and key, PEM.
    own: Option<(String, String)>,
    token: Option<TokenSource>,
}

#[derive(Clone, Default)]
enum Trust {
    #[default]
    Unencrypted,
    System,
    Authority(String),
}

impl Credentials {
    /// Encrypted; the cluster's certificate must be of one of these authorities (PEM).
    #[must_use]
    pub fn authority(mut self, pem: impl Into<String>) -> Self {
        self.trust = Trust::Authority(pem.into());
        self
    }

    /// Encrypted; the cluster's certificate must be of an authority that this system trusts.
    #[must_use]
    pub fn system_authorities(mut self) -> Self {
        self.trust = Trust::System;
        self
    }

    /// The client's own certificate with its chain, and its key (PEM): for who administers.
    #[must_use]
    pub fn certificate(mut self, pem: impl Into<String>, key_pem: impl Into<String>) -> Self {
        self.own = Some((pem.into(), key_pem.into()));
        self
    }

    /// A user's token, or the secret of a server of the product.
    #[must_use]
    pub fn token(self, token: impl Into<String>) -> Self {
        let token = token.into();
        self.token_from(move || token.clone())
    }

    /// The same, asked for with each connection and each call: it must answer at once, with a
    /// token that the application renews before it ends.
    #[must_use]
    pub fn token_from(mut self, source: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.token = Some(Arc::new(source));
        self
    }

    /// How connections are encrypted; not at all when there is none.
    ///
    /// # Errors
    /// [`ClientError::Config`] when a token or a certificate would be of no use, or be seen by
    /// everybody on the way.
    pub(crate) fn tls(&self) -> Result<Option<ClientTlsConfig>, ClientError> {
        let config = match &self.trust {
            Trust::Unencrypted if self.own.is_some() || self.token.is_some() => {
                return Err(ClientError::Config(
                    "a token or certificate is given, but the connection is not encrypted: say \
                     whose certificates are trusted (authority or system_authorities)"
                        .to_owned(),
                ));
            }
            Trust::Unencrypted => return Ok(None),
            Trust::System => ClientTlsConfig::new().with_native_roots(),
            Trust::Authority(pem) => {
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
            }
        };
        Ok(Some(match &self.own {
            None => config,
            Some((pem, key)) => config.identity(Identity::from_pem(pem, key)),
        }))
    }

    /// What calls have as their metadata `authorization`.
    ///
    /// # Errors
    /// [`ClientError::Config`] when the token is none.
    pub(crate) fn authorization(&self) -> Result<Option<MetadataValue<Ascii>>, ClientError> {
        let Some(source) = &self.token else {
            return Ok(None);
        };
        let value = MetadataValue::try_from(format!("Bearer {}", source().trim()));
        let mut value = value.map_err(|_| {
            ClientError::Config("the token has characters that no token has".to_owned())
        })?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let trust = match self.trust {
            Trust::Unencrypted => "unencrypted",
            Trust::System => "system authorities",
            Trust::Authority(_) => "an authority",
        };
        f.debug_struct("Credentials")
            .field("trust", &trust)
            .field("certificate", &self.own.is_some())
            .field("token", &self.token.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_sent_where_everybody_sees_it() {
        let plain = Credentials::default();
        assert!(plain.tls().expect("development").is_none());
        for open in [
            plain.clone().token("secret"),
            plain.certificate("pem", "key"),
        ] {
            assert!(matches!(open.tls(), Err(ClientError::Config(_))));
            assert!(
                open.system_authorities()
                    .tls()
                    .expect("encrypted")
                    .is_some()
            );
        }
    }

    #[test]
    fn nothing_secret_is_shown() {
        let all = Credentials::default()
            .authority("CA")
            .certificate("PEM", "KEY");
        let shown = format!("{:?}", all.token("SECRET"));
        assert!(
            !shown.contains("SECRET") && !shown.contains("KEY"),
            "{shown}"
        );
        let value = Credentials::default().token("SECRET").authorization();
        let value = value.expect("ascii").expect("given");
        assert_eq!(value.to_str().expect("ascii"), "Bearer SECRET");
        assert!(!format!("{value:?}").contains("SECRET"));
    }

    #[test]
    fn tokens_are_asked_for_each_time() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let count = AtomicU32::new(0);
        let fresh = Credentials::default()
            .token_from(move || format!("t{}\n", count.fetch_add(1, Ordering::Relaxed)));
        for expected in ["Bearer t0", "Bearer t1"] {
            let value = fresh.authorization().expect("ascii").expect("given");
            assert_eq!(value.to_str().expect("ascii"), expected);
        }
        let bad = Credentials::default().token("a\u{e9}\nb");
        assert!(matches!(bad.authorization(), Err(ClientError::Config(_))));
    }
}
