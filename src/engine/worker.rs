//! A thread that owns a network: it takes what waits, fills the batch tensor, runs, and answers each picture.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use facewise_core::crop::normalise;
use facewise_core::manifest::Input;
use image::RgbImage;
use prometheus::{Histogram, IntCounter};
use tokio::sync::oneshot;

use super::backend::{Backend, BackendError};
use super::queue::Queue;

/// One square picture that waits for the network: the crop of a face, or what a detector looks at.
pub(super) struct Job {
    /// `size` × `size` pixels.
    pub(super) picture: RgbImage,
    /// When it was put into the queue.
    pub(super) queued: Instant,
    /// Where the answer goes; closed when nobody waits any more.
    pub(super) reply: oneshot::Sender<Result<Answer, BackendError>>,
}

/// What the network said about one picture.
pub(super) struct Answer {
    /// One row for each output asked for.
    pub(super) rows: Vec<Vec<f32>>,
    /// Time in the queue.
    pub(super) queue: Duration,
    /// Time of the run that the picture was part of.
    pub(super) inference: Duration,
}

/// What a worker needs to know and to report.
#[derive(Clone)]
pub(super) struct Recipe {
    /// The tensor that the network reads.
    pub(super) input: Input,
    /// Outputs asked for.
    pub(super) outputs: Vec<String>,
    /// Length of a row, for each output.
    pub(super) lengths: Vec<usize>,
    /// Most pictures in a run.
    pub(super) max_batch: usize,
    pub(super) inferences: IntCounter,
    pub(super) executions: IntCounter,
    pub(super) batch_size: Histogram,
}

impl Recipe {
    fn picture_len(&self) -> usize {
        3 * (self.input.size * self.input.size) as usize
    }

    /// Runs the network on pictures; gives one list of rows for each.
    fn run(
        &self,
        backend: &mut dyn Backend,
        tensor: &mut Vec<f32>,
        pictures: &[&RgbImage],
    ) -> Result<Vec<Vec<Vec<f32>>>, BackendError> {
        let (count, length) = (pictures.len(), self.picture_len());
        tensor.resize(count * length, 0.0);
        for (picture, place) in pictures.iter().zip(tensor.chunks_exact_mut(length)) {
            normalise(picture, self.input.mean, self.input.sd, place);
        }
        let side = self.input.size as usize;
        let outputs = backend.run(tensor, [count, 3, side, side], &self.outputs)?;
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
        Ok((0..count).map(rows).collect())
    }

    /// Runs the network on gray pictures, so that the first request does not pay for what is done once.
    pub(super) fn warm_up(&self, backend: &mut dyn Backend) -> Result<(), BackendError> {
        let gray = RgbImage::from_pixel(self.input.size, self.input.size, facewise_core::crop::PADDING);
        let mut tensor = Vec::new();
        for batch in [1, self.max_batch] {
            shielded(|| self.run(backend, &mut tensor, &vec![&gray; batch]))?;
        }
        Ok(())
    }

    /// Works until the queue is closed and empty.
    pub(super) fn work(&self, queue: &Queue<Job>, backend: &mut dyn Backend) {
        let mut tensor = Vec::with_capacity(self.max_batch * self.picture_len());
        while let Some(jobs) = queue.take(self.max_batch, |job| !job.reply.is_closed()) {
            self.answer(jobs, backend, &mut tensor);
        }
    }

    fn answer(&self, jobs: Vec<Job>, backend: &mut dyn Backend, tensor: &mut Vec<f32>) {
        let started = Instant::now();
        let pictures: Vec<&RgbImage> = jobs.iter().map(|job| &job.picture).collect();
        let result = shielded(|| self.run(backend, tensor, &pictures));
        let inference = started.elapsed();
        self.executions.inc();
        self.inferences.inc_by(jobs.len() as u64);
        self.batch_size.observe(jobs.len() as f64);
        match result {
            Ok(answers) => {
                for (job, rows) in jobs.into_iter().zip(answers) {
                    let queue = started.duration_since(job.queued);
                    // A receiver that has gone meanwhile wants no answer.
                    let _ = job.reply.send(Ok(Answer { rows, queue, inference }));
                }
            }
            Err(error) => {
                tracing::error!(%error, pictures = jobs.len(), "a run of the network failed");
                for job in jobs {
                    let _ = job.reply.send(Err(error.clone()));
                }
            }
        }
    }
}

/// A panic in the library must neither end the thread nor leave anybody waiting.
fn shielded<T>(run: impl FnOnce() -> Result<T, BackendError>) -> Result<T, BackendError> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(BackendError("the run panicked".into())))
}
