//! The whole way of a picture as one model: files of pictures in, their faces out, those of all pictures in one list.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use bytes::Bytes;
use facewise_core::geometry::Landmarks;
use facewise_core::task::{AGES, Task};
use futures_util::future::try_join_all;
use serde_json::{Map, Value};

use super::tensor::{Datatype, Elements, Output, TensorMetadata};
use crate::api::error::ApiError;
use crate::api::predict::{Parameters, Wishes};
use crate::app::App;
use crate::engine::Model;
use crate::engine::statistics::Spent;
use crate::line::{PHOTOGRAPH, Place};
use crate::pipeline::{Analysis, Face, PipelineError, Timings, Whereabouts};
use crate::tasks::Tasks;

/// Name of the model. A network of that name is hidden by it.
pub(super) const NAME: &str = "face-pipeline";
/// Version of its tensors; the networks have versions of their own.
pub(super) const VERSION: &str = "1";
/// Its only input.
pub(super) const INPUT: &str = "image";

/// Keypoints of a face, each with x and y: right eye, left eye, nose, mouth.
const KEYPOINTS: [usize; 2] = [4, 2];

/// What it reads: files of pictures.
pub(super) fn input() -> TensorMetadata {
    TensorMetadata::new(INPUT, Datatype::Bytes, &[])
}

/// What it answers, where these tasks are answered.
pub(super) fn outputs(tasks: &Tasks) -> Vec<TensorMetadata> {
    // The tensors of no picture at all say it themselves.
    let metadata =
        |Output { name, shape, elements, .. }: Output| TensorMetadata::new(name, elements.datatype(), &shape[1..]);
    tensors(&[], tasks).into_iter().map(metadata).collect()
}

/// What a request wants, by its parameters: those of the query of `/v1/predict`.
///
/// # Errors
/// When one is unknown or wrong.
pub(super) fn wishes(app: &App, mut parameters: Map<String, Value>) -> Result<Wishes, ApiError> {
    // In a query it is a word among others; here it may be what it looks like.
    if let Some(detect) = parameters.get_mut("detect")
        && let Value::Bool(looked_for) = detect
    {
        *detect = Value::String(looked_for.to_string());
    }
    serde_json::from_value::<Parameters>(Value::Object(parameters))
        .map_err(|error| ApiError::bad_request(format!("the parameters of the request: {error}")))?
        .wishes(app)
}

/// The networks that answer, as parameters of the answer.
pub(super) fn networks(wishes: &Wishes) -> Map<String, Value> {
    let named = |model: &Model| Value::String(format!("{}/{}", model.name(), model.version()));
    let mut networks = Map::from_iter([("model".to_owned(), named(wishes.model.model()))]);
    if let Whereabouts::Everywhere(detector, _) | Whereabouts::Best(detector, _) = &wishes.whereabouts {
        networks.insert("detector".to_owned(), named(detector.model()));
    }
    networks
}

/// Analyses pictures: all of them, or none when one fails. Each takes its own place in the line, the first one `place`.
///
/// # Errors
/// When a picture is unreadable or too large, more wait than may, the time does not suffice, or a network fails.
pub(super) async fn infer(
    app: &App,
    pictures: Vec<Bytes>,
    wishes: Wishes,
    place: Place<'_>,
    deadline: Instant,
) -> Result<Vec<Output>, ApiError> {
    let started = Instant::now();
    let result = analyse(app, pictures, &wishes, place, deadline).await;
    match result {
        Ok(analyses) => {
            let answered = Instant::now();
            let outputs = tensors(&analyses, wishes.model.tasks());
            count(app, started, &analyses, answered.elapsed());
            Ok(outputs)
        }
        Err(error) => {
            app.face_pipeline.failed(started.elapsed());
            Err(error)
        }
    }
}

async fn analyse(
    app: &App,
    pictures: Vec<Bytes>,
    wishes: &Wishes,
    place: Place<'_>,
    deadline: Instant,
) -> Result<Vec<Analysis>, ApiError> {
    // The request has been admitted as one; the pictures after the first count too.
    let more = u32::try_from(pictures.len().saturating_sub(1)).unwrap_or(u32::MAX);
    let _admitted = app.admission.try_acquire_many(more).map_err(|_| ApiError::overloaded())?;
    let several = more > 0;
    let mut place = Some(place);
    let analyses = pictures.into_iter().enumerate().map(|(index, picture)| {
        let (first, Wishes { model, tasks, whereabouts, .. }) = (place.take(), wishes);
        async move {
            let place = match first {
                Some(place) => place,
                None => app.line.enter_for(PHOTOGRAPH, deadline).await?,
            };
            let analysis = app.pipeline.analyse(picture, whereabouts.clone(), model, tasks).await;
            let analysis = analysis.map_err(|error| {
                let is_of_picture = matches!(error, PipelineError::Picture(_));
                let error = ApiError::from(error);
                if several && is_of_picture { error.about(format_args!("element {index} of '{INPUT}'")) } else { error }
            })?;
            place.answered();
            Ok(analysis)
        }
    });
    try_join_all(analyses).await
}

