//! A network being served: checked against its manifest, warmed up, with its queue and its workers. What its rows mean
//! is known to those who ask it: [`AttributeModel`](super::AttributeModel), [`Detector`](super::Detector) and
//! [`EmbeddingModel`](super::EmbeddingModel).

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use facewise_core::decode::DecodeError;
use facewise_core::detection::DetectionError;
use facewise_core::manifest::{Head, Input, Kind, Manifest};
use facewise_core::task::AgeGroup;
use image::RgbImage;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::backend::{Backend, BackendError, Signature, TensorSpec};
use super::queue::{Queue, Refusal, Urgency};
use super::statistics::{Statistics, Totals};
use super::worker::{Answer, Health, Helper, Item, Job, Machine, Recipe, Worker};
use crate::compute::{Compute, holds_cores};
use crate::cpu::{Desk, Help};
use crate::telemetry::Metrics;

/// Full batches of crops that go before another picture.
const CROPS_THAT_PRESS: usize = 4;

/// A model that has not begun for so long with what somebody waits for is not alive: its workers hang.
pub(super) const STANDSTILL: Duration = Duration::from_secs(30);

/// How a model is run.
#[derive(Clone)]
pub struct Options {
    /// Most pictures in a run.
    pub max_batch: usize,
    /// Longest wait for a batch to fill; zero takes what is there.
    pub max_delay: Duration,
    /// Most pictures that wait.
    pub max_queue: usize,
    /// Threads that a run keeps busy; none on a GPU.
    pub threads: usize,
    /// The bound on what computes at a time, which the runs keep to.
    pub compute: Arc<Compute>,
}

impl Default for Options {
    /// One picture a run, one thread a run, and the bound of this process.
    fn default() -> Self {
        Self { max_batch: 1, max_delay: Duration::ZERO, max_queue: 1024, threads: 1, compute: Arc::default() }
    }
}

/// A network that is loaded and not yet at work.
pub struct Network {
    /// What it says about itself.
    pub manifest: Manifest,
    /// SHA-256 of the ONNX file, in hexadecimal.
    pub sha256: String,
    /// The network, once for each worker.
    pub backends: Vec<Box<dyn Backend>>,
}

/// A network and its manifest contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MismatchError {
    /// The network is of another kind.
    #[error("the manifest says that it is of the kind '{}'", .0.name())]
    Kind(Kind),
    /// The network does not have a tensor that the manifest names.
    #[error("the manifest names the {direction} '{name}', but the network's are {found}")]
    Name {
        /// `input` or `output`.
        direction: &'static str,
        /// The name in the manifest.
        name: String,
        /// The names in the network.
        found: String,
    },
    /// A tensor has another shape or type than the manifest says.
    #[error("the manifest wants '{name}' to be float32 {expected}, but the network's is {found}")]
    Shape {
        /// The tensor.
        name: String,
        /// What the manifest says.
        expected: String,
        /// What the network has.
        found: String,
    },
    /// The network reads pictures of one size, which is not the one that is asked for.
    #[error(
        "the network reads pictures of {width} × {height} pixels and no others, but {asked} × {asked} is asked for: put the \
         size of the network into the manifest's `input.size`, and leave --detector-size away"
    )]
    Size {
        /// Width that the network reads, in pixels.
        width: String,
        /// Height that the network reads, in pixels.
        height: String,
        /// The side that is asked for, in pixels.
        asked: u32,
    },
    /// The network has another number of outputs than the decoder reads, and the manifest does not name them.
    #[error(
        "the decoder reads {expected} outputs, but the network's are {found}: name them in the manifest's `outputs`"
    )]
    Outputs {
        /// How many the decoder reads.
        expected: usize,
        /// The names in the network.
        found: String,
    },
    /// The network has no head for any of the tasks that are to be answered.
    #[error("the network answers none of the tasks '{0}'")]
    NoTask(String),
}

