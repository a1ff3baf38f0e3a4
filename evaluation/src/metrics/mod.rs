//! Figures of merit, gathered one prediction at a time: nothing but counts and sums is kept, for the figures and for their
//! intervals.
//!
//! A metric of no rows does not exist, so an empty score finishes as `None`.

mod age;
mod bootstrap;
mod label;

use std::collections::BTreeMap;

use facewise_core::decode::LabelDistribution;
use facewise_core::task::Task;
use serde::{Deserialize, Serialize};

pub use self::age::{AgeMetrics, AgeReading, AgeScore, Decade, DecadeMetrics, NotADecade};
pub use self::bootstrap::{Interval, REPLICATES, Weights};
pub use self::label::{LabelMetrics, LabelScore, Reliability};
use crate::manifest::Labels;

fn mean(numbers: impl Iterator<Item = f64>) -> f64 {
    let (count, sum) = numbers.fold((0.0, 0.0), |(count, sum), number| (count + 1.0, sum + number));
    sum / count
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

/// One number of a [`TaskMetrics`].
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// The task that it is of.
    pub task: Task,
    /// Its name in a report, as in `mae`.
    pub name: &'static str,
    /// Its value.
    pub value: f64,
    /// Its 95 % interval, where there is one.
    pub interval: Option<Interval>,
}

impl Figure {
    /// Task and name, as in `age.mae`.
    pub fn path(&self) -> String {
        format!("{}.{}", self.task, self.name)
    }
}

impl TaskMetrics {
    /// The figures of a task with labels.
    pub const fn labelled(&self, task: Task) -> Option<&LabelMetrics> {
        match task {
            Task::Age => None,
            Task::Gender => self.gender.as_ref(),
            Task::Smile => self.smile.as_ref(),
            Task::Emotion => self.emotion.as_ref(),
        }
    }

    /// Every number that sums a task up, in the order of tasks.
    pub fn figures(&self) -> Vec<Figure> {
        let mut figures = Vec::new();
        let mut add = |task, intervals: &BTreeMap<String, Interval>, named: &[(&'static str, f64)]| {
            let figure = |(name, value): &(&'static str, f64)| Figure {
                task,
                name,
                value: *value,
                interval: intervals.get(*name).copied(),
            };
            figures.extend(named.iter().map(figure));
        };
        for task in Task::ALL {
            if let (Task::Age, Some(age)) = (task, &self.age) {
                let named = [
                    ("mae", age.mae),
                    ("mean_error", age.mean_error),
                    ("cs5", age.cs5),
                    ("accuracy_8", age.accuracy_8),
                    ("accuracy_8_one_off", age.accuracy_8_one_off),
                    ("interval_coverage", age.interval_coverage),
                ];
                add(task, &age.intervals, &named);
            }
            if let Some(label) = self.labelled(task) {
                let named = [
                    ("accuracy", label.accuracy),
                    ("balanced_accuracy", label.balanced_accuracy),
                    ("macro_f1", label.macro_f1),
                    ("log_loss", label.log_loss),
                    ("ece", label.ece),
                ];
                add(task, &label.intervals, &named);
            }
        }
        figures
    }
}

/// What a network says about one face; `None` for a task that it does not answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prediction {
    /// Age.
    pub age: Option<AgeReading>,
    /// Gender.
    pub gender: Option<LabelDistribution>,
    /// Smile.
    pub smile: Option<LabelDistribution>,
    /// Emotion.
    pub emotion: Option<LabelDistribution>,
}

impl Prediction {
    /// The answer to a task with labels.
    pub const fn labelled(&self, task: Task) -> Option<&LabelDistribution> {
        match task {
            Task::Age => None,
            Task::Gender => self.gender.as_ref(),
            Task::Smile => self.smile.as_ref(),
            Task::Emotion => self.emotion.as_ref(),
        }
    }

    /// Puts the answer to a task with labels in.
    pub fn set(&mut self, answer: LabelDistribution) {
        match answer.task() {
            Task::Age => {}
            Task::Gender => self.gender = Some(answer),
            Task::Smile => self.smile = Some(answer),
            Task::Emotion => self.emotion = Some(answer),
        }
    }
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
    /// Counts one face for each task that it is labelled for and that was predicted. There will be no intervals.
    pub fn add(&mut self, labels: &Labels, prediction: &Prediction) {
        self.add_weighted(labels, prediction, &[]);
    }

    /// The same, and in each replicate behind the intervals as often as `weights` say.
    pub fn add_weighted(&mut self, labels: &Labels, prediction: &Prediction, weights: &[u8]) {
        if let (Some(truth), Some(reading)) = (labels.age, prediction.age) {
            self.age.add_weighted(truth, reading, weights);
        }
        for score in [&mut self.gender, &mut self.smile, &mut self.emotion] {
            let task = score.task();
            if let (Some(truth), Some(predicted)) = (labels.class(task), prediction.labelled(task)) {
                score.add_weighted(truth, predicted, weights);
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
