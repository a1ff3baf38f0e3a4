//! The description of the interface, and a page to read it and try it out. Both come with the binary.

use axum::Router;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::error::Problem;
use super::v2::error::InferenceError;

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
        (name = "inference", description = "The Open Inference Protocol, as the clients of Triton and KServe speak it. Errors are `{\"error\": \"…\"}`."),
        (name = "operations", description = "For orchestrators and dashboards")
    ),
    components(schemas(Problem, InferenceError)),
    modifiers(&Keys)
)]
pub(super) struct Base;

/// The two ways to send a key.
struct Keys;

impl Modify for Keys {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("A key, where the server's configuration has some."))
            .build();
        let key = ApiKey::Header(ApiKeyValue::with_description("x-api-key", "The same key in another header."));
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
        components.add_security_scheme("key", SecurityScheme::ApiKey(key));
    }
}

/// `GET /openapi.json`, and the page under `/docs`.
pub(super) fn routes(description: utoipa::openapi::OpenApi) -> Router {
    // The validator's badge is a picture from somebody else's server.
    let config = Config::default().validator_url("none").try_it_out_enabled(true);
    SwaggerUi::new("/docs").url("/openapi.json", description).config(config).into()
}
