//! `POST /v1/predict/batch`: many pictures in one request, each with an answer of its own, in their order.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::ready;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout_at;
use tracing::Instrument as _;
use utoipa::openapi::RefOr;
use utoipa::{IntoResponses, ToSchema};

use super::body;
use super::error::{ACCESS, ApiError, Problem, WORK, responses};
use super::form::{self, Upload};
use super::middleware::{Deadline, RequestId};
use super::predict::{Parameters, Wishes};
use super::upload::{Kind, from_base64};
use crate::answer::{Extras, Face, Image, Timings};
use crate::app::App;
use crate::pipeline::Analysis;

/// The content type of results that are sent one by one.
const NDJSON: &str = "application/x-ndjson";

/// Part of a request's time that is kept for answering it: what is not done by then is given up, and what is done is told.
const ANSWERING: f64 = 0.05;

/// Share of the places in progress that one batch may take, so that others get their turns between its pictures.
const SHARE: usize = 4;

/// Pictures as JSON.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = BatchJson, example = json!({"images": ["data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==", "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="]}))]
pub(super) struct Pictures<'a> {
    /// The files in base64, bare or as `data:` URLs.
    #[serde(borrow)]
    #[schema(min_items = 1)]
    images: Vec<Cow<'a, str>>,
}

/// Pictures as a form.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only describes the form in the documentation")]
#[schema(as = BatchForm)]
pub(super) struct Form {
    /// The files, one a part; the parts may also be called `file`.
    // Without a type: in a form everything is bytes, and how often a part comes is not said by a type either.
    #[schema(value_type = Value)]
    image: Vec<Vec<u8>>,
}

/// The results of a batch.
#[derive(Serialize, ToSchema)]
pub(super) struct Batch {
    /// The answer's `x-request-id`.
    #[schema(example = "01J9ZQ4T0D5N3W8V7K2M6R1XYB")]
    id: String,
    /// The model that answered.
    #[schema(example = "face-attributes")]
    model: String,
    /// Its version.
    #[schema(example = "1")]
    version: String,
    /// One for each picture, in their order.
    results: Vec<BatchResult>,
}

/// What became of one picture: its faces, or why there is no answer.
#[derive(Serialize, ToSchema)]
pub(super) struct BatchResult {
    /// Position of the picture in the batch, from 0.
    #[schema(example = 0)]
    index: usize,
    /// What the answer's status would be if the picture had been sent alone.
    #[schema(minimum = 200, maximum = 599, example = 200)]
    status: u16,
    /// The picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    image: Option<Image>,
    /// Its faces, the most confident first; none is an empty list.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    faces: Option<Vec<Face>>,
    /// Where the time went.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    timings: Option<Timings>,
    /// Why there is no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    error: Option<Problem>,
}

impl BatchResult {
    fn answered(index: usize, analysis: &Analysis, extras: Extras, total: Duration) -> Self {
        Self {
            index,
            status: 200,
            image: Some(Image::of(analysis)),
            faces: Some(Face::of(analysis, extras)),
            timings: Some(Timings::new(&analysis.timings, total)),
            error: None,
        }
    }

    fn failed(index: usize, error: ApiError, request_id: &str) -> Self {
        let status = error.code().status().as_u16();
        let error = Some(error.problem(request_id));
        Self { index, status, image: None, faces: None, timings: None, error }
    }
}

/// What a batch may answer besides, as a whole.
struct Errors;

impl IntoResponses for Errors {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        responses(&[&WORK[..], &ACCESS].concat())
    }
}

