//! Figures of merit, gathered one prediction at a time: nothing but counts and sums is kept.
//!
//! A metric of no rows does not exist, so an empty score finishes as `None`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use facewise_core::decode::{AgeDistribution, AgePoint, LabelDistribution};
use facewise_core::task::{AGES, AgeGroup, Task};
use serde::{Deserialize, Serialize};

use crate::manifest::Labels;

/// Confidence bins of the calibration error (Guo et al. 2017 use 15).
const BINS: usize = 15;

/// Smallest probability that the log loss distinguishes: machine epsilon of the networks' `f32`, as in scikit-learn.
const SMALLEST_PROBABILITY: f64 = f32::EPSILON as f64;

/// Figures of a task with labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelMetrics {
    /// Rows counted.
    pub n: u64,
    /// Share of rows whose most probable label is the true one.
    pub accuracy: f64,
    /// Mean of the recalls of the labels that occur as truth (Brodersen et al. 2010, "The balanced accuracy and its
    /// posterior distribution"); scikit-learn's `balanced_accuracy_score`.
    pub balanced_accuracy: f64,
    /// Mean of `F₁ = 2·TP / (2·TP + FP + FN)` over the labels that occur as truth or prediction; scikit-learn's
    /// `f1_score(average="macro")`.
    pub macro_f1: f64,
    /// Mean of `−ln p` of the true label's probability, `p` no less than the epsilon of `f32`; scikit-learn's
    /// `log_loss`.
    pub log_loss: f64,
    /// Expected calibration error: `Σ |B|/n · |accuracy(B) − confidence(B)|` over 15 bins `B` of equal width
    /// `(i/15, (i+1)/15]` of the highest probability (Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3).
    pub ece: f64,
    /// The labels, in the order of `confusion`.
    pub labels: Vec<String>,
    /// Counts: row by truth, column by prediction.
    pub confusion: Vec<Vec<u64>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Bin {
    rows: u64,
    correct: u64,
    confidence: f64,
}

/// Gathers [`LabelMetrics`].
#[derive(Clone, Debug)]
pub struct LabelScore {
    task: Task,
    confusion: Vec<Vec<u64>>,
    log_loss: f64,
    bins: [Bin; BINS],
}

impl LabelScore {
    /// Of a task with labels, nothing counted yet.
    pub fn new(task: Task) -> Self {
        let labels = task.labels().len();
        Self { task, confusion: vec![vec![0; labels]; labels], log_loss: 0.0, bins: [Bin::default(); BINS] }
    }

    /// Counts one row: index of its true label, and the prediction.
    ///
    /// # Panics
    /// When `truth` is no label of the task or the prediction belongs to another task: a mistake of the caller.
    pub fn add(&mut self, truth: usize, prediction: &LabelDistribution) {
        assert_eq!(prediction.task(), self.task, "the prediction belongs to another task");
        let predicted = prediction.top();
        self.confusion[truth][predicted] += 1;
        self.log_loss -= f64::from(prediction.probabilities()[truth]).max(SMALLEST_PROBABILITY).ln();

        let confidence = f64::from(prediction.probability());
        let bin = (confidence * BINS as f64).ceil() as usize;
        let bin = &mut self.bins[bin.clamp(1, BINS) - 1];
        bin.rows += 1;
        bin.correct += u64::from(predicted == truth);
        bin.confidence += confidence;
    }

    /// The figures so far.
    pub fn finish(&self) -> Option<LabelMetrics> {
        let classes = 0..self.confusion.len();
        let hit = |class: usize| self.confusion[class][class] as f64;
        let truths = |class: usize| self.confusion[class].iter().sum::<u64>() as f64;
        let predictions = |class: usize| self.confusion.iter().map(|row| row[class]).sum::<u64>() as f64;

        let n = self.bins.iter().map(|bin| bin.rows).sum::<u64>();
        let share = |sum: f64| sum / n as f64;
        let recalls = classes.clone().filter(|c| truths(*c) > 0.0).map(|c| hit(c) / truths(c));
        let f1 = classes
            .clone()
            .filter(|c| truths(*c) + predictions(*c) > 0.0)
            .map(|c| 2.0 * hit(c) / (truths(c) + predictions(c)));
        let gaps = self.bins.iter().map(|bin| (bin.correct as f64 - bin.confidence).abs());
        (n > 0).then(|| LabelMetrics {
            n,
            accuracy: share(classes.map(hit).sum()),
            balanced_accuracy: mean(recalls),
            macro_f1: mean(f1),
            log_loss: share(self.log_loss),
            ece: share(gaps.sum()),
            labels: self.task.labels().iter().map(ToString::to_string).collect(),
            confusion: self.confusion.clone(),
        })
    }
}

fn mean(numbers: impl Iterator<Item = f64>) -> f64 {
    let (count, sum) = numbers.fold((0.0, 0.0), |(count, sum), number| (count + 1.0, sum + number));
    sum / count
}

/// Ten years of age by their first, a multiple of ten; written `30-39`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Decade(u16);

impl Decade {
    /// The decade of an age in years, which is not negative.
    pub fn of(years: f32) -> Self {
        Self((years / 10.0) as u16 * 10)
    }
}

impl fmt::Display for Decade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.0 + 9)
    }
}

impl From<Decade> for String {
    fn from(decade: Decade) -> Self {
        decade.to_string()
    }
}

/// A text that is no decade.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no decade of age such as 30-39")]
pub struct NotADecade(String);

impl FromStr for Decade {
    type Err = NotADecade;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let first = text.split_once('-').and_then(|(first, _)| first.parse::<u16>().ok());
        let decade = first.filter(|first| *first < 1000).map(Self);
        decade.filter(|decade| decade.0 % 10 == 0 && decade.to_string() == text).ok_or_else(|| NotADecade(text.into()))
    }
}

