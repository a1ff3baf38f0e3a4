//! Networks that describe faces of which there are embeddings: the numbers of one face in, distributions over its attributes
//! out.

use facewise_core::decode::entropy;
use facewise_core::manifest::Head;
use facewise_core::task::Task;

use super::attributes::{Attributes, agrees, answered, decode};
use super::model::{EngineError, MismatchError, Model, Network, Options, StartError, Tensor, find, only_input};
use crate::tasks::Tasks;
use crate::telemetry::Metrics;

/// What a network tells from one embedding.
#[derive(Clone, Debug)]
pub struct Told {
    /// The answers.
    pub attributes: Attributes,
    /// By task the entropy in nats of the votes of a network that answers several times; empty of others.
    pub vote_entropy: Vec<(Task, f32)>,
}

impl Told {
    /// Forgets what does not belong to `tasks`.
    pub fn keep(&mut self, tasks: &Tasks) {
        self.attributes.keep(tasks);
        self.vote_entropy.retain(|(task, _)| tasks.contains(*task));
    }
}

/// A network that describes faces of which there are embeddings.
pub struct EmbeddingModel {
    model: Model,
    features: usize,
    heads: Vec<Head>,
    tasks: Tasks,
}

impl EmbeddingModel {
    /// Puts a network to work; of the tasks that it has heads for, `tasks` are answered.
    ///
    /// # Errors
    /// When network and manifest contradict each other, no task is left, a first run fails, or no thread can be started.
    pub fn start(network: Network, tasks: &Tasks, options: Options, metrics: &Metrics) -> Result<Self, StartError> {
        let manifest = &network.manifest;
        let Some(features) = manifest.input.features else { return Err(MismatchError::Kind(manifest.kind).into()) };
        let features = features as usize;
        let heads = answered(manifest, tasks)?;
        for backend in &network.backends {
            let signature = backend.signature();
            agrees(only_input(&manifest.input.name, signature)?, &[None, Some(features)])?;
            for head in &manifest.heads {
                for name in [&head.output].into_iter().chain(&head.votes) {
                    agrees(find("output", name, &signature.outputs)?, &[None, Some(head.classes())])?;
                }
            }
        }
        let votes = heads.iter().filter_map(|head| Some(Tensor { name: head.votes.clone()?, ..Tensor::from(head) }));
        let outputs = heads.iter().map(Tensor::from).chain(votes).collect();
        let tasks = Tasks::of(heads.iter().map(|head| head.task));
        Ok(Self { model: Model::start(network, 0, outputs, options, metrics)?, features, heads, tasks })
    }

    /// The network at work.
    pub const fn model(&self) -> &Model {
        &self.model
    }

    /// Numbers of an embedding.
    pub const fn features(&self) -> usize {
        self.features
    }

    /// Tasks that it answers.
    pub const fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Asks the network about embeddings of [`Self::features`] numbers, one after the other. They wait side by side, all of them
    /// or none; the answers are in their order.
    ///
    /// # Errors
    /// When too many wait, the model is being stopped, or a run fails.
    pub async fn infer(&self, embeddings: Vec<f32>) -> Result<Vec<Told>, EngineError> {
        let count = embeddings.len() / self.features;
        let outputs = self.model.infer(embeddings).await?;
        let (answers, votes) = outputs.split_at(self.heads.len().min(outputs.len()));
        let voting: Vec<&Head> = self.heads.iter().filter(|head| head.votes.is_some()).collect();
        let row = |index: usize| {
            let rows: Vec<&[f32]> =
                answers.iter().zip(&self.heads).filter_map(|(numbers, head)| row_of(numbers, head, index)).collect();
            let spread =
                |(numbers, head): (&Vec<f32>, &&Head)| Some((head.task, entropy(row_of(numbers, head, index)?)));
            Ok(Told {
                attributes: decode(&self.heads, &rows)?,
                vote_entropy: votes.iter().zip(&voting).filter_map(spread).collect(),
            })
        };
        (0..count).map(row).collect()
    }
}

/// The numbers of one row.
fn row_of<'a>(numbers: &'a [f32], head: &Head, index: usize) -> Option<&'a [f32]> {
    numbers.chunks_exact(head.classes()).nth(index)
}
