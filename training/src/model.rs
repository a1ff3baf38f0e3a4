//! A trained network as a folder of the model repository: `model.onnx` and `manifest.json`, the same manifest in both.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use facewise_core::decode::{AgeDistribution, LabelDistribution};
use facewise_core::geometry::Template;
use facewise_core::manifest::{
    Colour, Head, Input, Kind, MANIFEST_FILE, MODEL_FILE, Manifest, Measurement, Provenance, SCHEMA, Values,
};
use facewise_core::task::Task;
use facewise_evaluation::report::{Geometry, Report};
use prost::Message;
use tch::Device;
use tch::nn::VarStore;
use tempfile::TempDir;

use crate::calibrate;
use crate::checkpoint;
use crate::config::{self, Config};
use crate::graph::Graph;
use crate::lesson;
use crate::network::{Mode, Network};
use crate::onnx::export::{self, Sides};
use crate::onnx::messages::ModelProto;
use crate::onnx::metadata;
use crate::onnx::parity::{self, Parity};
use crate::onnx::{quantise, runtime};
use crate::sample::Sample;
use crate::validate;

/// Largest difference allowed between a logit of libtorch and of ONNX Runtime.
pub const LOGIT_TOLERANCE: f32 = 1e-4;

/// Real crops that parity is checked on, where so many are held out; of fewer, all.
pub const PARITY_PICTURES: usize = 256;

/// Crops in each batch that shows how far what flows between layers reaches.
const WATCHED: usize = 32;

/// What a model is called.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Name of the model and its folder.
    pub name: String,
    /// Version and folder within.
    pub version: String,
    /// One sentence for people.
    pub description: String,
}

/// In which form a network is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Form<'a> {
    /// Where to write its weights too, in 16-bit floats.
    pub weights: Option<&'a Path>,
    /// Without the temperatures that held-out samples ask for.
    pub uncalibrated: bool,
    /// With its convolutions in 8-bit integers.
    pub int8: bool,
}

/// A network as a model of the repository.
#[derive(Debug)]
pub struct Written {
    /// The ONNX file.
    pub path: PathBuf,
    /// What libtorch and ONNX Runtime agree on, before anything becomes integers.
    pub parity: Parity,
    /// What the logits of tasks were divided by.
    pub temperatures: Vec<(Task, f64)>,
    /// What the network in integers answers of what it answered in floats.
    pub agreement: Option<Agreement>,
}

/// How alike a network answers in 8-bit integers and in floats.
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    /// Pictures that both were asked about.
    pub pictures: usize,
    /// Mean difference between the ages that they answer, in years.
    pub years: Option<f64>,
    /// Share of the pictures with the same label, of each task that has labels.
    pub labels: Vec<(Task, f64)>,
}

/// Runs real crops through libtorch and the ONNX file of a complete run, and where they agree writes it as `<models>/<name>/<version>/`, in
/// the form that is asked for.
///
/// # Errors
/// When the run is not complete, a file cannot be written, no samples are given, the engines disagree, or a network without convolutions
/// is to have them in integers.
pub fn write(run: &Path, models: &Path, identity: Identity, samples: &[Sample], form: &Form) -> Result<Written> {
    ensure!(!samples.is_empty(), "nothing is held out that libtorch and ONNX Runtime could be compared on");
    let config = Config::read(&run.join(lesson::CONFIG))?;
    let graph = config.graph()?;
    let (variables, network) = finished(run, &graph)?;
    let temperatures =
        if form.uncalibrated { Vec::new() } else { calibrate::calibrate(&network, &variables, samples, &config)? };
    round(&variables, form.weights)?;
    let manifest = manifest(&config, &graph, identity)?;
    let folder = models.join(&manifest.name).join(&manifest.version);
    let is_logits = |task: &Task| *task != Task::Age || config.age.is_logits();
    let tasks = config::answered(&graph);
    let heads: Vec<&str> = tasks.iter().filter(|task| is_logits(task)).map(|task| task.name()).collect();
    let draft = Draft::new()?;
    let path = save(draft.folder(), &graph, &variables, config.size() as usize, &heads, &manifest)?;

    let step = (samples.len() / PARITY_PICTURES).max(1);
    let spread: Vec<Sample> = samples.iter().step_by(step).take(PARITY_PICTURES).cloned().collect();
    let batches =
        |samples| validate::plain_batches(samples, config.size()).map(|batch| validate::pixels(&batch, Device::Cpu));
    let parity = parity::check(&path, &network, batches(&spread), LOGIT_TOLERANCE)?;
    let agreement = if form.int8 {
        let model = ModelProto::decode(fs::read(&path)?.as_slice())?;
        let model = quantise::quantise(model, spread.chunks(WATCHED).flat_map(batches))?;
        place(draft.folder(), &model, &manifest.to_json())?;
        Some(agreement(&network, &model, samples, &config)?)
    } else {
        None
    };
    Ok(Written { path: draft.publish(&folder)?, parity, temperatures, agreement })
}

