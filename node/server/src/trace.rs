//! The way of a message as spans of OpenTelemetry, for a share of the messages.
//!
//! Nothing of it travels with a message. Which trace it has, what its first span is called, and
//! whether it is taken at all follow from the message's id, so every node comes to the same by
//! itself, and a message that is not taken costs a hash at each of its stages. A span is made
//! when its stage has ended.
//!
//! Owner of the state: the queue of the batch processor, which a thread of its own empties.
//! Invariants: nobody waits for a span; what does not fit into the queue is dropped and counted.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use carillon_core::ids::{MessageId, ShardId};
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanEvents, SpanExporter, SpanLinks,
    SpanProcessor,
};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::config::Config;

/// Spans that wait to be sent, at most.
const QUEUE_SPANS_MAX: usize = 8_192;
/// Spans that are sent together, at most.
const BATCH_SPANS_MAX: usize = 512;
/// Spans wait no longer than this for others.
const BATCH_INTERVAL: Duration = Duration::from_secs(1);
/// What a collector does not take within this is lost.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a node that stops waits for what is still to be sent.
const LAST_EXPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// What is random of a trace's id by W3C Trace Context, level 2: its last 56 bits. By
/// OpenTelemetry's consistent probability sampling those that are not below a threshold are
/// taken, so that a collector which takes fewer keeps whole traces.
const RANDOM_BITS: u32 = 56;
const RANDOM_MASK: u64 = (1 << RANDOM_BITS) - 1;

/// What has become of spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    /// `exported`, `failed` or `dropped`.
    outcome: &'static str,
}

/// Which messages are taken, and what their traces are called: the same on all nodes.
#[derive(Debug, Clone, Copy)]
struct Choice {
    /// Traces whose random part is below are not taken.
    threshold: u64,
    /// Of the cluster, so that the traces of two clusters differ.
    seed: u64,
}

impl Choice {
    fn new(cluster: &str, sample_ratio: f64) -> Self {
        let refused = (1.0 - sample_ratio.clamp(0.0, 1.0)) * (1u64 << RANDOM_BITS) as f64;
        Self {
            // As floats say it, from 0 to 2^56.
            threshold: refused as u64,
            seed: xxh3_64_with_seed(cluster.as_bytes(), 0),
        }
    }

    /// The trace of a message that is taken: its id, and then what is random.
    fn trace(&self, message: MessageId) -> Option<TraceId> {
        let random = xxh3_64_with_seed(&message.0.to_be_bytes(), self.seed);
        (random & RANDOM_MASK >= self.threshold).then(|| trace_id(message.0, random))
    }

    /// The span of the send, which all others are under.
    fn root(&self, message: MessageId) -> SpanId {
        let hash = xxh3_64_with_seed(&message.0.to_be_bytes(), self.seed.wrapping_add(1));
        SpanId::from_bytes(hash.max(1).to_be_bytes())
    }
}

fn trace_id(high: u64, low: u64) -> TraceId {
    TraceId::from_bytes((u128::from(high) << 64 | u128::from(low)).to_be_bytes())
}

fn random_span() -> SpanId {
    SpanId::from_bytes(rand::random::<u64>().max(1).to_be_bytes())
}

/// A stage of a message's way that has ended.
struct Stage {
    name: &'static str,
    kind: SpanKind,
    trace: TraceId,
    span: SpanId,
    parent: SpanId,
    began: Instant,
    status: Status,
    attributes: Vec<KeyValue>,
}

/// See the file's head.
#[derive(Debug)]
pub struct Tracer {
    choice: Choice,
    processor: BatchSpanProcessor,
    scope: InstrumentationScope,
    /// Spans that are neither sent nor lost.
    waiting: Arc<AtomicUsize>,
    dropped: Counter,
}

