//! The errors that clients see: RFC 9457 problems with a stable `code`. What went wrong inside is logged, never told.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use facewise_core::picture::PictureError;
use facewise_evaluation::DatasetError;
use serde::Serialize;
use serde_json::json;
use utoipa::openapi::header::Header;
use utoipa::openapi::{ContentBuilder, Object, Ref, RefOr, ResponseBuilder, Type};
use utoipa::{IntoResponses, ToSchema};

use crate::access::Denied;
use crate::cpu::Panicked;
use crate::engine::EngineError;
use crate::evaluate::EvaluateError;
use crate::jobs::{JobsError, SpoolError};
use crate::line::TooLate;
use crate::pipeline::PipelineError;
use crate::repository::RepositoryError;

/// Content type of a problem.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// The kinds of errors, each with one status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request is malformed.
    BadRequest,
    /// The request needs a key, and has none that is known here.
    Unauthorized,
    /// Not from there, or not with these rights.
    Forbidden,
    /// There is nothing under this path or name.
    NotFound,
    /// The path exists, but not for this method.
    MethodNotAllowed,
    /// The body came too slowly.
    Timeout,
    /// The body, or the picture in it, is larger than allowed.
    PayloadTooLarge,
    /// Bodies of this type are not read here.
    UnsupportedMediaType,
    /// The body is no picture that can be read.
    UnreadableImage,
    /// More requests than can be served.
    Overloaded,
    /// More requests than the key allows.
    RateLimited,
    /// The request waited longer than a request may take.
    Deadline,
    /// Something went wrong inside.
    Internal,
    /// The server cannot answer yet, or not any more.
    NotReady,
    /// The server's disk is full.
    InsufficientStorage,
}

impl Code {
    /// The status that goes with it.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::UnreadableImage => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Overloaded | Self::RateLimited | Self::Deadline => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NotReady => StatusCode::SERVICE_UNAVAILABLE,
            Self::InsufficientStorage => StatusCode::INSUFFICIENT_STORAGE,
        }
    }

    /// One line that is the same for every error of the kind.
    const fn title(self) -> &'static str {
        match self {
            Self::BadRequest => "The request is malformed",
            Self::Unauthorized => "The request needs a key",
            Self::Forbidden => "The request is not allowed",
            Self::NotFound => "There is no such thing",
            Self::MethodNotAllowed => "The method is not allowed here",
            Self::Timeout => "The body came too slowly",
            Self::PayloadTooLarge => "The body or the picture is too large",
            Self::UnsupportedMediaType => "The body's type is not supported",
            Self::UnreadableImage => "The picture cannot be read",
            Self::Overloaded => "More requests than can be served",
            Self::RateLimited => "More requests than the key allows",
            Self::Deadline => "The request waited too long",
            Self::Internal => "Something went wrong inside",
            Self::NotReady => "The server is not ready",
            Self::InsufficientStorage => "The server's disk is full",
        }
    }

    /// The word that metrics count a rejection under, for the kinds that turn good requests away.
    pub const fn rejection(self) -> Option<&'static str> {
        match self {
            Self::Overloaded => Some("overloaded"),
            Self::RateLimited => Some("rate_limited"),
            Self::Deadline => Some("deadline"),
            Self::Timeout => Some("timeout"),
            Self::PayloadTooLarge => Some("payload_too_large"),
            Self::NotReady => Some("not_ready"),
            Self::InsufficientStorage => Some("insufficient_storage"),
            _ => None,
        }
    }

    /// The kind that a bare status stands for.
    fn of(status: StatusCode) -> Self {
        match status {
            StatusCode::UNAUTHORIZED => Self::Unauthorized,
            StatusCode::FORBIDDEN => Self::Forbidden,
            StatusCode::NOT_FOUND => Self::NotFound,
            StatusCode::METHOD_NOT_ALLOWED => Self::MethodNotAllowed,
            StatusCode::REQUEST_TIMEOUT => Self::Timeout,
            StatusCode::PAYLOAD_TOO_LARGE => Self::PayloadTooLarge,
            StatusCode::UNSUPPORTED_MEDIA_TYPE => Self::UnsupportedMediaType,
            status if status.is_client_error() => Self::BadRequest,
            _ => Self::Internal,
        }
    }
}

/// The body of an error, RFC 9457.
#[derive(Debug, Serialize, ToSchema)]
pub struct Problem {
    /// Always `about:blank`: `code` says which kind it is.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The kind in words.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// The kind, for programs.
    code: Code,
    /// What is wrong with this request, for people.
    detail: String,
    /// The answer's `x-request-id`, for whoever reads the log.
    request_id: String,
}

