//! `POST /v1/predict`: one picture, its faces.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Query, Request, State};
use axum::http::Uri;
use axum::{Extension, Json};
use serde::Deserialize;
use utoipa::openapi::{RefOr, Response};
use utoipa::{IntoParams, IntoResponses};

use super::answer::Prediction;
use super::error::{ApiError, Code, responses};
use super::middleware::RequestId;
use super::{body, models, upload};
use crate::app::App;
use crate::engine::Model;
use crate::pipeline::Whereabouts;
use crate::tasks::Tasks;

/// What a client may ask for besides.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Parameters {
    /// The model; without it, the default one.
    #[param(example = "face-attributes")]
    model: Option<String>,
    /// Tasks to answer, with commas between; without it, all that the model answers.
    #[param(example = "age,gender,smile,emotion")]
    tasks: Option<String>,
    /// Whether the probability of each year of age is answered too.
    #[serde(default)]
    #[param(default = false)]
    distributions: bool,
    /// Only `false` yet: there is no detector, the picture is taken as a crop of one face, and its centred square, whose
    /// side is the shorter edge, is the face.
    #[param(pattern = "^false$", example = "false")]
    detect: Option<String>,
}

/// A request's parameters, understood.
struct Wishes<'a> {
    model: &'a Arc<Model>,
    tasks: Tasks,
    distributions: bool,
}

impl Parameters {
    fn of(uri: &Uri) -> Result<Self, ApiError> {
        Query::try_from_uri(uri)
            .map(|Query(parameters)| parameters)
            .map_err(|rejection| ApiError::bad_request(rejection.body_text()))
    }

    fn wishes(self, app: &App) -> Result<Wishes<'_>, ApiError> {
        if self.detect.is_some_and(|detect| detect != "false") {
            return Err(ApiError::bad_request(
                "'detect' can only be 'false' yet: the centred square of the picture is taken as the face",
            ));
        }
        let model = models::find(app, self.model.as_deref())?;
        let tasks = match self.tasks {
            None => model.tasks().clone(),
            Some(list) => list.parse::<Tasks>().map_err(|error| ApiError::bad_request(error.to_string()))?,
        };
        if let Some(task) = tasks.first_missing_in(model.tasks()) {
            return Err(ApiError::bad_request(format!(
                "the model '{}' does not answer '{task}' here; it answers {}",
                model.name(),
                model.tasks()
            )));
        }
        Ok(Wishes { model, tasks, distributions: self.distributions })
    }
}

/// What a prediction may answer besides.
struct Errors;

impl IntoResponses for Errors {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        responses(&[
            Code::BadRequest,
            Code::NotFound,
            Code::Timeout,
            Code::PayloadTooLarge,
            Code::UnsupportedMediaType,
            Code::UnreadableImage,
            Code::Overloaded,
            Code::Deadline,
            Code::Internal,
            Code::NotReady,
        ])
    }
}

/// Age, gender, smile and emotion of the face in a picture.
///
/// The picture is JPEG, PNG, WebP, BMP, GIF (first frame) or TIFF, sent as the body itself, as the part `image` (or
/// `file`) of a form, or in base64 as JSON. It is taken as a crop of one face: its centred square is the face.
#[utoipa::path(
    post, path = "/v1/predict", tag = "predictions",
    params(Parameters),
    request_body(
        description = "One picture.",
        content(
            ("image/*"),
            ("application/octet-stream"),
            (upload::Form = "multipart/form-data"),
            (upload::Json<'static> = "application/json")
        )
    ),
    responses((status = 200, description = "The faces of the picture.", body = Prediction), Errors)
)]
pub(super) async fn predict(
    State(app): State<Arc<App>>,
    Extension(RequestId(id)): Extension<RequestId>,
    request: Request,
) -> Result<Json<Prediction>, ApiError> {
    let started = Instant::now();
    let Ok(_admitted) = app.admission.try_acquire() else {
        body::discard(request).await;
        return Err(ApiError::overloaded());
    };
    // The body comes first: an answer to a client that still sends might never be read.
    let (head, body) = body::read(request, &app.settings.http).await?;
    let Wishes { model, tasks, distributions } = Parameters::of(&head.uri)?.wishes(&app)?;
    let picture = upload::picture(&head.headers, body, app.pipeline.cpu()).await?;
    let analysis = app.pipeline.analyse(picture, Whereabouts::CentredSquare, model, &tasks).await?;
    Ok(Json(Prediction::new(id.to_string(), model, &analysis, distributions, started.elapsed())))
}
