//! Keeps authorities, certificates and the join token in Secrets.
//!
//! The Secret of the authorities is created, and replaced only as it was read: of two operators
//! that change it at the same time one is refused and looks again. Everything else is applied.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use carillon_crds::imcluster::TlsMode;

use crate::apply::{Applier, ApplyError};
use crate::authority::{Authorities, Authority, BUNDLE, CERTIFICATE, KEY, text};
use crate::build::objects::{Object, SECRET};
use crate::build::{CLUSTER_LABEL, Context, names};
use crate::cluster::Credentials;
use crate::plan::MemberName;
use crate::rotation::{self, Leaf, LeafStep, Mark, Next, Question, Wanted};
use crate::tls::{self, Issued, Subject, TlsError};

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
    #[error("the Secret {0} has no authority in it: delete it, and another one is made")]
    NoAuthority(String),
    #[error("no certificate can be issued before the new authority is trusted by all members")]
    CannotIssue,
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
    /// Members whose certificates cannot be made yet.
    pub lacking: Vec<MemberName>,
}

/// The Secret of the authorities, as it was read or written last.
pub struct Held {
    secret: Secret,
    pub authorities: Authorities,
    pub wanted: Wanted,
    /// With mode Secret: the one that was given.
    given: Option<Authority>,
}

/// A Secret with a leaf.
struct Found {
    leaf: Option<Issued>,
    bundle: String,
    /// It is of this ImCluster, and not of one of the same name before it, with which it goes.
    ours: bool,
}

/// The Secrets of one ImCluster.
pub struct Secrets<'a> {
    applier: &'a Applier,
    context: &'a Context<'a>,
    api: Api<Secret>,
    now_s: i64,
}

impl<'a> Secrets<'a> {
    pub fn new(applier: &'a Applier, context: &'a Context<'a>, now_s: i64) -> Secrets<'a> {
        let api = Api::namespaced(applier.client.clone(), context.namespace);
        Secrets {
            applier,
            context,
            api,
            now_s,
        }
    }

    /// The authorities; made when there are none. Whatever was done to the Secret, what members
    /// trust by now goes on being trusted.
    pub async fn authorities(&self) -> Result<Held, SecretsError> {
        let given = self.given().await?;
        let name = names::authority(self.context.name);
        let witness = self.read(&names::admin_tls(self.context.name)).await?;
        let witness = witness.filter(|found| found.ours && found.leaf.is_some());
        let trusted = witness.map(|found| found.bundle);
        let secret = self.api.get_opt(&name).await?;
        let kept = secret.as_ref().map(|secret| {
            let kept = Authorities::read(secret);
            kept.ok_or_else(|| SecretsError::NoAuthority(name.clone()))
        });
        let wanted = || given.clone().map_or_else(|| self.make(), Ok);
        let now_s = self.now_s.unsigned_abs();
        let (authorities, changed) =
            Authorities::resumed(kept.transpose()?, trusted.as_deref(), wanted, now_s)?;
        let missing = secret.is_none();
        let secret = match secret {
            Some(secret) => secret,
            None => self.empty(&name, given.is_some())?,
        };
        let mut held = self.held(secret, authorities, given)?;
        if missing {
            // Refused when somebody else was faster; the next pass has that one's.
            held.authorities.write(&mut held.secret);
            held.secret = self
                .api
                .create(&PostParams::default(), &held.secret)
                .await?;
            self.applier.known.wrote(SECRET, &held.secret.metadata);
        } else if changed {
            self.replace(&mut held).await?;
        }
        Ok(held)
    }

    fn empty(&self, name: &str, given: bool) -> Result<Secret, SecretsError> {
        let metadata = self.context.metadata(name);
        let rest = json!({"type": "kubernetes.io/tls"});
        let mut object = Object::new(SECRET, name.to_owned(), metadata, rest);
        // An own one stays with the volumes, so that clients trust the cluster that is made on
        // them again.
        if let Some(metadata) = object.body["metadata"].as_object_mut()
            && !given
        {
            metadata.remove("ownerReferences");
        }
        let secret = serde_json::from_value(object.body);
        secret.map_err(|error| TlsError::Read(error.to_string()).into())
    }

    fn held(
        &self,
        secret: Secret,
        authorities: Authorities,
        given: Option<Authority>,
    ) -> Result<Held, SecretsError> {
        let rotation = &self.context.cluster.spec.tls.rotation;
        let ends_s = tls::validity(&authorities.issuing.issued.certificate)?.until_s;
        let wanted = Wanted {
            mark: match &given {
                Some(given) => given.mark.clone(),
                None => Mark(rotation.revision.clone().unwrap_or_default()),
            },
            anew: given.is_none() && ends_s - self.now_s < tls::AUTHORITY_RENEWAL_S,
            overlap_s: std::time::Duration::from(rotation.overlap).as_secs(),
        };
        Ok(Held {
            secret,
            authorities,
            wanted,
            given,
        })
    }

    /// One of the operator's own, as it is wanted.
    fn make(&self) -> Result<Authority, SecretsError> {
        let rotation = &self.context.cluster.spec.tls.rotation;
        let cluster = names::cluster(self.context.namespace, self.context.name);
        Ok(Authority {
            issued: tls::make_authority(&cluster, self.now_s)?,
            mark: Mark(rotation.revision.clone().unwrap_or_default()),
        })
    }

    async fn given(&self) -> Result<Option<Authority>, SecretsError> {
        let settings = &self.context.cluster.spec.tls;
        let (TlsMode::Secret, Some(secret)) = (settings.mode, &settings.secret) else {
            return Ok(None);
        };
        let found = self.api.get_opt(&secret.name).await?;
        let found = found.ok_or_else(|| SecretsError::Missing(secret.name.clone()))?;
        let data = found.data.unwrap_or_default();
        let text = |key: &'static str| {
            text(&data, key).ok_or_else(|| SecretsError::Incomplete {
                name: secret.name.clone(),
                key,
            })
        };
        let issued = Issued {
            certificate: text(CERTIFICATE)?,
            key: text(KEY)?,
        };
        let mark = Mark(format!("given/{}", tls::id(&issued.certificate)?.0));
        Ok(Some(Authority { issued, mark }))
    }

