//! Spans of requests and of their stages, exported by OTLP over HTTP. The standard variables say where to and how:
//! `OTEL_EXPORTER_OTLP_ENDPOINT` switches it on, `OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER` and the others are read too.

use std::env;

use axum::http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Level, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

/// The variables of which one must name a collector.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];

/// The variables that may name the service; where none is set, it is named after the program.
const NAMES: [&str; 2] = ["OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"];

/// Sends spans in batches, from a thread of its own; when it is dropped, what is left.
pub(super) struct Exporter(SdkTracerProvider);

impl Exporter {
    /// Starts the export if the environment names a collector.
    pub(super) fn start() -> Result<Option<Self>, ExporterBuildError> {
        if !is_set(&ENDPOINTS) {
            return Ok(None);
        }
        let exporter = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary).build()?;
        let resource = Resource::builder();
        let resource = if is_set(&NAMES) { resource } else { resource.with_service_name(env!("CARGO_PKG_NAME")) };
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build());
        Ok(Some(Self(provider.build())))
    }

    /// What collects the spans of this program, those of the stages included, whatever the log shows.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let name = env!("CARGO_PKG_NAME");
        tracing_opentelemetry::layer()
            .with_location(false)
            .with_threads(false)
            .with_tracer(self.0.tracer(name))
            .with_filter(Targets::new().with_target(name, Level::DEBUG))
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!(%error, "the last spans were not exported");
        }
    }
}

fn is_set(variables: &[&str]) -> bool {
    variables.iter().any(|name| env::var_os(name).is_some_and(|value| !value.is_empty()))
}

struct Headers<'h>(&'h HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(axum::http::HeaderName::as_str).collect()
    }
}

/// Makes the span of a request part of the trace that its client names in the header `traceparent`.
pub(crate) fn join_trace(span: &Span, headers: &HeaderMap) {
    let context = TraceContextPropagator::new().extract(&Headers(headers));
    if context.span().span_context().is_valid() {
        // It fails where nothing is exported, and then there is nothing to join.
        let _ = span.set_parent(context);
    }
}
