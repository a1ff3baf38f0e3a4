//! The training loop that all networks share: steps along the gradient, an average of the weights, checkpoints, and one line of figures an
//! epoch, everything written into one folder. What is learned is a [`Lesson`].

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tch::nn::VarStore;
use tch::{Device, Tensor};

use crate::checkpoint::{self, Findings, Inherited, Position};
use crate::config::OptimiserConfig;
use crate::graph::{Graph, Layer};
use crate::network::{Network, Precision};
use crate::optimiser::{self, AdamW, Optimiser, Plateau};

/// Time between checkpoints within an epoch.
const CHECKPOINT_EVERY: Duration = Duration::from_mins(3);

/// The configuration in a run's folder.
pub const CONFIG: &str = "config.toml";

/// The figures of each epoch in a run's folder.
pub const EPOCHS: &str = "epochs.csv";

/// What a complete run has found on the parts of its data, where its lesson writes that.
pub const SCORES: &str = "scores.json";

/// The averaged weights in the folder of a run that is complete: of its last epoch, or of the best where a lesson has a criterion.
pub const WEIGHTS: &str = "weights.safetensors";

/// Name of the file in a run's folder that it can go on from.
pub const CHECKPOINT: &str = "checkpoint.safetensors";

/// What a run needs beside its configuration.
#[derive(Clone, Debug)]
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

/// How long a training is, and how it walks.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Seed of the first weights and of whatever is random in the network.
    pub seed: u64,
    /// Rounds over the data.
    pub epochs: u32,
    /// Steps an epoch.
    pub batches: usize,
    /// Pictures a step.
    pub batch: usize,
    /// The optimiser and its schedule.
    pub optimiser: OptimiserConfig,
}

/// The loss of one step.
#[derive(Debug)]
pub struct Losses {
    /// Weighted sum, to be minimised.
    pub total: Tensor,
    /// Its parts, unweighted, in the order of [`Lesson::LOSSES`]; NaN where a batch has nothing to say about one.
    pub parts: Vec<Tensor>,
}

/// A loss that is not a number any more.
#[derive(Debug, thiserror::Error)]
#[error("the loss is {loss} in epoch {epoch}, {place}: a lower learning rate may help")]
pub struct Diverged {
    loss: f64,
    epoch: u32,
    place: String,
}

/// What is learned: the part of a training that differs between networks.
pub trait Lesson {
    /// Pictures of one step with their labels.
    type Batch;
    /// What validation finds.
    type Score;
    /// Names of the parts of the loss.
    const LOSSES: &'static [&'static str];
    /// Names of the figures of validation.
    const SCORES: &'static [&'static str];
    /// What a batch is made of.
    const ITEMS: &'static str = "pictures";

    /// Length and walk.
    fn plan(&self) -> Plan;
    /// Side of the pictures of an epoch, counted from 0, in pixels; of vectors their length.
    fn size(&self, epoch: u32) -> u32;
    /// Changes the random weights that a training starts from.
    fn initialise(&self, _variables: &VarStore) {}
    /// The optimiser of these variables.
    fn optimiser(&self, variables: &VarStore) -> AdamW {
        AdamW::new(variables, &self.plan().optimiser)
    }
    /// What steps along the gradient.
    fn stepper(&self, variables: &VarStore) -> Box<dyn Optimiser> {
        Box::new(self.optimiser(variables))
    }
    /// How the learning rate falls by the validation loss, beside its schedule.
    fn plateau(&self) -> Option<Plateau> {
        None
    }
    /// The validation loss, of a lesson with a [`Lesson::plateau`].
    fn validation_loss(_score: &Self::Score) -> Option<f64> {
        None
    }
    /// The learning rate at a step, counted from 1.
    fn learning_rate(&self, plan: &Plan, step: u64) -> f64 {
        optimiser::learning_rate(&plan.optimiser, step, plan.batches as u64 * u64::from(plan.epochs))
    }
    /// What the best epoch has least of. With it, a run leaves the weights of the best epoch instead of the last.
    fn criterion(_score: &Self::Score) -> Option<f64> {
        None
    }
    /// A run ends after more than so many epochs without a better one.
    fn patience(&self) -> Option<u32> {
        None
    }
    /// Whether a run ends with an epoch, counted from 0, whatever its patience.
    ///
    /// # Errors
    /// When that cannot be told.
    fn ends(&self, _epoch: u32, _score: &Self::Score) -> Result<bool> {
        Ok(false)
    }
    /// Whether nothing but errors is told on the way: one of many runs.
    fn quiet(&self) -> bool {
        false
    }
    /// The batches of an epoch after the first `skip`: they depend on seed, epoch and position alone.
    fn batches(&self, epoch: u32, skip: usize) -> impl Iterator<Item = Self::Batch>;
    /// The loss of the network, in training, on a batch.
    fn losses(&self, network: &Network, batch: &Self::Batch) -> Losses;
    /// Scores a network on what is held out.
    ///
    /// # Errors
    /// When the network's answers cannot be read.
    fn validate(&self, network: &Network, epoch: u32) -> Result<Self::Score>;
    /// The figures in the order of [`Lesson::SCORES`], as cells of a CSV.
    fn figures(score: &Self::Score) -> Vec<String>;
}