/// An error on its way to the client. It becomes a body where the request's id is known, in the middleware.
#[derive(Clone, Debug)]
pub struct ApiError {
    code: Code,
    detail: String,
    /// When to come again, where that is known better than "soon".
    retry_after: Option<Duration>,
}

impl ApiError {
    fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), retry_after: None }
    }

    /// The request is malformed; `detail` says where.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(Code::BadRequest, detail)
    }

    /// The request needs a key, and has none that is known here.
    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(Code::Unauthorized, detail)
    }

    /// Not from there, or not with these rights.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(Code::Forbidden, detail)
    }

    /// There is nothing under this path or name.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(Code::NotFound, detail)
    }

    /// The path exists, but not for this method.
    pub fn method_not_allowed() -> Self {
        Self::new(
            Code::MethodNotAllowed,
            "the path exists, but not for this method; the header `allow` lists those it has",
        )
    }

    /// The body came too slowly.
    pub fn timeout(detail: impl Into<String>) -> Self {
        Self::new(Code::Timeout, detail)
    }

    /// The body or the picture is too large; `detail` names the setting.
    pub fn too_large(detail: impl Into<String>) -> Self {
        Self::new(Code::PayloadTooLarge, detail)
    }

    /// Bodies of this type are not read here.
    pub fn unsupported_media_type(detail: impl Into<String>) -> Self {
        Self::new(Code::UnsupportedMediaType, detail)
    }

    /// The body is no picture that can be read.
    pub fn unreadable_image(detail: impl Into<String>) -> Self {
        Self::new(Code::UnreadableImage, detail)
    }

    /// More requests than can be served.
    pub fn overloaded() -> Self {
        Self::new(Code::Overloaded, "more requests are in progress than can be served: try again later")
    }

    /// More requests than the key allows; the next one after `wait`.
    pub fn rate_limited(detail: impl Into<String>, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..Self::new(Code::RateLimited, detail) }
    }

    /// The request waited longer than a request may take.
    pub fn deadline() -> Self {
        Self::new(Code::Deadline, "the request was not answered in the time that a request may take: try again later")
    }

    /// Something went wrong inside: `cause` goes to the log only.
    pub fn internal(cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(%cause, "internal error");
        Self::new(Code::Internal, "the server failed; its log says more under the request's id")
    }

    /// The server cannot answer yet, or not any more.
    pub fn not_ready(detail: impl Into<String>) -> Self {
        Self::new(Code::NotReady, detail)
    }

    /// The server's disk is full.
    pub fn insufficient_storage() -> Self {
        Self::new(Code::InsufficientStorage, "the server has no room for this set: try again when there is more")
    }

    /// The error that a framework's bare status stands for.
    pub fn from_status(status: StatusCode) -> Self {
        let code = Code::of(status);
        Self::new(code, code.title().to_lowercase())
    }

    /// Its kind.
    pub const fn code(&self) -> Code {
        self.code
    }

    /// What is wrong with the request, for people.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Says of which part of the request it speaks.
    #[must_use]
    pub fn about(self, part: impl std::fmt::Display) -> Self {
        Self { detail: format!("{part}: {}", self.detail), ..self }
    }

    /// What its body says, to the request with this id.
    pub fn problem(self, request_id: &str) -> Problem {
        let Self { code, detail, .. } = self;
        Problem {
            kind: "about:blank",
            title: code.title(),
            status: code.status().as_u16(),
            code,
            detail,
            request_id: request_id.to_owned(),
        }
    }

    /// The whole answer, for the request with this id.
    pub fn render(self, request_id: &str) -> Response {
        let (status, wait) = (self.code.status(), self.retry_after);
        let mut response = (status, axum::Json(self.problem(request_id))).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                let seconds = wait.map_or(1, |wait| wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1);
                headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"facewise\""));
            }
            _ => {}
        }
        response
    }
}

impl IntoResponse for ApiError {
    /// Status only; the middleware puts the body in, with the id of the request.
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<PictureError> for ApiError {
    fn from(error: PictureError) -> Self {
        match error {
            PictureError::TooManyPixels { .. } => Self::too_large(format!("{error} (--max-megapixels)")),
            _ => Self::unreadable_image(error.to_string()),
        }
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Overloaded => Self::overloaded(),
            EngineError::Stopped => Self::not_ready("the model is being stopped: try again later"),
            EngineError::Backend(_) | EngineError::Decode(_) | EngineError::Detection(_) => Self::internal(&error),
        }
    }
}

