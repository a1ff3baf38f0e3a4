//! Evaluations: labelled sets in, reports out.

use std::collections::{BTreeMap, HashSet};
use std::convert::Infallible;
use std::io;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use facewise_evaluation::groups::MAX_COLUMNS;
use facewise_evaluation::report::Geometry;
use facewise_evaluation::{DatasetError, html};
use futures_util::{Stream, StreamExt, stream};
use http_body_util::BodyExt;
use multer::{Constraints, Field, Multipart, SizeLimit};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use utoipa::openapi::{RefOr, Response as Answer};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::{ACCESS, ApiError, Code, WORK, responses};
use super::models;
use crate::app::App;
use crate::config::Http;
use crate::jobs::{Evaluation, Evaluations, JobsError, Order, Part, Spool, SpoolError, Status};

/// Where sets are sent.
pub(super) const PATH: &str = "/v1/evaluations";

/// Shortest time between two events of one stream.
const PACE: Duration = Duration::from_millis(200);

/// Time after which a silent stream of events says that it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Most evaluations in one list, and how many are in it where nothing is said.
const LIST: (usize, usize) = (1000, 100);

/// Bytes of predictions.csv that are sent at a time.
const CHUNK: usize = 64 << 10;

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(one, remove))
        .routes(routes!(cancel))
        .routes(routes!(restart))
        .routes(routes!(events))
        .routes(routes!(report_html))
        .routes(routes!(report_json))
        .routes(routes!(predictions))
}

/// What is to be evaluated, and how.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Wishes {
    /// The model; without it, the default one.
    #[param(example = "face-attributes")]
    model: Option<String>,
    /// Where faces are taken from.
    #[serde(default)]
    #[param(inline, default = "manifest")]
    detect: Detect,
    /// Rows that count: `column=value`, `column!=value`, or with a number `column<value`, `<=`, `>`, `>=`, several with commas between.
    #[serde(rename = "where")]
    #[param(example = "split=test")]
    filter: Option<String>,
    /// Columns whose values divide the rows into groups, with commas between.
    #[param(example = "race")]
    group_by: Option<String>,
    /// Only the first so many rows.
    #[param(minimum = 1)]
    limit: Option<usize>,
    /// Whether `report.html` shows small pictures of the rows that were answered worst.
    #[serde(default)]
    #[param(default = false)]
    thumbnails: bool,
}

/// Where faces are taken from: `manifest`, the set's keypoints, and rows without them as with `crop`; `crop`, the best face that
/// the detector finds, else the centred square; `false`, the centred square.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Detect {
    #[default]
    Manifest,
    Crop,
    False,
}

impl Wishes {
    fn order(self, app: &App) -> Result<Order, ApiError> {
        let models = app.repository.models();
        let model = models::describing(&models, self.model.as_deref())?;
        if self.detect == Detect::Crop && models.detector().is_none() {
            return Err(ApiError::bad_request("there is no detector here: 'detect' can be 'manifest' or 'false'"));
        }
        if self.limit == Some(0) {
            return Err(ApiError::bad_request("'limit' is not at least 1"));
        }
        let words = |list: String| list.split(',').map(|word| word.trim().to_owned()).collect::<Vec<_>>();
        let mut group_by = self.group_by.map(words).unwrap_or_default();
        let mut seen = HashSet::new();
        group_by.retain(|column| !column.is_empty() && seen.insert(column.clone()));
        if group_by.len() > MAX_COLUMNS {
            return Err(ApiError::bad_request(DatasetError::TooManyGroupings { limit: MAX_COLUMNS }.to_string()));
        }
        Ok(Order {
            dataset: String::new(),
            model: model.model().name().to_owned(),
            detect: match self.detect {
                Detect::Manifest => Geometry::Manifest,
                Detect::Crop => Geometry::Crop,
                Detect::False => Geometry::Square,
            },
            filter: self.filter.filter(|filter| !filter.trim().is_empty()),
            group_by,
            limit: self.limit,
            thumbnails: self.thumbnails,
        })
    }
}

