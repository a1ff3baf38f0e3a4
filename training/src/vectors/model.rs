//! A trained network on vectors as a folder of the model repository.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use facewise_core::manifest::{self, Colour, Head, Input, Kind as ModelKind, Manifest, Provenance, SCHEMA};
use tch::nn::VarStore;
use tch::{Device, Tensor, no_grad};

use super::config::{Config, NetworkConfig};
use super::rows::Rows;
use crate::architectures::attribute_mlp::attribute_mlp;
use crate::architectures::residual;
use crate::checkpoint;
use crate::graph::{Graph, Layer};
use crate::lesson;
use crate::model::{Draft, Identity, LOGIT_TOLERANCE, commit, place, save};
use crate::network::Network;
use crate::onnx::export::{self, Sides, VECTOR};
use crate::onnx::parity::{self, Parity};

/// Most rows that parity is checked on.
const PARITY_ROWS: usize = 256;

/// Runs rows of `held_out` through libtorch and the ONNX file of a complete run, and where they agree writes it as
/// `<models>/<name>/<version>/`.
///
/// With `passes` the model answers each embedding so many times with random dropout and tells the mean and the votes, which is written once
/// the network as it is has been compared.
///
/// # Errors
/// When the run is not complete, a server has no task for what it learned, a file cannot be written, there is no row, the engines
/// disagree, or there shall be passes and the network has no dropout.
pub fn write(
    run: &Path,
    config: &Config,
    models: &Path,
    identity: Identity,
    rows: &Rows,
    held_out: &[usize],
    passes: Option<u32>,
) -> Result<(PathBuf, Parity)> {
    let head = config.target.served().with_context(|| {
        format!("a server has no task for '{}': of CelebA's attributes, Male and Smiling can be served", config.target)
    })?;
    let (graph, variables, network) = served(run, config, rows.features, &head)?;
    let mut manifest = manifest(config, &graph, identity, rows.features, head)?;
    let folder = models.join(&manifest.name).join(&manifest.version);
    let draft = Draft::new()?;
    let path = save(draft.folder(), &graph, &variables, Sides::None, &[config.target.head()], &manifest)?;

    let step = (held_out.len() / PARITY_ROWS).max(1);
    let spread: Vec<usize> = held_out.iter().step_by(step).take(PARITY_ROWS).copied().collect();
    let inputs = rows.examples(&spread, Device::Cpu).inputs;
    let parity = parity::check(&path, &network, [inputs], LOGIT_TOLERANCE)?;
    if let Some(passes) = passes {
        let random = graph.nodes().iter().any(|node| matches!(node.layer, Layer::Dropout { p } if p > 0.0));
        ensure!(random, "the network has no dropout: each of {passes} passes would be the same");
        for head in &mut manifest.heads {
            head.votes = Some(export::votes_name(&head.output));
        }
        let json = checked(&manifest)?.to_json();
        let heads = [config.target.head()];
        let model = export::write_repeated(&graph, &variables.variables(), &heads, passes, &json)?;
        place(draft.folder(), &model, &json)?;
    }
    Ok((draft.publish(&folder)?, parity))
}

/// The network of a complete run as it is served: with a logit for each class.
fn served(run: &Path, config: &Config, features: usize, head: &Head) -> Result<(Graph, VarStore, Network)> {
    let trained = config.graph(features)?;
    let variables = VarStore::new(Device::Cpu);
    let network = Network::new(&variables.root(), &trained);
    checkpoint::load_weights(&run.join(lesson::WEIGHTS), &variables).context("is the run complete?")?;
    if config.network != NetworkConfig::AttributeMlp || head.classes() != 2 {
        return Ok((trained, variables, network));
    }
    let graph = attribute_mlp(features, &residual::Head::new(config.target.head(), 2))?;
    let both = VarStore::new(Device::Cpu);
    let network = Network::new(&both.root(), &graph);
    let known = variables.variables();
    no_grad(|| {
        for (name, mut variable) in both.variables() {
            let one = &known[&name];
            // The softmax of 0 and a logit is the logit's sigmoid.
            let value = if one.size() == variable.size() {
                one.shallow_clone()
            } else {
                Tensor::cat(&[&one.zeros_like(), one], 0)
            };
            variable.copy_(&value);
        }
    });
    Ok((graph, both, network))
}

fn manifest(config: &Config, graph: &Graph, identity: Identity, features: usize, head: Head) -> Result<Manifest> {
    let features = u32::try_from(features).context("too many features")?;
    let manifest = Manifest {
        schema: SCHEMA,
        name: identity.name,
        version: identity.version,
        kind: ModelKind::Embeddings,
        description: identity.description,
        input: Input {
            name: VECTOR.to_owned(),
            features: Some(features),
            size: 0,
            colour: Colour::Rgb,
            mean: [0.0; 3],
            sd: [1.0; 3],
            template: None,
        },
        heads: vec![head],
        decoder: None,
        outputs: Vec::new(),
        provenance: Provenance {
            commit: commit(),
            data: config.source.iter().flat_map(|source| source.files.clone()).collect(),
            seed: config.seed,
            recipe: config.name.clone(),
            epochs: config.epochs,
            parameters: graph.parameters() as u64,
            multiply_adds: graph.multiply_adds(0)?,
        },
        metrics: Vec::new(),
    };
    checked(&manifest).map_err(Into::into)
}

/// The same checks that a server makes.
fn checked(manifest: &Manifest) -> Result<Manifest, manifest::ManifestError> {
    Manifest::from_json(&manifest.to_json())
}
