//! All knobs of a training run, read from one TOML file that is saved beside the run.

use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use facewise_core::task::Task;
use serde::{Deserialize, Serialize};

use crate::age::AgeConfig;
use crate::architectures::multitask::MultitaskConfig;
use crate::architectures::residual::{ResidualConfig, residual_with};
use crate::graph::{Graph, GraphError};

/// One training run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the recipe, kept in the exported model's provenance.
    pub name: String,
    /// Seed of weights, order and augmentation.
    pub seed: u64,
    /// Sides of the input in pixels, in the order they are trained at; the last is the one served.
    pub stages: Vec<Stage>,
    /// Samples a step.
    pub batch: usize,
    /// Threads that make batches beside the threads of libtorch.
    pub loaders: usize,
    /// The network.
    pub network: NetworkConfig,
    /// How the age is learned.
    #[serde(default, skip_serializing_if = "AgeConfig::is_default")]
    pub age: AgeConfig,
    /// The optimiser and its schedule.
    pub optimiser: OptimiserConfig,
    /// Descent with momentum instead of `AdamW`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sgd: Option<SgdConfig>,
    /// The losses of the tasks.
    pub loss: LossConfig,
    /// How much a teacher counts, where there is one.
    pub distillation: Option<DistillationConfig>,
    /// How pictures are varied.
    pub augmentation: AugmentationConfig,
    /// The labelled sets.
    pub data: Vec<DataConfig>,
}

/// Which network, by its `kind`: a trunk of [`MultitaskConfig`], or `residual`, which is meant without a word.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, try_from = "toml::Table")]
pub enum NetworkConfig {
    /// [`residual_with`].
    Residual(ResidualConfig),
    /// [`MultitaskConfig::graph`].
    Multitask(MultitaskConfig),
}

impl TryFrom<toml::Table> for NetworkConfig {
    type Error = toml::de::Error;

    fn try_from(mut table: toml::Table) -> Result<Self, Self::Error> {
        match table.get("kind").and_then(toml::Value::as_str) {
            None | Some("residual") => {
                table.remove("kind");
                table.try_into().map(Self::Residual)
            }
            Some(_) => table.try_into().map(Self::Multitask),
        }
    }
}

impl NetworkConfig {
    /// Builds the network for pictures of `size × size`, with a head for this way of learning the age.
    ///
    /// # Errors
    /// A configuration of which no network can be built.
    pub fn graph(&self, size: u32, age: &AgeConfig) -> Result<Graph, GraphError> {
        match self {
            Self::Residual(config) => residual_with(config, age),
            Self::Multitask(config) => config.graph(size as usize, age),
        }
    }

    /// Leaves only the heads of these tasks.
    pub fn keep(&mut self, tasks: &[Task]) {
        match self {
            Self::Residual(config) => config.heads.retain(|head| tasks.iter().any(|task| task.name() == head.name)),
            Self::Multitask(config) => config.tasks.retain(|task| tasks.contains(task)),
        }
    }
}

/// A number of epochs at one input size: small pictures first save most of the time (Tan & Le 2021, `EfficientNetV2`).
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Side of the input in pixels.
    pub size: u32,
    /// Passes over the mix of sets.
    pub epochs: u32,
}

/// `AdamW` (Loshchilov & Hutter 2019) with linear warm-up, cosine decay and an average of the weights.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimiserConfig {
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Steps from 0 to the highest rate.
    pub warmup_steps: u64,
    /// The rate at the end, as a share of the highest.
    pub final_share: f64,
    /// Decoupled weight decay of convolution and linear weights; biases and batch norm have none.
    pub weight_decay: f64,
    /// Largest norm of the gradient of all weights together.
    pub clip_norm: f64,
    /// Decay a step of the exponential moving average that is evaluated and exported.
    pub ema_decay: f64,
}

