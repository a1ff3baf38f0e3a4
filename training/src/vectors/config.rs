//! All knobs of a training on vectors, read from one TOML file that is saved beside the run.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tch::nn::VarStore;

use super::target::Target;
use crate::architectures::attribute_mlp::attribute_mlp;
use crate::architectures::residual::Head;
use crate::architectures::resmlp::{ResMlpConfig, resmlp};
use crate::config;
use crate::graph::{Graph, GraphError};
use crate::lesson::Plan;
use crate::optimiser::{self, AdamW};

/// One training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the recipe, kept in the exported model's provenance.
    pub name: String,
    /// What is learned.
    pub target: Target,
    /// Seed of weights, order and random splits.
    pub seed: u64,
    /// Passes over the rows, at most.
    pub epochs: u32,
    /// Rows a step.
    pub batch: usize,
    /// The run ends after more than so many epochs without a lower validation loss; absent: never. The best epoch is kept anyway.
    pub patience: Option<u32>,
    /// Which rows teach.
    pub split: SplitConfig,
    /// The network.
    pub network: NetworkConfig,
    /// The optimiser and its schedule.
    pub optimiser: OptimiserConfig,
    /// The loss.
    pub loss: LossConfig,
    /// What was learned from. A run writes it, so that it is resumed and exported with the same data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceConfig>,
}

/// Which rows teach, and which choose the best epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitConfig {
    /// Keep to the split that the data brings along, where it does.
    pub given: bool,
    /// Share of the rows held out for validation where no split is given.
    pub validation: f64,
    /// Where the data tells who is on a row, nobody is on two sides of a random split.
    pub by_subject: bool,
}

/// Which network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum NetworkConfig {
    /// [`resmlp`].
    Resmlp(ResMlpConfig),
    /// [`attribute_mlp`].
    AttributeMlp,
}

/// `AdamW`, its schedule, and an average of the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimiserConfig {
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Whether biases and normalisations decay too, as in `PyTorch`'s default.
    pub decay_vectors: bool,
    /// Largest norm of the gradient of all weights together; absent: any.
    pub clip_norm: Option<f64>,
    /// Decay a step of the average of the weights that is scored and exported; at 0 these are the last weights themselves.
    pub ema_decay: f64,
    /// How the learning rate changes.
    pub schedule: Schedule,
}

/// How the learning rate changes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Schedule {
    /// Linear warm-up, then a cosine.
    Cosine {
        /// Steps from 0 to the highest rate.
        warmup_steps: u64,
        /// The rate at the end, as a share of the highest.
        final_share: f64,
    },
    /// Multiplied by a factor after each epoch.
    Exponential {
        /// The factor.
        gamma: f64,
    },
}

/// Targets of the cross-entropy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossConfig {
    /// Standard deviation in years of the distribution around the true age that is learned (Gao et al. 2017, DLDL); at 0 the year alone.
    /// Only for ages in years.
    pub age_sd: f64,
    /// Share of the target that is spread evenly over all classes; not for ages in years.
    pub label_smoothing: f64,
}

/// The files that a run learned from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Their names without folders.
    pub files: Vec<String>,
    /// SHA-256 of their contents, one after the other, in hexadecimal digits.
    pub sha256: String,
}

/// The recipe that is used where none is named.
const DEFAULT: &str = include_str!("../../configs/embeddings.toml");

impl Config {
    /// The recipe for embeddings of one's own.
    ///
    /// # Errors
    /// Never: a test reads it.
    pub fn default_recipe() -> Result<Self> {
        Self::parse(DEFAULT)
    }

    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// When the file is missing, is not TOML of this shape, or a value is out of range.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("in {}", path.display()))
    }

    /// Parses and checks a configuration.
    ///
    /// # Errors
    /// As for [`Config::read`].
    pub fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text)?;
        let Self { optimiser, loss, split, .. } = &config;
        ensure!(config.epochs >= 1, "`epochs` must be at least 1");
        ensure!(config.batch >= 2, "`batch` must be at least 2: batch norm has no statistics of one row");
        ensure!(
            (0.0..1.0).contains(&split.validation) && split.validation > 0.0,
            "`split.validation` is not between 0 and 1"
        );
        optimiser.check()?;
        ensure!(loss.age_sd >= 0.0, "`loss.age_sd` is negative");
        ensure!((0.0..1.0).contains(&loss.label_smoothing), "`loss.label_smoothing` is not in 0..1");
        if let NetworkConfig::Resmlp(network) = &config.network {
            ensure!((0.0..1.0).contains(&network.dropout), "`network.dropout` is not in 0..1");
        }
        Ok(config)
    }

    /// The network for rows of so many numbers.
    ///
    /// # Errors
    /// When it cannot work on so few.
    pub fn graph(&self, features: usize) -> Result<Graph, GraphError> {
        match &self.network {
            NetworkConfig::Resmlp(network) => {
                resmlp(network, features, &Head::new(self.target.head(), self.target.classes()))
            }
            NetworkConfig::AttributeMlp => {
                // Two classes are one logit here.
                let classes = self.target.classes();
                let outputs = if classes == 2 { 1 } else { classes };
                attribute_mlp(features, &Head::new(self.target.head(), outputs))
            }
        }
    }
}

