//! `ImCluster`: one Carillon cluster. The spec says what is wanted, the status what there is.
//!
//! The parts are in files of their own: [`spec`], [`security`], [`change`] and [`status`].

pub mod change;
pub mod security;
pub mod spec;
pub mod status;

pub use change::{AutoGrow, Canary, DeletionPolicy, FailureReplacement, ScaleIn, Storage, Update};
pub use security::{
    Auth, ClientCertificate, NetworkPolicySettings, Rotation, SecretKey, SecretRef, Tls, TlsMode,
};
pub use spec::{
    ClientService, ImCluster, ImClusterSpec, Monitoring, NodeConfig, PodTemplate, Resources,
    ServiceType, Spread, Topology,
};
pub use status::{
    CertificateStatus, Condition, ImClusterStatus, MemberState, MemberStatus, OperationStatus,
    OperationType, ShardsStatus,
};
