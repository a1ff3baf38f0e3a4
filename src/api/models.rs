//! The models being served.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use facewise_core::task::Task;
use serde::Serialize;
use utoipa::ToSchema;

use super::error::{ApiError, Code, Common, responses};
use crate::app::App;
use crate::engine::AttributeModel;
use crate::repository::Served;

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
    /// What it does: `attributes` describes faces, `detector` finds them.
    #[schema(example = "attributes")]
    kind: &'static str,
    /// One sentence about it.
    description: String,
    /// Whether it is the one that describes faces where a request names no model, or the one that finds them.
    default: bool,
    /// Tasks that it answers here; a detector answers none.
    #[schema(example = json!(["age", "gender", "smile", "emotion"]))]
    tasks: Vec<&'static str>,
    /// Side of the squares that it reads, in pixels.
    #[schema(example = 64)]
    input_size: u32,
    /// SHA-256 of its file, in hexadecimal.
    sha256: String,
}

impl ModelInfo {
    fn new(app: &App, served: &Served) -> Self {
        let model = served.model();
        let (default, tasks) = match served {
            Served::Attributes(attributes) => {
                let default = app.repository.default_model().model().name();
                (model.name() == default, attributes.tasks().iter().map(Task::name).collect())
            }
            Served::Detector(_) => (true, Vec::new()),
        };
        Self {
            name: model.name().to_owned(),
            version: model.version().to_owned(),
            kind: model.manifest().kind.name(),
            description: model.manifest().description.clone(),
            default,
            tasks,
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
    Json(ModelList { models: app.repository.iter().map(|served| ModelInfo::new(&app, served)).collect() })
}

/// One model.
#[utoipa::path(
    get, path = "/v1/models/{name}", tag = "models", operation_id = "show_model",
    params(("name" = String, Path, description = "Name of the model", example = "face-attributes")),
    responses((status = 200, description = "The model.", body = ModelInfo), NoModel)
)]
pub(super) async fn one(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Json<ModelInfo>, ApiError> {
    let served = find(&app, &name)?;
    Ok(Json(ModelInfo::new(&app, served)))
}

/// The model with this name.
fn find<'a>(app: &'a App, name: &str) -> Result<&'a Served, ApiError> {
    app.repository.get(name).ok_or_else(|| {
        let known: Vec<String> = app.repository.iter().map(|served| format!("'{}'", served.model().name())).collect();
        ApiError::not_found(format!("there is no model '{name}'; there are {}", known.join(", ")))
    })
}

/// The model that a request wants its faces described by.
///
/// # Errors
/// When there is none with that name, or it is a detector.
pub(super) fn describing<'a>(app: &'a App, name: Option<&str>) -> Result<&'a Arc<AttributeModel>, ApiError> {
    let Some(name) = name else { return Ok(app.repository.default_model()) };
    match find(app, name)? {
        Served::Attributes(model) => Ok(model),
        Served::Detector(_) => Err(ApiError::bad_request(format!(
            "'{name}' is a detector: 'model' names the model that describes the faces, as '{}' does",
            app.repository.default_model().model().name()
        ))),
    }
}