    /// Takes a step of a rotation, if nobody changed the Secret meanwhile.
    pub async fn advance(&self, held: &mut Held, next: &Next) -> Result<(), SecretsError> {
        let now_s = self.now_s.unsigned_abs();
        match next {
            Next::Begin => {
                let coming = match &held.given {
                    Some(given) => given.clone(),
                    None => self.make()?,
                };
                held.authorities.begin(coming, now_s);
            }
            Next::GiveUp => held.authorities.give_up(now_s),
            Next::Switch => held.authorities.switch(),
            Next::Finish => held.authorities.finish(now_s),
            Next::Rest | Next::Ask(_) | Next::Wait { .. } => return Ok(()),
        }
        self.replace(held).await
    }

    async fn replace(&self, held: &mut Held) -> Result<(), SecretsError> {
        held.authorities.write(&mut held.secret);
        let name = names::authority(self.context.name);
        let params = PostParams::default();
        held.secret = self.api.replace(&name, &params, &held.secret).await?;
        self.applier.known.wrote(SECRET, &held.secret.metadata);
        Ok(())
    }

    /// Makes leaves that are missing or due, and writes beside all of them what is to be trusted.
    pub async fn leaves(
        &self,
        held: &Held,
        members: &[MemberName],
    ) -> Result<Certificates, SecretsError> {
        let cluster = names::cluster(self.context.namespace, self.context.name);
        let mut renewed = Vec::new();
        let mut lacking = Vec::new();
        let admin = Subject {
            uri: tls::admin_uri(&cluster, "operator"),
            hosts: Vec::new(),
        };
        let name = names::admin_tls(self.context.name);
        let operator = self.leaf(held, name, &admin, &mut renewed).await?;
        let operator = operator.ok_or(SecretsError::CannotIssue)?;
        let mut first_ends_s = tls::validity(&operator.certificate)?.until_s;
        for member in members {
            let subject = Subject {
                uri: tls::node_uri(&cluster, member.as_str()),
                hosts: hosts(self.context, member),
            };
            let name = names::member_tls(member);
            match self.leaf(held, name, &subject, &mut renewed).await? {
                Some(leaf) => {
                    let ends_s = tls::validity(&leaf.certificate)?.until_s;
                    first_ends_s = first_ends_s.min(ends_s);
                }
                None => lacking.push(member.clone()),
            }
        }
        let issuing = &held.authorities.issuing.issued;
        Ok(Certificates {
            authority_ends_s: tls::validity(&issuing.certificate)?.until_s,
            first_ends_s,
            renewed,
            lacking,
            operator: Credentials {
                authority: held.authorities.bundle(),
                certificate: operator.certificate,
                key: operator.key,
            },
        })
    }

