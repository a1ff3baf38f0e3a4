//! One model: its tensors, its readiness, and its configuration as Triton's clients want it.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

use super::error::{NoModel, responses};
use super::tensor::{Datatype, TensorMetadata};
use super::{ModelPath, Target, face_pipeline};
use crate::api::error::{ACCESS, ApiError, Code};
use crate::app::App;
use crate::engine::Model;

/// A model and its tensors.
#[derive(Serialize, ToSchema)]
pub(super) struct ModelMetadata {
    /// Its name.
    #[schema(example = "face-attributes")]
    name: String,
    /// The versions that can be asked for: the one that is served.
    #[schema(example = json!(["1"]))]
    versions: [String; 1],
    /// What runs it: `onnxruntime_onnx`, or `facewise` for the whole way of a picture.
    #[schema(example = "onnxruntime_onnx")]
    platform: &'static str,
    /// What it reads.
    inputs: Vec<TensorMetadata>,
    /// What it answers.
    outputs: Vec<TensorMetadata>,
}

/// Whether a model can answer.
#[derive(Serialize, ToSchema)]
pub(super) struct ModelReady {
    /// Its name.
    #[schema(example = "face-attributes")]
    name: String,
    ready: bool,
}

/// A model's configuration, as far as it means something here.
#[derive(Serialize, ToSchema)]
pub(super) struct ModelConfig {
    /// Its name.
    #[schema(example = "face-attributes")]
    name: String,
    /// What runs it.
    #[schema(example = "onnxruntime_onnx")]
    platform: &'static str,
    /// What runs it.
    #[schema(example = "onnxruntime")]
    backend: &'static str,
    /// Most rows of a request; 0 where a request is no batch: then every dimension is in `dims`.
    #[schema(example = 1024)]
    max_batch_size: usize,
    /// What it reads.
    input: Vec<TensorConfig>,
    /// What it answers.
    output: Vec<TensorConfig>,
    /// How rows of different requests come to share a run.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    dynamic_batching: Option<DynamicBatching>,
    /// What computes.
    instance_group: Vec<InstanceGroup>,
}

/// A tensor without its batch.
#[derive(Serialize, ToSchema)]
pub(super) struct TensorConfig {
    /// Its name.
    #[schema(example = "pixels")]
    name: String,
    /// Type of its elements.
    #[schema(example = "TYPE_FP32")]
    data_type: &'static str,
    /// Its dimensions; −1 is any.
    #[schema(example = json!([3, 64, 64]))]
    dims: Vec<i64>,
}

/// How rows of different requests come to share a run.
#[derive(Serialize, ToSchema)]
pub(super) struct DynamicBatching {
    /// Most rows of a run.
    #[schema(example = json!([32]))]
    preferred_batch_size: [usize; 1],
    /// Longest wait for a run to fill.
    #[schema(example = 0)]
    max_queue_delay_microseconds: u64,
}

/// What computes.
#[derive(Serialize, ToSchema)]
pub(super) struct InstanceGroup {
    /// How many runs at a time.
    #[schema(example = 2)]
    count: usize,
    /// Where.
    #[schema(example = "KIND_CPU")]
    kind: &'static str,
}

/// What runs a network.
const NETWORK_PLATFORM: &str = "onnxruntime_onnx";
/// What runs the whole way of a picture.
const PIPELINE_PLATFORM: &str = "facewise";

impl ModelMetadata {
    fn new(app: &App, target: &Target) -> Self {
        let (platform, inputs, outputs) = match target {
            Target::FacePipeline => {
                let models = app.repository.models();
                (
                    PIPELINE_PLATFORM,
                    vec![face_pipeline::input()],
                    face_pipeline::outputs(models.default_model().tasks()),
                )
            }
            Target::Network(served) => {
                let model = served.model();
                let outputs = model.outputs().iter().map(TensorMetadata::of).collect();
                (NETWORK_PLATFORM, vec![TensorMetadata::of(model.input())], outputs)
            }
        };
        Self { name: target.name().to_owned(), versions: [target.version().to_owned()], platform, inputs, outputs }
    }
}

