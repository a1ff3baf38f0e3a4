//! The joint loss: every task's cross-entropy over the samples that are labelled for it.

use facewise_core::task::{AGES, Task};
use tch::{Device, Kind, Tensor};

use crate::config::LossConfig;
use crate::sample::Labels;

/// Losses of one step; a task without labelled samples in the batch has none.
#[derive(Debug)]
pub struct Losses {
    /// Weighted sum, to be minimised.
    pub total: Tensor,
    /// Mean per task, unweighted, in the order of [`Task::ALL`]; NaN where the batch has no label.
    pub tasks: [Tensor; 4],
}

/// The joint loss of logits in the order of [`Task::ALL`].
pub fn joint(logits: &[Tensor], labels: &[Labels], config: &LossConfig) -> Losses {
    let device = logits[0].device();
    let mut total = Tensor::zeros([], (Kind::Float, device));
    let tasks = Task::ALL.map(|task| {
        let logits = &logits[task as usize];
        let Some(targets) = targets(task, labels, config, device) else {
            return Tensor::from(f32::NAN);
        };
        let logits = logits.index_select(0, &targets.rows);
        let log_probabilities = logits.log_softmax(-1, Kind::Float);
        let cross_entropy = -(&targets.distribution * &log_probabilities)
            .sum_dim_intlist([-1].as_slice(), false, Kind::Float)
            .mean(Kind::Float);
        let (weight, loss) = match task {
            Task::Age => {
                let years = Tensor::arange(AGES as i64, (Kind::Float, device));
                let mean = log_probabilities.exp().matmul(&years);
                let true_mean = targets.distribution.matmul(&years);
                let error = (mean - true_mean).abs().mean(Kind::Float);
                (config.age, cross_entropy + error * config.age_mean)
            }
            Task::Gender => (config.gender, cross_entropy),
            Task::Smile => (config.smile, cross_entropy),
            Task::Emotion => (config.emotion, cross_entropy),
        };
        total = &total + &loss * weight;
        loss.detach()
    });
    Losses { total, tasks }
}

/// The rows labelled for a task and the distribution each should have.
struct Targets {
    rows: Tensor,
    distribution: Tensor,
}

fn targets(task: Task, labels: &[Labels], config: &LossConfig, device: Device) -> Option<Targets> {
    let mut rows = Vec::new();
    let mut flat: Vec<f32> = Vec::new();
    for (row, labels) in labels.iter().enumerate() {
        let one_hot = |label: u8| {
            let classes = task.classes();
            let spread = config.label_smoothing as f32 / classes as f32;
            let mut target = vec![spread; classes];
            target[usize::from(label)] += 1.0 - config.label_smoothing as f32;
            target
        };
        let target = match task {
            Task::Age => labels.age.map(|age| around(age, config.age_sd as f32)),
            Task::Gender => labels.gender.map(one_hot),
            Task::Smile => labels.smile.map(one_hot),
            Task::Emotion => labels.emotion.map(|label| {
                let mut target = one_hot(label);
                if let Some(votes) = labels.emotion_votes {
                    let share = config.emotion_votes as f32;
                    for (target, vote) in target.iter_mut().zip(votes) {
                        *target += (vote - *target) * share;
                    }
                }
                target
            }),
        };
        if let Some(target) = target {
            rows.push(row as i64);
            flat.extend(target);
        }
    }
    (!rows.is_empty()).then(|| Targets {
        rows: Tensor::from_slice(&rows).to_device(device),
        distribution: Tensor::from_slice(&flat).view([rows.len() as i64, task.classes() as i64]).to_device(device),
    })
}

/// A normal distribution around the true age over 0..=100 years, cut at both ends and normalised.
fn around(age: f32, sd: f32) -> Vec<f32> {
    let weights: Vec<f32> = (0..AGES).map(|year| (-0.5 * ((year as f32 - age) / sd).powi(2)).exp()).collect();
    let sum: f32 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn logits(n: i64) -> Vec<Tensor> {
        Task::ALL
            .iter()
            .map(|task| Tensor::zeros([n, task.classes() as i64], (Kind::Float, Device::Cpu)).set_requires_grad(true))
            .collect()
    }

    #[test]
    fn only_labelled_samples_count() {
        let labels = [Labels { gender: Some(1), ..Labels::default() }, Labels::default()];
        let logits = logits(2);
        let losses = joint(&logits, &labels, &CONFIG);
        let gender = losses.tasks[Task::Gender as usize].double_value(&[]);
        assert!((gender - 2f64.ln()).abs() < 1e-6, "{gender}");
        assert!((losses.total.double_value(&[]) - 2.0 * 2f64.ln()).abs() < 1e-5, "weighted");
        assert!(losses.tasks[Task::Smile as usize].double_value(&[]).is_nan());
        losses.total.backward();
        let gradient = Vec::<Vec<f32>>::try_from(logits[Task::Gender as usize].grad()).expect("two by two");
        assert!(gradient[0][1] < 0.0 && gradient[1] == [0.0, 0.0], "{gradient:?}");
    }

    #[test]
    fn votes_are_mixed_into_the_emotion() {
        let votes = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0];
        let labels = [Labels { emotion: Some(6), emotion_votes: Some(votes), ..Labels::default() }];
        let targets = targets(Task::Emotion, &labels, &CONFIG, Device::Cpu).expect("labelled");
        let row = Vec::<Vec<f32>>::try_from(targets.distribution).expect("one row");
        assert_eq!(row[0], [0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.5]);
    }

    #[test]
    fn the_age_distribution_has_its_mean_at_the_age() {
        let target = around(40.0, 2.5);
        let mean: f32 = target.iter().enumerate().map(|(year, p)| year as f32 * p).sum();
        assert!((mean - 40.0).abs() < 1e-3 && (target.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        assert!(around(0.0, 2.5).iter().sum::<f32>() > 0.999);
    }
}
