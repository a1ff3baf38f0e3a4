//! What every request passes, assembled in one place.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{self, ACCEPT, ALLOW, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::{Next, from_fn, from_fn_with_state, map_request_with_state};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use prometheus::IntGauge;
use tower_http::cors::{AllowOrigin, CorsLayer};
use tracing::Instrument;
use tracing::field::Empty;
use ulid::Ulid;

use super::access::X_API_KEY;
use super::error::ApiError;
use super::{body, evaluations, v2};
use crate::app::App;
use crate::config::Origins;
use crate::telemetry;

/// The header that names a request, in both directions.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The header by which a client gives its request less time than the server would, in milliseconds.
pub const REQUEST_TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout-ms");

/// The timings of an answer once more, where browsers and proxies look for them (W3C Server Timing).
pub(super) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// The most that it says: a day. The description of the interface has it too.
const MOST_MILLISECONDS: u64 = 86_400_000;

/// The other end of a request's connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// When a request's answer is worth nothing any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(pub(super) Instant);

/// Label of a method or path that is none of ours.
const OTHER: &str = "other";

/// Lays the stack around the routes. From the outside in:
///
/// 1. [`body::lingering`] lets every client come to read its answer, however early it was known.
/// 2. [`observe`] sees every answer there is, whoever made it, and knows the request's id: it counts, logs, and gives
///    errors their body.
/// 3. [`cross_origin`] answers the question that browsers ask beforehand, and marks every answer, errors too, as readable for
///    the pages that may; it is left out where no origin is allowed.
/// 4. [`shield`] turns a panic of all that is inside into an answer, which [`observe`] then counts.
/// 5. [`time_limit`] lies inside both, so that a request that took too long is counted like any other.
///
/// Who may come to a route at all is asked before the route itself: [`super::access`].
pub(super) fn stack(routes: Router, app: &Arc<App>) -> Router {
    let routes = routes.layer(from_fn_with_state(Arc::clone(app), time_limit)).layer(from_fn(shield));
    let routes = match &app.settings.http.cors_origins {
        Some(origins) => routes.layer(cross_origin(origins)),
        None => routes,
    };
    let routes = routes.layer(from_fn_with_state(Arc::clone(app), observe));
    routes.layer(map_request_with_state(Arc::clone(app), body::lingering))
}

/// Which pages of other origins may read the answers. Cookies are no matter: there are none.
fn cross_origin(origins: &Origins) -> CorsLayer {
    let allowed = match origins {
        Origins::Any => AllowOrigin::any(),
        Origins::These(list) => AllowOrigin::list(list.iter().cloned()),
    };
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers([ACCEPT, AUTHORIZATION, CONTENT_TYPE, X_API_KEY, REQUEST_ID, REQUEST_TIMEOUT])
        .expose_headers([ALLOW, LOCATION, RETRY_AFTER, REQUEST_ID, SERVER_TIMING])
}

/// The id of a request: the client's own, if it is fit for a log line, else a new one.
#[derive(Clone, Debug)]
pub(super) struct RequestId(pub(super) Arc<str>);

impl RequestId {
    fn of(headers: &HeaderMap) -> Self {
        let fit = |id: &&str| {
            (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:/+=".contains(&b))
        };
        match headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).filter(fit) {
            Some(id) => Self(id.into()),
            None => Self(Ulid::generate().to_string().into()),
        }
    }
}

/// Counts a request as in flight as long as it lives, also when its client goes away.
struct InFlight(IntGauge);