impl Tracer {
    /// Sends spans where the configuration says; none when that is nowhere. To be called in the
    /// runtime.
    ///
    /// # Errors
    /// When the endpoint is no address.
    pub fn start(
        config: &Config,
        registry: &mut Registry,
    ) -> Result<Option<Arc<Self>>, ExporterBuildError> {
        let Some(endpoint) = &config.tracing.otlp_endpoint else {
            return Ok(None);
        };
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(EXPORT_TIMEOUT)
            .build()?;
        let spans = Family::<Outcome, Counter>::default();
        registry.register(
            "trace_spans",
            "Spans of messages' traces, by what has become of them",
            spans.clone(),
        );
        let waiting = Arc::<AtomicUsize>::default();
        let counter = |outcome| spans.get_or_create(&Outcome { outcome }).clone();
        let exporter = Counting {
            exporter,
            waiting: waiting.clone(),
            exported: counter("exported"),
            failed: counter("failed"),
        };
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_SPANS_MAX)
            .with_max_export_batch_size(BATCH_SPANS_MAX)
            .with_scheduled_delay(BATCH_INTERVAL)
            .build();
        let mut processor = BatchSpanProcessor::builder(exporter)
            .with_batch_config(batches)
            .build();
        processor.set_resource(
            &Resource::builder()
                .with_service_name("carillon-node")
                .with_attributes([
                    KeyValue::new("service.namespace", config.cluster_name.clone()),
                    KeyValue::new("service.instance.id", config.node_id.to_string()),
                    KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                    KeyValue::new("carillon.zone", config.placement.zone.clone()),
                ])
                .build(),
        );
        tracing::info!(
            endpoint,
            sample_ratio = config.tracing.sample_ratio,
            "messages are traced"
        );
        Ok(Some(Arc::new(Self {
            choice: Choice::new(&config.cluster_name, config.tracing.sample_ratio),
            processor,
            scope: InstrumentationScope::builder("carillon").build(),
            waiting,
            dropped: counter("dropped"),
        })))
    }

    /// A send was answered: the message is stored. Of one that was stored before, this is one
    /// more try.
    pub fn sent(&self, message: MessageId, began: Instant, duplicate: bool) {
        let Some(trace) = self.choice.trace(message) else {
            return;
        };
        let root = self.choice.root(message);
        let (span, parent) = match duplicate {
            false => (root, SpanId::INVALID),
            true => (random_span(), root),
        };
        self.ended(Stage {
            name: "send",
            kind: SpanKind::Server,
            trace,
            span,
            parent,
            began,
            status: Status::Unset,
            attributes: vec![KeyValue::new("carillon.duplicate", duplicate)],
        });
    }

    /// A send was answered with an error: it has no message, and a trace of its own.
    pub fn refused(&self, began: Instant, reason: &str) {
        // Its random part is drawn, so as many are taken as of messages.
        let message = MessageId(rand::random());
        let Some(trace) = self.choice.trace(message) else {
            return;
        };
        self.ended(Stage {
            name: "send",
            kind: SpanKind::Server,
            trace,
            span: self.choice.root(message),
            parent: SpanId::INVALID,
            began,
            status: Status::error(reason.to_owned()),
            attributes: vec![KeyValue::new("error.type", reason.to_owned())],
        });
    }

    /// A shard's leader has stored the message, after a majority had it on disk.
    pub fn replicated(&self, shard: ShardId, message: MessageId, proposed: Instant) {
        self.stage("replicate", SpanKind::Internal, message, proposed, || {
            vec![KeyValue::new("carillon.shard", i64::from(shard.0))]
        });
    }

    /// It is in the inboxes of so many users of a shard, after a majority had them on disk.
    pub fn delivered(&self, shard: ShardId, message: MessageId, proposed: Instant, users: usize) {
        self.stage("deliver", SpanKind::Internal, message, proposed, || {
            vec![
                KeyValue::new("carillon.shard", i64::from(shard.0)),
                KeyValue::new("carillon.users", users as i64),
            ]
        });
    }

    /// It was queued for the streams of so many users of this node.
    pub fn pushed(&self, message: MessageId, began: Instant, users: usize) {
        self.stage("push", SpanKind::Producer, message, began, || {
            vec![KeyValue::new("carillon.users", users as i64)]
        });
    }

    fn stage(
        &self,
        name: &'static str,
        kind: SpanKind,
        message: MessageId,
        began: Instant,
        attributes: impl FnOnce() -> Vec<KeyValue>,
    ) {
        let Some(trace) = self.choice.trace(message) else {
            return;
        };
        self.ended(Stage {
            name,
            kind,
            trace,
            span: random_span(),
            parent: self.choice.root(message),
            began,
            status: Status::Unset,
            attributes: attributes(),
        });
    }

    fn ended(&self, stage: Stage) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= QUEUE_SPANS_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.dropped.inc();
            return;
        }
        let end_time = SystemTime::now();
        let sampled = TraceFlags::SAMPLED;
        let context = SpanContext::new(stage.trace, stage.span, sampled, false, TraceState::NONE);
        self.processor.on_end(SpanData {
            span_context: context,
            parent_span_id: stage.parent,
            parent_span_is_remote: stage.parent != SpanId::INVALID,
            span_kind: stage.kind,
            name: Cow::Borrowed(stage.name),
            start_time: end_time - stage.began.elapsed(),
            end_time,
            attributes: stage.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: stage.status,
            instrumentation_scope: self.scope.clone(),
        });
    }

    /// Sends what is left. Blocks, for a moment.
    pub fn stop(&self) {
        if let Err(error) = self.processor.shutdown_with_timeout(LAST_EXPORT_TIMEOUT) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

/// An exporter that says how many spans were taken.
#[derive(Debug)]
struct Counting<E> {
    exporter: E,
    waiting: Arc<AtomicUsize>,
    exported: Counter,
    failed: Counter,
}

impl<E: SpanExporter> SpanExporter for Counting<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let exported = self.exporter.export(batch).await;
        self.waiting.fetch_sub(spans, Ordering::Relaxed);
        match &exported {
            Ok(()) => self.exported.inc_by(spans as u64),
            Err(_) => self.failed.inc_by(spans as u64),
        };
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_takes_the_same_and_a_larger_share_has_all_of_a_smaller_one() {
        let all = Choice::new("prod", 1.0);
        let (some, few) = (Choice::new("prod", 0.3), Choice::new("prod", 0.1));
        let none = Choice::new("prod", 0.0);
        let mut taken = 0;
        for id in (0..10_000).map(|number| MessageId(number << 10)) {
            let trace = all.trace(id).expect("all are taken");
            assert!(none.trace(id).is_none());
            assert!(few.trace(id).is_none_or(|few| few == trace));
            if let Some(some) = some.trace(id) {
                assert_eq!(some, trace);
                taken += 1;
            } else {
                assert!(few.trace(id).is_none());
            }
            assert_eq!(Choice::new("prod", 1.0).trace(id), Some(trace));
            assert_ne!(Choice::new("test", 1.0).trace(id), Some(trace));
            assert_eq!(some.root(id), all.root(id));
        }
        assert!((2_700..3_300).contains(&taken), "{taken} of 10000");
    }

    #[test]
    fn a_trace_is_found_by_the_messages_id() {
        let id = MessageId(0x0123_4567_89ab_cdef);
        let trace = Choice::new("prod", 1.0).trace(id).expect("taken");
        assert!(trace.to_string().starts_with("0123456789abcdef"));
    }
}
