//! The JSON of answers, over HTTP and on the command line, and how it is made from what the pipeline found out.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use facewise_core::decode::{AgeDistribution, AgeGroupDistribution, AgePoint, LabelDistribution};
use facewise_core::geometry;
use facewise_core::task::{self, Task};
use serde::Serialize;
use utoipa::ToSchema;

use crate::engine::{Attributes, Model, Told};
use crate::pipeline::{self, Analysis};

/// What is told only when it is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extras {
    /// Eyes, nose and mouth.
    pub landmarks: bool,
    /// The probability of each year of age.
    pub distributions: bool,
}

/// Everything about one picture.
#[derive(Debug, Serialize, ToSchema)]
pub struct Prediction {
    /// The answer's `x-request-id`.
    #[schema(example = "01J9ZQ4T0D5N3W8V7K2M6R1XYB")]
    pub id: String,
    /// The model that answered.
    #[schema(example = "face-attributes")]
    pub model: String,
    /// Its version.
    #[schema(example = "1")]
    pub version: String,
    /// The picture.
    pub image: Image,
    /// Its faces, the most confident first; none is an empty list.
    pub faces: Vec<Face>,
    /// Where the time went.
    pub timings: Timings,
}

/// A picture as displayed.
#[derive(Debug, Serialize, ToSchema)]
pub struct Image {
    /// Width in pixels.
    #[schema(example = 640)]
    pub width: u32,
    /// Height in pixels.
    #[schema(example = 480)]
    pub height: u32,
}

/// One face. A task that was not asked for, or that the model does not answer, is absent.
#[derive(Debug, Serialize, ToSchema)]
pub struct Face {
    /// The detector's box around the face; where it found none (`detect=crop`) or did not look (`detect=false`), the centred
    /// square of the picture.
    #[serde(rename = "box")]
    pub area: Box,
    /// How sure the detector is that there is a face: 1 where it did not look (`detect=false`), 0 where it found none
    /// (`detect=crop`).
    #[schema(minimum = 0, maximum = 1, example = 0.98)]
    pub confidence: f64,
    /// Eyes, nose and mouth; only with `landmarks=true`, and where the detector found the face.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub landmarks: Option<Landmarks>,
    /// Age.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub age: Option<Age>,
    /// Perceived gender: `female` or `male`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub gender: Option<Classification>,
    /// `neutral` or `smiling`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub smile: Option<Classification>,
    /// One of seven emotions.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub emotion: Option<Classification>,
}

/// A rectangle in pixels of the picture as displayed; it may reach beyond the picture.
#[derive(Debug, Serialize, ToSchema)]
pub struct Box {
    /// Left edge.
    #[schema(example = 212.0)]
    pub x: f64,
    /// Upper edge.
    #[schema(example = 96.5)]
    pub y: f64,
    /// Width.
    #[schema(example = 131.0)]
    pub width: f64,
    /// Height.
    #[schema(example = 131.0)]
    pub height: f64,
}

/// Keypoints as `[x, y]` in pixels of the picture as displayed; right and left are the person's own.
#[derive(Debug, Serialize, ToSchema)]
pub struct Landmarks {
    /// Centre of the right eye.
    #[schema(min_items = 2, max_items = 2, example = json!([241.0, 140.0]))]
    pub right_eye: [f64; 2],
    /// Centre of the left eye.
    #[schema(min_items = 2, max_items = 2, example = json!([305.0, 139.0]))]
    pub left_eye: [f64; 2],
    /// Tip of the nose.
    #[schema(min_items = 2, max_items = 2, example = json!([273.0, 171.0]))]
    pub nose: [f64; 2],
    /// Centre of the mouth.
    #[schema(min_items = 2, max_items = 2, example = json!([274.0, 199.0]))]
    pub mouth: [f64; 2],
}