impl OptimiserConfig {
    /// Whether the numbers are ones to walk by.
    ///
    /// # Errors
    /// When one is out of range.
    pub fn check(&self) -> Result<()> {
        ensure!(self.learning_rate > 0.0, "`optimiser.learning_rate` must be positive");
        ensure!((0.0..1.0).contains(&self.ema_decay), "`optimiser.ema_decay` is not in 0..1");
        ensure!(self.clip_norm.is_none_or(|norm| norm > 0.0), "`optimiser.clip_norm` must be positive");
        Ok(())
    }

    /// The optimiser of these variables.
    pub fn build(&self, variables: &VarStore) -> AdamW {
        let adamw = AdamW::new(variables, &self.shared());
        if self.decay_vectors { adamw.decaying_vectors() } else { adamw }
    }

    /// The learning rate at a step of a training, counted from 1.
    pub fn rate(&self, plan: &Plan, step: u64) -> f64 {
        match self.schedule {
            Schedule::Cosine { .. } => {
                optimiser::learning_rate(&plan.optimiser, step, plan.batches as u64 * u64::from(plan.epochs))
            }
            Schedule::Exponential { gamma } => {
                let epoch = (step - 1) / plan.batches as u64;
                plan.optimiser.learning_rate * gamma.powi(epoch as i32)
            }
        }
    }

    /// What the shared loop reads; the schedule is in it if it is the cosine.
    pub fn shared(&self) -> config::OptimiserConfig {
        let (warmup_steps, final_share) = match self.schedule {
            Schedule::Cosine { warmup_steps, final_share } => (warmup_steps, final_share),
            Schedule::Exponential { .. } => (0, 1.0),
        };
        config::OptimiserConfig {
            learning_rate: self.learning_rate,
            warmup_steps,
            final_share,
            weight_decay: self.weight_decay,
            clip_norm: self.clip_norm.unwrap_or(f64::INFINITY),
            ema_decay: self.ema_decay,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn shipped_recipes_are_valid_and_build_what_they_say() {
        for (text, features, parameters) in [
            (DEFAULT, 512, 837_733),
            (include_str!("../../configs/resmlp-gender.toml"), 512, 877_602),
            (include_str!("../../configs/resmlp-age-8.toml"), 512, 825_736),
            (include_str!("../../configs/resmlp-age-101.toml"), 512, 837_733),
            (include_str!("../../configs/celeba-mlp.toml"), 40, 3_517_345),
            (include_str!("../../configs/celeba-mlp-seed.toml"), 40, 3_517_345),
            (include_str!("../../configs/celeba-mlp-seed-short.toml"), 40, 3_517_345),
            (include_str!("../../configs/celeba-encoder-mlp.toml"), 40, 3_517_345),
        ] {
            let config = Config::parse(text).unwrap();
            assert_eq!(config.graph(features).unwrap().parameters(), parameters, "{}", config.name);
            let again = Config::parse(&toml::to_string_pretty(&config).unwrap()).unwrap();
            assert_eq!(again, config, "{} survives being written", config.name);
        }
    }

    #[test]
    fn wrong_knobs_are_named() {
        for (from, to, message) in [
            ("final_share", "last_share", "final_share"),
            ("dropout = ", "dropout = 1.5 #", "`network.dropout`"),
            ("add_ic", "add_id", "add_id"),
            ("batch = ", "batch = 1 #", "`batch`"),
            ("validation = ", "validation = 1.0 #", "`split.validation`"),
            ("target = \"age\"", "target = \"years\"", "unknown target 'years'"),
        ] {
            let text = DEFAULT.replace(from, to);
            assert_ne!(text, DEFAULT, "the case changes the file");
            let error = format!("{:#}", Config::parse(&text).unwrap_err());
            assert!(error.contains(message), "{error}");
        }
    }
}
