//! One bound on what computes at a time. Threads that decode pictures and threads that run networks are more than the machine
//! has cores; without a bound they would take each other's time slices and caches, and every piece of work would last longer.

use std::cell::Cell;
use std::marker::PhantomData;

use parking_lot::{Condvar, Mutex};

use crate::config::available_cpus;

/// Which work goes first when a core is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Work on pictures, which is short, and the more of it is done, the larger are the batches of what comes next; and when no
    /// picture waits, what the same threads were left to run.
    Picture,
    /// Runs of networks by their own workers: whole batches of what waits.
    Network,
    /// Work on pictures that nobody waits for.
    Background,
}

/// How many there are.
const PRIORITIES: usize = 3;

thread_local! {
    /// Cores that this thread has taken.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// Whether this thread has cores, so that it must not wait for another that needs some.
pub fn holds_cores() -> bool {
    HELD.get() > 0
}

/// The cores that may compute at a time.
pub struct Compute {
    state: Mutex<State>,
    /// One for each priority.
    freed: [Condvar; PRIORITIES],
    cores: usize,
}

struct State {
    free: usize,
    /// How many wait, for each priority.
    waiting: [usize; PRIORITIES],
}

impl Compute {
    /// A bound of `cores`.
    pub fn new(cores: usize) -> Self {
        let cores = cores.max(1);
        Self { state: Mutex::new(State { free: cores, waiting: [0; PRIORITIES] }), freed: Default::default(), cores }
    }

    /// The bound.
    pub const fn cores(&self) -> usize {
        self.cores
    }

    /// Whether another core may compute.
    pub fn has_free(&self) -> bool {
        self.state.lock().free > 0
    }

    /// Runs `work`, which computes on this many threads, when so many cores are free: all of them where it asks for more, and at
    /// once where it asks for none, because it computes elsewhere. The calling thread waits meanwhile. Work must not ask for
    /// cores itself.
    pub fn run<T>(&self, priority: Priority, threads: usize, work: impl FnOnce() -> T) -> T {
        let _cores = self.take(priority, threads);
        work()
    }

    /// Waits for the cores of [`Self::run`]. They are free again when what is returned is dropped.
    pub fn take(&self, priority: Priority, threads: usize) -> Cores<'_> {
        let cores = threads.min(self.cores);
        if cores == 0 {
            return Cores::new(self, cores);
        }
        let class = priority as usize;
        let mut state = self.state.lock();
        state.waiting[class] += 1;
        while state.free < cores || state.waiting[..class].iter().any(|waiting| *waiting > 0) {
            self.freed[class].wait(&mut state);
        }
        state.waiting[class] -= 1;
        state.free -= cores;
        self.wake(&state);
        Cores::new(self, cores)
    }

    /// Wakes whoever is next, as long as there is something to take. Who wakes another in turn, so that none is forgotten.
    fn wake(&self, state: &State) {
        if state.free > 0
            && let Some(class) = state.waiting.iter().position(|waiting| *waiting > 0)
        {
            self.freed[class].notify_one();
        }
    }
}

impl Default for Compute {
    /// As many as this process may use; a container's limit counts, not the host's.
    fn default() -> Self {
        Self::new(available_cpus())
    }
}

/// Cores in use; dropping it gives them back, also when the work panics. It stays on the thread that has taken them.
pub struct Cores<'a> {
    compute: &'a Compute,
    count: usize,
    thread: PhantomData<*const ()>,
}

impl<'a> Cores<'a> {
    fn new(compute: &'a Compute, count: usize) -> Self {
        HELD.set(HELD.get() + count);
        Self { compute, count, thread: PhantomData }
    }
}

impl Drop for Cores<'_> {
    fn drop(&mut self) {
        HELD.set(HELD.get() - self.count);
        let mut state = self.compute.state.lock();
        state.free += self.count;
        self.compute.wake(&state);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn never_more_at_a_time_than_there_are_cores_and_everything_gets_its_turn() {
        let compute = Compute::new(3);
        let (running, most, done) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for worker in 0..12 {
                let (compute, running, most, done) = (&compute, &running, &most, &done);
                scope.spawn(move || {
                    // Five threads are more than there are cores: all of them are meant.
                    let threads = [1, 2, 5][worker % 3];
                    let priority = if worker % 2 == 0 { Priority::Network } else { Priority::Picture };
                    for _ in 0..200 {
                        compute.run(priority, threads, || {
                            let now = running.fetch_add(threads.min(3), Ordering::SeqCst) + threads.min(3);
                            most.fetch_max(now, Ordering::SeqCst);
                            thread::yield_now();
                            running.fetch_sub(threads.min(3), Ordering::SeqCst);
                        });
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(done.load(Ordering::SeqCst), 12 * 200);
        assert_eq!(most.load(Ordering::SeqCst), 3);
        assert_eq!(compute.state.lock().free, 3);
    }

    #[test]
    fn pictures_go_before_networks_and_both_before_what_nobody_waits_for() {
        let compute = Compute::new(1);
        let (order, turns) = mpsc::channel();
        let waiting = |class: usize| {
            let until = Instant::now() + Duration::from_secs(10);
            while compute.state.lock().waiting[class] == 0 {
                assert!(Instant::now() < until, "it comes to wait");
                thread::yield_now();
            }
        };
        thread::scope(|scope| {
            let (release, held) = mpsc::channel::<()>();
            let (started, running) = mpsc::channel();
            let compute = &compute;
            scope.spawn(move || {
                compute.run(Priority::Picture, 1, || {
                    started.send(()).unwrap();
                    held.recv().unwrap();
                });
            });
            running.recv().unwrap();
            let say = |name: &'static str, order: mpsc::Sender<&'static str>| move || order.send(name).unwrap();
            let (picture, network) = (say("picture", order.clone()), say("network", order.clone()));
            let background = say("background", order);
            scope.spawn(move || compute.run(Priority::Background, 1, background));
            waiting(Priority::Background as usize);
            scope.spawn(move || compute.run(Priority::Network, 1, network));
            waiting(Priority::Network as usize);
            scope.spawn(move || compute.run(Priority::Picture, 1, picture));
            waiting(Priority::Picture as usize);
            release.send(()).unwrap();
        });
        assert_eq!(turns.iter().collect::<Vec<_>>(), ["picture", "network", "background"]);
    }

    #[test]
    fn what_computes_elsewhere_waits_for_nobody() {
        let compute = Compute::new(1);
        let inside = compute.run(Priority::Picture, 1, || compute.run(Priority::Network, 0, holds_cores));
        assert!(inside && !holds_cores());
    }

    #[test]
    fn a_panic_gives_its_cores_back() {
        let compute = Compute::new(1);
        let panicked =
            catch_unwind(AssertUnwindSafe(|| compute.run(Priority::Network, 1, || panic!("as the test wants it"))));
        assert!(panicked.is_err());
        assert_eq!(compute.run(Priority::Picture, 1, || 7), 7);
    }
}
