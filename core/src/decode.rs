//! From the numbers of a network to answers: softmax, the posterior of the age with its
//! median, mean and 68 % interval, and labels with their probabilities.

use serde::{Deserialize, Serialize};

use crate::task::{AGES, AgeGroup, Task};

/// What is wrong with a network's output.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// The head has another number of classes than the task.
    #[error("{task} has {expected} classes, the network gave {found}")]
    Classes {
        /// The task decoded.
        task: Task,
        /// Classes of the task.
        expected: usize,
        /// Numbers in the output.
        found: usize,
    },
    /// The output is not a distribution: a number is negative or not finite, or all are zero.
    #[error("the network's output for {0} is not a distribution")]
    NotADistribution(Task),
}

/// `exp(zᵢ) / Σ exp(zⱼ)`, shifted by the maximum so that nothing overflows.
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f32> = logits.iter().map(|z| (z - highest).exp()).collect();
    let sum: f32 = exponentials.iter().sum();
    exponentials.into_iter().map(|e| e / sum).collect()
}

/// Shannon entropy of a distribution in nats; 0 for a certain answer, `ln n` for a uniform one.
pub fn entropy(probabilities: &[f32]) -> f32 {
    // Not the negative of the sum, which would be −0 of a certain answer.
    0.0 - probabilities.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum::<f32>()
}

/// Divides by the sum, so that what follows may rely on a distribution.
fn normalised(task: Task, classes: usize, numbers: &[f32]) -> Result<Vec<f32>, DecodeError> {
    if numbers.len() != classes {
        return Err(DecodeError::Classes { task, expected: classes, found: numbers.len() });
    }
    let sum: f32 = numbers.iter().sum();
    if !sum.is_normal() || numbers.iter().any(|p| *p < 0.0) {
        return Err(DecodeError::NotADistribution(task));
    }
    Ok(numbers.iter().map(|p| p / sum).collect())
}

/// How the years of an answer are read from the posterior of the age.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgePoint {
    /// The median, which minimises the mean absolute error.
    #[default]
    Median,
    /// The expected value, which minimises the squared error (DEX, Rothe et al. 2015).
    Mean,
    /// The most probable year.
    Mode,
}

/// Posterior of the age over 0..=100 years. Year `i` stands for ages from `i − 0.5` to `i + 0.5`.
#[derive(Clone, Debug, PartialEq)]
pub struct AgeDistribution(Vec<f32>);

impl AgeDistribution {
    /// From 101 probabilities; they are divided by their sum.
    ///
    /// # Errors
    /// When there are not 101, or they are no distribution.
    pub fn from_probabilities(probabilities: &[f32]) -> Result<Self, DecodeError> {
        normalised(Task::Age, AGES, probabilities).map(Self)
    }

    /// The 101 probabilities.
    pub fn probabilities(&self) -> &[f32] {
        &self.0
    }

    /// Expected age in years.
    pub fn mean(&self) -> f32 {
        self.0.iter().enumerate().map(|(year, p)| year as f32 * p).sum()
    }

    /// The age in years below which the posterior holds `share` (0..1) of its mass, linear within a year, in 0..=100.
    pub fn quantile(&self, share: f32) -> f32 {
        let mut below = 0.0;
        for (year, p) in self.0.iter().enumerate() {
            if *p > 0.0 && below + p >= share {
                let within = ((share - below) / p).clamp(0.0, 1.0);
                return (year as f32 - 0.5 + within).clamp(0.0, (AGES - 1) as f32);
            }
            below += p;
        }
        (AGES - 1) as f32
    }

    /// Median age in years.
    pub fn median(&self) -> f32 {
        self.quantile(0.5)
    }

    /// The most probable year; the lowest of several.
    pub fn mode(&self) -> usize {
        argmax(&self.0)
    }

    /// The central 68 % interval in whole years: what lies between the quantiles 0.16 and 0.84.
    pub fn interval(&self) -> (u8, u8) {
        (self.quantile(0.16).round() as u8, self.quantile(0.84).round() as u8)
    }

