//! All knobs of a training run, read from one TOML file that is saved beside the run.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use facewise_core::task::Task;
use serde::{Deserialize, Serialize};

use crate::architectures::residual::ResidualConfig;

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
    pub network: ResidualConfig,
    /// The optimiser and its schedule.
    pub optimiser: OptimiserConfig,
    /// The losses of the tasks.
    pub loss: LossConfig,
    /// How much a teacher counts, where there is one.
    pub distillation: Option<DistillationConfig>,
    /// How pictures are varied.
    pub augmentation: AugmentationConfig,
    /// The labelled sets.
    pub data: Vec<DataConfig>,
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
        Ok(config)
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
    fn a_misspelt_knob_is_an_error() {
        let error = Config::parse(&DEFAULT.replace("warmup_steps", "warm_up")).expect_err("unknown field");
        assert!(format!("{error:#}").contains("warm_up"), "{error:#}");
    }
}
