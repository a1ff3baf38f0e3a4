//! Trains the attributes of a face: the [`Lesson`] of crops with labels of several tasks.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use facewise_core::task::Task;
use facewise_evaluation::metrics::LabelMetrics;
use indicatif::ProgressBar;
use tch::nn::VarStore;
use tch::{Device, Tensor};

use crate::architectures::multitask;
use crate::checkpoint;
use crate::config::{Config, NetworkConfig, SgdConfig};
use crate::lesson::{self, Lesson, Losses, Options, Plan};
use crate::loader::{Batch, Epoch, Mix};
use crate::loss;
use crate::network::{Mode, Network};
use crate::optimiser::{Optimiser, Plateau, Sgd};
use crate::sample::{ANSWERS, Answers, Sample};
use crate::validate::{self, Score};

/// Trains a network as [`lesson::learn`] does.
///
/// # Errors
/// As for [`lesson::learn`], and when an epoch is shorter than a batch.
pub fn train(
    config: &Config,
    mut mix: Mix,
    validation: &[Sample],
    teacher: Option<&Path>,
    options: &Options,
) -> Result<Score> {
    let (samples, batch) = (mix.epoch_len(), config.batch);
    ensure!(samples >= batch, "an epoch of {samples} samples has no batch of {batch}");
    match (&config.distillation, teacher) {
        (Some(_), Some(teacher)) => teach(config, &mut mix.samples, teacher, options)?,
        (Some(_), None) => bail!("the configuration has `[distillation]`: give the teacher's weights with --teacher"),
        (None, Some(_)) => bail!("the configuration has no `[distillation]`, which says how much a teacher counts"),
        (None, None) => {}
    }
    let lesson = Attributes { config, mix: Arc::new(mix), validation, device: options.device };
    lesson::learn(&lesson, &config.graph()?, config, options)
}

/// Asks a network like the one to be trained about every sample and its mirror image; the mean of both is the teacher's answer.
fn teach(config: &Config, samples: &mut [Sample], weights: &Path, options: &Options) -> Result<()> {
    let variables = VarStore::new(options.device);
    let teacher = Network::new(&variables.root(), &config.graph()?).with_precision(options.precision);
    checkpoint::load_weights(weights, &variables)?;
    let mut answers: Vec<Answers> = Vec::with_capacity(samples.len());
    let progress = ProgressBar::new(samples.len() as u64).with_prefix("teacher");
    for batch in validate::plain_batches(samples, config.size()) {
        let pixels = validate::pixels(&batch, options.device);
        let mirrored = pixels.flip([3]);
        let [straight, mirrored] = [pixels, mirrored].map(|pixels| {
            let outputs = teacher.answer(&pixels, Mode::Eval);
            let tasks = Task::ALL.iter().filter_map(|task| validate::probabilities(&outputs, *task, &config.age));
            Tensor::cat(&tasks.collect::<Vec<_>>(), 1)
        });
        let mean = ((straight + mirrored) / 2.0).contiguous().flatten(0, -1);
        let numbers = Vec::<f32>::try_from(mean)?;
        answers.extend(numbers.as_chunks::<ANSWERS>().0);
        progress.set_position(answers.len() as u64);
    }
    progress.finish_and_clear();
    for (sample, answers) in samples.iter_mut().zip(answers) {
        sample.labels.answers = Some(answers);
    }
    Ok(())
}

struct Attributes<'a> {
    config: &'a Config,
    mix: Arc<Mix>,
    validation: &'a [Sample],
    device: Device,
}

impl Lesson for Attributes<'_> {
    type Batch = Batch;
    type Score = Score;
    /// In the order of [`facewise_core::task::Task::ALL`].
    const LOSSES: &'static [&'static str] = &["age", "gender", "smile", "emotion"];
    const SCORES: &'static [&'static str] = &["loss", "age_mae", "gender", "smile", "emotion"];

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

    fn initialise(&self, variables: &VarStore) {
        if let NetworkConfig::Multitask(_) = self.config.network {
            multitask::initialise(variables);
        }
    }

    fn stepper(&self, variables: &VarStore) -> Box<dyn Optimiser> {
        match &self.config.sgd {
            Some(SgdConfig { momentum, .. }) => Box::new(Sgd::new(variables, &self.config.optimiser, *momentum)),
            None => Box::new(self.optimiser(variables)),
        }
    }

    fn plateau(&self) -> Option<Plateau> {
        self.config.sgd.as_ref().map(|sgd| Plateau { patience: sgd.patience, factor: sgd.factor })
    }

    fn validation_loss(score: &Score) -> Option<f64> {
        Some(score.loss)
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
        let Config { loss, age, distillation, .. } = self.config;
        let outputs = network.answer(&validate::pixels(batch, self.device), Mode::Train);
        let losses = loss::joint(&outputs, &batch.labels, loss, age, distillation.as_ref());
        Losses { total: losses.total, parts: losses.tasks.into() }
    }

    fn validate(&self, network: &Network, epoch: u32) -> Result<Score> {
        validate::score(network, self.validation, self.config.size_in(epoch), self.config, self.device)
    }

    fn figures(Score { loss, tasks }: &Score) -> Vec<String> {
        let accuracy = |metrics: &Option<LabelMetrics>| {
            format!("{:.4}", metrics.as_ref().map_or(f64::NAN, |metrics| metrics.accuracy))
        };
        let age = tasks.age.as_ref().map_or(f64::NAN, |metrics| metrics.mae);
        let figures = [format!("{loss:.4}"), format!("{age:.3}")];
        figures.into_iter().chain([&tasks.gender, &tasks.smile, &tasks.emotion].map(accuracy)).collect()
    }
}
