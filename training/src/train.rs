//! Trains the attributes of a face: the [`Lesson`] of crops with labels of several tasks.

use std::sync::Arc;

use anyhow::{Result, ensure};
use facewise_evaluation::metrics::{LabelMetrics, TaskMetrics};
use tch::Device;

use crate::architectures::residual::residual;
use crate::config::Config;
use crate::lesson::{self, Lesson, Losses, Options, Plan};
use crate::loader::{Batch, Epoch, Mix};
use crate::loss;
use crate::network::{Mode, Network};
use crate::sample::Sample;
use crate::validate;

/// Trains a network as [`lesson::learn`] does.
///
/// # Errors
/// As for [`lesson::learn`], and when an epoch is shorter than a batch.
pub fn train(config: &Config, mix: Mix, validation: &[Sample], options: &Options) -> Result<TaskMetrics> {
    let (samples, batch) = (mix.epoch_len(), config.batch);
    ensure!(samples >= batch, "an epoch of {samples} samples has no batch of {batch}");
    let lesson = Attributes { config, mix: Arc::new(mix), validation, device: options.device };
    lesson::learn(&lesson, &residual(&config.network)?, config, options)
}

struct Attributes<'a> {
    config: &'a Config,
    mix: Arc<Mix>,
    validation: &'a [Sample],
    device: Device,
}

impl Lesson for Attributes<'_> {
    type Batch = Batch;
    type Score = TaskMetrics;
    /// In the order of [`facewise_core::task::Task::ALL`].
    const LOSSES: &'static [&'static str] = &["age", "gender", "smile", "emotion"];
    const SCORES: &'static [&'static str] = &["age_mae", "gender", "smile", "emotion"];

    fn plan(&self) -> Plan {
        Plan {
            seed: self.config.seed,
            epochs: self.config.epochs(),
            batches: self.mix.epoch_len() / self.config.batch,
            batch: self.config.batch,
            optimiser: self.config.optimiser.clone(),
        }
    }

    fn size(&self, epoch: u32) -> u32 {
        self.config.size_in(epoch)
    }

    fn batches(&self, epoch: u32, skip: usize) -> impl Iterator<Item = Batch> {
        let epoch = Epoch {
            seed: self.config.seed,
            number: epoch,
            batch: self.config.batch,
            size: self.config.size_in(epoch),
            skip,
            augmentation: self.config.augmentation.clone(),
        };
        epoch.batches(&self.mix, self.config.loaders)
    }

    fn losses(&self, network: &Network, batch: &Batch) -> Losses {
        let logits = network.forward(&validate::pixels(batch, self.device), Mode::Train);
        let losses = loss::joint(&logits, &batch.labels, &self.config.loss);
        Losses { total: losses.total, parts: losses.tasks.into() }
    }

    fn validate(&self, network: &Network, epoch: u32) -> Result<TaskMetrics> {
        validate::score(network, self.validation, self.config.size_in(epoch), self.device)
    }

    fn figures(score: &TaskMetrics) -> Vec<String> {
        let accuracy = |metrics: &Option<LabelMetrics>| {
            format!("{:.4}", metrics.as_ref().map_or(f64::NAN, |metrics| metrics.accuracy))
        };
        let age = score.age.as_ref().map_or(f64::NAN, |metrics| metrics.mae);
        vec![format!("{age:.3}"), accuracy(&score.gender), accuracy(&score.smile), accuracy(&score.emotion)]
    }
}
