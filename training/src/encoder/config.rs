//! All knobs of an encoder's training, read from one TOML file that is saved beside the run.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::architectures::residual::Head;
use crate::architectures::resnet::ResnetConfig;
use crate::config::AugmentationConfig;
use crate::graph::{Graph, GraphError};
use crate::vectors::config::OptimiserConfig;

/// Name of the output with a logit for each attribute.
pub const ATTRIBUTES: &str = "attributes";

/// One training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the recipe, kept in the exported model's provenance.
    pub name: String,
    /// Seed of weights, order and augmentation.
    pub seed: u64,
    /// Side of the input in pixels.
    pub size: u32,
    /// Passes over the pictures.
    pub epochs: u32,
    /// Pictures a step.
    pub batch: usize,
    /// Threads that make batches beside the threads of libtorch.
    pub loaders: usize,
    /// The pictures.
    pub data: DataConfig,
    /// The network below its last layer.
    pub network: ResnetConfig,
    /// The optimiser and its schedule.
    pub optimiser: OptimiserConfig,
    /// How pictures are varied.
    pub augmentation: AugmentationConfig,
}

/// The set, and what is learned from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Folder of the set under `--data`.
    pub set: String,
    /// Filter of the rows learned from, as in `split=train`.
    pub train: String,
    /// Filter of the rows that choose the epoch.
    pub validation: String,
    /// Filter of the rows that only measure; absent: none.
    pub test: Option<String>,
    /// Columns with 1 where a face has the attribute, and 0 or -1 where it has not.
    pub attributes: Vec<String>,
}

impl Config {
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
        ensure!((32..=512).contains(&config.size), "`size` is not in 32..=512");
        ensure!(config.epochs >= 1, "`epochs` must be at least 1");
        ensure!(config.batch >= 2, "`batch` must be at least 2: batch norm has no statistics of one picture");
        ensure!(config.loaders >= 1, "`loaders` must be at least 1");
        ensure!(!config.data.attributes.is_empty(), "`data.attributes` is empty");
        ensure!(config.augmentation.scale >= 1.0, "`augmentation.scale` is a factor of at least 1");
        config.optimiser.check()?;
        Ok(config)
    }

    /// The network with one logit for each attribute.
    ///
    /// # Errors
    /// When it cannot work on pictures of this size.
    pub fn graph(&self) -> Result<Graph, GraphError> {
        let head = Head::new(ATTRIBUTES, self.data.attributes.len());
        self.network.with_heads(self.size as usize, &[head])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_shipped_recipe_is_valid() {
        let text = include_str!("../../configs/celeba-encoder.toml");
        let config = Config::parse(text).unwrap();
        // ResNet-18 without its last layer, and forty logits.
        assert_eq!(config.graph().unwrap().parameters(), 11_689_512 - 513 * 1000 + 513 * 40);
        let error = Config::parse(&text.replace("ema_decay = ", "ema_decay = 2.0 #")).unwrap_err().to_string();
        assert!(error.contains("`optimiser.ema_decay`"), "{error}");
    }
}