/// Counts a request; its stages are those of the picture that was answered last.
fn count(app: &App, started: Instant, analyses: &[Analysis], output: Duration) {
    let last = analyses.iter().map(|analysis| analysis.timings).max_by_key(|timings| {
        let (before, queue, spent) = parts(timings);
        before + queue + spent
    });
    if let Some(last) = last {
        let (input, queue, network) = parts(&last);
        let spent = Spent { input, network, output };
        app.face_pipeline.ran(analyses.len(), spent);
        app.face_pipeline.answered(started.elapsed(), queue, spent);
    }
}

/// Time before the network, in its queue, and in it.
fn parts(timings: &Timings) -> (Duration, Duration, Duration) {
    let Timings { decode, detect, align, queue, inference } = *timings;
    (decode + detect.unwrap_or_default() + align, queue, inference)
}

/// The faces of pictures as tensors.
fn tensors(analyses: &[Analysis], tasks: &Tasks) -> Vec<Output> {
    let faces: Vec<(usize, &Face)> = analyses
        .iter()
        .enumerate()
        .flat_map(|(index, analysis)| analysis.faces.iter().map(move |face| (index, face)))
        .collect();
    let count = faces.len();
    let floats = |numbers: &dyn Fn(&Face) -> Vec<f32>| {
        Elements::Fp32(faces.iter().flat_map(|(_, face)| numbers(face)).collect())
    };

    let sizes = analyses.iter().flat_map(|analysis| [analysis.width as i32, analysis.height as i32]).collect();
    let places = faces.iter().map(|(index, _)| *index as i32).collect();
    let boxes = |face: &Face| vec![face.area.x, face.area.y, face.area.width, face.area.height];
    let mut outputs = vec![
        rows(analyses.len(), "image_size", &[2], Elements::Int32(sizes)),
        rows(count, "image_index", &[], Elements::Int32(places)),
        rows(count, "box", &[4], floats(&boxes)),
        rows(count, "confidence", &[], floats(&|face| vec![face.confidence])),
        rows(count, "landmarks", &KEYPOINTS, floats(&|face| landmarks(face.landmarks.as_ref()))),
    ];
    if tasks.contains(Task::Age) {
        outputs.extend(ages(&faces));
    }
    for task in tasks.iter().filter(|task| *task != Task::Age) {
        let answers: Vec<_> = faces
            .iter()
            .filter_map(|(_, face)| face.attributes.labels.iter().find(|answer| answer.task() == task))
            .collect();
        let words = answers.iter().map(|answer| answer.label().into()).collect();
        let probabilities = answers.iter().flat_map(|answer| answer.probabilities()).copied().collect();
        let probabilities_name = format!("{}_probabilities", task.name());
        let probabilities = rows(count, probabilities_name, &[task.classes()], Elements::Fp32(probabilities));
        outputs.push(rows(count, task.name(), &[], Elements::Text(words)));
        outputs.push(Output { labels: task.labels(), ..probabilities });
    }
    outputs
}

/// The four tensors of the ages.
fn ages(faces: &[(usize, &Face)]) -> [Output; 4] {
    let ages: Vec<_> = faces.iter().filter_map(|(_, face)| face.attributes.age.as_ref()).collect();
    let years = ages.iter().map(|(posterior, point)| posterior.years(*point)).collect();
    let intervals = ages.iter().map(|(posterior, _)| posterior.interval());
    let intervals = intervals.flat_map(|(low, high)| [i32::from(low), i32::from(high)]).collect();
    let groups = ages.iter().map(|(posterior, point)| posterior.group(*point).name().into()).collect();
    let probabilities = ages.iter().flat_map(|(posterior, _)| posterior.probabilities()).copied().collect();
    let count = faces.len();
    [
        rows(count, "age", &[], Elements::Fp32(years)),
        rows(count, "age_interval", &[2], Elements::Int32(intervals)),
        rows(count, "age_group", &[], Elements::Text(groups)),
        rows(count, "age_probabilities", &[AGES], Elements::Fp32(probabilities)),
    ]
}

/// A tensor of so many rows.
fn rows(count: usize, name: impl Into<Cow<'static, str>>, row: &[usize], elements: Elements) -> Output {
    let shape = [count].into_iter().chain(row.iter().copied()).collect();
    Output { name: name.into(), shape, elements, labels: &[] }
}

/// The keypoints; where there are none, no numbers.
fn landmarks(landmarks: Option<&Landmarks>) -> Vec<f32> {
    match landmarks {
        Some(Landmarks { right_eye, left_eye, nose, mouth }) => {
            [right_eye, left_eye, nose, mouth].into_iter().flat_map(|point| [point.x, point.y]).collect()
        }
        None => vec![f32::NAN; KEYPOINTS.iter().product()],
    }
}
