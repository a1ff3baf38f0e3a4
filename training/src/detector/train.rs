//! Trains the detector: the [`Lesson`] of composed scenes.

use std::sync::Arc;

use anyhow::{Result, ensure};
use facewise_core::detection::STRIDES;
use facewise_evaluation::detection::Truth;
use tch::nn::VarStore;
use tch::{Device, no_grad};

use super::config::Config;
use super::data::{Album, Photograph};
use super::loader::Epoch;
use super::loss;
use super::target::targets;
use super::validate::{self, Exams, Figures};
use crate::architectures::detector::{detector, output_layer};
use crate::config::{epochs, size_in};
use crate::lesson::{self, Lesson, Losses, Options, Plan};
use crate::loader::Batch;
use crate::network::{Mode, Network};
use crate::validate::pixels;

/// Probability of a face that every cell starts from: with one half, the many cells without a face would drown the few with one in the
/// first steps (Lin et al. 2017, arXiv:1708.02002, section 3.3).
const PRIOR: f64 = 0.01;

/// Trains a detector as [`lesson::learn`] does.
///
/// # Errors
/// As for [`lesson::learn`], and when the album lacks what the configuration composes.
pub fn train(config: &Config, album: Album, validation: &[Photograph], options: &Options) -> Result<Figures> {
    ensure!(!album.photographs.is_empty(), "there are no photographs to compose scenes from");
    let lesson =
        Scenes { config, album: Arc::new(album), exams: Exams::new(validation, config.size()), device: options.device };
    lesson::learn(&lesson, &detector(&config.network)?, config, options)
}

struct Scenes<'a> {
    config: &'a Config,
    album: Arc<Album>,
    exams: Exams,
    device: Device,
}

impl Lesson for Scenes<'_> {
    type Batch = Batch<Truth>;
    type Score = Figures;
    const LOSSES: &'static [&'static str] = &loss::PARTS;
    const SCORES: &'static [&'static str] = &validate::COLUMNS;

    fn plan(&self) -> Plan {
        Plan {
            seed: self.config.seed,
            epochs: epochs(&self.config.stages),
            batches: self.config.scenes / self.config.batch,
            batch: self.config.batch,
            optimiser: self.config.optimiser.clone(),
        }
    }

    fn size(&self, epoch: u32) -> u32 {
        size_in(&self.config.stages, epoch)
    }

    fn initialise(&self, variables: &VarStore) {
        initialise(variables);
    }

    fn batches(&self, epoch: u32, skip: usize) -> impl Iterator<Item = Self::Batch> {
        Epoch { number: epoch, size: self.size(epoch), skip }.batches(&self.album, self.config)
    }

    fn losses(&self, network: &Network, batch: &Self::Batch) -> Losses {
        let targets = targets(&batch.labels, batch.size, &self.config.target);
        let maps = network.forward(&pixels(batch, self.device), Mode::Train);
        loss::loss(&maps, &targets, &self.config.loss)
    }

    fn validate(&self, network: &Network, _epoch: u32) -> Result<Figures> {
        self.exams.score_network(network, self.device)
    }

    fn figures(score: &Figures) -> Vec<String> {
        score.cells()
    }
}

/// Output maps start near zero, the scores at [`PRIOR`].
pub fn initialise(variables: &VarStore) {
    let variables = variables.variables();
    let find = |name: String| variables.get(&name).map(tch::Tensor::shallow_clone);
    no_grad(|| {
        for stride in STRIDES {
            if let Some(mut weight) = find(format!("{}.weight", output_layer(stride))) {
                let _ = weight.normal_(0.0, 0.01);
            }
            if let Some(bias) = find(format!("{}.bias", output_layer(stride))) {
                let _ = bias.narrow(0, 0, 1).fill_((PRIOR / (1.0 - PRIOR)).ln());
            }
        }
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tch::Kind;

    use super::super::testing::{drawn, face};
    use super::*;
    use crate::architectures::detector::DetectorConfig;
    use crate::optimiser::AdamW;

    fn narrow() -> DetectorConfig {
        DetectorConfig { size: 96, stem: [8, 8], widths: [16, 16, 24], blocks: [1, 1, 1], pyramid: 16, head: 1 }
    }

    #[test]
    fn a_fresh_network_sees_a_face_nowhere() {
        tch::manual_seed(3);
        let variables = VarStore::new(Device::Cpu);
        let network = Network::new(&variables.root(), &detector(&narrow()).unwrap());
        initialise(&variables);
        let pixels = tch::Tensor::randn([2, 3, 96, 96], (Kind::Float, Device::Cpu));
        for map in network.forward(&pixels, Mode::Eval) {
            let score = map.select(1, 0).sigmoid();
            assert!(score.max().double_value(&[]) < 0.05 && score.min().double_value(&[]) > 0.002);
        }
    }

    /// Everything from targets to decoding fits together: a small network learns four scenes by heart and finds their faces.
    #[test]
    fn four_scenes_can_be_learned_by_heart() {
        tch::set_num_threads(1);
        tch::manual_seed(5);
        let mut config = Config::parse(include_str!("../../configs/detector.toml")).unwrap();
        // The scenes are small, and so are the faces that the levels divide among them.
        config.target.sides = [[0.0, 40.0], [28.0, 112.0], [80.0, f32::INFINITY]];
        let photographs: Vec<Photograph> = [
            vec![face(8.0, 10.0, 20.0), face(60.0, 50.0, 26.0)],
            vec![face(20.0, 16.0, 60.0)],
            vec![face(4.0, 4.0, 88.0)],
            vec![],
        ]
        .into_iter()
        .map(|faces| drawn(96, 96, faces))
        .collect();
        let exams = Exams::new(&photographs, 96);
        let mut batch = Batch::new(96, 4);
        for photograph in &photographs {
            batch.push(&photograph.picture, photograph.truth.clone());
        }

        let variables = VarStore::new(Device::Cpu);
        let network = Network::new(&variables.root(), &detector(&narrow()).unwrap());
        initialise(&variables);
        let mut optimiser = AdamW::new(&variables, &config.optimiser);
        let targets = targets(&batch.labels, 96, &config.target);
        for step in 1..=150 {
            let maps = network.forward(&pixels(&batch, Device::Cpu), Mode::Train);
            let losses = loss::loss(&maps, &targets, &config.loss);
            optimiser.zero_grad();
            losses.total.backward();
            optimiser.step(step, 5e-3);
        }
        let figures = exams.score_network(&network, Device::Cpu).unwrap().photographs;
        assert!(figures.recall > 0.99 && figures.precision > 0.99, "{figures:?}");
        assert!(figures.keypoint_error < 0.1, "{figures:?}");
    }
}
