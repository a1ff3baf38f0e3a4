//! The training loop: batches in, weights out, everything that happens written into one folder.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use facewise_core::task::Task;
use facewise_evaluation::metrics::{LabelMetrics, TaskMetrics};
use indicatif::{ProgressBar, ProgressStyle};
use tch::Device;
use tch::nn::VarStore;

use crate::architectures::residual::residual;
use crate::checkpoint::{self, Position};
use crate::config::Config;
use crate::loader::{Epoch, Mix};
use crate::loss;
use crate::network::{Mode, Network, Precision};
use crate::optimiser::{self, AdamW};
use crate::sample::Sample;
use crate::validate;

/// Time between checkpoints within an epoch.
const CHECKPOINT_EVERY: Duration = Duration::from_mins(3);

/// The configuration in a run's folder.
pub const CONFIG: &str = "config.toml";

/// The averaged weights in the folder of a run that is complete.
pub const WEIGHTS: &str = "weights.safetensors";

/// What a run needs beside its configuration.
#[derive(Debug)]
pub struct Options {
    /// The run's folder.
    pub run: PathBuf,
    /// Continue from the folder's checkpoint instead of starting anew.
    pub resume: bool,
    /// Weights to start from instead of random ones.
    pub init: Option<PathBuf>,
    /// Where to compute.
    pub device: Device,
    /// Number format of convolutions.
    pub precision: Precision,
}

