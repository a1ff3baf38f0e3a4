//! Trains an encoder: the [`Lesson`] of pictures with yes-or-no attributes.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Result, ensure};
use facewise_core::picture::RgbImage;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tch::nn::VarStore;
use tch::{Device, Kind, Reduction, Tensor};

use super::config::Config;
use super::data::{Faces, Parts};
use crate::augment;
use crate::checkpoint;
use crate::lesson::{self, Lesson, Losses, Options, Plan, SCORES, WEIGHTS};
use crate::loader::{Batch, ahead};
use crate::network::{Mode, Network};
use crate::optimiser::AdamW;
use crate::sample::Sample;
use crate::validate;

/// Pictures in one pass of scoring.
const BATCH: usize = 256;

/// What an encoder is worth on some faces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Faces scored.
    pub n: usize,
    /// Mean binary cross-entropy of all attributes in nats.
    pub loss: f64,
    /// Share of right answers, over all attributes.
    pub accuracy: f64,
    /// The same of who always answers what is more frequent among the faces learned from.
    pub majority: f64,
    /// Share of right answers by attribute.
    pub attributes: BTreeMap<String, f64>,
}

/// Scores by how faces are cut: as the centred squares of their pictures, and by their keypoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Crops {
    /// Centred squares.
    pub square: Score,
    /// By keypoints.
    pub keypoints: Score,
}

/// What a complete run has found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// On the faces that chose the epoch, by their centred squares.
    pub validation: Crops,
    /// On faces that it has never seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<Crops>,
}

/// Trains a network as [`lesson::learn`] does, keeps the epoch with the lowest validation loss, and leaves its figures in the run's folder
/// as [`SCORES`].
///
/// # Errors
/// As for [`lesson::learn`], when an epoch is shorter than a batch, and when the network cannot work on pictures of this size.
pub fn train(config: &Config, parts: Parts, options: &Options) -> Result<Scores> {
    let (faces, batch) = (parts.train.len(), config.batch);
    ensure!(faces >= batch, "an epoch of {faces} faces has no batch of {batch}");
    let graph = config.graph()?;
    let shares = parts.train.shares(config.data.attributes.len());
    let lesson = Attributes {
        config,
        labels: labels(&parts.train, config, options.device),
        faces: Arc::new(parts.train.samples),
        judge: Judge { config, shares, device: options.device },
        validation: parts.validation,
    };
    lesson::learn(&lesson, &graph, config, options)?;

    let variables = VarStore::new(options.device);
    let network = Network::new(&variables.root(), &graph).with_precision(options.precision);
    checkpoint::load_weights(&options.run.join(WEIGHTS), &variables)?;
    let test = if parts.test.is_empty() { None } else { Some(lesson.judge.crops(&network, &parts.test)) };
    let scores = Scores { validation: lesson.judge.crops(&network, &lesson.validation), test };
    std::fs::write(options.run.join(SCORES), serde_json::to_string_pretty(&scores)? + "\n")?;
    Ok(scores)
}

/// Attributes of faces, fp32 `[n, attributes]`.
fn labels(faces: &Faces, config: &Config, device: Device) -> Tensor {
    Tensor::from_slice(&faces.attributes).view([-1, config.data.attributes.len() as i64]).to_device(device)
}

struct Attributes<'a> {
    config: &'a Config,
    faces: Arc<Vec<Sample>>,
    labels: Tensor,
    validation: Faces,
    judge: Judge<'a>,
}