    async fn leaf(
        &self,
        held: &Held,
        name: String,
        subject: &Subject,
        renewed: &mut Vec<String>,
    ) -> Result<Option<Issued>, SecretsError> {
        let issuing = &held.authorities.issuing;
        let bundle = held.authorities.bundle();
        let found = self.read(&name).await?;
        let authority = &issuing.issued.certificate;
        let seen = found.as_ref().map(|found| (found, found.leaf.as_ref()));
        let leaf = match seen {
            Some((found, Some(leaf))) => Leaf {
                there: true,
                due: tls::is_due(&leaf.certificate, authority, subject, self.now_s),
                bundled: found.ours && found.bundle == bundle,
            },
            _ => Leaf {
                there: false,
                due: true,
                bundled: false,
            },
        };
        let known = found.and_then(|found| found.leaf);
        let made = match rotation::leaf(leaf, issuing.can_issue()) {
            LeafStep::Keep => return Ok(known),
            LeafStep::Wait => return Ok(None),
            LeafStep::Write => known,
            LeafStep::Issue => {
                renewed.push(name.clone());
                Some(tls::issue(&issuing.issued, subject, self.now_s)?)
            }
        };
        if let Some(made) = &made {
            let object = secret(self.context, &name, made, &bundle);
            self.applier.apply(self.context.namespace, &object).await?;
        }
        Ok(made)
    }

    /// What a member is asked with: it answers to these only if the answer is yes.
    pub fn proof(
        &self,
        held: &Held,
        operator: &Credentials,
        question: Question,
    ) -> Result<Credentials, SecretsError> {
        let authorities = &held.authorities;
        match (question, &authorities.next) {
            (Question::TrustsNext, Some(next)) => {
                let cluster = names::cluster(self.context.namespace, self.context.name);
                let subject = Subject {
                    uri: tls::admin_uri(&cluster, "operator"),
                    hosts: Vec::new(),
                };
                let made = tls::issue(&next.issued, &subject, self.now_s)?;
                Ok(Credentials {
                    authority: authorities.bundle(),
                    certificate: made.certificate,
                    key: made.key,
                })
            }
            (Question::TrustsNext | Question::ShowsIssuing, _) => Ok(Credentials {
                authority: authorities.issuing.issued.certificate.clone(),
                ..operator.clone()
            }),
        }
    }

    async fn read(&self, name: &str) -> Result<Option<Found>, SecretsError> {
        let Some(secret) = self.api.get_opt(name).await? else {
            return Ok(None);
        };
        let uid = self.context.cluster.uid();
        let mut owners = secret.owner_references().iter();
        let ours = owners.any(|owner| Some(&owner.uid) == uid.as_ref());
        let data = secret.data.unwrap_or_default();
        let both = text(&data, CERTIFICATE).zip(text(&data, KEY));
        Ok(Some(Found {
            leaf: both.map(|(certificate, key)| Issued { certificate, key }),
            bundle: text(&data, BUNDLE).unwrap_or_default(),
            ours,
        }))
    }
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
    let all = text(&data, BUNDLE)
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
    let found = api.get_opt(&name).await?;
    // Without the label it is somebody else's.
    let ours = |secret: &Secret| {
        let label = secret.labels().get(CLUSTER_LABEL);
        label.is_some_and(|label| label == context.name)
    };
    if !found.is_some_and(|secret| ours(&secret)) {
        return Ok(());
    }
    match api.delete(&name, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn secret(context: &Context<'_>, name: &str, issued: &Issued, bundle: &str) -> Object {
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    let rest = json!({
        "type": "kubernetes.io/tls",
        "data": {
            CERTIFICATE: bytes(&issued.certificate),
            KEY: bytes(&issued.key),
            BUNDLE: bytes(bundle),
        },
    });
    Object::new(SECRET, name.to_owned(), context.metadata(name), rest)
}

/// What new members join with.
pub fn join_token(context: &Context<'_>, token: &str) -> Object {
    let name = names::join_secret(context.name);
    let metadata = context.metadata(&name);
    let token = ByteString(token.as_bytes().to_vec());
    Object::new(SECRET, name, metadata, json!({"data": {"token": token}}))
}
