//! A trained encoder as a folder of the model repository.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use facewise_core::geometry::Template;
use facewise_core::manifest::{Colour, Head, Input, Kind as ModelKind, Manifest, Provenance, SCHEMA};
use tch::nn::VarStore;
use tch::{Device, Tensor, no_grad};

use super::config::{ATTRIBUTES, Config};
use crate::architectures::residual;
use crate::checkpoint;
use crate::graph::Graph;
use crate::lesson;
use crate::model::{Draft, Identity, LOGIT_TOLERANCE, commit, save};
use crate::network::Network;
use crate::onnx::export;
use crate::onnx::parity::{self, Parity};
use crate::sample::Sample;
use crate::validate;
use crate::vectors::target::Target;

/// Most pictures that parity is checked on.
const PARITY_PICTURES: usize = 256;

/// Runs crops of `samples` through libtorch and the ONNX file of a complete run, and where they agree writes it as
/// `<models>/<name>/<version>/`.
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
    let heads: Vec<(usize, Head)> = (0..)
        .zip(&config.data.attributes)
        .filter_map(|(index, name)| Some((index, Target::Attribute(name.clone()).served()?)))
        .collect();
    ensure!(!heads.is_empty(), "a server has tasks for the attributes Male and Smiling, and neither was learned");
    let (graph, variables, network) = served(run, &config, &heads)?;
    let manifest = manifest(&config, &graph, identity, &heads)?;
    let folder = models.join(&manifest.name).join(&manifest.version);
    let names: Vec<&str> = heads.iter().map(|(_, head)| head.task.name()).collect();
    let draft = Draft::new()?;
    let path = save(draft.folder(), &graph, &variables, config.size as usize, &names, &manifest)?;

    let step = (samples.len() / PARITY_PICTURES).max(1);
    let spread: Vec<Sample> = samples.iter().step_by(step).take(PARITY_PICTURES).cloned().collect();
    let batches = validate::plain_batches(&spread, config.size).map(|batch| validate::pixels(&batch, Device::Cpu));
    let parity = parity::check(&path, &network, batches, LOGIT_TOLERANCE)?;
    Ok((draft.publish(&folder)?, parity))
}

/// The network of a complete run with a head of two logits for each task beside all attributes.
fn served(run: &Path, config: &Config, heads: &[(usize, Head)]) -> Result<(Graph, VarStore, Network)> {
    let trained = VarStore::new(Device::Cpu);
    let _network = Network::new(&trained.root(), &config.graph()?);
    checkpoint::load_weights(&run.join(lesson::WEIGHTS), &trained).context("is the run complete?")?;

    let all = residual::Head::new(ATTRIBUTES, config.data.attributes.len());
    let both = heads.iter().map(|(_, head)| residual::Head::new(head.task.name(), 2)).chain([all]);
    let graph = config.network.with_heads(config.size as usize, &both.collect::<Vec<_>>())?;
    let variables = VarStore::new(Device::Cpu);
    let network = Network::new(&variables.root(), &graph);
    let known = trained.variables();
    no_grad(|| {
        for (name, mut variable) in variables.variables() {
            let head = heads.iter().find(|(_, head)| name.starts_with(&format!("heads.{}.", head.task.name())));
            let value = match head {
                None => known[&name].shallow_clone(),
                Some((attribute, head)) => {
                    let of_all = &known[&name.replace(head.task.name(), ATTRIBUTES)];
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

fn manifest(config: &Config, graph: &Graph, identity: Identity, heads: &[(usize, Head)]) -> Result<Manifest> {
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
        heads: heads.iter().map(|(_, head)| head.clone()).collect(),
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