impl Lesson for Attributes<'_> {
    /// Pictures, each with its number among the faces.
    type Batch = Batch<i64>;
    type Score = Score;
    const LOSSES: &'static [&'static str] = &["cross_entropy"];
    const SCORES: &'static [&'static str] = &["loss", "accuracy"];

    fn plan(&self) -> Plan {
        Plan {
            seed: self.config.seed,
            epochs: self.config.epochs,
            batches: self.faces.len() / self.config.batch,
            batch: self.config.batch,
            optimiser: self.config.optimiser.shared(),
        }
    }

    fn size(&self, _epoch: u32) -> u32 {
        self.config.size
    }

    fn optimiser(&self, variables: &VarStore) -> AdamW {
        self.config.optimiser.build(variables)
    }

    fn learning_rate(&self, plan: &Plan, step: u64) -> f64 {
        self.config.optimiser.rate(plan, step)
    }

    fn criterion(score: &Score) -> Option<f64> {
        Some(score.loss)
    }

    fn batches(&self, epoch: u32, skip: usize) -> impl Iterator<Item = Batch<i64>> {
        let Config { seed, size, batch, augmentation, .. } = self.config.clone();
        let mut order: Vec<usize> = (0..self.faces.len()).collect();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(u64::from(epoch));
        order.shuffle(&mut random);
        let faces = Arc::clone(&self.faces);
        ahead(skip..order.len() / batch, self.config.loaders, move |index| {
            let mut made = Batch::new(size, batch);
            for (position, &face) in order.iter().enumerate().skip(index * batch).take(batch) {
                let mut random = ChaCha8Rng::seed_from_u64(seed);
                random.set_stream((u64::from(epoch) << 32) | position as u64);
                made.push(&augment::augmented(&faces[face], size, &augmentation, &mut random), face as i64);
            }
            made
        })
    }

    fn losses(&self, network: &Network, batch: &Batch<i64>) -> Losses {
        let device = self.labels.device();
        let logits = &network.forward(&validate::pixels(batch, device), Mode::Train)[0];
        let labels = self.labels.index_select(0, &Tensor::from_slice(&batch.labels).to_device(device));
        let loss = binary(logits, &labels);
        Losses { parts: vec![loss.detach()], total: loss }
    }

    fn validate(&self, network: &Network, _epoch: u32) -> Result<Score> {
        Ok(self.judge.score(network, &self.validation, square))
    }

    fn figures(score: &Score) -> Vec<String> {
        [score.loss, score.accuracy].map(|figure| format!("{figure:.4}")).into()
    }
}

/// Mean binary cross-entropy of all attributes.
fn binary(logits: &Tensor, labels: &Tensor) -> Tensor {
    logits.binary_cross_entropy_with_logits::<Tensor>(labels, None, None, Reduction::Mean)
}

/// The centred square of a sample's picture.
fn square(sample: &Sample, size: u32) -> RgbImage {
    facewise_core::crop::crop(&sample.picture, &sample.square(), size)
}

/// Scores networks.
struct Judge<'a> {
    config: &'a Config,
    /// Share of each attribute among the faces learned from.
    shares: Vec<f64>,
    device: Device,
}

impl Judge<'_> {
    fn crops(&self, network: &Network, faces: &Faces) -> Crops {
        Crops { square: self.score(network, faces, square), keypoints: self.score(network, faces, augment::plain) }
    }

    fn score(&self, network: &Network, faces: &Faces, cut: impl Fn(&Sample, u32) -> RgbImage) -> Score {
        let Config { size, data, .. } = self.config;
        let (n, count) = (faces.len(), data.attributes.len());
        let truth = labels(faces, self.config, self.device);
        let (mut loss, mut right) = (0.0, Tensor::zeros([count as i64], (Kind::Double, self.device)));
        for (chunk, first) in faces.samples.chunks(BATCH).zip((0..).step_by(BATCH)) {
            let crops: Vec<RgbImage> = chunk.iter().map(|sample| cut(sample, *size)).collect();
            let batch = Batch::unlabelled(&crops.iter().collect::<Vec<_>>());
            let logits = &network.forward(&validate::pixels(&batch, self.device), Mode::Eval)[0];
            let labels = truth.narrow(0, first, chunk.len() as i64);
            loss += binary(logits, &labels).double_value(&[]) * chunk.len() as f64;
            right += logits.gt(0.0).eq_tensor(&labels.gt(0.5)).sum_dim_intlist([0_i64].as_slice(), false, Kind::Double);
        }
        let shares_right: Vec<f64> = (0..count as i64).map(|index| right.double_value(&[index]) / n as f64).collect();
        let mean = |shares: &mut dyn Iterator<Item = f64>| shares.sum::<f64>() / count as f64;
        let majority = self.shares.iter().zip(faces.shares(count));
        Score {
            n,
            loss: loss / n as f64,
            accuracy: mean(&mut shares_right.iter().copied()),
            majority: mean(&mut majority.map(|(known, share)| if *known > 0.5 { share } else { 1.0 - share })),
            attributes: data.attributes.iter().cloned().zip(shares_right).collect(),
        }
    }
}
