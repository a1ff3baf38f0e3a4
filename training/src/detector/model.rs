//! A trained detector as a folder of the model repository, and what its file finds.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use facewise_core::detection::{Decoder, Detection, Selection};
use facewise_core::manifest::{Colour, Input, Kind, MODEL_FILE, Manifest, Measurement, Provenance, SCHEMA};
use facewise_core::picture::RgbImage;
use facewise_evaluation::detection::DetectionMetrics;
use tch::Device;
use tch::nn::VarStore;

use super::config::Config;
use super::data::Photograph;
use super::onnx::Engine;
use super::validate::{self, Exam, Exams, Figures};
use crate::architectures::detector::detector;
use crate::config::epochs;
use crate::graph::Graph;
use crate::lesson;
use crate::loader::Batch;
use crate::model::{self, Draft, Identity, commit, finished, remember, round};
use crate::network::Network;
use crate::onnx::export::{self, Sides};
use crate::onnx::parity::{self, Parity};
use crate::validate::{NORMALISATION, pixels};

/// Largest difference allowed between a value of libtorch's maps and of ONNX Runtime's.
pub const MAP_TOLERANCE: f32 = 5e-4;

/// Most photographs that parity is checked on.
pub const PARITY_PICTURES: usize = 256;

/// Largest difference allowed between the confidences of the same face.
const CONFIDENCE_TOLERANCE: f32 = 1e-3;

/// Least intersection over union of the same face.
const SAME_BOX: f32 = 0.99;

/// Runs photographs through libtorch and the ONNX file of a complete run, compares maps and faces, and where they agree writes the file as
/// `<models>/<name>/<version>/`. The weights go where `weights` says, in 16-bit floats.
///
/// # Errors
/// When the run is not complete, a file cannot be written, there are no photographs, or the engines disagree.
pub fn write(
    run: &Path,
    models: &Path,
    identity: Identity,
    photographs: &[Photograph],
    weights: Option<&Path>,
) -> Result<(PathBuf, Parity)> {
    let config = Config::read(&run.join(lesson::CONFIG))?;
    let graph = detector(&config.network)?;
    let (variables, network) = finished(run, &graph)?;
    round(&variables, weights)?;
    let manifest = manifest(&config, &graph, identity)?;
    let folder = models.join(&manifest.name).join(&manifest.version);
    let draft = Draft::new()?;
    save(draft.folder(), &graph, &variables, &manifest)?;
    let step = photographs.len().div_ceil(PARITY_PICTURES).max(1);
    let spread: Vec<Photograph> = photographs.iter().step_by(step).cloned().collect();
    let parity = check(draft.folder(), &network, &Exams::new(&spread, config.size()).photographs)?;
    Ok((draft.publish(&folder)?, parity))
}

/// Writes the ONNX file with its manifest, and the manifest beside it.
///
/// # Errors
/// When the variables are not the graph's, or a file cannot be written.
pub fn save(folder: &Path, graph: &Graph, variables: &VarStore, manifest: &Manifest) -> Result<PathBuf> {
    let sides = Sides::Dynamic(manifest.input.size as usize);
    model::save(folder, graph, variables, sides, &[], manifest)
}

/// Compares libtorch and ONNX Runtime: every value of the maps, and the faces read from them.
///
/// # Errors
/// The first disagreement.
pub fn check(folder: &Path, network: &Network, exams: &[Exam]) -> Result<Parity> {
    let pictures: Vec<&RgbImage> = exams.iter().map(|exam| &exam.picture).collect();
    let batches = pictures.chunks(32).map(|pictures| pixels(&Batch::unlabelled(pictures), Device::Cpu));
    let parity = parity::check(&folder.join(MODEL_FILE), network, batches, MAP_TOLERANCE)?;

    let selection = Selection::default();
    let torch = validate::found(&pictures, network, &selection, Device::Cpu)?;
    let mut engine = Engine::open(folder)?;
    for (index, (torch, picture)) in torch.iter().zip(pictures).enumerate() {
        let onnx = engine.detect(picture, &selection)?;
        let (one, other) = (unmatched(torch, &onnx), unmatched(&onnx, torch));
        ensure!(
            one.is_none() && other.is_none(),
            "photograph {index}: libtorch and ONNX Runtime find different faces: {:?}",
            one.or(other)
        );
    }
    Ok(parity)
}

/// The first face of `a` that is not among those of `b`, unless it is on the threshold.
fn unmatched(a: &[Detection], b: &[Detection]) -> Option<Detection> {
    let certain = Selection::default().min_confidence + CONFIDENCE_TOLERANCE;
    let same = |a: &Detection, b: &Detection| {
        (a.confidence - b.confidence).abs() <= CONFIDENCE_TOLERANCE && a.area.iou(&b.area) >= SAME_BOX
    };
    a.iter().find(|a| a.confidence > certain && !b.iter().any(|b| same(a, b))).copied()
}

/// What a model of the repository finds in exams.
///
/// # Errors
/// When the model cannot be run.
pub fn evaluate(folder: &Path, exams: &Exams) -> Result<Figures> {
    let mut engine = Engine::open(folder)?;
    exams.score(|pictures| pictures.iter().map(|picture| engine.detect(picture, &validate::thorough())).collect())
}

/// Writes figures into a model's manifest, in the file and beside it, in place of older ones on the same rows.
///
/// # Errors
/// When a file cannot be read or written.
pub fn record(folder: &Path, data: &str, filter: &str, figures: &Figures) -> Result<()> {
    let measurement = |(crop, metrics): (&str, &DetectionMetrics)| {
        let values = [
            ("ap", metrics.ap),
            ("precision", metrics.precision),
            ("recall", metrics.recall),
            ("keypoint_error", metrics.keypoint_error),
        ];
        Measurement {
            data: data.to_owned(),
            filter: filter.to_owned(),
            crop: crop.to_owned(),
            n: metrics.faces,
            values: values.map(|(name, value)| (name.to_owned(), (value * 1e4).round() / 1e4)).into(),
        }
    };
    let figures = [("photograph", &figures.photographs), ("mosaic", &figures.mosaics)];
    remember(folder, |_| Ok(figures.map(measurement).into()))
}

/// The manifest of a detector of this configuration, checked as a server does.
///
/// # Errors
/// When the identity is not one that a server accepts.
pub fn manifest(config: &Config, graph: &Graph, identity: Identity) -> Result<Manifest> {
    let sets = std::iter::once((&config.photographs.set, &config.photographs.filter));
    let sets = sets.chain(config.crops.iter().map(|crops| (&crops.set, &crops.filter)));
    let manifest = Manifest {
        schema: SCHEMA,
        name: identity.name,
        version: identity.version,
        kind: Kind::Detector,
        description: identity.description,
        input: Input {
            name: export::INPUT.to_owned(),
            features: None,
            size: config.size(),
            colour: Colour::Rgb,
            mean: NORMALISATION.0,
            sd: NORMALISATION.1,
            template: None,
        },
        heads: Vec::new(),
        decoder: Some(Decoder::Facewise),
        outputs: Vec::new(),
        provenance: Provenance {
            commit: commit(),
            data: sets.map(|(set, filter)| format!("{set} ({filter})")).collect(),
            seed: config.seed,
            recipe: config.name.clone(),
            epochs: epochs(&config.stages),
            parameters: graph.parameters() as u64,
            multiply_adds: graph.multiply_adds(config.size() as usize)?,
        },
        metrics: Vec::new(),
    };
    Ok(Manifest::from_json(&manifest.to_json())?)
}
