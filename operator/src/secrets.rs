//! Keeps certificates and the join token in Secrets.
//!
//! The authority is created, never overwritten: two operators that make one at the same time end
//! up with the first one's. Everything else is applied.

use std::collections::BTreeMap;

use carillon_crds::imcluster::TlsMode;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

use crate::apply::{ApplyError, apply};
use crate::build::objects::{Object, SECRET};
use crate::build::{Context, names};
use crate::cluster::Credentials;
use crate::plan::MemberName;
use crate::tls::{self, Issued, Subject, TlsError};

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const AUTHORITY: &str = "ca.crt";

#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    #[error("{0}")]
    Kube(#[from] Box<kube::Error>),
    #[error("{0}")]
    Apply(#[from] ApplyError),
    #[error("{0}")]
    Tls(#[from] TlsError),
    #[error("the Secret {name} of spec.tls has no {key}")]
    Incomplete { name: String, key: &'static str },
    #[error("the Secret {0} of spec.tls does not exist")]
    Missing(String),
}

impl From<kube::Error> for SecretsError {
    fn from(error: kube::Error) -> SecretsError {
        SecretsError::Kube(Box::new(error))
    }
}

/// What was found and made.
pub struct Certificates {
    pub operator: Credentials,
    pub authority_ends_s: i64,
    /// When the first of the others ends.
    pub first_ends_s: i64,
    /// Names of Secrets whose certificates were made anew.
    pub renewed: Vec<String>,
}

/// Makes what is missing or due.
pub async fn ensure(
    client: &Client,
    context: &Context<'_>,
    members: &[MemberName],
    now_s: i64,
) -> Result<Certificates, SecretsError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), context.namespace);
    let authority = authority(&api, context, now_s).await?;
    let cluster = names::cluster(context.namespace, context.name);
    let admin_name = names::admin_tls(context.name);
    let admin = Subject {
        uri: tls::admin_uri(&cluster, "operator"),
        hosts: Vec::new(),
    };
    let mut renewed = Vec::new();
    let mut leaf = async |name: String, subject: Subject| -> Result<Issued, SecretsError> {
        let known = read(&api, &name).await?;
        if let Some(known) = known
            && !tls::is_due(&known.certificate, &authority.certificate, &subject, now_s)
        {
            return Ok(known);
        }
        let made = tls::issue(&authority, &subject, now_s)?;
        let object = secret(context, &name, &made, &authority);
        apply(client, context.namespace, &object).await?;
        renewed.push(name);
        Ok(made)
    };
    let operator = leaf(admin_name, admin).await?;
    let mut first_ends_s = tls::validity(&operator.certificate)?.until_s;
    for member in members {
        let subject = Subject {
            uri: tls::node_uri(&cluster, member.as_str()),
            hosts: hosts(context, member),
        };
        let made = leaf(names::member_tls(member), subject).await?;
        first_ends_s = first_ends_s.min(tls::validity(&made.certificate)?.until_s);
    }
    Ok(Certificates {
        authority_ends_s: tls::validity(&authority.certificate)?.until_s,
        first_ends_s,
        renewed,
        operator: Credentials {
            authority: authority.certificate,
            certificate: operator.certificate,
            key: operator.key,
        },
    })
}

/// Where a node is reached: by its own name, by those of the Services before it, and through a
/// port-forward.
fn hosts(context: &Context<'_>, member: &MemberName) -> Vec<String> {
    let services = [
        member.to_string(),
        names::client_service(context.name),
        names::admin_service(context.name),
    ];
    let mut all = Vec::new();
    for service in &services {
        all.push(names::host(service, context.namespace));
        all.push(format!(
            "{}.cluster.local",
            names::host(service, context.namespace)
        ));
    }
    all.push("localhost".to_owned());
    all.push("127.0.0.1".to_owned());
    all
}

