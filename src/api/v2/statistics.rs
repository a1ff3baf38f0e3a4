//! What models have done since they were put to work, in Triton's words.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

use super::error::{Common, NoModel};
use super::{ModelPath, Target};
use crate::api::error::ApiError;
use crate::app::App;
use crate::engine::statistics::{Runs, Tally, Totals};

/// What models have done.
#[derive(Serialize, ToSchema)]
pub(super) struct ModelStatistics {
    model_stats: Vec<OneModel>,
}

/// What a model has done since it was loaded, whoever asked it, by whatever path.
#[derive(Serialize, ToSchema)]
#[schema(as = StatisticsOfModel)]
struct OneModel {
    /// Its name.
    #[schema(example = "face-attributes")]
    name: String,
    /// Its version.
    #[schema(example = "1")]
    version: String,
    /// When it was asked last, in milliseconds since 1970; 0 when it never was.
    last_inference: u64,
    /// Rows that were computed: faces, or pictures for a detector.
    inference_count: u64,
    /// Runs that succeeded; rows of different requests share them.
    execution_count: u64,
    /// By request.
    inference_stats: ByRequest,
    /// By run.
    batch_stats: Vec<ByBatch>,
}

/// The time of requests. Of a request with several rows, that of the row which was answered last.
#[derive(Serialize, ToSchema)]
#[schema(as = StatisticsByRequest)]
struct ByRequest {
    success: Duration,
    fail: Duration,
    queue: Duration,
    compute_input: Duration,
    compute_infer: Duration,
    compute_output: Duration,
    /// Nothing is cached.
    cache_hit: Duration,
    /// Nothing is cached.
    cache_miss: Duration,
}

/// The time of runs with so many rows.
#[derive(Serialize, ToSchema)]
#[schema(as = StatisticsByBatch)]
struct ByBatch {
    batch_size: usize,
    compute_input: Duration,
    compute_infer: Duration,
    compute_output: Duration,
}

/// How often, and for how long in all.
#[derive(Default, Serialize, ToSchema)]
#[schema(as = StatisticsDuration)]
struct Duration {
    count: u64,
    /// Nanoseconds.
    ns: u64,
}

impl From<Tally> for Duration {
    fn from(Tally { count, time }: Tally) -> Self {
        Self { count, ns: u64::try_from(time.as_nanos()).unwrap_or(u64::MAX) }
    }
}

impl OneModel {
    fn new(app: &App, target: &Target) -> Self {
        let Totals { last, answered, failed, queue, requests, rows, runs, batches } = match target {
            Target::FacePipeline => app.face_pipeline.totals(),
            Target::Network(served) => served.model().totals(),
        };
        let by_batch = |(batch_size, Runs { input, network, output })| ByBatch {
            batch_size,
            compute_input: input.into(),
            compute_infer: network.into(),
            compute_output: output.into(),
        };
        Self {
            name: target.name().to_owned(),
            version: target.version().to_owned(),
            last_inference: last.map_or(0, milliseconds),
            inference_count: rows,
            execution_count: runs,
            inference_stats: ByRequest {
                success: answered.into(),
                fail: failed.into(),
                queue: queue.into(),
                compute_input: requests.input.into(),
                compute_infer: requests.network.into(),
                compute_output: requests.output.into(),
                cache_hit: Duration::default(),
                cache_miss: Duration::default(),
            },
            batch_stats: batches.into_iter().map(by_batch).collect(),
        }
    }
}

fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What every model has done since it was loaded.
#[utoipa::path(
    get, path = "/v2/models/stats", tag = "inference", operation_id = "v2_statistics",
    security((), ("bearer" = []), ("key" = [])),
    responses((status = 200, description = "The models.", body = ModelStatistics), Common)
)]
pub(super) async fn all(State(app): State<Arc<App>>) -> Json<ModelStatistics> {
    let model_stats = Target::all(&app).iter().map(|target| OneModel::new(&app, target)).collect();
    Json(ModelStatistics { model_stats })
}

/// What a model has done since it was loaded.
#[utoipa::path(
    get, path = "/v2/models/{name}/stats", tag = "inference", operation_id = "v2_model_statistics",
    security((), ("bearer" = []), ("key" = [])),
    params(("name" = String, Path, description = "Name of the model", example = "face-attributes")),
    responses((status = 200, description = "The model.", body = ModelStatistics), NoModel)
)]
pub(super) async fn one(
    State(app): State<Arc<App>>,
    Path(path): Path<ModelPath>,
) -> Result<Json<ModelStatistics>, ApiError> {
    let target = Target::find(&app, &path)?;
    Ok(Json(ModelStatistics { model_stats: vec![OneModel::new(&app, &target)] }))
}
