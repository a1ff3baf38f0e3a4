//! Figures of tasks with labels.

use std::collections::BTreeMap;

use facewise_core::decode::LabelDistribution;
use facewise_core::task::Task;
use serde::{Deserialize, Serialize};

use super::bootstrap::{Interval, Replicated};
use super::mean;

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
    /// The bins of the calibration error that hold rows, from the least confident: the points of a reliability diagram (`DeGroot` and
    /// Fienberg 1983, "The Comparison and Evaluation of Forecasters"; Guo et al. 2017, figure 1).
    #[serde(default)]
    pub reliability: Vec<Reliability>,
    /// 95 % intervals of the figures above, by name: [`REPLICATES`](super::REPLICATES) of the Poisson bootstrap, see
    /// [`Weights`](super::Weights).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub intervals: BTreeMap<String, Interval>,
}

/// A bin of confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reliability {
    /// Its lower end, which is outside.
    pub low: f64,
    /// Its upper end, which is inside.
    pub high: f64,
    /// Rows counted.
    pub n: u64,
    /// Mean of their highest probabilities.
    pub confidence: f64,
    /// Share of them whose most probable label is the true one.
    pub accuracy: f64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Bin {
    rows: u32,
    correct: u32,
    confidence: f64,
}

/// Sums over rows.
#[derive(Clone, Debug, Default)]
struct Tally {
    /// Row by row, truth first; empty before the first row.
    confusion: Vec<u32>,
    log_loss: f64,
    bins: [Bin; BINS],
}

impl Tally {
    fn rows(&self) -> f64 {
        self.bins.iter().map(|bin| f64::from(bin.rows)).sum()
    }

    /// Accuracy, balanced accuracy, macro F₁, log loss and calibration error; NaN of no rows.
    fn figures(&self, classes: usize) -> [f64; 5] {
        let count = |truth: usize, predicted: usize| self.confusion.get(truth * classes + predicted).copied();
        let cell = |truth, predicted| f64::from(count(truth, predicted).unwrap_or_default());
        let truths = |class: usize| (0..classes).map(|other| cell(class, other)).sum::<f64>();
        let predictions = |class: usize| (0..classes).map(|other| cell(other, class)).sum::<f64>();
        let n = self.rows();
        let hits: f64 = (0..classes).map(|class| cell(class, class)).sum();
        let recalls = (0..classes).filter(|c| truths(*c) > 0.0).map(|c| cell(c, c) / truths(c));
        let f1 = (0..classes)
            .filter(|c| truths(*c) + predictions(*c) > 0.0)
            .map(|c| 2.0 * cell(c, c) / (truths(c) + predictions(c)));
        let gaps: f64 = self.bins.iter().map(|bin| (f64::from(bin.correct) - bin.confidence).abs()).sum();
        [hits / n, mean(recalls), mean(f1), self.log_loss / n, gaps / n]
    }
}

/// Gathers [`LabelMetrics`].
#[derive(Clone, Debug)]
pub struct LabelScore {
    task: Task,
    tally: Replicated<Tally>,
}

impl LabelScore {
    /// Of a task with labels, nothing counted yet.
    pub fn new(task: Task) -> Self {
        Self { task, tally: Replicated::default() }
    }

    /// The task.
    pub const fn task(&self) -> Task {
        self.task
    }

    /// Counts one row: index of its true label, and the prediction.
    ///
    /// # Panics
    /// When `truth` is no label of the task or the prediction belongs to another task: a mistake of the caller.
    pub fn add(&mut self, truth: usize, prediction: &LabelDistribution) {
        self.add_weighted(truth, prediction, &[]);
    }

    /// The same, and in each replicate as often as `weights` say.
    ///
    /// # Panics
    /// As [`Self::add`].
    pub fn add_weighted(&mut self, truth: usize, prediction: &LabelDistribution, weights: &[u8]) {
        assert_eq!(prediction.task(), self.task, "the prediction belongs to another task");
        let classes = self.task.classes();
        let (predicted, confidence) = (prediction.top(), f64::from(prediction.probability()));
        let loss = -f64::from(prediction.probabilities()[truth]).max(SMALLEST_PROBABILITY).ln();
        let bin = ((confidence * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
        self.tally.count(weights, |tally, times| {
            tally.confusion.resize(classes * classes, 0);
            tally.confusion[truth * classes + predicted] += times;
            tally.log_loss += f64::from(times) * loss;
            let bin = &mut tally.bins[bin];
            bin.rows += times;
            bin.correct += times * u32::from(predicted == truth);
            bin.confidence += f64::from(times) * confidence;
        });
    }

    /// The figures so far.
    pub fn finish(&self) -> Option<LabelMetrics> {
        let (classes, whole) = (self.task.classes(), self.tally.whole());
        let n: u64 = whole.bins.iter().map(|bin| u64::from(bin.rows)).sum();
        let [accuracy, balanced_accuracy, macro_f1, log_loss, ece] = whole.figures(classes);
        let names = ["accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece"];
        (n > 0).then(|| LabelMetrics {
            n,
            accuracy,
            balanced_accuracy,
            macro_f1,
            log_loss,
            ece,
            labels: self.task.labels().iter().map(ToString::to_string).collect(),
            confusion: whole
                .confusion
                .chunks(classes)
                .map(|row| row.iter().copied().map(u64::from).collect())
                .collect(),
            reliability: whole.bins.iter().enumerate().filter_map(|(index, bin)| reliability(index, *bin)).collect(),
            intervals: self.tally.intervals(names, |tally| tally.figures(classes)),
        })
    }
}

fn reliability(index: usize, Bin { rows, correct, confidence }: Bin) -> Option<Reliability> {
    let edge = |index: usize| index as f64 / BINS as f64;
    let rows_in_it = f64::from(rows);
    (rows > 0).then(|| Reliability {
        low: edge(index),
        high: edge(index + 1),
        n: u64::from(rows),
        confidence: confidence / rows_in_it,
        accuracy: f64::from(correct) / rows_in_it,
    })
}
