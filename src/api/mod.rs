//! The HTTP interface: one file per resource, routes and their description registered together, and the middleware
//! around them.

mod body;
mod docs;
pub mod error;
mod evaluations;
mod health;
mod metrics;
pub mod middleware;
mod models;
mod predict;
mod upload;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;

fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(docs::Base::openapi())
        .routes(routes!(predict::predict))
        .routes(routes!(models::list))
        .routes(routes!(models::one))
        .merge(
            OpenApiRouter::new()
                .routes(routes!(models::load))
                .routes(routes!(models::unload))
                .routes(routes!(models::reload))
                .route_layer(from_fn(middleware::local_only)),
        )
        .merge(evaluations::routes())
        .routes(routes!(health::live))
        .routes(routes!(health::ready))
        .routes(routes!(metrics::metrics))
}

/// The description of the interface, as `openapi/openapi.json` has it.
///
/// # Errors
/// When it cannot be written as JSON, which the tests rule out.
pub fn openapi() -> Result<String, serde_json::Error> {
    routes().into_openapi().to_pretty_json().map(|json| json + "\n")
}

/// Everything that the server answers.
pub fn router(app: &Arc<App>) -> Router {
    let (routes, description) = routes().split_for_parts();
    let routes = routes
        .with_state(Arc::clone(app))
        .merge(docs::routes(description))
        .fallback(middleware::no_route)
        .method_not_allowed_fallback(middleware::no_method);
    middleware::stack(routes, app)
}