/// Age, gender, smile and emotion of the faces in many pictures.
///
/// The pictures are sent as the parts `image` (or `file`) of a form, or in base64 as JSON. A form is read while its first
/// pictures are worked on and may be as large as all its pictures; JSON may not be larger than a single picture. A picture that
/// is unreadable, too large, or one more than can be served, fails alone: its result has a status and an error of its own.
///
/// With `accept: application/x-ndjson` each result is a line and is sent as soon as it and those before it are there. What is
/// wrong with the batch itself, as a form that breaks off, is its last line then.
#[utoipa::path(
    post, path = "/v1/predict/batch", tag = "predictions", security((), ("bearer" = []), ("key" = [])),
    params(
        Parameters,
        ("x-request-timeout-ms" = Option<u64>, Header, minimum = 1, maximum = 86_400_000,
            description = "Milliseconds after which an answer is worth nothing any more: pictures that are not done then have the error `deadline`. Never more than the server's own limit.")
    ),
    request_body(
        description = "Some pictures, 64 at most unless the server is set otherwise.",
        content((Form = "multipart/form-data"), (Pictures<'static> = "application/json"))
    ),
    responses(
        (status = 200, description = "A result for each picture, in their order.",
            content((Batch = "application/json"), (BatchResult = "application/x-ndjson"))),
        Errors
    )
)]
pub(super) async fn predict_batch(
    State(app): State<Arc<App>>,
    Extension(RequestId(id)): Extension<RequestId>,
    Extension(Deadline(deadline)): Extension<Deadline>,
    request: Request,
) -> Result<Response, ApiError> {
    let wishes = Wishes::of(request.uri(), &app)?;
    let packing = packing(request.headers())?;
    let one_by_one = wants_lines(request.headers());
    let now = Instant::now();
    let deadline = now + deadline.saturating_duration_since(now).mul_f64(1.0 - ANSWERING);
    let uploads: BoxStream<_> = match packing {
        Packing::Form { boundary } => form::pictures(request.into_body(), boundary, Arc::clone(&app), deadline).boxed(),
        Packing::Json => {
            let pictures = from_json(request, &app).await?;
            let app = Arc::clone(&app);
            stream::iter(pictures).map(move |bytes| Ok(Upload::admit(bytes, &app))).boxed()
        }
    };
    let work = Arc::new(Work { app, id, wishes, deadline });
    if one_by_one {
        return Ok(([(CONTENT_TYPE, NDJSON)], lines(&work, uploads)).into_response());
    }
    let results = work.results(uploads).try_collect().await?;
    let model = work.wishes.model.model();
    let (model, version) = (model.name().to_owned(), model.version().to_owned());
    Ok(Json(Batch { id: work.id.to_string(), model, version, results }).into_response())
}

/// How a body holds its pictures.
enum Packing {
    Form { boundary: String },
    Json,
}

fn packing(headers: &HeaderMap) -> Result<Packing, ApiError> {
    match Kind::of(headers)? {
        Kind::Form { boundary } => Ok(Packing::Form { boundary }),
        Kind::Json => Ok(Packing::Json),
        Kind::Raw => Err(ApiError::unsupported_media_type(
            "a batch is a form (multipart/form-data) with parts 'image', or application/json with {\"images\": [\"<base64>\"]}",
        )),
    }
}

fn wants_lines(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted
        .flat_map(|value| value.split(','))
        .any(|range| range.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(NDJSON)))
}

/// The pictures in a JSON body; it is admitted as a whole while it is read.
async fn from_json(request: Request, app: &App) -> Result<Vec<Result<Bytes, ApiError>>, ApiError> {
    let Ok(_admitted) = app.admission.try_acquire() else { return Err(ApiError::overloaded()) };
    let (_, body) = body::read(request, &app.settings.http).await?;
    let most = app.settings.http.max_pictures;
    // Megabytes of base64 are work, and work is not done on the threads that talk to clients.
    app.pipeline.cpu().run(move || unpacked(&body, most)).await?
}

fn unpacked(body: &[u8], most: usize) -> Result<Vec<Result<Bytes, ApiError>>, ApiError> {
    let Pictures { images } = serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("the body is not {{\"images\": [\"<base64>\"]}}: {error}")))?;
    if images.is_empty() {
        return Err(ApiError::bad_request("'images' is empty: send at least one picture"));
    }
    if images.len() > most {
        return Err(form::too_many(most));
    }
    Ok(images.iter().map(|image| from_base64(image)).collect())
}

/// What the pictures of a batch share.
struct Work {
    app: Arc<App>,
    id: Arc<str>,
    wishes: Wishes,
    deadline: Instant,
}

