//! Metrics and health of the operator over HTTP.
//!
//! Owner of the counters. A watch that has failed for [`STALE_AFTER`] makes the operator unhealthy:
//! what it knows is old, and a new process may do better.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::lease::Leadership;
use crate::queue::Key;

/// A watch that fails for longer counts as stale.
pub const STALE_AFTER: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Watch {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NotReady {
    cluster_namespace: String,
    cluster: String,
    reason: String,
}

pub struct Telemetry {
    registry: Registry,
    passes: Family<Outcome, Counter>,
    seconds: Histogram,
    clusters: Gauge,
    not_ready: Family<NotReady, Gauge>,
    /// What of it is there, at most one for each ImCluster.
    not_ready_now: Mutex<HashMap<Key, NotReady>>,
    leads: Gauge,
    watch_failures: Family<Watch, Counter>,
    leadership: Leadership,
    watches: Mutex<BTreeMap<&'static str, WatchState>>,
}

#[derive(Default)]
struct WatchState {
    synced: bool,
    failing_since: Option<Instant>,
}

impl Telemetry {
    pub fn new(leadership: Leadership) -> Arc<Telemetry> {
        let mut registry = Registry::with_prefix("carillon_operator");
        let passes = Family::<Outcome, Counter>::default();
        registry.register(
            "reconciles",
            "Passes over an ImCluster, by outcome",
            passes.clone(),
        );
        // From 10 ms to 40 s.
        let seconds = Histogram::new(exponential_buckets(0.01, 2.0, 13));
        registry.register("reconcile_seconds", "How long a pass took", seconds.clone());
        let clusters = Gauge::default();
        registry.register(
            "clusters",
            "ImClusters that the operator looks after",
            clusters.clone(),
        );
        let not_ready = Family::<NotReady, Gauge>::default();
        registry.register(
            "cluster_not_ready",
            "1 for each ImCluster that is not Ready, with the reason that it says",
            not_ready.clone(),
        );
        let leads = Gauge::default();
        registry.register(
            "leads",
            "1 while this operator is the one that writes",
            leads.clone(),
        );
        let watch_failures = Family::<Watch, Counter>::default();
        registry.register(
            "watch_failures",
            "Errors of the watches, by kind of objects",
            watch_failures.clone(),
        );
        Arc::new(Telemetry {
            registry,
            passes,
            seconds,
            clusters,
            not_ready,
            not_ready_now: Mutex::default(),
            leads,
            watch_failures,
            leadership,
            watches: Mutex::default(),
        })
    }

    pub fn pass(&self, well: bool, took: Duration) {
        let outcome = if well { "ok" } else { "error" };
        self.passes.get_or_create(&Outcome { outcome }).inc();
        self.seconds.observe(took.as_secs_f64());
    }

    pub fn clusters(&self, number: usize) {
        self.clusters.set(i64::try_from(number).unwrap_or(i64::MAX));
    }

    /// Why an ImCluster is not Ready; none when it is, or is gone.
    pub fn not_ready(&self, key: &Key, reason: Option<&str>) {
        let mut now = self
            .not_ready_now
            .lock()
            .unwrap_or_else(|held| held.into_inner());
        if now.get(key).map(|one| one.reason.as_str()) == reason {
            return;
        }
        if let Some(before) = now.remove(key) {
            self.not_ready.remove(&before);
        }
        if let Some(reason) = reason {
            let labels = NotReady {
                cluster_namespace: key.0.clone(),
                cluster: key.1.clone(),
                reason: reason.to_owned(),
            };
            self.not_ready.get_or_create(&labels).set(1);
            now.insert(key.clone(), labels);
        }
    }

    fn watch(&self, kind: &'static str, change: impl FnOnce(&mut WatchState)) {
        let mut watches = self.watches.lock().unwrap_or_else(|held| held.into_inner());
        change(watches.entry(kind).or_default());
    }

    pub fn watch_begins(&self, kind: &'static str) {
        self.watch(kind, |_| ());
    }

    pub fn watch_works(&self, kind: &'static str, synced: bool) {
        self.watch(kind, |state| {
            state.synced |= synced;
            state.failing_since = None;
        });
    }

    /// Counts a failure of a watch that nothing waits for.
    pub fn watch_failure(&self, kind: &'static str) {
        self.watch_failures.get_or_create(&Watch { kind }).inc();
    }

    pub fn watch_fails(&self, kind: &'static str) {
        self.watch_failure(kind);
        self.watch(kind, |state| {
            state.failing_since.get_or_insert_with(Instant::now);
        });
    }

    /// All caches are filled.
    pub fn synced(&self) -> bool {
        let watches = self.watches.lock().unwrap_or_else(|held| held.into_inner());
        watches.values().all(|state| state.synced)
    }

    fn stale(&self) -> Vec<&'static str> {
        let watches = self.watches.lock().unwrap_or_else(|held| held.into_inner());
        let stale = watches.iter().filter(|(_, state)| {
            state
                .failing_since
                .is_some_and(|since| since.elapsed() > STALE_AFTER)
        });
        stale.map(|(kind, _)| *kind).collect()
    }
}

pub fn router(telemetry: Arc<Telemetry>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(telemetry)
}

async fn healthz(State(telemetry): State<Arc<Telemetry>>) -> (StatusCode, String) {
    let stale = telemetry.stale();
    match stale.is_empty() {
        true => (StatusCode::OK, "ok\n".to_owned()),
        false => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("watches fail: {}\n", stale.join(", ")),
        ),
    }
}

async fn readyz(State(telemetry): State<Arc<Telemetry>>) -> (StatusCode, &'static str) {
    match telemetry.synced() {
        true => (StatusCode::OK, "ok\n"),
        false => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the caches are not filled yet\n",
        ),
    }
}

async fn metrics(State(telemetry): State<Arc<Telemetry>>) -> (StatusCode, String) {
    telemetry.leads.set(i64::from(telemetry.leadership.leads()));
    let mut text = String::new();
    match encode(&mut text, &telemetry.registry) {
        Ok(()) => (StatusCode::OK, text),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, String::new()),
    }
}
