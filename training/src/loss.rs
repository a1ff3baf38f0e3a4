//! The joint loss: every task's cross-entropy over the samples that are labelled for it.

use facewise_core::task::{AGES, Task};
use tch::{Device, Kind, Tensor};

use crate::age::{AgeConfig, cross_entropy};
use crate::config::{DistillationConfig, LossConfig};
use crate::network::Outputs;
use crate::sample::{Labels, answer};

/// Losses of one step; a task without labelled samples in the batch has none.
#[derive(Debug)]
pub struct Losses {
    /// Weighted sum, to be minimised.
    pub total: Tensor,
    /// Mean per task, unweighted, in the order of [`Task::ALL`]; NaN where the batch has no label.
    pub tasks: [Tensor; 4],
}

/// The joint loss of a network's answers.
pub fn joint(
    outputs: &Outputs,
    labels: &[Labels],
    config: &LossConfig,
    age: &AgeConfig,
    distillation: Option<&DistillationConfig>,
) -> Losses {
    let device = outputs.device();
    let mut total = Tensor::zeros([], (Kind::Float, device));
    let tasks = Task::ALL.map(|task| {
        let answered = outputs.get(task.name());
        let targets = answered.and_then(|_| Targets::new(task, labels, config, distillation, device));
        let (Some(answered), Some(targets)) = (answered, targets) else {
            return Tensor::from(f32::NAN);
        };
        let (weight, losses) = match task {
            Task::Age => (config.weight(task), age.loss(&outputs.rows(&targets.rows), &targets.distribution, config)),
            Task::Gender | Task::Smile | Task::Emotion => {
                let logits = answered.index_select(0, &targets.rows);
                (config.weight(task), cross_entropy(&logits, &targets.distribution))
            }
        };
        let loss = (losses * &targets.weights).sum(Kind::Float) / targets.weights.sum(Kind::Float);
        total = &total + &loss * weight;
        loss.detach()
    });
    Losses { total, tasks }
}

/// The rows of which something is known for a task, the distribution that each should have, and how much each counts.
struct Targets {
    rows: Tensor,
    distribution: Tensor,
    weights: Tensor,
}

impl Targets {
    fn new(
        task: Task,
        labels: &[Labels],
        config: &LossConfig,
        distillation: Option<&DistillationConfig>,
        device: Device,
    ) -> Option<Self> {
        let (mut rows, mut weights, mut flat) = (Vec::new(), Vec::new(), Vec::<f32>::new());
        for (row, labels) in labels.iter().enumerate() {
            let answer = labels.answers.as_ref().map(|answers| answer(answers, task));
            let (target, weight) = match (labelled(task, labels, config), answer, distillation) {
                (Some(mut target), Some(answer), Some(distillation)) => {
                    mix(&mut target, answer, distillation.share as f32);
                    (target, 1.0)
                }
                (Some(target), ..) => (target, 1.0),
                (None, Some(answer), Some(distillation)) if distillation.unlabelled > 0.0 => {
                    (answer.to_vec(), distillation.unlabelled as f32)
                }
                (None, ..) => continue,
            };
            rows.push(row as i64);
            weights.push(weight);
            flat.extend(target);
        }
        (!rows.is_empty()).then(|| Self {
            rows: Tensor::from_slice(&rows).to_device(device),
            distribution: Tensor::from_slice(&flat).view([rows.len() as i64, task.classes() as i64]).to_device(device),
            weights: Tensor::from_slice(&weights).to_device(device),
        })
    }
}

/// The distribution that a sample should have by its label, if it has one.
fn labelled(task: Task, labels: &Labels, config: &LossConfig) -> Option<Vec<f32>> {
    let one_hot = |label: u8| {
        let classes = task.classes();
        let spread = config.label_smoothing as f32 / classes as f32;
        let mut target = vec![spread; classes];
        target[usize::from(label)] += 1.0 - config.label_smoothing as f32;
        target
    };
    match task {
        Task::Age => labels.age.map(|age| around(age, config.age_sd as f32)),
        Task::Gender => labels.gender.map(one_hot),
        Task::Smile => labels.smile.map(one_hot),
        Task::Emotion => labels.emotion.map(|label| {
            let mut target = one_hot(label);
            if let Some(votes) = labels.emotion_votes {
                mix(&mut target, &votes, config.emotion_votes as f32);
            }
            target
        }),
    }
}

/// Moves a distribution towards another one by a share of the way.
fn mix(target: &mut [f32], other: &[f32], share: f32) {
    for (target, other) in target.iter_mut().zip(other) {
        *target += (other - *target) * share;
    }
}

