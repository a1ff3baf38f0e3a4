//! What operators see: one struct with every metric, whose doc comments are the help texts of the
//! scrape, and the set-up of the log and of the export of spans.

#[cfg(feature = "otlp")]
mod otlp;

use std::io::IsTerminal;

#[cfg(feature = "otlp")]
pub(crate) use otlp::join_trace;

use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use tracing_subscriber::Layer as _;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Log, LogFormat};

/// Content type of a scrape.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// From half a millisecond, a small network's run, to ten seconds, where somebody has long gone away.
const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Powers of two, as batches grow.
const FACES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];
/// Decades of a life.
const YEARS: &[f64] = &[10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0];

/// A kind of metric that [`metrics!`] can make.
trait Metric: prometheus::core::Collector + Clone + Sized + 'static {
    fn make(name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> prometheus::Result<Self>;
}

impl Metric for IntCounter {
    fn make(name: &str, help: &str, _: &[&str], _: &[f64]) -> prometheus::Result<Self> {
        Self::new(name, help)
    }
}

impl Metric for IntGauge {
    fn make(name: &str, help: &str, _: &[&str], _: &[f64]) -> prometheus::Result<Self> {
        Self::new(name, help)
    }
}

impl Metric for Histogram {
    fn make(name: &str, help: &str, _: &[&str], buckets: &[f64]) -> prometheus::Result<Self> {
        Self::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))
    }
}

impl Metric for IntCounterVec {
    fn make(name: &str, help: &str, labels: &[&str], _: &[f64]) -> prometheus::Result<Self> {
        Self::new(Opts::new(name, help), labels)
    }
}

impl Metric for IntGaugeVec {
    fn make(name: &str, help: &str, labels: &[&str], _: &[f64]) -> prometheus::Result<Self> {
        Self::new(Opts::new(name, help), labels)
    }
}

impl Metric for HistogramVec {
    fn make(name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> prometheus::Result<Self> {
        Self::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)
    }
}