    /// The age in years as `point` reads it.
    pub fn years(&self, point: AgePoint) -> f32 {
        match point {
            AgePoint::Median => self.median(),
            AgePoint::Mean => self.mean(),
            AgePoint::Mode => self.mode() as f32,
        }
    }

    /// The Adience group of the age that `point` reads, so that years and group never contradict each other.
    pub fn group(&self, point: AgePoint) -> AgeGroup {
        AgeGroup::from_years(self.years(point))
    }

    /// Entropy in nats.
    pub fn entropy(&self) -> f32 {
        entropy(&self.0)
    }
}

/// Distribution over the eight age groups of Adience, of a network that knows no years.
#[derive(Clone, Debug, PartialEq)]
pub struct AgeGroupDistribution(Vec<f32>);

impl AgeGroupDistribution {
    /// From 8 probabilities, of the youngest first; they are divided by their sum.
    ///
    /// # Errors
    /// When there are not 8, or they are no distribution.
    pub fn from_probabilities(probabilities: &[f32]) -> Result<Self, DecodeError> {
        normalised(Task::Age, AgeGroup::NAMES.len(), probabilities).map(Self)
    }

    /// The 8 probabilities, of the youngest first.
    pub fn probabilities(&self) -> &[f32] {
        &self.0
    }

    /// The most probable group; the youngest of several.
    ///
    /// # Panics
    /// Never: there are as many probabilities as groups.
    pub fn top(&self) -> AgeGroup {
        AgeGroup::from_index(argmax(&self.0)).expect("as many probabilities as groups")
    }

    /// Probability of the most probable group.
    pub fn probability(&self) -> f32 {
        self.0[argmax(&self.0)]
    }
}

/// Distribution over the labels of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelDistribution {
    task: Task,
    probabilities: Vec<f32>,
}

impl LabelDistribution {
    /// From one probability per label in tensor order; they are divided by their sum.
    ///
    /// # Errors
    /// When the count differs from the task's labels, or they are no distribution.
    pub fn from_probabilities(task: Task, probabilities: &[f32]) -> Result<Self, DecodeError> {
        normalised(task, task.classes(), probabilities).map(|probabilities| Self { task, probabilities })
    }

    /// The task.
    pub const fn task(&self) -> Task {
        self.task
    }

    /// Index of the most probable label; the lowest of several.
    pub fn top(&self) -> usize {
        argmax(&self.probabilities)
    }

    /// The most probable label.
    pub fn label(&self) -> &'static str {
        self.task.labels()[self.top()]
    }

    /// Probability of the most probable label.
    pub fn probability(&self) -> f32 {
        self.probabilities[self.top()]
    }

    /// Probabilities in tensor order.
    pub fn probabilities(&self) -> &[f32] {
        &self.probabilities
    }

    /// Entropy in nats.
    pub fn entropy(&self) -> f32 {
        entropy(&self.probabilities)
    }
}

