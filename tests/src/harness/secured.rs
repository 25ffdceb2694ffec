//! Certificates, keys and tokens of a cluster that asks who is at the other end.
//!
//! Owns the authority that issues them and the files that the nodes read (a temporary directory,
//! removed with it).

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use carillon_auth::keys::{Scope, make};
use carillon_client::Credentials;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use serde_json::{Value, json};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use super::config::LOOPBACK;

/// The cluster's name in `node.toml`.
const CLUSTER: &str = "test";
/// A test ends before its tokens do.
const TOKEN_LIFETIME: Duration = Duration::from_secs(3_600);

/// An authority.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key, PEM.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate.
    pub pem: String,
    /// Its key.
    pub key_pem: String,
}

impl Authority {
    /// A new one.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        Ok(Self { issuer, pem })
    }

    /// Its own certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate of `carillon://test/ROLE/NAME`, for nodes on loopback.
    pub fn issue(&self, role: &str, name: &str) -> Result<Issued> {
        let mut params = CertificateParams::new(vec![LOOPBACK.to_string()])?;
        let uri = format!("carillon://{CLUSTER}/{role}/{name}");
        params.subject_alt_names.push(SanType::URI(uri.try_into()?));
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}

/// See the file's head.
#[derive(Debug)]
pub struct Secured {
    directory: tempfile::TempDir,
    authority: Authority,
    admin: Issued,
}

impl Secured {
    /// Files of a cluster that takes tokens signed with [`Secured::sign`]'s key `one`.
    pub fn new() -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("carillon-secured-")
            .tempdir()?;
        let authority = Authority::new()?;
        let admin = authority.issue("admin", "harness")?;
        let secured = Self {
            directory,
            authority,
            admin,
        };
        secured.trust(secured.authority.pem())?;
        secured.show(&secured.authority.issue("node", "any")?)?;
        secured.set_token_keys(&["one"])?;
        secured.set_server_keys("")?;
        Ok(secured)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Replaces a file as a whole, as a mounted secret does.
    fn write(&self, name: &str, text: &str) -> Result<()> {
        let new = self.path(&format!("{name}.new"));
        fs::write(&new, text)?;
        fs::rename(&new, self.path(name)).with_context(|| format!("could not replace {name}"))
    }

    /// What `node.toml` has in addition.
    pub fn config(&self) -> String {
        let path = |name| self.path(name).display().to_string();
        format!(
            "\n[tls]\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n\
             \n[auth]\njwks = {:?}\nserver_keys = {:?}\nclock_skew = \"0s\"\n",
            path("ca.pem"),
            path("node.pem"),
            path("node.key"),
            path("jwks.json"),
            path("server-keys.toml"),
        )
    }

    /// The authority of everything.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// From now on the nodes trust these authorities.
    pub fn trust(&self, pem: &str) -> Result<()> {
        self.write("ca.pem", pem)
    }

    /// From now on the nodes show this certificate.
    pub fn show(&self, issued: &Issued) -> Result<()> {
        self.write("node.key", &issued.key_pem)?;
        self.write("node.pem", &issued.pem)
    }

    /// From now on tokens of these keys are taken.
    pub fn set_token_keys(&self, names: &[&str]) -> Result<()> {
        let key = |name: &&str| json!({"kty": "oct", "kid": name, "k": URL_SAFE_NO_PAD.encode(secret(name))});
        let keys: Vec<Value> = names.iter().map(key).collect();
        self.write("jwks.json", &json!({ "keys": keys }).to_string())
    }

    /// From now on the servers of this file are let in.
    pub fn set_server_keys(&self, text: &str) -> Result<()> {
        self.write("server-keys.toml", text)
    }

    /// A server's secret, which is let in from now on, alone.
    pub fn server(&self, scopes: &[Scope]) -> Result<String> {
        let (secret, entry) = make("tests", scopes)?;
        self.set_server_keys(&entry)?;
        Ok(secret)
    }

    /// A token with these claims.
    pub fn sign(&self, key: &str, claims: &Value) -> Result<String> {
        let header = Header {
            kid: Some(key.to_owned()),
            ..Header::new(Algorithm::HS256)
        };
        Ok(encode(
            &header,
            claims,
            &EncodingKey::from_secret(&secret(key)),
        )?)
    }

    /// A user's token.
    pub fn token(&self, user: &str) -> Result<String> {
        self.token_for(user, TOKEN_LIFETIME)
    }

    /// A user's token that ends after so long.
    pub fn token_for(&self, user: &str, lifetime: Duration) -> Result<String> {
        let ends_at_s = (since_epoch() + lifetime).as_secs();
        self.sign("one", &json!({"sub": user, "exp": ends_at_s}))
    }

    /// Trusts the cluster, and says nothing of who calls.
    pub fn nobody(&self) -> Credentials {
        Credentials::default().authority(self.authority.pem())
    }

    /// Somebody with a certificate.
    pub fn with(&self, issued: &Issued) -> Credentials {
        self.nobody().certificate(&issued.pem, &issued.key_pem)
    }

    /// The connection of who administers.
    pub(super) fn tls(&self) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.authority.pem()))
            .identity(Identity::from_pem(&self.admin.pem, &self.admin.key_pem))
    }
}

/// Now, since 1970.
pub fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

fn secret(key: &str) -> Vec<u8> {
    key.bytes().cycle().take(32).collect()
}