impl TryFrom<String> for Decade {
    type Error = NotADecade;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Figures of the faces of one decade.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecadeMetrics {
    /// Rows counted.
    pub n: u64,
    /// Mean absolute error in years.
    pub mae: f64,
}

/// Figures of the age. Errors are prediction minus truth in years.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgeMetrics {
    /// Rows counted.
    pub n: u64,
    /// Mean absolute error.
    pub mae: f64,
    /// Mean error; positive where faces are taken for older than they are.
    pub mean_error: f64,
    /// Share of rows with an absolute error of at most 5 years: the cumulative score CS(5) of Geng et al. 2007,
    /// "Automatic Age Estimation Based on Facial Aging Patterns".
    pub cs5: f64,
    /// Share of rows whose Adience group ([`AgeGroup::from_years`]) is the true one (Eidinger et al. 2014, "Age and
    /// Gender Estimation of Unfiltered Faces").
    pub accuracy_8: f64,
    /// Share of rows whose Adience group is the true one or next to it (the same).
    pub accuracy_8_one_off: f64,
    /// Share of rows whose age in whole years lies in the 68 % interval, its ends included; ages over 100 count as 100,
    /// the highest that a network distinguishes. As both ends are whole years, calibrated intervals give a little more
    /// than 0.68.
    pub interval_coverage: f64,
    /// Mean absolute error by decade of the true age.
    pub mae_by_decade: BTreeMap<Decade, DecadeMetrics>,
}

/// Gathers [`AgeMetrics`].
#[derive(Clone, Debug, Default)]
pub struct AgeScore {
    error: f64,
    within_5: u64,
    same_group: u64,
    near_group: u64,
    covered: u64,
    /// Rows and summed absolute error.
    decades: BTreeMap<Decade, (u64, f64)>,
}

impl AgeScore {
    /// Counts one row: the true age in years, and the prediction with the way its years are read.
    pub fn add(&mut self, truth: f32, prediction: &AgeDistribution, point: AgePoint) {
        let error = f64::from(prediction.years(point)) - f64::from(truth);
        self.error += error;
        self.within_5 += u64::from(error.abs() <= 5.0);

        let steps = prediction.group(point).index().abs_diff(AgeGroup::from_years(truth).index());
        self.same_group += u64::from(steps == 0);
        self.near_group += u64::from(steps <= 1);

        let (low, high) = prediction.interval();
        let years = truth.round().min((AGES - 1) as f32);
        self.covered += u64::from((f32::from(low)..=f32::from(high)).contains(&years));

        let (rows, absolute) = self.decades.entry(Decade::of(truth)).or_default();
        *rows += 1;
        *absolute += error.abs();
    }

    /// The figures so far.
    pub fn finish(&self) -> Option<AgeMetrics> {
        let n = self.decades.values().map(|(rows, _)| rows).sum::<u64>();
        let share = |sum: f64| sum / n as f64;
        (n > 0).then(|| AgeMetrics {
            n,
            mae: share(self.decades.values().map(|(_, absolute)| absolute).sum()),
            mean_error: share(self.error),
            cs5: share(self.within_5 as f64),
            accuracy_8: share(self.same_group as f64),
            accuracy_8_one_off: share(self.near_group as f64),
            interval_coverage: share(self.covered as f64),
            mae_by_decade: self
                .decades
                .iter()
                .map(|(decade, (n, absolute))| (*decade, DecadeMetrics { n: *n, mae: absolute / *n as f64 }))
                .collect(),
        })
    }
}

/// Figures of every task that was both labelled and predicted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskMetrics {
    /// Age.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age: Option<AgeMetrics>,
    /// Gender.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gender: Option<LabelMetrics>,
    /// Smile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smile: Option<LabelMetrics>,
    /// Emotion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emotion: Option<LabelMetrics>,
}

/// What a network says about one face; `None` for a task that it does not answer.
#[derive(Clone, Debug, Default)]
pub struct Prediction {
    /// Posterior of the age, and how its years are read.
    pub age: Option<(AgeDistribution, AgePoint)>,
    /// Gender.
    pub gender: Option<LabelDistribution>,
    /// Smile.
    pub smile: Option<LabelDistribution>,
    /// Emotion.
    pub emotion: Option<LabelDistribution>,
}

/// Gathers the figures of all tasks.
#[derive(Clone, Debug)]
pub struct Scores {
    age: AgeScore,
    gender: LabelScore,
    smile: LabelScore,
    emotion: LabelScore,
}

impl Default for Scores {
    fn default() -> Self {
        Self {
            age: AgeScore::default(),
            gender: LabelScore::new(Task::Gender),
            smile: LabelScore::new(Task::Smile),
            emotion: LabelScore::new(Task::Emotion),
        }
    }
}

impl Scores {
    /// Counts one face for each task that it is labelled for and that was predicted.
    pub fn add(&mut self, labels: &Labels, prediction: &Prediction) {
        if let (Some(truth), Some((posterior, point))) = (labels.age, &prediction.age) {
            self.age.add(truth, posterior, *point);
        }
        for (score, truth, predicted) in [
            (&mut self.gender, labels.gender, &prediction.gender),
            (&mut self.smile, labels.smile, &prediction.smile),
            (&mut self.emotion, labels.emotion, &prediction.emotion),
        ] {
            if let (Some(truth), Some(predicted)) = (truth, predicted) {
                score.add(truth, predicted);
            }
        }
    }

    /// The figures so far.
    pub fn finish(&self) -> TaskMetrics {
        TaskMetrics {
            age: self.age.finish(),
            gender: self.gender.finish(),
            smile: self.smile.finish(),
            emotion: self.emotion.finish(),
        }
    }
}
