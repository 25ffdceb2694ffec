//! What things are called. Names follow from the ImCluster's alone, so that whoever looks twice
//! finds the same.

use crate::plan::MemberName;

/// Bytes that a cluster's own name may have.
const CLUSTER_NAME_BYTES_MAX: usize = 64;

pub fn claim(member: &MemberName) -> String {
    format!("data-{member}")
}

pub fn member_tls(member: &MemberName) -> String {
    format!("{member}-tls")
}

pub fn client_service(cluster: &str) -> String {
    format!("{cluster}-client")
}

pub fn admin_service(cluster: &str) -> String {
    format!("{cluster}-admin")
}

pub fn authority(cluster: &str) -> String {
    format!("{cluster}-ca")
}

pub fn admin_tls(cluster: &str) -> String {
    format!("{cluster}-admin-tls")
}

pub fn join_secret(cluster: &str) -> String {
    format!("{cluster}-join")
}

pub fn zones(cluster: &str) -> String {
    format!("{cluster}-zones")
}

/// The name of a service within the Kubernetes cluster.
pub fn host(service: &str, namespace: &str) -> String {
    format!("{service}.{namespace}.svc")
}

/// The cluster's name in its configuration and certificates: it tells clusters of different
/// namespaces apart, and stays the same for an ImCluster that is made again.
pub fn cluster(namespace: &str, name: &str) -> String {
    let whole = format!("{namespace}.{name}");
    match whole.len() <= CLUSTER_NAME_BYTES_MAX {
        true => whole,
        false => format!("{}.{name}", super::hash(namespace.as_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::cluster;

    #[test]
    fn a_clusters_name_is_never_too_long() {
        assert_eq!(cluster("chat-prod", "main"), "chat-prod.main");
        let long = cluster(&"n".repeat(63), &"c".repeat(40));
        assert!(long.len() <= 64, "{long}");
        assert_ne!(long, cluster(&"m".repeat(63), &"c".repeat(40)));
    }
}