/// Stochastic gradient descent with momentum, at the rate, decay and clipping of [`OptimiserConfig`]; all variables decay. The rate falls
/// besides when the validation loss no longer does. With `warmup_steps = 0`, `final_share = 1.0`, `clip_norm = inf` and `ema_decay = 0.0`
/// nothing else changes it, which is the recipe of the published multitask networks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SgdConfig {
    /// Share of the last step's velocity that is kept.
    pub momentum: f64,
    /// Epochs without a lower validation loss that are borne.
    pub patience: u32,
    /// What the rate is multiplied by after more of them.
    pub factor: f64,
}

/// Weights and targets of the tasks' losses; each is a mean over the samples labelled for its task.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossConfig {
    /// Weight of the age's cross-entropy.
    pub age: f64,
    /// Standard deviation in years of the label distribution around the true age (Gao et al. 2017, DLDL).
    pub age_sd: f64,
    /// Weight of the absolute error of the expected age, per year.
    pub age_mean: f64,
    /// Weight of gender's cross-entropy.
    pub gender: f64,
    /// Weight of smile's cross-entropy.
    pub smile: f64,
    /// Weight of emotion's cross-entropy.
    pub emotion: f64,
    /// Share of the target that is spread evenly over all classes, for gender, smile and emotion.
    pub label_smoothing: f64,
    /// Share of the emotion target taken from the votes of FER+ (Barsoum et al. 2016) where a row has them.
    pub emotion_votes: f64,
}

/// Learning from a teacher's answers beside the labels (Hinton et al. 2015).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistillationConfig {
    /// Share of a labelled sample's target that the teacher's answer makes up.
    pub share: f64,
    /// Weight of a sample without a label for a task, whose target is the teacher's answer alone; a labelled one has the weight 1.
    pub unlabelled: f64,
}

/// Ranges of the random changes; a probability of 0 switches a change off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AugmentationConfig {
    /// Share of samples cut as the centred square of their picture instead of by keypoints.
    pub square: f32,
    /// Largest rotation either way, in degrees.
    pub rotation: f32,
    /// Largest factor by which the crop grows or shrinks.
    pub scale: f32,
    /// Largest shift either way, as a share of the side.
    pub shift: f32,
    /// Largest change of brightness, contrast and saturation, as a share.
    pub colour: f32,
    /// Probability of a gray picture.
    pub gray: f32,
    /// Probability of a picture sampled at a lower resolution and enlarged again.
    pub blur: f32,
    /// Probability of a rectangle painted over.
    pub erase: f32,
}

/// A part of a labelled set.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Folder of the set under `--data`.
    pub set: String,
    /// Filter of the rows trained on, as in `split=train`.
    #[serde(rename = "where")]
    pub filter: String,
    /// Filter of the rows validated on; absent: every `hold_out`-th of the rows above.
    pub validation: Option<String>,
    /// Where there is no validation filter, one row in so many is held out.
    pub hold_out: Option<usize>,
    /// Tasks learned from this set; other labels are ignored.
    pub tasks: Vec<Task>,
    /// Passes over this set an epoch.
    pub repeat: f64,
}

/// A value for a key of a configuration, written `KEY=VALUE`: `seed=2`, `optimiser.learning_rate=1e-3`, `stages=[{size=64,epochs=3}]`. Nothing
/// behind the sign, as in `distillation=`, takes the key out.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    key: String,
    value: Option<toml::Value>,
}

impl FromStr for Setting {
    type Err = anyhow::Error;

    /// What is not TOML is text, so that words need no quotation marks.
    fn from_str(text: &str) -> Result<Self> {
        let (key, value) = text.split_once('=').context("not KEY=VALUE")?;
        ensure!(key.split('.').all(|part| !part.is_empty()), "`{key}` is not a key");
        let parsed = toml::from_str::<toml::Table>(&format!("value = {value}")).ok();
        let parsed = parsed.and_then(|mut table| table.remove("value"));
        let value = (!value.is_empty()).then(|| parsed.unwrap_or_else(|| value.into()));
        Ok(Self { key: key.to_owned(), value })
    }
}