/// Trains a network and leaves `config.toml`, `epochs.csv`, `checkpoint.safetensors` and, at the end, the averaged weights in
/// `weights.safetensors`.
///
/// # Errors
/// When the folder holds another run, something cannot be read or written, or the loss is not a number any more.
pub fn train(config: &Config, mix: Mix, validation: &[Sample], options: &Options) -> Result<TaskMetrics> {
    let graph = residual(&config.network)?;
    tch::manual_seed(config.seed as i64);
    let live = VarStore::new(options.device);
    let network = Network::new(&live.root(), &graph).with_precision(options.precision);
    let mut averaged = VarStore::new(options.device);
    let average_network = Network::new(&averaged.root(), &graph).with_precision(options.precision);
    if let Some(weights) = &options.init {
        checkpoint::load_weights(weights, &live)?;
    }
    averaged.copy(&live)?;
    let mut optimiser = AdamW::new(&live, &config.optimiser);

    let run = Run::open(options, config)?;
    let mut position = Position::default();
    if options.resume {
        position = checkpoint::load(&run.checkpoint(), &live, &averaged, &optimiser)?;
        run.forget_from(position.epoch)?;
    }
    let mix = Arc::new(mix);
    let batches = mix.epoch_len() / config.batch;
    ensure!(batches > 0, "an epoch of {} samples has no batch of {}", mix.epoch_len(), config.batch);
    let steps = batches as u64 * u64::from(config.epochs());
    let mut scores = None;

    for number in position.epoch..config.epochs() {
        let skip = if number == position.epoch { position.batch } else { 0 };
        let size = config.size_in(number);
        let epoch = Epoch {
            seed: config.seed,
            number,
            batch: config.batch,
            size,
            skip,
            augmentation: config.augmentation.clone(),
        };
        let progress = progress_bar(batches, skip, number, config.epochs());
        let (started, mut saved) = (Instant::now(), Instant::now());
        let mut means = [Mean::default(); 4];
        for (index, batch) in (skip..).zip(epoch.batches(&mix, config.loaders)) {
            let step = u64::from(number) * batches as u64 + index as u64 + 1;
            // Dropout depends on the step alone, so that a resumed run repeats what a run in one piece does.
            tch::manual_seed(((config.seed << 32) | step) as i64);
            let logits = network.forward(&validate::pixels(&batch, options.device), Mode::Train);
            let losses = loss::joint(&logits, &batch.labels, &config.loss);
            let total = losses.total.double_value(&[]);
            if !total.is_finite() {
                bail!("the loss is {total} in epoch {number}, batch {index}: a lower learning rate may help");
            }
            optimiser.zero_grad();
            losses.total.backward();
            optimiser.step(step, optimiser::learning_rate(&config.optimiser, step, steps));
            optimiser::average(&averaged, &live, config.optimiser.ema_decay, step);

            for (mean, loss) in means.iter_mut().zip(&losses.tasks) {
                let loss = loss.double_value(&[]);
                if loss.is_finite() {
                    mean.add(loss);
                }
            }
            progress.set_message(describe(&means, (index + 1 - skip) * config.batch, started.elapsed()));
            progress.inc(1);
            if saved.elapsed() > CHECKPOINT_EVERY {
                let position = Position { epoch: number, batch: index + 1, step };
                checkpoint::save(&run.checkpoint(), &live, &averaged, &optimiser, position)?;
                saved = Instant::now();
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        progress.finish_and_clear();
        let score = validate::score(&average_network, validation, size, options.device)?;
        let speed = ((batches - skip) * config.batch) as f64 / seconds;
        run.record(number, size, &means, &score, speed, seconds)?;
        let next = Position { epoch: number + 1, batch: 0, step: u64::from(number + 1) * batches as u64 };
        checkpoint::save(&run.checkpoint(), &live, &averaged, &optimiser, next)?;
        scores = Some(score);
    }
    checkpoint::save_weights(&run.folder.join(WEIGHTS), &averaged)?;
    scores.context("the run was already complete")
}

/// The folder of a run.
struct Run {
    folder: PathBuf,
}

const COLUMNS: &str = "epoch,size,loss_age,loss_gender,loss_smile,loss_emotion,validation_age_mae,validation_gender,\
                       validation_smile,validation_emotion,pictures_per_second,seconds";

impl Run {
    fn open(options: &Options, config: &Config) -> Result<Self> {
        let run = Self { folder: options.run.clone() };
        let folder = run.folder.display();
        if options.resume {
            ensure!(run.checkpoint().exists(), "{folder} holds no checkpoint to resume from");
            let own = fs::read_to_string(run.folder.join(CONFIG))?;
            ensure!(
                own == toml::to_string_pretty(config)?,
                "{folder} was started with another configuration: give its own {CONFIG} to continue it"
            );
            return Ok(run);
        }
        ensure!(
            !run.checkpoint().exists(),
            "{folder} holds a run already: give --resume to continue it, or another --run"
        );
        fs::create_dir_all(&run.folder).with_context(|| format!("cannot make {folder}"))?;
        fs::write(run.folder.join(CONFIG), toml::to_string_pretty(config)?)?;
        fs::write(run.csv(), format!("{COLUMNS}\n"))?;
        Ok(run)
    }

    fn checkpoint(&self) -> PathBuf {
        self.folder.join("checkpoint.safetensors")
    }

    fn csv(&self) -> PathBuf {
        self.folder.join("epochs.csv")
    }

    /// Drops the lines of epochs that will be trained again.
    fn forget_from(&self, epoch: u32) -> Result<()> {
        let text = fs::read_to_string(self.csv())?;
        let kept: Vec<&str> = text.lines().take(1 + epoch as usize).collect();
        fs::write(self.csv(), kept.join("\n") + "\n")?;
        Ok(())
    }

    fn record(
        &self,
        epoch: u32,
        size: u32,
        losses: &[Mean; 4],
        scores: &TaskMetrics,
        speed: f64,
        seconds: f64,
    ) -> Result<()> {
        let [age, gender, smile, emotion] = losses.map(|mean| mean.value());
        let accuracy = |metrics: &Option<LabelMetrics>| metrics.as_ref().map_or(f64::NAN, |metrics| metrics.accuracy);
        let line = format!(
            "{epoch},{size},{age:.4},{gender:.4},{smile:.4},{emotion:.4},{:.3},{:.4},{:.4},{:.4},{speed:.0},{seconds:.0}",
            scores.age.as_ref().map_or(f64::NAN, |metrics| metrics.mae),
            accuracy(&scores.gender),
            accuracy(&scores.smile),
            accuracy(&scores.emotion),
        );
        eprintln!("{line}");
        let mut file = fs::OpenOptions::new().append(true).open(self.csv())?;
        writeln!(file, "{line}")?;
        Ok(())
    }
}

fn progress_bar(batches: usize, done: usize, epoch: u32, epochs: u32) -> ProgressBar {
    let style =
        ProgressStyle::with_template("epoch {prefix} {wide_bar} {pos}/{len} {eta} {msg}").expect("a valid template");
    let bar = ProgressBar::new(batches as u64).with_style(style).with_prefix(format!("{}/{epochs}", epoch + 1));
    bar.set_position(done as u64);
    bar
}

/// A running mean; NaN of nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: f64,
    n: u64,
}

impl Mean {
    fn add(&mut self, number: f64) {
        self.sum += number;
        self.n += 1;
    }

    fn value(&self) -> f64 {
        self.sum / self.n as f64
    }
}

fn describe(losses: &[Mean; 4], pictures: usize, elapsed: Duration) -> String {
    let tasks = Task::ALL.iter().zip(losses).map(|(task, mean)| format!("{task} {:.3}", mean.value()));
    format!("{} · {:.0}/s", tasks.collect::<Vec<_>>().join(" "), pictures as f64 / elapsed.as_secs_f64())
}