/// Why a network could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It contradicts its manifest.
    #[error(transparent)]
    Mismatch(#[from] MismatchError),
    /// It cannot be loaded, or its first runs failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The system gave no more threads.
    #[error("no thread could be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// Why a network gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// More would wait than may.
    #[error("more would wait for the model than may")]
    Overloaded,
    /// The model is being stopped.
    #[error("the model is being stopped")]
    Stopped,
    /// The run failed.
    #[error("the network failed: {0}")]
    Backend(#[from] BackendError),
    /// The network answered what is no distribution.
    #[error("the network's answer is unusable: {0}")]
    Decode(#[from] DecodeError),
    /// The network answered what is no detector's answer.
    #[error("the network's answer is unusable: {0}")]
    Detection(#[from] DetectionError),
}

/// A tensor that a network reads or is asked for, always of 32-bit floats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// The dimensions of one row; the batch comes before them.
    pub shape: Vec<usize>,
    /// What the numbers of a row stand for, where that has names.
    pub labels: &'static [&'static str],
}

impl Tensor {
    /// Numbers in one row.
    pub fn row_len(&self) -> usize {
        self.shape.iter().product()
    }
}

impl From<&Head> for Tensor {
    fn from(head: &Head) -> Self {
        let labels = if head.has_age_groups() { &AgeGroup::NAMES } else { head.task.labels() };
        Self { name: head.output.clone(), shape: vec![head.classes()], labels }
    }
}

/// A network being served.
pub struct Model {
    manifest: Manifest,
    sha256: String,
    input_size: u32,
    input: Tensor,
    outputs: Vec<Tensor>,
    max_batch: usize,
    max_delay: Duration,
    statistics: Arc<Statistics>,
    queue: Arc<Queue<Job>>,
    helper: Arc<Helper>,
    health: Arc<Health>,
    workers: Vec<JoinHandle<()>>,
}

impl Model {
    /// Starts a worker thread for each copy of the network, after running it once on pictures of `input_size` pixels a
    /// side, or on embeddings where it reads these. Its tensors have been checked against the manifest.
    pub(super) fn start(
        network: Network,
        input_size: u32,
        outputs: Vec<Tensor>,
        options: Options,
        metrics: &Metrics,
    ) -> Result<Self, StartError> {
        let Network { manifest, sha256, backends } = network;
        let (name, version) = (manifest.name.as_str(), manifest.version.as_str());
        let side = input_size as usize;
        let shape = manifest.input.features.map_or_else(|| vec![3, side, side], |features| vec![features as usize]);
        let input = Tensor { name: manifest.input.name.clone(), shape, labels: &[] };
        let statistics = Arc::<Statistics>::default();
        let (max_batch, max_delay) = (options.max_batch, options.max_delay);
        let recipe = Recipe {
            input: Input { size: input_size, ..manifest.input.clone() },
            row_shape: input.shape.clone(),
            outputs: outputs.iter().map(|output| output.name.clone()).collect(),
            lengths: outputs.iter().map(Tensor::row_len).collect(),
            max_batch,
            // Pictures stay decoded while they wait for a detector; crops are small, and many runs one after the other are quicker.
            pressing: if manifest.kind == Kind::Detector { max_batch } else { CROPS_THAT_PRESS * max_batch },
            max_delay,
            threads: options.threads,
            compute: options.compute,
            statistics: Arc::clone(&statistics),
            inferences: metrics.inferences.with_label_values(&[name, version]),
            executions: metrics.executions.with_label_values(&[name, version]),
            failures: metrics.inference_failures.with_label_values(&[name, version]),
            batch_size: metrics.batch_size.with_label_values(&[name]),
        };
        let (queue, health) = (Arc::new(Queue::new(options.max_queue, backends.len())), Arc::<Health>::default());
        let mut machines = Vec::with_capacity(backends.len());
        for mut backend in backends {
            recipe.warm_up(backend.as_mut())?;
            machines.push(Arc::new(Mutex::new(Machine::new(backend))));
        }
        let helper = Helper { recipe: recipe.clone(), queue: Arc::clone(&queue), machines: machines.clone() };
        let mut model = Self {
            manifest,
            sha256,
            input_size,
            input,
            outputs,
            max_batch,
            max_delay,
            statistics,
            queue,
            helper: Arc::new(helper),
            health,
            workers: Vec::new(),
        };
        for (index, machine) in machines.iter().enumerate() {
            let (queue, health) = (Arc::clone(&model.queue), Arc::clone(&model.health));
            let (machine, machines) = (Arc::clone(machine), machines.clone());
            let worker = Worker { recipe: recipe.clone(), queue, health, machine, machines };
            let thread = thread::Builder::new().name(format!("network-{index}")).spawn(move || worker.work())?;
            model.workers.push(thread);
        }
        Ok(model)
    }

    /// The manifest.
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Name of the model.
    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    /// Version of the model.
    pub fn version(&self) -> &str {
        &self.manifest.version
    }

    /// SHA-256 of the ONNX file, in hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Side of the pictures that it reads, in pixels.
    pub const fn input_size(&self) -> u32 {
        self.input_size
    }

    /// The tensor that it reads.
    pub const fn input(&self) -> &Tensor {
        &self.input
    }

    /// The tensors that it is asked for; those of tasks that are switched off are not among them.
    pub fn outputs(&self) -> &[Tensor] {
        &self.outputs
    }

    /// Most rows in a run.
    pub const fn max_batch(&self) -> usize {
        self.max_batch
    }

    /// Longest wait for a batch to fill.
    pub const fn max_delay(&self) -> Duration {
        self.max_delay
    }

    /// Most rows that can wait, and so that can be asked about at a time.
    pub fn max_rows(&self) -> usize {
        self.queue.capacity()
    }

    /// Threads that run it.
    pub fn worker_count(&self) -> usize {
        self.workers.len()
    }

    /// What it has done since it was started.
    pub fn totals(&self) -> Totals {
        self.statistics.totals()
    }

    /// Pictures that wait for it now.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Whether every worker is alive and has a network that works, and things go on.
    pub fn is_alive(&self) -> bool {
        let at_work = self.health.is_good() && self.workers.iter().all(|worker| !worker.is_finished());
        at_work && !self.stands_still(Instant::now())
    }

    /// Whether what somebody waits for has waited too long by `now`.
    pub(super) fn stands_still(&self, now: Instant) -> bool {
        self.queue.oldest(|job| now.saturating_duration_since(job.queued) > STANDSTILL).unwrap_or(false)
    }

    /// Asks the network about pictures of [`Self::input_size`] pixels a side. They go into the queue together or not at
    /// all; the answers are in their order.
    pub(super) async fn run(&self, pictures: Vec<RgbImage>) -> Result<Vec<Answer>, EngineError> {
        self.ask(pictures.into_iter().map(Item::Picture)).await
    }

    /// Asks the network about pictures as a part of the work at this desk, whose thread runs it when no picture waits.
    pub(super) fn hand_in(
        &self,
        pictures: Vec<RgbImage>,
        urgency: Urgency,
        desk: &Desk,
    ) -> Result<HandedIn, EngineError> {
        let items = pictures.into_iter().map(Item::Picture);
        if !desk.is_open() || !self.helper.is_possible() {
            return self.put(items, |jobs| self.queue.push(jobs, urgency));
        }
        let handed_in = self.put(items, |jobs| self.queue.put(jobs, urgency))?;
        desk.leave(Arc::clone(&self.helper) as Arc<dyn Help>);
        Ok(handed_in)
    }

    /// Gives the network numbers as they are: rows of [`Self::input`], one after the other; what fills no row is left out. They
    /// share runs with everything else that waits, and go into the queue together or not at all. The answer has a list for each
    /// of [`Self::outputs`], row after row.
    ///
    /// # Errors
    /// When too many wait, the model is being stopped, or a run fails.
    pub async fn infer(&self, tensor: Vec<f32>) -> Result<Vec<Vec<f32>>, EngineError> {
        let (length, tensor) = (self.input.row_len(), Arc::new(tensor));
        let row = |index: usize| Item::Numbers(Arc::clone(&tensor), index * length..(index + 1) * length);
        let answers = self.ask((0..tensor.len() / length).map(row)).await?;
        let mut outputs: Vec<Vec<f32>> =
            self.outputs.iter().map(|output| Vec::with_capacity(answers.len() * output.row_len())).collect();
        for answer in answers {
            for (output, row) in outputs.iter_mut().zip(answer.rows) {
                output.extend(row);
            }
        }
        Ok(outputs)
    }

    async fn ask(&self, items: impl Iterator<Item = Item>) -> Result<Vec<Answer>, EngineError> {
        self.put(items, |jobs| self.queue.push(jobs, Urgency::Now))?.answers().await
    }

    fn put(
        &self,
        items: impl Iterator<Item = Item>,
        put: impl FnOnce(Vec<Job>) -> Result<(), Refusal>,
    ) -> Result<HandedIn, EngineError> {
        let queued = Instant::now();
        let (jobs, replies): (Vec<_>, Vec<_>) = items
            .map(|item| {
                let (reply, answer) = oneshot::channel();
                (Job { item, queued, reply }, answer)
            })
            .unzip();
        put(jobs).map_err(|refusal| {
            self.statistics.failed(queued.elapsed());
            match refusal {
                Refusal::Full => EngineError::Overloaded,
                Refusal::Closed => EngineError::Stopped,
            }
        })?;
        Ok(HandedIn { queued, replies, statistics: Arc::clone(&self.statistics) })
    }
}

/// Items that a network was given. Dropping it takes them out of the line.
pub struct HandedIn {
    queued: Instant,
    replies: Vec<oneshot::Receiver<Result<Answer, BackendError>>>,
    statistics: Arc<Statistics>,
}

impl HandedIn {
    /// Waits for the answers, in the order of the items, and counts them.
    pub(super) async fn answers(self) -> Result<Vec<Answer>, EngineError> {
        let Self { queued, replies, statistics } = self;
        let all = async {
            let mut answers = Vec::with_capacity(replies.len());
            for reply in replies {
                answers.push(reply.await.map_err(|_| EngineError::Stopped)??);
            }
            Ok(answers)
        };
        let result: Result<Vec<Answer>, EngineError> = all.await;
        match &result {
            Ok(answers) => {
                // Who asks about nothing, as for a picture without faces, asks for no run.
                if let Some(last) = answers.iter().max_by_key(|answer| answer.queue + answer.spent.total()) {
                    statistics.answered(queued.elapsed(), last.queue, last.spent);
                }
            }
            Err(_) => statistics.failed(queued.elapsed()),
        }
        result
    }
}

impl Drop for Model {
    /// Has the workers answer what waits, and waits for their end; not on a thread with a core in hand, as one of a picture whose request
    /// was the last to know this model: a worker may need that core for it.
    fn drop(&mut self) {
        self.queue.close();
        if holds_cores() {
            return;
        }
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                tracing::error!(model = self.manifest.name, "a worker had died");
            }
        }
    }
}