/// Asks a network and the file made of it about the same samples.
fn agreement(network: &Network, model: &ModelProto, samples: &[Sample], config: &Config) -> Result<Agreement> {
    let mut session = runtime::session_of(model)?;
    let tasks = config::answered(network.graph());
    let (mut same, mut years) = (vec![0; tasks.len()], 0.0);
    for batch in validate::plain_batches(samples, config.size()) {
        let pixels = validate::pixels(&batch, Device::Cpu);
        let outputs = network.answer(&pixels, Mode::Eval);
        let tensor = (pixels.size(), Vec::<f32>::try_from(pixels.contiguous().flatten(0, -1))?);
        let found = session.run(ort::inputs![export::INPUT => ort::value::Tensor::from_array(tensor)?])?;
        for (task, same) in tasks.iter().zip(&mut same) {
            let floats =
                validate::probabilities(&outputs, *task, &config.age).context("the network answers the task")?;
            let integers = found[task.name()].try_extract_tensor::<f32>()?.1.chunks_exact(task.classes());
            for (floats, integers) in Vec::<Vec<f32>>::try_from(floats)?.iter().zip(integers) {
                if *task == Task::Age {
                    let read = |row| AgeDistribution::from_probabilities(row).map(|age| age.years(config.age.point()));
                    years += f64::from((read(floats)? - read(integers)?).abs());
                } else {
                    let read = |row| LabelDistribution::from_probabilities(*task, row).map(|label| label.top());
                    *same += usize::from(read(floats)? == read(integers)?);
                }
            }
        }
    }
    let n = samples.len() as f64;
    let labels = tasks.iter().zip(same).filter(|(task, _)| **task != Task::Age);
    Ok(Agreement {
        pictures: samples.len(),
        years: tasks.contains(&Task::Age).then_some(years / n),
        labels: labels.map(|(task, same)| (*task, same as f64 / n)).collect(),
    })
}

/// The network of a complete run.
///
/// # Errors
/// When the run is not complete.
pub(crate) fn finished(run: &Path, graph: &Graph) -> Result<(VarStore, Network)> {
    let variables = VarStore::new(Device::Cpu);
    let network = Network::new(&variables.root(), graph);
    checkpoint::load_weights(&run.join(lesson::WEIGHTS), &variables).context("is the run complete?")?;
    Ok((variables, network))
}

/// Rounds weights to 16-bit floats, and writes them where `weights` says: the file kept for training on and the ONNX file then hold the
/// same numbers.
///
/// # Errors
/// When the weights cannot be written.
pub(crate) fn round(variables: &VarStore, weights: Option<&Path>) -> Result<()> {
    checkpoint::round_to_half(variables);
    weights.map_or(Ok(()), |path| checkpoint::save_half(path, variables))
}

/// Writes the ONNX file with its manifest, and the manifest beside it; returns the path of the former. `heads` get their probabilities
/// appended, as [`export::write`] says.
///
/// # Errors
/// When the variables are not the graph's, or a file cannot be written.
pub fn save(
    folder: &Path,
    graph: &Graph,
    variables: &VarStore,
    sides: impl Into<Sides>,
    heads: &[&str],
    manifest: &Manifest,
) -> Result<PathBuf> {
    let json = manifest.to_json();
    let model = export::write(graph, &variables.variables(), sides, heads, &json)?;
    place(folder, &model, &json)
}

/// Writes a model and its manifest into a folder that is made if need be; returns the path of the model.
pub(crate) fn place(folder: &Path, model: &ModelProto, manifest: &str) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join(MODEL_FILE);
    fs::write(&path, model.encode_to_vec()).with_context(|| format!("cannot write {}", path.display()))?;
    fs::write(folder.join(MANIFEST_FILE), manifest)?;
    Ok(path)
}

/// A model in a folder of its own for as long as nobody knows whether it works: a server may be looking into the repository.
pub(crate) struct Draft(TempDir);

impl Draft {
    /// An empty folder.
    ///
    /// # Errors
    /// When the system gives none.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(tempfile::tempdir().context("cannot make a folder for the model")?))
    }

    /// Where the model is to be [placed](place).
    pub(crate) fn folder(&self) -> &Path {
        self.0.path()
    }

    /// Puts the model and its manifest into this folder, which is made if need be, each file whole; returns the path of the model there.
    ///
    /// # Errors
    /// When that is impossible.
    pub(crate) fn publish(self, folder: &Path) -> Result<PathBuf> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let files =
            [MODEL_FILE, MANIFEST_FILE].map(|name| (folder.join(format!("{name}.part")), folder.join(name), name));
        for (part, _, name) in &files {
            fs::copy(self.folder().join(name), part).with_context(|| format!("cannot write {}", part.display()))?;
        }
        for (part, to, _) in &files {
            fs::rename(part, to).with_context(|| format!("cannot write {}", to.display()))?;
        }
        Ok(folder.join(MODEL_FILE))
    }
}

