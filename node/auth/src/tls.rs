//! Encrypted connections, and the files that their certificates come from.
//!
//! Owner of the state: [`Tls`], which holds what the files said when they were last read.
//! Invariants: files that cannot be used change nothing; a connection is given to nobody before
//! its handshake is done and its owner's role fits the port.

mod files;
mod stream;

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::{ClientConfig, ServerConfig};

pub use files::{CertificateFiles, TlsError, TlsFiles};
pub use stream::{Admits, Transport};

use crate::identity::{Identity, Role};

/// What one reading of the files gave.
struct Current {
    /// For nodes and operators, who must show a certificate.
    closed: Arc<ServerConfig>,
    /// For clients, who may.
    open: Arc<ServerConfig>,
    /// To other nodes.
    dial: Arc<ClientConfig>,
    /// When the first of the node's own certificates ends, in seconds since 1970.
    ends_at_s: i64,
    /// What was read, to see whether it changed.
    bytes: Vec<Vec<u8>>,
}

/// How this node encrypts, and whom it trusts.
pub struct Tls {
    cluster: String,
    files: TlsFiles,
    current: ArcSwap<Current>,
}

impl Tls {
    /// Reads the files of a node of a cluster.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn load(cluster: &str, files: TlsFiles) -> Result<Self, TlsError> {
        let current = files.read(cluster)?;
        Ok(Self {
            cluster: cluster.to_owned(),
            files,
            current: ArcSwap::from_pointee(current),
        })
    }

    /// Reads the files again; whether they say something else now. Connections that exist go on.
    ///
    /// # Errors
    /// [`TlsError`]; then nothing has changed.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let current = self.files.read(&self.cluster)?;
        let changed = current.bytes != self.current.load().bytes;
        if changed {
            self.current.store(Arc::new(current));
        }
        Ok(changed)
    }

    /// When the first of this node's certificates ends, in seconds since 1970.
    #[must_use]
    pub fn ends_at_s(&self) -> i64 {
        self.current.load().ends_at_s
    }

    /// How connections to a port are taken.
    pub(crate) fn server(&self, admits: Admits) -> Arc<ServerConfig> {
        let current = self.current.load();
        match admits {
            Admits::Nodes | Admits::Operators => current.closed.clone(),
            Admits::Clients => current.open.clone(),
        }
    }

    /// Whether the owner of a certificate may use a port.
    pub(crate) fn admit(&self, admits: Admits, owner: &Identity) -> Result<(), String> {
        let Self { cluster, .. } = self;
        if owner.cluster != *cluster {
            return Err(format!("{owner} is of another cluster than {cluster}"));
        }
        let fits = match admits {
            Admits::Nodes => owner.role == Role::Node,
            Admits::Operators => matches!(owner.role, Role::Admin | Role::Viewer),
            Admits::Clients => true,
        };
        if fits {
            return Ok(());
        }
        Err(format!("{owner} has the wrong role for this port"))
    }

    /// Connects to another node at `host:port`, whose certificate must be of a node of this
    /// cluster and of that host.
    ///
    /// # Errors
    /// When it cannot be reached, or is somebody else.
    pub async fn dial(&self, address: &str) -> std::io::Result<Transport> {
        let config = self.current.load().dial.clone();
        stream::dial(config, address, |owner| self.admit(Admits::Nodes, owner)).await
    }
}

#[cfg(test)]
mod tests;
