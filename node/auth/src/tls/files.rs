//! The files, and what is made of them. Owner of no state.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::Current;
use crate::identity::{Identity, Role, not_after_s};

/// HTTP/2, the one protocol on these ports.
const ALPN_HTTP2: &[u8] = b"h2";

/// A certificate with its chain, and its key: PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate first, then those between it and the authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The files of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authorities that issue the certificates of nodes and operators: PEM, one or more.
    pub ca: PathBuf,
    /// What this node shows other nodes and operators.
    pub own: CertificateFiles,
    /// What it shows clients; `own` when there is none.
    pub clients: Option<CertificateFiles>,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct TlsError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

impl TlsError {
    fn new(path: &Path, problem: impl ToString) -> Self {
        Self {
            path: path.to_owned(),
            problem: problem.to_string(),
        }
    }
}

/// One certificate that was read.
struct Shown {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    bytes: [Vec<u8>; 2],
}

impl TlsFiles {
    pub(super) fn read(&self, cluster: &str) -> Result<Current, TlsError> {
        let ca_bytes = read(&self.ca)?;
        let roots = Arc::new(roots(&self.ca, &ca_bytes)?);
        let own = self.own.read()?;
        let path = &self.own.certificate;
        let owner = Identity::of(&own.chain[0]).map_err(|error| TlsError::new(path, error))?;
        if owner.role != Role::Node || owner.cluster != cluster {
            let problem = format!(
                "it is the certificate of {owner}, where one of carillon://{cluster}/node/NAME is \
                 needed"
            );
            return Err(TlsError::new(path, problem));
        }
        let clients = self
            .clients
            .as_ref()
            .map(CertificateFiles::read)
            .transpose()?;
        let mut ends_at_s = own.ends_at_s(path)?;
        let mut bytes = vec![ca_bytes];
        bytes.extend(own.bytes.clone());
        if let (Some(files), Some(shown)) = (&self.clients, &clients) {
            ends_at_s = ends_at_s.min(shown.ends_at_s(&files.certificate)?);
            bytes.extend(shown.bytes.clone());
        }
        let verifier = |open: bool| {
            let builder = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider());
            let builder = if open {
                builder.allow_unauthenticated()
            } else {
                builder
            };
            builder
                .build()
                .map_err(|error| TlsError::new(&self.ca, error))
        };
        let (shown, shown_path) = match (&clients, &self.clients) {
            (Some(shown), Some(files)) => (shown, &files.certificate),
            _ => (&own, path),
        };
        Ok(Current {
            closed: Arc::new(server(&own, path, verifier(false)?)?),
            open: Arc::new(server(shown, shown_path, verifier(true)?)?),
            dial: Arc::new(client(&own, path, roots)?),
            ends_at_s,
            bytes,
        })
    }
}

impl CertificateFiles {
    fn read(&self) -> Result<Shown, TlsError> {
        let Self { certificate, key } = self;
        let certificate_bytes = read(certificate)?;
        let key_bytes = read(key)?;
        let chain = certificates(certificate, &certificate_bytes)?;
        let key = PrivateKeyDer::from_pem_slice(&key_bytes)
            .map_err(|error| TlsError::new(key, format!("no private key in PEM: {error}")))?;
        Ok(Shown {
            chain,
            key,
            bytes: [certificate_bytes, key_bytes],
        })
    }
}

impl Shown {
    fn ends_at_s(&self, path: &Path) -> Result<i64, TlsError> {
        not_after_s(&self.chain[0]).map_err(|error| TlsError::new(path, error))
    }
}

fn server(
    shown: &Shown,
    path: &Path,
    verifier: Arc<dyn ClientCertVerifier>,
) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::new(path, error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(shown.chain.clone(), shown.key.clone_key())
        .map_err(|error| TlsError::new(path, error))?;
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    Ok(config)
}

fn client(shown: &Shown, path: &Path, roots: Arc<RootCertStore>) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::new(path, error))?
        .with_root_certificates(roots)
        .with_client_auth_cert(shown.chain.clone(), shown.key.clone_key())
        .map_err(|error| TlsError::new(path, error))?;
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn roots(path: &Path, bytes: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, bytes)? {
        roots
            .add(certificate)
            .map_err(|error| TlsError::new(path, error))?;
    }
    Ok(roots)
}

/// At least one.
fn certificates(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let found = found.map_err(|error| TlsError::new(path, format!("not PEM: {error}")))?;
    if found.is_empty() {
        return Err(TlsError::new(path, "it has no certificate in PEM"));
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError::new(path, format!("cannot be read: {error}")))
}
