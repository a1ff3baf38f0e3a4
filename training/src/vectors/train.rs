//! Trains a network on vectors: the [`Lesson`] of rows with classes.

use anyhow::Result;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tch::nn::VarStore;
use tch::{Device, Kind, Reduction, Tensor, no_grad};

use super::config::{Config, NetworkConfig};
use super::rows::{Examples, Rows};
use super::score::{Score, all_classes, score};
use super::split::Split;
use super::target::Target;
use crate::architectures::attribute_mlp::SLOPE;
use crate::checkpoint;
use crate::lesson::{self, Lesson, Losses, Options, Plan, SCORES, WEIGHTS};
use crate::loss::around;
use crate::network::{Mode, Network};
use crate::optimiser::{self, AdamW};

/// What a network is worth on the parts of its data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// On the rows that it learned from, without dropout.
    pub train: Score,
    /// On the rows that chose the epoch.
    pub validation: Score,
    /// On rows that it has never seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<Score>,
}

/// What a training tells on the way, and to whom.
pub enum Manner<'a> {
    /// Figures and progress, to people.
    Told,
    /// Nothing: one of many.
    Quiet,
    /// The score of each epoch, counted from 0, to a judge who says whether it is the last; nothing to people.
    Judged(&'a dyn Fn(u32, &Score) -> Result<bool>),
}

/// Trains a network as [`lesson::learn`] does and keeps the epoch with the lowest validation loss; scores it on every part of the data and
/// leaves the figures in the run's folder as [`SCORES`].
///
/// # Errors
/// As for [`lesson::learn`], and when the network cannot work on the rows.
pub fn train(config: &Config, rows: &Rows, split: &Split, options: &Options, manner: &Manner) -> Result<Scores> {
    let graph = config.graph(rows.features)?;
    let lesson = Vectors::new(config, rows, split, options.device, manner);
    let validation = lesson::learn(&lesson, &graph, config, options)?;

    let variables = VarStore::new(options.device);
    let network = Network::new(&variables.root(), &graph).with_precision(options.precision);
    checkpoint::load_weights(&options.run.join(WEIGHTS), &variables)?;
    let test = rows.examples(&split.test, options.device);
    let test = if test.is_empty() { None } else { Some(score(&network, &test, &config.target)?) };
    let scores = Scores { train: score(&network, &lesson.train, &config.target)?, validation, test };
    std::fs::write(options.run.join(SCORES), serde_json::to_string_pretty(&scores)? + "\n")?;
    Ok(scores)
}

struct Vectors<'a> {
    config: &'a Config,
    train: Examples,
    /// The distribution that each row should have, fp32 `[n, classes]`, where it is not its class alone.
    soft: Option<Tensor>,
    validation: Examples,
    manner: &'a Manner<'a>,
}

impl<'a> Vectors<'a> {
    fn new(config: &'a Config, rows: &Rows, split: &Split, device: Device, manner: &'a Manner<'a>) -> Self {
        let train = rows.examples(&split.train, device);
        let soft = (config.target == Target::Age && config.loss.age_sd > 0.0).then(|| {
            let targets: Vec<f32> =
                train.years.iter().flat_map(|years| around(years.min(100.0), config.loss.age_sd as f32)).collect();
            Tensor::from_slice(&targets).view([train.len() as i64, -1]).to_device(device)
        });
        Self { config, train, soft, validation: rows.examples(&split.validation, device), manner }
    }
}

