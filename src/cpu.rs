//! The threads that do the pictures' work: decoding and cropping never run on the threads that talk to clients. When no picture
//! waits, they run the networks that pictures were left for: a picture has no more hand-overs between threads than it needs.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::compute::{Compute, Priority};

/// A fixed number of threads with one queue, first come first served, that keep to the bound on what computes at a time.
pub struct Cpu {
    pool: rayon::ThreadPool,
    compute: Arc<Compute>,
    priority: Priority,
    shared: Arc<Shared>,
}

/// Something that a thread with a core in hand can do when no picture waits.
pub trait Help: Send + Sync {
    /// Does a part of it. Whether something may be left.
    fn help(&self) -> bool;
}

/// Where a piece of work leaves what is to be done next, by the same threads.
pub struct Desk {
    is_open: bool,
    left: RefCell<Vec<Arc<dyn Help>>>,
}

impl Desk {
    /// Whether anything may be left here. It may not where these threads are fewer than the cores, which pictures would wait for then,
    /// or where nobody waits for what they do.
    pub const fn is_open(&self) -> bool {
        self.is_open
    }

    /// Leaves something.
    pub fn leave(&self, help: Arc<dyn Help>) {
        self.left.borrow_mut().push(help);
    }
}

/// What the threads know of each other.
#[derive(Default)]
struct Shared {
    /// Pieces of work that have not begun. Whoever ends one while others have not begun leaves the help to them.
    waiting: AtomicUsize,
    left: Mutex<Vec<Arc<dyn Help>>>,
}

impl Shared {
    fn leave(&self, help: Arc<dyn Help>) {
        let mut left = self.left.lock();
        if !left.iter().any(|other| Arc::ptr_eq(other, &help)) {
            left.push(help);
        }
    }

    /// Does what was left, part by part, as long as no work waits, and `then` after the first part.
    fn help(&self, then: impl FnOnce()) {
        let mut then = Some(then);
        while self.waiting.load(Ordering::SeqCst) == 0 {
            let Some(help) = self.left.lock().pop() else { break };
            if help.help() {
                self.leave(help);
            }
            if let Some(then) = then.take() {
                then();
            }
        }
        if let Some(then) = then {
            then();
        }
    }
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
        Ok(Self { pool, compute, priority, shared: Arc::default() })
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
        self.run_at_desk(|_| work()).await
    }

    /// The same for work that may leave something to be done next.
    ///
    /// # Errors
    /// When `work` panics.
    pub async fn run_at_desk<T, F>(&self, work: F) -> Result<T, Panicked>
    where
        T: Send + 'static,
        F: FnOnce(&Desk) -> T + Send + 'static,
    {
        let (done, result) = oneshot::channel();
        let (compute, shared) = (Arc::clone(&self.compute), Arc::clone(&self.shared));
        let priority = self.priority;
        let is_open = priority == Priority::Picture && self.pool.current_num_threads() >= compute.cores();
        shared.waiting.fetch_add(1, Ordering::SeqCst);
        self.pool.spawn_fifo(move || {
            compute.run(priority, 1, || {
                shared.waiting.fetch_sub(1, Ordering::SeqCst);
                let desk = Desk { is_open, left: RefCell::default() };
                // Of a panic, dropping `done` tells.
                let value = if done.is_closed() { None } else { catch_unwind(AssertUnwindSafe(|| work(&desk))).ok() };
                // The caller may have gone meanwhile; nobody else wants the result.
                let send = || {
                    if let Some(value) = value {
                        let _ = done.send(value);
                    }
                };
                let left = desk.left.into_inner();
                if left.is_empty() {
                    send();
                    shared.help(|| ());
                } else {
                    for help in left {
                        shared.leave(help);
                    }
                    // Whoever left something goes on when it is done, and is woken once, with all of it.
                    shared.help(send);
                }
            });
        });
        result.await.map_err(|_| Panicked)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
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

    /// Counts how often it was done, and has always done all of it.
    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Help for Counter {
        fn help(&self) -> bool {
            self.0.fetch_add(1, Ordering::SeqCst);
            false
        }
    }

    #[tokio::test]
    async fn what_was_left_is_done_once_when_no_work_waits() {
        let cpu = Cpu::new(1, Arc::new(Compute::new(1))).expect("one thread");
        let (counter, (release, held)) = (Arc::<Counter>::default(), mpsc::channel::<()>());
        let done = || counter.0.load(Ordering::SeqCst);
        let leave = |held: Option<mpsc::Receiver<()>>| {
            let counter = Arc::clone(&counter);
            cpu.run_at_desk(move |desk| {
                assert!(held.is_none_or(|held| held.recv().is_ok()));
                desk.leave(counter);
            })
        };
        let (mut first, mut second) = (Box::pin(leave(Some(held))), Box::pin(leave(None)));
        assert!((&mut first).now_or_never().is_none());
        assert!((&mut second).now_or_never().is_none());
        release.send(()).expect("the thread waits");
        assert_eq!(first.await, Ok(()));
        assert_eq!(second.await, Ok(()));
        assert_eq!(done(), 1, "the first left it to the second");
        assert_eq!(leave(None).await, Ok(()));
        assert_eq!(done(), 2, "before its caller goes on");
    }

    #[tokio::test]
    async fn nothing_is_left_to_threads_that_are_too_few_or_that_nobody_waits_for() {
        let compute = Arc::new(Compute::new(2));
        let few = Cpu::new(1, Arc::clone(&compute)).expect("one thread");
        let enough = Cpu::new(2, Arc::clone(&compute)).expect("two threads");
        let background = Cpu::in_background(2, compute).expect("two threads");
        for (cpu, open) in [(few, false), (enough, true), (background, false)] {
            assert_eq!(cpu.run_at_desk(Desk::is_open).await, Ok(open));
        }
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
