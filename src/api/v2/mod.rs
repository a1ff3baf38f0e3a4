//! `/v2`: the Open Inference Protocol over HTTP, as the clients of Triton and `KServe` speak it. Every network is a model of
//! tensors; the whole way of a picture is the model [`face_pipeline::NAME`].

mod compression;
pub(super) mod error;
mod face_pipeline;
mod infer;
mod models;
mod repository;
mod request;
mod response;
mod server;
mod statistics;
mod tensor;

use std::sync::Arc;

use axum::routing::{get, post};
use serde::Deserialize;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::{Object, OpenApi, RefOr, Required, Type};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ApiError;
use crate::app::App;
use crate::repository::Served;

/// Where the paths of a model begin.
const MODEL: &str = "/v2/models/{name}";

/// For everybody: probes.
pub(super) fn probes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(server::live)).routes(routes!(server::ready))
}

/// For those who may ask for predictions.
pub(super) fn predictions() -> OpenApiRouter<Arc<App>> {
    let mut routes = OpenApiRouter::new().routes(routes!(infer::infer));
    describe_versions(routes.get_openapi_mut());
    routes.route(&versioned("/v2/models/{name}/infer"), post(infer::infer))
}

/// For those who may ask for anything.
pub(super) fn descriptions() -> OpenApiRouter<Arc<App>> {
    let mut routes = OpenApiRouter::new()
        .routes(routes!(server::metadata))
        .routes(routes!(statistics::all))
        .routes(routes!(repository::index))
        .routes(routes!(models::metadata))
        .routes(routes!(models::ready))
        .routes(routes!(models::config))
        .routes(routes!(statistics::one));
    describe_versions(routes.get_openapi_mut());
    let index = routes.get_openapi_mut().paths.paths.get_mut("/v2/repository/index");
    index.into_iter().for_each(describe_empty_body);
    routes
        .route(&versioned(MODEL), get(models::metadata))
        .route(&versioned("/v2/models/{name}/ready"), get(models::ready))
        .route(&versioned("/v2/models/{name}/config"), get(models::config))
        .route(&versioned("/v2/models/{name}/stats"), get(statistics::one))
}

/// For those who may change what is served.
pub(super) fn administration() -> OpenApiRouter<Arc<App>> {
    let mut routes = OpenApiRouter::new().routes(routes!(repository::load)).routes(routes!(repository::unload));
    routes.get_openapi_mut().paths.paths.values_mut().for_each(describe_empty_body);
    routes
}

/// The path of a model with the version in it.
fn versioned(path: &str) -> String {
    path.replacen("{name}", "{name}/versions/{version}", 1)
}

/// Describes each path of a model once more, with the version in it.
fn describe_versions(description: &mut OpenApi) {
    let with_version: Vec<(String, PathItem)> = description
        .paths
        .paths
        .iter()
        .filter(|(path, _)| path.starts_with(MODEL))
        .map(|(path, item)| {
            let mut item = item.clone();
            for operation in [&mut item.get, &mut item.post].into_iter().flatten() {
                operation.operation_id = operation.operation_id.take().map(|id| id + "_of_version");
                operation.parameters.get_or_insert_default().push(RefOr::T(version_parameter()));
            }
            (versioned(path), item)
        })
        .collect();
    description.paths.paths.extend(with_version);
}

/// Says of a path that its body may be left away, which the macro that describes it cannot.
fn describe_empty_body(item: &mut PathItem) {
    if let Some(RefOr::T(body)) = item.post.as_mut().and_then(|operation| operation.request_body.as_mut()) {
        body.required = Some(Required::False);
    }
}

fn version_parameter() -> Parameter {
    ParameterBuilder::new()
        .name("version")
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some("Version of the model; only the one that is served is there"))
        .schema(Some(Object::with_type(Type::String)))
        .example(Some("1".into()))
        .build()
}

/// The model that a path names.
#[derive(Deserialize)]
struct ModelPath {
    name: String,
    /// Only where the path has one.
    version: Option<String>,
}

/// What a path can name.
enum Target {
    /// The whole way of a picture.
    FacePipeline,
    /// One network.
    Network(Served),
}

impl Target {
    /// Looks for the model of a path.
    ///
    /// # Errors
    /// When it is not served, or not in this version.
    fn find(app: &App, path: &ModelPath) -> Result<Self, ApiError> {
        let ModelPath { name, version } = path;
        let target = if name == face_pipeline::NAME {
            Self::FacePipeline
        } else {
            match app.repository.models().get(name) {
                Some(served) => Self::Network(served.clone()),
                None => return Err(unknown(app, name)),
            }
        };
        match version {
            Some(version) if version != target.version() => Err(ApiError::not_found(format!(
                "version '{version}' of the model '{name}' is not served: version '{}' is",
                target.version()
            ))),
            _ => Ok(target),
        }
    }

    /// Everything that is served.
    fn all(app: &App) -> Vec<Self> {
        let models = app.repository.models();
        let networks = models.iter().filter(|served| served.model().name() != face_pipeline::NAME);
        networks.cloned().map(Self::Network).chain([Self::FacePipeline]).collect()
    }

    fn name(&self) -> &str {
        match self {
            Self::FacePipeline => face_pipeline::NAME,
            Self::Network(served) => served.model().name(),
        }
    }

    fn version(&self) -> &str {
        match self {
            Self::FacePipeline => face_pipeline::VERSION,
            Self::Network(served) => served.model().version(),
        }
    }

    fn is_ready(&self, app: &App) -> bool {
        match self {
            Self::FacePipeline => {
                let models = app.repository.models();
                let detector = models.detector().is_none_or(|detector| detector.model().is_alive());
                detector && models.default_model().model().is_alive()
            }
            Self::Network(served) => served.model().is_alive(),
        }
    }
}

fn unknown(app: &App, name: &str) -> ApiError {
    let known: Vec<String> = Target::all(app).iter().map(|target| format!("'{}'", target.name())).collect();
    ApiError::not_found(format!("there is no model '{name}'; there are {}", known.join(", ")))
}
