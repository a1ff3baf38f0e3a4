//! Networks that describe faces: a crop of one face in, distributions over its attributes out.

use std::time::Duration;

use facewise_core::decode::{AgeDistribution, AgeGroupDistribution, AgePoint, DecodeError, LabelDistribution, softmax};
use facewise_core::geometry::Template;
use facewise_core::manifest::{Head, Manifest, Values};
use facewise_core::task::Task;
use image::RgbImage;

use super::backend::{Signature, TensorSpec};
use super::model::{
    EngineError, HandedIn, MismatchError, Model, Network, Options, StartError, Tensor, find, mismatch, only_input,
};
use super::queue::Urgency;
use super::worker::Answer;
use crate::cpu::Desk;
use crate::tasks::Tasks;
use crate::telemetry::Metrics;

/// What a network says about one face.
#[derive(Clone, Debug, PartialEq)]
pub struct Attributes {
    /// The age, with the way its years are read.
    pub age: Option<(AgeDistribution, AgePoint)>,
    /// The age of a network of embeddings that knows groups only.
    pub age_group: Option<AgeGroupDistribution>,
    /// The other tasks, in the order of answers.
    pub labels: Vec<LabelDistribution>,
}

impl Attributes {
    /// Forgets what does not belong to `tasks`.
    pub fn keep(&mut self, tasks: &Tasks) {
        self.age.take_if(|_| !tasks.contains(Task::Age));
        self.age_group.take_if(|_| !tasks.contains(Task::Age));
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

/// A network that describes faces.
pub struct AttributeModel {
    model: Model,
    template: Template,
    heads: Vec<Head>,
    tasks: Tasks,
}

impl AttributeModel {
    /// Puts a network to work; of the tasks that it has heads for, `tasks` are answered.
    ///
    /// # Errors
    /// When network and manifest contradict each other, no task is left, a first run fails, or no thread can be started.
    pub fn start(network: Network, tasks: &Tasks, options: Options, metrics: &Metrics) -> Result<Self, StartError> {
        let manifest = &network.manifest;
        let Some(template) = manifest.input.template else { return Err(MismatchError::Kind(manifest.kind).into()) };
        let heads = answered(manifest, tasks)?;
        for backend in &network.backends {
            check(manifest, backend.signature())?;
        }
        let outputs = heads.iter().map(Tensor::from).collect();
        let tasks = Tasks::of(heads.iter().map(|head| head.task));
        let size = manifest.input.size;
        Ok(Self { model: Model::start(network, size, outputs, options, metrics)?, template, heads, tasks })
    }

    /// The network at work.
    pub const fn model(&self) -> &Model {
        &self.model
    }

    /// Where eyes and mouth lie on its crops.
    pub const fn template(&self) -> &Template {
        &self.template
    }

    /// Tasks that it answers.
    pub const fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Asks the network about faces; each crop has [`Model::input_size`] pixels a side. They wait side by side, all of them
    /// or none; the answers are in their order.
    ///
    /// # Errors
    /// When too many wait, the model is being stopped, or a run fails.
    pub async fn infer(&self, crops: Vec<RgbImage>) -> Result<Vec<Inference>, EngineError> {
        self.read(self.model.run(crops).await?)
    }

    /// Asks about faces as a part of the work at a desk, whose thread runs the network when no picture waits. The answers are to be
    /// [collected](Self::collect).
    ///
    /// # Errors
    /// When too many wait, or the model is being stopped.
    pub fn hand_in(&self, crops: Vec<RgbImage>, urgency: Urgency, desk: &Desk) -> Result<HandedIn, EngineError> {
        self.model.hand_in(crops, urgency, desk)
    }

    /// What the network says about what was [handed in](Self::hand_in).
    ///
    /// # Errors
    /// When the model is being stopped, or a run fails.
    pub async fn collect(&self, handed_in: HandedIn) -> Result<Vec<Inference>, EngineError> {
        self.read(handed_in.answers().await?)
    }

    fn read(&self, answers: Vec<Answer>) -> Result<Vec<Inference>, EngineError> {
        answers
            .into_iter()
            .map(|answer| {
                let rows: Vec<&[f32]> = answer.rows.iter().map(Vec::as_slice).collect();
                let attributes = decode(&self.heads, &rows)?;
                Ok(Inference { attributes, queue: answer.queue, inference: answer.spent.total() })
            })
            .collect()
    }
}

/// The heads of a network for some of these tasks, in the order of answers.
pub(super) fn answered(manifest: &Manifest, tasks: &Tasks) -> Result<Vec<Head>, MismatchError> {
    let mut heads: Vec<Head> = manifest.heads.iter().filter(|head| tasks.contains(head.task)).cloned().collect();
    heads.sort_by_key(|head| head.task);
    if heads.is_empty() { Err(MismatchError::NoTask(tasks.to_string())) } else { Ok(heads) }
}

/// What a network says about a face, of one row for each of its heads.
pub(super) fn decode(heads: &[Head], rows: &[&[f32]]) -> Result<Attributes, DecodeError> {
    let mut attributes = Attributes { age: None, age_group: None, labels: Vec::with_capacity(rows.len()) };
    for (head, row) in heads.iter().zip(rows) {
        let softened;
        let probabilities = match head.values {
            Values::Probabilities => row,
            Values::Logits => {
                softened = softmax(row);
                softened.as_slice()
            }
        };
        if head.has_age_groups() {
            attributes.age_group = Some(AgeGroupDistribution::from_probabilities(probabilities)?);
        } else if head.task == Task::Age {
            let posterior = AgeDistribution::from_probabilities(probabilities)?;
            attributes.age = Some((posterior, head.point.unwrap_or_default()));
        } else {
            attributes.labels.push(LabelDistribution::from_probabilities(head.task, probabilities)?);
        }
    }
    Ok(attributes)
}

fn check(manifest: &Manifest, signature: &Signature) -> Result<(), MismatchError> {
    let side = manifest.input.size as usize;
    agrees(only_input(&manifest.input.name, signature)?, &[None, Some(3), Some(side), Some(side)])?;
    for head in &manifest.heads {
        let output = find("output", &head.output, &signature.outputs)?;
        agrees(output, &[None, Some(head.task.classes())])?;
    }
    Ok(())
}

/// The batch, `None` in `expected`, must be free; a network that leaves another dimension open is believed.
pub(super) fn agrees(spec: &TensorSpec, expected: &[Option<usize>]) -> Result<(), MismatchError> {
    let fits = spec.is_float32
        && spec.shape.len() == expected.len()
        && spec.shape.iter().zip(expected).all(|(found, wanted)| found.is_none() || found == wanted);
    if fits { Ok(()) } else { Err(mismatch(spec, expected)) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::{Arc, mpsc};
    use std::time::Instant;

    use futures_util::FutureExt;
    use image::Rgb;

    use super::super::backend::{Backend, BackendError};
    use super::super::model::STANDSTILL;
    use super::*;
    use crate::compute::Compute;
    use crate::cpu::Cpu;

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
        /// Times that it was loaded anew; until it may be, that fails.
        renewals: Arc<AtomicUsize>,
        may_be_renewed: Arc<AtomicBool>,
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
        let may_be_renewed = Arc::new(AtomicBool::new(true));
        Toy { signature, runs: Arc::default(), held: None, renewals: Arc::default(), may_be_renewed }
    }

    impl Backend for Toy {
        fn signature(&self) -> &Signature {
            &self.signature
        }

        fn run(&mut self, input: &[f32], shape: &[usize], outputs: &[String]) -> Result<Vec<Vec<f32>>, BackendError> {
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

        fn renew(&self) -> Result<Box<dyn Backend>, BackendError> {
            self.renewals.fetch_add(1, Ordering::SeqCst);
            if !self.may_be_renewed.load(Ordering::SeqCst) {
                return Err(BackendError("its file has gone".into()));
            }
            let Self { signature, runs, renewals, may_be_renewed, .. } = self;
            let (runs, renewals) = (Arc::clone(runs), Arc::clone(renewals));
            let (signature, may_be_renewed) = (signature.clone(), Arc::clone(may_be_renewed));
            Ok(Box::new(Self { signature, runs, held: None, renewals, may_be_renewed }))
        }
    }

    fn options() -> Options {
        Options { max_batch: 4, max_queue: 4, ..Options::default() }
    }

    fn started(toy: Toy, tasks: &Tasks) -> Result<AttributeModel, StartError> {
        let manifest = Manifest::from_json(MANIFEST).unwrap();
        let network = Network { manifest, sha256: "ab12".into(), backends: vec![Box::new(toy)] };
        AttributeModel::start(network, tasks, options(), &Metrics::new())
    }

    async fn ask(model: &AttributeModel, colour: [u8; 3]) -> Result<Attributes, EngineError> {
        model.infer(vec![face(colour)]).await.map(|mut answers| answers.remove(0).attributes)
    }

    fn face(colour: [u8; 3]) -> RgbImage {
        RgbImage::from_pixel(8, 8, Rgb(colour))
    }

    #[tokio::test]
    async fn answers_are_decoded_in_the_order_of_tasks() {
        let model = started(toy(), &Tasks::default()).unwrap();
        let attributes = ask(&model, [51; 3]).await.unwrap();
        let [gender, smile] = attributes.labels.as_slice() else { panic!("two answers") };
        assert_eq!((gender.task(), gender.label(), smile.label()), (Task::Gender, "male", "neutral"));
        assert!((gender.probability() - 0.75).abs() < 1e-6, "logits are softened");
        assert!((smile.probability() - 0.8).abs() < 1e-6);
        assert!(attributes.age.is_none());
    }

    #[tokio::test]
    async fn a_task_switched_off_is_not_answered() {
        let tasks = Tasks::of([Task::Smile]);
        let model = started(toy(), &tasks).unwrap();
        assert_eq!(model.tasks(), &tasks);
        assert_eq!(ask(&model, [0; 3]).await.unwrap().labels.len(), 1);
        let none = started(toy(), &Tasks::of([Task::Age])).map(|_| ());
        assert!(none.unwrap_err().to_string().contains("none of the tasks 'age'"));
    }

    #[tokio::test]
    async fn a_failed_or_panicking_run_is_an_error_and_the_worker_goes_on() {
        let model = started(toy(), &Tasks::default()).unwrap();
        for (colour, message) in [([255, 0, 0], "panicked"), ([0, 255, 0], "a green face")] {
            let error = ask(&model, colour).await.unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
            assert!(ask(&model, [9; 3]).await.is_ok());
        }
        assert!(model.model().is_alive());
    }

    #[tokio::test]
    async fn a_poisoned_picture_fails_alone() {
        // One worker, held until all five wait: they share a run.
        for (poison, message, renewals) in [([0, 255, 0], "a green face", 0), ([255, 0, 0], "panicked", 2)] {
            let (release, held) = mpsc::channel();
            let toy = Toy { held: Some(held), ..toy() };
            let (runs, renewed) = (Arc::clone(&toy.runs), Arc::clone(&toy.renewals));
            let model = Arc::new(started(toy, &Tasks::default()).unwrap());
            let ask = |colour| {
                let model = Arc::clone(&model);
                tokio::spawn(async move { ask(&model, colour).await })
            };
            let first = ask([51; 3]);
            while runs.load(Ordering::SeqCst) < 3 {
                tokio::task::yield_now().await;
            }
            let (good, bad, other) = (ask([51; 3]), ask(poison), ask([102; 3]));
            while model.model().waiting() < 3 {
                tokio::task::yield_now().await;
            }
            // The first run, the shared one, one each, and the gray one that asks whether the network still works.
            for _ in 0..6 {
                // A network that was loaded anew is held no more.
                let _ = release.send(());
            }
            assert!(first.await.unwrap().is_ok());
            let error = bad.await.unwrap().unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
            for (answer, smiling) in [(good, 0.2), (other, 0.4)] {
                let attributes = answer.await.unwrap().unwrap();
                let smile = &attributes.labels[1];
                assert!((smile.probabilities()[1] - smiling).abs() < 1e-6, "{smile:?}");
            }
            assert_eq!(renewed.load(Ordering::SeqCst), renewals, "after a panic nobody trusts what it left behind");
            assert!(model.model().is_alive());
        }
    }

    #[tokio::test]
    async fn a_worker_without_a_network_is_not_ready_until_it_has_one() {
        let toy = toy();
        let (renewals, may_be_renewed) = (Arc::clone(&toy.renewals), Arc::clone(&toy.may_be_renewed));
        may_be_renewed.store(false, Ordering::SeqCst);
        let model = Arc::new(started(toy, &Tasks::default()).unwrap());
        let asked = {
            let model = Arc::clone(&model);
            tokio::spawn(async move { ask(&model, [255, 0, 0]).await })
        };
        while renewals.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        assert!(!model.model().is_alive());
        may_be_renewed.store(true, Ordering::SeqCst);
        assert!(asked.await.unwrap().is_err());
        assert!(ask(&model, [9; 3]).await.is_ok());
        assert!(model.model().is_alive());
    }

    #[tokio::test]
    async fn a_full_queue_is_overload_and_waiting_faces_share_a_run() {
        let (release, held) = mpsc::channel();
        let toy = Toy { held: Some(held), ..toy() };
        let runs = Arc::clone(&toy.runs);
        let model = Arc::new(started(toy, &Tasks::default()).unwrap());
        let ask = |faces| {
            let model = Arc::clone(&model);
            tokio::spawn(async move { model.infer(vec![face([51; 3]); faces]).await })
        };
        let first = ask(1);
        while runs.load(Ordering::SeqCst) < 3 {
            tokio::task::yield_now().await;
        }
        let waiting = [ask(1), ask(1), ask(2)];
        while model.model().waiting() < 4 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(model.infer(vec![face([51; 3])]).await, Err(EngineError::Overloaded)));
        waiting[0].abort();
        while !waiting[0].is_finished() {
            tokio::task::yield_now().await;
        }
        release.send(()).unwrap();
        release.send(()).unwrap();
        assert!(first.await.unwrap().is_ok());
        let [_, one, two] = waiting;
        assert_eq!(one.await.unwrap().unwrap().len(), 1);
        assert_eq!(two.await.unwrap().unwrap().len(), 2);
        assert_eq!(runs.load(Ordering::SeqCst), 4, "three faces of two requests shared a run, the fourth had gone");
    }

    #[tokio::test]
    async fn numbers_and_pictures_share_a_run() {
        let (release, held) = mpsc::channel();
        let toy = Toy { held: Some(held), ..toy() };
        let runs = Arc::clone(&toy.runs);
        let model = Arc::new(started(toy, &Tasks::of([Task::Smile])).unwrap());
        let picture = || {
            let model = Arc::clone(&model);
            tokio::spawn(async move { ask(&model, [51; 3]).await })
        };
        let first = picture();
        while runs.load(Ordering::SeqCst) < 3 {
            tokio::task::yield_now().await;
        }
        let second = picture();
        let tensor = {
            let model = Arc::clone(&model);
            let rows = [vec![0.25; 192], vec![0.5; 192], vec![0.0; 7]].concat();
            tokio::spawn(async move { model.model().infer(rows).await })
        };
        while model.model().waiting() < 3 {
            tokio::task::yield_now().await;
        }
        let soon = Instant::now() + STANDSTILL;
        assert!(!model.model().stands_still(Instant::now()) && model.model().stands_still(soon));
        release.send(()).unwrap();
        release.send(()).unwrap();
        assert!(first.await.unwrap().is_ok() && second.await.unwrap().is_ok());
        assert_eq!(tensor.await.unwrap().unwrap(), [[0.75, 0.25, 0.5, 0.5]], "a list for each output, row after row");
        let totals = model.model().totals();
        assert_eq!((totals.runs, totals.rows, totals.answered.count), (2, 4, 3));
        assert_eq!(totals.batches.keys().copied().collect::<Vec<_>>(), [1, 3]);
    }

    #[tokio::test]
    async fn threads_with_pictures_run_the_network_and_leave_trouble_to_the_worker() {
        let compute = Arc::new(Compute::new(1));
        let cpu = Cpu::new(1, Arc::clone(&compute)).unwrap();
        let toy = toy();
        let renewals = Arc::clone(&toy.renewals);
        let manifest = Manifest::from_json(MANIFEST).unwrap();
        let network = Network { manifest, sha256: "ab12".into(), backends: vec![Box::new(toy)] };
        let options = Options { compute, ..options() };
        let model = Arc::new(AttributeModel::start(network, &Tasks::default(), options, &Metrics::new()).unwrap());
        let hand_in = |colours: &[[u8; 3]]| {
            let (model, crops) = (Arc::clone(&model), colours.iter().copied().map(face).collect());
            cpu.run_at_desk(move |desk| model.hand_in(crops, Urgency::Now, desk))
        };

        let handed_in = hand_in(&[[51; 3], [102; 3]]).await.unwrap().unwrap();
        let answers = model.collect(handed_in).now_or_never().expect("the same thread has run it").unwrap();
        let smiling: Vec<f32> = answers.iter().map(|answer| answer.attributes.labels[1].probabilities()[1]).collect();
        assert!((smiling[0] - 0.2).abs() < 1e-6 && (smiling[1] - 0.4).abs() < 1e-6, "{smiling:?}");
        assert_eq!(model.collect(hand_in(&[]).await.unwrap().unwrap()).await.unwrap().len(), 0);
        assert!(matches!(hand_in(&[[51; 3]; 5]).await.unwrap(), Err(EngineError::Overloaded)));

        for (trouble, message, renewed) in [([0, 255, 0], "a green face", 0), ([255, 0, 0], "panicked", 2)] {
            let bad = hand_in(&[trouble]).await.unwrap().unwrap();
            let error = model.collect(bad).await.unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
            let good = hand_in(&[[9; 3]]).await.unwrap().unwrap();
            assert!(model.collect(good).await.is_ok());
            assert_eq!(renewals.load(Ordering::SeqCst), renewed, "once before the worker tries, once after");
        }
        assert!(model.model().is_alive());
    }

    #[tokio::test]
    async fn a_model_may_end_on_a_thread_with_the_core_that_its_worker_needs() {
        let compute = Arc::new(Compute::new(1));
        let cpu = Cpu::new(1, Arc::clone(&compute)).unwrap();
        let manifest = Manifest::from_json(MANIFEST).unwrap();
        let network = Network { manifest, sha256: "ab12".into(), backends: vec![Box::new(toy())] };
        let options = Options { compute, ..options() };
        let model = AttributeModel::start(network, &Tasks::default(), options, &Metrics::new()).unwrap();
        // The last that knows the model: it ends with the work.
        let last = move |desk: &Desk| model.hand_in(vec![face([51; 3])], Urgency::Now, desk);
        let handed_in = tokio::time::timeout(Duration::from_secs(10), cpu.run_at_desk(last)).await;
        let handed_in = handed_in.expect("it does not wait for the worker").unwrap().unwrap();
        assert_eq!(handed_in.answers().await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_worker_whose_network_is_in_use_takes_another() {
        for _ in 0..4 {
            let compute = Arc::new(Compute::new(2));
            let cpu = Arc::new(Cpu::new(2, Arc::clone(&compute)).unwrap());
            let (release, held) = mpsc::channel();
            let (first, second) = (Toy { held: Some(held), ..toy() }, toy());
            let runs = Arc::clone(&second.runs);
            let manifest = Manifest::from_json(MANIFEST).unwrap();
            let backends: Vec<Box<dyn Backend>> = vec![Box::new(first), Box::new(second)];
            let network = Network { manifest, sha256: "ab12".into(), backends };
            let options = Options { compute, ..options() };
            let model = Arc::new(AttributeModel::start(network, &Tasks::default(), options, &Metrics::new()).unwrap());
            let warm = runs.load(Ordering::SeqCst);
            // Both workers wait by now, and either may be the one that is woken.
            tokio::time::sleep(Duration::from_millis(20)).await;
            let handed_in = {
                let (cpu, model) = (Arc::clone(&cpu), Arc::clone(&model));
                let crops = vec![face([51; 3]), face([102; 3])];
                let hand_in = move |desk: &Desk| model.hand_in(crops, Urgency::Now, desk);
                tokio::spawn(async move { cpu.run_at_desk(hand_in).await })
            };
            let until = Instant::now() + Duration::from_secs(10);
            while runs.load(Ordering::SeqCst) == warm && Instant::now() < until {
                tokio::task::yield_now().await;
            }
            let held_up = runs.load(Ordering::SeqCst) == warm;
            release.send(()).unwrap();
            assert!(!held_up, "the second face waits for the first");
            let answers = model.collect(handed_in.await.unwrap().unwrap().unwrap()).await.unwrap();
            assert_eq!(answers.len(), 2);
        }
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
            let error = started(toy, &Tasks::default()).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
