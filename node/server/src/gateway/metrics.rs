//! Figures of the gateway, registered once and shared. Labels are static, so their
//! number is bounded.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use tonic::Code;

/// What the gateway counts.
#[derive(Debug)]
pub struct GatewayMetrics {
    pub(super) sessions: Gauge,
    pub(super) deliveries: Counter,
    pub(super) bytes_out: Counter,
    /// The outcomes of sends, looked up once because they are counted per message.
    pub(super) sends_stored: Counter,
    pub(super) sends_duplicate: Counter,
    pub(super) sends_failed: Counter,
    sends: Family<SendLabels, Counter>,
    resyncs: Family<ResyncLabels, Counter>,
    kicks: Family<KickLabels, Counter>,
    calls: Family<CallLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SendLabels {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResyncLabels {
    reason: ResyncReason,
}

/// Why entries were left out of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum ResyncReason {
    TooSlow,
    Gap,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KickLabels {
    reason: KickReason,
}

/// Why the server ended a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum KickReason {
    Replaced,
    Draining,
    HeartbeatTimeout,
    ProtocolError,
    CredentialEnded,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    method: &'static str,
    code: &'static str,
}

impl Default for GatewayMetrics {
    fn default() -> Self {
        let sends = Family::<SendLabels, Counter>::default();
        Self {
            sessions: Gauge::default(),
            deliveries: Counter::default(),
            bytes_out: Counter::default(),
            sends_stored: sends.get_or_create_owned(&SendLabels { outcome: "stored" }),
            sends_duplicate: sends.get_or_create_owned(&SendLabels {
                outcome: "duplicate",
            }),
            sends_failed: sends.get_or_create_owned(&SendLabels { outcome: "failed" }),
            sends,
            resyncs: Family::default(),
            kicks: Family::default(),
            calls: Family::default(),
        }
    }
}

impl GatewayMetrics {
    /// Adds all figures to a registry, with the prefix `gateway`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("gateway");
        registry.register(
            "sessions",
            "Connect streams that are open",
            self.sessions.clone(),
        );
        registry.register("sends", "Sends on streams by outcome", self.sends.clone());
        registry.register(
            "deliveries",
            "Inbox entries queued to streams",
            self.deliveries.clone(),
        );
        registry.register("resyncs", "Resync hints by reason", self.resyncs.clone());
        registry.register(
            "kicks",
            "Streams that the server ended by reason",
            self.kicks.clone(),
        );
        registry.register(
            "calls",
            "Unary calls by method and code",
            self.calls.clone(),
        );
        registry.register_with_unit(
            "out",
            "Handed to streams to send",
            Unit::Bytes,
            self.bytes_out.clone(),
        );
    }

    /// Messages that were stored for streams here.
    pub fn sends_stored(&self) -> u64 {
        self.sends_stored.get()
    }

    /// Inbox entries that were queued to streams.
    pub fn deliveries(&self) -> u64 {
        self.deliveries.get()
    }

    pub(super) fn resync(&self, reason: ResyncReason) {
        self.resyncs.get_or_create(&ResyncLabels { reason }).inc();
    }

    pub(super) fn kick(&self, reason: KickReason) {
        self.kicks.get_or_create(&KickLabels { reason }).inc();
    }

    /// `method` is one of the service's methods.
    pub(super) fn call(&self, method: &'static str, code: Code) {
        self.calls
            .get_or_create(&CallLabels {
                method,
                code: code_name(code),
            })
            .inc();
    }
}

const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_exported_by_name() {
        let metrics = GatewayMetrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        metrics.sends_stored.inc();
        metrics.resync(ResyncReason::TooSlow);
        metrics.kick(KickReason::Replaced);
        metrics.call("Send", Code::NotFound);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("a string takes it");
        for line in [
            "gateway_sessions 0",
            "gateway_sends_total{outcome=\"stored\"} 1",
            "gateway_resyncs_total{reason=\"TooSlow\"} 1",
            "gateway_kicks_total{reason=\"Replaced\"} 1",
            "gateway_calls_total{method=\"Send\",code=\"NOT_FOUND\"} 1",
            "gateway_out_bytes_total 0",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