/// A labelled set as a form: `dataset`, or `manifest` and `images`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only describes the form in the documentation")]
#[schema(as = DatasetForm)]
struct Form {
    /// A zip with `manifest.csv` and the pictures, or with `manifest.csv` and one `images.zip`.
    #[schema(value_type = Option<String>, format = Binary)]
    dataset: Option<Vec<u8>>,
    /// `manifest.csv` alone.
    #[schema(value_type = Option<String>, format = Binary)]
    manifest: Option<Vec<u8>>,
    /// A zip with the pictures of the manifest.
    #[schema(value_type = Option<String>, format = Binary)]
    images: Option<Vec<u8>>,
}

/// An evaluation that was taken in.
#[derive(Serialize, ToSchema)]
struct Accepted {
    /// Its id.
    #[schema(example = "01M7Z496531PDNRFTP1PD70XMQ")]
    id: String,
    /// `queued`, or what has become of it meanwhile.
    status: Status,
}

/// The newest evaluations.
#[derive(Serialize, ToSchema)]
struct EvaluationList {
    /// The newest first.
    evaluations: Vec<Evaluation>,
}

/// What sending a set may answer besides.
struct NotAccepted;

impl utoipa::IntoResponses for NotAccepted {
    fn responses() -> BTreeMap<String, RefOr<Answer>> {
        responses(&[&WORK[..], &[Code::InsufficientStorage], &ACCESS].concat())
    }
}

/// What asking for an evaluation may answer besides.
struct NoEvaluation;

impl utoipa::IntoResponses for NoEvaluation {
    fn responses() -> BTreeMap<String, RefOr<Answer>> {
        responses(&[&[Code::BadRequest, Code::NotFound, Code::Internal][..], &ACCESS].concat())
    }
}

impl App {
    fn evaluations(&self) -> Result<Arc<Evaluations>, ApiError> {
        self.evaluations.as_ref().map(Arc::clone).map_err(|reason| ApiError::not_found(reason.clone()))
    }
}

/// What waits for the disk is done on threads that may.
async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, ApiError>
where
    T: Send + 'static,
    E: Send + 'static,
    ApiError: From<E>,
{
    Ok(tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::internal(&error))??)
}

fn no_evaluation() -> ApiError {
    ApiError::not_found("there is no evaluation with this id")
}

/// Scores a model on a labelled set.
///
/// The set is checked before the answer; the evaluation then waits for its turn, and runs when nobody waits for predictions. Its
/// `Location` tells how far it is, and has its report in the end. The set is removed when the evaluation ends.
///
/// `manifest.csv` has a column `path` and any of `age` (years), `gender` (male, female), `smile` (0, 1) and `emotion` (the seven
/// labels), optionally a face's box (`box_x`, `box_y`, `box_w`, `box_h`) and keypoints (`reye_x`, `reye_y`, `leye_x`, …, `nose_x`,
/// …, `mouth_x`, …); by every column, rows can be chosen and grouped.
#[utoipa::path(
    post, path = PATH, tag = "evaluations", operation_id = "create_evaluation",
    params(Wishes),
    request_body(content = Form, content_type = "multipart/form-data"),
    responses(
        (status = 202, description = "It waits for its turn.", body = Accepted,
            headers(("location" = String, description = "Where it tells how far it is."))),
        NotAccepted
    )
)]
async fn create(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let Evaluation { id, status, .. } = take_in(&app, &head.uri, &head.headers, body).await?;
    let location = format!("{PATH}/{id}");
    Ok((StatusCode::ACCEPTED, [(LOCATION, location)], Json(Accepted { id, status })).into_response())
}

async fn take_in(app: &App, uri: &Uri, headers: &HeaderMap, body: Body) -> Result<Evaluation, ApiError> {
    let evaluations = app.evaluations()?;
    let Query(wishes) = Query::<Wishes>::try_from_uri(uri).map_err(|error| ApiError::bad_request(error.body_text()))?;
    let mut order = wishes.order(app)?;
    order.check().map_err(SpoolError::from)?;
    let boundary = boundary(headers)?;
    let limit = evaluations.settings().max_dataset;
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit.as_u64()) {
        return Err(too_large(limit));
    }
    let spool = {
        let evaluations = Arc::clone(&evaluations);
        blocking(move || evaluations.receive()).await?
    };
    let Some(spool) = spool else {
        return Err(ApiError::overloaded());
    };
    order.dataset = receive(&spool, boundary, body, &app.settings.http, limit).await?;
    blocking(move || evaluations.enqueue(spool, &order)).await
}

fn too_large(limit: bytesize::ByteSize) -> ApiError {
    ApiError::too_large(format!("the set is larger than the {} allowed (--max-dataset)", limit.display().iec()))
}

