//! The models being served.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, Uri};
use facewise_core::task::Task;
use serde::{Deserialize, Serialize};
use utoipa::openapi::{RefOr, Response};
use utoipa::{IntoParams, ToSchema};

use super::error::{ACCESS, ApiError, Code, responses};
use crate::app::App;
use crate::engine::{AttributeModel, EmbeddingModel, Model};
use crate::repository::{Models, RepositoryError, Served, Version};
use crate::tasks::{Tasks, TasksError};

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
    /// The versions in the folder of models, from the oldest to the newest; empty when it is not there any more.
    #[schema(example = json!(["1"]))]
    versions: Vec<String>,
    /// What it does: `attributes` describes faces in pictures, `detector` finds them, `embeddings` describes faces of which there
    /// are embeddings.
    #[schema(example = "attributes")]
    kind: &'static str,
    /// One sentence about it.
    description: String,
    /// Whether it is the one that describes faces where a request names no model, or the one that finds them.
    default: bool,
    /// Whether all its workers have a network that works.
    ready: bool,
    /// Tasks that it answers here; a detector answers none.
    #[schema(example = json!(["age", "gender", "smile", "emotion"]))]
    tasks: Vec<&'static str>,
    /// Side of the squares that it reads, in pixels; of a model that reads pictures.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = 64)]
    input_size: Option<u32>,
    /// Numbers of the embeddings that it reads; of a model that reads these.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = 512)]
    features: Option<u32>,
    /// SHA-256 of its file, in hexadecimal.
    sha256: String,
    /// Why it could not be loaded the last time that this was tried; what is described here is served on.
    error: Option<String>,
}

impl ModelInfo {
    fn new(app: &App, models: &Models, served: &Served) -> Self {
        let model = served.model();
        let tasks = match served {
            Served::Attributes(attributes) => attributes.tasks().iter().map(Task::name).collect(),
            Served::Embeddings(embeddings) => embeddings.tasks().iter().map(Task::name).collect(),
            Served::Detector(_) => Vec::new(),
        };
        let features = model.manifest().input.features;
        Self {
            name: model.name().to_owned(),
            version: model.version().to_owned(),
            versions: app.repository.versions(model.name()).unwrap_or_default(),
            kind: model.manifest().kind.name(),
            description: model.manifest().description.clone(),
            default: models.is_in_use(model.name()),
            ready: model.is_alive(),
            tasks,
            input_size: features.is_none().then(|| model.input_size()),
            features,
            sha256: model.sha256().to_owned(),
            error: app.repository.failure(model.name()),
        }
    }
}

/// What asking for the models may answer besides.
struct NoModels;

impl utoipa::IntoResponses for NoModels {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        responses(&[&[Code::Internal][..], &ACCESS].concat())
    }
}

/// What asking for one model may answer besides.
struct NoModel;

impl utoipa::IntoResponses for NoModel {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        responses(&[&[Code::BadRequest, Code::NotFound, Code::Internal][..], &ACCESS].concat())
    }
}

/// What changing a model may answer besides.
struct NotChanged;

impl utoipa::IntoResponses for NotChanged {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        responses(&[&[Code::BadRequest, Code::NotFound, Code::Deadline, Code::Internal][..], &ACCESS].concat())
    }
}

/// The models being served.
#[utoipa::path(
    get, path = "/v1/models", tag = "models", operation_id = "list_models",
    security((), ("bearer" = []), ("key" = [])),
    responses((status = 200, description = "The models, by name.", body = ModelList), NoModels)
)]
pub(super) async fn list(State(app): State<Arc<App>>) -> Json<ModelList> {
    let models = app.repository.models();
    Json(ModelList { models: models.iter().map(|served| ModelInfo::new(&app, &models, served)).collect() })
}

/// One model.
#[utoipa::path(
    get, path = "/v1/models/{name}", tag = "models", operation_id = "show_model",
    params(("name" = String, Path, description = "Name of the model", example = "face-attributes")),
    security((), ("bearer" = []), ("key" = [])),
    responses((status = 200, description = "The model.", body = ModelInfo), NoModel)
)]
pub(super) async fn one(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Json<ModelInfo>, ApiError> {
    let models = app.repository.models();
    match models.get(&name) {
        Some(served) => Ok(Json(ModelInfo::new(&app, &models, served))),
        None => Err(match app.repository.failure(&name) {
            Some(failure) => ApiError::not_found(format!("'{name}' is not served, for {failure}")),
            None => unknown(&models, &name),
        }),
    }
}

/// What is to be loaded.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Load {
    /// Version to serve; without it, the newest.
    #[param(example = "1")]
    version: Option<String>,
    /// Whether the model becomes the one that answers where a request names none, or the detector in use.
    #[serde(default)]
    #[param(default = false)]
    default: bool,
}

impl Load {
    fn of(uri: &Uri) -> Result<Self, ApiError> {
        Query::try_from_uri(uri).map(|Query(load)| load).map_err(|error| ApiError::bad_request(error.body_text()))
    }

    fn version(&self) -> Version<'_> {
        self.version.as_deref().map_or(Version::Newest, Version::Exactly)
    }
}

