//! What runs a network: takes what waits, fills the batch tensor, runs, and answers each item. A [`Worker`] is a thread that does
//! nothing else; threads that have pictures in hand do it as well ([`Helper`]), which spares hand-overs.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use facewise_core::crop::normalise;
use facewise_core::manifest::Input;
use image::RgbImage;
use parking_lot::{Mutex, MutexGuard};
use prometheus::{Histogram, IntCounter};
use tokio::sync::oneshot;

use super::backend::{Backend, BackendError};
use super::queue::{Patience, Queue};
use super::statistics::{Spent, Statistics};
use crate::compute::{Compute, Cores, Priority};
use crate::cpu::Help;

/// How long a worker waits before it tries again to load a network that could not be loaded.
const LOAD_AGAIN: Duration = Duration::from_secs(1);

/// A worker waits this share of the time of its last run for as many pictures as that run had. Clients that send the next
/// picture when they have an answer all come back at once, and what starts a moment before they are all there takes one or two
/// of them.
const PATIENCE: u32 = 8;

/// Once nobody has come for this long, nobody is waited for any more.
const QUIET: Duration = Duration::from_millis(1);

/// One row of a batch, as it comes in.
pub(super) enum Item {
    /// A square picture of `size` × `size` pixels: the crop of a face, or what a detector looks at.
    Picture(RgbImage),
    /// The very numbers that the network is to read, as a part of a tensor of several rows.
    Numbers(Arc<Vec<f32>>, Range<usize>),
}

impl Item {
    fn row(&self) -> Row<'_> {
        match self {
            Self::Picture(picture) => Row::Picture(picture),
            Self::Numbers(tensor, row) => Row::Numbers(&tensor[row.clone()]),
        }
    }
}

