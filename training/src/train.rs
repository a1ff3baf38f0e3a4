//! Trains the attributes of a face: the [`Lesson`] of crops with labels of several tasks.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use facewise_core::task::Task;
use facewise_evaluation::metrics::LabelMetrics;
use indicatif::ProgressBar;
use serde::Deserialize;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::age::AgeConfig;
use crate::architectures::multitask;
use crate::checkpoint;
use crate::config::{self, Config, NetworkConfig, SgdConfig};
use crate::lesson::{self, Lesson, Losses, Options, Plan};
use crate::loader::{Batch, Epoch, Mix};
use crate::loss;
use crate::network::{Mode, Network};
use crate::optimiser::{Optimiser, Plateau, Sgd};
use crate::sample::{ANSWERS, Sample};
use crate::validate::{self, Score};

/// Trains a network as [`lesson::learn`] does.
///
/// # Errors
/// As for [`lesson::learn`], and when an epoch is shorter than a batch.
pub fn train(
    config: &Config,
    mut mix: Mix,
    validation: &[Sample],
    teachers: &[TeacherFiles],
    options: &Options,
) -> Result<Score> {
    let (samples, batch) = (mix.epoch_len(), config.batch);
    ensure!(samples >= batch, "an epoch of {samples} samples has no batch of {batch}");
    match (&config.distillation, teachers) {
        (Some(_), []) => {
            bail!("the configuration has `[distillation]`: give a teacher's run or weights with --teacher")
        }
        (None, [_, ..]) => bail!("the configuration has no `[distillation]`, which says how much a teacher counts"),
        (_, teachers) => teach(config, &mut mix.samples, teachers, options)?,
    }
    let lesson = Attributes { config, mix: Arc::new(mix), validation, device: options.device };
    lesson::learn(&lesson, &config.graph()?, config, options)
}

/// Where a network lies whose answers are learned.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherFiles {
    /// Its configuration; none of a network like the one to be trained.
    pub config: Option<PathBuf>,
    /// Its weights.
    pub weights: PathBuf,
}

impl TeacherFiles {
    /// Those of the folder of a run, or weights alone.
    pub fn at(path: &Path) -> Self {
        let of_run = path.is_dir();
        Self {
            config: of_run.then(|| path.join(lesson::CONFIG)),
            weights: if of_run { path.join(lesson::WEIGHTS) } else { path.to_owned() },
        }
    }
}

/// A network that is asked.
struct Teacher {
    network: Network,
    /// Side of the crops that it sees.
    size: u32,
    age: AgeConfig,
    /// Keeps the weights.
    _variables: VarStore,
}

impl Teacher {
    /// A teacher of the network of `config`.
    fn open(files: &TeacherFiles, config: &Config, options: &Options) -> Result<Self> {
        let own = files.config.as_deref().map(Config::read).transpose()?;
        let config = own.as_ref().unwrap_or(config);
        let graph = config.graph()?;
        let variables = VarStore::new(options.device);
        let network = Network::new(&variables.root(), &graph).with_precision(options.precision);
        checkpoint::load_weights(&files.weights, &variables)?;
        Ok(Self { network, size: config.size(), age: config.age, _variables: variables })
    }

    /// Whether it answers a task.
    fn answers(&self, task: Task) -> bool {
        config::answered(self.network.graph()).contains(&task)
    }

    /// The probabilities of all tasks, of each sample the mean for its plain crop and that crop's mirror image, `[n, ANSWERS]`; zeros of
    /// tasks that it does not answer.
    fn answer(&self, samples: &[Sample], device: Device) -> Result<Vec<f32>> {
        let mut numbers = Vec::with_capacity(samples.len() * ANSWERS);
        for batch in validate::plain_batches(samples, self.size) {
            let pixels = validate::pixels(&batch, device);
            let mirrored = pixels.flip([3]);
            let rows = batch.labels.len() as i64;
            let [straight, mirrored] = [pixels, mirrored].map(|pixels| {
                let outputs = self.network.answer(&pixels, Mode::Eval);
                let nothing = |task: Task| Tensor::zeros([rows, task.classes() as i64], (Kind::Float, Device::Cpu));
                let of = |task| validate::probabilities(&outputs, task, &self.age).unwrap_or_else(|| nothing(task));
                Tensor::cat(&Task::ALL.map(of), 1)
            });
            let mean = ((straight + mirrored) / 2.0).contiguous().flatten(0, -1);
            numbers.extend(Vec::<f32>::try_from(mean)?);
        }
        Ok(numbers)
    }
}

/// Asks the teachers about every sample; to each task the mean of what those say who answer it is its answer.
fn teach(config: &Config, samples: &mut [Sample], teachers: &[TeacherFiles], options: &Options) -> Result<()> {
    /// Between two steps of the progress bar.
    const TOGETHER: usize = 1024;
    let teachers = teachers.iter().map(|files| Teacher::open(files, config, options)).collect::<Result<Vec<_>>>()?;
    if teachers.is_empty() {
        return Ok(());
    }
    let of = |task: Task| teachers.iter().filter(|teacher| teacher.answers(task)).count();
    for task in config::answered(&config.graph()?) {
        ensure!(of(task) > 0, "no teacher answers {task}");
    }
    let shares: Vec<f32> =
        Task::ALL.into_iter().flat_map(|task| vec![1.0 / of(task).max(1) as f32; task.classes()]).collect();
    let progress = ProgressBar::new(samples.len() as u64).with_prefix("teacher");
    for samples in samples.chunks_mut(TOGETHER) {
        let mut means = vec![[0.0; ANSWERS]; samples.len()];
        for teacher in &teachers {
            let numbers = teacher.answer(samples, options.device)?;
            let numbers = means.as_flattened_mut().iter_mut().zip(numbers).zip(shares.iter().cycle());
            numbers.for_each(|((mean, number), share)| *mean += share * number);
        }
        for (sample, answers) in samples.iter_mut().zip(means) {
            sample.labels.answers = Some(answers);
        }
        progress.inc(samples.len() as u64);
    }
    progress.finish_and_clear();
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

    fn figures(Score { loss, tasks, .. }: &Score) -> Vec<String> {
        let accuracy = |metrics: &Option<LabelMetrics>| {
            format!("{:.4}", metrics.as_ref().map_or(f64::NAN, |metrics| metrics.accuracy))
        };
        let age = tasks.age.as_ref().map_or(f64::NAN, |metrics| metrics.mae);
        let figures = [format!("{loss:.4}"), format!("{age:.3}")];
        figures.into_iter().chain([&tasks.gender, &tasks.smile, &tasks.emotion].map(accuracy)).collect()
    }
}

