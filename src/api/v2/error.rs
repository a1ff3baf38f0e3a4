//! Errors as the protocol has them: `{"error": "…"}`, with the statuses and headers of all others.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;
use utoipa::openapi::{ContentBuilder, Ref, RefOr};

use crate::api::error::{self, ACCESS, ApiError, Code};

/// The body of an error under `/v2`.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct InferenceError {
    /// What is wrong with this request.
    #[schema(example = "there is no model 'nobody'; there are 'face-attributes', 'face-detector', 'face-pipeline'")]
    error: String,
}

/// Whether a path belongs to the protocol, also where there is nothing under it.
pub(in crate::api) fn is_ours(path: &str) -> bool {
    path == "/v2" || path.starts_with("/v2/")
}

/// The whole answer: status and headers are those of all errors, the body is the protocol's.
pub(in crate::api) fn render(error: ApiError, request_id: &str) -> Response {
    let body = json!({ "error": error.detail() }).to_string();
    let mut response = error.render(request_id);
    *response.body_mut() = Body::from(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Documents the errors of an operation, one answer a status.
pub(super) fn responses(codes: &[Code]) -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
    let mut responses = error::responses(codes);
    for response in responses.values_mut() {
        if let RefOr::T(response) = response {
            let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("InferenceError"))).build();
            response.content.clear();
            response.content.insert("application/json".to_owned(), content.into());
        }
    }
    responses
}

/// What a probe may answer besides.
pub(super) struct NotLive;

impl utoipa::IntoResponses for NotLive {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        responses(&[Code::BadRequest, Code::Deadline, Code::Internal])
    }
}

/// What readiness may answer besides.
pub(super) struct NotReady;

impl utoipa::IntoResponses for NotReady {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        responses(&[Code::BadRequest, Code::Deadline, Code::Internal, Code::NotReady])
    }
}

/// What every operation may answer for which a key is needed where there are some.
pub(super) struct Common;

impl utoipa::IntoResponses for Common {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        responses(&[&[Code::BadRequest, Code::Deadline, Code::Internal][..], &ACCESS].concat())
    }
}

/// What asking about one model may answer besides.
pub(super) struct NoModel;

impl utoipa::IntoResponses for NoModel {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        responses(&[&[Code::BadRequest, Code::NotFound, Code::Deadline, Code::Internal][..], &ACCESS].concat())
    }
}
