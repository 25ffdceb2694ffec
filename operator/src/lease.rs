//! Who of several operators writes: the holder of a Lease.
//!
//! Owner of the Lease object. Invariants:
//! * [`Leadership::leads`] is true only while the last renewal was sent less than
//!   [`RENEWED_WITHIN`] ago, by this machine's monotonic clock.
//! * Another one takes the Lease only after it saw it unchanged for [`LEASE`]; since
//!   `RENEWED_WITHIN < LEASE`, two never lead at once.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

/// For how long the Lease holds after its last renewal.
pub const LEASE: Duration = Duration::from_secs(15);
/// The holder stops by itself this long after its last renewal.
pub const RENEWED_WITHIN: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(3);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
const NAME: &str = "carillon-operator";

/// Whether this operator may write.
#[derive(Clone, Default)]
pub struct Leadership {
    until: Arc<Mutex<Option<Instant>>>,
}

impl Leadership {
    pub fn leads(&self) -> bool {
        let until = *self.until.lock().unwrap_or_else(|held| held.into_inner());
        until.is_some_and(|until| Instant::now() < until)
    }

    fn set(&self, until: Option<Instant>) {
        *self.until.lock().unwrap_or_else(|held| held.into_inner()) = until;
    }

    /// For tests, and operators that are alone by other means.
    pub fn always() -> Leadership {
        let leadership = Leadership::default();
        leadership.set(Some(Instant::now() + Duration::from_secs(365 * 86_400)));
        leadership
    }
}

pub struct Election {
    leases: Api<Lease>,
    identity: String,
    leadership: Leadership,
    /// The Lease of another one as it was first seen, and when.
    seen: Option<(String, Instant)>,
}

impl Election {
    pub fn new(client: Client, namespace: &str, identity: String) -> Election {
        Election {
            leases: Api::namespaced(client, namespace),
            identity,
            leadership: Leadership::default(),
            seen: None,
        }
    }

    pub fn leadership(&self) -> Leadership {
        self.leadership.clone()
    }

    /// Tries until it is told to stop; then gives the Lease back.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let sent = Instant::now();
            match tokio::time::timeout(REQUEST_TIMEOUT, self.attempt()).await {
                Ok(Ok(true)) => {
                    if !self.leadership.leads() {
                        tracing::info!(identity = self.identity, "leads");
                    }
                    self.leadership.set(Some(sent + RENEWED_WITHIN));
                }
                Ok(Ok(false)) => self.leadership.set(None),
                Ok(Err(error)) => tracing::warn!(%error, "the lease could not be renewed"),
                Err(_) => tracing::warn!("the lease could not be renewed in time"),
            }
            // Cancel-safe: both arms only wait.
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(RETRY) => {}
            }
        }
        if self.leadership.leads() {
            self.leadership.set(None);
            if let Err(error) = self.give_back().await {
                tracing::warn!(%error, "the lease could not be given back");
            }
        }
    }

    /// Takes or renews the Lease; false while it is another one's.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let Some(mut lease) = self.leases.get_opt(NAME).await? else {
            let lease = Lease {
                metadata: kube::core::ObjectMeta {
                    name: Some(NAME.to_owned()),
                    ..Default::default()
                },
                spec: Some(self.spec(None)),
            };
            self.leases.create(&PostParams::default(), &lease).await?;
            return Ok(true);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        if holder != self.identity && !holder.is_empty() && !self.is_over(&lease) {
            return Ok(false);
        }
        lease.spec = Some(self.spec(Some(&spec)));
        // With the resource version that was read: refused if somebody was faster.
        self.leases
            .replace(NAME, &PostParams::default(), &lease)
            .await?;
        self.seen = None;
        Ok(true)
    }

    /// By this machine's clock: clocks of others are not trusted.
    fn is_over(&mut self, lease: &Lease) -> bool {
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        match &self.seen {
            Some((seen, since)) if *seen == version => since.elapsed() >= LEASE,
            _ => {
                self.seen = Some((version, Instant::now()));
                false
            }
        }
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let ours = before.filter(|spec| spec.holder_identity.as_ref() == Some(&self.identity));
        let transitions = before
            .and_then(|spec| spec.lease_transitions)
            .unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
            acquire_time: ours
                .and_then(|spec| spec.acquire_time.clone())
                .or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions + i32::from(ours.is_none())),
            ..LeaseSpec::default()
        }
    }

    async fn give_back(&self) -> Result<(), kube::Error> {
        let Some(mut lease) = self.leases.get_opt(NAME).await? else {
            return Ok(());
        };
        let Some(spec) = lease.spec.as_mut() else {
            return Ok(());
        };
        if spec.holder_identity.as_ref() == Some(&self.identity) {
            spec.holder_identity = None;
            self.leases
                .replace(NAME, &PostParams::default(), &lease)
                .await?;
        }
        Ok(())
    }
}
