//! The console: a page for people under `/`, and the files of `console/`, which come with the binary. The page speaks to
//! the interface like any other client.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::error::ApiError;

const PERMISSIONS_POLICY: HeaderName = HeaderName::from_static("permissions-policy");

/// Nothing from elsewhere, nothing inline, in nobody's frame. `blob:` are the pictures that a person has chosen. No text is
/// ever read as HTML or as a script.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
                      trusted-types 'none'";

/// Of what browsers have to give, the page uses the camera.
const PERMISSIONS: &str = "camera=(self), clipboard-write=(self), microphone=(), geolocation=()";

macro_rules! files {
    ($($name:literal),*) => {
        [$(($name, include_bytes!(concat!("../../console/", $name)).as_slice())),*]
    };
}

/// The page itself has no name of its own under `/console/`.
const PAGE: &str = "index.html";

const FILES: [(&str, &[u8]); 19] = files![
    "index.html",
    "style.css",
    "icon.svg",
    "theme.js",
    "app.js",
    "api.js",
    "camera.js",
    "charts.js",
    "dom.js",
    "evaluations.js",
    "faces.js",
    "format.js",
    "gallery.js",
    "marks.js",
    "pictures.js",
    "request.js",
    "settings.js",
    "stage.js",
    "words.js"
];

/// The picture that the console offers to strangers: faces of nobody.
const EXAMPLE: (&str, &[u8]) = ("example.jpg", include_bytes!("../../examples/group.jpg"));

/// A file as it is served.
struct File {
    name: &'static str,
    content_type: &'static str,
    etag: String,
    body: Bytes,
}

impl File {
    fn new((name, body): (&'static str, &'static [u8])) -> Self {
        let content_type = match name.rsplit('.').next() {
            Some("html") => "text/html; charset=utf-8",
            Some("css") => "text/css; charset=utf-8",
            Some("js") => "text/javascript; charset=utf-8",
            Some("svg") => "image/svg+xml",
            _ => "image/jpeg",
        };
        let digest = format!("{:x}", Sha256::digest(body));
        Self { name, content_type, etag: format!("\"{digest:.32}\""), body: Bytes::from_static(body) }
    }

    /// Whether the client says that it has just this content.
    fn is_known(&self, headers: &HeaderMap) -> bool {
        let tags = headers.get_all(IF_NONE_MATCH).iter().filter_map(|tags| tags.to_str().ok());
        tags.flat_map(|tags| tags.split(','))
            .map(str::trim)
            .any(|tag| tag == "*" || tag.trim_start_matches("W/") == self.etag)
    }

    fn answer(&self, headers: &HeaderMap) -> Response {
        // Browsers keep the files and ask each time whether they are still the same: after an update nothing is old.
        let kept = [(CACHE_CONTROL, "no-cache"), (ETAG, self.etag.as_str())];
        if self.is_known(headers) {
            return (StatusCode::NOT_MODIFIED, kept).into_response();
        }
        let safe = [
            (CONTENT_TYPE, self.content_type),
            (CONTENT_SECURITY_POLICY, POLICY),
            (PERMISSIONS_POLICY, PERMISSIONS),
            (REFERRER_POLICY, "no-referrer"),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        (kept, safe, self.body.clone()).into_response()
    }
}

/// `GET /`, and what the page loads from `/console/`.
pub(super) fn routes() -> Router {
    let files: Arc<[File]> = FILES.into_iter().chain([EXAMPLE]).map(File::new).collect();
    Router::new().route("/", get(page)).route("/console/{file}", get(file)).with_state(files)
}

async fn page(State(files): State<Arc<[File]>>, headers: HeaderMap) -> Result<Response, ApiError> {
    find(&files, PAGE, &headers)
}

async fn file(
    State(files): State<Arc<[File]>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    if name == PAGE {
        return Err(ApiError::not_found("the console is under /"));
    }
    find(&files, &name, &headers)
}

fn find(files: &[File], name: &str, headers: &HeaderMap) -> Result<Response, ApiError> {
    let file = files.iter().find(|file| file.name == name);
    Ok(file.ok_or_else(|| ApiError::not_found("the console has no such file"))?.answer(headers))
}
