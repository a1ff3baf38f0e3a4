//! The server itself: what it is, and whether it wants requests.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::error::{Common, NotLive, NotReady};
use crate::api::error::ApiError;
use crate::app::App;

/// What is understood besides the protocol itself, by the names that Triton gave it.
const EXTENSIONS: [&str; 6] =
    ["binary_tensor_data", "classification", "model_configuration", "model_repository", "parameters", "statistics"];

/// The server.
#[derive(Serialize, ToSchema)]
pub(super) struct ServerMetadata {
    /// Its name.
    #[schema(example = "facewise")]
    name: &'static str,
    /// Its version.
    #[schema(example = "0.1.0")]
    version: &'static str,
    /// What is understood besides the protocol itself.
    #[schema(example = json!(["binary_tensor_data", "classification"]))]
    extensions: [&'static str; 6],
}

/// Whether the process is alive.
#[derive(Serialize, ToSchema)]
pub(super) struct ServerLive {
    live: bool,
}

/// Whether requests are welcome.
#[derive(Serialize, ToSchema)]
pub(super) struct ServerReady {
    ready: bool,
}

/// The server and what it understands.
#[utoipa::path(
    get, path = "/v2", tag = "inference", operation_id = "v2_server",
    security((), ("bearer" = []), ("key" = [])),
    responses((status = 200, description = "The server.", body = ServerMetadata), Common)
)]
pub(super) async fn metadata() -> Json<ServerMetadata> {
    Json(ServerMetadata { name: "facewise", version: env!("CARGO_PKG_VERSION"), extensions: EXTENSIONS })
}

/// Whether the process is alive. It does no work: a probe must not queue behind predictions.
#[utoipa::path(
    get, path = "/v2/health/live", tag = "inference", operation_id = "v2_live",
    responses((status = 200, description = "It is.", body = ServerLive), NotLive)
)]
pub(super) async fn live() -> Json<ServerLive> {
    Json(ServerLive { live: true })
}

/// Whether requests are welcome: every model is warm and its workers live, and the server is not being stopped.
#[utoipa::path(
    get, path = "/v2/health/ready", tag = "inference", operation_id = "v2_ready",
    responses((status = 200, description = "They are.", body = ServerReady), NotReady)
)]
pub(super) async fn ready(State(app): State<Arc<App>>) -> Result<Json<ServerReady>, ApiError> {
    if app.is_ready() {
        Ok(Json(ServerReady { ready: true }))
    } else {
        Err(ApiError::not_ready("the server is being stopped, or a model cannot answer"))
    }
}
