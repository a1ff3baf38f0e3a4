//! Scoring a labelled set with the same code that answers requests.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use facewise_core::crop::crop;
use facewise_core::detection::Selection;
use facewise_core::geometry::Template;
use facewise_core::picture::{self, Limits};
use facewise_core::task::Task;
use facewise_evaluation::groups::{Columns, Gathered};
use facewise_evaluation::html::Thumbnails;
use facewise_evaluation::metrics::{AgeReading, Prediction};
use facewise_evaluation::predictions::{self, Outcome, Writer};
use facewise_evaluation::report::{DatasetSummary, Geometry, ModelSummary, Report, Skipped, Throughput};
use facewise_evaluation::worst::WorstErrors;
use facewise_evaluation::{Dataset, DatasetError, Filter, Row};
use futures_util::{StreamExt, stream};
use image::codecs::jpeg::JpegEncoder;

use crate::engine::{AttributeModel, Attributes, Detector, Model};
use crate::pipeline::{Pipeline, PipelineError, Whereabouts};

/// Side of a thumbnail in pixels, and its quality as JPEG.
const THUMBNAIL: (u32, u8) = (144, 80);

/// Rows after which what was written of them is handed over to the system: so many are done again after a sudden end.
const ROWS_PER_FLUSH: u64 = 64;

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
    /// Columns whose values divide them into groups.
    pub group_by: Vec<String>,
    /// Where faces are taken from.
    pub crops: Crops,
    /// Whether small pictures are made of the rows that are answered worst.
    pub thumbnails: bool,
    /// Pictures in work at the same time.
    pub parallel: usize,
}

/// Why a set could not be scored.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The filter or a grouping does not fit the set.
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
    /// What was answered cannot be written or read again.
    #[error("the predictions cannot be written: {0}")]
    Predictions(#[from] io::Error),
}

/// The networks and the way to them.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    /// The way of a picture.
    pub pipeline: &'a Pipeline,
    /// The network that is scored.
    pub model: &'a Arc<AttributeModel>,
    /// The one that finds the faces, where there is one.
    pub detector: Option<&'a Arc<Detector>>,
}

/// What came of scoring a set.
#[derive(Clone, Debug)]
pub struct Evaluated {
    /// The figures.
    pub report: Report,
    /// Small pictures of the rows that were answered worst, where the plan asks for them.
    pub thumbnails: Thumbnails,
}

impl Plan {
    /// The rows that this chooses, and the columns that divide them into groups.
    ///
    /// # Errors
    /// When no row is chosen, a column is unknown, or a grouping makes too many groups.
    pub fn rows<'d>(&self, dataset: &'d Dataset) -> Result<(Vec<&'d Row>, Columns), EvaluateError> {
        let mut rows = dataset.select(&self.filter)?;
        rows.truncate(self.limit.unwrap_or(usize::MAX));
        if rows.is_empty() {
            let (dataset, filter) = (dataset.name().to_owned(), self.filter.to_string());
            return Err(EvaluateError::NoRows { dataset, filter });
        }
        let columns = Columns::of(dataset, &self.group_by, &rows)?;
        Ok((rows, columns))
    }
}

/// The SHA-256, name and version that tell a model from all others.
pub fn summary(model: &Model) -> ModelSummary {
    ModelSummary {
        name: model.name().to_owned(),
        version: model.version().to_owned(),
        sha256: model.sha256().to_owned(),
    }
}

/// Scores the rows that `plan` chooses; `progress` is told how many are done, of how many, at the start and after each.
///
/// Pictures are read, decoded and cropped in parallel, a bounded number at a time; unreadable ones are skipped by name. What is
/// answered is written to `written` as `predictions.csv`, row by row. Rows that this file already holds, from the same rows and
/// model, are taken from there: that is how an interrupted evaluation goes on.
///
/// # Errors
/// When no row is chosen, the filter or a grouping names an unknown column, there is no detector where one is needed, a network
/// fails, or the predictions cannot be written.
pub async fn evaluate(
    dataset: &Arc<Dataset>,
    plan: &Plan,
    means: Means<'_>,
    written: Option<File>,
    mut progress: impl FnMut(u64, u64),
) -> Result<Evaluated, EvaluateError> {
    if plan.crops == Crops::Detected && means.detector.is_none() {
        return Err(EvaluateError::NoDetector);
    }
    let (rows, columns) = plan.rows(dataset)?;
    let total = rows.len() as u64;
    let mut tally = Tally { gathered: Gathered::new(columns), skipped: Vec::new() };
    let tasks: Vec<Task> = means.model.tasks().iter().collect();
    let (mut writer, replayed) = match written {
        Some(file) => {
            let (writer, replayed) = resume(file, &tasks, &rows, &mut tally)?;
            (Some(writer), replayed)
        }
        None => (None, 0),
    };

    let started = Instant::now();
    let mut done = replayed as u64;
    progress(done, total);
    let mut outcomes = stream::iter(&rows[replayed..])
        .map(|row| async move { (*row, outcome(dataset, row, plan.crops, means).await) })
        .buffered(plan.parallel.max(1));
    while let Some((row, outcome)) = outcomes.next().await {
        let outcome = outcome.map_err(|source| EvaluateError::Failed { path: row.path.clone(), source })?;
        if let Some(writer) = &mut writer {
            writer.write(row, &outcome)?;
        }
        tally.add(row, outcome);
        done += 1;
        if done.is_multiple_of(ROWS_PER_FLUSH)
            && let Some(writer) = &mut writer
        {
            writer.flush()?;
        }
        progress(done, total);
    }
    if let Some(mut writer) = writer {
        writer.flush()?;
    }
    let elapsed = started.elapsed();

    let worst = tally.gathered.worst();
    let thumbnails =
        if plan.thumbnails { thumbnails(dataset, &rows, &worst, means.pipeline).await? } else { Thumbnails::new() };
    let filter = plan.filter.to_string();
    let report = Report {
        dataset: DatasetSummary {
            name: dataset.name().to_owned(),
            rows: total,
            filter: (!filter.is_empty()).then_some(filter),
            limit: plan.limit,
            skipped: tally.skipped,
        },
        model: summary(means.model.model()),
        detect: match plan.crops {
            Crops::Keypoints => Geometry::Manifest,
            Crops::Detected => Geometry::Crop,
            Crops::Square => Geometry::Square,
        },
        created: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        tasks: tally.gathered.tasks(),
        groups: tally.gathered.groups(),
        worst,
        throughput: Throughput { images_per_second: (total - replayed as u64) as f64 / elapsed.as_secs_f64() },
    };
    Ok(Evaluated { report, thumbnails })
}

