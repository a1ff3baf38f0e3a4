//! For orchestrators: is the process alive, and does it want requests?

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::error::{ApiError, Code, Common, responses};
use crate::app::App;

/// A state of the server.
#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    /// `live` or `ready`.
    #[schema(example = "ready")]
    status: &'static str,
}

/// What readiness may answer besides.
struct NotReady;

impl utoipa::IntoResponses for NotReady {
    fn responses() -> std::collections::BTreeMap<String, utoipa::openapi::RefOr<utoipa::openapi::response::Response>> {
        responses(&[Code::Internal, Code::NotReady])
    }
}

/// Whether the process is alive. It does no work: a probe must not queue behind predictions.
#[utoipa::path(get, path = "/health/live", tag = "operations", responses((status = 200, description = "It is.", body = Health), Common))]
pub(super) async fn live() -> Json<Health> {
    Json(Health { status: "live" })
}

/// Whether requests are welcome: every model is warm and its workers live, and the server is not being stopped.
#[utoipa::path(get, path = "/health/ready", tag = "operations", responses((status = 200, description = "They are.", body = Health), NotReady))]
pub(super) async fn ready(State(app): State<Arc<App>>) -> Result<Json<Health>, ApiError> {
    if app.is_ready() {
        Ok(Json(Health { status: "ready" }))
    } else {
        Err(ApiError::not_ready("the server is being stopped, or a model cannot answer"))
    }
}