/// Age in years.
#[derive(Debug, Serialize, ToSchema)]
pub struct Age {
    /// The answer, to a tenth.
    #[schema(minimum = 0, maximum = 100, example = 31.4)]
    pub years: f64,
    /// Lower end of the 68 % interval.
    #[schema(maximum = 100, example = 26)]
    pub low: u8,
    /// Upper end of the 68 % interval.
    #[schema(maximum = 100, example = 37)]
    pub high: u8,
    /// The Adience group of the answer.
    #[schema(example = "25-32")]
    pub group: &'static str,
    /// Probability of each year from 0 to 100; only with `distributions=true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, min_items = 101, max_items = 101)]
    pub probabilities: Option<Vec<f64>>,
}

/// What is known of a face by its embedding. A task that was not asked for, or that the model does not answer, is absent.
#[derive(Debug, Serialize, ToSchema)]
pub struct Description {
    /// Age.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub age: Option<SomeAge>,
    /// Perceived gender: `female` or `male`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub gender: Option<Classification>,
    /// `neutral` or `smiling`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub smile: Option<Classification>,
    /// One of seven emotions.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub emotion: Option<Classification>,
    /// By task how much the answers of a model differ that answers each embedding several times with random dropout: the entropy in nats of
    /// how often each class was the most probable, 0 where it was always the same. Absent of other models.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(minimum = 0, example = json!({"age": 1.9, "gender": 0.02}))]
    pub vote_entropy: BTreeMap<&'static str, f64>,
}

/// An age in years, or of a model that knows groups only, the group.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum SomeAge {
    /// In years.
    Years(Age),
    /// As a group.
    Group(AgeGroup),
}

/// The most probable of the eight age groups of Adience, and all of them.
#[derive(Debug, Serialize, ToSchema)]
pub struct AgeGroup {
    /// The most probable group.
    #[schema(example = "25-32")]
    pub group: &'static str,
    /// Its probability.
    #[schema(minimum = 0, maximum = 1, example = 0.72)]
    pub probability: f64,
    /// Probability of each group.
    #[schema(example = json!({"0-2": 0.0, "4-6": 0.0, "8-12": 0.01, "15-20": 0.07, "25-32": 0.72, "38-43": 0.16, "48-53": 0.03, "60-100": 0.01}))]
    pub probabilities: BTreeMap<&'static str, f64>,
}

/// The most probable label, and all of them.
#[derive(Debug, Serialize, ToSchema)]
pub struct Classification {
    /// The most probable label.
    #[schema(example = "female")]
    pub label: &'static str,
    /// Its probability.
    #[schema(minimum = 0, maximum = 1, example = 0.97)]
    pub probability: f64,
    /// Probability of each label.
    #[schema(example = json!({"female": 0.97, "male": 0.03}))]
    pub probabilities: BTreeMap<&'static str, f64>,
}

/// Milliseconds in each stage.
#[derive(Debug, Serialize, ToSchema)]
pub struct Timings {
    /// Decoding the picture.
    #[schema(example = 2.1)]
    pub decode_ms: f64,
    /// Finding the faces; 0 where nobody looked for them.
    #[schema(example = 3.0)]
    pub detect_ms: f64,
    /// Waiting for the network.
    #[schema(example = 0.1)]
    pub queue_ms: f64,
    /// The run of the network, of the face that was answered last.
    #[schema(example = 1.9)]
    pub inference_ms: f64,
    /// From the head of the request to the answer.
    #[schema(example = 7.3)]
    pub total_ms: f64,
}

/// As the header `server-timing` has it (W3C Server Timing).
impl fmt::Display for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { decode_ms, detect_ms, queue_ms, inference_ms, total_ms } = self;
        write!(
            f,
            "decode;dur={decode_ms}, detect;dur={detect_ms}, queue;dur={queue_ms}, inference;dur={inference_ms}, \
             total;dur={total_ms}"
        )
    }
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

/// Coordinates are given to a hundredth of a pixel.
fn pixels(number: f32) -> f64 {
    rounded(f64::from(number), 1e2)
}