impl Setting {
    fn put_into(&self, mut table: &mut toml::Table) -> Result<()> {
        let mut parts = self.key.split('.').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                match &self.value {
                    Some(value) => table.insert(part.to_owned(), value.clone()),
                    None => table.remove(part),
                };
                break;
            }
            let inner = table.entry(part).or_insert_with(|| toml::Table::new().into());
            table = inner.as_table_mut().with_context(|| format!("`{}`: `{part}` is no table", self.key))?;
        }
        Ok(())
    }
}

impl LossConfig {
    /// Weight of a task's loss.
    pub fn weight(&self, task: Task) -> f64 {
        match task {
            Task::Age => self.age,
            Task::Gender => self.gender,
            Task::Smile => self.smile,
            Task::Emotion => self.emotion,
        }
    }
}

impl Config {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// When the file is missing, is not TOML of this shape, or a value is out of range.
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_with(path, &[])
    }

    /// Reads and checks a configuration in which some values are others.
    ///
    /// # Errors
    /// As for [`Config::parse_with`], and when the file is missing.
    pub fn read_with(path: &Path, settings: &[Setting]) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse_with(&text, settings).with_context(|| format!("in {}", path.display()))
    }

    /// Parses and checks a configuration.
    ///
    /// # Errors
    /// As for [`Config::read`].
    pub fn parse(text: &str) -> Result<Self> {
        Self::parse_with(text, &[])
    }

    /// Parses and checks a configuration in which some values are others.
    ///
    /// # Errors
    /// As for [`Config::read`], and when a key leads into something that is no table.
    pub fn parse_with(text: &str, settings: &[Setting]) -> Result<Self> {
        let mut table: toml::Table = toml::from_str(text)?;
        for setting in settings {
            setting.put_into(&mut table)?;
        }
        table.try_into::<Self>()?.checked()
    }

    /// The same training of these tasks alone: other heads, and sets that teach nothing else, are left out.
    ///
    /// # Errors
    /// When nothing is left.
    pub fn only(mut self, tasks: &[Task]) -> Result<Self> {
        self.network.keep(tasks);
        for data in &mut self.data {
            data.tasks.retain(|task| tasks.contains(task));
        }
        self.data.retain(|data| !data.tasks.is_empty());
        self.checked()
    }

    /// The configuration, if it can be trained.
    ///
    /// # Errors
    /// When a value is out of range, or the network cannot be built.
    pub fn checked(self) -> Result<Self> {
        let config = self;
        ensure!(!config.stages.is_empty(), "`stages` is empty");
        ensure!(
            config.stages.iter().all(|stage| (16..=512).contains(&stage.size)),
            "a stage's `size` is not in 16..=512"
        );
        ensure!(config.batch >= 2, "`batch` must be at least 2: batch norm has no statistics of one sample");
        ensure!(config.loaders >= 1, "`loaders` must be at least 1");
        ensure!(!config.data.is_empty(), "`data` is empty");
        for data in &config.data {
            ensure!(!data.tasks.is_empty(), "set `{}` has no tasks", data.set);
            ensure!(data.repeat > 0.0, "set `{}`: `repeat` must be positive", data.set);
            ensure!(
                data.hold_out != Some(0) && data.hold_out != Some(1),
                "set `{}`: `hold_out` must be at least 2",
                data.set
            );
        }
        if let Some(distillation) = &config.distillation {
            ensure!((0.0..=1.0).contains(&distillation.share), "`distillation.share` is not in 0..=1");
            ensure!(distillation.unlabelled >= 0.0, "`distillation.unlabelled` is negative");
        }
        ensure!(config.augmentation.scale >= 1.0, "`augmentation.scale` is a factor of at least 1");
        ensure!((0.0..1.0).contains(&config.optimiser.ema_decay), "`optimiser.ema_decay` is not in 0..1");
        config.check_network()?;
        Ok(config)
    }

    /// Whether the network can be built, sees pictures of every stage, and has a head for each task that is taught.
    fn check_network(&self) -> Result<()> {
        let graph = self.graph().context("`network`")?;
        for stage in &self.stages {
            graph.shapes(stage.size as usize).context("`network`")?;
        }
        let tasks = answered(&graph);
        for head in graph.outputs() {
            let expected = tasks.iter().find(|task| task.name() == head.name).map(|task| task.classes());
            let found = graph.shapes(self.size() as usize)?[head.node.index()].features();
            ensure!(
                expected.is_none_or(|expected| expected == found),
                "`network`: the head `{}` has {found} outputs instead of {}",
                head.name,
                expected.unwrap_or_default()
            );
        }
        ensure!(!tasks.is_empty(), "`network` has a head for no task");
        for data in &self.data {
            for task in &data.tasks {
                ensure!(tasks.contains(task), "set `{}` teaches `{task}`, for which the network has no head", data.set);
            }
        }
        Ok(())
    }

    /// The network.
    ///
    /// # Errors
    /// A configuration of which no network can be built.
    pub fn graph(&self) -> Result<Graph, GraphError> {
        self.network.graph(self.size(), &self.age)
    }

    /// Side of the input that is served.
    pub fn size(&self) -> u32 {
        self.stages[self.stages.len() - 1].size
    }

    /// Epochs of all stages.
    pub fn epochs(&self) -> u32 {
        epochs(&self.stages)
    }

    /// Side of the input in an epoch, counted from 0.
    pub fn size_in(&self, epoch: u32) -> u32 {
        size_in(&self.stages, epoch)
    }
}