impl ModelConfig {
    fn new(app: &App, target: &Target) -> Self {
        let ModelMetadata { name, platform, inputs, outputs, .. } = ModelMetadata::new(app, target);
        let configured = |tensors: Vec<TensorMetadata>, batched| {
            tensors.into_iter().map(|tensor| TensorConfig::new(tensor, batched)).collect()
        };
        match target {
            Target::FacePipeline => Self {
                name,
                platform,
                backend: PIPELINE_PLATFORM,
                // Of one picture come any number of faces: the first dimension of what goes in is not that of what comes out.
                max_batch_size: 0,
                input: configured(inputs, false),
                output: configured(outputs, false),
                dynamic_batching: None,
                instance_group: vec![InstanceGroup { count: app.settings.in_progress(), kind: "KIND_CPU" }],
            },
            Target::Network(served) => {
                let model: &Model = served.model();
                let delay = model.max_delay().as_micros();
                let on_gpu = app.settings.inference.device.provider.is_gpu();
                Self {
                    name,
                    platform,
                    backend: "onnxruntime",
                    max_batch_size: model.max_rows(),
                    input: configured(inputs, true),
                    output: configured(outputs, true),
                    dynamic_batching: Some(DynamicBatching {
                        preferred_batch_size: [model.max_batch()],
                        max_queue_delay_microseconds: u64::try_from(delay).unwrap_or(u64::MAX),
                    }),
                    instance_group: vec![InstanceGroup {
                        count: model.worker_count(),
                        kind: if on_gpu { "KIND_GPU" } else { "KIND_CPU" },
                    }],
                }
            }
        }
    }
}

impl TensorConfig {
    fn new(TensorMetadata { name, datatype, shape }: TensorMetadata, batched: bool) -> Self {
        let dims = shape.into_iter().skip(usize::from(batched)).collect();
        Self { name: name.into_owned(), data_type: Datatype::config_name(datatype), dims }
    }
}

/// What the readiness of a model may answer besides.
pub(super) struct NotReady;

impl utoipa::IntoResponses for NotReady {
    fn responses() -> std::collections::BTreeMap<String, utoipa::openapi::RefOr<utoipa::openapi::Response>> {
        let codes = [Code::BadRequest, Code::NotFound, Code::Deadline, Code::Internal, Code::NotReady];
        responses(&[&codes[..], &ACCESS].concat())
    }
}

/// A model's tensors, without which nothing can be asked of it.
#[utoipa::path(
    get, path = "/v2/models/{name}", tag = "inference", operation_id = "v2_model",
    security((), ("bearer" = []), ("key" = [])),
    params(("name" = String, Path, description = "Name of the model", example = "face-attributes")),
    responses((status = 200, description = "The model.", body = ModelMetadata), NoModel)
)]
pub(super) async fn metadata(
    State(app): State<Arc<App>>,
    Path(path): Path<ModelPath>,
) -> Result<Json<ModelMetadata>, ApiError> {
    Target::find(&app, &path).map(|target| Json(ModelMetadata::new(&app, &target)))
}

/// Whether a model can answer.
#[utoipa::path(
    get, path = "/v2/models/{name}/ready", tag = "inference", operation_id = "v2_model_ready",
    security((), ("bearer" = []), ("key" = [])),
    params(("name" = String, Path, description = "Name of the model", example = "face-attributes")),
    responses((status = 200, description = "It can.", body = ModelReady), NotReady)
)]
pub(super) async fn ready(
    State(app): State<Arc<App>>,
    Path(path): Path<ModelPath>,
) -> Result<Json<ModelReady>, ApiError> {
    let target = Target::find(&app, &path)?;
    if target.is_ready(&app) {
        Ok(Json(ModelReady { name: path.name, ready: true }))
    } else {
        Err(ApiError::not_ready(format!("the model '{}' cannot answer", path.name)))
    }
}

/// A model's configuration in Triton's words.
#[utoipa::path(
    get, path = "/v2/models/{name}/config", tag = "inference", operation_id = "v2_model_config",
    security((), ("bearer" = []), ("key" = [])),
    params(("name" = String, Path, description = "Name of the model", example = "face-attributes")),
    responses((status = 200, description = "The configuration.", body = ModelConfig), NoModel)
)]
pub(super) async fn config(
    State(app): State<Arc<App>>,
    Path(path): Path<ModelPath>,
) -> Result<Json<ModelConfig>, ApiError> {
    Target::find(&app, &path).map(|target| Json(ModelConfig::new(&app, &target)))
}