#[cfg(test)]
mod tests {
    use facewise_core::picture::RgbImage;

    use super::*;
    use crate::lesson::CONFIG;
    use crate::network::Precision;
    use crate::sample::{Answers, Labels, answer};

    fn config(size: u32, network: &str) -> Config {
        let recipe = include_str!("../configs/default.toml").replace("size = 64", &format!("size = {size}"));
        Config::parse(&recipe.replace("widths = [32, 64, 128, 256]", network)).expect("a recipe")
    }

    fn save(weights: &Path, config: &Config) {
        let variables = VarStore::new(Device::Cpu);
        Network::new(&variables.root(), &config.graph().expect("a network"));
        checkpoint::save_weights(weights, &variables).expect("a file");
    }

    fn options(folder: &Path) -> Options {
        let (device, precision) = (Device::Cpu, Precision::Fp32);
        Options { run: folder.join("new"), resume: false, init: None, device, precision }
    }

    /// A network of one's own kind and the run of another, at another size.
    #[test]
    fn teachers_of_whatever_kind_answer_by_their_mean() {
        tch::manual_seed(3);
        let folder = tempfile::tempdir().expect("a folder");
        let student = config(32, "widths = [4, 4, 4, 4]");
        let [alike, run] = ["alike.safetensors", "run"].map(|name| folder.path().join(name));
        save(&alike, &student);
        let other = config(48, "widths = [4, 8, 8, 8]");
        std::fs::create_dir(&run).expect("a folder");
        std::fs::write(run.join(CONFIG), toml::to_string(&other).expect("plain data")).expect("a file");
        save(&run.join(lesson::WEIGHTS), &other);

        let options = options(folder.path());
        let answers = |teachers: &[&PathBuf]| -> Vec<Answers> {
            let picture = |n: u8| RgbImage::from_fn(64, 64, |x, y| image::Rgb([n * 80, (x * 4) as u8, (y * 4) as u8]));
            let sample = |n| Sample { picture: picture(n), landmarks: None, labels: Labels::default() };
            let mut samples: Vec<Sample> = (0..3).map(sample).collect();
            let teachers: Vec<TeacherFiles> = teachers.iter().map(|path| TeacherFiles::at(path)).collect();
            teach(&student, &mut samples, &teachers, &options).expect("answers");
            samples.iter().map(|sample| sample.labels.answers.expect("every sample has one")).collect()
        };
        let [first, second, both] = [answers(&[&alike]), answers(&[&run]), answers(&[&alike, &run])];
        assert_ne!(first, second);
        for ((first, second), both) in first.iter().zip(&second).zip(&both) {
            assert!((both.iter().sum::<f32>() - Task::ALL.len() as f32).abs() < 1e-4, "a distribution a task");
            for ((first, second), both) in first.iter().zip(second).zip(both) {
                assert!((f32::midpoint(*first, *second) - both).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn teachers_of_some_tasks_answer_those() {
        tch::manual_seed(4);
        let folder = tempfile::tempdir().expect("a folder");
        let student = config(32, "widths = [4, 4, 4, 4]");
        let all = folder.path().join("all.safetensors");
        save(&all, &student);
        let ages = folder.path().join("ages");
        std::fs::create_dir(&ages).expect("a folder");
        let recipe = include_str!("../configs/ssr-net.toml");
        std::fs::write(ages.join(CONFIG), recipe).expect("a file");
        save(&ages.join(lesson::WEIGHTS), &Config::parse(recipe).expect("a recipe"));

        let options = options(folder.path());
        let ask = |teachers: &[PathBuf]| -> Result<Answers> {
            let picture = RgbImage::from_fn(64, 64, |x, y| image::Rgb([90, (x * 4) as u8, (y * 4) as u8]));
            let mut samples = [Sample { picture, landmarks: None, labels: Labels::default() }];
            let teachers: Vec<TeacherFiles> = teachers.iter().map(|path| TeacherFiles::at(path)).collect();
            teach(&student, &mut samples, &teachers, &options)?;
            Ok(samples[0].labels.answers.expect("an answer"))
        };
        let error = ask(std::slice::from_ref(&ages)).expect_err("an age only");
        assert!(error.to_string().contains("no teacher answers gender"), "{error:#}");
        let (alone, both) = (ask(std::slice::from_ref(&all)).expect("answers"), ask(&[all, ages]).expect("answers"));
        for task in Task::ALL {
            let (alone, both) = (answer(&alone, task), answer(&both, task));
            assert_eq!(alone == both, task != Task::Age, "{task}");
            assert!((both.iter().sum::<f32>() - 1.0).abs() < 1e-4, "{task}: {both:?}");
        }
    }
}