async fn authority(
    api: &Api<Secret>,
    context: &Context<'_>,
    now_s: i64,
) -> Result<Issued, SecretsError> {
    let settings = &context.cluster.spec.tls;
    if let (TlsMode::Secret, Some(secret)) = (settings.mode, &settings.secret) {
        let found = api.get_opt(&secret.name).await?;
        let found = found.ok_or_else(|| SecretsError::Missing(secret.name.clone()))?;
        let data = found.data.unwrap_or_default();
        let text = |key: &'static str| {
            text(&data, key).ok_or_else(|| SecretsError::Incomplete {
                name: secret.name.clone(),
                key,
            })
        };
        return Ok(Issued {
            certificate: text(CERTIFICATE)?,
            key: text(KEY)?,
        });
    }
    let name = names::authority(context.name);
    if let Some(known) = read(api, &name).await? {
        return Ok(known);
    }
    let cluster = names::cluster(context.namespace, context.name);
    let made = tls::make_authority(&cluster, now_s)?;
    let mut object = secret(context, &name, &made, &made);
    // It stays with the volumes, so that clients trust the cluster that is made on them again.
    if let Some(metadata) = object.body["metadata"].as_object_mut() {
        metadata.remove("ownerReferences");
    }
    let typed: Secret =
        serde_json::from_value(object.body).map_err(|error| TlsError::Read(error.to_string()))?;
    match api.create(&PostParams::default(), &typed).await {
        Ok(_) => Ok(made),
        // Somebody else was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => {
            read(api, &name).await?.ok_or(SecretsError::Missing(name))
        }
        Err(error) => Err(error.into()),
    }
}

/// What the operator shows members and how it knows them, as it was made before; none when there
/// is nothing yet. Makes nothing.
///
/// # Errors
/// [`SecretsError`].
pub async fn credentials(
    client: &Client,
    namespace: &str,
    cluster: &str,
) -> Result<Option<Credentials>, SecretsError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = api.get_opt(&names::admin_tls(cluster)).await?;
    let data = secret.and_then(|secret| secret.data).unwrap_or_default();
    let all = text(&data, AUTHORITY)
        .zip(text(&data, CERTIFICATE))
        .zip(text(&data, KEY));
    Ok(all.map(|((authority, certificate), key)| Credentials {
        authority,
        certificate,
        key,
    }))
}

/// Deletes the operator's authority of a cluster, once nothing of the cluster stays.
///
/// # Errors
/// [`SecretsError`].
pub async fn forget_authority(client: &Client, context: &Context<'_>) -> Result<(), SecretsError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), context.namespace);
    let name = names::authority(context.name);
    match api.delete(&name, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn read(api: &Api<Secret>, name: &str) -> Result<Option<Issued>, SecretsError> {
    let Some(secret) = api.get_opt(name).await? else {
        return Ok(None);
    };
    let data = secret.data.unwrap_or_default();
    let both = (text(&data, CERTIFICATE), text(&data, KEY));
    Ok(match both {
        (Some(certificate), Some(key)) => Some(Issued { certificate, key }),
        _ => None,
    })
}

fn text(data: &BTreeMap<String, ByteString>, key: &str) -> Option<String> {
    String::from_utf8(data.get(key)?.0.clone()).ok()
}

fn secret(context: &Context<'_>, name: &str, issued: &Issued, authority: &Issued) -> Object {
    let rest = json!({
        "type": "kubernetes.io/tls",
        "stringData": {
            CERTIFICATE: issued.certificate,
            KEY: issued.key,
            AUTHORITY: authority.certificate,
        },
    });
    Object::new(SECRET, name.to_owned(), context.metadata(name), rest)
}

/// What new members join with.
pub fn join_token(context: &Context<'_>, token: &str) -> Object {
    let name = names::join_secret(context.name);
    let metadata = context.metadata(&name);
    Object::new(
        SECRET,
        name,
        metadata,
        json!({"stringData": {"token": token}}),
    )
}