fn argmax(numbers: &[f32]) -> usize {
    let mut best = 0;
    for (index, number) in numbers.iter().enumerate() {
        if *number > numbers[best] {
            best = index;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn age(weights: &[(usize, f32)]) -> AgeDistribution {
        let mut probabilities = [0.0; AGES];
        for (year, weight) in weights {
            probabilities[*year] = *weight;
        }
        AgeDistribution::from_probabilities(&probabilities).expect("a distribution")
    }

    #[test]
    fn a_certain_age_is_read_as_itself() {
        let posterior = age(&[(31, 1.0)]);
        assert_eq!((posterior.median(), posterior.mean(), posterior.mode()), (31.0, 31.0, 31));
        assert_eq!(posterior.interval(), (31, 31));
        assert_eq!(posterior.group(AgePoint::Median).name(), "25-32");
    }

    #[test]
    fn the_median_is_linear_within_a_year() {
        let posterior = age(&[(20, 0.4), (30, 0.2), (40, 0.4)]);
        assert!((posterior.median() - 30.0).abs() < 1e-5);
        assert!((age(&[(20, 0.25), (21, 0.75)]).median() - 20.833_334).abs() < 1e-5);
    }

    #[test]
    fn quantiles_stay_between_0_and_100() {
        let within = |quantile: f32| (0.0..=100.0).contains(&quantile);
        assert!(within(age(&[(0, 1.0)]).quantile(0.01)));
        assert!(within(age(&[(100, 1.0)]).quantile(0.99)));
    }

    #[test]
    fn what_is_no_distribution_is_refused() {
        let wrong = |numbers: &[f32]| LabelDistribution::from_probabilities(Task::Smile, numbers).map(|_| ());
        assert_eq!(wrong(&[1.0]), Err(DecodeError::Classes { task: Task::Smile, expected: 2, found: 1 }));
        for numbers in [[0.0, 0.0], [f32::NAN, 1.0], [-0.5, 1.5], [f32::INFINITY, 0.0]] {
            assert_eq!(wrong(&numbers), Err(DecodeError::NotADistribution(Task::Smile)), "{numbers:?}");
        }
    }

    #[test]
    fn age_groups_are_read_in_their_order() {
        let groups =
            AgeGroupDistribution::from_probabilities(&[0.0, 0.0, 1.0, 0.0, 3.0, 0.0, 0.0, 0.0]).expect("eight");
        assert_eq!((groups.top().name(), groups.probability()), ("25-32", 0.75));
        let wrong = AgeGroupDistribution::from_probabilities(&[1.0; 101]).expect_err("eight");
        assert_eq!(wrong, DecodeError::Classes { task: Task::Age, expected: 8, found: 101 });
    }

    #[test]
    fn the_top_label_follows_tensor_order() {
        let smile = LabelDistribution::from_probabilities(Task::Smile, &[0.2, 0.6]).expect("a distribution");
        assert_eq!((smile.label(), smile.top()), ("smiling", 1));
        assert!((smile.probability() - 0.75).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn softmax_is_a_distribution_and_ignores_a_shift(logits in prop::collection::vec(-50f32..50.0, 1..20), shift in -1000f32..1000.0) {
            let probabilities = softmax(&logits);
            prop_assert!((probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-4);
            let shifted = softmax(&logits.iter().map(|z| z + shift).collect::<Vec<_>>());
            for (p, q) in probabilities.iter().zip(&shifted) {
                prop_assert!((p - q).abs() < 1e-3);
            }
        }

        #[test]
        fn interval_holds_the_median_and_two_thirds_of_the_mass(weights in prop::collection::vec(0f32..1.0, AGES)) {
            prop_assume!(weights.iter().sum::<f32>() > 0.1);
            let posterior = AgeDistribution::from_probabilities(&weights).expect("a distribution");
            let (low, high) = posterior.interval();
            let median = posterior.median();
            prop_assert!(f32::from(low) <= median + 0.5 && median - 0.5 <= f32::from(high));
            let inside: f32 = posterior.probabilities()[usize::from(low)..=usize::from(high)].iter().sum();
            prop_assert!(inside >= 0.66, "{low}..={high} holds {inside}");
        }

        #[test]
        fn quantiles_ascend(weights in prop::collection::vec(0f32..1.0, AGES), p in 0f32..1.0, q in 0f32..1.0) {
            prop_assume!(weights.iter().sum::<f32>() > 0.1);
            let posterior = AgeDistribution::from_probabilities(&weights).expect("a distribution");
            prop_assert!(posterior.quantile(p.min(q)) <= posterior.quantile(p.max(q)) + 1e-4);
        }

        #[test]
        fn entropy_lies_between_certain_and_uniform(weights in prop::collection::vec(0.001f32..1.0, 7)) {
            let emotion = LabelDistribution::from_probabilities(Task::Emotion, &weights).expect("a distribution");
            prop_assert!((0.0..=7f32.ln() + 1e-4).contains(&emotion.entropy()));
        }
    }
}
