//! The description of the interface, and a page to read it and try it out. Both come with the binary.

use axum::Router;
use utoipa::OpenApi;
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::error::Problem;

/// What is not said by a single operation.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "facewise",
        description = "Age, gender, smile and emotion from faces. Errors are RFC 9457 problems with a stable `code`; every \
                       answer carries `x-request-id`.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    tags(
        (name = "predictions", description = "Pictures in, attributes out"),
        (name = "evaluations", description = "Labelled sets in, reports out"),
        (name = "models", description = "What is being served"),
        (name = "operations", description = "For orchestrators and dashboards")
    ),
    components(schemas(Problem))
)]
pub(super) struct Base;

/// `GET /openapi.json`, and the page under `/docs`.
pub(super) fn routes(description: utoipa::openapi::OpenApi) -> Router {
    // The validator's badge is a picture from somebody else's server.
    let config = Config::default().validator_url("none").try_it_out_enabled(true);
    SwaggerUi::new("/docs").url("/openapi.json", description).config(config).into()
}
