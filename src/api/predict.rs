//! `POST /v1/predict`: one picture, its faces.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Query, Request, State};
use axum::http::Uri;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use bytes::Bytes;
use facewise_core::detection::Selection;
use serde::Deserialize;
use utoipa::openapi::{RefOr, Response};
use utoipa::{IntoParams, IntoResponses, ToSchema};

use super::error::{ACCESS, ApiError, Code, WORK, responses};
use super::middleware::{Deadline, RequestId, SERVER_TIMING};
use super::{body, models, upload};
use crate::answer::{Extras, Prediction};
use crate::app::App;
use crate::engine::{AttributeModel, Detector};
use crate::pipeline::{Analysis, Whereabouts};
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
    /// Where faces are looked for; without it, `true` where there is a detector, else `false`.
    #[param(inline, example = "true")]
    detect: Option<Detect>,
    /// Most faces to answer, the most confident ones; without it, as many as the server allows.
    #[param(minimum = 1, example = 10)]
    max_faces: Option<usize>,
    /// Least confidence of a face, as far as a detector looks for it.
    #[param(minimum = 0, maximum = 1, default = 0.5, example = 0.5)]
    min_confidence: Option<f32>,
    /// Whether eyes, nose and mouth are answered too.
    #[serde(default)]
    #[param(default = false, example = true)]
    landmarks: bool,
    /// Whether the probability of each year of age is answered too.
    #[serde(default)]
    #[param(default = false)]
    distributions: bool,
}

/// Where faces are looked for: `true`, in the whole picture, and all that are found are answered; `crop`, the picture is a
/// crop of one face, and exactly one is answered: the best one found, else the centred square; `false`, nowhere: the
/// centred square, whose side is the shorter edge, is the face.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Detect {
    True,
    Crop,
    False,
}

/// A request's parameters, understood.
pub(super) struct Wishes {
    pub(super) model: Arc<AttributeModel>,
    pub(super) tasks: Tasks,
    pub(super) whereabouts: Whereabouts,
    pub(super) extras: Extras,
}

impl Wishes {
    /// What a request wants.
    ///
    /// # Errors
    /// When it wants what is not here.
    pub(super) fn of(uri: &Uri, app: &App) -> Result<Self, ApiError> {
        Parameters::of(uri)?.wishes(app)
    }

    /// Unwraps and analyses a picture as soon as it is its turn.
    ///
    /// # Errors
    /// When it is unreadable or too large, or more wait than can be served in time.
    pub(super) async fn fulfil(
        &self,
        app: &App,
        picture: impl Future<Output = Result<Bytes, ApiError>>,
        deadline: Instant,
    ) -> Result<Analysis, ApiError> {
        let place = app.line.enter_for(self.whereabouts.places(), deadline).await?;
        let analysis = app.pipeline.analyse(picture.await?, self.whereabouts.clone(), &self.model, &self.tasks).await?;
        place.answered();
        Ok(analysis)
    }
}

impl Parameters {
    fn of(uri: &Uri) -> Result<Self, ApiError> {
        Query::try_from_uri(uri)
            .map(|Query(parameters)| parameters)
            .map_err(|rejection| ApiError::bad_request(rejection.body_text()))
    }

    pub(super) fn wishes(self, app: &App) -> Result<Wishes, ApiError> {
        // Of one moment: what is loaded meanwhile is for the next request.
        let models = app.repository.models();
        let model = models::describing(&models, self.model.as_deref())?;
        let tasks = models::tasks(self.tasks.as_deref(), model.model(), model.tasks())?;
        let whereabouts = self.whereabouts(models.detector(), app.settings.inference.max_faces)?;
        let extras = Extras { landmarks: self.landmarks, distributions: self.distributions };
        Ok(Wishes { model, tasks, whereabouts, extras })
    }

    fn whereabouts(&self, detector: Option<&Arc<Detector>>, max_faces: usize) -> Result<Whereabouts, ApiError> {
        let selection = self.selection(max_faces)?;
        match (self.detect, detector) {
            (Some(Detect::False), _) | (None, None) => Ok(Whereabouts::CentredSquare),
            (Some(Detect::Crop), Some(detector)) => Ok(Whereabouts::Best(Arc::clone(detector), selection)),
            (Some(Detect::True) | None, Some(detector)) => Ok(Whereabouts::Everywhere(Arc::clone(detector), selection)),
            (Some(Detect::True | Detect::Crop), None) => {
                Err(ApiError::bad_request("there is no detector here: 'detect' can only be 'false'"))
            }
        }
    }

    fn selection(&self, limit: usize) -> Result<Selection, ApiError> {
        let max_faces = self.max_faces.unwrap_or(limit);
        if !(1..=limit).contains(&max_faces) {
            return Err(ApiError::bad_request(format!("'max_faces' is not between 1 and {limit} (--max-faces)")));
        }
        let min_confidence = self.min_confidence.unwrap_or(Selection::default().min_confidence);
        if !(0.0..=1.0).contains(&min_confidence) {
            return Err(ApiError::bad_request("'min_confidence' is not between 0 and 1"));
        }
        Ok(Selection { min_confidence, max_faces, ..Selection::default() })
    }
}

/// What a prediction may answer besides.
pub(super) struct Errors;

impl IntoResponses for Errors {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        responses(&[&WORK[..], &[Code::UnreadableImage, Code::NotReady], &ACCESS].concat())
    }
}

/// Age, gender, smile and emotion of the faces in a picture.
///
/// The picture is JPEG, PNG, WebP, BMP, GIF (first frame) or TIFF, sent as the body itself, as the part `image` (or
/// `file`) of a form, or in base64 as JSON. All coordinates are pixels of the picture as displayed: its EXIF orientation is
/// applied. A picture without faces has an empty list of them.
#[utoipa::path(
    post, path = "/v1/predict", tag = "predictions", security((), ("bearer" = []), ("key" = [])),
    params(
        Parameters,
        ("x-request-timeout-ms" = Option<u64>, Header, minimum = 1, maximum = 86_400_000,
            description = "Milliseconds after which an answer is worth nothing any more: 429 `deadline` then. Never more than the server's own limit.")
    ),
    request_body(
        description = "One picture.",
        content(
            ("image/*"),
            ("application/octet-stream"),
            (upload::Form = "multipart/form-data"),
            (upload::Json<'static> = "application/json")
        )
    ),
    responses(
        (status = 200, description = "The faces of the picture.", body = Prediction,
            headers(("server-timing" = String, description = "The timings of the answer, for browsers and proxies."))),
        Errors
    )
)]
pub(super) async fn predict(
    State(app): State<Arc<App>>,
    Extension(RequestId(id)): Extension<RequestId>,
    Extension(Deadline(deadline)): Extension<Deadline>,
    request: Request,
) -> Result<impl IntoResponse, ApiError> {
    let started = Instant::now();
    let Ok(_admitted) = app.admission.try_acquire() else { return Err(ApiError::overloaded()) };
    let (head, body) = body::read(request, &app.settings.http).await?;
    let wishes = Wishes::of(&head.uri, &app)?;
    let picture = upload::picture(&head.headers, body, app.pipeline.cpu());
    let analysis = wishes.fulfil(&app, picture, deadline).await?;
    let prediction = Prediction::new(id.to_string(), wishes.model.model(), &analysis, wishes.extras, started.elapsed());
    Ok(([(SERVER_TIMING, prediction.timings.to_string())], Json(prediction)))
}