/// A normal distribution around the true age over 0..=100 years, cut at both ends and normalised.
/// Without a deviation it is the nearest year alone.
pub(crate) fn around(age: f32, sd: f32) -> Vec<f32> {
    if sd <= 0.0 {
        let nearest = age.round() as usize;
        return (0..AGES).map(|year| f32::from(year == nearest)).collect();
    }
    let weights: Vec<f32> = (0..AGES).map(|year| (-0.5 * ((year as f32 - age) / sd).powi(2)).exp()).collect();
    let sum: f32 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::ANSWERS;

    const CONFIG: LossConfig = LossConfig {
        age: 1.0,
        age_sd: 2.0,
        age_mean: 0.1,
        gender: 2.0,
        smile: 1.0,
        emotion: 1.0,
        label_smoothing: 0.0,
        emotion_votes: 0.5,
    };

    fn logits(n: i64) -> Outputs {
        let zeros = |task: Task| Tensor::zeros([n, task.classes() as i64], (Kind::Float, Device::Cpu));
        Task::ALL.iter().map(|task| (task.name().to_owned(), zeros(*task).set_requires_grad(true))).collect()
    }

    #[test]
    fn only_labelled_samples_count() {
        let labels = [Labels { gender: Some(1), ..Labels::default() }, Labels::default()];
        let logits = logits(2);
        let losses = joint(&logits, &labels, &CONFIG, &AgeConfig::Classes, None);
        let gender = losses.tasks[Task::Gender as usize].double_value(&[]);
        assert!((gender - 2f64.ln()).abs() < 1e-6, "{gender}");
        assert!((losses.total.double_value(&[]) - 2.0 * 2f64.ln()).abs() < 1e-5, "weighted");
        assert!(losses.tasks[Task::Smile as usize].double_value(&[]).is_nan());
        losses.total.backward();
        let gradient = Vec::<Vec<f32>>::try_from(logits.get("gender").expect("a head").grad()).expect("two by two");
        assert!(gradient[0][1] < 0.0 && gradient[1] == [0.0, 0.0], "{gradient:?}");
    }

    #[test]
    fn votes_are_mixed_into_the_emotion() {
        let votes = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0];
        let labels = [Labels { emotion: Some(6), emotion_votes: Some(votes), ..Labels::default() }];
        let targets = Targets::new(Task::Emotion, &labels, &CONFIG, None, Device::Cpu).expect("labelled");
        let row = Vec::<Vec<f32>>::try_from(targets.distribution).expect("one row");
        assert_eq!(row[0], [0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.5]);
    }

    #[test]
    fn a_teacher_adds_to_labels_and_stands_in_for_them() {
        let mut answers = [0.0; ANSWERS];
        answers[AGES..AGES + 2].copy_from_slice(&[0.75, 0.25]);
        let labels = [
            Labels { gender: Some(1), answers: Some(answers), ..Labels::default() },
            Labels { answers: Some(answers), ..Labels::default() },
            Labels { gender: Some(0), ..Labels::default() },
            Labels::default(),
        ];
        let distillation = DistillationConfig { share: 0.5, unlabelled: 0.25 };
        let targets = Targets::new(Task::Gender, &labels, &CONFIG, Some(&distillation), Device::Cpu).expect("known");
        assert_eq!(Vec::<i64>::try_from(targets.rows).expect("rows"), [0, 1, 2]);
        let rows = Vec::<Vec<f32>>::try_from(targets.distribution).expect("three rows");
        assert_eq!(rows, [[0.375, 0.625], [0.75, 0.25], [1.0, 0.0]]);
        assert_eq!(Vec::<f32>::try_from(targets.weights).expect("weights"), [1.0, 0.25, 1.0]);

        let losses = joint(&logits(4), &labels, &CONFIG, &AgeConfig::Classes, Some(&distillation));
        assert!((losses.tasks[Task::Gender as usize].double_value(&[]) - 2f64.ln()).abs() < 1e-6, "a weighted mean");
    }

    #[test]
    fn the_age_distribution_has_its_mean_at_the_age() {
        let target = around(40.0, 2.5);
        let mean: f32 = target.iter().enumerate().map(|(year, p)| year as f32 * p).sum();
        assert!((mean - 40.0).abs() < 1e-3 && (target.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        assert!(around(0.0, 2.5).iter().sum::<f32>() > 0.999);
        let alone = around(31.6, 0.0);
        assert_eq!(alone.iter().position(|share| *share > 0.0), Some(32), "the nearest year");
        assert!((alone.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }
}