impl Prediction {
    /// The answer to a request that has taken `total` so far.
    pub fn new(id: String, model: &Model, analysis: &Analysis, extras: Extras, total: Duration) -> Self {
        Self {
            id,
            model: model.name().to_owned(),
            version: model.version().to_owned(),
            image: Image::of(analysis),
            faces: Face::of(analysis, extras),
            timings: Timings::new(&analysis.timings, total),
        }
    }
}

impl Image {
    /// The picture that was analysed.
    pub fn of(analysis: &Analysis) -> Self {
        Self { width: analysis.width, height: analysis.height }
    }
}

impl Timings {
    /// The time of a picture's stages, and of everything around them.
    pub fn new(timings: &pipeline::Timings, total: Duration) -> Self {
        Self {
            decode_ms: milliseconds(timings.decode),
            detect_ms: milliseconds(timings.detect.unwrap_or_default()),
            queue_ms: milliseconds(timings.queue),
            inference_ms: milliseconds(timings.inference),
            total_ms: milliseconds(total),
        }
    }
}

impl Face {
    /// The faces of a picture.
    pub fn of(analysis: &Analysis, extras: Extras) -> Vec<Self> {
        analysis.faces.iter().map(|face| Self::new(face, extras)).collect()
    }

    fn new(face: &pipeline::Face, extras: Extras) -> Self {
        let label = |task| label(&face.attributes, task);
        let age = face.attributes.age.as_ref();
        Self {
            area: face.area.into(),
            confidence: share(face.confidence),
            landmarks: face.landmarks.filter(|_| extras.landmarks).map(Landmarks::from),
            age: age.map(|(posterior, point)| Age::new(posterior, *point, extras.distributions)),
            gender: label(Task::Gender),
            smile: label(Task::Smile),
            emotion: label(Task::Emotion),
        }
    }
}

fn label(attributes: &Attributes, task: Task) -> Option<Classification> {
    attributes.labels.iter().find(|answer| answer.task() == task).map(Classification::from)
}

impl Description {
    /// Of what a network says; the years' probabilities only where they are asked for.
    pub fn new(Told { attributes, vote_entropy }: &Told, distributions: bool) -> Self {
        let label = |task| label(attributes, task);
        let years = attributes.age.as_ref().map(|(posterior, point)| Age::new(posterior, *point, distributions));
        let group = attributes.age_group.as_ref().map(AgeGroup::from);
        Self {
            age: years.map(SomeAge::Years).or(group.map(SomeAge::Group)),
            gender: label(Task::Gender),
            smile: label(Task::Smile),
            emotion: label(Task::Emotion),
            vote_entropy: vote_entropy.iter().map(|(task, entropy)| (task.name(), share(*entropy))).collect(),
        }
    }
}

impl From<&AgeGroupDistribution> for AgeGroup {
    fn from(answer: &AgeGroupDistribution) -> Self {
        let shares = answer.probabilities().iter().copied().map(share);
        Self {
            group: answer.top().name(),
            probability: share(answer.probability()),
            probabilities: task::AgeGroup::NAMES.into_iter().zip(shares).collect(),
        }
    }
}

impl From<geometry::Rect> for Box {
    fn from(area: geometry::Rect) -> Self {
        Self { x: pixels(area.x), y: pixels(area.y), width: pixels(area.width), height: pixels(area.height) }
    }
}

impl From<geometry::Landmarks> for Landmarks {
    fn from(landmarks: geometry::Landmarks) -> Self {
        let geometry::Landmarks { right_eye, left_eye, nose, mouth } = landmarks;
        let [right_eye, left_eye, nose, mouth] = [right_eye, left_eye, nose, mouth].map(|p| [pixels(p.x), pixels(p.y)]);
        Self { right_eye, left_eye, nose, mouth }
    }
}

impl Age {
    fn new(posterior: &AgeDistribution, point: AgePoint, distribution: bool) -> Self {
        let (low, high) = posterior.interval();
        let years = rounded(f64::from(posterior.years(point)), 10.0);
        Self {
            years,
            low,
            high,
            // Of the years that are told, so that the two never contradict each other.
            group: task::AgeGroup::from_years(years as f32).name(),
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
