//! The scrape.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use utoipa::IntoResponses;
use utoipa::openapi::{RefOr, Response};

use super::error::{ACCESS, ApiError, Code, responses};
use crate::app::App;
use crate::repository::Served;
use crate::telemetry;

/// What a scrape may answer besides.
struct Errors;

impl IntoResponses for Errors {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        responses(&[&[Code::Internal][..], &ACCESS].concat())
    }
}

/// Metrics in Prometheus' text format.
///
/// On an address of their own (`--metrics-listen`) they need no key.
#[utoipa::path(
    get, path = "/metrics", tag = "operations", security((), ("bearer" = []), ("key" = [])),
    responses((status = 200, description = "The scrape.", body = String, content_type = "text/plain"), Errors)
)]
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<impl IntoResponse, ApiError> {
    for model in app.repository.models().iter().map(Served::model) {
        let waiting = i64::try_from(model.waiting()).unwrap_or(i64::MAX);
        app.metrics.queue_depth.with_label_values(&[model.name()]).set(waiting);
    }
    let text = app.metrics.scrape().map_err(|error| ApiError::internal(&error))?;
    Ok(([(CONTENT_TYPE, telemetry::CONTENT_TYPE)], text))
}
