//! Variants of a `ResMLP` that tell what its parts are worth.

use std::fmt;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::config::{Config, NetworkConfig};
use super::target::Target;
use facewise_core::task::Task;

/// A `ResMLP` without some of its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// All of it.
    Baseline,
    /// Without dropout.
    NoDropout,
    /// Without independent-component layers, and so without normalisation and dropout.
    NoIc,
    /// Without the sums around residual layers.
    NoResidual,
    /// Without sums and independent-component layers.
    Neither,
}

impl Variant {
    /// All, in the order of tables.
    pub const ALL: [Self; 5] = [Self::Baseline, Self::NoDropout, Self::NoIc, Self::NoResidual, Self::Neither];

    /// The name in JSON, on the command line and of folders.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::NoDropout => "no-dropout",
            Self::NoIc => "no-ic",
            Self::NoResidual => "no-residual",
            Self::Neither => "neither",
        }
    }

    /// This variant of a configuration.
    ///
    /// Without normalisation, gender is learned at a tenth of the rate, as the published experiments did it: the rate is too high else.
    ///
    /// # Errors
    /// When the configured network is no `ResMLP`.
    pub fn of(self, config: &Config) -> Result<Config> {
        let mut config = config.clone();
        let NetworkConfig::Resmlp(network) = &mut config.network else {
            bail!("variants are of a ResMLP, and `{}` is another network", config.name);
        };
        if self == Self::NoDropout {
            network.dropout = 0.0;
        }
        if matches!(self, Self::NoResidual | Self::Neither) {
            network.add_residual = false;
        }
        if matches!(self, Self::NoIc | Self::Neither) {
            network.add_ic = false;
            if config.target == Target::Labels(Task::Gender) {
                config.optimiser.learning_rate /= 10.0;
            }
        }
        Ok(config)
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