/// What fills one row of a batch.
#[derive(Clone, Copy)]
pub(super) enum Row<'a> {
    Picture(&'a RgbImage),
    Numbers(&'a [f32]),
}

/// An item that waits for the network.
pub(super) struct Job {
    pub(super) item: Item,
    /// When it was put into the queue.
    pub(super) queued: Instant,
    /// Where the answer goes; closed when nobody waits any more.
    pub(super) reply: oneshot::Sender<Result<Answer, BackendError>>,
}

/// What the network said about one item.
pub(super) struct Answer {
    /// One row for each output asked for.
    pub(super) rows: Vec<Vec<f32>>,
    /// Time in the queue.
    pub(super) queue: Duration,
    /// Time of the run that the item was part of.
    pub(super) spent: Spent,
}

/// A run's answers, one list of rows for each item, and its time.
type Run = (Vec<Vec<Vec<f32>>>, Spent);

/// What a worker needs to know and to report.
#[derive(Clone)]
pub(super) struct Recipe {
    /// The tensor that the network reads.
    pub(super) input: Input,
    /// Dimensions of one row of it.
    pub(super) row_shape: Vec<usize>,
    /// Outputs asked for.
    pub(super) outputs: Vec<String>,
    /// Length of a row, for each output.
    pub(super) lengths: Vec<usize>,
    /// Most pictures in a run.
    pub(super) max_batch: usize,
    /// So many that wait are run before another picture begins.
    pub(super) pressing: usize,
    /// Longest wait for a batch to fill, where somebody has set one.
    pub(super) max_delay: Duration,
    /// Threads inside a run.
    pub(super) threads: usize,
    /// The bound that runs keep to.
    pub(super) compute: Arc<Compute>,
    pub(super) statistics: Arc<Statistics>,
    pub(super) inferences: IntCounter,
    pub(super) executions: IntCounter,
    pub(super) failures: IntCounter,
    pub(super) batch_size: Histogram,
}

impl Recipe {
    /// Numbers of one row of the input.
    fn row_len(&self) -> usize {
        self.row_shape.iter().product()
    }

    /// Runs the network on a batch; gives one list of rows for each of its own.
    fn run(&self, backend: &mut dyn Backend, tensor: &mut Vec<f32>, batch: &[Row<'_>]) -> Result<Run, BackendError> {
        let (count, length) = (batch.len(), self.row_len());
        let started = Instant::now();
        tensor.resize(count * length, 0.0);
        for (row, place) in batch.iter().zip(tensor.chunks_exact_mut(length)) {
            match row {
                Row::Picture(picture) => normalise(picture, self.input.mean, self.input.sd, place),
                Row::Numbers(numbers) => place.copy_from_slice(numbers),
            }
        }
        let filled = Instant::now();
        let shape = [&[count][..], &self.row_shape].concat();
        let outputs = backend.run(tensor, &shape, &self.outputs)?;
        let computed = Instant::now();
        for ((name, numbers), length) in self.outputs.iter().zip(&outputs).zip(&self.lengths) {
            if numbers.len() != count * length {
                let (found, expected) = (numbers.len(), count * length);
                return Err(BackendError(format!("output '{name}' has {found} numbers instead of {expected}")));
            }
        }
        let rows = |index: usize| {
            let row = |(numbers, length): (&Vec<f32>, &usize)| numbers[index * length..(index + 1) * length].to_vec();
            outputs.iter().zip(&self.lengths).map(row).collect()
        };
        let rows = (0..count).map(rows).collect();
        let spent = Spent { input: filled - started, network: computed - filled, output: computed.elapsed() };
        Ok((rows, spent))
    }

    /// Runs the network on gray pictures, so that the first request does not pay for what is done once.
    pub(super) fn warm_up(&self, backend: &mut dyn Backend) -> Result<(), BackendError> {
        backend.warm_up_sizes(self.max_batch).into_iter().try_for_each(|batch| self.check(backend, batch))
    }

    /// Runs the network on gray pictures, or zeros where it reads none, which no network has reason to refuse.
    fn check(&self, backend: &mut dyn Backend, batch: usize) -> Result<(), BackendError> {
        let gray = match self.input.features {
            None => Item::Picture(RgbImage::from_pixel(self.input.size, self.input.size, facewise_core::crop::PADDING)),
            Some(_) => Item::Numbers(Arc::new(vec![0.0; self.row_len()]), 0..self.row_len()),
        };
        let run = || self.run(backend, &mut Vec::new(), &vec![gray.row(); batch]);
        shielded(run)
            .unwrap_or_else(|Panicked| Err(BackendError("a run on a gray picture panicked".into())))
            .map(|_| ())
    }
}

/// A network with the tensor that it reads. It is the worker's that renews it; whoever else runs it holds the lock no longer than
/// one run.
pub(super) struct Machine {
    backend: Box<dyn Backend>,
    tensor: Vec<f32>,
    /// A run panicked: nobody knows what state that left the network in.
    suspect: bool,
}

impl Machine {
    pub(super) fn new(backend: Box<dyn Backend>) -> Self {
        Self { backend, tensor: Vec::new(), suspect: false }
    }

    /// One run, counted.
    fn run(&mut self, recipe: &Recipe, batch: &[Row<'_>]) -> Result<Run, BackendError> {
        let Self { backend, tensor, suspect } = self;
        let result = shielded(|| recipe.run(backend.as_mut(), tensor, batch)).unwrap_or_else(|Panicked| {
            *suspect = true;
            Err(BackendError("the run panicked".into()))
        });
        recipe.executions.inc();
        recipe.inferences.inc_by(batch.len() as u64);
        recipe.batch_size.observe(batch.len() as f64);
        match &result {
            Ok((_, spent)) => recipe.statistics.ran(batch.len(), *spent),
            Err(_) => recipe.failures.inc(),
        }
        result
    }

    /// Puts a new network in the place of this one.
    fn renew(&mut self, recipe: &Recipe) -> Result<(), BackendError> {
        let mut fresh = self.backend.renew()?;
        recipe.warm_up(fresh.as_mut())?;
        (self.backend, self.suspect) = (fresh, false);
        Ok(())
    }

    /// One run. The answers are sent, or the pictures come back with the reason.
    fn answer(&mut self, recipe: &Recipe, jobs: Vec<Job>) -> Result<(), Failed> {
        let batch: Vec<Row<'_>> = jobs.iter().map(|job| job.item.row()).collect();
        let started = Instant::now();
        match self.run(recipe, &batch) {
            Ok((answers, spent)) => {
                for (job, rows) in jobs.into_iter().zip(answers) {
                    let queue = started.duration_since(job.queued);
                    // A receiver that has gone meanwhile wants no answer.
                    let _ = job.reply.send(Ok(Answer { rows, queue, spent }));
                }
                Ok(())
            }
            Err(error) => Err(Failed { jobs, error }),
        }
    }
}

/// A network that nobody runs and that is trusted, if there is one.
fn at_rest(machines: &[Arc<Mutex<Machine>>]) -> Option<MutexGuard<'_, Machine>> {
    machines.iter().filter_map(|machine| machine.try_lock()).find(|machine| !machine.suspect)
}

/// What threads that have a core in hand do for a network instead of its workers.
pub(super) struct Helper {
    pub(super) recipe: Recipe,
    pub(super) queue: Arc<Queue<Job>>,
    pub(super) machines: Vec<Arc<Mutex<Machine>>>,
}

impl Helper {
    /// Whether they can: a run takes the one core that they have, and nobody has asked for batches to be waited for.
    pub(super) fn is_possible(&self) -> bool {
        self.recipe.threads == 1 && self.recipe.max_delay.is_zero()
    }
}

impl Help for Helper {
    /// Runs a batch of what waits. A worker is woken where no network is at rest, where another core is free, and for what a run fails
    /// with.
    fn help(&self) -> bool {
        let Self { recipe, queue, machines } = self;
        let Some(mut machine) = at_rest(machines) else {
            queue.wake();
            return false;
        };
        let jobs = queue.take_now(recipe.max_batch, |job| !job.reply.is_closed());
        if jobs.is_empty() {
            return false;
        }
        if recipe.compute.has_free() {
            queue.wake();
        }
        let count = jobs.len();
        if let Err(Failed { jobs, .. }) = machine.answer(recipe, jobs) {
            if machine.suspect
                && let Err(error) = machine.renew(recipe)
            {
                // It stays suspect, and its worker tries again.
                tracing::error!(%error, "a network cannot be loaded anew");
            }
            queue.put_back(jobs);
        }
        queue.done(count);
        true
    }

    fn is_pressing(&self) -> bool {
        self.queue.urgent() >= self.recipe.pressing
    }
}

/// What is known about the workers of a model.
#[derive(Default)]
pub(super) struct Health {
    /// Workers that have lost their network and have no other yet.
    without_network: AtomicUsize,
}

impl Health {
    /// Whether every worker has a network that works.
    pub(super) fn is_good(&self) -> bool {
        self.without_network.load(Ordering::Relaxed) == 0
    }
}

/// A thread's work, with a network that is its own for the most part.
pub(super) struct Worker {
    pub(super) recipe: Recipe,
    pub(super) queue: Arc<Queue<Job>>,
    pub(super) health: Arc<Health>,
    /// Its own.
    pub(super) machine: Arc<Mutex<Machine>>,
    /// Those of all workers, for when a helper has its own.
    pub(super) machines: Vec<Arc<Mutex<Machine>>>,
}

impl Worker {
    /// Works until the queue is closed and empty.
    pub(super) fn work(self) {
        let (queue, compute) = (Arc::clone(&self.queue), Arc::clone(&self.recipe.compute));
        let max_batch = self.recipe.max_batch;
        let max_delay = self.recipe.max_delay;
        let set = (!max_delay.is_zero()).then_some((max_batch, Patience { longest: max_delay, quiet: max_delay }));
        let mut enough = set.unwrap_or((1, Patience::NONE));
        while queue.wait(enough.0, enough.1) {
            // First the network, which others may be running, and a core, then the batch: what arrives meanwhile is in it.
            let mut machine = self.network();
            let mut cores = Some(compute.take(Priority::Network, self.recipe.threads));
            let jobs = queue.take(max_batch, |job| !job.reply.is_closed());
            if jobs.is_empty() {
                continue;
            }
            let (started, count) = (Instant::now(), jobs.len());
            if machine.suspect {
                self.renew(&mut machine, &mut cores);
            }
            self.answer(jobs, &mut machine, &mut cores);
            drop((machine, cores));
            queue.done(count);
            enough = set.unwrap_or_else(|| (count, Patience { longest: started.elapsed() / PATIENCE, quiet: QUIET }));
        }
    }

    /// Its network; where that is in use, another that is at rest; where none is, it waits for its own.
    fn network(&self) -> MutexGuard<'_, Machine> {
        self.machine.try_lock().or_else(|| at_rest(&self.machines)).unwrap_or_else(|| self.machine.lock())
    }

    /// Answers pictures that share a run. When it fails, each gets a run of its own, so that the one that is to blame fails
    /// alone.
    fn answer(&self, jobs: Vec<Job>, machine: &mut Machine, cores: &mut Option<Cores<'_>>) {
        let Err(Failed { jobs, error }) = machine.answer(&self.recipe, jobs) else { return };
        if machine.suspect {
            self.renew(machine, cores);
        }
        if jobs.len() > 1 {
            tracing::warn!(%error, pictures = jobs.len(), "a run of the network failed: each picture is tried alone");
            for job in jobs.into_iter().filter(|job| !job.reply.is_closed()) {
                self.answer(vec![job], machine, cores);
            }
            return;
        }
        tracing::error!(%error, "a run of the network failed");
        for job in jobs {
            let _ = job.reply.send(Err(error.clone()));
        }
        // The picture's fault, or the network's?
        if let Err(error) = self.recipe.check(machine.backend.as_mut(), 1) {
            tracing::error!(%error, "a network does not work any more");
            self.renew(machine, cores);
        }
    }

    /// Puts a new network in the place of one that panicked, for nobody knows what state that left it in, or that does not work.
    /// Where none can be loaded, this worker stands still and tries again; the model is not ready meanwhile.
    fn renew(&self, machine: &mut Machine, cores: &mut Option<Cores<'_>>) {
        self.health.without_network.fetch_add(1, Ordering::Relaxed);
        loop {
            match machine.renew(&self.recipe) {
                Ok(()) => {
                    tracing::warn!("a worker has loaded its network anew");
                    break;
                }
                Err(error) => tracing::error!(%error, "a network cannot be loaded anew"),
            }
            if self.queue.is_closed() {
                break;
            }
            // Others can use the cores meanwhile.
            *cores = None;
            std::thread::sleep(LOAD_AGAIN);
        }
        self.health.without_network.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Pictures without an answer.
struct Failed {
    jobs: Vec<Job>,
    error: BackendError,
}

struct Panicked;

/// A panic in the library must neither end the thread nor leave anybody waiting.
fn shielded<T>(run: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|_| Panicked)
}
