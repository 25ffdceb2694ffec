//! The way of messages as an OpenTelemetry collector sees it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use carillon_proto::v1;
use carillon_tests::harness::{Cluster, ClusterOptions, http_get};
use carillon_tests::rpc::{as_user, chat, direct_id, refusal, text};
use carillon_tests::session::Session;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// Until a span is with the collector; nodes send them once a second.
const SPAN_LIMIT: Duration = Duration::from_secs(20);
/// Until a metric says what it should.
const METRIC_LIMIT: Duration = Duration::from_secs(30);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A span, and the node that made it.
struct Seen {
    node: String,
    span: Span,
}

/// Takes spans as a collector does.
struct Collector(mpsc::UnboundedSender<Seen>);

fn attribute(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    let value = found.and_then(|found| found.value.as_ref()?.value.clone());
    match value {
        Some(any_value::Value::StringValue(text)) => text,
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(any_value::Value::BoolValue(truth)) => truth.to_string(),
        _ => String::new(),
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        // What all of OpenTelemetry takes from its environment.
        if request
            .metadata()
            .get("x-tenant")
            .is_none_or(|who| who != "im")
        {
            return Err(Status::unauthenticated("x-tenant is not im"));
        }
        for resource in request.into_inner().resource_spans {
            let of = resource.resource.unwrap_or_default().attributes;
            assert_eq!(attribute(&of, "service.name"), "carillon-node");
            assert_eq!(attribute(&of, "deployment"), "blue");
            let node = attribute(&of, "service.instance.id");
            for span in resource
                .scope_spans
                .into_iter()
                .flat_map(|scope| scope.spans)
            {
                let node = node.clone();
                // Nobody listens any more when the test has seen enough.
                let _ = self.0.send(Seen { node, span });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// What a collector gets.
struct Spans(mpsc::UnboundedReceiver<Seen>);

impl Spans {
    /// Starts a collector.
    async fn collect() -> Result<(SocketAddr, Self)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (sender, spans) = mpsc::unbounded_channel();
        let service = TraceServiceServer::new(Collector(sender));
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Ok((address, Self(spans)))
    }

    /// Waits for a span.
    async fn find(&mut self, what: &str, is: impl Fn(&Seen) -> bool) -> Result<Seen> {
        let found = async {
            loop {
                let seen = self.0.recv().await.context("the collector ended")?;
                if is(&seen) {
                    return anyhow::Ok(seen);
                }
            }
        };
        timeout(SPAN_LIMIT, found)
            .await
            .with_context(|| format!("the collector saw no {what}"))?
    }

    /// Waits for these spans of a trace, in whatever order they come.
    async fn of_message(&mut self, id: u64, names: &[&str]) -> Result<Vec<Seen>> {
        let mut seen = Vec::new();
        let is_missing = |seen: &[Seen]| {
            let mut names = names.iter();
            names.any(|name| !seen.iter().any(|seen| seen.span.name == **name))
        };
        while is_missing(&seen) {
            let of_it = |seen: &Seen| seen.span.trace_id.starts_with(&id.to_be_bytes());
            seen.push(self.find(&format!("all of {names:?}"), of_it).await?);
        }
        Ok(seen)
    }
}

fn traced(endpoint: SocketAddr) -> ClusterOptions {
    ClusterOptions {
        extra_config: format!(
            "\n[tracing]\notlp_endpoint = \"http://{endpoint}\"\nsample_ratio = 1.0\n"
        ),
        env: [
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=im"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment=blue"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into(),
        ..ClusterOptions::default()
    }
}

/// The value of a node's counter of spans.
async fn spans_counted(cluster: &Cluster, node: u64, outcome: &str) -> Result<u64> {
    let address = &cluster.node(node).addresses().http;
    let (_, page) = http_get(address, "/metrics", Duration::from_secs(5)).await?;
    let begin = format!("carillon_trace_spans_total{{outcome=\"{outcome}\"}} ");
    let line = page.lines().find_map(|line| line.strip_prefix(&begin));
    Ok(line.context("no such counter")?.parse()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_messages_way_over_the_nodes_is_one_trace() -> Result<()> {
    let (endpoint, mut spans) = Spans::collect().await?;
    let cluster = Cluster::start(traced(endpoint)).await?;
    let addresses = cluster.client_addresses();
    let (mut alice, _) = Session::open(&addresses[0], "alice", "phone", None).await?;
    let (mut bob, _) = Session::open(&addresses[1], "bob", "phone", None).await?;
    let to_bob = direct_id("alice", "bob");
    let sent = alice.say(&to_bob, "m1", "hello").await?;
    bob.delivery().await?;

    let way = ["send", "replicate", "deliver", "push"];
    let seen = spans.of_message(sent.message_id, &way).await?;
    let named = |name: &str| seen.iter().find(|seen| seen.span.name == name);
    let send = named("send").context("no send")?;
    assert_eq!(send.node, "1", "where alice is");
    assert!(send.span.parent_span_id.is_empty());
    let replicate = &named("replicate").context("no replicate")?.span;
    assert!(send.span.start_time_unix_nano <= replicate.start_time_unix_nano);
    assert!(replicate.end_time_unix_nano <= send.span.end_time_unix_nano);
    for Seen { span, .. } in &seen {
        assert_eq!(span.trace_id, send.span.trace_id);
        if span.name != "send" {
            assert_eq!(span.parent_span_id, send.span.span_id, "{}", span.name);
        }
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
    }
    let is_bobs = |seen: &Seen| seen.span.name == "push" && seen.node == "2";
    if !seen.iter().any(is_bobs) {
        spans.find("push at bob's node", is_bobs).await?;
    }

    // The same again is one more try of the same message.
    let again = alice.say(&to_bob, "m1", "hello").await?;
    assert!(again.duplicate);
    let is_again = |seen: &Seen| {
        seen.span.trace_id == send.span.trace_id
            && attribute(&seen.span.attributes, "carillon.duplicate") == "true"
    };
    let again = spans.find("second try", is_again).await?;
    assert_eq!(again.span.parent_span_id, send.span.span_id);

    // A call is traced as a stream's send, and so is what is refused.
    let mut calls = chat(&addresses[2])?;
    let request = |conversation: &str| v1::SendRequest {
        conversation_id: conversation.to_owned(),
        client_message_id: "m2".to_owned(),
        content: Some(text("by call")),
    };
    let sent = calls.send(as_user("alice", request(&to_bob))).await?;
    let id = sent.into_inner().message_id;
    let is_call =
        |seen: &Seen| seen.span.name == "send" && seen.span.trace_id.starts_with(&id.to_be_bytes());
    assert_eq!(spans.find("call", is_call).await?.node, "3");
    let refused = calls.send(as_user("alice", request("nowhere"))).await;
    let reason = refusal(&refused.expect_err("there is no such group")).reason;
    let is_refused = |seen: &Seen| attribute(&seen.span.attributes, "error.type") == reason;
    let refused = spans.find("refusal", is_refused).await?;
    let status = refused.span.status.context("no status")?;
    assert_eq!(status.code(), StatusCode::Error);
    assert!(spans_counted(&cluster, 1, "exported").await? > 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_stops_nobody() -> Result<()> {
    // Nobody listens there any more.
    let nowhere = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let mut cluster = Cluster::start(traced(nowhere)).await?;
    let address = cluster.client_addresses()[0].clone();
    let (mut alice, _) = Session::open(&address, "alice", "phone", None).await?;
    let to_bob = direct_id("alice", "bob");
    for number in 0..50 {
        alice.say(&to_bob, &format!("m{number}"), "hello").await?;
    }
    let failed = async {
        while spans_counted(&cluster, 1, "failed").await? == 0 {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        anyhow::Ok(())
    };
    timeout(METRIC_LIMIT, failed)
        .await
        .context("nothing says that spans are lost")??;
    alice.say(&to_bob, "last", "hello").await?;
    drop(alice);
    cluster.stop_gracefully(1).await?;
    ensure!(!cluster.node(1).is_up());
    Ok(())
}
