//! Certificates, who may connect, and who may reach the nodes.

use kube::KubeSchema;
use kube::core::Duration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::change::DURATION_PATTERN;
use super::spec::yes;

/// Who makes the certificates of the nodes. They are renewed before they end, and nodes take them
/// without a restart.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(
    validation = Rule::new("has(self.secret) == (self.mode == 'Secret')").message("spec.tls.secret must be set when spec.tls.mode is Secret, and only then"),
    validation = Rule::new("self.mode != 'Secret' || !has(self.rotation) || !has(self.rotation.revision)").message("spec.tls.rotation.revision is for mode Operator: with mode Secret a new authority in the Secret begins a rotation"),
    validation = Rule::new("self.mode == oldSelf.mode && has(self.secret) == has(oldSelf.secret) && (!has(self.secret) || self.secret == oldSelf.secret)").message("spec.tls.mode and spec.tls.secret cannot be changed: nodes with certificates of two authorities do not trust each other")
)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// Operator: an authority of the cluster's own, which the operator makes and keeps in the
    /// Secret NAME-ca. Secret: an authority that you give; see secret.
    #[serde(default)]
    pub mode: TlsMode,
    /// With mode Secret: a Secret of type kubernetes.io/tls whose tls.crt and tls.key are an
    /// authority, from which the operator makes the nodes' certificates. Another authority in it
    /// takes the place of the one before; see rotation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretRef>,
    /// How a new authority takes the old one's place: both are trusted until all certificates are
    /// of the new one. Nothing is restarted.
    #[serde(default)]
    pub rotation: Rotation,
    /// The certificate that clients see. Left out: the nodes' own, of the authority above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<ClientCertificate>,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsMode {
    #[default]
    Operator,
    Secret,
}

/// How a new authority takes the old one's place.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Rotation {
    /// With mode Operator: any text, such as a date. With another text than before a new authority
    /// is made; it is also made a year before the old one ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub revision: Option<String>,
    /// How long clients have to learn of the new authority, from when the Secret NAME-ca has both
    /// until nodes show certificates of the new one. Up to 720h.
    #[serde(default = "overlap_default")]
    #[schemars(regex(pattern = DURATION_PATTERN), length(max = 24))]
    #[x_kube(validation = Rule::new("duration(self) <= duration('720h')").message("spec.tls.rotation.overlap must be at most 720h"))]
    pub overlap: Duration,
}

fn overlap_default() -> Duration {
    std::time::Duration::from_secs(600).into()
}

impl Default for Rotation {
    fn default() -> Rotation {
        Rotation {
            revision: None,
            overlap: overlap_default(),
        }
    }
}

/// The certificate that clients see, such as one of a public authority.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ClientCertificate {
    /// A Secret of type kubernetes.io/tls. Nodes take a changed one without a restart.
    pub secret: SecretRef,
}

/// A Secret in the namespace of the ImCluster.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A key of a Secret in the namespace of the ImCluster.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretKey {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key in it.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// Who may connect. Nodes take changed keys without a restart.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(
    validation = Rule::new("has(self.jwks) || has(self.serverKeys)").message("spec.auth needs jwks, serverKeys, or both"),
    validation = Rule::new("has(self.jwks) || (!has(self.issuer) && !has(self.audience))").message("spec.auth.issuer and spec.auth.audience are of tokens and need spec.auth.jwks")
)]
#[serde(rename_all = "camelCase")]
pub struct Auth {
    /// A JWKS document with the keys that clients' tokens (JWT) are signed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks: Option<SecretKey>,
    /// The issuer that tokens must name. Left out: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub issuer: Option<String>,
    /// The audience that tokens must name. Left out: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub audience: Option<String>,
    /// How far clocks may be apart. Left out: the node's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = DURATION_PATTERN), length(max = 24))]
    pub clock_skew: Option<Duration>,
    /// The list of server API credentials (TOML: name, hash of the secret, scopes).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_keys: Option<SecretKey>,
}

/// Who may reach the nodes over the network.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicySettings {
    /// Makes a NetworkPolicy: the nodes reach each other, the operator and nobody else reaches
    /// the administration, everybody the clients' port and the metrics.
    #[serde(default = "yes")]
    pub enabled: bool,
}

impl Default for NetworkPolicySettings {
    fn default() -> NetworkPolicySettings {
        NetworkPolicySettings { enabled: true }
    }
}
