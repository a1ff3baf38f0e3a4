//! All knobs of a detector's training, read from one TOML file that is saved beside the run.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::architectures::detector::DetectorConfig;
use crate::config::{OptimiserConfig, Stage};

/// One training run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the recipe, kept in the exported model's provenance.
    pub name: String,
    /// Seed of weights and scenes.
    pub seed: u64,
    /// Scenes an epoch.
    pub scenes: usize,
    /// Scenes a step.
    pub batch: usize,
    /// Threads that compose scenes beside the threads of libtorch.
    pub loaders: usize,
    /// Sides of the scenes in pixels, in the order they are trained at; the last is the one served.
    pub stages: Vec<Stage>,
    /// The network.
    pub network: DetectorConfig,
    /// The optimiser and its schedule.
    pub optimiser: OptimiserConfig,
    /// What a cell should say.
    pub target: TargetConfig,
    /// The parts of the loss.
    pub loss: LossConfig,
    /// What is composed.
    pub scene: SceneConfig,
    /// How scenes are spoilt.
    pub light: LightConfig,
    /// Whole photographs with every face labelled.
    pub photographs: PhotographsConfig,
    /// Sets of tight crops of one face.
    pub crops: Vec<CropsConfig>,
}

/// Which cells answer for a face.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetConfig {
    /// A cell answers for a face when its centre is at most so many strides from the box's centre, across and down, and inside the box.
    pub radius: f32,
    /// Sides of boxes, in pixels, that each level answers for, from the finest. They overlap, so that a face between two levels is learned
    /// by both.
    pub sides: [[f32; 2]; 3],
}

/// Weights of the parts of the loss, each a mean over the cells that answer for faces.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossConfig {
    /// Weight of the focal loss of the score.
    pub score: f64,
    /// Exponent of the focal loss (Lin et al. 2017, arXiv:1708.02002).
    pub focus: f64,
    /// How much of the missing overlap of a predicted box lowers the score that its cell should give: 0 not at all, 1 all of it, which is
    /// the quality focal loss (Li et al. 2020, arXiv:2006.04388).
    pub quality: f64,
    /// Weight of the box: 1 − `DIoU` (Zheng et al. 2020, arXiv:1911.08287).
    pub area: f64,
    /// Weight of the keypoints: smooth L1 of the error in shares of the box's side, summed over eight coordinates.
    pub keypoints: f64,
    /// Error from which the keypoint loss is linear, in shares of the box's side.
    pub keypoint_beta: f64,
}

/// How often each kind of scene is composed, and within which ranges.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SceneConfig {
    /// Frequency of one photograph at any scale.
    pub photograph: f32,
    /// Frequency of mosaics of 2×2 to 4×4 photographs.
    pub mosaic: f32,
    /// Frequency of a tight crop that fills the frame.
    pub crop: f32,
    /// Frequency of tight crops pasted on a background.
    pub paste: f32,
    /// Frequency of scenes without faces.
    pub negative: f32,
    /// Largest rotation either way, in degrees.
    pub rotation: f32,
    /// Side of the smallest face drawn, in pixels.
    pub smallest: f32,
    /// A face whose box has less than this side in pixels is neither asked for nor denied.
    pub too_small: f32,
}

/// Probabilities and ranges of what happens to a scene as a whole.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LightConfig {
    /// Largest change of brightness, contrast and saturation, as a share.
    pub colour: f32,
    /// Probability of a gray scene.
    pub gray: f32,
    /// Probability of a scene sampled at a lower resolution and enlarged again.
    pub blur: f32,
    /// Probability of noise.
    pub noise: f32,
    /// Probability of the artefacts of a JPEG of low quality.
    pub jpeg: f32,
}

/// The set of whole photographs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhotographsConfig {
    /// Folder of the set under `--data`.
    pub set: String,
    /// Filter of the rows trained on, as in `split=train`.
    #[serde(rename = "where")]
    pub filter: String,
    /// Filter of the rows validated on.
    pub validation: String,
    /// Least `box_score` of a second box on a photograph; those below are neither faces nor background.
    pub certain: f32,
    /// Files that say where the keypoints of the set's faces are, as `place` in [`facewise_evaluation::corrections::Corrections`]; from the
    /// folder that the program runs in. Other corrections in them are for measuring.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub corrections: Vec<PathBuf>,
}

/// A set of tight crops.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CropsConfig {
    /// Folder of the set under `--data`.
    pub set: String,
    /// Filter of the rows trained on.
    #[serde(rename = "where")]
    pub filter: String,
    /// Most rows, taken evenly from all.
    pub rows: usize,
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
            config.stages.iter().all(|stage| (32..=1024).contains(&stage.size) && stage.size.is_multiple_of(32)),
            "a stage's `size` is no multiple of 32 in 32..=1024"
        );
        ensure!(config.batch >= 2, "`batch` must be at least 2: batch norm has no statistics of one scene");
        ensure!(config.scenes >= config.batch, "`scenes` must be at least `batch`");
        ensure!(config.loaders >= 1, "`loaders` must be at least 1");
        ensure!((0.0..1.0).contains(&config.optimiser.ema_decay), "`optimiser.ema_decay` is not in 0..1");
        ensure!((0.0..=1.0).contains(&config.loss.quality), "`loss.quality` is not in 0..=1");
        ensure!(config.loss.keypoint_beta > 0.0, "`loss.keypoint_beta` must be positive");
        ensure!(config.target.radius >= 0.75, "`target.radius` below 0.75 leaves faces without a cell");
        let covered = config.target.sides.windows(2).all(|pair| pair[1][0] <= pair[0][1]);
        ensure!(
            covered && config.target.sides[0][0] <= 0.0 && config.target.sides[2][1] == f32::INFINITY,
            "`target.sides` leave a size of face without a level"
        );
        // A box wider than the cells of the finest level always has the centre of one inside.
        ensure!(config.scene.too_small >= 9.0, "`scene.too_small` must be at least 9 px");
        ensure!(config.scene.smallest >= config.scene.too_small, "`scene.smallest` must be at least `too_small`");
        ensure!(config.scene.frequencies().iter().sum::<f32>() > 0.0, "`scene` has no kind with a frequency");
        ensure!(
            !config.crops.is_empty() || config.scene.crop + config.scene.paste <= 0.0,
            "scenes of crops need sets of `crops`"
        );
        Ok(config)
    }

    /// Side of the input that is served.
    pub fn size(&self) -> u32 {
        self.stages[self.stages.len() - 1].size
    }
}

impl SceneConfig {
    /// How often each kind is composed, in the order of the fields.
    pub fn frequencies(&self) -> [f32; 5] {
        [self.photograph, self.mosaic, self.crop, self.paste, self.negative]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DETECTOR: &str = include_str!("../../configs/detector.toml");

    #[test]
    fn the_shipped_configuration_is_valid() {
        let config = Config::parse(DETECTOR).expect("valid");
        assert_eq!(config.size() as usize, config.network.size);
    }

    #[test]
    fn wrong_knobs_are_named() {
        for (from, to, message) in [
            ("warmup_steps", "warm_up", "warm_up"),
            ("size = 320", "size = 300", "multiple of 32"),
            ("radius = ", "radius = 0.1 #", "`target.radius`"),
            ("[128.0, inf]", "[300.0, inf]", "`target.sides`"),
            ("too_small = ", "too_small = 4.0 #", "`scene.too_small`"),
        ] {
            let text = DETECTOR.replace(from, to);
            assert_ne!(text, DETECTOR, "the case changes the file");
            let error = format!("{:#}", Config::parse(&text).expect_err(to));
            assert!(error.contains(message), "{error}");
        }
    }
}
