//! Certificates of one ImCluster, as a part of its pass: leaves are made and renewed, and a new
//! authority takes the old one's place step by step ([`crate::rotation`]).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use carillon_crds::imcluster::CertificateStatus;
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::ListParams;

use crate::build::{CLUSTER_LABEL, Context};
use crate::cluster::{Connect, Credentials};
use crate::memory::Memory;
use crate::observe::{self, Objects};
use crate::plan::MemberName;
use crate::reconcile::{PAGE, ReconcileError, Reconciler, now_s, shared};
use crate::rotation::{self, Answers, Next, Question};
use crate::secrets::{Held, Secrets};

/// Steps of a rotation in one pass; one that goes on forever would hold up the rest.
const STEPS_MAX: u32 = 4;
/// Members that are asked at once.
const ASKED_AT_ONCE: usize = 8;

/// A rotation that is not done.
pub struct Rotating {
    /// For people.
    pub waits: String,
    pub again_at: Instant,
}

impl<C: Connect> Reconciler<C> {
    /// Makes what is missing or due, and takes the steps of a rotation that can be taken now.
    pub(crate) async fn certify(
        &self,
        context: &Context<'_>,
        members: &[MemberName],
        memory: &mut Memory,
    ) -> Result<(), ReconcileError> {
        let now = i64::try_from(now_s()).unwrap_or(i64::MAX);
        let secrets = Secrets::new(&self.applier, context, now);
        for _ in 0..STEPS_MAX {
            self.must_lead()?;
            let mut held = secrets.authorities().await?;
            let made = secrets.leaves(&held, members).await?;
            for name in &made.renewed {
                let note = format!("made a certificate: {name}");
                self.events
                    .normal(context.cluster, "CertificateIssued", &note)
                    .await;
            }
            let kept = held
                .authorities
                .kept()
                .map_err(crate::secrets::SecretsError::from)?;
            let mut next = rotation::decide(&kept, &held.wanted, now_s(), None);
            if let Next::Ask(question) = next {
                let mut answers = self
                    .ask(context, &secrets, &held, &made.operator, question)
                    .await?;
                // Whose certificate is lost with the key to make another one learns nothing before
                // the switch; better a moment for this one than for ever for all.
                answers.retain(|name, _| !made.lacking.contains(name));
                next = rotation::decide(&kept, &held.wanted, now_s(), Some(&answers));
            }
            memory.certificates = Some(CertificateStatus {
                authority_expires: moment(made.authority_ends_s),
                next_expiry: moment(made.first_ends_s),
                rotation: None,
            });
            memory.credentials = Some(made.operator);
            memory.rotating = None;
            match &next {
                Next::Rest | Next::Ask(_) => return Ok(()),
                Next::Wait { reason, for_s } => {
                    let mut waits = reason.to_string();
                    if let Some(member) = made.lacking.first() {
                        waits = format!("{waits}; {member} gets a certificate after that");
                    }
                    memory.rotating = Some(Rotating {
                        waits,
                        again_at: Instant::now() + Duration::from_secs(*for_s),
                    });
                    return Ok(());
                }
                Next::Begin | Next::GiveUp | Next::Switch | Next::Finish => {
                    self.must_lead()?;
                    secrets.advance(&mut held, &next).await?;
                    tracing::info!(?next, "a step of a rotation of the authority");
                    if let Some((reason, note)) = told(&next) {
                        self.events.normal(context.cluster, reason, note).await;
                    }
                    // If the pass ends here, the next one goes on at once.
                    memory.rotating = Some(Rotating {
                        waits: "a step has been taken".to_owned(),
                        again_at: Instant::now(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Asks every member that has a Pod, as it is right now: one that a watch has not shown yet
    /// counts too.
    async fn ask(
        &self,
        context: &Context<'_>,
        secrets: &Secrets<'_>,
        held: &Held,
        operator: &Credentials,
        question: Question,
    ) -> Result<Answers, ReconcileError> {
        let credentials = secrets.proof(held, operator, question)?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), context.namespace);
        let ours = ListParams::default()
            .labels(&format!("{CLUSTER_LABEL}={}", context.name))
            .limit(PAGE);
        let objects = Objects {
            pods: shared(pods.list(&ours).await?.items),
            ..Objects::default()
        };
        let seen = observe::understand(context.name, context.namespace, "", &objects);
        let running: BTreeSet<MemberName> = seen
            .pods
            .iter()
            .filter(|(_, pod)| !pod.ended)
            .map(|(name, _)| name.clone())
            .collect();
        let endpoints: BTreeMap<_, _> = seen
            .endpoints
            .iter()
            .map(|endpoint| (endpoint.host.clone(), endpoint))
            .collect();
        let asked = running.into_iter().map(|name| {
            let host = crate::build::names::host(name.as_str(), context.namespace);
            let endpoint = endpoints.get(&host).copied();
            let credentials = &credentials;
            async move {
                let answer = match endpoint {
                    Some(endpoint) => self.connect.prove(endpoint, credentials).await,
                    None => Err("its Pod is starting or ending".to_owned()),
                };
                (name, answer)
            }
        });
        let asked = futures_util::stream::iter(asked).buffer_unordered(ASKED_AT_ONCE);
        Ok(asked.collect().await)
    }
}

fn told(next: &Next) -> Option<(&'static str, &'static str)> {
    match next {
        Next::Begin => Some((
            "AuthorityPublished",
            "a new authority is to be trusted beside the one before",
        )),
        Next::GiveUp => Some((
            "AuthorityGivenUp",
            "the authority before is wanted again; nothing was issued from the new one",
        )),
        Next::Switch => Some((
            "AuthoritySwitched",
            "all members trust the new authority: certificates are issued from it",
        )),
        Next::Finish => Some((
            "AuthorityRotated",
            "all members show certificates of the new authority: the old one is trusted no more",
        )),
        Next::Rest | Next::Ask(_) | Next::Wait { .. } => None,
    }
}

fn moment(seconds: i64) -> Time {
    Time(Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH))
}
