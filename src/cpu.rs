//! The threads that do the pictures' work: decoding and cropping never run on the threads that talk to clients.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::compute::{Compute, Priority};

/// A fixed number of threads with one queue, first come first served, that keep to the bound on what computes at a time.
pub struct Cpu {
    pool: rayon::ThreadPool,
    compute: Arc<Compute>,
    priority: Priority,
}

/// A piece of work panicked. What it said is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a piece of work on a picture panicked")]
pub struct Panicked;

impl Cpu {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn new(threads: usize, compute: Arc<Compute>) -> Result<Self, rayon::ThreadPoolBuildError> {
        Self::with(threads, compute, Priority::Picture, "picture")
    }

    /// Starts threads for what nobody waits for: they compute when nobody else wants to.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn in_background(threads: usize, compute: Arc<Compute>) -> Result<Self, rayon::ThreadPoolBuildError> {
        Self::with(threads, compute, Priority::Background, "background")
    }

    fn with(
        threads: usize,
        compute: Arc<Compute>,
        priority: Priority,
        name: &'static str,
    ) -> Result<Self, rayon::ThreadPoolBuildError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(move |index| format!("{name}-{index}"))
            .build()?;
        Ok(Self { pool, compute, priority })
    }

    /// Runs `work` on a thread of the pool. Work whose caller has gone by its turn is skipped.
    ///
    /// # Errors
    /// When `work` panics.
    pub async fn run<T, F>(&self, work: F) -> Result<T, Panicked>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (done, result) = oneshot::channel();
        let (compute, priority) = (Arc::clone(&self.compute), self.priority);
        self.pool.spawn_fifo(move || {
            compute.run(priority, 1, || {
                if done.is_closed() {
                    return;
                }
                // The caller may have gone meanwhile; nobody else wants the result. Of a panic, dropping `done` tells.
                if let Ok(value) = catch_unwind(AssertUnwindSafe(work)) {
                    let _ = done.send(value);
                }
            });
        });
        result.await.map_err(|_| Panicked)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;

    use futures_util::FutureExt;

    use super::*;

    fn cpu() -> Cpu {
        Cpu::new(1, Arc::default()).expect("one thread")
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_thread_goes_on() {
        let cpu = cpu();
        assert_eq!(cpu.run(|| -> u8 { panic!("as the test wants it") }).await, Err(Panicked));
        assert_eq!(cpu.run(|| 7).await, Ok(7));
    }

    #[tokio::test]
    async fn work_nobody_waits_for_is_skipped() {
        let cpu = cpu();
        let (release, held) = mpsc::channel::<()>();
        let ran = Arc::new(AtomicBool::new(false));
        let first = cpu.run(move || held.recv().is_ok());
        let second = {
            let ran = Arc::clone(&ran);
            cpu.run(move || ran.store(true, Ordering::SeqCst))
        };
        let mut first = Box::pin(first);
        let mut second = Box::pin(second);
        assert!((&mut first).now_or_never().is_none());
        assert!((&mut second).now_or_never().is_none());
        drop(second);
        release.send(()).expect("the thread waits");
        assert_eq!(first.await, Ok(true));
        assert_eq!(cpu.run(|| ()).await, Ok(()));
        assert!(!ran.load(Ordering::SeqCst), "its caller had gone");
    }
}
