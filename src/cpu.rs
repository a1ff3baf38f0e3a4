//! The threads that do the pictures' work: decoding and cropping never run on the threads that talk to clients. When no picture
//! waits, or enough wait for a network, they run the networks that pictures were left for: a picture has no more
//! hand-overs between threads than it needs. What has begun goes on before anything else begins, so that few decoded pictures are
//! held at a time.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::compute::{Compute, Priority};

/// A fixed number of threads with one line, first come first served among what has begun and among what has not, that keep to the
/// bound on what computes at a time.
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

    /// Whether so much of it waits that it goes before what only begins.
    fn is_pressing(&self) -> bool;
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

/// A piece of work that waits for a thread.
type Piece = Box<dyn FnOnce() + Send>;

/// Whose turn it is.
#[derive(Clone, Copy)]
enum Turn {
    /// After all that came before: it begins something.
    Begins,
    /// Before all that only begins: a decoded picture is held for it.
    GoesOn,
}

/// What the threads know of each other.
#[derive(Default)]
struct Shared {
    /// Pieces that wait. Whoever ends one while others wait leaves the help to them, unless it is pressing.
    waiting: AtomicUsize,
    begin: Mutex<VecDeque<Piece>>,
    go_on: Mutex<VecDeque<Piece>>,
    left: Mutex<Vec<Arc<dyn Help>>>,
}

impl Shared {
    fn put(&self, turn: Turn, piece: Piece) {
        let line = match turn {
            Turn::Begins => &self.begin,
            Turn::GoesOn => &self.go_on,
        };
        // Counted first: who sees nothing wait must not be wrong.
        self.waiting.fetch_add(1, Ordering::SeqCst);
        line.lock().push_back(piece);
    }

    /// The piece whose turn it is; there is one for each thread that was asked for.
    fn take(&self) -> Option<Piece> {
        let goes_on = self.go_on.lock().pop_front();
        let piece = goes_on.or_else(|| self.begin.lock().pop_front());
        self.waiting.fetch_sub(usize::from(piece.is_some()), Ordering::SeqCst);
        piece
    }

    /// What is to be helped with now: anything when nothing waits, else what is pressing.
    fn wanted(&self) -> Option<Arc<dyn Help>> {
        let mut left = self.left.lock();
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return left.pop();
        }
        let pressing = left.iter().rposition(|help| help.is_pressing())?;
        Some(left.remove(pressing))
    }

    fn leave(&self, help: Arc<dyn Help>) {
        let mut left = self.left.lock();
        if !left.iter().any(|other| Arc::ptr_eq(other, &help)) {
            left.push(help);
        }
    }

    /// Does what was left, part by part, as long as no work waits or it is pressing, and `then` after the first part.
    fn help(&self, then: impl FnOnce()) {
        let mut then = Some(then);
        while let Some(help) = self.wanted() {
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
        self.submit(Turn::Begins, work).await
    }

    /// The same for work that goes on with something: it is done before any that begins.
    ///
    /// # Errors
    /// When `work` panics.
    pub async fn go_on_at_desk<T, F>(&self, work: F) -> Result<T, Panicked>
    where
        T: Send + 'static,
        F: FnOnce(&Desk) -> T + Send + 'static,
    {
        self.submit(Turn::GoesOn, work).await
    }

    async fn submit<T, F>(&self, turn: Turn, work: F) -> Result<T, Panicked>
    where
        T: Send + 'static,
        F: FnOnce(&Desk) -> T + Send + 'static,
    {
        let (done, result) = oneshot::channel();
        let (compute, shared, priority) = (Arc::clone(&self.compute), Arc::clone(&self.shared), self.priority);
        let is_open = priority == Priority::Picture && self.pool.current_num_threads() >= compute.cores();
        let piece = {
            let shared = Arc::clone(&shared);
            move || {
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
            }
        };
        shared.put(turn, Box::new(piece));
        // Whose turn it is shows when there is a core.
        self.pool.spawn_fifo(move || {
            compute.run(priority, 1, || {
                if let Some(piece) = shared.take() {
                    piece();
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

        fn is_pressing(&self) -> bool {
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
    async fn what_goes_on_comes_before_what_begins() {
        let cpu = Cpu::new(1, Arc::new(Compute::new(1))).expect("one thread");
        let (order, (release, held)) = (Arc::new(Mutex::new(Vec::new())), mpsc::channel::<()>());
        let note = |name: &'static str| {
            let order = Arc::clone(&order);
            move |_: &Desk| order.lock().push(name)
        };
        let mut first = Box::pin(cpu.run(move || held.recv().is_ok()));
        assert!((&mut first).now_or_never().is_none());
        let mut begins = Box::pin(async { tokio::join!(cpu.run_at_desk(note("a")), cpu.run_at_desk(note("b"))) });
        assert!((&mut begins).now_or_never().is_none());
        let mut goes_on = Box::pin(async { tokio::join!(cpu.go_on_at_desk(note("c")), cpu.go_on_at_desk(note("d"))) });
        assert!((&mut goes_on).now_or_never().is_none());
        release.send(()).expect("the thread waits");
        assert_eq!((first.await, begins.await, goes_on.await), (Ok(true), (Ok(()), Ok(())), (Ok(()), Ok(()))));
        assert_eq!(*order.lock(), ["c", "d", "a", "b"]);
    }

    #[tokio::test]
    async fn what_is_pressing_is_done_while_work_waits() {
        /// Tells when it was done, and is pressing from the second time on that it was left.
        struct Batch(Arc<Mutex<Vec<&'static str>>>, AtomicUsize);
        impl Help for Batch {
            fn help(&self) -> bool {
                self.0.lock().push("batch");
                false
            }

            fn is_pressing(&self) -> bool {
                self.1.load(Ordering::SeqCst) >= 2
            }
        }
        let cpu = Cpu::new(1, Arc::new(Compute::new(1))).expect("one thread");
        let (order, (release, held)) = (Arc::new(Mutex::new(Vec::new())), mpsc::channel::<()>());
        let batch = Arc::new(Batch(Arc::clone(&order), AtomicUsize::default()));
        let mut first = Box::pin(cpu.run(move || held.recv().is_ok()));
        assert!((&mut first).now_or_never().is_none());
        let piece = || {
            let (order, batch) = (Arc::clone(&order), Arc::clone(&batch));
            cpu.run_at_desk(move |desk| {
                order.lock().push("piece");
                batch.1.fetch_add(1, Ordering::SeqCst);
                desk.leave(batch);
            })
        };
        let last = {
            let order = Arc::clone(&order);
            cpu.run(move || order.lock().push("last"))
        };
        let mut pieces = Box::pin(async { tokio::join!(piece(), piece(), last) });
        assert!((&mut pieces).now_or_never().is_none());
        release.send(()).expect("the thread waits");
        assert_eq!((first.await, pieces.await), (Ok(true), (Ok(()), Ok(()), Ok(()))));
        assert_eq!(*order.lock(), ["piece", "piece", "batch", "last"]);
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
