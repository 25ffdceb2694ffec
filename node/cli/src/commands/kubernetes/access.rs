//! A cluster's own calls, through a port-forward that is opened for them: where the members are,
//! and the certificates, which the operator keeps in a Secret. Nothing of that is written anywhere.

use carillon_client::{ClientError, Credentials};
use carillon_crds::ImCluster;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;

use super::connect::Connection;
use super::forward::Forward;
use super::pods::ADMIN_PORT;
use crate::arguments::Cluster;
use crate::failure::{advised, because};

/// Keys of a Secret with certificates.
const AUTHORITY: &str = "ca.crt";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// The admin API of a cluster, for as long as this is kept.
pub(super) struct Reached {
    /// What the operator says of it.
    pub(super) seen: ImCluster,
    /// Where it is, and who calls.
    pub(super) cluster: Cluster,
    forward: Forward,
    name: String,
}

impl Reached {
    /// Opens the way to a cluster's admin API. A certificate that is given is used; otherwise the
    /// one that the operator made.
    pub(super) async fn admin(
        connection: &Connection,
        name: &str,
        given: &Cluster,
    ) -> anyhow::Result<Self> {
        let seen = connection.cluster(name).await?;
        let credentials = match (&given.certificate, &given.ca) {
            (Some(_), Some(_)) => given.credentials()?,
            (Some(_), None) => {
                return Err(advised(
                    "--certificate is given, but not whose certificates are trusted",
                    "give --ca too, or leave out --certificate and --key: then those that the \
                     operator made are used",
                ));
            }
            (None, _) => {
                let secret = Certificates::read(connection, name).await?;
                let (certificate, key) = (secret.part(CERTIFICATE)?, secret.part(KEY)?);
                Credentials::default()
                    .authority(secret.part(AUTHORITY)?)
                    .certificate(certificate, key)
            }
        };
        let forward = Forward::open(connection, name, ADMIN_PORT, 0).await?;
        Ok(Self {
            seen,
            cluster: Cluster::found(forward.endpoint(), credentials),
            forward,
            name: name.to_owned(),
        })
    }

    /// The error of a call with what is known of the way to the cluster.
    pub(super) fn explained(&self, error: anyhow::Error) -> anyhow::Error {
        explained(&self.forward, &self.name, error)
    }
}

/// The error of a call through a forward, with what is known of that.
pub(super) fn explained(forward: &Forward, name: &str, error: anyhow::Error) -> anyhow::Error {
    let silent = matches!(
        error.downcast_ref::<ClientError>(),
        Some(ClientError::Unavailable { .. } | ClientError::Timeout { .. })
    );
    if !silent {
        return error;
    }
    let what = match forward.trouble() {
        Some(trouble) => format!("{name} is not reached through the port-forward: {trouble}"),
        None => format!("{name} does not answer through the port-forward"),
    };
    let advice = format!(
        "kubectl carillon status {name} says how it is, kubectl carillon logs {name} what its \
         members say"
    );
    because(error, what, advice)
}

/// The authority of the members' certificates, PEM. It is no secret.
pub(super) async fn authority(connection: &Connection, name: &str) -> anyhow::Result<String> {
    Certificates::read(connection, name).await?.part(AUTHORITY)
}

/// The Secret with a certificate of an admin, which the operator uses itself. Unlike that of the
/// authority it has no key with which others could be made.
struct Certificates {
    name: String,
    secret: Secret,
}

impl Certificates {
    async fn read(connection: &Connection, cluster: &str) -> anyhow::Result<Self> {
        let name = format!("{cluster}-admin-tls");
        let found = connection.all::<Secret>().get_opt(&name).await;
        let found =
            found.map_err(|error| connection.refused("get", &format!("secrets/{name}"), error))?;
        let secret = found.ok_or_else(|| {
            advised(
                format!("there is no Secret {name} with certificates yet"),
                format!("the operator makes it: kubectl carillon status {cluster}"),
            )
        })?;
        Ok(Self { name, secret })
    }

    fn part(&self, key: &str) -> anyhow::Result<String> {
        let data = self.secret.data.as_ref();
        let part = data.and_then(|data| data.get(key));
        let text = part.and_then(|ByteString(bytes)| String::from_utf8(bytes.clone()).ok());
        text.ok_or_else(|| {
            advised(
                format!("the Secret {} has no {key}", self.name),
                "delete it; the operator makes it anew",
            )
        })
    }
}
