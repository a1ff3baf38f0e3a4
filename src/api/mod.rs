//! The HTTP interface: one file per resource, routes and their description registered together, and the middleware
//! around them.

mod access;
mod batch;
mod body;
mod console;
mod docs;
mod embeddings;
pub mod error;
mod evaluations;
mod form;
mod health;
mod metrics;
pub mod middleware;
mod models;
mod predict;
mod upload;
mod v2;

use std::sync::Arc;

use axum::Router;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::access::guarded;
use crate::access::{Access, Scope};
use crate::app::App;

/// Every route, behind the guard that it needs. What says nothing about anybody's pictures needs none: health, and the
/// description of the interface.
fn routes(access: &Arc<Access>) -> OpenApiRouter<Arc<App>> {
    let predictions = OpenApiRouter::new()
        .routes(routes!(predict::predict))
        .routes(routes!(batch::predict_batch))
        .routes(routes!(embeddings::predict_embeddings))
        .merge(v2::predictions());
    let models =
        OpenApiRouter::new().routes(routes!(models::list)).routes(routes!(models::one)).merge(v2::descriptions());
    let administration = OpenApiRouter::new()
        .routes(routes!(models::load))
        .routes(routes!(models::unload))
        .routes(routes!(models::reload))
        .merge(v2::administration());
    OpenApiRouter::with_openapi(docs::Base::openapi())
        .merge(guarded(predictions, access, Scope::Predict))
        .merge(guarded(evaluations::routes(), access, Scope::Evaluate))
        .merge(guarded(models, access, None))
        .merge(guarded(administration, access, Scope::Admin))
        .merge(v2::probes())
        .routes(routes!(health::live))
        .routes(routes!(health::ready))
}

fn scrape() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(metrics::metrics))
}

/// The description of the interface, as `openapi/openapi.json` has it.
///
/// # Errors
/// When it cannot be written as JSON, which the tests rule out.
pub fn openapi() -> Result<String, serde_json::Error> {
    routes(&Arc::default()).merge(scrape()).into_openapi().to_pretty_json().map(|json| json + "\n")
}

/// Everything that the server answers; the metrics only where they have no address of their own.
pub fn router(app: &Arc<App>) -> Router {
    let mut routes = routes(&app.access);
    if app.settings.http.metrics_listen.is_none() {
        routes = routes.merge(guarded(scrape(), &app.access, None));
    }
    let (routes, description) = routes.split_for_parts();
    let routes = routes.with_state(Arc::clone(app)).merge(docs::routes(description)).merge(console::routes());
    finished(routes, app)
}

/// What is answered on the address for the metrics, health too: whoever scrapes these asks for that.
pub fn metrics_router(app: &Arc<App>) -> Router {
    let probes = OpenApiRouter::new().routes(routes!(health::live)).routes(routes!(health::ready));
    finished(Router::from(scrape().merge(probes)).with_state(Arc::clone(app)), app)
}

fn finished(routes: Router, app: &Arc<App>) -> Router {
    let routes = routes.fallback(middleware::no_route).method_not_allowed_fallback(middleware::no_method);
    middleware::stack(routes, app)
}
