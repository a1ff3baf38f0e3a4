//! The scrape.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use super::error::{ApiError, Common};
use crate::app::App;
use crate::repository::Served;
use crate::telemetry;

/// Metrics in Prometheus' text format.
#[utoipa::path(
    get, path = "/metrics", tag = "operations",
    responses((status = 200, description = "The scrape.", body = String, content_type = "text/plain"), Common)
)]
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<impl IntoResponse, ApiError> {
    for model in app.repository.models().iter().map(Served::model) {
        let waiting = i64::try_from(model.waiting()).unwrap_or(i64::MAX);
        app.metrics.queue_depth.with_label_values(&[model.name()]).set(waiting);
    }
    let text = app.metrics.scrape().map_err(|error| ApiError::internal(&error))?;
    Ok(([(CONTENT_TYPE, telemetry::CONTENT_TYPE)], text))
}
