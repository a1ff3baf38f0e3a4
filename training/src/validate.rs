//! Scores a network on held-out samples, with the decoding that serves and the metrics of the evaluation.

use anyhow::Result;
use facewise_core::decode::{AgeDistribution, AgePoint, LabelDistribution};
use facewise_core::task::Task;
use facewise_evaluation::manifest::Labels as Truth;
use facewise_evaluation::metrics::{AgeReading, Prediction, Scores, TaskMetrics};
use tch::{Device, Kind, Tensor};

use crate::augment;
use crate::loader::Batch;
use crate::network::{Mode, Network};
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

/// The figures of a network on plain crops of all samples.
///
/// # Errors
/// When the network answers something that is no distribution.
pub fn score(network: &Network, samples: &[Sample], size: u32, device: Device) -> Result<TaskMetrics> {
    let mut scores = Scores::default();
    for batch in plain_batches(samples, size) {
        let outputs = network.forward(&pixels(&batch, device), Mode::Eval);
        let probabilities: Vec<Vec<Vec<f32>>> = outputs
            .iter()
            .map(|logits| Vec::try_from(logits.softmax(-1, Kind::Float).to_device(Device::Cpu)))
            .collect::<Result<_, _>>()?;
        for (row, labels) in batch.labels.iter().enumerate() {
            let of = |task: Task| probabilities[task as usize][row].as_slice();
            let label = |task| LabelDistribution::from_probabilities(task, of(task));
            let prediction = Prediction {
                age: Some(AgeReading::of(&AgeDistribution::from_probabilities(of(Task::Age))?, AgePoint::Median)),
                gender: Some(label(Task::Gender)?),
                smile: Some(label(Task::Smile)?),
                emotion: Some(label(Task::Emotion)?),
            };
            scores.add(&truth(labels), &prediction);
        }
    }
    Ok(scores.finish())
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