impl Lesson for Vectors<'_> {
    /// Numbers of rows, int64 `[n]`.
    type Batch = Tensor;
    type Score = Score;
    const LOSSES: &'static [&'static str] = &["cross_entropy"];
    const SCORES: &'static [&'static str] = &["loss", "accuracy", "one_off", "age_mae"];
    const ITEMS: &'static str = "rows";

    fn plan(&self) -> Plan {
        Plan {
            seed: self.config.seed,
            epochs: self.config.epochs,
            batches: batches(self.train.len(), self.config.batch),
            batch: self.config.batch.min(self.train.len()),
            optimiser: self.config.optimiser.shared(),
        }
    }

    fn size(&self, _epoch: u32) -> u32 {
        self.train.inputs.size()[1] as u32
    }

    fn initialise(&self, variables: &VarStore) {
        initialise(variables, &self.config.network);
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

    fn patience(&self) -> Option<u32> {
        self.config.patience
    }

    fn quiet(&self) -> bool {
        !matches!(self.manner, Manner::Told)
    }

    fn ends(&self, epoch: u32, score: &Score) -> Result<bool> {
        match self.manner {
            Manner::Judged(judge) => judge(epoch, score),
            Manner::Told | Manner::Quiet => Ok(false),
        }
    }

    fn batches(&self, epoch: u32, skip: usize) -> impl Iterator<Item = Tensor> {
        let mut order: Vec<i64> = (0..self.train.len() as i64).collect();
        let mut random = ChaCha8Rng::seed_from_u64(self.config.seed);
        random.set_stream(u64::from(epoch));
        order.shuffle(&mut random);
        let device = self.train.inputs.device();
        (skip..batches(order.len(), self.config.batch)).map(move |index| {
            let first = index * self.config.batch;
            Tensor::from_slice(&order[first..order.len().min(first + self.config.batch)]).to_device(device)
        })
    }

    fn losses(&self, network: &Network, rows: &Tensor) -> Losses {
        let inputs = self.train.inputs.index_select(0, rows);
        let logits = all_classes(&network.forward(&inputs, Mode::Train)[0]);
        let loss = match &self.soft {
            Some(soft) => {
                let log_probabilities = logits.log_softmax(-1, Kind::Float);
                -(soft.index_select(0, rows) * log_probabilities).sum(Kind::Float) / rows.size()[0] as f64
            }
            None => logits.cross_entropy_loss::<Tensor>(
                &self.train.classes.index_select(0, rows),
                None,
                Reduction::Mean,
                -100,
                if self.config.target == Target::Age { 0.0 } else { self.config.loss.label_smoothing },
            ),
        };
        Losses { parts: vec![loss.detach()], total: loss }
    }

    fn validate(&self, network: &Network, _epoch: u32) -> Result<Score> {
        score(network, &self.validation, &self.config.target)
    }

    fn figures(score: &Score) -> Vec<String> {
        let cell = |figure: Option<f64>| format!("{:.4}", figure.unwrap_or(f64::NAN));
        [Some(score.loss), Some(score.accuracy), score.one_off, score.mae.map(|mae| mae.median)].map(cell).into()
    }
}

/// Batches of an epoch. What remains at the end is one too, but for a single row: batch norm has no statistics of it.
fn batches(rows: usize, batch: usize) -> usize {
    rows / batch + usize::from(rows % batch >= 2)
}

/// The weights that a training starts from, as the published experiments drew them.
///
/// `ResMLP` has `PyTorch`'s default, uniform within ±1/√inputs for weights and biases. The attribute network has He's normal distribution by
/// fan-in for its rectifiers, zero biases, and Glorot's normal distribution in its head.
pub fn initialise(variables: &VarStore, network: &NetworkConfig) {
    let variables = optimiser::sorted(variables);
    let inputs_of = |name: &str| {
        let weight = format!("{}.weight", name.rsplit_once('.').map_or(name, |(layer, _)| layer));
        variables
            .iter()
            .find(|(other, _)| *other == weight)
            .map_or(0, |(_, weight)| weight.size().get(1).copied().unwrap_or(0))
    };
    no_grad(|| {
        for (name, variable) in &variables {
            let (inputs, mut variable) = (inputs_of(name), variable.shallow_clone());
            // Normalisations keep their ones and zeros.
            if inputs == 0 {
                continue;
            }
            match network {
                NetworkConfig::Resmlp(_) => {
                    let bound = 1.0 / (inputs as f64).sqrt();
                    let _ = variable.uniform_(-bound, bound);
                }
                NetworkConfig::AttributeMlp if variable.dim() == 1 => {
                    let _ = variable.zero_();
                }
                NetworkConfig::AttributeMlp => {
                    let outputs = variable.size()[0];
                    let variance = if name.starts_with("heads.") {
                        2.0 / (inputs + outputs) as f64
                    } else {
                        2.0 / ((1.0 + SLOPE * SLOPE) * inputs as f64)
                    };
                    let _ = variable.normal_(0.0, variance.sqrt());
                }
            }
        }
    });
}
