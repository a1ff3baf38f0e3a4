//! The models being served.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use facewise_core::task::Task;
use serde::Serialize;
use utoipa::ToSchema;

use super::error::{ApiError, Code, Common, responses};
use crate::app::App;
use crate::engine::Model;

/// The models being served.
#[derive(Serialize, ToSchema)]
pub(super) struct ModelList {
    /// By name.
    models: Vec<ModelInfo>,
}

/// A model being served.
#[derive(Serialize, ToSchema)]
pub(super) struct ModelInfo {
    /// Its name.
    #[schema(example = "face-attributes")]
    name: String,
    /// Its version.
    #[schema(example = "1")]
    version: String,
    /// One sentence about it.
    description: String,
    /// Whether it answers where a request names no model.
    default: bool,
    /// Tasks that it answers here.
    #[schema(example = json!(["age", "gender", "smile", "emotion"]))]
    tasks: Vec<&'static str>,
    /// Side of the crops that it reads, in pixels.
    #[schema(example = 64)]
    input_size: u32,
    /// SHA-256 of its file, in hexadecimal.
    sha256: String,
}

impl ModelInfo {
    fn new(app: &App, model: &Model) -> Self {
        Self {
            name: model.name().to_owned(),
            version: model.version().to_owned(),
            description: model.manifest().description.clone(),
            default: model.name() == app.repository.default_name(),
            tasks: model.tasks().iter().map(Task::name).collect(),
            input_size: model.input_size(),
            sha256: model.sha256().to_owned(),
        }
    }
}

/// What asking for one model may answer besides.
struct NoModel;

impl utoipa::IntoResponses for NoModel {
    fn responses() -> std::collections::BTreeMap<String, utoipa::openapi::RefOr<utoipa::openapi::response::Response>> {
        responses(&[Code::BadRequest, Code::NotFound, Code::Internal])
    }
}

/// The models being served.
#[utoipa::path(
    get, path = "/v1/models", tag = "models", operation_id = "list_models",
    responses((status = 200, description = "The models, by name.", body = ModelList), Common)
)]
pub(super) async fn list(State(app): State<Arc<App>>) -> Json<ModelList> {
    Json(ModelList { models: app.repository.iter().map(|model| ModelInfo::new(&app, model)).collect() })
}

/// One model.
#[utoipa::path(
    get, path = "/v1/models/{name}", tag = "models", operation_id = "show_model",
    params(("name" = String, Path, description = "Name of the model", example = "face-attributes")),
    responses((status = 200, description = "The model.", body = ModelInfo), NoModel)
)]
pub(super) async fn one(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Json<ModelInfo>, ApiError> {
    let model = find(&app, Some(&name))?;
    Ok(Json(ModelInfo::new(&app, model)))
}

/// The model that a request asks for.
///
/// # Errors
/// When there is none with that name.
pub(super) fn find<'a>(app: &'a App, name: Option<&str>) -> Result<&'a Arc<Model>, ApiError> {
    app.repository.get(name).ok_or_else(|| {
        let known: Vec<String> = app.repository.iter().map(|model| format!("'{}'", model.name())).collect();
        let name = name.unwrap_or_default();
        ApiError::not_found(format!("there is no model '{name}'; there are {}", known.join(", ")))
    })
}