/// Serves a model of the folder, where it is not served yet.
///
/// It is loaded and warmed beside what is served under its name, and takes its place in one step: no request fails. A
/// version that is served already is left alone; `reload` loads it anew.
#[utoipa::path(
    post, path = "/v1/models/{name}/load", tag = "models", operation_id = "load_model",
    params(("name" = String, Path, description = "Name of the model", example = "face-attributes"), Load),
    security((), ("bearer" = []), ("key" = [])),
    responses((status = 200, description = "The model, which is served now.", body = ModelInfo), NotChanged)
)]
pub(super) async fn load(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    uri: Uri,
) -> Result<Json<ModelInfo>, ApiError> {
    let load = Load::of(&uri)?;
    let models = app.repository.models();
    if let Some(served) = models.get(&name)
        && (!load.default || models.is_in_use(&name))
    {
        let versions = app.repository.versions(&name)?;
        let wanted = load.version.as_deref().or(versions.last().map(String::as_str));
        if wanted == Some(served.model().version()) {
            return Ok(Json(ModelInfo::new(&app, &models, served)));
        }
    }
    replace(app, name, load).await
}

/// Loads a model of the folder anew, as after a change of its files.
///
/// It is loaded and warmed beside what is served under its name, and takes its place in one step: no request fails. Where
/// it is broken, what was served is served on, and the answer says what is wrong.
#[utoipa::path(
    post, path = "/v1/models/{name}/reload", tag = "models", operation_id = "reload_model",
    params(("name" = String, Path, description = "Name of the model", example = "face-attributes"), Load),
    security((), ("bearer" = []), ("key" = [])),
    responses((status = 200, description = "The model, which is served now.", body = ModelInfo), NotChanged)
)]
pub(super) async fn reload(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    uri: Uri,
) -> Result<Json<ModelInfo>, ApiError> {
    let load = Load::of(&uri)?;
    replace(app, name, load).await
}

/// Serves a model no longer; requests in progress are still answered by it.
///
/// The model that answers where a request names none, and the detector in use, cannot be unloaded.
#[utoipa::path(
    post, path = "/v1/models/{name}/unload", tag = "models", operation_id = "unload_model",
    params(("name" = String, Path, description = "Name of the model", example = "other-attributes")),
    security((), ("bearer" = []), ("key" = [])),
    responses((status = 204, description = "It is not served any more."), NotChanged)
)]
pub(super) async fn unload(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    blocking(move || app.repository.unload(&name)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn replace(app: Arc<App>, name: String, load: Load) -> Result<Json<ModelInfo>, ApiError> {
    let info = move || {
        let served = app.repository.load(&name, load.version(), load.default)?;
        Ok(ModelInfo::new(&app, &app.repository.models(), &served))
    };
    blocking(info).await.map(Json)
}

/// Work on models takes seconds, which no thread that talks to clients has. It is finished also when its client goes.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RepositoryError> + Send + 'static,
) -> Result<T, ApiError> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::internal(&error))??)
}

fn unknown(models: &Models, name: &str) -> ApiError {
    let known: Vec<String> = models.iter().map(|served| format!("'{}'", served.model().name())).collect();
    ApiError::not_found(format!("there is no model '{name}'; there are {}", known.join(", ")))
}

/// The model that a request wants its faces described by.
///
/// # Errors
/// When there is none with that name, or it is a detector.
pub(super) fn describing(models: &Models, name: Option<&str>) -> Result<Arc<AttributeModel>, ApiError> {
    let Some(name) = name else { return Ok(Arc::clone(models.default_model())) };
    match models.get(name) {
        Some(Served::Attributes(model)) => Ok(Arc::clone(model)),
        Some(Served::Detector(_)) => Err(ApiError::bad_request(format!(
            "'{name}' is a detector: 'model' names the model that describes the faces, as '{}' does",
            models.default_model().model().name()
        ))),
        Some(Served::Embeddings(_)) => Err(ApiError::bad_request(format!(
            "'{name}' reads embeddings, not pictures: ask it at /v1/predict/embeddings"
        ))),
        None => Err(unknown(models, name)),
    }
}

/// The tasks that a request wants answered: those that it lists, else all that the model answers.
///
/// # Errors
/// When the list names what is no task, or one that the model does not answer here.
pub(super) fn tasks(list: Option<&str>, model: &Model, answered: &Tasks) -> Result<Tasks, ApiError> {
    let Some(list) = list else { return Ok(answered.clone()) };
    let tasks: Tasks = list.parse().map_err(|error: TasksError| ApiError::bad_request(error.to_string()))?;
    match tasks.first_missing_in(answered) {
        None => Ok(tasks),
        Some(task) => Err(ApiError::bad_request(format!(
            "the model '{}' does not answer '{task}' here; it answers {answered}",
            model.name()
        ))),
    }
}

/// The model that a request wants its embeddings described by; it need not be named where there is one only.
///
/// # Errors
/// When there is none with that name, it reads pictures, or none is named among several.
pub(super) fn reading_embeddings(models: &Models, name: Option<&str>) -> Result<Arc<EmbeddingModel>, ApiError> {
    let Some(name) = name else {
        let mut known = models.iter().filter_map(|served| match served {
            Served::Embeddings(model) => Some(model),
            Served::Attributes(_) | Served::Detector(_) => None,
        });
        return match (known.next(), known.next()) {
            (Some(only), None) => Ok(Arc::clone(only)),
            (None, _) => Err(ApiError::not_found("there is no model here that reads embeddings")),
            (Some(_), Some(_)) => {
                Err(ApiError::bad_request("there are several models that read embeddings: name one with 'model'"))
            }
        };
    };
    match models.get(name) {
        Some(Served::Embeddings(model)) => Ok(Arc::clone(model)),
        Some(Served::Attributes(_) | Served::Detector(_)) => {
            Err(ApiError::bad_request(format!("'{name}' reads pictures, not embeddings: ask for them at /v1/predict")))
        }
        None => Err(unknown(models, name)),
    }
}