/// The tasks that a network answers, in the order of [`Task::ALL`].
pub fn answered(graph: &Graph) -> Vec<Task> {
    Task::ALL.into_iter().filter(|task| graph.outputs().iter().any(|output| output.name == task.name())).collect()
}

/// Epochs of all stages.
pub fn epochs(stages: &[Stage]) -> u32 {
    stages.iter().map(|stage| stage.epochs).sum()
}

/// Side of the input in an epoch, counted from 0; after the last stage that of the last.
///
/// # Panics
/// Without stages.
pub fn size_in(stages: &[Stage], epoch: u32) -> u32 {
    let mut first = 0;
    let current = stages.iter().find(|stage| {
        first += stage.epochs;
        epoch < first
    });
    current.unwrap_or(&stages[stages.len() - 1]).size
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: &str = include_str!("../configs/default.toml");

    #[test]
    fn the_default_configuration_is_valid() {
        let config = Config::parse(DEFAULT).expect("valid");
        assert_eq!(config.size_in(0), config.stages[0].size);
        assert_eq!(config.size_in(config.epochs() - 1), config.size());
    }

    #[test]
    fn shipped_recipes_of_multitask_networks_are_valid() {
        let shipped = [
            include_str!("../configs/alexnet.toml"),
            include_str!("../configs/alexnet-seed.toml"),
            include_str!("../configs/resnet18.toml"),
            include_str!("../configs/resnet18-seed.toml"),
            include_str!("../configs/resnet50.toml"),
            include_str!("../configs/densenet121.toml"),
            include_str!("../configs/dex.toml"),
            include_str!("../configs/ssr-net.toml"),
        ];
        for text in shipped {
            let config = Config::parse(text).expect("valid");
            let written = toml::to_string_pretty(&config).expect("plain data");
            let again = Config::parse(&written).unwrap_or_else(|error| panic!("{}: {error:#}", config.name));
            assert_eq!(again.network, config.network);
            assert_eq!(again.optimiser.clip_norm.is_finite(), config.sgd.is_none(), "TOML knows infinity");
        }
    }

    /// What a run writes into its folder must be what it was started with, also by a program that knew no other networks.
    #[test]
    fn a_residual_network_is_written_without_its_kind() {
        let config = Config::parse(DEFAULT).expect("valid");
        let written = toml::to_string_pretty(&config).expect("plain data");
        assert!(!written.contains("kind") && !written.contains("[age]"), "{written}");
        let named = DEFAULT.replace("[network]", "[network]\nkind = \"residual\"");
        assert_eq!(Config::parse(&named).expect("valid").network, config.network);
    }

    #[test]
    fn a_network_is_chosen_by_its_kind() {
        const START: &str = include_str!("../configs/default-start.toml");
        let (before, rest) = START.split_once("[network]").expect("there");
        let (_, after) = rest.split_once("\n\n").expect("it ends");
        let parse = |network: &str| Config::parse(&format!("{before}{network}\n{after}"));
        let config = parse("[network]\nkind = \"resnet18\"\ndivisor = 8\n[age]\nmethod = \"ordinal\"").expect("valid");
        let again = Config::parse(&toml::to_string_pretty(&config).expect("plain data")).expect("valid");
        assert_eq!((&again.network, again.age), (&config.network, AgeConfig::Ordinal));
        let error = |text: &str| format!("{:#}", parse(text).expect_err(text));
        for (text, message) in [
            ("[network]\nkind = \"resnet19\"", "resnet19"),
            ("[network]\nkind = \"resnet18\"\nwidths = [1]", "widths"),
            ("[network]\nkind = \"ssr-net\"", "an SSR-Net needs `tasks"),
            ("[network]\nkind = \"resnet18\"\ntasks = [\"smile\"]", "teaches `age`, for which the network has no head"),
            ("[network]\nkind = \"alexnet\"", "at 48 px: a window of 3 does not fit into 2"),
        ] {
            assert!(error(text).contains(message), "{text}: {}", error(text));
        }
    }

    #[test]
    fn values_are_replaced_one_by_one() {
        const RECIPE: &str = include_str!("../configs/resnet18.toml");
        let parse = |settings: &[&str]| {
            let settings: Result<Vec<Setting>> = settings.iter().map(|text| text.parse()).collect();
            Config::parse_with(RECIPE, &settings?)
        };
        let settings =
            ["seed=7", "optimiser.learning_rate=5e-4", "stages=[{size=48,epochs=3}]", "age.method=ordinal", "name=a=b"];
        let config = parse(&settings).expect("valid");
        assert_eq!((config.seed, config.optimiser.learning_rate, config.size(), config.epochs()), (7, 5e-4, 48, 3));
        assert_eq!((config.age, config.name.as_str()), (AgeConfig::Ordinal, "a=b"));
        assert_eq!(config.optimiser.warmup_steps, Config::parse(RECIPE).expect("valid").optimiser.warmup_steps);
        for (setting, message) in [
            ("seed", "not KEY=VALUE"),
            ("optimiser..rate=1", "`optimiser..rate` is not a key"),
            ("seed.of=1", "`seed.of`: `seed` is no table"),
            ("optimiser.rate=1", "unknown field `rate`"),
            ("batch=many", "invalid type: string \"many\""),
        ] {
            let error = format!("{:#}", parse(&[setting]).expect_err(setting));
            assert!(error.contains(message), "{setting}: {error}");
        }
        assert!(Config::parse(DEFAULT).expect("valid").distillation.is_some());
        let removal = "distillation=".parse().expect("a setting");
        assert!(Config::parse_with(DEFAULT, &[removal]).expect("valid").distillation.is_none());
    }

    #[test]
    fn tasks_are_trained_alone() {
        let config = Config::parse(include_str!("../configs/default-joint.toml")).expect("valid");
        let sets = |config: &Config| config.data.iter().map(|data| data.set.clone()).collect::<Vec<_>>();
        let gender = config.clone().only(&[Task::Gender]).expect("valid");
        assert_eq!(answered(&gender.graph().expect("a network")), [Task::Gender]);
        assert_eq!(sets(&gender), ["utkface", "celeba_faces"]);
        assert!(gender.data.iter().all(|data| data.tasks == [Task::Gender]));
        assert_eq!(sets(&config.clone().only(&Task::ALL).expect("valid")), sets(&config));
        assert!(config.only(&[]).is_err());
    }

    #[test]
    fn a_misspelt_knob_is_an_error() {
        let error = Config::parse(&DEFAULT.replace("warmup_steps", "warm_up")).expect_err("unknown field");
        assert!(format!("{error:#}").contains("warm_up"), "{error:#}");
    }
}
