//! The folder of models in Triton's words: what there is, and loading and unloading it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use utoipa::openapi::{RefOr, Response};

use super::error::responses;
use super::{ModelPath, Target, face_pipeline};
use crate::api::error::{ACCESS, ApiError, Code};
use crate::api::{body, models};
use crate::app::App;
use crate::config::Http;
use crate::repository::{Found, RepositoryError, Version};

/// What is to be listed.
#[derive(Default, Deserialize, ToSchema)]
#[schema(as = RepositoryIndexRequest)]
pub(super) struct Index {
    /// Only what can answer.
    #[serde(default)]
    #[schema(default = false, example = false)]
    ready: bool,
}

/// A model of the folder, or one that is served.
#[derive(Serialize, ToSchema)]
#[schema(as = RepositoryIndexEntry)]
pub(super) struct Entry {
    /// Its name.
    #[schema(example = "face-attributes")]
    name: String,
    /// Its version.
    #[schema(example = "1")]
    version: String,
    state: ModelState,
    /// Why it is not ready, where that is known.
    #[schema(example = "")]
    reason: String,
}

/// State of a model.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
enum ModelState {
    /// It is served.
    Ready,
    /// It is not.
    Unavailable,
}

/// What a change may say besides; Triton's clients send an object of parameters.
#[derive(Default, Deserialize, ToSchema)]
#[schema(as = RepositoryChange)]
pub(super) struct Change {
    /// To unload: `unload_dependents`, which changes nothing, for no model depends on another. To load: nothing.
    #[serde(default)]
    #[schema(value_type = Object, example = json!({}))]
    parameters: Map<String, Value>,
}

/// What listing may answer besides.
pub(super) struct NotListed;

impl utoipa::IntoResponses for NotListed {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let codes = [Code::BadRequest, Code::Timeout, Code::PayloadTooLarge, Code::Deadline, Code::Internal];
        responses(&[&codes[..], &ACCESS].concat())
    }
}

/// What changing a model may answer besides.
pub(super) struct NotChanged;

impl utoipa::IntoResponses for NotChanged {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let codes =
            [Code::BadRequest, Code::NotFound, Code::Timeout, Code::PayloadTooLarge, Code::Deadline, Code::Internal];
        responses(&[&codes[..], &ACCESS].concat())
    }
}

/// The models of the folder and those that are served.
///
/// A model that is served in one version while the folder has a newer one is listed twice.
#[utoipa::path(
    post, path = "/v2/repository/index", tag = "inference", operation_id = "v2_repository_index",
    security((), ("bearer" = []), ("key" = [])),
    request_body(content = Index, description = "What is to be listed; nothing is everything."),
    responses((status = 200, description = "The models, by name.", body = Vec<Entry>), NotListed)
)]
pub(super) async fn index(State(app): State<Arc<App>>, request: Request) -> Result<Json<Vec<Entry>>, ApiError> {
    let Index { ready } = read(request, &app.settings.http).await?;
    let listed = models::blocking(move || list(&app)).await?;
    Ok(Json(listed.into_iter().filter(|entry| !ready || entry.state == ModelState::Ready).collect()))
}

impl Entry {
    fn served(app: &App, target: &Target) -> Self {
        let (name, version) = (target.name().to_owned(), target.version().to_owned());
        let (state, reason) = if target.is_ready(app) {
            (ModelState::Ready, String::new())
        } else {
            (ModelState::Unavailable, "its network does not work".to_owned())
        };
        Self { name, version, state, reason }
    }
}

fn list(app: &App) -> Result<Vec<Entry>, RepositoryError> {
    let served = Target::all(app);
    let mut entries: Vec<Entry> = served.iter().map(|target| Entry::served(app, target)).collect();
    for Found { name, version, .. } in app.repository.found()? {
        let failure = app.repository.failure(&name);
        if let Some(served) = entries.iter_mut().find(|entry| entry.name == name && entry.version == version) {
            // It is served as it was before its files were broken.
            if let Some(failure) = failure {
                served.reason = failure;
            }
        } else {
            let reason = failure.unwrap_or_else(|| "it is not loaded".to_owned());
            entries.push(Entry { name, version, state: ModelState::Unavailable, reason });
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// Serves the newest version of a model in the folder; where it is served already, loads it anew.
///
/// It is loaded and warmed beside what is served under its name, and takes its place in one step: no request fails. Where
/// it is broken, what was served is served on, and the answer says what is wrong.
#[utoipa::path(
    post, path = "/v2/repository/models/{name}/load", tag = "inference", operation_id = "v2_load_model",
    security((), ("bearer" = []), ("key" = [])),
    params(("name" = String, Path, description = "Name of the model", example = "face-attributes")),
    request_body(content = Change, description = "May be empty."),
    responses((status = 200, description = "It is served now."), NotChanged)
)]
pub(super) async fn load(
    State(app): State<Arc<App>>,
    Path(ModelPath { name, .. }): Path<ModelPath>,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let change: Change = read(request, &app.settings.http).await?;
    only(&change, None)?;
    not_built_in(&name)?;
    models::blocking(move || app.repository.load(&name, Version::Newest, false).map(drop)).await?;
    Ok(StatusCode::OK)
}

/// Serves a model no longer; requests in progress are still answered by it.
///
/// The model that answers where a request names none, and the detector in use, cannot be unloaded.
#[utoipa::path(
    post, path = "/v2/repository/models/{name}/unload", tag = "inference", operation_id = "v2_unload_model",
    security((), ("bearer" = []), ("key" = [])),
    params(("name" = String, Path, description = "Name of the model", example = "other-attributes")),
    request_body(content = Change, description = "May be empty."),
    responses((status = 200, description = "It is not served any more."), NotChanged)
)]
pub(super) async fn unload(
    State(app): State<Arc<App>>,
    Path(ModelPath { name, .. }): Path<ModelPath>,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let change: Change = read(request, &app.settings.http).await?;
    only(&change, Some("unload_dependents"))?;
    not_built_in(&name)?;
    models::blocking(move || app.repository.unload(&name)).await?;
    Ok(StatusCode::OK)
}

/// What the body says; clients may send none.
async fn read<T: DeserializeOwned + Default>(request: Request, settings: &Http) -> Result<T, ApiError> {
    let (_, body) = body::read(request, settings).await?;
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(T::default());
    }
    // An object: a list would do for a structure as well.
    serde_json::from_slice(&body)
        .and_then(|object: Map<String, Value>| serde_json::from_value(Value::Object(object)))
        .map_err(|error| ApiError::bad_request(format!("the body is wrong: {error}")))
}

/// Triton's other parameters bring a configuration or the files of a model with them. Here models come from the folder alone.
fn only(change: &Change, known: Option<&str>) -> Result<(), ApiError> {
    match change.parameters.keys().find(|name| Some(name.as_str()) != known) {
        None => Ok(()),
        Some(name) => Err(ApiError::bad_request(format!(
            "the parameter '{name}' is not supported: models are served as they are in the folder of models"
        ))),
    }
}

fn not_built_in(name: &str) -> Result<(), ApiError> {
    if name == face_pipeline::NAME {
        return Err(ApiError::bad_request(format!("'{name}' is part of the server: it is always there")));
    }
    Ok(())
}