/// The only input of a network, which must have this name.
pub(super) fn only_input<'s>(name: &str, signature: &'s Signature) -> Result<&'s TensorSpec, MismatchError> {
    let input = find("input", name, &signature.inputs)?;
    if signature.inputs.len() > 1 {
        let found = names(&signature.inputs);
        return Err(MismatchError::Name { direction: "only input", name: name.to_owned(), found });
    }
    Ok(input)
}

pub(super) fn find<'s>(
    direction: &'static str,
    name: &str,
    specs: &'s [TensorSpec],
) -> Result<&'s TensorSpec, MismatchError> {
    specs.iter().find(|spec| spec.name == name).ok_or_else(|| MismatchError::Name {
        direction,
        name: name.to_owned(),
        found: names(specs),
    })
}

pub(super) fn names(specs: &[TensorSpec]) -> String {
    let names: Vec<String> = specs.iter().map(|spec| format!("'{}'", spec.name)).collect();
    names.join(", ")
}

/// What is wrong with a tensor that should be float32 of this shape, in which an open dimension is `None`.
pub(super) fn mismatch(spec: &TensorSpec, expected: &[Option<usize>]) -> MismatchError {
    let kind = if spec.is_float32 { "float32" } else { "another type" };
    MismatchError::Shape {
        name: spec.name.clone(),
        expected: dimensions(expected),
        found: format!("{kind} {}", dimensions(&spec.shape)),
    }
}

fn dimensions(shape: &[Option<usize>]) -> String {
    let side = |(index, side): (usize, &Option<usize>)| match side {
        Some(side) => side.to_string(),
        None if index == 0 => "batch".to_owned(),
        None => "any".to_owned(),
    };
    let sides: Vec<String> = shape.iter().enumerate().map(side).collect();
    format!("[{}]", sides.join(", "))
}