impl Work {
    /// The results in the order of the pictures, of which few are in progress at a time. An error ends them.
    fn results(
        self: &Arc<Self>,
        uploads: BoxStream<'static, Result<Upload, ApiError>>,
    ) -> impl Stream<Item = Result<BatchResult, ApiError>> + Send + 'static {
        let work = Arc::clone(self);
        let places = self.wishes.whereabouts.places() as usize;
        let parallel = (self.app.settings.in_progress() / (SHARE * places)).max(1);
        uploads
            .enumerate()
            .map(move |(index, upload)| {
                let work = Arc::clone(&work);
                async move { Ok(work.result(index, upload?).await) }
            })
            .buffered(parallel)
    }

    async fn result(&self, index: usize, Upload { bytes, admitted }: Upload) -> BatchResult {
        let Self { app, wishes, deadline, .. } = self;
        let started = Instant::now();
        let analysis = match bytes {
            Err(error) => Err(error),
            Ok(bytes) => timeout_at((*deadline).into(), wishes.fulfil(app, ready(Ok(bytes)), *deadline))
                .await
                .unwrap_or_else(|_| Err(ApiError::deadline())),
        };
        drop(admitted);
        match analysis {
            Ok(analysis) => BatchResult::answered(index, &analysis, wishes.extras, started.elapsed()),
            Err(error) => self.failed(index, error),
        }
    }

    fn failed(&self, index: usize, error: ApiError) -> BatchResult {
        if let Some(reason) = error.code().rejection() {
            self.app.metrics.rejected.with_label_values(&[reason]).inc();
        }
        BatchResult::failed(index, error, &self.id)
    }
}

/// The results as lines, each sent as it comes. The work goes on, and ends at its deadline, however slowly the client reads; when
/// the client goes, it stops.
fn lines(work: &Arc<Work>, uploads: BoxStream<'static, Result<Upload, ApiError>>) -> Body {
    let (send, mut results) = mpsc::unbounded_channel();
    let task = {
        let work = Arc::clone(work);
        async move {
            let mut results = pin!(work.results(uploads).enumerate());
            while let Some((index, result)) = results.next().await {
                // Nobody is there any more to be told.
                if send.send(result.unwrap_or_else(|error| work.failed(index, error))).is_err() {
                    break;
                }
            }
        }
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(task.in_current_span());
    let lines = stream::poll_fn(move |context| {
        // It is stopped when it is dropped, with the body.
        let _ = &tasks;
        results.poll_recv(context)
    });
    Body::from_stream(lines.map(|result| Ok::<_, Infallible>(line(&result))))
}

fn line(result: &BatchResult) -> Vec<u8> {
    let mut line = serde_json::to_vec(result).expect("plain data with string keys");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use axum::http::HeaderValue;

    use super::*;
    use crate::api::error::Code;

    #[test]
    fn lines_are_sent_to_those_who_ask_for_them() {
        let wants =
            |value: &'static str| wants_lines(&HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(value))]));
        assert!(wants("application/x-ndjson") && wants("application/json;q=0.5, Application/X-NDJSON; q=1"));
        assert!(!wants("application/json") && !wants("*/*") && !wants_lines(&HeaderMap::new()));
    }

    #[test]
    fn a_picture_that_is_no_base64_fails_alone_and_what_is_no_list_of_texts_as_a_whole() {
        let pictures = unpacked(br#"{"images": ["AAEC", "%%%", "", "data:image/png;base64,AAEC"]}"#, 4).unwrap();
        let codes: Vec<_> = pictures.iter().map(|picture| picture.as_ref().err().map(ApiError::code)).collect();
        assert_eq!(codes, [None, Some(Code::BadRequest), Some(Code::BadRequest), None]);
        for (body, code) in [
            (&br#"{"images": []}"#[..], Code::BadRequest),
            (br#"{"images": ["AAEC", 1]}"#, Code::BadRequest),
            (br#"{"image": "AAEC"}"#, Code::BadRequest),
            (br#"{"images": ["AAEC"], "image": "AAEC"}"#, Code::BadRequest),
            (br#"{"images": ["AAEC", "AAEC", "AAEC", "AAEC", "AAEC"]}"#, Code::PayloadTooLarge),
        ] {
            assert_eq!(unpacked(body, 4).unwrap_err().code(), code, "{}", String::from_utf8_lossy(body));
        }
    }
}