/// What is known about the rows so far.
struct Tally {
    gathered: Gathered,
    skipped: Vec<Skipped>,
}

impl Tally {
    fn add(&mut self, row: &Row, outcome: Outcome) {
        match outcome {
            Outcome::Answered(prediction) => self.gathered.add(row, &prediction),
            Outcome::Skipped(reason) => self.skipped.push(Skipped { path: row.path.clone(), reason }),
        }
    }
}

/// Counts the rows that a file of predictions already holds, and goes on behind them; how many they are.
fn resume(
    mut file: File,
    tasks: &[Task],
    rows: &[&Row],
    tally: &mut Tally,
) -> Result<(Writer<File>, usize), io::Error> {
    let replayed = predictions::replay(&file, tasks, rows, |row, outcome| tally.add(row, outcome))?;
    file.set_len(replayed.bytes)?;
    file.seek(SeekFrom::Start(replayed.bytes))?;
    let writer = if replayed.bytes == 0 { Writer::new(file, tasks)? } else { Writer::resume(file, tasks) };
    Ok((writer, replayed.rows))
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
            Some(face) => Ok(Outcome::Answered(prediction(face.attributes))),
            None => Ok(Outcome::Skipped("no face was looked at".into())),
        },
        Err(PipelineError::Picture(error)) => Ok(Outcome::Skipped(error.to_string())),
        Err(error) => Err(error),
    }
}

fn prediction(attributes: Attributes) -> Prediction {
    let age = attributes.age.map(|(posterior, point)| AgeReading::of(&posterior, point));
    let mut prediction = Prediction { age, ..Prediction::default() };
    attributes.labels.into_iter().for_each(|answer| prediction.set(answer));
    prediction
}

/// Small pictures of the faces that were answered worst: by the row's keypoints, else the centred square.
async fn thumbnails(
    dataset: &Arc<Dataset>,
    rows: &[&Row],
    worst: &WorstErrors,
    pipeline: &Pipeline,
) -> Result<Thumbnails, EvaluateError> {
    let mut thumbnails = Thumbnails::new();
    for miss in Task::ALL.iter().flat_map(|task| worst.of(*task)) {
        // Lines ascend with the rows.
        let Ok(index) = rows.binary_search_by_key(&miss.line, |row| row.line) else { continue };
        if thumbnails.contains_key(&miss.line) {
            continue;
        }
        let (dataset, row, limits) = (Arc::clone(dataset), rows[index].clone(), pipeline.limits());
        let made = pipeline.cpu().run(move || thumbnail(&dataset, &row, limits)).await;
        let made = made.map_err(|source| EvaluateError::Failed { path: miss.path.clone(), source: source.into() })?;
        // Its picture was readable a moment ago; if it is no more, the page goes without.
        thumbnails.extend(made.map(|picture| (miss.line, picture)));
    }
    Ok(thumbnails)
}

fn thumbnail(dataset: &Dataset, row: &Row, limits: Limits) -> Option<Vec<u8>> {
    let bytes = dataset.read(row).ok()?;
    let picture = picture::open(&bytes, limits).ok()?;
    let info = *picture.info();
    let pixels = picture.decode().ok()?;
    let landmarks = row.landmarks.map(|landmarks| info.displayed(&landmarks));
    let square = Template::FACE.place(landmarks.as_ref(), pixels.width(), pixels.height());
    let (side, quality) = THUMBNAIL;
    let mut jpeg = Vec::new();
    crop(&pixels, &square, side).write_with_encoder(JpegEncoder::new_with_quality(&mut jpeg, quality)).ok()?;
    Some(jpeg)
}
