//! The errors that clients see: RFC 9457 problems with a stable `code`. What went wrong inside is logged, never told.

use std::collections::BTreeMap;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use facewise_core::picture::PictureError;
use facewise_evaluation::DatasetError;
use serde::Serialize;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema};

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
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::UnreadableImage => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Overloaded | Self::Deadline => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NotReady => StatusCode::SERVICE_UNAVAILABLE,
            Self::InsufficientStorage => StatusCode::INSUFFICIENT_STORAGE,
        }
    }

    /// One line that is the same for every error of the kind.
    const fn title(self) -> &'static str {
        match self {
            Self::BadRequest => "The request is malformed",
            Self::Forbidden => "The request is not allowed",
            Self::NotFound => "There is no such thing",
            Self::MethodNotAllowed => "The method is not allowed here",
            Self::Timeout => "The body came too slowly",
            Self::PayloadTooLarge => "The body or the picture is too large",
            Self::UnsupportedMediaType => "The body's type is not supported",
            Self::UnreadableImage => "The picture cannot be read",
            Self::Overloaded => "More requests than can be served",
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
}

impl ApiError {
    fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }

    /// The request is malformed; `detail` says where.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(Code::BadRequest, detail)
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

    /// The whole answer, for the request with this id.
    pub fn render(self, request_id: &str) -> Response {
        let Self { code, detail } = self;
        let status = code.status();
        let problem = Problem {
            kind: "about:blank",
            title: code.title(),
            status: status.as_u16(),
            code,
            detail,
            request_id: request_id.to_owned(),
        };
        let mut response = (status, axum::Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
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

/// Documents the errors of an operation, one answer a status.
pub fn responses(codes: &[Code]) -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
    let mut kinds: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in codes {
        kinds.entry(code.status().as_u16()).or_default().push(*code);
    }
    let response = |codes: Vec<Code>| {
        let names: Vec<String> = codes
            .iter()
            .map(|code| {
                let name = serde_json::to_value(code).ok().and_then(|name| name.as_str().map(str::to_owned));
                format!("`{}`: {}", name.unwrap_or_default(), code.title())
            })
            .collect();
        ResponseBuilder::new()
            .description(names.join("; "))
            .content(CONTENT_TYPE, ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build())
            .build()
    };
    kinds.into_iter().map(|(status, codes)| (status.to_string(), RefOr::T(response(codes)))).collect()
}

/// What every operation may answer.
pub struct Common;

impl IntoResponses for Common {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        responses(&[Code::Internal])
    }
}
