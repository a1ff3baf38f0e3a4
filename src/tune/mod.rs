//! How networks run fastest on this machine: a short calibration measures them over a small grid of workers, threads inside a
//! run and most pictures in a run, by the engine that serves them, and the fastest settings go into `facewise.toml`.

mod choice;
mod file;
mod measure;

use std::num::NonZeroUsize;
use std::time::Duration;

pub use choice::{Choice, NEAR};
pub use file::write;
pub use measure::measure;

use crate::engine::EngineError;
use crate::repository::RepositoryError;

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    /// The models cannot be served.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// A network failed while it was measured.
    #[error("a network failed while it was measured: {0}")]
    Engine(#[from] EngineError),
    /// The system gave no more threads.
    #[error("no thread could be started: {0}")]
    Thread(#[from] std::io::Error),
    /// The plan has no case.
    #[error("there is nothing to measure: the plan has no batches")]
    Nothing,
}

/// How many threads run a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Layout {
    /// Workers that each run the network on their own.
    pub workers: usize,
    /// Threads inside one run.
    pub threads: usize,
}

impl Layout {
    /// CPUs that it keeps busy.
    pub const fn cpus(self) -> usize {
        self.workers * self.threads
    }
}

/// What is measured, and for how long.
#[derive(Clone, Debug)]
pub struct Plan {
    /// CPUs that workers and their threads take at most.
    pub cpus: NonZeroUsize,
    /// Most pictures in a run.
    pub batches: Vec<NonZeroUsize>,
    /// Time for each case in each round, after it has warmed up. It grows to what each worker needs for one full run.
    pub time: Duration,
    /// Each round measures every case once, so that a busy neighbour disturbs all of them alike.
    pub rounds: NonZeroUsize,
}

impl Plan {
    /// The layouts of the grid: one thread a run, two, four and so on, and all CPUs for one run; with each, as many workers as
    /// there is room for, and half as many, because the second thread of a core may be worth nothing to a network.
    pub fn layouts(&self) -> Vec<Layout> {
        let cpus = self.cpus.get();
        let powers = std::iter::successors(Some(1), |threads| Some(2 * threads)).take_while(|threads| *threads < cpus);
        powers
            .chain([cpus])
            .flat_map(|threads| {
                let most = cpus / threads;
                let half = (most > 1).then_some(most / 2);
                half.into_iter().chain([most]).map(move |workers| Layout { workers, threads })
            })
            .collect()
    }
}

/// What was measured of one network with some settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    /// Threads that ran it.
    pub layout: Layout,
    /// Most pictures in a run.
    pub max_batch: usize,
    /// Pictures a second while enough of them wait.
    pub rate: f64,
    /// Time for one picture alone, in seconds. It does not depend on the batch, and is the same in each cell of a layout.
    pub alone: f64,
}

/// One network and its cells: layout by layout, from small batches to large ones.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Name of the model.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What was measured.
    pub cells: Vec<Cell>,
    /// How far the rounds are apart, as a share: the median over the cells of (highest − lowest) / median rate.
    pub spread: f64,
}

/// What was measured of the networks that answer when none is named.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The network that describes faces.
    pub attributes: Subject,
    /// The network that finds them, where there is one.
    pub detector: Option<Subject>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn layouts(cpus: usize) -> Vec<(usize, usize)> {
        let plan = Plan {
            cpus: NonZeroUsize::new(cpus).unwrap(),
            batches: Vec::new(),
            time: Duration::ZERO,
            rounds: NonZeroUsize::MIN,
        };
        plan.layouts().iter().map(|layout| (layout.workers, layout.threads)).collect()
    }

    #[test]
    fn the_grid_grows_slowly_and_stays_within_the_cpus() {
        assert_eq!(layouts(1), [(1, 1)]);
        assert_eq!(layouts(2), [(1, 1), (2, 1), (1, 2)]);
        assert_eq!(layouts(6), [(3, 1), (6, 1), (1, 2), (3, 2), (1, 4), (1, 6)]);
        for cpus in 1..200 {
            let layouts = layouts(cpus);
            assert!(layouts.contains(&(cpus, 1)) && layouts.contains(&(1, cpus)), "{layouts:?}");
            assert!(layouts.iter().all(|(workers, threads)| workers * threads <= cpus), "{layouts:?}");
            assert!(layouts.len() <= 2 * 8 + 1, "{layouts:?}");
        }
    }
}
