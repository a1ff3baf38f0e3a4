//! Inference: the same admission, line, queues and deadlines as every other prediction.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::Response;
use serde_json::Map;
use tokio::time::timeout_at;
use utoipa::IntoResponses;
use utoipa::openapi::RefOr;

use super::compression::Coding;
use super::error::responses;
use super::request::{self, Call, InferenceRequest, Input, Limits, Reads};
use super::response::{self, InferenceResponse, OutputTensor};
use super::tensor::{Output, TensorMetadata};
use super::{ModelPath, Target, face_pipeline};
use crate::api::body;
use crate::api::error::{ACCESS, ApiError, Code, WORK};
use crate::api::middleware::Deadline;
use crate::app::App;
use crate::engine::Model;
use crate::line::{PHOTOGRAPH, Place};

/// What inference may answer besides.
struct Errors;

impl IntoResponses for Errors {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        responses(&[&WORK[..], &[Code::UnreadableImage, Code::NotReady], &ACCESS].concat())
    }
}

/// Tensors in, tensors out.
///
/// A network reads and answers rows of floats, as `GET /v2/models/{name}` describes them; rows of different requests, and faces
/// of `/v1/predict`, share runs.
///
/// `face-pipeline` reads files of pictures, as `image`, and answers their faces: all pictures or, where one fails, an error. Of each
/// picture, `image_size` (width, height); of each face, those of all pictures in one list, `image_index` (which picture), `box` (x, y, width,
/// height), `confidence`, `landmarks` (x, y of right eye, left eye, nose, mouth; no numbers where nobody looked), `age`, `age_interval`,
/// `age_group`, `age_probabilities`, and for `gender`, `smile` and `emotion` the label and its `…_probabilities`. Parameters of the request
/// are those of the query of `/v1/predict`.
///
/// The body is JSON, whatever its type says; or, where `inference-header-content-length` is given, so many bytes of JSON and then the
/// inputs in binary that have a `binary_data_size`: numbers little-endian, of BYTES each element with its length as 32 bits before it. 0
/// is a body that is the one row of the only input, such as a picture's file, and all outputs in binary. An answer with outputs in
/// binary has the same layout. The body may be packed as its `content-encoding` gzip or deflate says, and the answer is as
/// `accept-encoding` allows.
#[utoipa::path(
    post, path = "/v2/models/{name}/infer", tag = "inference", operation_id = "v2_infer",
    security((), ("bearer" = []), ("key" = [])),
    params(
        ("name" = String, Path, description = "Name of the model", example = "face-pipeline"),
        ("inference-header-content-length" = Option<u64>, Header, description = "How many bytes of the unpacked body are JSON; without it, all.")
    ),
    request_body(
        description = "The tensors.",
        content((InferenceRequest<'static> = "application/json"), ("application/octet-stream"))
    ),
    responses(
        (status = 200, description = "The tensors.",
            content((InferenceResponse = "application/json"), (String = "application/octet-stream")),
            headers(("inference-header-content-length" = u64, description = "How many bytes of the unpacked body are JSON, where the others are binary."))),
        Errors
    )
)]
pub(super) async fn infer(
    State(app): State<Arc<App>>,
    Extension(Deadline(deadline)): Extension<Deadline>,
    Path(path): Path<ModelPath>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let started = Instant::now();
    let Ok(_admitted) = app.admission.try_acquire() else { return Err(ApiError::overloaded()) };
    let (head, body) = body::read(request, &app.settings.http).await?;
    // Of one moment: what is loaded meanwhile is for the next request.
    let target = Target::find(&app, &path)?;
    let place = app.line.enter_for(target.places(), deadline).await?;

    let (reads, limits) = (target.reads(), target.limits(&app));
    let accepted = Coding::accepted(&head.headers);
    let call = app.pipeline.cpu().run(move || request::read(&head.headers, &body, &reads, limits)).await??;
    let own = call.timeout.and_then(|timeout| started.checked_add(timeout));
    let deadline = own.map_or(deadline, |own| own.min(deadline));
    if deadline <= Instant::now() {
        return Err(ApiError::deadline());
    }
    let work = target.answer(&app, call, place, deadline);
    let answer = timeout_at(deadline.into(), work).await.map_err(|_| ApiError::deadline())??;
    app.pipeline.cpu().run(move || answer.write(accepted)).await?
}

impl Target {
    fn reads(&self) -> Reads {
        match self {
            Self::FacePipeline => Reads::Pictures,
            Self::Network(served) => Reads::Rows(served.model().input().clone()),
        }
    }

    /// Places that a request takes in the line, or its first picture.
    const fn places(&self) -> u32 {
        match self {
            Self::FacePipeline => PHOTOGRAPH,
            Self::Network(_) => 1,
        }
    }

    fn limits(&self, app: &App) -> Limits {
        let rows = match self {
            Self::FacePipeline => 0,
            Self::Network(served) => served.model().max_rows(),
        };
        let http = &app.settings.http;
        // More pictures than requests are never admitted.
        Limits { body: http.max_body(), pictures: http.max_pictures.min(http.max_requests), rows }
    }

    /// Asks the model.
    async fn answer(
        &self,
        app: &App,
        call: Call,
        place: Place<'_>,
        deadline: Instant,
    ) -> Result<InferenceResponse, ApiError> {
        let Call { id, input, outputs: wanted, binary, parameters, .. } = call;
        let (chosen, outputs, parameters) = match (self, input) {
            (Self::Network(served), Input::Rows(rows, tensor)) => {
                let model = served.model();
                let known: Vec<TensorMetadata> = model.outputs().iter().map(TensorMetadata::of).collect();
                let chosen = response::choose(wanted, &known)?;
                (chosen, network(model, rows, tensor, place).await?, Map::new())
            }
            (_, Input::Pictures(pictures)) => {
                let wishes = face_pipeline::wishes(app, parameters)?;
                let chosen = response::choose(wanted, &face_pipeline::outputs(wishes.model.tasks()))?;
                let parameters = face_pipeline::networks(&wishes);
                (chosen, face_pipeline::infer(app, pictures, wishes, place, deadline).await?, parameters)
            }
            // The request was read for this model.
            (Self::FacePipeline, Input::Rows(..)) => return Err(ApiError::internal(&"rows for the face pipeline")),
        };
        let mut outputs: Vec<Option<Output>> = outputs.into_iter().map(Some).collect();
        let outputs = chosen
            .iter()
            .filter_map(|(place, wanted)| Some(OutputTensor::new(outputs[*place].take()?, wanted, binary)))
            .collect();
        Ok(InferenceResponse {
            id,
            model_name: self.name().to_owned(),
            model_version: self.version().to_owned(),
            parameters,
            outputs,
        })
    }
}

/// Asks a network.
async fn network(model: &Model, rows: usize, tensor: Vec<f32>, place: Place<'_>) -> Result<Vec<Output>, ApiError> {
    let answers = model.infer(tensor).await?;
    place.answered();
    Ok(model.outputs().iter().zip(answers).map(|(output, numbers)| Output::of(output, rows, numbers)).collect())
}