fn boundary(headers: &HeaderMap) -> Result<String, ApiError> {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("multipart/form-data") {
        return Err(ApiError::unsupported_media_type(
            "a labelled set is sent as multipart/form-data: the part 'dataset' with a zip, or the parts 'manifest' and 'images'",
        ));
    }
    multer::parse_boundary(content_type)
        .map_err(|_| ApiError::bad_request("the content type multipart/form-data has no boundary"))
}

/// Writes the parts of a form to the disk as they come; the name of the set.
async fn receive(
    spool: &Spool,
    boundary: String,
    body: Body,
    settings: &Http,
    limit: bytesize::ByteSize,
) -> Result<String, ApiError> {
    let constraints = Constraints::new().size_limit(SizeLimit::new().whole_stream(limit.as_u64()));
    let pause = settings.body_timeout();
    // Each piece has its time, so that a large set may take long and a silent client may not.
    let pieces = stream::unfold(BodyExt::into_data_stream(body), move |mut pieces| async move {
        let piece = match tokio::time::timeout(pause, pieces.next()).await {
            Ok(piece) => piece?.map_err(io::Error::other),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        Some((piece, pieces))
    });
    let fault = |error: multer::Error| match error {
        multer::Error::StreamSizeExceeded { .. } => too_large(limit),
        multer::Error::StreamReadFailed(cause) => match cause.downcast::<io::Error>() {
            Ok(error) if error.kind() == io::ErrorKind::TimedOut => {
                ApiError::timeout(format!("no more of the body came for {} (--body-timeout)", settings.body_timeout))
            }
            _ => ApiError::bad_request("the body broke off"),
        },
        error => ApiError::bad_request(format!("the form is malformed: {error}")),
    };
    let mut form = Multipart::with_constraints(pieces, boundary, constraints);
    let (mut parts, mut name) = (Vec::new(), None);
    while let Some(mut field) = form.next_field().await.map_err(fault)? {
        let Some(part) = field.name().and_then(Part::named) else {
            let found = field.name().unwrap_or_default().to_owned();
            return Err(ApiError::bad_request(format!(
                "the form has a part '{found}': send 'dataset', or 'manifest' and 'images'"
            )));
        };
        if parts.contains(&part) {
            return Err(ApiError::bad_request("the form has a part twice"));
        }
        parts.push(part);
        if part != Part::Manifest {
            name = field.file_name().map(set_name);
        }
        write(&mut field, &spool.path(part)).await.map_err(|error| match error {
            WriteError::Form(error) => fault(error),
            WriteError::File(error) => JobsError::from(error).into(),
        })?;
    }
    match parts.as_slice() {
        [Part::Dataset] | [Part::Manifest, Part::Images] | [Part::Images, Part::Manifest] => {
            Ok(name.filter(|name| !name.is_empty()).unwrap_or_else(|| "dataset".into()))
        }
        _ => Err(ApiError::bad_request("the form has neither 'dataset' alone nor both 'manifest' and 'images'")),
    }
}

enum WriteError {
    Form(multer::Error),
    File(io::Error),
}

async fn write(field: &mut Field<'_>, path: &FilePath) -> Result<(), WriteError> {
    let mut options = tokio::fs::OpenOptions::new();
    options.create_new(true).write(true).mode(0o600);
    let mut file = options.open(path).await.map_err(WriteError::File)?;
    while let Some(piece) = field.chunk().await.map_err(WriteError::Form)? {
        file.write_all(&piece).await.map_err(WriteError::File)?;
    }
    // Whether the last bytes have found room shows only now.
    file.flush().await.map_err(WriteError::File)
}

/// The name of a file without folders and extension, and without what does not belong into a line of text.
fn set_name(file: &str) -> String {
    let last = file.rsplit(['/', '\\']).next().unwrap_or_default();
    let stem = last.rsplit_once('.').map_or(last, |(stem, _)| stem);
    stem.chars().filter(|character| !character.is_control()).take(100).collect()
}

/// Which evaluations are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Page {
    /// Most evaluations to answer.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
    /// Only those that were asked for before the one with this id: the last one of the list before.
    before: Option<String>,
}

