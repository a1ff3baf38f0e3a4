//! The JSON of answers, and how it is made from what the pipeline found out.

use std::collections::BTreeMap;
use std::time::Duration;

use facewise_core::decode::{AgeDistribution, AgePoint, LabelDistribution};
use facewise_core::geometry;
use facewise_core::task::Task;
use serde::Serialize;
use utoipa::ToSchema;

use crate::engine::Model;
use crate::pipeline::{self, Analysis};

/// Everything about one picture.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Prediction {
    /// The answer's `x-request-id`.
    #[schema(example = "01J9ZQ4T0D5N3W8V7K2M6R1XYB")]
    id: String,
    /// The model that answered.
    #[schema(example = "face-attributes")]
    model: String,
    /// Its version.
    #[schema(example = "1")]
    version: String,
    /// The picture.
    image: Image,
    /// Its faces; none is an empty list.
    faces: Vec<Face>,
    /// Where the time went.
    timings: Timings,
}

/// A picture as displayed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Image {
    /// Width in pixels.
    #[schema(example = 640)]
    width: u32,
    /// Height in pixels.
    #[schema(example = 480)]
    height: u32,
}

/// One face. A task that was not asked for, or that the model does not answer, is absent.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Face {
    /// The square that was looked at.
    #[serde(rename = "box")]
    area: Box,
    /// How sure it is that there is a face; 1 where nobody looked.
    #[schema(minimum = 0, maximum = 1, example = 1.0)]
    confidence: f64,
    /// Age.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    age: Option<Age>,
    /// Perceived gender: `female` or `male`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    gender: Option<Classification>,
    /// `neutral` or `smiling`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    smile: Option<Classification>,
    /// One of seven emotions.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    emotion: Option<Classification>,
}

/// A rectangle in pixels of the picture as displayed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Box {
    /// Left edge.
    #[schema(example = 80.0)]
    x: f64,
    /// Upper edge.
    #[schema(example = 0.0)]
    y: f64,
    /// Width.
    #[schema(example = 480.0)]
    width: f64,
    /// Height.
    #[schema(example = 480.0)]
    height: f64,
}

/// Age in years.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Age {
    /// The answer, to a tenth.
    #[schema(minimum = 0, maximum = 100, example = 31.4)]
    years: f64,
    /// Lower end of the 68 % interval.
    #[schema(maximum = 100, example = 26)]
    low: u8,
    /// Upper end of the 68 % interval.
    #[schema(maximum = 100, example = 37)]
    high: u8,
    /// The Adience group of the answer.
    #[schema(example = "25-32")]
    group: &'static str,
    /// Probability of each year from 0 to 100; only with `distributions=true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, min_items = 101, max_items = 101)]
    probabilities: Option<Vec<f64>>,
}

/// The most probable label, and all of them.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Classification {
    /// The most probable label.
    #[schema(example = "female")]
    label: &'static str,
    /// Its probability.
    #[schema(minimum = 0, maximum = 1, example = 0.97)]
    probability: f64,
    /// Probability of each label.
    #[schema(example = json!({"female": 0.97, "male": 0.03}))]
    probabilities: BTreeMap<&'static str, f64>,
}

/// Milliseconds in each stage.
#[expect(clippy::struct_field_names, reason = "the names are the contract's")]
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Timings {
    /// Decoding the picture.
    #[schema(example = 2.1)]
    decode_ms: f64,
    /// Waiting for the network.
    #[schema(example = 0.1)]
    queue_ms: f64,
    /// The run of the network.
    #[schema(example = 1.9)]
    inference_ms: f64,
    /// From the head of the request to the answer.
    #[schema(example = 4.6)]
    total_ms: f64,
}

/// Probabilities are given to a millionth.
fn share(probability: f32) -> f64 {
    rounded(f64::from(probability), 1e6)
}

fn milliseconds(time: Duration) -> f64 {
    rounded(time.as_secs_f64() * 1e3, 1e3)
}

fn rounded(number: f64, steps: f64) -> f64 {
    (number * steps).round() / steps
}

impl Prediction {
    /// The answer to a request that has taken `total` so far.
    pub(super) fn new(id: String, model: &Model, analysis: &Analysis, distributions: bool, total: Duration) -> Self {
        let Analysis { width, height, faces, timings } = analysis;
        Self {
            id,
            model: model.name().to_owned(),
            version: model.version().to_owned(),
            image: Image { width: *width, height: *height },
            faces: faces.iter().map(|face| Face::new(face, distributions)).collect(),
            timings: Timings {
                decode_ms: milliseconds(timings.decode),
                queue_ms: milliseconds(timings.queue),
                inference_ms: milliseconds(timings.inference),
                total_ms: milliseconds(total),
            },
        }
    }
}

impl Face {
    fn new(face: &pipeline::Face, distributions: bool) -> Self {
        let label = |task| face.attributes.labels.iter().find(|answer| answer.task() == task).map(Classification::from);
        Self {
            area: face.area.into(),
            confidence: share(face.confidence),
            age: face.attributes.age.as_ref().map(|(posterior, point)| Age::new(posterior, *point, distributions)),
            gender: label(Task::Gender),
            smile: label(Task::Smile),
            emotion: label(Task::Emotion),
        }
    }
}

impl From<geometry::Rect> for Box {
    fn from(area: geometry::Rect) -> Self {
        let pixels = |number: f32| rounded(f64::from(number), 1e2);
        Self { x: pixels(area.x), y: pixels(area.y), width: pixels(area.width), height: pixels(area.height) }
    }
}

impl Age {
    fn new(posterior: &AgeDistribution, point: AgePoint, distribution: bool) -> Self {
        let (low, high) = posterior.interval();
        Self {
            years: rounded(f64::from(posterior.years(point)), 10.0),
            low,
            high,
            group: posterior.group(point).name(),
            probabilities: distribution.then(|| posterior.probabilities().iter().copied().map(share).collect()),
        }
    }
}

impl From<&LabelDistribution> for Classification {
    fn from(answer: &LabelDistribution) -> Self {
        let labels = answer.task().labels().iter().copied();
        Self {
            label: answer.label(),
            probability: share(answer.probability()),
            probabilities: labels.zip(answer.probabilities().iter().copied().map(share)).collect(),
        }
    }
}
