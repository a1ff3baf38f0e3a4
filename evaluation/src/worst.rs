//! The rows that a network is furthest off on: where one looks first, for bad labels and for weaknesses.

use facewise_core::task::Task;
use serde::{Deserialize, Serialize};

use crate::manifest::Row;
use crate::metrics::Prediction;

/// Rows kept of each task.
const KEPT: usize = 12;

/// A row that was answered wrongly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Miss {
    /// Its picture.
    pub path: String,
    /// Its line in the manifest, the header being line 1.
    pub line: u64,
    /// What is true: years, or a label.
    pub truth: String,
    /// What was answered: years, or a label.
    pub predicted: String,
    /// How far off that is: for the age, years; for a label, what the true one lacks to a probability of 1.
    pub error: f64,
}

/// The rows of each task that were answered worst, the worst first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorstErrors {
    /// By the absolute error.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub age: Vec<Miss>,
    /// Wrong ones by the true label's probability.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gender: Vec<Miss>,
    /// The same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub smile: Vec<Miss>,
    /// The same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub emotion: Vec<Miss>,
}

impl WorstErrors {
    /// Those of a task.
    pub fn of(&self, task: Task) -> &[Miss] {
        match task {
            Task::Age => &self.age,
            Task::Gender => &self.gender,
            Task::Smile => &self.smile,
            Task::Emotion => &self.emotion,
        }
    }

    /// Whether nothing was answered wrongly.
    pub fn is_empty(&self) -> bool {
        Task::ALL.iter().all(|task| self.of(*task).is_empty())
    }
}

/// Gathers [`WorstErrors`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Worst(WorstErrors);

impl Worst {
    pub(crate) fn add(&mut self, row: &Row, prediction: &Prediction) {
        if let (Some(truth), Some(reading)) = (row.labels.age, prediction.age) {
            let error = f64::from((reading.years - truth).abs());
            keep(&mut self.0.age, row, error, || (truth.to_string(), format!("{:.1}", reading.years)));
        }
        let Self(WorstErrors { gender, smile, emotion, .. }) = self;
        for (task, misses) in [(Task::Gender, gender), (Task::Smile, smile), (Task::Emotion, emotion)] {
            if let (Some(truth), Some(answer)) = (row.labels.class(task), prediction.labelled(task))
                && truth != answer.top()
            {
                let error = 1.0 - f64::from(answer.probabilities()[truth]);
                keep(misses, row, error, || (task.labels()[truth].to_owned(), answer.label().to_owned()));
            }
        }
    }

    pub(crate) fn finish(&self) -> WorstErrors {
        self.0.clone()
    }
}

/// Puts a row in its place, if it is one of the worst. Of equally bad ones the first stay.
fn keep(misses: &mut Vec<Miss>, row: &Row, error: f64, words: impl FnOnce() -> (String, String)) {
    let place = misses.partition_point(|miss| miss.error >= error);
    if place < KEPT && error > 0.0 {
        let (truth, predicted) = words();
        misses.insert(place, Miss { path: row.path.clone(), line: row.line, truth, predicted, error });
        misses.truncate(KEPT);
    }
}