impl From<RepositoryError> for ApiError {
    /// Whoever may load models may read what is wrong with them.
    fn from(error: RepositoryError) -> Self {
        match error {
            RepositoryError::Unknown { .. } | RepositoryError::NotServed(_) => Self::not_found(error.to_string()),
            error => Self::bad_request(error.to_string()),
        }
    }
}

impl From<Denied<'_>> for ApiError {
    fn from(denied: Denied<'_>) -> Self {
        match denied {
            Denied::Missing | Denied::Unknown => Self::unauthorized(denied.to_string()),
            Denied::OutOfScope { .. } => Self::forbidden(denied.to_string()),
            Denied::TooMany { wait, .. } => Self::rate_limited(denied.to_string(), wait),
        }
    }
}

impl From<JobsError> for ApiError {
    fn from(error: JobsError) -> Self {
        if error.is_storage_full() { Self::insufficient_storage() } else { Self::internal(&error) }
    }
}

impl From<SpoolError> for ApiError {
    /// What is wrong with a set is told to whoever sent it, but not where it lies.
    fn from(error: SpoolError) -> Self {
        match error {
            error if error.is_storage_full() => Self::insufficient_storage(),
            error if error.is_too_large() => Self::too_large(error.to_string()),
            SpoolError::Jobs(error) => error.into(),
            SpoolError::Set(EvaluateError::Dataset(DatasetError::Open { .. })) => Self::internal(&error),
            SpoolError::Gone => Self::not_found(error.to_string()),
            SpoolError::Filter(_) | SpoolError::Set(_) => Self::bad_request(error.to_string()),
        }
    }
}

impl From<TooLate> for ApiError {
    fn from(_: TooLate) -> Self {
        Self::deadline()
    }
}

impl From<Panicked> for ApiError {
    fn from(panicked: Panicked) -> Self {
        Self::internal(&panicked)
    }
}

impl From<PipelineError> for ApiError {
    fn from(error: PipelineError) -> Self {
        match error {
            PipelineError::Picture(error) => error.into(),
            PipelineError::Engine(error) => error.into(),
            PipelineError::Panicked(error) => error.into(),
        }
    }
}

/// The header that comes with the errors of a status: its name, what it says, and as what.
fn header_of(status: u16) -> Option<(&'static str, &'static str, Type)> {
    match status {
        401 => Some(("www-authenticate", "How a key is sent.", Type::String)),
        429 | 503 => Some(("retry-after", "Seconds after which to try again.", Type::Integer)),
        _ => None,
    }
}

/// The errors of work that a body is sent for and that waits for its turn.
pub const WORK: [Code; 8] = [
    Code::BadRequest,
    Code::NotFound,
    Code::Timeout,
    Code::PayloadTooLarge,
    Code::UnsupportedMediaType,
    Code::Overloaded,
    Code::Deadline,
    Code::Internal,
];

/// The errors of whoever asks without a key, with another one, or too often: where keys are needed.
pub const ACCESS: [Code; 3] = [Code::Unauthorized, Code::Forbidden, Code::RateLimited];

/// Documents the errors of an operation, one answer a status.
pub fn responses(codes: &[Code]) -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
    let mut kinds: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in codes {
        kinds.entry(code.status().as_u16()).or_default().push(*code);
    }
    let response = |(status, codes): (u16, Vec<Code>)| {
        let name = |code: &Code| serde_json::to_value(code).unwrap_or_default();
        let names: Vec<String> = codes
            .iter()
            .map(|code| format!("`{}`: {}", name(code).as_str().unwrap_or_default(), code.title()))
            .collect();
        let example = codes.first().map(|code| {
            json!({
                "type": "about:blank", "title": code.title(), "status": status, "code": name(code),
                "detail": "what is wrong with this request", "request_id": "01J9ZQ4T0D5N3W8V7K2M6R1XYB",
            })
        });
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).example(example).build();
        let mut response = ResponseBuilder::new().description(names.join("; ")).content(CONTENT_TYPE, content);
        if let Some((name, what, kind)) = header_of(status) {
            let mut header = Header::new(Object::with_type(kind));
            header.description = Some(what.to_owned());
            response = response.header(name, header);
        }
        (status.to_string(), RefOr::T(response.build()))
    };
    kinds.into_iter().map(response).collect()
}

/// What every operation may answer.
pub struct Common;

impl IntoResponses for Common {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        responses(&[Code::Internal])
    }
}