/// Writes what reports measured into a model's manifest, in the file and beside it. A figure on the same rows and crops is replaced.
///
/// # Errors
/// When a file cannot be read or written, or a report is of another model or of the first rows only.
pub fn record(folder: &Path, reports: &[Report]) -> Result<()> {
    remember(folder, |manifest| {
        for report in reports {
            let of = (&report.model.name, &report.model.version);
            ensure!(of == (&manifest.name, &manifest.version), "a report is of {} {}, not of this model", of.0, of.1);
            let set = &report.dataset;
            ensure!(
                set.limit.is_none(),
                "the report on {} is of its first rows only: it was made with --limit",
                set.name
            );
        }
        Ok(reports.iter().map(measurement).collect())
    })
}

/// Puts figures into a model's manifest, in the file and beside it, in place of older ones on the same rows and crops.
///
/// # Errors
/// When a file cannot be read or written, or there are no figures for this model.
pub(crate) fn remember(folder: &Path, figures: impl FnOnce(&Manifest) -> Result<Vec<Measurement>>) -> Result<()> {
    let beside = folder.join(MANIFEST_FILE);
    let text = fs::read_to_string(&beside).with_context(|| format!("cannot read {}", beside.display()))?;
    let mut manifest = Manifest::from_json(&text).with_context(|| format!("in {}", beside.display()))?;
    for fresh in figures(&manifest)? {
        let same = |old: &Measurement| (&old.data, &old.filter, &old.crop) == (&fresh.data, &fresh.filter, &fresh.crop);
        manifest.metrics.retain(|old| !same(old));
        manifest.metrics.push(fresh);
    }
    let json = manifest.to_json();
    metadata::replace_manifest(&folder.join(MODEL_FILE), &json)?;
    fs::write(&beside, json).with_context(|| format!("cannot write {}", beside.display()))
}

fn measurement(report: &Report) -> Measurement {
    let mut values = BTreeMap::new();
    let mut n = 0;
    if let Some(age) = &report.tasks.age {
        n = n.max(age.n);
        values.insert("age.mae".to_owned(), age.mae);
        values.insert("age.accuracy_8".to_owned(), age.accuracy_8);
        values.insert("age.interval_coverage".to_owned(), age.interval_coverage);
    }
    let labelled = [
        (Task::Gender, &report.tasks.gender),
        (Task::Smile, &report.tasks.smile),
        (Task::Emotion, &report.tasks.emotion),
    ];
    for (task, metrics) in labelled {
        if let Some(metrics) = metrics {
            n = n.max(metrics.n);
            values.insert(format!("{task}.accuracy"), metrics.accuracy);
            values.insert(format!("{task}.ece"), metrics.ece);
        }
    }
    for value in values.values_mut() {
        *value = (*value * 1e4).round() / 1e4;
    }
    Measurement {
        data: report.dataset.name.clone(),
        filter: report.dataset.filter.clone().unwrap_or_default(),
        crop: match report.detect {
            Geometry::Manifest => "keypoints",
            Geometry::Square => "square",
            Geometry::Crop => "detector",
        }
        .to_owned(),
        n,
        values,
    }
}

fn manifest(config: &Config, graph: &Graph, identity: Identity) -> Result<Manifest> {
    let head = |task: Task| Head {
        task,
        output: task.name().to_owned(),
        values: Values::Probabilities,
        labels: task.labels().iter().map(|label| (*label).to_owned()).collect(),
        point: (task == Task::Age).then_some(config.age.point()),
        votes: None,
    };
    let manifest = Manifest {
        schema: SCHEMA,
        name: identity.name,
        version: identity.version,
        kind: Kind::Attributes,
        description: identity.description,
        input: Input {
            name: export::INPUT.to_owned(),
            features: None,
            size: config.size(),
            colour: Colour::Rgb,
            mean: validate::NORMALISATION.0,
            sd: validate::NORMALISATION.1,
            template: Some(Template::FACE),
        },
        heads: config::answered(graph).into_iter().map(head).collect(),
        decoder: None,
        outputs: Vec::new(),
        provenance: Provenance {
            commit: commit(),
            data: config.data.iter().map(|data| format!("{} ({})", data.set, data.filter)).collect(),
            seed: config.seed,
            recipe: config.name.clone(),
            epochs: config.epochs(),
            parameters: graph.parameters() as u64,
            multiply_adds: graph.multiply_adds(config.size() as usize)?,
        },
        metrics: Vec::new(),
    };
    // The same checks that a server makes.
    Ok(Manifest::from_json(&manifest.to_json())?)
}

/// The commit that this was built from, as far as git can tell.
pub(crate) fn commit() -> String {
    let output = Command::new("git").args(["rev-parse", "HEAD"]).output();
    output
        .ok()
        .filter(|output| output.status.success())
        .map_or_else(String::new, |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
