//! A trained encoder as a folder of the model repository.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use facewise_core::geometry::Template;
use facewise_core::manifest::{Colour, Head, Input, Kind as ModelKind, Manifest, Provenance, SCHEMA, Values};
use facewise_core::task::Task;
use tch::nn::VarStore;
use tch::{Device, Tensor, no_grad};

use super::config::{ATTRIBUTES, Config};
use crate::architectures::residual;
use crate::checkpoint;
use crate::graph::Graph;
use crate::lesson;
use crate::model::{Identity, LOGIT_TOLERANCE, commit, save};
use crate::network::Network;
use crate::onnx::export;
use crate::onnx::parity::{self, Parity};
use crate::sample::Sample;
use crate::validate;

/// Most pictures that parity is checked on.
const PARITY_PICTURES: usize = 256;

/// The attributes that a server has a task for, as `CelebA` calls them.
const SERVED: [(&str, Task); 2] = [("Male", Task::Gender), ("Smiling", Task::Smile)];

/// Writes a complete run as `<models>/<name>/<version>/`, then runs crops of `samples` through libtorch and ONNX Runtime and compares.
///
/// The model has a head for each task that one of the attributes answers, which is what a server reads, and beside them all logits as the
/// output [`ATTRIBUTES`].
///
/// # Errors
/// When the run is not complete, a server has no task for any of its attributes, a file cannot be written, there is no sample, or the engines
/// disagree.
pub fn write(run: &Path, models: &Path, identity: Identity, samples: &[Sample]) -> Result<(PathBuf, Parity)> {
    ensure!(!samples.is_empty(), "parity needs a face at least");
    let config = Config::read(&run.join(lesson::CONFIG))?;
    let tasks: Vec<(usize, Task)> = SERVED
        .iter()
        .filter_map(|(name, task)| Some((config.data.attributes.iter().position(|other| other == name)?, *task)))
        .collect();
    ensure!(!tasks.is_empty(), "a server has tasks for the attributes Male and Smiling, and neither was learned");
    let (graph, variables, network) = served(run, &config, &tasks)?;
    let manifest = manifest(&config, &graph, identity, &tasks)?;
    let folder = models.join(&manifest.name).join(&manifest.version);
    let heads: Vec<&str> = tasks.iter().map(|(_, task)| task.name()).collect();
    let path = save(&folder, &graph, &variables, config.size as usize, &heads, &manifest)?;

    let step = (samples.len() / PARITY_PICTURES).max(1);
    let spread: Vec<Sample> = samples.iter().step_by(step).take(PARITY_PICTURES).cloned().collect();
    let batches = validate::plain_batches(&spread, config.size).map(|batch| validate::pixels(&batch, Device::Cpu));
    let parity = parity::check(&path, &network, batches, LOGIT_TOLERANCE)?;
    Ok((path, parity))
}

/// The network of a complete run with a head of two logits for each task beside all attributes.
fn served(run: &Path, config: &Config, tasks: &[(usize, Task)]) -> Result<(Graph, VarStore, Network)> {
    let trained = VarStore::new(Device::Cpu);
    let _network = Network::new(&trained.root(), &config.graph()?);
    checkpoint::load_weights(&run.join(lesson::WEIGHTS), &trained).context("is the run complete?")?;

    let all = residual::Head::new(ATTRIBUTES, config.data.attributes.len());
    let heads = tasks.iter().map(|(_, task)| residual::Head::new(task.name(), 2)).chain([all]);
    let graph = config.network.with_heads(config.size as usize, &heads.collect::<Vec<_>>())?;
    let variables = VarStore::new(Device::Cpu);
    let network = Network::new(&variables.root(), &graph);
    let known = trained.variables();
    no_grad(|| {
        for (name, mut variable) in variables.variables() {
            let task = tasks.iter().find(|(_, task)| name.starts_with(&format!("heads.{}.", task.name())));
            let value = match task {
                None => known[&name].shallow_clone(),
                Some((attribute, task)) => {
                    let of_all = &known[&name.replace(task.name(), ATTRIBUTES)];
                    let one = of_all.narrow(0, *attribute as i64, 1);
                    // The softmax of 0 and a logit is the logit's sigmoid.
                    Tensor::cat(&[&one.zeros_like(), &one], 0)
                }
            };
            variable.copy_(&value);
        }
    });
    Ok((graph, variables, network))
}

fn manifest(config: &Config, graph: &Graph, identity: Identity, tasks: &[(usize, Task)]) -> Result<Manifest> {
    let head = |task: Task| Head {
        task,
        output: task.name().to_owned(),
        values: Values::Probabilities,
        labels: task.labels().iter().map(|label| (*label).to_owned()).collect(),
        point: None,
        votes: None,
    };
    let manifest = Manifest {
        schema: SCHEMA,
        name: identity.name,
        version: identity.version,
        kind: ModelKind::Attributes,
        description: identity.description,
        input: Input {
            name: export::INPUT.to_owned(),
            features: None,
            size: config.size,
            colour: Colour::Rgb,
            mean: validate::NORMALISATION.0,
            sd: validate::NORMALISATION.1,
            template: Some(Template::FACE),
        },
        heads: tasks.iter().map(|(_, task)| head(*task)).collect(),
        decoder: None,
        outputs: Vec::new(),
        provenance: Provenance {
            commit: commit(),
            data: vec![format!("{} ({})", config.data.set, config.data.train)],
            seed: config.seed,
            recipe: config.name.clone(),
            epochs: config.epochs,
            parameters: graph.parameters() as u64,
            multiply_adds: graph.multiply_adds(config.size as usize)?,
        },
        metrics: Vec::new(),
    };
    // The same checks that a server makes.
    Ok(Manifest::from_json(&manifest.to_json())?)
}
