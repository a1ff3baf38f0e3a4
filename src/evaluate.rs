//! Scoring a labelled set with the same code that answers requests.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use facewise_core::detection::Selection;
use facewise_core::task::Task;
use facewise_evaluation::metrics::{Prediction, Scores};
use facewise_evaluation::report::{DatasetSummary, Geometry, ModelSummary, Report, Skipped, Throughput};
use facewise_evaluation::{Dataset, DatasetError, Filter, Row};
use futures_util::{StreamExt, stream};

use crate::engine::{AttributeModel, Attributes, Detector};
use crate::pipeline::{Pipeline, PipelineError, Whereabouts};

/// Where the face of a row is taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crops {
    /// The row's keypoints; a row without them goes the way of [`Self::Detected`], so that every row counts.
    Keypoints,
    /// The best face that the detector finds; where it finds none, or for want of a detector, the centred square.
    Detected,
    /// The centred square of the picture.
    Square,
}

/// Which rows are scored, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Rows that count.
    pub filter: Filter,
    /// The first so many of them; all without it.
    pub limit: Option<usize>,
    /// Where faces are taken from.
    pub crops: Crops,
    /// Pictures in work at the same time.
    pub parallel: usize,
}

/// Why a set could not be scored.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The filter does not fit the set.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// No row passes the filter.
    #[error("no row of '{dataset}' passes the filter '{filter}'")]
    NoRows {
        /// Name of the set.
        dataset: String,
        /// The filter.
        filter: String,
    },
    /// Faces are to be found, and there is no detector.
    #[error("there is no detector to take the crops from: put one into the models folder, or name it with --detector")]
    NoDetector,
    /// A picture that is readable got no answer.
    #[error("'{path}' got no answer: {source}")]
    Failed {
        /// The picture.
        path: String,
        /// Why.
        source: PipelineError,
    },
}

/// What became of a row.
enum Outcome {
    Answered(Attributes),
    Skipped(String),
}

/// The networks and the way to them.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    /// The way of a picture.
    pub pipeline: &'a Pipeline,
    /// The network that is scored.
    pub model: &'a AttributeModel,
    /// The one that finds the faces, where there is one.
    pub detector: Option<&'a Arc<Detector>>,
}

/// Scores the rows that `plan` chooses; `progress` is told how many are done, of how many, after each.
///
/// Pictures are read, decoded and cropped in parallel, a bounded number at a time; unreadable ones are skipped by name.
///
/// # Errors
/// When no row is chosen, the filter names an unknown column, there is no detector where one is needed, or a network
/// fails.
pub async fn evaluate(
    dataset: &Arc<Dataset>,
    plan: &Plan,
    means: Means<'_>,
    mut progress: impl FnMut(u64, u64),
) -> Result<Report, EvaluateError> {
    if plan.crops == Crops::Detected && means.detector.is_none() {
        return Err(EvaluateError::NoDetector);
    }
    let mut rows = dataset.select(&plan.filter)?;
    rows.truncate(plan.limit.unwrap_or(usize::MAX));
    if rows.is_empty() {
        let (dataset, filter) = (dataset.name().to_owned(), plan.filter.to_string());
        return Err(EvaluateError::NoRows { dataset, filter });
    }

    let started = Instant::now();
    let total = rows.len() as u64;
    let (mut scores, mut skipped) = (Scores::default(), Vec::new());
    let mut outcomes = stream::iter(rows)
        .map(|row| async move { (row, outcome(dataset, row, plan.crops, means).await) })
        .buffered(plan.parallel.max(1));
    let mut done = 0;
    while let Some((row, outcome)) = outcomes.next().await {
        let failed = |source| EvaluateError::Failed { path: row.path.clone(), source };
        match outcome.map_err(failed)? {
            Outcome::Answered(attributes) => scores.add(&row.labels, &prediction(attributes)),
            Outcome::Skipped(reason) => skipped.push(Skipped { path: row.path.clone(), reason }),
        }
        done += 1;
        progress(done, total);
    }

    let (filter, model) = (plan.filter.to_string(), means.model.model());
    Ok(Report {
        dataset: DatasetSummary {
            name: dataset.name().to_owned(),
            rows: total,
            filter: (!filter.is_empty()).then_some(filter),
            skipped,
        },
        model: ModelSummary {
            name: model.name().to_owned(),
            version: model.version().to_owned(),
            sha256: model.sha256().to_owned(),
        },
        detect: match plan.crops {
            Crops::Keypoints => Geometry::Manifest,
            Crops::Detected => Geometry::Crop,
            Crops::Square => Geometry::Square,
        },
        created: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        tasks: scores.finish(),
        throughput: Throughput { images_per_second: total as f64 / started.elapsed().as_secs_f64() },
    })
}

async fn outcome(
    dataset: &Arc<Dataset>,
    row: &Row,
    crops: Crops,
    Means { pipeline, model, detector }: Means<'_>,
) -> Result<Outcome, PipelineError> {
    let reading = {
        let (dataset, row) = (Arc::clone(dataset), row.clone());
        pipeline.cpu().run(move || dataset.read(&row)).await?
    };
    let bytes = match reading {
        Ok(bytes) => bytes,
        Err(error) => return Ok(Outcome::Skipped(error.to_string())),
    };
    let whereabouts = match (crops, row.landmarks, detector) {
        (Crops::Keypoints, Some(landmarks), _) => Whereabouts::Keypoints(landmarks),
        (Crops::Keypoints | Crops::Detected, _, Some(detector)) => {
            Whereabouts::Best(Arc::clone(detector), Selection::default())
        }
        _ => Whereabouts::CentredSquare,
    };
    match pipeline.analyse(bytes.into(), whereabouts, model, model.tasks()).await {
        Ok(analysis) => match analysis.faces.into_iter().next() {
            Some(face) => Ok(Outcome::Answered(face.attributes)),
            None => Ok(Outcome::Skipped("no face was looked at".into())),
        },
        Err(PipelineError::Picture(error)) => Ok(Outcome::Skipped(error.to_string())),
        Err(error) => Err(error),
    }
}

fn prediction(attributes: Attributes) -> Prediction {
    let mut prediction = Prediction { age: attributes.age, ..Prediction::default() };
    for answer in attributes.labels {
        match answer.task() {
            Task::Gender => prediction.gender = Some(answer),
            Task::Smile => prediction.smile = Some(answer),
            Task::Emotion => prediction.emotion = Some(answer),
            Task::Age => {}
        }
    }
    prediction
}
