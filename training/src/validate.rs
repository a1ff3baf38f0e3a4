//! Scores a network on held-out samples, with the decoding that serves and the metrics of the evaluation.

use anyhow::Result;
use facewise_core::decode::{AgeDistribution, LabelDistribution};
use facewise_core::task::Task;
use facewise_evaluation::manifest::Labels as Truth;
use facewise_evaluation::metrics::{AgeReading, Prediction, Scores, TaskMetrics};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use crate::age::AgeConfig;
use crate::augment;
use crate::config::Config;
use crate::loader::Batch;
use crate::loss;
use crate::network::{Mode, Network, Outputs};
use crate::sample::{Labels, Sample};

/// Pictures in one pass.
const BATCH: usize = 256;

/// Mean and standard deviation of every plane, in the manifest and in [`pixels`] alike.
pub const NORMALISATION: ([f32; 3], [f32; 3]) = ([0.5; 3], [0.5; 3]);

/// The pixels of a batch as the network reads them: fp32 `[n, 3, size, size]`, normalised as [`NORMALISATION`] says.
pub fn pixels<L>(batch: &Batch<L>, device: Device) -> Tensor {
    let size = i64::from(batch.size);
    // The bytes are already channels last; the permuted view keeps that layout through the conversion.
    let bytes = Tensor::from_slice(&batch.pixels).view([-1, size, size, 3]).permute([0, 3, 1, 2]);
    bytes.to_device(device).to_kind(Kind::Float) * (2.0 / 255.0) - 1.0
}

/// Plain crops of samples, in batches.
pub fn plain_batches(samples: &[Sample], size: u32) -> impl Iterator<Item = Batch> {
    samples.chunks(BATCH).map(move |chunk| {
        let mut batch = Batch::new(size, chunk.len());
        for sample in chunk {
            batch.push(&augment::plain(sample, size), sample.labels);
        }
        batch
    })
}

/// What a network is worth on held-out samples.
#[derive(Debug, Serialize)]
pub struct Score {
    /// The joint loss: the weighted sum of the mean loss of each task.
    pub loss: f64,
    /// Share of the ages whose most probable year is the true one, as networks that take years for classes are scored.
    pub age_exact: Option<f64>,
    /// The figures of each task.
    #[serde(flatten)]
    pub tasks: TaskMetrics,
}

/// The figures of a network on plain crops of all samples.
///
/// # Errors
/// When the network answers something that is no distribution.
pub fn score(network: &Network, samples: &[Sample], size: u32, config: &Config, device: Device) -> Result<Score> {
    let mut scores = Scores::default();
    let mut losses = [(0.0, 0); Task::ALL.len()];
    let (mut exact, mut ages) = (0, 0);
    for batch in plain_batches(samples, size) {
        let outputs = network.answer(&pixels(&batch, device), Mode::Eval);
        let of_tasks = loss::joint(&outputs, &batch.labels, &config.loss, &config.age, None).tasks;
        for ((sum, n), (task, loss)) in losses.iter_mut().zip(Task::ALL.iter().zip(of_tasks)) {
            let labelled = batch.labels.iter().filter(|labels| truth(labels).has(*task)).count();
            let loss = loss.double_value(&[]);
            if labelled > 0 && !loss.is_nan() {
                *sum += loss * labelled as f64;
                *n += labelled;
            }
        }
        let probabilities =
            Task::ALL.map(|task| probabilities(&outputs, task, &config.age).map(Vec::<Vec<f32>>::try_from).transpose());
        let [age, gender, smile, emotion] = probabilities;
        let (age, gender, smile, emotion) = (age?, gender?, smile?, emotion?);
        for (row, labels) in batch.labels.iter().enumerate() {
            let label = |task, rows: &Option<Vec<Vec<f32>>>| {
                rows.as_ref().map(|rows| LabelDistribution::from_probabilities(task, &rows[row])).transpose()
            };
            let years = age.as_ref().map(|rows| AgeDistribution::from_probabilities(&rows[row])).transpose()?;
            if let (Some(years), Some(truth)) = (&years, labels.age) {
                ages += 1;
                exact += u32::from(years.mode() == truth.round() as usize);
            }
            let prediction = Prediction {
                age: years.map(|years| AgeReading::of(&years, config.age.point())),
                gender: label(Task::Gender, &gender)?,
                smile: label(Task::Smile, &smile)?,
                emotion: label(Task::Emotion, &emotion)?,
            };
            scores.add(&truth(labels), &prediction);
        }
    }
    let means = Task::ALL.iter().zip(losses).filter(|(_, (_, n))| *n > 0);
    let loss = means.map(|(task, (sum, n))| config.loss.weight(*task) * sum / n as f64).sum();
    let age_exact = (ages > 0).then(|| f64::from(exact) / f64::from(ages));
    Ok(Score { loss, age_exact, tasks: scores.finish() })
}

/// A task's distributions, fp32 `[n, classes]` on the CPU, if the network answers it.
pub fn probabilities(outputs: &Outputs, task: Task, age: &AgeConfig) -> Option<Tensor> {
    let output = outputs.get(task.name())?;
    let is_logits = task != Task::Age || age.is_logits();
    let probabilities = if is_logits { output.softmax(-1, Kind::Float) } else { output.shallow_clone() };
    Some(probabilities.to_device(Device::Cpu))
}

fn truth(labels: &Labels) -> Truth {
    Truth {
        age: labels.age,
        gender: labels.gender.map(usize::from),
        smile: labels.smile.map(usize::from),
        emotion: labels.emotion.map(usize::from),
    }
}

#[cfg(test)]
mod tests {
    use facewise_core::crop;
    use facewise_core::picture::RgbImage;

    use super::*;

    /// What training feeds equals what serving feeds.
    #[test]
    fn pixels_are_normalised_as_in_serving() {
        let crop = RgbImage::from_fn(16, 16, |x, y| image::Rgb([x as u8 * 16, y as u8 * 16, 200]));
        let mut batch = Batch::new(16, 1);
        batch.push(&crop, Labels::default());
        let trained = Vec::<f32>::try_from(pixels(&batch, Device::Cpu).contiguous().flatten(0, -1)).expect("numbers");
        let mut served = vec![0.0; 3 * 256];
        crop::normalise(&crop, NORMALISATION.0, NORMALISATION.1, &mut served);
        for (a, b) in trained.iter().zip(&served) {
            assert!((a - b).abs() < 1e-6, "{a} is not {b}");
        }
    }
}