/// Declares the metrics once: field, kind, name after `facewise_`, labels, buckets; the doc comment is the help text.
macro_rules! metrics {
    ($(#[$outer:meta])* pub struct $name:ident {
        $(#[doc = $help:literal] $field:ident: $kind:ty = $metric:literal [$($label:literal),*] $buckets:expr,)*
    }) => {
        $(#[$outer])*
        pub struct $name {
            registry: Registry,
            $(#[doc = $help] pub $field: $kind,)*
        }

        impl $name {
            #[cfg(test)]
            const NAMES: &[&str] = &[$(concat!("facewise_", $metric)),*];

            fn register() -> prometheus::Result<Self> {
                let registry = Registry::new();
                $(
                    let $field = <$kind as Metric>::make(
                        concat!("facewise_", $metric), $help.trim(), &[$($label),*], $buckets,
                    )?;
                    registry.register(Box::new($field.clone()))?;
                )*
                registry.register(Box::new(ProcessCollector::for_self()))?;
                Ok(Self { registry, $($field,)* })
            }
        }
    };
}

metrics! {
    /// Every metric of one server. Labels take their values from fixed sets, so that no client can make them grow.
    pub struct Metrics {
        /// Requests answered, by method, route and status; an unknown method or path is `other`.
        http_requests: IntCounterVec = "http_requests_total" ["method", "route", "status"] &[],
        /// Time from the head of a request to the head of its answer, by route.
        http_request_duration: HistogramVec = "http_request_duration_seconds" ["route"] SECONDS,
        /// Requests being answered now.
        http_requests_in_flight: IntGauge = "http_requests_in_flight" [] &[],
        /// Requests turned away, by reason.
        rejected: IntCounterVec = "rejected_total" ["reason"] &[],
        /// Pictures decoded.
        images: IntCounter = "images_total" [] &[],
        /// Faces answered.
        faces: IntCounter = "faces_total" [] &[],
        /// Time in a stage of the pipeline: decode, detect and align of a picture, queue and inference of a face.
        stage_duration: HistogramVec = "stage_duration_seconds" ["stage"] SECONDS,
        /// Faces, or pictures for a detector, that went through a network, by model.
        inferences: IntCounterVec = "inferences_total" ["model", "version"] &[],
        /// Runs of a network, by model; inferences per run are the mean batch.
        executions: IntCounterVec = "executions_total" ["model", "version"] &[],
        /// Runs of a network that failed, by model; each picture of such a run is tried alone.
        inference_failures: IntCounterVec = "inference_failures_total" ["model", "version"] &[],
        /// Faces, or pictures for a detector, in one run of a network.
        batch_size: HistogramVec = "batch_size" ["model"] FACES,
        /// Faces, or pictures for a detector, waiting for a network.
        queue_depth: IntGaugeVec = "queue_depth" ["model"] &[],
        /// Answers given, by task and label.
        predictions: IntCounterVec = "predictions_total" ["task", "label"] &[],
        /// Ages answered, in years.
        predicted_age: Histogram = "predicted_age_years" [] YEARS,
        /// Evaluations of labelled sets that are kept, by status.
        evaluations: IntGaugeVec = "evaluations" ["status"] &[],
        /// Attempts to load a model that failed, by model.
        model_load_failures: IntCounterVec = "model_load_failures_total" ["model"] &[],
        /// Models being served, with the SHA-256 of their files; the value is always 1.
        model_info: IntGaugeVec = "model_info" ["model", "version", "sha256"] &[],
    }
}

impl Metrics {
    /// A fresh set, all at zero.
    ///
    /// # Panics
    /// Never: names and labels are literals, checked by the tests.
    pub fn new() -> Self {
        Self::register().expect("metric names are valid and distinct")
    }

    /// The scrape in Prometheus' text format.
    ///
    /// # Errors
    /// When a collected family cannot be written; none of the registered ones is like that.
    pub fn scrape(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::with_capacity(16 << 10);
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Without the feature `otlp`, no trace is joined.
#[cfg(not(feature = "otlp"))]
pub(crate) const fn join_trace(_: &tracing::Span, _: &axum::http::HeaderMap) {}

/// Keeps the export of spans going, where it was switched on. When it is dropped, the last ones are sent.
#[must_use = "the export of spans ends when it is dropped"]
pub struct Export {
    #[cfg(feature = "otlp")]
    _exporter: Option<otlp::Exporter>,
}

/// Starts the log on standard error. Pictures, and what a request says besides method and route, are never logged.
///
/// Built with the feature `otlp`, it starts the export of spans too, if the variable `OTEL_EXPORTER_OTLP_ENDPOINT` names a
/// collector.
pub fn start_log(log: &Log) -> Export {
    let lines =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let registry = tracing_subscriber::registry();
    #[cfg(feature = "otlp")]
    let (exporter, failure) = match otlp::Exporter::start() {
        Ok(exporter) => (exporter, None),
        Err(error) => (None, Some(error)),
    };
    #[cfg(feature = "otlp")]
    let registry = registry.with(exporter.as_ref().map(otlp::Exporter::layer));
    // The levels are those of the lines: spans are exported whatever is logged.
    let levels = log.log_level.clone();
    // A second start, as in tests that share a process, keeps the first log.
    let _ = match log.log_format {
        LogFormat::Text => registry.with(lines.with_target(false).with_filter(levels)).try_init(),
        LogFormat::Json => {
            registry.with(lines.json().flatten_event(true).with_span_list(false).with_filter(levels)).try_init()
        }
    };
    #[cfg(feature = "otlp")]
    if let Some(error) = failure {
        tracing::warn!(%error, "spans are not exported");
    }
    Export {
        #[cfg(feature = "otlp")]
        _exporter: exporter,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_dashboard_asks_for_metrics_that_there_are() {
        let dashboard = include_str!("../deploy/grafana.json");
        let is_part = |c: char| c.is_ascii_lowercase() || c == '_';
        let asked: Vec<&str> = dashboard
            .match_indices("facewise_")
            .map(|(at, _)| &dashboard[at..at + dashboard[at..].find(|c| !is_part(c)).unwrap()])
            .collect();
        let names = Metrics::NAMES;
        let known = |name: &str| {
            let series = ["_bucket", "_sum", "_count"].into_iter().find_map(|end| name.strip_suffix(end));
            names.contains(&name) || series.is_some_and(|name| names.contains(&name))
        };
        let unknown: Vec<_> = asked.iter().filter(|name| !known(name)).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
        let missing: Vec<_> = names.iter().filter(|name| !dashboard.contains(**name)).collect();
        assert_eq!(missing, [&"facewise_batch_size"], "its mean is shown");
    }

    #[test]
    fn a_scrape_names_the_metrics_with_their_help() {
        let metrics = Metrics::new();
        metrics.images.inc();
        metrics.predictions.with_label_values(&["smile", "neutral"]).inc();
        let text = String::from_utf8(metrics.scrape().unwrap()).unwrap();
        assert!(text.contains("# HELP facewise_images_total Pictures decoded."), "{text}");
        assert!(text.contains("facewise_images_total 1"));
        assert!(text.contains(r#"facewise_predictions_total{label="neutral",task="smile"} 1"#));
        assert!(text.contains("process_resident_memory_bytes"));
    }
}