/// The newest evaluations.
#[utoipa::path(
    get, path = PATH, tag = "evaluations", operation_id = "list_evaluations", params(Page),
    responses((status = 200, description = "The newest first.", body = EvaluationList), NoEvaluation)
)]
async fn list(State(app): State<Arc<App>>, uri: Uri) -> Result<Json<EvaluationList>, ApiError> {
    let evaluations = app.evaluations()?;
    let Query(Page { limit, before }) =
        Query::try_from_uri(&uri).map_err(|error| ApiError::bad_request(error.body_text()))?;
    let (most, usual) = LIST;
    let limit = limit.unwrap_or(usual);
    if !(1..=most).contains(&limit) {
        return Err(ApiError::bad_request(format!("'limit' is not between 1 and {most}")));
    }
    let evaluations = blocking(move || evaluations.list(before.as_deref(), limit)).await?;
    Ok(Json(EvaluationList { evaluations }))
}

/// One evaluation.
#[utoipa::path(
    get, path = "/v1/evaluations/{id}", tag = "evaluations", operation_id = "show_evaluation",
    params(("id" = String, Path, description = "Id of the evaluation")),
    responses((status = 200, description = "The evaluation.", body = Evaluation), NoEvaluation)
)]
async fn one(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Evaluation>, ApiError> {
    let evaluations = app.evaluations()?;
    blocking(move || evaluations.get(&id)).await?.map(Json).ok_or_else(no_evaluation)
}

/// Ends an evaluation, if it has not ended, and removes it with everything that belongs to it.
#[utoipa::path(
    delete, path = "/v1/evaluations/{id}", tag = "evaluations", operation_id = "delete_evaluation",
    params(("id" = String, Path, description = "Id of the evaluation")),
    responses((status = 204, description = "It is gone."), NoEvaluation)
)]
async fn remove(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    let evaluations = app.evaluations()?;
    let is_there = blocking(move || evaluations.remove(&id)).await?;
    if is_there { Ok(StatusCode::NO_CONTENT) } else { Err(no_evaluation()) }
}

/// Ends an evaluation that waits or runs, and removes its set. One that has ended stays as it is.
#[utoipa::path(
    post, path = "/v1/evaluations/{id}/cancel", tag = "evaluations", operation_id = "cancel_evaluation",
    params(("id" = String, Path, description = "Id of the evaluation")),
    responses((status = 200, description = "The evaluation.", body = Evaluation), NoEvaluation)
)]
async fn cancel(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Evaluation>, ApiError> {
    let evaluations = app.evaluations()?;
    blocking(move || evaluations.cancel(&id)).await?.map(Json).ok_or_else(no_evaluation)
}

/// Begins an interrupted evaluation again. Any other stays as it is.
#[utoipa::path(
    post, path = "/v1/evaluations/{id}/restart", tag = "evaluations", operation_id = "restart_evaluation",
    params(("id" = String, Path, description = "Id of the evaluation")),
    responses((status = 200, description = "The evaluation.", body = Evaluation), NoEvaluation)
)]
async fn restart(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Evaluation>, ApiError> {
    let evaluations = app.evaluations()?;
    blocking(move || evaluations.restart(&id)).await?.map(Json).ok_or_else(no_evaluation)
}

/// How far an evaluation is, as it goes on.
///
/// Each event is the evaluation as JSON; the first comes at once, the last when it has ended.
#[utoipa::path(
    get, path = "/v1/evaluations/{id}/events", tag = "evaluations", operation_id = "watch_evaluation",
    params(("id" = String, Path, description = "Id of the evaluation")),
    responses(
        (status = 200, description = "Server-sent events.", body = String, content_type = "text/event-stream"),
        NoEvaluation
    )
)]
async fn events(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let evaluations = app.evaluations()?;
    let changes = evaluations.watch();
    let now = {
        let (evaluations, id) = (Arc::clone(&evaluations), id.clone());
        blocking(move || evaluations.get(&id)).await?.ok_or_else(no_evaluation)?
    };
    let first = stream::iter([now.clone()]);
    let later = stream::unfold(Watch { evaluations, changes, last: now }, Watch::next);
    let event = |evaluation: Evaluation| {
        // What is made of strings and numbers is always JSON.
        Ok(Event::default().json_data(evaluation).unwrap_or_default())
    };
    Ok(Sse::new(first.chain(later).map(event)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// An evaluation that somebody watches.
struct Watch {
    evaluations: Arc<Evaluations>,
    changes: watch::Receiver<u64>,
    last: Evaluation,
}

impl Watch {
    /// Waits until it has changed.
    async fn next(mut self) -> Option<(Evaluation, Self)> {
        while !self.last.status.is_over() {
            tokio::time::sleep(PACE).await;
            self.changes.changed().await.ok()?;
            if self.evaluations.is_stopping() {
                return None;
            }
            let (evaluations, id) = (Arc::clone(&self.evaluations), self.last.id.clone());
            // Where it cannot be read, or is gone, there is nothing more to tell.
            let now = blocking(move || evaluations.get(&id)).await.ok()??;
            if now != self.last {
                self.last = now.clone();
                return Some((now, self));
            }
        }
        None
    }
}

/// The report as a page of its own.
///
/// It holds everything that it shows, runs no script and links to nothing outside.
#[utoipa::path(
    get, path = "/v1/evaluations/{id}/report.html", tag = "evaluations", operation_id = "show_report",
    params(("id" = String, Path, description = "Id of the evaluation")),
    responses((status = 200, description = "The page.", body = String, content_type = "text/html"), NoEvaluation)
)]
async fn report_html(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let evaluations = app.evaluations()?;
    let page = finished(evaluations, id, Evaluations::page).await?;
    // The page is made of what somebody sent: a browser treats it as a stranger.
    let policy = format!("{}; frame-ancestors 'self'; sandbox", html::content_security_policy());
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (CONTENT_SECURITY_POLICY, policy),
        (X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (CACHE_CONTROL, "private, no-cache".to_owned()),
    ];
    Ok((headers, page).into_response())
}

/// The report as JSON.
#[utoipa::path(
    get, path = "/v1/evaluations/{id}/report.json", tag = "evaluations", operation_id = "read_report",
    params(("id" = String, Path, description = "Id of the evaluation")),
    responses((status = 200, description = "The report.", body = Object, content_type = "application/json"), NoEvaluation)
)]
async fn report_json(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let evaluations = app.evaluations()?;
    let report = finished(evaluations, id, Evaluations::report).await?;
    Ok(([(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "private, no-cache")], report).into_response())
}

