//! A network being served: checked against its manifest, warmed up, with its queue and its workers.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use facewise_core::decode::{AgeDistribution, AgePoint, DecodeError, LabelDistribution, softmax};
use facewise_core::manifest::{Head, Manifest, Values};
use facewise_core::task::Task;
use image::RgbImage;
use tokio::sync::oneshot;

use super::backend::{Backend, BackendError, Signature, TensorSpec};
use super::queue::{Queue, Refusal};
use super::worker::{self, Job};
use crate::tasks::Tasks;
use crate::telemetry::Metrics;

/// How a model is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tasks that are answered, of those that the network has heads for.
    pub tasks: Tasks,
    /// Most faces in a run.
    pub max_batch: usize,
    /// Most faces that wait.
    pub max_queue: usize,
}

/// A network and its manifest contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MismatchError {
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

/// Why a face got no answer.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// As many faces wait as may.
    #[error("as many faces wait for the model as may")]
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
}

/// What a network says about one face.
#[derive(Clone, Debug, PartialEq)]
pub struct Attributes {
    /// The age, with the way its years are read.
    pub age: Option<(AgeDistribution, AgePoint)>,
    /// The other tasks, in the order of answers.
    pub labels: Vec<LabelDistribution>,
}

impl Attributes {
    /// Forgets what does not belong to `tasks`.
    pub fn keep(&mut self, tasks: &Tasks) {
        self.age.take_if(|_| !tasks.contains(Task::Age));
        self.labels.retain(|answer| tasks.contains(answer.task()));
    }
}

/// Attributes of a face, and the time they took.
#[derive(Clone, Debug)]
pub struct Inference {
    /// The answers.
    pub attributes: Attributes,
    /// Time in the queue.
    pub queue: Duration,
    /// Time of the run that the face was part of.
    pub inference: Duration,
}

/// A network being served.
pub struct Model {
    manifest: Manifest,
    sha256: String,
    heads: Vec<Head>,
    tasks: Tasks,
    queue: Arc<Queue<Job>>,
    workers: Vec<JoinHandle<()>>,
}

impl Model {
    /// Starts a worker thread for each of `backends`, which are the same network several times, after checking it
    /// against the manifest and running it once.
    ///
    /// # Errors
    /// When network and manifest contradict each other, a first run fails, or no thread can be started.
    pub fn start(
        manifest: Manifest,
        sha256: String,
        backends: Vec<Box<dyn Backend>>,
        options: &Options,
        metrics: &Metrics,
    ) -> Result<Self, StartError> {
        let mut heads: Vec<Head> =
            manifest.heads.iter().filter(|head| options.tasks.contains(head.task)).cloned().collect();
        heads.sort_by_key(|head| head.task);
        if heads.is_empty() {
            return Err(MismatchError::NoTask(options.tasks.to_string()).into());
        }
        for backend in &backends {
            check(&manifest, backend.signature())?;
        }

        let (name, version) = (manifest.name.as_str(), manifest.version.as_str());
        let recipe = worker::Recipe {
            input: manifest.input.clone(),
            outputs: heads.iter().map(|head| head.output.clone()).collect(),
            classes: heads.iter().map(|head| head.task.classes()).collect(),
            max_batch: options.max_batch,
            inferences: metrics.inferences.with_label_values(&[name, version]),
            executions: metrics.executions.with_label_values(&[name, version]),
            batch_size: metrics.batch_size.with_label_values(&[name]),
        };
        let tasks = Tasks::of(heads.iter().map(|head| head.task));
        let queue = Arc::new(Queue::new(options.max_queue));
        let mut model = Self { manifest, sha256, heads, tasks, queue, workers: Vec::new() };
        for (index, mut backend) in backends.into_iter().enumerate() {
            recipe.warm_up(backend.as_mut())?;
            let (recipe, queue) = (recipe.clone(), Arc::clone(&model.queue));
            let worker = thread::Builder::new()
                .name(format!("network-{index}"))
                .spawn(move || recipe.work(&queue, backend.as_mut()))?;
            model.workers.push(worker);
        }
        metrics.model_info.with_label_values(&[model.name(), model.version(), model.sha256.as_str()]).set(1);
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

    /// Side of the crops that it reads, in pixels.
    pub const fn input_size(&self) -> u32 {
        self.manifest.input.size
    }

    /// Tasks that it answers.
    pub const fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Faces that wait for it now.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Whether every worker is alive.
    pub fn is_alive(&self) -> bool {
        self.workers.iter().all(|worker| !worker.is_finished())
    }

    /// Asks the network about a face; `crop` has [`Self::input_size`] pixels a side.
    ///
    /// # Errors
    /// When too many wait, the model is being stopped, or the run fails.
    pub async fn infer(&self, crop: RgbImage) -> Result<Inference, EngineError> {
        let (reply, answer) = oneshot::channel();
        self.queue.push(Job { crop, queued: Instant::now(), reply }).map_err(|refusal| match refusal {
            Refusal::Full => EngineError::Overloaded,
            Refusal::Closed => EngineError::Stopped,
        })?;
        let answer = answer.await.map_err(|_| EngineError::Stopped)??;
        let attributes = self.decode(&answer.rows)?;
        Ok(Inference { attributes, queue: answer.queue, inference: answer.inference })
    }

    fn decode(&self, rows: &[Vec<f32>]) -> Result<Attributes, DecodeError> {
        let mut attributes = Attributes { age: None, labels: Vec::with_capacity(rows.len()) };
        for (head, row) in self.heads.iter().zip(rows) {
            let softened;
            let probabilities = match head.values {
                Values::Probabilities => row,
                Values::Logits => {
                    softened = softmax(row);
                    &softened
                }
            };
            if head.task == Task::Age {
                let posterior = AgeDistribution::from_probabilities(probabilities)?;
                attributes.age = Some((posterior, head.point.unwrap_or_default()));
            } else {
                attributes.labels.push(LabelDistribution::from_probabilities(head.task, probabilities)?);
            }
        }
        Ok(attributes)
    }
}

impl Drop for Model {
    /// Answers what waits, then ends the workers.
    fn drop(&mut self) {
        self.queue.close();
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                tracing::error!(model = self.manifest.name, "a worker had died");
            }
        }
    }
}