impl InFlight {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Names, counts, times and logs a request, and gives errors their body.
async fn observe(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let metrics = &app.metrics;
    let _in_flight = InFlight::new(&metrics.http_requests_in_flight);

    let id = RequestId::of(request.headers());
    let method = method_label(request.method());
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map_or(OTHER, MatchedPath::as_str);
    request.extensions_mut().insert(id.clone());
    let render = if v2::error::is_ours(request.uri().path()) { v2::error::render } else { ApiError::render };

    let span = tracing::info_span!("request", id = %id.0, method, route, key = Empty);
    telemetry::join_trace(&span, request.headers());
    span.in_scope(|| tracing::debug!("received"));
    let response = next.run(request).instrument(span.clone()).await;
    let response = complete(response, &app, &id, render);

    let (status, elapsed) = (response.status(), started.elapsed());
    metrics.http_requests.with_label_values(&[method, route, status.as_str()]).inc();
    metrics.http_request_duration.with_label_values(&[route]).observe(elapsed.as_secs_f64());
    let _entered = span.enter();
    let (status, ms) = (status.as_u16(), elapsed.as_micros() as f64 / 1e3);
    if is_probe(route) {
        tracing::debug!(status, ms, "answered");
    } else {
        tracing::info!(status, ms, "answered");
    }
    response
}

/// Gives an error its body and every answer the request's id; the last answers close their connections.
fn complete(mut response: Response, app: &App, id: &RequestId, render: fn(ApiError, &str) -> Response) -> Response {
    let status = response.status();
    if status.is_client_error() || status.is_server_error() {
        let error = response.extensions_mut().remove::<ApiError>().unwrap_or_else(|| ApiError::from_status(status));
        if let Some(reason) = error.code().rejection() {
            app.metrics.rejected.with_label_values(&[reason]).inc();
        }
        let headers = std::mem::take(response.headers_mut());
        response = render(error, &id.0);
        // Of the bare answer, what is not about its body stays: which methods are allowed, which pages may read it.
        let about_the_body = [CONTENT_TYPE, CONTENT_LENGTH];
        let names = headers.keys().filter(|name| !about_the_body.contains(name));
        for (name, value) in names.flat_map(|name| headers.get_all(name).iter().map(move |value| (name, value))) {
            response.headers_mut().append(name, value.clone());
        }
    }
    if let Ok(id) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    if app.is_stopping() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A panic ends its request, not the server; what it said has gone to the log.
async fn shield(request: Request, next: Next) -> Response {
    AssertUnwindSafe(next.run(request))
        .catch_unwind()
        .await
        .unwrap_or_else(|_| ApiError::internal(&"a handler panicked").into_response())
}

/// Drops a request that takes too long, and with it all its work that waits somewhere.
async fn time_limit(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let most = match request.extensions().get::<MatchedPath>().map(MatchedPath::as_str) {
        Some(evaluations::PATH) if request.method() == Method::POST => app.settings.evaluations.dataset_timeout.into(),
        _ => app.settings.http.request_timeout(),
    };
    let limit = match own_limit(request.headers()) {
        Ok(own) => own.map_or(most, |own| own.min(most)),
        Err(error) => return error.into_response(),
    };
    let deadline = tokio::time::Instant::now() + limit;
    request.extensions_mut().insert(Deadline(deadline.into_std()));
    tokio::time::timeout_at(deadline, next.run(request)).await.unwrap_or_else(|_| ApiError::deadline().into_response())
}

/// The time that a client gives its request, if it says so.
fn own_limit(headers: &HeaderMap) -> Result<Option<Duration>, ApiError> {
    let Some(value) = headers.get(REQUEST_TIMEOUT) else { return Ok(None) };
    match value.to_str().ok().and_then(|value| value.parse::<u64>().ok()) {
        Some(ms) if (1..=MOST_MILLISECONDS).contains(&ms) => Ok(Some(Duration::from_millis(ms))),
        _ => Err(ApiError::bad_request(format!(
            "the header '{REQUEST_TIMEOUT}' is no number of milliseconds from 1 to {MOST_MILLISECONDS}"
        ))),
    }
}

/// The method as a label: clients may invent methods, and labels must stay few.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => OTHER,
    }
}

/// Requests that machines repeat all day, and that nobody wants to read about.
fn is_probe(route: &str) -> bool {
    route.starts_with("/health/") || route.starts_with("/v2/health/") || route == "/metrics"
}

/// The answer where there is no route.
pub(super) async fn no_route() -> ApiError {
    ApiError::not_found("there is nothing under this path; GET /openapi.json lists what there is")
}

/// The answer where the route does not have the method.
pub(super) async fn no_method() -> ApiError {
    ApiError::method_not_allowed()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use axum::http::StatusCode;

    use super::*;

    #[test]
    fn only_ids_fit_for_a_log_line_are_kept() {
        let id =
            |value: &str| RequestId::of(&HeaderMap::from_iter([(REQUEST_ID, HeaderValue::from_str(value).unwrap())])).0;
        assert_eq!(&*id("client-7.a_B"), "client-7.a_B");
        for unfit in ["", "two words", "<b>", &"x".repeat(129)] {
            assert_eq!(id(unfit).len(), 26, "a ULID instead of '{unfit}'");
        }
        assert_ne!(RequestId::of(&HeaderMap::new()).0, RequestId::of(&HeaderMap::new()).0);
    }

    #[test]
    fn a_client_may_give_itself_less_time() {
        let limit =
            |value: &str| own_limit(&HeaderMap::from_iter([(REQUEST_TIMEOUT, HeaderValue::from_str(value).unwrap())]));
        assert_eq!(limit("250").unwrap(), Some(Duration::from_millis(250)));
        assert_eq!(own_limit(&HeaderMap::new()).unwrap(), None);
        for wrong in ["0", "-1", "1.5", "soon", "86400001", "99999999999999999999999"] {
            assert_eq!(limit(wrong).unwrap_err().code().status(), StatusCode::BAD_REQUEST, "{wrong}");
        }
    }

    #[test]
    fn invented_methods_are_other() {
        assert_eq!(method_label(&Method::POST), "POST");
        assert_eq!(method_label(&Method::from_bytes(b"BREW").unwrap()), "other");
    }

    #[tokio::test]
    async fn a_panic_becomes_an_answer() {
        use axum::body::Body;
        use axum::routing::get;

        async fn panics() {
            panic!("as the test wants it");
        }
        let routes = Router::new().route("/", get(panics)).layer(from_fn(shield));
        let request = Request::builder().uri("/").body(Body::empty()).unwrap();
        let response = tower::ServiceExt::oneshot(routes, request).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(response.extensions().get::<ApiError>().is_some());
    }
}