/// What was answered to each row, as a table.
///
/// A cell that a spreadsheet would take for a formula begins with an apostrophe.
#[utoipa::path(
    get, path = "/v1/evaluations/{id}/predictions.csv", tag = "evaluations", operation_id = "read_predictions",
    params(("id" = String, Path, description = "Id of the evaluation")),
    responses((status = 200, description = "The table.", body = String, content_type = "text/csv"), NoEvaluation)
)]
async fn predictions(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let evaluations = app.evaluations()?;
    let file = finished(evaluations, id, Evaluations::predictions).await?;
    let pieces = stream::try_unfold(tokio::fs::File::from_std(file), |mut file| async move {
        let mut piece = vec![0; CHUNK];
        let count = file.read(&mut piece).await?;
        piece.truncate(count);
        Ok::<_, io::Error>((count > 0).then(|| (Bytes::from(piece), file)))
    });
    let headers = [
        (CONTENT_TYPE, "text/csv; charset=utf-8"),
        (CONTENT_DISPOSITION, "attachment; filename=\"predictions.csv\""),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (CACHE_CONTROL, "private, no-cache"),
    ];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// A part of an evaluation that is there once it has succeeded.
async fn finished<T: Send + 'static>(
    evaluations: Arc<Evaluations>,
    id: String,
    part: impl FnOnce(&Evaluations, &str) -> Result<Option<T>, JobsError> + Send + 'static,
) -> Result<T, ApiError> {
    let found = blocking(move || match part(&evaluations, &id)? {
        Some(found) => Ok(Ok(found)),
        None => Ok::<_, JobsError>(Err(evaluations.get(&id)?.map(|evaluation| evaluation.status))),
    });
    found.await?.map_err(|status| match status {
        None => no_evaluation(),
        Some(status) => ApiError::not_found(format!("the evaluation has no report: it is {}", status.name())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_called_as_their_files() {
        for (file, name) in [
            ("utkface.zip", "utkface"),
            ("C:\\sets\\my set.zip", "my set"),
            ("../../etc/passwd", "passwd"),
            ("a.b.zip", "a.b"),
            ("line\nbreak.zip", "linebreak"),
            ("", ""),
        ] {
            assert_eq!(set_name(file), name);
        }
    }
}