fn check(manifest: &Manifest, signature: &Signature) -> Result<(), MismatchError> {
    let side = manifest.input.size as usize;
    let input = find("input", &manifest.input.name, &signature.inputs)?;
    if signature.inputs.len() > 1 {
        let found = names(&signature.inputs);
        return Err(MismatchError::Name { direction: "only input", name: manifest.input.name.clone(), found });
    }
    agrees(input, &[None, Some(3), Some(side), Some(side)])?;
    for head in &manifest.heads {
        let output = find("output", &head.output, &signature.outputs)?;
        agrees(output, &[None, Some(head.task.classes())])?;
    }
    Ok(())
}

fn find<'s>(direction: &'static str, name: &str, specs: &'s [TensorSpec]) -> Result<&'s TensorSpec, MismatchError> {
    specs.iter().find(|spec| spec.name == name).ok_or_else(|| MismatchError::Name {
        direction,
        name: name.to_owned(),
        found: names(specs),
    })
}

fn names(specs: &[TensorSpec]) -> String {
    let names: Vec<String> = specs.iter().map(|spec| format!("'{}'", spec.name)).collect();
    names.join(", ")
}

/// The batch, `None` in `expected`, must be free; a network that leaves another dimension open is believed.
fn agrees(spec: &TensorSpec, expected: &[Option<usize>]) -> Result<(), MismatchError> {
    let fits = spec.is_float32
        && spec.shape.len() == expected.len()
        && spec.shape.iter().zip(expected).all(|(found, wanted)| found.is_none() || found == wanted);
    if fits {
        return Ok(());
    }
    let kind = if spec.is_float32 { "float32" } else { "another type" };
    Err(MismatchError::Shape {
        name: spec.name.clone(),
        expected: dimensions(expected),
        found: format!("{kind} {}", dimensions(&spec.shape)),
    })
}

