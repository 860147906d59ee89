//! Telemetry: JSON logs, OpenTelemetry traces that cross gRPC and JetStream, Prometheus metrics.
//!
//! A trace travels as a W3C `traceparent`: in gRPC metadata between calls, in each fact between services. The exporter
//! is off unless configured; trace ids are made and carried all the same.

use std::collections::HashMap;
use std::sync::OnceLock;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{Span as _, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Buckets of all durations, in seconds: from a lone commit to a slow PSP.
const SECONDS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Set when traces are exported: only then are spans of single facts worth making.
static EXPORTING: OnceLock<SdkTracer> = OnceLock::new();

/// Keeps telemetry going; flushes traces when it is dropped.
#[derive(Debug)]
pub struct Telemetry {
    provider: SdkTracerProvider,
    /// Renders the metrics.
    pub metrics: PrometheusHandle,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::debug!(%error, "traces were not flushed");
        }
    }
}

/// Starts logs, traces and metrics of this process. Call it inside the runtime.
///
/// # Errors
/// The filter or the endpoint is malformed, or telemetry runs already.
pub fn start(service: &'static str, filter: &str, endpoint: Option<&str>) -> Result<Telemetry, String> {
    let resource = Resource::builder().with_service_name(service).build();
    let mut provider = SdkTracerProvider::builder().with_resource(resource);
    if let Some(endpoint) = endpoint {
        let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint);
        provider = provider.with_batch_exporter(exporter.build().map_err(|error| error.to_string())?);
    }
    let provider = provider.build();
    let tracer = provider.tracer(service);
    if endpoint.is_some() {
        EXPORTING.set(tracer.clone()).map_err(|_| "telemetry runs already")?;
    }
    let filter = tracing_subscriber::EnvFilter::try_new(filter).map_err(|error| format!("FLORIN_LOG: {error}"))?;
    let logs = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_span_list(false)
        .with_writer(std::io::stderr);
    tracing_subscriber::registry()
        .with(filter)
        .with(logs)
        .with(tracing_opentelemetry::layer().with_tracer(tracer))
        .try_init()
        .map_err(|error| error.to_string())?;
    let metrics = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(|error| error.to_string())?;
    Ok(Telemetry { provider, metrics })
}

/// Makes the span a child of the trace that a caller sent.
pub fn continue_trace(span: &tracing::Span, traceparent: Option<&str>) {
    if let Some(context) = traceparent.and_then(context_of) {
        // A span that is filtered out has no context to set.
        let _ = span.set_parent(context);
    }
    let trace_id = span.context().span().span_context().trace_id();
    span.record("traceId", trace_id.to_string());
}

/// The running span as a `traceparent`; empty outside of one.
#[must_use]
pub fn current_traceparent() -> String {
    traceparent_of(&tracing::Span::current().context())
}

/// A span for one fact, as a child of the trace that the fact carries: answers the `traceparent` for what follows.
/// Without an exporter nobody would see the span, so the fact's own trace context goes on.
#[must_use]
pub fn fact_span(name: &'static str, traceparent: &str, event_id: &str) -> String {
    // What is no trace context is dropped: it came from outside and goes into headers.
    let Some(parent) = context_of(traceparent) else { return String::new() };
    let Some(tracer) = EXPORTING.get() else { return traceparent.to_owned() };
    let mut span = tracer.start_with_context(name, &parent);
    span.set_attribute(KeyValue::new("eventId", event_id.to_owned()));
    traceparent_of(&Context::new().with_span(span))
}

/// The trace's id in a `traceparent`, for logs; empty where there is none.
#[must_use]
pub fn trace_id(traceparent: &str) -> &str {
    traceparent.split('-').nth(1).unwrap_or_default()
}

fn context_of(traceparent: &str) -> Option<Context> {
    let carrier = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
    context.span().span_context().is_valid().then_some(context)
}

fn traceparent_of(context: &Context) -> String {
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(context, &mut carrier);
    carrier.remove("traceparent").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_survives_reading_and_writing() {
        let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(traceparent_of(&context_of(traceparent).unwrap()), traceparent);
        assert_eq!(fact_span("apply", traceparent, "evt"), traceparent, "carried on without an exporter");
    }

    #[test]
    fn what_is_no_trace_is_none() {
        for text in ["", "00-0-0-01", "00-00000000000000000000000000000000-0000000000000000-00"] {
            assert!(context_of(text).is_none(), "{text:?}");
        }
    }
}