/// Whether [`learn`] could begin or go on with this configuration in the run's folder, before any data are read for it.
///
/// # Errors
/// When it could not.
pub fn check(config: &impl Serialize, options: &Options) -> Result<()> {
    Run::of(options, config).map(drop)
}

/// Whether the folder has no run or one with this configuration.
///
/// # Errors
/// When it is another one's.
pub fn ensure_same(run: &Path, config: &impl Serialize) -> Result<()> {
    let path = run.join(CONFIG);
    let same = !path.exists() || fs::read_to_string(&path)? == toml::to_string_pretty(config)?;
    ensure!(same, "{} is of a run with another configuration: give its own, or another folder", path.display());
    Ok(())
}

/// Trains a network and leaves `config.toml`, `epochs.csv`, `checkpoint.safetensors` and, at the end, the averaged weights in
/// `weights.safetensors`. Returns the score of the epoch whose weights these are: the last, or by [`Lesson::criterion`] the best.
///
/// # Errors
/// When the folder holds another run, something cannot be read or written, or the loss is not a number any more.
pub fn learn<L: Lesson>(lesson: &L, graph: &Graph, config: &impl Serialize, options: &Options) -> Result<L::Score> {
    ensure_learnable(graph, options.device)?;
    let plan = lesson.plan();
    tch::manual_seed(plan.seed as i64);
    let live = VarStore::new(options.device);
    let network = Network::new(&live.root(), graph).with_precision(options.precision);
    let mut averaged = VarStore::new(options.device);
    let average_network = Network::new(&averaged.root(), graph).with_precision(options.precision);
    lesson.initialise(&live);
    if let Some(weights) = &options.init {
        inherit(weights, &live, lesson.quiet())?;
    }
    averaged.copy(&live)?;
    let mut optimiser = lesson.stepper(&live);

    let run = Run::open(options, config, &columns::<L>())?;
    if !lesson.quiet() {
        eprintln!("{}", columns::<L>());
    }
    let (mut position, mut findings) = (Position::default(), Findings::default());
    if options.resume {
        (position, findings) = checkpoint::load(&run.checkpoint(), &live, &averaged, &*optimiser)?;
        run.forget_from(position.epoch)?;
    }
    let mut last = None;

    for number in position.epoch..plan.epochs {
        if is_over(&findings, number, lesson.patience()) {
            break;
        }
        let skip = if number == position.epoch { position.batch } else { 0 };
        let progress =
            if lesson.quiet() { ProgressBar::hidden() } else { progress_bar(plan.batches, skip, number, plan.epochs) };
        let (started, mut saved) = (Instant::now(), Instant::now());
        // Of a run that was stopped in the middle of this epoch.
        let before = std::mem::take(&mut findings.seconds);
        let mut means: Vec<Mean> = findings.losses.drain(..).map(|(sum, n)| Mean { sum, n }).collect();
        means.resize(L::LOSSES.len(), Mean::default());
        for (index, batch) in (skip..).zip(lesson.batches(number, skip)) {
            let step = u64::from(number) * plan.batches as u64 + index as u64 + 1;
            // Dropout depends on the step alone, so that a resumed run repeats what a run in one piece does.
            tch::manual_seed(((plan.seed << 32) | step) as i64);
            let losses = lesson.losses(&network, &batch);
            let total = losses.total.double_value(&[]);
            if !total.is_finite() {
                return Err(Diverged { loss: total, epoch: number, place: format!("batch {index}") }.into());
            }
            optimiser.zero_grad();
            losses.total.backward();
            optimiser.step(step, lesson.learning_rate(&plan, step) * findings.fall.share);
            optimiser::average(&averaged, &live, plan.optimiser.ema_decay, step);

            for (mean, loss) in means.iter_mut().zip(&losses.parts) {
                let loss = loss.double_value(&[]);
                if loss.is_finite() {
                    mean.add(loss);
                }
            }
            progress.set_message(describe::<L>(&means, (index + 1 - skip) * plan.batch, started.elapsed()));
            progress.inc(1);
            if saved.elapsed() > CHECKPOINT_EVERY {
                let position = Position { epoch: number, batch: index + 1, step };
                findings.losses = means.iter().map(|mean| (mean.sum, mean.n)).collect();
                findings.seconds = before + started.elapsed().as_secs_f64();
                checkpoint::save(&run.checkpoint(), &live, &averaged, &*optimiser, position, &findings)?;
                saved = Instant::now();
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        progress.finish_and_clear();
        let score = lesson.validate(&average_network, number)?;
        let speed = ((plan.batches - skip) * plan.batch) as f64 / seconds;
        let line = line::<L>([number, lesson.size(number)], &means, &score, [speed, before + seconds]);
        if let Some(criterion) = L::criterion(&score) {
            if !criterion.is_finite() {
                return Err(Diverged { loss: criterion, epoch: number, place: "validation".to_owned() }.into());
            }
            if findings.best.is_none_or(|(_, best)| criterion < best) {
                findings.best = Some((number, criterion));
                checkpoint::save_weights(&run.best(), &averaged)?;
            }
        }
        if let (Some(plateau), Some(loss)) = (lesson.plateau(), L::validation_loss(&score)) {
            findings.fall = findings.fall.after(loss, plateau);
        }
        run.record(&line, lesson.quiet())?;
        (findings.losses, findings.seconds) = (Vec::new(), 0.0);
        let next = Position { epoch: number + 1, batch: 0, step: u64::from(number + 1) * plan.batches as u64 };
        checkpoint::save(&run.checkpoint(), &live, &averaged, &*optimiser, next, &findings)?;
        let ends = lesson.ends(number, &score)?;
        last = Some(score);
        if ends {
            break;
        }
    }
    let weights = run.folder.join(WEIGHTS);
    let Some((epoch, _)) = findings.best else {
        checkpoint::save_weights(&weights, &averaged)?;
        return last.context("the run was already complete");
    };
    ensure!(run.best().exists(), "the run was already complete");
    checkpoint::load_weights(&run.best(), &averaged)?;
    let score = lesson.validate(&average_network, epoch)?;
    fs::rename(run.best(), &weights).with_context(|| format!("cannot write {}", weights.display()))?;
    Ok(score)
}

/// libtorch 2.11.0 writes beside its memory when it learns 1 × 1 convolutions with a stride and fewer than seven channels on a CPU
/// (oneDNN's gradient of the weights, channels last).
fn ensure_learnable(graph: &Graph, device: Device) -> Result<()> {
    const FEWEST: usize = 8;
    let breaks = |layer: &Layer| matches!(layer, Layer::Conv2d(conv) if conv.kernel == 1 && conv.stride > 1 && conv.inputs < FEWEST);
    let broken = graph.nodes().iter().find(|node| breaks(&node.layer) && device == Device::Cpu);
    broken.map_or(Ok(()), |node| {
        bail!(
            "libtorch cannot learn the convolution {} of fewer than {FEWEST} channels: make the network wider",
            node.name
        )
    })
}

/// Starts from a file, and says what is not from it.
fn inherit(weights: &Path, live: &VarStore, quiet: bool) -> Result<()> {
    let Inherited { taken, grown, new, left } = checkpoint::start_from(weights, live)?;
    if !(quiet || grown == 0 && new.is_empty() && left.is_empty()) {
        let (new, left, weights) = (checkpoint::some(&new), checkpoint::some(&left), weights.display());
        eprintln!(
            "{taken} variables are from {weights}, {grown} of them got wider; anew start {new}; left out are {left}"
        );
    }
    Ok(())
}

/// Whether patience has ended before an epoch.
fn is_over(findings: &Findings, epoch: u32, patience: Option<u32>) -> bool {
    match (findings.best, patience) {
        (Some((best, _)), Some(patience)) => epoch - best > patience + 1,
        _ => false,
    }
}

fn columns<L: Lesson>() -> String {
    let mut columns = vec!["epoch".to_owned(), "size".to_owned()];
    columns.extend(L::LOSSES.iter().map(|name| format!("loss_{name}")));
    columns.extend(L::SCORES.iter().map(|name| format!("validation_{name}")));
    columns.extend([format!("{}_per_second", L::ITEMS), "seconds".to_owned()]);
    columns.join(",")
}

/// What is known of an epoch, under [`columns`].
fn line<L: Lesson>(epoch_and_size: [u32; 2], means: &[Mean], score: &L::Score, speed_and_seconds: [f64; 2]) -> String {
    let mut cells = Vec::from(epoch_and_size.map(|number| number.to_string()));
    cells.extend(means.iter().map(|mean| format!("{:.4}", mean.value())));
    cells.extend(L::figures(score));
    cells.extend(speed_and_seconds.map(|number| format!("{number:.0}")));
    cells.join(",")
}

/// The folder of a run.
struct Run {
    folder: PathBuf,
}

impl Run {
    /// The folder as it may be used: with the same configuration where a run goes on, else without a run.
    fn of(options: &Options, config: &impl Serialize) -> Result<Self> {
        let run = Self { folder: options.run.clone() };
        let folder = run.folder.display();
        if options.resume {
            ensure!(run.checkpoint().exists(), "{folder} holds no checkpoint to resume from");
            ensure_same(&run.folder, config)?;
        } else {
            ensure!(
                !run.checkpoint().exists(),
                "{folder} holds a run already: give --resume to continue it, or another --run"
            );
        }
        Ok(run)
    }

    fn open(options: &Options, config: &impl Serialize, columns: &str) -> Result<Self> {
        let run = Self::of(options, config)?;
        if options.resume {
            return Ok(run);
        }
        let folder = run.folder.display();
        fs::create_dir_all(&run.folder).with_context(|| format!("cannot make {folder}"))?;
        fs::write(run.folder.join(CONFIG), toml::to_string_pretty(config)?)?;
        fs::write(run.csv(), format!("{columns}\n"))?;
        Ok(run)
    }

    fn checkpoint(&self) -> PathBuf {
        self.folder.join(CHECKPOINT)
    }

    /// Weights of the best epoch, while the run goes on.
    fn best(&self) -> PathBuf {
        self.folder.join("best.safetensors")
    }

    fn csv(&self) -> PathBuf {
        self.folder.join(EPOCHS)
    }

    /// Drops the lines of epochs that will be trained again.
    fn forget_from(&self, epoch: u32) -> Result<()> {
        let text = fs::read_to_string(self.csv())?;
        let kept: Vec<&str> = text.lines().take(1 + epoch as usize).collect();
        fs::write(self.csv(), kept.join("\n") + "\n")?;
        Ok(())
    }

    fn record(&self, line: &str, quiet: bool) -> Result<()> {
        if !quiet {
            eprintln!("{line}");
        }
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

fn describe<L: Lesson>(losses: &[Mean], pictures: usize, elapsed: Duration) -> String {
    let parts = L::LOSSES.iter().zip(losses).map(|(name, mean)| format!("{name} {:.3}", mean.value()));
    format!("{} · {:.0}/s", parts.collect::<Vec<_>>().join(" "), pictures as f64 / elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;

    use tch::Kind;

    use super::*;
    use crate::graph::{Conv2d, GraphBuilder, InputSpec, Linear};
    use crate::network::Mode;
    use crate::optimiser::Sgd;

    /// Learns to answer the mean of a picture of noise; one epoch may be without a loss, as in a run that breaks off.
    #[derive(Default)]
    struct Noise {
        broken: Option<u32>,
        /// Descent with momentum, at a rate that falls whenever an epoch is no better.
        descends: bool,
    }

    #[test]
    fn patience_ends_after_more_epochs_than_it_has_without_a_better_one() {
        let over = |best, epoch, patience| is_over(&Findings { best, ..Findings::default() }, epoch, patience);
        // The best epoch was 4, so 5 to 9 were worse: five epochs are within the patience, a sixth is not.
        assert!(!over(Some((4, 0.5)), 10, Some(5)));
        assert!(over(Some((4, 0.5)), 11, Some(5)));
        assert!(over(Some((4, 0.5)), 6, Some(0)));
        assert!(!over(Some((4, 0.5)), 99, None));
        assert!(!over(None, 99, Some(0)));
    }

    #[test]
    fn what_libtorch_breaks_at_is_not_begun() {
        let graph = |inputs: usize, stride: usize| {
            let mut b = GraphBuilder::new(InputSpec { channels: inputs, size: 8 });
            let x = b.conv2d("narrow", b.input(), Conv2d::new(inputs, 8, 1).stride(stride));
            b.finish([("map", x)]).unwrap()
        };
        for (inputs, stride) in [(8, 2), (4, 1)] {
            assert!(ensure_learnable(&graph(inputs, stride), Device::Cpu).is_ok());
        }
        let error = ensure_learnable(&graph(4, 2), Device::Cpu).unwrap_err();
        assert!(error.to_string().contains("the convolution narrow"), "{error}");
        assert!(ensure_learnable(&graph(4, 2), Device::Cuda(0)).is_ok());
    }

    impl Lesson for Noise {
        type Batch = (u32, Tensor);
        type Score = f64;
        const LOSSES: &'static [&'static str] = &["mean"];
        const SCORES: &'static [&'static str] = &["answer"];

        fn plan(&self) -> Plan {
            let optimiser = OptimiserConfig {
                learning_rate: 0.01,
                warmup_steps: 1,
                final_share: 0.1,
                weight_decay: 0.0,
                clip_norm: 10.0,
                ema_decay: 0.5,
            };
            Plan { seed: 9, epochs: 3, batches: 4, batch: 2, optimiser }
        }

        fn size(&self, _epoch: u32) -> u32 {
            8
        }

        fn stepper(&self, variables: &VarStore) -> Box<dyn Optimiser> {
            let optimiser = self.plan().optimiser;
            if self.descends {
                Box::new(Sgd::new(variables, &optimiser, 0.9))
            } else {
                Box::new(self.optimiser(variables))
            }
        }

        fn plateau(&self) -> Option<Plateau> {
            self.descends.then_some(Plateau { patience: 0, factor: 0.1 })
        }

        /// Never lower than at first: the rate falls after the second epoch.
        fn validation_loss(_score: &f64) -> Option<f64> {
            Some(1.0)
        }

        /// Tests run beside each other and share libtorch's random numbers: none of them here.
        fn initialise(&self, variables: &VarStore) {
            for (_, variable) in optimiser::sorted(variables) {
                let ramp = Tensor::arange(variable.numel() as i64, (Kind::Float, Device::Cpu)) * 0.01 + 0.1;
                tch::no_grad(|| variable.shallow_clone().copy_(&ramp.view_as(&variable)));
            }
        }

        fn batches(&self, epoch: u32, skip: usize) -> impl Iterator<Item = Self::Batch> {
            (skip..4).map(move |index| {
                let value = |i: usize| ((i * (index + 3) + epoch as usize * 7) % 11) as f32 / 11.0;
                let pixels: Vec<f32> = (0..2 * 64).map(value).collect();
                (epoch, Tensor::from_slice(&pixels).view([2, 1, 8, 8]))
            })
        }

        fn losses(&self, network: &Network, (epoch, pixels): &Self::Batch) -> Losses {
            let mean = pixels.mean_dim([1_i64, 2, 3].as_slice(), false, Kind::Float).unsqueeze(1);
            let loss = (&network.forward(pixels, Mode::Train)[0] - mean).square().mean(Kind::Float);
            let loss = if self.broken == Some(*epoch) { loss * f64::NAN } else { loss };
            Losses { parts: vec![loss.detach()], total: loss }
        }

        fn validate(&self, network: &Network, _epoch: u32) -> Result<f64> {
            let picture = Tensor::ones([1, 1, 8, 8], (Kind::Float, Device::Cpu));
            Ok(network.forward(&picture, Mode::Eval)[0].double_value(&[0, 0]))
        }

        fn figures(score: &f64) -> Vec<String> {
            vec![format!("{score:.6}")]
        }
    }

    fn learned(lesson: &Noise, run: &Path, resume: bool) -> Result<f64> {
        let mut b = GraphBuilder::new(InputSpec { channels: 1, size: 8 });
        let x = b.conv2d("conv", b.input(), Conv2d::new(1, 4, 3));
        let x = b.global_avg_pool(x);
        let x = b.linear("mean", x, Linear::new(4, 1));
        let graph = b.finish([("mean", x)]).unwrap();
        learn(lesson, &graph, &named("noise"), &options(run, resume))
    }

    fn options(run: &Path, resume: bool) -> Options {
        Options { run: run.to_owned(), resume, init: None, device: Device::Cpu, precision: Precision::Fp32 }
    }

    fn named(name: &str) -> BTreeMap<&str, &str> {
        BTreeMap::from([("name", name)])
    }

    #[test]
    fn descent_goes_on_with_its_velocity_and_its_fallen_rate() {
        tch::set_num_threads(1);
        let folder = tempfile::tempdir().unwrap();
        let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
        let lesson = |broken| Noise { broken, descends: true };
        learned(&lesson(None), &whole, false).unwrap();
        learned(&lesson(Some(2)), &broken, false).unwrap_err();
        let text = |run: &Path| fs::read(run.join("checkpoint.safetensors")).unwrap();
        assert!(String::from_utf8_lossy(&text(&broken)).contains("\"fall\""), "the rate has been judged");
        learned(&lesson(None), &broken, true).unwrap();
        assert!(text(&whole) == text(&broken), "variables, velocities and the fall are the same to the bit");
        learned(&Noise::default(), &folder.path().join("adamw"), false).unwrap();
        assert!(text(&whole) != text(&folder.path().join("adamw")));
    }

    #[test]
    fn a_run_that_broke_off_goes_on_as_if_nothing_had_happened() {
        tch::set_num_threads(1);
        let folder = tempfile::tempdir().unwrap();
        let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
        let score = learned(&Noise::default(), &whole, false).unwrap();

        let error = learned(&Noise { broken: Some(1), ..Noise::default() }, &broken, false).unwrap_err().to_string();
        assert!(error.contains("the loss is NaN in epoch 1, batch 0"), "{error}");
        assert!(learned(&Noise::default(), &broken, false).is_err(), "the folder holds a run");
        assert!(check(&named("noise"), &options(&broken, true)).is_ok());
        for (name, run, resume) in
            [("other", &broken, true), ("noise", &broken, false), ("noise", &folder.path().join("none"), true)]
        {
            assert!(check(&named(name), &options(run, resume)).is_err(), "before any data are read");
        }
        let resumed = learned(&Noise::default(), &broken, true).unwrap();
        assert!((score - resumed).abs() < f64::EPSILON);
        assert_eq!(fs::read(whole.join(WEIGHTS)).unwrap(), fs::read(broken.join(WEIGHTS)).unwrap());

        let lines = |run: &Path| fs::read_to_string(run.join("epochs.csv")).unwrap();
        let figures = |text: &str| {
            text.lines().map(|line| line.split(',').take(4).collect::<Vec<_>>().join(",")).collect::<Vec<_>>()
        };
        assert_eq!(figures(&lines(&whole)), figures(&lines(&broken)));
        let header = "epoch,size,loss_mean,validation_answer,pictures_per_second,seconds";
        assert_eq!(lines(&whole).lines().next(), Some(header));
        assert_eq!(lines(&whole).lines().count(), 4);
    }
}