fn dimensions(shape: &[Option<usize>]) -> String {
    let sides: Vec<String> =
        shape.iter().map(|side| side.map_or_else(|| "batch".to_owned(), |side| side.to_string())).collect();
    format!("[{}]", sides.join(", "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use image::Rgb;

    use super::*;

    const MANIFEST: &str = r#"{
        "schema": 1, "name": "tiny", "version": "1", "kind": "attributes",
        "input": {"name": "pixels", "size": 8, "colour": "rgb", "mean": [0, 0, 0], "sd": [1, 1, 1],
                  "template": {"right_eye": [0.3, 0.37], "left_eye": [0.7, 0.37], "mouth": [0.5, 0.77]}},
        "heads": [{"task": "smile", "output": "smile", "labels": ["neutral", "smiling"]},
                  {"task": "gender", "output": "gender", "labels": ["female", "male"], "values": "logits"}]
    }"#;

    /// Answers P(smiling) = the first number of the face; a red face panics, a green one is an error.
    struct Toy {
        signature: Signature,
        runs: Arc<AtomicUsize>,
        held: Option<mpsc::Receiver<()>>,
    }

    fn tensor(name: &str, shape: &[Option<usize>]) -> TensorSpec {
        TensorSpec { name: name.into(), is_float32: true, shape: shape.to_vec() }
    }

    fn toy() -> Toy {
        let signature = Signature {
            inputs: vec![tensor("pixels", &[None, Some(3), Some(8), Some(8)])],
            outputs: vec![tensor("smile", &[None, Some(2)]), tensor("gender", &[None, Some(2)])],
            manifest: None,
        };
        Toy { signature, runs: Arc::default(), held: None }
    }

    impl Backend for Toy {
        fn signature(&self) -> &Signature {
            &self.signature
        }

        fn run(&mut self, input: &[f32], shape: [usize; 4], outputs: &[String]) -> Result<Vec<Vec<f32>>, BackendError> {
            // Two warm-up runs, then the test decides when a run may go on.
            if self.runs.fetch_add(1, Ordering::SeqCst) >= 2
                && let Some(held) = &self.held
            {
                held.recv().unwrap();
            }
            let faces: Vec<&[f32]> = input.chunks(3 * 64).collect();
            assert_eq!(faces.len(), shape[0]);
            assert!(!faces.iter().any(|face| face[0] > 0.9 && face[64] < 0.1), "a red face");
            if faces.iter().any(|face| face[0] < 0.1 && face[64] > 0.9) {
                return Err(BackendError("a green face".into()));
            }
            let answer = |output: &String| match output.as_str() {
                "smile" => faces.iter().flat_map(|face| [1.0 - face[0], face[0]]).collect(),
                _ => faces.iter().flat_map(|_| [0.0, 3f32.ln()]).collect(),
            };
            Ok(outputs.iter().map(answer).collect())
        }
    }

    fn options() -> Options {
        Options { tasks: Tasks::default(), max_batch: 4, max_queue: 3 }
    }

    fn started(toy: Toy, options: &Options) -> Result<Model, StartError> {
        let manifest = Manifest::from_json(MANIFEST).unwrap();
        Model::start(manifest, "ab12".into(), vec![Box::new(toy)], options, &Metrics::new())
    }

    fn face(colour: [u8; 3]) -> RgbImage {
        RgbImage::from_pixel(8, 8, Rgb(colour))
    }

    #[tokio::test]
    async fn answers_are_decoded_in_the_order_of_tasks() {
        let model = started(toy(), &options()).unwrap();
        let attributes = model.infer(face([51; 3])).await.unwrap().attributes;
        let [gender, smile] = attributes.labels.as_slice() else { panic!("two answers") };
        assert_eq!((gender.task(), gender.label(), smile.label()), (Task::Gender, "male", "neutral"));
        assert!((gender.probability() - 0.75).abs() < 1e-6, "logits are softened");
        assert!((smile.probability() - 0.8).abs() < 1e-6);
        assert!(attributes.age.is_none());
    }

    #[tokio::test]
    async fn a_task_switched_off_is_not_answered() {
        let tasks = Tasks::of([Task::Smile]);
        let model = started(toy(), &Options { tasks: tasks.clone(), ..options() }).unwrap();
        assert_eq!(model.tasks(), &tasks);
        assert_eq!(model.infer(face([0; 3])).await.unwrap().attributes.labels.len(), 1);
        let none = started(toy(), &Options { tasks: Tasks::of([Task::Age]), ..options() }).map(|_| ());
        assert!(none.unwrap_err().to_string().contains("none of the tasks 'age'"));
    }

    #[tokio::test]
    async fn a_failed_or_panicking_run_is_an_error_and_the_worker_goes_on() {
        let model = started(toy(), &options()).unwrap();
        for (colour, message) in [([255, 0, 0], "panicked"), ([0, 255, 0], "a green face")] {
            let error = model.infer(face(colour)).await.unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
            assert!(model.infer(face([9; 3])).await.is_ok());
        }
        assert!(model.is_alive());
    }

    #[tokio::test]
    async fn a_full_queue_is_overload_and_waiting_faces_share_a_run() {
        let (release, held) = mpsc::channel();
        let toy = Toy { held: Some(held), ..toy() };
        let runs = Arc::clone(&toy.runs);
        let model = Arc::new(started(toy, &options()).unwrap());
        let ask = || {
            let model = Arc::clone(&model);
            tokio::spawn(async move { model.infer(face([51; 3])).await })
        };
        let first = ask();
        while runs.load(Ordering::SeqCst) < 3 {
            tokio::task::yield_now().await;
        }
        let waiting: Vec<_> = (0..3).map(|_| ask()).collect();
        while model.waiting() < 3 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(model.infer(face([51; 3])).await, Err(EngineError::Overloaded)));
        waiting[0].abort();
        while !waiting[0].is_finished() {
            tokio::task::yield_now().await;
        }
        release.send(()).unwrap();
        release.send(()).unwrap();
        assert!(first.await.unwrap().is_ok());
        for ask in waiting.into_iter().skip(1) {
            assert!(ask.await.unwrap().is_ok());
        }
        assert_eq!(runs.load(Ordering::SeqCst), 4, "two of the three waiting faces shared one run, the third had gone");
    }

    #[test]
    fn a_network_that_contradicts_its_manifest_is_refused() {
        type Change = fn(&mut Signature);
        let cases: [(Change, &str); 5] = [
            (|s| s.inputs[0].name = "image".into(), "the input 'pixels', but the network's are 'image'"),
            (|s| s.inputs[0].shape[2] = Some(16), "[batch, 3, 8, 8], but the network's is float32 [batch, 3, 16, 8]"),
            (|s| s.inputs[0].shape[0] = Some(1), "[1, 3, 8, 8]"),
            (|s| s.outputs[0].is_float32 = false, "another type"),
            (|s| s.outputs[1].name = "sex".into(), "the output 'gender', but the network's are 'smile', 'sex'"),
        ];
        for (change, message) in cases {
            let mut toy = toy();
            change(&mut toy.signature);
            let error = started(toy, &options()).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
